"""`train` against NumPy loops, the flow and closed forms; the effective initialisation."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import dlnjax as dln
from dlnjax._train.loop import CHUNK

N, D = 5, 8
EPS = 1e-2
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
SHAPE = RNG.uniform(0.5, 1.5, (2, D)) + np.array([[1.0], [0.0]])
DECAY = 0.3
PROBLEM = dln.LeastSquares(X, Y, weight_decay=DECAY)
PLAIN = dln.LeastSquares(X, Y)
NETWORK = dln.UV(*SHAPE)
SIZE = 0.01
STEPS = CHUNK + 10  # a whole chunk and a part of one


def loop(gradient, move, steps=STEPS, size=lambda k: SIZE):
    """`x` after every step, the times, and the sums of `x`, of the update rule `move`."""
    w = SHAPE * EPS**0.5
    memory = np.zeros_like(w)
    xs, t, z = [w[0] * w[1]], [0.0], [np.zeros(D)]
    for k in range(steps):
        g = lambda w, k=k: gradient(k, w[0] * w[1]) * w[::-1] + DECAY * w
        x = w[0] * w[1]
        w, memory = move(w, memory, g, size(k))
        xs.append(w[0] * w[1])
        t.append(t[-1] + size(k))
        z.append(z[-1] + size(k) * x)
    return np.array(xs), np.array(t), np.array(z)


def full(k, x):
    return X.T @ (X @ x - Y)


def sgd(w, memory, g, size):
    return w - size * g(w), memory


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


def test_small_steps_approach_the_flow_linearly():
    # One coordinate of u∘u, where the flow and its average are known.
    target, log_eps = 2.0, np.log(EPS)
    network = dln.USquared(np.ones(1))
    problem = dln.LeastSquares(np.ones((1, 1)), np.array([target]))
    t = np.array([0.5, 1.0])
    flow = target / (1 + (target / EPS - 1) * np.exp(-4 * target * t))
    mean = target - np.log(flow / EPS) / (4 * t)
    counts = np.array([200, 400, 800])
    steps = np.unique([1, 2, 3, *counts, *2 * counts])
    train = lambda size: dln.train(network, problem, optax.sgd(size), eps=EPS, steps=steps)
    run = jax.vmap(train)(t[0] / counts)
    errors = []
    for lane, count in enumerate(counts):
        at = np.searchsorted(steps, [count, 2 * count])
        np.testing.assert_allclose(run.s[lane, at], 4 * t / -log_eps, rtol=1e-10)
        errors.append(np.abs([run.x[lane, at, 0] - flow, run.x_mean[lane, at, 0] - mean]))
    slopes = np.polyfit(np.log(1 / counts), np.log(errors).reshape(3, 4), 1)[0]
    np.testing.assert_allclose(slopes, 1, atol=0.05)
    # u ← u(1 − 2γ(u² − σ)): three steps by hand.
    u = EPS**0.5
    for i in range(3):
        u *= 1 - 2 * t[0] / counts[0] * (u**2 - target)
        np.testing.assert_allclose(run.x[0, i, 0], u**2, rtol=1e-13)
    with pytest.raises(TypeError, match="USquared"):
        dln.effective_initialization(problem, run)


def test_small_steps_approach_the_flow_of_several_coordinates():
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(3, 4)), rng.normal(size=3)
    network, problem = dln.UV(np.ones(4), 0.1 * np.ones(4)), dln.LeastSquares(X, y)
    counts = np.array([400, 800, 1600])
    end = 4.0  # in s; t = s·log(1/ε)/2
    t = end * np.log(1 / EPS) / 2
    at = np.unique([counts // 2, counts])
    run = jax.vmap(lambda size: dln.train(network, problem, optax.sgd(size), eps=EPS, steps=at))(
        t / counts
    )
    flow = dln.gradient_flow(
        network, problem, np.array([end / 2, end]), eps=EPS, rtol=1e-12, atol=1e-13
    )
    errors = []
    for lane, count in enumerate(counts):
        rows = np.searchsorted(at, [count // 2, count])
        np.testing.assert_allclose(run.s[lane, rows], flow.s, rtol=1e-12)
        errors.append([run.x[lane, rows] - flow.x, run.x_mean[lane, rows] - flow.x_mean])
    size = np.abs(errors).max(axis=-1).reshape(3, -1)
    slopes = np.polyfit(np.log(1 / counts), np.log(size), 1)[0]
    np.testing.assert_allclose(slopes, 1, atol=0.05)


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
    with pytest.raises(ValueError, match="needs rows"):
        dln.train(NETWORK, problem, optax.sgd(SIZE), eps=EPS, steps=3, batch_size=1, key=jr.key(0))


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
        ({"eps": None}, ValueError, "exactly one of `eps` and `log_eps`"),
    ],
)
def test_bad_input(change, error, message):
    arguments = {"eps": EPS, "steps": 3} | change
    with pytest.raises(error, match=re.escape(message)):
        dln.train(NETWORK, PROBLEM, optax.sgd(SIZE), **arguments)


def test_bad_types():
    train: Any = getattr(dln.train, "__wrapped__", dln.train)  # past the checks of types in tests
    optimizer = optax.sgd(SIZE)
    with pytest.raises(TypeError, match="optax.sgd"):
        train(NETWORK, PROBLEM, 1e-3, eps=EPS, steps=3)
    with pytest.raises(TypeError, match="gradient_transformation"):
        train(NETWORK, PROBLEM, optax.MultiSteps(optimizer, 2), eps=EPS, steps=3)
    with pytest.raises(TypeError, match="ask for the loss"):
        train(NETWORK, PROBLEM, optax.polyak_sgd(), eps=EPS, steps=3)
    with pytest.raises(TypeError, match="must be a key, got 0"):
        train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=3, batch_size=2, key=0)
    with pytest.raises(ValueError, match="must be one key"):
        keys = jr.split(jr.key(0), 3)
        train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=3, batch_size=2, key=keys)
    with pytest.raises(TypeError, match="whole number"):
        train(NETWORK, PROBLEM, optimizer, eps=EPS, steps=3, batch_size=2.0, key=jr.key(0))


def _split(u_size, v_size):
    """Of the vector of weights `(u, v)`, each half in steps of its own."""
    sizes = jnp.repeat(jnp.array([u_size, v_size]), D)
    return optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda updates, state, params=None: (-(sizes * jnp.asarray(updates)), state),
    )


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
    if name in ("SGD", "split evenly", "no clipping"):
        xs, t, _ = loop(full, sgd, steps=40)
        np.testing.assert_allclose(run.x, xs[[0, 1, 2, 40]], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(run.t, t[[0, 1, 2, 40]], rtol=1e-12)


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
