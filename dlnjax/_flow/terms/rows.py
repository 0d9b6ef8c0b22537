"""The state space of `ν ∈ R^n`: for `n < d`, at depth 2, without weight decay.

    g = Xᵀν,   w^± = w(0) ∓ g,   x = φ_ε(w⁺) − φ_ε(w⁻),   dν/ds = y − Xx,   dz/ds = x.

With `E = diag(−φ_ε'(w⁺) − φ_ε'(w⁻))`, the Jacobian in `ν` is `−X E Xᵀ`: symmetric and negative
semidefinite. A step factorises `I/(γh) + X E Xᵀ` by Cholesky.

Otherwise `w` itself must be the state (`coordinates.py`). With weight decay `Xᵀν` grows like `λs`,
and an active `w ≈ 0` would be a difference of growing numbers. At depth above 2 an active `w` is
below the rounding of `w(0)`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import Cholesky, matmul
from ...networks.signs import sides, signed
from ..link import ExponentialLink
from .base import AbstractDualTerm


class RowTerm(AbstractDualTerm):
    """State `(σν, σ²z/ζ)`, of shapes `(n,)` and `(d,)`; its image is `g = Xᵀν`."""

    X: Float[Array, "n d"]  # X/σ
    y: Float[Array, " n"]  # σy
    link: ExponentialLink
    scale: Float[Array, ""]
    zeta: Float[Array, ""]

    def _w(self, g: Array) -> Array:
        return self.link.start - sides(g, self.link.start)

    def initial(self):
        return jnp.zeros_like(self.y), jnp.zeros_like(self.X[0])

    def size(self):
        return jnp.ones_like(self.scale)

    def threshold(self):
        return jnp.ones_like(self.scale)

    def validity(self):
        return self.link.validity()

    def x(self, g):
        return self.scale**2 * signed(self.link.q(self._w(g)))

    def response(self, g):
        w = self._w(g)
        q, square = self.link.q(w), self.scale**2
        return square * signed(q), square * jnp.sum(self.link.slope(w, q), axis=0)

    def change(self, slope, image):
        return slope * image

    def image(self, f):
        return matmul(f, self.X)

    def is_in_range(self, x):
        return self.link.is_in_range(x)

    def velocity(self, x):
        return self.y - matmul(self.X, x)

    def factorize(self, slope, gamma_h):
        # I/(γh) keeps the matrix positive definite where few coordinates are active.
        matrix = matmul(self.X * slope[None, :], self.X.T)
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return Cholesky(identity / gamma_h + matrix)

    def solve(self, factors, rhs, drift):
        return factors.solve(rhs)

    @property
    def matrix_size(self):
        return len(self.y)

    def error(self, state, error):
        return jax.tree.map(jnp.abs, error)

    def read(self, s, state):
        g = self.image(state[0])
        return signed(self.link.read(self._w(g))), self.zeta * state[1] / self.scale**2, g
