"""The batched solve of the estimators: one lane for each subset of the rows and output."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._flow.gradient_flow import gradient_flow
from .._limit.limit_flow import limit_flow
from .._problem import AbstractProblem, LeastSquares, Logistic
from .._results import RESULTS
from ..networks import AbstractDualNetwork, Deep, Linear, MixedDepth, USquared


@eqx.filter_jit
def train(
    X: Float[Array, "lanes n d"],
    y: Float[Array, "lanes n"],
    times: Float[Array, " S"],
    shape: Float[Array, " d"],
    log_eps: Float[Array, ""] | None,
    depth: Float[Array, ""] | int,
    weight_decay: Float[Array, ""],
    rtol: Float[Array, ""],
    average: Bool[Array, ""],
    positive: bool,
) -> tuple[Array, Array, Array, Array, RESULTS]:
    """`x` (lanes, S, d), its duality gap, `‖Xᵀy‖_∞`, the steps and the result of each lane."""
    network = USquared(shape) if positive else Deep(shape, shape, depth=depth)

    def lane(X, y):
        # The unit of 1/s and of weight decay: the penalty from which on all coefficients are 0.
        r = LeastSquares(X, y).r
        largest = jnp.maximum(jnp.max(r if positive else jnp.abs(r)), 0)
        unit = jnp.where(largest > 0, largest, 1)
        problem, s = LeastSquares(X, y, weight_decay * unit), times / unit
        mean, last, steps, result = _trained(network, problem, s, log_eps, rtol)
        # A constant column, 0 once centred, keeps its start, which for `u∘u` is ε and not 0.
        x = jnp.where(jnp.any(X != 0, axis=0), jnp.where(average, mean, last), 0)
        gap = problem.duality_gap(x, problem.weight_decay + 1 / s, positive)
        return x, gap, largest, steps, result

    return jax.vmap(lane)(X, y)


@eqx.filter_jit
def train_classifier(
    X: Float[Array, "lanes n d"],
    y: Float[Array, "lanes n"],
    times: Float[Array, " S"],
    shape: Float[Array, " d"],
    log_eps: Float[Array, ""] | None,
    depth: Float[Array, ""] | int,
    rtol: Float[Array, ""],
    average: Bool[Array, ""],
    intercept: bool,
) -> tuple[Array, Array, Array, RESULTS]:
    """`x` (lanes, S, d), the largest correlation at 0, the steps and the result of each lane, for
    the logistic loss. With `intercept` the first column is of ones, and free."""
    free = int(intercept)
    network = Deep(shape[free:], shape[free:], depth=depth)
    if intercept:
        network = MixedDepth(Linear(jnp.zeros_like(shape[:1])), network)

    def lane(X, y):
        problem = Logistic(X, y)
        largest = jnp.max(jnp.abs(problem.r[free:]))
        s = times / jnp.where(largest > 0, largest, 1)
        mean, last, steps, result = _trained(network, problem, s, log_eps, rtol)
        x = jnp.where(jnp.any(X != 0, axis=0), jnp.where(average, mean, last), 0)
        return x, largest, steps, result

    return jax.vmap(lane)(X, y)


def _trained(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    s: Float[Array, " S"],
    log_eps: Float[Array, ""] | None,
    rtol: Float[Array, ""],
) -> tuple[Array, Array, Array, RESULTS]:
    """`x̄` and `x` at the times `s`, the steps and the result."""
    if log_eps is None:
        limit = limit_flow(network, problem, s[-1], throw=False)
        steps = jnp.asarray(limit.stats["num_pivots"])
        return limit.x_mean(s), limit.plateau(s), steps, limit.result
    # `atol` below `rtol`: the dual variable, of order 1 at first, is near 0 where active.
    flow = gradient_flow(
        network, problem, s, log_eps=log_eps, rtol=rtol, atol=rtol / 10, throw=False
    )
    return flow.x_mean, flow.x, jnp.asarray(flow.stats["num_steps"]), flow.result
