"""Which optimisers have a time of the flow: those that take steps of gradient descent."""

from typing import Any

import jax
import numpy as np
import optax
import pytest
from training import EPS, NETWORK, PROBLEM, SIZE, full, loop, sgd

import dlnjax as dln


def _names(weights):
    """The weights, each labelled by the field of the network that it is."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].name, weights)


def _split(u_size, v_size):
    """`u` and `v` in steps of their own."""
    return optax.multi_transform({"u": optax.sgd(u_size), "v": optax.sgd(v_size)}, _names)


AFTER_ONE: Any = lambda step: step > 1  # optax's own type has arguments that it does not pass

# Steps that are a time of the flow, and from which row of 0, 1, 2, 40 on others are none.
CLOCKS = {
    "SGD": (optax.sgd(SIZE), None),
    "split evenly": (_split(SIZE, SIZE), None),
    "schedule": (optax.sgd(optax.linear_schedule(0, SIZE, 20)), None),
    "no clipping": (optax.chain(optax.clip(1e3), optax.sgd(SIZE)), None),
    "clipping": (optax.chain(optax.clip(1e-3), optax.sgd(SIZE)), 1),
    "split": (_split(SIZE, 2 * SIZE), 1),
    "Adam": (optax.adam(SIZE), 1),
    "Lion": (optax.lion(SIZE), 1),
    "RMSprop": (optax.rmsprop(SIZE), 1),
    "LARS": (optax.lars(SIZE), 1),
    "noise": (optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(SIZE)), 1),
    "decay": (optax.chain(optax.add_decayed_weights(0.1), optax.sgd(SIZE)), 1),
    "signs after a step": (
        optax.chain(
            optax.sgd(SIZE),
            optax.conditionally_transform(optax.scale_by_sign(), AFTER_ONE),
        ),
        3,
    ),
}


@pytest.mark.parametrize("name", CLOCKS)
def test_only_steps_of_gradient_descent_are_a_time(name):
    optimizer, first = CLOCKS[name]
    run = dln.train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=[0, 1, 2, 40])
    assert run.result == dln.RESULTS.successful and np.all(np.isfinite(run.x))
    want = np.arange(4) >= (4 if first is None else first)
    for value in (run.t, run.s, run.x_mean[:, 0], run.dual[:, 0]):
        np.testing.assert_array_equal(np.isnan(value), want)
    if name == "split":
        by_two = lambda w, memory, g, size: (w - size * np.array([[1.0], [2.0]]) * g(w), memory)
        xs, _, _ = loop(full, by_two, steps=40)
        np.testing.assert_allclose(run.x, xs[[0, 1, 2, 40]], rtol=1e-9, atol=1e-12)
    if name in ("SGD", "split evenly", "no clipping"):
        xs, t, _ = loop(full, sgd, steps=40)
        np.testing.assert_allclose(run.x, xs[[0, 1, 2, 40]], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(run.t, t[[0, 1, 2, 40]], rtol=1e-12)
