"""The loop of `train`: a `scan` over chunks of `CHUNK` steps, on all weights as one vector.

A step evaluates `x`, the gradient `∇ℓ(x)` (or an unbiased estimate from a batch of rows), and its
pullback to the weights, and calls the optax optimiser three times:

| call | gradient, weights | what its update is for |
|---|---|---|
| `optimizer` | those of the step | it is applied |
| `half` | half of the gradient | if not half the update, the step is not linear in the gradient |
| `clock` | −1, 0 | how far it moves a weight: the time `γ_k` of gradient flow in this step |

Beside the weights the loop sums `γ_k`, `γ_k x_k` and `γ_k ∇ℓ_k`, whence `t`, `x_mean` and `dual`,
and for `UV` multiplies `(u ± v)(0)` by `1 ∓ γ_k ∇ℓ_k` (`sides`). Records are written at the steps
that were asked for.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from .._linalg import matmul
from .._loops import cond, scan, varying
from .._problem import AbstractProblem
from .._problem.losses import log_cap
from ..networks import UV, AbstractNetwork
from ..networks.base import (
    is_constant,
    weights_of,
)

# Steps of a chunk. Its randomness is drawn at once, since a call of the generator costs more than
# a step; and reverse mode stores the state at its start only (`jax.checkpoint`) and repeats its
# steps. Smaller chunks make more calls and more stored states; larger ones take more memory, for
# `CHUNK` states while a chunk is repeated and `CHUNK` random numbers for each row of a batch. The
# randomness of a run depends on it: the numbers of a step are those of its place in its chunk.
CHUNK = 128


class _Record(eqx.Module):
    """What is recorded: the weights and the sums up to a step."""

    weights: Float[Array, "*S m"]  # one vector: fewer and longer operations a step
    sums: tuple[Float[Array, "*S"], Float[Array, "*S 2 d"]]  # Σ γ; Σ γ x and Σ γ ∇ℓ
    sides: Float[Array, "*S 2 d"] | None
    deviation: Float[Array, "*S"] | None  # of the steps from plain gradient steps
    has_time: Bool[Array, "*S"]  # whether all steps were those of (momentum) gradient descent


class _State(eqx.Module):
    """The carry of the loop: what is recorded, the optimiser's state, and the records."""

    now: _Record
    before: tuple[Array, Array]  # the sums up to this chunk; `now` has those over its steps
    lost: tuple[Array, Array]  # what rounding has taken from `before`
    optimizer: PyTree
    clock: PyTree  # the optimiser's state for weights of 0 whose gradient is −1
    half: PyTree  # its state for half of the gradient
    row: Int[Array, ""]  # of the next record
    records: _Record  # with a leading axis


class _Batch(eqx.Module):
    """The random part of one step, or of many with a leading axis."""

    rows: Int[Array, "... b"] | None  # None: all
    noise: Float[Array, "... b"] | None


def draw(
    key: PRNGKeyArray,
    chunk: Array,
    problem: AbstractProblem,
    batch_size: int | None,
    is_noisy: bool,
) -> _Batch:
    """The random rows and label noise of all steps of a chunk."""
    # From the key and the number of the chunk alone: a longer run repeats the steps of a shorter.
    n = _rows_of(problem)[0].shape[0]
    row_key, noise_key = jr.split(jr.fold_in(key, chunk))
    shape = (CHUNK, n if batch_size is None else batch_size)
    return _Batch(
        None if batch_size is None else jr.randint(row_key, shape, 0, n),
        jr.normal(noise_key, shape, problem.r.dtype) if is_noisy else None,
    )


def _close(state: _State) -> _State:
    """Add the sums of a chunk to those before it by Kahan's compensated summation."""
    # A million small terms, added one by one, drift in float32: after 10 000 steps of 0.1 by 1e-4
    # of `t`, compensated by less than 3e-6. Compensating at every step would double its time.
    change = jax.tree.map(jnp.add, state.now.sums, state.lost)
    total = jax.tree.map(jnp.add, state.before, change)
    lost = jax.tree.map(lambda c, new, old: c - (new - old), change, total, state.before)
    zero = jax.tree.map(jnp.zeros_like, total)
    return eqx.tree_at(lambda s: (s.before, s.lost, s.now.sums), state, (total, lost, zero))


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
    is_linear = jnp.abs(2 * of_half - updates) <= rounding * jnp.max(jnp.abs(updates))
    is_uniform = jnp.max(clock) - jnp.min(clock) <= rounding * jnp.max(jnp.abs(clock))
    # A step that is not finite is no evidence of another method: `training_diverged` reports it.
    return (jnp.all(is_linear) & is_uniform) | ~jnp.all(jnp.isfinite(updates))


def _rows_of(problem: AbstractProblem) -> tuple[Array, Array]:
    rows = problem.rows()
    assert rows is not None, "`train` has refused batches and label noise"
    return rows


def _gradient(problem: AbstractProblem, x: Array, batch: _Batch, noise: Array | None) -> Array:
    """`∇ℓ(x)`, or its unbiased estimate `(n/b) X_Bᵀ(X_B x − y_B − noise)` from the rows `B`."""
    if batch.rows is None and noise is None:
        return problem.gradient(x)
    X, y = _rows_of(problem)
    n = X.shape[0]
    if batch.rows is not None:
        X, y = X[batch.rows], y[batch.rows]
    residual = matmul(X, x) - y
    if noise is not None and batch.noise is not None:
        residual = residual - noise * batch.noise
    scale = n / X.shape[0]
    return scale * matmul(residual, X)


