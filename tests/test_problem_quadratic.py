"""Quadratics: their constant, and whether a matrix is convex, in all units."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import EVERY_SHAPE, data_of

import dlnjax as dln
from dlnjax._problem import validity

# --- the constant of a quadratic -----------------------------------------------------------------


@EVERY_SHAPE
def test_default_constant_makes_the_least_loss_zero(name):
    X, y = data_of(name)
    M, r = X.T @ X, X.T @ y
    problem = dln.Quadratic(M, r)
    best = np.linalg.pinv(M, hermitian=True) @ r
    assert abs(float(problem.constant) - 0.5 * r @ best) < 1e-13 * (0.5 * r @ best)
    assert 0 <= float(problem.loss(jnp.asarray(best))) < 1e-14 * float(problem.constant)
    rest = 0.5 * np.sum(y**2) - float(problem.constant)
    fit = X @ np.linalg.lstsq(X, y)[0]
    assert abs(rest - 0.5 * np.sum((y - fit) ** 2)) < 1e-13 * np.sum(y**2)


@EVERY_SHAPE
def test_derivative_of_the_default_constant(name):
    # Along a curve of M = FᵀF of constant rank, with r kept in the range of M.
    X, y = data_of(name)
    rng = np.random.default_rng(7)
    # Rank is kept by moving the right factor of X = B C.
    B, C = (X, np.eye(X.shape[1])) if name != "rank 2 of 4" else (X[:, :2], _right_factor(X))
    dC, dy = rng.normal(size=C.shape), rng.normal(size=len(y))

    def constant(t):
        F = B @ (C + t * dC)
        return dln.Quadratic(F.T @ F, F.T @ (y + t * dy)).constant

    values = jax.jit(jax.vmap(constant))
    h = 1e-5  # the error of the difference is about h² and eps/h
    ahead, behind = values(jnp.array([h, -h]))
    difference = float(ahead - behind) / (2 * h)
    reverse, (_, forward) = jax.jit(
        lambda t: (jax.grad(constant)(t), jax.jvp(constant, (t,), (1.0,)))
    )(0.0)
    assert abs(reverse - difference) < 1e-8 * max(1, abs(difference))
    assert abs(reverse - forward) < 1e-12 * max(1, abs(difference))


def _right_factor(X):
    return np.linalg.lstsq(X[:, :2], X)[0]


# --- rounding ---------------------------------------------------------------------------------


def test_accepts_rounding_in_a_quadratic():
    # Semidefinite, symmetric and in the range only to rounding: what XᵀX and Xᵀy are.
    rng = np.random.default_rng(3)
    for _ in range(20):
        X, y = rng.normal(size=(8, 12)) * 10.0 ** rng.uniform(-8, 8), rng.normal(size=8)
        M = X.T @ X
        M = M * (1 + 1e-15 * rng.normal(size=M.shape))
        problem = dln.Quadratic(M, X.T @ y, constant=0.5 * np.sum(y**2))
        assert float(problem.constant) == 0.5 * np.sum(y**2)
    assert float(dln.Quadratic(np.zeros((2, 2)), np.zeros(2)).constant) == 0


# --- what is no convex quadratic ------------------------------------------------------------------


def _designs(dtype=np.float64, lanes: int = 64, n: int = 7, d: int = 5, decades: float = 10):
    """Gaussian, with a duplicate or an empty column in some, each column in units of its own."""
    rng = np.random.default_rng(4)
    X, y = rng.normal(size=(lanes, n, d)), rng.normal(size=(lanes, n))
    X[::4, :, 1] = -X[::4, :, 0]
    X[::6, :, 2] = 0
    least = [0.5 * np.sum((A @ np.linalg.lstsq(A, b)[0]) ** 2) for A, b in zip(X, y, strict=True)]
    units = 10.0 ** rng.uniform(-decades, decades, size=(lanes, d))
    return X.astype(dtype), y.astype(dtype), units.astype(dtype), np.array(least)


@jax.jit
@jax.vmap
def _judge(M, r, constant):
    problem = dln.Quadratic(M, r, constant)
    return validity(problem), problem.constant


@pytest.mark.parametrize("dtype, decades", [(np.float64, 10), (np.float32, 3)])
def test_gram_matrices_are_convex_in_all_units(dtype, decades):
    X, y, units, least = _designs(dtype, decades=decades)
    X = X * units[:, None, :]
    M, r = np.einsum("lni,lnj->lij", X, X), np.einsum("lni,ln->li", X, y)
    given = 0.5 * np.sum(y**2, axis=1)
    result, constant = _judge(M, r, given)
    assert np.all(result == dln.RESULTS.successful)
    np.testing.assert_array_equal(constant, given)
    free = jax.jit(jax.vmap(lambda M, r: dln.Quadratic(M, r).constant))(M, r)
    # The spectrum of S has a condition number of up to 1e3 or so.
    np.testing.assert_allclose(free, least, rtol=1e4 * np.finfo(dtype).eps)
    for lane in range(0, 64, 7):  # the same where the values are known
        np.testing.assert_allclose(dln.Quadratic(M[lane], r[lane]).constant, free[lane], rtol=1e-3)


def test_bad_quadratics_are_refused_or_marked_in_all_units():
    X, y, units, least = _designs()
    M, r = np.einsum("lni,lnj->lij", X, X), np.einsum("lni,ln->li", X, y)
    c = 0.5 * np.sum(y**2, axis=1)
    rng, lane = np.random.default_rng(5), np.arange(64)
    fault = lane % 6
    # No duplicates or empty columns in lanes that are to be spoilt as a full-rank matrix is.
    v = np.linalg.eigh(M)[1]
    spoilt = 0.1 * np.einsum("li,lj->lij", v[:, :, 0], v[:, :, 0])
    size = np.linalg.eigvalsh(M)[:, 0]
    M = np.where((fault == 1)[:, None, None], M - (size[:, None, None] * 10 + 1) * spoilt, M)
    M[fault == 2, 0, 3] += 1e-6
    empty = np.einsum("lni,lnj->lij", X[:, :, :4], X[:, :, :4])  # off the range by its last entry
    M = np.where((fault == 3)[:, None, None], np.pad(empty, ((0, 0), (0, 1), (0, 1))), M)
    M[fault == 4, 1, 1] *= -1e-3
    M[fault == 4, 1, 1] -= 1e-3
    c = np.where(fault == 5, least * 0.999, c)
    for scale in (np.ones_like(units), units):
        scaled = M * scale[:, :, None] * scale[:, None, :], r * scale, c
        result, constant = _judge(*scaled)
        np.testing.assert_array_equal(result == dln.RESULTS.invalid_problem, fault > 0)
        np.testing.assert_array_equal(np.isnan(constant), fault > 0)
        for i in rng.choice(lane[fault > 0], 8, replace=False):
            with pytest.raises(ValueError, match="must be symmetric|semidefinite|range|negative"):
                dln.Quadratic(*(a[i] for a in scaled))


def test_a_loss_below_zero_beyond_rounding_is_not_hidden():
    good = dln.Quadratic(np.eye(2), np.ones(2))
    bad = eqx.tree_at(lambda p: p.M, good, jnp.array([[1.0, 2], [2, 1]]))
    assert float(bad.loss(np.array([3.0, -3]))) == pytest.approx(-8)
    # Of 0.1 · 3, rounding leaves −5.6e-17.
    x = np.random.default_rng(0).normal(size=(1000, 2)) * 1e-9 + 1
    assert np.min(good.loss(x)) == 0


def test_a_known_matrix_inside_of_a_traced_function():
    M = jnp.eye(2)
    assert jax.jit(lambda r: dln.Quadratic(M, r).constant)(jnp.ones(2)) == 1
    with pytest.raises(ValueError, match="semidefinite"):
        negative = -M
        jax.jit(lambda r: dln.Quadratic(negative, r).constant)(jnp.ones(2))
