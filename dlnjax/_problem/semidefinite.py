"""Whether `½⟨x, Mx⟩ − ⟨r, x⟩ + c` is convex, bounded below, and at least 0.

All tests are made on `S = M/(σσᵀ)` with `σᵢ = √Mᵢᵢ`, which has a unit diagonal: so they do not
depend on the units of the columns. The same four conditions raise for known values (`refuse`) and
mark traced problems as invalid (in `design.py`):

| condition | test | tolerance |
|---|---|---|
| `M = Mᵀ` | largest `|S − Sᵀ|` | `100 eps` |
| `M ⪰ 0` | least eigenvalue of `S` | `−100 d eps` |
| `r ∈ range M` | largest `|Mx − r|/σ` with `x = M†r`, relative to `|r|/σ` | `√(10 d eps)` |
| `ℓ ≥ 0` | `c − (⟨r, x⟩ − ½⟨x, Mx⟩)` at `x = M†r` | `−100 eps (Σ σᵢ|xᵢ|)²` |
"""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import is_concrete
from .._linalg import eigh, matmul

# By how many units of rounding an entry of S may differ from that of an exact Gram matrix. Those of
# XᵀX differ by 4 at most if BLAS sums the rows, up to 1e5 of them, and by about 0.2 √n if they are
# added one by one: 22 for n = 2e4 (measured with Gaussian rows, d ≤ 60, in both precisions). With
# 100 times less, Gram matrices of data would be refused; with 100 times more, a float32 matrix with
# an asymmetry of 1e-3 would be accepted.
_ROUNDING = 100


class Semidefinite(eqx.Module):
    """The eigenvalues and eigenvectors of `S`, without derivatives, and the four tests."""

    scale: Float[Array, " d"]  # σ; 1 where the column is 0
    is_empty: Bool[Array, " d"]  # whether the column is 0
    asymmetry: Float[Array, ""]  # the largest |S − Sᵀ|
    values: Float[Array, " d"]  # ascending
    vectors: Float[Array, "d d"]

    def __init__(self, M: Float[Array, "d d"]):
        M = lax.stop_gradient(M)
        # An eigendecomposition of NaN or inf may not terminate. They have a result of their own,
        # `invalid_data`.
        M = jnp.where(jnp.isfinite(M), M, 0)
        size = jnp.sqrt(jnp.abs(jnp.diagonal(M)))
        self.scale = jnp.where(size > 0, size, 1)
        self.is_empty = size == 0
        # If Mᵢᵢ = 0, a semidefinite M has Mᵢⱼ = 0 for all j. Any other entry becomes ±1 here,
        # beside a diagonal of 0, so that S is indefinite.
        is_empty = self.is_empty[:, None] | self.is_empty[None, :]
        S = jnp.where(is_empty, jnp.sign(M), M / self.scale[:, None] / self.scale[None, :])
        self.asymmetry = jnp.max(jnp.abs(S - S.T))
        self.values, self.vectors = eigh(S)

    @property
    def _unit(self) -> float:
        return float(jnp.finfo(self.scale.dtype).eps)

    @property
    def _cut(self) -> float:
        """The relative size below which eigenvalues of `S` count as 0."""
        # Zero eigenvalues of Gram matrices come out at 0.15 d eps at most (Gaussian columns, half
        # of them dependent, n ≤ 2e4). With 100 times less they would count, and `solve` would
        # divide by rounding. With 100 times more, 1e-3 for d = 10 in float32, columns with a
        # condition number of 30 would lose a direction.
        return 10 * self.scale.shape[0] * self._unit

    def is_symmetric(self) -> Bool[Array, ""]:
        return self.asymmetry <= _ROUNDING * self._unit

    def is_semidefinite(self) -> Bool[Array, ""]:
        # Errors of all d² entries by δ move an eigenvalue by d δ at most.
        return self.values[0] >= -_ROUNDING * self._unit * self.scale.shape[0]

    def solve(self, r: Float[Array, " d"]) -> Float[Array, " d"]:
        """`M†r`, with the pseudo-inverse in units of `σ`: an `x` with `Mx = r`, if there is one."""
        good = self.values > self._cut * self.values[-1]
        inverse = jnp.where(good, 1 / jnp.where(good, self.values, 1), 0)
        V, scale = self.vectors, self.scale
        return matmul(V, inverse * matmul(r / scale, V)) / scale

    def contains(self, r: Float[Array, " d"], image: Float[Array, " d"]) -> Bool[Array, ""]:
        """Whether `r` is in the range of `M`, given `image = Mx` at `x = M†r`."""
        # √cut, not cut: along an eigenvector of eigenvalue λ, r = Xᵀy has a component of size √λ
        # ‖y‖. `solve` drops eigenvalues up to `cut`, and with them components of r up to √cut. With
        # 100 times less, Gram data of nearly dependent columns would be refused; with 100 times
        # more, 0.3 for d = 10 in float32, almost any r would be accepted.
        off, largest = (jnp.max(jnp.abs(v) / self.scale) for v in (image - r, r))
        return (off <= self._cut**0.5 * largest) & ~jnp.any(self.is_empty & (r != 0))

    def is_bounded(self, x: Float[Array, " d"], c: Array, least: Array) -> Bool[Array, ""]:
        """Whether `ℓ ≥ 0` with the constant `c`. At its minimum `x` the rest of `ℓ` is `−least`."""
        # Errors of the entries of S by `_ROUNDING` units move `least` by half of this at most.
        rounding = _ROUNDING * self._unit * jnp.sum(self.scale * jnp.abs(x)) ** 2
        return c >= least - lax.stop_gradient(rounding)

    def refuse(self, M: Array, r: Array, x: Array, c: Array, least: Array) -> None:
        """Raise a `ValueError` for the first condition that known values violate."""
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
