"""`margin_flow`: against the weights, integrated by SciPy in `t`, linear programmes and finite
differences. `dlnjax reproduce` measures it at losses of `e^{−10⁶}` (`test_papers.py`)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import linprog
from scipy.special import expit, logsumexp

import dlnjax as dln
from dlnjax._results import names_of

rng = np.random.default_rng(0)


def _instance(n, d, positive=False):
    """A design, and labels that separate it, some of them −1."""
    X, x = rng.normal(size=(n, d)), rng.normal(size=d)
    return X, np.sign(X @ (np.abs(x) if positive else x))


def _exponential(m):
    return np.exp(-m), logsumexp(-m)


def _logistic(m):
    return expit(-m), np.log(np.sum(np.logaddexp(0, -m)))


def _uv(pull, log_eps, d):
    """A network; its weights at the start, their field in `s`, and `x` of them."""
    b, g = np.ones(d), np.linspace(0, 0.5, d)

    def field(s, weights):
        u, v = weights[:d], weights[d:]
        force = pull(u * v)
        return -log_eps / 2 * np.r_[force * v, force * u]

    return dln.UV(b, g), np.r_[b, g] * np.exp(log_eps / 2), field, lambda w: w[:d] * w[d:]


def _u_squared(pull, log_eps, d):
    shape = np.linspace(0.5, 1.5, d)
    field = lambda s, u: -log_eps / 2 * pull(u**2) * u
    return dln.USquared(shape), shape * np.exp(log_eps / 2), field, lambda u: u**2


def _cubes(pull, log_eps, d):
    shape, rate = np.r_[np.ones(d), np.linspace(0.8, 1.2, d)], np.exp(-log_eps / 3)

    def field(s, weights):
        force = pull(weights[:d] ** 3 - weights[d:] ** 3)
        return rate * np.r_[force, -force] * weights**2

    network = dln.Deep(shape[:d], shape[d:], depth=3.0)
    return network, shape * np.exp(log_eps / 3), field, lambda w: w[:d] ** 3 - w[d:] ** 3


# Networks, losses, shapes, and whether `x ≥ 0`.
CASES = {
    "UV, exponential, n < d": (_uv, dln.Exponential, _exponential, 5, 8, False),
    "USquared, logistic, n > d": (_u_squared, dln.Logistic, _logistic, 8, 4, True),
    "cubes, logistic, n < d": (_cubes, dln.Logistic, _logistic, 4, 6, False),
}


@pytest.mark.parametrize("name", CASES)
def test_against_weights(name):
    of, problem, loss, n, d, positive = CASES[name]
    X, y = _instance(n, d, positive)
    A = y[:, None] * X
    logs, ends = np.log([0.1, 1e-4]), np.array([3.0, 30.0, 300.0])
    wanted = []
    for log_eps in logs:
        _, start, field, model = of(lambda x: A.T @ loss(A @ x)[0], log_eps, d)
        # The last d numbers are ∫∂ℓ/∂m.
        both = lambda s, v, field=field, model=model: np.r_[
            field(s, v[:-n]), loss(A @ model(v[:-n]))[0]
        ]
        run = solve_ivp(
            both, (0, 300), np.r_[start, np.zeros(n)], "DOP853", ends, rtol=1e-12, atol=1e-14
        )
        wanted.append([(model(v[:-n]), v[-n:]) for v in run.y.T])
    x = np.array([[row[0] for row in rows] for rows in wanted])
    nu = np.array([[row[1] for row in rows] for rows in wanted])
    T = -np.array([[loss(A @ one)[1] for one in rows] for rows in x])
    network, *_ = of(None, -1.0, d)
    solve = lambda T, log_eps: dln.margin_flow(network, problem(X, y), T, log_eps=log_eps)
    flow = jax.jit(jax.vmap(solve))(T, logs)
    # 100 times rtol, as for `gradient_flow`.
    scale = np.abs(x).max(axis=2, keepdims=True)
    np.testing.assert_allclose(flow.x / scale, x / scale, atol=1e-5)
    np.testing.assert_allclose(flow.log_s, np.broadcast_to(np.log(ends), (2, 3)), atol=1e-5)
    np.testing.assert_allclose(flow.dual / nu.max(), nu / nu.max(), atol=1e-6)
    np.testing.assert_allclose(flow.log_loss, -T, rtol=1e-12, atol=1e-12)
    m = np.einsum("nd,esd->esn", A, x)
    margin = m.min(axis=2) / np.abs(x).sum(axis=2)
    np.testing.assert_allclose(flow.margin, margin, atol=1e-5)
    # The bound holds for the largest margin of all.
    sides = A if positive else np.concatenate([A, -A], axis=1)
    best = 1 / linprog(np.ones(sides.shape[1]), A_ub=-sides, b_ub=-np.ones(n)).fun
    assert np.all(flow.margin_bound >= best * (1 - 1e-9)) and np.all(margin <= best * (1 + 1e-9))


def test_derivatives():
    # Of x, log s and the dual in the design, the shape, log ε and T, against differences.
    X, change = np.random.default_rng(1).normal(size=(2, 3, 4))
    y = np.array([1.0, -1.0, 1.0])
    v = np.random.default_rng(2).normal(size=(2, 8))

    def objective(t):
        problem = dln.Logistic(X + 0.1 * t[0] * change, y)
        network = dln.UV(jnp.ones(4) + 0.1 * t[1], jnp.linspace(0, 0.3, 4))
        T = jnp.array([3.0, 200.0]) * (1 + 0.01 * t[2])
        flow = dln.margin_flow(network, problem, T, log_eps=-5.0 + t[3], rtol=1e-10, atol=1e-11)
        found = jnp.concatenate([flow.x, flow.log_s[:, None], flow.dual], axis=1)
        return jnp.sum(v * found)

    h, value = 1e-4, jax.jit(objective)
    gradient = jax.jit(jax.grad(objective))(jnp.zeros(4))
    for k, step in enumerate(h * np.eye(4)):
        difference = (value(step) - value(-step)) / (2 * h)
        np.testing.assert_allclose(gradient[k], difference, rtol=1e-5, atol=1e-6)


def test_bad_input(as_users_run_it):
    X, y = np.eye(2), np.array([1.0, -1.0])
    network, problem = dln.UV(np.ones(2), np.zeros(2)), dln.Logistic(X, y)

    def run(problem: Any, T: Any, network: Any = network):
        return dln.margin_flow(network, problem, T, eps=1e-3)

    with pytest.raises(TypeError, match="needs labels 1 and −1"):
        run(dln.LeastSquares(X, y), [1.0])
    with pytest.raises(TypeError, match="a network with a dual form"):
        run(problem, [1.0], dln.Linear(np.ones(2)))
    with pytest.raises(ValueError, match="With weight decay the loss does not tend to 0"):
        run(dln.Logistic(X, y, weight_decay=0.1), [1.0])
    with pytest.raises(ValueError, match="must be a grid of shape"):
        run(problem, 1.0)
    with pytest.raises(ValueError, match="must be increasing"):
        run(problem, [2.0, 1.0])
    # In one batch: a lane that is right, a value that the start has passed, labels that do not
    # separate, one that is no label.
    X = np.array([[1.0, 0.5, 1, 0.5], [1, 0.5, 1, 0.5], [-0.3, 2, -0.3, 2]])
    y = np.array([[1.0, 1, 1], [1, 1, 1], [1, -1, 1], [1, 1, 3]])
    T = np.array([[5.0, 9], [-9, 9], [5, 9], [5, 9]])
    network = dln.UV(np.ones(4), np.zeros(4))
    solve = lambda y, T: dln.margin_flow(
        network, dln.Exponential(X, y), T, log_eps=-20.0, throw=False
    )
    flow = jax.jit(jax.vmap(solve))(y, T)
    names = ["successful", "invalid_grid", "not_separable", "invalid_data"]
    assert list(names_of(flow.result)) == names
    assert np.isfinite(flow.x[0]).all() and np.isnan(flow.x[1:]).all()
