"""`python -m benchmarks cost`: what an instance of a sweep costs, by network, size and `ε`, on one
core; and how well these figures predict a sweep that was not among them.

- *cost*: seconds an instance, for paths and for a flow at each `ε`, compiling left out. The cost of
  a sweep with flows is that of its paths and of one flow for each `ε`.
- *prediction*: the sweep `studies/sizes.toml`, at the sizes above, with fewer instances: what its
  tasks took, over what the figures say.
"""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dlnjax as dln
from dlnjax._sweep import task as _task
from dlnjax._sweep.spec import Cell
from dlnjax._sweep.store import Store, create
from dlnjax._sweep.toml import read_sweep

from ._report import write

NETWORKS = ("uv", "usquared", ("deep", 3.0))
SIZES = ((3, 4), (10, 20), (20, 40))
EPS = (1e-5, 1e-20, 1e-100)
STUDY = Path(__file__).parents[1] / "studies" / "sizes.toml"
Costs = dict[tuple[str, str], float]  # by size and network


def costs(sweep: dln.Sweep) -> Costs:
    """Seconds an instance, in each cell of a sweep, all its blocks computed one after the other."""
    seconds: Costs = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as one:
        path = Path(folder, "store")
        job = _task.make_job(path, sweep, in_process=True)
        layout = one.submit(_task.choose_layout, job, 2**30).result()
        create(path, sweep, layout)
        job = job._replace(store=Store(path).id)
        blocks = -(-sweep.instances // layout.block)
        for k, cell in enumerate(sweep.cells):
            done = [one.submit(_task.compute, job, layout, k, block) for block in range(blocks)]
            seconds[_name(sweep, cell)] = sum(d.result().seconds for d in done) / sweep.instances
    _task.forget()
    return seconds


def _name(sweep: dln.Sweep, cell: Cell) -> tuple[str, str]:
    return sweep.size_labels[cell.size], cell.name


def main(out: Path, quick: bool) -> None:
    networks, sizes = (NETWORKS[:1], SIZES[:1]) if quick else (NETWORKS, SIZES)
    instances = {"paths": 512, "flows": 128} if quick else {"paths": 8192, "flows": 1024}
    content: dict = {"settings": {"quick": quick, "instances": instances}, "cost": []}
    common = {"sizes": sizes, "networks": networks}
    paths = costs(dln.Sweep(instances=instances["paths"], metrics=["is_monotone"], **common))
    gap = {"instances": instances["flows"], "metrics": ["max_relative_gap"], **common}
    flows = {eps: costs(dln.Sweep(eps=[eps], **gap)) for eps in EPS}
    print("| n × d | network | path | " + " | ".join(f"flow, ε = {eps:g}" for eps in EPS) + " |")
    print("|---" * (3 + len(EPS)) + "|")
    for place, path in paths.items():
        # The paths that a flow's times and gap need are not the flow's.
        flow = {f"{eps:g}": max(flows[eps][place] - path, 0.0) for eps in EPS}
        content["cost"].append({"size": place[0], "network": place[1], "path": path, "flow": flow})
        cells = [f"{1e6 * seconds:.3g} µs" for seconds in (path, *flow.values())]
        print(f"| {' | '.join([*place, *cells])} |", flush=True)
        write(out, "cost", content)
    study = read_sweep(STUDY)
    chosen = [size for size in study.sizes if size in sizes]
    real = dln.Sweep(
        sizes=chosen,
        instances=instances["flows"],
        metrics=["is_monotone", "max_relative_gap"],
        eps=EPS,
        key=1,
    )
    measured = costs(real)
    for row in content["cost"]:
        place = row["size"], row["network"]
        if place in measured:
            row["ratio"] = measured[place] / (row["path"] + sum(row["flow"].values()))
            print(f"{', '.join(place)}: a real run takes {row['ratio']:.2f} times the prediction")
    write(out, "cost", content)
