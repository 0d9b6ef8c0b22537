"""Limit points: which minimiser of the norm they are."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from end_points import BOTH, D_, EVERY_DEPTH, limits_of, network_of
from scipy.optimize import linprog

import dlnjax as dln


@eqx.filter_jit
def _limit(D, X, y) -> dln.EndPoint:
    network = network_of(D, jnp.ones(D_))
    return dln.limit_point(network, dln.LeastSquares(X, y), throw=False)


@EVERY_DEPTH
@pytest.mark.parametrize("instance", [0, 1])
def test_which_minimiser(D, instance):
    X, y = BOTH[instance]
    point = _limit(2 if D == 2 else jnp.asarray(D, float), X, y)
    assert point.result == dln.RESULTS.successful
    np.testing.assert_allclose(point.x, limits_of(D), atol=1e-12)


@pytest.mark.parametrize("positive", [False, True])
def test_limit_of_small_initialisations(positive):
    # ±1 designs have faces of minimum 1-norm points.
    rng = np.random.default_rng(2)
    shape = rng.uniform(0.5, 2, 6)
    network = dln.USquared(shape) if positive else dln.UV(shape, np.zeros(6))
    several = 0

    @eqx.filter_jit
    def both(X, y):
        problem = dln.LeastSquares(X, y)
        small = dln.end_point(network, problem, log_eps=-1500.0, throw=False)
        minimum = dln.basis_pursuit(problem, positive=positive, throw=False)
        return dln.limit_point(network, problem, throw=False), small, minimum

    for _ in range(10):
        X = rng.choice([-1.0, 1.0], (3, 6))
        limit, small, minimum = both(X, np.array([1.0, 2.0, 3.0]) @ np.ones((3, 3)))
        np.testing.assert_allclose(limit.x, small.x, atol=1e-10)
        np.testing.assert_allclose(np.abs(limit.x).sum(), np.abs(minimum.x).sum(), rtol=1e-12)
        several += not bool(minimum.is_unique)
    assert several > 2


def test_limits_of_sparse_responses():
    # ±1 designs with a one-sparse response, Gaussian ones with planted responses; D = 3, shapes of
    # every size: the weighted 1-norm is least, and its minimiser is unique in almost all.
    rng = np.random.default_rng(7)
    lanes, n, d = 120, 6, 8
    X = np.where(np.arange(lanes)[:, None, None] % 2, rng.normal(size=(lanes, n, d)), 0)
    X[::2] = rng.choice([-1.0, 1.0], X[::2].shape)
    x = rng.normal(size=(lanes, d)) * (np.arange(d) < rng.integers(1, n, lanes)[:, None])
    x[::2, 1:] = 0
    y, u = np.einsum("bnd,bd->bn", X, x), rng.uniform(0.5, 2, (lanes, d))

    @jax.jit
    @jax.vmap
    def limits(X, y, u):
        return dln.limit_point(dln.Deep(u, u, depth=3.0), dln.LeastSquares(X, y), throw=False)

    end = limits(X, y, u)
    assert np.all(end.result == dln.RESULTS.successful)
    for A, b, shape, point, dual in zip(X, y, u, *map(np.asarray, (end.x, end.dual)), strict=True):
        cost = np.tile(1 / shape, 2)
        best = linprog(cost, A_eq=np.hstack([A, -A]), b_eq=b)
        np.testing.assert_allclose(A @ point, b, atol=1e-12 * np.abs(b).max())
        # To the tolerance of the linear programme.
        np.testing.assert_allclose(np.abs(point) @ cost[:d], best.fun, rtol=1e-9)
        assert np.max(np.abs(dual) * shape) < 1 + 1e-10
        np.testing.assert_allclose(dual @ point, best.fun, rtol=1e-9)


@EVERY_DEPTH
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_response_that_is_orthogonal_but_for_rounding(D, size):
    # `x` was rounding of the initialisation, which may be any number.
    rng = np.random.default_rng(3)
    X = rng.normal(size=(8, 4, D_))
    X[:, :, 1] = -X[:, :, 0]
    X[:, 3] = X[:, 0] - X[:, 1]
    y = rng.normal(size=(8, 4))
    for _ in range(2):  # the second time the rounding is that of what is left of y
        y -= np.einsum("bnd,bdm,bm->bn", X, np.linalg.pinv(X, rcond=1e-10), y)
    assert np.abs(np.einsum("bnd,bn->bd", X, y)).max() > 0

    @jax.jit
    @jax.vmap
    def limits(X, y):
        network = network_of(D, jnp.full(D_, size))
        return dln.limit_point(network, dln.LeastSquares(X, y), throw=False)

    end = limits(X, y)
    assert np.all(end.result == dln.RESULTS.successful)
    np.testing.assert_allclose(np.asarray(end.x), 0, atol=1e-14)
