"""Linear algebra at full precision on every device, and calls of LAPACK that cannot deadlock.

**Precision.** Products are at `Precision.HIGHEST`: the default of GPUs, TF32, has three digits.

**Sizes.** A Cholesky factorisation of size `m` in a batch is

| `m` | factorisation | solve |
|---|---|---|
| up to `UNROLLED` | written out in scalars | written out |
| up to `INVERTED` | LAPACK, and `L⁻¹` | two products with `L⁻¹` |
| larger | LAPACK | two triangular solves |

**Deadlock.** On CPUs jaxlib 0.10 and later may spread a batch of LAPACK calls over XLA's pool of
threads and wait for it, in a thread of the same pool. As many such batches side by side as the pool
has threads, two on a machine with two cores, wait for each other for ever. jaxlib spreads only
batches above a certain work (`GetLapackBatchChunkSize` in jaxlib/cpu/lapack_kernels.cc), so all
LAPACK calls of the library are made here, in smaller batches. (diffrax makes calls of its own in
the derivatives of implicit solvers that a user passes.)
"""

import functools as ft
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._batching import in_pieces

matmul = ft.partial(jnp.matmul, precision=lax.Precision.HIGHEST)

# Up to this size a factorisation is written out in scalars, which a batch turns into vectors over
# its lanes: a LAPACK call per lane costs more than the arithmetic. One factorisation and eight
# solves take 0.33 µs of CPU time a lane instead of 1.2 at size 6, 0.60 instead of 0.90 at size 8,
# and 3.3 instead of 1.9 at size 12; the time to compile grows from 2.5 to 4.1 and 12 s (measured
# in float64 on the cases of `python -m benchmarks.cholesky`).
UNROLLED = 6
# Up to this size the triangular factor is inverted, so that solves are products, which a batch runs
# faster than one LAPACK call per lane and right-hand side: 7 µs instead of 11 at size 24 for the
# same work as above. At size 32 it takes 176 µs instead of 20.
INVERTED = 24
# The work of a batch, by jaxlib's own estimates in units of (about) multiplications: half of the
# 2e5 from where on jaxlib 0.10 spreads it (`tests/test_linalg.py`), as a margin. With 100 times
# more, batches are spread and programs can stop for ever; with 100 times less, each matrix from
# size 10 on is a call by itself.
MOST_WORK = 100_000


def _lapack(fn: Callable[..., Any], work: Callable[..., int]) -> Callable[..., Any]:
    """`fn` of a matrix or a batch of matrices, which on a CPU runs in batches that are not spread.

    `work(*matrices)` is an upper bound of jaxlib's estimates for one matrix, over all calls that
    `fn` makes. The function has no derivatives: reverse mode raises. Pass arguments without
    tangents (`lax.stop_gradient`) if the caller has a rule of its own.
    """

    @jax.custom_batching.custom_vmap
    def call(*args: Array) -> Any:
        batch = args[0].shape[:-2]
        if not batch:
            return fn(*args)
        lanes = math.prod(batch)
        args = tuple(a.reshape(lanes, *a.shape[-2:]) for a in args)
        most = max(1, MOST_WORK // max(1, work(*args)))

        def small_batches(*args):
            take = lambda start, size: [lax.dynamic_slice_in_dim(a, start, size) for a in args]
            return in_pieces(lambda start, size: fn(*take(start, size)), lanes, most)

        if lanes <= most:
            out = fn(*args)
        else:
            # By the platform that the program is lowered for: others run large batches whole.
            out = lax.platform_dependent(*args, cpu=small_batches, default=fn)
        return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[1:]), out)

    @call.def_vmap
    def _(lanes, is_batched, *args):
        spread = lambda a, batched: a if batched else jnp.broadcast_to(a[None], (lanes, *a.shape))
        out = call(*map(spread, args, is_batched))
        return out, jax.tree.map(lambda _: True, out)

    return call


def _lower_solve(transpose_a: bool) -> Callable[..., Array]:
    """`L⁻¹B`, or `L⁻ᵀB`."""
    solve = _lapack(
        ft.partial(
            lax.linalg.triangular_solve, left_side=True, lower=True, transpose_a=transpose_a
        ),
        lambda factor, rhs: factor.shape[-1] ** 2 * rhs.shape[-1],
    )

    @jax.custom_batching.custom_vmap
    def call(factor: Float[Array, "m m"], rhs: Float[Array, "m k"]) -> Float[Array, "m k"]:
        return solve(factor, rhs)

    @call.def_vmap
    def _(lanes, is_batched, factor, rhs):
        if is_batched[0]:
            return jax.vmap(solve, in_axes=(0, 0 if is_batched[1] else None))(factor, rhs), True
        # Lanes that share a factor become columns of one call.
        columns = jnp.moveaxis(rhs, 0, -1)
        x = call(factor, columns.reshape(*columns.shape[:-2], -1))
        return jnp.moveaxis(x.reshape(columns.shape), -1, 0), True

    return call


def _inverse_factor(matrix: Array) -> Array:
    """`L⁻¹` of the Cholesky factorisation `LLᵀ`."""
    factor = lax.linalg.cholesky(matrix, symmetrize_input=False)
    identity = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix.shape)
    return lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)


def _size(*matrices: Array) -> int:
    """`n d min(n, d)` of the first matrix, the unit of jaxlib's estimates."""
    return math.prod(matrices[0].shape[-2:]) * min(matrices[0].shape[-2:])


