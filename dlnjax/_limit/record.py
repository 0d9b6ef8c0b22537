"""What the limit process leaves behind, a row a jump, and the certified path that is made of it."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._active_set.derivatives import Segments
from .._active_set.minimizer import select
from .._active_set.state import Scaled, indices, packed, scatter
from .._active_set.tolerances import Tolerances
from .._batching import any_lane
from .._loops import cond
from .._path import LimitFlow
from .._problem import AbstractProblem
from .._results import RESULTS
from ..networks.prior import Prior


class Record(eqx.Module):
    """One row a jump: its time, and the active set and `x` on the plateau that follows."""

    s: Float[Array, " K"]
    index: Int[Array, "K k"]
    sign: Int[Array, "K k"]
    slope: Float[Array, "K k"]
    opening: Int[Array, " K"]  # the coordinate whose `w` reaches 0 first
    opening_sign: Int[Array, " K"]  # 0 if the row was opened at `s_max`


def signs_of(scaled: Scaled) -> Array:
    """`(1, −1)` as a column, or `(1)` if only `x ≥ 0` is asked."""
    return jnp.array([1.0, -1.0], scaled.r.dtype)[: scaled.b.shape[0], None]


def assemble(
    problem: AbstractProblem,
    record: Record,
    row: Array,
    steps: Array,
    result: RESULTS,
    is_cut: Array,
    is_invalid: Array,
    scaled: Scaled,
    initial_dual: Array,
    prior: Prior | None,
    positive: bool,
    chooses: bool,
) -> tuple[LimitFlow, Segments]:
    """The path in the user's units, from the record of active sets, of which `row` is the last:
    selected, and certified."""
    tol = Tolerances(initial_dual.dtype)
    K, d = record.s.shape[0], initial_dual.shape[1]
    num_knots = row + 1
    rows = jnp.clip(indices(K), 0, jnp.maximum(row, 0))
    is_lost = (result == RESULTS.max_knots_reached) | (result == RESULTS.path_cycled)
    ends_early = is_lost | is_cut

    knots = record.s[rows]
    signs, size = signs_of(scaled), jnp.max(jnp.abs(scaled.r))
    scale = scaled.scale[None, :]
    s = jnp.append(knots, 1)[:, None, None]
    is_ray = (indices(K + 1) == K)[:, None, None]

    def follow(slopes: Array) -> tuple[Array, Array]:
        """`z` at the knots, shape `(K, d)`, and `w/s` there, shape `(K + 1, signs, d)`, whose last
        row is `dw/ds` on the last ray."""
        values = jnp.cumsum(slopes[:-1] * jnp.diff(knots)[:, None], axis=0)
        values = jnp.concatenate([jnp.zeros((1, d), initial_dual.dtype), values])
        points = jnp.concatenate([values, slopes[-1:]])
        image = scale * problem.matvec(scale * points)
        w = jnp.where(is_ray, 0, scaled.b[None]) - s * scaled.excess[None]
        w = w + signs[None] * image[:, None, :]
        w = jnp.where((s > 0) & ~(is_ray & ends_early), w / jnp.where(s > 0, s, 1), 0)
        return values, w

    # An entry that comes to rest at exactly 0, as integer data have them, may have the wrong sign
    # by rounding. It would count as a violation of any size: w of the other sign is not 0.
    slope = jnp.where(record.slope * record.sign.astype(initial_dual.dtype) < 0, 0, record.slope)
    slopes = scatter(record.index, slope, d)[rows]
    values, w = follow(slopes)
    unit = jnp.maximum(size, scaled.b[None] / jnp.where(s > 0, s, 1)[:-1])
    distance = jnp.where(s[:-1] > 0, jnp.abs(w[:-1]) / jnp.where(unit > 0, unit, 1), scaled.b[None])
    # After the last knot of a process that ended early, no plateau was computed.
    is_known = indices(K) <= row - ends_early.astype(jnp.int32)
    events = record.index, record.sign, knots, slopes, distance, is_known
    chosen, selection, is_undetermined = select(
        problem, scaled, prior, initial_dual, *events, chooses=chooses
    )
    slopes = chosen[rows]
    is_new = any_lane(jnp.any(selection.free))
    values, w = cond(is_new, follow, lambda _: (values, w), slopes)

    # w ≥ 0 everywhere, and w = 0 at both ends of each segment on which its coordinate moves: w is
    # linear in between. At the end of the last ray, s = ∞, w/s is the speed of w.
    moves = signs[None] * slopes[:, None, :] > 0
    violation = jnp.maximum(
        jnp.max(jnp.where(moves, jnp.abs(w[:-1]), -w[:-1]), axis=(1, 2)),
        jnp.max(jnp.where(moves, jnp.abs(w[1:]), -w[1:]), axis=(1, 2)),
    )
    # The rounding of the entries of M, which no formula with M can show.
    violation = violation + tol.unit * jnp.sum(jnp.abs(slopes), axis=1)
    # XLA's maximum may drop a NaN when it is vectorised; a sum does not.
    violation = jnp.where(jnp.isfinite(jnp.sum(w, axis=(1, 2))[1:]), violation, jnp.inf)
    # Without a response the unit is what the start explains.
    size = jnp.where(size > 0, size, jnp.max(jnp.sum(jnp.abs(slopes), axis=1)))
    violation = jnp.maximum(violation, 0) / jnp.where(size > 0, size, 1)
    worst = jnp.max(violation)
    inaccurate = ~(worst <= tol.violation) & (result == RESULTS.successful)
    result = RESULTS.where(inaccurate, RESULTS.limit_inaccurate, result)
    is_undetermined = is_undetermined & (result == RESULTS.successful)
    result = RESULTS.where(is_undetermined, RESULTS.limit_undetermined, result)

    is_last = indices(K) >= row
    is_wrong = jnp.cumsum(~(violation <= tol.wrong)) > 0
    is_unknown = is_invalid | is_wrong | (is_last & ends_early)
    nan_if = lambda bad, v: jnp.where(bad, jnp.nan, v)
    limit = LimitFlow(
        knots=nan_if(is_invalid, knots),
        values=nan_if(is_invalid, values * scale),
        slopes=nan_if(is_unknown[:, None], slopes * scale),
        num_knots=num_knots,
        weights=jnp.broadcast_to(initial_dual, (2, d)),
        norms=scaled.norms,
        result=result,
        stats={"num_pivots": steps, "max_violation": worst},
        positive=positive,
        num_jumps=num_knots - is_cut.astype(jnp.int32),
        face=jnp.zeros(d, jnp.int32),
    )
    k = min(problem.rank_bound + 1, d)
    index, sign = packed(record.index, record.sign, k)
    return limit, Segments(index, sign, record.opening, record.opening_sign, selection)
