"""Gradient flow: against SciPy, against closed forms, and in different variables."""

import functools
import math
import re
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy.integrate import solve_ivp

import dlnjax as dln
from dlnjax._flow.terms.weights import WeightTerm
from dlnjax._results import names_of

D = 4
ROWS = {"rows": 3, "coordinates": 6}  # the state space that `gradient_flow` chooses at d = 4
KINDS = {"UV": dln.UV, "USquared": dln.USquared}
LOG_EPS = [math.log(1e-2), math.log(1e-5), math.log(1e-20), math.log(1e-100), -2000.0]
DECAYS = [0.0, 0.3]
LANES = len(LOG_EPS) * len(DECAYS)
TIMES = np.linspace(0, 7.5, 16)

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_SPACE = pytest.mark.parametrize("space", ROWS)


class Batch(NamedTuple):
    """Ten flows: the leading axis of every array."""

    weights: tuple[np.ndarray, ...]
    data: tuple[np.ndarray, np.ndarray]
    decay: np.ndarray
    s: np.ndarray
    log_eps: np.ndarray
    rtol: np.ndarray


@eqx.filter_jit
def _flows(kind, make, batch, formulation=None) -> dln.Flow:
    """One compilation for all batches of one network, one kind of problem and one shape."""

    def lane(batch):
        return dln.gradient_flow(
            kind(*batch.weights),
            make(*batch.data, weight_decay=batch.decay),
            batch.s,
            log_eps=batch.log_eps,
            rtol=batch.rtol,
            atol=batch.rtol / 10,
            formulation=formulation,
            throw=False,
        )

    return jax.vmap(lane)(batch)


def _solve(
    kind: str, batch: Batch, make: Callable = dln.LeastSquares, formulation=None
) -> dln.Flow:
    flow = _flows(KINDS[kind], make, jax.tree.map(jnp.asarray, batch), formulation)
    return jax.tree.map(np.asarray, flow)


def _lanes(values) -> np.ndarray:
    """Repeat `values` cyclically over the lanes."""
    return np.resize(np.asarray(values, float), LANES)


def _batch(kind: str, space: str, **changes) -> Batch:
    """Two instances with non-unit shapes, without and with weight decay, at every `ε`."""
    rng = np.random.default_rng(sum(map(ord, kind + space)))
    each = lambda array: np.repeat(array, len(LOG_EPS), axis=0)
    m, n = len(DECAYS), ROWS[space]
    X, truth = rng.normal(size=(m, n, D)), rng.normal(size=(m, D))
    if kind == "USquared":
        truth = abs(truth)
    y = np.einsum("bni,bi->bn", X, truth) + 0.3 * rng.normal(size=(m, n))
    u = each(rng.uniform(0.5, 2, (m, D)) * rng.choice([-1, 1], (m, D)))
    v = each(rng.uniform(-0.4, 0.4, (m, D)))
    batch = Batch(
        weights=(u, v) if kind == "UV" else (u,),
        data=(each(X), each(y)),
        decay=each(np.array(DECAYS)),
        s=np.tile(TIMES, (LANES, 1)),
        log_eps=_lanes(LOG_EPS),
        rtol=np.full(LANES, 1e-7),
    )
    return batch._replace(**changes)


@functools.cache
def _solved(kind: str, space: str) -> tuple[Batch, dln.Flow]:
    batch = _batch(kind, space)
    return batch, _solve(kind, batch)


def _succeeded(flow: dln.Flow) -> np.ndarray:
    return np.asarray(flow.result == dln.RESULTS.successful)


def _initial_dual(weights, log_eps) -> tuple[np.ndarray, np.ndarray]:
    """`w(0)` and the signs of its rows, from DESIGN §2 rather than from the package."""
    if len(weights) == 1:
        shape, sign = np.stack(weights), np.array([1.0])
    else:
        u, v = weights
        shape, sign = np.stack([u + v, u - v]) / 2, np.array([1.0, -1.0])
    return 1 + np.log(shape**2) / log_eps, sign


def _link(weights, decay, log_eps, s, dual) -> np.ndarray:
    """`x` where the dual is `g = Xᵀν` at time `s`."""
    start, sign = _initial_dual(weights, log_eps)
    return sign @ np.exp(log_eps * (start - np.outer(sign, dual) + decay * s))


