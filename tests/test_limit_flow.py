"""The limit `ε → 0` of batches, which share a program: against SciPy's non-negative least squares
and the lasso path."""

import functools
import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, ILL_CONDITIONED
from jaxtyping import Array, Float
from numpy.typing import ArrayLike
from scipy.optimize import linprog, nnls

import dlnjax as dln
from dlnjax._results import names_of

LANES = 40


class Tilted(dln.AbstractDualNetwork):
    """Any `w(0)`, of which the limit process is a function."""

    w: Float[Array, "2 d"]
    positive: ClassVar[bool] = False

    def __call__(self):
        return self.w[0]

    def initial(self, log_eps):
        return self

    def time_scale(self, log_eps):
        return -log_eps

    def penalty(self, weight_decay):
        return weight_decay

    def link(self, w, log_eps):
        return jnp.exp(w * log_eps)

    def initial_dual(self, log_eps):
        return self.w

    def growth(self, log_eps):
        w = self.initial_dual(log_eps)
        return dln.Growth(w * log_eps, jnp.broadcast_to(-1 / log_eps, w.shape), 0.0)


class TiltedPositive(Tilted):
    positive: ClassVar[bool] = True

    def initial_dual(self, log_eps):
        return self.w[:1]


# --- an independent implementation ------------------------------------------------------------


def _face(F, y, decay):
    """Minimises `½‖Fq − y‖² + λ⟨1, q⟩` over `q ≥ 0`."""
    n, m = F.shape
    if decay == 0:
        return nnls(F, y)[0] if m else np.zeros(0)
    if m <= n:
        shift = F @ np.linalg.solve(F.T @ F, np.ones(m)) if m else np.zeros(n)
        return nnls(F, y - decay * shift)[0] if m else np.zeros(0)
    best, least = np.zeros(m), 0.5 * y @ y
    for size in range(1, n + 1):
        for support in map(list, itertools.combinations(range(m), size)):
            G = F[:, support]
            q = np.linalg.solve(G.T @ G, G.T @ y - decay)
            value = 0.5 * np.sum((G @ q - y) ** 2) + decay * np.sum(q)
            if np.all(q >= 0) and value < least:
                best, least = np.zeros(m), value
                best[support] = q
    return best


def _reference(X, y, w, decay=0.0, positive=False):
    """Jumps and plateaus of a generic instance from `w(0)`, one event at a time."""
    d = X.shape[1]
    F, w = (X, w[0].copy()) if positive else (np.concatenate([X, -X], axis=1), w.ravel().copy())
    size, s, q = np.max(np.abs(X.T @ y)), 0.0, np.zeros(F.shape[1])
    jumps, plateaus = [], []
    while True:
        active = w == 0
        q[:] = 0
        q[active] = _face(F[:, active], y, decay)
        if jumps or np.any(q):
            jumps.append(s)
            plateaus.append(q.copy() if positive else q[:d] - q[d:])
        speed = F.T @ (F @ q - y) + decay
        falls = (speed < -1e-11 * size) & ~active
        if not np.any(falls):
            return np.array(jumps), np.array(plateaus).reshape(-1, d)
        wait = np.where(falls, w / np.where(falls, -speed, 1), np.inf)
        s, w = s + np.min(wait), np.where(q > 0, 0, w + np.min(wait) * speed)
        w[np.argmin(wait)] = 0


# --- one program for all lanes ----------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="positive")
def _solve_lanes(X, y, decay, dual, start, s_max, positive):
    def solve(X, y, decay, dual, start, s_max):
        network = (TiltedPositive if positive else Tilted)(dual)
        problem = dln.LeastSquares(X, y, weight_decay=decay)
        return dln.limit_flow(network, problem, s_max, start=start, throw=False)

    return jax.vmap(solve)(X, y, decay, dual, start, s_max)


