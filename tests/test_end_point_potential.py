"""The potentials: against quadrature, each other, and their limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

import dlnjax as dln

DEPTHS = [2, 2.1, 2.5, 3.0, 4.0, 10.0]
EVERY_DEPTH = pytest.mark.parametrize("D", DEPTHS)
Z = np.concatenate([-np.geomspace(1e-12, 1e12, 13), np.geomspace(1e-12, 1e12, 13)])


def _h(g, D):
    """[Woo20], as it stands there."""
    return (1 - g) ** (-D / (D - 2)) - (1 + g) ** (-D / (D - 2))


@EVERY_DEPTH
@pytest.mark.parametrize("z", [0.01, 0.7, 3.0, 5.0])
def test_against_quadrature(D, z):
    if D == 2:
        inverse = lambda a: math.asinh(a / 2)
        assert abs(dln.potential(z) - (2 - math.sqrt(4 + z**2) + z * inverse(z))) < 1e-14
    else:
        inverse = lambda a: brentq(lambda g: _h(g, D) - a, 0, 1 - 1e-9, xtol=1e-15)
    want, error = quad(inverse, 0, z, epsabs=0, epsrel=1e-12)
    assert error < 1e-11 * want
    np.testing.assert_allclose(dln.potential(z, D), want, rtol=1e-11)
    np.testing.assert_allclose(dln.mirror_map(z, D), np.array(inverse(z)), rtol=1e-12)


@EVERY_DEPTH
def test_mirror_maps_are_inverses(D):
    g = np.asarray(dln.mirror_map(Z, D))
    # Beyond, 1 − |g| has no digits left.
    kept = abs(g) < (1 - 1e-3 if D > 2 else np.inf)
    assert kept.sum() >= 12
    np.testing.assert_allclose(dln.inverse_mirror_map(g, D)[kept], Z[kept], rtol=1e-12)
    np.testing.assert_allclose(dln.mirror_map(-Z, D), -g, rtol=1e-15)


def test_tiny_and_huge():
    # q ≈ z²/(4k), with k = D/(D − 2); and at depth 3, where z = (1 − g)⁻³ − 1/8 + O(1 − g),
    # q = |z| − (3/2)|z|^{2/3} + 7/8 + O(|z|^{−1/3}).
    for D, k in ((2, 1.0), (3.0, 3.0), (4.0, 2.0)):
        z = np.array([1e-150, 1e-20, 1e-9])
        np.testing.assert_allclose(dln.potential(z, D), z**2 / (4 * k), rtol=1e-14)
    z = np.array([1e12, 1e40, 1e300])
    np.testing.assert_allclose(dln.potential(z), z * (np.log(z) - 1) + 2, rtol=1e-14)
    np.testing.assert_allclose(dln.potential(z, 3.0), z - 1.5 * z ** (2 / 3) + 7 / 8, rtol=1e-14)
    assert dln.potential(0.0) == dln.potential(0.0, 3.0) == 0


def test_depth_two_is_the_limit():
    z = np.array([0.1, 1.0, 5.0])
    D = 2 + 1e-7
    np.testing.assert_allclose(dln.potential(z, D) * D / (D - 2), dln.potential(z), rtol=1e-6)


@EVERY_DEPTH
def test_derivatives(D):
    z = np.array([-1e8, -3.0, -1e-6, 0.0, 0.5, 1e3, 0.499, 0.501])

    @jax.jit
    @jax.vmap
    def derivatives(z):
        first = jax.grad(lambda z: dln.potential(z, D))
        second, g = jax.grad(first), dln.mirror_map(z, D)
        slope = jax.grad(lambda g: dln.inverse_mirror_map(g, D))(g)
        return first(z), g, second(z), slope, jax.grad(second)(z)

    gradient, g, curvature, slope, third = map(np.asarray, derivatives(z))
    np.testing.assert_allclose(gradient, g, rtol=1e-14)
    # The mirror map and its inverse have reciprocal slopes.
    np.testing.assert_allclose((curvature * slope)[1:5], 1, rtol=1e-12)
    np.testing.assert_allclose(third[4], (curvature[7] - curvature[6]) / 0.002, rtol=1e-5)


def test_derivative_in_the_depth():
    got = jax.grad(lambda D: dln.potential(3.0, D))(jnp.asarray(3.0))
    step = 1e-5
    want = (dln.potential(3.0, 3 + step) - dln.potential(3.0, 3 - step)) / (2 * step)
    np.testing.assert_allclose(got, want, rtol=1e-8)


def test_bad_depth():
    for D in (1.9, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="D ≥ 2"):
            dln.potential(1.0, D)
