"""The linear systems of a stage, `(I + γhME)V = a` with `M = XᵀHX`, in coordinates or in rows.

- `DenseSystem` factorises `d × d`. With `R² = γhE` and `v = (I + RMR)⁻¹ R a` the solution is,
  in each coordinate,

        V = R⁻¹v  where R > 1,    V = a − MRv  where R ≤ 1.

  Both formulas are exact; each divides by a number above 1, or by none. The matrix is
  `R(R⁻² + M)R`, a diagonal scaling of a well-conditioned matrix, which does not affect the accuracy
  of a Cholesky factorisation.
- `RowSystem`, at depth 2, factorises `n × n`, and `m × m` for the set `A` of the `m` coordinates
  of the largest slopes, of which there mostly are about `n`: these keep the form above.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..._linalg import Cholesky, matmul
from ..link import ExponentialLink
from ..link_base import AbstractLink
from .fit import AbstractFit, Curvature
from .rows import RowFactor, row_factor


class DenseSystem(eqx.Module):
    """`I + γhME`, factorised."""

    M: Float[Array, "d d"]
    root: Float[Array, " d"]  # R
    gamma_h: Float[Array, ""]
    factor: Cholesky  # of I + RMR

    def __init__(self, M: Array, slope: Float[Array, " d"], gamma_h: Array):
        # Slopes may underflow to 0, where the derivative of √ is infinite.
        moves = slope > 0
        root = jnp.where(moves, jnp.sqrt(gamma_h * jnp.where(moves, slope, 1)), 0)
        identity = jnp.eye(M.shape[0], dtype=M.dtype)
        self.M, self.root, self.gamma_h = M, root, gamma_h
        self.factor = Cholesky(identity + root[:, None] * M * root[None, :])

    def once(self, a: Float[Array, " d"]) -> Float[Array, " d"]:
        """`(I + γhME)⁻¹ a`."""
        # R⁻¹v amplifies the rounding of v where R < 1, and a − MRv cancels where R is large, since
        # MRv is then close to a.
        root = self.root
        v = self.factor.solve(root * a)
        large = root > 1
        return jnp.where(large, v / jnp.where(large, root, 1), a - matmul(self.M, root * v))

    def solve(self, a: Float[Array, " d"], c: Array | None = None) -> Float[Array, " d"]:
        """`(I + γhME)⁻¹ (a + γhMc)`."""
        return self.once(a if c is None else a + self.gamma_h * matmul(self.M, c))


def in_rows(fit: AbstractFit, link: AbstractLink) -> bool:
    """Whether the system is solved in rows."""
    # At depth 2 only. Above it, what is active beyond the `m` chosen ones, as many copies of few
    # columns are, would lose its digits: `w` is then far below the rounding of what it is the
    # difference of. Copies of columns of ±1, 3 × 48, differed by 2 % in float32 at depth 6.
    return isinstance(link, ExponentialLink) and dense_size(fit) < fit.X.shape[1]


def dense_size(fit: AbstractFit) -> int:
    """`m`, and `d` where the dense system is as fast."""
    n, d = fit.X.shape
    # Active coordinates are `n` at most in general position; some more are about to be.
    m = n + n // 4 + 4
    # The time of a step of 8 lanes over that in rows, `UV` with weight decay, for the square and
    # the logistic loss: 1.1 and 1.0 at 20 × 60, 1.4 and 1.5 at 20 × 80, 1.6 and 1.0 at 60 × 150;
    # single lanes .7 to 2.3.
    return m if 2 * m < d else d


class RowSystem(eqx.Module):
    """`I + γhME`, with the slopes `E = E° + E_R + E_A`: `E°` of coordinates whose unknown is
    `−XᵀN`, with `N` the stage of `ν` (`decayed_rows.py`), `E_A` the `m` largest others.

    Let `b` be the right-hand side of `ν` where that is a part of the state, else 0, and
    `B = I + γhHX(E° + E_R)Xᵀ`. As `V = a + γhXᵀb − XᵀN` outside `E°`,

        N = γhB⁻¹ (b + HX(E_A V + E_R (a + γhXᵀb) − c)),
        (I + γhX_AᵀB⁻¹HX_A E_A) V_A = a_A + γhX_AᵀB⁻¹HX (E° γhXᵀb − E_R a + c),

    with the `c` of `solve`. The second is the first on `A`, with `γhXᵀ(I − B⁻¹)b` written such that
    nothing cancels.
    """

    X: Float[Array, "n d"]
    near: Float[Array, " d"]  # E°
    rest: Float[Array, " d"]  # E_R
    far: Float[Array, " m"]  # E_A
    index: Int[Array, " m"] | None  # A; None if it is all
    gamma_h: Float[Array, ""]
    curvature: Curvature | None  # H
    rows: RowFactor  # I/(γh) + HX(E° + E_R)Xᵀ
    dense: DenseSystem

    def __init__(
        self,
        fit: AbstractFit,
        x: Float[Array, " d"],
        near: Float[Array, " d"],
        far: Float[Array, " d"],
        gamma_h: Array,
    ):
        m = dense_size(fit)
        self.X, self.near, self.gamma_h = fit.X, near, gamma_h
        self.curvature = fit.curvature(x)
        if m == len(far):
            self.index, self.far, self.rest = None, far, jnp.zeros_like(far)
        else:
            _, self.index = lax.top_k(lax.stop_gradient(far), m)
            self.far, self.rest = far[self.index], far.at[self.index].set(0)
        self.rows = row_factor(fit, x, near + self.rest, gamma_h)
        X_A = self._chosen(self.X)
        pulled = jax.vmap(lambda column: self.rows.solve(self._bend(column)), 1, 1)(X_A)
        M = matmul(X_A.T, pulled) / gamma_h
        self.dense = DenseSystem((M + M.T) / 2, self.far, gamma_h)

    def _chosen(self, v: Float[Array, "... d"]) -> Float[Array, "... m"]:
        return v if self.index is None else v[..., self.index]

    def _spread(self, v: Float[Array, " m"], other: Float[Array, " d"]) -> Float[Array, " d"]:
        """`v` on `A`, and `other` elsewhere."""
        return v if self.index is None else other.at[self.index].set(v)

    def _bend(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """`Hv`."""
        return v if self.curvature is None else self.curvature.product(v)

    def solve(self, a: Float[Array, " d"], c: Array | None = None) -> Float[Array, " d"]:
        """`(I + γhME)⁻¹ (a + γhMc)`."""
        c = jnp.zeros_like(a) if c is None else c
        return self.solve_both(a, c, jnp.zeros_like(self.X[:, 0]))[0]

    def solve_both(
        self, a: Float[Array, " d"], c: Float[Array, " d"], b: Float[Array, " n"]
    ) -> tuple[Float[Array, " d"], Float[Array, " n"]]:
        """The unknowns, `−XᵀN` in `E°` and else `V`, and `N`."""
        image = self.gamma_h * matmul(b, self.X)
        along = self.near * image - self.rest * a + c
        back = matmul(self.rows.solve(self._bend(matmul(self.X, along))), self.X)
        chosen = self.dense.once(self._chosen(a + back))
        other = self.rest * (a + image)
        pull = self._spread(self.far * chosen, other) - c
        nu = self.rows.solve(b + self._bend(matmul(self.X, pull)))
        moved = matmul(nu, self.X)
        return jnp.where(self.near > 0, -moved, self._spread(chosen, a + image - moved)), nu
