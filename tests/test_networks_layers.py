"""`Layers`: growth times and their inverse, the flow, its end, derivatives, and `model`."""

import re
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.optimize import linprog
from scipy.special import elliprf

import dlnjax as dln

D = 5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(3, D)), RNG.normal(size=3)
S = np.array([0.3, 1.0, 3.0])


def _shape(layers, d=D, seed=1):
    return np.random.default_rng(seed).normal(size=(layers, d))


# --- growth times -------------------------------------------------------------------------------


def _time(c, b):
    """The growth time from `b ≥ 0` by SciPy, panel by panel in `p`: `b = √c₁ sinh p`."""
    c = np.sort(c)
    density = lambda p: 1 / np.prod(np.sqrt(c[0] * np.sinh(p) ** 2 + c[1:]))
    edges = np.arcsinh(b / np.sqrt(c[0])) + np.arange(41.0)
    return sum(
        quad(density, lo, hi, epsabs=0, epsrel=1e-13)[0]
        for lo, hi in zip(edges[:-1], edges[1:], strict=True)
    )


@pytest.mark.parametrize("layers", [3, 4, 5, 7])
def test_growth_times_are_elliptic_integrals(layers):
    # Squares of layers over 12 decades, a smallest layer of 0 and of up to 1e3 of the next.
    rng = np.random.default_rng(layers)
    d = 64
    c = 10 ** rng.uniform(-12, 0, (layers - 1, d))
    b = np.sqrt(c.min(0)) * np.sinh(rng.uniform(0, 8, d)) * rng.choice([-1, 1], d)
    b[0] = 0
    weights = np.concatenate([np.sqrt(c + b**2), b[None]])
    # What the sizes of the weights, as they are rounded, say of `c`.
    c = (weights[:-1] - abs(b)) * (weights[:-1] + abs(b))
    times = np.asarray(jax.jit(lambda u: dln.Layers(u).growth_times)(weights))
    if layers == 3:
        time = lambda b: elliprf(b**2, b**2 + c[0], b**2 + c[1])
    else:
        time = lambda b: np.array([_time(c[:, i], b[i]) for i in range(d)])
    towards, total = time(abs(b)), time(0 * b)
    np.testing.assert_allclose(times[(b < 0).astype(int), range(d)], towards, rtol=1e-11)
    np.testing.assert_allclose(times.sum(0), 2 * total, rtol=1e-11)


def test_with_one_huge_layer_the_dual_is_asinh_as_with_two_layers():
    # x = uvU with U = 1e8: b moves from U_m to B in (asinh(B/√c) − asinh(U_m/√c))/U.
    u, v, huge = np.array([0.3, 0.0, 2.0]), np.array([1.0, 0.1, 2.1]), 1e8
    network = dln.Layers(np.stack([u, v, np.full(3, huge)]))
    assert network.conserved.shape == (2, 3)
    unit, far = np.sqrt(v**2 - u**2), np.array([0.7, 5.0, 40.0])
    moved = (np.arcsinh(far / unit) - np.arcsinh(u / unit)) / huge
    w = np.asarray(network.growth_times) - np.stack([moved, -moved])
    x = network.model(jnp.asarray(w), jnp.asarray(0.0))
    np.testing.assert_allclose(x, far * np.sqrt(far**2 + unit**2) * huge, rtol=1e-12)


# --- flow ---------------------------------------------------------------------------------------


def _by_weights(weights, eps):
    """`x` at the times `S` by SciPy on the weights."""
    L = len(weights)
    size = eps ** (2 / L - 1)

    def field(s, state):
        u = state.reshape(weights.shape)
        g = X.T @ (X @ np.prod(u, axis=0) - Y)
        others = np.stack([np.prod(np.delete(u, i, axis=0), axis=0) for i in range(L)])
        return (-size * g * others).ravel()

    start = (weights * eps ** (1 / L)).ravel()
    run = solve_ivp(field, (0, S[-1]), start, "DOP853", S, rtol=1e-13, atol=1e-16)
    return np.prod(run.y.reshape(*weights.shape, -1), axis=0).T


