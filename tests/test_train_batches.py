"""Given batches, label noise by a function, and runs that stop at a loss: against NumPy loops."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from training import DECAY, EPS, NETWORK, PLAIN, PROBLEM, SIZE, STEPS, D, N, X, Y, full, loop, sgd

import dlnjax as dln


def of_rows(rows, x, noise=0.0):
    """The gradient of `n/b · ½‖X_B x − y_B − noise‖²`."""
    return N / len(rows) * X[rows].T @ (X[rows] @ x - Y[rows] - noise)


EPOCHS = np.concatenate([np.random.default_rng(seed).permutation(N) for seed in range(40)])
# Shuffled epochs, which last for all steps; and one pass over pairs, again and again.
BATCHES = {"epochs": EPOCHS[:, None], "cycle": np.array([[0, 1], [2, 3], [4, 0]])}


@pytest.mark.parametrize("name", BATCHES)
def test_given_batches(name):
    batches = BATCHES[name]
    saved = [0, 1, 7, STEPS]
    run = dln.train(NETWORK, PROBLEM, optax.sgd(SIZE), eps=EPS, steps=saved, batches=batches)
    xs, t, z = loop(lambda k, x: of_rows(batches[k % len(batches)], x), sgd)
    np.testing.assert_allclose(run.x, xs[saved], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.x_mean[1:], z[saved[1:]] / t[saved[1:], None], rtol=1e-9)


def test_batches_of_another_loss():
    labels, batches = np.sign(Y), BATCHES["cycle"]

    def gradient(k, x):
        rows = batches[k % len(batches)]
        odds = np.exp(labels[rows] * (X[rows] @ x))
        return -N / len(rows) * X[rows].T @ (labels[rows] / (1 + odds))

    problem = dln.Logistic(X, labels, DECAY)
    arguments: dict[str, Any] = dict(eps=EPS, steps=9, batches=batches)
    run = dln.train(NETWORK, problem, optax.sgd(SIZE), **arguments)
    xs, _, _ = loop(gradient, sgd, steps=9)
    np.testing.assert_allclose(run.x[0], xs[-1], rtol=1e-9, atol=1e-12)


def test_batches_of_a_loss_of_the_users():
    class Quartic(dln.LeastSquares):
        loss = lambda self, x: dln.LeastSquares.loss(self, x) ** 2
        gradient = lambda self, x: jax.grad(lambda x: jnp.sum(self.loss(x)))(x)

    of_data: Any = Quartic

    def run(y):
        problem, optimizer = of_data(X, y), optax.sgd(SIZE)
        return dln.train(NETWORK, problem, optimizer, eps=EPS, steps=1, batches=np.array([[0]]))

    # Its rows are known, and the gradient of one of them is not: that of the square is another.
    with pytest.raises(TypeError, match="`dlnjax.train` on all rows"):
        run(Y)
    assert jax.jit(run)(Y).result == dln.RESULTS.invalid_problem


def test_batches_of_each_lane():
    @jax.jit
    @jax.vmap
    def run(batches):
        optimizer = optax.sgd(SIZE)
        return dln.train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=9, batches=batches)

    lanes = np.array([[[0, 1]], [[3, 4]], [[3, 5]], [[-1, 0]]])
    found = run(lanes)
    for lane in range(2):
        xs, _, _ = loop(lambda k, x, rows=lanes[lane, 0]: of_rows(rows, x), sgd, steps=9)
        np.testing.assert_allclose(found.x[lane, 0], xs[-1], rtol=1e-9, atol=1e-12)
    failed = found.result == dln.RESULTS.invalid_training
    np.testing.assert_array_equal(failed, [False, False, True, True])
    assert np.all(np.isnan(found.x[2:]))


def on_one_label(key):
    """Noise of ±1 on the label of one row."""
    row_key, sign_key = jr.split(key)
    return jr.rademacher(sign_key, (), float) * jax.nn.one_hot(jr.randint(row_key, (), 0, N), N)


def test_noise_on_one_label():
    # From v = 0 the first step leaves −γ g u₀ there, and g is that of all rows plus ±X_i.
    network = dln.UV(np.ones(D), np.zeros(D))

    @jax.jit
    @jax.vmap
    def first(key):
        optimizer = optax.sgd(SIZE)
        run = dln.train(
            network, PLAIN, optimizer, eps=EPS, steps=1, label_noise=on_one_label, key=key
        )
        assert isinstance(run.network, dln.UV)
        return -run.network.v[0] / (SIZE * EPS**0.5)

    away = np.asarray(first(jr.split(jr.key(1), 200))) - full(0, np.zeros(D))
    signed = np.concatenate([X, -X])
    distance = np.max(np.abs(away[:, None] - signed[None]), axis=2)
    nearest = np.argmin(distance, axis=1)
    assert np.max(np.min(distance, axis=1)) < 1e-12  # g is a quotient of rounding 1e-16/SIZE
    # 20 times each of the 10 on average: fewer than 4 has a chance of 1e-6 for each.
    assert np.min(np.bincount(nearest, minlength=2 * N)) >= 4


def test_sharpness_aware_minimisation_per_sample():
    # Each row's gradient at weights moved along itself; their sum in one step of n.
    radius = 0.02

    def ascend(gradient: Any, state: Any, weights: Any = None, **extra: Any):
        scale = radius / jnp.linalg.norm(ravel_pytree(gradient)[0])
        there = jax.tree.map(lambda w, g: w + scale * g, weights, gradient)
        return extra["grad_fn"](there, 0), state

    transform: Any = optax.GradientTransformationExtraArgs
    ascent = transform(lambda w: optax.EmptyState(), ascend)
    of_all = optax.MultiSteps(optax.sgd(SIZE), N).gradient_transformation()
    run = dln.train(
        NETWORK,
        PLAIN,
        optax.chain(ascent, of_all),
        eps=EPS,
        steps=[20 * N],
        batches=np.arange(N)[:, None],
    )
    w = np.stack([NETWORK.u, NETWORK.v]) * EPS**0.5

    def gradient(w, i):
        return of_rows([i], w[0] * w[1]) * w[::-1]

    for _ in range(20):
        each = [gradient(w, i) for i in range(N)]
        there = [w + radius * g / np.linalg.norm(g) for g in each]
        w = w - SIZE * np.mean([gradient(a, i) for i, a in enumerate(there)], axis=0)
    # optax averages with weights in float32, whose rounding is 6e-8.
    np.testing.assert_allclose(run.x[0], w[0] * w[1], rtol=1e-6)


def test_stops_at_a_loss():
    size, tol = 0.02, 0.05
    optimizer = optax.sgd(size, momentum=0.5)  # its memory must stop as well
    saved = [0, 5, 60, 61, 1000]

    @jax.jit
    def train(tol):
        return dln.train(NETWORK, PLAIN, optimizer, eps=EPS, steps=saved, loss_tol=tol)

    w = np.stack([NETWORK.u, NETWORK.v]) * EPS**0.5
    memory, losses, xs = np.zeros_like(w), [], []
    for _ in range(1001):
        x = w[0] * w[1]
        xs.append(x)
        losses.append(0.5 * np.sum((X @ x - Y) ** 2))
        memory = 0.5 * memory + full(0, x) * w[::-1]
        w = w - size * memory
    for tol in (0.05, 1e-30, 100.0):
        run = train(tol)
        reached = np.array(losses) <= tol
        stop = int(np.argmax(reached)) if reached.any() else 1000
        taken = np.minimum(saved, stop)
        np.testing.assert_array_equal(run.steps, taken)
        np.testing.assert_allclose(run.x, np.array(xs)[taken], rtol=1e-9)
        assert (run.loss[-1] <= tol) == reached.any()
        assert run.result == dln.RESULTS.successful
        assert run.stats["last_finite_step"] == taken[-1]


def test_lanes_that_stop_and_derivatives():
    def last(y, tol):
        problem = dln.LeastSquares(X, y)
        run = dln.train(
            NETWORK, problem, optax.sgd(0.02), eps=EPS, steps=300, loss_tol=tol, throw=False
        )
        return jnp.sum(run.x[-1] ** 2), run

    tols = jnp.array([0.05, 0.5, -1.0])
    lanes = jax.jit(jax.vmap(jax.value_and_grad(last, has_aux=True), in_axes=(None, 0)))
    (_, run), by_y = lanes(jnp.asarray(Y), tols)
    failed = run.result == dln.RESULTS.invalid_tolerance
    np.testing.assert_array_equal(failed, [False, False, True])
    assert np.all(run.loss[:2, 0] <= tols[:2]) and np.all(run.steps[:2, 0] < 300)
    # The number of steps is held: the derivative is that of as many steps without a tolerance.
    for lane in range(2):
        steps = int(run.steps[lane, 0])

        def end(y, steps=steps):
            w = np.stack([NETWORK.u, NETWORK.v]) * EPS**0.5
            for _ in range(steps):
                w = w - 0.02 * (X.T @ (X @ (w[0] * w[1]) - y)) * w[::-1]
            return np.sum((w[0] * w[1]) ** 2)

        h = 1e-6 * np.eye(N)[1]
        np.testing.assert_allclose(by_y[lane, 1], (end(Y + h) - end(Y - h)) / 2e-6, rtol=1e-6)
