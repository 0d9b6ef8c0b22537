"""Derivatives of a trajectory, in both modes, with bounded memory.

The lengths of the steps are held fixed. So a trajectory is a composition of steps, `y ← step(y)`,
each differentiable, and interpolations.

- *Forward mode* integrates again, with a tangent beside each state.
- *Reverse mode* goes back through the blocks of attempts. The last block is recorded when the
  trajectory is computed; the others are computed again from `CHECKPOINTS` states, which are spread
  over the blocks: whenever all are used, every second one is dropped.
- *Second derivatives* are forward mode over either.

In the times themselves the derivative of a state is the vector field (`at_time`).
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from .._batching import any_lane
from .._derivatives import differentiated_as, held, linear_map, vanishing
from .._loops import cond, fori_loop, while_loop
from . import driver
from .driver import Fixed, Moving, State
from .terms.base import AbstractFlowTerm

# The most states that are kept, at the beginnings of blocks; an even number. With 128 attempts in a
# block they reach 4096 attempts before any is dropped; beyond, blocks are computed more than twice.
# (Neither number was tuned: fewer attempts in a block take less memory and more time.)
CHECKPOINTS = 32
BLOCK = 128


class _Trace(NamedTuple):
    """What reverse mode needs of a trajectory."""

    checkpoints: State  # with a leading axis: states at the beginnings of blocks
    stride: Int[Array, ""]  # blocks from one checkpoint to the next
    num_blocks: Int[Array, ""]
    # The last block: the time at which it begins, its attempts, and how many they are.
    begin: Array
    records: driver.Record
    num_records: Int[Array, ""]


@eqx.filter_custom_jvp
def trajectory(moving: Moving, fixed: Fixed) -> tuple[PyTree[Array], State]:
    """The states at the times of the grid, and the last state, without derivatives."""
    return driver.run(moving, fixed)


@trajectory.def_jvp
def _(primals, tangents):
    moving, fixed = primals
    changes, _ = tangents
    solver = driver.with_derivatives(fixed.solver, True)
    fixed = dataclasses.replace(fixed, solver=solver, block=BLOCK)
    states, state, trace = _traced(moving, fixed)
    # Only what moves is differentiated: `changes` is None elsewhere.
    is_moving = jax.tree.map(lambda c: c is not None, changes, is_leaf=lambda c: c is None)
    moves, rest = eqx.partition(moving, is_moving)
    residuals, static = eqx.partition((moves, rest, fixed, trace), eqx.is_array)

    def apply(residuals, changes):
        moves, rest, fixed, _ = eqx.combine(residuals, static)
        at = lambda moves: driver.run(eqx.combine(moves, rest), fixed)[0]
        return jax.jvp(at, (moves,), (changes,))[1]

    def transpose(residuals, cotangents):
        moves, rest, fixed, trace = eqx.combine(residuals, static)
        return _reverse(moves, rest, fixed, trace, cotangents)

    changes = linear_map(apply, transpose, residuals, changes)
    return (states, state), (changes, jax.tree.map(lambda _: None, state))


def _traced(moving: Moving, fixed: Fixed) -> tuple[PyTree[Array], State, _Trace]:
    """`driver.run`, with checkpoints and the records of the last block."""
    state = driver.start(moving, fixed)
    spread = lambda v: jnp.broadcast_to(v, (*fixed.grid.shape, *v.shape))
    states = jax.tree.map(spread, moving.y0)
    arrays, static = eqx.partition(state, eqx.is_array)
    rows = jax.tree.map(lambda v: jnp.zeros((CHECKPOINTS, *v.shape), v.dtype), arrays)
    _, records, count = jax.eval_shape(lambda: driver.block(moving, fixed, state))
    empty = lambda v: jnp.zeros(v.shape, v.dtype)
    one = jnp.ones((), jnp.int32)
    trace = _Trace(rows, one, 0 * one, state.s, jax.tree.map(empty, records), empty(count))

    def thinned(trace):
        every_second = lambda v: jnp.concatenate([v[::2], v[::2]])
        rows = jax.tree.map(every_second, trace.checkpoints)
        return trace._replace(checkpoints=rows, stride=2 * trace.stride)

    def step(carry):
        state, states, trace = carry
        is_full = trace.num_blocks == CHECKPOINTS * trace.stride
        trace = cond(is_full, thinned, lambda trace: trace, trace)
        at, rest = lax.div(trace.num_blocks, trace.stride), lax.rem(trace.num_blocks, trace.stride)

        def write(all, one):
            old = lax.dynamic_index_in_dim(all, at, 0, keepdims=False)
            return lax.dynamic_update_index_in_dim(all, jnp.where(rest == 0, one, old), at, 0)

        rows = jax.tree.map(write, trace.checkpoints, eqx.filter(state, eqx.is_array))
        after, records, count = driver.block(moving, fixed, state)
        states = driver.interpolated(fixed, records, states, state.s)
        trace = _Trace(rows, trace.stride, trace.num_blocks + 1, state.s, records, count)
        return after, states, trace

    carry = while_loop(lambda c: any_lane(~c[0].is_done), step, (state, states, trace))
    state, states, trace = carry
    return states, state, trace._replace(checkpoints=eqx.combine(trace.checkpoints, static))


def _reverse(
    moves: Moving, rest: Moving, fixed: Fixed, trace: _Trace, cotangents: PyTree[Array]
) -> Moving:
    """The cotangents of `moves` for those of the states at the times of the grid."""
    whole = lambda moves: eqx.combine(moves, rest)
    first = driver.start(whole(moves), fixed)
    numbers = lambda tree: eqx.filter(tree, eqx.is_inexact_array)
    zeros = lambda tree: jax.tree.map(jnp.zeros_like, numbers(tree))

    def back_block(cotangents, begin, records, count, carry):
        """Through one block, to the cotangents of the state where it begins."""
        of_dense = lambda dense: driver.interpolated(
            fixed, records._replace(dense=dense), spread, begin
        )
        spread = jax.tree.map(jnp.zeros_like, cotangents)
        _, pull = jax.vjp(of_dense, records.dense)
        (of_dense_records,) = pull(cotangents)

        def back_attempt(carry):
            i, of_y, of_solver, of_moves = carry
            i = i - 1
            take = lambda v: lax.dynamic_index_in_dim(v, i, 0, keepdims=False)
            record, of_dense = jax.tree.map(take, (records, of_dense_records))
            # A rejected attempt changes nothing; neither does one of length 0 of a lane that is
            # done.
            solver, other = eqx.partition(record.solver, eqx.is_inexact_array)

            def step(moves, y, solver):
                solver = eqx.combine(solver, other)
                y1, _, dense, after, _ = driver.solver_step(
                    fixed.solver, whole(moves).term, record.s, record.s1, y, solver
                )
                return y1, dense, numbers(after)

            _, pull = jax.vjp(step, moves, record.y, solver)
            keep = record.is_kept
            only = lambda tree: jax.tree.map(lambda v: jnp.where(keep, v, 0), tree)
            found, y, solver = only(pull(only((of_y, of_dense, of_solver))))
            pick = lambda new, old: jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)
            of_moves = jax.tree.map(jnp.add, of_moves, found)
            return i, pick(y, of_y), pick(solver, of_solver), of_moves

        carry = while_loop(lambda c: c[0] > 0, back_attempt, (count, *carry))
        return carry[1:]

    def back(carry):
        b, at_block, carry = carry
        begin, records, count = at_block
        carry = back_block(cotangents, begin, records, count, carry)
        b = b - 1
        # The block before it, computed again from the last checkpoint at or before its beginning.
        at = jnp.maximum(b - 1, 0)
        row = lax.div(at, trace.stride)
        take = lambda v: (
            lax.dynamic_index_in_dim(v, row, 0, keepdims=False) if eqx.is_array(v) else v
        )
        state = jax.tree.map(take, trace.checkpoints)
        skip = lambda _, state: driver.block(whole(moves), fixed, state)[0]
        at_block = cond(
            b > 0,
            lambda: _again(whole(moves), fixed, fori_loop(0, at - row * trace.stride, skip, state)),
            lambda: at_block,
        )
        return b, at_block, carry

    at_block = (trace.begin, trace.records, trace.num_records)
    y = jax.tree.map(jnp.zeros_like, first.y)
    carry = (y, zeros(first.solver), zeros(moves))
    _, _, (of_y, of_solver, of_moves) = while_loop(
        lambda c: c[0] > 0, back, (trace.num_blocks, at_block, carry)
    )
    # The state at the beginning: y₀, which times before the first step have too, and the solver's.
    at_start = lambda v: jnp.sum(
        jnp.where((fixed.grid <= 0).reshape(-1, *[1] * (v.ndim - 1)), v, 0), axis=0
    )
    of_y = jax.tree.map(lambda a, b: a + at_start(b), of_y, cotangents)

    def begin(moves):
        state = driver.start(whole(moves), fixed)
        return state.y, numbers(state.solver)

    _, pull = jax.vjp(begin, moves)
    (more,) = pull((of_y, of_solver))
    return jax.tree.map(jnp.add, of_moves, more)


def _again(moving: Moving, fixed: Fixed, state: State):
    """A block computed again: where it begins, its records, and their number."""
    _, records, count = driver.block(moving, fixed, state)
    return state.s, records, count


def _shifted(s: Array, state: PyTree[Array], term: AbstractFlowTerm) -> PyTree[Array]:
    """`state` at the time `s`, as a function of `s`: its derivative is the vector field."""
    # A midpoint step of length 0, whose derivatives in s are right to second order, as are those in
    # s and the data. (The derivative of the solver's interpolation would be less accurate, and
    # would need derivatives with respect to the lengths of the steps.)
    schedule = term.schedule()
    # The states lie at times that move with the breakpoints.
    ahead = vanishing(s if schedule is None else s - schedule.moved(held(s)))
    term = term.at(s)
    moved = lambda by, at: jax.tree.map(lambda v, f: v + by * f, state, term.vf(s, at, None))
    return moved(ahead, moved(ahead / 2, state))


@differentiated_as(_shifted)
def at_time(s: Array, state: PyTree[Array], term: AbstractFlowTerm) -> PyTree[Array]:
    """`state` at the time `s`, without the evaluations of `_shifted`."""
    return state
