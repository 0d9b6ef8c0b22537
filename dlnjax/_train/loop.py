"""The loop of `train`: a `scan` over chunks of `CHUNK` steps, on all weights as one vector.

A step evaluates `x`, the gradient `∇ℓ(x)` (or an unbiased estimate from a batch of rows,
`batches.py`), and its pullback to the weights, and calls the optax optimiser three times:

| call | gradient, weights | what its update is for |
|---|---|---|
| `optimizer` | those of the step | it is applied |
| `half` | half of the gradient | if not half the update, the step is not linear in the gradient |
| `clock` | −1, 0 | how far it moves a weight: the time `γ_k` of gradient flow in this step |

The optimiser is given the weights as the network holds them, so that it may tell them apart.

Beside the weights the loop sums `γ_k`, `γ_k x_k` and `γ_k ∇ℓ_k`, whence `t`, `x_mean` and `dual`,
and for `UV` multiplies `(u ± v)(0)` by `1 ∓ γ_k ∇ℓ_k` (`sides`). Records are written at the steps
that were asked for. Once the loss is at `loss_tol`, steps change nothing any more: a loop that ends
early would have no reverse mode.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._loops import cond, scan, varying
from .._problem import AbstractProblem
from .._problem.losses import log_cap
from ..networks import UV, AbstractNetwork
from ..networks.base import (
    is_constant,
    weights_of,
)
from .batches import CHUNK, Batch, Batches


class _Record(eqx.Module):
    """What is recorded: the weights and the sums up to a step."""

    steps: Int[Array, "*S"]  # taken so far
    weights: Float[Array, "*S m"]  # one vector: fewer and longer operations a step
    sums: tuple[Float[Array, "*S"], Float[Array, "*S 2 d"]]  # Σ γ; Σ γ x and Σ γ ∇ℓ
    sides: Float[Array, "*S 2 d"] | None
    deviation: Float[Array, "*S"] | None  # of the steps from plain gradient steps
    has_time: Bool[Array, "*S"]  # whether all steps were those of (momentum) gradient descent


class _Moving(eqx.Module):
    """What a step changes."""

    now: _Record
    optimizer: PyTree
    clock: PyTree  # the optimiser's state for weights of 0 whose gradient is −1
    half: PyTree  # its state for half of the gradient


class _State(eqx.Module):
    """The carry of the loop."""

    moving: _Moving
    before: tuple[Array, Array]  # the sums up to this chunk; `now` has those over its steps
    lost: tuple[Array, Array]  # what rounding has taken from `before`
    row: Int[Array, ""]  # of the next record
    records: _Record  # with a leading axis


def _close(state: _State) -> _State:
    """Add the sums of a chunk to those before it by Kahan's compensated summation."""
    # A million small terms, added one by one, drift in float32: after 10 000 steps of 0.1 by 1e-4
    # of `t`, compensated by less than 3e-6. Compensating at every step would double its time.
    change = jax.tree.map(jnp.add, state.moving.now.sums, state.lost)
    total = jax.tree.map(jnp.add, state.before, change)
    lost = jax.tree.map(lambda c, new, old: c - (new - old), change, total, state.before)
    zero = jax.tree.map(jnp.zeros_like, total)
    return eqx.tree_at(lambda s: (s.before, s.lost, s.moving.now.sums), state, (total, lost, zero))


def _deviation(network: AbstractNetwork, gradient: Array, dt: Array, updates: Array) -> Array:
    """Distance of `updates` from a plain gradient step on `ℓ`, relative to that step (1-norms)."""
    assert isinstance(network, UV)
    plain = -dt * jnp.concatenate([gradient * network.v, gradient * network.u])
    size, away = jnp.sum(jnp.abs(plain)), jnp.sum(jnp.abs(updates - plain))
    # At a minimum both norms are 0: `tiny` gives 0 rather than NaN, but its derivative, that of
    # 0/0, would be NaN.
    return lax.stop_gradient(away / jnp.maximum(size, jnp.finfo(size.dtype).tiny))


