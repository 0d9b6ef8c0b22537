"""Flows with momentum, against the second-order equation of the weights solved by SciPy."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit

import dlnjax as dln
from dlnjax._results import names_of

D, S, INERTIA = 4, np.linspace(0.25, 4, 16), 0.05
X = 0.6 * np.random.default_rng(7).normal(size=(3, D))
y = np.array([1.0, -0.7, 0.4])
LABELS = np.array([1.0, -1.0, 1.0])
# Of each network: how t/s depends on log(1/ε), x of the weights, and dx/d(weights).
KINDS = {
    "UV": (dln.UV, 2, lambda u, v: u * v, lambda u, v: (v, u)),
    "USquared": (dln.USquared, 4, lambda u: u**2, lambda u: (2 * u,)),
    "Deep": (dln.Deep, 4, lambda u, v: u**2 - v**2, lambda u, v: (2 * u, -2 * v)),
}
SHAPES = {
    "UV": (np.array([1.0, 0.8, 1.2, 0.9]), np.array([0.1, -0.2, 0.0, 0.3])),
    "USquared": (np.array([1.0, -0.8, 1.2, 0.9]),),
    "Deep": (np.array([1.0, 0.8, 1.2, 0.9]), np.array([0.8, 1.0, 1.1, 0.9])),
}
SMALL, TINY = math.log(1e-2), math.log(1e-6)
# log ε, weight decay and inertia of each lane.
LANES = [(SMALL, 0, INERTIA), (TINY, 0, INERTIA), (TINY, 0.1, INERTIA), (TINY, 0, 0.02)]


def network_of(kind):
    return KINDS[kind][0](*SHAPES[kind], **({"depth": 2} if kind == "Deep" else {}))


def field(kind, gradient, decay, inertia):
    """The equation of the weights, their velocities and `∫x`, in `t`."""
    _, _, x, slopes = KINDS[kind]
    k = len(SHAPES[kind]) * D

    def field(t, state):
        weights, velocity = state[:k], state[k : 2 * k]
        parts = weights.reshape(-1, D)
        g = gradient(x(*parts))
        # The penalty is λ/2 ‖·‖² for `UV`, λ‖·‖² for the others.
        force = np.concatenate([g * s for s in slopes(*parts)])
        force += (decay if kind == "UV" else 2 * decay) * weights
        return np.concatenate([velocity, -(force + velocity) / inertia, x(*parts)])

    return field


def weights(kind, gradient, log_eps, decay, inertia, s=S, events=None):
    _, scale, x, _ = KINDS[kind]
    start = math.exp(log_eps / 2) * np.concatenate(SHAPES[kind])
    t = -s * log_eps / scale
    return solve_ivp(
        field(kind, gradient, decay, inertia),
        (0, t[-1]),
        np.concatenate([start, np.zeros(len(start) + D)]),
        method="DOP853",
        t_eval=t,
        rtol=1e-12,
        atol=1e-16,
        events=events,
    )


def square(x):
    return X.T @ (X @ x - y)


def logistic(x):
    return -X.T @ (LABELS * expit(-LABELS * (X @ x)))


@eqx.filter_jit
def _flows(kind, loss, log_eps, decay, inertia, s):
    """Four flows: one program for each kind and loss."""

    def flow(log_eps, decay, inertia, s):
        made = dln.Logistic(X, LABELS, decay) if loss is logistic else dln.LeastSquares(X, y, decay)
        form = dln.MomentumForm(inertia)
        return dln.gradient_flow(network_of(kind), made, s, log_eps=log_eps, formulation=form)

    return jax.vmap(flow)(log_eps, decay, inertia, s)


def flows(kind, loss, lanes, s=None):
    log_eps, decay, inertia = np.array(lanes, float).T
    s = np.tile(S, (4, 1)) if s is None else s
    return _flows(kind, loss, *map(jnp.asarray, (log_eps, decay, inertia, s)))


@pytest.mark.parametrize(
    ("kind", "loss"), [("UV", square), ("USquared", square), ("Deep", logistic)]
)
def test_follows_the_weights(kind, loss):
    found = flows(kind, loss, LANES)
    _, scale, x, _ = KINDS[kind]
    for i, lane in enumerate(LANES):
        truth = weights(kind, loss, *lane)
        k = len(SHAPES[kind]) * D
        # Steps at rtol = 1e-8: measured at most 6e-9, of an x of about 1.
        want = x(*truth.y[:k].reshape(-1, D, len(S)))
        np.testing.assert_allclose(found.x[i].T, want, atol=3e-8)
        time = -lane[0] / scale
        np.testing.assert_allclose(found.z[i].T, truth.y[2 * k :] / time, atol=3e-8)
        np.testing.assert_allclose(found.x_mean[i], found.z[i] / S[:, None], rtol=1e-12)
    if loss is square:
        np.testing.assert_allclose(found.dual[0], S[:, None] * (y @ X) - found.z[0] @ X.T @ X)


def test_a_weight_that_passes_through_0_ends_the_flow():
    """SciPy says when: before that the flow is right, after it the result has the cause."""
    inertia = 1.0
    assert 4 * inertia * np.abs(square(np.zeros(D))).max() > 1
    # p₋ = (u − v)/2 or p₊ passes through 0 where |u| = |v|.
    crossing: Any = lambda t, state: np.min(np.abs(state[:D]) - np.abs(state[D : 2 * D]))
    crossing.terminal = True
    truth = weights("UV", square, SMALL, 0.0, inertia, S, crossing)
    end = truth.t_events[0][0] / (-SMALL / 2)
    assert 0.2 < end < 2
    shares = np.linspace(0.1, 1, 16)
    s = np.stack([shares * end * last for last in (0.999, 1.001)] + [S, S])
    # At log ε = −2000 too; with the last one all is well.
    lanes = [(SMALL, 0, inertia)] * 2 + [(-2000.0, 0, inertia), (-2000.0, 0, INERTIA)]
    found = flows("UV", square, lanes, s)
    want = ["successful", "momentum_oscillates", "momentum_oscillates", "successful"]
    assert names_of(found.result).tolist() == want
    assert np.isnan(found.x).all(axis=(1, 2)).tolist() == [False, True, True, False]
    truth = weights("UV", square, SMALL, 0.0, inertia, s[0])
    np.testing.assert_allclose(found.x[0].T, truth.y[:D] * truth.y[D : 2 * D], atol=3e-8)
    # As ε → 0 the plateaus are those without momentum: the loss on the active coordinates rests.
    limit = dln.limit_flow(network_of("UV"), dln.LeastSquares(X, y))
    np.testing.assert_allclose(found.x[3, -1], limit.plateau(S[-1]), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_first_jump(kind):
    """`1/ψ(a)` is the root of `m c f² + f = a`; the flow's jump tends to it as `1/log(1/ε)`."""
    form, decay, network = dln.MomentumForm(INERTIA), 0.1, network_of(kind)
    problem = dln.LeastSquares(X, y, decay)
    r = y @ X
    a = (np.max(r) if kind == "USquared" else np.max(np.abs(r))) - decay
    c = 1 if kind == "UV" else 2
    roots = np.roots([INERTIA * c, 1, -a])
    jump = form.first_jump(network, problem)
    np.testing.assert_allclose(jump, 1 / np.max(roots), rtol=1e-14)
    traced = jax.jit(lambda p: form.first_jump(network, p))(problem)
    np.testing.assert_allclose(traced, jump, rtol=1e-14)
    if kind != "UV":
        return
    off = []
    for log_eps in (-200.0, -2000.0):
        # From q(0) = ε/4, to a level of x near its plateau.
        args = (dln.UV(np.ones(D), np.zeros(D)), problem, 2.0, 0.3)
        found = dln.crossing_times(*args, log_eps=log_eps, formulation=form)
        off.append(float(found.s[0] / jump) - 1)
    # Later, by C/log(1/ε): ten times closer, up to the next order.
    assert 0 < off[1] < 2e-3 and 8 < off[0] / off[1] < 12
    without = float(dln.limit_flow(network, problem).jumps[0])
    assert jump > 1.03 * without


