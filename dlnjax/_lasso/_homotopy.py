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
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .._check import as_positive, check_finite
from .._linalg import matmul
from .._path import PiecewiseLinearPath
from .._problem import AbstractProblem, is_valid
from .._solution import RESULTS, raise_on_failure


TINY = 1e-30


def _indices(size: int) -> Int[Array, " size"]:
    return jnp.arange(size, dtype=jnp.int32)


class _Scaled(eqx.Module):
    """The problem in units where every column has norm 1; bounds `a + τb`, rows `+`, `−`."""

    scale: Float[Array, " d"]  # 1/‖Xⱼ‖, and 0 for a zero column
    r: Float[Array, " d"]
    a: Float[Array, "2 d"]
    b: Float[Array, "2 d"]

    def __init__(self, problem: AbstractProblem, weights: Array):
        diagonal = problem.gram_diagonal()
        is_zero = diagonal <= 0
        self.scale = jnp.where(
            is_zero, 0, 1 / jnp.sqrt(jnp.where(is_zero, 1, diagonal))
        )
        self.r = self.scale * problem.r
        self.a = jnp.broadcast_to(
            (problem.weight_decay * self.scale)[None, :], weights.shape
        )
        self.b = weights * self.scale[None, :]

    def column(self, problem: AbstractProblem, j: Array) -> Array:
        return self.scale[j] * self.scale * problem.gram_column(j)

    def bounds(self, active: "_ActiveSet") -> tuple[Array, Array]:
        """`a` and `b` of the active coordinates, for their signs."""
        side = (active.sign < 0).astype(jnp.int32)
        at = lambda v: v.at[side, active.index].get(mode="fill", fill_value=0)
        return at(self.a), at(self.b)


class _ActiveSet(eqx.Module):
    """Active coordinates in `k` slots. Empty slots have index `d`, sign 0 and zero rows."""

    index: Int[Array, " k"]
    sign: Float[Array, " k"]
    x: Float[Array, " k"]  # at the current τ; exactly 0 where it has just joined
    rows: Float[Array, "k d"]  # rows A of M
    block: Float[Array, "k k"]  # M_AA
    inverse: Float[Array, "k k"]  # its inverse, by rank-one updates
    pivots: Float[
        Array, " d"
    ]  # squared norm of each column, projected off the active ones

    @classmethod
    def empty(cls, k: int, scale: Array) -> "_ActiveSet":
        d, dtype = scale.shape[0], scale.dtype
        return cls(
            index=jnp.full(k, d, jnp.int32),
            sign=jnp.zeros(k, dtype),
            x=jnp.zeros(k, dtype),
            rows=jnp.zeros((k, d), dtype),
            block=jnp.zeros((k, k), dtype),
            inverse=jnp.zeros((k, k), dtype),
            pivots=(scale > 0).astype(dtype),
        )

    def gather(self, v: Float[Array, " d"]) -> Float[Array, " k"]:
        return v.at[self.index].get(mode="fill", fill_value=0)

    def solve(self, rhs: Float[Array, "k m"]) -> tuple[Float[Array, "k m"], Array]:
        """`M_AA⁻¹ rhs`, refined twice, and the relative residual before refinement."""
        x = matmul(self.inverse, rhs)
        residual = rhs - matmul(self.block, x)
        defect = jnp.max(jnp.abs(residual)) / jnp.maximum(jnp.max(jnp.abs(rhs)), TINY)
        x = x + matmul(self.inverse, residual)
        return x + matmul(self.inverse, rhs - matmul(self.block, x)), defect

    def factorise(self) -> "_ActiveSet":
        """`inverse` and `pivots` from scratch, `O(k²(k + d))`."""
        is_active = self.sign != 0
        k = is_active.shape[0]
        padded = self.block + jnp.diag((~is_active).astype(self.block.dtype))
        factor = lax.linalg.cholesky(padded)
        half = lax.linalg.triangular_solve(
            factor, jnp.eye(k, dtype=factor.dtype), left_side=True, lower=True
        )
        inverse = matmul(half.T, half)
        inverse = jnp.where(is_active[:, None] & is_active[None, :], inverse, 0)
        projected = 1 - jnp.sum(matmul(half, self.rows) ** 2, axis=0)
        # Not positive definite to rounding: keep what the updates gave.
        good = jnp.all(jnp.isfinite(factor))
        pivots = jnp.where(self.pivots == 0, 0, projected)
        return eqx.tree_at(
            lambda active: (active.inverse, active.pivots),
            self,
            (
                jnp.where(good, inverse, self.inverse),
                jnp.where(good, pivots, self.pivots),
            ),
        )


