"""`crossing_times`: when the coordinates of a flow at finite `ε` cross a level.

The flow is integrated from crossing to crossing. Each segment ends at a root of the function
`minᵢ roomᵢ`, found by bisection in diffrax's dense output, where for `hᵢ = |xᵢ|/levelᵢ`

    roomᵢ = 1 − hᵢ  below the level,    roomᵢ = hᵢ − (1 − √eps)  above it.

How a segment ends:

| event | condition | what changes |
|---|---|---|
| activation | `hᵢ` rises to 1 | the time is stored, `i` counts as above the level |
| deactivation | `hᵢ` falls to `1 − √eps` | the time is stored, `i` counts as below it |
| tie | several `roomᵢ ≤ √eps/2` at the root | all of them cross at this time |
| end | `s_max` is reached without a root | the lane is done |
| full buffer | a root, but `max_crossings` are stored | `max_crossings_reached` |
| lost crossing | no root, but some `roomᵢ < −√eps` at `s_max` | `jumps_missed` |
| failure | the solver fails, `x` reaches its cap, the link is negative | its result |
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Real

from .._batching import any_lane
from .._checks import (
    as_count,
    as_positive,
    check_finite,
    check_scalar,
    check_type,
)
from .._loops import while_loop
from .._problem import AbstractProblem, default_events
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractNetwork
from .setup import AbstractFormulation, DualForm, Run, as_run


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
    - `stats`: `num_steps`, the number of steps of the solver.
    """

    s: Float[Array, " K"]
    activations: Bool[Array, "K d"]
    deactivations: Bool[Array, "K d"]
    num_crossings: Int[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


class _State(eqx.Module):
    """The carry of the loop over segments."""

    s: Float[Array, ""]
    y: PyTree[Array]
    is_above: Bool[Array, " d"]
    row: Int[Array, ""]  # the next row of the buffers
    steps: Int[Array, ""]
    result: RESULTS
    is_done: Bool[Array, ""]
    times: Float[Array, " K"]
    crossed: Bool[Array, "2 K d"]  # activations, deactivations


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
    at the level counts as above it. Differentiable in forward mode only.

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
    - the others: as in `gradient_flow`; `max_steps` counts steps between two crossings.

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
    solver = formulation.default_solver() if solver is None else solver
    check_type(solver, "solver", diffrax.AbstractSolver, "a solver, such as `diffrax.Kvaerno5()`")
    jumps = _solve(run, s_max, jnp.broadcast_to(level, d), solver, max_crossings)
    return raise_on_failure(jumps, jumps.result, throw, kept=("s",))


@eqx.filter_jit
def _solve(
    run: Run, s_max: Array, level: Array, solver: diffrax.AbstractSolver, max_crossings: int
) -> CrossingTimes:
    term = run.term()
    start = term.initial()
    dtype, d = level.dtype, level.shape[0]
    unit = float(jnp.finfo(dtype).eps)
    # Hysteresis: a coordinate that has risen to 1 deactivates at 1 − width, so that after each root
    # its `room` is `width` and not 0, and the next segment can detect a change of sign. The root in
    # s is known to 8 units of rounding, that in h to about 8 eps s d(log x)/ds, with d(log x)/ds of
    # the size of log(1/ε)‖r‖: √eps (1.5e-8) is above that up to s‖r‖ log(1/ε) = 1e7. With 100 times
    # less, crossings could be lost from 1e5 on, which s = 100 at log ε = −1000 reaches. With 100
    # times more, deactivation times would move by 1e-6/log(1/ε) and near ties would be merged.
    width = unit**0.5
    ends = jnp.isfinite(s_max) & (s_max > 0)
    is_level = jnp.all(level > 0) & jnp.all(jnp.isfinite(level))
    verdict = first_failure(run.validity(term), (ends & is_level, RESULTS.invalid_grid))
    valid = verdict == RESULTS.successful
    s_max = jnp.where(valid, s_max, 1)
    first_step = jnp.minimum(run.first_step(term, valid), s_max)

    def height(s, y):
        return jnp.abs(term.read(s, y)[0]) / level

    def room(s, y, is_above):
        """The distance of each `hᵢ` from its next crossing; negative beyond it."""
        h = height(s, y)
        return jnp.where(is_above, h - (1 - width), 1 - h)

    # Bisection stops when the bracket is below atol + rtol |s| and the value is below atol. Only
    # the bracket shall decide, as the size of x is arbitrary. So the value is scaled to at most
    # atol/2, which leaves its sign; rtol is 8 units of rounding, since a bracket cannot get below
    # one or two.
    small = unit
    root_finder = optx.Bisection(rtol=8 * unit, atol=small, flip=True)

    def condition(t, y, args, **_):
        value = 0.5 * small * jnp.clip(jnp.min(room(t, y, args)), -1, 1)
        # diffrax combines it with a Python float in `lax.cond`, which needs equal dtypes.
        return value.astype(jnp.result_type(float))

    def step(state: _State) -> _State:
        solution = diffrax.diffeqsolve(
            term,
            solver,
            t0=state.s,
            t1=jnp.where(state.is_done, state.s, s_max),
            # x changes fast after a crossing: start with a thousandth of the first step. It must
            # exceed the rounding of s, by 64 units, or s + dt0 = s late in a float32 flow. The
            # controller corrects either by factors of up to 10 a step.
            dt0=jnp.where(
                state.row > 0, jnp.maximum(1e-3 * first_step, 64 * unit * state.s), first_step
            ),
            y0=state.y,
            args=state.is_above,
            stepsize_controller=run.controller(),
            event=diffrax.Event(condition, root_finder, direction=False),
            adjoint=diffrax.ForwardMode(),
            max_steps=run.max_steps,
            throw=False,
        )
        assert solution.ts is not None and solution.stats is not None
        is_event = (solution.result == diffrax.RESULTS.event_occurred) & ~state.is_done
        s, y = solution.ts[-1], jax.tree.map(lambda v: v[-1], solution.ys)
        left = room(s, y, state.is_above)
        crosses = is_event & (left <= jnp.maximum(jnp.min(left), 0) + width / 2)
        # diffrax detects a crossing as a change of sign of the minimum. A coordinate beyond its
        # level without an event makes the minimum negative, and hides all later events.
        is_lost = ~is_event & ~state.is_done & ~(jnp.min(left) > -width)
        failed = ~is_event & (solution.result != diffrax.RESULTS.successful)
        is_full = is_event & (state.row == max_crossings)
        result = RESULTS.where(is_lost, RESULTS.jumps_missed, state.result)
        result = RESULTS.where(failed, RESULTS.promote(solution.result), result)
        result = RESULTS.where(is_full, RESULTS.max_crossings_reached, result)
        is_held = term.is_in_range(term.read(s, y)[0])
        result = RESULTS.where(is_held, result, RESULTS.flow_not_finite)
        is_consistent = term.is_consistent(y)
        result = RESULTS.where(is_consistent, result, RESULTS.invalid_network)
        result = RESULTS.where(state.is_done, state.result, result)
        row = jnp.where(is_event, state.row, max_crossings)
        sides = jnp.stack([crosses & ~state.is_above, crosses & state.is_above])
        return _State(
            s=jnp.where(state.is_done, state.s, s),
            y=jax.tree.map(lambda new, old: jnp.where(state.is_done, old, new), y, state.y),
            is_above=state.is_above ^ crosses,
            row=state.row + (is_event & ~is_full).astype(jnp.int32),
            steps=state.steps + jnp.where(state.is_done, 0, solution.stats["num_steps"]),
            result=result,
            is_done=state.is_done | ~is_event | is_full | ~is_held | ~is_consistent,
            times=state.times.at[row].set(s, mode="drop"),
            crossed=state.crossed.at[:, row].set(sides, mode="drop"),
        )

    state = _State(
        s=jnp.zeros_like(s_max),
        y=start,
        is_above=height(jnp.zeros_like(s_max), start) >= 1,
        row=jnp.asarray(0, jnp.int32),
        steps=jnp.asarray(0),
        result=verdict,
        is_done=~valid,
        times=jnp.zeros(max_crossings, dtype),
        crossed=jnp.zeros((2, max_crossings, d), bool),
    )
    # One predicate for all lanes: those that are done take segments of length 0, which are dropped.
    state = while_loop(lambda state: any_lane(~state.is_done), step, state)
    is_known = state.result == RESULTS.successful
    is_known = is_known | (state.result == RESULTS.max_crossings_reached)
    last = state.times[jnp.clip(state.row - 1, 0)]
    times = jnp.where(jnp.arange(max_crossings, dtype=jnp.int32) < state.row, state.times, last)
    return CrossingTimes(
        s=jnp.where(is_known, times, jnp.nan),
        activations=state.crossed[0],
        deactivations=state.crossed[1],
        num_crossings=state.row,
        result=state.result,
        stats={"num_steps": state.steps},
    )
