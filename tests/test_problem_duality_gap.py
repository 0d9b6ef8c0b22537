"""The duality gap, against outside solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    BROADCASTS,
    EVERY_SHAPE,
    data_of,
    least_squares_of,
    points_of,
    quadratic_of,
    relative,
)
from sklearn.linear_model import Lasso

import dlnjax as dln
from dlnjax._problem import AbstractProblem

_gap = jax.jit(AbstractProblem.duality_gap, static_argnames="positive")


@BROADCASTS
def test_kappa_broadcasts_against_the_batch_of_x(points, mus, batch):
    problem = least_squares_of(*data_of("n > d"))
    x = points_of(4, points)
    kappa = np.linspace(0.2, 3, int(np.prod(mus))).reshape(mus)
    want = _gap(problem, np.broadcast_to(x, (*batch, 4)), np.broadcast_to(kappa, batch))
    gap = _gap(problem, x, kappa)
    assert gap.shape == batch
    assert relative(gap, want) < 1e-14


def _optimum(X, y, kappa, positive):
    model = Lasso(alpha=kappa / len(y), fit_intercept=False, positive=positive, tol=1e-15)
    return model.set_params(max_iter=1_000_000).fit(X, y).coef_


@EVERY_SHAPE
@pytest.mark.parametrize("positive", [False, True])
def test_duality_gap_bounds_the_gap_and_vanishes_at_the_optimum(name, positive):
    X, y = data_of(name)
    largest = np.max(X.T @ y if positive else np.abs(X.T @ y))
    kappa = np.array([1.5, 0.5, 0.05])[:, None] * largest
    best = np.stack([_optimum(X, y, float(k[0]), positive) for k in kappa])[:, None]
    # The optimum, then points further and further from it.
    x = best + np.append(0, np.logspace(-6, 1, 30))[:, None] * points_of(X.shape[1], (3, 31))
    x = np.abs(x) if positive else x
    objective = 0.5 * np.sum((x @ X.T - y) ** 2, axis=-1) + kappa * np.abs(x).sum(axis=-1)
    true = objective - objective[:, :1]
    rounding = 1e-14 * np.sum(y**2)
    assert np.all(true > -rounding)
    for make in [least_squares_of, quadratic_of]:
        gap = np.asarray(_gap(make(X, y), x, kappa, positive=positive))
        assert np.all(np.isfinite(gap))
        assert np.all(gap >= true - rounding)
        # The gap of the optimum is what scikit-learn's stopping left.
        assert np.all(gap[:, 0] < 1e-9 * np.sum(y**2))


def test_duality_gap_is_exactly_zero_at_zero_above_the_largest_correlation():
    X, y = data_of("n > d")
    for positive, size in [(False, np.abs(X.T @ y).max()), (True, (X.T @ y).max())]:
        assert _gap(least_squares_of(X, y), np.zeros(4), 1.01 * size, positive=positive) == 0


def test_duality_gap_of_a_negative_point_is_infinite_for_the_positive_lasso():
    x = np.array([[1.0, -1e-9, 0, 0], [1.0, 1e-9, 0, 0]])
    gap = _gap(least_squares_of(*data_of("n > d")), x, np.ones(2), positive=True)
    assert np.isinf(gap[0]) and np.isfinite(gap[1])


@EVERY_SHAPE
def test_duality_gap_without_penalty(name):
    X, y = data_of(name)
    problem = least_squares_of(X, y)
    x = points_of(X.shape[1], (10,))
    least = 0.5 * np.sum((X @ np.linalg.lstsq(X, y)[0] - y) ** 2)
    gap = np.asarray(_gap(problem, x, np.zeros(10)))
    assert np.all(gap >= 0.5 * np.sum((x @ X.T - y) ** 2, axis=-1) - least - 1e-14)
    assert np.all(np.isfinite(gap))
    # An exact fit has no gap: residual and penalty are both exactly 0.
    assert _gap(dln.LeastSquares(np.eye(3), np.ones(3)), np.ones(3), 0.0) == 0


def test_duality_gap_without_penalty_has_derivatives():
    rng = np.random.default_rng(2)
    problem, x = dln.LeastSquares(rng.normal(size=(3, 4)), rng.normal(size=3)), rng.normal(size=4)
    by_x, by_kappa = jax.grad(problem.duality_gap, argnums=(0, 1))(jnp.asarray(x), 0.0)
    np.testing.assert_allclose(by_x, problem.gradient(x), rtol=1e-12)
    assert np.isfinite(by_kappa)