def _radau(X, y, weights, decay, log_eps, s) -> np.ndarray:
    """`z` by SciPy, on the dual form with its exact Jacobian."""
    n, d = X.shape
    start, sign = _initial_dual(weights, log_eps)

    def q(t, state):
        return np.exp(log_eps * (start - np.outer(sign, state[:n] @ X) + decay * t))

    def field(t, state):
        x = sign @ q(t, state)
        return np.concatenate([y - X @ x, x])

    def jacobian(t, state):
        slope = -log_eps * np.sum(q(t, state), axis=0)
        out = np.zeros((n + d, n + d))
        out[:n, :n] = -(X * slope) @ X.T
        out[n:, :n] = slope[:, None] * X.T
        return out

    with np.errstate(all="ignore"):  # rejected trial steps overflow
        solution = solve_ivp(
            field,
            (0, s[-1]),
            np.zeros(n + d),
            method="Radau",
            t_eval=s,
            rtol=1e-11,
            atol=1e-13,
            jac=jacobian,
        )
    assert solution.success
    return solution.y[n:].T


# --- against SciPy and closed forms -----------------------------------------------------------


@EVERY_KIND
@EVERY_SPACE
def test_against_radau(kind, space):
    batch, flow = _solved(kind, space)
    assert _succeeded(flow).all()
    for i in range(LANES):
        weights = [w[i] for w in batch.weights]
        X, y, decay, log_eps = batch.data[0][i], batch.data[1][i], batch.decay[i], batch.log_eps[i]
        z = _radau(X, y, weights, decay, log_eps, TIMES)
        error = np.abs(flow.x_mean[i, 1:] - z[1:] / TIMES[1:, None]).max()
        assert error < 1e-6, (log_eps, decay)
        dual = TIMES[:, None] * (y @ X) - z @ X.T @ X
        assert np.abs(flow.dual[i] - dual).max() < 1e-6


@EVERY_KIND
@EVERY_SPACE
def test_steps_stay_flat_as_eps_vanishes(kind, space):
    batch, flow = _solved(kind, space)
    for decay in DECAYS:
        steps = np.asarray(flow.stats["num_steps"])[batch.decay == decay]
        moderate, smallest = LOG_EPS.index(math.log(1e-5)), LOG_EPS.index(-2000.0)
        # Rows hold w to a tolerance, coordinates x too, of which errors are log(1/ε) times those
        # of w: at order 5 some 2.8 times the steps, for a log(1/ε) that is 174 times as large.
        assert steps[smallest] <= 4 * steps[moderate]


def _decoupled(kind: str, log_eps, decay, rtol=1e-11, positive=False):
    """Orthogonal columns: four scalar flows a lane, `ℓ = Σ ½ mᵢxᵢ² − rᵢxᵢ`."""
    batch = _batch(kind, "coordinates")
    rng = np.random.default_rng(1)
    scale, y = rng.uniform(0.5, 2, (LANES, D)), rng.uniform(0.6, 2, (LANES, 6))
    if not positive:
        y *= rng.choice([-1, 1], y.shape)
    X = np.zeros((LANES, 6, D))
    X[:, range(D), range(D)] = scale
    r = scale * y[:, :D]
    batch = batch._replace(
        data=(X, y), log_eps=_lanes(log_eps), decay=_lanes(decay), rtol=np.full(LANES, rtol)
    )
    return batch, scale**2, r


def test_scalar_u_squared_is_logistic_growth():
    # [Gis20]: with L = log(1/ε) = 4t/s, dq/ds = L q (r − λ − mq) from q(0) = εα².
    eps, decay = np.repeat([0.3, 1e-2, 1e-5, 1e-20, 1e-100], 2), [0.0, 0.3]
    batch, m, r = _decoupled("USquared", np.log(eps), decay, positive=True)
    flow = _solve("USquared", batch)
    L, s = -batch.log_eps[:, None, None], TIMES[None, :, None]
    rate, m = (r - batch.decay[:, None])[:, None, :], m[:, None, :]
    part = np.exp(-L) * batch.weights[0][:, None, :] ** 2 * m / rate  # of the end point
    below = part + (1 - part) * np.exp(-L * rate * s)
    z = (L * rate * s + np.log(below)) / (L * m)
    x = rate / m * part / below
    assert np.abs(flow.z - z).max() < 1e-9
    # x = exp(−wL) is L times less accurate than w.
    assert np.abs(flow.x - x).max() < 1e-9 * L.max()
    assert np.min(flow.x) >= 0 and np.max(x) > 1