def _is_descent(updates: Array, of_half: Array, clock: Array) -> Bool[Array, ""]:
    """Whether the step is linear in the gradient and moves all weights alike: only then is its
    update for the gradient −1 a time of gradient flow."""
    # Powers of 2 are exact, and momentum rounds at the last digits of float64; but optax computes
    # schedules in float32, whose rounding may differ between compilations of the same expression.
    # 100 times more (1e-3) would take weight decay of 1e-4 times the gradient for gradient descent;
    # 100 times less is the rounding of float32 itself.
    rounding = 100 * float(jnp.finfo(jnp.float32).eps)
    size = jnp.max(jnp.abs(updates))
    is_linear = jnp.max(jnp.abs(2 * of_half - updates)) <= rounding * size
    is_uniform = jnp.max(clock) - jnp.min(clock) <= rounding * jnp.max(jnp.abs(clock))
    # A step that is not finite is no evidence of another method: `training_diverged` reports it.
    return (is_linear & is_uniform) | ~jnp.isfinite(size)


def run_steps(
    start: AbstractNetwork,
    problem: AbstractProblem,
    optimizer: optax.GradientTransformation,
    steps: Array,
    num_steps: int,
    batches: Batches,
    loss_tol: Array | None,
) -> tuple[_Record, Callable[[Array], AbstractNetwork]]:
    """The records, with a leading axis, and the function from a vector of weights to its network.

    `start` is the network at `ε`; `steps`, increasing, are the numbers of steps to record after,
    of which `num_steps` is the last.
    """
    dtype = problem.r.dtype
    start = varying(start, problem)
    vector, unravel = ravel_pytree(weights_of(start))
    put = lambda weights, network: eqx.combine(weights, network, is_leaf=is_constant)
    combine = lambda weights: put(weights, start)._settled(problem)
    with_weights = lambda vector: combine(unravel(vector))
    as_vector = lambda weights: ravel_pytree(weights)[0].astype(dtype)
    optimizer = optax.with_extra_args_support(optimizer)

    def gradients(weights, batch: Batch):
        """`x`, and the gradient of the objective with respect to `x` (without the penalty) and to
        the weights (with it)."""
        # What follows the problem is at its optimum, where the gradient in it is 0: it is held.
        here = combine(weights)

        def outputs(weights):
            net = put(weights, here)
            return net(), net.penalty(problem.weight_decay)

        (x, penalty), pull = jax.vjp(outputs, weights)
        gradient = batch.gradient(problem, x)
        (pulled,) = pull((gradient, jnp.ones_like(penalty)))
        return x, gradient, pulled

    def update(*arguments, **extra):
        try:
            return optimizer.update(*arguments, **extra)
        except TypeError as error:
            raise TypeError(
                f"`optimizer` could not be updated from the gradient and the weights: {error}. "
                "Optimisers that ask for the loss, such as `optax.lbfgs`, cannot be used here; one "
                "that wants all weights in one array becomes `optax.flatten(optimizer)`."
            ) from error

    def advance(moving: _Moving, batch: Batch) -> _Moving:
        now = moving.now
        # A run that diverges is stopped before its numbers, and their derivatives, overflow: at the
        # fourth root of the largest number, products of four weights are still finite. `x` is a
        # square of weights, and at depth D > 2 a higher power, which the weights do not bound.
        cap, size = math.exp(log_cap(dtype)), jnp.abs(with_weights(now.weights)())
        # XLA's `all` takes several times as long as maxima. These may drop NaN, which sums keep.
        is_bounded = (jnp.max(jnp.abs(now.weights)) < cap) & (jnp.max(size) < cap**2)
        is_bounded &= ~jnp.isnan(jnp.sum(now.weights))
        weights = unravel(jnp.where(is_bounded, now.weights, 1))
        x, gradient, gradient_weights = gradients(weights, batch)
        halved = lambda tree: jax.tree.map(lambda v: v / 2, tree)
        # Sharpness-aware minimisation evaluates the gradient again, at other weights.
        again = lambda weights, _: gradients(weights, batch)[2]
        half_again = lambda weights, _: halved(gradients(weights, batch)[2])
        down = jax.tree.map(lambda v: -jnp.ones_like(v), weights)
        zeros = jax.tree.map(jnp.zeros_like, weights)
        # optax mixes dtypes, which `numpy_dtype_promotion="strict"` of a user would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = update(
                gradient_weights, moving.optimizer, weights, grad_fn=again
            )
            after = as_vector(optax.apply_updates(weights, updates))
            of_half, half = update(
                halved(gradient_weights), moving.half, weights, grad_fn=half_again
            )
            moved, clock = update(down, moving.clock, zeros, grad_fn=lambda *_: down)
            updates, of_half, moved = map(as_vector, (updates, of_half, moved))
        has_time = now.has_time & _is_descent(updates, of_half, moved)
        dt = moved[0]
        # A step back in time is invalid even if the sum of all is positive: NaN stays in the sum.
        dt = jnp.where(dt < 0, jnp.nan, dt)
        moved_by = jnp.where(is_bounded, dt * jnp.stack([x, gradient]), 0)
        sums = (now.sums[0] + dt, now.sums[1] + moved_by)
        sides, deviation = now.sides, now.deviation
        if sides is not None and deviation is not None:
            # Under steps that are not plain gradient steps `sides` are not `u ± v`, and may
            # overflow while the weights stay bounded.
            grows = is_bounded & (jnp.max(jnp.abs(sides)) < cap)
            factor = 1 - dt * jnp.stack([gradient, -gradient])
            sides = sides * jnp.where(grows, factor, 1)
            away = _deviation(combine(weights), gradient, dt, updates)
            deviation = jnp.where(is_bounded, jnp.maximum(deviation, away), deviation)
        after = jnp.where(is_bounded, after, jnp.nan)
        now = _Record(now.steps + 1, after, sums, sides, deviation, has_time)
        return _Moving(now, optimizer_state, clock, half)

    def step(state: _State, inputs) -> tuple[_State, None]:
        number, batch = inputs
        moving = state.moving
        if loss_tol is None:
            moving = advance(moving, batch)
        else:
            is_reached = problem.loss(with_weights(moving.now.weights)()) <= loss_tol
            moving = cond(is_reached, lambda moving, _: moving, advance, moving, batch)
        is_due = number + 1 == steps[state.row]
        write = lambda rows, value: lax.dynamic_update_index_in_dim(rows, value, state.row, 0)
        total = lambda now: eqx.tree_at(
            lambda r: r.sums, now, jax.tree.map(jnp.add, state.before, now.sums)
        )
        records = cond(
            is_due,
            lambda records, now: jax.tree.map(write, records, total(now)),
            lambda records, _: records,
            state.records,
            moving.now,
        )
        row = jnp.where(is_due, state.row + 1, state.row)
        return _State(moving, state.before, state.lost, row, records), None

    def chunk(state: _State, index: Array, length: int) -> tuple[_State, None]:
        of_steps = batches.of_chunk(problem, index, length)
        state, _ = scan(step, state, (index * CHUNK + jnp.arange(length), of_steps))
        return _close(state), None

    zero = jnp.zeros((), dtype)
    sides = jnp.stack([start.u + start.v, start.u - start.v]) if isinstance(start, UV) else None
    sums = (zero, jnp.zeros((2, problem.r.shape[0]), dtype))
    deviation = None if sides is None else zero
    now = _Record(jnp.zeros_like(steps[0]), vector, sums, sides, deviation, jnp.asarray(True))
    rows = lambda v: jnp.broadcast_to(v, (steps.shape[0], *v.shape))
    of_start = optimizer.init(unravel(vector))
    # Some states hold the weights: those of the clock are 0, or its steps would lead there.
    of_zeros = optimizer.init(unravel(jnp.zeros_like(vector)))
    state = _State(
        _Moving(now, of_start, of_zeros, of_start),
        before=sums,
        lost=sums,
        row=(steps[0] == 0).astype(steps.dtype),
        records=jax.tree.map(rows, now),
    )
    chunks, rest = divmod(num_steps, CHUNK)
    if chunks > 0:
        whole = jax.checkpoint(lambda state, index: chunk(state, index, CHUNK))
        state, _ = scan(whole, state, jnp.arange(chunks))
    if rest > 0:
        state, _ = chunk(state, jnp.asarray(chunks), rest)
    return state.records, with_weights
