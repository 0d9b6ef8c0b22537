"""`max_margin`: against linear programmes solved by HiGHS, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import dlnjax as dln
from dlnjax._results import names_of


def _best(A, weights):
    """min Σ ωᵢ|xᵢ| subject to Ax ≥ 1, by HiGHS; inf if that is infeasible."""
    bounds = [(0, 0 if np.isinf(w) else None) for w in weights.ravel()]
    cost = np.where(np.isinf(weights), 0, weights).ravel()
    options = dict(primal_feasibility_tolerance=1e-10, dual_feasibility_tolerance=1e-10)
    both = -np.concatenate([A, -A], axis=1)
    run = linprog(cost, A_ub=both, b_ub=-np.ones(len(A)), bounds=bounds, options=options)
    assert run.status in (0, 2)
    return run.fun if run.status == 0 else np.inf


def _instances(n, d, count):
    """Designs, labels and weights: separable and not, with equal rows and columns, an intercept."""
    rng = np.random.default_rng([n, d])
    X, y = rng.normal(size=(count, n, d)), np.sign(rng.normal(size=(count, n)))
    weights = np.ones((count, 2, d))
    for k in range(count):
        if k % 2:
            y[k] = np.sign(X[k] @ rng.normal(size=d))
        if k % 5 == 0:
            X[k, 1], y[k, 1] = X[k, 0], y[k, 0]
        if k % 7 == 0:
            X[k, :, 1] = X[k, :, 0]
        if k % 3 == 0:
            X[k] = np.sign(X[k])  # ties everywhere
        if k % 4 == 1:
            X[k, :, -1], weights[k, :, -1] = 1, 0
        if k % 4 == 2:
            weights[k] = rng.uniform(0.5, 2, size=(2, d))
        if k % 4 == 3:
            weights[k, 1] = np.inf  # x ≥ 0
    return X, y, weights


@pytest.mark.parametrize("n, d", [(6, 12), (9, 5)])
def test_against_highs(n, d):
    X, y, weights = _instances(n, d, 121)
    y[0, 0] = 3  # no label
    # Columns in other units, with weights to match, change nothing else.
    units = 10.0 ** np.random.default_rng(0).uniform(-5, 5, size=(121, 1, d))
    units[::2] = 1
    solve = lambda X, y, w: dln.max_margin(dln.Logistic(X, y), weights=w, throw=False)
    best = jax.jit(jax.vmap(solve))(X * units, y, weights * units)
    A = X * y[:, :, None]
    least = np.array([_best(*one) for one in zip(A, weights, strict=True)])
    is_free = least < 1e-9  # a constant classifier, at no cost
    names = np.where(np.isfinite(least), "successful", "not_separable")
    names[0], least[0] = "invalid_data", np.inf
    np.testing.assert_array_equal(names_of(best.result), names)
    assert 30 < np.sum(np.isfinite(least))
    if d < n:
        assert 30 < np.sum(np.isinf(least))
    for k in np.flatnonzero(np.isfinite(least)):
        x, nu, w = np.asarray(best.x[k]) * units[k, 0], np.asarray(best.dual[k]), weights[k]
        sides = np.stack([np.maximum(x, 0), np.maximum(-x, 0)])
        cost = np.sum(np.where(sides > 0, w, 0) * sides)
        # Feasible to rounding, and as good as HiGHS, whose own tolerance is 1e-10.
        assert np.min(A[k] @ x) >= 1 - 1e-12
        np.testing.assert_allclose(cost, least[k], rtol=1e-9, atol=1e-12)
        image = nu @ A[k]
        assert np.all(nu >= 0) and np.all(np.stack([image, -image]) <= w + 1e-12)
        np.testing.assert_allclose(np.sum(nu), least[k], rtol=1e-9, atol=1e-12)
        assert abs(best.gap[k]) <= 1e-10 * max(cost, 1e-2)
        if is_free[k]:
            assert np.isinf(best.margin[k]) or best.margin[k] > 1e9
        else:
            np.testing.assert_allclose(best.margin[k], 1 / cost, rtol=1e-12)


def test_derivatives():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(8, 5))
    y = np.sign(X @ rng.normal(size=5))
    change = rng.normal(size=(8, 5))

    def margin(t):
        best = dln.max_margin(dln.Exponential(X + t * change, y), weights=jnp.linspace(1, 2, 5) + t)
        return best.margin

    value = jax.jit(jax.vmap(margin))
    h = 1e-5
    difference = (value(jnp.array([h])) - value(jnp.array([-h])))[0] / (2 * h)
    # The error of a central difference, h² times a third derivative.
    slope = jax.jit(jax.grad(margin))(jnp.zeros(()))
    np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_bad_input(as_users_run_it):
    X, y = np.eye(2), np.array([1.0, -1.0])
    with pytest.raises(TypeError, match="needs labels 1 and −1"):
        dln.max_margin(dln.LeastSquares(X, y))
    with pytest.raises(TypeError, match="needs labels 1 and −1"):
        dln.max_margin(dln.Poisson(X, np.ones(2)))
    with pytest.raises(ValueError, match="`weights` must not be negative"):
        dln.max_margin(dln.Logistic(X, y), weights=-np.ones(2))
    with pytest.raises(RuntimeError, match="No linear model"):
        dln.max_margin(dln.Logistic(np.ones((2, 1)), y))
