"""The proximal lasso: against the exact path, against scikit-learn, and its duality gap."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES
from sklearn.linear_model import Lasso

import dlnjax as dln
from dlnjax._results import names_of

N, D = 8, 5
MU = np.geomspace(0.1, 10, 6).reshape(2, 3)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D))
Y = X @ RNG.normal(size=D) + RNG.normal(size=N)
SIDED = RNG.uniform(0.3, 3, (2, D))

least_squares = functools.partial(dln.LeastSquares, X, Y)
CASES = {
    "generic": (least_squares(), {}),
    "weight decay": (least_squares(0.4), {}),
    "weights": (least_squares(0.4), dict(weights=SIDED[0])),
    "weights by sign": (least_squares(), dict(weights=SIDED)),
    "positive": (least_squares(0.2), dict(positive=True)),
    "positive, weights": (least_squares(), dict(positive=True, weights=SIDED[1])),
    "quadratic": (dln.Quadratic(X.T @ X, X.T @ Y, 0.5 * np.sum(Y**2), 0.4), {}),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)


@functools.cache
def _exact(name):
    # The quadratic is the least squares problem with weight decay.
    problem, options = CASES["weight decay" if name == "quadratic" else name]
    return dln.lasso_path(problem, **options)


def _objective(problem, x, mu, weights=None) -> np.ndarray:
    weights = np.broadcast_to(1.0 if weights is None else weights, (2, D))
    kappa = np.asarray(problem.weight_decay) + weights / np.asarray(mu)[..., None, None]
    cost = np.where(x > 0, kappa[..., 0, :], kappa[..., 1, :]) * np.abs(x)
    return np.asarray(problem.loss(x)) + cost.sum(axis=-1)


@EVERY_CASE
def test_against_the_path(name):
    problem, options = CASES[name]
    point = dln.lasso(problem, MU, **options)
    assert point.x.shape == (*MU.shape, D) and point.gap.shape == MU.shape
    assert bool(jnp.all(point.result == dln.RESULTS.successful))
    x, best = np.asarray(point.x), np.asarray(_exact(name).x(MU))
    weights = options.get("weights")
    objective, least = (_objective(problem, v, MU, weights) for v in (x, best))
    # The gap is what was asked for, and bounds the suboptimality (to rounding).
    gap = np.asarray(point.gap)
    assert np.all(gap >= 0) and np.all(gap <= 1e-8 * objective)
    assert np.all(objective - least <= gap + 1e-14 * objective)
    assert np.all(objective - least >= -1e-14 * objective)
    exact = dln.suboptimality_gap(problem, x, MU, path=_exact(name))
    assert np.all(np.asarray(exact.absolute) <= gap + 1e-14 * objective)
    if options.get("positive"):
        assert np.all(x >= 0)
    assert 0 < np.sum(best[0] != 0) < best[0].size


@EVERY_CASE
def test_tight_gap(name):
    problem, options = CASES[name]
    point = dln.lasso(problem, MU, gap_tol=1e-14, **options)
    best = np.asarray(_exact(name).x(MU))
    # A gap of 1e-14 leaves x uncertain by about its root.
    np.testing.assert_allclose(point.x, best, atol=1e-6 * np.abs(best).max())


@pytest.mark.parametrize("n, positive", [(N, False), (N, True), (3, False)])
def test_against_scikit_learn(n, positive):
    problem = dln.LeastSquares(X[:n], Y[:n], 0.2)
    x = dln.lasso(problem, MU, positive=positive, gap_tol=1e-14).x
    for where, mu in np.ndenumerate(MU):
        alpha = (0.2 + 1 / mu) / n  # scikit-learn's loss has a factor 1/n
        theirs = Lasso(alpha=alpha, fit_intercept=False, positive=positive, tol=1e-13)
        theirs.set_params(max_iter=100_000).fit(X[:n], Y[:n])
        np.testing.assert_allclose(x[where], theirs.coef_, atol=1e-6)


@pytest.mark.parametrize("mu", [MU[1, 1], MU[1], MU], ids=["()", "(3,)", "(2, 3)"])
def test_shapes_of_mu(mu):
    problem, _ = CASES["generic"]
    point = dln.lasso(problem, mu, gap_tol=1e-14)
    assert point.x.shape == (*np.shape(mu), D)
    assert point.gap.shape == point.stats["num_steps"].shape == np.shape(mu)
    np.testing.assert_allclose(point.x, _exact("generic").x(mu), atol=1e-6)


def test_the_order_of_mu_is_free():
    problem, _ = CASES["generic"]
    backwards = dln.lasso(problem, MU[::-1, ::-1], gap_tol=1e-14)
    np.testing.assert_allclose(backwards.x, _exact("generic").x(MU[::-1, ::-1]), atol=1e-6)


@pytest.mark.parametrize("name", ["generic", "weights", "positive", "quadratic"])
def test_before_the_first_knot(name):
    # There the solution is 0, exactly, and no step is needed.
    problem, options = CASES[name]
    mu = np.asarray(_exact(name).knots[0]) * np.linspace(0.1, 0.999, 6).reshape(MU.shape)
    point = dln.lasso(problem, mu, **options)
    np.testing.assert_array_equal(point.x, np.zeros((*MU.shape, D)))
    assert np.all(np.abs(point.gap) < 1e-15 * np.sum(Y**2))
    np.testing.assert_array_equal(point.stats["num_steps"], np.zeros(MU.shape))


def test_zero_response():
    point = dln.lasso(dln.LeastSquares(X, np.zeros(N)), MU)
    np.testing.assert_array_equal(point.x, np.zeros((*MU.shape, D)))
    np.testing.assert_array_equal(point.gap, np.zeros(MU.shape))


def test_zero_design():
    point = dln.lasso(dln.LeastSquares(np.zeros((N, D)), Y), MU)
    np.testing.assert_array_equal(point.x, np.zeros((*MU.shape, D)))


@pytest.mark.parametrize("dtype, power", [(np.float32, -62), (np.float64, -516)])
def test_a_gap_that_underflows_is_flagged(dtype, power):
    # It would be 0 at any point. Powers of 2, so that in larger units nothing else differs.
    X32, y, mu = X.astype(dtype), Y.astype(dtype), MU.astype(dtype)
    tiny = dtype(2.0**power)
    point = dln.lasso(dln.LeastSquares(X32, tiny * y), mu / tiny, throw=False)
    assert np.all(names_of(point.result) == "invalid_data")
    tiny = dtype(2.0 ** (power // 2))
    point = dln.lasso(dln.LeastSquares(X32, tiny * y), mu / tiny)
    np.testing.assert_array_equal(point.x, tiny * dln.lasso(dln.LeastSquares(X32, y), mu).x)


def test_gap_not_reached():
    problem, _ = CASES["generic"]
    with pytest.raises(eqx.EquinoxRuntimeError, match="(?s)`max_steps`.*`gap_tol`"):
        dln.lasso(problem, MU, gap_tol=1e-14, max_steps=1)
    point = dln.lasso(problem, MU, gap_tol=1e-14, max_steps=1, throw=False)
    failed = np.asarray(point.result == dln.RESULTS.gap_not_reached)
    # The first μ has the solution 0; the last ones need more than one step.
    assert failed[1].all() and not failed.all()
    assert np.array_equal(np.isnan(point.x).all(axis=-1), failed)
    assert np.array_equal(np.isnan(point.gap), failed)
    assert np.all(point.stats["num_steps"] <= 1)


def test_bad_lanes():
    design, response = np.stack([X] * 6), np.stack([Y] * 6)
    decay, mu, weights = np.full(6, 0.4), np.stack([MU] * 6), np.ones((6, D))
    design[1, 0, 0] = np.nan
    response[2, 1] = np.inf
    decay[3] = -1
    mu[4, 0, 1] = -1
    weights[5, 2] = -1

    @jax.jit
    @jax.vmap
    def solve(X, y, decay, mu, weights):
        return dln.lasso(dln.LeastSquares(X, y, decay), mu, weights=weights, throw=False)

    point = solve(design, response, decay, mu, weights)
    want = np.full((6, 2, 3), "successful", dtype="<U20")
    want[1:3], want[3], want[4, 0, 1] = "invalid_data", "invalid_decay", "invalid_grid"
    want[5] = "invalid_weights"
    np.testing.assert_array_equal(names_of(point.result), want)
    np.testing.assert_array_equal(np.isnan(point.x).all(axis=-1), want != "successful")
    alone = dln.lasso(CASES["weight decay"][0], MU)
    np.testing.assert_allclose(point.x[0], alone.x, atol=1e-12)
    # The other values of μ of lane 4 stand, from other starts.
    good = want[4] == "successful"
    np.testing.assert_allclose(point.x[4][good], alone.x[good], atol=1e-3)


def _grid(X, y, num: int = 30) -> np.ndarray:
    return np.geomspace(0.99, 1000, num) / np.abs(X.T @ y).max()


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    X, y = FAMILIES[name](np.random.default_rng(0))
    mu = _grid(X, y)
    point = dln.lasso(dln.LeastSquares(X, y), mu)
    x = np.asarray(point.x)
    # The gap by its definition, from the residual scaled into the dual feasible set.
    for kappa, x in zip(1 / mu, np.asarray(point.x), strict=True):
        rho = y - X @ x
        largest = kappa / max(kappa, np.abs(X.T @ rho).max())
        theta = np.clip(rho @ y / max(rho @ rho, 1e-300), 0, largest) * rho
        primal = 0.5 * rho @ rho + kappa * np.abs(x).sum()
        dual = 0.5 * y @ y - 0.5 * (y - theta) @ (y - theta)
        assert primal - dual <= 1e-8 * primal + 1e-14 * (y @ y)


def test_warm_starts_need_few_steps():
    X, y = RNG.normal(size=(40, 200)), RNG.normal(size=40)
    problem = dln.LeastSquares(X, y)
    mu = _grid(X, y, 100)
    point = dln.lasso(problem, mu, gap_tol=1e-12)
    # A step for each μ, and a few for each kink of the path.
    kinks = int(dln.lasso_path(problem).num_knots)
    assert np.sum(point.stats["num_steps"]) <= 100 + 3 * kinks
    path = dln.lasso_path(problem)
    np.testing.assert_allclose(point.x, path.x(mu), atol=1e-6 * np.abs(path.x(mu)).max())
    # A cold start, and a large step in μ in both directions.
    jumps = dln.lasso(problem, mu[[-1, 50, -1, 10]], gap_tol=1e-12)
    np.testing.assert_allclose(jumps.x, path.x(mu[[-1, 50, -1, 10]]), atol=1e-6)


@pytest.mark.parametrize("X", [[[2.0, -2.0, 1.0]], [[-1.0, 2.0, -2.0]]])
def test_ties_far_apart_in_mu(X):
    # Proximal gradient splits evenly between tied columns: too many for any active set.
    X, y, mu = np.asarray(X), np.ones(1), np.asarray([0.3, 1e3, 2.0, 50.0, 0.5, 1e6])
    point = dln.lasso(dln.LeastSquares(X, y), mu)
    assert np.all(point.stats["num_steps"] < 10)
    path = dln.lasso_path(dln.LeastSquares(X, y))
    np.testing.assert_allclose(X @ point.x.T, X @ path.x(mu).T, rtol=1e-6)


def test_near_duplicates_beside_a_generic_lane():
    X, y = FAMILIES["near-duplicates at 1e-8"](np.random.default_rng(1))
    easy = RNG.normal(size=X.shape)
    mu = np.stack([_grid(X, y), _grid(easy, y)])
    solve = lambda X, mu: dln.lasso(dln.LeastSquares(X, y), mu, throw=False)
    point = jax.jit(jax.vmap(solve))(np.stack([X, easy]), mu)
    assert bool(jnp.all(point.result == dln.RESULTS.successful))
    np.testing.assert_allclose(point.x[1], solve(easy, mu[1]).x, atol=1e-8)


@pytest.mark.parametrize("shape", [(20, 40), (40, 20)])
def test_float32(shape):
    # To κ_max/100: at κ_max/1000 the rounding of the gap is about 1e-4 of the objective, and one
    # point in 25 is not certified (200 instances, 20 × 40).
    rng = np.random.default_rng(11)
    X, y = rng.normal(size=shape), rng.normal(size=shape[0])
    mu = np.geomspace(0.99, 100, 30) / np.abs(X.T @ y).max()
    point = dln.lasso(dln.LeastSquares(X.astype(np.float32), y.astype(np.float32)), mu)
    assert point.x.dtype == jnp.float32
    problem = dln.LeastSquares(X, y)
    x = np.asarray(point.x, np.float64)
    gap = np.asarray(problem.duality_gap(x, 1 / mu))
    assert np.all(gap <= 2e-4 * np.asarray(problem.lasso_objective(x, mu)))


REFUSED = {
    "zero mu": (dict(mu=0.0), "`mu` must be positive, got 0.0. Start the grid above 0"),
    "negative mu": (dict(mu=np.array([1.0, -2.0])), "`mu` must be positive, got -2.0"),
    "NaN mu": (dict(mu=np.nan), "`mu` must be positive, got nan"),
    "negative weight": (dict(weights=-np.ones(D)), "`weights` must not be negative, got -1.0"),
    "shape of weights": (
        dict(weights=np.ones(3)),
        f"`weights` must have shape ({D},) or (2, {D}), got (3,)",
    ),
    "no steps": (dict(max_steps=0), "`max_steps` must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        dln.lasso(CASES["generic"][0], **(dict(mu=1.0) | options))


def test_correlated_columns_in_units_from_the_gram_matrix():
    # Terms of the objective are 1e6 times as large as it, and so is its rounding: no step is lost
    # because the objective rises by that. A path has the same minimiser.
    rng, count = np.random.default_rng(0), 128
    X = 0.999**0.5 * rng.normal(size=(count, 4, 1)) + 0.001**0.5 * rng.normal(size=(count, 4, 3))
    X = X * 10 ** rng.uniform(-6, 6, (count, 1, 3))
    y = rng.normal(size=(count, 4))

    @jax.vmap
    def solve(X, y):
        problem = dln.Quadratic(X.T @ X, X.T @ y, jnp.sum(y**2) / 2)
        mu = 1e8 / jnp.max(jnp.abs(problem.r))
        point = dln.lasso(problem, mu, throw=False)
        path = dln.lasso_path(problem, throw=False)
        least = problem.lasso_objective(path.x(mu), mu)
        is_told = path.result == dln.RESULTS.successful
        return point.result == dln.RESULTS.successful, is_told, point.gap, least

    told, path_told, gap, least = map(np.asarray, jax.jit(solve)(X, y))
    assert np.all(told[path_told])
    assert np.all(gap[told] < 1e-6 * least[told])
