"""`limit_flow`, `limit_point` and `end_point` of other losses than the square, against an
implementation of the process in NumPy and minimisers of SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from losses import Mixed
from scipy.optimize import linprog, minimize
from scipy.special import expit

import dlnjax as dln
from dlnjax._results import names_of

KINDS = ["logistic", "Poisson", "Huber"]
LANES = 24


class Tilted(dln.UV):
    """`UV` from any `w(0)`."""

    w: Float[Array, "2 d"]

    def __init__(self, w):
        self.u, self.v, self.w = jnp.ones(w.shape[1]), jnp.zeros(w.shape[1]), w

    def initial_dual(self, log_eps):
        return self.w


def _instance(kind, seed, n=40, d=6):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) / np.sqrt(n)
    u = X @ np.array([8.0, -6, 4, 0, 0, 0])
    if kind == 0:
        return X, np.sign(u + 1.5 * rng.normal(size=n))
    if kind == 1:
        return X, rng.poisson(np.exp(np.clip(u, -3, 3))).astype(float)
    return X, u + rng.standard_t(1.5, size=n)


# --- an independent implementation ------------------------------------------------------------


def _derivatives(kind, u, y):
    if kind == 0:
        return -y * expit(-y * u), expit(u) * expit(-u)
    if kind == 1:
        return np.exp(u) - y, np.exp(u)
    return np.clip(u - y, -1, 1), (np.abs(u - y) <= 1) + 1e-13


def _value(kind, u, y):
    if kind == 0:
        return np.sum(np.logaddexp(0, -y * u))
    if kind == 1:
        return np.sum(np.exp(u) - y * u)
    r = np.abs(u - y)
    return np.sum(np.where(r <= 1, r**2 / 2, r - 0.5))


def _face(F, y, kind, decay, q):
    """Minimises `ℓ + λ⟨1, q⟩` over `q ≥ 0`: SciPy first, then Newton where `q > 0`."""
    value = lambda q: _value(kind, F @ q, y) + decay * np.sum(q)
    slope = lambda q: F.T @ _derivatives(kind, F @ q, y)[0] + decay
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 5000}
    bounds = [(0, None)] * len(q)
    q = minimize(value, q, jac=slope, method="L-BFGS-B", bounds=bounds, options=options).x
    free = q > 1e-7
    G, x = F[:, free], q[free]
    for _ in range(8):
        first, second = _derivatives(kind, G @ x, y)
        x = x - np.linalg.solve(G.T @ (second[:, None] * G), G.T @ first + decay)
    q = np.zeros(len(q))
    q[free] = x
    assert np.all(x > 0) and np.all(slope(q) > -1e-9)
    return q


def _reference(X, y, kind, w, decay, positive):
    d = X.shape[1]
    F, w = (X, w[0].copy()) if positive else (np.concatenate([X, -X], axis=1), w.ravel().copy())
    s, q, jumps, plateaus = 0.0, np.zeros(F.shape[1]), [], []
    while True:
        speed = F.T @ _derivatives(kind, F @ q, y)[0] + decay
        falls = (speed < -1e-9) & (w > 0)
        if not np.any(falls):
            return np.array(jumps), np.array(plateaus).reshape(-1, d)
        wait = np.where(falls, w / np.where(falls, -speed, 1), np.inf)
        s, w = s + np.min(wait), np.where(q > 0, 0, w + np.min(wait) * speed)
        w[np.argmin(wait)] = 0
        active = w == 0
        start, q = q[active], np.zeros(len(q))
        q[active] = _face(F[:, active], y, kind, decay, start)
        jumps.append(s)
        plateaus.append(q.copy() if positive else q[:d] - q[d:])


# --- one program for all lanes ----------------------------------------------------------------


def _limit(X, y, kind, decay, w, positive=False):
    problem = dln.GeneralizedLinear(
        X, y, Mixed(jnp.asarray(kind).astype(jnp.int32), jnp.ones(())), weight_decay=decay
    )
    network = dln.USquared(jnp.ones(X.shape[1])) if positive else Tilted(w)
    return dln.limit_flow(network, problem, throw=False)


@functools.partial(jax.jit, static_argnames="positive")
def _lanes(X, y, kind, decay, w, positive=False):
    return jax.vmap(functools.partial(_limit, positive=positive))(X, y, kind, decay, w)


def _arguments(tilt=0.0):
    kind = np.arange(LANES) % 3
    X, y = map(np.stack, zip(*(_instance(kind[i], i) for i in range(LANES)), strict=True))
    decay = np.where(np.arange(LANES) % 2 == 0, 0, 0.1)
    w = np.random.default_rng(0).uniform(1 - tilt, 1 + tilt, (LANES, 2, 6))
    return X, y, kind.astype(float), decay, w


@pytest.mark.parametrize("positive", [False, True])
def test_against_the_reference(positive):
    arguments = _arguments(0 if positive else 0.3)
    limit = _lanes(*arguments, positive=positive)
    assert np.all(names_of(limit.result) == "successful")
    # w ≥ 0, and 0 where x moves, relative to the largest correlation: measured 7e-16.
    assert np.max(limit.stats["max_violation"]) < 1e-13
    assert not np.any(limit.face)
    for i in range(LANES):
        X, y, kind, decay, w = (v[i] for v in arguments)
        jumps, plateaus = _reference(X, y, int(kind), w, decay, positive)
        count = int(limit.num_knots[i])
        assert count == len(jumps)
        np.testing.assert_allclose(limit.knots[i, :count], jumps, rtol=1e-9)
        np.testing.assert_allclose(limit.slopes[i, :count], plateaus, rtol=1e-9, atol=1e-9)
        # The last plateau without decay is the minimiser of the loss.
        x = np.asarray(limit.slopes[i, count - 1])
        slope = X.T @ _derivatives(int(kind), X @ x, y)[0] + decay * np.sign(x)
        off = np.where(x != 0, np.abs(slope), np.maximum(-slope if positive else abs(slope), 0))
        assert np.all(off <= np.where(x != 0, 1e-12, decay + 1e-12))


def test_dual_is_the_integral_of_the_gradient():
    """Against quadrature, plateau by plateau; `w` is 0 where a coordinate is active; and the flow
    of a small `ε` has the same."""
    X, y = _instance(0, 3)
    problem, network = dln.Logistic(X, y, 0.1), dln.UV(jnp.ones(6), jnp.zeros(6))
    limit = dln.limit_flow(network, problem)
    jumps = np.asarray(limit.jumps)[: int(limit.num_jumps)]
    assert len(jumps) > 2
    s = np.array([0.0, jumps[0] / 2, *(0.5 * (jumps[:-1] + jumps[1:])), 3 * jumps[-1]])
    duals = limit.dual(problem, s)
    slope = lambda s: -X.T @ _derivatives(0, X @ np.asarray(limit.plateau(s)), y)[0]
    for at, dual in zip(s, duals, strict=True):
        ends = np.unique(np.clip([0.0, *jumps, at], 0, at))
        expected = sum((b - a) * slope((a + b) / 2) for a, b in zip(ends, ends[1:], strict=False))
        np.testing.assert_allclose(dual, expected, atol=1e-12)
    w = 1 - np.abs(duals) + 0.1 * s[:, None]
    active = np.asarray(limit.plateau(s)) != 0
    assert np.max(np.abs(w[active])) < 1e-10 and np.min(w) > -1e-10 and active.any()
    flow = dln.gradient_flow(network, problem, s, log_eps=-1e5)
    np.testing.assert_allclose(flow.dual, duals, atol=1e-3)
    with pytest.raises(ValueError, match="another problem"):
        limit.dual(dln.Logistic(10 * X, y, 0.1), s)


def test_permutations_and_scales_change_nothing():
    X, y, kind, decay, w = _arguments(0.3)
    clean = _lanes(X, y, kind, decay, w)
    order = np.random.default_rng(1).permutation(6)
    moved = _lanes(X[:, ::-1, order], y[:, ::-1], kind, decay, w[:, :, order])
    np.testing.assert_allclose(moved.knots, clean.knots, rtol=1e-10)
    np.testing.assert_allclose(moved.slopes, clean.slopes[:, :, order], rtol=1e-9, atol=1e-10)
    # x → x/c_j in the units of each column, with its w(0) and without decay.
    c = np.array([1e3, 1, 1e-3, 10, 1e-6, 1e6])
    none = 0 * decay
    clean, scaled = _lanes(X, y, kind, none, w), _lanes(X * c, y, kind, none, w * c)
    np.testing.assert_allclose(scaled.knots, clean.knots, rtol=1e-10)
    np.testing.assert_allclose(np.asarray(scaled.slopes) * c, clean.slopes, rtol=1e-9, atol=1e-10)


def test_bad_lanes_are_nan_and_leave_the_others_alone():
    X, y, kind, decay, w = _arguments()
    clean = _lanes(X, y, kind, decay, w)
    X, decay, w = X.copy(), decay.copy(), w.copy()
    X[3, 0, 0], decay[5], w[7, 0, 1] = np.nan, -1, np.inf
    limit = _lanes(X, y, kind, decay, w)
    bad = np.isin(np.arange(LANES), [3, 5, 7])
    assert names_of(limit.result)[bad].tolist() == [
        "invalid_data",
        "invalid_decay",
        "invalid_shape",
    ]
    assert np.all(np.isnan(limit.knots[bad])) and np.all(np.isnan(limit.slopes[bad]))
    for got, want in zip(jax.tree.leaves(limit), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(np.asarray(got)[~bad], np.asarray(want)[~bad])


def test_derivatives():
    X, y, kind, decay, w = _arguments(0.3)
    rng = np.random.default_rng(2)
    # Labels and counts do not move, and λ only where it is not at its bound.
    moves = [rng.normal(size=X.shape), rng.normal(size=y.shape) * (kind == 2)[:, None]]
    moves += [rng.normal(size=LANES) * (decay > 0), rng.normal(size=w.shape)]
    moves = [1e-2 * move for move in moves]

    def parts(X, y, decay, w, kind):
        limit = _limit(X, y, kind, decay, w)
        return limit.knots, limit.slopes, limit.x_mean(jnp.asarray(6.0))

    def both(X, y, decay, w, kind, moves):
        at = lambda X, y, decay, w: parts(X, y, decay, w, kind)
        _, forward = jax.jvp(at, (X, y, decay, w), tuple(moves))
        values, pull = jax.vjp(at, X, y, decay, w)
        back = pull(tuple(jnp.ones_like(v) for v in values))
        return forward, sum(jnp.sum(a * b) for a, b in zip(back, moves, strict=True))

    forward, reverse = jax.jit(jax.vmap(both))(X, y, decay, w, kind, moves)

    def shifted(h):
        a, b, c, e = (v + h * m for v, m in zip((X, y, decay, w), moves, strict=True))
        limit = _lanes(a, b, kind, c, e)
        means = jax.vmap(lambda limit: limit.x_mean(jnp.asarray(6.0)))(limit)
        return limit.knots, limit.slopes, means

    h = 1e-4
    for got, more, less in zip(forward, shifted(h), shifted(-h), strict=True):
        np.testing.assert_allclose(got, (more - less) / (2 * h), rtol=1e-6, atol=1e-6)
    total = sum(np.sum(np.asarray(v).reshape(LANES, -1), axis=1) for v in forward)
    np.testing.assert_allclose(reverse, total, rtol=1e-9, atol=1e-10)


# --- data that separate -----------------------------------------------------------------------


def _margin(A, face):
    """The largest margin of `x` with the signs `face` and 1-norm 1, by a linear programme."""
    on = np.flatnonzero(face)
    Z = A[:, on] * face[on]
    top = np.hstack([-Z, np.ones((len(Z), 1))])
    norm = np.append(np.ones(len(on)), 0)[None]
    bounds = [(0, None)] * len(on) + [(None, None)]
    cost = np.append(np.zeros(len(on)), -1)
    A_ub, b_ub = np.vstack([top, norm]), np.append(np.zeros(len(Z)), 1)
    return -linprog(cost, A_ub=A_ub, b_ub=b_ub, bounds=bounds).fun


def test_separable_data_end_on_the_first_face_that_separates():
    # Rows of zeros, which pad the data, are not seen.
    X, y, kind, decay, w = _arguments()
    X, y, kind, decay = np.zeros_like(X), np.ones_like(y), 0 * kind, 0 * decay
    rng = np.random.default_rng(3)
    X[:, :4] = rng.normal(size=(LANES, 4, 6))
    y[:, :4] = np.sign(rng.normal(size=(LANES, 4)))
    limits = _lanes(X, y, kind, decay, w)
    assert np.all(names_of(limits.result) == "successful")
    for i in range(LANES):
        A, limit = (y[i][:, None] * X[i])[:4], jax.tree.map(lambda v, i=i: v[i], limits)
        count = int(limit.num_jumps)
        assert _margin(A, np.asarray(limit.face)) > 1e-9
        assert np.all(np.isnan(limit.slopes[count - 1 :]))
        assert np.all(np.isnan(limit.plateau(2 * limit.jumps[-1])))
        # No plateau before separates, and each is a minimiser where it moves.
        for x in np.asarray(limit.slopes[: count - 1]):
            assert _margin(A, np.sign(x)) < 1e-9
            np.testing.assert_allclose((A.T @ expit(-A @ x))[x != 0], 0, atol=1e-12)


def test_partly_separated_data_end_there():
    # The second coordinate separates the last row, and the others know nothing of it.
    X, y, kind, decay, w = _arguments()
    X, y, kind, decay = np.zeros_like(X), np.ones_like(y), kind % 2, 0 * decay
    X[:, :4, :2] = [[1.0, 0], [1, 0], [1, 0], [0, 3]]
    y[:2, :4] = [1, -1, 1, -1], [1, 2, 3, 0]
    limits = _lanes(X, y, kind, decay, w)
    assert names_of(limits.result)[:2].tolist() == ["successful"] * 2
    np.testing.assert_array_equal(limits.face[:2, 1], -1)
    for i in range(2):
        assert np.isnan(limits.slopes[i, int(limits.num_jumps[i]) - 1]).all()


# --- end points -------------------------------------------------------------------------------


def test_end_points():
    X, y, kind, decay, _ = _arguments()
    network = dln.UV(jnp.ones(6), jnp.zeros(6))

    def ends(X, y, kind, decay):
        problem = dln.GeneralizedLinear(
            X, y, Mixed(jnp.asarray(kind).astype(jnp.int32), jnp.ones(())), weight_decay=decay
        )
        end = dln.end_point(network, problem, log_eps=-40.0, throw=False)
        return end, jax.jacfwd(
            lambda y: dln.end_point(network, _moved(problem, y), log_eps=-40.0).x
        )(y)

    end, jacobian = jax.jit(jax.vmap(ends))(X, y, kind, decay)
    assert np.all(names_of(end.result) == "successful")
    for i in range(LANES):
        F, q = np.hstack([X[i], -X[i]]), np.ones(12) / 10
        q = _face(F, y[i], int(kind[i]), max(decay[i], 0), q) if decay[i] > 0 else None
        if q is not None:
            np.testing.assert_allclose(end.x[i], q[:6] - q[6:], rtol=1e-9, atol=1e-9)
        first, second = _derivatives(int(kind[i]), X[i] @ end.x[i], y[i])
        on = np.asarray(end.x[i]) != 0
        slope = X[i].T @ first + decay[i] * np.sign(end.x[i])
        np.testing.assert_allclose(slope[on], 0, atol=1e-11)
        if kind[i] > 0:  # ∂f′/∂y is −1 for Poisson; for Huber −f″
            A = X[i][:, on]
            change = np.ones(40) if kind[i] == 1 else second
            want = np.linalg.solve(A.T @ (second[:, None] * A), A.T * change)
            np.testing.assert_allclose(jacobian[i][on], want, rtol=1e-8, atol=1e-8)


def _moved(problem, y):
    return dln.GeneralizedLinear(problem.X, y, problem.pointwise, problem.weight_decay)


def test_several_minimisers_are_those_of_least_squares():
    # With fewer rows than coordinates Poisson regression interpolates: Xx = log y.
    X = np.random.default_rng(5).normal(size=(5, 9))
    X[:, 8] = X[:, 3]
    y = np.array([1.0, 2, 4, 3, 5])
    network = dln.UV(jnp.linspace(1, 2, 9), jnp.zeros(9))
    got = dln.limit_point(network, dln.Poisson(X, y))
    want = dln.limit_point(network, dln.LeastSquares(X, np.log(y)))
    np.testing.assert_allclose(X @ got.x, np.log(y), atol=1e-13)
    np.testing.assert_allclose(got.x, want.x, atol=1e-12)
    # The copies share their coordinate as their shapes squared.
    limit = dln.limit_flow(network, dln.Poisson(X, y))
    last = limit.slopes[-1]
    np.testing.assert_allclose(last[8] / last[3], (2 / 1.375) ** 2, rtol=1e-12)
    np.testing.assert_allclose(X @ last, np.log(y), atol=1e-13)


def test_separable_data_have_no_end_point():
    network = dln.UV(jnp.ones(2), jnp.zeros(2))
    problem = dln.Logistic(np.eye(2), np.array([1.0, -1]))
    with pytest.raises(RuntimeError, match="(?s)data_separate|The data separate"):
        dln.limit_point(network, problem)
    with pytest.raises(TypeError, match="`Linear` with weight decay"):
        dln.limit_point(dln.Linear(np.ones(2)), dln.Logistic(np.eye(2), np.ones(2), 0.1))
