"""Where the flow ends: the primal-dual Newton method of `end_point` and `limit_point`.

Without weight decay the end point solves, with `F = X` or `[X, −X]` and `Π` the projection on
`range X`,

    Fq = Πy,    q = φ_ε(w),    w = w(0) − Fᵀν.

These are the optimality conditions of a linear programme, `min ⟨w(0), q⟩`, with a barrier whose
weight vanishes with `ε`: an entropy for `D = 2`, `−Σ q^{2/D}` for `D > 2`. So this follows the
central path, with `ε` from the size of the solution down to its value, in unknowns that keep
their digits. With `p = 1 − 2/D` every link is

    q = q(0) e^δ,    ±Xᵀν = h (1 − e^{−pδ})/p    (hδ at p = 0),

and the growth `δ` is what is carried. It is small, and exact, where the initialisation is large
(the kernel regime, where `q⁺ − q⁻` would cancel). Where `ε` is small, `w = w(0) e^{−pδ}` of an
active coordinate is tiny, and would be lost in `w(0) − Fᵀν`; the mismatch of the last equation is
therefore updated by increments. It is computed anew once, before the last step, and where that is
more exact.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg import Cholesky, matmul
from .._loops import while_loop
from .._problem.solution_space import SolutionSpace
from ..networks import Growth
from ..networks.signs import sides, signed
from .graded_solve import Graded, graded_step

PATIENCE = 12  # steps without half of the residual, before the solves are graded
NEGLIGIBLE = -1e30  # log q of a coordinate that is not allowed; finite, so that −inf + inf is not


class State(eqx.Module):
    """`q` and `x` are in units of `size/units`, the dual and `h` in those of the solution space."""

    delta: Float[Array, "signs d"]  # log q/q(0)
    log_q: Float[Array, "signs d"]  # has digits that δ has not, where q(0) is tiny
    mismatch: Float[Array, "signs d"]  # ±Xᵀν − h(1 − e^{−pδ})/p
    nu: Float[Array, " m"]  # Xᵀν = Vᵀnu
    target: Float[Array, " m"]  # Vx
    shift: Float[Array, ""]  # log of the factor by which ε is still too large
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    least: Float[Array, ""]  # residual at this shift
    stalled: Int[Array, ""]  # steps since it was halved


def position(start: Array, delta: Array, log_q: Array) -> tuple[Array, Array]:
    """`q` and `x`, where `start = log q(0)`."""
    q, parts = _parts(start, delta, log_q)
    return q, jnp.sum(parts, axis=0)


def _parts(start: Array, delta: Array, log_q: Array) -> tuple[Array, Array]:
    """`q`, and what `x` is a sum of: `x(0)` and the change, or both `q` where they have changed by
    more than that."""
    q = jnp.exp(log_q)
    if q.shape[0] == 1:
        return q, q
    is_near = jnp.all(jnp.abs(delta) < 1, axis=0)
    ratio = start[0] - start[1]
    before = signed(jnp.exp(start))
    close = jnp.exp(start[1]) * jnp.expm1(jnp.clip(ratio, -1, 1))
    before = jnp.where(jnp.abs(ratio) < 1, close, before)
    change = signed(jnp.exp(start) * jnp.expm1(jnp.where(is_near[None, :], delta, 0)))
    return q, jnp.where(is_near, jnp.stack([before, change]), jnp.stack([q[0], -q[1]]))


class Newton(eqx.Module):
    """The equations, and the path to their solution."""

    growth: Growth  # with log q(0) in units of `size/units`, `h` in `units`
    solutions: SolutionSpace  # with its target in units of `size`
    is_allowed: Bool[Array, "signs d"]  # the other q are 0
    is_seen: Bool[Array, " d"]  # a column of 0 keeps its start, which may be any power of ten
    log_size: Float[Array, ""]
    other: Float[Array, " m"]  # another target, if there is no way to the first

    def __init__(
        self,
        growth: Growth,
        solutions: SolutionSpace,
        is_allowed: Bool[Array, "signs d"],
        point: Float[Array, " d"] | None = None,
        from_size: bool = False,
    ):
        """`point` is a solution with the signs that are allowed, which the target of `solutions`
        may have none of, by rounding of `y`. `from_size` replaces `ε` by one for which `q(0)` is of
        the size of the solution."""
        size = solutions.size()
        some = size > 0
        units = solutions.units[None, :]
        start = jnp.where(is_allowed, growth.log_initial + jnp.log(units), -jnp.inf)
        is_seen = jnp.any(solutions.V != 0, axis=0)
        top = jnp.max(jnp.where(is_seen[None, :], start, -jnp.inf))
        top = jnp.where(jnp.isneginf(top), 0, top)
        # Without a response the unit is the initialisation itself.
        self.log_size = jnp.where(some, jnp.log(jnp.where(some, size, 1)), top)
        start = start - (top if from_size else self.log_size)
        self.is_allowed, self.is_seen = is_allowed, is_seen
        start = jnp.where(is_allowed, start, NEGLIGIBLE)
        self.growth = eqx.tree_at(
            lambda g: (g.log_initial, g.unit), growth, (start, growth.unit / units)
        )
        size = jnp.where(some, size, 1)
        self.solutions = eqx.tree_at(lambda c: c.target, solutions, solutions.target / size)
        self.other = target = self.solutions.target
        if point is not None:
            other = solutions.image(point) / size
            # Else it is not rounding that tells them apart, but what counts as dependent.
            is_close = jnp.max(jnp.abs(other - target)) <= jnp.finfo(other.dtype).eps ** 0.6
            self.other = jnp.where(is_close, other, target)

    def position(self, state: State) -> tuple[Array, Array]:
        return position(self.growth.log_initial + state.shift, state.delta, state.log_q)

    def linear_solve(self, q: Array, h: Array, off: Array, mismatch: Array) -> tuple[Array, Array]:
        """The Newton step `dν`, and `(±Xᵀdν + mismatch)`, where `dq = q/h` times that must
        remove `off` from `Vx`. The next step mends its rounding; `graded_solve` has none."""
        V, stretch = self.solutions.V, q / h
        slope = jnp.where(self.is_seen, jnp.sum(stretch, axis=0), 0)
        matrix = matmul(V * slope[None, :], V.T)
        m = matrix.shape[0]
        # With fewer active coordinates than rows the matrix is singular to rounding; its
        # largest eigenvalue is at most the largest slope.
        top = jnp.max(slope)
        ridge = 8 * m * jnp.finfo(matrix.dtype).eps * jnp.where(top > 0, top, 1)
        factor = Cholesky(matrix + ridge * jnp.eye(m, dtype=matrix.dtype))
        nu = factor.solve(off - matmul(V, signed(stretch * mismatch)))
        return nu, sides(matmul(nu, V), stretch) + mismatch

    def graded_solve(self, q: Array, h: Array, off: Array, mismatch: Array) -> tuple[Array, Array]:
        """As `linear_solve`, to full relative precision; but what moves `x` less than its rounding
        does, even if its dual changes by all of `w`, must not be asked to mend rounding."""
        rounding = 8 * jnp.finfo(h.dtype).eps / jnp.maximum(h, self.growth.unit)
        stretch = q / h + jnp.where(self.is_allowed, rounding, 0)
        return graded_step(self.solutions.V, stretch, off, mismatch)

    def newton(self, state: State, linear_solve: Callable) -> State:
        q, x = self.position(state)
        h = self.growth.dual_per_log_growth(state.delta)
        off = state.target - matmul(self.solutions.V, x)
        nu, dual = linear_solve(q, h, off, state.mismatch)
        step = dual / h
        # Growing, `q` follows its own tangent; shrinking, the tangent of `w`: neither overshoots.
        # And nothing that is large, which may be needed yet, becomes negligible in one step. But
        # what is negligible goes where the dual puts it, until it is not.
        fall = self.growth.log_growth(jnp.minimum(step, 0))
        fall = jnp.maximum(fall, jnp.minimum(state.log_q, 0) - 3)
        rise = jnp.log1p(jnp.maximum(step, 0))
        unseen = jnp.log(jnp.finfo(h.dtype).eps) - state.log_q
        rise = jnp.maximum(rise, jnp.minimum(self._log_growth(step), unseen)) + fall
        rise = jnp.where(self.is_allowed, rise, 0)
        return self.rise(
            eqx.tree_at(
                lambda s: (s.nu, s.mismatch, s.log_q),
                state,
                (state.nu + nu, dual, state.log_q + rise),
            ),
            rise,
        )

    def _log_growth(self, dual: Array) -> Array:
        """`growth.log_growth`; infinite where `w` would come to 0 or below."""
        limit = self.growth.dual(jnp.full_like(dual, jnp.inf))
        is_beyond = dual >= limit * (1 - jnp.finfo(dual.dtype).eps)
        return jnp.where(is_beyond, jnp.inf, self.growth.log_growth(jnp.where(is_beyond, 0, dual)))

    def rise(self, state: State, rise: Array) -> State:
        """Larger `δ`."""
        dual = self.growth.dual_per_log_growth(state.delta) * self.growth.dual(rise)
        return eqx.tree_at(
            lambda s: (s.delta, s.mismatch), state, (state.delta + rise, state.mismatch - dual)
        )

    def residual(self, state: State) -> Array:
        q, x = self.position(state)
        off = state.target - matmul(self.solutions.V, x)
        # By how much q would change, were the dual as it is: a tiny one may have far to grow.
        missing = self._log_growth(state.mismatch / self.growth.dual_per_log_growth(state.delta))
        is_far = missing > 1
        near = q * jnp.expm1(jnp.where(is_far, 0, missing))
        # The bound is beyond any tolerance.
        error = jnp.where(is_far, jnp.exp(jnp.minimum(state.log_q + missing, 80)), near)
        error = jnp.where(self.is_allowed, error, 0)
        return jnp.maximum(jnp.max(jnp.abs(off)), jnp.max(jnp.abs(error))) / self.scale(x)

    def is_reached(self, state: State, rtol: Array) -> Array:
        """Whether the residual is that, or the rounding of what cancels in `x`, of which
        `sensitivity` tells."""
        return state.residual <= jnp.maximum(rtol, self._cancelled(state))

    def _cancelled(self, state: State) -> Array:
        """The rounding of what `x` is a sum of."""
        _, parts = _parts(self.growth.log_initial + state.shift, state.delta, state.log_q)
        scale = self.scale(jnp.sum(parts, axis=0))
        parts = jnp.where(self.is_seen[None, :], parts / scale, 0)
        return 4 * jnp.finfo(parts.dtype).eps * jnp.sqrt(jnp.sum(parts**2))

    def scale(self, x: Array) -> Array:
        return jnp.maximum(jnp.max(jnp.where(self.is_seen, jnp.abs(x), 0)), 1)

    def solve(self, rtol: Array, max_steps: Array) -> State:
        """From an `ε` that is too large by `e^shift`, where `q(0)` is as large as the solution,
        to `shift = 0`."""
        start = self.growth.log_initial
        top = jnp.max(jnp.where(self.is_allowed & self.is_seen[None, :], start, -jnp.inf))
        first = jnp.where(jnp.isneginf(top), 0, jnp.maximum(-top, 0))

        digits = -math.log(jnp.finfo(start.dtype).eps)

        def iterate(state: State, linear_solve: Callable, change: float) -> State:
            state = self.newton(state, linear_solve)
            residual = self.residual(state)
            # Near the path, take a longer part of it, at constant q; but leave the mismatch, which
            # is as large as the last w, part of the digits of the next one.
            goes_on = (residual < 0.1) & (state.shift > 0)
            jump = jnp.minimum(1 + first - state.shift, self.growth.longest_step(change))
            jump = jnp.where(goes_on, jnp.minimum(jump, state.shift), 0)
            is_less = goes_on | (residual < 0.5 * state.least)
            state = self.rise(state, jump)
            return eqx.tree_at(
                lambda s: (s.shift, s.residual, s.steps, s.least, s.stalled),
                state,
                (
                    state.shift - jump,
                    jnp.where(goes_on, jnp.inf, residual),
                    state.steps + 1,
                    jnp.where(goes_on, jnp.inf, jnp.where(is_less, residual, state.least)),
                    jnp.where(is_less, 0, state.stalled + 1),
                ),
            )

        zero = jnp.asarray(0)
        initial = State(
            delta=jnp.zeros_like(start),
            log_q=start + first,
            mismatch=jnp.zeros_like(start),
            nu=jnp.zeros_like(self.other),
            target=self.solutions.target,
            shift=first,
            residual=jnp.full_like(first, jnp.inf),
            steps=zero,
            least=jnp.full_like(first, jnp.inf),
            stalled=zero,
        )
        is_running = lambda s: ~self.is_reached(s, rtol) & (s.steps < max_steps)
        state = while_loop(
            lambda s: is_running(s) & (s.stalled < PATIENCE),
            lambda s: iterate(s, self.linear_solve, digits / 2),
            initial,
        )
        # From where it was lost, along the path once more; from where its solves lack digits, on.
        fresh = eqx.tree_at(lambda s: s.steps, initial, state.steps)
        is_lost = ~(state.residual < 0.1)
        state = jax.tree.map(lambda a, b: jnp.where(is_lost, a, b), fresh, state)
        # The last step is one of these, after what is certain has been mended.
        before = state.steps
        mended = jnp.where(before < max_steps, self.mended(state), state.mismatch)
        state = eqx.tree_at(lambda s: s.mismatch, state, mended)
        retry = eqx.tree_at(lambda s: s.target, initial, self.other)

        def again(state: State) -> State:
            is_stuck = (state.stalled > 2 * PATIENCE) & jnp.any(state.target != self.other)
            new = eqx.tree_at(lambda s: s.steps, retry, state.steps)
            return jax.tree.map(lambda a, b: jnp.where(is_stuck, a, b), new, state)

        return while_loop(
            lambda s: is_running(s) | ((s.steps == before) & (s.steps < max_steps)),
            lambda s: again(iterate(s, self.graded_solve, digits / 8)),
            state,
        )

    def each_dual(self, state: State) -> Array:
        """`±Xᵀν` as the growth of each `q` has it."""
        return self.growth.unit * self.growth.dual(state.delta) + state.mismatch

    def dual(self, state: State) -> Array:
        """`Xᵀν`, as the growth of the heaviest `q` determines it, to its last digits. (`nu`, a sum
        of steps, has the rounding of the largest one.)"""
        q, _ = self.position(state)
        stretch = q / self.growth.dual_per_log_growth(state.delta)
        each = self.each_dual(state)
        larger = jnp.where(stretch[0] >= stretch[-1], each[0], -each[-1])
        weight = jnp.sum(stretch, axis=0)
        # What has underflowed still has a dual.
        least = jnp.finfo(weight.dtype).tiny ** 0.75 * jnp.max(weight)
        weight = jnp.where(jnp.any(self.is_allowed, axis=0), jnp.maximum(weight, least), 0)
        return Graded(self.solutions.V, weight).extended(larger)

    def mended(self, state: State) -> Array:
        """`mismatch`, computed anew where its rounding has added up to more than that costs."""
        risen = self.growth.unit * self.growth.dual(state.delta)
        fresh = sides(self.dual(state), risen) - risen
        rounding = 8 * jnp.finfo(risen.dtype).eps * (jnp.abs(risen) + jnp.abs(fresh))
        is_off = jnp.abs(fresh - state.mismatch) > rounding
        return jnp.where(is_off & self.is_allowed, fresh, state.mismatch)

    def sensitivity(self, state: State) -> Array:
        """How far `x` moves, relatively, if the dual changes in its last digit, or by the rounding
        that it has: much only where active columns are dependent and their `w` has fallen below the
        rounding of `w(0)`. And the rounding of what cancels in `x`, and of a target that `y` had
        missed."""
        q, x = self.position(state)
        h = self.growth.dual_per_log_growth(state.delta)
        each = self.each_dual(state)
        off = (sides(self.dual(state), each) - each) / h
        digit = jnp.finfo(h.dtype).eps * jnp.abs(each) / h
        # What is negligible may be far from its dual.
        missing = jnp.abs(q * jnp.expm1(jnp.clip(self._log_growth(off), -80, 80)))
        missing = jnp.maximum(digit, jnp.minimum(jnp.abs(off), missing))
        folds = jnp.minimum(1, jnp.maximum(digit, jnp.abs(off)))
        signs = jnp.cos(2.4 * jnp.arange(h.size, dtype=h.dtype)).reshape(h.shape)
        stretch = jnp.where(self.is_allowed, q + jnp.minimum(1, missing), 0) / h
        # Where `x` is unique nothing moves, as long as the solve keeps small entries apart.
        zero = jnp.zeros_like(state.nu)
        _, dual = graded_step(self.solutions.V, stretch, zero, signs * h * folds)
        moved = jnp.max(jnp.abs(signed(stretch * dual))) / self.scale(x)
        missed = jnp.max(jnp.abs(state.target - self.solutions.target))
        return jnp.maximum(moved, jnp.maximum(self._cancelled(state), missed))
