"""The limit `ε → 0` of gradient flow, event by event.

Between two jumps `x` rests at the minimiser of `ℓ + λ⟨1, q⟩` over `q ≥ 0` supported on
`A = {w = 0}`, and `w` moves at the speed `λ ∓ (r − Mx)`. At a jump the first `w` to reach 0 makes
its coordinate join, and `x` goes to the new minimiser by the pivots of Lawson and Hanson: towards
the least squares point of the support, until an entry reaches 0 and drops; one pivot a step. A
column that depends on the support and still lowers the objective (only with weight decay) enters
along the line where `Xx` is constant, until an entry reaches 0 and makes room.

Columns are scaled to unit norm, every tolerance is relative, and the path is certified afterwards:
`w ≥ 0`, and `w = 0` where `x ≠ 0`, determine `w` and `Mz`.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._active_set.derivatives import Segments
from .._active_set.selection import Prior, select
from .._active_set.state import (
    ActiveSet,
    Event,
    Pivoting,
    Scaled,
    indices,
    pivot_until_done,
    scatter,
)
from .._active_set.tolerances import Tolerances
from .._batching import any_lane
from .._loops import cond
from .._path import LimitFlow
from .._problem import AbstractProblem, validity
from .._results import RESULTS, first_failure


class _Record(eqx.Module):
    """What is known at each jump: the time, the active coordinates, and `x` on them."""

    s: Float[Array, " K"]
    index: Int[Array, "K k"]
    sign: Int[Array, "K k"]
    slope: Float[Array, "K k"]
    opening: Int[Array, " K"]  # the coordinate that jumps, and its sign; none at `s_max`
    opening_sign: Int[Array, " K"]


class _State(Pivoting):
    active: ActiveSet
    s: Float[Array, ""]
    w: Float[Array, "signs d"]
    row: Int[Array, ""]  # of the current jump; −1 before the first
    steps: Int[Array, ""]
    stalled: Int[Array, ""]  # steps since `s` last moved
    entering: Int[Array, ""]  # a dependent coordinate that replaces others; d if none
    position: Float[Array, ""]  # of that coordinate, without its sign
    excluded: Bool[Array, " d"]  # dependent, and there is nothing to replace
    result: RESULTS
    is_done: Bool[Array, ""]
    is_cut: Bool[Array, ""]  # at `s_max`: the last knot is no jump
    is_fresh: Bool[Array, ""]
    is_stale: Bool[Array, ""]


class _Move(eqx.Module):
    """How far `x` goes on the current support and `s` with it, and the pivot that follows."""

    x: Float[Array, " k"]
    duration: Float[Array, ""]
    position: Float[Array, ""]  # of the coordinate that joins, without its sign
    event: Event


def _signs(scaled: Scaled) -> Array:
    return jnp.array([1.0, -1.0], scaled.r.dtype)[: scaled.b.shape[0], None]


def _first(flags: Array) -> Array:
    """The lowest index where `flags` holds (the last one if nowhere)."""
    size = flags.shape[0]
    return jnp.min(jnp.where(flags, indices(size), size - 1))


def _first_at_zero(x: Array, step: Array, shrinks: Array, tol: Tolerances) -> tuple[Array, Array]:
    """How many `step`s until an entry of `x` reaches 0, and the slots that do."""
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
    """`falls` is `−dw/ds`."""
    active, u = state.active, state.active.solution[0]
    d, k = active.pivots.shape[0], u.shape[0]
    is_empty = active.sign == 0
    replaces = state.entering < d

    # Towards the least squares point of the support, to the first entry that reaches 0. Before a
    # dependent coordinate enters, all that is at 0 leaves.
    step = u - active.x
    until, slots = _first_at_zero(active.x, step, active.sign * u < 0, tol)
    slots = jnp.where(replaces, ~is_empty & (active.x == 0), slots)
    leaves = jnp.any(slots)
    slot = _first(slots)
    x = jnp.where(until < jnp.inf, active.x + jnp.where(until < jnp.inf, until, 0) * step, u)
    x = jnp.where(replaces, active.x, x)
    x = jnp.where((leaves & (indices(k) == slot)) | (x * active.sign <= 0), 0, x)

    # Once there: the first `w` to reach 0. Without decay no dependent column ever does.
    joins = ~active.is_active & ~state.excluded & jnp.any(is_empty)
    is_full = jnp.sum(~is_empty) >= rank_bound  # whatever rounding makes of `pivots`
    joins = joins & (((active.pivots > tol.pivot) & ~is_full) | is_decayed)
    joins = joins[None, :] & (falls > scaled.hidden(active, tol)[0][None, :])
    wait = jnp.where(joins, state.w / jnp.where(joins, falls, 1), jnp.inf)
    first = jnp.min(wait)
    is_first = jnp.any(wait <= first + tol.merge * (state.s + first), axis=0)
    j = jnp.where(replaces, state.entering, _first(is_first))
    side = jnp.where(replaces, falls[-1, j] > falls[0, j], wait[-1, j] < wait[0, j])
    sign = 1 - 2 * side.astype(u.dtype)
    rhs = sign * scaled.excess[side.astype(jnp.int32), j]
    return _Move(
        x=x,
        duration=jnp.where(leaves | replaces, 0, first),
        position=jnp.where(replaces, state.position, 0),
        event=Event(
            tau=state.s,
            j=jnp.where(leaves, active.index[slot], j),
            sign=sign,
            rhs=jnp.stack([rhs, jnp.zeros_like(rhs)]),
            slot=jnp.where(leaves, slot, _first(is_empty)),
            leaves=leaves,
        ),
    )


def _certain(state: _State, scaled: Scaled, tol: Tolerances) -> _State:
    """Before the process ends, or a `w` falls so slowly that it might be rounding: the solution
    without what the last update left in it."""
    active = state.active
    noise, size = jnp.max(jnp.abs(active.residual[0])), jnp.max(jnp.abs(scaled.r))
    falls = jnp.max(scaled.excess - _signs(scaled) * active.product[:1], axis=0)
    fastest = jnp.max(jnp.where(active.is_active, 0, falls))
    is_vague = ~state.is_done & (noise > tol.unit * size) & (fastest < 1e5 * noise)
    # Of all the set, a branch hands back what it changes alone: the rest would be copied.
    changed = lambda a: (a.solution, a.product, a.residual)
    refine = lambda a: jax.tree.map(
        lambda new, old: jnp.where(is_vague, new, old), changed(a.refined()), changed(a)
    )
    fields = cond(any_lane(is_vague), refine, changed, active)
    return eqx.tree_at(lambda s: changed(s.active), state, fields)


def follow(
    problem: AbstractProblem,
    dual: Array,
    s_max: Array,
    prior: Prior | None,
    *,
    positive: bool,
    max_knots: int,
) -> tuple[LimitFlow, Segments]:
    d, dtype = dual.shape[1], dual.dtype
    # One slot more than the rank: a column is tried before it is known to be dependent.
    k = min(problem.rank_bound + 1, d)
    tol = Tolerances(dtype)
    scaled = Scaled(problem, dual, positive)
    signs = _signs(scaled)
    is_decayed = problem.weight_decay > 0
    # What is known includes `s_max`.
    s_end = jnp.nextafter(lax.stop_gradient(s_max), jnp.full_like(s_max, jnp.inf))

    def step(carry: tuple[_State, _Record]) -> tuple[_State, _Record]:
        state, record = carry
        state = _certain(state, scaled, tol)
        active = state.active
        falls = scaled.excess - signs * active.product[:1]
        move = _next_move(scaled, state, falls, is_decayed, problem.rank_bound, tol)
        event = move.event
        joins, leaves = ~event.leaves, event.leaves
        ends = (state.s + move.duration > s_max) | jnp.isinf(move.duration)
        column = scaled.column(problem, event.j)
        new, possible, is_stale = active.pivot(
            event, column, tol, state.is_done | ends, state.is_fresh
        )
        is_taken = ~(state.is_done | is_stale)

        # Along the line on which a dependent column keeps `Xx`, the objective decreases.
        is_dependent = is_taken & joins & ~ends & ~possible
        line = jnp.where(active.sign != 0, -event.sign * new.update[1], 0)
        until, slots = _first_at_zero(move.x, line, active.sign * line < 0, tol)
        replaces = is_dependent & is_decayed & (until < jnp.inf)
        until = jnp.where(replaces, until, 0)
        x = move.x + until * line
        x = jnp.where((replaces & slots) | (x * active.sign <= 0), 0, x)
        is_new = (indices(k) == event.slot) & joins & possible
        x = jnp.where(is_new, event.sign * move.position, x)
        pivots = possible | replaces
        new = eqx.tree_at(lambda active: active.x, new, jnp.where(pivots, x, active.x))

        moves = pivots & (move.duration > tol.merge * (state.s + move.duration))
        is_cut = is_taken & ends & jnp.isfinite(s_max)
        duration = jnp.where(moves, move.duration, jnp.where(is_cut, s_end - state.s, 0))
        rests = active.is_active[None, :] & (state.w == 0)
        w = jnp.where(rests, 0, jnp.maximum(state.w - duration * falls, 0))
        j = jnp.where(joins & possible, event.j, d)
        w = w.at[(event.sign < 0).astype(jnp.int32), j].set(0, mode="drop")

        # The first jump may be at s = 0.
        opens = moves | is_cut | (pivots & (state.row < 0))
        is_full = opens & (state.row == max_knots - 1)
        stalled = jnp.where(opens, 0, state.stalled + is_taken.astype(jnp.int32))
        has_cycled = ~ends & (stalled > 16 * k + 64)
        result = RESULTS.where(is_full, RESULTS.max_knots_reached, state.result)
        result = RESULTS.where(has_cycled, RESULTS.path_cycled, result)
        excluded = state.excluded | ((indices(d) == event.j) & is_dependent & ~replaces)
        state = _State(
            active=new,
            s=jnp.where(is_cut, s_end, state.s + duration),  # the sum may round to `s_max`
            w=w,
            row=state.row + (opens & ~is_full).astype(jnp.int32),
            steps=state.steps + is_taken.astype(jnp.int32),
            stalled=stalled,
            entering=jnp.where(replaces, event.j, jnp.where(joins & is_taken, d, state.entering)),
            position=jnp.where(replaces, move.position + until, state.position),
            excluded=jnp.where(leaves & possible, False, excluded),
            result=result,
            is_done=state.is_done | (is_taken & (ends | is_full | has_cycled)),
            is_cut=state.is_cut | (is_cut & ~is_full),
            is_fresh=state.is_fresh & ~is_taken,
            is_stale=is_stale,
        )
        is_known = (~state.is_done | is_cut) & ~is_full & (state.row >= 0)
        row = jnp.where(is_known, state.row, max_knots)
        put = lambda buffer, value, row: buffer.at[row].set(value, mode="drop")
        opening = jnp.where(opens, row, max_knots)
        opening_sign = jnp.where(is_cut, 0, event.sign).astype(jnp.int32)
        record = _Record(
            s=put(record.s, state.s, row),
            index=put(record.index, state.active.index, row),
            sign=put(record.sign, state.active.sign.astype(jnp.int32), row),
            slope=put(record.slope, state.active.solution[0], row),
            opening=put(record.opening, event.j, opening),
            opening_sign=put(record.opening_sign, opening_sign, opening),
        )
        return state, record

    is_shape = jnp.all(dual >= 0) & jnp.all(jnp.isfinite(dual))
    verdict = first_failure(
        validity(problem), (is_shape, RESULTS.invalid_shape), (s_max > 0, RESULTS.invalid_grid)
    )
    valid = verdict == RESULTS.successful
    zero = jnp.zeros((), dtype)
    nobody = jnp.asarray(d, jnp.int32)
    # What starts at `w = 0` and stays there may be positive, without any jump.
    slow = jnp.abs(scaled.excess) <= tol.floor * jnp.max(jnp.abs(scaled.r))
    rests = slow & (scaled.b == 0) & (scaled.scale > 0)[None, :]
    is_open = valid & jnp.any(rests)
    first = jnp.argmax(rests.ravel()).astype(jnp.int32)
    state = _State(
        active=ActiveSet.empty(k, scaled.scale),
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
    record = _Record(
        s=jnp.zeros(max_knots, dtype),
        index=jnp.full((max_knots, k), d, jnp.int32),
        sign=jnp.zeros((max_knots, k), jnp.int32),
        slope=jnp.zeros((max_knots, k), dtype),
        opening=jnp.zeros(max_knots, jnp.int32).at[0].set(first % d),
        opening_sign=jnp.zeros(max_knots, jnp.int32)
        .at[0]
        .set(jnp.where(is_open, jnp.where(first < d, 1, -1), 0).astype(jnp.int32)),
    )
    state, record = pivot_until_done(step, (state, record))
    return _assemble(problem, state, record, ~valid, scaled, dual, prior, positive)


def _assemble(
    problem: AbstractProblem,
    state: _State,
    record: _Record,
    is_invalid: Array,
    scaled: Scaled,
    dual: Array,
    prior: Prior | None,
    positive: bool,
) -> tuple[LimitFlow, Segments]:
    """From jumps in compact storage to a certified path in the user's units."""
    tol = Tolerances(dual.dtype)
    K, d = record.s.shape[0], dual.shape[1]
    num_knots = state.row + 1
    rows = jnp.clip(indices(K), 0, jnp.maximum(state.row, 0))
    is_lost = (state.result == RESULTS.max_knots_reached) | (state.result == RESULTS.path_cycled)
    ends_early = is_lost | state.is_cut

    knots = record.s[rows]
    signs, size = _signs(scaled), jnp.max(jnp.abs(scaled.r))
    scale = scaled.scale[None, :]
    s = jnp.append(knots, 1)[:, None, None]
    is_ray = (indices(K + 1) == K)[:, None, None]

    def follow(slopes: Array) -> tuple[Array, Array]:
        """`z` at the knots; `w/s` there and, at the end, for the ray, its speed."""
        values = jnp.cumsum(slopes[:-1] * jnp.diff(knots)[:, None], axis=0)
        values = jnp.concatenate([jnp.zeros((1, d), dual.dtype), values])
        points = jnp.concatenate([values, slopes[-1:]])
        image = scale * problem.matvec(scale * points)
        w = jnp.where(is_ray, 0, scaled.b[None]) - s * scaled.excess[None]
        w = w + signs[None] * image[:, None, :]
        w = jnp.where((s > 0) & ~(is_ray & ends_early), w / jnp.where(s > 0, s, 1), 0)
        return values, w

    # An entry that comes to rest at 0 exactly may have the other sign, by rounding.
    slope = jnp.where(record.slope * record.sign.astype(dual.dtype) < 0, 0, record.slope)
    slopes = scatter(record.index, slope, d)[rows]
    values, w = follow(slopes)
    unit = jnp.maximum(size, scaled.b[None] / jnp.where(s > 0, s, 1)[:-1])
    distance = jnp.where(s[:-1] > 0, jnp.abs(w[:-1]) / jnp.where(unit > 0, unit, 1), scaled.b[None])
    is_known = indices(K) <= state.row - ends_early.astype(jnp.int32)
    chosen, selection, is_undetermined = select(
        problem, scaled, prior, dual, record.index, record.sign, knots, slopes, distance, is_known
    )
    slopes = chosen[rows]
    is_new = any_lane(jnp.any(selection.free))
    values, w = cond(is_new, follow, lambda _: (values, w), slopes)

    # `w ≥ 0`, and 0 at both ends of the segments on which a coordinate moves. On the way to
    # infinity, the speed of `w` stands for it.
    moves = signs[None] * slopes[:, None, :] > 0
    violation = jnp.maximum(
        jnp.max(jnp.where(moves, jnp.abs(w[:-1]), -w[:-1]), axis=(1, 2)),
        jnp.max(jnp.where(moves, jnp.abs(w[1:]), -w[1:]), axis=(1, 2)),
    )
    # And what rounding in M itself may hide.
    violation = violation + tol.unit * jnp.sum(jnp.abs(slopes), axis=1)
    # A maximum may lose a NaN when it is vectorised.
    violation = jnp.where(jnp.isfinite(jnp.sum(w, axis=(1, 2))[1:]), violation, jnp.inf)
    violation = jnp.maximum(violation, 0) / jnp.where(size > 0, size, 1)
    worst = jnp.max(violation)
    inaccurate = ~(worst <= tol.violation) & (state.result == RESULTS.successful)
    result = RESULTS.where(inaccurate, RESULTS.limit_inaccurate, state.result)
    is_undetermined = is_undetermined & (result == RESULTS.successful)
    result = RESULTS.where(is_undetermined, RESULTS.limit_undetermined, result)

    is_last = indices(K) >= state.row
    is_wrong = jnp.cumsum(~(violation <= tol.wrong)) > 0
    is_unknown = is_invalid | is_wrong | (is_last & ends_early)
    nan_if = lambda bad, v: jnp.where(bad, jnp.nan, v)
    limit = LimitFlow(
        knots=nan_if(is_invalid, knots),
        values=nan_if(is_invalid, values * scale),
        slopes=nan_if(is_unknown[:, None], slopes * scale),
        num_knots=num_knots,
        weights=jnp.broadcast_to(dual, (2, d)),
        norms=scaled.norms,
        result=result,
        stats={"num_pivots": state.steps, "max_violation": worst},
        positive=positive,
        num_jumps=num_knots - state.is_cut.astype(jnp.int32),
    )
    return limit, Segments(
        record.index, record.sign, record.opening, record.opening_sign, selection
    )
