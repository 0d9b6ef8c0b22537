"""The limit `ε → 0` of gradient flow, a process of jumps, followed event by event.

The state is `w ≥ 0`, with a row for each sign of the network, and `x`. Between two jumps `x` is
constant: the minimiser of `ℓ + λ⟨1, q⟩` over `q ≥ 0` supported on `{w = 0}`, and

    dw/ds = λ ∓ (r − Mx),   dz/ds = x.

Each step of the loop makes one pivot of the active set (`state.py`), with `u` the solution of
`M_AA u = (r − λσ)_A` on the active coordinates `A` with signs `σ`:

| event    | condition                             | what changes                               |
|----------|---------------------------------------|--------------------------------------------|
| jump     | `x = u`, and a falling `w` reaches 0  | `s` moves to the first such time, a row of |
|          |                                       | the record opens, the coordinate joins `A` |
| drop     | between `x` and `u` an entry is 0     | `x` moves there, the coordinate leaves `A` |
| exchange | the column that would join depends on | `x` moves along the line of constant `Xx`, |
|          | `A`, and `λ > 0`                      | until an entry is 0; entries at 0 leave,   |
|          |                                       | then it joins                              |
| refusal  | the same, but `λ = 0`, or no entry on | the column is excluded until the next drop |
|          | the line shrinks                      |                                            |
| tie      | several `w` reach 0 together          | one jump a step, lowest index first, in    |
|          |                                       | one row                                    |
| end      | no `w` falls, or only after `s_max`   | at `s_max` a last row opens, with no jump  |

Jumps and drops are the pivots of Lawson and Hanson for non-negative least squares. An exchange
lowers `⟨1, q⟩` at constant `Xx`.

The path is certified afterwards (`record.py`): `w ≥ 0`, and `w = 0` where `x ≠ 0`, have exactly one
solution `(w, Mz)`, so their violation measures the error. Where columns of `{w = 0}` depend on
each other, `minimizer.py` then chooses among the minimisers.
"""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._active_set.choice import active_set
from .._active_set.derivatives import Segments
from .._active_set.state import (
    AbstractActiveSet,
    Event,
    Pivoting,
    Scaled,
    indices,
    lowest,
    most_pivots_of_a_tie,
    pivot_until_done,
)
from .._active_set.tolerances import Tolerances
from .._path import LimitFlow
from .._problem import AbstractProblem, validity
from .._results import RESULTS, first_failure
from ..networks.prior import Prior
from .record import Record, assemble, signs_of


class _State(Pivoting):
    active: AbstractActiveSet
    s: Float[Array, ""]
    w: Float[Array, "signs d"]
    row: Int[Array, ""]  # of the current jump; −1 before the first
    steps: Int[Array, ""]
    stalled: Int[Array, ""]  # steps since `s` last moved
    entering: Int[Array, ""]  # the coordinate of an exchange that is under way; d if none
    position: Float[Array, ""]  # |x| of that coordinate
    excluded: Bool[Array, " d"]  # refused: dependent on A, with nothing to exchange for
    result: RESULTS
    is_done: Bool[Array, ""]
    is_cut: Bool[Array, ""]  # at `s_max`: the last knot is no jump
    is_fresh: Bool[Array, ""]
    is_stale: Bool[Array, ""]


class _Move(eqx.Module):
    """One step: `x` on the current active set, the time that passes, and the pivot that follows."""

    x: Float[Array, " k"]
    duration: Float[Array, ""]
    position: Float[Array, ""]  # |x| of the coordinate that joins: 0 unless by an exchange
    event: Event


def _first_at_zero(x: Array, step: Array, shrinks: Array, tol: Tolerances) -> tuple[Array, Array]:
    """The multiple of `step` at which an entry of `x` that `shrinks` reaches 0, and the slots of
    all entries that do so together."""
    ratio = jnp.where(shrinks, -x / jnp.where(shrinks, step, 1), jnp.inf)
    first = jnp.min(ratio)
    return first, shrinks & (ratio <= first * (1 + tol.merge))


