"""Regression data without units, in sizes that compiled programs can share."""

from typing import Any, NamedTuple

import numpy as np


class Centered(NamedTuple):
    """Columns less their mean, times the roots of weights of rows, in units in which no square
    overflows or is lost."""

    values: np.ndarray  # exactly 0 where a column is constant
    # Of each column, or numbers if there is one, `(n,)`:
    norm: Any  # of `values`
    unit: Any
    mean: Any  # in the units of the data


def centered(a: np.ndarray, center: bool = True, weight: np.ndarray | None = None) -> Centered:
    """Centre the columns of `a`, `(n, d)`, or `a` itself, `(n,)`; or only choose the units. Sums
    over rows count each with its `weight`, `(n,)`."""
    root = 1.0 if weight is None else np.sqrt(weight).reshape(-1, *[1] * (a.ndim - 1))
    # A power of 2 of the size of the largest entry: dividing by it rounds nothing.
    unit = np.ldexp(1.0, np.frexp(np.max(np.abs(a), axis=0, initial=0))[1] - 1)
    a = a / unit
    # What is left of a constant column is rounding, of which this is some: do not scale it up.
    least = 10 * np.finfo(a.dtype).eps * np.linalg.norm(root * a, axis=0)
    mean = np.zeros(a.shape[1:])
    # Twice, since the first mean is rounded: that matters where it dwarfs the variation.
    for _ in range(2 if center else 0):
        rest = np.average(a, axis=0, weights=weight)
        a, mean = a - rest, mean + rest
    a = root * a
    a = np.where(np.linalg.norm(a, axis=0) > least, a, 0)
    return Centered(a, np.linalg.norm(a, axis=0), unit, mean * unit)


class Standardized(NamedTuple):
    """Centred columns and response of norm 1, and what it takes to go back."""

    X: np.ndarray
    y: np.ndarray
    X_mean: np.ndarray
    y_mean: np.floating
    X_scale: np.ndarray  # inf where a column is constant
    y_scale: np.floating
    unit: float  # the norm of the columns whose lasso this is


def standardized(
    X: np.ndarray, y: np.ndarray, center: bool, each: bool, weight: np.ndarray | None = None
) -> Standardized:
    """Centre `X` and `y`, or not; scale `y` to norm 1, and `each` column, or only the largest. Rows
    have a `weight` of mean 1."""
    columns, response = centered(X, center, weight), centered(y, center, weight)
    size = columns.norm * columns.unit
    largest = np.max(size, initial=0)
    scale = np.where(columns.norm > 0, size if each else largest, np.inf)
    return Standardized(
        X=columns.values / (scale / columns.unit),
        y=response.values / (response.norm or 1),
        X_mean=columns.mean,
        y_mean=response.mean,
        X_scale=scale,
        y_scale=response.norm * response.unit,
        unit=float(len(y) ** 0.5 if each else largest),
    )


def padded_size(size: int) -> int:
    """`size` rounded up to a multiple of 16, or of an eighth of the next power of two: data of
    similar sizes share a compiled program, at no more than 1/4 above `size` (or 16)."""
    step = max(16, 2 ** ((size - 1).bit_length() - 3))
    return -(-size // step) * step


def padded(X: np.ndarray, y: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The same problem in a given number of rows and columns. Rows and columns of 0 change nothing,
    nor does an orthogonal transformation of the rows: of `[X y] = QR` only `R` is needed. (The
    Gram matrix would do, with half the digits.)"""
    n, d = X.shape
    if n > rows:
        R = np.asarray(np.linalg.qr(np.column_stack([X, y]), mode="r"))
        X, y = R[:, :d], R[:, d]
    return np.pad(X, ((0, rows - len(X)), (0, columns - d))), np.pad(y, (0, rows - len(y)))