@pytest.mark.parametrize("size", [1e6, 1e12, 1e30])
def test_a_start_far_above_the_data(size):
    # As above. From x(0) of 1e7 to 1e59 it falls to r/m in no time, and may not fall further.
    batch, m, r = _decoupled("USquared", np.log([1e-2, 1e-5]), 0.0, positive=True)
    batch.weights[0][:] = size
    flow = _solve("USquared", batch)
    assert _succeeded(flow).all()
    L, s = -batch.log_eps[:, None, None], TIMES[None, :, None]
    start, fixed = np.exp(-L) * size**2, (r / m)[:, None, :]
    below = start / fixed * -np.expm1(-L * r[:, None, :] * s) + np.exp(-L * r[:, None, :] * s)
    np.testing.assert_allclose(flow.x, start / below, rtol=1e-6)


def test_scalar_uv_in_closed_form():
    # x = a e^{Lg} − b e^{−Lg} with dg/ds = r − mx: a Riccati equation for e^{Lg}.
    eps = np.repeat([0.3, 1e-2, 1e-5, 1e-20, 1e-100], 2)
    batch, m, r = _decoupled("UV", np.log(eps), 0.0)
    flow = _solve("UV", batch)
    L, s = -batch.log_eps[:, None, None], TIMES[None, :, None]
    u, v = (w[:, None, :] for w in batch.weights)
    a, b = np.exp(-L) * (u + v) ** 2 / 4, np.exp(-L) * (u - v) ** 2 / 4
    m, r = m[:, None, :], r[:, None, :]
    # By symmetry take r > 0.
    a, b, sign = np.where(r > 0, a, b), np.where(r > 0, b, a), np.sign(r)
    rate = np.sqrt(r**2 + 4 * m**2 * a * b)
    top = (np.abs(r) + rate) / (2 * m * a)
    bottom = -b / (a * top)
    decayed = (1 - top) / (1 - bottom) * np.exp(-L * rate * s)
    g = np.log((top - bottom * decayed) / (1 - decayed)) / L
    assert np.abs(flow.dual - sign * g).max() < 1e-9
    assert np.abs(flow.z - (r * s - sign * g) / m).max() < 1e-9


def test_orthogonal_columns_decouple():
    batch, _, _ = _decoupled("UV", LOG_EPS, DECAYS, rtol=1e-7)
    changed = batch.data[1].copy()
    changed[:, 1] += 0.4
    alone = _solve("UV", batch)
    other = _solve("UV", batch._replace(data=(batch.data[0], changed)))
    still = [0, 2, 3]
    # Only the steps differ: twice the error of `test_against_radau`.
    assert np.abs(alone.x_mean - other.x_mean)[..., still].max() < 2e-6
    assert np.abs(alone.x_mean - other.x_mean)[..., 1].max() > 1e-2


# --- the same flow in other variables ------------------------------------------------------


@EVERY_SPACE
def test_quadratic_is_least_squares(space):
    # With n < d this also compares rows with coordinates.
    batch, flow = _solved("UV", space)
    X, y = batch.data
    M, r = np.einsum("bni,bnj->bij", X, X), np.einsum("bni,bn->bi", X, y)
    quadratic = _solve("UV", batch._replace(data=(M, r)), make=dln.Quadratic)
    assert _succeeded(quadratic).all()
    # Each is within 1e-6 of the truth.
    assert np.abs(quadratic.x_mean - flow.x_mean).max() < 2e-6
    assert np.abs(quadratic.dual - flow.dual).max() < 2e-6


@EVERY_KIND
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("eps", [1e-1, 1e-5])
def test_the_weight_field_is_the_dual_field(kind, decay, eps):
    # dq/ds = φ'(w) dw/ds = L q (±(r − Mx) − λ), at any weights. For UV this is also the
    # conservation of u² − v², which decays at the rate λL.
    weights = [jnp.asarray(w[0]) for w in _batch(kind, "rows").weights]
    X, y = (a[0] for a in _batch(kind, "rows").data)
    network, problem = KINDS[kind](*weights), dln.LeastSquares(X, y, decay)
    L = -math.log(eps)

    def q(network):
        if kind == "USquared":
            return network.u[None, :] ** 2
        return jnp.stack([network.u + network.v, network.u - network.v]) ** 2 / 4

    term = WeightTerm(network, problem, jnp.asarray(-L))
    start, z = term.initial()
    velocity, x = term.vf(jnp.asarray(0.0), (network, z), None)
    assert eqx.tree_equal(start, network.initial(jnp.asarray(-L)))
    g = y @ X - X.T @ X @ np.asarray(x)
    sides = g[None, :] if kind == "USquared" else np.stack([g, -g])
    _, speed = jax.jvp(q, (network,), (velocity,))
    np.testing.assert_allclose(speed, L * np.asarray(q(network)) * (sides - decay), rtol=1e-12)
    if kind == "UV":
        u, v = weights
        difference = 2 * (u * velocity.u - v * velocity.v)
        np.testing.assert_allclose(difference, -decay * L * (u**2 - v**2), atol=1e-12)


