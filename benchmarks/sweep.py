"""Sweeps: what they add to the same work written by hand, how they use workers, how much memory
they take.

- *throughput*: instances a second of one thread of `run_sweep` after compilation, data written,
  over that of a `jit` of a `vmap` over the same batches, in one process and in turn.
- *workers*: instances a second of one thread, two threads, two processes and two workers of Dask,
  with the same results bit for bit; how long a first sweep takes with no program stored, and with
  all of them; what a task takes beside its block.
- *memory*: the most a process takes (resident, all of Python included), for more and more
  instances.
"""

import contextlib
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

import dlnjax as dln
from dlnjax._sweep import run as _run, task as _task
from dlnjax._sweep.program import Layout
from dlnjax._sweep.store import Store, create

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


def _seconds(sweep: dln.Sweep, path: Path, workers: Executor, layout: Layout | None) -> float:
    """Of all blocks of a sweep; with a layout, that of an earlier run, only these are timed."""
    if layout is not None:
        create(path, sweep, layout)
    started = time.perf_counter()
    _run._drive(sweep, path, workers, 2**30, False)
    return time.perf_counter() - started


def throughput(kind: str, instances: int, repetitions: int) -> dict:
    sweep, hand = sweep_of(kind, instances), by_hand(kind)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as one:
        stores = iter(range(10**6))

        def ours():
            return _seconds(sweep, Path(folder, str(next(stores))), one, layout)

        def theirs():
            index = np.arange(instances, dtype=np.uint32).reshape(-1, layout.batch)
            return [jax.device_get(hand(part)) for part in index]

        _seconds(sweep, Path(folder, "first"), one, None)
        layout = Store(Path(folder, "first")).layout
        us, (them,) = compete(
            Contender("run_sweep", ours), [Contender("vmap", theirs)], repetitions
        )
    _task.forget()
    row = {"kind": kind, "instances": instances, "layout": layout._asdict()}
    row |= {"ours": us.record(0.0, us), "vmap": them.record(0.0, us)}
    rate = instances / row["ours"]["seconds"]
    print(
        f"  {kind}: {rate:.0f} instances/s, {row['vmap']['ratio']:.2f} times the throughput of a "
        "vmap by hand",
        flush=True,
    )
    return row


@contextlib.contextmanager
def _dask() -> Iterator[Executor]:
    from dlnjax.cli.workers import executor

    with executor(2, None, Path("/nowhere")) as workers:
        assert workers is not None
        yield workers


SPAWN = multiprocessing.get_context("spawn")
WORKERS: dict[str, Callable[[], contextlib.AbstractContextManager[Executor]]] = {
    "1 thread": lambda: ThreadPoolExecutor(1),
    "2 threads": lambda: ThreadPoolExecutor(2),
    "1 process": lambda: ProcessPoolExecutor(1, mp_context=SPAWN),
    "2 processes": lambda: ProcessPoolExecutor(2, mp_context=SPAWN),
    "Dask, 2 workers": _dask,
}


def _chunks(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("c/*") if file.is_file())
    names = {str(file.relative_to(path)): file for file in files}
    return {n: f.read_bytes() for n, f in names.items() if not n.startswith("block_")}


def workers(kind: str, instances: int, repetitions: int) -> Iterator[dict]:
    """Programs are stored in a folder of their own, so that the first sweep of all is a cold one.
    Steady is a later sweep in workers that have the programs; of repetitions the fastest, since
    other work on a machine only adds time."""
    sweep, first, rate = sweep_of(kind, instances), None, 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        for name, make in WORKERS.items():
            seconds = []
            rounds = {"1 thread": ["cold"], "2 threads": ["stored"], "1 process": ["stored"]}
            for round in rounds.get(name, ["cold", "stored"]):
                if round == "cold":
                    for file in Path(folder).glob("*-cache"):
                        file.unlink()
                with make() as pool:
                    layout = None
                    for k in range(1 + repetitions):
                        path = Path(folder, f"{name}-{round}-{k}")
                        seconds.append((round, k, _seconds(sweep, path, pool, layout)))
                        layout = Store(path).layout
                        stored = _chunks(path)
                        first = first or stored
                        if stored != first:
                            raise SystemExit(f"{name} has other results")
                _task.forget()
            steady = min(s for _, k, s in seconds if k)
            rate = rate or instances / steady
            row = {"kind": kind, "instances": instances, "workers": name, "steady": steady}
            row |= {f"first_{round}": s for round, k, s in seconds if not k}
            row["ratio"] = instances / steady / rate
            firsts = ", ".join(f"first, {r}: {s:.1f} s" for r, k, s in seconds if not k)
            print(
                f"  {kind}, {name}: {instances / steady:.0f} instances/s, {row['ratio']:.2f} times "
                f"one thread; {firsts}",
                flush=True,
            )
            yield row
        del os.environ["JAX_COMPILATION_CACHE_DIR"]


def correlations(problem):
    """Xᵀy: no arithmetic to speak of, so that what is left is the cost of tasks."""
    return problem.r


def overhead(tasks: int) -> Iterator[dict]:
    """Milliseconds that a task takes beside its arithmetic, by many of them that have none."""
    metric = dln.Metric(correlations, dims=("coordinate",))
    sweep = dln.Sweep(instances=tasks * 4096, sizes=[(3, 4)], metrics=[metric])
    with tempfile.TemporaryDirectory() as folder:
        for name in ("1 thread", "1 process", "Dask, 2 workers"):
            with WORKERS[name]() as pool:
                _seconds(sweep, Path(folder, f"{name}-0"), pool, None)
                layout = Store(Path(folder, f"{name}-0")).layout
                seconds = _seconds(sweep, Path(folder, f"{name}-1"), pool, layout)
            row = {"workers": name, "tasks": tasks, "milliseconds": 1e3 * seconds / tasks}
            print(f"  {name}: {row['milliseconds']:.1f} ms a task", flush=True)
            yield row
    _task.forget()


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
    content |= {"workers": [], "overhead": []}
    counts = {"paths": 8192, "flows": 1024} if quick else {"paths": 81920, "flows": 8192}
    print("\nthroughput, 3 × 4")
    for kind, instances in counts.items():
        content["throughput"].append(throughput(kind, instances, 1 if quick else 5))
        write(out, "sweep", content)
    print("\nworkers, 3 × 4")
    for kind, instances in counts.items():
        for row in workers(kind, instances, 1 if quick else 3):
            content["workers"].append(row)
            write(out, "sweep", content)
    print("\noverhead of a task: 4096 instances of size 3 × 4, read, written and marked as done")
    for row in overhead(20 if quick else 60):
        content["overhead"].append(row)
        write(out, "sweep", content)
    print("\nmemory, 3 × 4")
    most = (
        {"paths": (2000,)} if quick else {"paths": (10**4, 10**5, 10**6), "flows": (2000, 20_000)}
    )
    for kind, several in most.items():
        for instances in several:
            content["memory"].append(memory(kind, instances))
            write(out, "sweep", content)
