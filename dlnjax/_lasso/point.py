"""The lasso at given `μ`, each solution from the one before, stopped by the duality gap."""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .._active_set.derivatives import lasso_on_face
from .._checks import (
    as_count,
    as_flag,
    as_positive,
    as_tolerance,
    as_weights,
    check_nonempty,
    is_tolerance,
    is_weights,
)
from .._loops import scan, while_loop
from .._path import penalties, penalty
from .._problem import AbstractProblem, check_quadratic, harmless, validity
from .._results import RESULTS, first_failure, raise_on_failure
from .face_steps import Faces, State


class LassoPoint(eqx.Module):
    """Solutions of the lasso.

    **Attributes:**

    - `x`: shape `(..., d)`, where `(...)` is the shape of `mu`.
    - `gap`: the duality gap at `x`, an upper bound of its suboptimality, rounding included, shape
        `(...)`.
    - `result`: how the solve ended, shape `(...)`; `stats`: the number of pivots and
        gradient steps, shape `(...)`.
    """

    x: Float[Array, "... d"]
    gap: Float[Array, "..."]
    result: RESULTS
    stats: dict[str, Any]


@eqx.filter_custom_jvp
def _solve(problem, mu, weights, *, positive: bool, gap_tol, max_steps) -> LassoPoint:
    d, k, dtype = problem.r.shape[0], problem.rank_bound, problem.r.dtype
    verdict = first_failure(
        validity(problem),
        (is_weights(weights), RESULTS.invalid_weights),
        (is_tolerance(gap_tol), RESULTS.invalid_tolerance),
    )
    diagonal = problem.gram_diagonal()
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    loss_at_0 = problem.loss(jnp.zeros_like(problem.r))

    rough = float(jnp.finfo(dtype).eps) ** 0.2

    def is_reached(s: State) -> Array:
        # At rounding only once the inverse has been made afresh and no pivot helps any more.
        is_exhausted = s.is_stale & (s.burst > 0)
        return (s.gap <= gap_tol * s.objective) | (is_exhausted & (s.gap <= 2 * s.rounding))

    def one(state: State, mu: Array):
        result = first_failure(verdict, (mu > 0, RESULTS.invalid_grid))
        valid = result == RESULTS.successful
        kappa = penalties(problem, weights, mu)
        faces = Faces(problem, kappa, diagonal, scale, loss_at_0, positive)
        state = eqx.tree_at(
            lambda s: (s.burst, s.steps, s.pivots, s.is_balanced),
            state,
            (jnp.asarray(0), jnp.asarray(0), jnp.asarray(0), jnp.asarray(False)),
        )
        # Where the last μ ended on a step that was lost.
        state = faces.at(jnp.where(jnp.all(jnp.isfinite(state.x)), state.x, state.safe), state)
        state = eqx.tree_at(lambda s: (s.safe, s.safe_objective), state, (state.x, state.objective))

        def goes_on(s: State):
            return valid & ~is_reached(s) & (s.steps < max_steps)

        def phases(s: State) -> State:
            # Lambdas, as a bound method would have to be hashed, with the arrays of its object.
            recover, pivot = lambda s: faces.recover(s, max_steps), lambda s: faces.pivot(s)
            s = while_loop(lambda s: goes_on(s) & s.is_stale, recover, s)
            return faces.rounded(while_loop(lambda s: goes_on(s) & ~s.is_stale, pivot, s))

        state = while_loop(goes_on, phases, state)
        # Where rounding alone is a part of the objective, as κ is far below it, the point is none;
        # unless nothing that is penalised takes part.
        is_fine = state.gap <= jnp.maximum(gap_tol, rough) * state.objective
        good = is_reached(state) & (is_fine | (jnp.sum(penalty(state.x, kappa)) == 0))
        result = first_failure(result, (good, RESULTS.gap_not_reached))
        good = result == RESULTS.successful
        point = LassoPoint(
            x=jnp.where(good, state.x, jnp.nan),
            gap=jnp.where(good, state.gap, jnp.nan),
            result=result,
            stats={"num_steps": state.steps},
        )
        return state, point

    zero = jnp.zeros((), dtype)
    state = State(
        x=jnp.zeros(d, dtype),
        correlation=problem.r,
        gap=zero,
        rounding=zero,
        objective=zero,
        index=jnp.full(k, d, jnp.int32),
        inverse=jnp.zeros((k, k), dtype),
        entering=jnp.asarray(d, jnp.int32),
        is_balanced=jnp.asarray(False),
        is_stale=jnp.asarray(False),
        pivots=jnp.asarray(0),
        safe=jnp.zeros(d, dtype),
        safe_objective=zero,
        burst=jnp.asarray(0),
        curvature=zero,
        steps=jnp.asarray(0),
    )
    _, points = scan(one, state, jnp.ravel(mu))
    return jax.tree.map(lambda v: v.reshape(mu.shape + v.shape[1:]), points)


