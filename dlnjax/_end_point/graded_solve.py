"""The Newton equations of the end point for weights of any magnitude, to full relative precision.

Eliminating the primal variables leaves a Schur complement `V S Vᵀ` with the diagonal `S = −φ'(w)`,
whose entries differ by as many powers of ten as the `q` do. Forming it loses the small entries
beside the large ones. `Graded` solves without forming it: the last Newton steps, the derivatives
and the sensitivity of the end point need every digit of it.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg import Cholesky, matmul
from .._loops import fori_loop
from ..networks.signs import sides, signed


class Graded(eqx.Module):
    """Solves `V S (Vᵀν + g) = off` for a diagonal `S ≥ 0` whose entries differ by any power of ten.

    Gauss-Jordan elimination of `V S^{1/2}` with complete pivoting reduces `V` to `[I, T]` on a
    basis `B` of its heaviest columns; `N` are the others. With `G = S_B^{-1/2} T S_N^{1/2}` the
    system has the matrix `I + GGᵀ`, and complete pivoting keeps the entries of `G` at about 1 at
    most. Columns that depend on those of the basis do not enter it: elimination leaves rounding of
    them, which a large weight must not turn into a pivot.
    """

    root: Float[Array, " d"]  # S^{1/2}
    basis: Int[Array, " m"]  # d where V has no more columns to offer
    is_basis: Bool[Array, " d"]
    inverse: Float[Array, "m m"]  # V_B⁻¹
    table: Float[Array, "m d"]  # V_B⁻¹V, 0 in the columns of B
    ratio: Float[Array, "m d"]  # G
    factor: Cholesky

    def __init__(self, V: Float[Array, "m d"], weight: Float[Array, " d"]):
        m, d = V.shape
        self.root = root = jnp.sqrt(weight)
        # The largest entry that elimination may leave of a dependent column: rows of V are
        # orthonormal, so that entries are at most 1, and m eliminations add some m roundings. With
        # 0 instead, derivatives for three columns in a plane at `log ε = −700` are wrong by more
        # than 1; 100 times more or less changes neither these nor end points of random and
        # degenerate designs. Columns closer than this to the span of the basis count as dependent.
        rounding = 64 * m * jnp.finfo(V.dtype).eps
        is_table = (jnp.arange(d + m) < d)[None, :]

        def eliminate(_, state):
            table, basis, is_open = state
            mask = (basis == d)[:, None] & is_open[None, :]
            score = jnp.where(mask, jnp.abs(table[:, :d]) * root[None, :], 0)
            j = jnp.argmax(jnp.max(score, axis=0))
            i = jnp.argmax(score[:, j])
            row, column = table[i], table[:, j]
            good = score[i, j] > 0
            row = row / jnp.where(good, row[j], 1)
            is_row = (jnp.arange(m) == i)[:, None]
            rest = table - column[:, None] * row[None, :]
            is_rounding = (basis == d)[:, None] & (jnp.abs(rest) <= rounding) & is_table
            new = jnp.where(is_row, row[None, :], jnp.where(is_rounding, 0, rest))
            new = jnp.where(good, new, table)
            basis = jnp.where(good & is_row[:, 0], j, basis)
            return new, basis, is_open & ~(good & (jnp.arange(d) == j))

        start = jnp.concatenate([V, jnp.eye(m, dtype=V.dtype)], axis=1)
        state = start, jnp.full(m, d), jnp.ones(d, bool)
        table, self.basis, is_open = fori_loop(0, m, eliminate, state)
        some = (self.basis < d)[:, None]
        self.is_basis = ~is_open
        self.table = jnp.where(some & is_open[None, :], table[:, :d], 0)
        self.inverse = jnp.where(some, table[:, d:], 0)
        heavy = self._at_basis(root)[:, None]
        self.ratio = self.table * root[None, :] / jnp.where(heavy > 0, heavy, 1)
        self.factor = Cholesky(jnp.eye(m, dtype=V.dtype) + matmul(self.ratio, self.ratio.T))

    def _at_basis(self, v: Array) -> Array:
        return jnp.take(v, self.basis, mode="fill", fill_value=0)

    def extended(self, g: Array) -> Array:
        """The element of `range Vᵀ` that equals `g` on the basis."""
        at_basis = self._at_basis(g)
        return matmul(at_basis, self.table).at[self.basis].add(at_basis, mode="drop")

    def solve(self, off: Array, g: Array) -> tuple[Array, Array]:
        """`ν`, and `Vᵀν + g`."""
        # With `u = Vᵀν + g`, its part `u_N = Tᵀu_B + rest` and `b = S_B^{1/2} u_B`, the system is
        # `(I + GGᵀ) b = S_B^{-1/2} V_B⁻¹ off − G S_N^{1/2} rest`.
        heavy = self._at_basis(self.root)
        heavy = jnp.where(heavy > 0, 1 / jnp.where(heavy > 0, heavy, 1), 0)
        rest = g - matmul(self._at_basis(g), self.table)
        rest = jnp.where(self.is_basis, 0, rest)
        asked = heavy * matmul(self.inverse, off)
        at_basis = heavy * self.factor.solve(asked - matmul(self.ratio, self.root * rest))
        # On the basis both terms are 0, so that `add` sets; JAX transposes `add`, but not `set`.
        dual = matmul(at_basis, self.table) + rest
        dual = dual.at[self.basis].add(at_basis, mode="drop")
        return matmul(at_basis - self._at_basis(g), self.inverse), dual


def graded_step(
    V: Float[Array, "m d"],
    stretch: Float[Array, "signs d"],
    off: Float[Array, " m"],
    mismatch: Float[Array, "signs d"],
) -> tuple[Float[Array, " m"], Float[Array, "signs d"]]:
    """`ν` and `u = ±Vᵀν + mismatch` with `V Σ ±(stretch u) = off`: as `Newton.linear_solve`, to
    full relative precision in each `stretch * u`."""
    # Both signs of a coordinate share a column of V. Solve for their mean `Vᵀν + g`, weighted by
    # `stretch`, then add the distance of each sign's mismatch from the mean.
    weight = jnp.sum(stretch, axis=0)
    some = (weight > 0)[None, :]
    share = jnp.where(some, stretch / jnp.where(some, weight[None, :], 1), 1 / len(stretch))
    nu, mean = Graded(V, weight).solve(off, signed(share * mismatch))
    if len(stretch) == 1:
        return nu, mean[None, :]
    return nu, sides(mean, stretch) + share[::-1] * jnp.sum(mismatch, axis=0)[None, :]
