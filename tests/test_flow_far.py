"""The flow at early and far times: `x(s)` from `s‖r‖_∞ = 1` to 1e8, at every `ε`."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import nnls

import dlnjax as dln
from dlnjax._results import names_of

LOG_EPS = np.array([-5.0, -23, -100, -700, -2000])
EARLY, FAR = np.array([1.0, 3, 10, 30, 100]), np.array([1e4, 1e5, 1e6, 1e7, 1e8])
LANES = 8
NETWORKS = {
    "UV": lambda one: dln.UV(one, 0 * one),
    "USquared": lambda one: dln.USquared(one),
    "Deep(2)": lambda one: dln.Deep(one, one, depth=2),
    "Deep(3)": lambda one: dln.Deep(one, one, depth=3.0),
}


@functools.cache
def _data(n: int, d: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(n)
    X, y = rng.normal(size=(LANES, n, d)), rng.normal(size=(LANES, n))
    return X, y, np.abs(np.einsum("lij,li->lj", X, y)).max(axis=1)


@functools.cache
def _flow(network, n, d, decayed, as_quadratic=False, is_far=True):
    """Axes: `ε`, instances, times, coordinates."""
    X, y, unit = _data(n, d)
    times = np.append(EARLY, FAR) if is_far else EARLY

    @jax.jit
    def all_lanes(X, y, decay, s, log_eps):
        def one(X, y, decay, s, log_eps):
            decay = decay if decayed else 0.0
            problem = dln.LeastSquares(X, y, decay)
            if as_quadratic:
                problem = dln.Quadratic(X.T @ X, X.T @ y, weight_decay=decay)
            one = jnp.ones(d)
            return dln.gradient_flow(
                NETWORKS[network](one), problem, s, log_eps=log_eps, throw=False
            )

        lanes = jax.vmap(one, (0, 0, 0, 0, None))
        return jax.vmap(lanes, (None, None, None, None, 0))(X, y, decay, s, log_eps)

    return jax.device_get(all_lanes(X, y, 0.1 * unit, times / unit[:, None], LOG_EPS))


def _end(network: str, X, y, decay: float) -> np.ndarray:
    """Where the flow rests: the minimiser of the loss, over `x ≥ 0` for `USquared`; with weight
    decay the lasso at `κ = λ`, which is unique for these data: by `2d` entries `≥ 0`."""
    sides = [X] if network == "USquared" else [X, -X]
    if decay == 0:
        return nnls(X, y)[0] if network == "USquared" else np.linalg.lstsq(X, y, rcond=None)[0]
    # ½‖Fq − y‖² + λ⟨1, q⟩ over q ≥ 0, as non-negative least squares of the completed square: a row
    # √t 1ᵀq = −λ/√t tends to it as t → 0. Its support is exact; then solve on it.
    F = np.concatenate(sides, axis=1)
    t = 1e-10
    rows = np.concatenate([F, np.sqrt(t) * np.ones((1, F.shape[1]))])
    q = nnls(rows, np.append(y, -decay / np.sqrt(t)))[0]
    A = np.flatnonzero(q > 0)
    on_face = np.linalg.solve(F[:, A].T @ F[:, A], F[:, A].T @ y - decay)
    q = np.zeros(F.shape[1])
    q[A] = on_face
    # It is the lasso: certified here, so that no solver is trusted.
    slack = decay - F.T @ (y - F @ q)
    assert np.all(on_face > 0) and slack.min() > -1e-9 * decay
    return q.reshape(len(sides), -1).T @ np.array([1.0, -1.0])[: len(sides)]


CASES = [
    (network, n, d, decayed, as_quadratic)
    for network in NETWORKS
    for n, d, decayed, as_quadratic in [
        (10, 4, False, False),
        (10, 4, True, True),
        (5, 8, True, False),  # rows, in which ν grows with weight decay
        (5, 8, False, True),
    ]
    if not (network == "Deep(3)" and decayed)
]


@pytest.mark.parametrize("network, n, d, decayed, as_quadratic", CASES)
def test_far_beyond_the_jumps_the_flow_rests(network, n, d, decayed, as_quadratic):
    flow = _flow(network, n, d, decayed, as_quadratic)
    assert np.all(np.asarray(flow.result == dln.RESULTS.successful))
    X, y, unit = _data(n, d)
    r = np.einsum("lij,li->lj", X, y)
    far = np.s_[:, :, len(EARLY) :]
    # At rest, to the tolerance of the steps, 1e-7, with which it is approached.
    rest = r[:, None] - np.einsum("lij,lik,elsk->elsj", X, X, flow.x)[far]
    if n >= d or decayed:
        want = [_end(network, X[i], y[i], 0.1 * unit[i] * decayed) for i in range(LANES)]
        want = np.stack(want)
        error = np.abs(flow.x[far] - want[:, None]).max(axis=-1)
        size = np.abs(want).max(axis=-1)
        assert np.max(error / np.where(size > 0, size, 1)[:, None]) < 1e-6
    elif network != "USquared":  # which interpolation it is depends on ε
        assert np.max(np.abs(rest).max(axis=-1) / unit[:, None]) < 1e-6
    # The dual is a state of its own, and still `Xᵀν = s(r − Mx̄)`: a relation between two outputs,
    # to the error of z, of some 1e-7 of its size, and what the sums of a step, of eight stages,
    # round of a dual like `sr`.
    image = np.einsum("lij,lik,elsk->elsj", X, X, flow.z)
    dual = flow.s[..., None] * r[:, None] - image
    size = 1 + np.abs(image).max(axis=-1, keepdims=True)
    rounding = 10 * np.finfo(float).eps * flow.stats["num_steps"][..., None]
    rounding = rounding * flow.s * unit[:, None]
    assert np.max(np.abs(flow.dual - dual) - 1e-6 * size - rounding[..., None]) < 0


@pytest.mark.parametrize("network", NETWORKS)
def test_steps_do_not_grow_with_time(network):
    decayed = network != "Deep(3)"
    soon = _flow(network, 10, 4, decayed, is_far=False).stats["num_steps"]
    late = _flow(network, 10, 4, decayed).stats["num_steps"]
    # Steps grow to any length where all is at rest: a dozen a decade at most.
    assert np.all(late <= soon + 120)


def _radau(network, X, y, decay, log_eps, s) -> np.ndarray:
    """`x` at the times `s`, with `w` of each sign as the state."""
    M, r = X.T @ X, X.T @ y
    sign = np.array([1.0, -1.0])[: 1 if network == "USquared" else 2]
    start = 1 + (2 * np.log(0.5) / log_eps if network == "UV" else 0)
    q = lambda w: np.exp(np.minimum(log_eps * w, 300))

    def field(t, state):
        w = state.reshape(len(sign), -1)
        return (-sign[:, None] * (r - M @ (sign @ q(w))) + decay).ravel()

    def jacobian(t, state):
        slope = log_eps * q(state.reshape(len(sign), -1))
        return np.block([[a * b * M * slope[j] for j, b in enumerate(sign)] for a in sign])

    run = solve_ivp(
        field,
        (0, s[-1]),
        np.full(len(sign) * len(r), start),
        "Radau",
        s,
        rtol=1e-10,
        atol=1e-12,
        jac=jacobian,
    )
    return q(run.y.T.reshape(len(s), len(sign), -1)).transpose(0, 2, 1) @ sign


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("network", ["UV", "USquared"])
def test_early_times(network, decayed):
    X, y, unit = _data(10, 4)
    flow = _flow(network, 10, 4, decayed)
    for e in (1, 3):
        for lane in range(2):
            decay = 0.1 * unit[lane] * decayed
            want = _radau(network, X[lane], y[lane], decay, LOG_EPS[e], EARLY / unit[lane])
            error = np.abs(flow.x[e, lane, : len(EARLY)] - want).max()
            assert error < 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("X, decay", [(0.0, 7e19), (0.0, 1.0), (1.0, 1000.0)])
@pytest.mark.parametrize("L", [8.3, 200.0])
def test_decay_above_all_correlations(X, decay, L):
    """Nothing moves away from 0: `q^± = q(0)^± e^{−L(λ ∓ r)s}`, `L = log(1/ε)`, but for `Mx`, which
    is below 1e-4 of `r`, and that below 1e-3 of λ."""
    s = np.array([1e-3, 0.1, 1.0, 10.0, 1e3]) / decay
    flow = _one_coordinate(np.float64, X, decay, L, s)
    signs, start = np.array([1, -1]), np.exp(-L) * np.array([0.25, 0.15]) ** 2
    rate = L * (decay - signs * X)
    mean = signs * start * -np.expm1(-rate * s[:, None]) / (rate * s[:, None])
    # Steps are to 1e-7 of what `w` is; a change of it changes `x` by L times that.
    np.testing.assert_allclose(flow.x_mean[:, 0], mean.sum(axis=1), rtol=1e-7 * max(L, 20))


@pytest.mark.parametrize(
    "dtype, L", [(np.float64, 705.0), (np.float64, 2000.0), (np.float32, 80.0)]
)
def test_decay_of_what_underflows(dtype, L):
    s = np.array([1e-6, 1e-3, 1.0])
    flow = _one_coordinate(dtype, 1.0, 1000.0, L, s)
    assert flow.result == dln.RESULTS.successful
    # `x(0)` is e^{-L}, times less than 1: below the number whose square underflows.
    assert np.max(np.abs(flow.x_mean)) <= np.finfo(dtype).tiny ** 0.5


def _one_coordinate(dtype, X, decay, L, s) -> dln.Flow:
    problem = dln.LeastSquares(np.full((1, 1), X, dtype), np.ones(1, dtype), decay)
    network = dln.UV(np.full(1, 0.4, dtype), np.full(1, 0.1, dtype))
    return dln.gradient_flow(network, problem, s.astype(dtype), log_eps=-L, throw=False)


@pytest.mark.parametrize("dtype, largest", [(np.float32, 1e18), (np.float64, 1e153)])
def test_large_x(dtype, largest):
    """With one column `c` and `x ≥ 0`, `dx/ds = L x (r − c² x)`: a logistic function, whatever the
    units of the data are, up to the square root of the largest number. Beyond it the range of the
    numbers is the cause of the failure, however few steps there are."""
    c, largest_lane = np.array([1e-8, 1e-6, 1e-3, 1, 1e3, 1e-8, 1e-8]), 5
    end = np.array([1e11, 1e9, 1e6, 1e10, 1e3, largest / 10, 100 * largest])
    L, p, unit = 50.0, 3.0, c**2 * end
    s = np.array([0.5, 0.9, 1.1, 2.0, 30.0]) / unit[:, None]

    @jax.jit
    @jax.vmap
    def solve(c, y, s):
        problem = dln.LeastSquares(c[None, None], y[None])
        network = dln.USquared(jnp.full(1, p, dtype))
        return dln.gradient_flow(network, problem, s, log_eps=-L, max_steps=300, throw=False)

    flow = solve(*(v.astype(dtype) for v in (c, c * end, s)))
    names = names_of(flow.result).tolist()
    assert names == ["successful"] * (largest_lane + 1) + ["flow_not_finite"]
    start = np.exp(-L) * p**2 / end[:, None]  # x(0) in units of its end
    growth = L * s * unit[:, None]
    expected = np.logaddexp(np.log1p(-start), np.log(start) + growth) / growth
    x_mean = np.asarray(flow.x_mean[..., 0], float) / end[:, None]
    # A hundred times the tolerance of a step.
    atol = 1e-2 if dtype == np.float32 else 1e-5
    np.testing.assert_allclose(x_mean[:-1], expected[:-1], atol=atol)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_columns_in_their_own_units(depth):
    """Orthogonal columns `c`: as `ε → 0` each coordinate jumps from 0 to `y/c` at `s = w(0)/(cy)`,
    however large `y/c` is beside `‖r‖_∞/‖X‖²`."""
    c, y = np.array([1.0, 1e-6, 1e4]), np.array([1.0, 2.0, -1.5])
    network, log_eps = dln.Deep(jnp.ones(3), jnp.full(3, 0.9), depth=float(depth)), -2000.0
    w = np.asarray(network.initial_dual(jnp.asarray(log_eps)))
    jump = np.where(y > 0, w[0], w[1]) / (c * np.abs(y))
    s = np.sort(np.outer([0.9, 1.1, 2.0], jump).ravel())
    flow = dln.gradient_flow(network, dln.LeastSquares(np.diag(c), y), s, log_eps=log_eps)
    expected = y / c * np.maximum(1 - jump / s[:, None], 0)
    # At depth 2 the jump is w(0)/(cy) times 1 + O(1/log(1/ε)), beyond that exact to the steps.
    atol = 2e-2 if depth == 2 else 1e-5
    x, x_mean = np.asarray(flow.x), np.asarray(flow.x_mean)
    np.testing.assert_allclose(x_mean * c, expected * c, atol=atol)
    late = s[:, None] > 1.05 * jump
    np.testing.assert_allclose((x * c)[late], np.broadcast_to(y, late.shape)[late], rtol=1e-6)


def _in_units_of_the_start(make, form, depth, size, X, y, log_eps):
    """The flow from a start `size` times as large: that of `y/sizeᴰ` at `s size^{2D−2}`, times
    `sizeᴰ`, since `d(weights)/dt` has the degree `2D − 1`."""
    s = np.array([0.8, 1.2, 2.0, 5.0, 20.0]) * size ** (2 - 2 * depth)
    problem = dln.LeastSquares(X, size**depth * y)
    network = make(jnp.full(X.shape[1], size))
    flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, formulation=form)
    return np.stack([flow.x, flow.x_mean]) / size**depth


@pytest.mark.parametrize("form", [dln.DualForm(), dln.WeightForm()], ids=["dual", "weights"])
@pytest.mark.parametrize("depth, size", [(2, 1e-3), (2, 1e3), (3, 1e-4), (3, 1e6), (4, 1e-3)])
@pytest.mark.parametrize("n, d", [(3, 4), (4, 3)])
def test_the_size_of_the_start_is_a_unit(n, d, depth, size, form):
    rng = np.random.default_rng(d)
    X, y = rng.normal(size=(n, d)), rng.normal(size=n)
    make = lambda p: dln.Deep(p, 0.9 * p, depth=float(depth) if depth > 2 else 2)
    flow = functools.partial(_in_units_of_the_start, make, form, depth, X=X, y=y, log_eps=-16.0)
    one, other = flow(size=1.0), flow(size=size)
    # Each has the error of its steps, up to 20 units of `rtol`; x, not averaged, that of its jumps.
    top = np.abs(one).max()
    np.testing.assert_allclose(other[1], one[1], atol=2e-6 * top)
    np.testing.assert_allclose(other[0, 1:], one[0, 1:], atol=2e-4 * top)


def test_a_large_column_that_explains_nothing():
    """Of a column at rest `x = q⁺ − q⁻` is all rounding, in which steps looked for an error: this
    flow took 65 536 steps and did not end."""
    a, b, c = 184.40677210088177, 0.00028815021841853064, 0.0007607705353681099
    X = np.array([[a, -b, c], [-a, -b, c], [a, b, c], [a, -b, -c]])
    y = 0.0002880039557851241 * np.array([1, 1, -1, 1])
    L, s, one = 6.408190164242912, np.array([1e8, 1e10, 1e12]), np.ones(3)
    flow = dln.gradient_flow(dln.UV(one, 0 * one), dln.LeastSquares(X, y), s, log_eps=-L)
    assert flow.stats["num_steps"] < 200
    # Columns are orthogonal: x = 2q(0) sinh(Lg), dg/ds = r − mx, which is at rest by then.
    m, r, q = (X**2).sum(axis=0), X.T @ y, np.exp(-L) / 4
    rest = np.arcsinh(r / (2 * q * m)) / L
    right = (r * s[:, None] - rest) / (m * s[:, None])
    assert np.max(np.abs(flow.x_mean - right)) < 1e-12


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_unit_of_y_at_depth_one(unit):
    """`x(s)` and `z(s)` by the eigenvalues of `M`."""
    rng = np.random.default_rng(0)
    X, y, s = rng.normal(size=(3, 4)), unit * rng.normal(size=3), np.array([0.1, 1.0, 30.0])
    flow = dln.gradient_flow(dln.Linear(jnp.zeros(4)), dln.LeastSquares(X, y), s, eps=0.1)
    values, vectors = np.linalg.eigh(X.T @ X)
    kept = values > 1e-10
    values, vectors = values[kept], vectors[:, kept]
    end = vectors.T @ (X.T @ y) / values
    fall = -np.expm1(-values * s[:, None]) / (values * s[:, None])
    expected = (end * (1 - fall)) @ vectors.T
    np.testing.assert_allclose(flow.x_mean, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("as_quadratic", [False, True])
@pytest.mark.parametrize("sizes", [(1.0, 1.0), (1e-3, 1e3)])
def test_negative_correlations_of_a_positive_network(sizes, as_quadratic):
    """`x` decays from its start, and `x̄` to 1e-6 of itself: `x = x(0) e^{−L|r|s}`, `L = log(1/ε)`,
    but for `Mx`, of the order of `ε`."""
    (start, unit), X, L = sizes, np.array([[1.0, 0.5, 2.0]]), 23.0
    y, p = np.array([-unit]), np.full(3, start**0.5)
    problem = dln.LeastSquares(X, y)
    if as_quadratic:
        problem = dln.Quadratic(X.T @ X, X.T @ y)
    s = np.array([1e-3, 0.1, 10.0, 1e4]) / unit
    flow = dln.gradient_flow(dln.USquared(p), problem, s, log_eps=-L)
    rate = L * X[0] * unit * s[:, None]
    expected = start * np.exp(-L) * -np.expm1(-rate) / rate
    np.testing.assert_allclose(flow.x_mean, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "log_eps"), [(np.float64, -400.0), (np.float64, -600.0), (np.float32, -70.0)]
)
def test_what_decays_from_a_tiny_start_is_known_relative_to_itself(dtype, log_eps):
    """As above, down to 1e-277 (float32: 7e-35). `q = w^(log ε)` has the rounding of `log ε`."""
    size, s = np.array([1.0, 0.1]), np.array([0.4, 1.0, 100.0])
    problem = dln.Quadratic(np.eye(2, dtype=dtype), -size.astype(dtype))
    network = dln.USquared(np.ones(2, dtype))
    flow = dln.gradient_flow(network, problem, s.astype(dtype), log_eps=log_eps)
    rate = -log_eps * size * s[:, None]
    close = 1e-6 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(
        flow.x_mean, np.exp(log_eps) * -np.expm1(-rate) / rate, rtol=close, atol=0
    )


@pytest.mark.parametrize("dtype, close", [(np.float64, 1e-6), (np.float32, 1e-3)])
@pytest.mark.parametrize("slowest", [1e-3, 1e-9])
def test_what_decays_in_times_that_differ_by_decades(slowest, dtype, close):
    """Each entry is known relative to itself at all times, also one that is gone long before the
    last."""
    pull = np.array([1.0, slowest**0.5, slowest])
    s = np.array([0.5, 1.0, 30.0, 1e3])
    problem = dln.Quadratic(1e-12 * np.eye(3, dtype=dtype), -pull.astype(dtype))
    flow = dln.gradient_flow(dln.USquared(np.ones(3, dtype)), problem, s.astype(dtype), eps=1e-6)
    rate = -np.log(1e-6) * pull * s[:, None]
    mean = 1e-6 * -np.expm1(-rate) / rate
    np.testing.assert_allclose(flow.x_mean, mean, rtol=close, atol=0)


@pytest.mark.parametrize("form", [dln.DualForm(), dln.WeightForm()], ids=["dual", "weights"])
@pytest.mark.parametrize("of_X, of_y", [(1.0, 1e-9), (1e4, 1e-9), (1e-4, 1e9)])
def test_the_units_at_depth_one_and_far_times(of_X, of_y, form):
    X = of_X * np.array([[1.0, 0.0], [0.0, 0.5]])
    y, s = of_y * np.array([1.0, -2.0]), np.array([0.1, 1.0, 1e13]) / of_X**2
    problem = dln.LeastSquares(X, y)
    flow = dln.gradient_flow(dln.Linear(jnp.zeros(2)), problem, s, eps=0.1, formulation=form)
    end, rate = y / np.diag(X), np.diag(X) ** 2 * s[:, None]
    expected = end * (1 + np.expm1(-rate) / rate)
    np.testing.assert_allclose(flow.x_mean, expected, rtol=1e-6, atol=1e-6 * np.abs(end).max())
    assert flow.stats["num_steps"] < 300


def test_one_coordinate_rests_and_one_decays():
    """`x₁ = x₁(0) = ε`, as `r₁ = 0`, but for `ε²Ls`; `x₂ = ε e^{−Ls}`."""
    L, s = 46.0, np.array([1.0, 1e3, 1e12])
    flow = dln.gradient_flow(
        dln.USquared(jnp.ones(2)), dln.LeastSquares(np.eye(2), np.array([0.0, -1.0])), s, log_eps=-L
    )
    expected = np.stack([np.ones(3), 1 / (L * s)], axis=1)
    np.testing.assert_allclose(flow.x_mean / np.exp(-L), expected, rtol=1e-5)
    assert flow.stats["num_steps"] < 500


def test_starts_of_different_sizes():
    """What does not reach `X` is in `z` alone: it has the accuracy of the smallest `w(0)`."""
    rng = np.random.default_rng(1)
    problem = dln.LeastSquares(rng.normal(size=(2, 3)), rng.normal(size=2))
    shape, s = jnp.array([1.0, 1.0, 1e-4]), np.array([1.0, 3.0, 1e3, 1e6])
    network = dln.Deep(shape, shape, depth=3.0)
    one, fine = (
        dln.gradient_flow(network, problem, s, log_eps=-16.0, rtol=rtol, atol=rtol / 10)
        for rtol in (1e-7, 1e-11)
    )
    top = np.abs(fine.x_mean).max()
    np.testing.assert_allclose(one.x_mean, fine.x_mean, atol=2e-6 * top)


class _Features(dln.AbstractNetwork):
    """`x = Bu`, from 0: it moves all the same."""

    u: jax.Array
    basis: dln.Constant
    positive: ClassVar[bool] = False

    def __call__(self):
        return self.basis.value @ self.u

    def initial(self, log_eps):
        return _Features(self.u * jnp.exp(log_eps), self.basis)

    def time_scale(self, log_eps):
        return jnp.ones_like(log_eps)

    def penalty(self, weight_decay):
        return weight_decay / 2 * jnp.sum(self.u**2)


def test_weights_that_are_0():
    network = _Features(jnp.zeros(1), dln.Constant(np.array([[1.0], [2.0]])))
    problem, s = dln.LeastSquares(np.eye(2), np.ones(2)), np.array([0.1, 1.0])
    flow = dln.gradient_flow(network, problem, s, eps=1e-3, formulation=dln.WeightForm())
    # du/ds = 3 − 5u
    u = 0.6 * -np.expm1(-5 * s)
    np.testing.assert_allclose(flow.x, u[:, None] * [1, 2], atol=1e-6)
    np.testing.assert_allclose(flow.z[:, 0], 0.6 * s - u / 5, atol=1e-6)


@pytest.mark.parametrize("log_eps", [-400.0, -600.0])
def test_derivatives_of_what_decays_from_a_tiny_start(log_eps):
    """In both modes, against a difference: forward mode was NaN below `σ²z` = 1e-154."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(3, 4)), 0.01 * rng.normal(size=3)
    network = dln.UV(jnp.ones(4), 0.1 * jnp.ones(4))

    @jax.jit
    def total(y):
        problem = dln.LeastSquares(X, y, 0.1)
        s = jnp.array([0.5, 1.0, 3.0])
        flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, throw=False)
        # In units of ε: differences of 1e-304 would lose digits.
        return jnp.sum(flow.x_mean * np.exp(-log_eps / 2)) * np.exp(-log_eps / 2)

    y, along = jnp.asarray(y), jnp.ones(3)
    _, forward = jax.jvp(total, (y,), (along,))
    np.testing.assert_allclose(forward, jax.grad(total)(y).sum(), rtol=1e-8)
    h = 1e-4
    difference = (total(y + h * along) - total(y - h * along)) / (2 * h)
    np.testing.assert_allclose(forward, difference, rtol=1e-3)