def test_weight_form_agrees():
    log_eps = _lanes(np.log([1e-1, 1e-2, 1e-5, 1e-1, 1e-2]))
    batch = _batch("UV", "rows", log_eps=log_eps)
    dual = _solve("UV", batch)
    weight = _solve("UV", batch, formulation=dln.WeightForm())
    assert _succeeded(weight).all()
    assert np.abs(weight.x_mean - dual.x_mean).max() < 1e-6
    assert np.abs(weight.dual - dual.dual).max() < 1e-6
    # What the weights conserve, and the dual form rests on: q± = φ(w±) all along.
    for i in range(LANES):
        weights, decay = [w[i] for w in batch.weights], batch.decay[i]
        for s, x, g in zip(TIMES, weight.x[i], weight.dual[i], strict=True):
            assert np.abs(x - _link(weights, decay, log_eps[i], s, g)).max() < 1e-5


def test_equivariance_to_units():
    # X → cX, y → ay with λ → acλ: time runs as s/(ac) and x → (a/c) x, so shape² → (a/c) shape².
    batch, flow = _solved("UV", "rows")
    c, a = 2.0**12, 2.0**-30
    root = (a / c) ** 0.5
    scaled = Batch(
        weights=tuple(root * w for w in batch.weights),
        data=(c * batch.data[0], a * batch.data[1]),
        decay=a * c * batch.decay,
        s=batch.s / (a * c),
        log_eps=batch.log_eps,
        rtol=batch.rtol,
    )
    other = _solve("UV", scaled)
    # Not the same steps: their tolerance is relative to w(0), which depends on the shape.
    np.testing.assert_allclose(other.x_mean * (c / a), flow.x_mean, atol=1e-6)


# --- grids -----------------------------------------------------------------------------------


@EVERY_KIND
@EVERY_SPACE
def test_averages_and_duals_are_consistent(kind, space):
    batch, flow = _solved(kind, space)
    X, y = batch.data
    np.testing.assert_array_equal(flow.s, batch.s)
    assert flow.positive == (kind == "USquared")
    assert flow.x.shape == flow.x_mean.shape == flow.z.shape == flow.dual.shape
    z = np.asarray(flow.z)
    np.testing.assert_allclose(z[:, 1:] / TIMES[None, 1:, None], flow.x_mean[:, 1:], rtol=1e-14)
    r = np.einsum("bni,bn->bi", X, y)
    dual = TIMES[None, :, None] * r[:, None, :] - np.einsum("bni,bnj,bsj->bsi", X, X, z)
    # In the rows form both sides are integrated: they agree to the rounding of large stages.
    assert np.abs(flow.dual - dual).max() < 1e-8
    for i in range(LANES):
        network = KINDS[kind](*(w[i] for w in batch.weights))
        start = network.initial(jnp.asarray(batch.log_eps[i]))()
        np.testing.assert_allclose(flow.x[i, 0], start, rtol=1e-11, atol=1e-300)
        np.testing.assert_array_equal(flow.x_mean[i, 0], flow.x[i, 0])
        np.testing.assert_array_equal(flow.z[i, 0], 0)


@pytest.mark.parametrize("chosen", [[15], [0, 2, 3, 9, 15], [1, 1, 7, 15, 15]])
def test_where_it_saves_changes_nothing(chosen):
    # Repeated times fill the grid.
    batch, flow = _solved("UV", "rows")
    chosen = np.sort(np.resize(chosen, len(TIMES)))
    again = _solve("UV", batch._replace(s=batch.s[:, chosen]))
    np.testing.assert_array_equal(again.stats["num_steps"], flow.stats["num_steps"])
    for name in ("x", "x_mean", "z", "dual"):
        want = np.asarray(getattr(flow, name))[:, chosen]
        np.testing.assert_array_equal(getattr(again, name), want)


