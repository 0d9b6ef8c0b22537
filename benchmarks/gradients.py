"""What derivatives cost, and how exact they are.

Each row: the time of the gradient of a scalar (a random linear function of the result) with respect
to `X` and `y`, over the time of the result alone; and the largest relative difference from central
differences along random directions in `X` and `y`, over the lanes. Instances are iid normal.
"""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

from ._data import normal_batch
from ._report import write
from ._timing import median

S = np.linspace(0, 20, 11)[1:]
MU = 30.0
STEP = 1e-6


def _network(X) -> dln.UV:
    return dln.UV(jnp.ones(X.shape[1]), jnp.zeros(X.shape[1]))


def flow(log_eps: float) -> Callable:
    # The differences need steps whose errors are below theirs.
    def run(X, y, rtol=1e-7, atol=1e-8):
        problem = dln.LeastSquares(X, y)
        run = dln.gradient_flow(
            _network(X), problem, S, log_eps=log_eps, rtol=rtol, atol=atol, throw=False
        )
        return run.x_mean

    return run


def path(X, y, **_):
    return dln.lasso_path(dln.LeastSquares(X, y), throw=False).x(MU)


def point(X, y, **_):
    return dln.lasso(dln.LeastSquares(X, y), MU, gap_tol=1e-13, throw=False).x


def limit(X, y, **_):
    return dln.limit_flow(_network(X), dln.LeastSquares(X, y), throw=False).z(S)


def end(X, y, **_):
    return dln.interpolator(_network(X), dln.LeastSquares(X, y), eps=1e-5, throw=False).x


WORK: dict[str, tuple[Callable, float]] = {  # and how many times the forward time is asked
    "flow, ε = 1e-5": (flow(math.log(1e-5)), 6),
    "flow, ε = 1e-20": (flow(math.log(1e-20)), 6),
    "flow, log ε = −700": (flow(-700.0), 6),
    "lasso path, x(30)": (path, 2),
    "lasso at μ = 30": (point, 2),
    "limit process, z": (limit, 2),
    "end point, ε = 1e-5": (end, 2),
}


def measure(name: str, n: int, d: int, lanes: int) -> dict:
    fn, asked = WORK[name]
    X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d, seed=2))
    rng = np.random.default_rng(0)
    shape = jax.eval_shape(fn, X[0], y[0]).shape
    weights = jnp.asarray(rng.normal(size=shape))
    forward = jax.jit(jax.vmap(fn))
    scalar = lambda X, y, **tolerances: jnp.sum(weights * fn(X, y, **tolerances))
    backward = jax.jit(jax.vmap(jax.value_and_grad(scalar, argnums=(0, 1))))
    forward_time = median(lambda: forward(X, y), 5)
    backward_time = median(lambda: backward(X, y), 5)

    fine = dict(rtol=1e-11, atol=1e-12)
    few = slice(0, min(lanes, 16))
    exact = jax.jit(jax.vmap(lambda X, y: jax.grad(scalar, argnums=(0, 1))(X, y, **fine)))
    value = jax.jit(jax.vmap(lambda X, y: scalar(X, y, **fine)))
    by_X, by_y = exact(X[few], y[few])
    errors = []
    for _ in range(3):
        dX, dy = rng.normal(size=by_X.shape), rng.normal(size=by_y.shape)
        along = jnp.sum(by_X * dX, axis=(1, 2)) + jnp.sum(by_y * dy, axis=1)
        ends = [value(X[few] + h * dX, y[few] + h * dy) for h in (STEP, -STEP)]
        difference = (ends[0] - ends[1]) / (2 * STEP)
        size = jnp.sqrt(jnp.sum(by_X**2, axis=(1, 2)) + jnp.sum(by_y**2, axis=1))
        errors.append(np.asarray(jnp.abs(along - difference) / jnp.maximum(size, 1e-300)))
    row = {
        "work": name,
        "n": n,
        "d": d,
        "lanes": lanes,
        "forward_seconds": forward_time,
        "value_and_gradient_seconds": backward_time,
        "ratio": backward_time / forward_time,
        "asked": asked,
        "difference_median": float(np.median(errors)),
        "difference_worst": float(np.max(errors)),
    }
    print(
        f"  {name:20s} {n:3d} × {d:3d}, {lanes:4d} lanes: {1e3 * forward_time:8.2f} ms forward, "
        f"value and gradient {row['ratio']:5.2f}× (asked {asked}×); against differences "
        f"{row['difference_median']:.1e} median, {row['difference_worst']:.1e} worst",
        flush=True,
    )
    return row


def main(out: Path, quick: bool) -> None:
    content: dict = {"settings": {"quick": quick}, "rows": []}
    for n, d, lanes in [(3, 4, 16)] if quick else [(3, 4, 1000), (20, 40, 50)]:
        for name in list(WORK)[3:4] if quick else WORK:
            content["rows"].append(measure(name, n, d, lanes))
            write(out, "gradients", content)