def _solve(
    instances,
    decay: ArrayLike = 0.0,
    dual: Sequence | np.ndarray | None = None,
    start: Sequence | np.ndarray | None = None,
    s_max: ArrayLike = np.inf,
    positive=False,
):
    """One process per lane, of problems padded by zero rows and columns to one shape."""
    X, y = np.zeros((LANES, 20, 40)), np.zeros((LANES, 20))
    w, x = np.ones((LANES, 2, 40)), np.zeros((LANES, 40))
    for i, (X_i, y_i) in enumerate(instances):
        n, d = X_i.shape
        X[i, :n, :d], y[i, :n] = X_i, y_i
        if dual is not None:
            w[i, :, :d] = dual[i]
        if start is not None:
            x[i, :d] = start[i]
    fill = lambda v: np.broadcast_to(np.asarray(v, float), LANES)
    limit = _solve_lanes(X, y, fill(decay), w, x, fill(s_max), positive=positive)
    return jax.device_get(limit)


def _lane(limit, i):
    return jax.tree.map(lambda v: v[i], limit)


def _is_flagged(limit):
    return np.asarray(limit.result != dln.RESULTS.successful)


def _normal(seed, n, d):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n, d)), rng.normal(size=n)) for _ in range(LANES)]


def _decays(instances, fraction):
    return np.array([fraction * np.max(np.abs(X.T @ y)) for X, y in instances])


def _violation(X, y, limit, decay, positive):
    """Of the complementarity problem, which has one solution `(w, Mz)`: relative to `Xᵀy`."""
    K, d = int(limit.num_jumps), X.shape[1]
    s, x = np.asarray(limit.knots[:K]), np.asarray(limit.slopes[:K, :d])
    F = X if positive else np.concatenate([X, -X], axis=1)
    q = np.maximum(x if positive else np.concatenate([x, -x], axis=1), 0)
    z = np.concatenate([np.zeros((1, q.shape[1])), np.cumsum(q[:-1] * np.diff(s)[:, None], 0)])
    speed = np.concatenate([np.zeros((1, q.shape[1])), q]) @ F.T @ F - F.T @ y + decay
    size = max(np.max(np.abs(X.T @ y)), 1e-300)
    worst = [np.max(-speed[-1]) / size, np.max(np.abs(speed[1:])[q > 0], initial=0) / size]
    assert not positive or np.all(x >= 0)
    if K:
        w = (1 + s[:, None] * (decay - F.T @ y) + z[:K] @ F.T @ F) / s[:, None] / size
        worst += [
            np.max(-w),
            np.max(np.abs(w[q > 0])),
            np.max(np.abs(w[1:][q[:-1] > 0]), initial=0),
        ]
        scale = np.max(np.abs(limit.values[:K, :d]), initial=1e-300)
        drift = limit.values[:K, :d] - (z[:K] if positive else z[:K, :d] - z[:K, d:])
        worst.append(np.max(np.abs(drift)) / scale)
    return max(worst)


# --- outside truth ----------------------------------------------------------------------------


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_against_the_reference(positive, fraction):
    instances = [*_normal(1, 3, 4)[:20], *_normal(2, 10, 6)[:10], *_normal(3, 4, 7)[:10]]
    rng = np.random.default_rng(4)
    decay = _decays(instances, fraction)
    dual = [np.exp(0.5 * rng.normal(size=(2, X.shape[1]))) for X, _ in instances]
    # Fewer than `n` coordinates, so that the first plateau is unique.
    start = [
        (rng.uniform(size=X.shape[1]) < 0.3) * rng.normal(size=X.shape[1]) for X, _ in instances
    ]
    start = [x * (np.cumsum(x != 0) < 3) * (i % 2) for i, x in enumerate(start)]
    if positive:
        start = [np.abs(x) for x in start]
    limit = _solve(instances, decay, dual, start, positive=positive)
    assert not np.any(_is_flagged(limit))
    for i, (X, y) in enumerate(instances):
        total = dual[i][:1] if positive else dual[i].sum(axis=0)
        sides = np.sign(start[i]) * np.array([[1], [-1]])
        w = np.where(sides > 0, 0, np.where(sides < 0, total, dual[i]))
        jumps, plateaus = _reference(X, y, w, decay[i], positive)
        K, d = len(jumps), X.shape[1]
        assert limit.num_jumps[i] == limit.num_knots[i] == K
        np.testing.assert_allclose(limit.knots[i, :K], jumps, rtol=1e-9)
        size = np.max(np.abs(plateaus), initial=0)
        np.testing.assert_allclose(limit.slopes[i, :K, :d], plateaus, atol=1e-9 * size)