@pytest.mark.parametrize("layers", [3, 5])
def test_against_the_weights(layers):
    weights, eps = _shape(layers), 1e-3
    truth = _by_weights(weights, eps)
    network, problem = dln.Layers(weights), dln.LeastSquares(X, Y)
    flow = dln.gradient_flow(network, problem, S, eps=eps, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(flow.x, truth, atol=1e-10 * abs(truth).max())


def _weighted(weights):
    """The least weighted 1-norm, by HiGHS."""
    times = np.asarray(dln.Layers(weights).growth_times)
    found = linprog(times.ravel(), A_eq=np.hstack([X, -X]), b_eq=Y).x
    return found[:D] - found[D:]


def test_the_limit_ends_where_the_weighted_norm_is_least():
    @jax.jit
    @jax.vmap
    def ends(weights):
        network, problem = dln.Layers(weights), dln.LeastSquares(X, Y)
        limit = dln.limit_flow(network, problem, throw=False)
        return limit.slopes[-1], dln.limit_point(network, problem, throw=False).x

    shapes = np.stack([_shape(3, seed=seed) for seed in range(8)])
    want = [_weighted(weights) for weights in shapes]
    for found in ends(shapes):
        np.testing.assert_allclose(found, want, atol=1e-12)


def test_distance_to_the_limit_as_eps_vanishes():
    weights = _shape(4)
    network, problem = dln.Layers(weights), dln.LeastSquares(X, Y)
    log_eps = -np.log(10) * np.array([6.0, 7, 8, 9, 10, 30, 860])
    s = np.array([1.0, 1e3])
    run = lambda e: dln.gradient_flow(network, problem, s, log_eps=e, throw=False)
    flow = jax.jit(jax.vmap(run))(log_eps)
    assert np.all(np.asarray(flow.result == dln.RESULTS.successful))
    error = abs(np.asarray(flow.x)[:, -1] - _weighted(weights)).max(axis=1)
    slope, _ = np.polyfit(log_eps[:5], np.log(error[:5]), 1)
    assert abs(slope - 1) < 0.05
    # Inactive coordinates are of size ε; what is left are the tolerances of the steps.
    assert error[5:].max() < 1e-11
    limit = dln.limit_flow(network, problem)
    # The smallest ε that acts, and the tolerances.
    np.testing.assert_allclose(flow.x_mean[5:], np.stack([limit.x_mean(s)] * 2), atol=1e-7)
    assert flow.stats["num_steps"].max() < 2 * flow.stats["num_steps"].min()


def test_derivatives_and_bad_lanes():
    # By reverse mode in the data, in the shape and in log ε, against differences of order 4. One
    # program, with lanes that must fail beside.
    def value(arguments, decay):
        X, y, weights, log_eps = arguments
        problem = dln.LeastSquares(X, y, decay)
        flow = dln.gradient_flow(
            dln.Layers(weights), problem, S, log_eps=log_eps, rtol=1e-10, atol=1e-11, throw=False
        )
        return jnp.sum(flow.x**2), flow.result

    run = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))
    center = (X, Y, _shape(3), np.array(-9.0))
    rng, h = np.random.default_rng(2), 3e-4
    directions = [rng.normal(size=v.shape) for v in center]
    lanes: list = [center] * 3
    decay = np.zeros(3 + 16)
    for i, direction in enumerate(directions):
        for k in (1, -1, 2, -2):
            lanes.append(
                tuple(v + k * h * direction if j == i else v for j, v in enumerate(center))
            )
    degenerate = _shape(3)
    degenerate[0, 1] = -degenerate[1, 1]
    degenerate[2, 1] = 9
    lanes[1], decay[2] = (X, Y, degenerate, center[3]), 0.1
    (values, result), gradient = run(tuple(map(np.stack, zip(*lanes, strict=True))), decay)

    names = [dln.RESULTS.successful, dln.RESULTS.invalid_shape, dln.RESULTS.invalid_decay]
    assert [bool(np.asarray(result == name)[i]) for i, name in enumerate(names)] == [True] * 3
    assert np.isfinite(values[0]) and np.isnan(values[1:3]).all()
    assert all((g[1:3] == 0).all() for g in gradient)
    values = np.asarray(values)[3:].reshape(4, 4)
    want = (8 * (values[:, 0] - values[:, 1]) - (values[:, 2] - values[:, 3])) / (12 * h)
    found = [np.sum(g[0] * v) for g, v in zip(gradient, directions, strict=True)]
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_second_derivatives_of_the_model():
    # In `w` and the shape, in the panels and beyond, against differences of order 4.
    weights, e = _shape(4, d=2), np.random.default_rng(3).normal(size=(4, 2))
    total = dln.Layers(weights).growth_times.sum(axis=0)
    share = np.array([[0.6, 1e-4], [0.4, 1 - 1e-4]])
    w = np.asarray(total) * share
    of_w = w * np.array([[0.1], [-0.2]])

    @jax.jit
    def along(weights, w):
        model = lambda weights, w: dln.Layers(weights).model(w, jnp.asarray(0.0))
        slope = lambda *at: jax.jvp(model, at, (e, of_w))[1]
        return jax.jvp(slope, (weights, w), (e, of_w))

    _, second = along(weights, w)
    h = 1e-4
    at = {k: along(weights + k * h * e, w + k * h * of_w)[0] for k in (-2, -1, 1, 2)}
    want = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * h)
    np.testing.assert_allclose(second, want, rtol=1e-6)


