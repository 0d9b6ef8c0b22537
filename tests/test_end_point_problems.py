"""End points of one problem each: positive networks, weight decay, degenerate data, no response,
bad arguments."""

import functools

import equinox as eqx
import jax
import numpy as np
import pytest
from end_points import D_, U, V, X, Y
from scipy.optimize import nnls

import dlnjax as dln

# Well conditioned, for a flow that ends soon: columns 0 and 2, 1 and 3 are the same.
DOUBLED = (np.eye(3) + 0.2 * X[:, :3])[:, [0, 1, 0, 1, 2]]


@functools.cache
def _positive_flow(y):
    network = dln.USquared(U)
    problem = dln.LeastSquares(DOUBLED, np.array(y))
    # Coordinates on the boundary vanish like 1/s or faster.
    flow = dln.gradient_flow(
        network, problem, np.array([0.0, 1000.0]), eps=1e-2, rtol=1e-10, atol=1e-11
    )
    return network, problem, flow.x[1], dln.end_point(network, problem, eps=1e-2)


@pytest.mark.parametrize("is_feasible", [True, False])
def test_positive(is_feasible):
    y = DOUBLED @ np.array([1.0, 0.5, 0, 0.3, 1]) if is_feasible else Y
    network, problem, x, end = _positive_flow(tuple(y))
    best, distance = nnls(DOUBLED, y)
    assert (distance < 1e-12) == is_feasible
    np.testing.assert_allclose(end.x, x, atol=1e-9)
    np.testing.assert_allclose(DOUBLED @ end.x, DOUBLED @ best, atol=1e-12)
    assert np.min(end.x) >= 0
    # Of two equal columns each gets its share, by the square of the shape.
    for i in (0, 1):
        if best[i] + best[i + 2] > 0:
            np.testing.assert_allclose(
                end.x[i] * U[i + 2] ** 2, end.x[i + 2] * U[i] ** 2, rtol=1e-9
            )
    if not is_feasible:
        assert set(np.flatnonzero(np.isneginf(end.dual))) == set(
            np.flatnonzero(DOUBLED.T @ (y - DOUBLED @ best) < -1e-9)
        )


@pytest.mark.parametrize("positive", [False, True])
def test_with_weight_decay_it_is_the_lasso(positive):
    problem = dln.LeastSquares(X, Y, 0.3)
    network = dln.USquared(U) if positive else dln.UV(U, V)
    end = dln.end_point(network, problem, eps=1e-2)
    path = dln.lasso_path(problem, positive=positive)
    np.testing.assert_allclose(end.x, path.x(np.inf), atol=1e-14)
    assert np.all(np.isinf(end.dual[np.asarray(end.x) != 0]))


def test_inconsistent_and_rank_deficient():
    rng = np.random.default_rng(3)
    B = rng.normal(size=(7, 2)) @ rng.normal(size=(2, D_))
    y = rng.normal(size=7)
    network = dln.UV(U, V)
    end = dln.end_point(network, dln.LeastSquares(B, y), eps=1e-3)
    assert np.abs(B.T @ (y - B @ end.x)).max() < 1e-13 * np.abs(B.T @ y).max() * 10
    quadratic = dln.Quadratic(B.T @ B, B.T @ y)
    np.testing.assert_allclose(dln.end_point(network, quadratic, eps=1e-3).x, end.x, atol=1e-12)
    # The same affine space by two of its equations.
    rows = np.linalg.svd(B)[2][:2]
    same = dln.end_point(network, dln.LeastSquares(rows, rows @ end.x), eps=1e-3)
    np.testing.assert_allclose(same.x, end.x, atol=1e-13)


def test_no_response():
    end = dln.end_point(dln.UV(U, 0 * U), dln.LeastSquares(X, 0 * Y), log_eps=-2000.0)
    np.testing.assert_array_equal(end.x, np.zeros(D_))
    np.testing.assert_array_equal(end.dual, np.zeros(D_))


