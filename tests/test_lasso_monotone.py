"""Designs whose lasso paths are monotone for every response: against paths, and by brute force."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

D, LANES = 3, 120
SIGNS = pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])


@functools.cache
def _designs() -> np.ndarray:
    """Square roots of matrices that are generic, near diagonal, and Z-matrices, in turn, with
    columns of different sizes; the last is the identity."""
    rng = np.random.default_rng(0)
    designs = []
    while len(designs) < LANES:
        A = rng.normal(size=(D, D))
        A = A + A.T
        kind = len(designs) % 3
        if kind == 0:
            M = A @ A
        elif kind == 1:
            M = 6 * np.eye(D) + rng.uniform(0.2, 1.2) * A
        else:
            off = -np.abs(A) * (1 - np.eye(D))
            M = off - 1.3 * np.linalg.eigvalsh(off)[0] * np.eye(D)
        if np.linalg.eigvalsh(M)[0] > 1e-2:
            scale = np.exp(0.3 * rng.normal(size=D))
            designs.append(np.linalg.cholesky(scale[:, None] * M * scale).T)
    designs[-1] = np.eye(D)
    return np.stack(designs)


@eqx.filter_jit
def _analyse(X, y):
    """`is_z_matrix`; `is_always_monotone`, signed and positive; whether the signed path is."""

    def lane(X, y):
        problem = dln.LeastSquares(X, y)
        path = dln.lasso_path(problem, throw=False)
        always = [dln.is_always_monotone(problem, positive=positive) for positive in (False, True)]
        is_good = path.result == dln.RESULTS.successful
        return dln.is_z_matrix(problem), jnp.stack(always), path.is_monotone(), is_good

    return jax.vmap(lane)(X, y)


def _analysed(X, y):
    return [np.asarray(v) for v in _analyse(jnp.asarray(X), jnp.asarray(y))]


def _worst(M, positive) -> tuple[float, tuple[int, ...], np.ndarray, int]:
    """The least entry of `σ∘(M_II⁻¹ σ)`, relative to its row, and where it is: `I`, `σ`, `i`."""
    worst = (np.inf, (), np.zeros(0), 0)
    for size in range(1, D + 1):
        for subset in itertools.combinations(range(D), size):
            B = np.linalg.inv(M[np.ix_(subset, subset)])
            for sigma in itertools.product([1.0] if positive else [1.0, -1.0], repeat=size):
                signs = np.array(sigma)
                slack = signs * (B @ signs) / np.abs(B).sum(axis=1)
                i = int(np.argmin(slack))
                worst = min(worst, (slack[i], subset, signs, i), key=lambda w: w[0])
    return worst


def _counterexample(M, positive) -> np.ndarray:
    """An `r` whose path decreases at `μ = 1`, by the proof in `is_always_monotone`: checked here by
    the conditions of the lasso at `z`."""
    _, subset, signs, i = _worst(M, positive)
    active = list(subset)
    z, sigma = np.zeros(D), np.zeros(D)
    z[active] = sigma[active] = signs
    z[active[i]] = -np.linalg.solve(M[np.ix_(active, active)], signs)[i] / 2
    r = M @ z + sigma
    assert np.all(z * sigma >= 0)
    speed = np.linalg.solve(M[np.ix_(active, active)], r[active])[i]
    assert speed * z[active[i]] < 0
    return r


def _regular(positive) -> np.ndarray:
    return np.array([_worst(A.T @ A, positive)[0] for A in _designs()])


@SIGNS
def test_against_brute_force(positive):
    X = _designs()
    worst = _regular(positive)
    assert np.abs(worst).min() > 1e-6  # none is decided by rounding
    is_z, always, _, _ = _analysed(X, np.ones((LANES, D)))
    np.testing.assert_array_equal(always[:, int(positive)], worst > 0)
    off = np.where(np.eye(D, dtype=bool), -1, np.swapaxes(X, 1, 2) @ X)
    np.testing.assert_array_equal(is_z, (off <= 0).all(axis=(1, 2)))
    assert is_z.sum() >= LANES // 3
    # Signs that are free imply the positive condition; so does a Z-matrix.
    assert always[always[:, 0] | is_z, 1].all()
    assert 30 < always[:, int(positive)].sum() < LANES - 20
    # Units do not matter.
    np.testing.assert_array_equal(_analysed(1e-6 * X, np.ones((LANES, D)))[1], always)


def test_every_path_is_monotone():
    X, rng = _designs(), np.random.default_rng(1)
    expected = _regular(False) > 0
    number = 0
    for _ in range(12):
        _, _, monotone, good = _analysed(X, rng.normal(size=(LANES, D)))
        assert good.all() and monotone[expected].all()
        number += expected.sum()
    assert number > 400


@SIGNS
def test_otherwise_some_path_is_not(positive):
    X = _designs()
    bad = np.flatnonzero(_regular(positive) < 0)
    assert len(bad) > 20
    y = np.ones((LANES, D))
    for i in bad:
        y[i] = np.linalg.solve(X[i].T, _counterexample(X[i].T @ X[i], positive))
    if not positive:
        _, _, monotone, good = _analysed(X, y)
        assert good.all() and not monotone[bad].any()


SINGULAR = {
    # M_II of a pair of equal columns does not count, nor that of a zero column.
    "duplicates": (np.array([[1.0, 1, 0], [0, 0, 1], [0, 0, 0]]), True, True),
    "zero column": (np.array([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]]), True, True),
    "negated": (np.array([[1.0, -1, 0], [0, 0, 1], [0, 0, 0]]), True, True),
    # A Z-matrix (a graph Laplacian): every proper M_II is diagonally dominant, not its inverse.
    "Laplacian": (np.array([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1]]), True, True),
    # (1, 1)·x and 2 x: M⁻¹ 1 < 0 on {1, 2}.
    "too close": (np.array([[1.0, 2, 0], [0.0, 0.5, 0], [0, 0, 1]]), False, False),
    # Regular, but rounding hides the sign of M⁻¹ 1, which is 0: not certain.
    "near-duplicates": (np.array([[1.0, 1, 0], [0, 1e-6, 0], [0, 0, 1]]), False, False),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_singular(name):
    X, *want = SINGULAR[name]
    y = np.random.default_rng(2).normal(size=(LANES, D))
    _, always, monotone, good = _analysed(np.broadcast_to(X, (LANES, D, D)), y)
    np.testing.assert_array_equal(always, np.tile(want, (LANES, 1)))
    if want[0]:
        assert good.all() and monotone.all()


def test_traced_data_that_are_not_finite():
    X = np.tile(np.eye(D), (LANES, 1, 1))
    X[0, 0, 0], X[1, 1, 0] = np.nan, np.inf
    is_z, always, _, _ = _analysed(X, np.ones((LANES, D)))
    np.testing.assert_array_equal(is_z, np.arange(LANES) >= 2)
    np.testing.assert_array_equal(always[:, 0] & always[:, 1], np.arange(LANES) >= 2)


def test_refuses_many_coordinates():
    with pytest.raises(ValueError, match=r"d ≤ 12, got d = 13\. Use `lasso_path"):
        dln.is_always_monotone(dln.LeastSquares(np.eye(13), np.ones(13)))


def test_float32():
    X = _designs()[:LANES:4]
    check = jax.vmap(lambda X: dln.is_always_monotone(dln.LeastSquares(X, X[0])))
    want = [_worst(A.T @ A, False)[0] > 0 for A in X]
    np.testing.assert_array_equal(check(jnp.asarray(X, jnp.float32)), want)
