"""The null-space constant, the rates that it predicts, and the Bregman projection."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import dlnjax as dln

LANES, N, D = 120, 3, 5
SIGNS = pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])


@functools.cache
def _instances() -> tuple[np.ndarray, np.ndarray]:
    """Generic and planted responses, the latter made by one or two columns with coefficients > 0;
    the last lanes by hand."""
    rng = np.random.default_rng(0)
    X, x = rng.normal(size=(LANES, N, D)), rng.uniform(0.5, 2, (LANES, D))
    x[: LANES // 3, 1:] = x[LANES // 3 : 2 * LANES // 3, 2:] = 0
    y = np.einsum("bnd,bd->bn", X, x)
    y[5 * LANES // 6 :] = rng.normal(size=(LANES - 5 * LANES // 6, N))
    for i, (design, response) in enumerate(BY_HAND.values()):
        X[~i], y[~i] = 0, 0
        X[~i][: len(design), : len(design[0])] = design
        y[~i][: len(response)] = response
    return X, y


# ϱ, signed and positive, in closed form. Zero rows and columns are added, which leave room for
# nothing if c ∈ range Xᵀ has to be 0 there: positive ϱ are not below 0.
BY_HAND = {
    "[W23] Fig. 2": ([[1.0, 0.9]], [1.0]),
    "duplicates": ([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [1.0, 0.0]),
    "negated": ([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]], [1.0, 0.0]),
    "[W23] first": ([[1.0, 1, 1], [3, 0, 1]], [3.0, 3.0]),
    "identity": (np.eye(3), [1.0, 2.0, 0.0]),
    "zero": ([[1.0, 2.0], [0.5, 0.1]], [0.0, 0.0]),
}
WANTED = [(0.9, 0.9), (1, 1), (1, 0), (1, 1), (0, 0), (0, 0)]


@eqx.filter_jit
def _solve(X, y, positive):
    def lane(X, y):
        # One of them as a `Quadratic`: four programs would not show more than two.
        problem = dln.LeastSquares(X, y, weight_decay=0.1)
        if positive:
            problem = dln.Quadratic(X.T @ X, X.T @ y, weight_decay=0.1)
        constant = dln.null_space_constant(problem, positive=positive, throw=False)
        return constant, constant.rate(2), constant.rate(3.0)

    return jax.vmap(lane)(X, y)


@functools.cache
def _solved(positive):
    X, y = map(jnp.asarray, _instances())
    return jax.tree.map(np.asarray, _solve(X, y, positive))


def _program(X, x, positive) -> float:
    """`ϱ` by its definition."""
    S = x != 0
    if S.all():
        return -np.inf if positive else 0.0
    n, m = len(X), np.sum(~S)
    above = np.c_[X[:, ~S].T, -np.ones(m)]
    below = np.c_[-X[:, ~S].T, -np.ones(m)]
    rows = above if positive else np.concatenate([above, below])
    found = linprog(
        np.append(np.zeros(n), 1),
        A_ub=rows,
        b_ub=np.zeros(len(rows)),
        A_eq=np.c_[X[:, S].T, np.zeros(S.sum())] if S.any() else None,
        b_eq=np.sign(x[S]) if S.any() else None,
        bounds=[(None, None)] * (n + 1),
    )
    return -np.inf if found.status == 3 else found.fun if found.status == 0 else np.nan


@SIGNS
def test_against_a_linear_program(positive):
    X, _ = _instances()
    constant, at_two, at_three = _solved(positive)
    minimum = constant.minimum
    assert np.all(constant.result == dln.RESULTS.successful)
    support = np.where(abs(minimum.x) > 1e-9, minimum.x, 0)
    sizes = np.sum(support != 0, axis=1)
    assert np.sum(sizes < N) > 30 and np.sum(sizes == N) > 30
    is_free = np.isfinite(minimum.dual)
    want = [_program(A[:, f], x[f], positive) for A, f, x in zip(X, is_free, support, strict=True)]
    want = np.array(want)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(finite, np.isfinite(constant.value))
    # Rounding times the condition numbers of X_S, up to 1e3, or of M_SS.
    rtol = 1e-9 if positive else 1e-11
    np.testing.assert_allclose(constant.value[finite], want[finite], rtol=rtol, atol=rtol)
    np.testing.assert_array_equal(constant.value[~finite], -np.inf)
    assert finite.all() != positive
    np.testing.assert_array_equal(at_two, 1 - constant.value)
    np.testing.assert_array_equal(at_three, np.ones(LANES))

    # ϱ = 1 is what not being unique means.
    np.testing.assert_array_equal(minimum.is_unique, constant.value < 1 - 1e-9)
    assert not minimum.is_unique.all()


@SIGNS
def test_dual_proves_the_value(positive):
    X, _ = _instances()
    constant = _solved(positive)[0]
    assert np.abs(constant.gap).max() < 1e-10
    for A, c, x, value in zip(X, constant.dual, constant.minimum.x, constant.value, strict=True):
        free = np.isfinite(c)
        S = free & (abs(x) > 1e-9)
        scale = max(1, np.abs(c[free]).max(initial=0))
        np.testing.assert_allclose(c[S], np.sign(x[S]), atol=1e-10 * scale)
        off = np.linalg.pinv(A[:, free]) @ A[:, free] @ c[free] - c[free]
        assert np.abs(off).max(initial=0) < 1e-10 * scale
        others = c[free & ~S]
        if np.isfinite(value) and len(others):
            top = others.max() if positive else np.abs(others).max()
            assert abs(top - value) < 1e-10 * scale


def test_by_hand():
    for i, wanted in enumerate(WANTED):
        for positive, want in zip((False, True), wanted, strict=True):
            value = _solved(positive)[0].value[~i]
            np.testing.assert_allclose(value, want, atol=1e-14)


def test_bad_lanes_are_nan():
    X, y = map(np.copy, _instances())
    X[3, 0, 0], y[5, 1] = np.nan, np.inf
    constant, at_two, at_three = _solve(jnp.asarray(X), jnp.asarray(y), False)
    bad = np.isin(np.arange(LANES), [3, 5])
    for values in (constant.value, constant.gap, at_two, at_three):
        np.testing.assert_array_equal(np.isnan(values), bad)
    np.testing.assert_array_equal(constant.result == dln.RESULTS.invalid_data, bad)
    np.testing.assert_allclose(constant.value[~bad], _solved(False)[0].value[~bad], atol=1e-12)


def test_refuses_a_depth():
    constant = jax.tree.map(lambda v: v[0], _solved(False)[0])
    for depth in (1.5, np.inf, np.nan):
        with pytest.raises(ValueError, match="`depth` must be a finite number D ≥ 2"):
            constant.rate(depth)


# --- end points and projections ------------------------------------------------------------------


@eqx.filter_jit
def _ends(X, y, log_eps):
    """And the projection of a point with the same image."""
    network = dln.UV(jnp.ones(D), jnp.zeros(D))

    def lane(X, y, log_eps):
        problem = dln.LeastSquares(X, y, weight_decay=0.1)
        x = jnp.linalg.lstsq(X, y)[0]
        return dln.bregman_projection(network, problem, x, log_eps=log_eps, throw=False)

    lanes = jax.vmap(lane, in_axes=(None, None, 0))
    return jax.vmap(lanes)(X, y, log_eps)


@functools.cache
def _end_points():
    """Of lanes with one, two and three active coordinates, and `ϱ` well below 1."""
    X, y = _instances()
    constant = _solved(False)[0]
    sizes = np.sum(abs(constant.minimum.x) > 1e-9, axis=1)
    good = constant.minimum.is_unique & (constant.value < 0.8) & (constant.value > 0.2)
    chosen = np.concatenate([np.flatnonzero(good & (sizes == k))[:4] for k in (1, 2, 3)])
    # From ε^{1−ϱ} = 1e-6 to 1e-3.
    unit = 1 - constant.value[chosen]
    log_eps = np.log(10) * np.linspace(-6, -3, 6) / unit[:, None]
    ends = _ends(*map(jnp.asarray, (X[chosen], y[chosen], log_eps)))
    assert np.all(ends.result == dln.RESULTS.successful)
    return chosen, sizes[chosen], log_eps, np.asarray(ends.x)


def test_rate_of_end_points():
    chosen, sizes, log_eps, x = _end_points()
    np.testing.assert_array_equal(np.unique(sizes), [1, 2, 3])
    constant, rate, _ = _solved(False)
    error = np.abs(x - constant.minimum.x[chosen, None]).max(axis=2)
    for e, size, want in zip(np.log(error), log_eps, rate[chosen], strict=True):
        assert abs(np.polyfit(size, e, 1)[0] - want) < 0.03


def test_projection_minimises_the_divergence():
    # asinh(2x/ε) is the derivative of the potential of UV from (1, 0), where x(0) = 0: it lies in
    # the range of Xᵀ, and x has the image that was asked for.
    X, y = _instances()
    chosen, _, log_eps, x = _end_points()
    for A, b, sizes, points in zip(X[chosen], y[chosen], log_eps, x, strict=True):
        np.testing.assert_allclose(points @ A.T, np.tile(b, (6, 1)), atol=1e-12)
        slope = np.arcsinh(2 * points / np.exp(sizes)[:, None])
        off = slope - slope @ np.linalg.pinv(A) @ A
        # Entries that are small beside the residual of Xx = y have few digits.
        digits = 1e-13 * np.abs(points).max(axis=1) / np.abs(points).min(axis=1)
        assert np.all(np.abs(off).max(axis=1) < 1e-14 * np.abs(slope).max() + digits)


def test_projection_refuses():
    network, problem = dln.UV(np.ones(2), np.zeros(2)), dln.LeastSquares(np.eye(2), np.ones(2))
    with pytest.raises(ValueError, match=r"`x` must have shape \(2,\), .* got \(3,\)"):
        dln.bregman_projection(network, problem, np.ones(3), eps=1e-3)
    with pytest.raises(ValueError, match="`x` are not finite"):
        dln.bregman_projection(network, problem, np.array([1, np.nan]), eps=1e-3)
