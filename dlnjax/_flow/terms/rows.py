"""The state space of `ν ∈ R^n`: for `n < d`, at depth 2, without weight decay.

    g = Xᵀν,   w^± = w(0) ∓ g,   x = φ_ε(w⁺) − φ_ε(w⁻),   dν/ds = −F′(Xx),   dz/ds = x.

With `E = diag(−φ_ε'(w⁺) − φ_ε'(w⁻))`, `K = X E Xᵀ` and `H = F″(Xx)`, the Jacobian in `ν` is `−HK`.
For the square, `H = I`, a step factorises `I/(γh) + K` by Cholesky. Otherwise, with `RRᵀ = γhH`,

    (I + γhHK)⁻¹ = I − R (I + RᵀKR)⁻¹ RᵀK,

where `H` may span any number of decades. The difference cancels where `γhHK` is large; a step of
iterative refinement restores its digits.

Otherwise `w` itself must be the state (`coordinates.py`). With weight decay `Xᵀν` grows like `λs`,
and an active `w ≈ 0` would be a difference of growing numbers. At depth above 2 an active `w` is
below the rounding of `w(0)`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import Cholesky, matmul
from ...networks.signs import sides, signed
from ..link import ExponentialLink
from .base import AbstractDualTerm
from .fit import AbstractFit, Curvature


class RowTerm(AbstractDualTerm):
    """State `(σν, σ²z/ζ)`, of shapes `(n,)` and `(d,)`; its image is `g = Xᵀν`."""

    fit: AbstractFit
    link: ExponentialLink
    scale: Float[Array, ""]
    zeta: Float[Array, ""]

    def _w(self, g: Array) -> Array:
        return self.link.start - sides(g, self.link.start)

    def initial(self):
        X = self.fit.X
        return jnp.zeros_like(X[:, 0]), jnp.zeros_like(X[0])

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
        return matmul(f, self.fit.X)

    def is_in_range(self, x):
        return self.link.is_in_range(x)

    def velocity(self, x):
        return self.fit.residual(x)

    def factorize(self, x, slope, gamma_h):
        matrix = matmul(self.fit.X * slope[None, :], self.fit.X.T)
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        curvature = self.fit.curvature(x)
        if curvature is None:
            # I/(γh) keeps the matrix positive definite where few coordinates are active.
            return Cholesky(identity / gamma_h + matrix)
        return _Weighted(matrix, curvature.times(gamma_h), gamma_h)

    def solve(self, factors, rhs, drift):
        return factors.solve(rhs)

    @property
    def matrix_size(self):
        return self.fit.X.shape[0]

    def error(self, state, error):
        return jax.tree.map(jnp.abs, error)

    def read(self, s, state):
        g = self.image(state[0])
        return signed(self.link.read(self._w(g))), self.zeta * state[1] / self.scale**2, g


class _Weighted(eqx.Module):
    """`I/(γh) + HK`, factorised."""

    matrix: Float[Array, "n n"]  # K
    weight: Curvature  # γhH = RRᵀ
    gamma_h: Float[Array, ""]
    factor: Cholesky  # of I + RᵀKR

    def __init__(self, matrix: Array, weight: Curvature, gamma_h: Array):
        self.matrix, self.weight, self.gamma_h = matrix, weight, gamma_h
        identity = jnp.eye(len(matrix), dtype=matrix.dtype)
        inner = weight.root_transposed(weight.root_transposed(matrix).T)
        self.factor = Cholesky(identity + inner)

    def solve(self, rhs: Float[Array, " n"]) -> Float[Array, " n"]:
        asked = self.gamma_h * rhs
        u = self._once(asked)
        return u + self._once(asked - u - self.weight.product(matmul(self.matrix, u)))

    def _once(self, asked: Array) -> Array:
        along = self.weight.root_transposed(matmul(self.matrix, asked))
        return asked - self.weight.root(self.factor.solve(along))
