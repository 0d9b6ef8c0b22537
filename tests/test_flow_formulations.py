"""The two formulations: their fields agree, and networks of one's own have one or both."""

import functools
import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import DECAYS, EVERY_KIND, KINDS, TIMES, D, make_batch
from jaxtyping import Array, Float

import dlnjax as dln
from dlnjax._flow.terms.weights import WeightTerm


@EVERY_KIND
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("eps", [1e-1, 1e-5])
def test_the_weight_field_is_the_dual_field(kind, decay, eps):
    # dq/ds = φ'(w) dw/ds = L q (±(r − Mx) − λ), at any weights. For UV this is also the
    # conservation of u² − v², which decays at the rate λL.
    weights = [jnp.asarray(w[0]) for w in make_batch(kind, "rows").weights]
    X, y = (a[0] for a in make_batch(kind, "rows").data)
    network, problem = KINDS[kind](*weights), dln.LeastSquares(X, y, decay)
    L = -math.log(eps)

    def q(network):
        if kind == "USquared":
            return network.u[None, :] ** 2
        return jnp.stack([network.u + network.v, network.u - network.v]) ** 2 / 4

    term = WeightTerm(network, problem, jnp.asarray(-L))
    start, z = term.initial()
    velocity, x = term.vf(jnp.asarray(0.0), (network, z), None)
    assert eqx.tree_equal(start, network.initial(jnp.asarray(-L)))
    g = y @ X - X.T @ X @ np.asarray(term.zeta * x)
    sides = g[None, :] if kind == "USquared" else np.stack([g, -g])
    _, speed = jax.jvp(q, (network,), (velocity,))
    np.testing.assert_allclose(speed, L * np.asarray(q(network)) * (sides - decay), rtol=1e-12)
    if kind == "UV":
        u, v = weights
        difference = 2 * (u * velocity.u - v * velocity.v)
        np.testing.assert_allclose(difference, -decay * L * (u**2 - v**2), atol=1e-12)


class Cubic(dln.AbstractDualNetwork):
    """`x = u³`, `u > 0`: depth 3, with the link of DESIGN §2."""

    u: Float[Array, " d"]
    on_trace: Callable[[], None] = eqx.field(static=True, default=lambda: None)
    positive: ClassVar[bool] = True

    def __call__(self):
        return self.u**3

    def initial(self, log_eps):
        return Cubic(self.u * jnp.exp(log_eps / 3))

    def time_scale(self, log_eps):
        return jnp.exp(-log_eps / 3) / 3

    def penalty(self, weight_decay):
        return 0 * weight_decay

    def link(self, w, log_eps):
        self.on_trace()
        return jnp.exp(log_eps) / w**3

    def initial_dual(self, log_eps):
        return (1 / self.u)[None, :]


class Product(dln.AbstractNetwork):
    """`x = u∘v∘w`, three layers; balanced, its flow is that of `Cubic`, three times as slow."""

    layers: Float[Array, "3 d"]
    positive: ClassVar[bool] = False

    def __call__(self):
        return jnp.prod(self.layers, axis=0)

    def initial(self, log_eps):
        return Product(self.layers * jnp.exp(log_eps / 3))

    def time_scale(self, log_eps):
        return jnp.exp(-log_eps / 3)

    def penalty(self, weight_decay):
        return 0 * weight_decay


def test_networks_of_the_user():
    rng = np.random.default_rng(2)
    X, y = jnp.asarray(rng.normal(size=(3, D))), jnp.asarray(rng.normal(size=3))
    u = jnp.asarray(rng.uniform(0.5, 1.5, D))
    traces = []
    cubic = Cubic(u, lambda: traces.append(1))
    product = Product(jnp.stack([u, u, u]))
    solve = functools.partial(dln.gradient_flow, s=TIMES, throw=True)
    problem = dln.LeastSquares(X, y)
    dual = solve(cubic, problem, eps=1e-2)
    weight = solve(product, problem, eps=1e-2, formulation=dln.WeightForm())
    assert np.abs(dual.x_mean - weight.x_mean).max() < 1e-6
    assert np.max(dual.x) > 0.5

    # Other values, the same shapes: nothing is traced again.
    count = len(traces)
    assert count > 0
    other = dln.LeastSquares(2 * X, y + 1)
    faster = eqx.tree_at(lambda net: net.u, cubic, 1.1 * u)
    solve(faster, other, s=TIMES + 0.1, log_eps=-3.0, rtol=1e-5, atol=1e-4)
    assert len(traces) == count


def test_the_dual_form_needs_a_dual_network():
    problem = dln.LeastSquares(np.eye(D), np.ones(D))
    with pytest.raises(TypeError, match="`Product` has no dual form.*dln.WeightForm()"):
        dln.gradient_flow(Product(jnp.ones((3, D))), problem, TIMES, eps=1e-2)
