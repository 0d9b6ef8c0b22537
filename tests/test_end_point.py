"""End points: against the flow, SciPy, the optimality conditions, and what the papers state."""

import functools
import math
from decimal import Decimal, getcontext
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy.optimize import brentq, linprog, nnls

import dlnjax as dln
from dlnjax._results import names_of


class Power(dln.AbstractDualNetwork):
    """`x = u^D − v^D`, `D > 2`, by DESIGN §2."""

    u: Float[Array, " d"]
    v: Float[Array, " d"]
    depth: Float[Array, ""]
    positive: ClassVar[bool] = False

    def __call__(self):
        return self.u**self.depth - self.v**self.depth

    def initial(self, log_eps):
        scale = jnp.exp(log_eps / self.depth)
        return Power(self.u * scale, self.v * scale, self.depth)

    def time_scale(self, log_eps):
        return jnp.exp((2 / self.depth - 1) * log_eps) / (self.depth * (self.depth - 2))

    def penalty(self, weight_decay):
        return 0 * weight_decay

    def link(self, w, log_eps):
        return jnp.exp(log_eps - self.depth / (self.depth - 2) * jnp.log(jnp.maximum(w, 1e-9)))

    def initial_dual(self, log_eps):
        return jnp.stack([self.u, self.v]) ** (2 - self.depth)

    def growth(self, log_eps):
        p, shape = 1 - 2 / self.depth, jnp.stack([self.u, self.v])
        return dln.Growth(self.depth * jnp.log(shape) + log_eps, p * shape ** (2 - self.depth), p)


N, D_ = 3, 5
DEPTHS = [2, 2.5, 3.0, 4.0]
EVERY_DEPTH = pytest.mark.parametrize("D", DEPTHS)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D_)), RNG.normal(size=N)
U, V = RNG.uniform(0.5, 2, D_), RNG.uniform(-0.4, 0.4, D_)


def _padded(design, response) -> tuple[np.ndarray, np.ndarray]:
    """With rows and columns of zeros, which change nothing, so that one compilation does."""
    X, y = np.zeros((N, D_)), np.zeros(N)
    X[: len(design), : len(design[0])], y[: len(response)] = design, response
    return X, y


# The two instances of [W23].
FIRST = _padded([[1.0, 1, 1], [3, 0, 1]], [3, 3])
SECOND = _padded([[2.0, -1, 0, 1], [0, 3, 2, 0]], [0, 6])
BOTH = (FIRST, SECOND)


def _network(D, u, v=None):
    if isinstance(D, int):  # other depths may be traced
        return dln.UV(u, jnp.zeros_like(u) if v is None else v)
    return Power(u, u if v is None else v, jnp.asarray(D, float))


@eqx.filter_jit
def _ends(D, X, y, u, v, log_eps) -> dln.EndPoint:
    """One compilation for a depth (2 or not) and the shapes."""

    def one(X, y, log_eps):
        network, problem = _network(D, u, v), dln.LeastSquares(X, y)
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


@functools.cache
def _limits(D) -> np.ndarray:
    t = (4 - 6 * 2 ** (1 / 3) + 9 * 2 ** (2 / 3)) / 31
    if D > 2:
        t = 1 / (1 + (3 ** (2 / D) / (2 ** (2 / D) + 1)) ** (-D / (D - 2)))
    return np.array([1 - t, 2 * (1 - t), 3 * t, 0, 0])


# --- what the papers state --------------------------------------------------------------------


@eqx.filter_jit
def _limit(D, X, y) -> dln.EndPoint:
    network = _network(D, jnp.ones(D_))
    return dln.limit_point(network, dln.LeastSquares(X, y), throw=False)


@EVERY_DEPTH
@pytest.mark.parametrize("instance", [0, 1])
def test_which_minimiser(D, instance):
    X, y = BOTH[instance]
    point = _limit(2 if D == 2 else jnp.asarray(D, float), X, y)
    assert point.result == dln.RESULTS.successful
    np.testing.assert_allclose(point.x, _limits(D), atol=1e-12)


