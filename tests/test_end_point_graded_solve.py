"""The Newton equations with weights over many decades, against exact arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlnjax._end_point.graded_solve import Graded


def exact_solve(A, b):
    """Gauss-Jordan elimination in rational numbers, of a positive definite matrix."""
    rows = [[*row, value] for row, value in zip(A, b, strict=True)]
    for k, pivot in enumerate(rows):
        pivot[:] = [v / pivot[k] for v in pivot]
        for row in rows:
            if row is not pivot:
                row[:] = [v - row[k] * p for v, p in zip(row, pivot, strict=True)]
    return [row[-1] for row in rows]


def exact(V, weight, off, g):
    V, weight, off, g = (np.vectorize(Fraction, otypes=[object])(v) for v in (V, weight, off, g))
    nu = exact_solve(((V * weight) @ V.T).tolist(), (off - V @ (weight * g)).tolist())
    return np.array(nu), V.T @ np.array(nu) + g


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 4), (8, 8), (5, 12)])
def test_every_digit_of_every_size(size):
    rng = np.random.default_rng(sum(size))
    m, d = size
    solve = jax.jit(lambda V, weight, off, g: Graded(V, weight).solve(off, g))
    for decades in (0, 10, 40):
        for _ in range(5):
            V = np.linalg.qr(rng.normal(size=(d, m)))[0].T
            weight = 10 ** rng.uniform(-decades, 0, d)
            off, g = rng.normal(size=m), rng.normal(size=d)
            nu, dual = map(np.asarray, solve(V, weight, off, g))
            true_nu, true_dual = exact(V, weight, off, g)
            size_of_nu = float(max(abs(true_nu)))
            assert np.max(np.abs((nu - true_nu).astype(float))) <= 1e-12 * size_of_nu
            # What is added to x, weight * dual, relative to the largest term.
            error = np.abs((weight * (dual - true_dual)).astype(float))
            assert np.max(error) <= 1e-12 * np.max(weight * np.abs(true_dual.astype(float)))


def test_weights_that_underflow_and_missing_rank():
    """A weight of 0 moves nothing, and its dual follows; rows of zeros are not asked for."""
    rng = np.random.default_rng(0)
    V = np.zeros((3, 5))
    V[:2] = np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    weight = np.array([1.0, 0.0, 1e-30, 2.0, 0.0])
    off, g = np.array([0.3, -0.2, 0.0]), rng.normal(size=5)
    solve = lambda weight: Graded(*map(jnp.asarray, (V, weight))).solve(*map(jnp.asarray, (off, g)))
    nu, dual = map(np.asarray, solve(weight))
    np.testing.assert_allclose((V * weight) @ dual, off, atol=1e-15)
    np.testing.assert_allclose(V.T @ nu + g, dual, rtol=1e-13)
    nu, dual = solve(0 * weight)
    assert np.all(np.isfinite(nu)) and np.all(np.isfinite(dual))