def run_steps(
    start: AbstractNetwork,
    problem: AbstractProblem,
    optimizer: optax.GradientTransformation,
    steps: Array,
    num_steps: int,
    batch_size: int | None,
    label_noise: Array | None,
    key: PRNGKeyArray | None,
) -> tuple[_Record, Callable[[Array], AbstractNetwork]]:
    """The records, with a leading axis, and the function from a vector of weights to its network.

    `start` is the network at `ε`; `steps`, increasing, are the numbers of steps to record after,
    of which `num_steps` is the last.
    """
    dtype = problem.r.dtype
    start = varying(start, problem)
    vector, unravel = ravel_pytree(weights_of(start))
    combine = lambda weights: eqx.combine(weights, start, is_leaf=is_constant)
    with_weights = lambda vector: combine(unravel(vector))
    optimizer = optax.with_extra_args_support(optimizer)
    is_random = batch_size is not None or label_noise is not None

    def gradients(weights, batch):
        """`x`, and the gradient of the objective with respect to `x` (without the penalty) and to
        the weights (with it)."""

        def outputs(weights):
            net = combine(weights)
            return net(), net.penalty(problem.weight_decay)

        (x, penalty), pull = jax.vjp(outputs, unravel(weights))
        gradient = _gradient(problem, x, batch, label_noise)
        (pulled,) = pull((gradient, jnp.ones_like(penalty)))
        return x, gradient, ravel_pytree(pulled)[0]

    def update(*arguments, **extra):
        try:
            return optimizer.update(*arguments, **extra)
        except TypeError as error:
            raise TypeError(
                f"`optimizer` could not be updated from the gradient and the weights: {error}. "
                "Optimisers that ask for the loss, such as `optax.lbfgs`, cannot be used here."
            ) from error

    def step(state: _State, inputs) -> tuple[_State, None]:
        number, batch = inputs
        # A run that diverges is stopped before its numbers, and their derivatives, overflow: at the
        # fourth root of the largest number, products of four weights are still finite. `x` is a
        # square of weights, and at depth D > 2 a higher power, which the weights do not bound.
        cap, size = math.exp(log_cap(dtype)), jnp.abs(with_weights(state.now.weights)())
        is_bounded = jnp.all(jnp.abs(state.now.weights) < cap) & jnp.all(size < cap**2)
        weights = jnp.where(is_bounded, state.now.weights, 1)
        now = eqx.tree_at(lambda r: r.weights, state.now, weights)
        x, gradient, gradient_weights = gradients(now.weights, batch)
        # Sharpness-aware minimisation evaluates the gradient again, at other weights.
        again = lambda weights, _: gradients(weights, batch)[2]
        half_again = lambda weights, _: gradients(weights, batch)[2] / 2
        ones = jnp.ones_like(now.weights)
        # optax mixes dtypes, which `numpy_dtype_promotion="strict"` of a user would refuse.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = update(
                gradient_weights, state.optimizer, now.weights, grad_fn=again
            )
            weights = jnp.asarray(optax.apply_updates(now.weights, updates))
            of_half, half = update(
                gradient_weights / 2, state.half, now.weights, grad_fn=half_again
            )
            moved, clock = update(-ones, state.clock, 0 * ones, grad_fn=lambda *_: -ones)
        updates, of_half, moved = (jnp.asarray(v, dtype) for v in (updates, of_half, moved))
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
            grows = is_bounded & jnp.all(jnp.abs(sides) < cap)
            factor = 1 - dt * jnp.stack([gradient, -gradient])
            sides = sides * jnp.where(grows, factor, 1)
            away = _deviation(with_weights(now.weights), gradient, dt, updates)
            deviation = jnp.where(is_bounded, jnp.maximum(deviation, away), deviation)
        weights = jnp.where(is_bounded, weights, jnp.nan)
        now = _Record(weights, sums, sides, deviation, has_time)
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
            now,
        )
        row = jnp.where(is_due, state.row + 1, state.row)
        before, lost = state.before, state.lost
        return _State(now, before, lost, optimizer_state, clock, half, row, records), None

    def chunk(state: _State, index: Array, length: int) -> tuple[_State, None]:
        batches = _Batch(None, None)
        if is_random:
            assert key is not None
            batches = draw(key, index, problem, batch_size, label_noise is not None)
            batches = jax.tree.map(lambda v: v[:length], batches)
        state, _ = scan(step, state, (index * CHUNK + jnp.arange(length), batches))
        return _close(state), None

    zero = jnp.zeros((), dtype)
    sides = jnp.stack([start.u + start.v, start.u - start.v]) if isinstance(start, UV) else None
    sums = (zero, jnp.zeros((2, problem.r.shape[0]), dtype))
    deviation = None if sides is None else zero
    now = _Record(vector, sums, sides, deviation, jnp.asarray(True))
    rows = lambda v: jnp.broadcast_to(v, (steps.shape[0], *v.shape))
    state = _State(
        now,
        before=sums,
        lost=sums,
        optimizer=optimizer.init(vector),
        clock=optimizer.init(vector),
        half=optimizer.init(vector),
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
