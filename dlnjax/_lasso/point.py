"""`lasso`: the lasso at given `μ`, each solution from the one before, stopped by the duality gap.

The steps are in `face_steps.py`; here is the loop over `μ`, the stopping rule, and the rule of
derivatives. `generalized.py` has the loop and the steps for other losses than the square.
"""

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
from .._problem import AbstractProblem, check_known_loss, harmless, validity
from .._results import RESULTS, first_failure, raise_on_failure
from .face_steps import Faces, State
from .generalized import newton_on_grid


class LassoPoint(eqx.Module):
    """Solutions of the lasso at given `μ`.

    **Attributes:**

    - `x`: the solutions, shape `(..., d)`, where `(...)` is the shape of `mu`.
    - `gap`: the duality gap at `x`, an upper bound of its suboptimality that includes rounding,
        shape `(...)`, in units of the loss.
    - `result`: how each solve ended, shape `(...)`.
    - `stats`: `num_steps`, the number of pivots and gradient steps, for other losses than the
        square of Newton steps, shape `(...)`.

    !!! example

        ```python
        point = dln.lasso(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])), mu=1.0)
        point.x  # (1, 0)
        point.gap  # 0
        point.stats["num_steps"]  # 2
        ```
    """

    x: Float[Array, "... d"]
    gap: Float[Array, "..."]
    result: RESULTS
    stats: dict[str, Any]


