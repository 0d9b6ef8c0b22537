"""The flow of `Deep`: against SciPy on the weights, closed forms, the lasso path and papers."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import root_scalar

import dlnjax as dln
from dlnjax._flow.terms.dual import dual_term
from dlnjax._results import names_of

D = 4
S = np.linspace(0, 10, 21)
RNG = np.random.default_rng(0)
U, V = RNG.uniform(0.5, 2, (2, D))
SIZES = {"rows": 3, "coordinates": 6}
DATA = {name: (RNG.normal(size=(n, D)), RNG.normal(size=n)) for name, n in SIZES.items()}
EVERY_SPACE = pytest.mark.parametrize("space", DATA)
DEPTHS, EPS = [2.5, 3.0, 4.0], [1e-2, 1e-5, 1e-8]


@eqx.filter_jit
def _lanes(depth, log_eps, u, v, X, y, s, decay) -> dln.Flow:
    """Lanes over all arguments. One compilation for each shape of `X` at `D > 2`."""

    def lane(depth, log_eps, u, v, X, y, s, decay):
        return dln.gradient_flow(
            dln.Deep(u, v, depth=2 if depth is None else depth),
            dln.LeastSquares(X, y, decay),
            s,
            log_eps=log_eps,
            throw=False,
        )

    return jax.vmap(lane)(depth, log_eps, u, v, X, y, s, decay)


def _solve(depth: Any, log_eps: Any, X, y, u: Any = U, v: Any = V, s: Any = S, decay: Any = 0.0):
    """Scalars, vectors and matrices broadcast to nine lanes."""
    lanes = lambda a, ndim: np.broadcast_to(a, (9, *np.shape(a)[np.ndim(a) - ndim :]))
    u, v, y, s = (lanes(a, 1) for a in (u, v, y, s))
    X, log_eps, decay = lanes(X, 2), lanes(log_eps, 0), lanes(decay, 0)
    depth = None if depth is None else lanes(depth, 0)
    arguments = (depth, log_eps, u, v, X, y, s, decay)
    flow = _lanes(*jax.tree.map(jnp.asarray, arguments))
    return jax.tree.map(np.asarray, flow)


GRID = [(depth, eps) for depth in DEPTHS for eps in EPS]


@functools.cache
def _solved(space: str) -> dln.Flow:
    depth, eps = np.array(GRID).T
    return _solve(depth, np.log(eps), *DATA[space])


def _succeeded(flow: dln.Flow) -> np.ndarray:
    return np.asarray(flow.result == dln.RESULTS.successful)


def _radau(X, y, depth, eps, decay=0.0):
    """`x` and `z` by SciPy, on the logarithms of the weights, in the time of the paper."""
    M, r, log_eps = X.T @ X, X.T @ y, np.log(eps)
    scale = -log_eps / 4 if depth == 2 else eps ** (2 / depth - 1) / (depth * (depth - 2))
    signs = np.repeat([1.0, -1.0], D)

    def parts(state):
        x = np.exp(depth * state[: 2 * D])
        gradient = signs * np.tile(M @ (x[:D] - x[D:]) - r, 2)
        return x, np.exp((depth - 2) * state[: 2 * D]), gradient

    def field(s, state):
        x, mobility, gradient = parts(state)
        velocity = -scale * (depth * mobility * gradient + 2 * decay)
        return np.concatenate([velocity, x[:D] - x[D:]])

    def jacobian(s, state):
        x, mobility, gradient = parts(state)
        hessian = np.outer(signs, signs) * np.tile(M, (2, 2)) * (depth * x)
        out = np.zeros((3 * D, 3 * D))
        out[: 2 * D, : 2 * D] = -scale * depth * mobility[:, None] * hessian
        out[range(2 * D), range(2 * D)] -= scale * depth * (depth - 2) * mobility * gradient
        out[2 * D :, :D], out[2 * D :, D : 2 * D] = np.diag(depth * x[:D]), -np.diag(depth * x[D:])
        return out

    start = np.concatenate([np.log(U), np.log(V)]) + log_eps / depth
    with np.errstate(all="ignore"):  # rejected trial steps overflow
        solution = solve_ivp(
            field,
            (0, S[-1]),
            np.concatenate([start, np.zeros(D)]),
            method="Radau",
            t_eval=S,
            rtol=1e-10,
            atol=1e-12,
            jac=jacobian,
        )
    assert solution.success
    x = np.exp(depth * solution.y[: 2 * D])
    return (x[:D] - x[D:]).T, solution.y[2 * D :].T


# --- against SciPy ----------------------------------------------------------------------------


@EVERY_SPACE
@pytest.mark.parametrize("lane", range(9), ids=[f"D={d}, {e}" for d, e in GRID])
def test_against_radau(space, lane):
    flow = _solved(space)
    assert _succeeded(flow).all()
    x, z = _radau(*DATA[space], *GRID[lane])
    # Tolerances 1e-7 and 1e-8 on w, z and x; several jumps amplify them.
    assert np.abs(flow.z[lane] - z).max() < 1e-6
    assert np.abs(flow.x[lane] - x).max() < 1e-6


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_depth_two_is_uv_and_radau(decay):
    X, y = DATA["rows"]
    flow = _solve(None, np.log(1e-5), X, y, decay=decay)
    uv = dln.gradient_flow(dln.UV(U + V, U - V), dln.LeastSquares(X, y, decay), S, eps=1e-5)
    # A traced weight decay is in coordinates, a known one of 0 in rows: to the tolerance of steps.
    np.testing.assert_allclose(flow.x[0], uv.x, atol=2e-6)
    np.testing.assert_allclose(flow.z[0], uv.z, atol=1e-6)
    x, z = _radau(X, y, 2, 1e-5, decay)
    assert np.abs(flow.z[0] - z).max() < 1e-6
    assert np.abs(flow.x[0] - x).max() < 2e-6  # log(1/ε) times the tolerance of w


@pytest.mark.parametrize("depth", [2.5, 4.0])
def test_the_weight_form_conserves(depth):
    # u^{2−D} + v^{2−D}: then x, which the weights give, is that of w(0) ∓ Xᵀν.
    eps = 1e-2
    network, problem = dln.Deep(U, V, depth=depth), dln.LeastSquares(*DATA["rows"])
    flow = dln.gradient_flow(
        network, problem, S, eps=eps, formulation=dln.WeightForm(), rtol=1e-9, atol=1e-10
    )
    dual = np.asarray(flow.dual)
    exponent = -depth / (depth - 2)
    plus, minus = U ** (2 - depth) - dual, V ** (2 - depth) + dual
    x = eps * (plus**exponent - minus**exponent)
    assert np.abs(flow.x - x).max() < 1e-5
    ours = _solve(depth, np.log(eps), *DATA["rows"])
    assert np.abs(ours.z[0] - flow.z).max() < 1e-6


# --- closed forms and limits ------------------------------------------------------------------


def _scalar(s, eps, y):
    """`w⁺` at depth 4 for `ℓ = ½(x − y)²` alone: `s = ∫ dw/(y − εw⁻²)` in closed form."""
    c = np.sqrt(eps / y)

    def time(gap):  # at w = c + gap
        ratio = (2 * c + gap) / gap * (1 - c) / (1 + c)
        return (1 - c - gap + c / 2 * np.log(ratio)) / y

    # Beyond the jump the gap is a power of e^{−1/c}, which underflows: x = y.
    least, most = np.log(1e-290), np.log(1 - c)
    if time(np.exp(least)) < s:
        return c
    return c + np.exp(root_scalar(lambda g: time(np.exp(g)) - s, bracket=(least, most)).root)


def test_one_coordinate():
    # v is so small that w⁻ never counts, and the other columns are 0.
    y, s = 1.3, np.sort(np.resize([0.3, 0.7, 0.9], len(S)))
    eps = np.resize([1e-6, 1e-10, 1e-14], 9)
    X = np.zeros((3, D))
    X[0, 0] = 1
    v = np.array([1e-12, 1, 1, 1])
    flow = _solve(4.0, np.log(eps), X, np.array([y, 0, 0]), np.ones(D), v, s)
    assert _succeeded(flow).all()
    for i in range(3):
        w = np.array([_scalar(t, eps[i], y) for t in s])
        np.testing.assert_allclose(flow.x[i, :, 0], eps[i] / w**2, rtol=1e-6)
        np.testing.assert_allclose(flow.z[i, :, 0], y * s - 1 + w, atol=1e-8)


def _monotone(count=9):
    found, rng = [], np.random.default_rng(3)
    while len(found) < count:
        X, y = rng.normal(size=(3, D)), rng.normal(size=3)
        path = dln.lasso_path(dln.LeastSquares(X, y))
        if bool(path.is_monotone()):
            found.append((X, y, path))
    return found


@pytest.mark.parametrize("depth", [3.0, 4.0])
def test_tiny_eps_follows_the_lasso_path(depth):
    # [B25] Theorem 2.1: on monotone instances the limit is the lasso path; at ε = 1e−60 the
    # distance to it is that of the smallest ε that acts, 4e-11.
    instances = _monotone()
    X, y = (np.stack([instance[i] for instance in instances]) for i in range(2))
    one = np.ones(D)
    flow = _solve(depth, np.log(1e-60), X, y, one, one, S + 0.01)
    assert _succeeded(flow).all()
    for i, (X, y, path) in enumerate(instances):
        np.testing.assert_allclose(flow.x_mean[i], path.x(S + 0.01), atol=2e-8)
        problem = dln.LeastSquares(X, y)
        gap = dln.suboptimality_gap(problem, flow.x_mean[i], flow.s[i], path=path)
        lane = jax.tree.map(lambda a, i=i: a[i] if np.ndim(a) else a, flow)
        bound = dln.certificate(problem, lane)
        assert np.all(bound >= gap.absolute - 1e-14) and np.all(bound < 1e-8)


def test_saddle_to_saddle():
    # [PF23]: jumps at 1, 4 and 4 + 80/49.
    X = np.array([[1, 0.5, 0.7, 0], [0.5, 1, 0.1, 0.7]])
    X, y = np.concatenate([X, np.zeros((1, D))]), np.array([1.0, 0, 0])
    one, jumps = np.ones(D), np.array([0, 1, 4, 4 + 80 / 49, np.inf])
    plateaus = np.array([[0, 0, 0, 0], [0.8, 0, 0, 0], [0, 0, 1.4, 0], [0, 0, 10 / 7, -10 / 49]])
    flow = _solve([2.5, 3, 4] * 3, np.log(1e-60), X, y, one, one, S + 0.05)
    spent = np.clip(flow.s[0][:, None] - jumps[:-1], 0, np.diff(jumps))
    # ε^{1−2/D} = 1e-12 at D = 2.5.
    np.testing.assert_allclose(flow.z[:3], np.broadcast_to(spent @ plateaus, (3, 21, D)), atol=1e-8)
    k = np.searchsorted(jumps, flow.s[0]) - 1
    np.testing.assert_allclose(flow.x[:3], np.broadcast_to(plateaus[k], (3, 21, D)), atol=1e-8)


@pytest.mark.parametrize("depth, last", [(2.5, -40), (3.0, -23), (4.0, -16)])
def test_rate_of_convergence(depth, last):
    # max |x̄^ε − x̄⁰| = O(ε^{1−2/D}).
    log_eps = np.log(10.0) * np.array([*np.linspace(0.6 * last, last, 8), -60])
    flow = _solve(depth, log_eps, *DATA["rows"], np.ones(D), np.ones(D))
    distance = np.abs(flow.x_mean[:-1] - flow.x_mean[-1]).max(axis=(1, 2))
    slope = np.polyfit(log_eps[:-1], np.log(distance), 1)[0]
    assert abs(slope - (1 - 2 / depth)) < 0.01


def test_which_minimum_norm_solution():
    # [W23]: x = (1 − t, 2(1 − t), 3t), three active coordinates in two equations.
    X = np.array([[1, 1, 1, 0], [3, 0, 1, 0], [0, 0, 0, 0]], float)
    depth, eps = np.array([3.0, 3, 3, 3, 4, 4, 4, 4, 4]), np.array([1e-7, 1e-9, 1e-20, 1e-60])
    eps = np.resize(eps, 9)
    one = np.ones(D)
    flow = _solve(depth, np.log(eps), X, np.array([3.0, 3, 0]), one, one, 20 * S)
    t = 1 / (1 + (3 ** (2 / depth) / (2 ** (2 / depth) + 1)) ** (-depth / (depth - 2)))
    want = np.stack([1 - t, 2 * (1 - t), 3 * t, 0 * t], axis=1)
    error = np.abs(flow.x[:, -1] - want).max(axis=1)
    # The error of the step where ε is moderate; where it is tiny, every step rounds w by
    # u^{1/3} of where it ends.
    rounding = flow.stats["num_steps"] * (np.finfo(float).eps / 2) ** (1 / 3)
    assert np.all(error < np.where(eps >= 1e-9, 1e-6, rounding))


def test_steps_stay_flat_as_eps_vanishes():
    log_eps = -np.log(10) * np.array([8, 12, 20, 30, 40, 60, 100, 200, 300])
    flow = _solve(3.0, log_eps, *DATA["rows"])
    assert _succeeded(flow).all()
    assert flow.stats["num_steps"].max() < 2 * flow.stats["num_steps"][0]
    # x(0) is the initialisation, also where a larger ε acts.
    start = np.exp(log_eps)[:, None] * (U**3 - V**3)
    np.testing.assert_allclose(flow.x[:, 0], start, rtol=1e-11)


# --- the term ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma_h", [1e-3, 0.1, 1e3])
@EVERY_SPACE
def test_the_jacobian_is_exact(space, gamma_h):
    network, problem = dln.Deep(U, V, depth=3.0), dln.LeastSquares(*DATA[space])
    term = dual_term(network, problem, jnp.log(1e-3))
    rng = np.random.default_rng(1)
    w, z = term.initial()
    w = w * jnp.asarray(np.exp(rng.normal(size=w.shape) - 1.5))
    half = jnp.asarray(rng.normal(size=D))
    rhs = jnp.stack([-half, half])
    x, slope = term.response(w)
    u = term.solve(term.factorize(x, slope, jnp.asarray(gamma_h)), rhs, 0.0)
    _, product = jax.jvp(lambda w: term.vf(0.0, (w, z), None)[0], (w,), (u,))
    assert np.abs(u / gamma_h - product - rhs).max() < 1e-11 * (1 + np.abs(product).max())
    _, change = jax.jvp(term.x, (w,), (u,))
    np.testing.assert_allclose(term.change(slope, u), change, rtol=1e-12)


# --- batches, derivatives, precision ----------------------------------------------------------


def test_a_bad_lane_fails_alone():
    clean = _solved("rows")
    depth, eps = np.array(GRID).T
    u, decay = np.tile(U, (9, 1)), np.zeros(9)
    depth[:3], u[3, 1], u[4, 2], decay[5] = [2, 1.5, np.nan], 0, -1, 0.1
    flow = _solve(depth, np.log(eps), *DATA["rows"], u=u, decay=decay)
    good = np.arange(9) > 5
    np.testing.assert_array_equal(_succeeded(flow), good)
    want = ["invalid_shape"] * 5 + ["invalid_decay"]
    assert names_of(flow.result)[~good].tolist() == want
    assert np.isnan(flow.z[~good]).all()
    np.testing.assert_array_equal(flow.z[good], clean.z[good])


def test_vmap_is_a_loop():
    flow, (X, y) = _solved("rows"), DATA["rows"]
    depth, eps = GRID[4]
    alone = dln.gradient_flow(dln.Deep(U, V, depth=depth), dln.LeastSquares(X, y), S, eps=eps)
    assert int(alone.stats["num_steps"]) == int(flow.stats["num_steps"][4])
    np.testing.assert_allclose(alone.z, flow.z[4], atol=1e-10)


@jax.jit
def _total(depth, log_eps, u, X):
    flow = dln.gradient_flow(
        dln.Deep(u, V, depth=depth),
        dln.LeastSquares(X, DATA["rows"][1]),
        S[-3:],
        log_eps=log_eps,
        rtol=1e-10,
        atol=1e-11,
        throw=False,
    )
    return jnp.sum(flow.x_mean**2) + jnp.sum(flow.x[-1])


_gradient = jax.jit(jax.grad(_total, argnums=range(4)))


@pytest.mark.parametrize("depth, eps", [(2.5, 1e-3), (3.0, 1e-9), (3.0, 1e-60)])
def test_derivatives(depth, eps):
    arguments = tuple(map(jnp.asarray, (depth, np.log(eps), U, DATA["rows"][0])))
    gradient = _gradient(*arguments)
    assert all(np.all(np.isfinite(g)) for g in gradient)
    rng, h = np.random.default_rng(5), 1e-5
    along = [jnp.asarray(rng.normal(size=a.shape)) for a in arguments]
    # One direction for each argument, so that none hides behind another.
    for i in range(4):
        ends = [list(arguments), list(arguments)]
        for end, t in zip(ends, (h, -h), strict=True):
            end[i] = arguments[i] + t * along[i]
        difference = (_total(*ends[0]) - _total(*ends[1])) / (2 * h)
        np.testing.assert_allclose(
            jnp.sum(gradient[i] * along[i]), difference, rtol=1e-4, atol=1e-5
        )


def test_float32():
    single = [a.astype(np.float32) for a in (*DATA["rows"], U, V, S)]
    depth, eps = np.array(GRID, np.float32).T
    X, y, u, v, s = single
    flow = _solve(depth, np.log(eps), X, y, u, v, s, np.float32(0))
    assert flow.z.dtype == np.float32 and _succeeded(flow).all()
    # Ten times rtol.
    assert np.abs(flow.x_mean - _solved("rows").x_mean).max() < 1e-3