def _alone(kind: str, batch: Batch, i: int, s, **options) -> dln.Flow:
    """One lane, as a user calls it, at one time."""
    options = dict(log_eps=batch.log_eps[i], max_steps=2000) | options
    network = KINDS[kind](*(w[i] for w in batch.weights))
    problem = dln.LeastSquares(*(a[i] for a in batch.data), weight_decay=batch.decay[i])
    return dln.gradient_flow(network, problem, np.array([s]), **options)


def test_at_time_zero():
    batch = _batch("UV", "rows")
    flow = _alone("UV", batch, 0, 0.0)
    start = math.exp(batch.log_eps[0]) * batch.weights[0][0] * batch.weights[1][0]
    np.testing.assert_allclose(flow.x_mean[0], start, rtol=1e-12)
    np.testing.assert_array_equal(flow.x, flow.x_mean)
    np.testing.assert_array_equal(flow.z, np.zeros((1, D)))
    np.testing.assert_array_equal(flow.dual, np.zeros((1, D)))


# --- solvers and networks of the user ---------------------------------------------------------


@pytest.mark.parametrize(
    "solver, eps", [(diffrax.Kvaerno5(), 1e-5), (diffrax.Tsit5(), 1e-1)], ids=["Kvaerno5", "Tsit5"]
)
@pytest.mark.parametrize("decay", DECAYS)
def test_any_diffrax_solver(solver, eps, decay):
    batch = _batch("UV", "rows", log_eps=_lanes(math.log(eps)), decay=_lanes(decay))
    ours = _alone("UV", batch, 0, TIMES[-1])
    theirs = _alone("UV", batch, 0, TIMES[-1], solver=solver, max_steps=10_000)
    assert np.abs(theirs.x_mean - ours.x_mean).max() < 1e-6
    assert int(theirs.stats["num_steps"]) != int(ours.stats["num_steps"])


class Cubic(dln.AbstractDualNetwork):
    """`x = u³`, `u > 0`: depth 3, with the link of DESIGN §2."""

    u: Float[Array, " d"]
    on_trace: Callable[[], None] = eqx.field(static=True, default=lambda: None)
    positive: ClassVar[bool] = True

    def __call__(self):
        return self.u**3

    def initial(self, log_eps):
        return Cubic(self.u * jnp.exp(log_eps / 3))

    def time_scale(self, log_eps):
        return jnp.exp(-log_eps / 3) / 3

    def penalty(self, weight_decay):
        return 0 * weight_decay

    def link(self, w, log_eps):
        self.on_trace()
        return jnp.exp(log_eps) / w**3

    def initial_dual(self, log_eps):
        return (1 / self.u)[None, :]


class Product(dln.AbstractNetwork):
    """`x = u∘v∘w`, three layers; balanced, its flow is that of `Cubic`, three times as slow."""

    layers: Float[Array, "3 d"]
    positive: ClassVar[bool] = False

    def __call__(self):
        return jnp.prod(self.layers, axis=0)

    def initial(self, log_eps):
        return Product(self.layers * jnp.exp(log_eps / 3))

    def time_scale(self, log_eps):
        return jnp.exp(-log_eps / 3)

    def penalty(self, weight_decay):
        return 0 * weight_decay


def test_networks_of_the_user():
    rng = np.random.default_rng(2)
    X, y = jnp.asarray(rng.normal(size=(3, D))), jnp.asarray(rng.normal(size=3))
    u = jnp.asarray(rng.uniform(0.5, 1.5, D))
    traces = []
    cubic = Cubic(u, lambda: traces.append(1))
    product = Product(jnp.stack([u, u, u]))
    solve = functools.partial(dln.gradient_flow, s=TIMES, throw=True)
    problem = dln.LeastSquares(X, y)
    dual = solve(cubic, problem, eps=1e-2)
    weight = solve(product, problem, eps=1e-2, formulation=dln.WeightForm())
    assert np.abs(dual.x_mean - weight.x_mean).max() < 1e-6
    assert np.max(dual.x) > 0.5

    # Other values, the same shapes: nothing is traced again.
    count = len(traces)
    assert count > 0
    other = dln.LeastSquares(2 * X, y + 1)
    faster = eqx.tree_at(lambda net: net.u, cubic, 1.1 * u)
    solve(faster, other, s=TIMES + 0.1, log_eps=-3.0, rtol=1e-5, atol=1e-4)
    assert len(traces) == count


