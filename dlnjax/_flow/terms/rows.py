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

from typing import TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import Cholesky, matmul
from ...networks.signs import sides
from ..link import ExponentialLink
from .base import AbstractDualTerm
from .difference import (
    error_of_average,
    error_of_difference,
    excess,
    is_balanced,
    validity_of_start,
)
from .fit import AbstractFit, Curvature


class RowTerm(AbstractDualTerm):
    """State `(σν, σ²z/ζ)`, of shapes `(n,)` and `(d,)`; its image is `g = Xᵀν`."""

    fit: AbstractFit
    link: ExponentialLink
    scale: Float[Array, ""]
    zeta: Float[Array, ""]
    largest: Float[Array, ""]  # entry of σ²x, at most
    excess: Float[Array, ""]  # of the start (`difference.py`)

    def _w(self, g: Array) -> Array:
        """`w`, with the row of `g` if there is one (`link_base.py`)."""
        w = self.link.start - sides(g, self.link.start)
        return jnp.concatenate([w, g[None]]) if self.link.has_third_row() else w

    def initial(self):
        X = self.fit.X
        return jnp.zeros_like(X[:, 0]), jnp.zeros_like(X[0])

    def size(self):
        return jnp.ones_like(self.scale)

    def threshold(self):
        return 1 / self.excess

    def validity(self):
        return validity_of_start(self.link, self.excess)

    def x(self, g):
        return self.scale**2 * self.link.x(self._w(g))

    def _slopes(self, g):
        """`σ²x`, and the slopes of both signs with their difference."""
        x, slope = self.link.response(self._w(g))
        return self.scale**2 * x, self.scale**2 * slope

    def response(self, g):
        x, slope = self._slopes(g)
        return x, jnp.sum(slope[:2], axis=0)

    def change(self, slope, image):
        return slope * image

    def rounding(self, slope, g):
        size = jnp.ones_like(g)
        if self.link.has_third_row():  # where nearly balanced, `x` keeps the digits of `g`
            size = jnp.where(is_balanced(self._slopes(g)[1]), jnp.abs(g), size)
        return jnp.finfo(g.dtype).eps * size * slope

    def image(self, f):
        return matmul(f, self.fit.X)

    def is_in_range(self, x):
        return self.link.is_in_range(x)

    def velocity(self, x):
        return self.fit.residual(x)

    def factorize(self, x, slope, gamma_h):
        return row_factor(self.fit, x, slope, gamma_h)

    def solve(self, factors, rhs, drift):
        return factors.solve(rhs)

    @property
    def matrix_size(self):
        return self.fit.X.shape[0]

    def error(self, state, error):
        if not self.link.has_third_row():
            return self.excess * jnp.abs(error[0]), error_of_average(
                state[1], error[1], self.excess
            )
        x, slope = self._slopes(self.image(state[0]))
        in_x = error_of_difference(slope, x, self.image(error[0]), self.largest)
        in_nu = jnp.maximum(jnp.abs(error[0]), jnp.max(in_x))
        return in_nu, error_of_average(state[1], error[1], excess(slope, self.largest))

    def read(self, s, state):
        g = self.image(state[0])
        x = self.link.x(self._w(g), is_output=True)
        return x, self.zeta * state[1] / self.scale**2, g


def row_factor(
    fit: AbstractFit, x: Float[Array, " d"], slope: Float[Array, " d"], gamma_h: Array
) -> "RowFactor":
    """`I/(γh) + HK`, factorised, with `K = XEXᵀ` for the slopes `E`."""
    matrix = matmul(fit.X * slope[None, :], fit.X.T)
    curvature = fit.curvature(x)
    if curvature is None:
        # I/(γh) keeps the matrix positive definite where few coordinates are active.
        return Cholesky(jnp.eye(matrix.shape[0], dtype=matrix.dtype) / gamma_h + matrix)
    return _Weighted(matrix, curvature.times(gamma_h), gamma_h)


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


RowFactor: TypeAlias = Cholesky | _Weighted