@eqx.filter_custom_jvp
def _solve(problem, mu, weights, *, positive: bool, gap_tol, max_steps) -> LassoPoint:
    """`lasso` of arguments that were checked; bad traced values end in `result`."""
    d, k, dtype = problem.r.shape[0], problem.rank_bound, problem.r.dtype
    verdict = first_failure(
        validity(problem),
        (is_weights(weights), RESULTS.invalid_weights),
        (is_tolerance(gap_tol), RESULTS.invalid_tolerance),
    )
    # A gap above this share of the objective (7e-4 in float64, 0.04 in float32) certifies nothing
    # that a caller would use, even if rounding allows no smaller one. The power is a choice.
    # Measured at κ down to 1e-12 of the largest correlation: 26 of 576 points fail, 100 times less
    # 72, 100 times more 23.
    rough = float(jnp.finfo(dtype).eps) ** 0.2
    if problem.glm() is not None:
        x, gap, result, steps = newton_on_grid(
            problem,
            jnp.ravel(mu),
            weights,
            verdict,
            positive=positive,
            gap_tol=gap_tol,
            rough=rough,
            max_steps=max_steps,
        )
        good = result == RESULTS.successful
        point = LassoPoint(
            x=jnp.where(good[:, None], x, jnp.nan),
            gap=jnp.where(good, gap, jnp.nan),
            result=result,
            stats={"num_steps": steps},
        )
        return jax.tree.map(lambda v: v.reshape(mu.shape + v.shape[1:]), point)
    diagonal = problem.gram_diagonal()
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
    loss_at_0 = problem.loss(jnp.zeros_like(problem.r))
    # A gap is in units of `½‖y‖²`: one that underflows would be 0, and certify anything.
    is_seen = jnp.maximum(gap_tol, jnp.finfo(dtype).eps) * loss_at_0 >= jnp.finfo(dtype).tiny
    verdict = first_failure(verdict, (is_seen | jnp.all(problem.r == 0), RESULTS.invalid_data))

    def is_reached(s: State) -> Array:
        # A gap as small as its rounding ends the solve, but only once pivots with a fresh inverse
        # have failed, too: before, the gap may still fall. Twice, since the gap includes the
        # rounding itself. 100 times less (measured, as above): 53 points fail, at 2.5 times the
        # steps; 100 times more: 28.
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
        # If the solve at the last μ ended on a step that is not finite, start from its safe point.
        state = faces.at(jnp.where(jnp.all(jnp.isfinite(state.x)), state.x, state.safe), state)
        state = eqx.tree_at(lambda s: (s.safe, s.safe_objective), state, (state.x, state.objective))

        def goes_on(s: State):
            return valid & ~is_reached(s) & (s.steps < max_steps)

        def phases(s: State) -> State:
            # Lambdas: JAX hashes the functions of a loop, and a bound method by its arrays, too.
            recover, pivot = lambda s: faces.recover(s, max_steps), lambda s: faces.pivot(s)
            s = while_loop(lambda s: goes_on(s) & s.is_stale, recover, s)
            return faces.rounded(while_loop(lambda s: goes_on(s) & ~s.is_stale, pivot, s))

        state = while_loop(goes_on, phases, state)
        # If κ is so small that rounding alone is a large share of the objective, the point is not
        # accepted; except where no penalised entry is active, since it is then a least squares
        # point, and the objective may be 0.
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
        # A point that failed has derivative 0. It is evaluated at x = 0 and μ = 1, since the
        # derivatives of NaN would be NaN for all points.
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
    """The lasso at given `μ`: the minimiser of `ℓ(x) + Σᵢ (λ + ωᵢ/μ)|xᵢ|`, with its duality gap.

    For a whole path `lasso_path` is exact. This is an independent check of it, and its storage
    does not grow with the number of knots.

    `x` is differentiable in the data, `μ`, `ω` and `λ`, in both modes, on the support found. At a
    knot of the path, and within a relative distance of some `√gap_tol` of one, that may be the
    derivative of the other side of the knot (`gap_tol=1e-13` narrows this). `gap` counts as
    constant.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem, or one with another loss of the rows:
        `Logistic`, `Poisson`, `Huber`, `Exponential`, `GeneralizedLinear`. No loss has a factor
        `1/n`.
    - `mu`: `μ > 0`, any shape `(...)`. Each solution starts from the one before, so an increasing
        grid is fastest. (At `μ = inf` with `λ = 0`, no finite number of steps certifies a least
        loss that is positive.)
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω ≥ 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive (first
        row) and negative entries. Default 1. A coordinate of weight 0 is unpenalised (an
        intercept); one of weight `inf` is kept at 0. Where unpenalised coordinates separate the
        classes, a logistic loss has no minimiser: `gap_not_reached`.
    - `gap_tol`: stop where the duality gap falls below `gap_tol · Lasso(x, μ)`, or below twice its
        own rounding. (Of a loss `f` whose least value is not 0, as Poisson's, the objective counts
        above `Σ inf f`.) For interpolated data the rounding is the larger one where `κ` is below
        about 1e-8 of the largest correlation (1e-4 in float32); `gap` includes it. Default 1e-8 in
        float64, 1e-4 in float32.
    - `max_steps`: the most pivots, gradient or Newton steps for each value of `μ`. The default is a
        guard only: with a warm start a point usually takes few.
    - `throw`: raise if the gap is not reached, or if its rounding alone is above `eps^(1/5)` of the
        objective (7e-4 in float64). Under tracing, and with `throw=False`, nothing is raised:
        failed points are NaN, with their `result`.

    **Returns:** a `LassoPoint`.

    **Raises:** `ValueError` for `μ ≤ 0` or bad `weights`, `gap_tol` or `max_steps`; an
    `EquinoxRuntimeError` where the gap is not reached.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        point = dln.lasso(problem, jnp.array([1.0, 2.0]))
        point.x  # (1, 0) and (1.5, 0.5)
        dln.lasso(problem, 2.0, weights=jnp.array([0.0, jnp.inf])).x  # (2, 0)
        counts = dln.Poisson(jnp.eye(2), jnp.array([5.0, 2.0]))
        dln.lasso(counts, 1.0).x  # log(y − κ) = (1.386, 0)
        ```

    !!! cite "Reference"

        Osborne, Presnell & Turlach, *A new approach to variable selection in least squares
        problems* (2000), the active set; Beck & Teboulle, FISTA (2009), with the restart of
        O'Donoghue & Candès (2015), the safeguard. Bertsekas, *Projected Newton Methods for
        Optimization Problems with Simple Constraints* (1982), for other losses.
    """
    check_known_loss(problem)
    positive = as_flag(positive, "positive")
    dtype = problem.r.dtype
    mu = as_positive(mu, "mu", dtype)
    check_nonempty(mu, "mu")
    omega = as_weights(weights, problem.r.shape[0], dtype)
    # About half of the digits: rounding of the gap is above it only at very small κ. 100 times less
    # costs the pivots little, but more points stop at rounding; 100 times more leaves x right to
    # 1e-3 only, as its error is about √gap_tol.
    if gap_tol is None:
        gap_tol = 1e-4 if jnp.finfo(dtype).eps > 1e-10 else 1e-8
    gap_tol = as_tolerance(gap_tol, "gap_tol", dtype)
    steps, gap_tol = jnp.asarray(as_count(max_steps, "max_steps")), lax.stop_gradient(gap_tol)
    point = eqx.filter_jit(_solve)(
        problem, mu, omega, positive=positive, gap_tol=gap_tol, max_steps=steps
    )
    return raise_on_failure(point, point.result, throw)
