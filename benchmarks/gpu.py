"""A GPU against the CPU of the same machine, with this library: flows and paths of three sizes
at up to 10⁶ lanes, memory a lane, and `dlnjax info --check` in both precisions.

One command of about 8 minutes: `python -m benchmarks gpu`. Each kind of device works in a process
of its own, since some programs are chosen by device when they are traced; what does not fit into
the time is left out, and said. On a machine without a GPU its part runs on the CPU, at toy size.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._data import normal_batch
from ._report import seconds, write

SECONDS = {"gpu": 210.0, "cpu": 150.0}  # of the rows; the checks take the rest of the 8 minutes
S = np.linspace(0, 20, 51)[1:]
LOG_EPS = math.log(1e-20)
COMPARED = 100  # lanes whose results are compared between the devices


class Row(NamedTuple):
    """A piece of work. Larger batches come later, so that the time runs out on them."""

    work: str  # "flow" or "path"
    n: int
    d: int
    lanes: int
    dtype: str

    @property
    def label(self) -> str:
        return f"{self.work} {self.n} × {self.d}, {self.lanes} lanes, {self.dtype}"


def rows(quick: bool) -> Iterator[Row]:
    if quick:
        yield Row("path", 3, 4, 100, "float32")
        return
    most = {(3, 4): 10**6, (20, 40): 10**5, (50, 100): 10**4}
    for lanes in (10**3, 10**4, 10**5, 10**6):
        for dtype in ("float32", "float64"):
            for (n, d), largest in most.items():
                for work in ("flow", "path"):
                    if lanes <= largest:
                        yield Row(work, n, d, lanes, dtype)


def work_on(device: str, quick: bool, folder: Path) -> list[dict[str, Any]]:
    """All rows that fit into the time, on the default device of this process."""
    import jax
    import jax.numpy as jnp

    import dlnjax as dln

    def lane(row: Row):
        network = dln.UV(jnp.ones(row.d, row.dtype), jnp.zeros(row.d, row.dtype))
        s = jnp.asarray(S, row.dtype)

        def solve(X, y):
            problem = dln.LeastSquares(X, y)
            if row.work == "path":
                path = dln.lasso_path(problem, throw=False)
                return path.x(s), path.result, path.num_knots
            # In float32 nothing tighter than this is reached.
            rtol = 1e-7 if row.dtype == "float64" else 1e-5
            options: dict[str, Any] = dict(log_eps=LOG_EPS, rtol=rtol, atol=rtol, throw=False)
            flow = dln.gradient_flow(network, problem, s, **options)
            return flow.x_mean, flow.result, flow.stats["num_steps"]

        return solve

    jax.config.update("jax_enable_x64", True)
    started, found = time.perf_counter(), []
    data: dict[Any, Any] = {}
    for row in rows(quick):
        key = (row.n, row.d, row.lanes)
        if key not in data:
            data = {key: normal_batch(row.lanes, row.n, row.d)}
        X, y = (jnp.asarray(v, row.dtype) for v in data[key])
        out: dict[str, Any] = {"device": device, **row._asdict()}
        found.append(out)
        left = SECONDS[device] - (time.perf_counter() - started)
        # The batch before this one, ten times as large, and its compilation.
        before = [
            r for r in found[:-1] if (r["work"], r["n"], r["dtype"]) == (row[0], row[1], row[4])
        ]
        expected = max(
            (10 * r.get("seconds", 0) * 2 + r.get("compile", 0) for r in before), default=0
        )
        if left < expected or left < 0 or any("note" in r for r in before):
            out["note"] = "left out: no time"
            print(f"  {device} {row.label}: {out['note']}", flush=True)
            continue
        solve = lane(row)
        try:
            begin = time.perf_counter()
            if device == "cpu":
                # As a user of a CPU would: chunks, on all cores. The first call compiles.
                run = lambda solve=solve, X=X, y=y: dln.batched(solve, X, y)
                jax.block_until_ready(dln.batched(solve, X[:128], y[:128]))
            else:
                program = jax.jit(jax.vmap(solve)).lower(X, y).compile()
                analysis: Any = program.memory_analysis()
                size = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
                out["bytes_a_lane"] = size / row.lanes
                run = lambda program=program, X=X, y=y: program(X, y)
            out["compile"] = time.perf_counter() - begin
            times, output = [], None
            for _ in range(2 if expected > 10 else 3):
                begin = time.perf_counter()
                output = jax.block_until_ready(run())
                times.append(time.perf_counter() - begin)
        except Exception as e:  # out of memory, which has no type of its own
            out["note"] = f"failed: {str(e).splitlines()[0][:120]}"
            print(f"  {device} {row.label}: {out['note']}", flush=True)
            continue
        assert output is not None
        x, result, count = output
        out["seconds"] = min(times)
        out["failed"] = int(np.sum(np.asarray(result != dln.RESULTS.successful)))
        out["most_steps"] = int(np.max(np.asarray(count)))
        np.save(folder / f"{device}-{'-'.join(map(str, row))}.npy", np.asarray(x[:COMPARED]))
        memory = f", {out['bytes_a_lane'] / 1e3:.3g} kB a lane" if "bytes_a_lane" in out else ""
        print(
            f"  {device} {row.label}: {seconds(out['seconds'])} ({row.lanes / out['seconds']:.3g} "
            f"lanes/s), compiled in {seconds(out['compile'])}{memory}, {out['failed']} failed",
            flush=True,
        )
    return found


def check(float32: bool, environment: dict[str, str]) -> dict[str, Any]:
    """`dlnjax info --check` on the default device."""
    command = [sys.executable, "-m", "dlnjax.cli", "info", "--check", *["--float32"] * float32]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    print(done.stdout, done.stderr[-500:], flush=True)
    return {"float32": float32, "passes": done.returncode == 0, "says": done.stdout.splitlines()}


def draw(out: Path, found: list[dict[str, Any]], name: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    for ax, work in zip(figure.subplots(1, 2, sharey=True), ("flow", "path"), strict=True):
        sizes = sorted({(r["n"], r["d"]) for r in found})
        for (n, d), color in zip(sizes, ("C0", "C1", "C2"), strict=False):
            for device, style in (("gpu", "-o"), ("cpu", ":s")):
                for dtype, alpha in (("float32", 1.0), ("float64", 0.45)):
                    place = (work, n, device, dtype)
                    names = ("work", "n", "device", "dtype")
                    some = [r for r in found if tuple(r[k] for k in names) == place]
                    some = [r for r in some if "seconds" in r]
                    if some:
                        lanes = [r["lanes"] for r in some]
                        rate = [r["lanes"] / r["seconds"] for r in some]
                        label = f"{n} × {d}, {device}, {dtype}"
                        ax.plot(lanes, rate, style, color=color, alpha=alpha, ms=4, label=label)
        ax.set(xscale="log", yscale="log", xlabel="lanes", title=work)
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylabel("lanes a second")
    figure.axes[1].legend(fontsize=6)
    figure.suptitle(name, size=10)
    figure.savefig(out / "gpu.png", dpi=110)


def main(out: Path, quick: bool) -> None:
    query = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep='\\n')"
    asked = subprocess.run(
        [sys.executable, "-c", query], capture_output=True, text=True, check=True
    )
    platform, kind = asked.stdout.splitlines()[-2:]
    quick = quick or platform == "cpu"
    if platform == "cpu":
        print("  JAX finds no GPU here: toy sizes, on the CPU in both parts")
    environments = {"gpu": dict(os.environ), "cpu": os.environ | {"JAX_PLATFORMS": "cpu"}}
    found: list[dict[str, Any]] = []
    differences = []
    checks = [] if quick else [check(f, environments["gpu"]) for f in (False, True)]
    with tempfile.TemporaryDirectory() as folder:
        for device, environment in environments.items():
            report = Path(folder) / f"{device}.json"
            command = [sys.executable, "-m", "benchmarks.gpu", device, str(int(quick)), folder]
            subprocess.run(command, env=environment, check=True)
            found += json.loads(report.read_text())
        for row in rows(quick):
            paths = [Path(folder) / f"{d}-{'-'.join(map(str, row))}.npy" for d in environments]
            if all(path.exists() for path in paths):
                x, reference = (np.load(path) for path in paths)
                scale = np.abs(reference).max(axis=(1, 2))
                off = np.abs(x - reference).max(axis=(1, 2)) / np.where(scale > 0, scale, 1)
                differences.append({**row._asdict(), "largest": float(off.max())})
                print(f"  {row.label}: the devices differ by at most {off.max():.1e} of max |x|")
    content = {"settings": {"quick": quick}, "platform": platform, "kind": kind, "checks": checks}
    write(out, "gpu", content | {"rows": found, "differences": differences})
    draw(out, found, f"{kind} against the CPU of the same machine")


if __name__ == "__main__":
    device, quick, folder = sys.argv[1:]
    rows_found = work_on(device, bool(int(quick)), Path(folder))
    (Path(folder) / f"{device}.json").write_text(json.dumps(rows_found))
