"""The exact lasso path, by a homotopy in `τ = 1/μ` (LARS with drops).

On a segment with active set `A` and signs `s` the solution is affine in `τ`:
`x_A = u − τw` with `M_AA u = (r − λs)_A` and `M_AA w = (ωs)_A`, hence `z_A = μx_A = μu − w`. The
correlations `r − Mx = p + τq` stay within `λ + τω`. Events are kept by *direction*: a
coordinate leaves only if it moves towards 0 and joins only if its slack shrinks. Ties become
pivots of length zero, lowest index first, which is Murty's least-index rule for the
complementarity problem on the binding set. Every tolerance is relative, columns are scaled
to unit norm, and `u, w, p, q` come afresh from the active set at every event. The path ends where
what is left of each correlation is rounding in its own scale: knots may span any number of decades.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._active_set.derivatives import Segments, path_on_segments
from .._active_set.state import (
    ActiveSet,
    Event,
    Pivoting,
    Scaled,
    gather,
    indices,
    pivot_until_done,
    scatter,
)
from .._active_set.tolerances import Tolerances
from .._active_set.transform import event_driven
from .._checks import as_count, as_flag, as_weights, is_weights, may_be_zero
from .._path import PiecewiseLinearPath
from .._problem import AbstractProblem, check_quadratic, validity
from .._results import RESULTS, first_failure, raise_on_failure


class _Record(eqx.Module):
    """What is known at each knot: `τ`, the active coordinates, `z` and `dz/dμ` on them."""

    tau: Float[Array, " K"]
    index: Int[Array, "K k"]
    sign: Int[Array, "K k"]
    z: Float[Array, "K k"]
    slope: Float[Array, "K k"]


class _State(Pivoting):
    active: ActiveSet
    tau: Float[Array, ""]
    row: Int[Array, ""]  # of the current knot; −1 before the first
    steps: Int[Array, ""]
    stalled: Int[Array, ""]  # steps since τ last moved
    violation: Float[Array, ""]
    result: RESULTS
    is_prelude: Bool[Array, ""]  # on the way to what is active at `μ = 0`
    is_done: Bool[Array, ""]
    is_fresh: Bool[Array, ""]
    is_stale: Bool[Array, ""]


class _Unpenalised(eqx.Module):
    """What weights of 0 change. Where neither sign has a weight, nor λ, a coordinate is *free*: its
    correlation is 0, it joins first and never leaves. A sign without a weight has the bound λ at
    all μ; what is active at `μ = 0` is the end of the path on which only such signs take part, with
    weights of 1: the prelude."""

    prelude: Scaled
    is_free: Bool[Array, " d"]

    def __init__(self, problem: AbstractProblem, weights: Array, scaled: Scaled, positive: bool):
        is_zero = (weights == 0) & (scaled.scale > 0)[None, :]
        self.is_free = jnp.all(is_zero, axis=0) & (problem.weight_decay == 0) & (not positive)
        units = jnp.where(self.is_free, 0, 1) / jnp.where(scaled.scale > 0, scaled.scale, 1)
        weights = jnp.where(is_zero, units[None, :], jnp.inf)
        self.prelude = Scaled(problem, weights, positive)

    def ends_prelude(self, active: ActiveSet) -> ActiveSet:
        """At `τ = 0` of the prelude, which is `τ = ∞` of the path."""
        rests = lambda pair: pair.at[1].set(0)
        x = active.solution[0]
        fields = lambda active: (
            active.x,
            active.rhs,
            active.solution,
            active.product,
            active.residual,
        )
        keeps = (x * active.sign > 0) | gather(self.is_free, active.index)
        return eqx.tree_at(
            fields, active, (jnp.where(keeps, x, 0), *(rests(v) for v in fields(active)[1:]))
        )


def _slacks(scaled: Scaled, active: ActiveSet) -> tuple[Array, Array]:
    """`e, f` such that correlations exceed their bounds by `e − τf`, shape `(s, d)`."""
    signs = jnp.array([1.0, -1.0], scaled.r.dtype)[: scaled.b.shape[0], None]
    image, speed = active.product[:, None, :]
    return scaled.excess - signs * image, scaled.b - signs * speed


def _next_event(scaled: Scaled, state: _State, excess, slack, is_free, tol: Tolerances) -> Event:
    active, (u, w) = state.active, state.active.solution
    d, k = active.pivots.shape[0], active.sign.shape[0]
    is_empty = active.sign == 0
    first_where = lambda flags, values, size: jnp.min(jnp.where(flags, values, size))

    # As `τ → 0` nothing joins but for what is left of its correlation, which is more than rounding.
    in_image, in_speed = scaled.hidden(active, tol)
    joins = ((active.pivots > tol.pivot) & ~active.is_active & jnp.any(is_empty))[None, :]
    first_joins = joins if is_free is None else joins & is_free[None, :]
    joins = joins & (slack > tol.direction * scaled.b + in_speed[None, :])
    joins = joins & (excess > in_image[None, :])
    join = jnp.where(joins, excess / jnp.where(joins, slack, 1), -jnp.inf)
    join = jnp.minimum(join, state.tau)
    if is_free is not None:
        join = jnp.where(first_joins, state.tau, join)

    is_against = lambda v: -active.sign * v > tol.direction * jnp.max(jnp.abs(v))
    leaves = jnp.where(active.x == 0, is_against(w), is_against(u))
    if is_free is not None:
        leaves = leaves & ~gather(is_free, active.index)
    leave = jnp.where(leaves, u / jnp.where(leaves & (w != 0), w, 1), -jnp.inf)
    leave = jnp.where(leaves & (active.x == 0), state.tau, jnp.minimum(leave, state.tau))

    first = jnp.maximum(jnp.max(join), jnp.max(leave))
    near = first * (1 - tol.window)
    j_join = first_where(join >= near, indices(d)[None, :], d)
    j_leave = first_where(leave >= near, active.index, d)
    is_leave = j_leave < j_join
    j = jnp.minimum(jnp.minimum(j_join, j_leave), d - 1)
    slot = first_where(jnp.where(is_leave, active.index == j, is_empty), indices(k), k)
    slot = jnp.minimum(slot, k - 1)
    if is_free is not None:
        # Where the prelude ends with no slot empty, the last one keeps its row.
        j = jnp.where(jnp.isinf(first) & (first < 0), jnp.minimum(active.index[slot], d - 1), j)
    join = join[:, j]
    side = (join[-1] > join[0]).astype(jnp.int32)
    sign = 1 - 2 * side.astype(u.dtype)
    return Event(
        tau=jnp.where(
            is_leave, jnp.max(jnp.where(active.index == j, leave, -jnp.inf)), jnp.max(join)
        ),
        j=j,
        sign=sign,
        rhs=sign * jnp.stack([scaled.excess[side, j], scaled.b[side, j]]),
        slot=slot,
        leaves=is_leave,
    )


def _moves_against_sign(active: ActiveSet, is_free: Array | None) -> Array:
    """From 0, only rounding can move a coordinate against its sign (or it would have left)."""
    is_rounding = (active.x == 0) & (active.solution[0] * active.sign < 0)
    return is_rounding if is_free is None else is_rounding & ~gather(is_free, active.index)


def _write(record: _Record, state: _State, is_live: Array, is_free: Array | None) -> _Record:
    row = jnp.where(is_live & (state.row >= 0), state.row, record.tau.shape[0])
    put = lambda buffer, value: buffer.at[row].set(value, mode="drop")
    active = state.active
    slope = active.solution[0]
    is_rounding = _moves_against_sign(active, is_free)
    return _Record(
        tau=put(record.tau, state.tau),
        index=put(record.index, active.index),
        sign=put(record.sign, active.sign.astype(jnp.int32)),
        z=put(record.z, active.x / state.tau),
        slope=put(record.slope, jnp.where(is_rounding, 0, slope)),
    )


@eqx.filter_jit
def homotopy(
    problem: AbstractProblem,
    weights: Array,
    positive: bool,
    max_knots: int | None,
    may_be_zero: bool,
) -> PiecewiseLinearPath:
    """`lasso_path`, of arguments that are checked."""
    if max_knots is None:
        max_knots = 4 * problem.rank_bound + 16
    follow = ft.partial(_follow, positive=positive, max_knots=max_knots, may_be_zero=may_be_zero)
    return event_driven(follow, path_on_segments, problem)(problem, weights)


def _follow(
    problem: AbstractProblem,
    weights: Array,
    *,
    positive: bool,
    max_knots: int,
    may_be_zero: bool,
) -> tuple[PiecewiseLinearPath, Segments]:
    k, tol = problem.rank_bound, Tolerances(weights.dtype)
    scaled = Scaled(problem, weights, positive)
    size = jnp.max(jnp.abs(scaled.r))
    free = _Unpenalised(problem, weights, scaled, positive) if may_be_zero else None
    is_free = None if free is None else free.is_free
    in_range = jnp.finfo(size.dtype)

    def step(carry: tuple[_State, _Record]) -> tuple[_State, _Record]:
        state, record = carry
        active, (u, w) = state.active, state.active.solution
        here = scaled
        if free is not None:
            choose = lambda a, b: jnp.where(state.is_prelude, a, b)
            here = jax.tree.map(choose, free.prelude, scaled)
        excess, slack = _slacks(here, active)
        event = _next_event(here, state, excess, slack, is_free, tol)
        # Only what the dtype holds.
        least = 4 * jnp.maximum(float(in_range.tiny), active.size()[0] / float(in_range.max))
        ends = ~(event.tau > least)
        column = here.column(problem, event.j)
        new, possible, is_stale = active.pivot(
            event, column, tol, state.is_done | ends, state.is_fresh
        )
        moved = possible & (event.tau < state.tau * (1 - tol.merge))
        tau = jnp.where(possible, jnp.minimum(event.tau, state.tau), state.tau)
        # The segment that ends gives the values at the knot: they keep the residual at
        # rounding, where those of the next segment carry its condition number.
        x = u - event.tau * w
        rounding = tol.merge * jnp.maximum(jnp.abs(u), jnp.abs(event.tau * w))
        keeps = (x * active.sign > rounding) & (new.sign != 0)
        if is_free is not None:
            keeps = keeps | gather(is_free, active.index)
        clipped = jnp.sum(jnp.where(keeps, 0, jnp.abs(x)))
        new = eqx.tree_at(
            lambda active: active.x, new, jnp.where(moved, jnp.where(keeps, x, 0), new.x)
        )

        # Both ends of the segment just left certify it: everything is affine in τ.
        stop = jnp.where(ends, 0, tau)
        start = jnp.where(jnp.isinf(state.tau), stop, state.tau)
        largest = jnp.max(jnp.maximum(excess - start * slack, excess - stop * slack))
        fit, speed = jnp.abs(active.residual)
        largest = jnp.maximum(largest, jnp.max(fit + start * speed))
        # A maximum may lose a NaN when it is vectorised.
        largest = jnp.where(jnp.isfinite(jnp.sum(active.product)), largest, jnp.inf)
        # So does what was set to 0 at the knot, and of the slopes: columns have norm 1.
        largest = largest + jnp.where(moved, clipped, 0)
        against = jnp.sum(jnp.where(_moves_against_sign(active, is_free), jnp.abs(u), 0))
        largest = largest + jnp.where(state.is_prelude, 0, against)
        left = jnp.abs(active.x[event.slot])
        left = jnp.where(event.leaves & possible & ~moved, left, 0)
        # What rounding in M itself may hide.
        violation = largest + tol.unit * jnp.sum(jnp.abs(u - stop * w))
        violation = jnp.where(moved | ends, violation, left)
        violation = jnp.where(ends & (event.tau > 0), jnp.inf, violation)
        violation = jnp.where(state.is_done, 0, violation)

        stalled = jnp.where(moved, 0, state.stalled + possible.astype(jnp.int32))
        counts = moved & ~state.is_prelude
        is_full = counts & (state.row == max_knots - 1)
        has_cycled = ~ends & (stalled > 16 * k + 64)
        result = RESULTS.where(is_full, RESULTS.max_knots_reached, state.result)
        result = RESULTS.where(has_cycled, RESULTS.path_cycled, result)
        # Never go on from a segment that is wrong, rather than inaccurate.
        is_wrong = ~(violation <= tol.wrong * size)
        is_done = state.is_done | (ends & ~state.is_prelude) | is_full | has_cycled | is_wrong
        is_taken = ~(state.is_done | is_stale)
        row = state.row + (counts & ~is_done).astype(jnp.int32)
        is_prelude = state.is_prelude
        if free is not None:
            opens = is_prelude & ends & ~is_done
            choose = lambda a, b: jnp.where(opens, a, b)
            new = jax.tree.map(choose, free.ends_prelude(new), new)
            tau, stalled = choose(jnp.inf, tau), choose(0, stalled)
            # What is active from the start on has a knot at μ = 0.
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
            is_stale=is_stale,
        )
        return state, _write(record, state, ~(is_done | is_prelude), is_free)

    invalid = (is_weights(weights), RESULTS.invalid_weights)
    result = first_failure(validity(problem), invalid)
    valid = result == RESULTS.successful
    zero = jnp.zeros((), size.dtype)
    state = _State(
        active=ActiveSet.empty(k, scaled.scale),
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
    record = _Record(
        tau=jnp.full(max_knots, jnp.inf, size.dtype),
        index=jnp.full((max_knots, k), scaled.r.shape[0], jnp.int32),
        sign=jnp.zeros((max_knots, k), jnp.int32),
        z=jnp.zeros((max_knots, k), size.dtype),
        slope=jnp.zeros((max_knots, k), size.dtype),
    )
    state, record = pivot_until_done(step, (state, record))
    # No coordinate left on the last ray: a slope against its sign there, which is where it ends,
    # is rounding. If it is more, there is another knot, hidden by rounding.
    last = jnp.maximum(state.row, 0)
    end = record.slope[last]
    is_against = end * record.z[last] < 0
    if is_free is not None:
        is_against = is_against & ~gather(is_free, record.index[last])
    kept = jnp.where(is_against, 0, end)
    is_ray = (state.result == RESULTS.successful) & (state.violation <= tol.wrong * size)
    lost = jnp.where(is_ray, jnp.max(jnp.abs(end - kept)), 0)
    state = eqx.tree_at(lambda s: s.violation, state, jnp.maximum(state.violation, lost))
    record = eqx.tree_at(lambda r: r.slope, record, record.slope.at[last].set(kept))
    inaccurate = ~(state.violation <= tol.violation * size)
    inaccurate = inaccurate & (state.result == RESULTS.successful)
    result = RESULTS.where(inaccurate, RESULTS.path_inaccurate, state.result)
    # Where the path was not followed to its end, nothing is known beyond its last knot.
    is_cut = (result == RESULTS.max_knots_reached) | (result == RESULTS.path_cycled)
    is_cut = is_cut | ~(state.violation <= tol.wrong * size)
    path = _assemble(state, record, result, is_cut, ~valid, scaled, weights, positive)
    return path, Segments(record.index, record.sign)


def _assemble(
    state: _State,
    record: _Record,
    result: RESULTS,
    is_cut: Array,
    is_invalid: Array,
    scaled: Scaled,
    weights: Array,
    positive: bool,
) -> PiecewiseLinearPath:
    """From knots in compact storage to a path in the user's units."""
    K, d = record.tau.shape[0], scaled.r.shape[0]
    num_knots = state.row + 1
    rows = jnp.clip(indices(K), 0, jnp.maximum(state.row, 0))

    def spread(v):
        full = scatter(record.index, v, d)
        return jnp.where(num_knots > 0, full[rows] * scaled.scale[None, :], 0)

    is_unknown = is_cut & (indices(K) >= state.row)
    nan_if = lambda bad, v: jnp.where(bad, jnp.nan, v)
    return PiecewiseLinearPath(
        knots=nan_if(is_invalid, jnp.where(num_knots > 0, 1 / record.tau[rows], 0)),
        values=nan_if(is_invalid, spread(record.z)),
        slopes=nan_if((is_unknown | is_invalid)[:, None], spread(record.slope)),
        num_knots=num_knots,
        weights=weights,
        norms=scaled.norms,
        result=result,
        stats={"num_pivots": state.steps, "max_violation": state.violation},
        positive=positive,
    )


