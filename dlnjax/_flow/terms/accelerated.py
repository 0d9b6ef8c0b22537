"""The accelerated flow of the weights of any network, `θ̈ + (2α + 1)/t θ̇ = −∇(ℓ(x) + penalty)`.

With `c = t/s`, `V` the velocity of the weight form in `s`, and `θ̇ = t p` for the velocity in `t`,
this is regular at `s = 0`, where it starts from rest:

    dθ/ds = s P,    dP/ds = (c V − (2α + 2) P)/s,    P = c² p,    P(0) = c V/(2α + 2).
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..._problem import AbstractProblem
from ..._results import RESULTS, first_failure
from ...networks import AbstractNetwork
from .base import AbstractFlowTerm
from .difference import DifferenceNorm
from .weights import WeightTerm, largest_of


class AcceleratedTerm(AbstractFlowTerm):
    """State `((weights, τ² P), z/ζ)`, with `τ` about the time in which weights change by as much as
    they are."""

    form: WeightTerm
    alpha: Float[Array, ""]
    is_alpha: Bool[Array, ""]  # whether α is at least −1/2 and finite
    time: Float[Array, ""]  # τ

    def __init__(
        self,
        network: AbstractNetwork,
        problem: AbstractProblem,
        log_eps: Float[Array, ""],
        alpha: Float[Array, ""],
    ):
        self.form = form = WeightTerm(network, problem, log_eps)
        self.is_alpha = (alpha >= -0.5) & jnp.isfinite(alpha)
        # As in `MomentumTerm`.
        self.alpha = jnp.where(self.is_alpha, alpha, 0)
        start, _ = form.initial()
        speed = form.time_scale * largest_of(form.velocity(start))
        square = jnp.maximum(largest_of(start), form.size()) / speed
        is_known = jnp.isfinite(square) & (square > 0)
        self.time = lax.stop_gradient(jnp.sqrt(jnp.where(is_known, square, 1)))

    def schedule(self):
        return self.form.schedule()

    def at(self, s):
        return eqx.tree_at(lambda term: term.form, self, self.form.at(s))

    def initial(self):
        weights, z = self.form.initial()
        force = self.form.time_scale / (2 * self.alpha + 2) * self.time**2
        push = jax.tree.map(lambda v: force * v, self.form.velocity(weights))
        return (weights, push), z

    def size(self):
        return self.form.size()

    def norm(self):
        return DifferenceNorm((self.form.excess, self.form.excess))

    def threshold(self):
        largest = jnp.max(jnp.abs(self.form.problem.gradient(self.form.start())))
        return self.time * jnp.where(largest > 0, largest, 1)

    def validity(self):
        return first_failure((self.is_alpha, RESULTS.invalid_alpha), self.form.validity())

    def vf(self, t, y, args):
        (weights, push), _ = y
        speed, x = self.form.vf(t, (weights, y[1]), args)
        force, friction = self.form.time_scale * self.time**2, 2 * self.alpha + 2
        # At 0 the right-hand side is 0: P is even in s.
        over = jnp.where(t > 0, 1 / jnp.where(t > 0, t, 1), 0)
        moved = jax.tree.map(lambda p: t / self.time**2 * p, push)
        pushed = jax.tree.map(lambda v, p: over * (force * v - friction * p), speed, push)
        return (moved, pushed), x

    def read(self, s, state):
        (weights, _), z = state
        return self.form.read(s, (weights, z))
