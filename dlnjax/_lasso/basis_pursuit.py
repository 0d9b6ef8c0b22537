"""Basis pursuit: the minimisers of the loss with the smallest 1-norm.

The lasso path ends there: `x` is the slope of its last ray. The dual that proves it is the lasso's
own, `c = μ(r − Mx(μ))`, at the start of a late segment:

    |cⱼ| ≤ ωⱼ off its active set A,   cⱼ = ωⱼσⱼ on A,

and `Σ ωᵢ|xᵢ| − ⟨c, x⟩` is the duality gap once `c` is scaled to be feasible.
"""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._active_set.face import Face
from .._active_set.state import scatter
from .._active_set.tolerances import Tolerances
from .._checks import as_count, as_flag, as_weights, may_be_zero
from .._linalg import matmul
from .._path import LassoPath, largest_correlation, penalty, rounding_units
from .._problem import (
    AbstractProblem,
    check_quadratic,
    harmless,
    validity,
    without_decay,
)
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, first_failure, raise_on_failure
from .homotopy import homotopy

# Powers of eps beyond eps^½. Of twelve points of the fuzz run that were flagged, with entries 8 or
# more decades apart, these prove seven (measured), the first one and the last segment none.
DIGITS = (0.0, 0.125, 0.25, 0.375)


