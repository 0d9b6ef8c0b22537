"""Which of several minimisers is the limit `ε → 0`: against linear programmes, Newton's method on
the null space, and the flow at a tiny `ε` by SciPy."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import null_space
from scipy.optimize import brentq, linprog

import dlnjax as dln

LANES = 16


class Batch(NamedTuple):
    X: np.ndarray
    y: np.ndarray
    shape: np.ndarray  # (B, 2, d), the weights of `Deep`
    start: np.ndarray
    decay: np.ndarray


# --- instances --------------------------------------------------------------------------------


def _pretrained(rng, d):
    """More inherited coordinates than rows, on which the signed face interpolates."""
    X, x = rng.normal(size=(4, d)), np.zeros(d)
    on = rng.choice(d, rng.integers(5, 8), replace=False)
    x[on] = rng.uniform(0.3, 2, len(on)) * rng.choice([1, -1], len(on))
    return X, X @ (np.sign(x) * rng.uniform(0.3, 2, d)), x


def _twins(sign):
    def make(rng, d):
        X = rng.normal(size=(4, d))
        twins = rng.permutation(d)
        X[:, twins[:2]] = sign * X[:, twins[2:4]]
        if rng.uniform() < 0.5:
            X[:, twins[0]] = X[:, twins[1]]
        return X, rng.normal(size=4), np.zeros(d)

    return make


def _signs(rng, d):
    return rng.choice([-1.0, 1.0], (4, d)), rng.choice([-1.0, 1.0, 2.0], 4), np.zeros(d)


def _learned_signs(rng, d):
    X, y, _ = _signs(rng, d)
    x = rng.uniform(0.3, 2, d) * rng.choice([-1, 0, 1], d)
    return X, (X @ x if rng.uniform() < 0.5 else y), x


def _low_rank(rng, d):
    """Sums of columns are columns."""
    X = rng.integers(-1, 2, (4, d)).astype(float)
    X[3] = X[0] - X[1]
    return X, rng.integers(-2, 3, 4).astype(float), np.zeros(d)


KINDS = {
    "pretrained": _pretrained,
    "twins": _twins(1),
    "opposite twins": _twins(-1),
    "signs": _signs,
    "learned signs": _learned_signs,
    "low rank": _low_rank,
}


def _batch(kind, lanes, decays, positive, seed=0) -> Batch:
    rng, parts = np.random.default_rng([seed, list(KINDS).index(kind)]), []
    for i in range(lanes):
        X, y, x = KINDS[kind](rng, 8)
        if positive:
            X, x = X * np.where(x < 0, -1, 1), np.abs(x)
        shape = np.exp(0.5 * rng.normal(size=(2, 8))) if i % 2 else np.ones((2, 8))
        decay = 0.1 * np.max(np.abs(X.T @ y)) * decays * (i % 4 < 3)
        parts.append(Batch(X, y, shape, x, decay))
    return Batch(*map(np.stack, zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames=("deep", "positive"))
def _solve(batch: Batch, deep, positive):
    def solve(X, y, shape, start, decay):
        network = dln.Deep(shape[0], shape[1], depth=3.0 if deep else 2)
        if positive:
            network = dln.USquared(shape[0])
        problem = dln.LeastSquares(X, y, decay)
        return dln.limit_flow(network, problem, start=start, throw=False)

    return jax.vmap(solve)(*batch)


# --- the flow's start, and the truth ------------------------------------------------------------


def _start(batch: Batch, i, deep, positive):
    """`w(0)`, and `log s` or, at depth 3, `o`, one entry a signed coordinate."""
    x = batch.start[i]
    size = np.where(x != 0, np.abs(x), 1)
    towards = np.stack([x, -x])
    alone = np.ones((2, 8)) if not deep else 1 / batch.shape[i]
    w = np.where(towards > 0, 0, np.where(towards < 0, np.sum(alone, axis=0), alone))
    if deep:
        prior = np.sign(towards) * size ** (-1 / 3)
    else:
        log_s = 2 * np.log(batch.shape[i])
        other = np.sum(log_s, axis=0) - np.log(size)
        prior = np.where(towards > 0, np.log(size), np.where(towards < 0, other, log_s))
    return (w[0], prior[0]) if positive else (w.ravel(), prior.ravel())


def _select(F, q, prior, deep):
    """The minimiser among `{q ≥ 0 : Fq = F q}`, from a point of it."""
    N = null_space(F, rcond=1e-9)
    if N.shape[1] == 0:
        return q
    m, b = F.shape[1], F @ q
    # What can be positive in some multiple of a minimiser, by a linear programme.
    eye, column = np.eye(m), np.zeros((m, 1))
    free = linprog(
        np.r_[np.zeros(m), -np.ones(m), 0],
        A_ub=np.hstack([-eye, eye, column]),
        b_ub=np.zeros(m),
        A_eq=np.hstack([F, np.zeros_like(F), -b[:, None] / (np.max(np.abs(b)) or 1)]),
        b_eq=np.zeros(len(F)),
        bounds=[(0, None)] * m + [(0, 1)] * m + [(0, None)],
    )
    free = free.x[m : 2 * m] > 0.5
    out = np.zeros(m)
    G, prior = F[:, free], prior[free]
    N = null_space(G, rcond=1e-9)
    if not np.any(free) or N.shape[1] == 0:
        out[free] = q[free]
        return out
    m = G.shape[1]
    inner = linprog(
        np.r_[np.zeros(m), -1],
        A_ub=np.hstack([-np.eye(m), np.ones((m, 1))]),
        b_ub=np.zeros(m),
        A_eq=np.hstack([G, np.zeros((len(G), 1))]),
        b_eq=b,
        bounds=[(0, None)] * m + [(0, np.max(q) or 1)],
    )
    if inner.x is None:
        return np.full_like(q, np.nan)
    v = inner.x[:m]
    for _ in range(100):
        slope = prior - v ** (-1 / 3) if deep else np.log(v) - prior
        curvature = v ** (-4 / 3) / 3 if deep else 1 / v
        step = N @ np.linalg.solve(N.T @ (curvature[:, None] * N), -N.T @ slope)
        shrinks = step < 0
        fits = np.min(-v[shrinks] / step[shrinks], initial=np.inf)
        v = v + min(1 / (1 + np.max(np.abs(step / v))) if fits < 4 else 1, 0.5 * fits) * step
    out[free] = v
    return out


def _errors(batch: Batch, limit, i, deep, positive):
    """Of each plateau, relative to its largest entry, and whether the loss alone told it."""
    K, X, y, decay = int(limit.num_jumps[i]), batch.X[i], batch.y[i], batch.decay[i]
    F = X if positive else np.hstack([X, -X])
    w, prior = _start(batch, i, deep, positive)
    x, s, size = np.asarray(limit.slopes[i]), np.asarray(limit.knots[i]), np.max(np.abs(X.T @ y))
    z, errors = np.zeros(8), []
    for k in range(K):
        q = np.maximum(x[k] if positive else np.hstack([x[k], -x[k]]), 0)
        now = w - F.T @ (s[k] * y - X @ z) + decay * s[k]
        speed = F.T @ (X @ x[k] - y) + decay
        assert np.min(now) > -1e-8 * max(1, s[k] * size)
        rests = (np.abs(now) < 1e-8 * max(1, s[k] * size)) & (np.abs(speed) < 1e-8 * size)
        assert np.all(rests[q > 0])
        want = np.zeros_like(q)
        want[rests] = _select(F[:, rests], q[rests], prior[rests], deep)
        assert np.all((q > 0) | (want < 1e-10 * np.max(q))) or np.any(want != want), (q, want)
        is_told = null_space(F[:, rests], rcond=1e-9).shape[1] == 0
        errors.append((np.max(np.abs(q - want)) / np.max(q, initial=1e-300), is_told))
        z = z + x[k] * (s[min(k + 1, K - 1)] - s[k])
    return errors


CASES = [
    (kind, *how)
    for kind in KINDS
    for how in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)]
]


@pytest.mark.parametrize(("kind", "decays", "positive", "deep"), CASES)
def test_is_the_limit(kind, decays, positive, deep):
    batch = _batch(kind, LANES, decays, positive)
    limit = jax.device_get(_solve(batch, bool(deep), bool(positive)))
    assert np.all(limit.result == dln.RESULTS.successful)
    errors = np.array([e for i in range(LANES) for e in _errors(batch, limit, i, deep, positive)])
    assert np.sum(errors[:, 1] == 0) >= LANES / 4
    # The conditions of the selection hold to rounding, times the condition number of the columns.
    assert np.all(errors[:, 0] <= 1e-8)


@pytest.mark.parametrize(("kind", "decays"), [("pretrained", 0), ("twins", 1), ("signs", 0)])
def test_the_flow_tends_to_it(kind, decays):
    # On a plateau the flow comes as close to it as `e` to the power of its length over ε.
    batch, L = _batch(kind, LANES, decays, False), 2000.0
    limit = jax.device_get(_solve(batch, False, False))
    X, y, decay = batch.X[1], batch.y[1], batch.decay[1]
    F = np.hstack([X, -X])
    w, log_s = _start(batch, 1, False, False)
    K = int(limit.num_jumps[1])
    s = np.append(limit.knots[1, :K], 2 * limit.knots[1, K - 1] + 1)
    q = lambda s, nu: np.exp(np.minimum(log_s - L * (w - F.T @ nu + decay * s), 60))
    flow = solve_ivp(
        lambda s, nu: y - F @ q(s, nu),
        (0, s[-1]),
        np.zeros(4),
        method="Radau",
        jac=lambda s, nu: -L * (F * q(s, nu)) @ F.T,
        t_eval=(s[:-1] + s[1:]) / 2,
        rtol=1e-9,
        atol=1e-13,
    )
    x = np.array([q(*at)[:8] - q(*at)[8:] for at in zip(flow.t, flow.y.T, strict=True)])
    is_long = np.diff(s) > 0.2 * s[1:]
    assert np.any(is_long)
    np.testing.assert_allclose(x[is_long], limit.slopes[1, :K][is_long], atol=1e-7)


@pytest.mark.parametrize("depth", [2, 3.0])
def test_derivatives(depth):
    batch = _batch("pretrained", 2, 0, False)
    points = {"X": batch.X, "y": batch.y, "start": batch.start, "shape": batch.shape}

    def value(a):
        problem = dln.LeastSquares(a["X"], a["y"])
        network = dln.Deep(a["shape"][0], a["shape"][1], depth=depth)
        limit = dln.limit_flow(network, problem, start=a["start"], max_knots=2, throw=False)
        return jnp.vdot(limit.slopes[0], jnp.cos(jnp.arange(8.0)))

    @jax.jit
    @jax.vmap
    def run(a, along):
        both = jax.value_and_grad(value)
        (v, gradient), (forward, second) = jax.jvp(both, (a,), (along,))
        dot = lambda u: sum(jnp.vdot(u[k], along[k]) for k in along)
        return v, forward, dot(gradient), dot(second)

    rng, h = np.random.default_rng(0), 1e-4
    # What is 0 in the start stays 0.
    along = {k: rng.normal(size=v.shape) * (v != 0) for k, v in points.items()}
    steps = [0, 1, -1, 2, -2]
    moved = {k: np.concatenate([v + h * n * along[k] for n in steps]) for k, v in points.items()}
    out = run(moved, {k: np.concatenate([v] * 5) for k, v in along.items()})
    v, forward, backward, second = (np.asarray(o).reshape(5, -1) for o in out)
    # Of order h⁴.
    slope = lambda v: (8 * (v[1] - v[2]) - (v[3] - v[4])) / (12 * h)
    np.testing.assert_allclose(forward[0], slope(v), rtol=1e-7)
    np.testing.assert_allclose(backward[0], forward[0], rtol=1e-9)
    np.testing.assert_allclose(second[0], slope(backward), rtol=1e-7)


def test_a_network_that_does_not_tell_is_flagged():
    class Silent(dln.UV):
        def growth(self, log_eps) -> Any:
            return None

    X, y = np.array([[1.0, 1.0, 0.3], [0.0, 0.0, 1.0]]), np.array([1.0, 2.0])
    ones, zeros = jnp.ones(3), jnp.zeros(3)
    told = dln.limit_flow(dln.UV(ones, zeros), dln.LeastSquares(X, y))
    silent = dln.limit_flow(Silent(ones, zeros), dln.LeastSquares(X, y), throw=False)
    assert silent.result == dln.RESULTS.limit_undetermined
    np.testing.assert_allclose(silent.slopes @ X.T, told.slopes @ X.T, atol=1e-13)
    np.testing.assert_allclose(told.slopes[:, 0], told.slopes[:, 1], rtol=1e-13)


def test_a_start_that_fits_stays():
    # Columns `±1`, and nothing to fit: `x₁x₂` is conserved, and `x₁ − x₂` goes to 0.
    problem = dln.LeastSquares(np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]), np.zeros(2))
    network = dln.UV(np.ones(3), np.zeros(3))
    limit = dln.limit_flow(network, problem, start=np.array([1.0, 4.0, 0.5]))
    np.testing.assert_allclose(limit.x(np.array([0, 1.0, np.inf])), [[2, 2, 0]] * 3, atol=1e-13)


@functools.partial(jax.jit, static_argnames="positive")
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def _plateaus(X, y, start, positive):
    ones = jnp.ones(X.shape[1])
    network = dln.USquared(ones) if positive else dln.UV(ones, 0 * ones)
    limit = dln.limit_flow(network, dln.LeastSquares(X, y), start=start, throw=False)
    return limit.slopes, limit.num_knots, limit.result


@pytest.mark.parametrize("positive", [False, True])
def test_starts_in_uneven_units(positive):
    # Four columns of rank 3 in units that differ by up to ten decades. At `s = 0` the limit has,
    # among the fits with the signs of the start, the least entropy relative to it: a root in `t`.
    rng, problems, truths = np.random.default_rng(8), [], []
    while len(problems) < 128:
        unit, A = 10 ** rng.uniform(-8, 2, 4), rng.normal(size=(3, 4))
        fit, start = 10 ** rng.uniform(-1, 1, 4), 10 ** rng.uniform(-2, 2, 4)
        line = null_space(A)[:, 0]
        share = line / unit / np.max(np.abs(line / unit))
        ends = -fit / line
        low, high = np.max(ends[line > 0], initial=-1e9), np.min(ends[line < 0], initial=1e9)
        low, high = low + 1e-9 * (high - low), high - 1e-9 * (high - low)

        def slope(t, fit=fit, line=line, start=start, share=share):
            return share @ np.log((fit + t * line) / start)

        if slope(low) < 0 < slope(high) and high - low < 1e6:
            t = brentq(slope, low, high, xtol=1e-14)
            signs = np.ones(4) if positive else rng.choice([-1, 1], 4)
            problems.append((A * unit * signs, A @ fit, signs * start / unit))
            truths.append((fit + t * line, unit * signs))
    slopes, _, result = _plateaus(*map(np.stack, zip(*problems, strict=True)), positive)
    assert np.all(result == dln.RESULTS.successful)
    for x, (want, unit) in zip(np.asarray(slopes[:, 0]), truths, strict=True):
        np.testing.assert_allclose(x * unit, want, atol=1e-10 * np.max(want))


def test_starts_without_a_response():
    # With `y = 0` it is the root on the line through 0, if that has the signs of the start, else 0.
    rng, lanes = np.random.default_rng(9), 64
    X, start = rng.normal(size=(lanes, 4, 3)), 10 ** rng.uniform(6, 10, (lanes, 3))
    X[:, :, 2] = X[:, :, 0] * rng.uniform(0.5, 2, (lanes, 1))
    X[:, :, 2] += X[:, :, 1] * rng.uniform(0.5, 2, (lanes, 1))
    start[::2, 2] *= -1
    slopes, number, result = _plateaus(X, np.zeros((lanes, 4)), start, False)
    assert np.all(result == dln.RESULTS.successful) and np.all(number == 1)
    for A, s, x in zip(X, start, np.asarray(slopes[:, 0]), strict=True):
        line = np.sign(s) * np.linalg.svd(A)[2][-1]
        line *= np.sign(line[0])
        t = np.exp(-line @ np.log(np.abs(line / s)) / np.sum(line))
        want = np.sign(s) * t * line if np.all(line > 0) else np.zeros(3)
        np.testing.assert_allclose(x, want, atol=1e-10 * np.max(np.abs(s)))


@pytest.mark.parametrize("positive", [False, True])
def test_twins_share_what_others_may_not_have(positive):
    # A column that would fit 1e-12 of `y` with a sign that it may not have, and is taken for one
    # that rests: it must not decide between two copies of another column.
    rng, lanes = np.random.default_rng(10), 128
    X = rng.choice([-1.0, 1.0], (lanes, 3, 4))
    X[:, :, 2] = X[:, :, 0]
    y = X[:, :, 0] + 1e-12 * rng.normal(size=(lanes, 3))
    slopes, _, result = _plateaus(X, y, np.zeros((lanes, 4)), positive)
    told = np.asarray(result == dln.RESULTS.successful)
    assert np.mean(told) > 0.9
    x = np.asarray(slopes)[told]
    np.testing.assert_allclose(x[:, 1:3, 0], x[:, 1:3, 2], atol=1e-12)
    np.testing.assert_allclose(x[:, 0, 0], x[:, 0, 2], atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_twins_beside_columns_that_are_nearly_equal(dtype):
    # `y = a + b + tc` for columns a, b at a distance δ, and two copies of c: each has t/2. Where
    # the near ones have few digits, c has all of them.
    lanes = [(delta, t) for delta in (1e-1, 1e-2, 1e-3, 1e-4) for t in (1, 1e-2, 1e-4, 1e-6, 1e-8)]
    if dtype is np.float32:
        lanes = [(delta, t) for delta in (0.3, 0.1, 0.03, 0.01) for t in (1, 0.1, 0.01, 1e-3)]
    delta, t = np.array(lanes).T
    e = np.eye(4)
    X = np.stack([e[:, [0, 0, 2, 2]] + d * np.outer(e[1], [0, 1, 0, 0]) for d in delta])
    y = X[:, :, 0] + X[:, :, 1] + t[:, None] * e[2]
    arguments = (v.astype(dtype) for v in (X, y, np.zeros((len(lanes), 4))))
    slopes, number, result = _plateaus(*arguments, True)
    told = np.asarray(result == dln.RESULTS.successful)
    assert np.mean(told) > 0.7
    last = np.asarray(slopes)[np.arange(len(lanes)), np.asarray(number) - 1][told]
    rtol = 1e-4 if dtype is np.float32 else 1e-6
    np.testing.assert_allclose(last[:, 2:], np.repeat(t[told, None] / 2, 2, axis=1), rtol=rtol)


@pytest.mark.parametrize("power", [-36, 0, 36])
def test_units_in_which_an_entry_is_zero(power):
    # Beyond the last knot `x = (0, 4t − 1, 3t, −t)`, whose third and fourth entry are 0 at the
    # vertex that the process reaches first. `4 log(1 − 4t) = 3 log 3t + log t`, at unit shape.
    X = np.array([[-1.0, -2, 2, -2], [-2, 1, -2, -2], [-2, -2, 2, -2]]) * 2.0**power
    shape = np.full(4, 2.0 ** (-power / 2))  # in the units of x
    problem = dln.LeastSquares(X, np.array([2.0, -1, 2]))
    limit = dln.limit_flow(dln.UV(2 * shape, 0 * shape), problem)
    t = 1 / (4 + 27**0.25)
    want = np.array([0, 4 * t - 1, 3 * t, -t]) / 2.0**power
    np.testing.assert_allclose(limit.slope(1e30), want, rtol=1e-12, atol=1e-15 / 2.0**power)


@pytest.mark.parametrize("rounding", [-1e-17, 0.0, 1e-17])
def test_a_start_that_falls_to_zero(rounding):
    # With `r < 0` in the first entry and 0 in two copies, the one minimiser over `x ≥ 0` is 0.
    M = np.array([[2.0, -1, -1], [-1, 2, 2], [-1, 2, 2]])
    problem = dln.Quadratic(M, np.array([-1, rounding, rounding]))
    limit = dln.limit_flow(dln.USquared(jnp.ones(3)), problem, start=np.array([2.0, 1, 6]))
    np.testing.assert_allclose(limit.slopes, 0, atol=1e-15)
