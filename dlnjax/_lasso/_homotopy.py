"""The exact lasso path, by a homotopy in `τ = 1/μ` (LARS with drops).

On a segment with active set `A` and signs `s` the solution is affine in `τ`:
`x_A = u − τw` with `M_AA u = (r − λs)_A` and `M_AA w = (ωs)_A`, hence `z_A = μx_A = μu − w`. The
correlations `r − Mx = p + τq` stay within `λ + τω`. Events are kept by *direction*: a
coordinate leaves only if it moves towards 0 and joins only if its slack shrinks. Ties become
pivots of length zero, lowest index first, which is Murty's least-index rule for the
complementarity problem on the binding set. Every tolerance is relative, columns are scaled
to unit norm, and `u, w, p, q` come afresh from the active set at every event.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._check import as_weights
from .._linalg import matmul
from .._path import PiecewiseLinearPath
from .._problem import AbstractProblem, is_valid
from .._solution import RESULTS, raise_on_failure
from ._active_set import ActiveSet, Event, Scaled, indices, pivot


class _Record(eqx.Module):
    """What is known at each knot: `τ`, the active coordinates, `z` and `dz/dμ` on them."""

    tau: Float[Array, " K"]
    index: Int[Array, "K k"]
    z: Float[Array, "K k"]
    slope: Float[Array, "K k"]


class _State(eqx.Module):
    active: ActiveSet
    tau: Float[Array, ""]
    row: Int[Array, ""]  # of the current knot; −1 before the first
    steps: Int[Array, ""]
    stalled: Int[Array, ""]  # steps since τ last moved
    violation: Float[Array, ""]
    result: RESULTS
    is_done: Bool[Array, ""]
    is_factorised: Bool[Array, ""]  # the inverse is fresh
    is_stale: Bool[Array, ""]  # the inverse has drifted too far for refinement


def _solve_segment(scaled: Scaled, active: ActiveSet) -> tuple[tuple, Array]:
    """`u, w` of shape `(k,)` and `p, q` of shape `(d,)` on the current active set, and the
    defect of the inverse that gave them."""
    a, b = scaled.bounds(active)
    rhs = jnp.stack([active.gather(scaled.r) - a * active.sign, b * active.sign], axis=1)
    solution, defect = active.solve(rhs)
    product = matmul(solution.T, active.rows)
    u, w = solution[:, 0], solution[:, 1]
    return (u, w, scaled.r - product[0], product[1]), defect


def _next_event(scaled, state: _State, segment, positive: bool, tol) -> Event:
    active, (u, w, p, q) = state.active, segment
    k, d = active.rows.shape
    is_active = jnp.zeros(d, bool).at[active.index].set(True, mode="drop")
    has_room = jnp.any(active.sign == 0)

    slack_closes = jnp.stack([scaled.b[0] - q, scaled.b[1] + q])
    excess = jnp.stack([p - scaled.a[0], -p - scaled.a[1]])
    joins = (active.pivots > tol.pivot) & ~is_active & has_room
    joins = joins[None, :] & (slack_closes > tol.direction * scaled.b)
    if positive:
        joins = joins.at[1].set(False)
    join = jnp.where(joins, excess / jnp.where(joins, slack_closes, 1), -jnp.inf)
    side = jnp.argmax(join, axis=0)
    join = jnp.minimum(jnp.max(join, axis=0), state.tau)

    leaves = -active.sign * w > tol.direction * jnp.max(jnp.abs(w))
    leave = jnp.where(leaves, u / jnp.where(leaves, w, 1), -jnp.inf)
    leave = jnp.where(leaves & (active.x == 0), state.tau, jnp.minimum(leave, state.tau))

    first = jnp.maximum(jnp.max(join), jnp.max(leave))
    near = first - tol.window * jnp.abs(first)
    j_join = jnp.min(jnp.where(join >= near, indices(d), d))
    j_leave = jnp.min(jnp.where(leave >= near, active.index, d))
    is_leave = j_leave < j_join
    j = jnp.minimum(jnp.minimum(j_join, j_leave), d - 1)
    slot = jnp.where(is_leave, jnp.argmax(active.index == j), jnp.argmin(active.sign != 0))
    return Event(
        tau=jnp.where(is_leave, leave[slot], join[j]),
        j=j,
        sign=jnp.where(side[j] == 0, 1, -1).astype(p.dtype),
        slot=slot.astype(jnp.int32),
        leaves=is_leave,
    )


def _violation(scaled: Scaled, active: ActiveSet, segment, tau, positive: bool) -> Array:
    """Largest violation of the optimality conditions at `τ`, in scaled units."""
    _, _, p, q = segment
    c, bound = p + tau * q, scaled.a + tau * scaled.b
    excess = c - bound[0]
    if not positive:
        excess = jnp.maximum(excess, -c - bound[1])
    a, b = scaled.bounds(active)
    is_active = active.sign != 0
    mismatch = jnp.where(is_active, jnp.abs(active.gather(c) * active.sign - a - tau * b), 0)
    largest = jnp.maximum(jnp.max(excess), jnp.max(mismatch))
    # A maximum may lose a NaN when it is vectorised.
    return jnp.where(jnp.all(jnp.isfinite(c)), largest, jnp.inf)


def _write(record: _Record, state: _State, slope: Array) -> _Record:
    size = record.tau.shape[0]
    row = jnp.where(state.row < 0, size, state.row)
    put = lambda buffer, value: buffer.at[row].set(value, mode="drop")
    # From 0, only rounding can move a coordinate against its sign (or it would have left).
    active = state.active
    slope = jnp.where((active.x == 0) & (slope * active.sign < 0), 0, slope)
    return _Record(
        tau=put(record.tau, state.tau),
        index=put(record.index, active.index),
        z=put(record.z, active.x / state.tau),
        slope=put(record.slope, slope),
    )


class _Tolerances(eqx.Module):
    unit: float
    pivot: float
    direction: float
    merge: float
    window: float
    floor: float
    violation: float
    position: float
    wrong: float
    defect: float

    def __init__(self, dtype):
        eps = float(jnp.finfo(dtype).eps)
        self.unit = eps
        self.pivot = (1e4 if eps < 1e-10 else 1e2) * eps
        self.direction = 64 * eps
        self.merge = eps**0.8
        self.window = eps**0.6
        self.floor = 100 * eps
        self.violation = eps**0.5
        self.position = max(1e-6, self.violation)
        self.wrong = eps**0.375
        self.defect = eps**0.5


@eqx.filter_jit
def _homotopy(
    problem: AbstractProblem, weights: Array, positive: bool, max_knots: int
) -> PiecewiseLinearPath:
    k, tol = problem.rank_bound, _Tolerances(weights.dtype)
    scaled = Scaled(problem, weights)
    size = jnp.max(jnp.abs(scaled.r))
    b_min = jnp.where(scaled.scale > 0, jnp.min(scaled.b, axis=0), 1)
    floor = tol.floor * jnp.max(jnp.abs(scaled.r) / b_min)

    def advance(state: _State, segment) -> _State:
        u, w, _, _ = segment
        event = _next_event(scaled, state, segment, positive, tol)
        ends = ~(event.tau > floor)
        moves = event.tau < state.tau * (1 - tol.merge)
        # The segment that ends gives the values at the knot: they keep the residual at
        # rounding, where those of the next segment carry its condition number.
        x = u - event.tau * w
        rounding = tol.merge * jnp.max(jnp.abs(x))
        x = jnp.where(x * state.active.sign > rounding, x, 0)
        arrived = eqx.tree_at(
            lambda active: active.x, state.active, jnp.where(moves, x, state.active.x)
        )
        column = scaled.column(problem, event.j)
        active, possible = pivot(arrived, event, column, tol.pivot)
        active = eqx.tree_at(
            lambda active: active.x, active, jnp.where(possible, active.x, state.active.x)
        )
        tau = jnp.where(possible, jnp.minimum(event.tau, state.tau), state.tau)
        moved = possible & moves

        # Both ends of the segment just left certify it: everything is affine in τ.
        stop = jnp.where(ends, floor, tau)
        start = jnp.where(jnp.isinf(state.tau), stop, state.tau)
        at = lambda tau: _violation(scaled, state.active, segment, tau, positive)
        violation = jnp.maximum(at(start), at(stop))
        # So does the end of the segment as it is stored, by its start and its slope: where the
        # active columns are almost dependent, rounding may carry it beyond 0. Positions are
        # relative, and worse conditioned than residuals by nature: they have their own bound.
        ratio = jnp.where(jnp.isinf(state.tau), 0, stop / start)
        x = ratio * state.active.x + (1 - ratio) * u
        largest = jnp.maximum(jnp.max(jnp.abs(x)), size)
        beyond = jnp.max(-state.active.sign * x) / largest
        violation = jnp.maximum(violation, beyond * size * tol.violation / tol.position)
        # What rounding in M itself may hide.
        violation = violation + tol.unit * jnp.sum(jnp.abs(x))
        violation = jnp.where(moved | ends, violation, 0)

        stalled = jnp.where(moved, 0, jnp.where(possible, state.stalled + 1, state.stalled))
        is_full = moved & ~ends & (state.row == max_knots - 1)
        has_cycled = ~ends & (stalled > 16 * k + 64)
        result = RESULTS.where(is_full, RESULTS.max_knots_reached, state.result)
        result = RESULTS.where(has_cycled, RESULTS.path_cycled, result)
        # Never go on from a segment that is wrong, rather than inaccurate.
        is_wrong = ~(violation <= tol.wrong * size)
        is_done = ends | is_full | has_cycled | is_wrong
        return _State(
            active=active,
            tau=tau,
            row=jnp.where(moved & ~is_done, state.row + 1, state.row),
            steps=state.steps + 1,
            stalled=stalled,
            violation=jnp.maximum(state.violation, violation),
            result=result,
            is_done=is_done,
            is_factorised=jnp.asarray(False),
            is_stale=jnp.asarray(False),
        )

    def step(carry: tuple[_State, _Record]) -> tuple[_State, _Record]:
        state, record = carry
        segment, defect = _solve_segment(scaled, state.active)
        new = advance(state, segment)
        # A step with a stale inverse is not taken, but repeated after a factorisation.
        is_stale = ~state.is_factorised & ~(defect < tol.defect)
        state_or_new = jax.tree.map(lambda old, new: jnp.where(is_stale, old, new), state, new)
        state_or_new = eqx.tree_at(lambda s: s.is_stale, state_or_new, is_stale)
        return state_or_new, _write(record, state, segment[0])

    def until_stale(carry: tuple[_State, _Record]) -> tuple[_State, _Record]:
        state, record = carry
        state = eqx.tree_at(
            lambda s: (s.active, s.is_factorised, s.is_stale),
            state,
            (state.active.factorise(), jnp.asarray(True), jnp.asarray(False)),
        )
        return lax.while_loop(lambda c: ~(c[0].is_done | c[0].is_stale), step, (state, record))

    valid = is_valid(problem) & jnp.all(weights > 0) & jnp.all(jnp.isfinite(weights))
    result = RESULTS.where(valid, RESULTS.successful, RESULTS.invalid_input)
    zero = jnp.zeros((), size.dtype)
    state = _State(
        active=ActiveSet.empty(k, scaled.scale),
        tau=zero + jnp.inf,
        row=jnp.asarray(-1, jnp.int32),
        steps=jnp.asarray(0, jnp.int32),
        stalled=jnp.asarray(0, jnp.int32),
        violation=zero,
        result=result,
        is_done=~valid | ~(size > 0),
        is_factorised=jnp.asarray(True),
        is_stale=jnp.asarray(False),
    )
    record = _Record(
        tau=jnp.full(max_knots, jnp.inf, size.dtype),
        index=jnp.full((max_knots, k), scaled.r.shape[0], jnp.int32),
        z=jnp.zeros((max_knots, k), size.dtype),
        slope=jnp.zeros((max_knots, k), size.dtype),
    )
    # Rank-one updates until the inverse has drifted, which ill-conditioned problems do; then
    # a factorisation. Under `vmap` the outer loop runs as often as the worst lane needs.
    state, record = lax.while_loop(lambda c: ~c[0].is_done, until_stale, (state, record))
    inaccurate = ~(state.violation <= tol.violation * size)
    inaccurate = inaccurate & (state.result == RESULTS.successful)
    result = RESULTS.where(inaccurate, RESULTS.path_inaccurate, state.result)
    # Where the path was not followed to its end, nothing is known beyond its last knot.
    is_cut = (result == RESULTS.max_knots_reached) | (result == RESULTS.path_cycled)
    is_cut = is_cut | ~(state.violation <= tol.wrong * size)
    return _assemble(state, record, result, is_cut, scaled, weights, positive)


def _assemble(
    state: _State, record: _Record, result, is_cut, scaled: Scaled, weights, positive
) -> PiecewiseLinearPath:
    """From knots in compact storage to a path in the user's units."""
    K, d = record.tau.shape[0], scaled.r.shape[0]
    num_knots = state.row + 1
    rows = jnp.clip(indices(K), 0, jnp.maximum(state.row, 0))

    def spread(v):
        full = jnp.zeros((K, d), v.dtype)
        full = full.at[indices(K)[:, None], record.index].set(v, mode="drop")
        return jnp.where(num_knots > 0, full[rows] * scaled.scale[None, :], 0)

    # No coordinate left on the last ray: a slope against its sign there is rounding.
    is_last = (indices(K) == state.row)[:, None]
    slopes = spread(jnp.where(is_last & (record.slope * record.z < 0), 0, record.slope))
    is_unknown = is_cut & (indices(K) >= state.row)
    is_invalid = result == RESULTS.invalid_input
    nan_if = lambda bad, v: jnp.where(bad, jnp.nan, v)
    return PiecewiseLinearPath(
        knots=nan_if(is_invalid, jnp.where(num_knots > 0, 1 / record.tau[rows], 0)),
        values=nan_if(is_invalid, spread(record.z)),
        slopes=nan_if((is_unknown | is_invalid)[:, None], slopes),
        num_knots=num_knots,
        weights=weights,
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

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem.
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω > 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive
        (first row) and negative entries. Default 1.
    - `max_knots`: static size of the buffers, default `4 min(n, d) + 16`. (Random problems
        have fewer than `3.7 min(n, d)` knots; the worst case has `(3^d + 1)/2`.)
    - `throw`: raise if the path is cut short or inaccurate. With `throw=False` see `.result`.

    **Returns:** a `PiecewiseLinearPath` in `p = μ`. A path that ran out of knots is NaN beyond
    its last one.

    **Raises:** `ValueError` for bad `weights` or `max_knots`.

    !!! cite "Reference"

        Osborne, Presnell, Turlach (2000); Efron et al., *Least Angle Regression* (2004); in
        this parametrisation [B25] §4.5.
    """
    omega = as_weights(weights, problem.r.shape[0], problem.r.dtype)
    if max_knots is None:
        max_knots = 4 * problem.rank_bound + 16
    if max_knots < 1:
        raise ValueError(
            f"`max_knots` must be at least 1, got {max_knots}. Leave it out for the default."
        )
    path = _homotopy(problem, omega, positive, max_knots)
    return raise_on_failure(path, path.result, throw)
