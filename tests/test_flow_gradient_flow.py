"""Batches of ten flows, which share a program for each network: against SciPy, closed forms and
differences, in other variables and units, on other grids, in float32, and with a bad lane."""

import functools
import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import (
    DECAYS,
    EVERY_KIND,
    EVERY_SPACE,
    KINDS,
    LANES,
    LOG_EPS,
    TIMES,
    Batch,
    D,
    decoupled,
    link_of,
    make_batch,
    over_lanes,
    radau,
    solve_alone,
    solve_batch,
    solved,
    succeeded,
)

import dlnjax as dln
from dlnjax._results import names_of

# --- against SciPy and closed forms -----------------------------------------------------------


@EVERY_KIND
@EVERY_SPACE
def test_against_radau(kind, space):
    batch, flow = solved(kind, space)
    assert succeeded(flow).all()
    for i in range(LANES):
        weights = [w[i] for w in batch.weights]
        X, y, decay, log_eps = batch.data[0][i], batch.data[1][i], batch.decay[i], batch.log_eps[i]
        z = radau(X, y, weights, decay, log_eps, TIMES)
        error = np.abs(flow.x_mean[i, 1:] - z[1:] / TIMES[1:, None]).max()
        assert error < 1e-6, (log_eps, decay)
        dual = TIMES[:, None] * (y @ X) - z @ X.T @ X
        assert np.abs(flow.dual[i] - dual).max() < 1e-6


@EVERY_KIND
@EVERY_SPACE
def test_steps_stay_flat_as_eps_vanishes(kind, space):
    batch, flow = solved(kind, space)
    for decay in DECAYS:
        steps = np.asarray(flow.stats["num_steps"])[batch.decay == decay]
        moderate, smallest = LOG_EPS.index(math.log(1e-5)), LOG_EPS.index(-2000.0)
        # Rows hold w to a tolerance, coordinates x too, of which errors are log(1/ε) times those
        # of w: at order 5 some 2.8 times the steps, for a log(1/ε) that is 174 times as large.
        assert steps[smallest] <= 4 * steps[moderate]


def test_scalar_u_squared_is_logistic_growth():
    # [Gis20]: with L = log(1/ε) = 4t/s, dq/ds = L q (r − λ − mq) from q(0) = εα².
    eps, decay = np.repeat([0.3, 1e-2, 1e-5, 1e-20, 1e-100], 2), [0.0, 0.3]
    batch, m, r = decoupled("USquared", np.log(eps), decay, positive=True)
    flow = solve_batch("USquared", batch)
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
    batch, m, r = decoupled("USquared", np.log([1e-2, 1e-5]), 0.0, positive=True)
    batch.weights[0][:] = size
    flow = solve_batch("USquared", batch)
    assert succeeded(flow).all()
    L, s = -batch.log_eps[:, None, None], TIMES[None, :, None]
    start, fixed = np.exp(-L) * size**2, (r / m)[:, None, :]
    below = start / fixed * -np.expm1(-L * r[:, None, :] * s) + np.exp(-L * r[:, None, :] * s)
    np.testing.assert_allclose(flow.x, start / below, rtol=1e-6)


def test_scalar_uv_in_closed_form():
    # x = a e^{Lg} − b e^{−Lg} with dg/ds = r − mx: a Riccati equation for e^{Lg}.
    eps = np.repeat([0.3, 1e-2, 1e-5, 1e-20, 1e-100], 2)
    batch, m, r = decoupled("UV", np.log(eps), 0.0)
    flow = solve_batch("UV", batch)
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
    batch, _, _ = decoupled("UV", LOG_EPS, DECAYS, rtol=1e-7)
    changed = batch.data[1].copy()
    changed[:, 1] += 0.4
    alone = solve_batch("UV", batch)
    other = solve_batch("UV", batch._replace(data=(batch.data[0], changed)))
    still = [0, 2, 3]
    # Only the steps differ: twice the error of `test_against_radau`.
    assert np.abs(alone.x_mean - other.x_mean)[..., still].max() < 2e-6
    assert np.abs(alone.x_mean - other.x_mean)[..., 1].max() > 1e-2


# --- the same flow in other variables ------------------------------------------------------


