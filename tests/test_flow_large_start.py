"""Flows from starts that are larger than `x`, which is the difference of `q⁺` and `q⁻` as large as
the start: in float64 they agree in all digits from `q = 1e16` on."""

import functools
from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit, jv

import dlnjax as dln
from dlnjax._flow.terms.coordinates import CoordinateTerm
from dlnjax._flow.terms.decayed_rows import DecayedRowTerm
from dlnjax._results import names_of

ANY, PLAIN = dln.DualForm(large_start=True), dln.DualForm()
SHAPES = {"wide": (4, 8), "tall": (8, 4)}


def _data(shape: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=SHAPES[shape]) / 2
    return X, X @ rng.normal(size=X.shape[1]) + rng.normal(size=len(X))


def _network(log_alpha, d: int, depth) -> dln.Deep:
    # Weights of size α: the shape times ε^{1/D}, at log ε = −1.
    shape = jnp.full(d, jnp.exp(log_alpha + 1 / depth))
    return dln.Deep(shape, shape, depth=depth)


CASES = [(20.0, 2, ANY), (50.0, 2, ANY), (5.0, 3.0, ANY), (12.0, 3.0, ANY), (6.0, 2, PLAIN)]


@pytest.mark.parametrize("log_alpha, depth, form", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_very_large_start_is_linear(shape, log_alpha, depth, form):
    # Then `dx/ds = E(r − Mx)`, with `E` the slope of the start, to `(x/q)²`: below 1e-10.
    X, y = _data(shape)
    rate = 2 if depth == 2 else 6 * np.exp(log_alpha + 1 / 3)  # E/q; w(0) is 1/shape at depth 3
    slope = rate * np.exp(depth * log_alpha)
    s = np.array([0.01, 0.3, 3, 1000]) / slope
    flow = _linear(shape, depth, form)(log_alpha, s)
    values, vectors = np.linalg.eigh(X.T @ X)
    values = np.maximum(values, 1e-15)
    decays = np.exp(-slope * values * s[:, None])
    along = (X.T @ y) @ vectors / values
    x = (along * -np.expm1(-slope * values * s[:, None])) @ vectors.T
    mean = along * (1 - (1 - decays) / (slope * values * s[:, None]))
    if shape == "wide":  # of the others nothing moves
        mean = np.where(values > 1e-12, mean, 0)
    # What steps at rtol = 1e-7 leave, relative to the largest: in averages over the first
    # hundredth of the time more, since errors of `z` are divided by it.
    close = lambda a, b, tol: np.testing.assert_allclose(a, b, 0, tol * np.max(np.abs(x)))
    close(flow.x, x, 2e-8)
    close(flow.x_mean, mean @ vectors.T, 1e-7)
    close(slope * np.asarray(flow.dual), x, 2e-8)


@functools.cache
def _linear(shape: str, depth, form):
    X, y = _data(shape)

    @jax.jit
    def run(log_alpha, s):
        network = _network(log_alpha, X.shape[1], depth)
        return dln.gradient_flow(
            network, dln.LeastSquares(X, y), s, log_eps=-1.0, formulation=form, throw=False
        )

    return run


@pytest.mark.parametrize("log_alpha", [1.0, 3.0, 5.6])
@pytest.mark.parametrize("depth", [2, 3.0])
def test_the_weight_form_is_as_exact_from_any_start(depth, log_alpha):
    # As `DualForm(large_start=True)`, which the tests above hold against closed forms. At
    # depth 3 the start is smaller, as `q = α³`.
    log_alpha = log_alpha * 2 / depth
    s = np.array([0.3, 3, 1e6]) / np.exp(depth * log_alpha)
    weights, dual = (_linear("wide", depth, f)(log_alpha, s) for f in (dln.WeightForm(), ANY))
    assert weights.result == dln.RESULTS.successful
    scale = np.max(np.abs(dual.x))
    # What its steps leave from ordinary starts (`docs/accuracy.md`).
    np.testing.assert_allclose(weights.x, dual.x, rtol=0, atol=5e-7 * scale)
    np.testing.assert_allclose(weights.x_mean, dual.x_mean, rtol=0, atol=5e-7 * scale)


@pytest.mark.parametrize("dtype, log_alpha", [(np.float64, 12), (np.float32, 3)])
def test_a_weight_that_is_small_beside_a_large_one_keeps_its_digits(dtype, log_alpha):
    """`x = u∘v` from `v = 0` is no difference: `u` stays, and `v` is a linear flow."""
    X, y = (v.astype(dtype) for v in _data("tall"))
    size = np.exp(log_alpha)
    values, vectors = np.linalg.eigh(X.T.astype(float) @ X)
    s = np.array([0.3, 3, 100]) / size**2
    network = dln.UV(jnp.full(4, size * np.exp(0.5), dtype), jnp.zeros(4, dtype))
    flow = dln.gradient_flow(
        network, dln.LeastSquares(X, y), s.astype(dtype), log_eps=-1.0, formulation=dln.WeightForm()
    )
    t = s[:, None] / 2 * size**2  # times du/dt = ... with u² constant; t is s/2 at log ε = −1
    x = ((X.T @ y) @ vectors / values * -np.expm1(-values * t)) @ vectors.T
    tol = 1e-7 if dtype == np.float64 else 1e-3  # the tolerances of steps, 1e-8 and 1e-4
    np.testing.assert_allclose(flow.x, x, rtol=0, atol=tol * np.max(np.abs(x)))


class _ReverseOnly(dln.AbstractNetwork):
    u: jax.Array
    positive: ClassVar[bool] = True

    def __call__(self):
        @jax.custom_vjp
        def square(u):
            return u * u

        square.defvjp(lambda u: (u * u, u), lambda u, g: (2 * u * g,))
        return square(self.u)

    def initial(self, log_eps):
        return _ReverseOnly(jnp.exp(log_eps / 2) * self.u)

    def time_scale(self, log_eps):
        return -log_eps / 4

    def penalty(self, weight_decay):
        return weight_decay * jnp.sum(self.u**2)


def test_networks_with_derivatives_in_reverse_mode_only():
    problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
    run = functools.partial(
        dln.gradient_flow, problem=problem, s=jnp.array([2.0]), eps=1e-2,
        formulation=dln.WeightForm(),
    )  # fmt: skip
    own = run(_ReverseOnly(jnp.ones(2)), solver=diffrax.Tsit5())
    np.testing.assert_allclose(own.x, run(dln.USquared(jnp.ones(2))).x, rtol=1e-6)


LOG_ALPHA, SLOPE = 5.0, 2 * np.exp(10.0)
# An inertia with which no mode oscillates.
SECOND = {"momentum": dln.MomentumForm(0.01 / SLOPE), "accelerated": dln.AcceleratedForm(1)}


@pytest.mark.parametrize("kind", SECOND)
def test_flows_of_second_order_from_a_large_start_are_linear(kind):
    # Then `x` has one mode for each eigenvalue of `EM`, with `E` the slope of the start, to
    # `(x/q)²`: 1e-9.
    X, y = _data("tall")
    values, vectors = np.linalg.eigh(X.T @ X)
    square = 4 * SLOPE * values  # of the frequency in t, which is s/4 at log ε = −1
    t = np.array([0.3, 1, 10])[:, None] / (4 * SLOPE if kind == "momentum" else 2 * SLOPE**0.5)
    flow = _linear.__wrapped__("tall", 2, SECOND[kind])(LOG_ALPHA, 4 * t[:, 0])
    if kind == "momentum":
        inertia = 0.01 / SLOPE
        root = np.sqrt(1 - 4 * inertia * square)
        fast, slow = (-1 - root) / (2 * inertia), (-1 + root) / (2 * inertia)
        off = (fast * np.exp(slow * t) - slow * np.exp(fast * t)) / (fast - slow)
    else:
        off = 2 * jv(1, np.sqrt(square) * t) / (np.sqrt(square) * t)
    x = ((X.T @ y) @ vectors / values * (1 - off)) @ vectors.T
    assert flow.result == dln.RESULTS.successful
    np.testing.assert_allclose(flow.x, x, rtol=0, atol=5e-7 * np.max(np.abs(x)))


DECAYED = {"wide": (DecayedRowTerm, dln.LeastSquares), "tall": (CoordinateTerm, dln.Logistic)}
DECAY = 0.1


@functools.cache
def _decayed(shape: str):
    kind, of = DECAYED[shape]
    X, y = _data(shape)
    y = np.sign(y) if of is dln.Logistic else y

    @jax.jit
    def run(log_alpha, s):
        network, problem = _network(log_alpha, X.shape[1], 2), of(X, y, DECAY)
        assert isinstance(ANY.term(network, problem, jnp.asarray(-1.0)), kind)
        return dln.gradient_flow(network, problem, s, log_eps=-1.0, formulation=ANY, throw=False)

    return run


@pytest.mark.parametrize("log_alpha", [1.0, 5.0, 15.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_weight_decay_shrinks_a_large_start(shape, log_alpha):
    """At half of the time in which the decay brings `q` to size 1, and later than that."""
    X, y = _data(shape)
    y = np.sign(y) if DECAYED[shape][1] is dln.Logistic else y
    s = np.array([0.5, 0.95, 1.2]) * 2 * log_alpha / DECAY
    flow = _decayed(shape)(log_alpha, s)
    # The state `v = q₀ e^{−λs} ν`, in rows or in coordinates, is of the size of `x` at all times.
    F = X if shape == "wide" else np.eye(X.shape[1])
    q = lambda t: np.exp(2 * log_alpha - DECAY * t)
    x_of = lambda t, v: 2 * q(t) * np.sinh(v @ F / q(t))

    def force(x):
        u = X @ x
        rest = y * expit(-y * u) if DECAYED[shape][1] is dln.Logistic else y - u
        return rest if shape == "wide" else rest @ X

    def hessian(x):
        u = X @ x
        h = expit(u) * expit(-u) if DECAYED[shape][1] is dln.Logistic else np.ones_like(u)
        return h[:, None] * X if shape == "wide" else (X.T * h) @ X

    def jacobian(t, v):
        E = 2 * np.cosh(v @ F / q(t))
        return -DECAY * np.eye(len(v)) - q(t) * hessian(x_of(t, v)) * E @ F.T

    truth = solve_ivp(
        lambda t, v: -DECAY * v + q(t) * force(x_of(t, v)),
        (0, s[-1]),
        np.zeros(len(F)),
        "Radau",
        t_eval=s,
        jac=jacobian,
        rtol=1e-10,
        atol=1e-12,
    )
    x = np.stack([x_of(t, v) for t, v in zip(s, truth.y.T, strict=True)])
    np.testing.assert_allclose(flow.x, x, rtol=0, atol=5e-8 * np.max(np.abs(x)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype, large", [(np.float64, 20), (np.float32, 8)])
def test_a_start_that_the_dtype_does_not_hold_is_refused(shape, dtype, large):
    X, y = (v.astype(dtype) for v in _data(shape))

    @jax.jit
    @jax.vmap
    def run(log_alpha):
        network = _network(log_alpha, X.shape[1], 2)
        s = jnp.asarray([1.0], dtype)
        return dln.gradient_flow(network, dln.LeastSquares(X, y), s, log_eps=-1.0, throw=False)

    flow = run(np.array([0, 1, large, large + 2], dtype))
    names = ["successful", "successful", "start_too_large", "start_too_large"]
    assert list(names_of(flow.result)) == names
    assert np.isfinite(flow.x[:2]).all() and np.isnan(flow.x[2:]).all()


@pytest.mark.parametrize("ratio", [1.0, 3.0, 1e3])
def test_a_start_with_one_side_far_larger(ratio):
    """`q⁺q⁻` stays: where `x` becomes small, both are as large as its root."""
    # One entry: `x` ends at y, from `q⁺ − q⁻ ≈ q⁺`.
    q = np.array([1.0, 1 / ratio]) * 1e3 * np.sqrt(ratio)
    w = np.sqrt(q) * np.exp(0.5)
    run = lambda y: dln.gradient_flow(
        dln.UV(w.sum()[None], (w[0] - w[1])[None]),
        dln.LeastSquares(jnp.eye(1), jnp.array([y])), jnp.array([1e3]), log_eps=-1.0, throw=False,
    )  # fmt: skip
    flow = run(1.0)
    assert flow.result == dln.RESULTS.successful
    np.testing.assert_allclose(flow.x[0], 1, rtol=1e-7)
    assert run(1e-5).result == dln.RESULTS.start_too_large


def test_bad_input():
    X, y = _data("wide")
    problem, network = dln.LeastSquares(X, y), dln.Layers(np.arange(1, 25.0).reshape(3, 8))
    with pytest.raises(TypeError, match="needs a network with a `growth`, which Layers"):
        dln.gradient_flow(network, problem, np.ones(1), eps=0.1, formulation=ANY)
