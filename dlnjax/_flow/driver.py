"""The loop of the flow: steps of any diffrax solver, controlled by a diffrax controller.

A trajectory is integrated in blocks of attempted steps. A block writes one record an attempt, at a
position that all lanes of a batch share; when it ends, all times of the grid that lie in it are
interpolated at once. (Writing each time when its step is taken costs a visit of all lanes for each,
as lanes reach them at different attempts.)

There is no host callback: programs can be stored, and lowered for other devices. How derivatives go
through the loop is in `adjoint.py`.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._batching import any_lane
from .._derivatives import held
from .._loops import while_loop
from .._results import RESULTS
from .kvaerno5 import StagewiseKvaerno5
from .terms.base import AbstractFlowTerm

# Attempts in a block. With blocks of 16, batches of 128 flows 3 × 4 and of 25 flows 20 × 40 took
# 15 % longer (one noisy run). A flow takes about 50 to 1000 attempts.
BLOCK = 64


class Moving(NamedTuple):
    """What derivatives of a trajectory are taken in."""

    term: AbstractFlowTerm
    y0: PyTree[Array]


class Fixed(eqx.Module):
    """The rest: a solver and a controller of diffrax, and the times. No derivatives."""

    solver: diffrax.AbstractSolver[Any]
    controller: diffrax.PIDController
    grid: Float[Array, " S"]
    first_step: Float[Array, ""]
    max_steps: int = eqx.field(static=True)
    block: int = eqx.field(static=True, default=BLOCK)


class AbstractSwitchingSolver(diffrax.AbstractAdaptiveSolver[Any]):
    """A solver of two methods, between which each lane of a batch switches by itself."""

    @abc.abstractmethod
    def _needs_turn(self, solver_state: Any) -> Bool[Array, ""]:
        """Which of the two kinds of steps comes next."""

    @abc.abstractmethod
    def _longest_step(self, solver_state: Any) -> Float[Array, ""]:
        """The longest step that may come next."""


class State(NamedTuple):
    """Where an integration stands. `s1` is where the next attempt ends."""

    s: Float[Array, ""]
    s1: Float[Array, ""]
    y: PyTree[Array]
    solver: PyTree
    controller: PyTree
    result: RESULTS
    turn: Bool[Array, ""]  # shared by all lanes of a batch
    is_done: Bool[Array, ""]
    num_steps: Int[Array, ""]
    num_accepted_steps: Int[Array, ""]


class Record(NamedTuple):
    """One attempt: where it began and ended, and the solver's dense output."""

    s: Float[Array, ""]
    s1: Float[Array, ""]
    is_kept: Bool[Array, ""]
    y: PyTree[Array]
    solver: PyTree
    dense: PyTree[Array]


def prepared(
    solver: diffrax.AbstractSolver[Any], controller: diffrax.PIDController
) -> diffrax.AbstractSolver[Any]:
    """`solver` with what `diffrax.diffeqsolve` would fill in: the tolerances of implicit stages."""
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        unset = diffrax.with_stepsize_controller_tols(diffrax.VeryChord)().rtol
        names = [
            n for n in ("rtol", "atol", "norm") if getattr(solver.root_finder, n, None) is unset
        ]
        of = lambda tree: [getattr(tree, n) for n in names]
        solver = eqx.tree_at(lambda s: of(s.root_finder), solver, of(controller))
    return with_derivatives(solver, False)


def with_derivatives(
    solver: diffrax.AbstractSolver[Any], is_asked: bool
) -> diffrax.AbstractSolver[Any]:
    """`solver` with derivatives of a step in both modes, or without, which is faster."""
    if isinstance(solver, StagewiseKvaerno5):
        return dataclasses.replace(solver, has_derivatives=is_asked)
    if not hasattr(solver, "scan_kind"):
        return solver
    # A Runge–Kutta method of diffrax: the kind of loop over its stages.
    kind = "bounded" if is_asked else "lax"
    return eqx.tree_at(lambda s: s.scan_kind, solver, kind, is_leaf=lambda v: v is None)


def start(moving: Moving, fixed: Fixed) -> State:
    """The state at the first attempt."""
    (term, y0), zero = moving, jnp.zeros_like(fixed.first_step)
    now = term.at(zero)
    s1, controller = fixed.controller.init(
        now, zero, fixed.grid[-1], y0, fixed.first_step, None, fixed.solver.func, _order(fixed)
    )
    is_done = ~(fixed.grid[-1] > 0)
    count = jnp.zeros((), jnp.int32)
    return State(
        s=zero,
        s1=jnp.where(is_done, zero, jnp.minimum(held(s1), next_stop(term, zero, fixed.grid[-1]))),
        y=y0,
        solver=_as_arrays(fixed.solver.init(now, zero, s1, y0, None)),
        controller=_as_arrays(held(controller)),
        result=RESULTS.successful,
        turn=jnp.asarray(False),
        is_done=is_done,
        num_steps=count,
        num_accepted_steps=count,
    )