class _Event(eqx.Module):
    tau: Float[Array, ""]
    j: Int[Array, ""]
    sign: Float[Array, ""]
    slot: Int[Array, ""]
    leaves: Bool[Array, ""]


class _Record(eqx.Module):
    """What is known at each knot: `τ`, the active coordinates, `z` and `dz/dμ` on them."""

    tau: Float[Array, " K"]
    index: Int[Array, "K k"]
    z: Float[Array, "K k"]
    slope: Float[Array, "K k"]


class _State(eqx.Module):
    active: _ActiveSet
    tau: Float[Array, ""]
    row: Int[Array, ""]  # of the current knot; −1 before the first
    steps: Int[Array, ""]
    stalled: Int[Array, ""]  # steps since τ last moved
    violation: Float[Array, ""]
    result: RESULTS
    is_done: Bool[Array, ""]
    is_factorised: Bool[Array, ""]  # the inverse is fresh
    is_stale: Bool[Array, ""]  # the inverse has drifted too far for refinement
    record: _Record


def _solve_segment(scaled: _Scaled, active: _ActiveSet) -> tuple[tuple, Array]:
    """`u, w` of shape `(k,)` and `p, q` of shape `(d,)` on the current active set, and the
    defect of the inverse that gave them."""
    a, b = scaled.bounds(active)
    rhs = jnp.stack(
        [active.gather(scaled.r) - a * active.sign, b * active.sign], axis=1
    )
    solution, defect = active.solve(rhs)
    product = matmul(solution.T, active.rows)
    u, w = solution[:, 0], solution[:, 1]
    return (u, w, scaled.r - product[0], product[1]), defect


def _next_event(scaled, state: _State, segment, positive: bool, tol) -> _Event:
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
    leave = jnp.where(
        leaves & (active.x == 0), state.tau, jnp.minimum(leave, state.tau)
    )

    first = jnp.maximum(jnp.max(join), jnp.max(leave))
    near = first - tol.window * jnp.abs(first)
    j_join = jnp.min(jnp.where(join >= near, _indices(d), d))
    j_leave = jnp.min(jnp.where(leave >= near, active.index, d))
    is_leave = j_leave < j_join
    j = jnp.minimum(jnp.minimum(j_join, j_leave), d - 1)
    slot = jnp.where(
        is_leave, jnp.argmax(active.index == j), jnp.argmin(active.sign != 0)
    )
    return _Event(
        tau=jnp.where(is_leave, leave[slot], join[j]),
        j=j,
        sign=jnp.where(side[j] == 0, 1, -1).astype(p.dtype),
        slot=slot.astype(jnp.int32),
        leaves=is_leave,
    )


def _pivot(active: _ActiveSet, event: _Event, column: Array, min_pivot) -> tuple:
    """The active set after `event`, by one rank-one update, and whether it was possible.

    Inverse and projected norms change by `±v vᵀ`: for a join `v` is the new column's
    expansion in the active ones, for a drop it is a column of the inverse.
    """
    k, d = active.rows.shape
    here = _indices(k) == event.slot
    joined = active.gather(column)
    rhs = jnp.where(event.leaves, here.astype(column.dtype), joined)
    expansion = active.solve(rhs[:, None])[0][:, 0]
    pivot = column[event.j] - jnp.sum(joined * expansion)
    is_dependent = ~event.leaves & ~(pivot > min_pivot)
    possible = ~is_dependent

    v = jnp.where(here & ~event.leaves, -1, expansion)
    size = jnp.where(event.leaves, -expansion[event.slot], pivot)
    rows = jnp.where(here[:, None] & ~event.leaves, column[None, :], active.rows)
    shift = jnp.where(possible, 1 / jnp.where(possible, size, 1), 0)
    pivots = active.pivots - shift * matmul(v, rows) ** 2
    # The drift of the update cannot hide a dependence that was just measured.
    pivots = jnp.where((_indices(d) == event.j) & is_dependent, 0, pivots)

    touched = here[:, None] | here[None, :]
    cross = jnp.where(event.leaves, 0, jnp.where(here, column[event.j], joined))
    block = jnp.where(here[:, None], cross[None, :], active.block)
    block = jnp.where(here[None, :], cross[:, None], block)
    inverse = active.inverse + shift * v[:, None] * v[None, :]
    inverse = jnp.where(touched & event.leaves, 0, inverse)
    here = here & possible
    return _ActiveSet(
        index=jnp.where(here, jnp.where(event.leaves, d, event.j), active.index),
        sign=jnp.where(here, jnp.where(event.leaves, 0, event.sign), active.sign),
        x=jnp.where(here, 0, active.x),
        rows=jnp.where(here[:, None], jnp.where(event.leaves, 0, rows), active.rows),
        block=jnp.where(possible, block, active.block),
        inverse=inverse,
        pivots=pivots,
    ), possible