# The factors of the work are those of jaxlib's estimates, rounded up: Cholesky 1/3, triangular
# solve 1, LU 1, eigendecomposition 5, singular value decomposition 10.
#
# `L` of `LLᵀ`, NaN where the matrix is not positive definite to rounding, and its inverse.
cholesky = _lapack(ft.partial(lax.linalg.cholesky, symmetrize_input=False), _size)
inverse_factor = _lapack(_inverse_factor, _size)
# `L⁻¹B` and `L⁻ᵀB`.
lower_solve, lower_solve_transposed = _lower_solve(False), _lower_solve(True)
_eigh = _lapack(lambda matrix: tuple(jnp.linalg.eigh(matrix)), lambda a: 5 * _size(a))
_svd = _lapack(
    lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)), lambda a: 10 * _size(a)
)
# The eigenvalues alone, without derivatives.
eigvalsh = _lapack(jnp.linalg.eigvalsh, lambda a: 5 * _size(a))


@jax.custom_jvp
def eigh(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """The eigenvalues of a symmetric matrix, ascending, and its eigenvectors.

    Derivatives of eigenvectors are infinite or NaN where eigenvalues are equal."""
    return _eigh(matrix)


@eigh.defjvp
def _(primals, tangents):
    values, V = eigh(*primals)
    (change,) = tangents
    inner = matmul(V.T, matmul((change + change.T) / 2, V))
    turn = _off_diagonal(values[None, :] - values[:, None]) * inner
    return (values, V), (jnp.diagonal(inner), matmul(V, turn))


@jax.custom_jvp
def svd(
    matrix: Float[Array, "n d"],
) -> tuple[Float[Array, "n m"], Float[Array, " m"], Float[Array, "m d"]]:
    """The singular value decomposition `U`, `s`, `Vᵀ`, with `m = min(n, d)`.

    Derivatives of singular vectors are infinite or NaN where singular values are equal."""
    return _svd(matrix)


@svd.defjvp
def _(primals, tangents):
    U, s, Vt = svd(*primals)
    (change,) = tangents
    left, right = matmul(U.T, change), matmul(change, Vt.T)
    inner = matmul(left, Vt.T)
    gaps = _off_diagonal(s[None, :] ** 2 - s[:, None] ** 2)
    either, other = inner * s[None, :], s[:, None] * inner
    inverse = jnp.where(s > 0, 1 / jnp.where(s > 0, s, 1), 0)
    # The second terms are the components outside the span of the singular vectors, for n ≠ d.
    dU = matmul(U, gaps * (either + either.T)) + (right - matmul(U, inner)) * inverse[None, :]
    dV = matmul(gaps.T * (other + other.T), Vt) + inverse[:, None] * (left - matmul(inner, Vt))
    return (U, s, Vt), (dU, jnp.diagonal(inner), dV)


def _off_diagonal(gaps: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """`1/gaps`, with 0 on the diagonal, where `gaps` is 0."""
    identity = jnp.eye(gaps.shape[0], dtype=gaps.dtype)
    return 1 / (gaps + identity) - identity


# `A⁻¹`, by an LU factorisation.
inverse = _lapack(jnp.linalg.inv, lambda a: 2 * a.shape[-1] ** 3)


class Cholesky(eqx.Module):
    """The Cholesky factorisation `LLᵀ` of a symmetric positive definite matrix."""

    matrix: Float[Array, "m m"]
    # `L`; up to size `INVERTED`, `L⁻¹`; up to size `UNROLLED`, the rows of `L` with `1/Lᵢᵢ` in
    # place of `Lᵢᵢ`, so that solves multiply instead of dividing.
    factor: Float[Array, "m m"] | tuple[tuple[Array, ...], ...]

    def __init__(self, matrix: Float[Array, "m m"]):
        self.matrix = matrix
        matrix = lax.stop_gradient(matrix)
        m = matrix.shape[0]
        if m <= UNROLLED:
            self.factor = _unrolled(matrix)
            return
        self.factor = inverse_factor(matrix) if m <= INVERTED else cholesky(matrix)

    def solve(self, rhs: Float[Array, " m"]) -> Float[Array, " m"]:
        """The solution of `matrix · x = rhs`, differentiable in both."""
        # Derivatives are solves with the same factor, O(m²); that of the factor would be O(m³).
        product = ft.partial(matmul, self.matrix)
        solve = lambda _, rhs: self._solve(rhs)
        return lax.custom_linear_solve(product, rhs, solve, symmetric=True)

    def _solve(self, rhs: Float[Array, " m"]) -> Float[Array, " m"]:
        if isinstance(self.factor, tuple):
            return _unrolled_solve(self.factor, rhs)
        if rhs.shape[0] <= INVERTED:
            return matmul(matmul(self.factor, rhs), self.factor)
        half = lower_solve(self.factor, rhs[:, None])
        return lower_solve_transposed(self.factor, half)[:, 0]


def _unrolled(matrix: Float[Array, "m m"]) -> tuple[tuple[Array, ...], ...]:
    """The rows of `L`, with `1/Lᵢᵢ` on the diagonal, as scalars."""
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
    """Forward and back substitution with the factor of `_unrolled`."""
    m = len(factor)
    x: list[Array] = []
    for i, row in enumerate(factor):
        x.append((rhs[i] - sum(row[k] * x[k] for k in range(i))) * row[i])
    for i in reversed(range(m)):
        rest = x[i] - sum(factor[k][i] * x[k] for k in range(i + 1, m))
        x[i] = rest * factor[i][i]
    # The barrier keeps XLA from fusing the solve into each of its consumers, which would repeat it.
    return lax.optimization_barrier(jnp.stack(x))
