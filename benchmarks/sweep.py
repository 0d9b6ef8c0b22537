"""Sweeps: what they add to the same work written by hand, and how much memory they take.

- *throughput*: instances a second of `run_sweep` after compilation, data written and checksums
  included, over that of a `jit` of a `vmap` over the same blocks, in one process and in turn.
- *memory*: the most a process takes (resident, all of Python included), for more and more
  instances.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import dlnjax as dln
from dlnjax._sweep import program as _program, run as _run, store as _store

from ._report import write
from ._timing import Contender, compete

S = np.linspace(0, 20, 51)[1:]
LOG_EPS = [float(np.log(1e-5)), float(np.log(1e-20))]
METRICS = {"paths": ["is_monotone", "num_knots"], "flows": ["is_monotone", "max_relative_gap"]}


def sweep_of(kind: str, instances: int) -> dln.Sweep:
    return dln.Sweep(
        instances=instances,
        sizes=[(3, 4)],
        metrics=METRICS[kind],
        log_eps=LOG_EPS if kind == "flows" else None,
        s=S,
    )


def by_hand(kind: str):
    network = dln.UV(jnp.ones(4), jnp.zeros(4))
    s = jnp.asarray(S)

    def one(index):
        key = jr.fold_in(jr.fold_in(jr.fold_in(jr.key(0), 3), 4), index)
        X_key, y_key = jr.split(key)
        problem = dln.LeastSquares(jr.normal(X_key, (3, 4)), jr.normal(y_key, (3,)))
        path = dln.lasso_path(problem, throw=False)
        good = path.result == dln.RESULTS.successful
        if kind == "paths":
            return jnp.where(good, path.is_monotone(), jnp.nan), path.num_knots

        def at(log_eps):
            flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, throw=False)
            gap = dln.suboptimality_gap(problem, flow.x_mean, s, path=path)
            solved = good & (flow.result == dln.RESULTS.successful)
            return jnp.where(solved, jnp.max(gap.relative), jnp.nan)

        return jnp.where(good, path.is_monotone(), jnp.nan), jax.vmap(at)(jnp.asarray(LOG_EPS))

    return jax.jit(jax.vmap(one))


def throughput(kind: str, instances: int, repetitions: int) -> dict:
    sweep, devices = sweep_of(kind, instances), jax.local_devices()[:1]
    (cell,) = sweep.cells
    layout, programs = _program.plan(sweep, 2**30, devices)
    hand = by_hand(kind)
    with tempfile.TemporaryDirectory() as folder:
        stores = iter(range(10**6))

        def ours():
            path = Path(folder, str(next(stores)))
            _store.create(path, sweep, layout, {}, "")
            store = _store.Store(path)
            return _run._run(sweep, store, dict(programs), devices, False)

        def theirs():
            index = np.arange(instances, dtype=np.uint32).reshape(-1, layout.block)
            return [jax.device_get(hand(part)) for part in index]

        us, (them,) = compete(
            Contender("run_sweep", ours), [Contender("vmap", theirs)], repetitions
        )
    row = {"kind": kind, "instances": instances, "layout": layout._asdict()}
    row |= {"ours": us.record(0.0, us), "vmap": them.record(0.0, us)}
    rate = instances / row["ours"]["seconds"]
    print(
        f"  {kind}: {rate:.0f} instances/s, {row['vmap']['ratio']:.2f} times the throughput of a "
        "vmap by hand",
        flush=True,
    )
    return row


def memory(kind: str, instances: int) -> dict:
    code = f"from benchmarks import sweep; sweep.run_alone({kind!r}, {instances})"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    row = {"kind": kind, "instances": instances, "megabytes": float(run.stdout.split()[-1])}
    print(f"  {kind}, {instances} instances: {row['megabytes']:.0f} MB", flush=True)
    return row


def run_alone(kind: str, instances: int) -> None:
    jax.config.update("jax_enable_x64", True)
    with tempfile.TemporaryDirectory() as folder:
        dln.run_sweep(sweep_of(kind, instances), Path(folder, "store"))
    print(_peak() / 1e3)


def _peak() -> float:
    """Kilobytes at most resident. (`getrusage` counts what the parent was when it forked.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return float(line.split()[1])


def main(out: Path, quick: bool) -> None:
    content: dict = {"settings": {"quick": quick}, "throughput": [], "memory": []}
    counts = {"paths": 8192, "flows": 1024} if quick else {"paths": 81920, "flows": 4096}
    print("\nthroughput, 3 × 4")
    for kind, instances in counts.items():
        content["throughput"].append(throughput(kind, instances, 1 if quick else 5))
        write(out, "sweep", content)
    print("\nmemory, 3 × 4")
    most = (
        {"paths": (2000,)} if quick else {"paths": (10**4, 10**5, 10**6), "flows": (2000, 20_000)}
    )
    for kind, several in most.items():
        for instances in several:
            content["memory"].append(memory(kind, instances))
            write(out, "sweep", content)
