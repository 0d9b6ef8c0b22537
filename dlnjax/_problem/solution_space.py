"""The minimisers of the loss, as an affine space."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg import eigh, inverse_factor, matmul, svd
from .base import AbstractProblem

# In units of `max(n, d)` roundings of the largest singular value, how large one must be to count:
# twice what the rounding of entries of `X` can make of 0, twice what that of the decomposition can.
RANK = 4


class SolutionSpace(eqx.Module):
    """The minimisers of the loss over the coordinates of a mask, as `{x : V(units x) = target}`,
    where the rows of `V` are an orthonormal basis of `range (X/units)ᵀ`. Rows beyond the rank are
    zero. Units are powers of 2, with which columns have norms between 1 and 2: in the user's units
    the singular values of small columns would be rounding of large ones."""

    units: Float[Array, " d"]
    V: Float[Array, "m d"]
    inverse: Float[Array, " m"]  # of the non-zero eigenvalues of M
    target: Float[Array, " m"]

    def __init__(
        self,
        problem: AbstractProblem,
        mask: Bool[Array, " d"],
        point: Float[Array, " d"] | None = None,
        units: Float[Array, " d"] | None = None,
    ):
        """`target` is that of `point`, if a minimiser is known: its `Xx` is exactly that of an
        `x ≥ 0`, which the projection of `y` is but for rounding. Other `units` are for what is
        meant in them, such as a least 2-norm."""
        unit = jnp.finfo(problem.r.dtype).eps
        norms = problem.column_norms()
        _, exponent = jnp.frexp(jnp.where(norms > 0, norms, 1))  # of norms in [1/2, 1)
        self.units = jnp.ldexp(jnp.ones_like(norms), exponent - 1) if units is None else units
        rows = problem.rows()
        if rows is not None:
            X, y = rows
            X = jnp.where(mask[None, :], X / self.units[None, :], 0)
            U, s, V = svd(X)
            good = s > RANK * unit * max(X.shape) * s[0]
            inverse = jnp.where(good, 1 / jnp.where(good, s, 1), 0)
            target = inverse * _without_rounding(matmul(y, U), y)
            self.inverse = inverse**2
            image = inverse[:, None] * matmul(U.T, X)
        else:
            M = problem.gram() / self.units[:, None] / self.units[None, :]
            M = jnp.where(mask[None, :] & mask[:, None], M, 0)
            s, V = eigh(M)
            s, V = s[::-1], V.T[::-1]  # the largest first, as singular values are
            good = s > RANK * unit * len(s) * s[0]
            self.inverse = jnp.where(good, 1 / jnp.where(good, s, 1), 0)
            r = jnp.where(mask, problem.r / self.units, 0)
            target = self.inverse * _without_rounding(matmul(V, r), r)
            image = self.inverse[:, None] * matmul(V, M)
        # Of a small singular value the vector has the rounding of the largest, with which columns
        # of 0 and copies are none. What its image is keeps them, but is no longer orthogonal to
        # those of the larger ones, which stay as they are.
        gram = matmul(image, image.T) + jnp.diag((~good).astype(image.dtype))
        # But for rounding it is the identity, which has no derivative.
        factor = inverse_factor(lax.stop_gradient(gram))
        self.V, self.target = matmul(factor, image), matmul(factor, target)
        if point is not None:
            self.target = self.image(point)

    def image(self, point: Float[Array, " d"]) -> Float[Array, " m"]:
        return matmul(self.V, self.units * point)

    def project(self, gradient: Float[Array, " d"]) -> Float[Array, " m"]:
        """The change of `Vx` that changes `Mx` by this, as far as it can."""
        return self.inverse * matmul(self.V, gradient)

    def in_range(self, dual: Float[Array, " d"]) -> Float[Array, " d"]:
        """The nearest `Xᵀν`, distances measured in `units`."""
        return self.units * matmul(matmul(self.V, dual / self.units), self.V)

    def rank(self) -> Int[Array, ""]:
        return jnp.sum(self.inverse > 0)

    def size(self) -> Float[Array, ""]:
        """Largest entry of the minimiser of least 2-norm."""
        return jnp.max(jnp.abs(matmul(self.target, self.V)))


def _without_rounding(v: Array, data: Array) -> Array:
    """`v`, products of unit vectors with `data`, where what may be the rounding of 0 is 0."""
    rounding = 8 * jnp.finfo(v.dtype).eps * jnp.sqrt(jnp.sum(data**2))
    return jnp.where(jnp.abs(v) > rounding, v, 0)