@EVERY_SPACE
def test_quadratic_is_least_squares(space):
    # With n < d this also compares rows with coordinates.
    batch, flow = solved("UV", space)
    X, y = batch.data
    M, r = np.einsum("bni,bnj->bij", X, X), np.einsum("bni,bn->bi", X, y)
    quadratic = solve_batch("UV", batch._replace(data=(M, r)), make=dln.Quadratic)
    assert succeeded(quadratic).all()
    # Each is within 1e-6 of the truth.
    assert np.abs(quadratic.x_mean - flow.x_mean).max() < 2e-6
    assert np.abs(quadratic.dual - flow.dual).max() < 2e-6


def test_weight_form_agrees():
    log_eps = over_lanes(np.log([1e-1, 1e-2, 1e-5, 1e-1, 1e-2]))
    batch = make_batch("UV", "rows", log_eps=log_eps)
    dual = solve_batch("UV", batch)
    finer = batch._replace(rtol=batch.rtol / 10)  # as its default is
    weight = solve_batch("UV", finer, formulation=dln.WeightForm())
    assert succeeded(weight).all()
    assert np.abs(weight.x_mean - dual.x_mean).max() < 1e-6
    assert np.abs(weight.dual - dual.dual).max() < 1e-6
    # What the weights conserve, and the dual form rests on: q± = φ(w±) all along.
    for i in range(LANES):
        weights, decay = [w[i] for w in batch.weights], batch.decay[i]
        for s, x, g in zip(TIMES, weight.x[i], weight.dual[i], strict=True):
            assert np.abs(x - link_of(weights, decay, log_eps[i], s, g)).max() < 1e-5


def test_equivariance_to_units():
    # X → cX, y → ay with λ → acλ: time runs as s/(ac) and x → (a/c) x, so shape² → (a/c) shape².
    batch, flow = solved("UV", "rows")
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
    other = solve_batch("UV", scaled)
    # Not the same steps: their tolerance is relative to w(0), which depends on the shape.
    np.testing.assert_allclose(other.x_mean * (c / a), flow.x_mean, atol=1e-6)


# --- grids -----------------------------------------------------------------------------------


@EVERY_KIND
@EVERY_SPACE
def test_averages_and_duals_are_consistent(kind, space):
    batch, flow = solved(kind, space)
    X, y = batch.data
    np.testing.assert_array_equal(flow.s, batch.s)
    assert flow.positive == (kind == "USquared")
    assert flow.x.shape == flow.x_mean.shape == flow.z.shape == flow.dual.shape
    z = np.asarray(flow.z)
    np.testing.assert_allclose(z[:, 1:] / TIMES[None, 1:, None], flow.x_mean[:, 1:], rtol=1e-14)
    r = np.einsum("bni,bn->bi", X, y)
    dual = TIMES[None, :, None] * r[:, None, :] - np.einsum("bni,bnj,bsj->bsi", X, X, z)
    # Both sides are integrated: they agree to the rounding of stages, which in a jump at log ε =
    # −2000 are some 1e7 times larger than their sum (1e-9 to 1.1e-8, by the processor).
    assert np.abs(flow.dual - dual).max() < 3e-8
    for i in range(LANES):
        network = KINDS[kind](*(w[i] for w in batch.weights))
        start = network.initial(jnp.asarray(batch.log_eps[i]))()
        np.testing.assert_allclose(flow.x[i, 0], start, rtol=1e-11, atol=1e-300)
        np.testing.assert_array_equal(flow.x_mean[i, 0], flow.x[i, 0])
        np.testing.assert_array_equal(flow.z[i, 0], 0)


@pytest.mark.parametrize("chosen", [[15], [0, 2, 3, 9, 15], [1, 1, 7, 15, 15]])
def test_where_it_saves_changes_nothing(chosen):
    # Repeated times fill the grid.
    batch, flow = solved("UV", "rows")
    chosen = np.sort(np.resize(chosen, len(TIMES)))
    again = solve_batch("UV", batch._replace(s=batch.s[:, chosen]))
    np.testing.assert_array_equal(again.stats["num_steps"], flow.stats["num_steps"])
    for name in ("x", "x_mean", "z", "dual"):
        want = np.asarray(getattr(flow, name))[:, chosen]
        np.testing.assert_array_equal(getattr(again, name), want)


def test_at_time_zero():
    batch = make_batch("UV", "rows")
    flow = solve_alone("UV", batch, 0, 0.0)
    start = math.exp(batch.log_eps[0]) * batch.weights[0][0] * batch.weights[1][0]
    np.testing.assert_allclose(flow.x_mean[0], start, rtol=1e-12)
    np.testing.assert_array_equal(flow.x, flow.x_mean)
    np.testing.assert_array_equal(flow.z, np.zeros((1, D)))
    np.testing.assert_array_equal(flow.dual, np.zeros((1, D)))


