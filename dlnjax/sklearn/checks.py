"""Checks of what estimators are given, and words for what is wrong."""

import warnings
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight

from .._results import RESULTS, names_of


def refuse(name: str, value: Any, need: str) -> NoReturn:
    raise ValueError(f"`{name}` must be {need}, got {value!r}.")


def is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def weights_of(sample_weight: Any, X: np.ndarray) -> np.ndarray | None:
    """`sample_weight` as an array `(n,)` of numbers `≥ 0`; `None` if it is.

    **Raises:** `ValueError` for negative or infinite ones, and if all are 0."""
    if sample_weight is None:
        return None
    weight = np.asarray(
        _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    )
    if not np.any(weight > 0):
        raise ValueError("`sample_weight` is 0 for every row.")
    return weight


def splits_of(
    cv: Any, X: np.ndarray, y: np.ndarray, groups: Any, weight: np.ndarray | None
) -> list[tuple[Any, Any]]:
    """The rows to train on and to test, of each fold.

    **Raises:** `ValueError` for folds without rows, or of rows of weight 0 alone."""
    splitter: Any = check_cv(cv, y)
    splits = list(splitter.split(X, y, groups))
    if not splits or any(0 in map(len, split) for split in splits):
        refuse("cv", cv, "folds, each with rows to train on and rows to test")
    if weight is not None and any(not np.any(weight[rows]) for split in splits for rows in split):
        raise ValueError(
            "`sample_weight` is 0 for all rows of a fold, or for all others. Use other folds "
            "(`cv`), or leave these rows out."
        )
    return splits


def shape_of(shape: Any, d: int) -> np.ndarray:
    """The shape of a network as an array `(d,)`."""
    try:
        array = np.asarray(shape, np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if array.shape not in ((), (d,)) or not np.all((array > 0) & np.isfinite(array)):
        need = f"positive and finite, a number or one for each of the {d} columns"
        refuse("shape", shape, need)
    return np.broadcast_to(array, d)


def times_until(s: Any, n_times: Any) -> np.ndarray:
    """`n_times` times, log-spaced to `s`."""
    if not (is_real(s) and 0 < s < np.inf):
        refuse("s", s, "a positive, finite number")
    if not (is_count(n_times) and n_times >= 2):
        refuse("n_times", n_times, "a whole number of at least 2")
    return np.geomspace(min(1, s / 10), s, n_times)


def check_network(eps: Any, depth: Any, rtol: Any) -> None:
    """What all networks share."""
    if not (is_real(eps) and 0 <= eps < 1):
        refuse("eps", eps, "a number in [0, 1), 0 for the limit of small ones")
    if not (is_real(depth) and 2 <= depth < np.inf):
        refuse("depth", depth, "a finite number of at least 2")
    if not (is_real(rtol) and 0 < rtol < 1):
        refuse("rtol", rtol, "a number in (0, 1), such as 1e-7")


def report_failure(result: RESULTS, x: np.ndarray, stacklevel: int = 5) -> None:
    """Raise if training did not reach its end; warn if it is inexact there."""
    failed = ", ".join(sorted({*names_of(result)} - {"successful"}))
    if not np.all(np.isfinite(x)):
        raise RuntimeError(
            f"Training did not reach its end ({failed}). Stop earlier, raise `rtol`, take a "
            "`shape` of about 1, or merge columns that are almost dependent."
        )
    if failed:
        warnings.warn(
            f"The limit process is inexact ({failed}), because columns are almost linearly "
            "dependent. Merge them, or pass a small `eps` above 0.",
            ConvergenceWarning,
            stacklevel=stacklevel,
        )
