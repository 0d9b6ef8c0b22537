"""Linear systems `M_AA u = b` on active coordinates, for derivatives and for the selection."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg import Cholesky, matmul
from .._problem import AbstractProblem


class Face(eqx.Module):
    """The factorisation of `M_AA`, where `A` is given by `k` slots; empty slots have index `d`."""

    is_empty: Bool[Array, " k"]
    block: Float[Array, "k k"]
    factor: Cholesky

    def __init__(self, problem: AbstractProblem, index: Int[Array, " k"]):
        d, k = problem.r.shape[0], index.shape[0]
        self.is_empty = index == d
        block = problem.gram_block(jnp.minimum(index, d - 1))
        either = self.is_empty[:, None] | self.is_empty[None, :]
        self.block = jnp.where(either, jnp.eye(k, dtype=block.dtype), block)
        # If columns of A are dependent, rounding of up to k·eps of the diagonal can make a pivot of
        # the factorisation negative, and the result NaN: the ridge is as large. It perturbs the
        # solution by k·eps/λ_min of the block scaled to unit diagonal; one refinement in `solve`
        # squares that. 100 times more or less moves no limit of the selection tests beyond 1e-10.
        ridge = k * jnp.finfo(block.dtype).eps * jnp.diagonal(self.block)
        self.factor = Cholesky(self.block + jnp.diag(ridge))

    def solve(self, rhs: Float[Array, " k"]) -> Float[Array, " k"]:
        """`u`, shape `(k,)`, refined once; 0 in empty slots."""
        rhs = jnp.where(self.is_empty, 0, rhs)
        u = self.factor.solve(rhs)
        return u + self.factor.solve(rhs - matmul(self.block, u))
