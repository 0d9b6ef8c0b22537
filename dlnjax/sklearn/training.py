"""The batched solve of the estimators: one lane for each subset of the rows and output."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._flow.gradient_flow import gradient_flow
from .._limit.limit_flow import limit_flow
from .._problem import AbstractProblem, LeastSquares, Logistic
from .._results import RESULTS
from ..networks import AbstractDualNetwork, Deep, Linear, MixedDepth, USquared


class Training(NamedTuple):
    """How all lanes are trained, and when."""

    times: Float[Array, " S"]  # in units of the one over the largest correlation
    shape: Float[Array, " d"]
    log_eps: Float[Array, ""] | None  # None: the limit process
    depth: Float[Array, ""] | int  # 2 is known, so that its links are closed
    rtol: Float[Array, ""]
    average: Bool[Array, ""]


def training_of(model: Any, times: np.ndarray, shape: np.ndarray) -> Training:
    """That of an estimator, whose parameters were checked, in float64."""
    as_array = lambda value: jnp.asarray(value, jnp.float64)
    return Training(
        times=as_array(times),
        shape=as_array(shape),
        log_eps=None if model.eps == 0 else as_array(np.log(model.eps)),
        depth=2 if model.depth == 2 else as_array(model.depth),
        rtol=as_array(model.rtol),
        average=jnp.asarray(bool(model.average)),
    )


@eqx.filter_jit
def train(
    X: Float[Array, "lanes n d"],
    y: Float[Array, "lanes n"],
    how: Training,
    weight_decay: Float[Array, ""],
    positive: bool,
) -> tuple[Array, Array, Array, Array, RESULTS]:
    """`x` (lanes, S, d), its duality gap, `‖Xᵀy‖_∞`, the steps and the result of each lane."""
    network = USquared(how.shape) if positive else Deep(how.shape, how.shape, depth=how.depth)

    def lane(X, y):
        # The unit of 1/s and of weight decay: the penalty from which on all coefficients are 0.
        r = LeastSquares(X, y).r
        largest = jnp.maximum(jnp.max(r if positive else jnp.abs(r)), 0)
        unit = jnp.where(largest > 0, largest, 1)
        problem, s = LeastSquares(X, y, weight_decay * unit), how.times / unit
        x, steps, result = _trained(network, problem, X, s, how)
        gap = problem.duality_gap(x, problem.weight_decay + 1 / s, positive)
        return x, gap, largest, steps, result

    return jax.vmap(lane)(X, y)


@eqx.filter_jit
def train_classifier(
    X: Float[Array, "lanes n d"], y: Float[Array, "lanes n"], how: Training, intercept: bool
) -> tuple[Array, Array, Array, RESULTS]:
    """`x` (lanes, S, d), the largest correlation at 0, the steps and the result of each lane, for
    the logistic loss. With `intercept` the first column is of ones, and free."""
    free = int(intercept)
    network = Deep(how.shape[free:], how.shape[free:], depth=how.depth)
    if intercept:
        network = MixedDepth(Linear(jnp.zeros_like(how.shape[:1])), network)

    def lane(X, y):
        problem = Logistic(X, y)
        largest = jnp.max(jnp.abs(problem.r[free:]))
        s = how.times / jnp.where(largest > 0, largest, 1)
        x, steps, result = _trained(network, problem, X, s, how)
        return x, largest, steps, result

    return jax.vmap(lane)(X, y)


def _trained(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    X: Float[Array, "n d"],
    s: Float[Array, " S"],
    how: Training,
) -> tuple[Float[Array, "S d"], Array, RESULTS]:
    """`x̄` or `x` at the times `s`, the steps and the result."""
    if how.log_eps is None:
        limit = limit_flow(network, problem, s[-1], throw=False)
        mean, last = limit.x_mean(s), limit.plateau(s)
        steps, result = limit.stats["num_pivots"], limit.result
    else:
        # `atol` below `rtol`: the dual variable, of order 1 at first, is near 0 where active.
        rtol, log_eps = how.rtol, how.log_eps
        flow = gradient_flow(
            network, problem, s, log_eps=log_eps, rtol=rtol, atol=rtol / 10, throw=False
        )
        mean, last = flow.x_mean, flow.x
        steps, result = flow.stats["num_steps"], flow.result
    # A constant column, 0 once centred, keeps its start, which for `u∘u` is ε and not 0.
    x = jnp.where(jnp.any(X != 0, axis=0), jnp.where(how.average, mean, last), 0)
    return x, jnp.asarray(steps), result
