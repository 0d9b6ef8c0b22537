"""The lasso at one `μ`: an active-set method, with proximal gradient as the safeguard.

On a face, the points with support `A` and signs `σ`, the lasso is quadratic. Each step (`pivot`)
is an exact line search on a face:

| step    | condition                               | direction, and what ends it              |
|---------|-----------------------------------------|------------------------------------------|
| balance | `r − Mx ≠ κσ` on `A`                    | `M_AA⁻¹(r − Mx − κσ)_A`, to its end      |
| enter   | `A` is balanced; the worst `j` off `A`  | `x_j` grows, `x_A` by `−M_AA⁻¹M_Aj`, so  |
|         | has `±(r − Mx)_j > κ`                   | that `A` stays balanced, until `j` meets |
|         |                                         | its bound and joins `A`                  |
| drop    | on either way an entry of `A` reaches 0 | the step ends there, and it leaves `A`   |

If the column of `j` depends on `A`, `j` never meets its bound, and enters until an entry of `A`
drops: so `M_AA` stays regular, and its inverse changes by rank one at a join or a drop. From the
solution at the previous `μ` few pivots are needed.

If rounding defeats the pivots (`is_stale`), `recover` inverts `M_AA` again. If that does not help,
it first makes accelerated proximal gradient steps (FISTA with restarts) from the best point known,
in bursts that double in length, and the pivots resume from the support that results.
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

# The rounding of a correlation, in units of eps times the sum of absolute values that it comes
# from. The factor is a choice. Measured at κ from 1e-1 to 1e-12 of the largest correlation, on the
# families of the tests and nearly dependent columns (576 points at `gap_tol=1e-10`): 26 points
# fail; 100 times less, 42 fail, at twice as many steps, since the gap never falls to a rounding
# that is underestimated; 100 times more, 32 fail, since the rounding is too much of the objective.
ROUNDING = 8
# A column counts as dependent on A if its squared distance from the span, relative to its squared
# norm, is below this many eps. The inverse has errors of eps times the condition number, which is
# up to the reciprocal of the least pivot. The factor is a choice. On the same points, 100 times
# more: 32 fail, those with columns 1e-5 apart after 2000 steps; 100 times less: 24.
MIN_PIVOT = 1e3


class State(eqx.Module):
    """A point, and its active set `A` in `k` slots. An empty slot has index `d`."""

    x: Float[Array, " d"]  # zero outside A and `entering`, non-zero inside
    correlation: Float[Array, " d"]  # r − Mx
    gap: Float[Array, ""]
    rounding: Float[Array, ""]  # of the gap; 0 unless the state is stale
    objective: Float[Array, ""]
    index: Int[Array, " k"]
    inverse: Float[Array, "k k"]  # of M_AA, zero in empty slots
    entering: Int[Array, ""]  # the coordinate on its way into A; d if none
    is_balanced: Bool[Array, ""]  # r − Mx = κσ on A: another coordinate may enter
    is_stale: Bool[Array, ""]  # the pivots have failed, by rounding
    pivots: Array  # made at this μ since the last inversion
    safe: Float[Array, " d"]  # the point of the last inversion, or where this μ began
    safe_objective: Float[Array, ""]
    burst: Array  # gradient steps that the next recovery makes; 0 at the first one
    curvature: Float[Array, ""]  # the largest eigenvalue of M; 0 until it is needed
    steps: Array  # pivots and gradient steps at this μ


class Faces(eqx.Module):
    """The lasso at one `μ`, `min ℓ(x) + Σ κᵢ|xᵢ|`, and the steps that solve it."""

    problem: AbstractProblem
    kappa: Float[Array, "2 d"]  # κ = λ + ω/μ of both signs
    diagonal: Float[Array, " d"]  # of M
    scale: Float[Array, " d"]  # 1/‖Xⱼ‖, 0 for a zero column
    loss_at_0: Float[Array, ""]  # ½‖y‖², the unit of the objective's rounding
    positive: bool = eqx.field(static=True)

    def at(self, x: Float[Array, " d"], state: State) -> State:
        """`state` with `x` and all that is a function of it: residual, gap, objective."""
        problem, kappa = self.problem, self.kappa
        gap = problem.gap_at(x, kappa, self.positive)
        return eqx.tree_at(
            lambda s: (s.x, s.correlation, s.gap, s.rounding, s.objective),
            state,
            (
                x,
                -problem.gradient(x),
                # A gap is a sum of non-negative terms: below 0 it is rounding. NaN stays NaN.
                jnp.where(gap < 0, 0, gap),
                jnp.zeros_like(gap),
                problem.loss(x) + jnp.sum(penalty(x, kappa)),
            ),
        )

    def terms(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """`‖y‖ + Σ‖Xᵢ‖|xᵢ|`, the sizes that add up to `y − Xx`."""
        return jnp.sqrt(2 * self.loss_at_0) + jnp.sum(jnp.sqrt(self.diagonal) * jnp.abs(x))

    def rounded(self, state: State) -> State:
        """`state`; where it is stale, with a gap that allows for rounding, and that rounding.

        Bounds count as met within the rounding of their correlations. Without this the gap of
        interpolated data never falls below `gap_tol`: the residual is then rounding itself.
        """

        def gap():
            x, norms = state.x, jnp.sqrt(self.diagonal)
            # |Xⱼᵀ(y − Xx)| is a sum whose terms add up to at most ‖Xⱼ‖(‖y‖ + Σ‖Xᵢ‖|xᵢ|).
            rounding = ROUNDING * float(jnp.finfo(x.dtype).eps) * self.terms(x) * norms
            gap = self.problem.gap_at(x, self.kappa, self.positive, rounding)
            known = jnp.where(gap < 0, 0, gap), jnp.sum(rounding * jnp.abs(x))
            return jax.tree.map(lambda a, b: jnp.where(state.is_stale, a, b), known, same())

        same = lambda: (state.gap, state.rounding)
        fields = cond(any_lane(state.is_stale), gap, same)
        return eqx.tree_at(lambda s: (s.gap, s.rounding), state, fields)

    def pivot(self, state: State) -> State:
        """One exact step on the face, and the join or the drop at its end: the table above."""
        problem, kappa, diagonal, scale = self.problem, self.kappa, self.diagonal, self.scale
        d, k, dtype = state.x.shape[0], state.index.shape[0], state.x.dtype
        eps = float(jnp.finfo(dtype).eps)
        min_pivot = MIN_PIVOT * eps
        x, c, index = state.x, state.correlation, state.index
        is_active = index < d
        x_A, sign = gather(x, index), jnp.sign(gather(x, index))
        # r − Mx − κσ on A: 0 once the face is balanced.
        off = jnp.where(x > 0, c - kappa[0], jnp.where(x < 0, c + kappa[1], 0))
        mismatch = gather(off, index)

        # The coordinate off A that exceeds its bound the most, in units of its column; it enters
        # only if that is more than A is out of balance, so that it is not rounding of A.
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
        # The squared distance of column j from the span of A: the rate at which its excess falls.
        pivot = diagonal[j] + sigma * jnp.sum(cross * step)
        can_join = (pivot > min_pivot * diagonal[j]) & ~jnp.all(is_active)
        joining = jnp.maximum(excess[j], 0) / jnp.where(can_join, pivot, 1)
        full = jnp.where(enters, jnp.where(can_join, joining, jnp.inf), 1)
        shrinks = is_active & (sign * step < 0)
        until = jnp.where(shrinks, -x_A / jnp.where(shrinks, step, 1), jnp.inf)
        # An entry that is 0 already, as after a tie, leaves at once.
        until = jnp.where(is_active & (x_A == 0), 0, until)
        slot = jnp.argmin(until)
        blocked = until[slot] < full
        t = jnp.minimum(until[slot], full)
        x = x.at[index].add(t * step, mode="drop")
        x = x.at[jnp.where(blocked, index[slot], d)].set(0, mode="drop")
        x = x.at[jnp.where(enters, j, d)].add(t * sigma, mode="drop")

        # Join or drop: the inverse changes by vvᵀ/size, as in `Compact.pivot`.
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
        # The pivots have failed
        # - if the objective is not finite, or rises by more than its rounding: 1e3 eps of the loss
        #   at 0 is a choice, 100 times more or less changes 10 of 40 000 steps (points as above);
        # - if balancing does not halve the mismatch, where a good inverse removes it: 100 times
        #   more takes 2.5 times the steps, 100 times less 5 % more;
        # - after more pivots than a warm start needs, which are up to 11 at κ down to 1e-3 of the
        #   largest correlation: 100 times more changes nothing, 100 times less doubles the steps.
        left = new.correlation - jnp.where(x > 0, kappa[0], jnp.where(x < 0, -kappa[1], 0))
        left = jnp.max(jnp.abs(gather(left * scale, index)))
        allowed = 1e3 * eps * self.loss_at_0
        if problem.rows() is None:
            # From `M` the loss is a sum of terms as large as ½(‖y‖ + Σ‖Xᵢ‖|xᵢ|)², which cancel.
            allowed = allowed + ROUNDING * eps * self.terms(x) ** 2
        is_lost = ~jnp.isfinite(new.objective) | (new.objective > state.objective + allowed)
        # A step on a face that is at rounding already says so, unless another coordinate can enter.
        idle = ~enters & ~blocked & (left > 0.5 * worst_mismatch) & ~(violation[worst] > left)
        is_stale = is_lost | idle | (new.pivots > 10 * k + 100)
        # A step that is lost is not taken: where it starts may be all that rounding lets be found.
        point = lambda s: (s.x, s.correlation, s.gap, s.rounding, s.objective)
        kept = jax.tree.map(lambda a, b: jnp.where(is_lost, a, b), point(state), point(new))
        return eqx.tree_at(lambda s: (*point(s), s.is_stale), new, (*kept, is_stale))

    def recover(self, state: State, max_steps: Array) -> State:
        """The inverse of `M_AA` from scratch, and from the second time on after a burst of gradient
        steps: FISTA with gradient restarts, from the better of the current and the safe point."""
        problem, kappa = self.problem, self.kappa
        d, k, dtype = state.x.shape[0], state.index.shape[0], state.x.dtype
        # A loop of at most one trip: under `vmap` a conditional would always run the eigenvalues.
        curvature = while_loop(
            lambda L: (L == 0) & state.is_stale & (state.burst > 0),
            lambda _: jnp.maximum(_largest_curvature(problem), jnp.finfo(dtype).tiny),
            state.curvature,
        )
        # Gradient steps converge up to 1/L: 0.999 keeps below it whatever the rounding of L.
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
                # 10, 20, 40, …, since the right number is not known. 10 is a choice: from 1000 on,
                # the points above take a tenth more steps.
                jnp.maximum(10, 2 * state.burst),
                curvature,
                state.steps + jnp.maximum(burst, 1),
            ),
        )
        return self.rounded(new)


def _largest_curvature(problem: AbstractProblem) -> Array:
    """The largest eigenvalue of `M`, from the smaller one of `XᵀX` and `XXᵀ`."""
    rows = problem.rows()
    if rows is None or rows[0].shape[0] >= rows[0].shape[1]:
        return eigvalsh(problem.gram())[-1]
    return eigvalsh(matmul(rows[0], rows[0].T))[-1]


def _invert(problem: AbstractProblem, x: Array, k: int) -> tuple:
    """Slots for the support of `x`, the inverse of their block of `M`, and whether it exists: not
    if the support exceeds the slots, or its columns are dependent (`MIN_PIVOT`)."""
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
    # The diagonal of L⁻¹ has the reciprocal roots of the pivots.
    usable = fits & jnp.all(jnp.diagonal(half) ** 2 * MIN_PIVOT * jnp.finfo(x.dtype).eps < 1)
    index = jnp.where(usable, index, d)
    half = half * scale[None, :]
    return index, jnp.where(usable, matmul(half.T, half), 0), usable
