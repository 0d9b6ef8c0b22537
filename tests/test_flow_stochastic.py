"""Stochastic gradient flow, against the weights on the same Brownian path, in NumPy."""

import functools
import math
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import root

import dlnjax as dln
from dlnjax._results import names_of

N, D, LANES, TIMES = 3, 5, 8, 6
rng = np.random.default_rng(0)
# Rows of norms 1.3, 1.2, 1.1, orthogonal: all modes of the residual decay at similar rates.
X = np.linalg.qr(rng.normal(size=(D, N)))[0].T * np.array([[1.3], [1.2], [1.1]])
y = X @ np.array([0.8, -0.5, 0.3, 0.0, 0.0]) + np.array([0.0, 0.1, -0.1])
END, LOG_EPS = 6.0, math.log(0.01)
S = np.linspace(END / TIMES, END, TIMES)
SHAPES = {"UV": (np.full(D, 1.1), np.full(D, 0.2)), "USquared": (np.full(D, 0.9),)}
FINE = TIMES * 2**12  # steps of the weights
COARSE, MIDDLE = 96, 3072  # steps of the flow
GOOD = dict(step_size=0.4, label_noise=0.0, decay=0.0, log_eps=LOG_EPS)


@eqx.filter_jit
def _flows(kind, steps, keys, s, step_size, label_noise, decay, log_eps):
    """Eight flows: one program for each kind and number of steps."""

    def flow(key, s, step_size, label_noise, decay, log_eps):
        network = getattr(dln, kind)(*SHAPES[kind])
        problem = dln.LeastSquares(X, y, decay)
        how = dict(step_size=step_size, label_noise=label_noise, log_eps=log_eps, steps=steps)
        return dln.stochastic_flow(network, problem, s, key=key, **how)

    return jax.vmap(flow)(keys, s, step_size, label_noise, decay, log_eps)


KEYS = jax.random.split(jax.random.key(1), LANES)


def flows(kind, steps, s=S, keys=KEYS, **changes):
    s = np.broadcast_to(s, (LANES, TIMES))
    lanes = {name: np.broadcast_to(v, LANES) for name, v in (GOOD | changes).items()}
    return _flows(kind, steps, keys, *map(jnp.asarray, (s, *lanes.values())))


@functools.cache
def paths():
    """`B` on the fine grid, in units of `s`, as the docstring says that it is drawn."""
    path = lambda key: diffrax.VirtualBrownianTree(0.0, END, END / 2**22, (N,), key).evaluate
    times = jnp.linspace(0, END, FINE + 1)
    return np.asarray(jax.jit(jax.vmap(lambda key: jax.vmap(path(key))(times)))(KEYS))


