"""Piecewise linear paths: hand-made ones, whose every value is known."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import kkt_violation

import dlnjax as dln


def _path(knots, values, slopes, num_knots=None, positive=False, weights=None):
    values = np.asarray(values, float)
    if values.ndim == 1:
        values, slopes = values[:, None], np.asarray(slopes, float)[:, None]
    K, d = values.shape
    return dln.PiecewiseLinearPath(
        knots=jnp.asarray(knots, float),
        values=jnp.asarray(values),
        slopes=jnp.asarray(slopes, float),
        num_knots=jnp.asarray(K if num_knots is None else num_knots, jnp.int32),
        weights=jnp.ones((2, d)) if weights is None else jnp.asarray(weights),
        norms=jnp.ones(d),
        result=cast(dln.RESULTS, dln.RESULTS.successful),
        stats={},
        positive=positive,
    )


def _pad(path, rows):
    """The same path with its last knot repeated."""
    repeat = lambda a: jnp.concatenate([a] + rows * [a[-1:]])
    return _path(repeat(path.knots), repeat(path.values), repeat(path.slopes), len(path.knots))


# Up from 1, a plateau of z from 2 to 4, then down for ever; a coordinate that stays 0.
SIMPLE = _path([1, 2, 4], [[0, 0], [2, 0], [2, 0]], [[2, 0], [0, 0], [-0.5, 0]])
TRIVIAL = _path([0, 0], [[0, 0]] * 2, [[0, 0]] * 2, num_knots=0)

_x = jax.jit(lambda path, p: path.x(p))
_all = jax.jit(lambda path, p: (path.z(p), path.x(p), path.slope(p)))
_is_monotone = jax.jit(lambda path: path.is_monotone())
_down = jax.jit(lambda path, p: path.downward_variation(p))


@pytest.mark.parametrize("rows", [0, 3])
def test_values_of_a_simple_path(rows):
    path = _pad(SIMPLE, rows)
    p = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 5, 8, 1e9])
    z = np.array([0, 0, 0, 1, 2, 2, 2, 1.5, 0, 2 - 0.5 * (1e9 - 4)])
    slope = np.array([0, 0, 2, 2, 0, 0, -0.5, -0.5, -0.5, -0.5])
    got_z, got_x, got_slope = _all(path, p)
    np.testing.assert_allclose(got_z[:, 0], z, rtol=1e-15)
    np.testing.assert_allclose(got_x[:, 0], z / np.where(p > 0, p, 1), rtol=1e-14)
    np.testing.assert_array_equal(got_slope[:, 0], slope)  # right-continuous at the knots
    for value in (got_z, got_x, got_slope):
        np.testing.assert_array_equal(value[:, 1], 0)


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0,), (2, 0, 3)])
def test_any_shape_of_p(shape):
    p = np.linspace(0, 6, int(np.prod(shape))).reshape(shape)
    z, x, slope = _all(SIMPLE, p)
    assert z.shape == x.shape == slope.shape == (*shape, 2)
    flat_z, flat_x, flat_slope = _all(SIMPLE, p.reshape(-1))
    np.testing.assert_array_equal(z, flat_z.reshape(z.shape))
    np.testing.assert_array_equal(x, flat_x.reshape(x.shape))
    np.testing.assert_array_equal(slope, flat_slope.reshape(slope.shape))
    assert _down(SIMPLE, p).shape == shape


def test_numbers_and_single_precision_in():
    for p in (3.0, np.float32(3), np.float64(3)):
        z = SIMPLE.z(p)
        assert z.dtype == jnp.float64
        np.testing.assert_array_equal(z, [2, 0])


def test_infinite_p_is_the_slope_of_the_last_ray():
    np.testing.assert_array_equal(_x(SIMPLE, np.inf), [-0.5, 0])
    np.testing.assert_array_equal(_x(SIMPLE, np.array([2.0, np.inf]))[1], [-0.5, 0])
    assert abs(float(_x(SIMPLE, 1e300)[0]) + 0.5) < 1e-15


def test_exact_zeros_at_a_drop_survive():
    # z leaves 0 at a knot that is no round number, comes back, and stays there.
    knots = np.array([1 / 3, 1 / 3 + 0.1, 7 / 9])
    values = np.array([0, 1.7, 0])
    slopes = np.append(np.diff(values) / np.diff(knots), 0)
    path = _path(knots, values, slopes)
    np.testing.assert_array_equal(_x(path, np.array([7 / 9, 0.8, 1.5, 3.0, 1e8, np.inf])), 0)
    np.testing.assert_array_equal(_x(path, np.array([0, 0.3, 1 / 3])), 0)


def test_knots_may_coincide():
    path = _path([1, 2, 2, 3], [0, 1, 1, 0], [1, 5, -1, 0])
    p = np.array([1.9, 2.0, 2.5])
    z, x, slope = _all(path, p)
    np.testing.assert_allclose(z[:, 0], [0.9, 1, 0.5], rtol=1e-14)
    np.testing.assert_allclose(x[:, 0] * p, z[:, 0], rtol=1e-14)
    np.testing.assert_array_equal(slope[:, 0], [1, -1, -1])


def test_path_without_knots():
    p = np.array([0, 1.0, 1e9])
    for value in _all(TRIVIAL, p):
        np.testing.assert_array_equal(value, np.zeros((3, 2)))
    np.testing.assert_array_equal(_x(TRIVIAL, np.inf), [0, 0])
    assert _is_monotone(TRIVIAL)
    np.testing.assert_array_equal(_down(TRIVIAL, p), 0)
    problem = dln.LeastSquares(np.eye(2), np.zeros(2))
    np.testing.assert_array_equal(TRIVIAL.kkt_residual(problem), 0)


def test_batches_of_paths():
    other = _path([1, 2, 4], [[0, 0], [1, 0], [1, 3]], [[1, 0], [0, 1.5], [2, 2]])
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), SIMPLE, other)
    p = np.array([[1.5, 5.0], [3.0, np.inf]])
    x = jax.vmap(lambda path, p: path.x(p))(both, p)
    np.testing.assert_allclose(x[:, :, 0], [[1 / 1.5, 0.3], [1 / 3, 2]], rtol=1e-15)
    monotone = jax.vmap(lambda path: path.is_monotone())(both)
    assert monotone.tolist() == [False, True]


# --- monotonicity ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, slopes, want",
    [
        ([0, 1, 1], [1, 0, 2], True),
        ([0, 1, 1], [1, 0, -1], False),  # only the last ray decreases
        ([0, 1, 0.5], [1, -0.5, 1], False),  # only a middle segment does
        ([0, -1, -1], [-1, 0, -2], True),
        ([0, -1, -0.5], [-1, 0.5, -1], False),
        ([0, 1, -1], [1, -2, -1], False),  # through 0: (z)₊ comes down
        ([0, 0, 1], [0, 1, 0], True),
        ([0, 1, 0], [1, -1, -1], False),  # down to 0, and on from there
        ([0, 1, 1 - 1e-12], [1, -1e-12, 1], True),  # rounding
        ([0, 1, 1], [1, 0, -1e-12], True),  # rounding of a slope of 0
        ([0, 1, 1], [1, 0, -1e-6], False),
        ([0, 1, 1], [1, 0, 0], True),
        ([0, 1, 1 - 1e-6], [1, -1e-6, 1], False),
    ],
)
@pytest.mark.parametrize("rows", [0, 2])
@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_is_monotone(values, slopes, want, rows, scale):
    # A second, increasing coordinate sets the scale against which rounding is measured.
    values = np.stack([values, [0, 1, 2]], axis=1)
    slopes = np.stack([slopes, [1, 1, 1]], axis=1)
    path = _pad(_path([1, 2, 3], scale * values, scale * slopes), rows)
    assert bool(_is_monotone(path)) is want


def test_tolerance_of_is_monotone():
    path = _path([1, 2], [0, 1], [1, -1e-4])
    assert not path.is_monotone()
    assert not path.is_monotone(tol=1e-5)
    path = _path([1, 2, 3], [[0, 0], [1, 1], [1 - 1e-4, 2]], [[1, 1], [-1e-4, 1], [1, 1]])
    assert not path.is_monotone(tol=1e-5)
    assert path.is_monotone(tol=1e-3)


# --- downward variation ------------------------------------------------------------------------


def _random_path(seed, K=6, d=3):
    rng = np.random.default_rng(seed)
    knots = np.cumsum(rng.integers(1, 4, K)) / 2
    values = rng.normal(size=(K, d))
    values[0] = 0
    values[rng.uniform(size=(K, d)) < 0.2] = 0
    slopes = np.diff(values, axis=0) / np.diff(knots)[:, None]
    return _path(knots, values, np.concatenate([slopes, rng.normal(size=(1, d))]))


def test_downward_variation_is_its_integral():
    h = 1e-4
    grid = np.arange(0, 12 + h / 2, h)  # the knots are multiples of ½, hence on it
    for seed in range(10):
        path = _random_path(seed)
        knots = np.asarray(path.knots)
        z = np.asarray(_all(path, grid)[0])
        parts = np.stack([np.maximum(z, 0), np.maximum(-z, 0)])
        fall = np.maximum(-np.diff(parts, axis=1), 0).sum(axis=(0, 2))
        # Midpoint rule: exact but where a coordinate crosses 0 within a cell, O(h²).
        integral = np.append(0, np.cumsum((1 + grid[:-1] + h / 2) * fall))
        some = np.linspace(0, len(grid) - 1, 25).astype(int)
        got = np.asarray(_down(path, grid[some]))
        np.testing.assert_allclose(got, integral[some], atol=1e-6)
        assert got[-1] > 0.1  # there was something to measure
        assert knots[-1] < 12  # the last ray included
        padded = _pad(path, 2)
        np.testing.assert_allclose(_down(padded, grid[some]), got, rtol=1e-14)


def test_downward_variation_of_monotone_paths_is_zero():
    path = _path([1, 2, 3], [[0, 0], [1, 0], [1, -2]], [[1, 0], [0, -2], [3, -1]])
    np.testing.assert_array_equal(_down(path, np.array([0, 1.5, 2.5, 10, np.inf])), 0)


def test_downward_variation_by_hand():
    # z = 2 until u = 4, then down at ½ until it reaches 0 at u = 8; below 0 it grows.
    # ½ ∫₄ᵖ (1 + u) du.
    p = np.array([4, 5, 8, 20, np.inf])
    end = np.minimum(p, 8)
    want = 0.5 * ((end - 4) + (end**2 - 16) / 2)
    np.testing.assert_allclose(_down(SIMPLE, p), want, rtol=1e-14)


def test_nothing_is_claimed_beyond_the_end_of_a_cut_path():
    # What `lasso_path` returns when `max_knots` was too small.
    path = _path([1, 2, 4], [0, 2, 1], [2, -0.5, np.nan])
    p = np.array([1.0, 3.0, 5.0, np.inf])
    known = [True, True, False, False]
    for value in _all(path, p):
        assert np.isfinite(value[:, 0]).tolist() == known
    assert np.isfinite(_down(path, p)).tolist() == known


def test_downward_variation_against_is_monotone():
    for seed in range(10):
        path = _random_path(seed)
        assert bool(_is_monotone(path)) == (float(_down(path, np.inf)) == 0)


# --- optimality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_kkt_residual_is_the_violation(decay):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(5, 3)), rng.normal(size=5)
    X = X / np.linalg.norm(X, axis=0)  # the units of the violation
    problem = dln.LeastSquares(X, y, weight_decay=decay)
    for path in (_random_path(1), _random_path(2)):
        knots = np.asarray(path.knots)
        middle = np.append((knots[1:] + knots[:-1]) / 2, 2 * knots[-1])
        at = lambda p, path=path: kkt_violation(X, y, np.asarray(_x(path, p)), decay + 1 / p)
        want = np.maximum(at(knots), at(middle)) / np.abs(X.T @ y).max()
        got = jax.jit(lambda path: path.kkt_residual(problem))(path)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        padded = np.asarray(jax.jit(lambda path: path.kkt_residual(problem))(_pad(path, 2)))
        np.testing.assert_allclose(padded, np.append(want, [0, 0]), rtol=1e-12)


def test_kkt_residual_of_a_closed_form():
    # Orthonormal design: x(μ) = S(y, ω/μ), z = S(μ y, ω), one knot per coordinate.
    y = np.array([3.0, -2.0, 0.5])
    weights = np.array([[1.0, 7, 2], [9, 1.5, 5]])
    problem = dln.LeastSquares(np.eye(3), y)
    omega = np.where(y > 0, weights[0], weights[1])
    knots = np.sort(omega / np.abs(y))
    soft = lambda mu: np.sign(y) * np.maximum(mu[:, None] * np.abs(y) - omega, 0)
    slopes = np.where(knots[:, None] >= omega / np.abs(y), y, 0)
    for positive in (False, True):
        one_sided = lambda z, positive=positive: np.maximum(z, 0) if positive else z
        values, rates = one_sided(soft(knots)), one_sided(slopes)
        residual = jax.jit(lambda path: path.kkt_residual(problem))
        path = _path(knots, values, rates, positive=positive, weights=weights)
        assert np.max(residual(path)) < 1e-15
        other = _path(knots, values, rates, positive=positive)
        assert np.max(residual(other)) > 0.01
    assert np.isinf(residual(_path(knots, soft(knots), slopes, positive=True))).any()


def test_values_end_where_the_next_segment_begins():
    """A slope that rounding makes too steep, as where columns are almost dependent, does not carry
    `z` past its value at the next knot: found by `python -m benchmarks.fuzz` (columns 5e-10 apart,
    slopes of 1e4; the sign of one coordinate was kept and its twin was not moved)."""
    path = _path([1, 2, 3], [[0, 0], [1, 2], [3, 0]], [[1 + 1e-6, 2], [2, -2 - 1e-5], [1, 0]])
    before = np.nextafter(np.array([2.0, 3.0]), 0)
    np.testing.assert_allclose(path.z(before), [[1, 2], [3, 0]], rtol=0, atol=1e-14)