def test_positive_paths_of_nonpositive_couplings():
    # [B23]: coordinates activate one after another, from s = 1/max r, and never deactivate.
    rng = np.random.default_rng(0)
    instances, problems = [], []
    for _ in range(LANES):
        A = -np.abs(rng.normal(size=(6, 6)))
        M = A + A.T
        M += np.diag(np.abs(M).sum(axis=1) - np.diagonal(M) + 0.1)
        r = rng.normal(size=6)
        problems.append((M, r))
        X = np.linalg.cholesky(M).T
        instances.append((X, np.linalg.solve(X.T, r)))
    limit = _solve(instances, positive=True)
    assert not np.any(_is_flagged(limit))
    for i, (M, r) in enumerate(problems):
        K = int(limit.num_jumps[i])
        assert (K > 0) == (np.max(r) > 0)
        if K:
            np.testing.assert_allclose(limit.knots[i, 0], 1 / np.max(r), rtol=1e-12)
        lane = _lane(limit, i)
        assert not np.any(lane.deactivations)
        assert np.all(np.sum(lane.activations[:K], axis=1) == 1)
        for x in np.asarray(limit.slopes[i, :K, :6]):
            on = x > 0
            np.testing.assert_allclose(x[on], np.linalg.solve(M[on][:, on], r[on]), rtol=1e-10)


def test_ends_at_the_minimum_one_norm():
    instances = _normal(5, 20, 30)
    limit = _solve(instances)
    assert not np.any(_is_flagged(limit))
    for i, (X, y) in enumerate(instances[:10]):
        x = np.asarray(limit.slopes[i, -1, :30])
        np.testing.assert_allclose(X @ x, y, atol=1e-12)
        best = linprog(np.ones(60), A_eq=np.concatenate([X, -X], axis=1), b_eq=y)
        np.testing.assert_allclose(np.sum(np.abs(x)), best.fun, rtol=1e-10)


# --- the lasso path ---------------------------------------------------------------------------


@jax.jit
@jax.vmap
def _compare(X, y, dual):
    problem = dln.LeastSquares(X, y)
    limit = dln.limit_flow(Tilted(dual), problem, throw=False)
    path = dln.lasso_path(problem, weights=dual, throw=False)
    knots = jnp.sort(jnp.concatenate([limit.knots, path.knots]))
    # Both are linear in between.
    s = jnp.concatenate([knots, knots[-1] * jnp.array([2, jnp.inf])])
    difference = jnp.max(jnp.abs(limit.x_mean(s) - path.x(s))) / jnp.max(jnp.abs(path.x(s)))
    residual = jnp.max(limit.kkt_residual(problem))
    return difference, residual, path.is_monotone(), limit.result == dln.RESULTS.successful


@pytest.mark.parametrize("spread", [0.0, 0.7])
def test_is_the_lasso_path_if_that_is_monotone(spread):
    rng = np.random.default_rng(6)
    X, y = rng.normal(size=(300, 3, 4)), rng.normal(size=(300, 3))
    dual = np.exp(spread * rng.normal(size=(300, 2, 4)))
    difference, residual, is_monotone, success = map(np.asarray, _compare(X, y, dual))
    assert np.all(success) and 100 < np.sum(is_monotone) < 280
    assert np.all(difference[is_monotone] < 1e-10) and np.all(residual[is_monotone] < 1e-12)
    assert np.all(difference[~is_monotone] > 1e-7) and np.all(residual[~is_monotone] > 1e-8)


