"""Runs that diverge or are refused, alone and beside others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training import EPS, NETWORK, PLAIN, PROBLEM, SIZE

import dlnjax as dln


def test_divergence_is_flagged_per_lane():
    sizes = jnp.asarray([SIZE, 1.0, -SIZE, np.nan])
    train = lambda size: dln.train(
        NETWORK, PLAIN, optax.sgd(size), eps=EPS, steps=[0, 1, 60], throw=False
    )
    run = jax.vmap(train)(sizes)
    lanes = [jax.tree.map(lambda v, i=i: v[i], run) for i in range(4)]
    wanted = [
        dln.RESULTS.successful,
        dln.RESULTS.training_diverged,
        dln.RESULTS.invalid_training,
        dln.RESULTS.invalid_training,
    ]
    assert all(bool(lane.result == w) for lane, w in zip(lanes, wanted, strict=True))
    np.testing.assert_array_equal(run.stats["last_finite_step"], [60, 1, -1, -1])
    assert np.all(np.isfinite(lanes[0].x)) and np.all(np.isfinite(lanes[1].x[:2]))
    assert np.all(np.isnan(lanes[1].x[2])) and np.all(np.isnan(lanes[1].network.u[2]))
    assert np.all(np.isnan(lanes[2].x)) and np.all(np.isnan(lanes[1].dual[2]))
    with pytest.raises(Exception, match="Use smaller steps"):
        dln.train(NETWORK, PROBLEM, optax.sgd(10.0), eps=EPS, steps=20)


# A run that diverges early and goes on; one whose steps are not plain, so that the product over
# them leaves the range that the weights stay in; and a weight whose power overflows in one step.
RUNS_ON = {
    "far": (dln.UV(np.ones(1), np.zeros(1)), optax.sgd(100.0), 400),
    "not plain": (dln.UV(np.ones(1), np.ones(1) / 2), optax.adam(0.01), 400),
    "power": (dln.Deep(np.ones(1), np.ones(1), depth=6), optax.sgd(1e60), 4),
}


@pytest.mark.parametrize("name", RUNS_ON)
def test_masked_runs_that_go_on_have_no_derivatives(name):
    network, optimizer, steps = RUNS_ON[name]

    @jax.jit
    def run(X, y):
        def total(X, y):
            problem = dln.LeastSquares(X, y)
            run = dln.train(network, problem, optimizer, eps=0.1, steps=steps, throw=False)
            values = [jnp.where(run.result == dln.RESULTS.successful, run.x, 0)]
            if isinstance(network, dln.UV):
                alpha = dln.effective_initialization(problem, run).alpha
                values.append(jnp.where(jnp.isnan(alpha), 0, alpha)[None])
            return jnp.sum(jnp.stack(values)), (run.result, run.sides)

        return jax.grad(total, argnums=(0, 1), has_aux=True)(X, y)

    gradients, (result, sides) = run(np.ones((1, 1)), np.array([3000.0]))
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        assert name == "not plain" or not np.any(gradient)
    assert (result == dln.RESULTS.training_diverged) == (name != "not plain")
    assert sides is None or np.isnan(sides).all()


def test_a_lane_that_is_refused_has_no_time():
    @jax.jit
    @jax.vmap
    def run(eps):
        problem = dln.LeastSquares(np.eye(2), np.ones(2))
        network = dln.UV(np.ones(2), np.zeros(2))
        return dln.train(network, problem, optax.sgd(0.1), eps=eps, steps=[0, 3], throw=False)

    found = run(np.array([0.1, 2.0, np.nan]))
    assert np.isfinite(found.t[0]).all() and np.isfinite(found.s[0]).all()
    assert np.isnan(found.t[1:]).all() and np.isnan(found.s[1:]).all()