def _violation(
    scaled: _Scaled, active: _ActiveSet, segment, tau, positive: bool
) -> Array:
    """Largest violation of the optimality conditions at `τ`, in scaled units."""
    _, _, p, q = segment
    c, bound = p + tau * q, scaled.a + tau * scaled.b
    excess = c - bound[0]
    if not positive:
        excess = jnp.maximum(excess, -c - bound[1])
    a, b = scaled.bounds(active)
    is_active = active.sign != 0
    mismatch = jnp.where(
        is_active, jnp.abs(active.gather(c) * active.sign - a - tau * b), 0
    )
    return jnp.maximum(jnp.max(excess), jnp.max(mismatch))


def _without_record(state: _State) -> _State:
    return eqx.tree_at(lambda s: s.record, state, None)


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
    window: float
    floor: float
    violation: float
    wrong: float
    defect: float

    def __init__(self, dtype):
        eps = float(jnp.finfo(dtype).eps)
        self.unit = eps
        self.pivot = (1e4 if eps < 1e-10 else 1e2) * eps
        self.direction = 64 * eps
        self.window = eps**0.6
        self.floor = 100 * eps
        self.violation = eps**0.6
        self.wrong = eps**0.375
        self.defect = eps**0.5


@eqx.filter_jit
def _homotopy(
    problem: AbstractProblem, weights: Array, positive: bool, max_knots: int
) -> PiecewiseLinearPath:
    k, tol = problem.rank_bound, _Tolerances(weights.dtype)
    scaled = _Scaled(problem, weights)
    size = jnp.max(jnp.abs(scaled.r))
    b_min = jnp.where(scaled.scale > 0, jnp.min(scaled.b, axis=0), 1)
    floor = tol.floor * jnp.max(jnp.abs(scaled.r) / b_min)

    def body(state: _State) -> _State:
        segment, defect = _solve_segment(scaled, state.active)
        u, w, _, _ = segment
        record = _write(state.record, state, u)
        event = _next_event(scaled, state, segment, positive, tol)
        ends = ~(event.tau > floor)
        column = scaled.column(problem, event.j)
        moves = event.tau < state.tau * (1 - tol.direction)
        # The segment that ends gives the values at the knot: they keep the residual at
        # rounding, where those of the next segment carry its condition number.
        x = u - event.tau * w
        x = jnp.where(x * state.active.sign > 0, x, 0)
        x = jnp.where(moves, x, state.active.x)
        arrived = eqx.tree_at(lambda active: active.x, state.active, x)
        active, possible = _pivot(arrived, event, column, tol.pivot)
        active = eqx.tree_at(
            lambda active: active.x,
            active,
            jnp.where(possible, active.x, state.active.x),
        )
        tau = jnp.where(possible, jnp.minimum(event.tau, state.tau), state.tau)
        moved = possible & moves

        # Both ends of the segment just left certify it: everything is affine in τ.
        stop = jnp.where(ends, floor, tau)
        start = jnp.where(jnp.isinf(state.tau), stop, state.tau)
        at = lambda tau: _violation(scaled, state.active, segment, tau, positive)
        x = u - stop * w
        violation = jnp.maximum(at(start), at(stop))
        violation = jnp.maximum(violation, jnp.max(-state.active.sign * x))
        # What rounding in M itself may hide.
        violation = violation + tol.unit * jnp.sum(jnp.abs(x))
        violation = jnp.where(moved | ends, violation, 0)

        stalled = jnp.where(
            moved, 0, jnp.where(possible, state.stalled + 1, state.stalled)
        )
        is_full = moved & ~ends & (state.row == max_knots - 1)
        has_cycled = ~ends & (stalled > 16 * k + 64)
        result = RESULTS.where(is_full, RESULTS.max_knots_reached, state.result)
        result = RESULTS.where(has_cycled, RESULTS.path_cycled, result)
        # Never go on from a segment that is wrong, rather than inaccurate.
        is_wrong = ~(violation <= tol.wrong * size)
        is_done = ends | is_full | has_cycled | is_wrong
        new = _State(
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
            record=None,
        )
        # A step taken with a stale inverse is not taken.
        is_stale = ~state.is_factorised & ~(defect < tol.defect)
        new = jax.tree.map(
            lambda old, new: jnp.where(is_stale, old, new), _without_record(state), new
        )
        return eqx.tree_at(
            lambda s: (s.is_stale, s.record),
            new,
            (is_stale, record),
            is_leaf=lambda x: x is None,
        )

    def restart(state: _State) -> _State:
        return eqx.tree_at(
            lambda s: (s.active, s.is_factorised, s.is_stale),
            state,
            (state.active.factorise(), jnp.asarray(True), jnp.asarray(False)),
        )

    valid = is_valid(problem) & jnp.all(weights > 0) & jnp.all(jnp.isfinite(weights))
    result = RESULTS.where(valid, RESULTS.successful, RESULTS.invalid_input)
    zero = jnp.zeros((), size.dtype)
    state = _State(
        active=_ActiveSet.empty(k, scaled.scale),
        tau=zero + jnp.inf,
        row=jnp.asarray(-1, jnp.int32),
        steps=jnp.asarray(0, jnp.int32),
        stalled=jnp.asarray(0, jnp.int32),
        violation=zero,
        result=result,
        is_done=~valid | ~(size > 0),
        is_factorised=jnp.asarray(True),
        is_stale=jnp.asarray(False),
        record=_Record(
            tau=jnp.full(max_knots, jnp.inf, size.dtype),
            index=jnp.full((max_knots, k), scaled.r.shape[0], jnp.int32),
            z=jnp.zeros((max_knots, k), size.dtype),
            slope=jnp.zeros((max_knots, k), size.dtype),
        ),
    )
    # Rank-one updates until the inverse has drifted, which ill-conditioned problems do; then
    # a factorisation. Under `vmap` the outer loop runs as often as the worst lane needs.
    state = lax.while_loop(
        lambda s: ~s.is_done,
        lambda s: lax.while_loop(lambda s: ~(s.is_done | s.is_stale), body, restart(s)),
        state,
    )
    inaccurate = ~(state.violation <= tol.violation * size)
    inaccurate = inaccurate & (state.result == RESULTS.successful)
    result = RESULTS.where(inaccurate, RESULTS.path_inaccurate, state.result)
    # Where the path was not followed to its end, nothing is known beyond its last knot.
    is_cut = (result == RESULTS.max_knots_reached) | (result == RESULTS.path_cycled)
    is_cut = is_cut | ~(state.violation <= tol.wrong * size)
    return _assemble(state, result, is_cut, scaled, weights, positive)


