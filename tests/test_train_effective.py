"""The effective initialisation: certified, by its formula, and where there is none."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from training import EPS, NETWORK, PLAIN, PROBLEM, SIZE, D, N, X, Y, full

import dlnjax as dln
from dlnjax._train.batches import CHUNK


@jax.jit
def ends(networks):
    end = lambda network: dln.end_point(network, PLAIN, eps=0.3, throw=False).x
    return jax.vmap(end)(networks)


@pytest.mark.parametrize(
    ("sizes", "batch_size"), [((0.01, 0.04, 0.08), None), ((0.005, 0.01, 0.02), 1)]
)
def test_certificate_at_any_step_size(sizes, batch_size):
    @jax.vmap
    def train(size, key):
        return dln.train(
            NETWORK,
            PLAIN,
            optax.sgd(size),
            eps=0.3,
            steps=50 * CHUNK,
            batch_size=batch_size,
            key=key,
            throw=False,
        )

    run = train(jnp.asarray(sizes), jr.split(jr.key(2), 3))
    found = jax.vmap(lambda run: dln.effective_initialization(PLAIN, run))(run)
    x = np.asarray(run.x[:, -1])
    assert np.max(found.dual_residual) < 1e-10 and np.max(found.primal_residual) < 1e-10
    # In NumPy, from the definition: the part off the range of Xᵀ, by its null space.
    null = np.linalg.svd(X)[2][N:]
    square = np.asarray(found.alpha) ** 2
    dual = np.arcsinh(x / square) - np.arcsinh(np.asarray(found.shift) / square)
    np.testing.assert_allclose(dual, found.dual, rtol=1e-9)
    assert np.max(np.abs(dual @ null.T)) < 1e-10
    # It is another problem than that of gradient flow; the flow from there agrees.
    np.testing.assert_allclose(ends(found.network), x, atol=1e-9)
    plain = jax.tree.map(lambda w: jnp.stack([w] * 3), NETWORK)
    assert np.min(np.max(np.abs(ends(plain) - x), axis=1)) > 1e-4


def test_effective_initialisation_by_its_formula():
    # α_∞ and β̃₀ as the paper writes them, from u₀ = √2 α, v₀ = 0.
    network = dln.UV(np.ones(D), np.zeros(D))
    run = dln.train(network, PLAIN, optax.sgd(SIZE), eps=EPS, steps=60)
    found = dln.effective_initialization(PLAIN, run)
    u, v = np.full(D, EPS**0.5), np.zeros(D)
    gradients = []
    for _ in range(60):
        gradients.append(SIZE * full(0, u * v))
        u, v = u - gradients[-1] * v, v - gradients[-1] * u
    a = np.array(gradients)
    q = -0.5 * np.sum(np.log((1 - a**2) ** 2), axis=0)
    plus = -2 * np.sum(a, axis=0) - np.sum(np.log((1 - a) ** 2), axis=0)
    minus = 2 * np.sum(a, axis=0) - np.sum(np.log((1 + a) ** 2), axis=0)
    square = EPS / 2
    np.testing.assert_allclose(found.alpha**2, square * np.exp(-q), rtol=1e-12)
    shift = 0.5 * square * (np.exp(-plus) - np.exp(-minus))
    np.testing.assert_allclose(found.shift, shift, atol=1e-14 * np.max(square * np.exp(-minus)))


def test_what_is_not_plain_is_refused():
    run = dln.train(NETWORK, PLAIN, optax.sgd(SIZE, momentum=0.5), eps=EPS, steps=60)
    with pytest.raises(ValueError, match="not plain gradient steps"):
        dln.effective_initialization(PLAIN, run)
    with pytest.raises(ValueError, match="weight decay"):
        dln.effective_initialization(PROBLEM, run)
    with pytest.raises(ValueError, match="8 coordinates, the problem has 3"):
        dln.effective_initialization(dln.LeastSquares(X[:, :3], Y), run)
    found = jax.jit(dln.effective_initialization)(PLAIN, run)
    assert np.all(np.isnan(found.alpha)) and np.isnan(found.dual_residual)


def test_rounding_of_the_weights_is_no_deviation():
    # At so small an ε the smaller of u ± v drowns: no more digits are asked for than there are.
    run = dln.train(NETWORK, PLAIN, optax.sgd(3 * SIZE), eps=4e-11, steps=15 * CHUNK)
    assert run.stats["max_deviation"] < 1e-14
    assert 1e-10 < dln.effective_initialization(PLAIN, run).dual_residual < 1e-2
