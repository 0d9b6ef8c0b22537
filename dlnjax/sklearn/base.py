"""What both estimators share: checks of parameters, one batched solve, prediction."""

import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple, NoReturn

import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from .._batching import enable_x64
from .._results import RESULTS, names_of
from .._standardize import padded, padded_size, standardized
from .training import train


class Models(NamedTuple):
    """The models of one run at the times of a grid, in the user's units."""

    coef: np.ndarray  # (S, d)
    intercept: np.ndarray  # (S,)
    certificate: np.ndarray  # (S,)
    alpha: np.ndarray  # (S,)
    steps: int


def refuse(name: str, value: Any, need: str) -> NoReturn:
    raise ValueError(f"`{name}` must be {need}, got {value!r}.")


def is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _report_failure(result: RESULTS, x: np.ndarray) -> None:
    failed = ", ".join(sorted({*names_of(result)} - {"successful"}))
    if not np.all(np.isfinite(x)):
        raise RuntimeError(
            f"Training did not reach its end ({failed}). Stop earlier (`s`, `times`), raise "
            "`rtol`, take a `shape` of about 1, or merge columns that are almost dependent."
        )
    if failed:
        warnings.warn(
            f"The limit process is inexact ({failed}), because columns are almost linearly "
            "dependent; `certificate_` says how far from the lasso it is. Merge them, or pass a "
            "small `eps` above 0.",
            ConvergenceWarning,
            stacklevel=4,
        )


class AbstractDLN(RegressorMixin, BaseEstimator):
    """What both estimators share: checks of parameters, one batched solve, prediction."""

    # Of any type: scikit-learn asks that the constructor stores what it is given and `fit` checks.
    eps: Any
    depth: Any
    shape: Any
    weight_decay: Any
    rtol: Any
    positive: Any
    average: Any
    fit_intercept: Any
    standardize: Any

    # After `fit`.
    s_path_: np.ndarray
    coef_path_: np.ndarray
    intercept_path_: np.ndarray
    coef_: np.ndarray
    intercept_: float
    certificate_: float
    alpha_: float
    n_iter_: int

    def predict(self, X: Any) -> np.ndarray:
        """The predictions `X @ coef_ + intercept_`, `(n, d) -> (n,)`.

        **Raises:** `NotFittedError` before `fit`; `ValueError` for another number of columns, NaN
        or inf.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_ + self.intercept_

    def _shape(self, d: int) -> np.ndarray:
        try:
            shape = np.asarray(self.shape, np.float64)
        except (TypeError, ValueError):
            shape = np.full(1, np.nan)
        if shape.shape not in ((), (d,)) or not np.all((shape > 0) & np.isfinite(shape)):
            need = f"positive and finite, a number or one for each of the {d} columns"
            refuse("shape", self.shape, need)
        return np.broadcast_to(shape, d)

    def _check_parameters(self) -> None:
        if not (is_real(self.eps) and 0 <= self.eps < 1):
            refuse("eps", self.eps, "a number in [0, 1), 0 for the limit of small ones")
        if not (is_real(self.depth) and 2 <= self.depth < np.inf):
            refuse("depth", self.depth, "a finite number of at least 2")
        if not (is_real(self.weight_decay) and 0 <= self.weight_decay < 1):
            need = "a number in [0, 1), a fraction of the one at which all coefficients stay 0"
            refuse("weight_decay", self.weight_decay, need)
        if not (is_real(self.rtol) and 0 < self.rtol < 1):
            refuse("rtol", self.rtol, "a number in (0, 1), such as 1e-7")
        if self.depth > 2 and self.positive:
            refuse("depth", self.depth, "2 with `positive=True` (or pass `positive=False`)")
        if self.depth > 2 and self.weight_decay > 0:
            refuse("depth", self.depth, "2 with weight decay (or pass `weight_decay=0.0`)")

    def _data(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        return X, np.asarray(y, np.float64)

    def _paths(
        self, X: np.ndarray, y: np.ndarray, subsets: Sequence[Any], times: np.ndarray
    ) -> list[Models]:
        """Train on each subset of the rows, all in one batch."""
        self._check_parameters()
        # Pad to sizes that data share, and so a compiled program. Of more rows than columns only R
        # of `[X y] = QR` is kept: `columns + 1` rows.
        n, d = X.shape
        rows, columns = padded_size(n), padded_size(d)
        rows = rows if rows < columns else columns + 1
        center, each = bool(self.fit_intercept), bool(self.standardize)
        data = [standardized(X[subset], y[subset], center, each) for subset in subsets]
        problems = [padded(part.X, part.y, rows, columns) for part in data]
        shape = np.pad(self._shape(d), (0, columns - d), constant_values=1)
        with enable_x64(True):
            as_array = lambda value: jnp.asarray(value, jnp.float64)
            *solution, result = train(
                as_array([X for X, _ in problems]),
                as_array([y for _, y in problems]),
                as_array(times),
                as_array(shape),
                None if self.eps == 0 else as_array(np.log(self.eps)),
                2 if self.depth == 2 else as_array(self.depth),
                as_array(self.weight_decay),
                as_array(self.rtol),
                jnp.asarray(bool(self.average)),
                bool(self.positive),
            )
            x, gap, largest, steps = map(np.asarray, solution)
            _report_failure(result, x)
        paths = []
        for i, part in enumerate(data):
            coef = x[i, :, :d] * part.y_scale / part.X_scale
            alpha_max = largest[i] * part.y_scale * part.unit / len(part.y)
            # Beyond the range of floats, for responses of about 1e200, it is inf: a bound still.
            with np.errstate(over="ignore"):
                certificate = np.maximum(gap[i], 0) * part.y_scale * part.y_scale
            paths.append(
                Models(
                    coef=coef,
                    intercept=part.y_mean - coef @ part.X_mean,
                    certificate=certificate,
                    alpha=alpha_max * (self.weight_decay + 1 / times),
                    steps=int(steps[i]),
                )
            )
        return paths

    def _set_path(self, times: np.ndarray, path: Models, index: int) -> None:
        self.s_path_, self.coef_path_, self.intercept_path_ = times, path.coef, path.intercept
        self.coef_, self.intercept_ = path.coef[index].copy(), float(path.intercept[index])
        self.certificate_, self.alpha_ = float(path.certificate[index]), float(path.alpha[index])
        self.n_iter_ = path.steps
