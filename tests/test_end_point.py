"""End points of every depth, which share a program: against the flow, SciPy, the optimality
conditions, and what the papers state."""

import math
from decimal import Decimal, getcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from end_points import BOTH, D_, EVERY_DEPTH, FIRST, U, V, X, Y, limits_of, network_of, padded
from scipy.optimize import brentq

import dlnjax as dln
from dlnjax._results import names_of


@eqx.filter_jit
def _ends(D, X, y, u, v, log_eps) -> dln.EndPoint:
    """One compilation for a depth (2 or not) and the shapes."""

    def one(X, y, log_eps):
        network, problem = network_of(D, u, v), dln.LeastSquares(X, y)
        return dln.end_point(network, problem, log_eps=log_eps, throw=False)

    lanes = jax.vmap(one, in_axes=(None, None, 0))
    return jax.vmap(lanes, in_axes=(0, 0, None))(X, y, log_eps)


def _solve(D, instances, log_eps, u=None, v=None) -> dln.EndPoint:
    """For two instances (or one twice) and up to eight `log ε`: axes of these lengths."""
    X, y = map(np.stack, zip(*instances, *instances[: 2 - len(instances)], strict=True))
    u = np.ones(X.shape[-1]) if u is None else u
    v = (0 * u if D == 2 else u) if v is None else v
    grid = np.resize(np.asarray(log_eps, float), 8)
    end = _ends(2 if D == 2 else jnp.asarray(D, float), *map(jnp.asarray, (X, y, u, v, grid)))
    end = jax.tree.map(lambda a: np.asarray(a)[: len(instances), : np.size(log_eps)], end)
    assert np.all(end.result == dln.RESULTS.successful)
    return end


# --- what the papers state --------------------------------------------------------------------


@pytest.mark.parametrize("D", [2, 3.0, 4.0])
def test_rates(D):
    # [W23] Fig. 1, in ε = α^D: slope 2 at depth 2, 1/2 for its second instance, else 1.
    # (Depth 2.5 bends: its corrections are of order ε^(1/5).)
    top = {2: 1e-3, 3.0: 1e-6, 4.0: 1e-5}[D]
    log_eps = np.log(np.geomspace(1e-2 * top, top, 8))
    end = _solve(D, BOTH, log_eps)
    error = np.abs(end.x - limits_of(D)).max(axis=-1)
    # In the first, two points share the norm, and the end point is exact to some units of its
    # sensitivity only. 5e-3 of the distance is 2e-3 of a slope over two decades.
    exactness = 3 * (end.stats["sensitivity"] + 8 * np.finfo(float).eps)
    assert D == 2 or np.max(exactness / error) < 5e-3
    slopes = np.polyfit(log_eps, np.log(error).T, 1)[0]
    np.testing.assert_allclose(slopes, [2, 0.5] if D == 2 else [1, 1], atol=0.02)


def test_as_exact_as_the_sensitivity():
    # FIRST at D = 4, where x = start + t null and Σ null h⁻¹(x/ε) = 0, in 60 digits. The roots
    # of z(1 − g²)² = 4g, h of depth 4, by Newton from the wall.
    getcontext().prec = 60
    start, null = (1, 2, 0), (1, 2, -3)

    def slope(t, eps):
        total = Decimal(0)
        for a, b in zip(start, null, strict=True):
            z = abs(a + t * b) / eps
            g = 1 - 1 / (2 * z.sqrt() + 2)
            for _ in range(100):
                step = (z * (1 - g * g) ** 2 - 4 * g) / (4 * z * g * (g * g - 1) - 4)
                g = min(max(g - step, g / 2), (1 + g) / 2)
                if abs(step) < Decimal("1e-55"):
                    break
            total += b * g.copy_sign(a + t * b)
        return total

    sizes = np.geomspace(1e-12, 1e-4, 8)
    end = _solve(4.0, [FIRST], np.log(sizes))
    for x, log_eps, sensitivity in zip(
        end.x[0], np.log(sizes), end.stats["sensitivity"][0], strict=True
    ):
        low, high = Decimal(-1), Decimal(0)
        for _ in range(80):
            t = (low + high) / 2
            low, high = (t, high) if slope(t, Decimal(float(log_eps)).exp()) < 0 else (low, t)
        error = max(
            abs(Decimal(v) - a - low * b)
            for v, a, b in zip(x[:3].tolist(), start, null, strict=True)
        )
        # The dual has some roundings, the sensitivity is that of one; x is at most 2.
        assert error < 8 * sensitivity + 8 * np.finfo(float).eps
    assert end.stats["sensitivity"][0, 0] > 1e-11  # there to be seen