def _next_move(
    scaled: Scaled,
    state: _State,
    falls: Array,
    is_decayed: Array,
    rank_bound: int,
    tol: Tolerances,
) -> _Move:
    """The next drop or, if there is none, the next jump. `falls` is `−dw/ds`."""
    active, u = state.active, state.active.solution[0]
    is_empty = active.sign == 0
    replaces = state.entering < active.pivots.shape[0]

    # Drop: from x towards u, to the first entry that reaches 0. In an exchange x stays, and entries
    # at 0 leave before the new coordinate joins: until they do, its column depends on A.
    step = u - active.x
    until, slots = _first_at_zero(active.x, step, active.sign * u < 0, tol)
    slots = jnp.where(replaces, ~is_empty & (active.x == 0), slots)
    leaves = jnp.any(slots)
    slot = lowest(slots)
    x = jnp.where(until < jnp.inf, active.x + jnp.where(until < jnp.inf, until, 0) * step, u)
    x = jnp.where(replaces, active.x, x)
    x = jnp.where((leaves & (indices(active.sign.shape[0]) == slot)) | (x * active.sign <= 0), 0, x)

    # Jump: the first w to reach 0. A column that depends on A joins only with weight decay: without
    # it Xᵀ(y − Xx) = 0 on A, so that its speed is 0, and the computed one is rounding.
    count = jnp.sum(~is_empty)
    # One column more than the rank: it is tried before it is known to be dependent.
    joins = ~active.is_active & ~state.excluded & (count <= rank_bound)
    # With as many active columns as rows all others are dependent, however `pivots` rounds.
    is_full = count >= rank_bound
    joins = joins & (((active.pivots > tol.pivot) & ~is_full) | is_decayed)
    joins = joins[None, :] & (falls > scaled.hidden(active, tol)[0][None, :])
    wait = jnp.where(joins, state.w / jnp.where(joins, falls, 1), jnp.inf)
    first = jnp.min(wait)
    is_first = jnp.any(wait <= first + tol.merge * (state.s + first), axis=0)
    j = jnp.where(replaces, state.entering, lowest(is_first))
    side = jnp.where(replaces, falls[-1, j] > falls[0, j], wait[-1, j] < wait[0, j])
    sign = 1 - 2 * side.astype(u.dtype)
    rhs = sign * scaled.excess[side.astype(jnp.int32), j]
    j = jnp.where(leaves, active.index[slot], j)
    return _Move(
        x=x,
        duration=jnp.where(leaves | replaces, 0, first),
        position=jnp.where(replaces, state.position, 0),
        event=Event(
            tau=state.s,
            j=j,
            sign=sign,
            rhs=jnp.stack([rhs, jnp.zeros_like(rhs)]),
            slot=active.slot(j, leaves),
            leaves=leaves,
        ),
    )


def _certain(state: _State, scaled: Scaled, tol: Tolerances) -> _State:
    """The state as the next event needs it: with `u` refined, too, if that is decided by a speed
    that may be rounding.

    `Compact.pivot` refines `u` one event later. Before the process ends, and before a `w` that
    falls very slowly is taken for one that falls, that is too late.
    """
    active = state.active
    noise, size = jnp.max(jnp.abs(active.residual[0])), jnp.max(jnp.abs(scaled.r))
    falls = jnp.max(scaled.excess - signs_of(scaled) * active.product[:1], axis=0)
    fastest = jnp.max(jnp.where(active.is_active, 0, falls))
    # `noise` is the residual of M_AA u = (r − λσ)_A. It enters the speed of a column times its
    # coefficients in A, which are large if A is nearly dependent: 1e5 is a choice. 100 times more
    # or less (measured): one of 720 limits with nearly dependent columns becomes inaccurate.
    is_vague = ~state.is_done & (noise > tol.unit * size) & (fastest < 1e5 * noise)
    return eqx.tree_at(lambda s: s.active, state, active.prepared(tol, is_vague))


