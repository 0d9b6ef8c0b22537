"""Derivatives of the weight form, whose implicit steps find theirs by our own linear systems."""

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

X, Y = np.array([[1.0, 0.4], [-0.3, 1.2], [0.5, 0.8]]), np.array([1.0, -0.5, 2.0])
ALONG, STEP = jnp.array([0.3, -1.0, 0.5]), 1e-3


def _total(y, log_eps):
    flow = dln.gradient_flow(
        dln.UV(jnp.ones(2), jnp.zeros(2)),
        dln.LeastSquares(X, y),
        jnp.array([0.5, 4.0]),
        log_eps=log_eps,
        formulation=dln.WeightForm(),
        throw=False,
    )
    return jnp.sum(flow.x_mean[:, 0] - 2 * flow.x[:, 1])


def test_both_modes_and_second_order():
    along = lambda e: (ALONG, jnp.ones_like(e))
    forward = lambda y, e: jax.jvp(_total, (y, e), along(e))[1]
    gradient = jax.grad(_total, argnums=(0, 1))

    @jax.jit
    @jax.vmap
    def run(y, log_eps):
        dot = lambda pair: jnp.vdot(pair[0], ALONG) + pair[1]
        value, at = _total(y, log_eps), (y, log_eps)
        first, second = jax.jvp(forward, at, along(log_eps))
        of, of_of = jax.jvp(gradient, at, along(log_eps))
        return value, dot(of), first, second, dot(of_of)

    h = STEP * np.array([0, 1, -1])
    value, backward, first, second, over_reverse = run(Y + np.outer(h, ALONG), -5.0 + h)
    slope = lambda v: (v[1] - v[2]) / (2 * STEP)
    # Steps are to 1e-7, of which a difference loses 1/h.
    np.testing.assert_allclose(first[0], slope(value), rtol=1e-4)
    np.testing.assert_allclose(second[0], slope(first), rtol=1e-3)
    np.testing.assert_allclose(backward[0], first[0], rtol=1e-8)
    np.testing.assert_allclose(over_reverse[0], second[0], rtol=1e-8)