# --- solvers of diffrax -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "solver, eps", [(diffrax.Kvaerno5(), 1e-5), (diffrax.Tsit5(), 1e-1)], ids=["Kvaerno5", "Tsit5"]
)
@pytest.mark.parametrize("decay", DECAYS)
def test_any_diffrax_solver(solver, eps, decay):
    batch = make_batch("UV", "rows", log_eps=over_lanes(math.log(eps)), decay=over_lanes(decay))
    ours = solve_alone("UV", batch, 0, TIMES[-1])
    theirs = solve_alone("UV", batch, 0, TIMES[-1], solver=solver, max_steps=10_000)
    assert np.abs(theirs.x_mean - ours.x_mean).max() < 1e-6
    assert int(theirs.stats["num_steps"]) != int(ours.stats["num_steps"])


# --- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [6, 9])  # with weight decay: else a known 0 is in rows
def test_vmap_is_a_loop(lane):
    # Over X, y, weight decay, shape, ε and the tolerance at once.
    batch = make_batch("UV", "rows", rtol=np.geomspace(1e-9, 1e-5, LANES))
    flow = solve_batch("UV", batch)
    rtol = batch.rtol[lane]
    alone = solve_alone("UV", batch, lane, TIMES[-1], rtol=rtol, atol=rtol / 10)
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
    _, clean = solved(kind, space)
    batch = make_batch(kind, space)
    _break(batch, what, lane)
    flow = solve_batch(kind, batch)
    good = np.arange(LANES) != lane
    np.testing.assert_array_equal(succeeded(flow), good)
    assert names_of(flow.result)[lane] == f"invalid_{BROKEN[what]}"
    for name in ("x", "x_mean", "z", "dual"):
        value, want = np.asarray(getattr(flow, name)), np.asarray(getattr(clean, name))
        assert np.isnan(value[lane]).all()
        np.testing.assert_array_equal(value[good], want[good])


def test_too_few_steps():
    batch = make_batch("UV", "rows")
    options = dict(s=TIMES[-1], rtol=1e-15, atol=1e-16)
    with pytest.raises(eqx.EquinoxRuntimeError, match="max_steps"):
        solve_alone("UV", batch, 1, **options)
    flow = solve_alone("UV", batch, 1, **options, throw=False)
    assert bool(flow.result == dln.RESULTS.max_steps_reached)
    assert int(flow.stats["num_steps"]) == 2000
    for value in (flow.x, flow.x_mean, flow.z, flow.dual):
        assert np.isnan(value).all()


# --- precision and derivatives ----------------------------------------------------------------


def test_float32():
    # In coordinates, where s r − Mz cancels: the rows form is ten times better.
    batch, exact = solved("UV", "coordinates")
    single = jax.tree.map(lambda a: a.astype(np.float32), batch)
    single = single._replace(rtol=np.full(LANES, 1e-4, np.float32))  # the default
    flow = solve_batch("UV", single)
    assert flow.x_mean.dtype == flow.x.dtype == flow.dual.dtype == jnp.float32
    assert succeeded(flow).all()
    error = np.abs(np.asarray(flow.x_mean, np.float64) - exact.x_mean).max(axis=(1, 2))
    # Ten times rtol; at log ε = −2000 the rounding of w, amplified by 2000, adds 5e-3.
    assert np.all(error < np.where(batch.log_eps == -2000, 2e-2, 1e-3))


def _parameters(space: str, log_eps: float):
    batch = make_batch("UV", space)
    u, v = (w[0] for w in batch.weights)
    X, y = batch.data[0][0], batch.data[1][0]
    return tuple(map(jnp.asarray, (X, y, 0.1, log_eps, u, v)))


def _total(X, y, decay, log_eps, u, v):
    flow = dln.gradient_flow(
        dln.UV(u, v),
        dln.LeastSquares(X, y, decay),
        TIMES[-1:],
        log_eps=log_eps,
        throw=False,
    )
    return jnp.sum(flow.x_mean)


_reverse = jax.jit(jax.grad(_total, argnums=range(6)))


@jax.jit
def _forward(*parameters):
    """The derivative along the vector of ones."""
    return jax.jvp(_total, parameters, tuple(map(jnp.ones_like, parameters)))[1]


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
        totals.append(np.sum(solve_batch("UV", batch).x_mean[:, -1], axis=1))
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