@pytest.mark.parametrize("D", [2, 3.0, 4.0])
def test_rates(D):
    # [W23] Fig. 1, in ε = α^D: slope 2 at depth 2, 1/2 for its second instance, else 1.
    # (Depth 2.5 bends: its corrections are of order ε^(1/5).)
    top = {2: 1e-3, 3.0: 1e-6, 4.0: 1e-5}[D]
    log_eps = np.log(np.geomspace(1e-2 * top, top, 8))
    end = _solve(D, BOTH, log_eps)
    error = np.abs(end.x - _limits(D)).max(axis=-1)
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


def test_tiny_entries_obey_the_dual():
    # With fewer than n active coordinates Xx = y hardly sees the others, which the dual determines.
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, N, D_))
    y = X[:, :, 0] * rng.normal(size=(40, 1))
    network, log_eps = dln.UV(2 * jnp.ones(D_), jnp.zeros(D_)), -110.0

    @jax.jit
    @jax.vmap
    def ends(X, y):
        return dln.end_point(network, dln.LeastSquares(X, y), log_eps=log_eps, throw=False)

    end = ends(X, y)
    assert jnp.all(end.result == dln.RESULTS.successful)
    q = [np.exp(log_eps * (1 - sign * np.asarray(end.dual))) for sign in (1, -1)]
    np.testing.assert_allclose(end.x, q[0] - q[1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(jnp.einsum("lnd,ld->ln", X, end.x), y, rtol=0, atol=1e-12)
    # They are there to be seen.
    assert np.median(np.max(np.abs(end.x[:, 1:]), axis=1)) > 1e-20


@EVERY_DEPTH
def test_hard_instance(D):
    # [W23] Fig. 2: A = [1, 1 − δ], y = 1. Once x₁ = 1 has the dual 1, w₂^± = 1 ∓ (1 − δ).
    delta = np.array([0.3, 0.1])
    log_eps = np.array([-200.0, -300, -400]) if D == 2 else np.array([-90.0, -100, -120])
    x = _solve(D, [_padded([[1, 1 - s]], [1]) for s in delta], log_eps).x
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
    design, response = _padded([[1, 0.3], [0.2, 1]], [1e-16, -5e-17])
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
        _network(D, U, v),
        dln.LeastSquares(X, Y),
        np.array([0.0, 100.0]),
        eps=1e-2,
        rtol=1e-11,
        atol=1e-12,
    )
    end = _solve(D, [(X, Y)], math.log(1e-2), U, v)
    np.testing.assert_allclose(end.x[0, 0], flow.x[1], atol=1e-9)
    np.testing.assert_allclose(end.dual[0, 0], flow.dual[1], atol=1e-9)


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


def test_undetermined_is_flagged():
    # Two points share the norm, and w of the active coordinates is 1e-20: it has no digits.
    problem, network = dln.LeastSquares(*FIRST), _network(3.0, jnp.ones(D_))
    with pytest.raises(eqx.EquinoxRuntimeError, match="limit_point"):
        dln.end_point(network, problem, eps=1e-60)
    end = dln.end_point(network, problem, eps=1e-60, throw=False)
    assert end.result == dln.RESULTS.end_point_undetermined and np.all(np.isnan(end.x))


@pytest.mark.parametrize("positive", [False, True])
def test_limit_of_small_initialisations(positive):
    # ±1 designs have faces of minimum 1-norm points.
    rng = np.random.default_rng(2)
    shape = rng.uniform(0.5, 2, 6)
    network = dln.USquared(shape) if positive else dln.UV(shape, np.zeros(6))
    several = 0

    @eqx.filter_jit
    def both(X, y):
        problem = dln.LeastSquares(X, y)
        small = dln.end_point(network, problem, log_eps=-1500.0, throw=False)
        minimum = dln.basis_pursuit(problem, positive=positive, throw=False)
        return dln.limit_point(network, problem, throw=False), small, minimum

    for _ in range(10):
        X = rng.choice([-1.0, 1.0], (3, 6))
        limit, small, minimum = both(X, np.array([1.0, 2.0, 3.0]) @ np.ones((3, 3)))
        np.testing.assert_allclose(limit.x, small.x, atol=1e-10)
        np.testing.assert_allclose(np.abs(limit.x).sum(), np.abs(minimum.x).sum(), rtol=1e-12)
        several += not bool(minimum.is_unique)
    assert several > 2


# --- fewer active coordinates than rows --------------------------------------------------------


@pytest.mark.parametrize("D", [3.0, 4.0])
def test_planted_responses_obey_every_condition(D):
    # The end point is the one point where all of them hold: Xx = y, a dual in the range of Xᵀ, and
    # w = (ε/q)^p, which is 1 ∓ dual.
    rng = np.random.default_rng(6)
    lanes, p = 200, 1 - 2 / D
    X, x = rng.normal(size=(lanes, N, D_)), rng.normal(size=(lanes, D_))
    x[:, 2:] = x[::2, 1] = 0
    y = np.einsum("bnd,bd->bn", X, x)
    w_sizes = np.array([1e-4, 1e-6, 1e-8, 1e-14])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def ends(X, y, log_eps):
        return dln.end_point(
            _network(D, jnp.ones(D_)), dln.LeastSquares(X, y), log_eps=log_eps, throw=False
        )

    end = ends(X, y, np.log(w_sizes) / p)
    assert np.all(end.result == dln.RESULTS.successful)
    size = np.abs(end.x).max(axis=2)
    off = np.einsum("bnd,bed->ben", X, end.x) - y[:, None]
    unit, tolerance = np.finfo(float).eps, 512 * np.finfo(float).eps
    assert np.max(np.abs(off).max(axis=2) / size) < 1e-12  # the tolerance, times ‖X‖ ≤ 6
    dual, x = np.asarray(end.dual), np.asarray(end.x)
    V = np.linalg.svd(X, full_matrices=False)[2]
    image = np.einsum("bki,bkj,bej->bei", V, V, dual)
    assert np.max(np.abs(image - dual)) < 64 * unit
    eps = w_sizes[:, None] ** (1 / p)
    other = eps * (1 + np.abs(dual)) ** (-1 / p)
    want = (eps / (np.abs(x) + other)) ** p
    seen = np.abs(x) > 1e-9 * size[..., None]
    np.testing.assert_array_equal(np.sign(x)[seen], np.sign(dual)[seen])
    # The dual has some roundings. `x` is exact to the tolerance in `Vx`, which is that over the
    # least singular value σ of the active columns in `x`, and moves `w = (ε/x)^p` by p w δx/x.
    values = np.linalg.svd(V[:, None] * seen[:, :, None], compute_uv=False)
    last = np.minimum(seen.sum(axis=2, keepdims=True), N) - 1
    exact_to = tolerance * size[..., None] / np.take_along_axis(values, last, axis=2)
    digits = 64 * unit + p * want * exact_to / np.maximum(np.abs(x), 1e-300)
    assert np.all((np.abs(1 - np.abs(dual) - want) < digits)[seen])
    # What is not seen in x is where w has not come to 0.
    assert np.all((1 - np.abs(dual) > -64 * unit) & (seen | (want > 1e-13)))


def test_limits_of_sparse_responses():
    # ±1 designs with a one-sparse response, Gaussian ones with planted responses; D = 3, shapes of
    # every size: the weighted 1-norm is least, and its minimiser is unique in almost all.
    rng = np.random.default_rng(7)
    lanes, n, d = 120, 6, 8
    X = np.where(np.arange(lanes)[:, None, None] % 2, rng.normal(size=(lanes, n, d)), 0)
    X[::2] = rng.choice([-1.0, 1.0], X[::2].shape)
    x = rng.normal(size=(lanes, d)) * (np.arange(d) < rng.integers(1, n, lanes)[:, None])
    x[::2, 1:] = 0
    y, u = np.einsum("bnd,bd->bn", X, x), rng.uniform(0.5, 2, (lanes, d))

    @jax.jit
    @jax.vmap
    def limits(X, y, u):
        return dln.limit_point(dln.Deep(u, u, depth=3.0), dln.LeastSquares(X, y), throw=False)

    end = limits(X, y, u)
    assert np.all(end.result == dln.RESULTS.successful)
    for A, b, shape, point, dual in zip(X, y, u, *map(np.asarray, (end.x, end.dual)), strict=True):
        cost = np.tile(1 / shape, 2)
        best = linprog(cost, A_eq=np.hstack([A, -A]), b_eq=b)
        np.testing.assert_allclose(A @ point, b, atol=1e-12 * np.abs(b).max())
        # To the tolerance of the linear programme.
        np.testing.assert_allclose(np.abs(point) @ cost[:d], best.fun, rtol=1e-9)
        assert np.max(np.abs(dual) * shape) < 1 + 1e-10
        np.testing.assert_allclose(dual @ point, best.fun, rtol=1e-9)


# --- degenerate data --------------------------------------------------------------------------


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


# --- basis pursuit ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "weights", "positive"])
def test_basis_pursuit_against_linprog(case):
    rng = np.random.default_rng(4)
    for _ in range(5):
        X, weights = rng.normal(size=(N, D_)), rng.uniform(0.5, 2, (2, D_))
        y = X @ abs(rng.normal(size=D_)) if case == "positive" else rng.normal(size=N)
        weights = weights if case == "weights" else np.ones((2, D_))
        options = {"weights": weights} if case == "weights" else {"positive": case == "positive"}
        point = dln.basis_pursuit(dln.LeastSquares(X, y), **options)
        F, cost = (X, weights[0]) if case == "positive" else (np.hstack([X, -X]), weights.ravel())
        best = linprog(cost, A_eq=F, b_eq=y)
        q = best.x if case == "positive" else best.x[:D_] - best.x[D_:]
        np.testing.assert_allclose(point.x, q, atol=1e-9)
        assert point.is_unique and abs(point.gap) < 1e-13 * best.fun and point.infeasibility < 1e-13
        # A dual point of the same value.
        ratio = np.where(point.dual > 0, point.dual / weights[0], -point.dual / weights[1])
        assert np.max(point.dual / weights[0] if case == "positive" else ratio) < 1 + 1e-12
        np.testing.assert_allclose(point.dual @ point.x, best.fun, rtol=1e-9)


def test_the_dual_of_columns_that_are_almost_dependent():
    # Its digits are those of the condition number (1e4), not of its square, which the path's are.
    rng, instances = np.random.default_rng(9), []
    for _ in range(20):
        A = rng.normal(size=(N, N))
        A[:, 1] = A[:, 0] + 1e-4 * A[:, 1]
        X = np.hstack([A, 1e-8 * rng.normal(size=(N, 2))])
        instances.append((X, A @ [1.0, -1.0, 0.5]))

    @jax.jit
    @jax.vmap
    def solve(X, y):
        return dln.basis_pursuit(dln.LeastSquares(X, y), throw=False)

    point = solve(*map(np.stack, zip(*instances, strict=True)))
    assert np.all(point.result == dln.RESULTS.successful)
    for (X, _), dual in zip(instances, np.asarray(point.dual), strict=True):
        nu = np.linalg.solve(X[:, :N].T, [1.0, -1, 1])
        np.testing.assert_array_equal(dual[:N], [1, -1, 1])
        want = X[:, N:].T @ nu
        np.testing.assert_allclose(dual[N:], want, rtol=0, atol=1e-11 * np.abs(want).max())


def test_basis_pursuit_that_is_not_unique():
    point = dln.basis_pursuit(dln.LeastSquares(*FIRST))
    np.testing.assert_allclose(np.abs(point.x).sum(), 3, rtol=1e-13)
    np.testing.assert_allclose(point.dual, [1, 1, 1, 0, 0], atol=1e-13)
    assert not point.is_unique and point.gap < 1e-13


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
