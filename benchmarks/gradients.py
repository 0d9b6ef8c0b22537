"""What derivatives cost. (How exact they are: `derivatives`.)

Each row: the time of a scalar (a random linear function of the result) and its gradient in `X` and
`y`, over the time of the result alone; and the memory of both programs besides their arguments and
results, as XLA plans it. Instances are iid normal. Times are CPU times of this process, in turn,
so that what else runs on the machine counts less.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

from ._data import normal_batch
from ._report import write

S = np.linspace(0, 20, 11)[1:]
MU = 30.0


def _network(X) -> dln.UV:
    return dln.UV(jnp.ones(X.shape[1]), jnp.zeros(X.shape[1]))


def flow(log_eps: float) -> Callable:
    def run(X, y):
        problem = dln.LeastSquares(X, y)
        return dln.gradient_flow(_network(X), problem, S, log_eps=log_eps, throw=False).x_mean

    return run


def path(X, y):
    return dln.lasso_path(dln.LeastSquares(X, y), throw=False).x(MU)


def point(X, y):
    return dln.lasso(dln.LeastSquares(X, y), MU, gap_tol=1e-13, throw=False).x


def limit(X, y):
    return dln.limit_flow(_network(X), dln.LeastSquares(X, y), throw=False).z(S)


def end(X, y):
    return dln.end_point(_network(X), dln.LeastSquares(X, y), eps=1e-5, throw=False).x


WORK: dict[str, tuple[Callable, float]] = {  # and how many times the forward time is asked
    "flow, ε = 1e-5": (flow(math.log(1e-5)), 6),
    "flow, ε = 1e-20": (flow(math.log(1e-20)), 6),
    "flow, log ε = −700": (flow(-700.0), 6),
    "lasso path, x(30)": (path, 2),
    "lasso at μ = 30": (point, 2),
    "limit process, z": (limit, 2),
    "end point, ε = 1e-5": (end, 2),
}


def _memory(program: jax.stages.Compiled) -> int:
    analysis = program.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def cpu_time(run: Callable, *args) -> float:
    started = time.process_time()
    jax.block_until_ready(run(*args))
    return time.process_time() - started


def measure(name: str, n: int, d: int, lanes: int) -> dict:
    fn, asked = WORK[name]
    X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d, seed=2))
    rng = np.random.default_rng(0)
    shape = jax.eval_shape(fn, X[0], y[0]).shape
    weights = jnp.asarray(rng.normal(size=shape))
    forward = jax.jit(jax.vmap(fn)).lower(X, y).compile()
    scalar = lambda X, y: jnp.sum(weights * fn(X, y))
    backward = jax.jit(jax.vmap(jax.value_and_grad(scalar, argnums=(0, 1))))
    backward = backward.lower(X, y).compile()
    kilobytes = [_memory(run) / 1e3 / lanes for run in (forward, backward)]
    times = np.array([[cpu_time(forward, X, y), cpu_time(backward, X, y)] for _ in range(6)])[1:]
    forward_time, backward_time = np.median(times, axis=0).tolist()

    row = {
        "work": name,
        "n": n,
        "d": d,
        "lanes": lanes,
        "forward_seconds": forward_time,
        "value_and_gradient_seconds": backward_time,
        "ratio": float(np.median(times[:, 1] / times[:, 0])),
        "asked": asked,
        "forward_kilobytes_a_lane": kilobytes[0],
        "gradient_kilobytes_a_lane": kilobytes[1],
    }
    print(
        f"  {name:21s} {n:3d} × {d:3d}, {lanes:4d} lanes: {1e3 * forward_time:8.2f} ms forward, "
        f"value and gradient {row['ratio']:5.2f}× (asked {asked}×); "
        f"{kilobytes[0]:.1f} and {kilobytes[1]:.1f} kB a lane",
        flush=True,
    )
    return row


def main(out: Path, quick: bool) -> None:
    content: dict = {"settings": {"quick": quick}, "rows": []}
    for n, d, lanes in [(3, 4, 16)] if quick else [(3, 4, 1000), (20, 40, 50)]:
        for name in list(WORK)[5:6] if quick else WORK:
            content["rows"].append(measure(name, n, d, lanes))
            write(out, "gradients", content)
