"""`Deep`: its depth, links and penalty, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

D = 4
U, V = np.random.default_rng(0).uniform(0.5, 2, (2, D))


def test_depth_two_is_static():
    assert dln.Deep(U, V, depth=2).depth == dln.Deep(U, V, depth=2.0).depth == 2
    assert len(jax.tree.leaves(dln.Deep(U, V, depth=2))) == 2
    assert len(jax.tree.leaves(dln.Deep(U, V, depth=3))) == 3
    assert float(dln.Deep(U, V, depth=3).depth) == 3


@pytest.mark.parametrize("depth", [2, 2.5, 4.0])
@pytest.mark.parametrize("eps", [1e-2, 1e-12])
def test_shape_link_and_size(depth, eps):
    network, log_eps = dln.Deep(U, V, depth=depth), jnp.log(eps)
    np.testing.assert_allclose(network(), U**depth - V**depth, rtol=1e-14)
    np.testing.assert_allclose(network.initial(log_eps).u, eps ** (1 / depth) * U, rtol=1e-13)
    q = network.link(network.initial_dual(log_eps), log_eps)
    np.testing.assert_allclose(q, eps * np.stack([U, V]) ** depth, rtol=1e-12)
    limit = np.stack([U, V]) ** (2.0 - depth)
    np.testing.assert_allclose(network.initial_dual(jnp.asarray(-jnp.inf)), limit, rtol=1e-14)


def test_penalty():
    decay = 0.3 * (np.sum(U**2) + np.sum(V**2))
    np.testing.assert_allclose(dln.Deep(U, V, depth=2).penalty(jnp.asarray(0.3)), decay)
    assert dln.Deep(U, V, depth=3).penalty(jnp.asarray(0.0)) == 0


REFUSED = {
    "depth 1.5": (lambda: dln.Deep(U, V, depth=1.5), "above 2, got 1.5. `u^D − v^D` needs"),
    "NaN depth": (lambda: dln.Deep(U, V, depth=np.nan), "`depth` must be finite and above 2"),
    "inf depth": (lambda: dln.Deep(U, V, depth=np.inf), "`depth` must be finite and above 2"),
    "array 2": (lambda: dln.Deep(U, V, depth=np.array(2.0)), "Pass the Python number 2"),
    "depths": (
        lambda: dln.Deep(U, V, depth=np.ones(2)),
        "`depth` must be a scalar, got shape (2,)",
    ),
    "u = 0": (
        lambda: dln.Deep(0 * U, V, depth=3),
        "The weights of `Deep` must be positive, got u[0] = 0.0. For `x(0) = 0` take u = v = 1",
    ),
    "v < 0": (lambda: dln.Deep(U, -V, depth=2), "must be positive, got v[0] = -"),
    "mismatch": (
        lambda: dln.Deep(U, V[1:], depth=3),
        "must have the same shape, got (4,) and (3,)",
    ),
    "NaN": (lambda: dln.Deep(U * np.nan, V, depth=3), "`u[0]` is nan"),
    "decay": (
        lambda: dln.gradient_flow(
            dln.Deep(U, V, depth=3),
            dln.LeastSquares(np.eye(D), np.ones(D), 0.1),
            np.ones(1),
            eps=0.1,
        ),
        "A network of depth 3.0 takes no weight decay, got 0.1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
