"""The minimisers of the loss, as an affine space."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._linalg import eigh, matmul, svd
from ._problem import AbstractProblem, LeastSquares


class Constraint(eqx.Module):
    """The minimisers of the loss over the coordinates of a mask, as `{x : Vx = target}`, where the
    rows of `V` are an orthonormal basis of `range Xᵀ`. Rows beyond the rank are zero."""

    V: Float[Array, "m d"]
    inverse: Float[Array, " m"]  # of the non-zero eigenvalues of M
    target: Float[Array, " m"]

    def __init__(self, problem: AbstractProblem, mask: Bool[Array, " d"]):
        unit = jnp.finfo(problem.r.dtype).eps
        if isinstance(problem, LeastSquares):
            X = jnp.where(mask[None, :], problem.X, 0)
            U, s, V = svd(X)
            good = s > unit * max(X.shape) * s[0]
            inverse = jnp.where(good, 1 / jnp.where(good, s, 1), 0)
            self.target = inverse * _without_rounding(matmul(problem.y, U), problem.y)
            self.inverse = inverse**2
        else:
            M = jnp.where(mask[None, :] & mask[:, None], problem.gram(), 0)
            s, V = eigh(M)
            V = V.T
            good = s > unit * len(s) * s[-1]
            self.inverse = jnp.where(good, 1 / jnp.where(good, s, 1), 0)
            r = jnp.where(mask, problem.r, 0)
            self.target = self.inverse * _without_rounding(matmul(V, r), r)
        self.V = jnp.where(good[:, None] & mask[None, :], V, 0)

    def project(self, gradient: Float[Array, " d"]) -> Float[Array, " m"]:
        """The change of `Vx` that changes `Mx` by this, as far as it can."""
        return self.inverse * matmul(self.V, gradient)

    def rank(self) -> Int[Array, ""]:
        return jnp.sum(self.inverse > 0)

    def size(self) -> Float[Array, ""]:
        """Largest entry of the minimiser of least 2-norm."""
        return jnp.max(jnp.abs(matmul(self.target, self.V)))


def _without_rounding(v: Array, data: Array) -> Array:
    """`v`, products of unit vectors with `data`, where what may be the rounding of 0 is 0."""
    rounding = 8 * jnp.finfo(v.dtype).eps * jnp.sqrt(jnp.sum(data**2))
    return jnp.where(jnp.abs(v) > rounding, v, 0)
