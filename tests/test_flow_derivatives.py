"""Derivatives of the flow in lanes that end apart, and in time."""

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln


def test_gradients_of_lanes_that_end_apart():
    # Lanes that have ended, or never began, go on with steps of length 0 beside the others.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 2))
    X[1] *= 5
    s = np.tile([0.5, 20.0], (4, 1))
    s[2] = 0
    ones = jnp.ones(3)

    def loss(u, X, y, s):
        problem = dln.LeastSquares(X, y)
        flow = dln.gradient_flow(dln.UV(u, 0 * ones), problem, s, eps=1e-5, throw=False)
        return jnp.sum(flow.x_mean**2)

    gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 2)), in_axes=(None, 0, 0, 0)))
    together = gradient(ones, X, y, s)
    assert all(np.all(np.isfinite(g)) for g in together)
    for i in range(4):
        alone = gradient(ones, *(np.tile(v[i], (4,) + (1,) * (v.ndim - 1)) for v in (X, y, s)))
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[i], theirs[0], rtol=1e-8, atol=1e-12)


def test_derivatives_in_time():
    # Those of the average at 0 too: it starts half as fast as x.
    problem = dln.LeastSquares(jnp.eye(2), jnp.array([1.0, 0.5]))
    network = dln.USquared(jnp.ones(2))

    def fn(s):
        flow = dln.gradient_flow(network, problem, s, log_eps=-3.0, throw=False)
        return flow.x, flow.x_mean, flow.z

    s = jnp.array([0, 0.5, 0.5, 2])
    (x, x_mean, z), (dx, dx_mean, dz) = jax.jvp(fn, (s,), (jnp.ones(4),))
    np.testing.assert_allclose(dz, x, rtol=1e-12)
    np.testing.assert_allclose(dx_mean[0], dx[0] / 2, rtol=1e-12)
    np.testing.assert_allclose(dx_mean[1:], (x - x_mean)[1:] / s[1:, None], rtol=1e-12)
    # q' = 4q(r − q) in t = s log(1/ε)/4.
    np.testing.assert_allclose(dx, 3 * x * (problem.r[None] - x), rtol=1e-12)
