"""Depth 1: the linear model itself, whose flow is a linear equation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import expm

import dlnjax as dln
from dlnjax._interpolator import _end

FORMS = {"dual": dln.DualForm(), "weights": dln.WeightForm()}
S = np.array([0, 0.1, 1, 10, 1e3])


def _exact(X, y, decay, start, s) -> tuple[np.ndarray, np.ndarray]:
    """`x` and its integral, by the matrix exponential."""
    d = len(start)
    A = np.zeros((2 * d + 1, 2 * d + 1))
    A[:d, :d], A[:d, -1] = -(X.T @ X + decay * np.eye(d)), X.T @ y
    A[d : 2 * d, :d] = np.eye(d)
    v = expm(s * A) @ np.concatenate([start, np.zeros(d), [1]])
    return v[:d], v[d : 2 * d]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, decay", [(6, 0.0), (3, 0.0), (3, 0.3)])
def test_against_the_matrix_exponential(form, n, decay):
    rng = np.random.default_rng(n)
    X, y, u = rng.normal(size=(n, 5)), rng.normal(size=n), rng.normal(size=5)
    scales = np.array([1.0, 1e-6, 1e6])  # of y and u: the flow is linear in them

    @jax.jit
    @jax.vmap
    def solve(scale):
        problem = dln.LeastSquares(X, scale * y, decay)
        network = dln.Linear(2 * scale * u)
        return dln.gradient_flow(network, problem, S, eps=0.5, formulation=FORMS[form], throw=False)

    flow = solve(scales)
    assert np.all(np.asarray(flow.result == dln.RESULTS.successful))
    x, z = (np.stack(v) for v in zip(*(_exact(X, y, decay, u, s) for s in S), strict=True))
    unit = scales[:, None, None]
    # Steps are to 1e-7, and Kvaerno5 takes some seventy.
    np.testing.assert_allclose(flow.x / unit, np.broadcast_to(x, flow.x.shape), atol=2e-6)
    error = np.abs(flow.z / unit - z[None]) / (1 + np.abs(z))[None]
    assert error.max() < 2e-6
    # Where it ends: closest to the start, or ridge regression.
    if decay:
        end = np.linalg.solve(X.T @ X + decay * np.eye(5), X.T @ y)
    else:
        end = u + np.linalg.pinv(X) @ (y - X @ u)
    gap = np.linalg.svd(X)[1][-1] ** 2 + decay
    if gap * S[-1] > 30:
        np.testing.assert_allclose(flow.x[0, -1], end, atol=2e-6)


def test_starts_at_0_and_below_the_range_of_the_dtype():
    X, y = np.eye(3), np.array([1.0, 2, 3])
    for network, log_eps in ((dln.Linear(np.zeros(3)), -1.0), (dln.Linear(np.ones(3)), -2000.0)):
        for form in FORMS.values():
            flow = dln.gradient_flow(
                network, dln.LeastSquares(X, y), np.array([1.0]), log_eps=log_eps, formulation=form
            )
            np.testing.assert_allclose(flow.x[0], (1 - np.exp(-1)) * y, rtol=1e-6)


def test_what_it_has_not():
    problem, network = dln.LeastSquares(np.eye(3), np.ones(3)), dln.Linear(jnp.zeros(3))
    with pytest.raises(TypeError, match="dual variable"):
        dln.limit_flow(network, problem)
    with pytest.raises(TypeError, match="dual form and a `growth`"):
        _end(network, problem, jnp.log(0.1), None, 1, True)


def test_an_eps_that_the_weights_cannot_hold_is_refused():
    problem = dln.LeastSquares(np.eye(3), np.ones(3))
    network = dln.UV(np.ones(3), np.zeros(3))
    s = np.array([1.0])
    with pytest.raises(ValueError, match="too small for weights of UV.*DualForm"):
        dln.gradient_flow(network, problem, s, eps=1e-12, formulation=dln.WeightForm())
    with pytest.raises(ValueError, match="too small for weights of UV"):
        dln.train(network, problem, optax.sgd(1e-3), eps=1e-12, steps=1)

    @jax.jit
    def traced(eps):
        flow = dln.gradient_flow(
            network, problem, s, eps=eps, formulation=dln.WeightForm(), throw=False
        )
        return flow.result, flow.x

    result, x = traced(1e-12)
    assert result == dln.RESULTS.invalid_eps and np.isnan(x).all()
    result, x = traced(1e-10)
    assert result == dln.RESULTS.successful and np.isfinite(x).all()
