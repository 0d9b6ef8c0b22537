"""Derivatives of the flow in lanes that end apart, and in time."""

from typing import Any

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


LOG_EPS = -12.0


def _logistic(r, s):
    """The flow of `USquared` from `ε` on the identity: `q' = 4q(r − q)` in `t = s log(1/ε)/4`."""
    grown = jnp.exp(LOG_EPS * (1 - r * s))
    return r * grown / (r - jnp.exp(LOG_EPS) + grown)


def _derivatives(fn, mode, at):
    """The gradient, and how it changes along (1, 0.3), which mixes both arguments."""
    along = jnp.asarray(1.0), jnp.asarray(0.3)
    gradient = lambda *at: jnp.stack(mode(fn, (0, 1))(*at))
    return jax.jit(lambda: jax.jvp(gradient, at, along))()


def test_second_derivatives_in_time_and_data():
    """In `s`, in the data and mixed, forward over both modes, against the closed form."""

    def flow(r, s):
        problem = dln.LeastSquares(jnp.ones((1, 1)), r[None])
        network = dln.USquared(jnp.ones(1))
        options: dict[str, Any] = dict(log_eps=LOG_EPS, rtol=1e-10, atol=1e-12, throw=False)
        return dln.gradient_flow(network, problem, s[None], **options).x[0, 0]

    at = jnp.asarray(1.5), jnp.asarray(0.72)  # during the jump
    want = _derivatives(_logistic, jax.grad, at)
    for mode in (jax.jacfwd, jax.grad):
        for ours, exact in zip(_derivatives(flow, mode, at), want, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=1e-5)


def test_derivatives_of_crossing_times():
    """First and second, in both modes, in the data and the level, against the closed form."""

    def crossing(r, level):
        problem = dln.LeastSquares(jnp.ones((1, 1)), r[None])
        options: dict[str, Any] = dict(
            log_eps=LOG_EPS, rtol=1e-10, atol=1e-12, max_crossings=2, throw=False
        )
        return dln.crossing_times(dln.USquared(jnp.ones(1)), problem, 4.0, level, **options).s[0]

    def exact(r, level):
        eps = jnp.exp(LOG_EPS)
        return jnp.log(level * (r - eps) / (eps * (r - level))) / (-LOG_EPS * r)

    at = jnp.asarray(1.5), jnp.asarray(0.6)
    np.testing.assert_allclose(crossing(*at), exact(*at), rtol=1e-8)
    np.testing.assert_allclose(_logistic(at[0], exact(*at)), at[1], rtol=1e-10)
    want = _derivatives(exact, jax.grad, at)
    for mode in (jax.jacfwd, jax.grad):
        for ours, theirs in zip(_derivatives(crossing, mode, at), want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
