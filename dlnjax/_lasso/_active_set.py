"""The active set of the homotopy: `k` slots, the inverse of their block of `M`, and its updates."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._linalg import matmul
from .._problem import AbstractProblem

TINY = 1e-30


def indices(size: int) -> Int[Array, " size"]:
    return jnp.arange(size, dtype=jnp.int32)


class Scaled(eqx.Module):
    """The problem in units where every column has norm 1; bounds `a + τb`, rows `+`, `−`."""

    scale: Float[Array, " d"]  # 1/‖Xⱼ‖, and 0 for a zero column
    r: Float[Array, " d"]
    a: Float[Array, "2 d"]
    b: Float[Array, "2 d"]

    def __init__(self, problem: AbstractProblem, weights: Array):
        diagonal = problem.gram_diagonal()
        is_zero = diagonal <= 0
        self.scale = jnp.where(is_zero, 0, 1 / jnp.sqrt(jnp.where(is_zero, 1, diagonal)))
        self.r = self.scale * problem.r
        self.a = jnp.broadcast_to((problem.weight_decay * self.scale)[None, :], weights.shape)
        self.b = weights * self.scale[None, :]

    def column(self, problem: AbstractProblem, j: Array) -> Array:
        return self.scale[j] * self.scale * problem.gram_column(j)

    def bounds(self, active: "ActiveSet") -> tuple[Array, Array]:
        """`a` and `b` of the active coordinates, for their signs."""
        side = (active.sign < 0).astype(jnp.int32)
        at = lambda v: v.at[side, active.index].get(mode="fill", fill_value=0)
        return at(self.a), at(self.b)


class ActiveSet(eqx.Module):
    """Active coordinates in `k` slots. Empty slots have index `d`, sign 0 and zero rows."""

    index: Int[Array, " k"]
    sign: Float[Array, " k"]
    x: Float[Array, " k"]  # at the current τ; exactly 0 where it has just joined
    rows: Float[Array, "k d"]  # rows A of M
    block: Float[Array, "k k"]  # M_AA
    inverse: Float[Array, "k k"]  # its inverse, by rank-one updates
    pivots: Float[Array, " d"]  # squared norm of each column, projected off the active ones

    @classmethod
    def empty(cls, k: int, scale: Array) -> "ActiveSet":
        d, dtype = scale.shape[0], scale.dtype
        return cls(
            index=jnp.full(k, d, jnp.int32),
            sign=jnp.zeros(k, dtype),
            x=jnp.zeros(k, dtype),
            rows=jnp.zeros((k, d), dtype),
            block=jnp.zeros((k, k), dtype),
            inverse=jnp.zeros((k, k), dtype),
            pivots=(scale > 0).astype(dtype),
        )

    def gather(self, v: Float[Array, " d"]) -> Float[Array, " k"]:
        return v.at[self.index].get(mode="fill", fill_value=0)

    def solve(self, rhs: Float[Array, "k m"]) -> tuple[Float[Array, "k m"], Array]:
        """`M_AA⁻¹ rhs`, refined twice, and the relative residual before refinement."""
        x = matmul(self.inverse, rhs)
        residual = rhs - matmul(self.block, x)
        defect = jnp.max(jnp.abs(residual)) / jnp.maximum(jnp.max(jnp.abs(rhs)), TINY)
        x = x + matmul(self.inverse, residual)
        return x + matmul(self.inverse, rhs - matmul(self.block, x)), defect

    def factorise(self) -> "ActiveSet":
        """`inverse` and `pivots` from scratch, `O(k²(k + d))`."""
        is_active = self.sign != 0
        k = is_active.shape[0]
        padded = self.block + jnp.diag((~is_active).astype(self.block.dtype))
        factor = lax.linalg.cholesky(padded)
        half = lax.linalg.triangular_solve(
            factor, jnp.eye(k, dtype=factor.dtype), left_side=True, lower=True
        )
        inverse = matmul(half.T, half)
        inverse = jnp.where(is_active[:, None] & is_active[None, :], inverse, 0)
        projected = 1 - jnp.sum(matmul(half, self.rows) ** 2, axis=0)
        # Not positive definite to rounding: keep what the updates gave.
        good = jnp.all(jnp.isfinite(factor))
        pivots = jnp.where(self.pivots == 0, 0, projected)
        return eqx.tree_at(
            lambda active: (active.inverse, active.pivots),
            self,
            (
                jnp.where(good, inverse, self.inverse),
                jnp.where(good, pivots, self.pivots),
            ),
        )


class Event(eqx.Module):
    tau: Float[Array, ""]
    j: Int[Array, ""]
    sign: Float[Array, ""]
    slot: Int[Array, ""]
    leaves: Bool[Array, ""]


def pivot(active: ActiveSet, event: Event, column: Array, min_pivot) -> tuple:
    """The active set after `event`, by one rank-one update, and whether it was possible.

    Inverse and projected norms change by `±v vᵀ`: for a join `v` is the new column's
    expansion in the active ones, for a drop it is a column of the inverse.
    """
    k, d = active.rows.shape
    here = indices(k) == event.slot
    joined = active.gather(column)
    rhs = jnp.where(event.leaves, here.astype(column.dtype), joined)
    expansion = active.solve(rhs[:, None])[0][:, 0]
    pivot = column[event.j] - jnp.sum(joined * expansion)
    is_dependent = ~event.leaves & ~(pivot > min_pivot)
    possible = ~is_dependent

    v = jnp.where(here & ~event.leaves, -1, expansion)
    size = jnp.where(event.leaves, -expansion[event.slot], pivot)
    rows = jnp.where(here[:, None] & ~event.leaves, column[None, :], active.rows)
    shift = jnp.where(possible, 1 / jnp.where(possible, size, 1), 0)
    pivots = active.pivots - shift * matmul(v, rows) ** 2
    # The drift of the update cannot hide a dependence that was just measured.
    pivots = jnp.where((indices(d) == event.j) & is_dependent, 0, pivots)

    touched = here[:, None] | here[None, :]
    cross = jnp.where(event.leaves, 0, jnp.where(here, column[event.j], joined))
    block = jnp.where(here[:, None], cross[None, :], active.block)
    block = jnp.where(here[None, :], cross[:, None], block)
    inverse = active.inverse + shift * v[:, None] * v[None, :]
    inverse = jnp.where(touched & event.leaves, 0, inverse)
    here = here & possible
    return ActiveSet(
        index=jnp.where(here, jnp.where(event.leaves, d, event.j), active.index),
        sign=jnp.where(here, jnp.where(event.leaves, 0, event.sign), active.sign),
        x=jnp.where(here, 0, active.x),
        rows=jnp.where(here[:, None], jnp.where(event.leaves, 0, rows), active.rows),
        block=jnp.where(possible, block, active.block),
        inverse=inverse,
        pivots=pivots,
    ), possible