def test_bad_input():
    problem, network = dln.LeastSquares(X, Y), dln.UV(U, V)
    with pytest.raises(ValueError, match="exactly one"):
        dln.end_point(network, problem)
    with pytest.raises(ValueError, match="network has 4 coordinates, the problem has 5"):
        dln.end_point(dln.UV(U[:4], V[:4]), problem, eps=0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="max_steps"):
        dln.end_point(network, problem, eps=1e-2, max_steps=2)
    end = dln.end_point(network, problem, eps=1e-2, max_steps=2, throw=False)
    assert end.result == dln.RESULTS.end_point_not_reached and np.all(np.isnan(end.x))


def test_the_dual_beside_nearly_equal_columns():
    # The range of Xᵀ determines some entries to 13 digits less than it has: with those of a basis,
    # one of five of these duals had entries of which `x` would be 1e200.
    rng = np.random.default_rng(0)
    X, length = rng.normal(size=(64, 6, 10)), 1500.0
    X[:, :, 5] = X[:, :, 4] + 3e-13 * rng.normal(size=(64, 6))
    network = dln.UV(np.ones(10), np.zeros(10))
    solve = lambda X, y: dln.end_point(network, dln.LeastSquares(X, y), log_eps=-length)
    end = jax.jit(jax.vmap(solve))(X, X[:, :, 4])
    assert np.all(end.result == dln.RESULTS.successful)
    # q(0) = ε/4, and `x` is what it grows to: rounding of the dual times its length.
    q = lambda dual: np.exp(-length * (1 + np.log(4) / length - dual))
    np.testing.assert_allclose(q(end.dual) - q(-end.dual), end.x, rtol=0, atol=1e-11)


def test_columns_in_units_of_nine_decades():
    """`x = u∘u` near the boundary of what is feasible: `log x/x(0)` lies in the range of `Xᵀ`, and
    where `x` is 0 it may be as low as it is."""
    rng = np.random.default_rng(0)
    count, d = 200, 4
    unit = 10.0 ** rng.uniform(-4.5, 4.5, size=(count, 1, d))
    X = rng.normal(size=(count, 3, d)) * unit
    share = 10.0 ** rng.uniform(-11, 0, size=(count, d))
    share[np.arange(count), rng.integers(0, d, count)] += 1
    y = np.einsum("knd,kd->kn", X, share / unit[:, 0])
    log_eps = rng.uniform(-1500, -10, count)

    def solve(X, y, log_eps):
        network = dln.USquared(np.ones(d))
        return dln.end_point(network, dln.LeastSquares(X, y), log_eps=log_eps, throw=False)

    end = jax.jit(jax.vmap(solve))(X, y, log_eps)
    assert np.all(end.result == dln.RESULTS.successful)  # 6 were not reached
    checked = 0
    for k in range(count):
        x, size = np.asarray(end.x[k]), unit[k, 0]
        fit = np.max(np.abs(x) * size)
        np.testing.assert_allclose(X[k] @ x, y[k], atol=1e-12 * fit)
        # The residual is relative to the largest share of the fit: so are the errors of the others.
        error = 1e-12 * fit / np.where(x > 0, x * size, 1)
        known = (x > 0) & (error < 1e-3)
        growth = np.log(np.where(x > 0, x, 1)) - log_eps[k]
        dependence = np.linalg.svd(X[k] / size)[2][-1] / size
        if known.all():
            terms, room = dependence * growth, np.abs(dependence) * (error + 1e-13 * growth)
            assert abs(terms.sum()) <= room.sum()
        elif known.sum() == 3 and np.sum(x == 0) == 1:
            (zero,) = np.flatnonzero(x == 0)
            rest = dependence * np.where(known, growth, 0)
            assert -rest.sum() / dependence[zero] + log_eps[k] < -700
        else:
            continue
        checked += 1
    assert checked > 100
