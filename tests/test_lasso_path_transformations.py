"""Lasso paths under `vmap`: over the weight decay alone, with derivatives, without lanes."""

import jax
import jax.numpy as jnp
import numpy as np
from lasso_paths import MEDIUM, instances_of, is_flagged, sample, violations

import dlnjax as dln


def test_vmap_over_weight_decay_alone():
    X, y = (a[0] for a in instances_of(MEDIUM))
    decay = np.linspace(0, 1, 5)

    @jax.jit
    @jax.vmap
    def solve(decay):
        problem = dln.LeastSquares(X, y, weight_decay=decay)
        return sample(dln.lasso_path(problem, throw=False))

    path, p, x = solve(decay)
    assert not np.any(is_flagged(path))
    X, y = np.broadcast_to(X, (5, *X.shape)), np.broadcast_to(y, (5, *y.shape))
    assert np.all(violations(X, y, np.asarray(p), np.asarray(x), decay=decay) <= 1e-9)


def test_derivatives_in_either_order_with_vmap():
    X, y = instances_of(MEDIUM)
    mu = jnp.asarray([0.3, 3.0])

    def tangent(X, y):
        x = lambda y: dln.lasso_path(dln.LeastSquares(X, y), throw=False).x(mu)
        return jax.jvp(x, (y,), (jnp.ones_like(y),))[1]

    both = jax.jit(jax.vmap(tangent))(X[:2], y[:2])
    for i in range(2):
        np.testing.assert_allclose(both[i], tangent(X[i], y[i]), rtol=1e-9, atol=1e-12)


def test_no_lanes():
    knots = lambda y: dln.lasso_path(dln.LeastSquares(np.eye(3), y), throw=False).num_knots
    assert jax.vmap(knots)(jnp.zeros((0, 3))).shape == (0,)