def test_the_dual_form_needs_a_dual_network():
    problem = dln.LeastSquares(np.eye(D), np.ones(D))
    with pytest.raises(TypeError, match="`Product` has no dual form.*dln.WeightForm()"):
        dln.gradient_flow(Product(jnp.ones((3, D))), problem, TIMES, eps=1e-2)


# --- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [6, 9])  # with weight decay: else a known 0 is in rows
def test_vmap_is_a_loop(lane):
    # Over X, y, weight decay, shape, ε and the tolerance at once.
    batch = _batch("UV", "rows", rtol=np.geomspace(1e-9, 1e-5, LANES))
    flow = _solve("UV", batch)
    rtol = batch.rtol[lane]
    alone = _alone("UV", batch, lane, TIMES[-1], rtol=rtol, atol=rtol / 10)
    assert int(alone.stats["num_steps"]) == int(flow.stats["num_steps"][lane])
    np.testing.assert_allclose(flow.x_mean[lane, -1], alone.x_mean[0], atol=1e-9)
    np.testing.assert_allclose(flow.dual[lane, -1], alone.dual[0], atol=1e-9)


def _break(batch: Batch, what: str, lane: int) -> None:
    """Spoil one lane, in place."""
    X, y = batch.data
    if what == "NaN in X":
        X[lane, 0, 1] = np.nan
    elif what == "inf in y":
        y[lane, 2] = np.inf
    elif what == "eps = 1":
        batch.log_eps[lane] = 0
    elif what == "eps = 0":
        batch.log_eps[lane] = -np.inf
    elif what == "NaN eps":
        batch.log_eps[lane] = np.nan
    elif what == "unsorted s":
        batch.s[lane, 3] = 0
    elif what == "negative s":
        batch.s[lane, 0] = -1
    elif what == "NaN s":
        batch.s[lane, 5] = np.nan
    elif what == "negative rtol":
        batch.rtol[lane] = -1e-7
    elif what == "NaN rtol":
        batch.rtol[lane] = np.nan
    elif what == "negative decay":
        batch.decay[lane] = -0.1
    elif what == "NaN shape":
        batch.weights[0][lane, 2] = np.nan
    elif what == "degenerate shape":
        # |u| = |v| for UV; for USquared, u = 0.
        for w in batch.weights:
            w[lane, 2] = 0
    elif what == "x(0) out of range":  # of both signs alike, so that x = 0
        batch.weights[0][lane, 2] = 1e160
    else:
        raise ValueError(what)


