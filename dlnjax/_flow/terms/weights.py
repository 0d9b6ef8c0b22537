"""The weight form: gradient flow on the weights of any network, by automatic differentiation.

With `x = network()`,

    d(weights)/ds = −(t/s) ∇(ℓ(x) + penalty(λ)),    dz/ds = x.
"""

import math

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..._checks import is_concrete
from ..._problem import AbstractProblem, Schedule, with_decay
from ..._results import RESULTS, first_failure
from ...networks import AbstractDualNetwork, AbstractNetwork, Linear
from ...networks.base import (
    is_constant,
    weights_of,
)
from .base import AbstractFlowTerm, column_scale, dual_of, size_of_x
from .difference import DifferenceNorm, is_held
from .linear import x_size


def check_least_eps(network: AbstractNetwork, log_eps: Array) -> None:
    """Raise a `ValueError` for an `ε` below `network.least_log_eps`, where `x` is inaccurate."""
    least = network.least_log_eps(log_eps.dtype)
    if is_concrete(log_eps) and float(log_eps) < least:
        if isinstance(network, AbstractDualNetwork):
            fix = (
                "Use `gradient_flow` with `DualForm()`, the default, which works at every ε; to "
                "train, a larger ε, or `Deep(u, v, depth=2)`, whose weights keep their digits."
            )
        else:
            double = network.least_log_eps(jnp.float64)
            wider = f", or float64, down to e^{double:.4g}" if double < least else ""
            fix = f"Use a larger ε{wider}."
        raise ValueError(
            f"ε = e^{float(log_eps):.4g} is too small for weights of {type(network).__name__} in "
            f"{log_eps.dtype}: below e^{least:.4g} = {math.exp(least):.1e} `x` drowns in their "
            f"rounding. {fix}"
        )


