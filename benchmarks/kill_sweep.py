"""`python -m benchmarks.kill_sweep [--kills N] [--seed K]`: kill a sweep N times at random moments,
with SIGKILL, resuming it after each; then compare its data with an uninterrupted run, bit for bit.
Prints a line a kill and a tally; fails if the data differ.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

INSTANCES = 1_000_000


def correlations(problem):
    """Xᵀy."""
    return problem.r


def work(path: Path) -> None:
    """Run or resume the sweep: little arithmetic, many writes."""
    import jax

    import dlnjax as dln

    jax.config.update("jax_enable_x64", True)
    sweep = dln.Sweep(
        instances=INSTANCES,
        sizes=[(2, 3), (3, 4)],
        metrics=[dln.Metric(correlations, dims=("coordinate",))],
    )
    dln.run_sweep(sweep, path, resume=True)


def start(path: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.kill_sweep", "--work", str(path)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def content(path: Path) -> dict[str, np.ndarray]:
    import zarr

    group = zarr.open_group(str(path), mode="r")
    return {name: np.asarray(array[...]) for name, array in group.arrays()}


def committed(path: Path) -> str:
    """How many blocks have a checksum."""
    if not path.exists():
        return "no store yet"
    checksums = content(path)["block_checksum"]
    return f"{int((checksums != 0).sum())} of {checksums.size} blocks"


def finish(path: Path) -> float:
    """Run to the end; seconds."""
    started = time.perf_counter()
    if code := start(path).wait():
        raise SystemExit(f"The sweep failed with status {code}.")
    return time.perf_counter() - started


def differing(path: Path, reference: dict[str, np.ndarray]) -> list[str]:
    ours = content(path)
    same = lambda a, b: a.dtype == b.dtype and a.tolist() == b.tolist()
    exact = lambda a, b: same(a, b) if a.dtype.kind in "UT" else a.tobytes() == b.tobytes()
    return [name for name in reference if not exact(ours[name], reference[name])]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.kill_sweep", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    random.seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, path = Path(folder, "whole"), Path(folder, "killed")
        seconds = finish(whole)
        reference = content(whole)
        print(f"uninterrupted: {seconds:.1f} s, {committed(whole)}")
        kills = rounds = bad = 0
        while kills < options.kills:
            process = start(path)
            wait = random.uniform(0, seconds)
            try:
                process.wait(timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                print(f"kill {kills:2d} after {wait:5.1f} s: {committed(path)}", flush=True)
                continue
            rounds, bad = rounds + 1, bad + bool(differing(path, reference))
            shutil.rmtree(path)  # it got to its end: again
        finish(path)
        names = differing(path, reference)
        print(
            f"{kills} kills in {rounds + 1} runs: {bad + bool(names)} of them differ {names or ''}"
        )
        if bad or names:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
