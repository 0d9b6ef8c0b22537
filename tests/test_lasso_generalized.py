"""The lasso with another loss than the square: against scikit-learn's liblinear, and coordinate
descent, optimality conditions and finite differences in NumPy."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES
from sklearn.linear_model import LogisticRegression

import dlnjax as dln
from dlnjax._results import names_of

N, D, MU = 14, 6, np.geomspace(0.2, 20, 6).reshape(2, 3)
RNG = np.random.default_rng(3)
X = RNG.normal(size=(N, D))
SIGNS, REALS = np.where(RNG.random(N) < 0.5, 1.0, -1.0), 2 * RNG.normal(size=N)
COUNTS = RNG.poisson(1.5, N).astype(float)
SIDED = RNG.uniform(0.3, 3, (2, D))
# Weight 0 and weight ∞, on either sign alone too.
FREE = np.ones((2, D))
FREE[:, 0], FREE[0, 1], FREE[:, 2], FREE[1, 3] = 0, 0.1, np.inf, np.inf

CLASSES = {
    "logistic": lambda X, decay: dln.Logistic(X, SIGNS, decay),
    "exponential": lambda X, decay: dln.Exponential(X, SIGNS, decay),
    "Poisson": lambda X, decay: dln.Poisson(X, COUNTS, decay),
    "Huber": lambda X, decay: dln.Huber(X, REALS, 1.0, decay),
}
# Value, first and second derivative in u, by NumPy.
LOSSES = {
    "logistic": lambda u: (
        np.logaddexp(0, -SIGNS * u),
        -SIGNS / (1 + np.exp(SIGNS * u)),
        1 / (2 + np.exp(u) + np.exp(-u)),
    ),
    "exponential": lambda u: (
        np.exp(-SIGNS * u),
        -SIGNS * np.exp(-SIGNS * u),
        np.exp(-SIGNS * u),
    ),
    "Poisson": lambda u: (np.exp(u) - COUNTS * u, np.exp(u) - COUNTS, np.exp(u)),
    "Huber": lambda u: (
        np.where(abs(u - REALS) <= 1, (u - REALS) ** 2 / 2, abs(u - REALS) - 0.5),
        np.clip(u - REALS, -1, 1),
        np.ones(N),  # a bound
    ),
}
OPTIONS = {
    "plain": {},
    "positive": dict(positive=True),
    "weights": dict(weights=SIDED[0]),
    "weights by sign": dict(weights=SIDED),
    "free and excluded": dict(weights=FREE),
    "positive, weights": dict(positive=True, weights=FREE),
}


@functools.partial(jax.jit, static_argnames=("name", "positive"))
def _solve(name, X, decay, mu, weights, gap_tol, positive):
    problem = CLASSES[name](X, decay)
    options = dict(weights=weights, positive=positive, gap_tol=gap_tol)
    return dln.lasso(problem, mu, throw=False, **options)


def solve(name, decay=0.0, positive=False, weights=None, gap_tol=1e-15, mu=MU):
    weights = np.broadcast_to(1.0 if weights is None else weights, (2, D))
    return _solve(name, X, np.asarray(decay), mu, weights, np.asarray(gap_tol), positive)


def descend(name, kappa, positive) -> np.ndarray:
    """Cyclic coordinate descent by one proximal Newton step each, to rounding."""
    x, u = np.zeros(D), np.zeros(N)
    with np.errstate(invalid="ignore"):
        for _ in range(3000):
            before = x.copy()
            for j in range(D):
                _, slope, curvature = LOSSES[name](u)
                h = curvature @ X[:, j] ** 2
                v = h * x[j] - slope @ X[:, j]
                up, down = max(v - kappa[0, j], 0), max(-v - kappa[1, j], 0)
                new = (up - (0 if positive else down)) / h
                u, x[j] = u + (new - x[j]) * X[:, j], new
            if np.abs(x - before).max() < 1e-15:
                break
    return x


def terms(name, x, kappa) -> np.ndarray:
    """Those of the objective."""
    cost = np.where(x > 0, kappa[0], np.where(x < 0, kappa[1], 0)) * np.abs(x)
    return np.concatenate([LOSSES[name](X @ x)[0], np.where(x == 0, 0, cost)])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # ∞ · 0, not selected
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", CLASSES)
def test_against_coordinate_descent(name, options):
    positive = OPTIONS[options].get("positive", False)
    weights = np.broadcast_to(OPTIONS[options].get("weights", 1.0), (2, D))
    decay = 0.1
    point = solve(name, decay, **OPTIONS[options])
    assert np.all(names_of(point.result) == "successful")
    rough = solve(name, decay, gap_tol=1e-3, **OPTIONS[options])
    for where, mu in np.ndenumerate(MU):
        kappa = np.where(np.isinf(weights), np.inf, decay + weights / mu)
        best = descend(name, kappa, positive)
        x = np.asarray(point.x[where])
        # A gap of 1e-15 leaves x uncertain by about its root.
        np.testing.assert_allclose(x, best, atol=1e-7 * max(1, np.abs(best).max()))
        # The bound holds, to rounding, however rough the point.
        least = terms(name, best, kappa)
        rounding = 1e-14 * np.abs(least).sum()
        for p in (point, rough):
            lost = terms(name, np.asarray(p.x[where]), kappa).sum() - least.sum()
            assert -rounding <= lost <= float(p.gap[where]) + rounding


def test_against_liblinear():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 60))
    y = np.where(rng.random(30) < 1 / (1 + np.exp(-2 * X[:, 0] + X[:, 1])), 1.0, -1.0)
    mu = np.geomspace(1, 30, 10) / np.abs(X.T @ y / 2).max()
    point = dln.lasso(dln.Logistic(X, y), mu, gap_tol=1e-12)
    assert np.all(point.stats["num_steps"] <= 10)
    np.testing.assert_array_equal(point.x[0], np.zeros(60))
    for x, C in zip(np.asarray(point.x), mu, strict=True):
        model = LogisticRegression(
            C=C, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-13
        )
        model.set_params(max_iter=100_000).fit(X, y)
        theirs = model.coef_[0]
        np.testing.assert_allclose(x, theirs, atol=1e-8 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "name",
    [
        "±1 design and response, 20×40",
        "duplicated and negated columns",
        "near-duplicates at 1e-8",
        "dependent columns",
        "zero column",
        "noiseless, 20×40",
    ],
)
def test_families(name):
    # Cold and far apart first, then a grid; conditions of optimality by NumPy.
    X, y = FAMILIES[name](np.random.default_rng(0))
    delta = 0.5 * np.abs(y).max()
    slope = lambda u: np.clip(u - y, -delta, delta)
    largest = np.abs(X.T @ slope(0 * y)).max()
    mu = np.concatenate([[300.0], np.geomspace(0.99, 1000, 10)]) / largest
    point = dln.lasso(dln.Huber(X, y, delta), mu, gap_tol=1e-10)
    for x, kappa in zip(np.asarray(point.x), 1 / mu, strict=True):
        c = -X.T @ slope(X @ x)
        # P − D for θ = −f′ scaled into the dual set, f*(p) = py + p²/2.
        theta = -slope(X @ x) * min(1, kappa / np.abs(c).max())
        r = X @ x - y
        loss = np.where(np.abs(r) <= delta, r**2 / 2, delta * (np.abs(r) - delta / 2)).sum()
        primal, dual = loss + kappa * np.abs(x).sum(), np.sum(theta * y - theta**2 / 2)
        assert primal - dual <= 1e-10 * primal + 1e-14 * y @ y


def test_free_separable_data_are_flagged_and_end():
    free = np.zeros(D)
    for problem in (dln.Logistic(X, np.sign(X[:, 0])), dln.Exponential(X, np.sign(X[:, 0]))):
        with pytest.raises(eqx.EquinoxRuntimeError, match="gap"):
            dln.lasso(problem, 1.0, weights=free)
    # With a penalty there is a minimiser, however small the penalty: it is scaled with log μ.
    point = dln.lasso(dln.Logistic(X, np.sign(X[:, 0])), np.geomspace(1, 1e8, 5))
    margin = np.sign(X[:, 0])[:, None] * (X @ np.asarray(point.x).T)
    assert np.all(margin[:, -1] > 5)


def test_saturated_and_extreme_counts():
    # As many free coordinates as rows: the fit is log y, and the deviance is rounding.
    counts = np.array([1.0, 3.0, 1e6])
    point = dln.lasso(dln.Poisson(np.eye(3), counts), 1.0, weights=np.zeros(3))
    np.testing.assert_allclose(point.x, np.log(counts), atol=1e-12)
    # eᵘ − yu + κ|u| is least at log(y − κ). From 0 Newton's first step would end at u = 1e6.
    point = dln.lasso(dln.Poisson(np.eye(3), counts), np.array([4.0, 1.0]))
    np.testing.assert_allclose(point.x[0], np.log(counts - [0, 0.25, 0.25]), atol=1e-12)
    np.testing.assert_allclose(point.x[1], np.log([1, 2, 1e6 - 1]), atol=1e-12)


def test_outliers_leave_huber_without_curvature():
    # All residuals are beyond δ at 0, where no row has curvature.
    y = np.array([1e6, -2e6, 3e6])
    point = dln.lasso(dln.Huber(np.eye(3), y, 1.0), 2.0)
    np.testing.assert_allclose(point.x, y - 0.5 * np.sign(y), rtol=1e-12)


def test_derivatives_of_every_order():
    directions = RNG.normal(size=(N, D)), RNG.normal(size=D)

    def at(t):
        problem = dln.Poisson(X + t * directions[0], (1 + t) * COUNTS, 0.1 + t)
        weights = (1 + 0.1 * t * jnp.asarray(directions[1])[None, :]) * SIDED
        return dln.lasso(problem, (1 + t) * MU[0], weights=weights, gap_tol=1e-14).x

    t, h = np.asarray(0.0), 1e-4
    slopes = jax.jacfwd(at), jax.jacrev(at)
    third = jax.jit(jax.jacfwd(jax.jacfwd(slopes[0])))
    second = jax.jit(
        lambda t: [jax.jacfwd(slopes[0])(t), jax.jacfwd(slopes[1])(t), jax.jacrev(slopes[1])(t)]
    )
    first = jax.jit(lambda t: [slope(t) for slope in slopes])
    differences = lambda f: (np.asarray(f(t + h)) - np.asarray(f(t - h))) / (2 * h)
    x = jax.jit(at)
    for found in first(t):
        np.testing.assert_allclose(found, differences(x), atol=1e-5)
    for found in second(t):
        np.testing.assert_allclose(found, differences(lambda t: first(t)[0]), atol=1e-4)
    np.testing.assert_allclose(third(t), differences(lambda t: second(t)[0]), atol=1e-3)


def test_bad_lanes_beside_a_good_one():
    design, y, decay, mu = np.stack([X] * 5), np.stack([COUNTS] * 5), np.zeros(5), np.ones(5)
    design[1, 0, 0], y[2, 1], decay[3], mu[4] = np.nan, -1, -1, -1
    solve = lambda X, y, decay, mu: dln.lasso(dln.Poisson(X, y, decay), mu, throw=False)
    point = jax.jit(jax.vmap(solve))(design, y, decay, mu)
    want = ["successful", "invalid_data", "invalid_data", "invalid_decay", "invalid_grid"]
    np.testing.assert_array_equal(names_of(point.result), want)
    np.testing.assert_array_equal(np.isnan(point.x).all(axis=1), np.arange(5) > 0)
    kappa = np.ones((2, D))
    np.testing.assert_allclose(point.x[0], descend("Poisson", kappa, False), atol=1e-6)


def test_float32():
    problem = dln.Logistic(X.astype(np.float32), SIGNS.astype(np.float32))
    point = dln.lasso(problem, MU)
    assert point.x.dtype == jnp.float32
    objective = dln.Logistic(X, SIGNS).lasso_objective(np.asarray(point.x, float), MU)
    exact = dln.Logistic(X, SIGNS).duality_gap(np.asarray(point.x, float), 1 / MU)
    assert np.all(np.asarray(exact) <= 2e-4 * np.asarray(objective))


def test_steps_run_out_and_arguments_are_refused():
    problem = dln.Logistic(X, SIGNS)
    point = dln.lasso(problem, MU, max_steps=1, gap_tol=1e-14, throw=False)
    failed = names_of(point.result) == "gap_not_reached"
    assert failed.any() and np.array_equal(failed, np.isnan(point.gap))
    for options, message in [
        (dict(mu=0.0), "`mu` must be positive, got 0.0"),
        (dict(weights=-np.ones(D)), "`weights` must not be negative, got -1.0"),
        (dict(max_steps=0), "`max_steps` must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            dln.lasso(problem, **(dict(mu=1.0) | options))
