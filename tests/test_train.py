"""`train`, whatever the optimiser: against NumPy loops, statistics of gradients and differences."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from training import EPS, NETWORK, PLAIN, PROBLEM, SIZE, STEPS, D, N, X, Y, full, loop, sgd

import dlnjax as dln
from dlnjax._train.batches import CHUNK


def heavy_ball(w, memory, g, size):
    memory = 0.9 * memory + g(w)
    return w - size * memory, memory


def nesterov(w, memory, g, size):
    memory = 0.9 * memory + g(w)
    return w - size * (0.9 * memory + g(w)), memory


def sharpness_aware(w, memory, g, size):
    away = g(w)
    return w - size * g(w + 0.05 * away / np.linalg.norm(away)), memory


SAM = optax.contrib.sam(
    optax.sgd(SIZE), optax.chain(optax.contrib.normalize(), optax.sgd(0.05)), opaque_mode=True
)


@pytest.mark.parametrize(
    ("optimizer", "move"),
    [
        (optax.sgd(SIZE, momentum=0.9), heavy_ball),
        (optax.sgd(SIZE, momentum=0.9, nesterov=True), nesterov),
        (SAM, sharpness_aware),
    ],
    ids=["heavy ball", "Nesterov", "SAM"],
)
def test_optimisers_against_loops(optimizer, move):
    saved = [0, 1, 90, 100]
    run = dln.train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=saved)
    xs, t, z = loop(full, move)
    np.testing.assert_allclose(run.x, xs[saved], rtol=1e-9, atol=1e-12)
    if move is sharpness_aware:
        np.testing.assert_allclose(run.t, t[saved], rtol=1e-12)
        np.testing.assert_allclose(run.x_mean[1:], z[saved[1:]] / t[saved[1:], None], rtol=1e-9)
    else:  # in the long run 10 times the step size
        np.testing.assert_allclose(run.t[3] - run.t[2], 10 * 10 * SIZE, rtol=1e-4)


def test_lanes_share_the_data():
    """Runs that differ in `ε`, the network or the weight decay hold no copy of `X` a lane."""

    def run(log_eps, u, decay):
        problem = dln.LeastSquares(X, Y, weight_decay=decay)
        network, optimizer = dln.UV(u, jnp.zeros(D)), optax.sgd(SIZE)
        run = dln.train(network, problem, optimizer, log_eps=log_eps, steps=STEPS, throw=False)
        return run.x

    lanes = 7
    arguments = jnp.full(lanes, -3.0), jnp.ones((lanes, D)), jnp.full(lanes, 0.1)
    program = jax.jit(jax.vmap(run)).lower(*arguments).as_text()
    assert f"tensor<{N}x{D}xf64>" in program
    assert f"tensor<{lanes}x{N}x{D}xf64>" not in program


def test_gradient_descent_with_a_schedule():
    schedule = optax.piecewise_constant_schedule(SIZE, {5: 0.5, 60: 0.1})
    saved = [0, 1, 7, 60, CHUNK, STEPS]
    run = dln.train(NETWORK, PROBLEM, optax.sgd(schedule), eps=EPS, steps=saved)
    size = lambda k: SIZE * (0.5 if k >= 5 else 1) * (0.1 if k >= 60 else 1)
    xs, t, z = loop(full, sgd, size=size)
    np.testing.assert_allclose(run.x, xs[saved], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.loss, 0.5 * np.sum((xs[saved] @ X.T - Y) ** 2, axis=1))
    np.testing.assert_array_equal(run.steps, saved)
    assert isinstance(run.network, dln.UV)
    np.testing.assert_array_equal(run.network.u * run.network.v, run.x)
    np.testing.assert_allclose(run.t, t[saved], rtol=1e-9)
    np.testing.assert_allclose(run.s, t[saved] / (-np.log(EPS) / 2), rtol=1e-9)
    np.testing.assert_allclose(run.x_mean[0], xs[0])
    np.testing.assert_allclose(run.x_mean[1:], z[saved[1:]] / t[saved[1:], None], rtol=1e-9)
    assert run.result == dln.RESULTS.successful
    assert run.stats["last_finite_step"] == STEPS


def sgd_runs(size, keys, steps, noise=0.0, network=NETWORK):
    def one(size, key):
        return dln.train(
            network,
            PLAIN,
            optax.sgd(size),
            eps=EPS,
            steps=steps,
            batch_size=np.int64(2),
            label_noise=noise,
            key=key,
            throw=False,
        )

    return jax.jit(jax.vmap(one, in_axes=(None if jnp.ndim(size) == 0 else 0, 0)))(size, keys)


def test_stochastic_gradients():
    # From v = 0 the first step leaves −γ g u₀ there.
    keys = jr.split(jr.key(0), 1000)
    noise = 0.5
    network = dln.UV(np.ones(D), np.zeros(D))
    run = sgd_runs(jnp.asarray(SIZE), keys, [1, 20], noise, network)
    g = -np.asarray(run.network.v)[:, 0] / (SIZE * EPS**0.5)
    error = np.std(g, axis=0) / len(keys) ** 0.5
    assert np.all(np.abs(np.mean(g, axis=0) - full(0, np.zeros(D))) < 5 * error)
    # The variance of a batch drawn with replacement, and of its labels' noise.
    each = -N * X * Y[:, None]
    variance = np.var(each, axis=0) + noise**2 * N * np.sum(X**2, axis=0)
    np.testing.assert_allclose(np.var(g, axis=0), variance / 2, rtol=0.25)
    # They depend on key and step alone: the same in a whole chunk, with fewer keys beside.
    long = sgd_runs(jnp.asarray(SIZE), keys[:3], [20, CHUNK], noise, network)
    np.testing.assert_allclose(long.x[:, 0], run.x[:3, 1], rtol=1e-9)
    assert len(np.unique(np.asarray(long.x[:, 0, 0]))) == 3


def test_sums_do_not_drift_in_float32():
    # At a minimum x stays. Added one by one, this t is off by 1e-4.
    y = np.full(1, 0.01, np.float32)
    problem = dln.LeastSquares(np.ones((1, 1), np.float32), y)
    steps = np.array([10_000])
    run = dln.train(dln.USquared(np.ones(1)), problem, optax.sgd(0.1), eps=0.01, steps=steps)
    assert run.t.dtype == np.float32
    np.testing.assert_allclose(run.t, 0.1 * steps, rtol=3e-6)
    np.testing.assert_allclose(run.x_mean * run.t[:, None], 1e-3 * steps[:, None], rtol=1e-5)


def test_deep_network_and_quadratic():
    problem = dln.Quadratic(X.T @ X, X.T @ Y, 0.5 * Y @ Y)
    network = dln.Deep(np.ones(D), np.ones(D), depth=3.0)
    run = dln.train(network, problem, optax.sgd(SIZE), eps=0.1, steps=[20, 40])
    w = np.full((2, D), 0.1 ** (1 / 3))
    xs = []
    for _ in range(40):
        x = w[0] ** 3 - w[1] ** 3
        xs.append(x)
        w = w - SIZE * 3 * w**2 * full(0, x) * np.array([[1.0], [-1.0]])
    np.testing.assert_allclose(run.x[1], w[0] ** 3 - w[1] ** 3, rtol=1e-10)
    # The sum of the gradients, as the dual of the flow: s r − M z.
    z = np.sum(xs, axis=0) * SIZE / network.time_scale(jnp.log(0.1))
    np.testing.assert_allclose(run.x_mean[1], np.mean(xs, axis=0), rtol=1e-10)
    np.testing.assert_allclose(run.dual[1], run.s[1] * X.T @ Y - X.T @ (X @ z), rtol=1e-9)
    assert run.sides is None and isinstance(run.network, dln.Deep)
    with pytest.raises(ValueError, match="known for the rows of a problem"):
        dln.train(NETWORK, problem, optax.sgd(SIZE), eps=EPS, steps=3, batch_size=1, key=jr.key(0))


def test_derivatives():
    def end(y, size, log_eps):
        run = dln.train(
            NETWORK,
            dln.LeastSquares(X, y),
            optax.sgd(size),
            log_eps=log_eps,
            steps=[20, CHUNK],
            throw=False,
        )
        return jnp.sum(run.x_mean[0] ** 2) + jnp.sum(run.x[1] ** 2)

    at = (jnp.asarray(Y), jnp.asarray(SIZE), jnp.asarray(np.log(EPS)))
    end = jax.jit(end)
    by_y, by_size, by_log_eps = jax.jit(jax.grad(end, argnums=(0, 1, 2)))(*at)
    h = 1e-6

    def difference(i, e):
        up, down = list(at), list(at)
        up[i], down[i] = at[i] + e, at[i] - e
        return (end(*up) - end(*down)) / (2 * h)

    np.testing.assert_allclose(by_y[2], difference(0, h * jnp.eye(N)[2]), rtol=1e-6)
    np.testing.assert_allclose(by_size * SIZE, difference(1, h * SIZE), rtol=1e-6)
    np.testing.assert_allclose(by_log_eps, difference(2, h), rtol=1e-6)