# --- families that break path algorithms ------------------------------------------------------


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, positive):
    instances = [FAMILIES[name](np.random.default_rng(seed)) for seed in range(LANES)]
    decay = _decays(instances, 0.05) * (np.arange(LANES) % 2)
    limit = _solve(instances, decay, positive=positive)
    flagged = _is_flagged(limit)
    worst = np.array(
        [
            _violation(X, y, _lane(limit, i), decay[i], positive)
            for i, (X, y) in enumerate(instances)
        ]
    )
    bad = ~flagged & ~(worst <= 1e-9)
    if name in ILL_CONDITIONED:
        bad = ~flagged & ~(worst <= 1e-6)
    else:
        bad |= flagged
    assert not np.any(bad), (np.flatnonzero(bad), flagged[bad], worst[bad])


def test_one_coordinate_one_row_and_nothing_to_fit():
    rng = np.random.default_rng(7)
    one = [(rng.normal(size=(5, 1)), rng.normal(size=5)) for _ in range(20)]
    row = [(rng.normal(size=(1, 5)), rng.normal(size=1)) for _ in range(19)]
    limit = _solve([*one, *row, (rng.normal(size=(5, 6)), np.zeros(5))])
    assert not np.any(_is_flagged(limit))
    assert limit.num_jumps.tolist() == [1] * 39 + [0]
    for i, (X, y) in enumerate([*one, *row]):
        j = np.argmax(np.abs(X.T @ y))
        r, m = (X.T @ y)[j], np.sum(X[:, j] ** 2)
        np.testing.assert_allclose(limit.knots[i, 0], 1 / abs(r), rtol=1e-14)
        np.testing.assert_allclose(limit.slopes[i, 0, j], r / m, rtol=1e-14)
        assert np.count_nonzero(limit.slopes[i, 0]) == 1
    last = _lane(limit, -1)
    assert not np.any(last.jumps) and not np.any(last.x(np.array([0, 1.0, np.inf])))


def test_an_entry_that_comes_to_rest_at_0():
    # The least squares point has entries that are 0 exactly, which were active with either sign.
    X = np.array([[2.0, -1, -1], [2, -2, 2], [-2, 0, 2], [0, 1, 1]])
    rng, points = np.random.default_rng(5), np.array([[-1.0, -2, 0], [0, 3, 1], [2, 0, -1]]) / 6
    instances = []
    for x in points:
        X_ = X[:, rng.permutation(3)]
        rest = X_ @ np.linalg.solve(X_.T @ X_, X_.T) - np.eye(4)
        instances += [(X_, X_ @ x + rest @ rng.integers(-2, 3, 4)) for _ in range(8)]
    limit = _solve(instances)
    assert not np.any(_is_flagged(limit))
    for i, (X_, y) in enumerate(instances):
        last = limit.slopes[i, limit.num_knots[i] - 1]
        np.testing.assert_allclose(last[:3], np.linalg.lstsq(X_, y)[0], atol=1e-13)


# --- transformations --------------------------------------------------------------------------


def test_bad_lanes_are_nan_and_leave_the_others_alone():
    instances = _normal(8, 10, 6)
    clean = _solve(instances)
    bad_data = [(X.copy(), y.copy()) for X, y in instances]
    bad_data[3][0][0, 0] = np.nan
    decay, s_max, start = np.zeros(LANES), np.full(LANES, np.inf), np.zeros((LANES, 6))
    decay[5], s_max[6], s_max[7], start[8, 1] = -1, 0, np.nan, np.nan
    dual = np.ones((LANES, 2, 6))
    dual[9, 0, 1] = np.inf
    limit = _solve(bad_data, decay, dual, start, s_max)
    bad = np.isin(np.arange(LANES), [3, 5, 6, 7, 8, 9])
    want = ["data", "decay", "grid", "grid", "start", "shape"]
    assert names_of(limit.result)[bad].tolist() == [f"invalid_{name}" for name in want]
    assert np.all(np.isnan(limit.knots[bad])) and np.all(np.isnan(limit.slopes[bad]))
    for got, want in zip(jax.tree.leaves(limit), jax.tree.leaves(clean), strict=True):
        np.testing.assert_array_equal(np.asarray(got)[~bad], np.asarray(want)[~bad])
