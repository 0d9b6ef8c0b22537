"""Basis pursuit: against linear programmes, and its dual."""

import jax
import numpy as np
import pytest
from end_points import D_, FIRST, N
from scipy.optimize import linprog, nnls

import dlnjax as dln


@pytest.mark.parametrize("case", ["plain", "weights", "positive"])
def test_basis_pursuit_against_linprog(case):
    rng = np.random.default_rng(4)
    for _ in range(5):
        X, weights = rng.normal(size=(N, D_)), rng.uniform(0.5, 2, (2, D_))
        y = X @ abs(rng.normal(size=D_)) if case == "positive" else rng.normal(size=N)
        weights = weights if case == "weights" else np.ones((2, D_))
        options = {"weights": weights} if case == "weights" else {"positive": case == "positive"}
        point = dln.basis_pursuit(dln.LeastSquares(X, y), **options)
        F, cost = (X, weights[0]) if case == "positive" else (np.hstack([X, -X]), weights.ravel())
        best = linprog(cost, A_eq=F, b_eq=y)
        q = best.x if case == "positive" else best.x[:D_] - best.x[D_:]
        np.testing.assert_allclose(point.x, q, atol=1e-9)
        assert point.is_unique and abs(point.gap) < 1e-13 * best.fun and point.infeasibility < 1e-13
        # A dual point of the same value.
        ratio = np.where(point.dual > 0, point.dual / weights[0], -point.dual / weights[1])
        assert np.max(point.dual / weights[0] if case == "positive" else ratio) < 1 + 1e-12
        np.testing.assert_allclose(point.dual @ point.x, best.fun, rtol=1e-9)


def test_the_dual_of_columns_that_are_almost_dependent():
    # Its digits are those of the condition number (1e4), not of its square, which the path's are.
    rng, instances = np.random.default_rng(9), []
    for _ in range(20):
        A = rng.normal(size=(N, N))
        A[:, 1] = A[:, 0] + 1e-4 * A[:, 1]
        X = np.hstack([A, 1e-8 * rng.normal(size=(N, 2))])
        instances.append((X, A @ [1.0, -1.0, 0.5]))

    @jax.jit
    @jax.vmap
    def solve(X, y):
        return dln.basis_pursuit(dln.LeastSquares(X, y), throw=False)

    point = solve(*map(np.stack, zip(*instances, strict=True)))
    assert np.all(point.result == dln.RESULTS.successful)
    for (X, _), dual in zip(instances, np.asarray(point.dual), strict=True):
        nu = np.linalg.solve(X[:, :N].T, [1.0, -1, 1])
        np.testing.assert_array_equal(dual[:N], [1, -1, 1])
        want = X[:, N:].T @ nu
        np.testing.assert_allclose(dual[N:], want, rtol=0, atol=1e-11 * np.abs(want).max())


def test_basis_pursuit_that_is_not_unique():
    point = dln.basis_pursuit(dln.LeastSquares(*FIRST))
    np.testing.assert_allclose(np.abs(point.x).sum(), 3, rtol=1e-13)
    np.testing.assert_allclose(point.dual, [1, 1, 1, 0, 0], atol=1e-13)
    assert not point.is_unique and point.gap < 1e-13


def test_a_response_that_is_one_column_but_for_little():
    # What is left of `y` is 1e-11 of it, and no `x ≥ 0` fits that: the dual may be moved along it,
    # by as much as it takes, and stays in the range of Xᵀ.
    rng, lanes = np.random.default_rng(4), 64
    X = rng.normal(size=(lanes, 3, 4))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y = X[:, :, 0] + 1e-11 * rng.normal(size=(lanes, 3))

    @jax.jit
    @jax.vmap
    def solve(X, y):
        return dln.basis_pursuit(dln.LeastSquares(X, y), positive=True, throw=False)

    point = solve(X, y)
    assert np.all(point.result == dln.RESULTS.successful)
    misfits = 0
    for A, b, x, dual in zip(X, y, *map(np.asarray, (point.x, point.dual)), strict=True):
        want, rest = nnls(A, b)
        if rest > 1e-13:  # only one `x` has it
            misfits += 1
            np.testing.assert_allclose(x, want, rtol=0, atol=1e-13)
        _, _, V = np.linalg.svd(A)
        assert abs(V[-1] @ dual) < 1e-12 * np.abs(dual).max()
        assert dual.max() < 1 + 1e-12
        np.testing.assert_allclose(dual @ x, x.sum(), rtol=1e-11)
    assert misfits > 10


@pytest.mark.parametrize("as_rows", [True, False])
def test_free_columns_that_fit_all(as_rows):
    # What is left for the others is rounding, at a cost that is: no dual but 0 is exact enough.
    rng, lanes = np.random.default_rng(6), 32
    X = rng.choice([-1.0, 1.0], (lanes, 4, 3)) * 10 ** rng.uniform(-4, 4, (lanes, 1, 3))
    y = X[:, :, 2] * rng.uniform(0.5, 2, (lanes, 1))
    weights = np.stack([10 ** rng.uniform(-5, 5, lanes), 10 ** rng.uniform(-5, 5, lanes)])
    weights = np.concatenate([weights, np.zeros((1, lanes))]).T

    @jax.jit
    @jax.vmap
    def solve(X, y, weights):
        problem = dln.LeastSquares(X, y)
        if not as_rows:
            problem = dln.Quadratic(problem.gram(), problem.r)
        return dln.basis_pursuit(problem, weights=weights, throw=False)

    point = solve(X, y, weights)
    assert np.all(point.result == dln.RESULTS.successful)
    share = np.asarray(point.x) * np.linalg.norm(X, axis=1)
    fit = np.linalg.norm(y, axis=1)[:, None]
    np.testing.assert_allclose(np.abs(share) / fit, [[0, 0, 1]] * lanes, atol=1e-14)