def follow(
    problem: AbstractProblem,
    initial_dual: Array,
    s_max: Array,
    prior: Prior | None,
    *,
    positive: bool,
    max_knots: int,
    chooses: bool,
) -> tuple[LimitFlow, Segments]:
    """The limit process from `w(0) = initial_dual`, shape `(1, d)` or `(2, d)`, up to `s_max`.

    `prior` is the start of the network, for the selection of minimisers: if it `chooses` none, a
    plateau that may have several is undetermined. Arguments are as checked by `limit_flow`; bad
    values end in `result`.
    """
    d, dtype = initial_dual.shape[1], initial_dual.dtype
    # One slot more than the rank: a column is tried before it is known to be dependent.
    k = min(problem.rank_bound + 1, d)
    tol = Tolerances(dtype)
    scaled = Scaled(problem, initial_dual, positive)
    signs = signs_of(scaled)
    is_decayed = problem.weight_decay > 0
    # The last row opens just after `s_max`, so that the process is still known at `s_max` itself.
    s_end = jnp.nextafter(lax.stop_gradient(s_max), jnp.full_like(s_max, jnp.inf))

    def step(carry: tuple[_State, Record]) -> tuple[_State, Record]:
        state, record = carry
        state = _certain(state, scaled, tol)
        active = state.active
        # By now `u` may have been refined since the row was written.
        is_known = ~state.is_done & (state.row >= 0)
        row = jnp.where(is_known, state.row, max_knots)
        slope = record.slope.at[row].set(active.solution[0], mode="drop")
        record = eqx.tree_at(lambda r: r.slope, record, slope)
        falls = scaled.excess - signs * active.product[:1]
        move = _next_move(scaled, state, falls, is_decayed, problem.rank_bound, tol)
        event = move.event
        joins, leaves = ~event.leaves, event.leaves
        ends = (state.s + move.duration > s_max) | jnp.isinf(move.duration)
        # A stale lane rests until all lanes of its batch are done or stale.
        ends = ends & ~state.is_stale
        column = active.column(problem, scaled, event.j)
        new, possible, is_stale, is_kept = active.pivot(
            event, column, tol, state.is_done | ends | state.is_stale, state.is_fresh
        )
        is_taken = ~(state.is_done | (is_kept & ~ends))

        # Exchange. `expansion` is (a, −1) with M_AA a = M_Aj: with x_j growing by 1 and x_A falling
        # by a (up to signs), Xx is constant. `falls > 0` means that λ⟨1, q⟩ decreases on the way.
        is_dependent = is_taken & joins & ~ends & ~possible
        line = jnp.where(active.sign != 0, -event.sign * new.expansion, 0)
        until, slots = _first_at_zero(move.x, line, active.sign * line < 0, tol)
        replaces = is_dependent & is_decayed & (until < jnp.inf)
        until = jnp.where(replaces, until, 0)
        x = move.x + until * line
        x = jnp.where((replaces & slots) | (x * active.sign <= 0), 0, x)
        is_new = (indices(width) == event.slot) & joins & possible
        x = jnp.where(is_new, event.sign * move.position, x)
        pivots = possible | replaces
        new = eqx.tree_at(lambda active: active.x, new, jnp.where(pivots, x, active.x))

        # Shorter durations are rounding: the jump is part of a tie, and s rests.
        moves = pivots & (move.duration > tol.merge * (state.s + move.duration))
        is_cut = is_taken & ends & jnp.isfinite(s_max)
        duration = jnp.where(moves, move.duration, jnp.where(is_cut, s_end - state.s, 0))
        # On A, w = 0 exactly. Elsewhere rounding could carry a falling w below 0.
        rests = active.is_active[None, :] & (state.w == 0)
        w = jnp.where(rests, 0, jnp.maximum(state.w - duration * falls, 0))
        j = jnp.where(joins & possible, event.j, d)
        w = w.at[(event.sign < 0).astype(jnp.int32), j].set(0, mode="drop")

        # A row opens where s has moved; the first one at s = 0, too, if a start x₀ is active there.
        opens = moves | is_cut | (pivots & (state.row < 0))
        is_full = opens & (state.row == max_knots - 1)
        # Lawson and Hanson's method ends in exact arithmetic; with rounding it could cycle.
        stalled = jnp.where(opens, 0, state.stalled + is_taken.astype(jnp.int32))
        has_cycled = ~ends & (stalled > most_pivots_of_a_tie(k))
        result = RESULTS.where(is_full, RESULTS.max_knots_reached, state.result)
        result = RESULTS.where(has_cycled, RESULTS.path_cycled, result)
        excluded = state.excluded | ((indices(d) == event.j) & is_dependent & ~replaces)
        state = _State(
            active=new,
            # Not the sum for a cut, which may round to `s_max`.
            s=jnp.where(is_cut, s_end, state.s + duration),
            w=w,
            row=state.row + (opens & ~is_full).astype(jnp.int32),
            steps=state.steps + is_taken.astype(jnp.int32),
            stalled=stalled,
            entering=jnp.where(replaces, event.j, jnp.where(joins & is_taken, d, state.entering)),
            position=jnp.where(replaces, move.position + until, state.position),
            # A drop may make a refused column independent.
            excluded=jnp.where(leaves & possible, False, excluded),
            result=result,
            is_done=state.is_done | (is_taken & (ends | is_full | has_cycled)),
            is_cut=state.is_cut | (is_cut & ~is_full),
            is_fresh=state.is_fresh & ~is_taken,
            is_stale=state.is_stale | is_stale,
        )
        # Rows are written at every step: the last write before the next jump is the plateau.
        is_known = (~state.is_done | is_cut) & ~is_full & (state.row >= 0)
        row = jnp.where(is_known, state.row, max_knots)
        put = lambda buffer, value, row: buffer.at[row].set(value, mode="drop")
        opening = jnp.where(opens, row, max_knots)
        opening_sign = jnp.where(is_cut, 0, event.sign).astype(jnp.int32)
        record = Record(
            s=put(record.s, state.s, row),
            index=put(record.index, state.active.index, row),
            sign=put(record.sign, state.active.sign.astype(jnp.int32), row),
            slope=put(record.slope, state.active.solution[0], row),
            opening=put(record.opening, event.j, opening),
            opening_sign=put(record.opening_sign, opening_sign, opening),
        )
        return state, record

    is_shape = jnp.all(initial_dual >= 0) & jnp.all(jnp.isfinite(initial_dual))
    verdict = first_failure(
        validity(problem), (is_shape, RESULTS.invalid_shape), (s_max > 0, RESULTS.invalid_grid)
    )
    valid = verdict == RESULTS.successful
    zero = jnp.zeros((), dtype)
    nobody = jnp.asarray(d, jnp.int32)
    # A coordinate that starts at w = 0 with speed 0 joins nothing, but may be positive, by the
    # selection: a start x₀ that already fits. The first row then opens at s = 0 for it.
    slow = jnp.abs(scaled.excess) <= tol.floor * jnp.max(jnp.abs(scaled.r))
    rests = slow & (scaled.b == 0) & (scaled.scale > 0)[None, :]
    is_open = valid & jnp.any(rests)
    first = jnp.argmax(rests.ravel()).astype(jnp.int32)
    active = active_set(problem, scaled, k)
    width = active.sign.shape[0]
    state = _State(
        active=active,
        s=zero,
        w=scaled.b,
        row=jnp.where(is_open, 0, -1).astype(jnp.int32),
        steps=jnp.asarray(0, jnp.int32),
        stalled=jnp.asarray(0, jnp.int32),
        entering=nobody,
        position=zero,
        excluded=jnp.zeros(d, bool),
        result=verdict,
        is_done=~valid,
        is_cut=jnp.asarray(False),
        is_fresh=jnp.asarray(True),
        is_stale=jnp.asarray(False),
    )
    record = Record(
        s=jnp.zeros(max_knots, dtype),
        index=jnp.full((max_knots, width), d, jnp.int32),
        sign=jnp.zeros((max_knots, width), jnp.int32),
        slope=jnp.zeros((max_knots, width), dtype),
        opening=jnp.zeros(max_knots, jnp.int32).at[0].set(first % d),
        opening_sign=jnp.zeros(max_knots, jnp.int32)
        .at[0]
        .set(jnp.where(is_open, jnp.where(first < d, 1, -1), 0).astype(jnp.int32)),
    )
    state, record = pivot_until_done(step, (state, record))
    return assemble(
        problem,
        record,
        state.row,
        steps=state.steps,
        result=state.result,
        is_cut=state.is_cut,
        is_invalid=~valid,
        scaled=scaled,
        initial_dual=initial_dual,
        prior=prior,
        positive=positive,
        chooses=chooses,
    )
