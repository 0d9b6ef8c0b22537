"""The lasso at given `μ`, by accelerated proximal gradient, stopped by the duality gap."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, Real

from .._check import as_float, as_positive, as_weights
from .._linalg import matmul
from .._problem import AbstractProblem, LeastSquares, is_valid
from .._solution import RESULTS, raise_on_failure

_STEPS_PER_CHECK = 10


class LassoPoint(eqx.Module):
    """Solutions of the lasso.

    **Attributes:**

    - `x`: shape `(..., d)`, where `(...)` is the shape of `mu`.
    - `gap`: the duality gap at `x`, an upper bound of its suboptimality, shape `(...)`.
    - `result`: how the solve ended, shape `(...)`; `stats`: the number of steps, shape `(...)`.
    """

    x: Float[Array, "... d"]
    gap: Float[Array, "..."]
    result: RESULTS
    stats: dict[str, PyTree[ArrayLike]]


class _Iterate(eqx.Module):
    x: Float[Array, " d"]
    ahead: Float[Array, " d"]  # the extrapolated point
    momentum: Float[Array, ""]
    gap: Float[Array, ""]
    steps: Array


def _largest_curvature(problem: AbstractProblem) -> Array:
    if isinstance(problem, LeastSquares) and problem.X.shape[0] < problem.X.shape[1]:
        matrix = matmul(problem.X, problem.X.T)
    else:
        matrix = problem.gram()
    return jnp.linalg.eigvalsh(matrix)[-1]


@eqx.filter_jit
def _solve(problem, mu, weights, positive: bool, gap_tol, max_steps) -> LassoPoint:
    curvature = _largest_curvature(problem)
    # A little below 1/L, since L is rounded.
    step = 0.999 / jnp.where(curvature > 0, curvature, 1)
    valid = is_valid(problem) & jnp.all(weights > 0) & jnp.all(jnp.isfinite(weights))

    def one(start: Array, mu: Array):
        kappa = problem.weight_decay + weights / mu

        def objective(x):
            norm = jnp.sum(jnp.where(x == 0, 0, jnp.where(x > 0, kappa[0], kappa[1]) * jnp.abs(x)))
            return problem.loss(x) + norm

        def advance(_, it: _Iterate) -> _Iterate:
            v = it.ahead - step * problem.gradient(it.ahead)
            x = jnp.maximum(v - step * kappa[0], 0)
            if not positive:
                x = x - jnp.maximum(-v - step * kappa[1], 0)
            # Gradient restart (O'Donoghue & Candès, 2015): drop the momentum that points uphill.
            uphill = jnp.sum((it.ahead - x) * (x - it.x)) > 0
            momentum = jnp.where(uphill, 1, (1 + jnp.sqrt(1 + 4 * it.momentum**2)) / 2)
            weight = jnp.where(uphill, 0, (it.momentum - 1) / momentum)
            return _Iterate(x, x + weight * (x - it.x), momentum, it.gap, it.steps)

        def check(it: _Iterate) -> _Iterate:
            it = lax.fori_loop(0, _STEPS_PER_CHECK, advance, it)
            gap = problem.gap_at(it.x, kappa, positive)
            return _Iterate(it.x, it.ahead, it.momentum, gap, it.steps + _STEPS_PER_CHECK)

        def reached(it: _Iterate):
            return it.gap <= gap_tol * objective(it.x)

        one = jnp.ones_like(mu)
        it = _Iterate(start, start, one, problem.gap_at(start, kappa, positive), jnp.asarray(0))
        it = lax.while_loop(
            lambda it: valid & (mu > 0) & ~reached(it) & (it.steps < max_steps), check, it
        )
        result = RESULTS.where(reached(it), RESULTS.successful, RESULTS.gap_not_reached)
        result = RESULTS.where(valid & (mu > 0), result, RESULTS.invalid_input)
        good = result == RESULTS.successful
        point = LassoPoint(
            x=jnp.where(good, it.x, jnp.nan),
            gap=jnp.where(good, it.gap, jnp.nan),
            result=result,
            stats={"num_steps": it.steps},
        )
        return jnp.where(jnp.isfinite(it.x), it.x, 0), point

    _, points = lax.scan(one, jnp.zeros_like(problem.r), jnp.ravel(mu))
    return jax.tree.map(lambda v: v.reshape(mu.shape + v.shape[1:]), points)


def lasso(
    problem: AbstractProblem,
    mu: Real[ArrayLike, "..."],
    *,
    positive: bool = False,
    weights: Real[ArrayLike, "..."] | None = None,
    gap_tol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 100_000,
    throw: bool = True,
) -> LassoPoint:
    """The lasso at given `μ`: the minimiser of `ℓ(x) + Σᵢ (λ + ωᵢ/μ)|xᵢ|`.

    For a whole path, or high accuracy, `lasso_path` is both faster and exact; this is the
    independent check of it, and needs no storage that grows with the number of kinks.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem.
    - `mu`: `μ > 0`, any shape `(...)`; each solution starts from the one before, so an
        increasing grid is fastest.
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω > 0`, shape `(d,)`, or `(2, d)` for positive and negative entries.
    - `gap_tol`: stop where the duality gap falls below `gap_tol · Lasso(x, μ)`. Default 1e-8 in
        float64, 1e-4 in float32.
    - `max_steps`: per value of `μ`.
    - `throw`: raise if the gap is not reached. With `throw=False`, such points are NaN.

    **Returns:** a `LassoPoint`.

    **Raises:** `ValueError` for `μ ≤ 0` or bad weights.

    !!! cite "Reference"

        Beck & Teboulle, FISTA (2009), with the restart of O'Donoghue & Candès (2015).
    """
    dtype = problem.r.dtype
    mu = as_positive(mu, "mu", dtype)
    omega = as_weights(weights, problem.r.shape[0], dtype)
    if gap_tol is None:
        gap_tol = 1e-4 if jnp.finfo(dtype).eps > 1e-10 else 1e-8
    gap_tol = as_float(gap_tol, "gap_tol", dtype)
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    point = _solve(problem, mu, omega, positive, gap_tol, jnp.asarray(max_steps))
    return raise_on_failure(point, point.result, throw)
