"""`crossing_times`: when the coordinates of a flow at finite `ε` activate and deactivate."""

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
from .._problem import AbstractProblem
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractNetwork
from .setup import AbstractFormulation, DualForm, Run, as_run


class CrossingTimes(eqx.Module):
    """When coordinates of a flow cross a level.

    **Attributes:**

    - `s`: the times, increasing, shape `(K,)`: the first `num_jumps`, then the last one repeated
        (0 if there is none).
    - `activations`: which `|xᵢ|` rise to the level at each time; `deactivations`: which fall to
        it. Shape `(K, d)`.
    - `num_jumps`: how many there are, a scalar.
    - `result`: how the solve ended (a failed one is NaN, but `max_jumps_reached` keeps what it
        has); `stats`: steps taken.
    """

    s: Float[Array, " K"]
    activations: Bool[Array, "K d"]
    deactivations: Bool[Array, "K d"]
    num_jumps: Int[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


class _State(eqx.Module):
    s: Float[Array, ""]
    y: PyTree[Array]
    is_above: Bool[Array, " d"]
    row: Int[Array, ""]  # the next one to write
    steps: Int[Array, ""]
    result: RESULTS
    is_done: Bool[Array, ""]
    times: Float[Array, " K"]
    crossed: Bool[Array, "2 K d"]  # upwards, downwards


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
    max_jumps: int | None = None,
    throw: bool = True,
) -> CrossingTimes:
    """The times in `(0, s_max]` at which `|xᵢ(s)|` crosses `level`, each by root finding in the
    step in which it happens. As `ε → 0` they tend to the jumps of `limit_flow` at a distance of
    `O(1/log(1/ε))` at depth 2, whatever the level, if it lies strictly between what `|xᵢ|` is
    before and after.

    A coordinate that crosses twice within one step is not seen. One that starts at the level counts
    as above it. Differentiable in forward mode only.

    **Arguments:**

    - `s_max`: where to stop, `> 0` and finite, a scalar, in rescaled time.
    - `level`: positive, a scalar or of shape `(d,)`, in units of `x`. For example half of each
        coordinate's first plateau.
    - `max_jumps`: static size of the buffers, default `4 min(n, d) + 16`.
    - the others: as in `gradient_flow`; `max_steps` counts between two jumps.

    **Returns:** a `CrossingTimes`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the solver
    fails or there are more than `max_jumps` jumps.

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
    if max_jumps is None:
        max_jumps = 4 * problem.rank_bound + 16
    max_jumps = as_count(max_jumps, "max_jumps")
    solver = formulation.default_solver() if solver is None else solver
    check_type(solver, "solver", diffrax.AbstractSolver, "a solver, such as `diffrax.Kvaerno5()`")
    jumps = _solve(run, s_max, jnp.broadcast_to(level, d), solver, max_jumps)
    return raise_on_failure(jumps, jumps.result, throw, kept=("s",))


@eqx.filter_jit
def _solve(
    run: Run, s_max: Array, level: Array, solver: diffrax.AbstractSolver, max_jumps: int
) -> CrossingTimes:
    term = run.term()
    start = term.initial()
    dtype, d = level.dtype, level.shape[0]
    unit = float(jnp.finfo(dtype).eps)
    # Once above it, a coordinate comes down at a slightly lower level, so that none sits on it.
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
        """How far each coordinate is from its next crossing."""
        h = height(s, y)
        return jnp.where(is_above, h - (1 - width), 1 - h)

    # Bisection ends where the bracket is as small as rounding; it also asks for a value below
    # `atol`, which only its sign decides here.
    small = unit
    root_finder = optx.Bisection(rtol=8 * unit, atol=small, flip=True)

    def condition(t, y, args, **_):
        value = 0.5 * small * jnp.clip(jnp.min(room(t, y, args)), -1, 1)
        return value.astype(jnp.result_type(float))  # as diffrax's own branch

    def step(state: _State) -> _State:
        solution = diffrax.diffeqsolve(
            term,
            solver,
            t0=state.s,
            t1=jnp.where(state.is_done, state.s, s_max),
            # After a jump the steps are short, but not lost in the rounding of s.
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
        # An event that went unseen hides all that come after it.
        is_lost = ~is_event & ~state.is_done & ~(jnp.min(left) > -width)
        failed = ~is_event & (solution.result != diffrax.RESULTS.successful)
        is_full = is_event & (state.row == max_jumps)
        result = RESULTS.where(is_lost, RESULTS.jumps_missed, state.result)
        result = RESULTS.where(failed, RESULTS.promote(solution.result), result)
        result = RESULTS.where(is_full, RESULTS.max_jumps_reached, result)
        is_held = term.is_in_range(term.read(s, y)[0])
        result = RESULTS.where(is_held, result, RESULTS.flow_not_finite)
        is_consistent = term.is_consistent(y)
        result = RESULTS.where(is_consistent, result, RESULTS.invalid_network)
        result = RESULTS.where(state.is_done, state.result, result)
        row = jnp.where(is_event, state.row, max_jumps)
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
        times=jnp.zeros(max_jumps, dtype),
        crossed=jnp.zeros((2, max_jumps, d), bool),
    )
    state = while_loop(lambda state: any_lane(~state.is_done), step, state)
    is_known = state.result == RESULTS.successful
    is_known = is_known | (state.result == RESULTS.max_jumps_reached)
    last = state.times[jnp.clip(state.row - 1, 0)]
    times = jnp.where(jnp.arange(max_jumps, dtype=jnp.int32) < state.row, state.times, last)
    return CrossingTimes(
        s=jnp.where(is_known, times, jnp.nan),
        activations=state.crossed[0],
        deactivations=state.crossed[1],
        num_jumps=state.row,
        result=state.result,
        stats={"num_steps": state.steps},
    )
