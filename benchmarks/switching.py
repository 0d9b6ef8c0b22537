"""`python -m benchmarks.switching`: Rodas5P against AutoTsit5, the default above rank 24.

Batches of iid normal problems, `s ≤ 20`, at the tolerances 1e-6 and 1e-7; medians of five runs in
turn, and the largest error of `x_mean` on a lane, relative to its largest value, against Rodas5P at
1e-11. It prints what the comments on the constants of `_flow/auto_tsit5.py` and
`_flow/formulations.py` say.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

from ._data import normal_batch

CASES = [  # n, d, log(1/ε), lanes
    (20, 40, 46, 25),
    (20, 40, 700, 25),
    (30, 60, 46, 16),
    (30, 60, 700, 16),
    (50, 100, 46, 16),
    (50, 100, 230, 16),
    (50, 100, 700, 16),
    (100, 200, 46, 4),
]
S = np.linspace(0, 20, 21)


def program(solver: Any, rtol: float, log: float):
    """The flows of a batch, compiled at the first call."""

    def one(X, y):
        network = dln.UV(jnp.ones(len(X[0])), jnp.zeros(len(X[0])))
        options: dict[str, Any] = dict(
            log_eps=-log, solver=solver, rtol=rtol, atol=rtol / 10, throw=False
        )
        return dln.gradient_flow(network, dln.LeastSquares(X, y), S, **options)

    return jax.jit(jax.vmap(one))


def main() -> None:
    for n, d, log, lanes in CASES:
        X, y = map(jnp.asarray, normal_batch(lanes, n, d))
        want = np.asarray(program(dln.Rodas5P(), 1e-11, log)(X, y).x_mean)
        programs = {v: program(v, 1e-6, log) for v in (dln.Rodas5P(), dln.AutoTsit5())}
        flows = {v: jax.block_until_ready(run(X, y)) for v, run in programs.items()}
        times = {v: [] for v in programs}
        for _ in range(5):
            for solver, run in programs.items():
                begin = time.perf_counter()
                jax.block_until_ready(run(X, y))
                times[solver].append(time.perf_counter() - begin)
        print(f"{n} × {d}, log ε = −{log}, {lanes} lanes")
        for solver, flow in flows.items():
            error = np.abs(np.asarray(flow.x_mean) - want).max(axis=(1, 2))
            error = (error / np.abs(want).max(axis=(1, 2))).max()
            steps = np.asarray(flow.stats["num_steps"])
            print(
                f"  {type(solver).__name__:10s}{1e3 * np.median(times[solver]):8.0f} ms, steps "
                f"{steps.mean():.0f} (at most {steps.max()}), error {error:.1e}, "
                f"{dln.RESULTS[flow.result]}",
                flush=True,
            )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
