"""scikit-learn estimators: linear models learned by a diagonal linear network and regularised by
early stopping. Needs the extra `sklearn`.

The problem that is solved has no units: columns and response are centred (with `fit_intercept`) and
scaled to norm 1, all columns by one number unless `standardize`; `eps` and `shape` refer to it, and
times are in units of `1/‖Xᵀy‖_∞`. So `X → cX` and `y → cy` change nothing but the units of `coef_`,
and a stopping time means the same on a fold as on all rows.
"""

import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._batching import enable_x64
from ._flow.gradient_flow import gradient_flow
from ._limit.limit_flow import limit_flow
from ._problem import LeastSquares
from ._results import RESULTS, names_of
from ._standardize import padded, padded_size, standardized
from .networks import Deep, USquared

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import check_cv
    from sklearn.utils.validation import check_is_fitted, validate_data
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "`dlnjax.sklearn` needs scikit-learn: run `pip install 'dlnjax[sklearn]'`."
    ) from _error


# Decades of the default grid of `DLNRegressorCV`: from s = 1, where the first coefficient leaves 0,
# to `alpha = alpha_max/1000`, which is the best time of the diabetes data.
_DECADES = 3


class _Path(NamedTuple):
    """The models of one run at the times of a grid, in the user's units."""

    coef: np.ndarray  # (S, d)
    intercept: np.ndarray  # (S,)
    certificate: np.ndarray  # (S,)
    alpha: np.ndarray  # (S,)
    steps: int


@eqx.filter_jit
def _train(
    X: Float[Array, "lanes n d"],
    y: Float[Array, "lanes n"],
    times: Float[Array, " S"],
    shape: Float[Array, " d"],
    log_eps: Float[Array, ""] | None,
    depth: Float[Array, ""] | int,
    weight_decay: Float[Array, ""],
    rtol: Float[Array, ""],
    average: Bool[Array, ""],
    positive: bool,
) -> tuple[Array, Array, Array, Array, RESULTS]:
    """`x` (lanes, S, d), its duality gap, `‖Xᵀy‖_∞`, the steps and the result of each lane."""
    network = USquared(shape) if positive else Deep(shape, shape, depth=depth)

    def lane(X, y):
        # The unit of 1/s and of weight decay: the penalty from which on all coefficients are 0.
        r = LeastSquares(X, y).r
        largest = jnp.maximum(jnp.max(r if positive else jnp.abs(r)), 0)
        unit = jnp.where(largest > 0, largest, 1)
        problem, s = LeastSquares(X, y, weight_decay * unit), times / unit
        if log_eps is None:
            limit = limit_flow(network, problem, s[-1], throw=False)
            mean, last = limit.x_mean(s), limit.plateau(s)
            steps, result = limit.stats["num_pivots"], limit.result
        else:
            # `atol` below `rtol`: the dual variable, of order 1 at first, is near 0 where active.
            flow = gradient_flow(
                network, problem, s, log_eps=log_eps, rtol=rtol, atol=rtol / 10, throw=False
            )
            mean, last = flow.x_mean, flow.x
            steps, result = flow.stats["num_steps"], flow.result
        # A constant column, 0 once centred, keeps its start, which for `u∘u` is ε and not 0.
        x = jnp.where(jnp.any(X != 0, axis=0), jnp.where(average, mean, last), 0)
        gap = problem.duality_gap(x, problem.weight_decay + 1 / s, positive)
        return x, gap, largest, jnp.asarray(steps), result

    return jax.vmap(lane)(X, y)


def _refuse(name: str, value: Any, need: str):
    raise ValueError(f"`{name}` must be {need}, got {value!r}.")


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)


def _is_count(value: Any) -> bool:
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