@functools.cache
def weights(kind, step_size, label_noise=0.0, decay=0.0):
    """Euler and Maruyama on the equation of the weights, in `t`: `x`, and the last weights."""
    scale = -LOG_EPS / (2 if kind == "UV" else 4)
    shape = SHAPES[kind]
    if kind == "UV":  # p± = (u ± v)/2, c = 1
        start, signs, c = np.stack([shape[0] + shape[1], shape[0] - shape[1]]) / 2, [1, -1], 1
    else:
        start, signs, c = np.stack(shape), [1], 2
    sign = np.array(signs)[:, None, None]
    p = math.exp(LOG_EPS / 2) * np.repeat(start[:, None], LANES, axis=1)
    dB, dt, found = np.diff(paths(), axis=1) * math.sqrt(scale), scale * END / FINE, []
    for k in range(FINE):
        residual = np.sum(sign * p**2, axis=0) @ X.T - y
        size = np.sqrt(step_size * (np.sum(residual**2, axis=1) + N * label_noise**2))
        force = size[:, None] * (dB[:, k] @ X) - residual @ X * dt
        p = p * (1 + c * (sign * force - decay * dt))
        if (k + 1) % (FINE // TIMES) == 0:
            found.append(np.sum(sign * p**2, axis=0))
    return np.stack(found, axis=1), p


def rms(a):
    return float(np.sqrt(np.mean(np.asarray(a) ** 2)))


def test_strong_order():
    x, p = weights("UV", 0.4)
    coarse, middle = flows("UV", COARSE), flows("UV", MIDDLE)
    error = [rms(flow.x - x) for flow in (coarse, middle)]
    # Order ½. (Measured: 5.2e-3 and 1.0e-3, of which some 4e-4 are those of the weights.)
    assert error[0] < 0.02 * rms(x)
    assert abs(math.log(error[0] / error[1], MIDDLE / COARSE) - 0.5) < 0.1
    # α_∞ from p₊p₋, which only the noise changes: to the errors of the two discretisations.
    shrunk = np.log(p[0] * p[1]) - np.log((1.1**2 - 0.2**2) / 4)
    assert np.min(shrunk - LOG_EPS) < -0.3
    assert rms(middle.effective_log_eps[:, -1] - shrunk) < 0.02


@pytest.mark.parametrize("kind", ["UV", "USquared"])
def test_label_noise_and_weight_decay(kind):
    x, _ = weights(kind, 0.05, 0.2, 0.1)
    flow = flows(kind, MIDDLE, step_size=0.05, label_noise=0.2, decay=0.1)
    assert rms(flow.x - x) < 2e-3 < 0.02 * rms(x)


def test_without_noise_it_is_gradient_flow():
    network, problem = dln.UV(*SHAPES["UV"]), dln.LeastSquares(X, y)
    exact = dln.gradient_flow(network, problem, S, log_eps=LOG_EPS)
    error = []
    for steps in (COARSE, MIDDLE):
        flow = flows("UV", steps, step_size=0.0)
        error.append(rms(flow.x - exact.x[None]) + rms(flow.x_mean - exact.x_mean[None]))
        np.testing.assert_array_equal(flow.effective_log_eps, LOG_EPS)
        # The dual is in rows, the average by quadrature: z is that of the dual to the steps.
        want = (S[:, None] * (y @ X))[None] - flow.z @ X.T @ X
        np.testing.assert_allclose(flow.dual, want, atol=1e-12)
    # Heun's method: order 2.
    assert error[0] < 1e-3 and abs(math.log(error[0] / error[1], MIDDLE / COARSE) - 2) < 0.1


def model(nu, square):
    """`x` at the dual `Xᵀν`, from weights of the squares `square` times those of the shape."""
    return square * (0.65**2 * np.exp(nu @ X) - 0.45**2 * np.exp(-nu @ X))


def test_the_end_minimises_the_potential_of_the_effective_initialisation():
    flow = flows("UV", MIDDLE, s=np.linspace(1, 120, TIMES))
    assert names_of(flow.result).tolist() == ["successful"] * LANES
    for x, log_alpha, dual in zip(
        flow.x[:, -1], flow.effective_log_eps[:, -1], flow.dual[:, -1], strict=True
    ):
        # x = α_∞² (a₊² e^η − a₋² e^{−η}) with η in the range of Xᵀ, and Xx = y: by SciPy.
        square = np.exp(np.asarray(log_alpha))
        start = np.linalg.lstsq(X.T, -LOG_EPS * np.asarray(dual))[0]
        found = root(lambda nu, q=square: X @ model(nu, q) - y, start, tol=1e-13)
        # What is left of the residual at s = 120, and rounding.
        np.testing.assert_allclose(x, model(found.x, square), atol=1e-9)
        exponents = (log_alpha / LOG_EPS, log_alpha / LOG_EPS)
        network = dln.Pretrained(dln.UV(*SHAPES["UV"]), exponents=exponents)
        end = dln.end_point(network, dln.LeastSquares(X, y), log_eps=LOG_EPS).x
        np.testing.assert_allclose(end, model(found.x, square), atol=1e-9)


def test_first_jump_as_eps_goes_to_0():
    """Noise vanishes then, and its drift does not: `dw/ds = −|r| + γ diag(XᵀX) ‖y‖²/2`."""
    r, M, step_size = np.abs(y @ X), np.sum(X**2, axis=0), np.linspace(0, 0.6, LANES)
    speed = np.max(r[:, None] - M[:, None] * step_size * (y @ y) / 2, axis=0)
    jump = 1 / speed
    assert jump[-1] > 1.2 * jump[0]
    # w is within O(1/√log(1/ε)) of the limit, about 0.04 here: x is small before, large after.
    s = jump[:, None] * np.array([0.1, 0.3, 0.5, 0.7, 0.9, 1.1])
    flow = flows("UV", MIDDLE, s=s, step_size=step_size, log_eps=-500.0)
    assert names_of(flow.result).tolist() == ["successful"] * LANES
    top = np.max(np.abs(flow.x), axis=2)
    assert np.all(top[:, 4] < 1e-6) and np.all(top[:, 5] > 0.5)


def test_bad_lanes():
    changes: dict[str, Any] = dict(
        step_size=[0.1, -0.1, np.nan, 0.1, 0.1, 0.1, 0.1, 0.1],
        label_noise=[0, 0, 0, -1.0, 0, 0, 0, 0],
        log_eps=[LOG_EPS, LOG_EPS, LOG_EPS, LOG_EPS, 1.0, LOG_EPS, LOG_EPS, LOG_EPS],
        decay=[0, 0, 0, 0, 0, -1.0, 0, 0],
    )
    s = np.tile(S, (LANES, 1))
    s[6] = s[6, ::-1]
    s[7] *= 1e3
    flow = flows("UV", MIDDLE, s=s, **changes)
    want = ["successful", *["invalid_training"] * 3, "invalid_eps", "invalid_decay"]
    assert names_of(flow.result).tolist() == [*want, "invalid_grid", "steps_too_long"]
    for v in (flow.x, flow.x_mean, flow.z, flow.dual, flow.effective_log_eps):
        assert np.isnan(v).all(axis=(1, 2)).tolist() == [False] + [True] * 7


def test_derivatives():
    # Without noise too, where that has a square root of 0.
    @jax.jit
    @jax.value_and_grad
    def total(scale, step_size):
        network, problem = dln.UV(*SHAPES["UV"]), dln.LeastSquares(X, scale * y)
        how: dict[str, Any] = dict(key=KEYS[0], log_eps=scale * LOG_EPS, steps=COARSE)
        size = scale * step_size
        flow = dln.stochastic_flow(network, problem, S[-1:], step_size=size, **how)
        return jnp.sum(flow.x_mean**2)

    h = 1e-5
    for step_size in (0.1, 0.0):
        want = (total(1 + h, step_size)[0] - total(1 - h, step_size)[0]) / (2 * h)
        np.testing.assert_allclose(total(1.0, step_size)[1], want, rtol=1e-7)


REFUSED = {
    "depth": (dict(network=dln.Deep(np.ones(2), np.ones(2), depth=3)), "above 2"),
    "Quadratic": (dict(problem=dln.Quadratic(np.eye(2), np.ones(2))), "noise of the rows of `Lea"),
    "loss": (dict(problem=dln.Logistic(np.eye(2), np.ones(2))), "The square of `LeastSquares` is"),
    "key": (dict(key=None), "`stochastic_flow` needs randomness: pass `key=jax.random.key(0)`"),
    "keys": (dict(key=KEYS), "`key` must be one key, got a batch of shape (8,)"),
    "step_size": (dict(step_size=-1.0), "`step_size` must be finite and non-negative, got -1.0"),
    "noise": (dict(label_noise=np.nan), "`label_noise` must be finite and non-negative, got nan"),
    "steps": (dict(steps=2**20 + 1), "`steps` must be at most 1048576, got 1048577"),
    "no steps": (dict(steps=0), "`steps` must be at least 1, got 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, as_users_run_it):
    options, message = REFUSED[name]
    inputs = dict(
        network=dln.UV(np.ones(2), np.zeros(2)),
        problem=dln.LeastSquares(np.eye(2), np.ones(2)),
        s=np.array([1.0]),
        key=KEYS[0],
        step_size=0.1,
        eps=0.1,
    )
    with pytest.raises((TypeError, ValueError)) as error:
        dln.stochastic_flow(**(inputs | options))
    assert message in str(error.value)


def test_too_few_steps_raise():
    problem, s = dln.LeastSquares(X, y), np.array([1e4])
    network = dln.UV(*SHAPES["UV"])
    with pytest.raises(eqx.EquinoxRuntimeError, match="steps_too_long.*as many times more `steps"):
        dln.stochastic_flow(network, problem, s, key=KEYS[0], step_size=0.1, eps=0.1, steps=100)
