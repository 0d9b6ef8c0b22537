"""The dual form of depth 1, a linear equation.

    x = x(0) + Xᵀν − λz,    dx/ds = r − (M + λI)x,    dz/ds = x.

A step factorises `I/(γh) + M + λI` by Cholesky.
"""

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import Cholesky, matmul
from ..._problem import AbstractProblem
from ..._results import RESULTS, first_failure
from ...networks import Linear
from .base import AbstractDualTerm, column_scale


class LinearTerm(AbstractDualTerm):
    """State `(x/ζ, σ²z/ζ)`, each `(d,)`, where `ζ` is the size of `x`.

    So both have order 1 at times of order `1/σ²`, whatever the units of `X` and `y` are."""

    M: Float[Array, "d d"]  # (M + λI)/σ²
    r: Float[Array, " d"]
    start: Float[Array, " d"]  # x(0)
    weight_decay: Float[Array, ""]
    scale: Float[Array, ""]
    zeta: Float[Array, ""]

    def initial(self):
        return self.start / self.zeta, jnp.zeros_like(self.r)

    def size(self):
        return jnp.ones_like(self.scale)

    def threshold(self):
        return self.zeta

    def validity(self):
        finite = jnp.all(jnp.isfinite(self.start))
        return first_failure((finite, RESULTS.invalid_shape))

    def x(self, g):
        return self.scale**2 * self.zeta * g

    def response(self, g):
        slope = self.scale**2 * self.zeta
        return slope * g, slope * jnp.ones_like(g)

    def change(self, slope, image):
        return slope * image

    def image(self, f):
        return f

    def velocity(self, x):
        return (self.r - matmul(self.M, x)) / self.zeta

    def factorize(self, x, slope, gamma_h):
        identity = jnp.eye(len(self.r), dtype=self.r.dtype)
        return Cholesky(identity / gamma_h + self.scale**2 * self.M)

    def solve(self, factors, rhs, drift):
        return factors.solve(rhs)

    @property
    def matrix_size(self):
        return len(self.r)

    def error(self, state, error):
        return jax.tree.map(jnp.abs, error)

    def read(self, s, state):
        x, z = self.zeta * state[0], self.zeta * state[1] / self.scale**2
        return x, z, x - self.start + self.weight_decay * z


def x_size(network: Linear, problem: AbstractProblem, log_eps: Array) -> Float[Array, ""]:
    """The size of `x`, to which tolerances are relative: `max(‖r‖_∞/σ², ‖x(0)‖_∞)`, or 1 if 0."""
    start = jnp.max(jnp.abs(network.initial(log_eps)()))
    size = jnp.maximum(jnp.max(jnp.abs(problem.r)) / column_scale(problem) ** 2, start)
    return lax.stop_gradient(jnp.where(size > 0, size, 1))


def linear_term(network: Linear, problem: AbstractProblem, log_eps: Array) -> LinearTerm:
    """The vector field of `network` on `problem`."""
    scale = column_scale(problem)
    decay = jnp.asarray(problem.weight_decay)
    return LinearTerm(
        M=(problem.gram() + decay * jnp.eye(len(problem.r), dtype=problem.r.dtype)) / scale**2,
        r=problem.r,
        start=network.initial(log_eps)(),
        weight_decay=decay,
        scale=scale,
        zeta=x_size(network, problem, log_eps),
    )
