"""Shallow networks of steps, and networks of which some weights are infinitely fast."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import quad, solve_ivp

import dlnjax as dln
from dlnjax._results import names_of
from dlnjax.networks import MixedDepth, Steps, TwoTimescale

N, WIDTH, EPS = 40, 0.3, 0.05
POINTS = (np.arange(N) + 0.5) / N
TARGET = np.where(POINTS > 0.45, 2.0, 0.5) + np.sin(3 * POINTS)
U, A = np.array([0.3, 0.7]), np.array([0.2, 0.5, -0.3])
OTHER, EQUAL = np.array([0.25, 0.8]), np.array([0.4, 0.4])
S = np.array([0.0, 0.02, 0.1])
FORM = dln.WeightForm()


def _problem(target=TARGET):
    scale = np.sqrt(2 / N)
    return dln.LeastSquares(scale * np.eye(N), scale * target)


def _steps(u):
    """The columns of the design of `a`, and `∂/∂t` of σ, from the two halves of the ramp."""
    t = (POINTS[:, None] - u) / WIDTH
    rise = np.where(t < 0, 4 * (t + 0.5) ** 3, 1 - 4 * (0.5 - t) ** 3)
    rise = np.where(t <= -0.5, 0, np.where(t >= 0.5, 1, rise))
    slope = np.where(np.abs(t) < 0.5, 12 * (0.5 - np.abs(t)) ** 2, 0)
    return np.column_stack([np.ones(N), rise]), slope


def _fields(a, u, target):
    """`∂/∂a` and `∂/∂u` of the mean of `(f* − f)²`."""
    B, slope = _steps(u)
    residual = target - B @ a
    return -2 * B.T @ residual / N, 2 * slope.T @ residual / N * a[1:] / WIDTH


def _scipy(u, target, s=S, eps=EPS):
    """`x` at the times `s`, by SciPy on the equations of the paper in the time of `u`."""

    def field(_, y):
        of_a, of_u = _fields(y[:3], y[3:], target)
        return -np.concatenate([of_a / eps, of_u])

    run = solve_ivp(field, (0, s[-1]), np.r_[A, u], "LSODA", s, rtol=1e-11, atol=1e-12)
    return np.array([_steps(y[3:])[0] @ y[:3] for y in run.y.T])


def _optimum(u, target):
    return np.linalg.lstsq(_steps(u)[0], target)[0]


def _scipy_limit(u, target, s=S):
    field = lambda _, u: -_fields(_optimum(u, target), u, target)[1]
    run = solve_ivp(field, (0, s[-1]), u, "DOP853", s, rtol=1e-11, atol=1e-12)
    return np.array([_steps(u)[0] @ _optimum(u, target) for u in run.y.T])


# The field has kinks, where points leave a step and a step of the solver loses its order. Errors of
# `x` are then some 100 tolerances.
TOLERANCES: dict = dict(rtol=1e-10, atol=1e-11)


class Bumps(dln.AbstractNetwork):
    """`Σ aⱼ exp(−(p − uⱼ)²/2w²)`, without kinks: steps of the solver, and their derivatives, have
    their order."""

    a: jax.Array
    u: jax.Array
    positive = False
    time_scale = lambda self, log_eps: jnp.ones_like(log_eps)
    penalty = lambda self, weight_decay: 0 * weight_decay
    initial = lambda self, log_eps: self

    def __call__(self):
        return jnp.exp(-(((jnp.asarray(POINTS)[:, None] - self.u[None]) / WIDTH) ** 2) / 2) @ self.a


def _bumps_limit(u, target, s=S):
    """`x` at the times `s`, and `u`, by SciPy."""
    bumps = lambda u: np.exp(-(((POINTS[:, None] - u) / WIDTH) ** 2) / 2)
    best = lambda u: np.linalg.lstsq(bumps(u), target, rcond=1e-10)[0]

    def field(_, u):
        slope = bumps(u) * (POINTS[:, None] - u) / WIDTH**2
        return 2 * slope.T @ (target - bumps(u) @ best(u)) / N * best(u)

    run = solve_ivp(field, (0, s[-1]), u, "DOP853", s, rtol=1e-12, atol=1e-13)
    return np.array([bumps(u) @ best(u) for u in run.y.T])


@pytest.fixture(scope="module")
def limits():
    """Flows of the limit, and the gradient of the last loss in `u` and the target: two starts, two
    equal neurons, and weight decay."""

    @jax.jit
    @jax.vmap
    def run(u, target, decay):
        def last(u, target):
            scale = np.sqrt(2 / N)
            problem = dln.LeastSquares(scale * np.eye(N), scale * target, decay)
            network = TwoTimescale(Bumps(jnp.zeros(2), u), fast="a")
            options: dict = dict(formulation=FORM, throw=False, **TOLERANCES)
            flow = dln.gradient_flow(network, problem, S, log_eps=-2000.0, **options)
            return jnp.sum((flow.x[-1] - target) ** 2) / N, (flow.x, flow.result)

        return jax.value_and_grad(last, argnums=(0, 1), has_aux=True)(u, target)

    target = np.stack([TARGET, TARGET**2, TARGET, TARGET])
    decay = np.array([0, 0, 0, 0.1])
    (_, (x, result)), gradient = run(np.stack([U, OTHER, EQUAL, U]), target, decay)
    return x, list(names_of(result)), gradient


def test_steps_against_scipy():
    network = Steps(A, U, POINTS, WIDTH)
    np.testing.assert_allclose(network(), _steps(U)[0] @ A, rtol=1e-14)
    np.testing.assert_allclose(_problem().loss(network()), np.mean((network() - TARGET) ** 2))
    # σ has the integral ½ over its width, and is symmetric.
    ramp = lambda p: float(Steps(jnp.array([0.0, 1.0]), jnp.zeros(1), jnp.array([p]), 1.0)()[0])
    np.testing.assert_allclose(quad(ramp, -0.5, 0.5)[0], 0.5, atol=1e-12)

    @jax.jit
    @jax.vmap
    def run(log_eps):
        options: dict = dict(formulation=FORM, throw=False, **TOLERANCES)
        flow = dln.gradient_flow(network, _problem(), S, log_eps=log_eps, **options)
        return flow.x, flow.x_mean

    x, mean = run(np.log([EPS, 1e-8]))
    np.testing.assert_allclose(x[0], _scipy(U, TARGET), atol=1e-6)
    dense = np.linspace(0, S[-1], 4001)
    np.testing.assert_allclose(
        mean[0, -1], np.trapezoid(_scipy(U, TARGET, dense), dense, axis=0) / S[-1], atol=1e-6
    )
    # The limit ε → 0 but for O(ε), after a layer in which `a` relaxes.
    np.testing.assert_allclose(x[1, 1:], _scipy_limit(U, TARGET)[1:], atol=1e-6)
    dln.check_network(Steps(A, U, POINTS[::10], WIDTH))


def test_limit_and_its_derivatives_against_scipy(limits):
    x, result, gradient = limits
    assert result == ["successful"] * 3 + ["invalid_decay"]
    # Errors are some 100 tolerances.
    np.testing.assert_allclose(x[0], _bumps_limit(U, TARGET), atol=1e-7)
    np.testing.assert_allclose(x[1], _bumps_limit(OTHER, TARGET**2), atol=1e-7)
    assert np.all(np.isnan(x[3]))
    loss = lambda u, target: np.mean((_bumps_limit(u, target)[-1] - target) ** 2)
    h = 1e-4  # of which differences have errors of h²
    for i, e in enumerate(np.eye(2) * h):
        slope = (loss(U + e, TARGET) - loss(U - e, TARGET)) / (2 * h)
        np.testing.assert_allclose(gradient[0][0, i], slope, rtol=1e-6)
    along = h * np.cos(5 * POINTS)
    slope = (loss(U, TARGET + along) - loss(U, TARGET - along)) / (2 * h)
    np.testing.assert_allclose(gradient[1][0] @ along / h, slope, rtol=1e-6)


def test_equal_neurons_stay_together_at_the_optimum_of_least_norm(limits):
    x, _, gradient = limits
    # SciPy's `lstsq` has the optimum of least norm, too.
    np.testing.assert_allclose(x[2], _bumps_limit(EQUAL, TARGET), atol=1e-7)
    assert np.all(np.isfinite(gradient[0][2])) and np.all(np.isfinite(gradient[1][2]))


def test_steps_in_the_limit_against_scipy():
    @jax.jit
    @jax.vmap
    def run(width):
        network = TwoTimescale(Steps(A, U, POINTS, width), fast="a")
        options: dict = dict(formulation=FORM, throw=False, **TOLERANCES)
        flow = dln.gradient_flow(network, _problem(), S, eps=0.5, **options)
        return flow.x, flow.result

    x, result = run(np.array([WIDTH, -1.0]))
    assert list(names_of(result)) == ["successful", "invalid_shape"]
    np.testing.assert_allclose(x[0], _scipy_limit(U, TARGET), atol=1e-6)
    assert np.all(np.isnan(x[1]))


def test_derivatives_of_an_optimum_of_least_norm():
    # `x = u∘v` on two rows and three columns: the optimal `v` are a line, of which the one of least
    # norm turns with `u`.
    rng = np.random.default_rng(1)
    X, y, u, along = (rng.normal(size=s) for s in ((2, 3), 2, 3, 3))

    def settled(u):
        net = TwoTimescale(dln.UV(u, jnp.zeros(3)), fast="v")
        settled: Any = net._settled(dln.LeastSquares(X, y)).network
        return settled.v

    exact = lambda t: np.linalg.pinv(X * (u + t * along)) @ y
    np.testing.assert_allclose(settled(jnp.asarray(u)), exact(0), rtol=1e-10)
    slope = lambda u: jax.jvp(settled, (u,), (along,))[1]
    first, second = jax.jvp(slope, (jnp.asarray(u),), (along,))
    h = 1e-4
    np.testing.assert_allclose(first, (exact(h) - exact(-h)) / (2 * h), rtol=1e-6)
    h = 1e-3
    np.testing.assert_allclose(
        second, (exact(h) - 2 * exact(0) + exact(-h)) / h**2, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("is_limit", [False, True])
def test_steps_of_train(is_limit):
    u, a, step = U.copy(), A.copy(), 0.01
    network = Steps(A, U, POINTS, WIDTH)
    network = TwoTimescale(network, fast="a") if is_limit else network
    run = dln.train(network, _problem(), optax.sgd(step), eps=EPS, steps=20)
    for _ in range(20):
        a = _optimum(u, TARGET) if is_limit else a
        of_a, of_u = _fields(a, u, TARGET)
        u, a = u - step * of_u, a - step / EPS * of_a
    a = _optimum(u, TARGET) if is_limit else a
    last: Any = run.network
    last = last.network if is_limit else last
    # In `run.network` arrays have a leading axis.
    np.testing.assert_allclose(last.u[0], u, rtol=1e-10)
    np.testing.assert_allclose(last.a[0] * last.unit.value[0], a, rtol=1e-9)
    np.testing.assert_allclose(run.x[0], _steps(u)[0] @ a, rtol=1e-9)
    np.testing.assert_allclose(run.s, run.t)


def test_float32():
    network = TwoTimescale(Steps(*(np.float32(v) for v in (A, U, POINTS, WIDTH))), fast="a")
    scale = np.float32(np.sqrt(2 / N))
    problem = dln.LeastSquares(scale * np.eye(N, dtype="float32"), scale * np.float32(TARGET))
    flow = dln.gradient_flow(network, problem, S, log_eps=-2000.0, formulation=FORM, rtol=1e-5)
    assert flow.x.dtype == jnp.float32
    # Some 100 tolerances, as above.
    np.testing.assert_allclose(flow.x, _scipy_limit(U, TARGET), atol=3e-3)


def test_bad_values():
    good: dict = dict(a=A, u=U, points=POINTS, width=WIDTH)
    steps = lambda **other: Steps(**good | other)
    for arguments, message in (
        (dict(a=A[:2]), "must have one entry more than `u`"),
        (dict(points=POINTS[:, None]), r"`points` must have shape \(N,\)"),
        (dict(points=POINTS * np.nan), "not finite"),
        (dict(width=0.0), "`width` must be positive and finite, got 0.0"),
        (dict(width=POINTS), "`width` must be a scalar"),
    ):
        with pytest.raises(ValueError, match=message):
            steps(**arguments)
    for fast in ("points", "b", "penalty"):
        with pytest.raises(ValueError, match="must name weights of Steps, one of 'a', 'u'"):
            TwoTimescale(steps(), fast=fast)
    with pytest.raises(ValueError, match="Linear has no weights but 'u'"):
        TwoTimescale(dln.Linear(U), fast="u")
    for network, fast in ((steps(), "u"), (dln.Deep(U, U, depth=3), "u")):
        with pytest.raises(TypeError, match="must be linear in its weights 'u'"):
            TwoTimescale(network, fast=fast)
    with pytest.raises(ValueError, match="`fast` must name weights of MixedDepth, one of none"):
        TwoTimescale(MixedDepth(dln.Linear(U), dln.UV(U, 0 * U)), fast="linear")
    decayed = dln.LeastSquares(np.eye(N), TARGET, 0.1)
    for network in (steps(), TwoTimescale(steps(), fast="a")):
        with pytest.raises(ValueError, match="takes no weight decay, got 0.1"):
            dln.gradient_flow(network, decayed, S, eps=EPS, formulation=FORM)
    logistic = dln.Logistic(np.eye(N), np.sign(TARGET - 2))
    with pytest.raises(TypeError, match="The square of `LeastSquares` is assumed here"):
        dln.gradient_flow(TwoTimescale(steps(), fast="a"), logistic, S, eps=EPS, formulation=FORM)
    with pytest.raises(TypeError, match="has no dual form"):
        dln.gradient_flow(steps(), _problem(), S, eps=EPS)