def test_first_jump_where_there_is_none():
    network, form = dln.USquared(np.ones(2)), dln.MomentumForm(0.1)
    assert form.first_jump(network, dln.LeastSquares(np.eye(2), -np.ones(2))) == np.inf
    pretrained = dln.Pretrained(network, np.array([1.0, 0.0]))
    assert form.first_jump(pretrained, dln.LeastSquares(np.eye(2), np.ones(2))) == 0
    with pytest.raises(ValueError, match="4 m c a is -1.6 for some.*inertia of at most 0.125"):
        dln.MomentumForm(0.2).first_jump(network, dln.LeastSquares(np.eye(2), -np.ones(2)))
    problem = dln.LeastSquares(np.eye(2), -np.ones(2))
    jump = jax.jit(lambda m: dln.MomentumForm(m).first_jump(network, problem))
    assert np.isnan(jump(0.2)) and np.isinf(jump(0.1)) and np.isnan(jump(np.nan))


def test_derivatives():
    def total(inertia, scale):
        form, network = dln.MomentumForm(inertia), dln.UV(*SHAPES["UV"])
        problem = dln.LeastSquares(X, scale * y)
        flow = dln.gradient_flow(network, problem, S[-1:], log_eps=-9.0, formulation=form)
        return jnp.sum(flow.x_mean**2)

    reverse = jax.jit(jax.value_and_grad(total, (0, 1)))
    at = lambda a, b: float(reverse(INERTIA + a, 1.0 + b)[0])
    h = 1e-4
    want = [(at(h, 0) - at(-h, 0)) / (2 * h), (at(0, h) - at(0, -h)) / (2 * h)]
    _, got = reverse(INERTIA, 1.0)
    # Central differences: h², and the error of the flow over h.
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bad_inertia_and_networks():
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="`inertia` must be positive and finite"):
            dln.MomentumForm(bad)
    with pytest.raises(ValueError, match="`inertia` must be a scalar"):
        dln.MomentumForm(np.ones(2))
    problem = dln.LeastSquares(np.eye(2), np.ones(2))
    networks = {
        "`Deep` at a depth above 2": dln.Deep(np.ones(2), np.ones(2), depth=3),
        "`Layers`": dln.Layers(np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])),
        "`Linear`": dln.Linear(np.ones(2)),
    }
    for name, network in networks.items():
        with pytest.raises(TypeError, match=f"Momentum is known at depth 2.*got {name}"):
            args = (network, problem, np.ones(1))
            dln.gradient_flow(*args, eps=0.1, formulation=dln.MomentumForm(0.1))
    found = flows("UV", square, [*LANES[:2], (SMALL, 0, np.nan), (SMALL, 0, -1)])
    want = ["successful", "successful", "invalid_inertia", "invalid_inertia"]
    assert names_of(found.result).tolist() == want
    assert np.isnan(found.x).all(axis=(1, 2)).tolist() == [False, False, True, True]
