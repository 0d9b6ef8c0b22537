"""Some coordinates of depth 1 beside those of a diagonal linear network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import dlnjax as dln
from dlnjax._results import names_of
from dlnjax.networks import MixedDepth

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(3, 5)), RNG.normal(size=3)
U, V, BIAS = np.array([1.0, 0.8, 1.2]), np.array([0.0, 0.3, 0.1]), np.array([0.5, -1.0])
EPS, S = 1e-4, np.array([0.2, 1.0, 5.0])


def _network(u=U, bias=BIAS):
    return MixedDepth(dln.Linear(bias), dln.UV(u, V))


def _scipy(X, y, u, eps):
    """`x` and its average, by SciPy on the weights `(b, u, v)`, in the time `s`."""
    scale = -np.log(eps) / 2

    def field(_, state):
        b, u, v = state[:2], state[2:5], state[5:8]
        x = np.concatenate([b, u * v])
        g = X.T @ (y - X @ x)
        moved = np.concatenate([g[:2], g[2:] * v, g[2:] * u])
        return np.concatenate([scale * moved, x])

    start = np.concatenate([eps * BIAS, eps**0.5 * u, eps**0.5 * V, np.zeros(5)])
    run = solve_ivp(field, (0, S[-1]), start, "DOP853", S, rtol=1e-11, atol=1e-13)
    x = np.concatenate([run.y[:2], run.y[2:5] * run.y[5:8]])
    return x.T, (run.y[8:] / S).T


def _objective(t, s=S, **options):
    problem = dln.LeastSquares(X + 0.1 * t[0], Y)
    log_eps = np.log(EPS) * (1 + 0.1 * t[1])
    flow = dln.gradient_flow(_network(U + 0.1 * t[2]), problem, s, log_eps=log_eps, **options)
    return jnp.stack([flow.x, flow.x_mean])


def test_both_forms_against_scipy_on_the_weights():
    exact = np.stack(_scipy(X, Y, U, EPS))
    for form in (dln.DualForm(), dln.WeightForm()):
        found = jax.jit(lambda t, form=form: _objective(t, formulation=form))(np.zeros(3))
        # Steps are to 1e-7.
        np.testing.assert_allclose(found, exact, atol=1e-6)
    dln.check_network(_network())


def test_derivatives_against_differences_of_scipy():
    forward = jax.jit(jax.jacfwd(lambda t: _objective(t)[:, -1]))(np.zeros(3))
    h = 1e-4
    for k, step in enumerate(0.1 * h * np.eye(3)):
        side = lambda sign, step=step: np.stack(
            _scipy(X + sign * step[0], Y, U + sign * step[2], EPS ** (1 + sign * step[1]))
        )[:, -1]
        # The difference is to h², and steps of SciPy to 1e-11/h.
        np.testing.assert_allclose(forward[..., k], (side(1) - side(-1)) / (2 * h), atol=2e-6)


def test_the_leak_of_a_bias_into_the_weight_that_the_data_do_not_tell_from_it():
    # `b` moves with `log(1/ε)/2` times the dual, and `w = (ε/2)(ε^{−ν} − ε^{ν})`.
    eps = np.array([1e-1, 1e-4, 1e-40])
    s = np.array([0.01, 1, 100])

    @jax.jit
    @jax.vmap
    def run(log_eps):
        network = MixedDepth(dln.Linear(np.zeros(1)), dln.UV(np.ones(1), np.zeros(1)))
        problem = dln.LeastSquares(np.ones((1, 2)), np.array([1.5]))
        return dln.gradient_flow(network, problem, s, log_eps=log_eps).x

    bias, weight = np.moveaxis(np.asarray(run(np.log(eps))), 2, 0)
    np.testing.assert_allclose(weight, eps[:, None] / 2 * np.sinh(2 * bias), rtol=1e-12)
    np.testing.assert_allclose(bias[:, -1] + weight[:, -1], 1.5, rtol=1e-9)


def test_its_limit_is_the_lasso_that_does_not_penalise_the_linear_coordinates():
    problem = dln.LeastSquares(X, Y)
    weights = np.array([0.0, 0, 1, 1, 1])
    exact = dln.lasso_path(problem, weights=weights).x(S)
    sizes = np.array([-100.0, -1000.0, -10000.0])
    run = lambda log_eps: dln.gradient_flow(_network(), problem, S, log_eps=log_eps).x_mean
    off = np.max(np.abs(jax.jit(jax.vmap(run))(sizes) - exact[None]), axis=(1, 2))
    # Of the order of 1/log(1/ε).
    np.testing.assert_allclose(off[:-1] / off[1:], 10, rtol=0.02)


def test_bad_input(as_users_run_it):
    linear, network = dln.Linear(np.zeros(1)), dln.UV(U, V)
    wrong: Any = network
    with pytest.raises(TypeError, match="`linear` must be a `dlnjax.Linear`"):
        MixedDepth(wrong, network)
    wrong = linear
    with pytest.raises(TypeError, match="`network` must be a network with a dual form"):
        MixedDepth(linear, wrong)
    with pytest.raises(ValueError, match="takes a signed network, got USquared"):
        MixedDepth(linear, dln.USquared(U))
    decay = dln.LeastSquares(X, Y, 0.1)
    with pytest.raises(ValueError, match="`MixedDepth` takes no weight decay"):
        dln.gradient_flow(_network(), decay, S, eps=EPS)
    with pytest.raises(TypeError, match="growth"):
        dln.end_point(_network(), dln.LeastSquares(X, Y), eps=EPS)
    with pytest.raises(TypeError, match="its linear coordinates are free"):
        dln.limit_flow(_network(), dln.LeastSquares(X, Y))

    @jax.jit
    @jax.vmap
    def run(decay, bias):
        problem = dln.LeastSquares(X, Y, decay)
        return dln.gradient_flow(_network(bias=bias), problem, S, eps=EPS, throw=False)

    flow = run(np.array([0.0, 0.1, 0]), np.stack([BIAS, BIAS, np.nan * BIAS]))
    names = ["successful", "invalid_decay", "invalid_shape"]
    assert list(names_of(flow.result)) == names
    assert np.isfinite(flow.x[0]).all() and np.isnan(flow.x[1:]).all()
