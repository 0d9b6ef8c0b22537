"""Regression data without units, in sizes that compiled programs can share."""

from typing import NamedTuple

import numpy as np


class Standardized(NamedTuple):
    """Centred rows of norm 1, and what it takes to go back."""

    X: np.ndarray
    y: np.ndarray
    X_mean: np.ndarray
    y_mean: np.floating | np.ndarray
    X_scale: np.ndarray
    y_scale: np.floating | np.ndarray
    unit: float  # the norm of the columns whose lasso this is


def standardized(X: np.ndarray, y: np.ndarray, center: bool, each: bool) -> Standardized:
    """Centre `X` and `y`, or not; scale `y` to norm 1, and `each` column, or only the largest."""
    # In units in which no square overflows, or is lost.
    X_unit, y_unit = _largest(X), _largest(y)
    X, y = X / X_unit, y / y_unit
    X_mean, y_mean = (X.mean(0), y.mean()) if center else (np.zeros(X.shape[1]), np.float64(0))
    # What is left of a constant column, or response, is rounding: it must not be scaled up.
    least = 10 * np.finfo(X.dtype).eps * np.linalg.norm(X, axis=0)
    least_y = 10 * np.finfo(X.dtype).eps * np.linalg.norm(y)
    X, y = X - X_mean, y - y_mean
    norm, y_norm = np.linalg.norm(X, axis=0), np.linalg.norm(y)
    varies, y_varies = norm > least, y_norm > least_y
    norm = norm * X_unit
    largest = np.max(norm, where=varies, initial=0)
    unit = float(len(y) ** 0.5 if each else largest)
    scale = np.where(varies, norm if each else largest, np.inf)
    return Standardized(
        X=X * (X_unit / scale),
        y=y / y_norm if y_varies else np.zeros_like(y),
        X_mean=X_mean * X_unit,
        y_mean=y_mean * y_unit,
        X_scale=scale,
        y_scale=y_norm * y_unit if y_varies else np.float64(1),
        unit=unit,
    )


def _largest(v: np.ndarray) -> np.ndarray:
    """Largest absolute value of each column; 1 where that is 0."""
    size = np.max(np.abs(v), axis=0, initial=0)
    return np.where(size > 0, size, 1)


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
