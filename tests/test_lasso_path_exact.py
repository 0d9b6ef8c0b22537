"""Lasso paths that are known: of worst cases in exact rationals, and of the diabetes data."""

from fractions import Fraction
from typing import Any

import jax
import numpy as np
from families import exact_path, worst_case
from lasso_paths import is_flagged, pad, sample, violations
from sklearn.datasets import load_diabetes
from sklearn.linear_model import lars_path

import dlnjax as dln


def test_diabetes():
    data: Any = load_diabetes()
    X, y = np.asarray(data["data"]), np.asarray(data["target"])
    y = y - y.mean()
    problem = dln.LeastSquares(X, y)
    path = dln.lasso_path(problem)
    alpha, _, x = lars_path(X, y, method="lasso")
    knots = 1 / (len(y) * alpha[:-1])  # its last alpha is 0, the least squares point
    assert path.num_knots == len(knots) == 12
    np.testing.assert_allclose(path.knots[:12], knots, rtol=1e-9)
    got = path.x(np.append(knots, np.inf))
    np.testing.assert_allclose(got, x.T, rtol=1e-9, atol=1e-9 * np.abs(x).max())
    assert not path.is_monotone()


def _rational(rng, n, d):
    """Random fractions that are floating-point numbers."""
    X, y = rng.integers(-999, 999, (n, d)), rng.integers(-999, 999, n)
    return [[Fraction(int(v), 512) for v in row] for row in X], [Fraction(int(v), 64) for v in y]


def test_against_exact_rationals():
    # Mairal & Yu's worst cases for p = 1..6, then generic ones, all padded to 6 × 6.
    rng = np.random.default_rng(0)
    problems = [worst_case(p) for p in range(1, 7)]
    problems += [_rational(rng, n, d) for n, d in [(2, 2), (3, 6), (6, 4), (6, 6), (5, 5)]]
    padded = [
        pad(np.array([X], dtype=float), np.array([y], dtype=float), 6, 6) for X, y in problems
    ]
    X, y = (np.concatenate(a) for a in zip(*padded, strict=True))

    @jax.jit
    @jax.vmap
    def solve(X, y):
        return sample(dln.lasso_path(dln.LeastSquares(X, y), max_knots=400, throw=False))

    path, p, x = solve(X, y)
    assert not np.any(is_flagged(path))
    assert np.all(violations(X, y, np.asarray(p), np.asarray(x)) <= 1e-9)
    for i, problem in enumerate(problems):
        kinks, points = exact_path(*problem)
        K = len(kinks)
        if i < 6:
            assert K + 1 == (3 ** (i + 1) + 1) // 2  # segments, with the one at x = 0
        assert path.num_knots[i] == K
        np.testing.assert_allclose(1 / path.knots[i, :K], np.array(kinks, float), rtol=1e-9)
        want = np.array(points, dtype=float)
        want = np.pad(want, ((0, 0), (0, 6 - want.shape[1])))
        got = path.values[i, :K] / path.knots[i, :K, None]
        np.testing.assert_allclose(got, want, atol=1e-9 * np.abs(want).max())
