"""What `dlnjax info --check` computes."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._end_point.end_point import end_point, limit_point
from .._flow.gradient_flow import gradient_flow
from .._lasso.path import lasso_path
from .._lasso.point import lasso
from .._limit.limit_flow import limit_flow
from .._problem import LeastSquares
from ..networks import UV, AbstractNetwork, Deep, USquared

X = ((2.0, -1.0, 0.5, 1.0), (0.0, 1.5, -1.0, 0.5), (1.0, 0.5, 2.0, -1.5))
Y = (1.0, -0.5, 2.0)
EPS = 1e-10
TOLERANCE = {8: 1e-6, 4: 1e-3}  # by bytes of a float, relative to max |x|


def _flow(network: AbstractNetwork, problem: LeastSquares) -> jax.Array:
    return gradient_flow(network, problem, jnp.ones(1), eps=EPS).x_mean[0]


# What each computes at μ = 1 or s = 1, from `(problem, UV)`; and its value in float64 on a CPU:
# those of the lasso and of both limits are fractions, (5/23, 44/69) and (23, 10, 44)/58.
SOLVERS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "lasso path": (lambda p, uv: lasso_path(p).x(1.0), (5 / 23, 0, 44 / 69, 0)),
    "lasso": (lambda p, uv: lasso(p, 1.0).x, (5 / 23, 0, 44 / 69, 0)),
    "limit process": (lambda p, uv: limit_flow(uv, p).x(1.0), (5 / 23, 0, 44 / 69, 0)),
    "flow, u∘v": (
        lambda p, uv: _flow(uv, p),
        (0.221360756, 6.454e-11, 0.626284727, -5.212444e-07),
    ),
    "flow, u∘u": (
        lambda p, uv: _flow(USquared(jnp.ones(4)), p),
        (0.229213406, 1.5482e-09, 0.633265591, 1.9e-12),
    ),
    "flow, depth 3": (
        lambda p, uv: _flow(Deep(jnp.ones(4), jnp.ones(4), depth=3.0), p),
        (0.217503470, -3.5e-12, 0.637714217, -3.767e-10),
    ),
    "end point": (
        lambda p, uv: end_point(uv, p, eps=EPS).x,
        (0.396780822, 0.172292506, 0.758243352, -0.000390814),
    ),
    "limit of end points": (lambda p, uv: limit_point(uv, p).x, (23 / 58, 10 / 58, 44 / 58, 0)),
}


class Check(NamedTuple):
    """How one solver did."""

    solver: str
    difference: float  # from the stored value, relative to its largest entry
    seconds: float  # compilation included
    passes: bool


def run_checks() -> Iterator[Check]:
    """Run them on the default device in the default precision. One that raises is off by `inf`."""
    problem = LeastSquares(jnp.asarray(X), jnp.asarray(Y))
    uv = UV(jnp.ones(4), jnp.zeros(4))
    for name, (solve, stored) in SOLVERS.items():
        started = time.perf_counter()
        try:
            x = jax.block_until_ready(solve(problem, uv))
        except eqx.EquinoxRuntimeError:
            x = jnp.full(4, jnp.inf)
        seconds = time.perf_counter() - started
        difference = float(np.max(np.abs(np.asarray(x) - stored)) / np.max(np.abs(stored)))
        yield Check(name, difference, seconds, difference <= TOLERANCE[x.dtype.itemsize])