BROKEN = {
    "NaN in X": "data",
    "inf in y": "data",
    "eps = 1": "eps",
    "eps = 0": "eps",
    "NaN eps": "eps",
    "unsorted s": "grid",
    "negative s": "grid",
    "NaN s": "grid",
    "negative rtol": "tolerance",
    "NaN rtol": "tolerance",
    "negative decay": "decay",
    "NaN shape": "shape",
    "degenerate shape": "shape",
    "x(0) out of range": "shape",
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("kind, space", [("UV", "rows"), ("USquared", "coordinates")])
def test_a_bad_lane_fails_alone(what, kind, space):
    lane = 3
    _, clean = _solved(kind, space)
    batch = _batch(kind, space)
    _break(batch, what, lane)
    flow = _solve(kind, batch)
    good = np.arange(LANES) != lane
    np.testing.assert_array_equal(_succeeded(flow), good)
    assert names_of(flow.result)[lane] == f"invalid_{BROKEN[what]}"
    for name in ("x", "x_mean", "z", "dual"):
        value, want = np.asarray(getattr(flow, name)), np.asarray(getattr(clean, name))
        assert np.isnan(value[lane]).all()
        np.testing.assert_array_equal(value[good], want[good])


def test_too_few_steps():
    batch = _batch("UV", "rows")
    options = dict(s=TIMES[-1], rtol=1e-15, atol=1e-16)
    with pytest.raises(eqx.EquinoxRuntimeError, match="max_steps"):
        _alone("UV", batch, 1, **options)
    flow = _alone("UV", batch, 1, **options, throw=False)
    assert bool(flow.result == dln.RESULTS.max_steps_reached)
    assert int(flow.stats["num_steps"]) == 2000
    for value in (flow.x, flow.x_mean, flow.z, flow.dual):
        assert np.isnan(value).all()


# --- precision and derivatives ----------------------------------------------------------------


def test_float32():
    # In coordinates, where s r − Mz cancels: the rows form is ten times better.
    batch, exact = _solved("UV", "coordinates")
    single = jax.tree.map(lambda a: a.astype(np.float32), batch)
    single = single._replace(rtol=np.full(LANES, 1e-4, np.float32))  # the default
    flow = _solve("UV", single)
    assert flow.x_mean.dtype == flow.x.dtype == flow.dual.dtype == jnp.float32
    assert _succeeded(flow).all()
    error = np.abs(np.asarray(flow.x_mean, np.float64) - exact.x_mean).max(axis=(1, 2))
    # Ten times rtol; at log ε = −2000 the rounding of w, amplified by 2000, adds 5e-3.
    assert np.all(error < np.where(batch.log_eps == -2000, 2e-2, 1e-3))


def _parameters(space: str, log_eps: float):
    batch = _batch("UV", space)
    u, v = (w[0] for w in batch.weights)
    X, y = batch.data[0][0], batch.data[1][0]
    return tuple(map(jnp.asarray, (X, y, 0.1, log_eps, u, v)))


def _total(X, y, decay, log_eps, u, v, adjoint=None):
    flow = dln.gradient_flow(
        dln.UV(u, v),
        dln.LeastSquares(X, y, decay),
        TIMES[-1:],
        log_eps=log_eps,
        adjoint=adjoint,
        throw=False,
    )
    return jnp.sum(flow.x_mean)


_reverse = jax.jit(jax.grad(_total, argnums=range(6)))


@jax.jit
def _forward(*parameters):
    """The derivative along the vector of ones."""
    total = functools.partial(_total, adjoint=diffrax.ForwardMode())
    return jax.jvp(total, parameters, tuple(map(jnp.ones_like, parameters)))[1]


@functools.cache
def _differences(space: str, log_eps: float) -> np.ndarray:
    """Central differences of `_total`, at a tolerance that they do not feel."""
    parameters = _parameters(space, log_eps)
    flat = np.concatenate([np.ravel(p) for p in parameters])
    count, h = len(flat), 1e-5
    nudges = h * np.concatenate(
        [np.eye(count), -np.eye(count), np.zeros((-2 * count % LANES, count))]
    )
    sizes = [p.size for p in parameters]
    totals = []
    for block in (flat[None, :] + nudges).reshape(-1, LANES, count):
        parts = np.split(block, np.cumsum(sizes)[:-1], axis=1)
        X, y, decay, log, u, v = (
            part.reshape(LANES, *p.shape) for part, p in zip(parts, parameters, strict=True)
        )
        s = np.full((LANES, len(TIMES)), TIMES[-1])
        batch = Batch((u, v), (X, y), decay, s, log, np.full(LANES, 1e-11))
        totals.append(np.sum(_solve("UV", batch).x_mean[:, -1], axis=1))
    totals = np.concatenate(totals)
    return (totals[:count] - totals[count : 2 * count]) / (2 * h)


SMALL = pytest.mark.parametrize("log_eps", [LOG_EPS[1], LOG_EPS[2], LOG_EPS[4]])


@SMALL
def test_reverse_mode(log_eps):
    # With respect to X, y, the weight decay, log ε and the shape.
    want = _differences("rows", log_eps)
    gradient = np.concatenate([np.ravel(g) for g in _reverse(*_parameters("rows", log_eps))])
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@SMALL
def test_forward_mode(log_eps):
    want = _differences("coordinates", log_eps)
    derivative = _forward(*_parameters("coordinates", log_eps))
    assert abs(derivative - want.sum()) < 1e-4 * np.abs(want).max()


# --- refusals ---------------------------------------------------------------------------------


REFUSED = {
    "eps = 1": (dict(eps=1.0), "`eps` must lie in (0, 1), got 1.0. Put a larger"),
    "eps = 0": (dict(eps=0.0), "`eps` must lie in (0, 1), got 0.0"),
    "negative eps": (dict(eps=-0.1), "`eps` must lie in (0, 1), got -0.1"),
    "NaN eps": (dict(eps=np.nan), "`eps` must lie in (0, 1), got nan"),
    "integer eps": (dict(eps=2), "`eps` must lie in (0, 1), got 2"),
    "both": (dict(eps=0.1, log_eps=-3.0), "exactly one of `eps` and `log_eps`, got both"),
    "neither": (dict(), "exactly one of `eps` and `log_eps`, got neither. For example `eps=1e-5`"),
    "log_eps = 0": (dict(log_eps=0.0), "`log_eps` must be finite and negative (ε < 1), got 0.0"),
    "log_eps > 0": (dict(log_eps=3.0), "got 3.0. For ε = 1e-5 pass `log_eps=math.log(1e-5)`"),
    "infinite log_eps": (dict(log_eps=-np.inf), "`log_eps` must be finite and negative"),
    "several eps": (dict(eps=np.array([0.1])), "`eps` must be a scalar, got shape (1,). Use `jax."),
    "several log_eps": (dict(log_eps=-np.ones(2)), "`log_eps` must be a scalar, got shape (2,)"),
    "negative s": (dict(eps=0.1, s=np.array([-1.0, 2.0])), "non-negative, got s[0] = -1.0"),
    "unsorted s": (
        dict(eps=0.1, s=np.array([0.0, 2.0, 1.5])),
        "`s` must be increasing, but s[1] = 2.0 is followed by 1.5. Sort it",
    ),
    "NaN in s": (dict(eps=0.1, s=np.array([0.0, np.nan])), "`s[1]` is nan, and 1 of 2 entries"),
    "infinite s": (dict(eps=0.1, s=np.array([0.0, np.inf])), "`s[1]` is inf"),
    "scalar s": (dict(eps=0.1, s=2.0), "grid of shape (S,), got shape (). Pass `[s]` for one time"),
    "2-D s": (dict(eps=0.1, s=np.ones((2, 3))), "got shape (2, 3). Pass `[s]` for one time, `jax."),
    "empty s": (dict(eps=0.1, s=np.ones(0)), "`s` has an empty axis: its shape is (0,)"),
    "no steps": (dict(eps=0.1, max_steps=0), "`max_steps` must be at least 1, got 0"),
    "network size": (
        dict(eps=0.1, network=dln.USquared(np.ones(3))),
        "The network has 3 coordinates, the problem has 2. Build it with weights of shape (2,)",
    ),
    "solver of the dual form": (
        dict(eps=0.1, formulation=dln.WeightForm(), solver=dln.Rodas5P()),
        "`Rodas5P` integrates the dual form only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    options, message = REFUSED[name]
    inputs = dict(
        network=dln.UV(np.ones(2), np.zeros(2)),
        problem=dln.LeastSquares(np.eye(2), np.ones(2)),
        s=np.array([1.0]),
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        dln.gradient_flow(**(inputs | options))


def test_gradients_of_lanes_that_end_apart():
    # Lanes that have ended, or never began, go on with steps of length 0 beside the others.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(4, 2, 3)), rng.normal(size=(4, 2))
    X[1] *= 5
    s = np.tile([0.5, 20.0], (4, 1))
    s[2] = 0
    ones = jnp.ones(3)

    def loss(u, X, y, s):
        problem = dln.LeastSquares(X, y)
        flow = dln.gradient_flow(dln.UV(u, 0 * ones), problem, s, eps=1e-5, throw=False)
        return jnp.sum(flow.x_mean**2)

    gradient = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 2)), in_axes=(None, 0, 0, 0)))
    together = gradient(ones, X, y, s)
    assert all(np.all(np.isfinite(g)) for g in together)
    for i in range(4):
        alone = gradient(ones, *(np.tile(v[i], (4,) + (1,) * (v.ndim - 1)) for v in (X, y, s)))
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours[i], theirs[0], rtol=1e-8, atol=1e-12)


def test_derivatives_in_time():
    # Those of the average at 0 too: it starts half as fast as x.
    problem = dln.LeastSquares(jnp.eye(2), jnp.array([1.0, 0.5]))
    network = dln.USquared(jnp.ones(2))

    def fn(s):
        flow = dln.gradient_flow(
            network, problem, s, log_eps=-3.0, adjoint=diffrax.ForwardMode(), throw=False
        )
        return flow.x, flow.x_mean, flow.z

    s = jnp.array([0, 0.5, 0.5, 2])
    (x, x_mean, z), (dx, dx_mean, dz) = jax.jvp(fn, (s,), (jnp.ones(4),))
    np.testing.assert_allclose(dz, x, rtol=1e-12)
    np.testing.assert_allclose(dx_mean[0], dx[0] / 2, rtol=1e-12)
    np.testing.assert_allclose(dx_mean[1:], (x - x_mean)[1:] / s[1:, None], rtol=1e-12)
    # q' = 4q(r − q) in t = s log(1/ε)/4.
    np.testing.assert_allclose(dx, 3 * x * (problem.r[None] - x), rtol=1e-12)