class WeightTerm(AbstractFlowTerm):
    """State `(weights, z/ζ)`, where `weights` is the network with `None` for other leaves.

    With `ζ` both entries have one tolerance: `ζ` times the size of the shape is that of `z`."""

    problem: AbstractProblem  # with the weight decay at the time in question
    varies: Schedule | None
    start: AbstractNetwork
    time_scale: Float[Array, ""]
    weight_size: Float[Array, ""]
    zeta: Float[Array, ""]  # ζ
    # The correlations at the start times the time in which weights change by as much as they are.
    dual_size: Float[Array, ""]
    excess: PyTree[Float[Array, ""]]  # of the start (`difference.py`), for each array
    cancels: Bool[Array, ""]  # whether `x` is lost in the start
    is_large: Bool[Array, ""]  # whether ε is at least that of `least_log_eps`

    def __init__(self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array):
        decay = problem.weight_decay
        self.varies = decay if isinstance(decay, Schedule) else None
        if self.varies is not None:
            problem = with_decay(problem, self.varies.values[0])
        self.problem = problem
        self.start = network.initial(log_eps)._settled(problem)
        self.time_scale = network.time_scale(log_eps)
        if isinstance(network, Linear):  # its weights are x itself, of its own size from any start
            self.weight_size = self.dual_size = x_size(network, problem, log_eps)
            self.zeta = 1 / column_scale(problem) ** 2
            self.excess, self.cancels = jnp.ones_like(self.zeta), jnp.asarray(False)
        else:
            shape, start = weights_of(network), weights_of(self.start)
            largest = lax.stop_gradient(largest_of(shape))
            largest = jnp.where(largest > 0, largest, 1)
            self.weight_size = network._start_size(lax.stop_gradient(log_eps)) * largest
            correlation = jnp.max(jnp.abs(problem.gradient(self.start())))
            dual_size = correlation * largest_of(start) / largest_of(self.velocity(start))
            is_known = jnp.isfinite(dual_size) & (dual_size > 0)
            self.dual_size = lax.stop_gradient(jnp.where(is_known, dual_size, 1))
            self.zeta = self.dual_size / column_scale(problem) ** 2 / largest
            self.excess = lax.stop_gradient(self._excess(self.weight_size))
            # Ten times earlier than for the dual: on plateaus steps see the rounding of the
            # weights. At an excess of 1e6 there are twice as many, at 2e6 they never end.
            # Tolerances of weights that are small themselves do no harm.
            own = jnp.max(jnp.stack(jax.tree.leaves(self._excess(jnp.zeros_like(self.zeta)))))
            self.cancels = ~is_held(10 * lax.stop_gradient(own))
        self.is_large = log_eps >= network.least_log_eps(log_eps.dtype)

    def schedule(self):
        return self.varies

    def at(self, s):
        if self.varies is None:
            return self
        return eqx.tree_at(
            lambda term: term.problem, self, with_decay(self.problem, self.varies(s))
        )

    def initial(self):
        return weights_of(self.start), jnp.zeros_like(self.problem.r)

    def size(self):
        return self.weight_size

    def _excess(self, least: Float[Array, ""]) -> PyTree[Float[Array, ""]]:
        """For each array of weights, by how much relative changes of it change `x`, relative to the
        size of that; at least 1. Weights below `least` change by that."""
        start, size = weights_of(self.start), size_of_x(self.problem)
        x = self.start()
        size = jnp.where(size > 0, size, jnp.inf)
        beside = jnp.maximum(1, jnp.max(jnp.abs(x) / size))
        leaves, tree = jax.tree.flatten(start)
        # By differences: a user's network may have derivatives in reverse mode only. Their error
        # does no harm: a factor of 2 changes steps by 15 %.
        part = float(jnp.finfo(x.dtype).eps) ** (1 / 3)
        size = size / len(leaves)  # their changes add up

        def of(i: int, leaf: Array) -> Float[Array, ""]:
            moved = leaf + part * jnp.maximum(jnp.abs(leaf), least.astype(leaf.dtype))
            other = self._network(jax.tree.unflatten(tree, [*leaves[:i], moved, *leaves[i + 1 :]]))
            return jnp.maximum(1, jnp.max(jnp.abs(other() - x) / size) / part / beside)

        return jax.tree.unflatten(tree, [of(i, leaf) for i, leaf in enumerate(leaves)])

    def norm(self):
        return DifferenceNorm(self.excess)

    def threshold(self):
        return self.dual_size

    def validity(self):
        return first_failure(self.start_validity(), (~self.cancels, RESULTS.start_too_large))

    def start_validity(self) -> RESULTS:
        """Whether the start is valid, of any size."""
        weights = jax.tree.leaves(weights_of(self.start))
        finite = jnp.stack([jnp.all(jnp.isfinite(w)) for w in [*weights, self.start()]]).all()
        # If all weights underflow to 0 at a tiny ε, the velocity is 0 too for most networks, and
        # the flow would never start. (With r = 0, staying at 0 is right.)
        velocity, _ = self.vf(0.0, self.initial(), None)
        moves = jnp.stack([jnp.any(v != 0) for v in [*weights, *jax.tree.leaves(velocity)]]).any()
        moves = moves | jnp.all(self.problem.r == 0)
        return first_failure(
            (finite, RESULTS.invalid_shape), (self.is_large & moves, RESULTS.invalid_eps)
        )

    def _network(self, weights) -> AbstractNetwork:
        """The network with these weights, and its other leaves."""
        return eqx.combine(weights, self.start, is_leaf=is_constant)._settled(self.problem)

    def velocity(self, weights):
        """`d(weights)/ds` of gradient flow."""
        return self._velocity(self._network(weights))

    def _velocity(self, here: AbstractNetwork):
        # What follows the problem is at its optimum, where the gradient in it is 0: it is held.
        def objective(weights):
            network = eqx.combine(weights, here, is_leaf=is_constant)
            penalty = network.penalty(self.problem.weight_decay)
            return self.problem.loss(network()) + penalty

        gradient = eqx.filter_grad(objective)(weights_of(here))
        return jax.tree.map(lambda g: -self.time_scale * g, gradient)

    def vf(self, t, y, args):
        here = self._network(y[0])
        return self._velocity(here), here() / self.zeta

    def read(self, s, state):
        z = self.zeta * state[1]
        return self._network(state[0])(), z, dual_of(self.problem, s, z)


def largest_of(tree) -> Float[Array, ""]:
    """The largest absolute value of the leaves."""
    return jnp.max(jnp.stack([jnp.max(jnp.abs(v)) for v in jax.tree.leaves(tree)]))
