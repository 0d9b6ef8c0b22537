"""`DLNRegressor`, stopped at a given time, and `DLNRegressorCV`, at a cross-validated one."""

import warnings
from typing import Any

import numpy as np

from .base import AbstractDLN, mean_squares
from .checks import is_count, refuse, splits_of, times_until, weights_of

# Decades of the default grid of `DLNRegressorCV`: from s = 1, where the first coefficient leaves 0,
# to `alpha = alpha_max/1000`, which is the best time of the diabetes data.
_DECADES = 3


class DLNRegressor(AbstractDLN):
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

    With `k` outputs, `y` of shape `(n, k)`, each is fitted as if alone, in one batch: `coef_` is
    `(k, d)`, `coef_path_` is `(n_times, k, d)`, and numbers become arrays `(k,)`.

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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "DLNRegressor":
        """Train on `X`, `(n, d)`, and `y`, `(n,)` or `(n, k)`. Returns `self`. Errors of rows
        count in proportion to `sample_weight`, `(n,)`; a row of weight 0 is left out.

        **Raises:** `ValueError` for a bad parameter or bad data; `RuntimeError` if the solver
        fails; warns (`ConvergenceWarning`) if dependent columns make the limit process inexact.
        """
        X, y = self._data(X, y)
        times = times_until(self.s, self.n_times)
        (paths,) = self._paths(X, y, weights_of(sample_weight, X), [slice(None)], times)
        self._set_path(times, paths, [-1] * len(paths), several=y.ndim > 1)
        return self


class DLNRegressorCV(AbstractDLN):
    """`DLNRegressor`, stopped at the time of least cross-validated error. All folds and the final
    fit are one batched solve.

    **Arguments:** those of `DLNRegressor` without `s` and `n_times`, and

    - `times`: the candidates for `s`: their number, log-spaced from 1 to 1000, or an increasing
        array. On each fold they are in units of the fold's `1/‖Xᵀy‖_∞`.
    - `cv`: number of folds, a splitter of scikit-learn, or an iterable of (train, test) indices.

    **Attributes:** those of `DLNRegressor`, with `s_path_` of shape `(S,)`, and

    - `s_`: the chosen time, of least mean squared error averaged over folds.
    - `mse_path_`: mean squared error on each fold, `(S, folds)`.

    With `k` outputs each has a time of its own: `s_` is `(k,)`, `mse_path_` is `(S, folds, k)`.

    !!! example

        ```python
        from dlnjax.sklearn import DLNRegressorCV

        rng = np.random.default_rng(0)
        X = rng.normal(size=(50, 10))
        model = DLNRegressorCV(times=50).fit(X, X[:, 0] - 2 * X[:, 1] + rng.normal(size=50))
        model.s_, model.mse_path_.shape  # 10.99, (50, 5)
        ```
    """

    times: Any
    cv: Any
    s_: Any
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

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> "DLNRegressorCV":
        """Choose the time and train on `X`, `(n, d)`, and `y`, `(n,)` or `(n, k)`. `groups`,
        `(n,)`, are for a splitter `cv` that needs them. Returns and raises as `DLNRegressor.fit`;
        warns if the chosen time is the last candidate."""
        X, y = self._data(X, y)
        times, weight = self._grid(), weights_of(sample_weight, X)
        trains, tests = zip(*splits_of(self.cv, X, y, groups, weight), strict=True)
        *folds, paths = self._paths(X, y, weight, [*trains, slice(None)], times)
        outputs = y.reshape(len(y), -1).T
        errors = [
            [
                mean_squares(X, output, weight, test, path.coef, path.intercept)
                for path, output in zip(fold, outputs, strict=True)
            ]
            for fold, test in zip(folds, tests, strict=True)
        ]
        mse = np.transpose(errors, (2, 0, 1))  # times, folds, outputs
        best = np.argmin(mse.mean(axis=1), axis=0)
        if np.any(best == len(times) - 1):
            warnings.warn(
                f"The best of the candidates for `s` is the last one, {times[-1]:g}: a later one "
                f"may be better. Pass later `times`, such as np.geomspace(1, {100 * times[-1]:g}).",
                UserWarning,
                stacklevel=2,
            )
        several = y.ndim > 1
        self.mse_path_ = mse if several else mse[:, :, 0]
        self.s_ = times[best] if several else float(times[best[0]])
        self._set_path(times, paths, best.tolist(), several)
        return self

    def _grid(self) -> np.ndarray:
        if is_count(self.times) and self.times >= 2:
            return np.geomspace(1, 10**_DECADES, self.times)
        try:
            times = np.array(self.times, np.float64)
        except (TypeError, ValueError):
            times = np.empty(0)
        increases = times.ndim == 1 and np.all(np.diff(times) > 0)
        if not (increases and len(times) and times[0] > 0 and times[-1] < np.inf):
            need = "a whole number of at least 2, or an increasing array of positive times"
            refuse("times", self.times, need)
        return times