@_solve.def_jvp
def _(primals, tangents, **options):
    point = _solve(*primals, **options)

    def again(problem, mu, weights):
        some = jnp.any(point.result == RESULTS.successful)
        problem, weights = harmless(problem, some), jnp.where(some, weights, 1)
        on_face = lambda x, mu: lasso_on_face(x, problem, mu, weights)
        # A point that failed has no derivatives, and leaves those of the others alone.
        good = (point.result == RESULTS.successful).reshape(-1)
        x = jnp.where(good[:, None], point.x.reshape(-1, problem.r.shape[0]), 0)
        x = jax.vmap(on_face)(x, jnp.where(good, mu.reshape(-1), 1))
        return eqx.tree_at(lambda point: point.x, point, x.reshape(point.x.shape))

    return point, eqx.filter_jvp(again, primals, tangents)[1]


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

    `x` is differentiable in the data, `μ`, `ω` and `λ`, in both modes, on the support found: at a
    knot of the path, and within a relative distance of some `√gap_tol` of one, that may be the
    other side's derivative (pass `gap_tol=1e-13`). `gap` has none (it counts as constant).

    For a whole path `lasso_path` is exact; this is the independent check of it, and needs no
    storage that grows with the number of kinks.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem.
    - `mu`: `μ > 0`, any shape `(...)` (where the least loss is positive and `λ = 0`, no finite
        number of steps certifies `μ = inf`); each solution starts from the one before, so an
        increasing grid is fastest.
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω ≥ 0`, shape `(d,)`, or `(2, d)` for positive and negative entries. With 0 a
        coordinate is unpenalised (an intercept), with `inf` it is kept at 0.
    - `gap_tol`: stop where the duality gap falls below `gap_tol · Lasso(x, μ)`, or below twice its
        rounding, which is the larger one where `κ` is some 1e-8 of the largest correlation (1e-4 in
        float32) and the data are interpolated: `gap` tells. Default 1e-8 in float64, 1e-4 in
        float32.
    - `max_steps`: pivots and gradient steps, per value of `μ`.
    - `throw`: raise if the gap is not reached, or its rounding alone is above `eps^(1/5)` (7e-4 in
        float64) of the objective. Under tracing, and with `throw=False`, nothing is
        raised: failed lanes are NaN, with their `result`.

    **Returns:** a `LassoPoint`.

    **Raises:** `ValueError` for `μ ≤ 0` or bad weights.

    !!! cite "Reference"

        Osborne, Presnell & Turlach, *A new approach to variable selection in least squares
        problems* (2000), the active set; Beck & Teboulle, FISTA (2009), with the restart of
        O'Donoghue & Candès (2015), the safeguard.
    """
    check_quadratic(problem)
    positive = as_flag(positive, "positive")
    dtype = problem.r.dtype
    mu = as_positive(mu, "mu", dtype)
    check_nonempty(mu, "mu")
    omega = as_weights(weights, problem.r.shape[0], dtype)
    if gap_tol is None:
        gap_tol = 1e-4 if jnp.finfo(dtype).eps > 1e-10 else 1e-8
    gap_tol = as_tolerance(gap_tol, "gap_tol", dtype)
    steps, gap_tol = jnp.asarray(as_count(max_steps, "max_steps")), lax.stop_gradient(gap_tol)
    point = eqx.filter_jit(_solve)(
        problem, mu, omega, positive=positive, gap_tol=gap_tol, max_steps=steps
    )
    return raise_on_failure(point, point.result, throw)
