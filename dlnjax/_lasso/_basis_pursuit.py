"""Basis pursuit: the minimisers of the loss with the smallest 1-norm."""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._check import as_count, as_flag, as_weights
from .._constraint import Constraint
from .._problem import AbstractProblem, check_quadratic, validity
from .._solution import RESULTS, first_failure, raise_on_failure
from ._homotopy import lasso_path


class BasisPursuit(eqx.Module):
    """A minimum 1-norm point and what proves it.

    **Attributes:**

    - `x`: shape `(d,)`.
    - `dual`: `c = Xᵀν` with `|cᵢ| ≤ ωᵢ`, and `cᵢ = ±ωᵢ` where `±xᵢ > 0`, shape `(d,)`. (For
        `positive` only `cᵢ ≤ ωᵢ`, and `−inf` where all minimisers of the loss over `x ≥ 0` are 0.)
    - `gap`: `Σ ωᵢ|xᵢ| − ⟨c, x⟩` with `c` scaled to be feasible, the duality gap, a scalar in the
        units of `x`.
    - `infeasibility`: the largest violation of the conditions for `x` to minimise the loss,
        relative to `‖r‖_∞`, a scalar.
    - `is_unique`: whether it is certain that no other point has the same norm: the columns on which
        the dual attains its bounds are linearly independent.
    - `result`: how the solve ended; `stats`: what the path cost.
    """

    x: Float[Array, " d"]
    dual: Float[Array, " d"]
    gap: Float[Array, ""]
    infeasibility: Float[Array, ""]
    is_unique: Bool[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


def faces(
    dual: Float[Array, " d"], weights: Float[Array, "2 d"], positive: bool
) -> Bool[Array, "signs d"]:
    """The signs that minimum 1-norm points may have: where the dual attains its bound."""
    small = jnp.finfo(dual.dtype).eps ** 0.625
    upper = dual >= (1 - small) * weights[0]
    return upper[None, :] if positive else jnp.stack([upper, -dual >= (1 - small) * weights[1]])


def without_decay(problem: AbstractProblem) -> AbstractProblem:
    zero = jnp.zeros_like(problem.weight_decay)
    return eqx.tree_at(lambda p: p.weight_decay, problem, zero)


def rounding_of_residual(problem: AbstractProblem) -> Float[Array, " d"]:
    """What of `r − Mx` counts as rounding, in each coordinate."""
    norms = jnp.sqrt(problem.gram_diagonal())
    r = jnp.max(jnp.where(norms > 0, jnp.abs(problem.r) / jnp.where(norms > 0, norms, 1), 0))
    return jnp.finfo(norms.dtype).eps ** 0.5 * norms * r


def _first_of_last_residual(
    problem: AbstractProblem, slopes: Float[Array, "K d"]
) -> Int[Array, ""]:
    """The first of the rows that have the residual of the last one, as all that follow have."""
    images = problem.matvec(slopes)
    off = jnp.abs(images - images[-1:]) > rounding_of_residual(problem)[None, :]
    return jnp.sum(lax.cummax(jnp.any(off, axis=1).astype(jnp.int32), reverse=True))


@eqx.filter_jit
def _solve(
    problem: AbstractProblem, weights: Array, positive: bool, max_knots: int | None
) -> BasisPursuit:
    verdict = validity(problem)
    problem = without_decay(problem)
    path = lasso_path(problem, positive=positive, weights=weights, max_knots=max_knots, throw=False)
    x = path.slopes[-1]
    rest = problem.r - problem.matvec(x)
    # On the last ray μ(r − Mx(μ)) = μ(r − Mx) − M(z − μx): what does not grow with μ is the dual.
    # It is the same from where the residual has come to its end, and has most digits there: knots
    # that rounding makes may follow, at any μ.
    first = _first_of_last_residual(lax.stop_gradient(problem), lax.stop_gradient(path.slopes))
    dual = -problem.matvec(path.values[first] - path.knots[first] * path.slopes[first])
    is_free = jnp.ones_like(x, bool)
    if positive:
        is_free = rest >= -rounding_of_residual(problem)
    bound = jnp.where(dual >= 0, weights[0], weights[0] if positive else weights[1])
    ratio = dual / bound if positive else jnp.abs(dual) / bound
    excess = jnp.maximum(jnp.max(jnp.where(is_free, ratio, 0)), 1)
    cost = jnp.where(x >= 0, weights[0], weights[1]) * jnp.abs(x)
    size = jnp.max(jnp.abs(problem.r))
    off = jnp.max(jnp.where(is_free, jnp.abs(rest), 0)) / jnp.where(size > 0, size, 1)

    dual = jnp.where(is_free, dual, -jnp.inf)
    support = jnp.any(faces(dual, weights, positive), axis=0)
    rank = Constraint(lax.stop_gradient(problem), support).rank()
    result = first_failure(verdict, path.result)
    good = (result == RESULTS.successful) & jnp.all(jnp.isfinite(x))
    nan_unless = lambda v: jnp.where(good, v, jnp.nan)
    return BasisPursuit(
        x=nan_unless(x),
        dual=nan_unless(dual),
        gap=nan_unless(jnp.sum(cost - jnp.where(is_free, dual * x, 0) / excess)),
        infeasibility=nan_unless(off),
        is_unique=good & (rank == jnp.sum(support)),
        result=result,
        stats=path.stats,
    )


def basis_pursuit(
    problem: AbstractProblem,
    *,
    positive: bool = False,
    weights: Real[ArrayLike, "..."] | None = None,
    max_knots: int | None = None,
    throw: bool = True,
) -> BasisPursuit:
    """The minimiser of `Σ ωᵢ|xᵢ|` over the minimisers of the loss: over `Xx = y`, if that has a
    solution. It is where the lasso path ends, at `μ = ∞`.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem. Its weight decay plays no role.
    - `positive`: over `x ≥ 0`.
    - `weights`: `ω > 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive (first
        row) and negative entries. Default 1.
    - `max_knots`: as in `lasso_path`.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** a `BasisPursuit`. Where several points have the same norm (`is_unique` is
    false), `limit_point` tells which of them small initialisations choose.

    **Raises:** `ValueError` for bad `weights`; an `EquinoxRuntimeError` if the path is cut short
    or inaccurate.

    !!! cite "Reference"

        Chen, Donoho & Saunders, *Atomic decomposition by basis pursuit* (1998).
    """
    check_quadratic(problem)
    positive = as_flag(positive, "positive")
    max_knots = None if max_knots is None else as_count(max_knots, "max_knots")
    omega = as_weights(weights, problem.r.shape[0], problem.r.dtype)
    point = _solve(problem, omega, positive, max_knots)
    return raise_on_failure(point, point.result, throw)
