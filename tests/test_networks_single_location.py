"""Attention to one token: the network on the manifold, and the risk and flow of five scalars."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import ArrayLike
from scipy.integrate import quad, solve_ivp
from scipy.special import erf, owens_t

import dlnjax as dln
from dlnjax._results import names_of
from dlnjax.networks import SingleLocation
from dlnjax.papers import mbbb24
from dlnjax.papers.mbbb24 import Scalars, Setting

D, LAM, GAMMA = 400.0, 0.1, 0.5**0.5
FORM = dln.WeightForm()
POINTS = np.array([[0.3, 0.4, 0.2, -0.1, 0.25], [-0.5, 0.2, 0.1, 0.3, -0.4], [0.9, -0.8, 0, 0, 0]])


def _normal(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _expected(fn):
    return quad(lambda x: fn(x) * _normal(x), -12, 12, epsabs=1e-13, limit=200)[0]


def _zeta(t, g):
    return _expected(lambda x: erf(t + g * x) ** 2)


def _risk(point, d, lam, gamma, length):
    """The risk by quadrature on the joint law of the three normals of a token."""
    kappa, nu, theta, eta, rho = point
    half = np.sqrt(d / 2)
    root = np.linalg.cholesky(np.array([[1, rho, theta], [rho, 1, nu], [theta, nu, 1]]))
    z, w = np.polynomial.hermite_e.hermegauss(60)
    few, of_few = np.polynomial.hermite_e.hermegauss(4)
    w, of_few = w / w.sum(), of_few / of_few.sum()
    a, b, c = root @ np.stack(np.meshgrid(z, few, few, indexing="ij")).reshape(3, -1)
    weight = (w[:, None, None] * of_few[:, None] * of_few).ravel()
    off = erf(lam * (half * kappa + gamma * a)) * (half * eta + gamma * b) - gamma * c
    other = erf(lam * a) * b
    mean = weight @ other
    return (
        weight @ off**2
        + (length - 1) * (weight @ other**2 + 2 * (weight @ off) * mean)
        + (length - 1) * (length - 2) * mean**2
    )


def _slopes(kappa, nu, d=D, lam=LAM, gamma=GAMMA):
    """The derivatives of the risk on the manifold in `κ` and `ν`, in closed form."""
    c, g = lam * np.sqrt(d / 2), lam * gamma
    wide, t = 1 + 2 * g**2, c * kappa
    bell = 2 / np.sqrt(np.pi) * np.exp(-(t**2) / wide) / np.sqrt(wide)
    of_zeta = 2 * bell * erf(t / np.sqrt((1 + 4 * g**2) * wide))
    return gamma**2 * c * (of_zeta - 2 * nu * bell), -2 * gamma**2 * erf(t / np.sqrt(wide))


def _at(point):
    return Scalars(*map(jnp.asarray, np.asarray(point, float)))


def _network(kappa: ArrayLike = 0.05, nu: ArrayLike = -0.02, **options):
    return SingleLocation(kappa, nu, **(dict(dimension=D, lam=LAM, gamma=GAMMA) | options))


def _twice_loss(kappa, nu, d, lam, gamma):
    """`E[1 − 2νt + t²]`."""
    t, g = lam * np.sqrt(d / 2) * kappa, lam * gamma
    return 1 - 2 * nu * _expected(lambda x: erf(t + g * x)) + _zeta(t, g)


def test_flow_against_scipy_on_the_manifold_and_lanes_that_fail_alone():
    s = np.array([0.0, 0.5, 2, 10, 80])
    problem = dln.LeastSquares(jnp.eye(3), _network().target())

    def run(kappa, nu, d, lam, gamma):
        network = _network(kappa, nu, dimension=d, lam=lam, gamma=gamma)
        flow = dln.gradient_flow(network, problem, s, eps=0.5, formulation=FORM, throw=False)
        return 2 * jax.vmap(problem.loss)(flow.x), flow.result

    good = [[0.05, -0.02, D, LAM, GAMMA], [0.6, 0.3, D, LAM, GAMMA], [0.1, 0.2, 100.0, 3.0, 1.0]]
    point, bad = good[1], [[0.0, 0.0, D, LAM, GAMMA]]
    values = (
        (1.0, -1.0, 1.5),
        (1.0, -1.5),
        (0.0, np.inf),
        (-0.5, 0.0, np.inf),
        (-1.0, 0.0, np.nan),
    )
    for i, some in enumerate(values):
        bad += [[*point[:i], value, *point[i + 1 :]] for value in some]
    loss, result = jax.jit(jax.vmap(run))(*np.array(good + bad).T)
    names = ["successful"] * len(good) + ["invalid_shape"] * len(bad)
    assert names_of(result).tolist() == names
    assert np.all(np.isnan(loss[len(good) :]))
    for found, (kappa, nu, *of) in zip(loss, good, strict=False):

        def field(_, y, of=of):
            of_kappa, of_nu = _slopes(*y, *of)
            return [-(1 - y[0] ** 2) * of_kappa, -(1 - y[1] ** 2) * of_nu]

        exact = solve_ivp(field, (0, 80), [kappa, nu], "DOP853", s, rtol=1e-11, atol=1e-13).y
        # Steps are to 1e-8, and quad to 1e-13.
        np.testing.assert_allclose(found, [_twice_loss(*y, *of) for y in exact.T], atol=1e-7)


def test_loss_and_its_derivatives_at_any_noise():
    def loss(point):
        kappa, nu, d, lam, gamma = point
        network = _network(kappa, nu, dimension=d, lam=lam, gamma=gamma)
        return jnp.sum((network.target() - network()) ** 2)

    near = 1 - 1e-6
    # Up to 300 standard deviations: in the last two rows erf is ±1 to all digits.
    points = [
        [0.1, 0.2, 100.0, 0.01, 0.01],
        [0.1, 0.2, 100.0, 3.0, 1.0],
        [0.0, near, 100.0, 3.0, 30.0],
        [-0.4, 0.3, 10.0, 1e3, 2.0],
        [near, near, 2e4, 3.0, 0.1],
        [-near, -near, 1e8, 1.0, 1e-3],
    ]
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(loss)))(np.array(points))
    for i, (kappa, nu, d, lam, gamma) in enumerate(points):
        t, g = lam * np.sqrt(d / 2) * kappa, lam * gamma
        mean = erf(t / np.sqrt(1 + 2 * g**2))
        square = 1 - 8 * owens_t(2**0.5 * t / np.sqrt(1 + 2 * g**2), 1 / np.sqrt(1 + 4 * g**2))
        np.testing.assert_allclose(value[i], 1 - 2 * nu * mean + square, rtol=1e-12, atol=1e-15)
        # `_slopes` are those of the risk, γ² times this. An angle near ±π/2 has its rounding, of
        # 1e-16 beside the 1e-3 that 1 − ν = 1e-6 is away.
        exact = np.array(_slopes(kappa, nu, d, lam, gamma)) / gamma**2
        np.testing.assert_allclose(slope[i, :2], exact, rtol=1e-10, atol=1e-13)
    assert np.all(np.isfinite(slope))


def test_zeta_and_its_derivatives():
    zeta = jax.jit(jax.value_and_grad(mbbb24.zeta, (0, 1)))
    h = 1e-5
    for t, g in ((0.3, 0.2), (0.1, 0.9), (2.5, 0.4), (-0.7, 1.0), (11.0, 0.01)):
        value, slopes = zeta(jnp.asarray(t), jnp.asarray(g))
        np.testing.assert_allclose(value, _zeta(t, g), atol=1e-13)
        exact = [_zeta(t + h, g) - _zeta(t - h, g), _zeta(t, g + h) - _zeta(t, g - h)]
        np.testing.assert_allclose(slopes, np.array(exact) / (2 * h), atol=1e-8)
    # The value in the derivative of the risk in η is ζ(t, g); the published code has ζ(g, t).
    point = np.array([0.9, 0.5, 0, 0.3, 0])
    of = Setting(40.0, 0.3, 0.7, 1.0)
    slope = jax.grad(lambda eta: mbbb24.risk(_at(point)._replace(eta=eta), of))(jnp.asarray(0.3))
    up, down = (_risk(point + [0, 0, 0, e, 0], 40.0, 0.3, 0.7, 1.0) for e in (h, -h))
    t, g = 0.3 * np.sqrt(20) * 0.9, 0.3 * 0.7
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-8)
    np.testing.assert_allclose(slope, 40 * 0.3 * _zeta(t, g), rtol=1e-12)
    assert abs(_zeta(g, t) / _zeta(t, g) - 1) > 0.2


def test_risk_and_velocity_off_the_manifold():
    setting = (40.0, 0.3, 0.7, 5.0)
    of = Setting(*setting)
    risks = jax.jit(lambda at: (mbbb24.risk(at, of), mbbb24.velocity(at, of)))
    for point in POINTS:
        value, velocity = risks(_at(point))
        np.testing.assert_allclose(value, _risk(point, *setting), rtol=1e-12)
        # Vectors of R^6 with these scalars, and the projected gradient by differences.
        kappa, nu, theta, eta, rho = point
        k = np.array([kappa, theta, np.sqrt(1 - kappa**2 - theta**2), 0, 0, 0])
        along = (rho - kappa * eta - theta * nu) / k[2]
        v = np.array([eta, nu, along, np.sqrt(1 - eta**2 - nu**2 - along**2), 0, 0])

        def scalars(k, v):
            return np.array([k[0], v[1], k[1], v[0], k @ v])

        h = 1e-6
        of_k, of_v = np.zeros((2, 6))
        for i, e in enumerate(h * np.eye(6)):
            ends = [_risk(scalars(k + f * e, v), *setting) for f in (1, -1)]
            of_k[i] = (ends[0] - ends[1]) / (2 * h)
            ends = [_risk(scalars(k, v + f * e), *setting) for f in (1, -1)]
            of_v[i] = (ends[0] - ends[1]) / (2 * h)
        dk, dv = -(of_k - (of_k @ k) * k), -(of_v - (of_v @ v) * v)
        exact = [dk[0], dv[1], dk[1], dv[0], dk @ v + k @ dv]
        np.testing.assert_allclose(np.stack(velocity), exact, rtol=1e-7, atol=1e-7)


def test_claims_hold():
    for row in mbbb24.risks() + mbbb24.manifold():
        assert row.holds, f"{row.claim}: stated {row.stated}, measured {row.measured}"


def test_bad_input_says_what_to_do():
    with pytest.raises(ValueError, match="`kappa` must be between −1 and 1, got 2.0"):
        _network(2.0)
    with pytest.raises(ValueError, match="`nu` must be between −1 and 1, got -1.0. At ±1"):
        _network(nu=-1.0)
    with pytest.raises(ValueError, match="both 0, a saddle"):
        _network(0.0, 0.0)
    with pytest.raises(ValueError, match="`lam` must be positive"):
        _network(lam=0.0)
    with pytest.raises(ValueError, match="`nu`"):
        _network(nu=np.zeros(2))
    network = _network()
    with pytest.raises(ValueError, match="takes no weight decay"):
        problem = dln.LeastSquares(jnp.eye(3), network.target(), 0.1)
        dln.gradient_flow(network, problem, np.ones(1), eps=0.5, formulation=FORM)
    assert np.isnan(jax.jit(lambda decay: network.penalty(decay))(0.1))