@EVERY_DEPTH
def test_hard_instance(D):
    # [W23] Fig. 2: A = [1, 1 − δ], y = 1. Once x₁ = 1 has the dual 1, w₂^± = 1 ∓ (1 − δ).
    delta = np.array([0.3, 0.1])
    log_eps = np.array([-200.0, -300, -400]) if D == 2 else np.array([-90.0, -100, -120])
    x = _solve(D, [padded([[1, 1 - s]], [1]) for s in delta], log_eps).x
    if D == 2:
        want = np.exp(delta[:, None] * (log_eps - math.log(4)))
    else:
        k = D / (D - 2)
        want = np.exp(log_eps) * (delta**-k - (2 - delta) ** -k)[:, None]
    np.testing.assert_allclose(x[..., 1], want, rtol=1e-5)
    np.testing.assert_allclose(x[..., 0], 1, atol=2 * want.max())


def _inverse(z, D) -> float:
    if D == 2:
        return math.asinh(z / 2)
    if z == 0:
        return 0.0
    h = lambda g: (1 - g) ** (-D / (D - 2)) - (1 + g) ** (-D / (D - 2)) - abs(z)
    return math.copysign(float(brentq(h, 0, 1 - 1e-9, xtol=1e-15)), z)  # pyright: ignore


@EVERY_DEPTH
def test_potential_is_least_on_a_line(D):
    # [Woo20] Theorems 1 and 3, with one null vector: a root in one variable.
    log_eps = np.log([0.5, 1e-1, 1e-2])
    points = _solve(D, [FIRST], log_eps).x[0, :, :3]
    start, null = np.array([1.0, 2, 0]), np.array([1.0, 2, -3])
    for x, eps in zip(points, np.exp(log_eps), strict=True):
        unit = eps / 4 if D == 2 else eps  # UV(1, 0) has the shapes 1/2
        slope = lambda t, u=unit: null @ [_inverse(v / u, D) for v in start + t * null]
        np.testing.assert_allclose(x, start + brentq(slope, -1, 0, xtol=1e-15) * null, atol=1e-12)


@EVERY_DEPTH
def test_range_condition(D):
    # The gradient of the potential, asinh(x/(2 shape² ε)) at depth 2, lies in the range of Xᵀ.
    shape = np.full(D_, 1.2)
    log_eps = np.log([0.9, 0.1, 1e-3])
    end = _solve(D, [(X, Y)], log_eps, shape)
    np.testing.assert_allclose(end.x[0] @ X.T, np.stack([Y] * 3), atol=1e-14)
    off_range = np.eye(D_) - np.linalg.pinv(X) @ X
    for x, eps in zip(end.x[0], np.exp(log_eps), strict=True):
        g = np.array([_inverse(v, D) for v in x / (eps * 1.2**D * (1 if D > 2 else 0.25))])
        assert np.abs(off_range @ g).max() < 1e-11 * np.abs(g).max()


@EVERY_DEPTH
def test_kernel_regime(D):
    # α^D ≥ 1 goes into the shape. The distance to the minimum 2-norm is O(α^{−2D}).
    for alpha in (1e1, 1e3, 1e6):
        shape = np.full(D_, alpha * math.exp(1 / D))
        x = _solve(D, [(X, Y)], -1.0, shape).x[0, 0]
        error = np.abs(x - np.linalg.pinv(X) @ Y).max()
        assert error < 1e-14 + alpha ** (-2 * D)


@EVERY_DEPTH
def test_a_response_below_the_rounding_of_the_start(D):
    # x is a difference of q⁺ and q⁻, each some 1e6 times as large: it has the digits that are left.
    u, v = np.full(D_, 3.0), np.full(D_, 2.0)
    if D == 2:
        u, v = u + v, u - v  # UV: q(0) = ((u ± v)/2)² ε
    end = _solve(D, [(X, 1e-5 * Y)], [-1.0, -3.0], u, v)
    for x, eps in zip(end.x[0], np.exp([-1.0, -3.0]), strict=True):
        assert np.abs(X @ x - 1e-5 * Y).max() < 1e-14 * eps * 3.0**D
    # Where `x` is unique, and none is left, that is said.
    depth = 2 if D == 2 else jnp.asarray(D, float)
    design, response = padded([[1, 0.3], [0.2, 1]], [1e-16, -5e-17])
    lanes = np.stack([design] * 2), np.stack([response] * 2), u, v, np.full(8, -1.0)
    lost = _ends(depth, *map(jnp.asarray, lanes))
    assert np.all(lost.result == dln.RESULTS.end_point_undetermined)


