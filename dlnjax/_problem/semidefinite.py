"""Whether `½⟨x, Mx⟩ − ⟨r, x⟩` is bounded below: one rule for values that are known, which are
refused, and for traced ones, which are marked.

All is decided in units of the diagonal, `S = M/(σσᵀ)` with `σᵢ = √Mᵢᵢ`, so that units of columns
play no role. The entries of a Gram matrix are exact to a few units of rounding there, times the
square root of the number of rows at most.
"""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import is_concrete
from .._linalg import eigh, matmul

_ROUNDING = 100  # units of rounding that an entry of S may be away from a Gram matrix


class Semidefinite(eqx.Module):
    """The spectrum of `S`, without derivatives."""

    scale: Float[Array, " d"]  # σ; 1 where the column is 0
    is_empty: Bool[Array, " d"]  # the column is 0
    asymmetry: Float[Array, ""]  # the largest |S − Sᵀ|
    values: Float[Array, " d"]  # ascending
    vectors: Float[Array, "d d"]

    def __init__(self, M: Float[Array, "d d"]):
        M = lax.stop_gradient(M)
        M = jnp.where(jnp.isfinite(M), M, 0)  # LAPACK may not come back; it is flagged elsewhere
        size = jnp.sqrt(jnp.abs(jnp.diagonal(M)))
        self.scale = jnp.where(size > 0, size, 1)
        self.is_empty = size == 0
        # A column of a Gram matrix whose square is 0 is 0: any other entry makes S indefinite.
        is_empty = self.is_empty[:, None] | self.is_empty[None, :]
        S = jnp.where(is_empty, jnp.sign(M), M / self.scale[:, None] / self.scale[None, :])
        self.asymmetry = jnp.max(jnp.abs(S - S.T))
        self.values, self.vectors = eigh(S)

    @property
    def _unit(self) -> float:
        return float(jnp.finfo(self.scale.dtype).eps)

    @property
    def _cut(self) -> float:
        """Eigenvalues below it, relative to the largest one, count as 0."""
        return 10 * self.scale.shape[0] * self._unit

    def is_symmetric(self) -> Bool[Array, ""]:
        return self.asymmetry <= _ROUNDING * self._unit

    def is_semidefinite(self) -> Bool[Array, ""]:
        # Each eigenvalue moves by d times what an entry may be off.
        return self.values[0] >= -_ROUNDING * self._unit * self.scale.shape[0]

    def solve(self, r: Float[Array, " d"]) -> Float[Array, " d"]:
        """An `x` with `Mx = r`, if there is one."""
        good = self.values > self._cut * self.values[-1]
        inverse = jnp.where(good, 1 / jnp.where(good, self.values, 1), 0)
        V, scale = self.vectors, self.scale
        return matmul(V, inverse * matmul(r / scale, V)) / scale

    def contains(self, r: Float[Array, " d"], image: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether `r` is in the range, given `Mx` for the `x` that solves best. Where an eigenvalue
        is rounding, `r = Xᵀy` still has the part `√eigenvalue`."""
        off, largest = (jnp.max(jnp.abs(v) / self.scale) for v in (image - r, r))
        return (off <= self._cut**0.5 * largest) & ~jnp.any(self.is_empty & (r != 0))

    def is_bounded(self, x: Float[Array, " d"], c: Array, least: Array) -> Bool[Array, ""]:
        """Whether the loss is at least 0 with the constant `c`, but for what rounding of the
        entries of `M` changes the least of them, at `x`."""
        rounding = _ROUNDING * self._unit * jnp.sum(self.scale * jnp.abs(x)) ** 2
        return c >= least - lax.stop_gradient(rounding)

    def refuse(self, M: Array, r: Array, x: Array, c: Array, least: Array) -> None:
        """Say what is wrong, as far as the values are known."""
        if is_concrete(M) and not self.is_symmetric():
            raise ValueError(
                f"`M` must be symmetric, but differs from its transpose by "
                f"{float(jnp.max(jnp.abs(M - M.T))):.3g}. Pass `(M + M.T) / 2` if that is rounding."
            )
        if is_concrete(M) and not self.is_semidefinite():
            raise ValueError(
                "`M` must be positive semidefinite, but scaled to a unit diagonal it has the "
                f"eigenvalue {float(self.values[0]):.3g}: the loss would be unbounded below."
            )
        if is_concrete(M, r) and not self.contains(r, matmul(M, x)):
            off = np.max(np.abs(np.asarray(matmul(M, x)) - np.asarray(r)))
            raise ValueError(
                f"`r` must lie in the range of `M`, but is off by {float(off):.3g}: the loss would "
                "be unbounded below. Use `LeastSquares(X, y)`, or project `r`."
            )
        if is_concrete(M, r, c) and not self.is_bounded(x, c, least):
            raise ValueError(
                f"`constant` = {float(c)} makes the loss negative: with this `M` and `r` it must "
                f"be at least {float(least)} (½‖y‖² for least squares)."
            )
