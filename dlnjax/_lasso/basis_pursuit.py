"""Basis pursuit: the minimisers of the loss with the smallest 1-norm."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._active_set.face import Face
from .._active_set.state import scatter
from .._checks import as_count, as_flag, as_weights, may_be_zero
from .._linalg import matmul
from .._path import PiecewiseLinearPath, largest_correlation, penalty
from .._problem import (
    AbstractProblem,
    check_quadratic,
    harmless,
    validity,
    without_decay,
)
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, first_failure, raise_on_failure
from .path import homotopy


class BasisPursuit(eqx.Module):
    """A minimum 1-norm point and what proves it.

    **Attributes:**

    - `x`: shape `(d,)`.
    - `dual`: `c = Xᵀν` with `|cᵢ| ≤ ωᵢ`, and `cᵢ = ±ωᵢ` where `±xᵢ > 0`, shape `(d,)`. (For
        `positive` only `cᵢ ≤ ωᵢ`, and `−inf` where all minimisers of the loss over `x ≥ 0` are 0;
        ±inf likewise where the weight of a sign is `inf`.)
    - `gap`: `Σ ωᵢ|xᵢ| − ⟨c, x⟩` with `c` scaled to be feasible, the duality gap, a scalar in the
        units of `x`.
    - `infeasibility`: the largest violation of the conditions for `x` to minimise the loss,
        over `‖Xⱼ‖`, relative to the largest `|rⱼ|/‖Xⱼ‖`, a scalar.
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
    size = jnp.max(jnp.where(jnp.isfinite(dual), jnp.abs(dual), 0))
    least = jnp.where(weights > 0, (1 - small) * weights, -small * size)
    attains = (jnp.stack([dual, -dual]) >= least) & jnp.isfinite(weights)
    return attains[:1] if positive else attains


def rounding_of_residual(problem: AbstractProblem) -> Float[Array, " d"]:
    """What of `r − Mx` counts as rounding, in each coordinate."""
    size, _ = largest_correlation(problem)
    return jnp.finfo(size.dtype).eps ** 0.5 * problem.column_norms() * size


def _first_of_last_residual(
    problem: AbstractProblem, slopes: Float[Array, "K d"]
) -> Int[Array, ""]:
    """The first of the rows that have the residual of the last one, as all that follow have."""
    images = problem.matvec(slopes)
    off = jnp.abs(images - images[-1:]) > rounding_of_residual(problem)[None, :]
    return jnp.sum(lax.cummax(jnp.any(off, axis=1).astype(jnp.int32), reverse=True))


def _dual_at(
    problem: AbstractProblem, path: PiecewiseLinearPath, row: Int[Array, ""]
) -> tuple[Float[Array, " d"], Bool[Array, " d"]]:
    """What of `μ(r − Mx(μ))` does not grow with `μ` on a segment: `Mw` with `M_AA w = (ωs)_A`, the
    form of the homotopy: from `z`, which grows, it would have fewer digits the later the knot. On
    `A` it is `ωs`, which `Mw` is but for the rounding of its largest entry. And `A`."""
    d = problem.r.shape[0]
    z, slope = path.values[row], path.slopes[row]
    sign = jnp.sign(lax.stop_gradient(jnp.where(z != 0, z, slope)))
    index = jnp.nonzero(sign, size=problem.rank_bound, fill_value=d)[0].astype(jnp.int32)
    bound = jnp.where(sign > 0, path.weights[0], path.weights[1])
    bound = jnp.where(sign == 0, 0, bound) * sign
    face = Face(problem, index)
    expand = lambda w: scatter(index, w, d)
    w = expand(face.solve(bound[jnp.minimum(index, d - 1)]))
    rows = problem.rows()
    if rows is None:
        dual = problem.matvec(w)
    else:
        # `w` may be the square of the condition number, of which `ν = Xw` has only the root.
        X, _ = rows
        nu = matmul(X, w)
        for _ in range(2):
            rest = bound - matmul(nu, X)
            w = expand(face.solve(rest[jnp.minimum(index, d - 1)]))
            nu = nu + matmul(X, w)
        dual = matmul(nu, X)
    return jnp.where(sign == 0, dual, bound), sign != 0


