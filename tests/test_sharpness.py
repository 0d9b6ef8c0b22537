"""`sharpness`: against Hessians by differences, closed forms and gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp

import dlnjax as dln

# pyright: reportCallIssue=false

N, D = 4, 7
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)) / 2, RNG.normal(size=N)
U, V = RNG.uniform(0.5, 1.5, (2, D)) + np.array([[1.0], [0.0]])
TIMES = np.array([0.0, 1.0, 3.0, 10.0])


def powers(p):
    """`x = u^p − v^p`, and the gradient in the weights `(u, v)` for one in `x`."""
    x = lambda w: w[:D] ** p - w[D:] ** p
    return x, lambda w, g: p * w ** (p - 1) * np.r_[g, -g]


# The networks, x as a function of all weights, the gradient in the weights for one in x, and the
# sum of squares that the decay multiplies.
UV = dln.UV(U, V), lambda w: w[:D] * w[D:], lambda w, g: np.r_[g * w[D:], g * w[:D]], 0.5
SQUARE = dln.USquared(U), lambda w: w**2, lambda w, g: 2 * w * g, 1.0
TWO = dln.Deep(U, V, depth=2), *powers(2), 1.0
DEEP = dln.Deep(U, V, depth=3.5), *powers(3.5), 0.0
CASES = {
    "UV": (UV, 0.0),
    "UV with decay": (UV, 0.2),
    "USquared with decay": (SQUARE, 0.2),
    "depth 2 with decay": (TWO, 0.2),
    "depth 3.5": (DEEP, 0.0),
}


def largest_by_differences(loss, w, h=1e-4):
    """The largest eigenvalue of the Hessian of `loss` at `w`, by differences of its values."""
    step = h * np.eye(len(w))
    H = np.array([[loss(w + a + b) - loss(w + a - b) for b in step] for a in step])
    H -= np.array([[loss(w - a + b) - loss(w - a - b) for b in step] for a in step])
    return np.linalg.eigvalsh(H / (4 * h * h))[-1]


def trained(case, problem, eps, times):
    """The weights at the times `s`, by SciPy on the weights themselves."""
    network, x_of, pull, decays = case
    log_eps = jnp.log(eps)
    start = np.concatenate(jax.tree.leaves(network.initial(log_eps))[:2])
    scale, decay = float(network.time_scale(log_eps)), float(problem.weight_decay)
    velocity = lambda s, w: -scale * (pull(w, X.T @ (X @ x_of(w) - Y)) + 2 * decay * decays * w)
    span = (0.0, times[-1])
    return solve_ivp(velocity, span, start, "DOP853", times, rtol=1e-10, atol=1e-12).y.T


@pytest.mark.parametrize("name", CASES)
def test_is_that_of_the_weights(name):
    case, decay = CASES[name]
    network, x_of, _, decays = case
    problem, eps = dln.LeastSquares(X, Y, decay), 1e-2
    flow = dln.gradient_flow(network, problem, TIMES, eps=eps, rtol=1e-9, atol=1e-10)
    weights = trained(case, problem, eps, TIMES)
    loss = lambda w: 0.5 * np.sum((X @ x_of(w) - Y) ** 2) + decay * decays * np.sum(w**2)
    want = [largest_by_differences(loss, w) for w in weights]
    # The differences have an error of h² and of rounding/h², 1e-8 both.
    np.testing.assert_allclose(dln.sharpness(network, problem, flow), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("network", "depth", "factor"),
    [
        (dln.UV(np.ones(D), np.zeros(D)), 2, 2),
        (dln.USquared(np.ones(D)), 2, 4),
        (dln.Deep(np.ones(D), np.ones(D), depth=3), 3, 9),
    ],
    ids=["UV", "USquared", "Deep"],
)
def test_at_a_tiny_start(network, depth, factor):
    # From log ε = −2000: correlations at the start, and X diag(k) Xᵀ where ∇ℓ = 0.
    y = Y if not network.positive else X @ np.arange(1.0, D + 1)
    problem = dln.LeastSquares(X, y)
    flow = dln.gradient_flow(network, problem, np.array([0.0, 1e4]), log_eps=-2000.0)
    start, end = dln.sharpness(network, problem, flow)
    g, x = -X.T @ y, np.asarray(flow.x[1])
    if depth == 2:
        first = np.max(np.abs(g)) if not network.positive else 2 * np.max(g)
    else:
        first = 6 * np.max(np.abs(g)) * np.exp(-2000 / 3)
    np.testing.assert_allclose(start, first, rtol=1e-10)
    k = factor * np.abs(x) ** (2 - 2 / depth)
    np.testing.assert_allclose(end, np.linalg.eigvalsh((X * k) @ X.T)[-1], rtol=1e-6)


def test_gradient_descent_stays_below_two_over_it_and_leaves_above():
    problem, network = dln.LeastSquares(X, Y), dln.UV(np.ones(D), np.zeros(D))
    flow = dln.gradient_flow(network, problem, np.array([0.0, 1e4]), eps=1e-2)
    _, value = dln.sharpness(network, problem, flow)
    w = weights_at(np.asarray(flow.x[1]), 1e-2) + 1e-4 * RNG.normal(size=2 * D)

    @jax.jit
    def run(step_size):  # at ε = 0.1, the start √ε (u, v) is w
        start = dln.UV(w[:D] / 0.1**0.5, w[D:] / 0.1**0.5)
        optimizer = optax.sgd(step_size)
        return dln.train(start, problem, optimizer, eps=0.1, steps=[0, 1000], throw=False).loss

    below, above = run(0.98 * 2 / value), run(1.02 * 2 / value)
    # A perturbation of 1e-4 shrinks by .96 a step, or grows by 1.04.
    assert below[1] < 1e-9 * below[0] and not above[1] < 100 * above[0]


def weights_at(x, eps):
    """`(u, v)` at `x = uv`, of the flow from `(√ε, 0)`, which conserves `u² − v² = ε`."""
    u = np.sqrt((eps + np.sqrt(eps**2 + 4 * x**2)) / 2)
    return np.concatenate([u, x / u], axis=-1)


def flow_at(x, dual, log_eps, s):
    """A flow with these values: sharpness reads no others."""
    result = dln.RESULTS.successful
    return dln.Flow(s, x, x, x, dual, log_eps, result, {}, positive=False)


def test_another_loss_and_failed_lanes():
    class Logistic(dln.LeastSquares):
        loss = lambda self, x: jnp.sum(jnp.logaddexp(0.0, -self.y * (x @ self.X.T)), axis=-1)
        gradient = lambda self, x: jax.grad(lambda x: jnp.sum(self.loss(x)))(x)

    network, signs, x = dln.UV(np.ones(D), np.zeros(D)), np.sign(Y), RNG.normal(size=(2, 1, D))
    log_eps, s = jnp.log(1e-2), jnp.ones(1)

    @jax.jit
    @jax.vmap
    def at(x):  # the dual of such a flow is NaN
        return dln.sharpness(network, Logistic(X, signs), flow_at(x, x + np.nan, log_eps, s))

    good, failed = at(np.stack([x[0], x[1] + np.nan]))
    loss = lambda w: np.sum(np.logaddexp(0, -signs * (X @ (w[:D] * w[D:]))))
    want = largest_by_differences(loss, weights_at(x[0, 0], 1e-2))
    np.testing.assert_allclose(good, want, rtol=1e-6)  # as above
    assert np.isnan(failed)


@pytest.mark.parametrize("case", [UV, DEEP], ids=["UV", "Deep"])
def test_derivatives(case):
    network = case[0]
    x, dual = 0.3 * RNG.normal(size=D), 0.1 * RNG.uniform(-1, 1, D)
    if case is UV:
        x[0] = 0.0  # as at s = 0 where q⁺ = q⁻

    @jax.jit
    def at(x, dual, y, log_eps):
        flow = flow_at(x[None], dual[None], log_eps, jnp.ones(1))
        return dln.sharpness(network, dln.LeastSquares(X, y), flow)[0]

    where = tuple(map(jnp.asarray, (x, dual, Y, -3.0)))
    away = tuple(jnp.asarray(RNG.normal(size=v.shape)) for v in where)
    h = 1e-6
    up, down = (at(*(v + e * a for v, a in zip(where, away, strict=True))) for e in (h, -h))
    forward = jax.jit(lambda *a: jax.jvp(at, where, a)[1])(*away)
    reverse = jax.jit(jax.grad(at, argnums=(0, 1, 2, 3)))(*where)
    # The error of the difference is h², and that of rounding 1e-16/h.
    np.testing.assert_allclose(forward, (up - down) / (2 * h), rtol=1e-7)
    total = sum(jnp.sum(g * a) for g, a in zip(reverse, away, strict=True))
    np.testing.assert_allclose(total, forward, rtol=1e-11)


def test_momentum_is_refused():
    problem, network = dln.LeastSquares(X, Y), dln.UV(np.ones(D), np.zeros(D))
    form = dln.MomentumForm(0.01)
    flow = dln.gradient_flow(network, problem, np.ones(1), eps=0.1, formulation=form)
    with pytest.raises(TypeError, match="a flow with momentum"):
        dln.sharpness(network, problem, flow)
