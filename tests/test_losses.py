"""Losses of one's own: followed by what takes any loss, refused where the quadratic is assumed."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import scipy.integrate

import dlnjax as dln
from dlnjax._problem import is_quadratic
from dlnjax._results import names_of

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(6, 3)), np.sign(rng.normal(size=6))
NONE: Any = None  # losses are looked at before other arguments
NETWORK = dln.UV(np.ones(3), np.zeros(3))


class Loss(dln.LeastSquares):
    """A function of the fit, with the `r` and `M` of least squares."""

    kind: str = eqx.field(static=True)

    def __init__(self, X, y, kind):
        self.X, self.y, self.weight_decay = jnp.asarray(X), jnp.asarray(y), jnp.zeros((), X.dtype)
        self.kind = kind

    def loss(self, x):
        fit = jnp.matmul(jnp.asarray(x), self.X.T)
        y = jnp.broadcast_to(self.y, fit.shape)
        size = jnp.abs(fit - y)
        values = {
            "square": 0.5 * size**2,
            "twice": size**2,
            "logistic": jnp.logaddexp(0, -fit * y),
            "Huber": jnp.where(size < 3, size**2 / 2, 3 * (size - 1.5)),
        }
        return jnp.sum(values[self.kind], axis=-1)

    def gradient(self, x):
        at = jax.grad(self.loss)
        return jnp.vectorize(at, signature="(d)->(d)")(jnp.asarray(x, self.X.dtype))


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Without the checks of types that run in tests only, and would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


REFUSING = {
    "lasso_path": lambda p: dln.lasso_path(p),
    "lasso": lambda p: dln.lasso(p, 1.0),
    "basis_pursuit": lambda p: dln.basis_pursuit(p),
    "null_space_constant": lambda p: dln.null_space_constant(p),
    "limit_flow": lambda p: dln.limit_flow(NETWORK, p),
    "gradient_flow": lambda p: dln.gradient_flow(NETWORK, p, np.ones(1), eps=0.1),
    "crossing_times": lambda p: dln.crossing_times(NETWORK, p, 1.0, 1.0, eps=0.1),
    "end_point": lambda p: dln.end_point(NETWORK, p, eps=0.1),
    "limit_point": lambda p: dln.limit_point(NETWORK, p),
    "bregman_projection": lambda p: dln.bregman_projection(NETWORK, p, np.ones(3), eps=0.1),
    "duality_gap": lambda p: p.duality_gap(np.ones(3), 1.0),
    "suboptimality_gap": lambda p: dln.suboptimality_gap(p, np.ones(3), 1.0, path=NONE),
    "certificate": lambda p: dln.certificate(p, NONE),
    "effective_initialization": lambda p: dln.effective_initialization(p, NONE),
    "is_always_monotone": lambda p: dln.is_always_monotone(p),
}


@pytest.mark.parametrize("name", REFUSING)
def test_what_assumes_the_quadratic_refuses_others(name):
    with pytest.raises(TypeError, match="The loss of Loss is not the quadratic .*WeightForm"):
        REFUSING[name](Loss(X, Y, "logistic"))


def test_functions_without_a_result_say_no():
    assert not dln.is_z_matrix(Loss(np.eye(3), np.ones(3), "logistic"))
    path = dln.lasso_path(dln.LeastSquares(X, Y))
    assert np.all(np.isnan(path.kkt_residual(Loss(X, Y, "logistic"))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["square", "twice", "logistic", "Huber"])
def test_which_losses_are_the_quadratic(kind, dtype):
    # In all units of the columns; with a column of 0, and with more columns than rows.
    for design in (X, X * np.array([1e-3, 1, 1e3]), X * np.array([0, 1, 1]), X[:2]):
        problem = Loss(design.astype(dtype), Y[: len(design)].astype(dtype), kind)
        assert bool(jax.jit(is_quadratic)(problem)) == (kind == "square")


def test_traced_losses_end_in_their_result():
    lanes = jax.jit(lambda X: [dln.lasso_path(Loss(X, Y, k)) for k in ("logistic", "square")])(X)
    assert [str(names_of(path.result)) for path in lanes] == ["invalid_problem", "successful"]
    assert np.all(np.isnan(lanes[0].knots))
    np.testing.assert_allclose(lanes[1].x(2.0), dln.lasso_path(dln.LeastSquares(X, Y)).x(2.0))


def test_the_weight_form_and_training_follow_any_loss():
    problem, s = Loss(X, Y, "logistic"), np.array([0.2, 1.0])
    flow = dln.gradient_flow(NETWORK, problem, s, eps=0.1, formulation=dln.WeightForm())

    def field(t, w):
        u, v = np.split(w, 2)
        g = -X.T @ (Y / (1 + np.exp(Y * (X @ (u * v)))))
        return -np.concatenate([g * v, g * u])

    times = s * np.log(10) / 2
    start = np.sqrt(0.1) * np.concatenate([np.ones(3), np.zeros(3)])
    truth = scipy.integrate.solve_ivp(field, [0, times[-1]], start, t_eval=times, rtol=1e-10)
    u, v = np.split(truth.y.T, 2, axis=1)
    # The flow's default rtol is 1e-7 a step.
    np.testing.assert_allclose(flow.x, u * v, rtol=1e-5, atol=1e-7)
    assert np.all(np.isnan(flow.dual))  # not s r − M z
    run = dln.train(NETWORK, problem, optax.sgd(times[-1] / 2000), eps=0.1, steps=2000)
    np.testing.assert_allclose(run.x[-1], (u * v)[-1], rtol=1e-2)
