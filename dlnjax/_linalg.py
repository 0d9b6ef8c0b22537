"""Linear algebra at full precision, whatever the device's default is (TF32 on GPUs)."""

import functools as ft

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

matmul = ft.partial(jnp.matmul, precision=lax.Precision.HIGHEST)

# Up to this size a factorisation is written out in scalars, which a batch turns into vectors
# over its lanes: a LAPACK call per lane costs more than the arithmetic. `python -m
# benchmarks.cholesky` measures where that ends.
UNROLLED = 6
# Up to this one the triangular factor is inverted, so that solves are products, which a batch runs
# faster than one LAPACK call per lane and right-hand side.
INVERTED = 24


class Cholesky(eqx.Module):
    """The factorisation of a symmetric positive definite matrix."""

    matrix: Float[Array, "m m"]
    # L, or L⁻¹ up to size `INVERTED`; rows with 1/Lᵢᵢ on the diagonal up to size `UNROLLED`.
    factor: Float[Array, "m m"] | tuple[tuple[Array, ...], ...]

    def __init__(self, matrix: Float[Array, "m m"]):
        self.matrix = matrix
        matrix = lax.stop_gradient(matrix)
        m = matrix.shape[0]
        if m <= UNROLLED:
            self.factor = _unrolled(matrix)
            return
        factor = lax.linalg.cholesky(matrix, symmetrize_input=False)
        if m <= INVERTED:
            identity = jnp.eye(m, dtype=matrix.dtype)
            factor = lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
        self.factor = factor

    def solve(self, rhs: Float[Array, " m"]) -> Float[Array, " m"]:
        # Derivatives are solves with the same factor; that of the factor itself would be O(m³).
        product = ft.partial(matmul, self.matrix)
        solve = lambda _, rhs: self._solve(rhs)
        return lax.custom_linear_solve(product, rhs, solve, symmetric=True)

    def _solve(self, rhs: Float[Array, " m"]) -> Float[Array, " m"]:
        if isinstance(self.factor, tuple):
            return _unrolled_solve(self.factor, rhs)
        if rhs.shape[0] <= INVERTED:
            return matmul(matmul(self.factor, rhs), self.factor)
        solve = ft.partial(lax.linalg.triangular_solve, self.factor, left_side=True, lower=True)
        return solve(solve(rhs[:, None]), transpose_a=True)[:, 0]


def _unrolled(matrix: Float[Array, "m m"]) -> tuple[tuple[Array, ...], ...]:
    rows: list[list[Array]] = []
    for i in range(matrix.shape[0]):
        row: list[Array] = []
        for j in range(i + 1):
            other = rows[j] if j < i else row
            rest = matrix[i, j] - sum(row[k] * other[k] for k in range(j))
            row.append(rest * other[j] if j < i else lax.rsqrt(rest))
        rows.append(row)
    return tuple(map(tuple, rows))


def _unrolled_solve(
    factor: tuple[tuple[Array, ...], ...], rhs: Float[Array, " m"]
) -> Float[Array, " m"]:
    m = len(factor)
    x: list[Array] = []
    for i, row in enumerate(factor):
        x.append((rhs[i] - sum(row[k] * x[k] for k in range(i))) * row[i])
    for i in reversed(range(m)):
        rest = x[i] - sum(factor[k][i] * x[k] for k in range(i + 1, m))
        x[i] = rest * factor[i][i]
    # Materialised: fused into what reads it, the solve would be repeated there.
    return lax.optimization_barrier(jnp.stack(x))
