"""The minimisers of the loss, as the affine space `{x : V(units x) = target}`.

`V` has orthonormal rows: a basis of the row space of `X/units`, from its singular value
decomposition, or from the eigendecomposition of `M/(units unitsᵀ)` where `X` is not known. In the
second case small singular values are known to `√eps` only, as their squares are to `eps`.
"""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg import eigh, inverse_factor, matmul, svd
from .base import AbstractProblem

# A singular value counts as non-zero above RANK · max(n, d) · eps times the largest one. (NumPy's
# `matrix_rank` has 1.) It allows for the rounding of the entries of X and for that of the
# decomposition. Zero singular values, and zero eigenvalues of M, come out at 0.7 in these units for
# 2 × 2 matrices, 0.5 for 3 × 4 and 0.05 for 20 × 40 (Gaussian X of half rank, rounded once). With
# 100 times less, directions of pure rounding would become constraints. With 100 times more, columns
# with a condition number above 500 (20 × 40 in float32) would lose a direction.
RANK = 4


class SolutionSpace(eqx.Module):
    """The minimisers of the loss over the coordinates of a mask: `{x : V(units x) = target}`.

    The rows of `V` are an orthonormal basis of `range (X/units)ᵀ`, restricted to the mask. Rows
    beyond the rank are zero."""

    units: Float[Array, " d"]
    V: Float[Array, "m d"]
    inverse: Float[Array, " m"]  # 1/eigenvalues of M in these units; 0 beyond the rank
    target: Float[Array, " m"]

    def __init__(
        self,
        problem: AbstractProblem,
        mask: Bool[Array, " d"],
        point: Float[Array, " d"] | None = None,
        units: Float[Array, " d"] | None = None,
    ):
        """**Arguments:** `mask`, the coordinates that may be non-zero; `point`, a known minimiser;
        `units`, by default powers of 2 that give the columns norms in `[1, 2)`.

        With `point`, the target is `V(units point)`. If `point ≥ 0`, the constraint is then
        feasible for `x ≥ 0` exactly, and not only up to the rounding of the projection of `y`.
        Other units are for a norm that is meant in them, such as a least 2-norm."""
        unit = jnp.finfo(problem.r.dtype).eps
        # Columns of about equal norms: in the user's units, singular values of small columns would
        # be below the rounding of large ones. Powers of 2, so that dividing by them is exact.
        norms = problem.column_norms()
        _, exponent = jnp.frexp(jnp.where(norms > 0, norms, 1))  # norm/2^exponent is in [1/2, 1)
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
        # The rows of `V` from LAPACK have errors of eps · s₀/s for a small singular value s:
        # entries of zero columns are not 0, and copies of a column get different entries. The rows
        # of s⁻¹ UᵀX have neither fault, but are not orthogonal to that accuracy. So orthonormalise
        # them by the Cholesky factor of their Gram matrix. Rows come with the largest s first, and
        # the factor is triangular: each row is corrected by more accurate ones only.
        gram = matmul(image, image.T) + jnp.diag((~good).astype(image.dtype))
        # The Gram matrix is the identity up to rounding, so its derivative is 0.
        factor = inverse_factor(lax.stop_gradient(gram))
        self.V, self.target = matmul(factor, image), matmul(factor, target)
        if point is not None:
            self.target = self.image(point)

    def image(self, point: Float[Array, " d"]) -> Float[Array, " m"]:
        """`V(units point)`."""
        return matmul(self.V, self.units * point)

    def project(self, gradient: Float[Array, " d"]) -> Float[Array, " m"]:
        """The change of `V(units x)` that changes `Mx` by `units · gradient`, in least squares."""
        return self.inverse * matmul(self.V, gradient)

    def in_range(self, dual: Float[Array, " d"]) -> Float[Array, " d"]:
        """The projection of `dual` onto the range of `Xᵀ`, orthogonal in `dual/units`."""
        return self.units * matmul(matmul(self.V, dual / self.units), self.V)

    def rounding(self) -> Float[Array, " m"]:
        """By how much a row of `V` moves if the entries of the data change by one rounding."""
        largest = jnp.max(self.inverse[:1])
        ratio = self.inverse / jnp.where(largest > 0, largest, 1)
        return jnp.finfo(ratio.dtype).eps * jnp.sqrt(ratio)

    def rank(self) -> Int[Array, ""]:
        """The numerical rank of the masked columns."""
        return jnp.sum(self.inverse > 0)

    def size(self) -> Float[Array, ""]:
        """The largest entry of `units x`, at the minimiser with the least `‖units x‖`."""
        return jnp.max(jnp.abs(matmul(self.target, self.V)))


def _without_rounding(v: Array, data: Array) -> Array:
    """`v`, products of unit vectors with `data`, with 0 for entries that may be rounding of 0."""
    # A product of unit vectors that is 0 comes out at up to 4.3 eps ‖data‖ (SVDs of Gaussian X up
    # to 200 × 400). The target divides it by a singular value: with 100 times less, rounding over a
    # small one would be a spurious response. With 100 times more, 1e-4 ‖y‖ in float32, real
    # components of the response would be lost.
    rounding = 8 * jnp.finfo(v.dtype).eps * jnp.sqrt(jnp.sum(data**2))
    return jnp.where(jnp.abs(v) > rounding, v, 0)
