"""Arguments that reach a solver: traced ones that it refuses, and odd ones that are valid."""

# pyright: reportArgumentType=false, reportCallIssue=false

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arguments import EPS, NETWORK, PROBLEM, X

import dlnjax as dln
from dlnjax._results import names_of

pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.mark.parametrize("solve", [dln.end_point, dln.limit_point, dln.limit_flow])
def test_deep_networks_take_no_weight_decay(solve):
    network = dln.Deep(np.ones(3), np.ones(3), depth=3)
    problem = dln.LeastSquares(X, np.ones(2), weight_decay=0.5)
    options = EPS if solve is dln.end_point else {}
    with pytest.raises(ValueError, match="A network of depth 3.0 takes no weight decay, got 0.5"):
        solve(network, problem, **options)
    lanes = jax.vmap(
        lambda decay: (
            solve(network, dln.LeastSquares(X, np.ones(2), decay), throw=False, **options).result
        )
    )(jnp.array([0, 0.5]))
    assert names_of(lanes).tolist() == ["successful", "invalid_decay"]


SOLVES_TO = {
    "lasso": lambda tol: dln.lasso(PROBLEM, 1.0, gap_tol=tol, throw=False),
    "end_point": lambda tol: dln.end_point(NETWORK, PROBLEM, rtol=tol, throw=False, **EPS),
    "limit_point": lambda tol: dln.limit_point(NETWORK, PROBLEM, rtol=tol, throw=False),
}


@pytest.mark.parametrize("solve", SOLVES_TO.values(), ids=SOLVES_TO)
def test_tolerances_under_tracing(solve):
    solution = jax.vmap(solve)(jnp.array([1e-6, jnp.inf, 0, -1, jnp.nan]))
    is_refused = [False, True, True, True, True]
    assert names_of(solution.result).tolist() == ["successful", *["invalid_tolerance"] * 4]
    np.testing.assert_array_equal(np.isnan(solution.x).all(axis=1), is_refused)


@pytest.mark.parametrize("name", ["z", "x", "slope", "downward_variation"])
def test_a_parameter_that_is_refused_has_no_derivatives(name):
    path = dln.lasso_path(PROBLEM)
    p = jnp.array([np.nan, -1.0, 2.0])

    def ask(path, p):
        values = jax.vmap(lambda p: getattr(path, name)(p))(p)
        return jnp.sum(jnp.where(jnp.isnan(values), 0, values))

    alone = eqx.filter_grad(ask)(path, p[2:])
    together = eqx.filter_grad(ask)(path, p)
    assert eqx.tree_equal(alone, together)
    assert np.any(alone.slopes != 0)


def test_flags_and_counts_of_numpy():
    assert dln.lasso_path(PROBLEM, positive=np.True_).positive is True
    with pytest.raises(TypeError, match=re.escape("`max_knots` must be a whole number")):
        dln.lasso_path(PROBLEM, max_knots=np.ones(2))


@pytest.mark.parametrize("formulation", [dln.DualForm(), dln.WeightForm()])
def test_a_start_out_of_range_is_invalid(formulation):
    network = dln.USquared(np.full(3, 1e160))
    options = {"formulation": formulation, "throw": False, **EPS}
    flow = dln.gradient_flow(network, PROBLEM, [1.0], **options)
    assert flow.result == dln.RESULTS.invalid_shape and flow.stats["num_steps"] <= 1


def test_large_shapes_without_weight_decay_are_valid():
    network = dln.UV(np.full(3, 1e160), np.zeros(3))
    limit = dln.limit_flow(network, PROBLEM, throw=False)
    assert limit.result == dln.RESULTS.successful
