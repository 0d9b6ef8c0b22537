"""The examples at tiny sizes: each still improves on its starting point."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import discrete_steps
import early_stopping
import learned_shape
import worst_case


@pytest.fixture(autouse=True)
def as_users_run_them():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def test_worst_case_climbs():
    sizes = dict(sample=64, restarts=2, steps=15, points=20)
    run = worst_case.climb(jr.key(0), "relative gap", **sizes)
    assert 0 < 1.05 * run.random < run.worst < 1
    assert np.all(np.diff(run.history) >= 0)


def test_learned_shape_gains():
    run = learned_shape.learn(jr.key(0), tasks=6, steps=8, points=10)
    assert np.all(np.isfinite(run.errors)) and np.all(run.shape > 0)
    assert run.history[-1] < 0.9 * run.history[0]


def test_ends_of_discrete_training_are_predicted():
    sizes = jnp.array([0.12, 0.16])
    ends = discrete_steps.end_points(jr.split(jr.key(0), 2), sizes, None, 20_000)
    assert np.all(np.asarray(ends.to_flow) > 0)
    assert np.all(ends.to_prediction < 0.1 * ends.to_flow)


def test_early_stopping_descends():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    chosen = early_stopping.choose(X, X[:, 0] + rng.normal(size=60), splits=1, steps=8)
    assert np.all(np.isfinite(chosen.test))
    before = np.interp(chosen.s[0, 0], chosen.grid[0], chosen.curve[0])
    after = (1 + chosen.excess[0]) * chosen.curve[0].min()
    assert after < 1.02 * chosen.curve[0].min() <= before