@eqx.filter_jit
def minimum_norm(
    problem: AbstractProblem,
    weights: Array,
    positive: bool,
    max_knots: int | None,
    may_be_zero: bool,
) -> BasisPursuit:
    verdict = validity(problem)
    problem = harmless(without_decay(problem), verdict == RESULTS.successful)
    path = homotopy(problem, weights, positive, max_knots, may_be_zero)
    # Derivatives of NaN are NaN.
    found = path.result == RESULTS.successful
    known = jax.tree.map(lambda v: jnp.where(found, v, 0) if eqx.is_inexact_array(v) else v, path)
    problem, weights = harmless(problem, found), jnp.where(found, weights, 1)
    x = known.slopes[-1]
    rest = problem.r - problem.matvec(x)
    size, norms = largest_correlation(problem)
    signs = jnp.array([[1], [-1]], x.dtype)
    is_allowed = jnp.isfinite(weights) & jnp.array([[True], [not positive]])
    # What of the loss still decreases, but only beyond a sign that is not allowed, holds x at 0.
    downhill = signs * rest[None, :]
    is_held = jnp.any((downhill > rounding_of_residual(problem)[None, :]) & ~is_allowed, axis=0)
    is_held = is_held & (x == 0)
    off = jnp.where(is_allowed | (x != 0)[None, :], downhill, 0) / norms[None, :]
    off = jnp.max(jnp.maximum(off, 0)) / jnp.where(size > 0, size, 1)

    def excess_of(dual):
        """How far it is from feasible, a factor ≥ 1."""
        # Without a weight the dual is 0, but for rounding.
        largest = jnp.max(jnp.where(is_held, 0, jnp.abs(dual)) / norms)
        hidden = (jnp.finfo(x.dtype).eps ** 0.625 * largest * norms)[None, :]
        rises = signs * dual[None, :]
        ratio = jnp.where(weights > 0, rises / jnp.where(weights > 0, weights, 1), 0)
        ratio = jnp.where((weights == 0) & (rises > hidden), jnp.inf, ratio)
        return jnp.maximum(jnp.max(jnp.where(is_allowed & ~is_held[None, :], ratio, 0)), 1)

    # All segments after the residual has come to its end have the same dual. The active set of the
    # last one may be wrong, by a knot that only rounding makes, at any μ; that of the first one, if
    # the last change of the residual was small.
    first = _first_of_last_residual(lax.stop_gradient(problem), lax.stop_gradient(known.slopes))
    rows = jnp.stack([first, jnp.full_like(first, path.knots.shape[0] - 1)])
    duals, active = jax.vmap(lambda row: _dual_at(problem, known, row))(rows)
    excesses = jax.vmap(excess_of)(duals)
    products = jnp.where(is_held, 0, duals * x[None, :]) / excesses[:, None]
    gaps = jnp.sum(penalty(x, weights)[None, :] - products, axis=1)
    # On columns that depend on each other, which rounding can hide from the path, `ωs` proves
    # nothing.
    rank_of = lambda mask: SolutionSpace(lax.stop_gradient(problem), mask).rank()
    proves = jax.vmap(rank_of)(active) == jnp.sum(active, axis=1)
    better = jnp.nanargmin(jnp.where(proves, lax.stop_gradient(gaps), jnp.inf))
    dual, excess, gap = duals[better], excesses[better], gaps[better]

    dual = jnp.where(is_held, jnp.sign(rest) * jnp.inf, dual)
    support = jnp.any(faces(dual, weights, positive), axis=0)
    rank = rank_of(support)
    # Nor does a dual that is far from feasible, or from a norm as large as that of `x`: but entries
    # that only the rounding of `y` may have asked for cost whatever their weights are.
    small = jnp.finfo(x.dtype).eps ** 0.5
    rounding = jnp.max(norms * jnp.abs(x)) / norms
    rounding = 64 * jnp.finfo(x.dtype).eps * jnp.sum(penalty(jnp.sign(x) * rounding, weights))
    is_close = ~(gap > small * jnp.sum(penalty(x, weights)) + rounding)
    is_proved = proves[better] & ~(excess > 1 + small) & is_close
    result = first_failure(verdict, path.result, (is_proved, RESULTS.path_inaccurate))
    good = (result == RESULTS.successful) & jnp.all(jnp.isfinite(x))
    nan_unless = lambda v: jnp.where(good, v, jnp.nan)
    return BasisPursuit(
        x=nan_unless(x),
        dual=nan_unless(dual),
        gap=nan_unless(gap),
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
    - `weights`: `ω ≥ 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive (first
        row) and negative entries. Default 1. With 0 an entry costs nothing, with `inf` it is 0.
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
    point = minimum_norm(problem, omega, positive, max_knots, may_be_zero(weights))
    return raise_on_failure(point, point.result, throw)