def _as_arrays(tree: PyTree) -> PyTree:
    """`tree` with arrays in place of Python's numbers, as the carry of a loop has them."""
    return jax.tree.map(lambda v: jnp.asarray(v) if isinstance(v, bool | int | float) else v, tree)


def _order(fixed: Fixed) -> Any:
    """The order of the error, as the controller takes it."""
    return fixed.solver.error_order(None)  # pyright: ignore[reportArgumentType]


# The functions below are parts of one program, of which derivatives and batches are taken. Each has
# a `jit` of its own, so that it is traced, differentiated and batched once, not wherever it occurs:
# the gradient of a batch of flows 3 × 4 takes 3.7 s to trace and 11 s to compile, without them 11 s
# and 15 s (CPU time, one run each).
@eqx.filter_jit
def solver_step(
    solver: diffrax.AbstractSolver[Any],
    term: AbstractFlowTerm,
    s: Array,
    s1: Array,
    y: PyTree[Array],
    state: PyTree,
) -> tuple[PyTree[Array], PyTree[Array], PyTree[Array], PyTree, diffrax.RESULTS]:
    """A step of the solver."""
    schedule, term = term.schedule(), term.at(s)
    if schedule is None:
        return solver.step(term, s, s1, y, None, state, False)
    # What a solver remembers of the field at `s` is that before the breakpoint.
    is_after = jnp.any(s == held(schedule.breakpoints))
    return solver.step(term, schedule.moved(s), schedule.moved(s1), y, None, state, is_after)


def next_stop(term: AbstractFlowTerm, s: Array, end: Array) -> Array:
    """Where the steps after `s` must end: at `end`, or at a breakpoint before it, where a step
    across would lose its order."""
    schedule = term.schedule()
    return end if schedule is None else schedule.next_stop(s, end)


@eqx.filter_jit
def attempt(moving: Moving, fixed: Fixed, state: State) -> tuple[State, Record]:
    """One attempted step. A lane that is done makes one of length 0, and one that waits for others
    one that is not kept either."""
    term, end = moving.term, fixed.grid[-1]
    # With a solver of two methods some lanes need one, some the other. They take turns: otherwise
    # all lanes would pay for both at each attempt. A turn ends when no lane needs it.
    turn = state.turn
    if isinstance(fixed.solver, AbstractSwitchingSolver):
        needs = fixed.solver._needs_turn(state.solver)
        turn = turn ^ ~any_lane(~state.is_done & (needs == turn))
        is_idle = state.is_done | (needs != turn)
    else:
        is_idle = state.is_done
    ends = jnp.where(is_idle, state.s, state.s1)
    y1, error, dense, solver, step_result = solver_step(
        fixed.solver, term, state.s, ends, state.y, state.solver
    )
    keep, s, s1, _, controller, _ = fixed.controller.adapt_step_size(
        state.s, ends, held(state.y), held(y1), None, held(error), _order(fixed),
        state.controller,
    )  # fmt: skip
    keep = jnp.asarray(keep & ~is_idle)
    s, s1, controller = held((s, s1, controller))
    if isinstance(fixed.solver, AbstractSwitchingSolver):
        s1 = jnp.minimum(
            s1, s + held(fixed.solver._longest_step(_select(keep, solver, state.solver)))
        )
    # The last step ends at the end, also if it would come within rounding of it. So does one before
    # a breakpoint.
    unit = jnp.finfo(end.dtype).eps
    stop = next_stop(term, jnp.asarray(s), end)
    s1 = jnp.where(keep & (s1 > stop * (1 - 100 * unit)), stop, s1)
    pick = lambda new, old: jnp.where(keep, new, old)
    record = Record(state.s, ends, keep, state.y, state.solver, dense)
    num_steps = state.num_steps + (~is_idle).astype(jnp.int32)
    is_at_end = keep & (s >= end)
    # Also where a rejected step does not get shorter: at a few units of rounding of `s` a factor
    # of 0.8 rounds to 1.
    is_stuck = ~is_idle & ~is_at_end & (~(s1 > s) | (~keep & ~(s1 < ends)))
    is_out = ~state.is_done & ~is_at_end & (num_steps >= fixed.max_steps)
    # Of diffrax, as pyright sees it. (`promote` would compile five small programs.)
    too_many: Any = RESULTS.max_steps_reached
    result = RESULTS.where(is_out, too_many, state.result)
    result = RESULTS.where(is_stuck, RESULTS.step_too_small, result)
    step_result = RESULTS.promote(step_result)
    failed = keep & (step_result != RESULTS.successful)
    result = RESULTS.where(failed, step_result, result)
    after = State(
        s=jnp.where(is_idle, state.s, s),
        s1=jnp.where(is_idle, state.s1, s1),
        y=jax.tree.map(pick, y1, state.y),
        solver=_select(keep, solver, state.solver),
        controller=_select(~is_idle, controller, state.controller),
        result=result,
        turn=turn,
        is_done=state.is_done | is_at_end | is_stuck | is_out | failed,
        num_steps=num_steps,
        num_accepted_steps=state.num_accepted_steps + keep.astype(jnp.int32),
    )
    # A lane that is done takes steps of length 0.
    return after._replace(s1=jnp.where(after.is_done, after.s, after.s1)), record


