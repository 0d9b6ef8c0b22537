"""`train`: discrete steps of an optax optimiser on the weights, recorded on the flow's time axis.

This module checks the arguments and turns the records of the loop (`loop.py`) into results: with
`γ_k` the time that step `k` stands for,

    t = Σ γ_k,    s = t/τ,    x̄ = Σ γ_k x_k / t,    dual = −Σ γ_k ∇ℓ_k(x_k) / τ,

where `τ = t/s` is the network's `time_scale`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, Real

from .._checks import (
    as_log_eps,
    as_tolerance,
    is_concrete,
    is_log_eps,
    is_tolerance,
)
from .._flow.terms.weights import WeightTerm, check_least_eps
from .._problem import (
    AbstractProblem,
    check_problem,
    harmless_data,
    validity,
)
from .._problem.losses import log_cap
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractNetwork
from ..networks.base import (
    harmless_network,
    matched,
    shape_of,
    takes,
)
from .batches import Batches, as_batches
from .loop import run_steps

# Fields that with `throw=False` keep what was recorded before a run diverged.
_KEPT = ("x", "x_mean", "loss", "network", "dual", "sides")


class Training(eqx.Module):
    """A run of `train`, recorded at the steps that were asked for.

    **Attributes:**

    - `steps`: the number of steps taken, shape `(S,)`: those asked for, or fewer from where on the
        loss was at `loss_tol`.
    - `t`: the time of gradient flow that the steps stand for, shape `(S,)`: how far the optimiser
        would have moved a weight that is held at 0 and has the gradient −1 throughout. For SGD it
        is the sum of the step sizes; for heavy ball and Nesterov a step adds in the long run
        `γ/(1 − momentum)`. Methods that normalise or clip the gradient (Adam), add noise to it, or
        use the weights (decay, schedule-free) stand for no time of the flow: from such a step on,
        `t`, `s`, `x_mean` and `dual` are NaN.
    - `s`: `t` in the flow's rescaled time, shape `(S,)`.
    - `x`: the linear model, shape `(S, d)`.
    - `x_mean`: its average over the time `[0, t]`, taken at the points where the steps start;
        `x(0)` at `t = 0`. Shape `(S, d)`. Compare it with `flow.x_mean` and with the lasso path at
        `μ = s`.
    - `loss`: `ℓ(x)`, without weight decay, shape `(S,)`.
    - `network`: the network, its arrays with a leading axis `(S,)`.
    - `dual`: `−Σ γ_k ∇ℓ_k(x_k)` over the steps, in units of `s`, shape `(S, d)`: as `flow.dual`.
    - `sides`: for `UV`, `(u ± v)(0) Π(1 ∓ γ_k ∇ℓ_k(x_k))` over the steps, shape `(S, 2, d)`. It is
        `u ± v` if all steps are plain gradient steps: see `effective_initialization`. Otherwise
        `None`.
    - `log_eps`: `log ε` of the initialisation, a scalar.
    - `result`: how the run ended; what is not finite is NaN.
    - `stats`: `last_finite_step`, the last of `steps` at which all weights were finite, −1 if none;
        for `UV`, `max_deviation`, the largest distance of a step from the plain gradient step of
        the same size, relative to that step.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 0.5], [0.3, 1.0]]), jnp.array([1.0, 0.5]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        run = dln.train(network, problem, optax.sgd(0.1), eps=1e-3, steps=[0, 100, 1000])
        run.t  # (0, 10, 100)
        run.s  # (0, 2.895, 28.95): t = s log(1/ε)/2
        run.x_mean.shape, run.network.u.shape  # ((3, 2), (3, 2))
        ```
    """

    steps: Int[Array, " S"]
    t: Float[Array, " S"]
    s: Float[Array, " S"]
    x: Float[Array, "S d"]
    x_mean: Float[Array, "S d"]
    loss: Float[Array, " S"]
    network: AbstractNetwork
    dual: Float[Array, "S d"]
    sides: Float[Array, "S 2 d"] | None
    log_eps: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


def train(
    network: AbstractNetwork,
    problem: AbstractProblem,
    optimizer: optax.GradientTransformation,
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    steps: ArrayLike | Sequence[SupportsIndex],
    loss_tol: Real[ArrayLike, ""] | None = None,
    batch_size: SupportsIndex | None = None,
    batches: ArrayLike | None = None,
    label_noise: Real[ArrayLike, ""] | Callable[[PRNGKeyArray], Array] = 0.0,
    key: PRNGKeyArray | None = None,
    throw: bool = True,
) -> Training:
    """Train the weights of `network` on `problem` in discrete steps from an initialisation of
    size `ε`. As the steps tend to 0 the run tends to `gradient_flow`.

    The gradients are those of `ℓ(x) + penalty(λ)`, the loss without a factor `1/n`. A batch of `b`
    rows estimates `ℓ` without bias by `n/b` times the loss of these rows. So divide a step size
    that is meant for the mean loss `ℓ/n` by `n`.

    `UV` refuses an `ε` below 3.7e-11 in float64 and 2.4e-5 in float32: once `x` is of order 1, the
    smaller of `u ± v` is then lost in rounding, and a coordinate that has grown cannot change its
    sign. `Deep` is trained as `|u|^D − |v|^D`, since a large step may carry a weight through 0,
    which the flow never does.

    **Arguments:**

    - `network`: its weights are the shape of the initialisation.
    - `problem`: a problem of any loss, weight decay included.
    - `optimizer`: an optax optimiser that needs gradients and weights only: `optax.sgd(γ)`, with
        `momentum=` for heavy ball, `nesterov=True` for Nesterov's method, or a schedule as `γ`; SAM
        as `optax.contrib.sam(…, opaque_mode=True)`. Not those that need the loss (`lbfgs`,
        `polyak_sgd`). It is given the weights as a network, with which `optax.multi_transform`
        gives each of them a rule of its own; `optax.flatten` makes them one vector. `γ` may be
        traced: build the optimiser in the function that you `vmap`. Each new optimiser object
        compiles again.
    - `eps` or `log_eps`: `ε ∈ (0, 1)` or its logarithm, exactly one, scalar.
    - `steps`: the number of steps; or increasing numbers of steps, shape `(S,)`, after which to
        record: 0 is the initialisation, and the last one ends the run.
    - `loss_tol`: stop at the first step after which `ℓ(x)`, the loss of all rows without weight
        decay, is at most this, positive, in units of the loss. All later records are the last
        point: `run.steps` says after how many steps, `run.loss` whether it was reached. It costs an
        evaluation of the loss in each step.
    - `batch_size`: rows in a batch, drawn with replacement at each step (1: single-sample SGD).
        Default: all rows, without sampling. Not for problems without rows (`Quadratic`).
    - `batches`: instead, the rows of each step, whole numbers from 0 to `n − 1` of shape `(T, b)`,
        such as shuffled epochs: step `k` takes `batches[k mod T]`.
    - `label_noise`: the standard deviation of normal noise on the labels of a step, in units of
        `y`; or a function of a key that returns the noise, shape `(b,)`, `(n,)` without batches.
        It is drawn anew at each step. For `LeastSquares` only.
    - `key`: a `jax.random.key`, needed for `batch_size` and label noise. The randomness of step
        `k` depends on `key` and `k` alone.
    - `throw`: raise if the run diverges. Under tracing nothing is raised: failed lanes are NaN,
        with their `result`. With `throw=False` they keep what was recorded before they diverged,
        with derivatives in forward mode; in reverse mode these are NaN.

    **Returns:** a `Training`. Memory does not depend on the number of steps, except in reverse-mode
    differentiation: `S` records for every 128 steps. Random numbers are drawn for 128 steps at
    once, one for each row of a batch (of `X`, for label noise without batches) and step.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the run
    diverges, or if a step goes back in `t`, as with a negative `γ`.

    !!! example

        ```python
        X, y = jnp.array([[1.0, 0.5, 0.2], [0.3, 1.0, -0.4]]), jnp.array([1.0, 0.5])
        network, problem = dln.UV(jnp.ones(3), jnp.zeros(3)), dln.LeastSquares(X, y)
        run = dln.train(network, problem, optax.sgd(0.1), eps=1e-3, steps=[100, 1000])
        run.x_mean[0]  # (0.539, 0.167, 0.000) at s = 2.895
        dln.gradient_flow(network, problem, run.s, eps=1e-3).x_mean[0]  # (0.557, 0.168, 0.000)
        key = jax.random.key(0)
        dln.train(network, problem, optax.sgd(0.1), eps=1e-3, steps=1000, batch_size=1, key=key)
        ```

    !!! cite "Reference"

        [EPGF23] arXiv 2302.08982, for (stochastic) gradient descent on these networks; the rescaled
        time and the average are those of the flow, [B25].
    """
    check_problem(problem)
    dtype = problem.r.dtype
    network = matched(network, problem)
    if not isinstance(optimizer, tuple) or not hasattr(optimizer, "update"):
        raise TypeError(
            "`optimizer` must be an optax optimiser, a `GradientTransformation`, got "
            f"{type(optimizer).__name__}. For steps of size 1e-3 pass `optax.sgd(1e-3)`; of "
            "`optax.MultiSteps` pass its `.gradient_transformation()`."
        )
    log_eps = as_log_eps(eps, log_eps, dtype)
    check_least_eps(network, log_eps)
    numbers = _as_steps(steps)
    run = _train(
        network,
        problem,
        optimizer,
        log_eps,
        jnp.asarray(numbers, jnp.result_type(int)),
        int(numbers[-1]),
        as_batches(problem, batch_size, batches, label_noise, key),
        None if loss_tol is None else as_tolerance(loss_tol, "loss_tol", dtype),
    )
    return raise_on_failure(run, run.result, throw, kept=_KEPT)


def _as_steps(steps: ArrayLike | Sequence[SupportsIndex]) -> np.ndarray:
    if not is_concrete(*jax.tree.leaves(steps)):
        raise TypeError("`steps` must be concrete: the number of steps cannot be traced.")
    numbers = np.atleast_1d(np.asarray(steps))
    if numbers.size == 0:
        raise ValueError("`steps` is empty. Pass a number of steps, such as 1000.")
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
        raise TypeError(
            "`steps` must be a number of steps, or a grid of whole numbers of shape (S,), got "
            f"shape {numbers.shape} of {numbers.dtype}. `np.unique(np.geomspace(1, 10_000, "
            "100).astype(int))` is one."
        )
    # Compare neighbours: `np.diff` of unsigned integers would wrap around and be positive.
    if numbers[0] < 0 or np.any(numbers[1:] <= numbers[:-1]):
        raise ValueError(f"`steps` must be non-negative and increase, got {numbers}.")
    return numbers


@eqx.filter_jit
def _train(
    network: AbstractNetwork,
    problem: AbstractProblem,
    optimizer: optax.GradientTransformation,
    log_eps: Array,
    steps: Array,
    num_steps: int,
    batches: Batches,
    loss_tol: Array | None,
) -> Training:
    term = WeightTerm(network, problem, log_eps)
    verdict = first_failure(
        validity(problem, any_loss=batches.are_all),
        (is_log_eps(log_eps), RESULTS.invalid_eps),
        shape_of(network, log_eps),
        term.start_validity(),
        (takes(network, problem.weight_decay), RESULTS.invalid_decay),
    )
    valid = verdict == RESULTS.successful
    # Train a valid network on a valid problem where they are not, and make it NaN at the end: the
    # derivative of a NaN would be NaN even where it is not selected.
    given = log_eps
    problem = harmless_data(problem, valid, any_loss=batches.are_all)
    network = harmless_network(network, valid)
    log_eps = jnp.where(valid, log_eps, -1)
    term = WeightTerm(network, problem, log_eps)
    records, with_weights = run_steps(
        term.start, problem, optimizer, steps, num_steps, batches, loss_tol
    )

    # In the same way, compute with 0 and 1 in place of records that diverged.
    vectors, (t, sums) = records.weights, records.sums
    is_bounded = jnp.all(jnp.isfinite(vectors), axis=1)
    is_bounded = is_bounded & jnp.all(jnp.isfinite(sums), axis=(1, 2))
    sums = jnp.where(is_bounded[:, None, None], sums, 0)
    vectors = jnp.where(is_bounded[:, None], vectors, jnp.ones_like(vectors))
    z, drift = sums[:, 0], sums[:, 1]
    x = jax.vmap(lambda vector: with_weights(vector)())(vectors)
    moved = (t > 0)[:, None]
    x_mean = jnp.where(moved, z / jnp.where(moved, t[:, None], 1), x)
    loss = problem.loss(x)
    scale = network.time_scale(log_eps)

    is_tol = jnp.asarray(True) if loss_tol is None else is_tolerance(loss_tol)
    goes_on = (t[-1] >= 0) & batches.is_valid(problem)
    verdict = first_failure(
        verdict, (is_tol, RESULTS.invalid_tolerance), (goes_on, RESULTS.invalid_training)
    )
    valid = verdict == RESULTS.successful
    finite = jnp.isfinite(loss) & jnp.all(jnp.isfinite(x_mean), axis=1)
    finite = finite & is_bounded
    result = first_failure(verdict, (finite[-1], RESULTS.training_diverged))
    kept = valid & finite
    stats: dict[str, Any] = {"last_finite_step": jnp.max(jnp.where(kept, records.steps, -1))}
    if records.deviation is not None:
        stats["max_deviation"] = records.deviation[-1]
    keep = lambda v: jnp.where(kept.reshape(-1, *(1 for _ in v.shape[1:])), v, jnp.nan)
    sides = records.sides
    if sides is not None:
        # The loop stops multiplying `sides` at the cap: from there on they are not the product.
        is_held = jnp.any(jnp.abs(sides) >= math.exp(log_cap(sides.dtype)), axis=(1, 2))
        sides = jnp.where(is_held[:, None, None], jnp.nan, sides)
    vectors, sides = jax.tree.map(keep, (vectors, sides))
    # A refused lane was trained from another ε: its times mean nothing.
    has_time = records.has_time & valid
    timed = lambda v: jnp.where(has_time.reshape(-1, *(1 for _ in v.shape[1:])), v, jnp.nan)
    return Training(
        steps=records.steps,
        t=timed(t),
        s=timed(t / scale),
        x=keep(x),
        x_mean=timed(keep(x_mean)),
        loss=keep(loss),
        network=jax.vmap(with_weights)(vectors),
        dual=timed(keep(-drift / scale)),
        sides=sides,
        log_eps=given,
        result=result,
        stats=stats,
    )
