"""End points of one problem each: positive networks, weight decay, degenerate data, no response,
bad arguments."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from end_points import D_, U, V, X, Y
from scipy.optimize import linprog, nnls

import dlnjax as dln
from dlnjax.papers import w23

# Well conditioned, for a flow that ends soon: columns 0 and 2, 1 and 3 are the same.
DOUBLED = (np.eye(3) + 0.2 * X[:, :3])[:, [0, 1, 0, 1, 2]]


@functools.cache
def _positive_flow(y):
    network = dln.USquared(U)
    problem = dln.LeastSquares(DOUBLED, np.array(y))
    # Coordinates on the boundary vanish like 1/s or faster.
    flow = dln.gradient_flow(
        network, problem, np.array([0.0, 1000.0]), eps=1e-2, rtol=1e-10, atol=1e-11
    )
    return network, problem, flow.x[1], dln.end_point(network, problem, eps=1e-2)


@pytest.mark.parametrize("is_feasible", [True, False])
def test_positive(is_feasible):
    y = DOUBLED @ np.array([1.0, 0.5, 0, 0.3, 1]) if is_feasible else Y
    network, problem, x, end = _positive_flow(tuple(y))
    best, distance = nnls(DOUBLED, y)
    assert (distance < 1e-12) == is_feasible
    np.testing.assert_allclose(end.x, x, atol=1e-9)
    np.testing.assert_allclose(DOUBLED @ end.x, DOUBLED @ best, atol=1e-12)
    assert np.min(end.x) >= 0
    # Of two equal columns each gets its share, by the square of the shape.
    for i in (0, 1):
        if best[i] + best[i + 2] > 0:
            np.testing.assert_allclose(
                end.x[i] * U[i + 2] ** 2, end.x[i + 2] * U[i] ** 2, rtol=1e-9
            )
    if not is_feasible:
        assert set(np.flatnonzero(np.isneginf(end.dual))) == set(
            np.flatnonzero(DOUBLED.T @ (y - DOUBLED @ best) < -1e-9)
        )


@pytest.mark.parametrize("positive", [False, True])
def test_with_weight_decay_it_is_the_lasso(positive):
    problem = dln.LeastSquares(X, Y, 0.3)
    network = dln.USquared(U) if positive else dln.UV(U, V)
    end = dln.end_point(network, problem, eps=1e-2)
    path = dln.lasso_path(problem, positive=positive)
    np.testing.assert_allclose(end.x, path.x(np.inf), atol=1e-14)
    assert np.all(np.isinf(end.dual[np.asarray(end.x) != 0]))


def test_inconsistent_and_rank_deficient():
    rng = np.random.default_rng(3)
    B = rng.normal(size=(7, 2)) @ rng.normal(size=(2, D_))
    y = rng.normal(size=7)
    network = dln.UV(U, V)
    end = dln.end_point(network, dln.LeastSquares(B, y), eps=1e-3)
    assert np.abs(B.T @ (y - B @ end.x)).max() < 1e-13 * np.abs(B.T @ y).max() * 10
    quadratic = dln.Quadratic(B.T @ B, B.T @ y)
    np.testing.assert_allclose(dln.end_point(network, quadratic, eps=1e-3).x, end.x, atol=1e-12)
    # The same affine space by two of its equations.
    rows = np.linalg.svd(B)[2][:2]
    same = dln.end_point(network, dln.LeastSquares(rows, rows @ end.x), eps=1e-3)
    np.testing.assert_allclose(same.x, end.x, atol=1e-13)


def test_no_response():
    end = dln.end_point(dln.UV(U, 0 * U), dln.LeastSquares(X, 0 * Y), log_eps=-2000.0)
    np.testing.assert_array_equal(end.x, np.zeros(D_))
    np.testing.assert_array_equal(end.dual, np.zeros(D_))


def test_bad_input():
    problem, network = dln.LeastSquares(X, Y), dln.UV(U, V)
    with pytest.raises(ValueError, match="exactly one"):
        dln.end_point(network, problem)
    with pytest.raises(ValueError, match="network has 4 coordinates, the problem has 5"):
        dln.end_point(dln.UV(U[:4], V[:4]), problem, eps=0.1)
    with pytest.raises(eqx.EquinoxRuntimeError, match="max_steps"):
        dln.end_point(network, problem, eps=1e-2, max_steps=2)
    end = dln.end_point(network, problem, eps=1e-2, max_steps=2, throw=False)
    assert end.result == dln.RESULTS.end_point_not_reached and np.all(np.isnan(end.x))


def test_the_dual_beside_nearly_equal_columns():
    # The range of Xᵀ determines some entries to 13 digits less than it has: with those of a basis,
    # one of five of these duals had entries of which `x` would be 1e200.
    rng = np.random.default_rng(0)
    X, length = rng.normal(size=(64, 6, 10)), 1500.0
    X[:, :, 5] = X[:, :, 4] + 3e-13 * rng.normal(size=(64, 6))
    network = dln.UV(np.ones(10), np.zeros(10))
    solve = lambda X, y: dln.end_point(network, dln.LeastSquares(X, y), log_eps=-length)
    end = jax.jit(jax.vmap(solve))(X, X[:, :, 4])
    assert np.all(end.result == dln.RESULTS.successful)
    # q(0) = ε/4, and `x` is what it grows to: rounding of the dual times its length.
    q = lambda dual: np.exp(-length * (1 + np.log(4) / length - dual))
    np.testing.assert_allclose(q(end.dual) - q(-end.dual), end.x, rtol=0, atol=1e-11)


def test_columns_in_units_of_nine_decades():
    """`x = u∘u` near the boundary of what is feasible: `log x/x(0)` lies in the range of `Xᵀ`, and
    where `x` is 0 it may be as low as it is."""
    rng = np.random.default_rng(0)
    count, d = 200, 4
    unit = 10.0 ** rng.uniform(-4.5, 4.5, size=(count, 1, d))
    X = rng.normal(size=(count, 3, d)) * unit
    share = 10.0 ** rng.uniform(-11, 0, size=(count, d))
    share[np.arange(count), rng.integers(0, d, count)] += 1
    y = np.einsum("knd,kd->kn", X, share / unit[:, 0])
    log_eps = rng.uniform(-1500, -10, count)

    def solve(X, y, log_eps):
        network = dln.USquared(np.ones(d))
        return dln.end_point(network, dln.LeastSquares(X, y), log_eps=log_eps, throw=False)

    end = jax.jit(jax.vmap(solve))(X, y, log_eps)
    assert np.all(end.result == dln.RESULTS.successful)  # 6 were not reached
    checked = 0
    for k in range(count):
        x, size = np.asarray(end.x[k]), unit[k, 0]
        fit = np.max(np.abs(x) * size)
        np.testing.assert_allclose(X[k] @ x, y[k], atol=1e-12 * fit)
        # The residual is relative to the largest share of the fit: so are the errors of the others.
        error = 1e-12 * fit / np.where(x > 0, x * size, 1)
        known = (x > 0) & (error < 1e-3)
        growth = np.log(np.where(x > 0, x, 1)) - log_eps[k]
        dependence = np.linalg.svd(X[k] / size)[2][-1] / size
        if known.all():
            terms, room = dependence * growth, np.abs(dependence) * (error + 1e-13 * growth)
            assert abs(terms.sum()) <= room.sum()
        elif known.sum() == 3 and np.sum(x == 0) == 1:
            (zero,) = np.flatnonzero(x == 0)
            rest = dependence * np.where(known, growth, 0)
            assert -rest.sum() / dependence[zero] + log_eps[k] < -700
        else:
            continue
        checked += 1
    assert checked > 100


@pytest.mark.parametrize("depth", [3.0, 4.0, 6.0])
def test_two_points_of_one_norm(depth):
    # Below some ε the precision does not tell which of two points, or what between them, is the
    # end point: where it says so it must be the one of the closed form.
    rng, count = np.random.default_rng(7), 400
    X, y = map(np.asarray, w23.FIRST)
    turn = np.linalg.qr(rng.normal(size=(count, 2, 2)))[0]
    order = np.argsort(rng.random((count, 3)), axis=1)
    Xs = np.take_along_axis(turn @ X, order[:, None, :], axis=2)
    log_eps = -np.log(10) * rng.uniform(3, 300, count)
    one = jnp.ones(3)

    @jax.vmap
    def solve(X, y, log_eps):
        network = dln.Deep(one, one, depth=depth)
        end = dln.end_point(network, dln.LeastSquares(X, y), log_eps=log_eps, throw=False)
        return end.x, end.result == dln.RESULTS.successful

    x, told = map(np.asarray, jax.jit(solve)(Xs, turn @ y, log_eps))
    want = np.take_along_axis(np.broadcast_to(w23.chosen(depth)[:3], x.shape), order, axis=1)
    # How far it is from the limit, in units of ε^{1−2/D}.
    bound = 30 * np.exp((1 - 2 / depth) * log_eps) + 1e-6
    assert np.any(told)
    assert np.all(np.max(np.abs(x - want), axis=1)[told] < bound[told])


def test_negligible_entries_in_other_units():
    # Entries of e^−20000 have no digits in their dual in float32, and cannot come back. By linear
    # programming, where its vertex is unique.
    rng, count = np.random.default_rng(3), 60
    signs = rng.choice([-1.0, 1.0], (count, 6, 10))
    unit = 10 ** rng.uniform(-3, 3, (count, 1, 10))
    share = np.array([rng.permutation([1.0] * 3 + [0] * 7) for _ in range(count)])
    y = np.einsum("kij,kj->ki", signs, share * rng.uniform(0.5, 2, (count, 10)))

    @jax.vmap
    def solve(X, y):
        network, problem = dln.USquared(jnp.ones(10, X.dtype)), dln.LeastSquares(X, y)
        end = dln.end_point(network, problem, log_eps=-20_000.0, throw=False)
        return end.x, end.result == dln.RESULTS.successful

    as_single = lambda v: v.astype(np.float32)
    x, told = map(np.asarray, jax.jit(solve)(as_single(signs * unit), as_single(y)))
    number = 0
    for k in range(count):
        run = linprog(1 / unit[k, 0], A_eq=signs[k], b_eq=y[k])
        w = 1 - unit[k, 0] * (signs[k].T @ run.eqlin.marginals)
        if np.sum(w < 1e-2) <= np.sum(run.x > 1e-9):
            number += 1
            assert told[k]
            np.testing.assert_allclose(x[k] * unit[k, 0], run.x, atol=1e-3)
    assert number > 10
