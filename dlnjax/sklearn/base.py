"""What linear models share, and what those of both regressors of networks do."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from .._batching import enable_x64
from .._standardize import Standardized, padded, padded_size, standardized
from .checks import check_network, is_real, refuse, report_failure, shape_of
from .training import train, training_of


class AbstractLinearModel(BaseEstimator):
    """A model `X @ coef_.T + intercept_`."""

    coef_: Any
    intercept_: Any

    def _linear(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return X @ self.coef_.T + self.intercept_


class AbstractLinearRegressor(RegressorMixin, AbstractLinearModel):
    """What regressors share: prediction and the preparation of data."""

    fit_intercept: Any
    standardize: Any

    def predict(self, X: Any) -> np.ndarray:
        """The predictions `X @ coef_.T + intercept_`, `(n, d) -> (n,)` or `(n, k)`, as `y` was.

        **Raises:** `NotFittedError` before `fit`; `ValueError` for another number of columns, NaN
        or inf.
        """
        return self._linear(X)

    def _standardized(
        self, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None
    ) -> Standardized:
        if weight is not None:
            counts = weight > 0
            some = weight[counts] / np.max(weight)
            X, y, weight = X[counts], y[counts], some * (len(some) / np.sum(some))
        return standardized(X, y, bool(self.fit_intercept), bool(self.standardize), weight)


def padded_together(parts: Sequence[Standardized]) -> tuple[np.ndarray, np.ndarray]:
    """The problems of a batch, `(lanes, n, d)` and `(lanes, n)`, in sizes that data share, and so a
    compiled program. Of more rows than columns only R of `[X y] = QR` is kept: `columns + 1`
    rows."""
    rows = padded_size(max(len(part.y) for part in parts))
    columns = padded_size(parts[0].X.shape[1])
    rows = rows if rows < columns else columns + 1
    X, y = zip(*(padded(part.X, part.y, rows, columns) for part in parts), strict=True)
    return np.stack(X), np.stack(y)


def mean_squares(
    X: np.ndarray,
    y: np.ndarray,
    weight: np.ndarray | None,
    rows: Any,
    coef: np.ndarray,
    intercept: np.ndarray,
) -> np.ndarray:
    """The mean squared error on these `rows`, `(S,)`, of models `coef (S, d)`, `intercept (S,)`."""
    rows = np.arange(len(y))[rows]
    if weight is not None:
        rows = rows[weight[rows] > 0]
    residuals = X[rows] @ coef.T + intercept - y[rows, None]
    of_rows = np.ones(len(rows)) if weight is None else weight[rows] / np.max(weight[rows])
    return of_rows @ residuals**2 / np.sum(of_rows)


class Models(NamedTuple):
    """The models of one run at the times of a grid, in the user's units."""

    coef: np.ndarray  # (S, d)
    intercept: np.ndarray  # (S,)
    certificate: np.ndarray  # (S,)
    alpha: np.ndarray  # (S,)
    steps: int


class AbstractDLN(MultiOutputMixin, AbstractLinearRegressor):
    """What both regressors share: checks of parameters, one batched solve."""

    # Of any type: scikit-learn asks that the constructor stores what it is given and `fit` checks.
    eps: Any
    depth: Any
    shape: Any
    weight_decay: Any
    rtol: Any
    positive: Any
    average: Any

    # After `fit`; with several outputs arrays with an axis for them.
    s_path_: np.ndarray
    coef_path_: np.ndarray
    intercept_path_: np.ndarray
    coef_: np.ndarray
    intercept_: Any
    certificate_: Any
    alpha_: Any
    n_iter_: int

    def _check_parameters(self) -> None:
        check_network(self.eps, self.depth, self.rtol)
        if not (is_real(self.weight_decay) and 0 <= self.weight_decay < 1):
            need = "a number in [0, 1), a fraction of the one at which all coefficients stay 0"
            refuse("weight_decay", self.weight_decay, need)
        if self.depth > 2 and self.positive:
            refuse("depth", self.depth, "2 with `positive=True` (or pass `positive=False`)")
        if self.depth > 2 and self.weight_decay > 0:
            refuse("depth", self.depth, "2 with weight decay (or pass `weight_decay=0.0`)")

    def _data(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, multi_output=True)
        return X, np.asarray(y, np.float64)

    def _paths(
        self,
        X: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None,
        subsets: Sequence[Any],
        times: np.ndarray,
    ) -> list[list[Models]]:
        """Train on each subset of the rows, and for each output, all in one batch."""
        self._check_parameters()
        outputs = y.reshape(len(y), -1).T
        parts = [
            self._standardized(X[rows], output[rows], None if weight is None else weight[rows])
            for rows in subsets
            for output in outputs
        ]
        inputs, targets = padded_together(parts)
        shape = shape_of(self.shape, X.shape[1])
        shape = np.pad(shape, (0, inputs.shape[2] - len(shape)), constant_values=1)
        with enable_x64(True):
            as_array = lambda value: jnp.asarray(value, jnp.float64)
            *solution, result = train(
                as_array(inputs),
                as_array(targets),
                training_of(self, times, shape),
                as_array(self.weight_decay),
                bool(self.positive),
            )
            solution = list(map(np.asarray, solution))
            report_failure(result, solution[0])
        models = [
            self._in_units(part, times, *values)
            for part, *values in zip(parts, *solution, strict=True)
        ]
        k = len(outputs)
        return [models[i : i + k] for i in range(0, len(models), k)]

    def _in_units(self, part: Standardized, times: np.ndarray, x, gap, largest, steps) -> Models:
        coef = x[:, : part.X.shape[1]] * part.y_scale / part.X_scale
        alpha_max = largest * part.y_scale * part.unit / len(part.y)
        # Beyond the range of floats, for responses of about 1e200, it is inf: a bound still.
        with np.errstate(over="ignore"):
            certificate = np.maximum(gap, 0) * part.y_scale * part.y_scale
        return Models(
            coef=coef,
            intercept=part.y_mean - coef @ part.X_mean,
            certificate=certificate,
            alpha=alpha_max * (self.weight_decay + 1 / times),
            steps=int(steps),
        )

    def _set_path(
        self, times: np.ndarray, paths: list[Models], chosen: Sequence[int], several: bool
    ) -> None:
        """Set what `fit` leaves behind, of the `chosen` time of each output."""
        join = np.stack if several else lambda values, axis=0: values[0]
        at = lambda name: join(
            [getattr(path, name)[i] for path, i in zip(paths, chosen, strict=True)]
        )
        self.s_path_ = times
        self.coef_path_ = join([path.coef for path in paths], axis=1)
        self.intercept_path_ = join([path.intercept for path in paths], axis=1)
        self.coef_ = np.array(at("coef"))
        self.intercept_ = at("intercept")
        self.certificate_, self.alpha_ = at("certificate"), at("alpha")
        self.n_iter_ = max(path.steps for path in paths)