class BasisPursuit(eqx.Module):
    """A minimum 1-norm point, with the dual point that proves it.

    **Attributes:**

    - `x`: the point, shape `(d,)`.
    - `dual`: `c = Xᵀν` with `|cᵢ| ≤ ωᵢ`, and `cᵢ = ±ωᵢ` where `±xᵢ > 0`, shape `(d,)`. (With
        `positive` only `cᵢ ≤ ωᵢ`, and `−inf` where every minimiser of the loss over `x ≥ 0` is 0;
        ±inf likewise where the weight of a sign is `inf`.)
    - `gap`: the duality gap `Σ ωᵢ|xᵢ| − ⟨c, x⟩`, with `c` scaled to be feasible; a scalar, in the
        units of `ωx`.
    - `infeasibility`: the largest violation of the conditions for `x` to minimise the loss, each
        over `‖Xⱼ‖`, relative to the largest `|rⱼ|/‖Xⱼ‖`; a scalar.
    - `is_unique`: whether it is certain that no other point has the same norm, because the columns
        on which the dual attains its bounds are linearly independent; a scalar.
    - `result`: how the solve ended.
    - `stats`: those of the lasso path, `num_pivots` and `max_violation`.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 2.0]]), jnp.array([2.0]))  # x₁ + 2x₂ = 2
        point = dln.basis_pursuit(problem)
        point.x, point.dual  # (0, 1) and (0.5, 1)
        bool(point.is_unique)  # True
        ```
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
    """The signs that entries of minimum 1-norm points may have: those whose bound the dual attains.
    Shape `(1, d)`, or `(2, d)`."""
    # Attained means to 1.6e-10 in float64, 5e-5 in float32: above the rounding of a dual, which is
    # 5e-12 for columns 1e-4 apart. The power is a choice: 100 times more or less (measured)
    # changes no point of the test families.
    small = jnp.finfo(dual.dtype).eps ** 0.625
    signs = 1 if positive else 2
    weights, rises = weights[:signs], jnp.stack([dual, -dual][:signs])
    is_allowed = jnp.isfinite(weights)
    # A dual is not bounded towards a sign that is not allowed.
    size = jnp.max(jnp.where(is_allowed & jnp.isfinite(rises), rises, 0))
    least = jnp.where(weights > 0, (1 - small) * weights, -small * size)
    return (rises >= least) & is_allowed


def rounding_of_residual(problem: AbstractProblem) -> Float[Array, " d"]:
    """Below which an entry of `r − Mx` counts as rounding, shape `(d,)`: half of the digits of the
    largest correlation, in units of each column."""
    # Inaccurate paths are flagged at this size, too (`Tolerances.violation`). 100 times more or
    # less (measured) changes no point of the test families.
    size, _ = largest_correlation(problem)
    return jnp.finfo(size.dtype).eps ** 0.5 * problem.column_norms() * size


def _candidates(problem: AbstractProblem, slopes: Float[Array, "K d"]) -> Int[Array, " rows"]:
    """Rows of segments whose dual may prove the last slope: those from which on all have the
    residual of the last one, to more and more digits, and the last one."""
    # The later the segment, the smaller the entries of x that its dual knows, and the likelier it
    # is that its active set is wrong by a knot that only rounding makes.
    images = problem.matvec(slopes)
    half = rounding_of_residual(problem)
    off = jnp.abs(images - images[-1:]) / jnp.where(half > 0, half, 1)[None, :]
    off = lax.cummax(jnp.max(off, axis=1), reverse=True)
    powers = jnp.finfo(off.dtype).eps ** jnp.array(DIGITS, off.dtype)
    rows = jnp.sum(off[None, :] > powers[:, None], axis=1)
    return jnp.append(rows, slopes.shape[0] - 1)


def _dual_at(
    problem: AbstractProblem, path: LassoPath, row: Int[Array, ""]
) -> tuple[Float[Array, " d"], Float[Array, " d"], Bool[Array, " d"]]:
    """The dual at the start `μ` of a segment; the residual at `x∞`, the last slope, as a direction
    in which the dual may move; and the active set `A` of the segment as a mask. Shape `(d,)` each.

    The dual is `μ(r − Mx(μ)) = M(w + μ(x∞ − slope))`, with `x∞` in the place of the solution that
    defines `r`, and `w` such that it is `ωσ` on `A`. From `z`, which grows, it would have fewer
    digits the later the knot.
    """
    d = problem.r.shape[0]
    z, slope, mu = path.values[row], path.slopes[row], path.knots[row]
    sign = jnp.sign(lax.stop_gradient(jnp.where(z != 0, z, slope)))
    index = jnp.nonzero(sign, size=problem.rank_bound, fill_value=d)[0].astype(jnp.int32)
    bound = jnp.where(sign > 0, path.weights[0], path.weights[1])
    bound = jnp.where(sign == 0, 0, bound) * sign
    face = Face(problem, index)
    solve = lambda v: scatter(index, face.solve(v[jnp.minimum(index, d - 1)]), d)
    # `w` has the error of the squared condition number, `ν = Xw` only that of the condition number
    # itself: refinement of ν, not of w, gains those digits. Measured, columns 1e-4 apart: the dual
    # is right to 4e-7 without, to 5e-12 after one step; a second one changes nothing there.
    rows = problem.rows()
    x = path.slopes[-1]
    if rows is None:
        apply, image = problem.matvec, lambda w: w
        residual = problem.r - problem.matvec(x)
    else:
        X, y = rows
        apply, image = (lambda nu: matmul(nu, X)), (lambda w: matmul(X, w))
        # If all but 1e-10 of y is fitted, the rounding of x is 1e-6 of the residual, and `A` would
        # leave its bounds by as much.
        rest = y - matmul(X, x)
        for _ in range(2):
            rest = rest - image(solve(apply(rest)))
        residual = apply(rest)
    nu = image(solve(bound) + mu * (x - slope))
    for _ in range(2):
        nu = nu + image(solve(bound - apply(nu)))
    off = sign == 0
    return jnp.where(off, apply(nu), bound), jnp.where(off, residual, 0), ~off


def is_seen(problem: AbstractProblem) -> Bool[Array, ""]:
    """Whether `r` is more than rounding. It is none where `y` is orthogonal to `X`: `x` is 0 then,
    and `r`, as it stands, need not be in the range of `M`."""
    rows = problem.rows()
    if rows is None:
        return jnp.asarray(True)
    X, y = rows
    floor = Tolerances(problem.r.dtype).floor
    return jnp.any(jnp.abs(problem.r) > floor * matmul(jnp.abs(y), jnp.abs(X)))


@eqx.filter_jit
def minimum_norm(
    problem: AbstractProblem,
    weights: Array,
    positive: bool,
    max_knots: int | None,
    may_be_zero: bool,
) -> BasisPursuit:
    """`basis_pursuit` of arguments that were checked; bad traced values end in `result`."""
    verdict = validity(problem)
    problem = harmless(without_decay(problem), (verdict == RESULTS.successful) & is_seen(problem))
    path = homotopy(problem, weights, positive, max_knots, may_be_zero)
    # Derivatives of NaN are NaN: a failed path is replaced by zeros, and its result is masked.
    found = path.result == RESULTS.successful
    known = jax.tree.map(lambda v: jnp.where(found, v, 0) if eqx.is_inexact_array(v) else v, path)
    problem, weights = harmless(problem, found), jnp.where(found, weights, 1)
    x = known.slopes[-1]
    rest = problem.r - problem.matvec(x)
    size, norms = largest_correlation(problem)
    signs = jnp.array([[1], [-1]], x.dtype)
    is_allowed = jnp.isfinite(weights) & jnp.array([[True], [not positive]])
    # Where the loss decreases only towards a sign that is not allowed, x is held at 0.
    downhill = signs * rest[None, :]
    against = jnp.max(jnp.where(is_allowed | (x != 0)[None, :], 0, downhill), axis=0)
    is_held = against > rounding_of_residual(problem)
    off = jnp.where(is_allowed | (x != 0)[None, :], downhill, 0) / norms[None, :]
    off = jnp.max(jnp.maximum(off, 0)) / jnp.where(size > 0, size, 1)

    def excess_of(dual):
        """The factor ≥ 1 by which `dual` has to be divided to be feasible."""
        # Where the weight is 0 the dual has to be 0: below `hidden` it counts as such. The power is
        # that of `faces`; 100 times more or less (measured) changes none of 200 points with weights
        # 0 to ∞.
        rises = jnp.where(is_allowed & ~is_held[None, :], signs * dual[None, :], 0)
        hidden = jnp.finfo(x.dtype).eps ** 0.625 * jnp.max(rises / norms[None, :]) * norms[None, :]
        ratio = jnp.where(weights > 0, rises / jnp.where(weights > 0, weights, 1), 0)
        ratio = jnp.where((weights == 0) & (rises > hidden), jnp.inf, ratio)
        return jnp.maximum(jnp.max(ratio), 1)

    # A residual that is not rounding, eps^¾, may be added to the dual any number of times: points
    # that minimise the loss are 0 there. Where x is held that number is infinite.
    is_clear = against > jnp.finfo(x.dtype).eps ** 0.75 * rounding_units(problem, x)
    is_clear = is_clear & ~is_held

    def made_feasible(dual, residual):
        lacks = jnp.where(is_allowed & is_clear[None, :], signs * dual[None, :] - weights, 0)
        times = jnp.max(lacks / jnp.where(is_clear, against, 1)[None, :], initial=0)
        return dual + 2 * times * residual  # twice, to leave a margin

    rows = _candidates(lax.stop_gradient(problem), lax.stop_gradient(known.slopes))
    duals, residuals, active = jax.vmap(lambda row: _dual_at(problem, known, row))(rows)
    duals = jax.vmap(made_feasible)(duals, residuals)
    # Where free columns fit all, other entries are rounding, each 64 eps of the largest at most (a
    # choice: 100 times more or less changes no point of the test families), and 0 proves that.
    shares = norms * jnp.abs(x)
    tiny = 64 * jnp.finfo(x.dtype).eps * jnp.max(shares)
    is_free = jnp.all((penalty(x, weights) == 0) | (shares <= tiny))
    duals = jnp.concatenate([duals, jnp.zeros_like(duals[:1])])
    active = jnp.concatenate([active, jnp.zeros_like(active[:1])])
    excesses = jax.vmap(excess_of)(duals)
    products = jnp.where(is_held, 0, duals * x[None, :]) / excesses[:, None]
    gaps = jnp.sum(penalty(x, weights)[None, :] - products, axis=1)
    # If the columns of A are dependent, which rounding can hide from the path, no dual need have
    # the values ωσ there: it proves nothing.
    rank_of = lambda mask: SolutionSpace(lax.stop_gradient(problem), mask).rank()
    proves = jax.vmap(rank_of)(active) == jnp.sum(active, axis=1)
    proves = proves.at[-1].set(is_free)
    # Nor does one that has to be scaled by more than half of the digits.
    small = jnp.finfo(x.dtype).eps ** 0.5
    proves = proves & (excesses <= 1 + small)
    better = jnp.nanargmin(jnp.where(proves, lax.stop_gradient(gaps), jnp.inf))
    dual, gap = duals[better], gaps[better]

    dual = jnp.where(is_held, jnp.sign(rest) * jnp.inf, dual)
    support = jnp.any(faces(dual, weights, positive), axis=0)
    rank = rank_of(support)
    # Nor does a dual prove anything whose gap is larger than half of the digits. But rounding of y
    # may put entries into x whose cost depends on their weights alone.
    # 100 times larger `small` (measured, columns 1e-8 apart): two of six points more are accepted,
    # with gaps of 3.5e-8; 100 times smaller: two more are refused.
    rounding = jnp.sum(penalty(jnp.sign(x) * tiny / norms, weights))
    is_close = ~(gap > small * jnp.sum(penalty(x, weights)) + rounding)
    is_proved = proves[better] & is_close
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
    """The minimiser of `Σ ωᵢ|xᵢ|` over the minimisers of the loss, which are the solutions of
    `Xx = y` if there are any. It is the end of the lasso path, at `μ = ∞`.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem. Its weight decay plays no role.
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω ≥ 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive (first
        row) and negative entries. Default 1. An entry of weight 0 costs nothing; one of weight
        `inf` is kept at 0.
    - `max_knots`: static size of the buffers of the path, as in `lasso_path`.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** a `BasisPursuit`. If several points have the same norm (`is_unique` is false),
    `limit_point` gives the one that small initialisations choose.

    **Raises:** `ValueError` for bad `weights` or `max_knots`; an `EquinoxRuntimeError` if the path
    is cut short or inaccurate.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 2.0]]), jnp.array([2.0]))  # x₁ + 2x₂ = 2
        dln.basis_pursuit(problem).x  # (0, 1)
        dln.basis_pursuit(problem, weights=jnp.array([1.0, 3.0])).x  # (2, 0)
        ```

    !!! cite "Reference"

        Chen, Donoho & Saunders, *Atomic decomposition by basis pursuit* (1998).
    """
    check_quadratic(problem)
    positive = as_flag(positive, "positive")
    max_knots = None if max_knots is None else as_count(max_knots, "max_knots")
    omega = as_weights(weights, problem.r.shape[0], problem.r.dtype)
    point = minimum_norm(problem, omega, positive, max_knots, may_be_zero(weights))
    return raise_on_failure(point, point.result, throw)