def lasso_path(
    problem: AbstractProblem,
    *,
    positive: bool = False,
    weights: Real[ArrayLike, "..."] | None = None,
    max_knots: int | None = None,
    throw: bool = True,
) -> PiecewiseLinearPath:
    """The exact lasso path `μ ↦ x(μ)`, all of it.

    `x(μ)` minimises `ℓ(x) + Σᵢ (λ + ωᵢ/μ)|xᵢ|`, and `z(μ) = μ x(μ)` is piecewise linear.

    Differentiable in both modes, in the data, `ω`, `λ` and `μ`, on the active sets found: at a knot
    that is one side's derivative, and where columns are dependent that of the solution chosen.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem.
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω ≥ 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive
        (first row) and negative entries. Default 1. With 0 a coordinate is unpenalised (an
        intercept, or `limit.weights` of a `limit_flow` from a `start`): then the first knot is at
        `μ = 0`, from where `z` has a slope. With `inf` it is kept at 0.
    - `max_knots`: static size of the buffers, default `4 min(n, d) + 16`. (Random problems
        have fewer than `3.7 min(n, d)` knots; the worst case has `(3^d + 1)/2`.)
    - `throw`: raise if the path is cut short or inaccurate. Under tracing nothing is raised:
        failed lanes are NaN, with their `result`. With `throw=False` they keep what they have.

    **Returns:** a `PiecewiseLinearPath` in `p = μ`. A path that ran out of knots is NaN beyond
    its last one. Where unpenalised columns depend on each other, `x` is one of several solutions.

    **Raises:** `ValueError` for bad `weights` or `max_knots`.

    !!! cite "Reference"

        Osborne, Presnell, Turlach (2000); Efron et al., *Least Angle Regression* (2004); in
        this parametrisation [B25] §4.5.
    """
    check_quadratic(problem)
    positive = as_flag(positive, "positive")
    omega = as_weights(weights, problem.r.shape[0], problem.r.dtype)
    max_knots = None if max_knots is None else as_count(max_knots, "max_knots")
    path = homotopy(problem, omega, positive, max_knots, may_be_zero(weights))
    return raise_on_failure(path, path.result, throw, kept=("knots", "values", "slopes", "norms"))
