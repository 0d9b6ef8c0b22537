"""Weights of 0 and ∞, and knots that span decades: against data projected by NumPy, scikit-learn
and SciPy's linear programmes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn.linear_model import Lasso

import dlnjax as dln

LANES, MU = 16, np.array([0.05, 0.5, 2.0, 30.0])


def _instances(n, d, seed=0):
    """Padded by rows and columns of 0 to one size, for one program."""
    rng = np.random.default_rng([seed, n, d])
    X, y = np.zeros((LANES, 10, 9)), np.zeros((LANES, 10))
    X[:, :n, :d], y[:, :n] = rng.normal(size=(LANES, n, d)), rng.normal(size=(LANES, n))
    return X, y


@jax.jit
@jax.vmap
def _solve(X, y, decay, weights):
    problem = dln.LeastSquares(X, y, decay)
    path = dln.lasso_path(problem, weights=weights, throw=False)
    point = dln.lasso(problem, MU, weights=weights, gap_tol=1e-12, throw=False)
    gap = dln.suboptimality_gap(problem, point.x, MU, path=path).absolute
    return path, path.x(MU), point, gap, path.kkt_residual(problem)


def _all_agree(X, y, weights, decay=0.0):
    """Path and proximal points, each certified, and equal in what they fit."""
    decay = np.full(LANES, decay)
    weights = np.broadcast_to(weights, (LANES, *np.shape(weights)[-2:]))
    path, x, point, gap, residual = _solve(X, y, decay, weights)
    assert np.all(path.result == dln.RESULTS.successful)
    assert np.all(point.result == dln.RESULTS.successful)
    # Relative to the largest correlation, and to the loss at 0: rounding, a few thousand fold.
    assert np.max(residual) <= 1e-12 and np.max(path.stats["max_violation"]) <= 1e-10
    assert np.all(np.abs(gap) <= 1e-9 * np.sum(y**2, axis=1)[:, None])
    for points in (x, point.x):
        excluded = np.broadcast_to(np.isinf(weights)[:, :, None, :], (LANES, 2, *x.shape[1:]))
        assert not np.any(np.asarray(points) > 0, where=excluded[:, 0])
        assert not np.any(np.asarray(points) < 0, where=excluded[:, 1])
    fit = lambda x: np.einsum("lnd,lmd->lmn", X, x)
    np.testing.assert_allclose(fit(x), fit(point.x), atol=1e-5)
    return path, np.asarray(x)


# Free columns: none, an intercept, several, dependent ones, more than rows; with one excluded.
CASES = {
    "intercept": (10, 6, [0], None),
    "three": (10, 6, [0, 2, 3], 5),
    "wide": (5, 8, [0, 1], 7),
    "dependent": (5, 8, [0, 1, 2], None),
    "all": (10, 6, [0, 1, 2, 3, 4, 5], None),
    "more than rows": (4, 8, [0, 1, 2, 3, 4], 6),
}


@pytest.mark.parametrize("name", CASES)
def test_free_coordinates_are_projected_out(name):
    n, d, free, excluded = CASES[name]
    X, y = _instances(n, d)
    if name == "intercept":
        X[:, :n, 0] = 1
    if name == "dependent":
        X[:, :, 1] = -2 * X[:, :, 0]
    weights = np.ones((2, 9))
    weights[:, free] = 0
    if excluded is not None:
        weights[:, excluded] = np.inf
    path, x = _all_agree(X, y, weights)
    np.testing.assert_array_equal(np.asarray(path.knots)[:, 0], 0)
    rest = [j for j in range(d) if j not in free and j != excluded]
    for lane in range(LANES):
        Z, t = X[lane], y[lane]
        F, inverse = Z[:, free], np.linalg.pinv(Z[:, free])
        # Between μ = 0 and the next knot, least squares on the free columns.
        design, response = Z[:, rest] - F @ inverse @ Z[:, rest], t - F @ inverse @ t
        for mu, at in zip(MU, x[lane], strict=True):
            want = np.zeros(len(rest))
            if rest and np.max(np.abs(design)) > 1e-9:
                model = Lasso(1 / (mu * len(t)), fit_intercept=False, tol=1e-12, max_iter=10**6)
                want = model.fit(design, response).coef_
            np.testing.assert_allclose(at[rest], want, atol=1e-6)  # of coordinate descent
            best = inverse @ (t - Z[:, rest] @ at[rest])
            np.testing.assert_allclose(F @ at[free], F @ best, atol=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_weights_of_a_limit_flow_from_a_start(decay):
    X, y = _instances(10, 6, seed=1)
    rng = np.random.default_rng(2)
    start = rng.normal(size=(LANES, 9)) * (rng.random((LANES, 9)) < 0.5)
    start[:, 6:] = 0  # where the columns are 0
    weights = np.stack([1 - np.sign(start), 1 + np.sign(start)], axis=1)

    @jax.jit
    @jax.vmap
    def first_plateau(X, y, start):
        problem = dln.LeastSquares(X, y, decay)
        network = dln.UV(jnp.ones(9), jnp.zeros(9))
        limit = dln.limit_flow(network, problem, start=start)
        return limit.weights, limit.x(1e-9), limit.x(jnp.inf)

    of_limit, at_0, at_end = first_plateau(X, y, start)
    np.testing.assert_array_equal(of_limit, weights)
    path, _ = _all_agree(X, y, weights, decay)
    x = jax.vmap(lambda path: path.x(jnp.array([1e-9, jnp.inf])))(path)
    np.testing.assert_allclose(x[:, 0], at_0, atol=1e-9)
    np.testing.assert_allclose(x[:, 1], at_end, atol=1e-9)


def test_signs_without_a_weight_and_weight_decay():
    X, y = _instances(10, 6, seed=3)
    rng = np.random.default_rng(4)
    weights = rng.choice([0.0, 0.0, 1.0, 2.0, np.inf], size=(LANES, 2, 9))
    for decay in (0.0, 0.3):
        _all_agree(X, y, weights, decay)


def test_basis_pursuit_is_a_linear_programme():
    X, y = _instances(4, 9, seed=5)
    rng = np.random.default_rng(6)
    weights = rng.choice(
        [0.0, 0.5, 1.0, 2.0, np.inf], p=[0.2, 0.2, 0.2, 0.3, 0.1], size=(LANES, 2, 9)
    )
    weights[: LANES // 2, 1] = weights[: LANES // 2, 0]  # for both signs
    solve = lambda X, y, w: dln.basis_pursuit(dln.LeastSquares(X, y), weights=w, throw=False)
    point = jax.jit(jax.vmap(solve))(X, y, weights)
    flags = np.asarray(point.result == dln.RESULTS.successful)
    solved = 0
    for lane in range(LANES):
        cost = np.concatenate(weights[lane])
        bounds = [(0, 0 if np.isinf(c) else None) for c in cost]
        A = np.concatenate([X[lane], -X[lane]], axis=1)
        truth = linprog(np.where(np.isinf(cost), 0, cost), A_eq=A, b_eq=y[lane], bounds=bounds)
        if truth.status != 0:  # no such x: basis pursuit has the least loss
            continue
        x = np.asarray(point.x[lane])
        assert flags[lane]
        np.testing.assert_allclose(X[lane] @ x, y[lane], atol=1e-9)
        w = np.where(x > 0, weights[lane, 0], np.where(x < 0, weights[lane, 1], 0))
        np.testing.assert_allclose(w @ np.abs(x), truth.fun, atol=1e-9)
        assert -1e-12 <= point.gap[lane] <= 1e-9 and point.infeasibility[lane] <= 1e-12
        solved += 1
    assert solved >= LANES // 2


def test_derivatives_beside_weights_of_0_and_infinity():
    X, y = _instances(10, 6, seed=7)
    X, y, weights = X[0, :, :6], y[0], np.array([0.0, 1, 0, 2, 1, np.inf])
    mu = 3.0

    def both(X, y, weights):
        problem = dln.LeastSquares(X, y)
        return jnp.stack(
            [
                dln.lasso_path(problem, weights=weights).x(mu),
                dln.lasso(problem, mu, weights=weights, gap_tol=1e-13).x,
            ]
        )

    both = jax.jit(both)
    rng = np.random.default_rng(8)
    dX, dy, dw = rng.normal(size=X.shape), rng.normal(size=y.shape), np.array([0, 1.0, 0, -1, 2, 0])
    h = 1e-6
    ahead, behind = (both(X + t * dX, y + t * dy, weights + t * dw) for t in (h, -h))
    want = (ahead - behind) / (2 * h)
    _, forward = jax.jvp(both, (X, y, weights), (dX, dy, dw))
    np.testing.assert_allclose(forward, want, rtol=1e-6, atol=1e-7)  # of differences
    _, pull = jax.vjp(both, X, y, weights)
    for i in range(2):
        for j in range(6):
            gX, gy, gw = pull(jnp.zeros((2, 6)).at[i, j].set(1.0))
            back = np.sum(gX * dX) + np.sum(gy * dy) + np.sum(gw * dw)
            np.testing.assert_allclose(back, forward[i, j], rtol=1e-9, atol=1e-12)


# --- any number of decades --------------------------------------------------------------------

DECADES = {
    "columns": (np.diag([9e4, 1.0]), [1.0, 1.0], [1.0, 1.0]),
    "columns, more": (np.diag([1.0, 2.0**-60]), [1.0, 1.0], [1.0, 1.0]),
    "weights": (np.eye(2), [1.0, 1.0], [1 / 9e4, 1.0]),
    "weights, more": (np.eye(2), [1.0, 1.0], [1e-18, 1.0]),
    "responses": (np.eye(2), [1.0, 1e-12], [1.0, 1.0]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", DECADES)
def test_orthogonal_columns_have_knots_of_their_own(name, dtype):
    X, y, weights = (np.asarray(a, dtype) for a in DECADES[name])
    path = dln.lasso_path(dln.LeastSquares(X, y), weights=weights)
    scale = np.diagonal(X).astype(float)
    knots = weights / (scale * y)
    # The second knot is the last: x = y/X − ω/(μ X²) on each column, at all μ beyond.
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(path.knots[:2], np.sort(knots), rtol=8 * eps)
    for mu in np.geomspace(knots.min(), 10 * knots.max(), 7):
        want = np.maximum(y / scale - weights / (dtype(mu) * scale**2), 0)
        near = 8 * eps * (np.abs(y / scale) + weights / (mu * scale**2) * (mu >= knots))
        assert np.all(np.abs(np.asarray(path.x(dtype(mu)), float) - want) <= near)


def test_raw_units_in_float32():
    """Money, counts, rates: condition about 2 once scaled, knots over ten decades."""
    rng = np.random.default_rng(0)
    units = np.array([1e6, 3e5, 1e3, 1.0, 1e-2, 1e-4])
    Z = rng.normal(size=(LANES, 60, 6))
    y = np.einsum("lnd,d->ln", Z, [1.0, -2, 3, 1, -1, 2]) + 0.3 * rng.normal(size=(LANES, 60))
    solve = lambda X, y: dln.lasso_path(dln.LeastSquares(X, y), throw=False)
    path = jax.jit(jax.vmap(solve))((Z * units).astype(np.float32), y.astype(np.float32))
    assert np.all(path.result == dln.RESULTS.successful)
    truth = jax.jit(jax.vmap(solve))(Z * units, y)
    np.testing.assert_array_equal(path.num_knots, truth.num_knots)
    ols = np.stack([np.linalg.lstsq(Z, y)[0] for Z, y in zip(Z, y, strict=True)])
    np.testing.assert_allclose(
        np.asarray(path.slopes)[:, -1] * units, ols, rtol=1e-4
    )  # 1000 units of rounding
    k = int(path.num_knots.min())
    np.testing.assert_allclose(path.knots[:, :k], truth.knots[:, :k], rtol=1e-4)


def test_at_0_a_path_with_a_knot_there_is_its_limit():
    # x(μ) = (1, 0) up to μ = 1, where the second column joins.
    path = dln.lasso_path(dln.LeastSquares(np.eye(2), np.ones(2)), weights=np.array([0.0, 1.0]))
    np.testing.assert_allclose(path.x(0.0), [1, 0], atol=1e-15)
    np.testing.assert_allclose(path.x(np.array([1e-300, 2.0])), [[1, 0], [1, 0.5]], atol=1e-15)
