"""End points of `Deep` networks from equal weights, for many small problems in few programs; and
two measures that the claims about end points share.

Depth 2 and the others, `end_point` and `limit_point`: four programs serve all lanes, since depth,
data, shape and `log ε` are traced.
"""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .. import RESULTS, Deep, LeastSquares, end_point, limit_point

# The largest problem of the papers has 2 rows and 4 columns; random ones here have 3 and 5.
N, D = 3, 5
# Lanes of a program. More make fewer calls, but wait for the slowest lane of more; results do not
# depend on it but for rounding.
_CHUNK = 16


@dataclasses.dataclass(frozen=True)
class Lane:
    """One end point: `Deep(u, v, depth)` with `u = v = shape`, at `log_eps`, or in the limit
    `ε → 0` if that is `None`. `X` has shape `(n, d)`, `n ≤ N` and `d ≤ D`."""

    depth: float | int
    X: np.ndarray
    y: np.ndarray
    log_eps: float | None
    shape: float = 1.0


@eqx.filter_jit
def _solve(
    depth: Float[Array, " m"] | None,
    X: Float[Array, "m n d"],
    y: Float[Array, "m n"],
    shape: Float[Array, " m"],
    log_eps: Float[Array, " m"] | None,
) -> tuple[Float[Array, "m d"], Bool[Array, " m"]]:
    def one(depth, X, y, shape, log_eps):
        weights = shape * jnp.ones(X.shape[1])
        network = Deep(weights, weights, depth=2 if depth is None else depth)
        problem = LeastSquares(X, y)
        if log_eps is None:
            end = limit_point(network, problem, throw=False)
        else:
            end = end_point(network, problem, log_eps=log_eps, throw=False)
        return end.x, end.result == RESULTS.successful

    return jax.vmap(one)(depth, X, y, shape, log_eps)


def end_points(lanes: Sequence[Lane]) -> np.ndarray:
    """`x` of each lane, shape `(m, D)`: NaN where the solve failed.

    Problems are padded by zero rows and columns, which change nothing, and lanes run in chunks of
    one size, so that each of the four programs compiles once. `x` of the padding is 0.
    """
    x = np.full((len(lanes), D), np.nan)
    groups: dict[tuple[bool, bool], list[int]] = {}
    for i, lane in enumerate(lanes):
        groups.setdefault((lane.depth == 2, lane.log_eps is None), []).append(i)
    for (is_two, is_limit), members in groups.items():
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            # The last chunk is filled up with copies of its own lanes.
            chosen = [lanes[i] for i in np.resize(chunk, _CHUNK)]
            X, y = np.zeros((_CHUNK, N, D)), np.zeros((_CHUNK, N))
            for j, lane in enumerate(chosen):
                n, d = lane.X.shape
                X[j, :n, :d], y[j, :n] = lane.X, lane.y
            values, good = _solve(
                None if is_two else jnp.asarray([lane.depth for lane in chosen], float),
                jnp.asarray(X),
                jnp.asarray(y),
                jnp.asarray([lane.shape for lane in chosen], float),
                None if is_limit else jnp.asarray([lane.log_eps for lane in chosen], float),
            )
            values = np.where(np.asarray(good)[:, None], np.asarray(values), np.nan)
            x[chunk] = values[: len(chunk)]
    return x


def off_range(X: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The largest entry of the part of each `v`, shape `(m, d)`, off the range of `Xᵀ`, relative to
    the largest entry of `v`, shape `(m,)`. `X` has shape `(m, n, d)`, `n < d`, and full rank."""
    null = np.linalg.svd(X)[2][:, X.shape[1] :]
    return np.abs(np.einsum("mkd,mke,me->md", null, null, v)).max(1) / np.abs(v).max(1)


def fitted_slope(log_eps: np.ndarray, error: np.ndarray, correction: float | None = None) -> float:
    """The exponent `a` in `error ∝ ε^a` by least squares in logarithms; with a `correction`, in
    `error ∝ ε^a exp(C δ + C' δ²)`, `δ = ε^correction`: its next two orders are fitted too."""
    columns = [np.ones_like(log_eps), log_eps]
    if correction is not None:
        columns += [np.exp(correction * log_eps), np.exp(2 * correction * log_eps)]
    return float(np.linalg.lstsq(np.stack(columns, 1), np.log(error), rcond=None)[0][1])