@EVERY_DEPTH
def test_a_column_of_zeros_keeps_its_start(D):
    # However large that is, and whatever it would be in units of x.
    assert not FIRST[0][:, 3:].any()
    shape = np.array([1.0, 1, 1, 1e-3, 1e4])
    end, without = (_solve(D, [FIRST], -9.0, u) for u in (shape, np.ones(D_)))
    np.testing.assert_allclose(end.x[0, 0, :3], without.x[0, 0, :3], rtol=1e-13)
    np.testing.assert_array_equal(end.x[0, 0, 3:], 0)
    np.testing.assert_array_equal(end.dual[0, 0, 3:], 0)


# --- the flow ---------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [2, 3.0])
def test_is_the_end_of_the_flow(D):
    v = V if D == 2 else U[::-1].copy()
    flow = dln.gradient_flow(
        network_of(D, U, v),
        dln.LeastSquares(X, Y),
        np.array([0.0, 100.0]),
        eps=1e-2,
        rtol=1e-11,
        atol=1e-12,
    )
    end = _solve(D, [(X, Y)], math.log(1e-2), U, v)
    np.testing.assert_allclose(end.x[0, 0], flow.x[1], atol=1e-9)
    np.testing.assert_allclose(end.dual[0, 0], flow.dual[1], atol=1e-9)


# --- accuracy and steps -----------------------------------------------------------------------


@pytest.mark.parametrize("D", [2, 3.0])
@pytest.mark.parametrize("nonzeros", [4, 30])
def test_steps_and_residuals(D, nonzeros):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(20, 40))
    y = X[:, :nonzeros] @ rng.normal(size=nonzeros)
    log_eps = (
        np.array([-1.0, -10, -100, -500, -2000]) if D == 2 else np.array([-1.0, -5, -10, -50, -138])
    )
    end = _solve(D, [(X, y)], log_eps)
    np.testing.assert_allclose(end.x[0] @ X.T, np.stack([y] * 5), atol=1e-12 * np.abs(y).max())
    assert end.stats["num_steps"].max() < 64
    if nonzeros == 4:
        np.testing.assert_allclose(
            end.x[0, -1], dln.basis_pursuit(dln.LeastSquares(X, y)).x, atol=1e-12
        )


def test_weight_decay_may_be_traced():
    def solve(decay):
        problem = dln.LeastSquares(X, Y, decay)
        return dln.end_point(dln.UV(U, V), problem, eps=1e-2, throw=False).x

    decays = jnp.array([0.0, 0.299, 0.3, 0.301])
    x, slope = jax.jit(jax.vmap(lambda a: (solve(a), jax.jacrev(solve)(a))))(decays)
    free = _solve(2, [(X, Y)], math.log(1e-2), U, V)
    np.testing.assert_allclose(x[0], free.x[0, 0], atol=1e-14)
    np.testing.assert_allclose(
        x[2], dln.lasso_path(dln.LeastSquares(X, Y, 0.3)).x(np.inf), atol=1e-14
    )
    np.testing.assert_allclose(slope[2], (x[3] - x[1]) / 0.002, atol=1e-9)


# --- batches ----------------------------------------------------------------------------------


def test_bad_lanes():
    designs, responses = np.stack([X] * 4), np.stack([Y] * 4)
    log_eps, shapes = np.full(4, -5.0), np.stack([U] * 4)
    designs[1, 0, 0], log_eps[2], shapes[3, 1] = np.nan, 1.0, 0.0

    @jax.jit
    @jax.vmap
    def solve(X, y, log_eps, u):
        network, problem = dln.UV(u, jnp.zeros_like(u)), dln.LeastSquares(X, y)
        return dln.end_point(network, problem, log_eps=log_eps, throw=False)

    end = solve(designs, responses, log_eps, shapes)
    want = ["successful", "invalid_data", "invalid_eps", "invalid_shape"]
    assert names_of(end.result).tolist() == want
    np.testing.assert_array_equal(np.isnan(end.x).all(axis=1), np.arange(4) > 0)
    np.testing.assert_allclose(end.x[0], _solve(2, [(X, Y)], -5.0, U).x[0, 0], atol=1e-14)
