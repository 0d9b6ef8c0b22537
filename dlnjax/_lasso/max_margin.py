"""The maximum margin of separable data in a weighted 1-norm, by the homotopy of the lasso.

With `A = diag(y) X` and slacks `t ≥ 0` of weight 0, the linear programme

    min Σ ωᵢ|xᵢ|   subject to   Ax − t = 1,   t ≥ 0

is a basis pursuit with the columns `[A, −I]`: the end of the lasso path of the squared hinge loss
`½ Σ (1 − aᵢᵀx)₊²`. Its dual point is `ν = y∘θ ≥ 0` with `±(Aᵀν)ᵢ ≤ ωᵢ`, and `Σνᵢ = Σωᵢ|xᵢ|`. Where
the data do not separate, the residual `ρ ≥ 0` of the minimum has `Aᵀρ = 0`, which proves it.
"""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from .._checks import as_count, as_weights
from .._linalg import matmul
from .._path import penalty
from .._problem import (
    AbstractProblem,
    LeastSquares,
    check_labels,
    glm_of,
    harmless,
    validity,
    without_decay,
)
from .._results import RESULTS, first_failure, one_unless, raise_on_failure
from .basis_pursuit import minimum_norm


class MaxMargin(eqx.Module):
    """A linear classifier of maximum margin, with the dual point that proves it.

    **Attributes:**

    - `x`: the classifier, shape `(d,)`, scaled such that the smallest `yᵢ(Xx)ᵢ` is 1.
    - `margin`: the maximum of `minᵢ yᵢ(Xx)ᵢ` over `Σ ωᵢ|xᵢ| ≤ 1`, which is `1/Σ ωᵢ|xᵢ|`; a scalar.
        It is `inf` if coordinates of weight 0 separate the classes.
    - `dual`: `ν ≥ 0`, one number a row, shape `(n,)`, with `±Σᵢ νᵢyᵢXᵢⱼ ≤ ωⱼ` and sum `1/margin`.
        It is positive at support vectors only.
    - `gap`: the duality gap `Σ ωᵢ|xᵢ| − Σ νᵢ ≥ 0`, with `ν` scaled to be feasible; a scalar. The
        relative error of the margin is at most `gap · margin`.
    - `is_unique`: whether it is certain that no other `x` has this margin; a scalar.
    - `result`: how the solve ended. If it failed, all numbers are NaN.
    - `stats`: `num_pivots` and `max_violation`, as of `lasso_path`.

    !!! example

        ```python
        problem = dln.Logistic(jnp.array([[1.0, 2.0], [-1.0, 0.0]]), jnp.array([1.0, -1.0]))
        best = dln.max_margin(problem)
        best.x, best.margin  # (1, 0) and 1
        best.dual  # (0, 1): the second row is the support vector
        ```
    """

    x: Float[Array, " d"]
    margin: Float[Array, ""]
    dual: Float[Array, " n"]
    gap: Float[Array, ""]
    is_unique: Bool[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


def max_margin(
    problem: AbstractProblem,
    *,
    weights: Real[ArrayLike, "..."] | None = None,
    max_knots: int | None = None,
    throw: bool = True,
) -> MaxMargin:
    """The maximum margin of separable data in the 1-norm: the `x` with the smallest `Σ ωᵢ|xᵢ|`
    among those with all `yᵢ(Xx)ᵢ ≥ 1`.

    It is exact, as `basis_pursuit` is, of which it is one. Networks that are trained for long on
    separable data tend to it in direction, with `margin_flow` showing how slowly.

    **Arguments:**

    - `problem`: a `Logistic` or `Exponential` problem. Its weight decay plays no role.
    - `weights`: `ω ≥ 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive (first
        row) and negative entries. Default 1. An entry of weight 0 costs nothing, such as an
        intercept, a column of ones; one of weight `inf` is kept at 0, so that a second row of `inf`
        restricts to `x ≥ 0`.
    - `max_knots`: static size of the buffers of the path, default `4n + 16`.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** a `MaxMargin`.

    **Raises:** `TypeError` for another problem; `ValueError` for bad `weights` or `max_knots`; an
    `EquinoxRuntimeError` if the data do not separate, or the path is cut short or inaccurate.

    !!! example

        ```python
        X, y = jnp.array([[1.0, 2.0], [-1.0, 0.0]]), jnp.array([1.0, -1.0])
        dln.max_margin(dln.Logistic(X, y)).x  # (1, 0)
        with_ones = jnp.concatenate([X, jnp.ones((2, 1))], axis=1)
        best = dln.max_margin(dln.Logistic(with_ones, y), weights=jnp.array([1.0, 1.0, 0.0]))
        best.x, best.margin  # (0, 1, −1) and 1: an intercept
        ```

    !!! cite "Reference"

        Rosset, Zhu & Hastie, *Boosting as a Regularized Path to a Maximum Margin Classifier*,
        JMLR 5 (2004).
    """
    check_labels(problem, "max_margin")
    max_knots = None if max_knots is None else as_count(max_knots, "max_knots")
    omega = as_weights(weights, problem.r.shape[0], problem.r.dtype)
    best = _solve(problem, omega, max_knots)
    return raise_on_failure(best, best.result, throw)


@eqx.filter_jit
def _solve(problem: AbstractProblem, weights: Array, max_knots: int | None) -> MaxMargin:
    problem = without_decay(problem)
    verdict = validity(problem)
    problem = harmless(problem, verdict == RESULTS.successful)
    X, y, _ = glm_of(problem)
    n, d, dtype = *X.shape, X.dtype
    A = X * y[:, None]
    slack = jnp.stack([jnp.zeros(n, dtype), jnp.full(n, jnp.inf, dtype)])
    point = minimum_norm(
        LeastSquares(jnp.concatenate([A, -jnp.eye(n, dtype=dtype)], axis=1), jnp.ones(n, dtype)),
        jnp.concatenate([weights, slack], axis=1),
        False,
        max_knots,
        True,
    )
    is_solved = (verdict == RESULTS.successful) & (point.result == RESULTS.successful)
    x, c, A, weights = one_unless(is_solved, (point.x[:d], point.dual[d:], A, weights))

    margins = matmul(A, x)
    # A margin is a proof where it is more than its rounding, a sum over d terms: a factor of 100
    # covers 1e4 of them.
    eps = jnp.finfo(dtype).eps
    least = jnp.min(margins)
    is_separated = least > 100 * eps * jnp.max(matmul(jnp.abs(A), jnp.abs(x)))
    # The residual of the squared hinge loss is the proof of the contrary: ρ ≥ 0, ρ ≠ 0 and Aᵀρ = 0
    # (≤ 0, where a sign is not allowed), to half of the digits of its terms.
    rho = jnp.maximum(1 - margins, 0)
    image, terms = matmul(rho, A), matmul(rho, jnp.abs(A))
    rises = jnp.where(jnp.isfinite(weights), jnp.stack([image, -image]), 0)
    half = eps**0.5
    is_refuted = ~is_separated & jnp.all(rises <= half * terms[None, :])

    good = is_solved & is_separated
    x, c, A, weights, least = one_unless(good, (x, c, A, weights, least))
    x = x / least
    cost = jnp.sum(penalty(x, weights))
    # `ν` in the place of the slacks, scaled to be feasible: weights of 0 hold to rounding.
    nu = jnp.maximum(-c, 0)
    image, terms = matmul(nu, A), matmul(nu, jnp.abs(A))
    rises = jnp.stack([image, -image])
    rises = jnp.where(jnp.isfinite(weights), rises, 0)
    ratio = jnp.where(weights > 0, rises / jnp.where(weights > 0, weights, 1), 0)
    nu = nu / jnp.maximum(jnp.max(ratio), 1)
    gap = cost - jnp.sum(nu)
    is_free = (weights != 0) | (rises <= half * terms[None, :])
    is_proved = jnp.all(is_free) & (gap <= half * cost)
    result = first_failure(
        verdict,
        point.result,
        (~is_refuted, RESULTS.not_separable),
        (is_separated & is_proved, RESULTS.path_inaccurate),
    )
    nan_unless = lambda v: jnp.where(result == RESULTS.successful, v, jnp.nan)
    costs = lax.stop_gradient(cost) > 0
    margin = jnp.where(costs, 1 / jnp.where(costs, cost, 1), jnp.inf)
    return MaxMargin(
        x=nan_unless(x),
        margin=nan_unless(margin),
        dual=nan_unless(nu),
        gap=nan_unless(gap),
        is_unique=point.is_unique & (result == RESULTS.successful),
        result=result,
        stats=point.stats,
    )
