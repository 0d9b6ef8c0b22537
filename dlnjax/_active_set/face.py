"""Linear systems on the active coordinates."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg import Cholesky, matmul
from .._problem import AbstractProblem


class Face(eqx.Module):
    """`M_AA u = rhs` on the active coordinates `A`, in `k` slots."""

    is_empty: Bool[Array, " k"]
    block: Float[Array, "k k"]
    factor: Cholesky

    def __init__(self, problem: AbstractProblem, index: Int[Array, " k"]):
        d, k = problem.r.shape[0], index.shape[0]
        self.is_empty = index == d
        block = problem.gram_block(jnp.minimum(index, d - 1))
        either = self.is_empty[:, None] | self.is_empty[None, :]
        self.block = jnp.where(either, jnp.eye(k, dtype=block.dtype), block)
        # Dependent columns, active together, must not make it NaN; what the ridge does to the
        # others is taken back by a refinement.
        ridge = k * jnp.finfo(block.dtype).eps * jnp.diagonal(self.block)
        self.factor = Cholesky(self.block + jnp.diag(ridge))

    def solve(self, rhs: Float[Array, " k"]) -> Float[Array, " k"]:
        """The solution, 0 in empty slots."""
        rhs = jnp.where(self.is_empty, 0, rhs)
        u = self.factor.solve(rhs)
        return u + self.factor.solve(rhs - matmul(self.block, u))
