"""Centring and scaling: exact where a column is constant, far from 0, large or small."""

import numpy as np
import pytest
from sklearn.linear_model import lars_path

from dlnjax._standardize import standardized
from dlnjax.cli.data import DataError, Dataset, load, standardize


def make(X, y, name="made"):
    X, y = np.array(X, np.float64), np.array(y, np.float64)
    return Dataset(name, X, y, [f"c{j}" for j in range(X.shape[1])], "response")


def test_standardize():
    rng = np.random.default_rng(0)
    raw = make(5 + 10 * rng.normal(size=(20, 3)), 7 + rng.normal(size=20))
    X, y = raw.X.copy(), raw.y.copy()
    data = standardize(raw)
    assert data._replace(X=raw.X, y=raw.y) == raw  # names are kept
    np.testing.assert_array_equal(raw.X, X)  # and the input is not written to
    np.testing.assert_array_equal(raw.y, y)
    centred = X - X.mean(axis=0)
    np.testing.assert_allclose(data.X, centred / np.sqrt((centred**2).sum(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(data.y, y - y.mean(), rtol=1e-12)


def test_standardize_twice_changes_nothing():
    once = standardize(load("diabetes-quadratic"))
    twice = standardize(once)
    np.testing.assert_allclose(twice.X, once.X, rtol=0, atol=1e-14)
    np.testing.assert_allclose(twice.y, once.y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 0.1, 1e12 + 0.1, 1e-300])
def test_constant_column_becomes_zero(value):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3))
    X[:, 1] = value
    data = standardize(make(X, rng.normal(size=30)))
    assert data.X.shape == (30, 3)
    assert not data.X[:, 1].any()
    np.testing.assert_allclose(np.linalg.norm(data.X[:, [0, 2]], axis=0), 1, rtol=1e-14)


def test_rounding_noise_is_constant():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    X[:, 0] = 0.1 + 1e-16 * rng.normal(size=30)
    assert not standardize(make(X, X[:, 1])).X[:, 0].any()


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_standardize_at_any_scale(scale):
    rng = np.random.default_rng(0)
    X, y = rng.uniform(-1, 1, (20, 2)), rng.uniform(-1, 1, 20)
    expected, data = standardize(make(X, y)), standardize(make(scale * X, scale * y))
    np.testing.assert_allclose(data.X, expected.X, rtol=1e-7)
    np.testing.assert_allclose(data.y, scale * expected.y, rtol=1e-7)


@pytest.mark.parametrize("offset", [1e8, -1e12, 1e15])
def test_standardize_with_a_large_offset(offset):
    """Whole numbers, whose sums and differences are exact: no digit of the variation is lost."""
    signal = np.arange(20.0)
    data = standardize(make((offset + signal)[:, None], offset + signal))
    centred = signal - signal.mean()
    np.testing.assert_allclose(data.y, centred, rtol=1e-14)
    np.testing.assert_allclose(data.X[:, 0], centred / np.linalg.norm(centred), rtol=1e-14)
    assert abs(data.X.sum()) < 1e-14


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_estimators_can_go_back(center, each):
    rng = np.random.default_rng(0)
    raw = make(1e6 + rng.normal(size=(20, 3)) * [1, 0, 1e5], 7 + rng.normal(size=20))
    part = standardized(raw.X, raw.y, center, each)
    scale = np.where(np.isfinite(part.X_scale), part.X_scale, 0)
    np.testing.assert_allclose(part.X * scale + part.X_mean, raw.X, rtol=1e-14)
    np.testing.assert_allclose(part.y * part.y_scale + part.y_mean, raw.y, rtol=1e-14)
    size = np.linalg.norm(part.X, axis=0)
    np.testing.assert_allclose([np.linalg.norm(part.y), size.max()], 1, rtol=1e-14)
    if center:
        assert not part.X[:, 1].any() and (size[0] < 1e-4) == (not each)
    if center and each:
        np.testing.assert_array_equal(part.X, standardize(raw).X)


@pytest.mark.parametrize("y", [[5, 5, 5], [0, 0, 0], [0.1, 0.1, 0.1]])
def test_constant_target_is_refused(y):
    with pytest.raises(DataError, match=r"'response' is constant \(\d.*n = 3.*another --target"):
        standardize(make(np.eye(3), y))


def test_single_row_is_refused():
    with pytest.raises(DataError, match=r"constant \(4 in every row, n = 1\).*add rows"):
        standardize(make([[1, 2]], [4]))


def test_constant_features_are_refused():
    with pytest.raises(DataError, match="Every feature is constant.*'c0', 'c1'.*Add a column"):
        standardize(make([[1, 2], [1, 2]], [1, 2]))


def test_diabetes_reproduces_the_order_of_the_lars_paper():
    data = standardize(load("diabetes"))
    order = lars_path(data.X, data.y, method="lar")[1]
    # Efron et al. (2004), Figure 3, which numbers the columns from 1.
    assert [int(j) + 1 for j in order] == [3, 9, 4, 7, 2, 10, 5, 8, 6, 1]


def test_diabetes_quadratic_standardized():
    data = standardize(load("diabetes-quadratic"))
    np.testing.assert_allclose(np.linalg.norm(data.X, axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(data.X.mean(axis=0), 0, atol=1e-16)
    assert np.linalg.matrix_rank(data.X) == 64
    # The strongest single effects are main effects, as on the 10 columns.
    first = np.argsort(-np.abs(data.X.T @ data.y))[:3]
    assert {data.columns[j] for j in first} == {"bmi", "s5", "bp"}
