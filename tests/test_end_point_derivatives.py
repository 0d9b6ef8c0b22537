"""Derivatives of end points beyond the first: against differences of the first, closed forms, and
each other in every order of the two modes."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

LANES, N, D = 4, 3, 5
RNG = np.random.default_rng(0)
HEAVY = RNG.normal(size=(2, D))


def _instances():
    """Points and directions in which all that an end point depends on moves at once. The last lane
    is 2 × 2, with zeros around it."""
    rng = np.random.default_rng(1)
    u = np.exp(0.3 * rng.normal(size=(LANES, D)))
    start = {
        "X": rng.normal(size=(LANES, N, D)),
        "x": rng.normal(size=(LANES, D)),
        "u": u,
        "v": 0.2 * u,
        "log_eps": np.full(LANES, -6.0),
        "depth": np.full(LANES, 3.0),
        "decay": np.full(LANES, 0.1),
    }
    size = {"u": 0.3, "v": 0.05, "depth": 0.4, "decay": 0.03}
    move = {k: size.get(k, 0.5) * rng.normal(size=v.shape) for k, v in start.items()}
    for values in (start, move):
        values["X"][-1, 2:] = values["X"][-1, :, 2:] = 0
    return start, move


def _network(kind, a):
    if kind == "USquared":
        return dln.USquared(a["u"])
    if kind in ("Deep(D)", "limit"):
        return dln.Deep(a["u"], a["v"] if kind == "Deep(D)" else a["u"], depth=a["depth"])
    return dln.UV(a["u"], a["v"])


def _end(kind, a):
    x = jnp.abs(a["x"]) if kind == "USquared" else a["x"]
    decay = a["decay"] if kind == "decay" else 0.0
    problem = dln.LeastSquares(a["X"], a["X"] @ x, decay)
    if kind == "Quadratic":
        problem = dln.Quadratic(a["X"].T @ a["X"], problem.r)
    network, log_eps = _network(kind, a), a["log_eps"]
    if kind == "limit":
        end = dln.limit_point(network, problem, throw=False)
    else:
        end = dln.end_point(network, problem, log_eps=log_eps, throw=False)
    # With weight decay it is infinite.
    dual = jnp.where(jnp.isfinite(end.dual), end.dual, 0)
    return jnp.stack([end.x, dual])


STEP = 1e-3


def _along(kind, start, move):
    """A random linear function of the end point, on a line through all that it depends on."""
    return lambda t: jnp.sum(HEAVY * _end(kind, {k: start[k] + t * move[k] for k in start}))


@pytest.mark.parametrize("kind", ["UV", "USquared", "Deep(D)", "Quadratic", "decay", "limit"])
def test_second_derivatives(kind):
    @jax.jit
    @jax.vmap
    def both(start, move):
        first = jax.grad(_along(kind, start, move))
        return jax.vmap(lambda t: jax.jvp(first, (t,), (1.0,)))(STEP * jnp.arange(-2.0, 3.0))

    first, second = map(np.asarray, both(*_instances()))
    # Of order 4: what they lack is h⁴/30 of a fifth derivative, some hundred of the first.
    differences = first @ np.array([1, -8, 0, 8, -1]) / (12 * STEP)
    size = np.abs(first).max(axis=1) + np.abs(differences)
    error = np.abs(second[:, 2] - differences)
    assert np.all(np.isfinite(second)) and np.max(error / size) < 1e-7
    assert np.median(np.abs(differences)) > 1e-2  # they are there to be seen


def test_every_order_of_the_modes():
    @jax.jit
    @jax.vmap
    def all_three(start, move):
        f = _along("UV", start, move)
        ahead, back = jax.jacfwd(f), jax.grad(f)
        orders = [jax.jacfwd(ahead), jax.jacfwd(back), jax.grad(ahead), jax.grad(back)]
        return jnp.stack([second(0.0) for second in orders])

    second = np.asarray(all_three(*_instances()))
    # Sums of the same terms in another order.
    assert np.max(np.ptp(second, axis=1) / np.abs(second).max(axis=1)) < 1e-10


def test_closed_form_of_third_order():
    # q = ε s, ε s² with s + 2s² = y/ε, for `USquared` with X = [1, 2] and unit shape.
    def x(p):
        y, log_eps = p
        network, problem = (
            dln.USquared(jnp.ones(2)),
            dln.LeastSquares(jnp.array([[1.0, 2.0]]), y[None]),
        )
        return dln.end_point(network, problem, log_eps=log_eps, throw=False).x

    def closed(p):
        y, log_eps = p
        s = (jnp.sqrt(1 + 8 * y * jnp.exp(-log_eps)) - 1) / 4
        return jnp.exp(log_eps) * jnp.stack([s, s**2])

    points = jnp.array([[1.3, math.log(0.5)], [0.7, -5.0], [2.0, -20.0]])
    third = jax.jit(jax.vmap(jax.jacfwd(jax.jacfwd(jax.jacrev(x)))))(points)
    want = jax.vmap(jax.jacfwd(jax.jacfwd(jax.jacfwd(closed))))(points)
    # The closed form itself cancels, between powers of y/ε.
    np.testing.assert_allclose(third, want, rtol=1e-9, atol=1e-10)


def test_of_the_dual_of_the_limit():
    # w(0) = shape⁻¹ at D = 3, which ±dual attains where x ≠ 0.
    X = np.array([[2.0, 1.0, 0.3], [0.0, 1.0, -0.4]])
    y = X @ np.array([1.0, 0.5, 0.0])

    @eqx.filter_jit
    def dual(X, u):
        return dln.limit_point(dln.Deep(u, u, depth=3.0), dln.LeastSquares(X, y), throw=False).dual

    closed = lambda X, u: X.T @ jnp.linalg.solve(X[:, :2].T, 1 / u[:2])
    at = jnp.asarray(X), jnp.array([0.9, 0.8, 0.7])
    np.testing.assert_allclose(dual(*at), closed(*at), rtol=1e-12)
    for mode in (jax.jacfwd, jax.jacrev):
        for got, want in zip(mode(dual, (0, 1))(*at), mode(closed, (0, 1))(*at), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("least", [1e-4, 1e-6, 1e-8])
def test_of_an_ill_conditioned_quadratic(least):
    # x(r) = M⁻¹r, whatever ε is: the derivative along Mv is v, to κ roundings.
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    M = Q @ np.diag([1, 0.5, 0.1, least]) @ Q.T
    M, v = (M + M.T) / 2, rng.normal(size=4)
    network = dln.UV(jnp.ones(4), jnp.zeros(4))

    @jax.jit
    def end(M, r):
        return dln.end_point(network, dln.Quadratic(M, r, 1e3), log_eps=-5.0, throw=False).x

    _, ahead = jax.jvp(lambda r: end(jnp.asarray(M), r), (M @ Q @ np.ones(4),), (M @ v,))
    np.testing.assert_allclose(ahead, v, atol=1e-15 / least)


@pytest.mark.parametrize("seed", range(3))
def test_derivatives_where_active_columns_depend_on_each_other(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(4, 6))
    X[:, 2] = (X[:, 0] + 2 * X[:, 1]) / 3
    X[:, 3:] *= 0.2
    y, v = X[:, 0] + 0.5 * X[:, 1] + 0.7 * X[:, 2], X[:, 0] - 0.3 * X[:, 1]
    network = dln.UV(jnp.ones(6), jnp.zeros(6))

    @jax.jit
    def end(y, log_eps):
        return dln.end_point(network, dln.LeastSquares(X, y), log_eps=log_eps, throw=False).x

    for log_eps in (-100.0, -300.0, -700.0):
        ahead = jax.jit(jax.jacfwd(end))(jnp.asarray(y), log_eps) @ v
        h = 1e-4
        change = (end(y + h * v, log_eps) - end(y - h * v, log_eps)) / (2 * h)
        np.testing.assert_allclose(ahead, change, atol=1e-7)
