"""Data of every shape, and problems of them, that the tests of problems share."""

import numpy as np
import pytest

import dlnjax as dln

SHAPES = {"n > d": (6, 4), "n < d": (3, 5), "rank 2 of 4": (6, 4)}


def data_of(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    n, d = SHAPES[name]
    X = rng.normal(size=(n, d))
    if name == "rank 2 of 4":
        X = X[:, :2] @ rng.normal(size=(2, d))
    return X, rng.normal(size=n)


def least_squares_of(X, y, decay=0.3):
    return dln.LeastSquares(X, y, weight_decay=decay)


def quadratic_of(X, y, decay=0.3):
    return dln.Quadratic(X.T @ X, X.T @ y, constant=0.5 * np.sum(y**2), weight_decay=decay)


EVERY_SHAPE = pytest.mark.parametrize("name", SHAPES)


def points_of(d, batch):
    return np.random.default_rng(len(batch)).normal(size=(*batch, d))


def relative(a, b):
    return np.max(np.abs(np.asarray(a) - b)) / np.max(np.abs(b))


BROADCASTS = pytest.mark.parametrize(
    "points, mus, batch",
    [((), (5,), (5,)), ((5,), (), (5,)), ((4,), (3, 1), (3, 4)), ((2, 4), (4,), (2, 4))],
)
