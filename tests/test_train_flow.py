"""`train` with small steps approaches the flow, linearly."""

import jax
import numpy as np
import optax
import pytest
from training import EPS

import dlnjax as dln


def test_small_steps_approach_the_flow_linearly():
    # One coordinate of u∘u, where the flow and its average are known.
    target, log_eps = 2.0, np.log(EPS)
    network = dln.USquared(np.ones(1))
    problem = dln.LeastSquares(np.ones((1, 1)), np.array([target]))
    t = np.array([0.5, 1.0])
    flow = target / (1 + (target / EPS - 1) * np.exp(-4 * target * t))
    mean = target - np.log(flow / EPS) / (4 * t)
    counts = np.array([200, 400, 800])
    steps = np.unique([1, 2, 3, *counts, *2 * counts])
    train = lambda size: dln.train(network, problem, optax.sgd(size), eps=EPS, steps=steps)
    run = jax.vmap(train)(t[0] / counts)
    errors = []
    for lane, count in enumerate(counts):
        at = np.searchsorted(steps, [count, 2 * count])
        np.testing.assert_allclose(run.s[lane, at], 4 * t / -log_eps, rtol=1e-10)
        errors.append(np.abs([run.x[lane, at, 0] - flow, run.x_mean[lane, at, 0] - mean]))
    slopes = np.polyfit(np.log(1 / counts), np.log(errors).reshape(3, 4), 1)[0]
    np.testing.assert_allclose(slopes, 1, atol=0.05)
    # u ← u(1 − 2γ(u² − σ)): three steps by hand.
    u = EPS**0.5
    for i in range(3):
        u *= 1 - 2 * t[0] / counts[0] * (u**2 - target)
        np.testing.assert_allclose(run.x[0, i, 0], u**2, rtol=1e-13)
    with pytest.raises(TypeError, match="USquared"):
        dln.effective_initialization(problem, run)


def test_small_steps_approach_the_flow_of_several_coordinates():
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(3, 4)), rng.normal(size=3)
    network, problem = dln.UV(np.ones(4), 0.1 * np.ones(4)), dln.LeastSquares(X, y)
    counts = np.array([400, 800, 1600])
    end = 4.0  # in s; t = s·log(1/ε)/2
    t = end * np.log(1 / EPS) / 2
    at = np.unique([counts // 2, counts])
    run = jax.vmap(lambda size: dln.train(network, problem, optax.sgd(size), eps=EPS, steps=at))(
        t / counts
    )
    flow = dln.gradient_flow(
        network, problem, np.array([end / 2, end]), eps=EPS, rtol=1e-12, atol=1e-13
    )
    errors = []
    for lane, count in enumerate(counts):
        rows = np.searchsorted(at, [count // 2, count])
        np.testing.assert_allclose(run.s[lane, rows], flow.s, rtol=1e-12)
        errors.append([run.x[lane, rows] - flow.x, run.x_mean[lane, rows] - flow.x_mean])
    size = np.abs(errors).max(axis=-1).reshape(3, -1)
    slopes = np.polyfit(np.log(1 / counts), np.log(size), 1)[0]
    np.testing.assert_allclose(slopes, 1, atol=0.05)
