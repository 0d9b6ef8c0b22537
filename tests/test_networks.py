"""Networks: shapes, links and time scales against the weights that they stand for."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import dlnjax as dln
from dlnjax.networks.base import AbstractDualNetwork, AbstractNetwork

U, V = np.array([1.0, -0.5, 2.0, 0.1]), np.array([0.0, 0.7, -3.0, -0.05])
NETWORKS = {
    "UV": dln.UV(U, V),
    "UV, β = 1, γ = 0": dln.UV(np.ones(4), np.zeros(4)),
    "USquared": dln.USquared(U),
}
EVERY_NETWORK = pytest.mark.parametrize("name", NETWORKS)


def _log_eps(value):
    return jnp.asarray(value, jnp.float64)


@EVERY_NETWORK
def test_weights_are_the_leaves(name):
    net = NETWORKS[name]
    u, v = net.u, getattr(net, "v", net.u)
    assert len(jax.tree.leaves(net)) == (2 if isinstance(net, dln.UV) else 1)
    np.testing.assert_array_equal(net(), u * v)
    assert net.positive is isinstance(net, dln.USquared)
    small = net.initial(_log_eps(np.log(1e-6)))
    assert type(small) is type(net)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(net), strict=True):
        np.testing.assert_allclose(a, 1e-3 * np.asarray(b), rtol=1e-14)
    np.testing.assert_allclose(small(), 1e-6 * np.asarray(net()), rtol=1e-14)


def test_penalties():
    decay = jnp.asarray(0.3)
    assert abs(dln.UV(U, V).penalty(decay) - 0.15 * np.sum(U**2 + V**2)) < 1e-15
    assert abs(dln.USquared(U).penalty(decay) - 0.3 * np.sum(U**2)) < 1e-15


@EVERY_NETWORK
@pytest.mark.parametrize("log_eps", [np.log(0.5), np.log(1e-5), -600.0])
def test_link_of_the_initial_dual_is_the_initialisation(name, log_eps):
    net, log_eps = NETWORKS[name], _log_eps(log_eps)
    initial = net.initial(log_eps)
    q = np.asarray(net.link(net.initial_dual(log_eps), log_eps))
    # exp(−w log(1/ε)) multiplies the rounding of w by log(1/ε).
    rtol = 4 * np.finfo(float).eps * (4 - float(log_eps))
    if isinstance(initial, dln.UV):
        plus, minus = (initial.u + initial.v) / 2, (initial.u - initial.v) / 2
        np.testing.assert_allclose(q, np.stack([plus**2, minus**2]), rtol=rtol)
        x = np.asarray(initial())
        np.testing.assert_allclose(q[0] - q[1], x, rtol=rtol, atol=rtol * np.max(q))
    else:
        assert q.shape == (1, 4)
        np.testing.assert_allclose(q[0], initial(), rtol=rtol)


@EVERY_NETWORK
def test_initial_dual_where_the_weights_underflow(name):
    net, log_eps = NETWORKS[name], _log_eps(-2000.0)
    w = np.asarray(net.initial_dual(log_eps))
    u = np.asarray(net.u)
    v = np.asarray(getattr(net, "v", 0 * u))
    shape = np.stack([u + v, u - v]) / 2 if isinstance(net, dln.UV) else u[None]
    assert not np.any(net.initial(log_eps)())
    np.testing.assert_allclose(-2000 * w, -2000 + 2 * np.log(abs(shape)), rtol=1e-15)


@EVERY_NETWORK
def test_link_decreases(name):
    w = jnp.broadcast_to(jnp.linspace(-0.2, 2, 4), (1 if NETWORKS[name].positive else 2, 4))
    q = np.asarray(NETWORKS[name].link(w, _log_eps(-5.0)))
    assert q.shape == w.shape
    assert np.all(np.diff(q, axis=1) < 0) and np.all(q > 0)


@EVERY_NETWORK
def test_dual_form_has_the_velocity_of_gradient_flow(name):
    # Weights, loss, penalty and time scale against link, w(0) and signs: dx/ds both ways.
    X, y = np.random.default_rng(0).normal(size=(3, 4)), np.array([1.0, -2.0, 0.5])
    decay, log_eps = 0.3, _log_eps(-4.0)
    net = NETWORKS[name]
    problem = dln.LeastSquares(X, y, weight_decay=decay)

    def objective(net):
        return problem.loss(net()) + net.penalty(problem.weight_decay)

    @jax.jit
    def velocities(net):
        start = net.initial(log_eps)
        speed = jax.tree.map(lambda g: -net.time_scale(log_eps) * g, jax.grad(objective)(start))
        weights = jax.jvp(lambda net: net(), (start,), (speed,))[1]
        gradient = problem.gradient(start())
        dual = net.initial_dual(log_eps)
        forces = jnp.stack([gradient] if net.positive else [gradient, -gradient])
        q = jax.jvp(lambda w: net.link(w, log_eps), (dual,), (forces + decay,))[1]
        return weights, q[0] if net.positive else q[0] - q[1]

    weights, dual = velocities(net)
    np.testing.assert_allclose(weights, dual, rtol=1e-12)


def test_time_scale_in_terms_of_log_eps():
    # [B25]: t = s log(1/ε)/2 for u∘v, and /4 for u∘u.
    assert float(dln.UV(U, V).time_scale(_log_eps(-6.0))) == 3.0
    assert float(dln.USquared(U).time_scale(_log_eps(-6.0))) == 1.5


def test_differentiable_and_batched_over_shape_and_log_eps():
    def value(u, v, log_eps):
        net = dln.UV(u, v)
        return jnp.sum(net.link(net.initial_dual(log_eps), log_eps)[0])

    rng = np.random.default_rng(1)
    u, v, log_eps = rng.normal(size=(5, 4)), rng.normal(size=(5, 4)), -np.arange(1.0, 6)
    got = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1, 2))))(u, v, log_eps)
    # q⁺ = ε (u + v)²/4.
    eps = np.exp(log_eps)[:, None]
    slope = eps * (u + v) / 2
    total = np.sum(eps * (u + v) ** 2 / 4, axis=1)
    for a, b in zip(got, (slope, slope, total), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("first, second", [(np.float32, np.float64), (np.float64, np.float32)])
def test_mixed_types_give_the_widest(first, second):
    net = dln.UV(np.ones(3, first), np.zeros(3, second))
    assert net.u.dtype == net.v.dtype == net().dtype == jnp.float64


def test_single_precision_stays_and_integers_become_floats():
    assert dln.UV(np.ones(3, np.float32), np.zeros(3, np.float32))().dtype == jnp.float32
    assert dln.USquared(np.ones(3, np.float32))().dtype == jnp.float32
    assert dln.UV(np.ones(3, int), np.zeros(3, int))().dtype == jnp.float64
    assert dln.USquared(np.full(3, 2))().dtype == jnp.float64


REFUSED = {
    "β = γ": (
        lambda: dln.UV(np.array([2.0, 1.5]), np.array([1.0, 1.5])),
        "Degenerate shape: |u[1]| = |v[1]| = 1.5. From there `u∘v` keeps its sign forever. "
        "Use different sizes, such as u = 1, v = 0;",
    ),
    "β = −γ": (
        lambda: dln.UV(np.array([-0.5, 1.0]), np.array([0.5, 0.0])),
        "Degenerate shape: |u[0]| = |v[0]| = 0.5.",
    ),
    "β = γ = 0": (
        lambda: dln.UV(np.array([1.0, 0.0]), np.zeros(2)),
        "Degenerate shape: |u[1]| = |v[1]| = 0.0.",
    ),
    "α = 0": (
        lambda: dln.USquared(np.array([1.0, 0.0, 2.0])),
        "Degenerate shape: u[1] = 0 never moves under gradient flow. Use a non-zero shape",
    ),
    "mismatch": (
        lambda: dln.UV(np.ones(3), np.zeros(4)),
        "`u` and `v` must have the same shape, got (3,) and (4,)",
    ),
    "matrix": (
        lambda: dln.USquared(np.ones((2, 3))),
        "`u` must have one weight per coordinate, shape (d,), got (2, 3)",
    ),
    "scalar": (
        lambda: dln.UV(np.ones(3), 0.0),
        "`v` must have one weight per coordinate, shape (d,), got ()",
    ),
    "empty": (
        lambda: dln.USquared(np.ones(0)),
        "`u` has an empty axis: its shape is (0,)",
    ),
    "NaN": (lambda: dln.UV(np.ones(2), np.array([0, np.nan])), "`v[1]` is nan"),
    "inf": (lambda: dln.USquared(np.array([np.inf, 1])), "`u[0]` is inf"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("bad", [np.array(["1"]), np.array([1j]), np.array([None])])
def test_refuses_what_is_not_real_numbers(bad):
    with pytest.raises(TypeError, match="`u` must be"):
        dln.USquared(bad)
    with pytest.raises(TypeError, match="`v` must be"):
        dln.UV(np.ones(1), bad)


def test_degenerate_shapes_are_not_looked_at_under_tracing():
    # Lanes of a batch may be bad; only shapes raise.
    x = jax.jit(jax.vmap(lambda u, v: dln.UV(u, v)()))(np.ones((2, 3)), np.ones((2, 3)))
    np.testing.assert_array_equal(x, np.ones((2, 3)))
    with pytest.raises(ValueError, match="same shape"):
        jax.jit(lambda u, v: dln.UV(u, v)())(np.ones(3), np.ones(2))


@pytest.mark.parametrize("abstract", [AbstractNetwork, AbstractDualNetwork])
def test_abstract_networks_cannot_be_made(abstract):
    with pytest.raises(TypeError, match="abstract"):
        abstract()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_two_products_of_unbalanced_layers_are_a_uv(decay):
    """`u₊∘v₊ − u₋∘v₋` from any start, by SciPy on its four weights: the formula of the docs."""
    rng = np.random.default_rng(0)
    X, y, start = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(4, 4))
    log_eps, model = np.log(1e-4), lambda w: w[0] * w[1] - w[2] * w[3]

    def field(s, flat):
        w = flat.reshape(4, 4)
        pull = X.T @ (y - X @ model(w))
        forces = np.stack([pull * w[1], pull * w[0], -pull * w[3], -pull * w[2]])
        return (-log_eps / 2 * (forces - decay * w)).ravel()

    s = np.array([0.3, 1.0, 4.0])
    first = np.exp(log_eps / 2) * start.ravel()
    run = solve_ivp(field, (0, 4), first, "DOP853", s, rtol=1e-12, atol=1e-15)
    u, v, U, V = start
    plus, minus = np.hypot(u + v, U - V), np.hypot(u - v, U + V)
    network = dln.UV((plus + minus) / 2, (plus - minus) / 2)
    problem = dln.LeastSquares(X, y, decay)
    flow = dln.gradient_flow(network, problem, s, eps=1e-4, rtol=1e-10, atol=1e-11)
    want = np.stack([model(w.reshape(4, 4)) for w in run.y.T])
    np.testing.assert_allclose(flow.x, want, atol=1e-8)
