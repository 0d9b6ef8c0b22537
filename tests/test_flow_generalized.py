"""Flows of generalised linear models: the dual form against the weights, integrated by SciPy, far
beyond the jumps, and against finite differences. `test_flow_rodas5p.py` has the order of the steps,
and their Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses import Mixed
from scipy.integrate import solve_ivp
from scipy.special import expit

import dlnjax as dln
from dlnjax._results import names_of

N, D, S = 6, 9, 6.0
rng = np.random.default_rng(0)
X = rng.normal(size=(N, D)) / np.sqrt(N)
LABELS, REAL = np.sign(rng.normal(size=N)), rng.normal(size=N)
COUNTS = rng.poisson(2.0, N).astype(float)
LOSSES = (
    dln.LogisticLoss(),
    dln.PoissonLoss(),
    dln.HuberLoss(jnp.asarray(0.3)),
    dln.ExponentialLoss(),
)
TARGETS = (LABELS, COUNTS, REAL, LABELS)
DERIVATIVES = (
    lambda u: -LABELS * expit(-LABELS * u),
    lambda u: np.exp(u) - COUNTS,
    lambda u: np.clip(u - REAL, -0.3, 0.3),
    lambda u: -LABELS * np.exp(-LABELS * u),
)


def _uv(force, decay, log_eps):
    b, g, scale = np.ones(D), 0.3 * np.ones(D), np.exp(log_eps / 2)

    def field(s, weights):
        u, v = weights[:D], weights[D:]
        pull = force(u * v)
        return -log_eps / 2 * np.r_[-pull * v - decay * u, -pull * u - decay * v]

    return dln.UV(b, g), field, np.r_[b, g] * scale, lambda w: w[:D] * w[D:]


def _u_squared(force, decay, log_eps):
    shape = np.linspace(0.5, 1.5, D)
    field = lambda s, u: log_eps / 2 * (force(u**2) + decay) * u
    return dln.USquared(shape), field, shape * np.exp(log_eps / 2), lambda u: u**2


def _deep(force, decay, log_eps):
    shape = np.concatenate([np.ones(D), np.linspace(0.8, 1.2, D)])
    rate = np.exp(-log_eps / 3) / 3

    def field(s, weights):
        u, v = weights[:D], weights[D:]
        pull = force(u**3 - v**3)
        return rate * 3 * np.r_[-pull * u**2, pull * v**2]

    network = dln.Deep(shape[:D], shape[D:], depth=3.0)
    return network, field, shape * np.exp(log_eps / 3), lambda w: w[:D] ** 3 - w[D:] ** 3


@pytest.mark.parametrize(
    "of, decay", [(_uv, 0.0), (_uv, 0.05), (_u_squared, 0.0), (_u_squared, 0.1), (_deep, 0.0)]
)
def test_dual_against_weights(of, decay):
    kinds, logs = np.repeat(np.arange(4), 2), np.tile(np.log([1e-2, 1e-6]), 4)
    targets = np.stack([TARGETS[k] for k in kinds])
    network, *_ = of(None, decay, -1.0)

    @jax.jit
    @jax.vmap
    def solve(kind, y, log_eps):
        problem = dln.GeneralizedLinear(X, y, Mixed(kind, jnp.asarray(0.3)), decay)
        return dln.gradient_flow(network, problem, np.array([S]), log_eps=log_eps).x[0]

    got = np.asarray(solve(kinds, targets, logs))
    for k, log_eps, x in zip(kinds, logs, got, strict=True):
        force = lambda x, k=k: X.T @ DERIVATIVES[k](X @ x)
        _, field, start, model = of(force, decay, log_eps)
        run = solve_ivp(field, (0, S), start, "DOP853", rtol=1e-12, atol=1e-15)
        want = model(run.y[:, -1])
        # 100 times rtol: errors of x beside those of x̄. Huber's kinks cost a factor.
        assert np.abs(x - want).max() < 1e-6 * np.abs(want).max(), (k, log_eps)


CLASSES = {
    "logistic": (lambda X: dln.Logistic(X, LABELS), LOSSES[0], LABELS),
    "Poisson": (lambda X: dln.Poisson(X, COUNTS), LOSSES[1], COUNTS),
    "Huber": (lambda X: dln.Huber(X, REAL, delta=0.3), LOSSES[2], REAL),
    "exponential": (lambda X: dln.Exponential(X, LABELS), LOSSES[3], LABELS),
}


@pytest.mark.parametrize("name", CLASSES)
def test_losses_and_their_conjugates(name):
    of, loss, targets = CLASSES[name]
    problem, x = of(X), jnp.asarray(np.random.default_rng(1).normal(size=(3, D)))
    u, y = x @ X.T, jnp.broadcast_to(jnp.asarray(targets), (3, N))
    value = lambda u: np.asarray(loss.value(u, y))
    np.testing.assert_allclose(problem.loss(x), value(u).sum(axis=-1), rtol=1e-14)
    h = 1e-5
    slope = np.asarray(loss.derivative(u, y))
    np.testing.assert_allclose(slope, (value(u + h) - value(u - h)) / (2 * h), atol=1e-8)
    np.testing.assert_allclose(problem.gradient(x), slope @ X, rtol=1e-12)
    bends = (value(u + h) - 2 * value(u) + value(u - h)) / h**2
    is_kink = (name == "Huber") & (np.abs(np.abs(u - y) - 0.3) < 1e-3)
    curvature = np.asarray(loss.curvature(u, y))
    np.testing.assert_allclose(curvature[~is_kink], bends[~is_kink], atol=1e-4)
    # f*(p) = sup pu − f(u) over a grid; it is attained at p = f′(u).
    grid = np.linspace(-30, 30, 20001)
    on_grid = jnp.stack([loss.value(jnp.full_like(u, v), y) for v in grid[::100]])
    coarse = np.max(slope * grid[::100, None, None] - np.asarray(on_grid), axis=0)
    conjugate = np.asarray(loss.conjugate(jnp.asarray(slope), y))
    assert np.all(conjugate >= coarse - 1e-9)
    np.testing.assert_allclose(conjugate, slope * u - value(u), atol=1e-12)


def test_far_beyond_the_last_jump():
    # d ≤ n, not separable: x(s) is the minimiser, which Newton's method finds, for any s and ε.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 6)) / np.sqrt(40)
    y = np.sign(X @ [8.0, -6, 4, 0, 0, 0] + 1.5 * rng.normal(size=40))
    want = np.zeros(6)
    for _ in range(30):
        p = expit(-y * (X @ want))
        want += np.linalg.solve((X.T * (p * (1 - p))) @ X, X.T @ (y * p))
    network = dln.UV(np.ones(6), np.zeros(6))
    solve = jax.jit(
        jax.vmap(
            lambda log_eps, far: dln.gradient_flow(
                network,
                dln.Logistic(X, y),
                jnp.stack([far, 10 * far]),
                log_eps=log_eps,
            )
        )
    )
    flow = solve(np.array([-5.0, -50, -2000, -2000]), np.array([1e3, 1e5, 1e3, 1e8]))
    np.testing.assert_allclose(flow.x, np.broadcast_to(want, (4, 2, 6)), rtol=1e-6, atol=1e-6)
    # The dual moves no more: Xᵀν = s (−∇ℓ) averaged.
    np.testing.assert_allclose(flow.dual[3, 0], flow.dual[3, 1], rtol=1e-6)


def test_both_methods_agree():
    # Rank above 24: `AutoTsit5` is the default; stiff plateaus need Rodas5P.
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(26, 40)) / 5, rng.poisson(1.0, 26).astype(float)
    network, problem = dln.UV(np.ones(40), np.zeros(40)), dln.Poisson(X, y)
    s = np.array([0.5, 2.0, 20.0])
    run = lambda solver: dln.gradient_flow(network, problem, s, log_eps=-100.0, solver=solver)
    a, b = run(None), run(dln.Rodas5P())
    np.testing.assert_allclose(a.x_mean, b.x_mean, atol=1e-6)


def test_derivatives():
    # Of x̄ in the design, the shape, λ and log ε, in both modes, against differences.
    s, v = np.array([1.0, 4.0]), np.random.default_rng(3).normal(size=(2, D))

    def objective(t):
        X_t = X + 0.1 * t[0] * np.outer(np.linspace(-1, 1, N), np.ones(D))
        network = dln.UV(np.ones(D) * (1 + 0.1 * t[1]), np.linspace(0, 0.3, D))
        problem = dln.Logistic(X_t, LABELS, weight_decay=0.02 * (1 + t[2]))
        flow = dln.gradient_flow(network, problem, s, log_eps=-12.0 + t[3], rtol=1e-10, atol=1e-11)
        return jnp.sum(v * flow.x_mean)

    at = jnp.zeros(4)
    forward, back = jax.jit(jax.jacfwd(objective))(at), jax.jit(jax.grad(objective))(at)
    np.testing.assert_allclose(forward, back, rtol=1e-7, atol=1e-9)
    h, value = 1e-4, jax.jit(jax.vmap(objective))
    steps = h * np.eye(4)
    differences = (value(steps) - value(-steps)) / (2 * h)
    np.testing.assert_allclose(forward, differences, rtol=1e-5, atol=1e-7)


def test_bad_input():
    with pytest.raises(ValueError, match=r"`y` must be 1 or −1, got y\[2\] = 2.0"):
        dln.Logistic(np.eye(3), np.array([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match=r"counts ≥ 0, got y\[0\] = -1.0"):
        dln.Poisson(np.eye(2), np.array([-1.0, 2.0]))
    with pytest.raises(ValueError, match="`delta` must be positive"):
        dln.Huber(np.eye(2), np.array([-1.0, 2.0]), delta=0.0)
    with pytest.raises(TypeError, match="not piecewise linear"):
        dln.lasso_path(dln.Poisson(np.eye(2), np.ones(2)))
    linear, logistic = dln.Linear(np.ones(D)), dln.Logistic(X, LABELS)
    with pytest.raises(TypeError, match="dual form of `Linear` is that of the square"):
        dln.gradient_flow(linear, logistic, np.ones(1), eps=1e-3)
    with pytest.raises(TypeError, match="dual form of `Linear` is that of the square"):
        dln.crossing_times(linear, logistic, 1.0, 0.5, eps=1e-3)
    with pytest.warns(UserWarning, match="taken as −1 and 1"):
        problem = dln.Logistic(np.eye(2), np.array([0.0, 1.0]))
    np.testing.assert_array_equal(problem.y, [-1, 1])


def test_bad_lanes():
    labels = np.stack([LABELS, np.abs(LABELS), np.where(np.arange(N) == 1, 3.0, LABELS)])
    network = dln.UV(np.ones(D), np.zeros(D))
    solve = lambda y: dln.gradient_flow(
        network, dln.Logistic(X, y), np.ones(1), eps=1e-3, throw=False
    )
    flow = jax.jit(jax.vmap(solve))(labels)
    assert list(names_of(flow.result)) == ["successful", "successful", "invalid_data"]
    assert np.isfinite(flow.x[:2]).all() and np.isnan(flow.x[2]).all()


def test_the_certificate_bounds_the_gap():
    # The least objective by a proximal gradient method, which only makes the gap larger.
    rng = np.random.default_rng(4)
    y, s = np.sign(rng.normal(size=(20, N))), np.array([0.5, 1.0, 2.0, 4.0])
    network = dln.UV(np.ones(D), np.zeros(D))

    @jax.jit
    @jax.vmap
    def both(y):
        problem = dln.Logistic(X, y)
        flow = dln.gradient_flow(network, problem, s, log_eps=-40.0)
        step = 4 / np.linalg.norm(X, 2) ** 2

        def prox(i, x):
            x = x - step * problem.gradient(x)
            return jnp.sign(x) * jnp.maximum(jnp.abs(x) - step / s[:, None], 0)

        best = jax.lax.fori_loop(0, 20000, prox, flow.x_mean)
        return dln.certificate(problem, flow), problem.lasso_objective(
            flow.x_mean, s
        ) - problem.lasso_objective(best, s)

    bound, gap = map(np.asarray, both(y))
    assert np.all(gap >= -1e-12) and np.all(bound >= gap - 1e-12)
    # Not trivial: at the first time the average is close to the lasso.
    assert np.median(bound[:, 0]) < 0.1


def test_gaps_at_the_end_of_a_domain_have_derivatives():
    # Where predictions saturate, dual points are 0 or 1 to rounding. Against differences.
    for problem in (dln.Logistic(X, LABELS), dln.Poisson(X, COUNTS)):
        x = -900 * jnp.eye(D)[0]
        for kappa in (1.0, 1e4):
            gap = lambda x, kappa=kappa, problem=problem: problem.duality_gap(x, kappa)
            slope = jax.grad(gap)(x)
            assert np.all(np.isfinite(slope))
            step = 1e-3 * jnp.eye(D)[0]
            difference = (gap(x + step) - gap(x - step)) / 2e-3
            np.testing.assert_allclose(slope[0], difference, rtol=1e-5)