class _AbstractDLN(RegressorMixin, BaseEstimator):
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
            _refuse("shape", self.shape, need)
        return np.broadcast_to(shape, d)

    def _check_parameters(self) -> None:
        if not (_is_real(self.eps) and 0 <= self.eps < 1):
            _refuse("eps", self.eps, "a number in [0, 1), 0 for the limit of small ones")
        if not (_is_real(self.depth) and 2 <= self.depth < np.inf):
            _refuse("depth", self.depth, "a finite number of at least 2")
        if not (_is_real(self.weight_decay) and 0 <= self.weight_decay < 1):
            need = "a number in [0, 1), a fraction of the one at which all coefficients stay 0"
            _refuse("weight_decay", self.weight_decay, need)
        if not (_is_real(self.rtol) and 0 < self.rtol < 1):
            _refuse("rtol", self.rtol, "a number in (0, 1), such as 1e-7")
        if self.depth > 2 and self.positive:
            _refuse("depth", self.depth, "2 with `positive=True` (or pass `positive=False`)")
        if self.depth > 2 and self.weight_decay > 0:
            _refuse("depth", self.depth, "2 with weight decay (or pass `weight_decay=0.0`)")

    def _data(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        return X, np.asarray(y, np.float64)

    def _paths(
        self, X: np.ndarray, y: np.ndarray, subsets: Sequence[Any], times: np.ndarray
    ) -> list[_Path]:
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
            *solution, result = _train(
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
                _Path(
                    coef=coef,
                    intercept=part.y_mean - coef @ part.X_mean,
                    certificate=certificate,
                    alpha=alpha_max * (self.weight_decay + 1 / times),
                    steps=int(steps[i]),
                )
            )
        return paths

    def _set_path(self, times: np.ndarray, path: _Path, index: int) -> None:
        self.s_path_, self.coef_path_, self.intercept_path_ = times, path.coef, path.intercept
        self.coef_, self.intercept_ = path.coef[index].copy(), float(path.intercept[index])
        self.certificate_, self.alpha_ = float(path.certificate[index]), float(path.alpha[index])
        self.n_iter_ = path.steps


class DLNRegressor(_AbstractDLN):
    """A linear model learned by gradient flow on a diagonal linear network until time `s`.

    The model, averaged over training, follows the lasso path. Stopping at `s` is like
    `sklearn.linear_model.Lasso` at

        alpha = alpha_max / s,    alpha_max = ‖Xᵀy‖_∞ / n,

    where `alpha_max` is the least `alpha` at which all coefficients are 0. (The library's own
    problem, `½‖y − Xw‖² + κ‖w‖₁`, has no `1/n`: `κ = n·alpha`, and its time is `1/κ`.) In the limit
    `eps=0` the two are equal where the path is monotone; `certificate_` bounds how far they differ.

    Computes in float64 whatever JAX's configuration, which it does not change. A fit compiles for
    some seconds unless an earlier one had as many columns and, where they are fewer, rows (rounded
    up to a multiple of 16, or of more above 128), times and folds, and the same kind of network:
    `positive`, depth 2 or not, `eps` 0 or not.

    **Arguments:**

    - `s`: when training stops, `> 0`, in units of `1/‖Xᵀy‖_∞`. The first coefficient leaves 0 at
        about 1. On the diabetes data, with and without quadratic terms, the default is within 2 %
        of the least cross-validated error. `DLNRegressorCV` chooses it.
    - `eps`: the size of the initialisation, in `[0, 1)`, where columns and response have norm 1.
        0 is the limit process, which is exact; smaller values are closer to it.
    - `depth`: the real number `D ≥ 2` of the network `u^D − v^D`.
    - `positive`: learn `u∘u ≥ 0`, which compares with the positive lasso.
    - `shape`: of the initialisation, positive, one number or one for each column: larger ones
        activate earlier. At depth 2 the effect vanishes with `eps`.
    - `weight_decay`: a fraction, in `[0, 1)`, of the decay at which all coefficients stay 0, at
        depth 2 only: `alpha = alpha_max (weight_decay + 1/s)`.
    - `average`: learn the average of the model over training; `False`: the model at time `s`.
    - `fit_intercept`: centre columns and response; `standardize`: scale columns to the same norm.
    - `n_times`: the number of times in `s_path_`, from 1 (or `s/10` if that is less) to `s`.
    - `rtol`: relative tolerance of the steps of the flow.

    **Attributes:** after `fit`,

    - `coef_`, `(d,)`, and `intercept_`, in the units of the data.
    - `s_path_`, `(n_times,)`, log-spaced; `coef_path_`, `(n_times, d)`, and `intercept_path_`,
        `(n_times,)`: the models of stopping at these times.
    - `alpha_`: the `alpha` of the lasso that `coef_` compares with, for columns scaled, if
        `standardize`, to mean square 1, as by `StandardScaler`. (Above depth 2, at unit `shape`.)
    - `certificate_`: an upper bound of that lasso's suboptimality at `coef_`, `½‖y − Xw‖² + κ‖w‖₁`
        less its minimum, in units of `y²`.
    - `n_iter_`: steps of the integrator, or pivots of the limit process.
    - `n_features_in_`, `feature_names_in_`: as everywhere in scikit-learn.

    !!! example

        ```python
        from dlnjax.sklearn import DLNRegressor

        X = np.random.default_rng(0).normal(size=(50, 10))
        model = DLNRegressor(s=20, eps=0).fit(X, X[:, 0] - 2 * X[:, 1])
        model.coef_  # (0.882, −1.894, 0, …, 0)
        model.alpha_, model.certificate_ < 1e-12  # 0.103, True: it is that lasso
        ```

    !!! cite "Reference"

        [B25] Berthier, *Diagonal Linear Networks and the Lasso Regularization Path*,
        arXiv 2509.18766.
    """

    s: Any
    n_times: Any

    def __init__(
        self,
        s: Any = 30.0,
        *,
        eps: Any = 1e-10,
        depth: Any = 2,
        positive: Any = False,
        shape: Any = 1.0,
        weight_decay: Any = 0.0,
        average: Any = True,
        fit_intercept: Any = True,
        standardize: Any = True,
        n_times: Any = 100,
        rtol: Any = 1e-7,
    ):
        self.s = s
        self.eps = eps
        self.depth = depth
        self.positive = positive
        self.shape = shape
        self.weight_decay = weight_decay
        self.average = average
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.n_times = n_times
        self.rtol = rtol

    def fit(self, X: Any, y: Any) -> "DLNRegressor":
        """Train on `X`, `(n, d)`, and `y`, `(n,)`. Returns `self`.

        **Raises:** `ValueError` for a bad parameter or bad data; `RuntimeError` if the solver
        fails; warns (`ConvergenceWarning`) if dependent columns make the limit process inexact.
        """
        X, y = self._data(X, y)
        if not (_is_real(self.s) and 0 < self.s < np.inf):
            _refuse("s", self.s, "a positive, finite number")
        if not (_is_count(self.n_times) and self.n_times >= 2):
            _refuse("n_times", self.n_times, "a whole number of at least 2")
        times = np.geomspace(min(1, self.s / 10), self.s, self.n_times)
        (path,) = self._paths(X, y, [slice(None)], times)
        self._set_path(times, path, -1)
        return self


class DLNRegressorCV(_AbstractDLN):
    """`DLNRegressor`, stopped at the time of least cross-validated error. All folds and the final
    fit are one batched solve.

    **Arguments:** those of `DLNRegressor` without `s` and `n_times`, and

    - `times`: the candidates for `s`: their number, log-spaced from 1 to 1000, or an increasing
        array. On each fold they are in units of the fold's `1/‖Xᵀy‖_∞`.
    - `cv`: number of folds, a splitter of scikit-learn, or an iterable of (train, test) indices.

    **Attributes:** those of `DLNRegressor`, with `s_path_` of shape `(S,)`, and

    - `s_`: the chosen time, of least mean squared error averaged over folds.
    - `mse_path_`: mean squared error on each fold, `(S, folds)`.

    !!! example

        ```python
        from dlnjax.sklearn import DLNRegressorCV

        X = np.random.default_rng(0).normal(size=(50, 10))
        model = DLNRegressorCV(times=50).fit(X, X[:, 0] - 2 * X[:, 1])
        model.s_, model.mse_path_.shape  # 1000, (50, 5): without noise, the last time
        ```
    """

    times: Any
    cv: Any
    s_: float
    mse_path_: np.ndarray

    def __init__(
        self,
        times: Any = 100,
        *,
        cv: Any = 5,
        eps: Any = 1e-10,
        depth: Any = 2,
        positive: Any = False,
        shape: Any = 1.0,
        weight_decay: Any = 0.0,
        average: Any = True,
        fit_intercept: Any = True,
        standardize: Any = True,
        rtol: Any = 1e-7,
    ):
        self.times = times
        self.cv = cv
        self.eps = eps
        self.depth = depth
        self.positive = positive
        self.shape = shape
        self.weight_decay = weight_decay
        self.average = average
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.rtol = rtol

    def fit(self, X: Any, y: Any) -> "DLNRegressorCV":
        """Choose the time and train on `X`, `(n, d)`, and `y`, `(n,)`. Returns and raises as
        `DLNRegressor.fit`."""
        X, y = self._data(X, y)
        times = self._grid()
        splitter: Any = check_cv(self.cv, y)
        splits = list(splitter.split(X, y))
        if not splits or any(0 in map(len, split) for split in splits):
            _refuse("cv", self.cv, "folds, each with rows to train on and rows to test")
        trains, tests = zip(*splits, strict=True)
        *folds, path = self._paths(X, y, [*trains, slice(None)], times)
        errors = [
            np.mean((X[test] @ fold.coef.T + fold.intercept - y[test, None]) ** 2, axis=0)
            for fold, test in zip(folds, tests, strict=True)
        ]
        self.mse_path_ = np.stack(errors, axis=1)
        best = int(np.argmin(self.mse_path_.mean(axis=1)))
        self.s_ = float(times[best])
        self._set_path(times, path, best)
        return self

    def _grid(self) -> np.ndarray:
        if _is_count(self.times) and self.times >= 2:
            return np.geomspace(1, 10**_DECADES, self.times)
        try:
            times = np.array(self.times, np.float64)
        except (TypeError, ValueError):
            times = np.empty(0)
        increases = times.ndim == 1 and np.all(np.diff(times) > 0)
        if not (increases and len(times) and times[0] > 0 and times[-1] < np.inf):
            need = "a whole number of at least 2, or an increasing array of positive times"
            _refuse("times", self.times, need)
        return times