def _assemble(
    state: _State, result, is_cut, scaled: _Scaled, weights, positive
) -> PiecewiseLinearPath:
    """From knots in compact storage to a path in the user's units."""
    record, d = state.record, scaled.r.shape[0]
    K = record.tau.shape[0]
    num_knots = state.row + 1
    rows = jnp.clip(_indices(K), 0, jnp.maximum(state.row, 0))

    def spread(v):
        full = jnp.zeros((K, d), v.dtype)
        full = full.at[_indices(K)[:, None], record.index].set(v, mode="drop")
        return jnp.where(num_knots > 0, full[rows] * scaled.scale[None, :], 0)

    slopes = spread(record.slope)
    is_unknown = is_cut & (_indices(K) >= state.row)
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
    weights: Float[ArrayLike, "..."] | None = None,
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
    d, dtype = problem.r.shape[0], problem.r.dtype
    if weights is None:
        omega = jnp.ones((2, d), dtype)
    else:
        omega = as_positive(weights, "weights", dtype)
        check_finite(omega, "weights")
        if omega.shape not in ((d,), (2, d)):
            raise ValueError(
                f"`weights` must have shape ({d},) or (2, {d}), got {omega.shape}."
            )
        omega = jnp.broadcast_to(omega if omega.ndim == 2 else omega[None, :], (2, d))
    if max_knots is None:
        max_knots = 4 * problem.rank_bound + 16
    if max_knots < 1:
        raise ValueError(f"`max_knots` must be at least 1, got {max_knots}.")
    path = _homotopy(problem, omega, positive, max_knots)
    return raise_on_failure(path, path.result, throw)
