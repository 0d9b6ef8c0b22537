"""The lasso at given `μ`, by an active-set method, stopped by the duality gap.

On a face (support `A`, signs `s`) the lasso is quadratic. The steps are exact: to the minimiser of
the face, then, one at a time, a coordinate that violates its bound enters, along the line that
keeps `A` optimal. A coordinate that reaches 0 on the way leaves. So a coordinate that depends
linearly on `A` replaces one of `A`, `M_AA` is never singular, and its inverse changes by rank one.
From the solution at the `μ` before, few such pivots are needed.

Where rounding defeats them, the inverse is made afresh. If that does not help, accelerated
proximal gradient, in bursts that double, goes on from the best point known, and pivots resume from
its support.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from .._active_set import gather
from .._check import as_float, as_positive, as_weights
from .._linalg import matmul
from .._problem import AbstractProblem, LeastSquares, is_valid
from .._solution import RESULTS, raise_on_failure


class LassoPoint(eqx.Module):
    """Solutions of the lasso.

    **Attributes:**

    - `x`: shape `(..., d)`, where `(...)` is the shape of `mu`.
    - `gap`: the duality gap at `x`, an upper bound of its suboptimality, shape `(...)`.
    - `result`: how the solve ended, shape `(...)`; `stats`: the number of pivots and
        gradient steps, shape `(...)`.
    """

    x: Float[Array, "... d"]
    gap: Float[Array, "..."]
    result: RESULTS
    stats: dict[str, PyTree[ArrayLike]]


class _State(eqx.Module):
    """A point and its active set `A` in `k` slots; an empty slot has index `d`."""

    x: Float[Array, " d"]  # zero outside A and `entering`, non-zero inside
    correlation: Float[Array, " d"]  # r − Mx
    gap: Float[Array, ""]
    objective: Float[Array, ""]
    index: Int[Array, " k"]
    inverse: Float[Array, "k k"]  # of M_AA, zero in empty slots
    entering: Int[Array, ""]  # the coordinate on its way into A; d if none
    is_balanced: Bool[Array, ""]  # A solves its own equations: another may enter
    is_stale: Bool[Array, ""]  # the inverse has failed
    pivots: Array  # at this μ, since the last factorisation
    safe: Float[Array, " d"]  # where the last factorisation was made, or this μ began
    safe_objective: Float[Array, ""]
    burst: Array  # steps that the next recovery takes
    curvature: Float[Array, ""]  # the largest of M; 0 until it is needed
    steps: Array


def _largest_curvature(problem: AbstractProblem) -> Array:
    if isinstance(problem, LeastSquares) and problem.X.shape[0] < problem.X.shape[1]:
        matrix = matmul(problem.X, problem.X.T)
    else:
        matrix = problem.gram()
    return jnp.linalg.eigvalsh(matrix)[-1]


def _invert(problem: AbstractProblem, x: Array, k: int, min_pivot: float) -> tuple:
    """Slots for the support of `x`, the inverse of their block of `M`, and whether it exists."""
    d = x.shape[0]
    index = jnp.nonzero(x, size=k, fill_value=d)[0].astype(jnp.int32)
    if isinstance(problem, LeastSquares):
        columns = gather(problem.X, index)
        block = matmul(columns.T, columns)
    else:
        block = gather(gather(problem.gram(), index).T, index)
    scale = jnp.where(index < d, 1 / jnp.sqrt(jnp.diagonal(block)), 0)
    block = scale[:, None] * block * scale[None, :] + jnp.diag((index == d).astype(x.dtype))
    factor = lax.linalg.cholesky(block)
    half = lax.linalg.triangular_solve(factor, jnp.diag(scale), left_side=True, lower=True)
    fits = jnp.sum(x != 0) <= k
    usable = fits & jnp.all(jnp.diagonal(factor) ** 2 > min_pivot)
    index = jnp.where(usable, index, d)
    return index, jnp.where(usable, matmul(half.T, half), 0), usable


@eqx.filter_jit
def _solve(problem, mu, weights, positive: bool, gap_tol, max_steps) -> LassoPoint:
    d, k, dtype = problem.r.shape[0], problem.rank_bound, problem.r.dtype
    eps = float(jnp.finfo(dtype).eps)
    min_pivot = 1e3 * eps
    valid = is_valid(problem) & jnp.all(weights > 0) & jnp.all(jnp.isfinite(weights))
    diagonal = problem.gram_diagonal()
    scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)

    size_of_loss = problem.loss(jnp.zeros_like(problem.r))

    def at(kappa, x, state: _State) -> _State:
        """`state` moved to `x`."""
        # A sum of non-negative terms, but for rounding.
        gap = problem.gap_at(x, kappa, positive)
        cost = jnp.where(x > 0, kappa[0], kappa[1]) * jnp.abs(x)
        return eqx.tree_at(
            lambda s: (s.x, s.correlation, s.gap, s.objective),
            state,
            (
                x,
                -problem.gradient(x),
                jnp.where(gap < 0, 0, gap),
                problem.loss(x) + jnp.sum(jnp.where(x == 0, 0, cost)),
            ),
        )

    def pivot(kappa, state: _State) -> _State:
        x, c, index = state.x, state.correlation, state.index
        is_active = index < d
        x_A, sign = gather(x, index), jnp.sign(gather(x, index))
        mismatch = gather(c - jnp.where(x > 0, kappa[0], -kappa[1]), index)

        excess = jnp.stack([c - kappa[0], -c - kappa[1]])
        if positive:
            excess = excess.at[1].set(-jnp.inf)
        side = jnp.where(x == 0, jnp.argmax(excess, axis=0), jnp.where(x > 0, 0, 1))
        excess = jnp.take_along_axis(excess, side[None, :], axis=0)[0]
        violation = jnp.where(x == 0, excess * scale, -jnp.inf)
        worst = jnp.argmax(violation).astype(jnp.int32)
        worst_mismatch = jnp.max(jnp.abs(mismatch * gather(scale, index)))
        is_pending = state.entering < d
        enters = state.is_balanced & (is_pending | (violation[worst] > worst_mismatch))
        j = jnp.where(is_pending, state.entering, worst)
        sigma = jnp.where(side[j] == 0, 1, -1).astype(dtype)

        cross = gather(problem.gram_column(j), index)
        step = matmul(state.inverse, jnp.where(enters, -sigma * cross, mismatch))
        pivot = diagonal[j] + sigma * jnp.sum(cross * step)
        can_join = (pivot > min_pivot * diagonal[j]) & ~jnp.all(is_active)
        joining = jnp.maximum(excess[j], 0) / jnp.where(can_join, pivot, 1)
        full = jnp.where(enters, jnp.where(can_join, joining, jnp.inf), 1)
        shrinks = is_active & (sign * step < 0)
        until = jnp.where(shrinks, -x_A / jnp.where(shrinks, step, 1), jnp.inf)
        until = jnp.where(is_active & (x_A == 0), 0, until)
        slot = jnp.argmin(until)
        blocked = until[slot] < full
        t = jnp.minimum(until[slot], full)
        x = x.at[index].add(t * step, mode="drop")
        x = x.at[jnp.where(blocked, index[slot], d)].set(0, mode="drop")
        x = x.at[jnp.where(enters, j, d)].add(t * sigma, mode="drop")

        # Join or drop: a rank-one update.
        joins = enters & ~blocked
        slot = jnp.where(blocked, slot, jnp.argmin(is_active)).astype(jnp.int32)
        here = jnp.arange(k, dtype=jnp.int32) == slot
        v = jnp.where(blocked, state.inverse[slot], jnp.where(here, sigma, step))
        size = jnp.where(blocked, -v[slot], pivot)
        moves = joins | blocked
        shift = jnp.where(moves, 1 / jnp.where(moves, size, 1), 0)
        inverse = state.inverse + shift * v[:, None] * v[None, :]
        inverse = jnp.where(blocked & (here[:, None] | here[None, :]), 0, inverse)
        index = jnp.where(here & blocked, d, jnp.where(here & joins, j, index))

        new = eqx.tree_at(
            lambda s: (s.index, s.inverse, s.entering, s.is_balanced, s.pivots, s.steps),
            state,
            (
                index,
                inverse,
                jnp.where(joins | ~(enters | is_pending), d, j).astype(jnp.int32),
                jnp.where(enters, blocked | (excess[j] >= 0), ~blocked),
                state.pivots + 1,
                state.steps + 1,
            ),
        )
        new = at(kappa, x, new)
        left = jnp.max(
            jnp.abs(
                gather((new.correlation - jnp.where(x > 0, kappa[0], -kappa[1])) * scale, index)
            )
        )
        is_lost = ~jnp.isfinite(new.objective) | (
            new.objective > state.objective + 1e3 * eps * size_of_loss
        )
        idle = ~enters & ~blocked & (left > 0.5 * worst_mismatch)
        is_stale = is_lost | idle | (new.pivots > 10 * k + 100)
        return eqx.tree_at(lambda s: s.is_stale, new, is_stale)

    def recover(kappa, state: _State) -> _State:
        # Zero or one trip: under `vmap` a conditional would always pay.
        curvature = lax.while_loop(
            lambda L: (L == 0) & state.is_stale & (state.burst > 0),
            lambda _: jnp.maximum(_largest_curvature(problem), jnp.finfo(dtype).tiny),
            state.curvature,
        )
        step = 0.999 / jnp.where(
            curvature > 0, curvature, 1
        )  # a little below 1/L, which is rounded
        burst = jnp.minimum(state.burst, max_steps - state.steps)

        def advance(_, carry):
            last, ahead, momentum = carry
            v = ahead - step * problem.gradient(ahead)
            x = jnp.maximum(v - step * kappa[0], 0)
            if not positive:
                x = x - jnp.maximum(-v - step * kappa[1], 0)
            # Gradient restart (O'Donoghue & Candès, 2015): drop the momentum that points uphill.
            uphill = jnp.sum((ahead - x) * (x - last)) > 0
            after = jnp.where(uphill, 1, (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2)
            weight = jnp.where(uphill, 0, (momentum - 1) / after)
            return x, x + weight * (x - last), after

        is_better = state.objective <= state.safe_objective
        start = jnp.where(is_better, state.x, state.safe)
        x, _, _ = lax.fori_loop(0, burst, advance, (start, start, jnp.ones((), dtype)))
        index, inverse, usable = _invert(problem, x, k, min_pivot)
        state = at(kappa, x, state)
        return eqx.tree_at(
            lambda s: (
                s.index,
                s.inverse,
                s.entering,
                s.is_balanced,
                s.is_stale,
                s.pivots,
                s.safe,
                s.safe_objective,
                s.burst,
                s.curvature,
                s.steps,
            ),
            state,
            (
                index,
                inverse,
                jnp.full_like(state.entering, d),
                jnp.asarray(False),
                ~usable,
                jnp.zeros_like(state.pivots),
                x,
                state.objective,
                jnp.maximum(10, 2 * state.burst),
                curvature,
                state.steps + jnp.maximum(burst, 1),
            ),
        )

    def one(state: _State, mu: Array):
        kappa = problem.weight_decay + weights / mu
        state = eqx.tree_at(
            lambda s: (s.burst, s.steps, s.pivots, s.is_balanced),
            state,
            (jnp.asarray(0), jnp.asarray(0), jnp.asarray(0), jnp.asarray(False)),
        )
        # Where the last μ ended on a step that was lost.
        state = at(kappa, jnp.where(jnp.all(jnp.isfinite(state.x)), state.x, state.safe), state)
        state = eqx.tree_at(lambda s: (s.safe, s.safe_objective), state, (state.x, state.objective))

        def goes_on(s: _State):
            return valid & (mu > 0) & ~(s.gap <= gap_tol * s.objective) & (s.steps < max_steps)

        def phases(s: _State) -> _State:
            s = lax.while_loop(lambda s: goes_on(s) & s.is_stale, lambda s: recover(kappa, s), s)
            return lax.while_loop(lambda s: goes_on(s) & ~s.is_stale, lambda s: pivot(kappa, s), s)

        state = lax.while_loop(goes_on, phases, state)
        good = state.gap <= gap_tol * state.objective
        result = RESULTS.where(good, RESULTS.successful, RESULTS.gap_not_reached)
        result = RESULTS.where(valid & (mu > 0), result, RESULTS.invalid_input)
        good = result == RESULTS.successful
        point = LassoPoint(
            x=jnp.where(good, state.x, jnp.nan),
            gap=jnp.where(good, state.gap, jnp.nan),
            result=result,
            stats={"num_steps": state.steps},
        )
        return state, point

    zero = jnp.zeros((), dtype)
    state = _State(
        x=jnp.zeros(d, dtype),
        correlation=problem.r,
        gap=zero,
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
    _, points = lax.scan(one, state, jnp.ravel(mu))
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

    For a whole path `lasso_path` is exact; this is the independent check of it, and needs no
    storage that grows with the number of kinks.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem.
    - `mu`: `μ > 0`, any shape `(...)` (where the least loss is positive and `λ = 0`, no finite
        number of steps certifies `μ = inf`); each solution starts from the one before, so an
        increasing grid is fastest.
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω > 0`, shape `(d,)`, or `(2, d)` for positive and negative entries.
    - `gap_tol`: stop where the duality gap falls below `gap_tol · Lasso(x, μ)`. Default 1e-8 in
        float64, 1e-4 in float32.
    - `max_steps`: pivots and gradient steps, per value of `μ`.
    - `throw`: raise if the gap is not reached. With `throw=False`, such points are NaN.

    **Returns:** a `LassoPoint`.

    **Raises:** `ValueError` for `μ ≤ 0` or bad weights.

    !!! cite "Reference"

        Osborne, Presnell & Turlach, *A new approach to variable selection in least squares
        problems* (2000), the active set; Beck & Teboulle, FISTA (2009), with the restart of
        O'Donoghue & Candès (2015), the safeguard.
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
