"""Accelerated optimisers, against their continuous mixing, their bounds and Jacobi polynomials."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import expm
from scipy.special import eval_jacobi

import dlnjax as dln
from dlnjax._results import names_of

H = np.geomspace(0.01, 1, 6)


@pytest.mark.parametrize("mu, kappa", [(0.0, 1.0), (0.01, 1.0), (0.0, 4.0), (0.01, 4.0)])
def test_steps_of_the_continuized_method(mu, kappa):
    # dx = η(z − x)dt, dz = η′(x − z)dt between the steps, by the matrix exponential, and in the
    # convex case η = 2/t, η′ = 0, of which z − x falls like 1/t².
    how: Any = {"statistical_condition": kappa, "key": jax.random.key(3)}
    optimizer: Any = dln.continuized_nesterov(1.0, mu, **how)
    weights: Any = jnp.ones(6)
    state, x, z, last = optimizer.init(weights), np.ones(6), np.ones(6), 0.0
    for _ in range(30):
        time = float(state.time)
        assert time - last == pytest.approx(float(state.wait))
        if mu:
            eta = np.sqrt(mu / kappa)
            mixing = expm((time - last) * eta * np.array([[-1, 1], [1, -1]]))
            x, z = mixing @ np.stack([x, z])
        else:
            x = z + (last / time) ** 2 * (x - z)
        np.testing.assert_allclose(weights, x, rtol=1e-12, atol=1e-14)  # where gradients are taken
        x, z = x - H * x, z - H * x * (1 / np.sqrt(kappa * mu) if mu else time / (2 * kappa))
        last = time
        step, state = optimizer.update(H * weights, state, weights)
        weights = optax.apply_updates(weights, step)
        np.testing.assert_allclose(state.x, x, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(state.z, z, rtol=1e-12, atol=1e-14)


def test_bounds_of_the_expectation():
    # Over 4096 runs; the times are exponential of rate 1.
    @jax.jit
    @jax.vmap
    def run(key):
        def step(carry, _):
            weights, state = carry
            time = state.time
            update, state = optimizer.update(H * weights, state, weights)
            loss = jnp.sum(H * state.x**2) / 2
            return (optax.apply_updates(weights, update), state), (time, loss)

        optimizer: Any = dln.continuized_nesterov(1.0, 0.01, key=key)
        strong = jax.lax.scan(step, (jnp.ones(6), optimizer.init(jnp.ones(6))), length=80)[1]
        optimizer = dln.continuized_nesterov(1.0, key=key)
        convex = jax.lax.scan(step, (jnp.ones(6), optimizer.init(jnp.ones(6))), length=80)[1]
        return strong, convex

    (time, strong), (_, convex) = run(jax.random.split(jax.random.key(0), 4096))
    steps = np.arange(1, 81)
    np.testing.assert_allclose(np.mean(time, axis=0), steps, atol=5 * np.sqrt(80 / 4096))
    start, distance = np.sum(H) / 2, 6
    bounded = np.mean(np.exp(0.1 * time) * strong, axis=0) / (start + 0.01 / 2 * distance)
    assert bounded.max() < 1 and bounded[0] > 0.1
    assert np.max(np.mean(time**2 * convex, axis=0)) < 2 * distance


@pytest.mark.parametrize("alpha, beta", [(0.5, 0.0), (1.0, 0.5), (-0.5, -0.5), (-0.7, -0.3)])
def test_jacobi_polynomials(alpha, beta):
    values = np.linspace(-1, 1, 9)  # of W = I − γH
    problem = dln.Quadratic(jnp.diag((1 - values) / 0.5), jnp.zeros(9))
    optimizer = dln.jacobi(alpha, beta, step_size=0.5)
    steps = np.array([0, 1, 2, 7, 40])
    run = dln.train(dln.Linear(jnp.ones(9)), problem, optimizer, log_eps=-1e-9, steps=steps)
    of = lambda w: eval_jacobi(steps[:, None], alpha, beta, w)
    np.testing.assert_allclose(run.x, of(values) / of(1.0), atol=1e-8)  # ε is 1 − 1e-9
    # As heavy ball it stands for a time of the flow.
    assert np.all(np.isfinite(run.t)) and np.all(np.diff(run.t) > 0)


def test_on_the_weights_of_a_network():
    # Weights of any structure, in float32: it ends where the flow does.
    X, y = np.array([[1.0, 0.5, 0.2], [0.3, 1.0, -0.4]], np.float32), np.ones(2, np.float32)
    problem = dln.LeastSquares(X, y)
    network = dln.Deep(np.ones(3, np.float32), np.ones(3, np.float32), depth=3.0)
    optimizer = dln.continuized_nesterov(20.0, key=jax.random.key(0))
    run = dln.train(network, problem, optimizer, eps=1e-2, steps=2000)
    assert run.x.dtype == np.float32
    np.testing.assert_allclose(run.x[-1] @ X.T, y, atol=1e-4)


def test_runs_that_do_not_start_at_0():
    # The state holds the weights, of any sign; the clock of `train` must not start there, or its
    # time may go back: one in twenty of such runs was `invalid_training`.
    def one(key):
        optimizer = dln.continuized_nesterov(1.0, 0.01, statistical_condition=30.0, key=key)
        network = dln.Linear(jax.random.normal(key, (6,)))
        problem = dln.Quadratic(jnp.diag(jnp.asarray(H)), jnp.zeros(6))
        return dln.train(network, problem, optimizer, eps=0.5, steps=50, throw=False).result

    results = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 200))
    assert set(names_of(results)) == {"successful"}


def test_derivatives_without_strong_convexity():
    problem = dln.Quadratic(jnp.diag(jnp.array([1.0, 0.01])), jnp.array([1.0, 0.01]))

    def loss(L, mu=0.0):
        optimizer = dln.continuized_nesterov(L, mu, key=jax.random.key(0))
        network = dln.Linear(jnp.zeros(2))
        run = dln.train(network, problem, optimizer, eps=0.5, steps=10, throw=False)
        return run.loss[-1], run.result

    value = jax.jit(loss)
    slope = jax.jit(jax.grad(lambda L: loss(L)[0]))(1.0)
    difference = (value(1 + 1e-5)[0] - value(1 - 1e-5)[0]) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-6)
    # A traced μ that is none.
    run = jax.vmap(lambda mu: loss(1.0, mu))(jnp.array([0.01, -1.0, jnp.nan, 2.0]))
    want = ["successful"] + 3 * ["invalid_training"]
    assert list(names_of(run[1])) == want


def test_traced_arguments_that_are_none():
    # Each in its lane: what raises if it is known ends as `invalid_training`.
    problem = dln.Quadratic(jnp.diag(jnp.array([1.0, 0.01])), jnp.array([1.0, 0.01]))

    def continuized(L, mu, kappa):
        how: Any = {"statistical_condition": kappa, "key": jax.random.key(0)}
        return dln.continuized_nesterov(L, mu, **how)

    def jacobi(alpha, beta, step_size):
        return dln.jacobi(alpha, beta, step_size=step_size)

    inf, nan = jnp.inf, jnp.nan
    for of, good, bad in (
        (continuized, (1.0, 0.0, 1.0), ((0.0, inf), (-1.0, nan), (0.5, inf))),
        (jacobi, (0.5, 0.0, 1.0), ((-1.0, inf), (-1.5, inf), (0.0, inf))),
    ):
        lanes = [good]
        for k, values in enumerate(bad):
            lanes += [(*good[:k], value, *good[k + 1 :]) for value in values]

        def run(arguments, of=of):
            network, optimizer = dln.Linear(jnp.zeros(2)), of(*arguments)
            return dln.train(network, problem, optimizer, eps=0.5, steps=3, throw=False).result

        names = list(names_of(jax.jit(jax.vmap(run))(jnp.array(lanes))))
        assert names == ["successful"] + 6 * ["invalid_training"]


def test_bad_input():
    key = jax.random.key(0)
    for mu in (-0.1, 2.0, np.nan):
        with pytest.raises(ValueError, match="must be from 0 to L = 1"):
            dln.continuized_nesterov(1.0, mu, key=key)
    with pytest.raises(ValueError, match="`statistical_condition` must be finite and at least 1"):
        dln.continuized_nesterov(1.0, statistical_condition=0.5, key=key)
    with pytest.raises(ValueError, match="`L` must be positive"):
        dln.continuized_nesterov(0.0, key=key)
    with pytest.raises(ValueError, match="needs the weights"):
        optimizer = dln.continuized_nesterov(1.0, key=key)
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="`alpha` must be finite and above -1"):
        dln.jacobi(-1.0, step_size=1.0)
    with pytest.raises(ValueError, match="`step_size` must be finite and above 0"):
        dln.jacobi(0.5, step_size=0.0)
