"""Import and first calls, each in a process of its own: without a persistent compilation cache,
filling one, and using it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ._report import seconds, write

SHAPES = [(3, 4), (20, 40)]
CALLS = {
    "gradient_flow": "dln.gradient_flow(net, problem, s, eps=1e-5)",
    "lasso_path": "dln.lasso_path(problem)",
    "lasso": "dln.lasso(problem, mu)",
}
SCRIPT = """
import json, time
start = time.perf_counter()
import dlnjax as dln
imported = time.perf_counter()
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
X = rng.normal(size=({n}, {d})) / {n}**0.5
y = rng.normal(size={n}) / {n}**0.5
problem = dln.LeastSquares(X, y)
net = dln.UV(jnp.ones({d}), jnp.zeros({d}))
s = np.linspace(0, 20, 51)[1:]
mu = np.geomspace(1, 50, 20)
ready = time.perf_counter()
jax.block_until_ready({call})
first = time.perf_counter()
jax.block_until_ready({call})
second = time.perf_counter()
times = {{"import": imported - start, "first": first - ready, "second": second - first}}
print(json.dumps(times))
"""


def run(call: str, n: int, d: int, cache: str | None) -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = cache
    script = SCRIPT.format(call=call, n=n, d=d)
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(output.stdout.splitlines()[-1])


def main(out: Path, quick: bool) -> None:
    rows, imports = [], []
    for call, code in list(CALLS.items())[1 : 2 if quick else 3] if quick else CALLS.items():
        for n, d in SHAPES[: 1 if quick else 2]:
            with tempfile.TemporaryDirectory() as cache:
                plain, filling, filled = (run(code, n, d, c) for c in (None, cache, cache))
            imports += [t["import"] for t in (plain, filling, filled)]
            row = {"call": call, "n": n, "d": d, "first": plain["first"], "second": plain["second"]}
            row |= {"first_filling_cache": filling["first"], "first_cached": filled["first"]}
            rows.append(row)
            print(
                f"  {call:14s} {n:2d} × {d:<3d} first {seconds(plain['first']):>7s}, "
                f"second {seconds(plain['second']):>8s}; first filling the cache "
                f"{seconds(filling['first']):>7s}, first with it {seconds(filled['first']):>7s}",
                flush=True,
            )
    imports.sort()
    print(f"  import dlnjax: {seconds(imports[len(imports) // 2])} (median of {len(imports)})")
    content = {"settings": {"quick": quick}, "import": imports, "rows": rows}
    write(out, "startup", content)
