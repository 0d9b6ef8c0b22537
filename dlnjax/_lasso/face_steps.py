"""The lasso at one `μ`: exact steps on its faces, and the recovery from rounding.

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
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._active_set.state import gather
from .._batching import any_lane
from .._linalg import eigvalsh, inverse_factor, matmul
from .._loops import cond, fori_loop, while_loop
from .._path import penalty
from .._problem import AbstractProblem

ROUNDING = 8  # of a correlation, in units of rounding of the sum that it is
MIN_PIVOT = 1e3  # in units of rounding: less is a coordinate that depends on the active ones


class State(eqx.Module):
    """A point and its active set `A` in `k` slots; an empty slot has index `d`."""

    x: Float[Array, " d"]  # zero outside A and `entering`, non-zero inside
    correlation: Float[Array, " d"]  # r − Mx
    gap: Float[Array, ""]
    rounding: Float[Array, ""]  # of the gap
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


class Faces(eqx.Module):
    """The lasso at one `μ`, `κ = λ + ω/μ`, and its moves."""

    problem: AbstractProblem
    kappa: Float[Array, "2 d"]
    diagonal: Float[Array, " d"]  # of M
    scale: Float[Array, " d"]  # its root's inverse, 0 for a zero column
    loss_at_0: Float[Array, ""]
    positive: bool = eqx.field(static=True)

    def at(self, x: Float[Array, " d"], state: State) -> State:
        """`state` moved to `x`."""
        problem, kappa = self.problem, self.kappa
        gap = problem.gap_at(x, kappa, self.positive)
        return eqx.tree_at(
            lambda s: (s.x, s.correlation, s.gap, s.rounding, s.objective),
            state,
            (
                x,
                -problem.gradient(x),
                # A sum of non-negative terms, but for rounding.
                jnp.where(gap < 0, 0, gap),
                jnp.zeros_like(gap),
                problem.loss(x) + jnp.sum(penalty(x, kappa)),
            ),
        )

    def rounded(self, state: State) -> State:
        """`state`, where it is stale with the gap that rounding leaves, and how much that is."""

        def gap():
            x, norms = state.x, jnp.sqrt(self.diagonal)
            # Of a correlation: a column times the sum of what the residual is made of.
            terms = jnp.sqrt(2 * self.loss_at_0) + jnp.sum(norms * jnp.abs(x))
            rounding = ROUNDING * float(jnp.finfo(x.dtype).eps) * terms * norms
            gap = self.problem.gap_at(x, self.kappa, self.positive, rounding)
            known = jnp.where(gap < 0, 0, gap), jnp.sum(rounding * jnp.abs(x))
            return jax.tree.map(lambda a, b: jnp.where(state.is_stale, a, b), known, same())

        same = lambda: (state.gap, state.rounding)
        fields = cond(any_lane(state.is_stale), gap, same)
        return eqx.tree_at(lambda s: (s.gap, s.rounding), state, fields)

    def pivot(self, state: State) -> State:
        """One exact step along the face, and the join or the drop at its end."""
        problem, kappa, diagonal, scale = self.problem, self.kappa, self.diagonal, self.scale
        d, k, dtype = state.x.shape[0], state.index.shape[0], state.x.dtype
        eps = float(jnp.finfo(dtype).eps)
        min_pivot = MIN_PIVOT * eps
        x, c, index = state.x, state.correlation, state.index
        is_active = index < d
        x_A, sign = gather(x, index), jnp.sign(gather(x, index))
        off = jnp.where(x > 0, c - kappa[0], jnp.where(x < 0, c + kappa[1], 0))
        mismatch = gather(off, index)

        excess = jnp.stack([c - kappa[0], -c - kappa[1]])
        if self.positive:
            excess = excess.at[1].set(-jnp.inf)
        side = jnp.where(x == 0, jnp.argmax(excess, axis=0), jnp.where(x > 0, 0, 1))
        excess = jnp.take_along_axis(excess, side[None, :], axis=0)[0]
        violation = jnp.where((x == 0) & (scale > 0), excess * scale, -jnp.inf)
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
        new = self.at(x, new)
        left = new.correlation - jnp.where(x > 0, kappa[0], jnp.where(x < 0, -kappa[1], 0))
        left = jnp.max(jnp.abs(gather(left * scale, index)))
        is_lost = ~jnp.isfinite(new.objective) | (
            new.objective > state.objective + 1e3 * eps * self.loss_at_0
        )
        # A step on a face that is at rounding already says so, unless another coordinate can enter.
        idle = ~enters & ~blocked & (left > 0.5 * worst_mismatch) & ~(violation[worst] > left)
        is_stale = is_lost | idle | (new.pivots > 10 * k + 100)
        # A step that is lost is not taken: where it starts may be all that rounding lets be found.
        point = lambda s: (s.x, s.correlation, s.gap, s.rounding, s.objective)
        kept = jax.tree.map(lambda a, b: jnp.where(is_lost, a, b), point(state), point(new))
        return eqx.tree_at(lambda s: (*point(s), s.is_stale), new, (*kept, is_stale))

    def recover(self, state: State, max_steps: Array) -> State:
        """The inverse afresh; if that has been tried, after a burst of gradient steps."""
        problem, kappa = self.problem, self.kappa
        d, k, dtype = state.x.shape[0], state.index.shape[0], state.x.dtype
        # Zero or one trip: under `vmap` a conditional would always pay.
        curvature = while_loop(
            lambda L: (L == 0) & state.is_stale & (state.burst > 0),
            lambda _: jnp.maximum(_largest_curvature(problem), jnp.finfo(dtype).tiny),
            state.curvature,
        )
        # A little below 1/L, which is rounded.
        step = 0.999 / jnp.where(curvature > 0, curvature, 1)
        burst = jnp.minimum(state.burst, max_steps - state.steps)

        def advance(_, carry):
            last, ahead, momentum = carry
            v = ahead - step * problem.gradient(ahead)
            x = jnp.maximum(v - step * kappa[0], 0)
            if not self.positive:
                x = x - jnp.maximum(-v - step * kappa[1], 0)
            # Gradient restart (O'Donoghue & Candès, 2015): drop the momentum that points uphill.
            uphill = jnp.sum((ahead - x) * (x - last)) > 0
            after = jnp.where(uphill, 1, (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2)
            weight = jnp.where(uphill, 0, (momentum - 1) / after)
            return x, x + weight * (x - last), after

        is_better = state.objective <= state.safe_objective
        start = jnp.where(is_better, state.x, state.safe)
        x, _, _ = fori_loop(0, burst, advance, (start, start, jnp.ones((), dtype)))
        index, inverse, usable = _invert(problem, x, k)
        state = self.at(x, state)
        new = eqx.tree_at(
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
        return self.rounded(new)


def _largest_curvature(problem: AbstractProblem) -> Array:
    rows = problem.rows()
    if rows is None or rows[0].shape[0] >= rows[0].shape[1]:
        return eigvalsh(problem.gram())[-1]
    return eigvalsh(matmul(rows[0], rows[0].T))[-1]


def _invert(problem: AbstractProblem, x: Array, k: int) -> tuple:
    """Slots for the support of `x`, the inverse of their block of `M`, and whether it exists."""
    d = x.shape[0]
    index = jnp.nonzero(x, size=k, fill_value=d)[0].astype(jnp.int32)
    rows = problem.rows()
    if rows is None:
        block = gather(gather(problem.gram(), index).T, index)
    else:
        columns = gather(rows[0], index)
        block = matmul(columns.T, columns)
    scale = jnp.where(index < d, 1 / jnp.sqrt(jnp.diagonal(block)), 0)
    block = scale[:, None] * block * scale[None, :] + jnp.diag((index == d).astype(x.dtype))
    half = inverse_factor(block)
    fits = jnp.sum(x != 0) <= k
    usable = fits & jnp.all(jnp.diagonal(half) ** 2 * MIN_PIVOT * jnp.finfo(x.dtype).eps < 1)
    index = jnp.where(usable, index, d)
    half = half * scale[None, :]
    return index, jnp.where(usable, matmul(half.T, half), 0), usable
