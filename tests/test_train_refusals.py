"""What `train` refuses, and what it says. Nothing is compiled."""

import re
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from training import EPS, NETWORK, PROBLEM, SIZE

import dlnjax as dln


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": [3, 3]}, ValueError, "increase"),
        ({"steps": -1}, ValueError, "non-negative"),
        ({"steps": np.array([5, 3], np.uint32)}, ValueError, "increase"),
        ({"steps": []}, ValueError, "empty"),
        ({"steps": 2.0}, TypeError, "whole numbers"),
        ({"batch_size": 0, "key": jr.key(0)}, ValueError, "from 1 to the 5 rows"),
        ({"batch_size": 6, "key": jr.key(0)}, ValueError, "from 1 to the 5 rows"),
        ({"batch_size": True, "key": jr.key(0)}, TypeError, "whole number"),
        ({"batch_size": 2}, ValueError, "key=jax.random.key"),
        ({"label_noise": 0.1}, ValueError, "key=jax.random.key"),
        ({"label_noise": -0.1, "key": jr.key(0)}, ValueError, "non-negative"),
        ({"batches": np.array([[0, 5]])}, ValueError, "rows from 0 to 4, got batches[0, 1] = 5"),
        ({"batches": np.array([[-1, 0]])}, ValueError, "rows from 0 to 4, got batches[0, 0] = -1"),
        ({"batches": np.array([0, 1])}, TypeError, "shape (T, b), got shape (2,)"),
        ({"batches": np.array([[0.0]])}, TypeError, "whole numbers of shape (T, b)"),
        ({"batches": np.zeros((0, 1), int)}, ValueError, "empty axis"),
        ({"batches": np.array([[0]]), "batch_size": 1, "key": jr.key(0)}, ValueError, "not both"),
        ({"label_noise": lambda key: jr.normal(key)}, ValueError, "key=jax.random.key"),
        (
            {"label_noise": lambda key: jr.normal(key), "key": jr.key(0)},
            ValueError,
            "noise for the labels of one step, shape (5,)",
        ),
        ({"loss_tol": 0.0}, ValueError, "`loss_tol` must be positive and finite, got 0.0"),
        ({"eps": None}, ValueError, "exactly one of `eps` and `log_eps`"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"eps": EPS, "steps": 3} | change
    with pytest.raises(error, match=re.escape(message)):
        dln.train(NETWORK, PROBLEM, optax.sgd(SIZE), **arguments)


def test_noise_on_labels_of_another_loss():
    problem = dln.Logistic(np.eye(8), np.ones(8))
    with pytest.raises(ValueError, match="`label_noise` is known for the square"):
        dln.train(
            NETWORK, problem, optax.sgd(SIZE), eps=EPS, steps=3, label_noise=0.1, key=jr.key(0)
        )


def test_bad_types():
    train: Any = getattr(dln.train, "__wrapped__", dln.train)  # past the checks of types in tests
    optimizer = optax.sgd(SIZE)
    with pytest.raises(TypeError, match="optax.sgd"):
        train(NETWORK, PROBLEM, 1e-3, eps=EPS, steps=3)
    with pytest.raises(TypeError, match="gradient_transformation"):
        train(NETWORK, PROBLEM, optax.MultiSteps(optimizer, 2), eps=EPS, steps=3)
    with pytest.raises(TypeError, match="ask for the loss"):
        train(NETWORK, PROBLEM, optax.polyak_sgd(), eps=EPS, steps=3)
    negative: Any = jnp.negative
    of_one_array = optax.stateless(lambda updates, _: negative(updates))
    with pytest.raises(TypeError, match="optax.flatten"):
        train(NETWORK, PROBLEM, of_one_array, eps=EPS, steps=3)
    with pytest.raises(TypeError, match="must be a key, got 0"):
        train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=3, batch_size=2, key=0)
    with pytest.raises(ValueError, match="must be one key"):
        keys = jr.split(jr.key(0), 3)
        train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=3, batch_size=2, key=keys)
    with pytest.raises(TypeError, match="whole number"):
        train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=3, batch_size=2.0, key=jr.key(0))
