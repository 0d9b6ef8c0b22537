"""Known values inside `jit`, where operations of JAX are traced although all inputs are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dlnjax as dln
from dlnjax import metrics

X, Y, S = np.array([[2.0, 1.0], [0.0, 0.5]]), np.array([1.0, 1.5]), np.array([0.5, 3.0])
PROBLEM = dln.LeastSquares(X, Y, weight_decay=0.1)
PLAIN = dln.LeastSquares(X, Y)
NETWORK = dln.UV(jnp.ones(2), jnp.zeros(2))
DEEP = dln.Deep(jnp.ones(2), jnp.ones(2), depth=4)
PATH, LIMIT = dln.lasso_path(PROBLEM), dln.limit_flow(NETWORK, PROBLEM)
FLOW = dln.gradient_flow(NETWORK, PROBLEM, S, eps=1e-3)
X_MEAN = FLOW.x_mean
FUNCTIONS = {
    "LeastSquares": lambda: dln.LeastSquares(X, Y, weight_decay=0.1).loss(Y),
    "Quadratic": lambda: dln.Quadratic(X.T @ X, X.T @ Y, constant=5.0).loss(Y),
    "lasso_objective": lambda: PROBLEM.lasso_objective(Y, 2.0),
    "duality_gap": lambda: PROBLEM.duality_gap(Y, 0.5),
    "UV": lambda: dln.UV(jnp.ones(2), jnp.zeros(2))(),
    "Deep": lambda: dln.Deep(jnp.ones(2), jnp.ones(2), depth=4.0)(),
    "gradient_flow": lambda: dln.gradient_flow(NETWORK, PROBLEM, S, eps=1e-3),
    "gradient_flow, weights": lambda: dln.gradient_flow(
        NETWORK, PROBLEM, S, eps=1e-3, formulation=dln.WeightForm(), rtol=1e-6, atol=1e-7
    ),
    "gradient_flow, Linear": lambda: dln.gradient_flow(
        dln.Linear(jnp.zeros(2)), PROBLEM, S, eps=1e-3
    ),
    "gradient_flow, deep": lambda: dln.gradient_flow(DEEP, PLAIN, S, log_eps=-9.0),
    "crossing_times": lambda: dln.crossing_times(NETWORK, PROBLEM, 5.0, 0.3, eps=1e-3),
    "lasso_path": lambda: dln.lasso_path(PROBLEM, weights=np.array([1.0, 2.0])),
    "lasso_path, free": lambda: dln.lasso_path(PLAIN, weights=np.array([0.0, np.inf])),
    "path.x": lambda: PATH.x(S),
    "path.is_monotone": lambda: PATH.is_monotone(tol=1e-9),
    "path.downward_variation": lambda: PATH.downward_variation(S),
    "path.kkt_residual": lambda: PATH.kkt_residual(PROBLEM),
    "lasso": lambda: dln.lasso(PROBLEM, 2.0, weights=np.array([1.0, 2.0])),
    "basis_pursuit": lambda: dln.basis_pursuit(PLAIN),
    "limit_flow": lambda: dln.limit_flow(NETWORK, PLAIN, start=np.array([0.1, 0.0]), s_max=9.0),
    "limit.x_mean": lambda: LIMIT.x_mean(S),
    "limit.dual": lambda: LIMIT.dual(PROBLEM, S),
    "end_point": lambda: dln.end_point(NETWORK, PROBLEM, eps=1e-3),
    "end_point, Linear": lambda: dln.end_point(dln.Linear(jnp.zeros(2)), PROBLEM, eps=1e-3),
    "limit_point": lambda: dln.limit_point(NETWORK, PLAIN),
    "null_space_constant": lambda: dln.null_space_constant(PLAIN).rate(4.0),
    "suboptimality_gap": lambda: dln.suboptimality_gap(PROBLEM, X_MEAN, S, path=PATH),
    "certificate": lambda: dln.certificate(PROBLEM, FLOW),
    "eta": lambda: dln.eta(0.1, S, np.array([0.0, 0.5])),
    "train": lambda: dln.train(NETWORK, PROBLEM, optax.sgd(1e-2), eps=0.1, steps=[1, 9]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_known_values_under_jit(name):
    jax.eval_shape(lambda: jax.tree.leaves(FUNCTIONS[name]()))


ONES, NAN = jnp.ones(2), jnp.array([1.0, jnp.nan])
LESS, EQUAL, FALLS, SQUARED = -ONES, jnp.ones((3, 2)), jnp.array([2.0, 1.0]), dln.USquared(ONES)
VALUES = jnp.array([0.1, 0.2, 0.3])
REFUSED = {
    "UV": lambda: dln.UV(ONES, ONES),
    "Deep": lambda: dln.Deep(LESS, ONES, depth=3),
    "Layers": lambda: dln.Layers(EQUAL),
    "Pretrained": lambda: dln.Pretrained(SQUARED, LESS),
    "LeastSquares": lambda: dln.LeastSquares(X, NAN),
    "Poisson": lambda: dln.Poisson(X, LESS),
    "Schedule": lambda: dln.Schedule(FALLS, VALUES),
    "limit_flow": lambda: dln.limit_flow(SQUARED, PLAIN, start=LESS),
    "lasso_path": lambda: dln.lasso_path(PLAIN, weights=LESS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_known_values_are_named_under_jit(name, as_users_run_it):
    with pytest.raises(ValueError) as raised:
        REFUSED[name]()
    with pytest.raises(ValueError) as under_jit:
        jax.eval_shape(lambda: REFUSED[name]() and None)
    assert str(under_jit.value) == str(raised.value)


@pytest.mark.parametrize("name", metrics.NAMED)
def test_metrics_take_known_values_under_jit(name):
    known = dict(
        problem=PROBLEM, network=NETWORK, path=PATH, limit=LIMIT, flow=FLOW, s=jnp.asarray(S)
    )
    known["log_eps"] = np.log(1e-3)
    metric = metrics.NAMED[name]
    shape = jax.eval_shape(lambda: metric.fn(**{need: known[need] for need in metric.needs})).shape
    assert shape == (len(S),) * len(metric.dims)
