"""`python -m benchmarks.kill_sweep [--what driver|process|dask|two] [--kills N] [--seed K]`: kill
what computes a sweep N times at random moments, with SIGKILL, and compare the data of each sweep
that got to its end with an uninterrupted run, bit for bit.

| `--what` | kills | and then |
|---|---|---|
| `driver` | the process that runs the sweep, on threads | starts it again |
| `process` | one of two processes of a `ProcessPoolExecutor` | the driver fails: starts it again |
| `dask` | one of two workers of a `LocalCluster` | does nothing |
| `two` | nothing: starts two drivers at once, from nothing | one drives, the other ends with 75 |

Prints a line a kill and a tally; fails if the data differ.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil

INSTANCES = 3_000_000
BUSY = 75


def correlations(problem):
    """Xᵀy."""
    return problem.r


def work(path: Path, what: str) -> None:
    """Run or resume the sweep: little arithmetic, many writes."""
    import jax

    import dlnjax as dln
    from dlnjax.cli.workers import executor

    jax.config.update("jax_enable_x64", True)
    sweep = dln.Sweep(
        instances=INSTANCES,
        sizes=[(2, 3), (3, 4)],
        metrics=[dln.Metric(correlations, dims=("coordinate",))],
    )
    try:
        if what == "process":
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(2, mp_context=spawn) as pool:
                dln.run_sweep(sweep, path, executor=pool, resume=True)
        else:
            with executor(2 if what == "dask" else None, None, Path("/nowhere")) as workers:
                dln.run_sweep(sweep, path, executor=workers, resume=True)
    except BlockingIOError as e:
        print(e, file=sys.stderr)
        sys.exit(BUSY)


def start(path: Path, what: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.kill_sweep", "--work", str(path), "--what", what]
    # Programs are stored, so that most moments are at work, not while compiling.
    programs = {
        "JAX_COMPILATION_CACHE_DIR": str(path.with_name("programs")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command,
        env={**os.environ, **programs},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def content(path: Path) -> dict[str, np.ndarray]:
    """All arrays but those that say when and by what."""
    import zarr

    group = zarr.open_group(str(path), mode="r")
    arrays = {name: np.asarray(array[...]) for name, array in group.arrays()}
    return {name: array for name, array in arrays.items() if not name.startswith("block_")}


def committed(path: Path) -> str:
    """How many blocks are done."""
    import zarr

    if not path.exists():
        return "no store yet"
    array = zarr.open_group(str(path), mode="r")["block_done"]
    assert isinstance(array, zarr.Array)
    done = np.asarray(array[...])
    return f"{int((done != 0).sum())} of {done.size} blocks"


def finish(path: Path, what: str) -> float:
    """Run to the end; seconds."""
    started = time.perf_counter()
    if code := start(path, what).wait():
        raise SystemExit(f"The sweep failed with status {code}.")
    return time.perf_counter() - started


def differing(path: Path, reference: dict[str, np.ndarray]) -> list[str]:
    ours = content(path)
    same = lambda a, b: a.dtype == b.dtype and a.tolist() == b.tolist()
    exact = lambda a, b: same(a, b) if a.dtype.kind in "UT" else a.tobytes() == b.tobytes()
    return [name for name in reference if not exact(ours[name], reference[name])]


def victims(process: subprocess.Popen, what: str) -> list[psutil.Process]:
    """Who may be killed: the driver, or those of its children that work."""
    driver = psutil.Process(process.pid)
    if what == "driver":
        return [driver]
    children = driver.children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def kill_one(process: subprocess.Popen, what: str) -> bool:
    try:
        found = victims(process, what)
        if found:
            random.choice(found).kill()
        return bool(found)
    except psutil.NoSuchProcess:
        return False


def kills(what: str, count: int, folder: Path) -> int:
    """Returns how many sweeps had other data than an uninterrupted one."""
    whole, path = folder / "whole", folder / "killed"
    seconds = finish(whole, what)
    reference = content(whole)
    print(f"{what}: uninterrupted {seconds:.1f} s, {committed(whole)}", flush=True)
    killed = runs = starts = bad = 0
    process = None
    while killed < count or process is not None:
        if process is None:
            process, starts = start(path, what), starts + 1
        wait = random.uniform(0, seconds) if killed < count else None
        try:
            code = process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            if kill_one(process, what):
                killed += 1
                print(f"kill {killed:2d} after {wait:5.1f} s: {committed(path)}", flush=True)
            continue
        process = None
        if code == 0:
            runs, bad = runs + 1, bad + bool(differing(path, reference))
            shutil.rmtree(path)  # it got to its end: again
        elif what == "dask":
            raise SystemExit(f"The sweep failed with status {code}: Dask was to go on.")
        elif killed == count:
            process, starts = start(path, what), starts + 1
    print(f"{what}: {killed} kills, {starts} starts, {runs} whole sweeps, of which {bad} differ")
    return bad


def two(rounds: int, folder: Path) -> int:
    path, bad, reference = folder / "two", 0, None
    for _ in range(rounds):
        both = [start(path, "driver") for _ in range(2)]
        codes = sorted(process.wait() for process in both)
        reference = reference or content(path)
        differ = differing(path, reference)
        print(f"two cold starts at once end with {codes}; {committed(path)}; differ: {differ}")
        bad += bool(differ) or codes not in ([0, BUSY], [0, 0])
        shutil.rmtree(path)
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.kill_sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--what", choices=["driver", "process", "dask", "two"], default="driver")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.what)
        return
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "two":
            bad = two(options.kills, Path(folder))
        else:
            bad = kills(options.what, options.kills, Path(folder))
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
