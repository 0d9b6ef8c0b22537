"""Small factorisations, written out and by LAPACK."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlnjax import _linalg
from dlnjax._linalg import Cholesky, matmul


@pytest.mark.parametrize("size", [1, 2, 3, _linalg.UNROLLED, _linalg.UNROLLED + 1, 20, 30])
def test_solves_are_backward_stable(size):
    rng = np.random.default_rng(size)
    # Slopes of the link spread over any number of decades: condition 1e16 and more.
    spread = 10.0 ** rng.uniform(-12, 12, size=(50, 1, 2 * size))
    X = rng.normal(size=(50, size, 2 * size))
    matrix = np.eye(size) + (X * spread) @ X.transpose(0, 2, 1)
    rhs = rng.normal(size=(50, size))
    x = jax.jit(jax.vmap(lambda a, b: Cholesky(a).solve(b)))(matrix, rhs)
    residual = np.abs(np.einsum("lij,lj->li", matrix, x) - rhs).max(axis=1)
    size_of = np.abs(matrix).sum(axis=2).max(axis=1) * np.abs(x).max(axis=1)
    assert np.all(residual <= 1e-15 * (10 + size) * (size_of + 1))


def test_unrolled_derivatives():
    rng = np.random.default_rng(0)
    X, b = rng.normal(size=(3, 5)), rng.normal(size=3)

    def ours(X):
        return jnp.sum(Cholesky(matmul(X, X.T)).solve(jnp.asarray(b)) ** 2)

    def theirs(X):
        return jnp.sum(jnp.linalg.solve(matmul(X, X.T), b) ** 2)

    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(ours)(X), derivative(theirs)(X), rtol=1e-9)
