"""Imports, answers of the command line and first calls, each in a process of its own. First calls
without a folder for compiled programs, filling one, and using it."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ._report import seconds, write

EMPTY = {
    "python": "",
    "import diffrax": "import diffrax",
    "import dlnjax": "import dlnjax",
    "import dlnjax, all names": "from dlnjax import *",
    "dlnjax --help": "import sys, dlnjax.cli; sys.argv[1:] = ['--help']; dlnjax.cli.main()",
    "dlnjax compare no.csv": (
        "import sys, dlnjax.cli; sys.argv[1:] = ['compare', 'no.csv']; dlnjax.cli.main()"
    ),
}

SHAPES = [(3, 4), (20, 40)]
CALLS = {
    "gradient_flow": "dln.gradient_flow(net, problem, s, eps=1e-5)",
    "lasso_path": "dln.lasso_path(problem)",
    "lasso": "dln.lasso(problem, mu)",
    "limit_flow": "dln.limit_flow(net, problem)",
}
SCRIPT = """
import json, time
import jax, jax.numpy as jnp, numpy as np
from dlnjax import *
import dlnjax as dln
if {cache!r}:
    dln.enable_cache({cache!r})
jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
X = rng.normal(size=({n}, {d})) / {n}**0.5
y = rng.normal(size={n}) / {n}**0.5
problem = dln.LeastSquares(X, y)
net = dln.UV(jnp.ones({d}), jnp.zeros({d}))
s = np.linspace(0, 20, 51)[1:]
mu = np.geomspace(1, 50, 20)
ready, cpu = time.perf_counter(), time.process_time()
jax.block_until_ready({call})
first, first_cpu = time.perf_counter(), time.process_time()
jax.block_until_ready({call})
second = time.perf_counter()
times = {{"first": first - ready, "first_cpu": first_cpu - cpu, "second": second - first}}
print(json.dumps(times))
"""


def run(call: str, n: int, d: int, cache: str | None) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    script = SCRIPT.format(call=call, n=n, d=d, cache=cache)
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(output.stdout.splitlines()[-1])


def start(code: str) -> tuple[float, float]:
    """Seconds, and seconds of CPU time, of a process that runs `code` and ends."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    began, before = time.perf_counter(), used()
    subprocess.run([sys.executable, "-c", code], capture_output=True)
    return time.perf_counter() - began, used() - before


def main(out: Path, quick: bool) -> None:
    starts: dict[str, list[tuple[float, float]]] = {name: [] for name in EMPTY}
    for _ in range(1 if quick else 7):
        for name, code in EMPTY.items():
            starts[name].append(start(code))
    print("  seconds, and seconds of CPU time, of a whole process: medians")
    medians = {
        name: [statistics.median(each) for each in zip(*times, strict=True)]
        for name, times in starts.items()
    }
    for name, (wall, cpu) in medians.items():
        print(f"  {name:26s} {seconds(wall):>8s} {seconds(cpu):>8s}", flush=True)
    ratio = medians["import dlnjax, all names"][1] / medians["import diffrax"][1]
    print(f"  CPU time of dlnjax, all names, over diffrax: {ratio:.2f}")

    rows = []
    for call, code in [("lasso_path", CALLS["lasso_path"])] if quick else CALLS.items():
        for n, d in SHAPES[: 1 if quick else 2]:
            with tempfile.TemporaryDirectory() as cache:
                plain, filling, filled = (run(code, n, d, c) for c in (None, cache, cache))
            row = {"call": call, "n": n, "d": d, "second": plain["second"]}
            for name, times in [("", plain), ("_filling", filling), ("_cached", filled)]:
                row |= {f"first{name}": times["first"], f"first{name}_cpu": times["first_cpu"]}
            rows.append(row)
            print(
                f"  {call:14s} {n:2d} × {d:<3d} first {seconds(plain['first']):>7s} "
                f"({seconds(plain['first_cpu'])} of CPU time), second "
                f"{seconds(plain['second']):>8s}; stored: first {seconds(filled['first']):>7s} "
                f"({seconds(filled['first_cpu'])})",
                flush=True,
            )
    write(out, "startup", {"settings": {"quick": quick}, "starts": medians, "rows": rows})
