"""Programs lower for accelerators from a machine that has none, and hold no host callback."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

import dlnjax as dln

N, D, LANES = 3, 4, 5
OPTIONS: dict[str, Any] = dict(throw=False)


def _network(X):
    return dln.UV(jnp.ones(D, X.dtype), jnp.zeros(D, X.dtype))


S = np.array([1.0, 5.0])
FUNCTIONS = {
    "flow": lambda X, p: dln.gradient_flow(_network(X), p, S, eps=1e-3, **OPTIONS).x_mean,
    "flow, AutoTsit5": lambda X, p: (
        dln.gradient_flow(_network(X), p, S, eps=1e-3, solver=dln.AutoTsit5(), **OPTIONS).x_mean
    ),
    "momentum": lambda X, p: (
        dln.gradient_flow(
            _network(X), p, S, eps=1e-3, formulation=dln.MomentumForm(0.1), **OPTIONS
        ).x_mean
    ),
    "stochastic_flow": lambda X, p: (
        dln.stochastic_flow(
            _network(X), p, S, key=jax.random.key(0), step_size=0.1, eps=1e-3, **OPTIONS
        ).x_mean
    ),
    "crossing_times": lambda X, p: (
        dln.crossing_times(_network(X), p, 5.0, 0.3, eps=1e-3, **OPTIONS).s
    ),
    "lasso_path": lambda X, p: dln.lasso_path(p, **OPTIONS).x(2.0),
    "limit_flow": lambda X, p: dln.limit_flow(_network(X), p, **OPTIONS).x(2.0),
    "lasso_path.at_norm": lambda X, p: dln.lasso_path(p, **OPTIONS).at_norm(0.1),
    "lasso": lambda X, p: dln.lasso(p, 2.0, **OPTIONS).x,
    "lasso, Logistic": lambda X, p: dln.lasso(dln.Logistic(X, p.y), 2.0, **OPTIONS).x,
    "limit_flow, Logistic": lambda X, p: dln.limit_flow(
        _network(X), dln.Logistic(X, p.y), **OPTIONS
    ).x(2.0),
    "margin_flow": lambda X, p: (
        dln.margin_flow(_network(X), dln.Logistic(X, p.y), S, eps=1e-3, **OPTIONS).x
    ),
    "max_margin": lambda X, p: dln.max_margin(dln.Logistic(X, p.y), **OPTIONS).x,
    "end_point": lambda X, p: dln.end_point(_network(X), p, eps=1e-3, **OPTIONS).x,
    "basis_pursuit": lambda X, p: dln.basis_pursuit(p, **OPTIONS).x,
    "limit_point": lambda X, p: dln.limit_point(_network(X), p, **OPTIONS).x,
    "null_space_constant": lambda X, p: dln.null_space_constant(p, **OPTIONS).value,
    "train": lambda X, p: (
        dln.train(_network(X), p, optax.sgd(1e-2), eps=0.1, steps=[1, 9], **OPTIONS).x
    ),
}


def _exported(name, dtype, platforms) -> str:
    """The program of a batch of values and gradients."""

    def total(X, y):
        return jnp.sum(FUNCTIONS[name](X, dln.LeastSquares(X, y)))

    X, y = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((LANES, N, D), (LANES, N)))
    program = jax.jit(jax.vmap(jax.value_and_grad(total)))
    exported = export.export(program, platforms=platforms)(X, y)
    assert exported.platforms == tuple(platforms)
    return exported.mlir_module()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_and_its_gradient_lower_for_accelerators(name):
    for dtype, platforms in ((np.float32, ["cuda", "rocm", "tpu"]), (np.float64, ["cuda"])):
        module = _exported(name, dtype, platforms)
        assert "while" in module and "callback" not in module