def test_training():
    network, problem, eps = dln.Layers(_shape(3)), dln.LeastSquares(X, Y), 1e-2
    key, rule = jax.random.key(0), optax.sgd(5e-3)
    run = dln.train(network, problem, rule, eps=eps, steps=4000, key=key)
    flow = dln.gradient_flow(network, problem, 20 * eps ** (1 / 3) * np.ones(1), eps=eps)
    # Explicit Euler steps, of first order: half as long ones are half as far off.
    np.testing.assert_allclose(run.x[-1], flow.x[0], atol=2e-3)


# --- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "equal": (
        lambda: dln.Layers(np.array([[1.0, 0.5], [-2.0, 3], [2.0, -0.5]])),
        "|weights[0, 1]| = |weights[2, 1]| = 0.5 are the smallest layers",
    ),
    "two": (lambda: dln.Layers(np.ones((2, 3))), "at least 3 layers, got 2. Use `UV(u, v)`"),
    "one": (lambda: dln.Layers(np.ones((1, 3))), "at least 3 layers, got 1. Use `Linear(u)`"),
    "vector": (lambda: dln.Layers(np.ones(3)), "shape (L, d), got (3,)"),
    "NaN": (lambda: dln.Layers(_shape(3) * np.nan), "`weights[0, 0]` is nan"),
    "decay": (
        lambda: dln.gradient_flow(
            dln.Layers(_shape(3)), dln.LeastSquares(X, Y, 0.1), S, eps=0.1
        ),
        "A network of 3 layers takes no weight decay, got 0.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_end_at_one_eps_is_not_known():
    with pytest.raises(TypeError, match="in the limit `ε → 0` only. Use `limit_point`"):
        dln.end_point(dln.Layers(_shape(3)), dln.LeastSquares(X, Y), eps=1e-3)


# --- networks with a `model` ---------------------------------------------------------------------


class Model(dln.AbstractDualNetwork):
    """`UV` with its `x` as one function: `x = 2 √(q⁺q⁻) sinh(…)`."""

    u: jax.Array
    v: jax.Array
    positive: ClassVar[bool] = False

    def __call__(self):
        return self.u * self.v

    def initial(self, log_eps):
        scale = jnp.exp(log_eps / 2)
        return Model(scale * self.u, scale * self.v)

    def time_scale(self, log_eps):
        return -log_eps / 2

    def penalty(self, weight_decay):
        return weight_decay / 2 * (jnp.sum(self.u**2) + jnp.sum(self.v**2))

    def initial_dual(self, log_eps):
        return dln.UV(self.u, self.v).initial_dual(log_eps)

    def model(self, w, log_eps):
        return 2 * jnp.exp(log_eps * (w[0] + w[1]) / 2) * jnp.sinh(log_eps * (w[0] - w[1]) / 2)


class Sixth(dln.AbstractDualNetwork):
    """`x = u⁶`, by a `model` with a pole at `w = 0`, and NaN beyond."""

    u: jax.Array
    positive: ClassVar[bool] = True

    def __call__(self):
        return self.u**6

    def initial(self, log_eps):
        return eqx.tree_at(lambda net: net.u, self, self.u * jnp.exp(log_eps / 6))

    def time_scale(self, log_eps):
        return jnp.exp(-2 * log_eps / 3) / 24

    def penalty(self, weight_decay):
        return jnp.where(weight_decay == 0, 0.0, jnp.nan)

    def model(self, w, log_eps):
        return jnp.exp(log_eps) * w[0] ** -1.5

    def initial_dual(self, log_eps):
        return self.u[None] ** -4


ONES = jnp.asarray([1.0, 0.8, 1.3])
MODELS = {
    "Layers": dln.Layers(jnp.stack([0.3 * ONES, -ONES, 0.9 + ONES])),
    "Model": Model(ONES, 0.2 * ONES[::-1]),
    "Sixth": Sixth(ONES),
}


@pytest.mark.parametrize("name", MODELS)
def test_check_network_knows_models(name):
    dln.check_network(MODELS[name])


def test_check_network_finds_a_wrong_model():
    class Twice(Model):
        def initial(self, log_eps):
            return Twice(*jax.tree.leaves(Model.initial(self, log_eps)))

        def model(self, w, log_eps):
            return 2 * Model.model(self, w, log_eps)

    class Folded(Twice):
        def initial(self, log_eps):
            return Folded(*jax.tree.leaves(Model.initial(self, log_eps)))

        def model(self, w, log_eps):
            return jnp.abs(Model.model(self, w, log_eps))

    with pytest.raises(ValueError, match="`model.initial_dual.* must be the initialisation"):
        dln.check_network(Twice(ONES, 0.2 * ONES))
    with pytest.raises(ValueError, match="`model` must increase"):
        dln.check_network(Folded(ONES, 0.2 * ONES))
    with pytest.raises(TypeError, match="has no `link`. Define it, or `model`"):
        MODELS["Layers"].link(jnp.ones((2, 3)), jnp.asarray(-1.0))
