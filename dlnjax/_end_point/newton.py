"""The primal-dual Newton method of `end_point` and `limit_point`, without weight decay.

With `F = X` or `[X, −X]` and `Π` the projection on `range X`, the end point solves

    Fq = Πy,    q = φ_ε(w),    w = w(0) − Fᵀν.

These are the optimality conditions of the linear programme `min ⟨w(0), q⟩` with a barrier whose
weight vanishes with `ε`: an entropy for `D = 2`, `−Σ q^{2/D}` for `D > 2`. The method follows this
central path from an `ε` of the size of the solution down to the given one. (At depth 2 `log q(0)`
falls in proportion to `w(0)`: a pretrained start, with `w(0) = 0`, stays.) Its unknowns are `ν` and
the growth `δ`; with `p = 1 − 2/D` every link is

    q = q(0) e^δ,    ±Xᵀν = h (1 − e^{−pδ})/p    (hδ at p = 0).

`δ` is small and exact where the initialisation is large (kernel regime, where `q⁺ − q⁻` cancels).
Where `ε` is small, `w = w(0) e^{−pδ}` of an active coordinate would be lost in `w(0) − Fᵀν`; so the
mismatch of the last equation is a variable, updated by increments. A Newton step solves

    V Σ ±S u = target − Vx,    u = ±Vᵀdν + mismatch,    dδ = u/h_δ,    S = q/h_δ,

where the sum is over signs, `h_δ = h e^{−pδ}`, and the rows of `V` are an orthonormal basis of the
row space of `X` (`SolutionSpace`).

| phase | linear solver | ends when |
|---|---|---|
| 1 | Cholesky of `V S Vᵀ` with a ridge | the residual is reached, or 12 steps have not halved it |
| 2, at least one step | `graded_step`, exact for any `S` | the residual is reached |

Phase 2 starts where phase 1 ended; from the beginning if phase 1 was far from the path; and again,
with another rounding of the target, if it is stuck. "By experiment" below refers to the end points
and limit points of 61 designs 3 × 5 (random, planted, ±1, copied, almost dependent, in bad units,
with large and uneven starts) for five `ε` or depths each, at depth 2, 2.5, 3 and 6.
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

# Steps that may pass without halving the residual before phase 2. By experiment 3 ends as well, in
# slightly fewer steps, and 60 makes 3 of 1220 end points run out of steps.
PATIENCE = 12
# `log q` of a coordinate that is not allowed. Finite, since −inf + inf is NaN; in the range of
# float32; and so low that its exponential is 0.
NEGLIGIBLE = -1e30


class State(eqx.Module):
    """An iterate. `q` and `x` are in units of `size/units`, the dual and `h` in those of the
    solution space."""

    delta: Float[Array, "signs d"]  # log q/q(0)
    # Carried beside δ: where `log q(0)` is −2000, δ of an active coordinate rounds to 2000 eps, and
    # `log q ≈ 0` to eps.
    log_q: Float[Array, "signs d"]
    mismatch: Float[Array, "signs d"]  # ±Xᵀν − h(1 − e^{−pδ})/p
    nu: Float[Array, " m"]  # Xᵀν = Vᵀnu
    target: Float[Array, " m"]  # Vx
    shift: Float[Array, ""]  # log of the factor by which ε is still too large
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    least: Float[Array, ""]  # the residual when it was last halved, at this shift
    stalled: Int[Array, ""]  # steps since then


def position(start: Array, delta: Array, log_q: Array) -> tuple[Array, Array]:
    """`q`, shape `(signs, d)`, and `x`, shape `(d,)`, where `start = log q(0)`."""
    q, parts = _parts(start, delta, log_q)
    return q, jnp.sum(parts, axis=0)


def _parts(start: Array, delta: Array, log_q: Array) -> tuple[Array, Array]:
    """`q`, and the terms that add up to `x`: `x(0)` and the change since, or `q⁺` and `−q⁻`."""
    q = jnp.exp(log_q)
    if q.shape[0] == 1:
        return q, q
    # Near the start `q⁺ − q⁻` would cancel; `x(0)` and the change have all digits. Once a `q` has
    # changed by a factor e there is no difference: by experiment |δ| < 0.01 or |δ| < 100 in place
    # of 1 is about as good. `x(0)` is a difference as well, written with `expm1` where both `q(0)`
    # are within a factor e.
    is_near = jnp.all(jnp.abs(delta) < 1, axis=0)
    ratio = start[0] - start[1]
    before = signed(jnp.exp(start))
    close = jnp.exp(start[1]) * jnp.expm1(jnp.clip(ratio, -1, 1))
    before = jnp.where(jnp.abs(ratio) < 1, close, before)
    change = signed(jnp.exp(start) * jnp.expm1(jnp.where(is_near[None, :], delta, 0)))
    return q, jnp.where(is_near, jnp.stack([before, change]), jnp.stack([q[0], -q[1]]))


class Newton(eqx.Module):
    """The equations of the end point, and Newton's method along the central path to it."""

    growth: Growth  # with log q(0) in units of `size/units`, `h` in `units`
    falls: Float[Array, "signs d"]  # how fast log q(0) falls along the path: 1, or w(0) as `ε → 0`
    solutions: SolutionSpace  # with its target in units of `size`
    is_allowed: Bool[Array, "signs d"]  # the other q are 0
    is_seen: Bool[Array, " d"]  # a column of 0 keeps its start, which may be any power of ten
    log_size: Float[Array, ""]
    other: Float[Array, " m"]  # another rounding of the target, if the first cannot be reached

    def __init__(
        self,
        growth: Growth,
        solutions: SolutionSpace,
        is_allowed: Bool[Array, "signs d"],
        initial_dual: Float[Array, "signs d"],
        point: Float[Array, " d"] | None = None,
        from_size: bool = False,
    ):
        """**Arguments:**

        - `growth`: the link, in the user's units.
        - `solutions`: the space of solutions `{x : V(units x) = target}`.
        - `is_allowed`: which `q` may be positive.
        - `initial_dual`: `w(0)` as `ε → 0`.
        - `point`: a solution with allowed signs, if one is known. By rounding of `y`, `solutions`
            may have none.
        - `from_size`: replace `ε` by one for which `q(0)` has the size of the solution.
        """
        size = solutions.size()
        some = size > 0
        units = solutions.units[None, :]
        start = jnp.where(is_allowed, growth.log_initial + jnp.log(units), -jnp.inf)
        is_seen = jnp.any(solutions.V != 0, axis=0)
        top = jnp.max(jnp.where(is_seen[None, :], start, -jnp.inf))
        top = jnp.where(jnp.isneginf(top), 0, top)
        # Without a response, x = 0, the initialisation itself is the unit.
        self.log_size = jnp.where(some, jnp.log(jnp.where(some, size, 1)), top)
        start = start - self.log_size
        self.is_allowed, self.is_seen = is_allowed, is_seen
        # At `D > 2` another `ε` is another unit of `q`.
        self.falls = initial_dual if growth.is_exponential else jnp.ones_like(start)
        if from_size:
            start = start + self.way_to_size(start) * self.falls
        start = jnp.where(is_allowed, start, NEGLIGIBLE)
        self.growth = eqx.tree_at(
            lambda g: (g.log_initial, g.unit), growth, (start, growth.unit / units)
        )
        size = jnp.where(some, size, 1)
        self.solutions = eqx.tree_at(lambda c: c.target, solutions, solutions.target / size)
        self.other = target = self.solutions.target
        if point is not None:
            other = solutions.image(point) / size
            # Both targets are images of solutions: they differ by rounding of y, or, if SVD and
            # path disagree about which columns are dependent, by anything. eps^0.6 = 4e-10 of the
            # solution (float64) leaves room for rounding at condition numbers up to 1e6. The
            # difference enters `sensitivity`, so that no digit is lost without being reported. By
            # experiment nothing changes within a factor of 100.
            is_close = jnp.max(jnp.abs(other - target)) <= jnp.finfo(other.dtype).eps ** 0.6
            self.other = jnp.where(is_close, other, target)

    def way_to_size(self, start: Array) -> Array:
        """The shift at which the first `q(0)` that falls along the path has the size of `x`."""
        falls = self.is_allowed & self.is_seen[None, :] & (self.falls > 0)
        way = jnp.min(jnp.where(falls, -start / jnp.where(falls, self.falls, 1), jnp.inf))
        return jnp.where(jnp.isfinite(way), way, 0)

    def start(self, state: State) -> Array:
        """`log q(0)` at the shift of an iterate."""
        return self.growth.log_initial + state.shift * self.falls

    def position(self, state: State) -> tuple[Array, Array]:
        """`q` and `x` of an iterate."""
        return position(self.start(state), state.delta, state.log_q)

    def linear_solve(self, q: Array, h: Array, off: Array, mismatch: Array) -> tuple[Array, Array]:
        """The Newton step `dν`, and `u = ±Xᵀdν + mismatch` such that `dq = (q/h) u` adds `off` to
        `Vx`. The solve has the rounding of the largest `q`, which the next step corrects."""
        V, stretch = self.solutions.V, q / h
        slope = jnp.where(self.is_seen, jnp.sum(stretch, axis=0), 0)
        matrix = matmul(V * slope[None, :], V.T)
        m = matrix.shape[0]
        # With fewer active coordinates than rows the matrix is singular to rounding, of which a
        # Cholesky factorisation may make a negative pivot, and NaN. Its rounding is some m eps of
        # its largest eigenvalue, which the largest slope bounds, since rows of V are orthonormal.
        # By experiment 100 times more or less ends at the same points; the most steps grow from 58
        # to 120, in phase 2.
        top = jnp.max(slope)
        ridge = 8 * m * jnp.finfo(matrix.dtype).eps * jnp.where(top > 0, top, 1)
        factor = Cholesky(matrix + ridge * jnp.eye(m, dtype=matrix.dtype))
        nu = factor.solve(off - matmul(V, signed(stretch * mismatch)))
        return nu, sides(matmul(nu, V), stretch) + mismatch

    def graded_solve(self, q: Array, h: Array, off: Array, mismatch: Array) -> tuple[Array, Array]:
        """As `linear_solve`, to full relative precision in each `(q/h) u`."""
        # `off` contains rounding of x. If only negligible q could move along it, their duals would
        # change without bound to correct what they cannot. So q/h has a floor at which a change of
        # the dual by h, about all of w, changes x by 8 eps, its rounding. By experiment, no floor
        # fails or flags 39 of 1830 end points, mostly planted ones; 100 times less flags two; 100
        # times more raises the most steps from 84 to 187.
        size = jnp.maximum(h, self.growth.unit)
        if self.growth.is_exponential:
            # The largest of all units: with its own, a negligible q of a large column would be
            # heavier than an active one of a small column. With the columns of
            # `test_columns_in_units_of_nine_decades`, 6 of 200 are not reached then.
            size = jnp.max(jnp.where(self.is_allowed, size, 0))
            size = jnp.where(size > 0, size, 1)
        floor = jnp.where(self.is_allowed, 8 * jnp.finfo(h.dtype).eps / size, 0)
        own = q / h
        stretch = own + floor
        if not self.growth.is_exponential:
            return graded_step(self.solutions.V, stretch, off, mismatch)
        # A floor resists changes of the dual. The mismatch that is there already moves `x` by what
        # is not floor only.
        share = jnp.where(stretch > 0, own / jnp.where(stretch > 0, stretch, 1), 1)
        nu, dual = graded_step(self.solutions.V, stretch, off, share * mismatch)
        return nu, dual + (1 - share) * mismatch

    def newton(self, state: State, linear_solve: Callable) -> State:
        """One damped Newton step at constant `ε`."""
        q, x = self.position(state)
        h = self.growth.dual_per_log_growth(state.delta)
        off = state.target - matmul(self.solutions.V, x)
        nu, dual = linear_solve(q, h, off, state.mismatch)
        step = dual / h
        # Increase q by Newton in q, `q ← q(1 + step)`, and decrease it by Newton in w, `w ← w − u`:
        # φ is convex, so that each is the smaller of the two changes, and neither overshoots.
        # A q of the size of x may fall by e³ in a step, smaller ones by e³ more than they are small
        # already: what may still be needed does not become negligible at once. By experiment a
        # bound of e^300 raises the most steps at depth 2 from 35 to 58; with e^0.03 14 of 1830 end
        # points run out of steps.
        fall = self.growth.log_growth(jnp.minimum(step, 0))
        fall = jnp.maximum(fall, jnp.minimum(state.log_q, 0) - 3)
        rise = jnp.log1p(jnp.maximum(step, 0))
        # A q below eps does not show in Vx: let it follow the dual exactly, up to where it does.
        unseen = jnp.log(jnp.finfo(h.dtype).eps) - state.log_q
        rise = jnp.maximum(rise, jnp.minimum(self.log_growth(step), unseen)) + fall
        rise = jnp.where(self.is_allowed, rise, 0)
        log_q = state.log_q + rise
        moved = (state.nu + nu, dual, log_q)
        state = eqx.tree_at(lambda s: (s.nu, s.mismatch, s.log_q), state, moved)
        # A `q` that fell by e^1e6 and rose again has the rounding of 1e6 in δ: take it from `log q`
        # where it has lost more digits than that difference loses.
        start = self.start(state)
        fresh = log_q - start - state.delta
        rounding = 8 * jnp.finfo(h.dtype).eps * (jnp.abs(start) + jnp.abs(log_q))
        is_off = self.is_allowed & (jnp.abs(fresh - rise) > rounding)
        return self.rise(state, jnp.where(is_off, fresh, rise))

    def log_growth(self, dual: Array) -> Array:
        """`growth.log_growth`, infinite where `w` would come to 0 or below."""
        # One eps before the wall, where `log1p` comes to −1, beyond which it is NaN.
        limit = self.growth.dual(jnp.full_like(dual, jnp.inf))
        is_beyond = dual >= limit * (1 - jnp.finfo(dual.dtype).eps)
        return jnp.where(is_beyond, jnp.inf, self.growth.log_growth(jnp.where(is_beyond, 0, dual)))

    def rise(self, state: State, rise: Array) -> State:
        """`δ` increased by `rise`, with the mismatch that this makes."""
        # h(1 − e^{−pδ})/p changes by h_δ (1 − e^{−p·rise})/p, computed as such: the difference of
        # the two values would cancel.
        dual = self.growth.dual_per_log_growth(state.delta) * self.growth.dual(rise)
        return eqx.tree_at(
            lambda s: (s.delta, s.mismatch), state, (state.delta + rise, state.mismatch - dual)
        )

    def residual(self, state: State) -> Array:
        """The larger of `|target − Vx|` and of how much `q` would change if it followed its dual,
        relative to `x`."""
        q, x = self.position(state)
        off = state.target - matmul(self.solutions.V, x)
        error = jnp.abs(self.change(state, q, state.mismatch))
        return jnp.maximum(jnp.max(jnp.abs(off)), jnp.max(error)) / self.scale(x)

    def change(self, state: State, q: Array, mismatch: Array) -> Array:
        """How much each `q` would change if it followed a dual that is off by `mismatch`."""
        # The growth that is missing: tiny `q` may have far to grow, which `q · missing` hides.
        missing = self.log_growth(mismatch / self.growth.dual_per_log_growth(state.delta))
        is_far = missing > 1
        near = q * jnp.expm1(jnp.where(is_far, 0, missing))
        # Beyond a factor e the change is all of the new q, otherwise `q expm1(missing)`. e^80 is
        # beyond any tolerance, and in the range of float32.
        error = jnp.where(is_far, jnp.exp(jnp.minimum(state.log_q + missing, 80)), near)
        return jnp.where(self.is_allowed, error, 0)

    def is_reached(self, state: State, rtol: Array) -> Array:
        """Whether the residual is at most `rtol`, or the rounding of the terms that cancel in `x`,
        which `sensitivity` reports."""
        return state.residual <= jnp.maximum(rtol, self.cancelled(state))

    def cancelled(self, state: State) -> Array:
        """The rounding of the terms that add up to `x`, relative to `x`."""
        # Two terms, each with the rounding of an exponential and of its argument. It exceeds
        # `rtol`, and counts, once the terms are 128 times as large as x. 100 times less asks for
        # digits that x does not have; 100 times more stops with two digits less than it has.
        _, parts = _parts(self.start(state), state.delta, state.log_q)
        scale = self.scale(jnp.sum(parts, axis=0))
        parts = jnp.where(self.is_seen[None, :], parts / scale, 0)
        return 4 * jnp.finfo(parts.dtype).eps * jnp.sqrt(jnp.sum(parts**2))

    def scale(self, x: Array) -> Array:
        """The largest `|x|`, at least 1, the largest entry of the minimiser of least 2-norm."""
        return jnp.maximum(jnp.max(jnp.where(self.is_seen, jnp.abs(x), 0)), 1)

    def solve(self, rtol: Array, max_steps: Array) -> State:
        """Follow the central path from an `ε` that is too large by `e^shift`, where `q(0)` is as
        large as the solution, to `shift = 0`."""
        start = self.growth.log_initial
        first = jnp.maximum(self.way_to_size(start), 0)

        digits = -math.log(jnp.finfo(start.dtype).eps)

        def iterate(state: State, linear_solve: Callable, change: float) -> State:
            state = self.newton(state, linear_solve)
            residual = self.residual(state)
            # Near the path, reduce `ε` at constant q. A step in log ε may be as long as the way so
            # far, and 1 more. At D > 2 `w` may fall by the factor e^change only, since the
            # mismatch, as large as the last w, must keep digits of the next one: half of them in
            # phase 1, 7/8 in phase 2. By experiment a residual of 10 in place of 0.1 takes 2 to 3
            # steps less on average (of 14) and 1e-3 takes 4 more, both to the same points; without
            # the first bound three end points at D > 2 are flagged; 8 times `change` takes up to 72
            # steps instead of 58.
            goes_on = (residual < 0.1) & (state.shift > 0)
            jump = jnp.minimum(1 + first - state.shift, self.growth.longest_step(change))
            jump = jnp.where(goes_on, jnp.minimum(jump, state.shift), 0)
            # The residual at another ε is another function: begin to count anew. A NaN is not less,
            # and ends the phase after `PATIENCE` steps.
            is_less = goes_on | (residual < 0.5 * state.least)
            state = self.rise(state, jump * self.falls)
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
            log_q=start + first * self.falls,
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
        # Phase 2. If phase 1 ended off the path (or in NaN), go along the path once more; if its
        # solves lacked digits, go on from there.
        fresh = eqx.tree_at(lambda s: s.steps, initial, state.steps)
        is_lost = ~(state.residual < 0.1)
        state = jax.tree.map(lambda a, b: jnp.where(is_lost, a, b), fresh, state)
        # At least one step is graded, so that the dual lies in the range of Xᵀ to rounding.
        before = state.steps
        mended = jnp.where(before < max_steps, self.mended(state), state.mismatch)
        state = eqx.tree_at(lambda s: s.mismatch, state, mended)
        retry = eqx.tree_at(lambda s: s.target, initial, self.other)

        def again(state: State) -> State:
            # Stuck twice as long as phase 1 may be: the target may have, by rounding of y, no
            # preimage with allowed signs. Begin anew with the one that has.
            is_stuck = (state.stalled > 2 * PATIENCE) & jnp.any(state.target != self.other)
            new = eqx.tree_at(lambda s: s.steps, retry, state.steps)
            return jax.tree.map(lambda a, b: jnp.where(is_stuck, a, b), new, state)

        return while_loop(
            lambda s: is_running(s) | ((s.steps == before) & (s.steps < max_steps)),
            lambda s: again(iterate(s, self.graded_solve, digits / 8)),
            state,
        )

    def each_dual(self, state: State) -> Array:
        """`±Xᵀν` as the growth of each `q` determines it, with its mismatch."""
        return self.growth.unit * self.growth.dual(state.delta) + state.mismatch

    def own_dual(self, state: State) -> tuple[Array, Array]:
        """`Xᵀν` as the heavier `q` of each coordinate determines it, and the weight of both."""
        q, _ = self.position(state)
        stretch = q / self.growth.dual_per_log_growth(state.delta)
        each = self.each_dual(state)
        return jnp.where(stretch[0] >= stretch[-1], each[0], -each[-1]), jnp.sum(stretch, axis=0)

    def dual(self, state: State) -> Array:
        """`Xᵀν`, in the range of `Xᵀ`, as the growth of the heaviest independent `q` determines
        it."""
        # Not from `nu`, a sum of steps, which has the rounding of the largest of them.
        own, weight = self.own_dual(state)
        # A weight that has underflowed must still be able to complete the basis: a floor far below
        # all that count. Its root and the square of that are normal numbers; by experiment the
        # powers 1 and 1/4 do as well.
        least = jnp.finfo(weight.dtype).tiny ** 0.75 * jnp.max(weight)
        weight = jnp.where(jnp.any(self.is_allowed, axis=0), jnp.maximum(weight, least), 0)
        return Graded(self.solutions.V, weight).extended(own)

    def mended(self, state: State) -> Array:
        """`mismatch` from its definition, where the sum of its increments has lost more digits
        than the definition loses."""
        # The definition is a difference of two numbers, and wrong by some eps of both. By
        # experiment, never doing so moves x from uneven starts by up to 1e-10, about its
        # sensitivity; 100 times more or less stays within the sensitivity.
        risen = self.growth.unit * self.growth.dual(state.delta)
        fresh = sides(self.dual(state), risen) - risen
        rounding = 8 * jnp.finfo(risen.dtype).eps * (jnp.abs(risen) + jnp.abs(fresh))
        is_off = jnp.abs(fresh - state.mismatch) > rounding
        return jnp.where(is_off & self.is_allowed, fresh, state.mismatch)
