"""The exact lasso path, by a homotopy in `τ = 1/μ` from `τ = ∞` down to 0 (LARS with drops).

On a segment with active set `A` and signs `σ` the solution is affine in `τ`:

    x_A = u − τw,   M_AA u = (r − λσ)_A,   M_AA w = (ωσ)_A,   z_A = μx_A = μu − w,

and an inactive correlation `±(r − Mx)_j` exceeds its bound `λ + τω_j` by `e_j − τf_j`, with
`e = ±(r − Mu) − λ` and `f = ω ∓ Mw`. `u` and `w` depend on the active set alone, and are corrected
by their residuals at each event: no error accumulates along the path. The events, as `τ` falls:

| event  | condition                                 | what changes                             |
|--------|-------------------------------------------|------------------------------------------|
| join   | an inactive `e − τf`, with `f > 0`, is 0  | `j` joins with that sign, at `x_j = 0`   |
| leave  | an active `u − τw`, with `σw < 0`, is 0;  | `j` leaves, and `x_j` is exactly 0       |
|        | at `x_j = 0`: if `σu < 0`                 |                                          |
| tie    | several of these have the same `τ`        | one pivot a step, lowest index first; no |
|        |                                           | new knot while `τ` rests                 |
| refuse | the column that would join depends on `A` | no join until one that leaves makes it   |
|        |                                           | independent                              |
| end    | no event is left                          | the last segment is a ray to `μ = ∞`     |

The sign of its rate (`f`, `w`) says whether a coordinate may move, whatever it did before: one that
has just joined or left needs no special case. Lowest index first is Murty's least-index rule for
the complementarity problem of the coordinates that bind. An excess counts only above the rounding
of its own correlation (`Scaled.hidden`), so knots may span any number of decades. Weights of 0 need
another path that comes first (`_Unpenalised`).
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._active_set.choice import active_set
from .._active_set.derivatives import Segments, path_on_segments
from .._active_set.state import (
    AbstractActiveSet,
    Event,
    Pivoting,
    Scaled,
    gather,
    indices,
    largest,
    lowest,
    most_pivots_of_a_tie,
    packed,
    pivot_until_done,
    total,
)
from .._active_set.tolerances import Tolerances
from .._active_set.transform import event_driven
from .._checks import is_weights
from .._path import LassoPath
from .._problem import AbstractProblem, default_events, validity
from .._results import RESULTS, first_failure
from .record import Record, Row, assemble


class _State(Pivoting):
    active: AbstractActiveSet
    tau: Float[Array, ""]
    row: Int[Array, ""]  # of the current knot; −1 before the first
    steps: Int[Array, ""]
    stalled: Int[Array, ""]  # pivots since τ last moved
    violation: Float[Array, ""]  # the largest of the optimality conditions so far
    result: RESULTS
    is_prelude: Bool[Array, ""]  # on the path that finds the active set at `μ = 0`
    is_done: Bool[Array, ""]
    is_fresh: Bool[Array, ""]
    is_stale: Bool[Array, ""]


class _Unpenalised(eqx.Module):
    """The changes that weights of 0 make.

    A sign of weight 0 has the bound λ at every `μ`, so it may be active from `μ = 0` on. That
    active set is the end of another path, the prelude: only signs of weight 0 take part in it, with
    weights 1. If both signs have weight 0, and λ = 0, the coordinate is *free*: its correlation is
    0 at all `μ`; it joins first and never leaves.
    """

    prelude: Scaled
    is_free: Bool[Array, " d"]

    def __init__(self, problem: AbstractProblem, weights: Array, scaled: Scaled, positive: bool):
        is_zero = (weights == 0) & (scaled.scale > 0)[None, :]
        self.is_free = jnp.all(is_zero, axis=0) & (problem.weight_decay == 0) & (not positive)
        # Free coordinates keep the weight 0 in the prelude; 1/scale is 1 in units of the columns.
        units = jnp.where(self.is_free, 0, 1) / jnp.where(scaled.scale > 0, scaled.scale, 1)
        weights = jnp.where(is_zero, units[None, :], jnp.inf)
        self.prelude = Scaled(problem, weights, positive)

    def ends_prelude(self, active: AbstractActiveSet) -> AbstractActiveSet:
        """`active` at the end of the prelude, `τ = 0`, as the start of the path, `τ = ∞`.

        On the path these signs have `ω = 0`, hence `w = 0`. Entries that are 0 at the end of the
        prelude, or of the wrong sign by rounding, start at exactly 0.
        """
        x = active.solution[0]
        keeps = (x * active.sign > 0) | active.at(self.is_free)
        return active.resting(jnp.where(keeps, x, 0))


def _slacks(scaled: Scaled, active: AbstractActiveSet) -> list[tuple[Array, Array]]:
    """`e` and `f` of each sign, shape `(d,)`: correlations exceed their bounds by `e − τf`."""
    signs = (1, -1)[: scaled.b.shape[0]]
    image, speed = active.product
    pairs = zip(signs, scaled.excess, scaled.b, strict=True)
    return [(excess - sign * image, b - sign * speed) for sign, excess, b in pairs]


def _next_event(
    scaled: Scaled,
    state: _State,
    slacks: list[tuple[Array, Array]],
    is_free: Array | None,
    rank_bound: int,
    tol: Tolerances,
) -> Event:
    """The event with the largest `τ` not above the current one; of those in the tie window, the one
    with the lowest index. Its `τ` is −∞ if there is none. `slacks` are `e, f` of each sign."""
    active, (u, w) = state.active, state.active.solution
    d = active.pivots.shape[0]

    # Join: f > 0, and an excess as τ → 0 that is more than the rounding of the correlation.
    in_image, in_speed = scaled.hidden(active, tol)
    can_join = (active.pivots > tol.pivot) & ~active.is_active
    if rank_bound < d:
        can_join = can_join & (total(jnp.abs(active.sign)) < rank_bound)
    join = []
    for (excess, slack), b in zip(slacks, scaled.b, strict=True):
        joins = can_join & (slack > tol.direction * b + in_speed) & (excess > in_image)
        time = jnp.where(joins, excess / jnp.where(joins, slack, 1), -jnp.inf)
        time = jnp.minimum(time, state.tau)
        if is_free is not None:
            time = jnp.where(can_join & is_free, state.tau, time)
        join.append(time)

    # Leave: |x| falls as τ falls. At x = 0, where a coordinate has just joined in a tie, dz/dμ = u
    # decides: it would move against its sign.
    rests = active.x == 0
    fastest = largest(jnp.abs(active.solution))
    rate = -active.sign * jnp.where(rests, u, w)
    leaves = rate > tol.direction * jnp.where(rests, fastest[0], fastest[1])
    if is_free is not None:
        leaves = leaves & ~active.at(is_free)
    leave = jnp.where(rests, jnp.inf, u / jnp.where(leaves & ~rests, w, 1))
    leave = jnp.where(leaves, jnp.minimum(leave, state.tau), -jnp.inf)

    # All within the window of the next event are a tie.
    times = active.with_active(ft.reduce(jnp.maximum, join), leave)
    first = largest(times)
    j = lowest(times >= first * (1 - tol.window))
    # The sign with which each coordinate would join; 0 where it would leave.
    signs = jnp.where(join[-1] > join[0], -1, 1)
    sign = jnp.where(active.is_active, 0, signs).astype(u.dtype)[j]
    is_leave = sign == 0
    slot = active.slot(j, is_leave)
    if is_free is not None:
        # At the end of the prelude there is no event, but `Compact.pivot` still writes the row of
        # j into `slot`. With no slot empty that one is in use: it has to be its own row.
        j = jnp.where(jnp.isinf(first) & (first < 0), jnp.minimum(active.index[slot], d - 1), j)
    side = jnp.where(sign < 0, len(join) - 1, 0).astype(jnp.int32)
    return Event(
        tau=times[j],
        j=j,
        sign=sign,
        rhs=sign * jnp.stack([scaled.excess[side, j], scaled.b[side, j]]),
        slot=slot,
        leaves=is_leave,
    )


def _moves_against_sign(active: AbstractActiveSet, is_free: Array | None) -> Array:
    """Slots at 0 with a slope against their sign: they would have left, so that is rounding."""
    is_rounding = (active.x == 0) & (active.solution[0] * active.sign < 0)
    return is_rounding if is_free is None else is_rounding & ~active.at(is_free)


def _write(record: Record, state: _State, is_free: Array | None) -> Record:
    """`record` with the current row. Every pivot of a tie writes it again."""
    is_live = ~(state.is_done | state.is_prelude) & (state.row >= 0)
    row = jnp.where(is_live, state.row, record.rows.shape[0])
    active = state.active
    slope = jnp.where(_moves_against_sign(active, is_free), 0, active.solution[0])
    index = None if active.is_direct else active.index.astype(slope.dtype)
    return record.write(row, Row(state.tau, active.sign, active.x / state.tau, slope, index))


@eqx.filter_jit
def homotopy(
    problem: AbstractProblem,
    weights: Array,
    positive: bool,
    max_knots: int | None,
    may_be_zero: bool,
) -> LassoPath:
    """`lasso_path` of arguments that were checked; `may_be_zero` says whether a weight may be 0."""
    if max_knots is None:
        max_knots = default_events(problem)
    follow = ft.partial(_follow, positive=positive, max_knots=max_knots, may_be_zero=may_be_zero)
    return event_driven(follow, path_on_segments, problem)(problem, weights)


def _follow(
    problem: AbstractProblem,
    weights: Array,
    *,
    positive: bool,
    max_knots: int,
    may_be_zero: bool,
) -> tuple[LassoPath, Segments]:
    """The path and its active sets; bad values end in `result`. One step of the loop is a pivot."""
    k, d, tol = problem.rank_bound, problem.r.shape[0], Tolerances(weights.dtype)
    scaled = Scaled(problem, weights, positive)
    size = jnp.max(jnp.abs(scaled.r))
    free = _Unpenalised(problem, weights, scaled, positive) if may_be_zero else None
    is_free = None if free is None else free.is_free
    in_range = jnp.finfo(size.dtype)

    def step(carry: tuple[_State, Record]) -> tuple[_State, Record]:
        state, record = carry
        state = eqx.tree_at(lambda s: s.active, state, state.active.prepared(tol))
        # Before the next pivot, not after the last: by now `u` may have been refined.
        record = _write(record, state, is_free)
        active, (u, w) = state.active, state.active.solution
        here = scaled
        if free is not None:
            choose = lambda a, b: jnp.where(state.is_prelude, a, b)
            here = jax.tree.map(choose, free.prelude, scaled)
        slacks = _slacks(here, active)
        event = _next_event(here, state, slacks, is_free, k, tol)
        # Knots 1/τ and values z ≤ |u|/τ must not overflow. The factor 4 leaves room for the sums
        # that follow; of the 600 decades of float64 it costs less than one.
        least = 4 * jnp.maximum(float(in_range.tiny), active.size()[0] / float(in_range.max))
        # A lane with a stale inverse rests until all lanes of its batch are done or stale.
        ends = ~(event.tau > least) & ~state.is_stale
        column = active.column(problem, here, event.j)
        new, possible, is_stale, is_kept = active.pivot(
            event, column, tol, state.is_done | ends | state.is_stale, state.is_fresh
        )
        moved = possible & (event.tau < state.tau * (1 - tol.merge))
        tau = jnp.where(possible, jnp.minimum(event.tau, state.tau), state.tau)
        # x at the knot comes from the segment that ends: its residual there is rounding, where that
        # of the next segment has the condition number of its active set. An entry whose zero is
        # within `merge` of the knot is 0: over that distance x changes by merge·|τw|.
        x = u - event.tau * w
        rounding = tol.merge * jnp.maximum(jnp.abs(u), jnp.abs(event.tau * w))
        keeps = (x * active.sign > rounding) & (new.sign != 0)
        if is_free is not None:
            keeps = keeps | active.at(is_free)
        new = eqx.tree_at(
            lambda active: active.x, new, jnp.where(moved, jnp.where(keeps, x, 0), new.x)
        )

        # Both ends of the segment just left certify it: everything is affine in τ.
        stop = jnp.where(ends, 0, tau)
        start = jnp.where(jnp.isinf(state.tau), stop, state.tau)
        # XLA's maximum may drop a NaN when it is vectorised: it is ∞ here. (The sum keeps it.)
        over = [e - at * f for e, f in slacks for at in (start, stop)]
        over = ft.reduce(jnp.maximum, [jnp.where(v < jnp.inf, v, jnp.inf) for v in over])
        fit, speed = jnp.abs(active.residual)
        worst = active.largest(over, fit + start * speed)
        # Setting an entry to 0, or a slope, changes correlations by at most that: columns have
        # norm 1. And the rounding of the entries of M, which no residual computed with M can show.
        changes = tol.unit * jnp.abs(u - stop * w) + jnp.where(moved & ~keeps, jnp.abs(x), 0)
        against = _moves_against_sign(active, is_free) & ~state.is_prelude
        changes = changes + jnp.where(against, jnp.abs(u), 0)
        violation = worst + total(changes)
        # In a tie x rests; setting the entry that leaves to 0 is a violation, too.
        left = jnp.abs(active.x[event.slot])
        left = jnp.where(event.leaves & possible & ~moved, left, 0)
        violation = jnp.where(moved | ends, violation, left)
        # An event is left, but beyond the range of the dtype: the path is not complete.
        violation = jnp.where(ends & (event.tau > 0), jnp.inf, violation)
        violation = jnp.where(jnp.isnan(violation), jnp.inf, violation)
        violation = jnp.where(state.is_done, 0, violation)

        # With rounding a tie could cycle, in spite of Murty's rule.
        stalled = jnp.where(moved, 0, state.stalled + possible.astype(jnp.int32))
        counts = moved & ~state.is_prelude
        is_full = counts & (state.row == max_knots - 1)
        has_cycled = ~ends & (stalled > most_pivots_of_a_tie(k))
        result = RESULTS.where(is_full, RESULTS.max_knots_reached, state.result)
        result = RESULTS.where(has_cycled, RESULTS.path_cycled, result)
        # From a segment that is wrong, not just inaccurate, every later knot would be wrong.
        is_wrong = ~(violation <= tol.wrong * size)
        is_done = state.is_done | (ends & ~state.is_prelude) | is_full | has_cycled | is_wrong
        is_taken = ~(state.is_done | (is_kept & ~ends))
        row = state.row + (counts & ~is_done).astype(jnp.int32)
        is_prelude = state.is_prelude
        if free is not None:
            opens = is_prelude & ends & ~is_done
            choose = lambda a, b: b if a is b else jnp.where(opens, a, b)
            new = jax.tree.map(choose, free.ends_prelude(new), new)
            tau, stalled = choose(jnp.inf, tau), choose(0, stalled)
            # Coordinates that are active from the start on have a knot at μ = 0.
            row = choose(jnp.where(jnp.any(new.sign != 0), 0, -1), row).astype(jnp.int32)
            is_prelude = is_prelude & ~opens
        state = _State(
            active=new,
            tau=tau,
            row=row,
            steps=state.steps + is_taken.astype(jnp.int32),
            stalled=stalled,
            violation=jnp.maximum(state.violation, violation),
            result=result,
            is_prelude=is_prelude,
            is_done=is_done,
            is_fresh=state.is_fresh & ~is_taken,
            is_stale=state.is_stale | is_stale,
        )
        return state, record

    invalid = (is_weights(weights), RESULTS.invalid_weights)
    result = first_failure(validity(problem), invalid)
    valid = result == RESULTS.successful
    zero = jnp.zeros((), size.dtype)
    active = active_set(problem, scaled, k)
    state = _State(
        active=active,
        tau=zero + jnp.inf,
        row=jnp.asarray(-1, jnp.int32),
        steps=jnp.asarray(0, jnp.int32),
        stalled=jnp.asarray(0, jnp.int32),
        violation=zero,
        result=result,
        is_prelude=jnp.asarray(free is not None),
        is_done=~valid | ~(size > 0),
        is_fresh=jnp.asarray(True),
        is_stale=jnp.asarray(False),
    )
    slots = active.sign.shape[0]
    record = Record(jnp.zeros((max_knots, 1 + (3 if active.is_direct else 4) * slots), size.dtype))
    state, record = pivot_until_done(step, (state, record))
    # On the last ray no coordinate leaves, so none has a slope against its sign: what there is of
    # it is rounding, and set to 0. If it is larger, rounding has hidden a knot: it counts as a
    # violation.
    last = jnp.maximum(state.row, 0)
    rows = record.read(slots)
    at = indices(d)[None, :] if rows.index is None else rows.index.astype(jnp.int32)
    index = jnp.where(rows.sign != 0, at, d)
    end = rows.slope[last]
    is_against = end * rows.z[last] < 0
    if is_free is not None:
        is_against = is_against & ~gather(is_free, index[last])
    kept = jnp.where(is_against, 0, end)
    is_ray = (state.result == RESULTS.successful) & (state.violation <= tol.wrong * size)
    lost = jnp.where(is_ray, jnp.max(jnp.abs(end - kept)), 0)
    state = eqx.tree_at(lambda s: s.violation, state, jnp.maximum(state.violation, lost))
    rows = eqx.tree_at(lambda rows: rows.slope, rows, rows.slope.at[last].set(kept))
    inaccurate = ~(state.violation <= tol.violation * size)
    inaccurate = inaccurate & (state.result == RESULTS.successful)
    result = RESULTS.where(inaccurate, RESULTS.path_inaccurate, state.result)
    # A path that was not followed to its end is NaN beyond its last knot.
    is_cut = (result == RESULTS.max_knots_reached) | (result == RESULTS.path_cycled)
    is_cut = is_cut | ~(state.violation <= tol.wrong * size)
    path = assemble(
        rows,
        index,
        state.row,
        result,
        stats={"num_pivots": state.steps, "max_violation": state.violation},
        is_cut=is_cut,
        is_invalid=~valid,
        scaled=scaled,
        weights=weights,
        positive=positive,
    )
    return path, Segments(*packed(index, rows.sign.astype(jnp.int32), k))
