"""The weight form: gradient flow on the weights of any network, by automatic differentiation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._network import AbstractNetwork
from .._problem import AbstractProblem
from ._term import AbstractFlowTerm


class WeightTerm(AbstractFlowTerm):
    """State `(network, z)`: `d(weights)/ds = −(t/s) ∇(ℓ + penalty)`, `dz/ds = x`."""

    problem: AbstractProblem
    start: AbstractNetwork
    time_scale: Float[Array, ""]

    def __init__(self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array):
        self.problem = problem
        self.start = network.initial(log_eps)
        self.time_scale = network.time_scale(log_eps)

    def initial(self):
        weights = eqx.filter(self.start, eqx.is_inexact_array)
        return weights, jnp.zeros_like(self.problem.r)

    def is_valid(self):
        weights = jax.tree.leaves(eqx.filter(self.start, eqx.is_inexact_array))
        finite = jnp.stack([jnp.all(jnp.isfinite(w)) for w in weights]).all()
        # At tiny ε every weight underflows to 0, and never moves.
        return finite & jnp.stack([jnp.any(w != 0) for w in weights]).any()

    def _network(self, state) -> AbstractNetwork:
        return eqx.combine(state[0], self.start)

    def vf(self, t, y, args):
        def objective(network):
            penalty = network.penalty(self.problem.weight_decay)
            return self.problem.loss(network()) + penalty

        network = self._network(y)
        gradient = eqx.filter_grad(objective)(network)
        velocity = jax.tree.map(lambda g: -self.time_scale * g, gradient)
        return velocity, network()

    def read(self, s, state):
        z = state[1]
        return self._network(state)(), z, s * self.problem.r - self.problem.matvec(z)
