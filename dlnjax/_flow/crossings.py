"""`crossing_times`: when the coordinates of a flow at finite `ε` cross a level.

The flow is integrated as in `gradient_flow`, without stops. After each block of steps, the
coordinates that are on another side of their level at the end of a step than at its beginning are
looked for, and the times by bisection in the solver's dense output. With `hᵢ = |xᵢ|/levelᵢ` and

    roomᵢ = 1 − hᵢ  below the level,    roomᵢ = hᵢ − (1 − √eps)  above it,

the next time in a step is the first root of `minᵢ roomᵢ` over the coordinates that cross in it:

| event | condition | what changes |
|---|---|---|
| activation | `hᵢ` rises to 1 | the time is stored, `i` counts as above the level |
| deactivation | `hᵢ` falls to `1 − √eps` | the time is stored, `i` counts as below it |
| tie | several `roomᵢ ≤ √eps/2` at the root | all of them cross at this time |
| end | `s_max` is reached | the lane is done |
| full buffer | a crossing, but `max_crossings` are stored | `max_crossings_reached` |
| failure | the solver fails, `x` reaches its cap, the link is negative | its result |
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from .._batching import any_lane
from .._checks import (
    as_count,
    as_positive,
    check_finite,
    check_scalar,
    check_type,
)
from .._derivatives import differentiated_as, held, vanishing
from .._loops import fori_loop, scan, while_loop
from .._problem import AbstractProblem, default_events
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractNetwork
from .adjoint import at_time, trajectory
from .driver import Fixed, Moving, Record, State, block, counts, start
from .formulations import AbstractFormulation, DualForm
from .run import Run, as_run
from .terms.base import AbstractFlowTerm


class CrossingTimes(eqx.Module):
    """The times at which coordinates of a flow cross a level.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        times = dln.crossing_times(network, problem, 3.0, 0.5, log_eps=-100.0)
        times.num_crossings  # 2
        times.activations[:2]  # x₁ first, then x₂
        ```

    **Attributes:**

    - `s`: the times, increasing, shape `(K,)`: the first `num_crossings`, then the last one
        repeated (0 if there is none).
    - `activations`: which `|xᵢ|` rise to the level at each time; `deactivations`: which fall to
        it. Shape `(K, d)`.
    - `num_crossings`: the number of crossing times, a scalar.
    - `result`: how the solve ended. If it failed, the times are NaN; with `max_crossings_reached`
        the first `K` crossings are kept.
    - `stats`: as in `Flow`.
    """

    s: Float[Array, " K"]
    activations: Bool[Array, "K d"]
    deactivations: Bool[Array, "K d"]
    num_crossings: Int[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


def crossing_times(
    network: AbstractNetwork,
    problem: AbstractProblem,
    s_max: Real[ArrayLike, ""],
    level: Real[ArrayLike, "..."],
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    formulation: AbstractFormulation | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 65536,
    max_crossings: int | None = None,
    throw: bool = True,
) -> CrossingTimes:
    """The times in `(0, s_max]` at which `|xᵢ(s)|` crosses `level`, by root finding within steps.

    As `ε → 0` they tend to the jumps of `limit_flow`, at a distance of `O(1/log(1/ε))` at depth 2,
    for every level strictly between the values of `|xᵢ|` before and after the jump.

    A coordinate that crosses twice within one step of the solver is not detected. One that starts
    at the level counts as above it. Derivatives, in both modes and to second order, take another
    integration.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        times = dln.crossing_times(network, problem, 3.0, 0.5, log_eps=-1000.0)
        times.s[:2]  # (0.5005, 1.0014): the limit process jumps at 0.5 and 1
        ```

    **Arguments:**

    - `network`, `problem`: as in `gradient_flow`.
    - `s_max`: where to stop, `> 0` and finite, a scalar, in rescaled time.
    - `level`: positive, a scalar or of shape `(d,)`, in units of `x`. For example half of each
        coordinate's first plateau.
    - `max_crossings`: static size `K` of the buffers, default `4 min(n, d) + 16`.
    - the others: as in `gradient_flow`.

    **Returns:** a `CrossingTimes`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the solver
    fails or there are more than `max_crossings` crossings.

    !!! cite "Reference"

        [B23] Theorem 1, JMLR 24(171).
    """
    formulation = DualForm() if formulation is None else formulation
    run = as_run(network, problem, eps, log_eps, formulation, rtol, atol, max_steps)
    dtype, d = problem.r.dtype, problem.r.shape[0]
    s_max, level = as_positive(s_max, "s_max", dtype), as_positive(level, "level", dtype)
    check_scalar(s_max, "s_max")
    check_finite(s_max, "s_max")
    check_finite(level, "level")
    if level.shape not in ((), (d,)):
        raise ValueError(f"`level` must be a scalar or of shape ({d},), got shape {level.shape}.")
    if max_crossings is None:
        max_crossings = default_events(problem)  # crossings tend to the events of the limit
    max_crossings = as_count(max_crossings, "max_crossings")
    solver = formulation.default_solver(problem) if solver is None else solver
    check_type(solver, "solver", diffrax.AbstractSolver, "a solver, such as `diffrax.Kvaerno5()`")
    jumps = _solve(run, s_max, jnp.broadcast_to(level, d), solver, max_crossings)
    return raise_on_failure(jumps, jumps.result, throw, kept=("s",))


class _Found(eqx.Module):
    """The crossings found so far, in buffers of `K` rows."""

    row: Int[Array, ""]  # the next row
    is_full: Bool[Array, ""]
    is_above: Bool[Array, " d"]
    times: Float[Array, " K"]
    crossed: Bool[Array, "2 K d"]  # activations, deactivations
    result: RESULTS


@eqx.filter_jit
def _solve(
    run: Run, s_max: Array, level: Array, solver: diffrax.AbstractSolver, max_crossings: int
) -> CrossingTimes:
    term = run.term()
    ends = jnp.isfinite(s_max) & (s_max > 0)
    is_level = jnp.all(level > 0) & jnp.all(jnp.isfinite(level))
    verdict = first_failure(run.validity(term), (ends & is_level, RESULTS.invalid_grid))
    valid = verdict == RESULTS.successful
    run = run.harmless(valid)
    term, level = run.term(), jnp.where(valid, level, 1)
    # A lane with invalid input integrates over an empty interval.
    end = jnp.where(valid, s_max, 0)
    fixed = run.fixed(term, solver, end[None], valid)
    moving = Moving(term, term.initial())
    found, state = held(_search(moving, fixed, level, max_crossings))
    result = first_failure(verdict, found.result, term.cause(state.y, state.result))
    times = _times(moving, fixed, level, found)
    is_known = (result == RESULTS.successful) | (result == RESULTS.max_crossings_reached)
    last = times[jnp.clip(found.row - 1, 0)]
    times = jnp.where(jnp.arange(max_crossings, dtype=jnp.int32) < found.row, times, last)
    return CrossingTimes(
        s=jnp.where(is_known, times, jnp.nan),
        activations=found.crossed[0],
        deactivations=found.crossed[1],
        num_crossings=found.row,
        result=result,
        stats=counts(state),
    )


def _height(term: AbstractFlowTerm, level: Array, s: Array, y: PyTree[Array]) -> Array:
    return jnp.abs(term.read(s, y)[0]) / level


def _search(moving: Moving, fixed: Fixed, level: Array, max_crossings: int):
    """Integrate block by block, and find the crossings of each block. No derivatives."""
    moving, fixed, level = held((moving, fixed, level))
    term, d, dtype = moving.term, level.shape[0], level.dtype
    state = start(moving, fixed)
    found = _Found(
        row=jnp.zeros((), jnp.int32),
        is_full=jnp.asarray(False),
        is_above=_height(term, level, state.s, state.y) >= 1,
        times=jnp.zeros(max_crossings, dtype),
        crossed=jnp.zeros((2, max_crossings, d), bool),
        result=RESULTS.successful,
    )

    def step(carry):
        state, found = carry
        after, records, count = block(moving, fixed, state)
        found = _crossings(term, fixed, level, found, records, count, after)
        stops = found.is_full | (found.result != RESULTS.successful)
        return after._replace(is_done=after.is_done | stops), found

    carry = while_loop(lambda c: any_lane(~c[0].is_done), step, (state, found))
    return carry[1], carry[0]


def _crossings(
    term: AbstractFlowTerm,
    fixed: Fixed,
    level: Array,
    found: _Found,
    records: Record,
    count: Array,
    after: State,
) -> _Found:
    """`found`, with the crossings in the steps of a block, after which the state is `after`."""
    # A coordinate that has risen to 1 deactivates at 1 − width, so that one that stays at its level
    # does not cross it with each rounding. Heights have about the errors of the steps, 1e-7 by
    # default: far below that, noise would count as crossings; with 100 times more, deactivation
    # times would move by 1e-6/log(1/ε) and near ties would be merged.
    width = float(jnp.finfo(level.dtype).eps) ** 0.5
    # The state after an attempt is the one before the next; rows from `count` on are empty.
    states = jax.tree.map(
        lambda before, last: jnp.roll(before, -1, axis=0).at[count - 1].set(last),
        records.y,
        after.y,
    )
    x = jax.vmap(lambda s, y: term.read(s, y)[0])(records.s, states)
    heights, kept = jnp.abs(x) / level[None], records.is_kept[:, None]
    held_up = term.is_in_range(jnp.where(kept, x, 0))
    consistent = jnp.all(jax.vmap(term.is_consistent)(states) | ~records.is_kept)
    result = first_failure(
        found.result,
        (held_up, RESULTS.flow_not_finite),
        (consistent, RESULTS.invalid_network),
    )

    def side(is_above, row):
        height, is_kept = row
        then = jnp.where(is_above, height >= 1 - width, height >= 1)
        then = jnp.where(is_kept, then, is_above)
        return then, (then != is_above, is_above)

    _, (pending, above) = scan(side, found.is_above, (heights, kept))

    def next_crossing(carry):
        pending, found, s = carry
        attempt = jnp.argmax(jnp.any(pending, axis=1))
        here, is_above = pending[attempt], above[attempt]
        is_any = jnp.any(here) & ~found.is_full
        record = jax.tree.map(lambda v: v[attempt], records)
        inner = fixed.solver.interpolation_cls(t0=record.s, t1=record.s1, **record.dense)

        def room(s):
            """The distances of heights from their crossings, and 1 where none is pending."""
            h = _height(term, level, s, inner.evaluate(s))
            return jnp.where(here, jnp.where(is_above, h - (1 - width), 1 - h), 1)

        def halve(_, bracket):
            low, high = bracket
            middle = low + (high - low) / 2
            is_beyond = jnp.min(room(middle)) < 0
            return jnp.where(is_beyond, low, middle), jnp.where(is_beyond, middle, high)

        # As many halvings as `s` has binary digits, and two more.
        digits = jnp.finfo(level.dtype).nmant + 3
        bracket = (jnp.maximum(s, record.s), record.s1)
        _, root = fori_loop(0, digits, halve, bracket)
        left = room(root)
        crosses = here & is_any & (left <= jnp.maximum(jnp.min(left), 0) + width / 2)
        sides = jnp.stack([crosses & ~is_above, crosses & is_above])
        is_full = is_any & (found.row == found.times.shape[0])
        row = jnp.where(is_any & ~is_full, found.row, found.times.shape[0])
        found = _Found(
            row=found.row + (is_any & ~is_full).astype(jnp.int32),
            is_full=found.is_full | is_full,
            is_above=found.is_above ^ (crosses & ~is_full),
            times=found.times.at[row].set(root, mode="drop"),
            crossed=found.crossed.at[:, row].set(sides, mode="drop"),
            result=RESULTS.where(is_full, RESULTS.max_crossings_reached, found.result),
        )
        return pending.at[attempt].set(here & ~crosses & ~is_full), found, root

    found = dataclasses.replace(found, result=result)
    goes_on = lambda c: any_lane(jnp.any(c[0]) & ~c[1].is_full)
    _, found, _ = while_loop(goes_on, next_crossing, (pending, found, records.s[0]))
    return found


def _roots(moving: Moving, fixed: Fixed, level: Array, found: _Found) -> Array:
    """The times as functions of the data: the flow is integrated again to the times, and two Newton
    steps of length 0 make derivatives right to second order."""
    K = found.times.shape[0]
    rows = jnp.arange(K, dtype=jnp.int32)
    s = held(jnp.where(rows < found.row, found.times, jnp.max(found.times)))
    states, _ = trajectory(moving, dataclasses.replace(fixed, grid=s))
    crossed = found.crossed[0] | found.crossed[1]

    def root(s, state, crosses):
        index = jnp.argmax(crosses)
        away = lambda s: _height(moving.term, level, s, at_time(s, state, moving.term))[index]
        for _ in range(2):
            height, slope = jax.jvp(away, (s,), (jnp.ones_like(s),))
            is_moving = jnp.any(crosses) & (slope != 0)
            step = vanishing(height) / jnp.where(is_moving, slope, 1)
            s = s - jnp.where(is_moving, step, 0)
        return s

    return jax.vmap(root)(s, states, crossed)


@differentiated_as(_roots)
def _times(moving: Moving, fixed: Fixed, level: Array, found: _Found) -> Array:
    return found.times