def _select(flag: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    """`yes` where `flag` holds, else `no`; what is no array is equal in both."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b) if eqx.is_array(a) else a, yes, no)


@eqx.filter_jit
def block(
    moving: Moving, fixed: Fixed, state: State
) -> tuple[State, PyTree[Array], Int[Array, ""]]:
    """A block of attempts: the state after it, its `Record`s with a leading axis, their number."""
    shape = jax.eval_shape(lambda: attempt(moving, fixed, state)[1])
    records = jax.tree.map(lambda v: jnp.zeros((fixed.block, *v.shape), v.dtype), shape)
    # Attempts that are not made count as made at the end.
    records = records._replace(s1=jnp.full_like(records.s1, jnp.inf))

    def step(carry):
        i, state, records = carry
        state, record = attempt(moving, fixed, state)
        write = lambda all, one: lax.dynamic_update_index_in_dim(all, one, i, 0)
        return i + 1, state, jax.tree.map(write, records, record)

    goes_on = lambda c: (c[0] < fixed.block) & any_lane(~c[1].is_done)
    i, state, records = while_loop(goes_on, step, (jnp.zeros((), jnp.int32), state, records))
    return state, records, i


@eqx.filter_jit
def interpolated(
    fixed: Fixed, records: PyTree[Array], states: PyTree[Array], begin: Float[Array, ""]
) -> PyTree[Array]:
    """`states` at the times of the grid, with those that the steps of a block contain filled in.

    `begin` is where the block begins."""
    reached = jnp.where(records.is_kept, records.s1, records.s)
    reached = jnp.where(jnp.isinf(records.s1), jnp.inf, reached)
    # The first attempt that reaches a time is kept: a rejected one ends where the last one did.
    where = jnp.sum(reached[:, None] < fixed.grid[None, :], axis=0, dtype=jnp.int32)
    where = jnp.minimum(where, fixed.block - 1)
    is_here = (fixed.grid > begin) & records.is_kept[where] & (fixed.grid <= records.s1[where])

    def read(i, s):
        dense = jax.tree.map(lambda v: v[i], records.dense)
        t0, t1 = records.s[i], records.s1[i]
        return fixed.solver.interpolation_cls(t0=t0, t1=t1, **dense).evaluate(s)

    found = jax.vmap(read)(where, fixed.grid)
    pick = lambda new, old: jnp.where(is_here.reshape(-1, *[1] * (old.ndim - 1)), new, old)
    return jax.tree.map(pick, found, states)


def run(moving: Moving, fixed: Fixed) -> tuple[PyTree[Array], State]:
    """The states at the times of the grid, and the last state."""
    state = start(moving, fixed)
    spread = lambda v: jnp.broadcast_to(v, (*fixed.grid.shape, *v.shape))
    states = jax.tree.map(spread, moving.y0)

    def step(carry):
        state, states = carry
        after, records, _ = block(moving, fixed, state)
        return after, interpolated(fixed, records, states, state.s)

    state, states = while_loop(lambda c: any_lane(~c[0].is_done), step, (state, states))
    return states, state


def counts(state: State) -> dict[str, Int[Array, ""]]:
    """The numbers of steps that a trajectory took, as `stats`."""
    return {
        "num_steps": state.num_steps,
        "num_accepted_steps": state.num_accepted_steps,
        "num_rejected_steps": state.num_steps - state.num_accepted_steps,
    }
