"""A shallow network by its Hermite coefficients, and crossing times in the weight form."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import erf, ndtr

import dlnjax as dln
from dlnjax._results import names_of
from dlnjax.networks import SingleIndex, hermite

SIGMA, PHI = np.array([0.5, 0.6, 0.5, 0.4]), np.array([0.6, 0.7, 0.6, 0.5])
RNG = np.random.default_rng(3)
A, S = RNG.choice([-1.0, 1], 6) * RNG.uniform(0.5, 1.5, 6), np.zeros(6)
FORM, LANES = dln.WeightForm(), 3
END = 0.4


def _scipy(log_eps, a=A, s=S, sigma=SIGMA, phi=PHI):
    """The equations of the paper in `(a, s)`, by SciPy; events where `x_k` rises to `φ_k/2`."""
    m, k, eps = len(a), np.arange(len(sigma)), np.exp(log_eps)

    def x(y):
        return sigma * (y[:m] @ y[m:, None] ** k) / m

    def field(_, y):
        a, s, off = y[:m], y[m:], sigma * (phi - x(y))
        # k s^{k−1}, with 0 at k = 0.
        slopes = np.concatenate([np.zeros((m, 1)), k[1:] * s[:, None] ** (k[1:] - 1)], axis=1)
        return np.concatenate([s[:, None] ** k @ off / eps, (1 - s**2) * a * (slopes @ off)])

    def event(i):
        function: Any = lambda _, y: x(y)[i] - phi[i] / 2
        function.direction = 1
        return function

    run = solve_ivp(
        field,
        (0, END),
        np.concatenate([a, s]),
        "Radau",
        rtol=1e-11,
        atol=1e-13,
        events=[event(i) for i in k],
        dense_output=True,
    )
    times = [t[0] if len(t) else np.inf for t in run.t_events]
    return np.array(times), lambda t: np.stack([x(y) for y in run.sol(t).T])


def _times(log_eps, a, s, sigma):
    problem = dln.LeastSquares(jnp.eye(4), PHI)
    network = SingleIndex(a, s, sigma)
    found = dln.crossing_times(
        network, problem, END, PHI / 2, log_eps=log_eps, formulation=FORM, max_crossings=6,
        throw=False,
    )  # fmt: skip
    rises = found.activations
    first = jnp.where(jnp.any(rises, axis=0), found.s[jnp.argmax(rises, axis=0)], jnp.inf)
    return jnp.where(found.result == dln.RESULTS.successful, first, jnp.nan), found.result


_lanes = jax.jit(jax.vmap(_times))


def _batch(log_eps, a=A, s=S, sigma=SIGMA):
    log_eps = np.broadcast_to(np.asarray(log_eps, float), LANES)
    spread = lambda v: np.broadcast_to(v, (LANES, v.shape[-1]))
    return _lanes(log_eps, spread(a), spread(s), spread(sigma))


def test_crossing_times_of_the_weight_form_against_events_of_scipy():
    log_eps = np.log([1e-3, 1e-5, 1e-8])
    found, result = _batch(log_eps)
    assert names_of(result).tolist() == ["successful"] * LANES
    exact = np.stack([_scipy(size)[0] for size in log_eps])
    # Steps are to 1e-8 of the state; a plateau that is left at an exponential rate adds to it.
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    # x₀ and x₁ are learned where the paper says, up to what is of higher order in ε.
    assert np.all(np.isfinite(exact[:, :2]))


def test_a_start_that_is_not_at_zero_and_lanes_that_fail_alone():
    a, s = np.tile(A, (3, 1)), np.tile(np.linspace(-0.3, 0.4, 6), (3, 1))
    s[1, 2], a[2, 0] = 1.5, np.nan
    found, result = _batch(np.log(1e-5), a, s)
    assert names_of(result).tolist() == ["successful", "invalid_shape", "invalid_shape"]
    np.testing.assert_allclose(found[0], _scipy(np.log(1e-5), s=s[0])[0], rtol=1e-6)
    assert np.all(np.isnan(found[1:]))
    # A neuron that never moves, from where `arcsin` has no derivative.
    s[1, 2], s[2, 0] = 1, -1
    _, result = _batch(np.log(1e-5), np.tile(A, (3, 1)), s)
    assert names_of(result).tolist() == ["successful", "invalid_shape", "invalid_shape"]


def test_derivatives_beside_a_direction_that_never_moves():
    k = np.arange(4)
    for s in (1 - 1e-9, -1 + 1e-9):
        found = jax.jacfwd(lambda s: SingleIndex(jnp.ones(1), s[None], SIGMA)())(jnp.asarray(s))
        # The angle is rounded to 1e-16, 4e-5 from the end.
        np.testing.assert_allclose(found, SIGMA * k * s ** np.maximum(k - 1, 0), rtol=1e-11)


def test_trajectory_against_scipy():
    s = np.array([0.0, 1e-6, 1e-3, 0.1, 0.4])
    problem, log_eps = dln.LeastSquares(jnp.eye(4), PHI), np.log(1e-4)
    network = SingleIndex(A, S, SIGMA)
    flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, formulation=FORM)
    exact = _scipy(log_eps)[1](s)
    np.testing.assert_allclose(flow.x, exact, atol=1e-6)
    # `initial` leaves x as it is.
    np.testing.assert_allclose(network.initial(jnp.asarray(-30.0))(), network(), rtol=1e-14)


def test_derivatives_of_crossing_times_against_differences_of_scipy():
    def first_times(t):
        log_eps = np.log(1e-3) + t[0]
        return _times(log_eps, jnp.asarray(A), jnp.asarray(S), SIGMA * (1 + t[1]))[0][:2]

    found = jax.jit(jax.jacfwd(first_times))(np.zeros(2))
    h = 1e-4
    of = lambda t: _scipy(np.log(1e-3) + t[0], sigma=SIGMA * (1 + t[1]))[0][:2]
    exact = np.stack([(of(e) - of(-e)) / (2 * h) for e in h * np.eye(2)], axis=1)
    # Differences: h² of the third derivative.
    np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_single_precision():
    a, sigma, phi = (np.asarray(v, np.float32) for v in (A, SIGMA, PHI))
    network = SingleIndex(a, np.zeros(6, np.float32), sigma)
    problem = dln.LeastSquares(np.eye(4, dtype=np.float32), phi)
    found = dln.crossing_times(
        network, problem, 0.05, phi / 2, eps=1e-4, formulation=FORM, max_crossings=4
    )
    assert found.s.dtype == np.float32
    exact = _scipy(np.log(1e-4))[0]
    np.testing.assert_allclose(found.s[:1], exact[:1], rtol=1e-3)


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="one entry a neuron"):
        SingleIndex(A, np.zeros(3), SIGMA)
    for s in (-1.0, 1.5):
        with pytest.raises(ValueError, match=f"`s` must be between −1 and 1, got {s}"):
            SingleIndex(A, np.full(6, s), SIGMA)
    with pytest.raises(ValueError, match="`sigma` must have one weight"):
        SingleIndex(A, S, np.ones((2, 2)))
    network = SingleIndex(A, S, SIGMA)
    with pytest.raises(ValueError, match="takes no weight decay"):
        dln.crossing_times(
            network, dln.LeastSquares(jnp.eye(4), PHI, 0.1), 1.0, 0.1, eps=0.1, formulation=FORM
        )
    problem = dln.LeastSquares(jnp.eye(4), PHI)
    with pytest.raises(TypeError, match=r"no dual form. Pass `formulation=dln.WeightForm\(\)`"):
        dln.crossing_times(network, problem, 1.0, 0.1, eps=0.1)
    with pytest.raises(ValueError, match="too small for weights of SingleIndex.*Use a larger ε.$"):
        dln.crossing_times(network, problem, 1.0, 0.1, log_eps=-2000.0, formulation=FORM)
    single, problem = (jax.tree.map(jnp.float32, v) for v in (network, problem))
    with pytest.raises(ValueError, match=r"Use a larger ε, or float64, down to e\^-96.12.$"):
        dln.crossing_times(single, problem, 1.0, 0.1, log_eps=-50.0, formulation=FORM)
    assert np.isnan(jax.jit(lambda decay: network.penalty(decay))(0.1))


def test_hermite_coefficients():
    k = np.arange(9)
    root = np.sqrt([math.factorial(i) for i in k])
    # E[e^{tG} he_k] = t^k e^{t²/2}/√k!, and its derivative in t.
    of = lambda t: hermite(lambda z: jnp.exp(t * z), 8)
    exact = 0.7**k * np.exp(0.245) / root
    np.testing.assert_allclose(jax.jit(of)(0.7), exact, atol=1e-14)
    np.testing.assert_allclose(jax.jacfwd(of)(0.7), exact * (k / 0.7 + 0.7), atol=1e-13)
    # A polynomial of high degree, and ∫ erf he₁ = 2/√(3π), ∫ erf he₃ from E f‴/√6.
    np.testing.assert_allclose(hermite(lambda z: z**3 - 3 * z, 4), [0, 0, 0, 6**0.5, 0], atol=1e-12)
    erf1, erf3 = 2 / np.sqrt(3 * np.pi), -4 / (3 * np.sqrt(3 * np.pi)) / np.sqrt(6)
    found = hermite(jax.scipy.special.erf, 3)
    np.testing.assert_allclose(found, [0, erf1, 0, erf3], atol=1e-14)
    z, w = np.polynomial.hermite_e.hermegauss(60)
    np.testing.assert_allclose(erf1, w @ (erf(z) * z) / np.sqrt(2 * np.pi), atol=1e-14)
    # A kink: E max(G, 0) he_k.
    relu = [1 / np.sqrt(2 * np.pi), 0.5, 1 / np.sqrt(4 * np.pi), 0]
    np.testing.assert_allclose(hermite(lambda z: jnp.maximum(z, 0), 3), relu, atol=4e-5)
    # A jump, wherever it is between two nodes: E [G > s] he_k = φ(s) he_{k−1}(s)/√k.
    for s in np.linspace(0, 1 / 16, 17):
        step = [ndtr(-s), np.exp(-(s**2) / 2) / np.sqrt(2 * np.pi)]
        np.testing.assert_allclose(hermite(lambda z, s=s: z > s, 1), step, atol=7e-3)
    # Parseval at the largest degree.
    np.testing.assert_allclose(np.sum(hermite(jnp.sin, 100) ** 2), (1 - np.exp(-2)) / 2, rtol=1e-13)


def test_hermite_of_steep_functions():
    # The docstring states these errors. E tanh(c(G − s)) he₁ by quad, in pieces around the step.
    for c, error in ((1, 1e-14), (3, 1e-14), (10, 1e-14), (20, 4e-8), (30, 5e-6)):
        for s in (0, 1 / 128, 1 / 64, 0.3):
            of = lambda z, c=c, s=s: np.tanh(c * (z - s)) * z * np.exp(-(z**2) / 2)
            ends = [-12, s - 1, s - 0.1, s, s + 0.1, s + 1, 12]
            parts = [quad(of, *e, epsabs=1e-15)[0] for e in zip(ends, ends[1:], strict=False)]
            found = hermite(lambda z, c=c, s=s: jnp.tanh(c * (z - s)), 1)[1]
            np.testing.assert_allclose(found, sum(parts) / np.sqrt(2 * np.pi), atol=error)


def test_hermite_of_functions_that_grow_in_both_precisions():
    k = np.arange(3)
    root = np.sqrt([math.factorial(i) for i in k])
    for x64, digits in ((True, 1e-13), (False, 2e-6)):
        with jax.enable_x64(x64):
            for t in (1.0, 3.0, 6.0):
                found = hermite(lambda z, t=t: jnp.exp(t * z), 2)
                assert found.dtype == (np.float64 if x64 else np.float32)
                np.testing.assert_allclose(found, t**k * np.exp(t**2 / 2) / root, rtol=digits)
    # E G^200 = 199!!, of 187 digits.
    double = math.exp(math.lgamma(201) - 100 * math.log(2) - math.lgamma(101))
    np.testing.assert_allclose(hermite(lambda z: z**200, 0), [double], rtol=1e-12)


def test_hermite_refuses_what_it_cannot_integrate():
    for fn in (lambda z: z**250, jnp.log, lambda z: jnp.exp(z**2)):
        with pytest.raises(ValueError, match=r"`fn` must be finite up to \|z\| = 30, but is"):
            hermite(fn, 2)
    traced = jax.jit(lambda p: hermite(lambda z: z**p, 2))(250)
    assert not np.any(np.isfinite(traced[::2]))
    with pytest.raises(TypeError, match=r"`fn\(z\)` must be real"):
        hermite(lambda z: jax.lax.complex(z, z), 2)
    with pytest.raises(ValueError, match="from 0 to 100, got 101"):
        hermite(jnp.sin, 101)
    with pytest.raises(ValueError, match="`fn` must be elementwise"):
        hermite(jnp.sum, 1)
