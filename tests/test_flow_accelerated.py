"""Nesterov's flow, against Bessel functions and SciPy on the equation of the weights."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit, gamma, jv

import dlnjax as dln
from dlnjax._results import names_of

S = np.array([0.05, 0.5, 2.0, 4.0])
X = 0.7 * np.random.default_rng(7).normal(size=(3, 4))
Y, LABELS = np.array([1.0, -0.7, 0.4]), np.array([1.0, -1.0, 1.0])
SHAPE = np.array([1.0, 0.8, 1.2, 0.9]), np.array([0.1, -0.2, 0.0, 0.3])


def _mode(alpha, t):
    """The solution of `u'' + (2α + 1)/t u' = −u`, `u(0) = 1`."""
    t = np.maximum(t, 1e-9)
    return gamma(alpha + 1) * (2 / t) ** alpha * jv(alpha, t)


def _flow(alpha, scale, s, **options: Any):
    """Linear models of curvatures 1, 9 and 1e-4, towards 1, in units of x and time of their own."""
    M = jnp.diag(jnp.array([1, 9, 1e-4])) * scale**2
    problem = dln.Quadratic(M, jnp.diag(M) * 1e6)
    form = dln.AcceleratedForm(alpha)
    network = dln.Linear(jnp.zeros(3))
    return dln.gradient_flow(network, problem, s / scale, eps=0.5, formulation=form, **options)


def test_modes_of_a_linear_model_are_bessel_functions():
    alpha = np.array([-0.5, 0, 0.5, 1, 3])
    scale, s = 10.0 ** np.array([0, -3, 3, 6, 0]), np.array([0, 1e-3, 1, 5, 20])
    run = lambda a, c, **options: _flow(a, c, s, **options).x / 1e6
    found = jax.jit(jax.vmap(run))(alpha, scale)
    exact = np.stack([1 - _mode(a, s[:, None] * np.array([1, 3, 0.01])) for a in alpha])
    np.testing.assert_allclose(found, exact, atol=3e-7)  # 30 steps to 1e-8 each
    sharp = jax.jit(jax.vmap(lambda a, c: run(a, c, rtol=1e-12, atol=1e-13)))(alpha, scale)
    np.testing.assert_allclose(sharp, exact, atol=1e-11)


def test_strong_friction():
    # The steps stay few, and modes are right.
    s, network = np.array([0.5, 3.0, 20.0]), dln.Linear(jnp.zeros(1))
    problem = dln.LeastSquares(np.eye(1), np.ones(1))
    for alpha in (2.0, 3.0, 30.0):
        form = dln.AcceleratedForm(alpha)
        flow = dln.gradient_flow(network, problem, s, eps=0.5, formulation=form)
        np.testing.assert_allclose(flow.x[:, 0], 1 - _mode(alpha, s), atol=1e-6)
        uv = dln.gradient_flow(dln.UV(*SHAPE), dln.LeastSquares(X, Y), s, eps=0.1, formulation=form)
        assert max(flow.stats["num_steps"], uv.stats["num_steps"]) < 700


def test_derivatives_in_both_modes():
    # In α and in time, of the modes 1 and 3.
    s = np.array([1.0, 5.0])

    def objective(v):
        flow = _flow(v[0], 1.0, s * v[1], rtol=1e-11, atol=1e-12)
        return flow.x[:, :2].sum() / 1e6

    def exact(v):
        return np.sum(1 - _mode(v[0], v[1] * s[:, None] * np.array([1, 3])))

    at, h = np.array([0.7, 1.2]), 1e-5
    slope = [(exact(at + e) - exact(at - e)) / (2 * h) for e in h * np.eye(2)]
    for mode in (jax.jacfwd, jax.grad):
        np.testing.assert_allclose(jax.jit(mode(objective))(at), slope, rtol=1e-6)


def _scipy(alpha, log_eps, gradient, decay):
    """`u∘v` and its average by the second-order equation, from a series at a small time."""
    scale, friction, d = -log_eps / 2, 2 * alpha + 1, 4

    def force(u, v):
        g = gradient(u * v)
        return -np.concatenate([g * v + decay * u, g * u + decay * v])

    def field(t, state):
        u, v, speed = state[:d], state[d : 2 * d], state[2 * d : 4 * d]
        return np.concatenate([speed, force(u, v) - friction / t * speed, u * v])

    at = np.concatenate(SHAPE) * math.exp(log_eps / 2)
    push, t = force(at[:d], at[d:]) / (friction + 1), 1e-4
    start = np.concatenate([at + push * t**2 / 2, push * t, at[:d] * at[d:] * t])
    run = solve_ivp(field, (t, scale * S[-1]), start, "DOP853", scale * S, rtol=1e-11, atol=1e-13)
    x = run.y[:d] * run.y[d : 2 * d]
    return np.stack([x.T, (run.y[4 * d :] / (scale * S)).T])


@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_networks_against_the_equation_of_the_weights(loss):
    alpha = np.array([1.0, 0.0, 1.0])
    log_eps, decay = np.log([1e-1, 1e-3, 1e-3]), np.array([0.0, 0.1, 0])
    if loss == "square":
        make, gradient = lambda c: dln.LeastSquares(X, Y, c), lambda x: X.T @ (X @ x - Y)
    else:
        make = lambda c: dln.Logistic(X, LABELS, c)
        gradient = lambda x: -X.T @ (LABELS * expit(-LABELS * (X @ x)))

    @jax.jit
    @jax.vmap
    def run(alpha, log_eps, decay):
        form = dln.AcceleratedForm(alpha)
        network = dln.UV(*SHAPE)
        return dln.gradient_flow(network, make(decay), S, log_eps=log_eps, formulation=form)

    flow = run(alpha, log_eps, decay)
    for k in range(3):
        exact = _scipy(alpha[k], log_eps[k], gradient, decay[k])
        # Steps are to 1e-8; errors of weights grow with them, up to 1/√ε = 30 times.
        np.testing.assert_allclose(np.stack([flow.x[k], flow.x_mean[k]]), exact, atol=1e-6)


def test_a_schedule_of_the_decay():
    # One coordinate without data is `θ̈ + (2α + 1)/t θ̇ = −λ(t) θ`, by SciPy in two pieces.
    decay = dln.Schedule(np.array([3.0]), np.array([0.5, 2.0]))
    problem = dln.LeastSquares(np.zeros((1, 1)), np.zeros(1), decay)
    form, s = dln.AcceleratedForm(1.0), np.array([1.0, 3.0, 6.0])
    flow = dln.gradient_flow(dln.Linear(np.ones(1)), problem, s, eps=0.5, formulation=form)
    field = lambda c: lambda t, y: [y[1], -3 / t * y[1] - c * y[0]]
    u = lambda t: [0.5 * _mode(1, math.sqrt(0.5) * t)]
    options: dict[str, Any] = dict(method="DOP853", rtol=1e-12, atol=1e-13)
    first = solve_ivp(field(0.5), (1e-5, 3), [0.5, 0.0], **options).y[:, -1]
    last = solve_ivp(field(2.0), (3, 6), first, **options).y[0, -1]
    np.testing.assert_allclose(flow.x[:, 0], [*u(1.0), *u(3.0), last], atol=1e-7)


def test_bad_input():
    problem = dln.LeastSquares(X, Y)
    for alpha in (-0.6, math.inf):
        with pytest.raises(ValueError, match="finite and at least −1/2"):
            dln.AcceleratedForm(alpha)
    with pytest.raises(ValueError, match="too small for weights of UV"):
        dln.gradient_flow(
            dln.UV(*SHAPE), problem, S, log_eps=-30.0, formulation=dln.AcceleratedForm()
        )

    @jax.jit
    @jax.vmap
    def run(alpha, log_eps):
        form = dln.AcceleratedForm(alpha)
        return dln.gradient_flow(
            dln.UV(*SHAPE), problem, S, log_eps=log_eps, formulation=form, throw=False
        )

    flow = run(np.array([1.0, -0.6, np.nan, 1.0]), np.array([-3.0, -3, -3, -30]))
    want = ["successful", "invalid_alpha", "invalid_alpha", "invalid_eps"]
    assert list(names_of(flow.result)) == want and flow.has_momentum
    assert np.isfinite(flow.x[0]).all() and np.isnan(flow.x[1:]).all()
