"""The limit `ε → 0` of gradient flow for a convex loss of the rows, followed event by event.

The process is that of `process.py`, but its plateau is not the solution of a linear system: between
jumps `x` is the minimiser of `ℓ + λ⟨1, q⟩` over `q ≥ 0` supported on `{w = 0}`, found by the steps
of `_active_set/convex.py` from the plateau before, and

    dw/ds = λ ± ∇ℓ(x),   dz/ds = x.

So `w` and `z` are piecewise linear here too. Each step of the loop makes one step of the minimiser
or, where that has come to rest, the next jump: the first `w` that falls reaches 0. Coordinates
with `x = 0` whose `w` rises are no longer in `{w = 0}` then.

Where the data, or some rows of them, separate on `{w = 0}` there is no minimiser, and the process
ends: `x` leaves for infinity. Where columns of `{w = 0}` depend on each other, `minimizer.py`
chooses among the minimisers, which are those of `square_at`.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._active_set.convex import Position, Rows, advance, most_steps, slots_of, square_at
from .._active_set.derivatives import Segments
from .._active_set.minimizer import select
from .._active_set.state import Scaled, gather, indices
from .._active_set.tolerances import Tolerances
from .._batching import any_lane
from .._loops import while_loop
from .._path import LimitFlow
from .._problem import AbstractProblem, harmless, validity
from .._results import RESULTS, first_failure
from ..networks.prior import Prior
from ..networks.signs import sides, signed


class _Record(eqx.Module):
    """One row a jump: its time, the coordinate that opens it, and the plateau that follows."""

    s: Float[Array, " K"]
    opening: Int[Array, " K"]
    opening_sign: Int[Array, " K"]  # 0 if the row was opened at `s_max`
    x: Float[Array, "K d"]
    sign: Int[Array, "K d"]
    is_flat: Bool[Array, " K"]


class _State(eqx.Module):
    position: Position
    s: Float[Array, ""]
    w: Float[Array, "signs d"]
    row: Int[Array, ""]  # of the current jump; −1 before the first
    steps: Int[Array, ""]
    stalled: Int[Array, ""]  # steps since the last jump
    result: RESULTS
    is_done: Bool[Array, ""]
    is_cut: Bool[Array, ""]  # at `s_max`: the last knot is no jump
    separates: Bool[Array, ""]


def follow_rows(
    problem: AbstractProblem,
    initial_dual: Float[Array, "signs d"],
    s_max: Float[Array, ""],
    prior: Prior | None,
    *,
    positive: bool,
    max_knots: int,
    chooses: bool,
) -> tuple[LimitFlow, Segments]:
    """`process.follow` for a generalised linear model, with the same arguments."""
    d, dtype, K = initial_dual.shape[1], initial_dual.dtype, max_knots
    is_shape = jnp.all(initial_dual >= 0) & jnp.all(jnp.isfinite(initial_dual))
    verdict = first_failure(
        validity(problem), (is_shape, RESULTS.invalid_shape), (s_max > 0, RESULTS.invalid_grid)
    )
    valid = verdict == RESULTS.successful
    # Newton's method on NaN does not come to rest.
    problem = harmless(problem, valid)
    initial_dual = jnp.where(valid, initial_dual, 1)
    k, tol, rows = slots_of(problem), Tolerances(dtype), Rows(problem)
    s_end = jnp.nextafter(lax.stop_gradient(s_max), jnp.full_like(s_max, jnp.inf))

    def step(carry: tuple[_State, _Record]) -> tuple[_State, _Record]:
        state, record = carry
        allowed = (state.w == 0) & (rows.scale > 0)[None, :]
        move = advance(rows, state.position, allowed, k)
        goes_on = ~state.is_done
        separates = goes_on & move.separates
        has_cycled = goes_on & ~move.is_minimum & (state.stalled > most_steps(k))
        rests = goes_on & move.is_minimum & ~separates

        # A start x₀ opens the first row at s = 0, where it is the first plateau.
        is_open = rests & (state.row < 0) & jnp.any(state.position.sign != 0)
        row = jnp.where(is_open, 0, state.row)
        first_free = jnp.argmax(state.position.sign != 0).astype(jnp.int32)
        opened = jnp.where(is_open, 0, K)
        at = jnp.where(rests & (row >= 0), row, K)
        put = lambda buffer, value, row: buffer.at[row].set(value, mode="drop")
        record = _Record(
            s=put(record.s, state.s, opened),
            opening=put(record.opening, first_free, opened),
            opening_sign=put(record.opening_sign, state.position.sign[first_free], opened),
            x=put(record.x, state.position.x, at),
            sign=put(record.sign, state.position.sign, at),
            is_flat=put(record.is_flat, state.position.is_flat, at),
        )

        # The next jump: `w` and `falls` are in units in which columns have norm 1.
        joins = (state.w > 0) & (move.falls > move.hidden[None, :]) & (rows.scale > 0)[None, :]
        wait = jnp.where(joins, state.w / jnp.where(joins, move.falls, 1), jnp.inf)
        first = jnp.min(wait)
        ends = rests & ((state.s + first > s_max) | jnp.isinf(first))
        is_cut = ends & jnp.isfinite(s_max)
        jumps = rests & ~ends
        is_full = (jumps | is_cut) & (row == K - 1)
        opens = (jumps | is_cut) & ~is_full
        duration = jnp.where(jumps, first, 0)
        is_tied = joins & (wait <= first + tol.merge * (state.s + first))
        w = jnp.maximum(state.w - duration * move.falls, 0)
        # On the face w = 0 exactly, but for what leaves it: `w` of a resting coordinate stays 0.
        moves = jnp.abs(move.falls) > move.hidden[None, :]
        on_face = allowed & ~(moves & (state.position.sign == 0)[None, :])
        w = jnp.where(is_tied | on_face, 0, w)
        opening = jnp.argmax(is_tied.ravel()).astype(jnp.int32)
        side = jnp.where(opening < d, 1, -1).astype(jnp.int32)
        s = jnp.where(is_cut, s_end, state.s + duration)
        row = row + opens.astype(jnp.int32)
        new = jnp.where(opens, row, K)
        record = eqx.tree_at(
            lambda r: (r.s, r.opening, r.opening_sign),
            record,
            (
                put(record.s, s, new),
                put(record.opening, opening % d, new),
                put(record.opening_sign, jnp.where(is_cut, 0, side), new),
            ),
        )
        result = first_failure(
            state.result,
            (~is_full, RESULTS.max_knots_reached),
            (~has_cycled, RESULTS.minimizer_not_reached),
        )
        is_done = state.is_done | separates | ends | is_full | has_cycled
        keep = lambda old, new, moved: jax.tree.map(lambda a, b: jnp.where(moved, b, a), old, new)
        state = _State(
            position=keep(state.position, move.position, goes_on & ~separates),
            s=jnp.where(opens, s, state.s),
            w=jnp.where(opens & ~is_cut, w, state.w),
            row=row,
            steps=state.steps + goes_on.astype(jnp.int32),
            stalled=jnp.where(opens, 0, state.stalled + 1),
            result=result,
            is_done=is_done,
            is_cut=state.is_cut | (is_cut & ~is_full),
            separates=state.separates | separates,
        )
        return state, record

    zero = jnp.zeros((), jnp.int32)
    no = jnp.asarray(False)
    state = _State(
        position=Position.zero(rows),
        s=jnp.zeros((), dtype),
        w=initial_dual * rows.scale[None, :],
        row=zero - 1,
        steps=zero,
        stalled=zero,
        result=verdict,
        is_done=~valid,
        is_cut=no,
        separates=no,
    )
    record = _Record(
        s=jnp.zeros(K, dtype),
        opening=jnp.zeros(K, jnp.int32),
        opening_sign=jnp.zeros(K, jnp.int32),
        x=jnp.zeros((K, d), dtype),
        sign=jnp.zeros((K, d), jnp.int32),
        is_flat=jnp.zeros(K, bool),
    )
    goes_on = lambda carry: any_lane(~carry[0].is_done)
    state, record = while_loop(goes_on, step, (state, record))
    return _assemble(problem, rows, state, record, ~valid, initial_dual, prior, positive, chooses)


def _assemble(
    problem: AbstractProblem,
    rows: Rows,
    state: _State,
    record: _Record,
    is_invalid: Array,
    initial_dual: Array,
    prior: Prior | None,
    positive: bool,
    chooses: bool,
) -> tuple[LimitFlow, Segments]:
    """The path in the user's units, from the record: selected, and certified as in `record.py`."""
    d, dtype, K = initial_dual.shape[1], initial_dual.dtype, record.s.shape[0]
    tol, k = Tolerances(dtype), slots_of(problem)
    failed = (state.result == RESULTS.max_knots_reached) | (
        state.result == RESULTS.minimizer_not_reached
    )
    ends_early = failed | state.is_cut | state.separates
    at = jnp.clip(indices(K), 0, jnp.maximum(state.row, 0))
    # After the last knot of a process that ended early there is no plateau.
    is_known = indices(K) <= state.row - ends_early.astype(jnp.int32)
    knots, slopes = record.s[at], jnp.where(is_known[:, None], record.x, 0)[at]

    # `w` anew, from the plateaus: w ≥ 0, and w = 0 at both ends of each segment on which its
    # coordinate moves. After the last knot, its speed.
    forces, _ = jax.vmap(rows.force)(slopes)
    lengths = jnp.diff(knots)[:, None]
    dual = jnp.concatenate([jnp.zeros((1, d), dtype), jnp.cumsum(forces[:-1] * lengths, axis=0)])
    # Up to the first jump x = 0.
    dual = dual + knots[0] * rows.force(jnp.zeros(d, dtype))[0][None, :]
    both = lambda v: jax.vmap(lambda v: sides(v, initial_dual))(v)
    b = (initial_dual * rows.scale[None, :])[None]
    s = knots[:, None, None]
    safe = jnp.where(s > 0, s, 1)
    size = jnp.max(jnp.abs(rows.force(jnp.zeros(d, dtype))[0]))
    size = jnp.where(size > 0, size, 1)
    decay = rows.decay[None, None, :]
    w = jnp.where(s > 0, (b - both(dual)) / safe + decay, b)
    unit = jnp.maximum(size, b / safe)
    speed = jnp.where(ends_early, 0, decay - both(forces[-1:]))
    after = jnp.concatenate([w[1:] / unit[1:], speed / size])
    moves = both(slopes) > 0
    off = lambda w: jnp.max(jnp.where(moves, jnp.abs(w), -w), axis=(1, 2))
    violation = jnp.maximum(jnp.maximum(off(w / unit), off(after)), 0)
    # XLA's maximum may drop a NaN when it is vectorised.
    worst = jnp.where(jnp.all(jnp.isfinite(violation)), jnp.max(violation), jnp.inf)

    # Which minimiser, where columns depend on each other.
    distance = jnp.where(s > 0, jnp.abs(w) / unit, b)
    signs = record.sign * is_known[:, None].astype(jnp.int32)
    index = jax.vmap(lambda sign: jnp.nonzero(sign, size=k, fill_value=d)[0])(signs)
    index = index.astype(jnp.int32)
    sign = jax.vmap(gather)(signs, index)

    def choose(x, *row):
        square = square_at(x * rows.scale, problem)
        scaled = Scaled(square, initial_dual, positive)
        one = jax.tree.map(lambda v: v[None], (*row[:3], x, *row[3:]))
        x, selection, is_lost = select(square, scaled, prior, initial_dual, *one, chooses=chooses)
        return x[0], jax.tree.map(lambda v: v[0], selection), is_lost

    chosen, selection, is_lost = jax.vmap(choose)(slopes, index, sign, knots, distance, is_known)
    is_lost = jnp.any(is_lost & is_known)
    found, slopes = slopes, chosen[at]
    values = jnp.concatenate([jnp.zeros((1, d), dtype), jnp.cumsum(slopes[:-1] * lengths, axis=0)])
    is_flat = jnp.any(record.is_flat & is_known)
    result = first_failure(
        state.result,
        (~is_flat, RESULTS.minimizer_not_reached),
        (worst <= tol.violation, RESULTS.limit_inaccurate),
        (~is_lost, RESULTS.limit_undetermined),
    )
    is_last = indices(K) >= state.row
    nan_if = lambda bad, v: jnp.where(bad, jnp.nan, v)
    num_knots = state.row + 1
    is_on_face = (state.w == 0) & (rows.scale > 0)[None, :] & state.separates
    limit = LimitFlow(
        knots=nan_if(is_invalid, knots),
        values=nan_if(is_invalid, values * rows.scale[None, :]),
        slopes=nan_if((is_invalid | (is_last & ends_early))[:, None], slopes * rows.scale[None, :]),
        num_knots=num_knots,
        weights=jnp.broadcast_to(initial_dual, (2, d)),
        norms=problem.column_norms(),
        result=result,
        stats={"num_pivots": state.steps, "max_violation": worst},
        positive=positive,
        num_jumps=num_knots - state.is_cut.astype(jnp.int32),
        face=signed(is_on_face.astype(dtype)).astype(jnp.int32),
    )
    segments = Segments(
        index, sign, record.opening, record.opening_sign, selection, found * rows.scale[None, :]
    )
    return limit, segments
