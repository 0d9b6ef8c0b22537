"""How a point of the lasso path is chosen: against scikit-learn, SciPy and the definitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import LassoLarsIC

import dlnjax as dln


def _problem(n=30, d=8, seed=0, weight_decay=0.0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ (np.eye(d) + rng.normal(size=(d, d)))
    return dln.LeastSquares(X, rng.normal(size=n), weight_decay)


@pytest.mark.parametrize(("n", "d"), [(30, 8), (5, 12)])
def test_the_next_coordinate_enters_at_nonzeros(n, d):
    for seed in range(5):
        path = dln.lasso_path(_problem(n, d, seed))
        knots = np.asarray(path.knots)[: int(path.num_knots)]
        middles = np.append((knots[1:] + knots[:-1]) / 2, 2 * knots[-1])
        counts = np.sum(np.asarray(path.x(middles)) != 0, axis=1)
        for k in range(d + 1):
            beyond = knots[counts > k]
            assert path.at_nonzeros(k) == (beyond[0] if len(beyond) else np.inf)
            if len(beyond):
                assert np.count_nonzero(path.x(beyond[0])) <= k


def test_a_coordinate_that_leaves_again():
    # x₁ is not 0 between its knots at 2/3 and 3/4 alone, and x₂ ≠ 0 there.
    path = dln.lasso_path(dln.LeastSquares(jnp.array([[2.0, 1.0], [0, 0.5]]), jnp.array([1, 1.5])))
    np.testing.assert_allclose(path.at_nonzeros(1), 2 / 3, rtol=1e-12)


def test_two_coordinates_that_enter_at_once():
    # Two coordinates enter at once: up to there x = 0, and k = 1 has the same end.
    path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.ones(2)))
    np.testing.assert_array_equal(path.at_nonzeros(jnp.arange(3)), [1, 1, np.inf])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_norm_solves_the_constrained_lasso(weight_decay):
    problem = _problem(6, 4, 1, weight_decay)
    weights = np.array([1.0, 2.0, 0.5, 1.0])
    path = dln.lasso_path(problem, weights=weights)
    largest = float(weights @ jnp.abs(path.x(jnp.inf)))
    X, y = np.asarray(problem.X), np.asarray(problem.y)
    signed = np.hstack([X, -X])
    loss = lambda v: np.sum((signed @ v - y) ** 2) / 2 + weight_decay * np.sum(v)
    for t in (0.3 * largest, 0.8 * largest):
        x = np.asarray(path.x(path.at_norm(t)))
        np.testing.assert_allclose(weights @ abs(x), t, rtol=1e-12)
        bound: Any = {"type": "ineq", "fun": lambda v, t=t: t - np.tile(weights, 2) @ v}
        best: Any = scipy.optimize.minimize(
            loss,
            np.full(8, 0.01),
            jac=lambda v: signed.T @ (signed @ v - y) + weight_decay,
            bounds=[(0, None)] * 8,
            constraints=bound,
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 1000},
        )
        # SLSQP stops at 1e-7 to 1e-8 of the solution.
        np.testing.assert_allclose(x, best.x[:4] - best.x[4:], atol=1e-6 * float(np.max(abs(x))))
    at = path.at_norm(jnp.array([0, 2 * largest, jnp.nan]))
    np.testing.assert_array_equal(at, [0, np.inf, np.nan])


def test_norm_beside_free_and_excluded_coordinates():
    path = dln.lasso_path(_problem(20, 4), weights=jnp.array([0.0, 1.0, jnp.inf, 2.0]))
    norm = lambda x: jnp.abs(x[..., 1]) + 2 * jnp.abs(x[..., 3])
    t = jnp.linspace(0, 1, 9)[1:-1] * norm(path.x(jnp.inf))
    np.testing.assert_allclose(norm(path.x(path.at_norm(t))), t, rtol=1e-12)


def test_a_path_that_was_cut_short_is_known_up_to_there():
    problem = _problem()
    whole, cut = (dln.lasso_path(problem, max_knots=k, throw=False) for k in (None, 4))
    last = jnp.sum(jnp.abs(whole.x(whole.knots[3])))
    t = jnp.array([0.3, 0.9, 1.1]) * last
    np.testing.assert_allclose(cut.at_norm(t)[:2], whole.at_norm(t)[:2], rtol=1e-12)
    assert jnp.isnan(cut.at_norm(t[2]))
    assert cut.at_nonzeros(2) == whole.at_nonzeros(2) and jnp.isnan(cut.at_nonzeros(3))


@pytest.mark.parametrize("criterion", ["aic", "bic"])
def test_criterion_is_that_of_scikit_learn(criterion):
    problem = _problem()
    path = dln.lasso_path(problem)
    theirs = LassoLarsIC(criterion=criterion, fit_intercept=False).fit(problem.X, problem.y)
    # Their knots: rounded, ours could be a little later, where one more coordinate is not 0.
    at = jnp.append(path.knots[: int(path.num_knots)], jnp.inf)
    np.testing.assert_allclose(1 / at, theirs.alphas_ * 30, rtol=1e-9, atol=1e-12)
    ours = path.information_criterion(problem, at, criterion)
    np.testing.assert_allclose(ours, theirs.criterion_, rtol=1e-11)
    known = path.information_criterion(problem, at, criterion, noise_variance=2.0)
    theirs.set_params(noise_variance=2.0).fit(problem.X, problem.y)
    np.testing.assert_allclose(known, theirs.criterion_, rtol=1e-11)


def test_choices_have_derivatives_and_batches():
    problem = _problem(6, 3, 2)
    at = lambda y: dln.lasso_path(dln.LeastSquares(problem.X, y)).at_norm(0.05)
    gradient, h = jax.grad(at)(problem.y), 1e-5
    for i in range(6):
        e = h * jnp.eye(6)[i]
        slope = (at(problem.y + e) - at(problem.y - e)) / (2 * h)
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-6)
    y = jnp.stack([problem.y, 2 * problem.y, problem.y.at[0].set(jnp.nan)])
    np.testing.assert_allclose(jax.vmap(at)(y)[:2], [at(problem.y), at(2 * problem.y)], rtol=1e-12)
    assert jnp.isnan(jax.vmap(at)(y)[2])


REFUSED = {
    "k = -1": (lambda p, _: p.at_nonzeros(-1), ValueError, "`k` must be non-negative, got -1"),
    "t = -1": (lambda p, _: p.at_norm(-1.0), ValueError, "`t` must be non-negative, got -1"),
    "mdl": (
        lambda p, problem: p.information_criterion(problem, 1.0, "mdl"),
        ValueError,
        '`criterion` must be "aic" or "bic", got \'mdl\'',
    ),
    "no rows": (
        lambda p, problem: p.information_criterion(dln.Quadratic(jnp.eye(8), problem.r), 1.0),
        TypeError,
        "pass a `LeastSquares` problem, got Quadratic",
    ),
    "variance 0": (
        lambda p, problem: p.information_criterion(problem, 1.0, noise_variance=0),
        ValueError,
        "`noise_variance` must be positive, got 0",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(call, error, message):
    problem = _problem()
    with pytest.raises(error, match=message):
        call(dln.lasso_path(problem), problem)


def test_wide_designs_need_the_variance():
    problem = _problem(5, 8)
    path = dln.lasso_path(problem)
    with pytest.raises(ValueError, match="cannot be estimated: 5 rows and 8 columns leave"):
        path.information_criterion(problem, 1.0)
    X = _problem().X
    exact = dln.LeastSquares(X, X[:, 0])  # up to rounding
    with pytest.raises(ValueError, match="cannot be estimated: 30 rows and 8 columns leave"):
        dln.lasso_path(exact).information_criterion(exact, 1.0)
