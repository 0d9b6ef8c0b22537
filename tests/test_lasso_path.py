"""The exact lasso path in batches, which share a program: against optimality conditions,
scikit-learn, closed forms, and the same problem in other terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, ILL_CONDITIONED, kkt_violation
from lasso_paths import (
    GENERIC,
    LANES,
    MEDIUM,
    close,
    instances_of,
    is_flagged,
    pad,
    solve_paths,
    violations,
    x_at,
)
from sklearn.linear_model import Lasso, lars_path

import dlnjax as dln
from dlnjax import _batching
from dlnjax._results import names_of

# --- families that break path algorithms ------------------------------------------------------


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, positive):
    X, y = instances_of(name)
    _, n, d = X.shape
    if d <= 11:
        X, y = pad(X, y, 20, 11) if positive else pad(X, y, {8: 12, 10: 20}.get(d, n), d)
    else:
        X, y = pad(X, y, 20, 40)
    path, p, x = solve_paths(X, y, positive=positive)
    flagged = is_flagged(path)
    # Strictly: an entry of size 1e-300 is active, and its sign has to be right.
    worst = violations(X, y, p, x, positive=positive)
    if not positive:
        lanes = zip(X, y, p, x, strict=True)
        again = np.array([kkt_violation(X, y, x, 1 / p).max() for X, y, p, x in lanes])
        again = again / np.abs(np.einsum("ln,lnd->ld", y, X)).max(axis=1)
        worst = np.maximum(worst, again)
    # Where a flag is right, it is never missing; elsewhere it is never there.
    bad = flagged | ~(worst <= 1e-9)
    if name in ILL_CONDITIONED:
        bad = ~flagged & ~(worst <= 1e-6)
    assert not np.any(bad), (np.flatnonzero(bad), flagged[bad], worst[bad])


# --- outside truth ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, positive",
    [*((name, False) for name in GENERIC), (MEDIUM, True), ("generic 20×40", True)],
)
def test_against_lars_path(name, positive):
    X, y = instances_of(name)
    path, _, _ = solve_paths(X, y, positive=positive)
    size = path.knots.shape[1]
    end = np.asarray(path.slopes[:, -1])
    mu, want = np.full((LANES, size), np.inf), np.empty((LANES, size, X.shape[2]))
    for i in range(LANES):
        alpha, _, x = lars_path(X[i], y[i], method="lasso", positive=positive)
        knots = 1 / (len(y[i]) * alpha[alpha > 1e-10 * alpha[0]])
        # The rest is its end point, alpha = 0 to rounding; its positive path documents none.
        mu[i, : len(knots)], want[i] = knots, end[i] if positive else x[:, -1]
        want[i, : len(knots)] = x[:, : len(knots)].T
        assert path.num_knots[i] == len(knots)
        np.testing.assert_allclose(path.knots[i, : len(knots)], knots, rtol=1e-9)
    assert np.all(close(x_at(path, mu), want, 1e-9))


def test_against_coordinate_descent():
    X, y = instances_of(MEDIUM)
    path, _, _ = solve_paths(X, y, positive=True)
    largest = np.max(np.einsum("lnd,ln->ld", X, y), axis=1)
    for fraction in (0.5, 0.05):
        kappa = fraction * largest[:10]
        got = x_at(path, 1 / (fraction * largest)[:, None])[:10, 0]
        for X_i, y_i, k, x in zip(X, y, kappa, got, strict=False):
            model = Lasso(alpha=k / len(y_i), fit_intercept=False, positive=True)
            model.set_params(tol=1e-15, max_iter=100_000).fit(X_i, y_i)
            # Coordinate descent stops at a gap of 1e-15: its square root in x.
            np.testing.assert_allclose(x, model.coef_, atol=1e-7)


def test_closed_form_of_one_coordinate():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(LANES, 5, 1)), rng.normal(size=(LANES, 5))
    path, p, x = solve_paths(X, y)
    r = np.einsum("lnd,ln->ld", X, y)
    soft = np.sign(r) * np.maximum(np.abs(r) - 1 / p, 0) / np.sum(X**2, axis=1)
    np.testing.assert_allclose(x[:, :, 0], soft, atol=1e-14)
    assert path.num_knots.tolist() == [1] * LANES


def test_closed_form_of_one_row():
    # Only the longest column is ever active.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(LANES, 1, 5)), rng.normal(size=(LANES, 1))
    path, p, x = solve_paths(X, y)
    j = np.argmax(np.abs(X[:, 0]), axis=1)
    a = np.take_along_axis(X[:, 0], j[:, None], axis=1)
    want = np.zeros_like(x)
    soft = np.sign(a * y) * np.maximum(np.abs(a * y) - 1 / p, 0) / a**2
    np.put_along_axis(want, np.broadcast_to(j[:, None, None], (*p.shape, 1)), soft[..., None], 2)
    np.testing.assert_allclose(x, want, atol=1e-14)
    assert path.num_knots.tolist() == [1] * LANES


# --- weights and weight decay -----------------------------------------------------------------


def _random_weights(shape, d):
    return np.exp(np.random.default_rng(5).normal(size=(LANES, shape, d)))


@pytest.mark.parametrize("positive", [False, True])
def test_weights_rescale_the_columns(positive):
    # With x' = ωx, the weighted lasso in x is the plain one in x' with columns X/ω.
    X, y = instances_of(MEDIUM)
    weights = _random_weights(1, 6)
    path, p, x = solve_paths(X, y, weights=weights, positive=positive)
    assert not np.any(is_flagged(path))
    kwargs = {"weights": weights, "positive": positive}
    assert np.all(violations(X, y, p, x, **kwargs) <= 1e-9)
    plain, _, _ = solve_paths(X / weights, y, positive=positive)
    np.testing.assert_array_equal(path.num_knots, plain.num_knots)
    assert np.all(close(x_at(plain, p) / weights, x, 1e-10))


def test_weights_of_each_sign():
    # x = x⁺ − x⁻: the plain positive lasso with columns [X/ω⁺, −X/ω⁻].
    X, y = instances_of(MEDIUM)
    weights = _random_weights(2, 6)
    path, p, x = solve_paths(X, y, weights=weights)
    assert not np.any(is_flagged(path))
    assert np.all(violations(X, y, p, x, weights=weights) <= 1e-9)
    columns = np.concatenate([X / weights[:, :1], -X / weights[:, 1:]], axis=2)
    both, _, _ = solve_paths(*pad(columns, y, 20, 40), positive=True)
    halves = x_at(both, p)
    rebuilt = halves[..., :6] / weights[:, :1] - halves[..., 6:12] / weights[:, 1:]
    assert np.all(close(rebuilt, x, 1e-10))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("fraction", [1e-3, 0.3])
def test_weight_decay_shifts_kappa(positive, fraction):
    X, y = instances_of(MEDIUM)
    r = np.einsum("lnd,ln->ld", X, y)
    decay = fraction * np.max(r if positive else np.abs(r), axis=1)
    path, p, x = solve_paths(X, y, decay=decay, positive=positive)
    assert not np.any(is_flagged(path))
    assert np.all(violations(X, y, p, x, decay=decay, positive=positive) <= 1e-9)
    plain, _, _ = solve_paths(X, y, positive=positive)
    assert np.all(close(x_at(plain, 1 / (decay[:, None] + 1 / p)), x, 1e-10))


def test_weights_and_weight_decay_together_are_right_or_flagged():
    # z can then jump: a coordinate of large weight is let go discontinuously.
    X, y = instances_of(MEDIUM)
    weights = _random_weights(1, 6)
    decay = 0.1 * np.max(np.abs(np.einsum("lnd,ln->ld", X, y)), axis=1)
    path, p, x = solve_paths(X, y, decay=decay, weights=weights)
    worst = violations(X, y, p, x, decay=decay, weights=weights)
    assert np.all(is_flagged(path) | (worst <= 1e-9))


# --- equivalent problems ----------------------------------------------------------------------


@jax.jit
@jax.vmap
def _solve_quadratics(X, y, p):
    path = dln.lasso_path(dln.Quadratic(X.T @ X, X.T @ y), throw=False)
    return path, path.x(p)


@pytest.mark.parametrize("name", [MEDIUM, "generic 3×4"])
def test_quadratic_is_least_squares(name):
    X, y = pad(*instances_of(name), 10, 6)
    path, p, x = solve_paths(X, y)
    other, same = _solve_quadratics(X, y, p)
    assert not np.any(is_flagged(other))
    np.testing.assert_array_equal(other.num_knots, path.num_knots)
    assert np.all(close(same, x, 1e-9))


@pytest.mark.parametrize("c_X", [1e-12, 1e-6, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("c_y", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_scale_equivariance(c_X, c_y):
    X, y = instances_of(MEDIUM)
    path, _, _ = solve_paths(X, y)
    other, _, _ = solve_paths(c_X * X, c_y * y)
    assert not np.any(is_flagged(other))
    np.testing.assert_array_equal(other.num_knots, path.num_knots)
    assert np.all(close(other.knots * (c_X * c_y), path.knots, 1e-10))
    assert np.all(close(other.values * c_X**2, path.values, 1e-10))
    assert np.all(close(other.slopes * (c_X / c_y), path.slopes, 1e-10))


def test_column_scales_with_matching_weights():
    X, y = instances_of(MEDIUM)
    path, _, _ = solve_paths(X, y)
    c = 10.0 ** np.random.default_rng(2).uniform(-6, 6, (LANES, 1, 6))
    other, _, _ = solve_paths(c * X, y, weights=c)
    assert not np.any(is_flagged(other))
    assert np.all(close(other.knots, path.knots, 1e-10))
    assert np.all(close(other.values * c, path.values, 1e-10))


@pytest.mark.parametrize("name", [MEDIUM, "±1 design and response, 20×40"])
def test_permutation_and_sign_equivariance(name):
    X, y = instances_of(name)
    _, p, x = solve_paths(X, y)
    rng = np.random.default_rng(3)
    order = rng.permutation(X.shape[2])
    sign = rng.choice([-1.0, 1.0], X.shape[2])
    path, _, _ = solve_paths(sign * X[:, :, order], -y)
    got = np.asarray(x_at(path, p))
    # With ties the minimiser need not be unique, but the fit and the 1-norm are.
    fit = lambda x: x @ np.swapaxes(X, 1, 2)
    back = np.empty_like(got)
    back[..., order] = -sign * got
    assert np.all(close(fit(back), fit(x), 1e-10))
    assert np.all(close(np.abs(back).sum(-1), np.abs(x).sum(-1), 1e-10))
    if name == MEDIUM:
        assert np.all(close(back, x, 1e-10))


# --- edges ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def medium():
    """One problem of the common shape, solved eagerly."""
    X, y = (a[0] for a in instances_of(MEDIUM))
    return X, y, dln.lasso_path(dln.LeastSquares(X, y))


def test_trivial_paths():
    X, y = instances_of(MEDIUM)
    y = y.copy()
    y[0] = 0
    decay = np.zeros(LANES)
    decay[1:3] = np.array([1 + 1e-12, 10]) * np.abs(np.einsum("lnd,ln->ld", X, y)[1:3]).max(1)
    for positive in (False, True):
        path, _, x = solve_paths(X, y, decay=decay, positive=positive)
        assert not np.any(is_flagged(path))
        assert path.num_knots[:3].tolist() == [0, 0, 0]
        assert np.all(np.asarray(path.num_knots[3:]) > 0)
        assert not np.any(x[:3])
        p = np.broadcast_to(np.array([0, 1e-9, 1.0, 1e9, np.inf]), (LANES, 5))
        assert not np.any(np.asarray(x_at(path, p))[:3])


def test_decay_at_the_largest_correlation_exactly(medium):
    X, y, _ = medium
    decay = jnp.max(jnp.abs(dln.LeastSquares(X, y).r))
    path = dln.lasso_path(dln.LeastSquares(X, y, weight_decay=decay))
    assert path.num_knots == 0
    assert not np.any(path.values) and not np.any(path.slopes)


def test_all_correlations_negative_in_the_positive_lasso():
    X, y = instances_of(MEDIUM)
    sign = np.sign(np.einsum("lnd,ln->ld", X, y))[:, None, :]
    path, _, x = solve_paths(-sign * X, y, positive=True)
    assert not np.any(is_flagged(path))
    assert not np.any(path.num_knots) and not np.any(x)


def test_exactly_enough_knots_in_a_single_trace(medium, monkeypatch):
    X, y, path = medium
    traces = []
    diagonal = dln.LeastSquares.gram_diagonal
    counting = lambda problem: (traces.append(None), diagonal(problem))[1]
    monkeypatch.setattr(dln.LeastSquares, "gram_diagonal", counting)
    K = int(path.num_knots)
    enough = dln.lasso_path(dln.LeastSquares(X, y), max_knots=K)
    np.testing.assert_array_equal(enough.knots, path.knots[:K])
    np.testing.assert_array_equal(enough.slopes, path.slopes[:K])
    calls = len(traces)
    assert calls > 0
    # Other values, the same program.
    for scale in (2.0, 0.5):
        problem = dln.LeastSquares(scale * X, y + scale, weight_decay=0.01 * scale)
        dln.lasso_path(problem, max_knots=K, weights=np.full(6, scale), throw=False)
    assert len(traces) == calls


def test_too_few_knots(medium):
    X, y, path = medium
    problem = dln.LeastSquares(X, y)
    K = int(path.num_knots)
    assert K >= 5
    with pytest.raises(RuntimeError, match="Pass a larger `max_knots`"):
        dln.lasso_path(problem, max_knots=K - 1)
    cut = dln.lasso_path(problem, max_knots=K - 1, throw=False)
    assert cut.result == dln.RESULTS.max_knots_reached
    assert cut.num_knots == K - 1
    end = float(cut.knots[-1])
    p = end * np.array([0.1, 0.5, 0.9, 1 - 1e-12, 1 + 1e-12, 2, 1e9, np.inf])
    got = np.asarray(cut.x(p))
    np.testing.assert_array_equal(got[:4], path.x(p)[:4])
    assert np.all(np.isnan(got[4:]))


def test_default_max_knots():
    for name in GENERIC:
        X, y = instances_of(name)
        path, _, _ = solve_paths(X, y)
        assert path.knots.shape[1] == 4 * min(X.shape[1:]) + 16


# --- transformations --------------------------------------------------------------------------


def test_batch_is_a_loop(medium):
    X, y, first = medium
    batch, _, _ = solve_paths(*instances_of(MEDIUM))
    for i in range(3):
        one = (
            first
            if i == 0
            else dln.lasso_path(dln.LeastSquares(*(a[i] for a in instances_of(MEDIUM))))
        )
        assert one.num_knots == batch.num_knots[i]
        for field in ("knots", "values", "slopes"):
            a, b = getattr(one, field), getattr(batch, field)[i]
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def test_chunks_and_nested_vmaps_change_nothing(monkeypatch):
    X, y = instances_of(MEDIUM)
    want, _, _ = solve_paths(X, y)
    # 39 lanes, since programs are cached by their number; several chunks, the last one overlaps.
    X, y = X[:39], y[:39]
    monkeypatch.setattr(_batching, "CACHE", 2**14)
    solve = lambda X, y: dln.lasso_path(dln.LeastSquares(X, y), throw=False)
    flat = jax.jit(jax.vmap(solve))(X, y)
    nested = jax.jit(jax.vmap(jax.vmap(solve)))(X.reshape(3, 13, 10, 6), y.reshape(3, 13, 10))
    for field in ("knots", "values", "slopes", "num_knots"):
        a = np.asarray(getattr(want, field))[:39]
        assert np.all(close(getattr(flat, field), a, 1e-12))
        assert np.all(close(np.asarray(getattr(nested, field)).reshape(a.shape), a, 1e-12))


def test_weights_of_shape_d_are_for_both_signs(medium):
    X, y, plain = medium
    weights = _random_weights(1, 6)[0, 0]
    problem = dln.LeastSquares(X, y)
    a = dln.lasso_path(problem, weights=weights)
    b = dln.lasso_path(problem, weights=np.stack([weights, weights]))
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.weights, b.weights)
    ones = dln.lasso_path(problem, weights=np.ones(6))
    np.testing.assert_array_equal(ones.values, plain.values)


def test_bad_lanes_are_nan_and_leave_the_others_alone():
    X, y = (a.copy() for a in instances_of(MEDIUM))
    decay, weights = np.zeros(LANES), np.ones((LANES, 2, 6))
    clean = solve_paths(X, y, decay=decay, weights=weights)
    X[3, 0, 0] = np.nan
    y[5, 2] = np.inf
    decay[7], decay[8] = -1, np.nan
    weights[11, 0, 1], weights[12, 1, 2] = -1, np.nan
    bad = np.isin(np.arange(LANES), [3, 5, 7, 8, 11, 12])
    path, p, x = solve_paths(X, y, decay=decay, weights=weights)
    want = ["invalid_data"] * 2 + ["invalid_decay"] * 2 + ["invalid_weights"] * 2
    assert names_of(path.result)[bad].tolist() == want
    np.testing.assert_array_equal(path.result == dln.RESULTS.successful, ~bad)
    for got, want in zip(jax.tree.leaves((path, p, x)), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(np.asarray(got)[~bad], np.asarray(want)[~bad])
    for field in (path.knots, path.values, path.slopes):
        assert np.all(np.isnan(field[bad]))
    # Nor does a bad lane have a value at a sound p, or a certificate.
    residual = jax.vmap(lambda path: path.kkt_residual(dln.LeastSquares(X[0], y[0])))(path)
    assert np.all(np.isnan(np.asarray(residual)[bad, 0]))
    assert np.all(np.isnan(np.asarray(x_at(path, clean[1]))[bad]))


@pytest.mark.parametrize("name", GENERIC)
def test_single_precision(name):
    X, y = (a.astype(np.float32) for a in pad(*instances_of(name), 20, 40))
    path, p, x = solve_paths(X, y)
    assert path.values.dtype == np.float32
    assert x.dtype == np.float32
    assert not np.any(is_flagged(path))
    p, x = p.astype(float), x.astype(float)
    assert np.all(violations(X.astype(float), y.astype(float), p, x) <= 1e-4)
