"""`LassoPathRegressor`: the exact lasso path, and a point of it."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from sklearn.utils.validation import validate_data

from .._batching import enable_x64
from .._lasso.path import lasso_path
from .._path import LassoPath, information_criterion
from .._problem import LeastSquares
from .._results import names_of
from .._standardize import Standardized
from .base import AbstractLinearRegressor, mean_squares, padded_together
from .checks import is_count, is_real, refuse, splits_of, weights_of


@eqx.filter_jit
def _follow(
    X: Float[Array, "lanes n d"], y: Float[Array, "lanes n"], k: Float[Array, ""], positive: bool
) -> tuple[LassoPath, Float[Array, " lanes"]]:
    """The paths, and up to where they have `k` non-zeros."""

    def lane(X, y):
        path = lasso_path(LeastSquares(X, y), positive=positive, throw=False)
        return path, path.at_nonzeros(k)

    return jax.vmap(lane)(X, y)


class _Path:
    """The path of one problem in the user's units: `coef` is linear in `alpha` between knots."""

    def __init__(
        self,
        knots: np.ndarray,
        values: np.ndarray,
        last: np.ndarray,
        at_nonzeros: float,
        part: Standardized,
    ):
        # `κ = n·alpha`, of columns of mean square 1 if `standardize`.
        unit = part.y_scale * part.unit / len(part.y)
        self.alphas = np.append(unit / knots, 0)
        self.at_nonzeros = float(unit) / at_nonzeros
        x = np.vstack([values / knots[:, None], last])[:, : part.X.shape[1]]
        self.coef = x * part.y_scale / part.X_scale
        self.part = part

    def at(self, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and intercepts at `alphas`, `(A, d)` and `(A,)`."""
        # Above the first knot all is 0, up to infinity.
        known = np.append(self.alphas[::-1], np.inf)
        coef = np.vstack([self.coef[::-1], self.coef[0]])
        right = np.clip(np.searchsorted(known, alphas), 1, len(known) - 1)
        share = ((alphas - known[right - 1]) / (known[right] - known[right - 1]))[:, None]
        at = (1 - share) * coef[right - 1] + share * coef[right]
        return at, self.part.y_mean - at @ self.part.X_mean


class LassoPathRegressor(AbstractLinearRegressor):
    """The lasso, exactly, at an `alpha` of the whole path: given, or chosen.

    The model is that of `sklearn.linear_model.Lasso`, which minimises
    `‖y − Xw‖²/(2n) + alpha ‖w‖₁`. All of its path is computed at once, without a grid and without
    a tolerance, so that a choice is exact, too.

    Computes in float64 whatever JAX's configuration. A fit compiles for some seconds unless an
    earlier one was of similar size.

    **Arguments:** at most one of the first two,

    - `alpha`: `≥ 0`, in the units of `Lasso`.
    - `n_nonzero`: the number of non-zeros, at least 0: the last point before the path has more.
    - `criterion`: how `alpha` is chosen where neither is given: `"cv"`, of least mean squared error
        averaged over folds, found exactly, as it is quadratic between knots (the largest `alpha`
        of several); `"aic"` or `"bic"`, of least information criterion.
    - `cv`: the number of folds, a splitter of scikit-learn, or an iterable of (train, test)
        indices, for `"cv"`.
    - `noise_variance`: `σ² > 0` for `"aic"` and `"bic"`. Default: of the residuals at the end of
        the path, which needs more rows than columns, and the intercept.
    - `positive`: restrict to non-negative coefficients.
    - `fit_intercept`: centre columns and response; `standardize`: scale columns to mean square 1
        first, as `StandardScaler` does. (`Lasso` does not.)

    **Attributes:** after `fit`,

    - `coef_`, `(d,)`, and `intercept_`, in the units of the data, at `alpha_`.
    - `alphas_`, `(K + 1,)`, the knots, decreasing, and 0 at the end; `coef_path_`, `(K + 1, d)`,
        and `intercept_path_`, `(K + 1,)`: the models there. Between knots they are linear in
        `alpha`.
    - `criterion_path_`, `(K + 1,)`: for `"aic"` and `"bic"`, at `alphas_`.
    - `cv_alphas_`, `(A,)`, and `mse_path_`, `(A, folds)`: for `"cv"`, the knots of all folds, and
        the mean squared error on each fold there.
    - `n_iter_`: pivots of the path.
    - `n_features_in_`, `feature_names_in_`: as everywhere in scikit-learn.

    !!! example

        ```python
        from dlnjax.sklearn import LassoPathRegressor

        rng = np.random.default_rng(0)
        X = rng.normal(size=(50, 10))
        y = X[:, 0] - 2 * X[:, 1] + rng.normal(size=50)
        LassoPathRegressor(n_nonzero=2).fit(X, y).coef_  # (0.921, −1.904, 0, …)
        LassoPathRegressor(criterion="bic").fit(X, y).alpha_  # 0.167
        ```

    !!! cite "Reference"

        Efron, Hastie, Johnstone & Tibshirani, *Least Angle Regression* (2004); Zou, Hastie &
        Tibshirani, *On the degrees of freedom of the lasso* (2007).
    """

    alpha: Any
    n_nonzero: Any
    criterion: Any
    cv: Any
    noise_variance: Any
    positive: Any

    coef_: Any
    intercept_: Any
    alphas_: np.ndarray
    coef_path_: np.ndarray
    intercept_path_: np.ndarray
    criterion_path_: np.ndarray
    cv_alphas_: np.ndarray
    mse_path_: np.ndarray
    alpha_: float
    n_iter_: int

    def __init__(
        self,
        alpha: Any = None,
        *,
        n_nonzero: Any = None,
        criterion: Any = "cv",
        cv: Any = 5,
        noise_variance: Any = None,
        positive: Any = False,
        fit_intercept: Any = True,
        standardize: Any = True,
    ):
        self.alpha = alpha
        self.n_nonzero = n_nonzero
        self.criterion = criterion
        self.cv = cv
        self.noise_variance = noise_variance
        self.positive = positive
        self.fit_intercept = fit_intercept
        self.standardize = standardize

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> "LassoPathRegressor":
        """Follow the path of `X`, `(n, d)`, and `y`, `(n,)`, and choose. Errors of rows count in
        proportion to `sample_weight`, `(n,)`; a row of weight 0 is left out. `groups`, `(n,)`, are
        for a splitter `cv` that needs them. Returns `self`.

        **Raises:** `ValueError` for a bad parameter or bad data; `RuntimeError` if columns depend
        on each other so much that the path is lost.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = np.asarray(y, np.float64)
        self._check_parameters()
        weight = weights_of(sample_weight, X)
        for name in ("criterion_path_", "cv_alphas_", "mse_path_"):
            vars(self).pop(name, None)  # of an earlier fit
        given = self.alpha is not None or self.n_nonzero is not None
        crosses = self.criterion == "cv" and not given
        splits = splits_of(self.cv, X, y, groups, weight) if crosses else []
        *folds, path = self._paths(X, y, weight, [train for train, _ in splits])
        self.alphas_, self.coef_path_ = path.alphas, path.coef
        self.intercept_path_ = path.at(path.alphas)[1]
        if self.alpha is not None:
            self.alpha_ = float(self.alpha)
        elif self.n_nonzero is not None:
            self.alpha_ = path.at_nonzeros
        elif splits:
            tests = [test for _, test in splits]
            self.alpha_ = self._cross_validate(X, y, weight, folds, tests, path.alphas[0])
        else:
            self.alpha_ = self._by_criterion(X, y, weight)
        coef, intercept = path.at(np.array([self.alpha_]))
        self.coef_, self.intercept_ = coef[0], float(intercept[0])
        return self

    def _check_parameters(self) -> None:
        if self.alpha is not None and self.n_nonzero is not None:
            raise ValueError("Pass `alpha` or `n_nonzero`, not both.")
        if self.alpha is not None and not (is_real(self.alpha) and 0 <= self.alpha < np.inf):
            refuse("alpha", self.alpha, "a finite number of at least 0")
        if self.n_nonzero is not None and not (is_count(self.n_nonzero) and self.n_nonzero >= 0):
            refuse("n_nonzero", self.n_nonzero, "a whole number of at least 0")
        if not (isinstance(self.criterion, str) and self.criterion in ("cv", "aic", "bic")):
            refuse("criterion", self.criterion, '"cv", "aic" or "bic"')
        variance = self.noise_variance
        if variance is not None and not (is_real(variance) and 0 < variance < np.inf):
            refuse("noise_variance", variance, "a positive, finite number")

    def _paths(
        self, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, trains: list[Any]
    ) -> list[_Path]:
        """The paths of these rows, and of all, in one batch."""
        parts = [
            self._standardized(X[rows], y[rows], None if weight is None else weight[rows])
            for rows in [*trains, slice(None)]
        ]
        with enable_x64(True):
            inputs, targets = map(jnp.asarray, padded_together(parts))
            k = jnp.asarray(self.n_nonzero or 0, jnp.float64)
            paths, at_nonzeros = _follow(inputs, targets, k, bool(self.positive))
            names = {*names_of(paths.result)} - {"successful"}
            if names:
                raise RuntimeError(
                    f"The path could not be followed ({', '.join(sorted(names))}). Merge columns "
                    "that are almost dependent, or take `DLNRegressor`."
                )
            numbers = (paths.num_knots, paths.knots, paths.values, paths.slopes, at_nonzeros)
            lanes = zip(*map(np.asarray, numbers), parts, strict=True)
        self.n_iter_ = int(np.asarray(paths.stats["num_pivots"])[-1])
        return [
            _Path(knots[:count], values[:count], slopes[max(count - 1, 0)], float(at), part)
            for count, knots, values, slopes, at, part in lanes
        ]

    def _cross_validate(
        self,
        X: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None,
        folds: list[_Path],
        tests: list[Any],
        first: float,
    ) -> float:
        """The `alpha` of least error, the largest one of several. Between the knots of all folds it
        is a quadratic in `alpha`, given by its values at both ends and in the middle. From the
        `first` knot of the path of all rows on nothing changes."""

        def errors(alphas: np.ndarray) -> np.ndarray:
            at = zip(folds, tests, strict=True)
            return np.stack(
                [mean_squares(X, y, weight, test, *fold.at(alphas)) for fold, test in at], axis=1
            )

        alphas = np.unique(np.concatenate([*(fold.alphas for fold in folds), [first]]))[::-1]
        self.cv_alphas_, self.mse_path_ = alphas, errors(alphas)
        ends = self.mse_path_.mean(axis=1)
        middle = errors((alphas[1:] + alphas[:-1]) / 2).mean(axis=1)
        # e(t) = left + bt + ct², 0 ≤ t ≤ 1.
        left, right = ends[:-1], ends[1:]
        c = 2 * (left + right - 2 * middle)
        b = right - left - c
        t = np.clip(-b / np.where(c > 0, 2 * c, 1), 0, 1)
        inner = np.where(c > 0, left + b * t + c * t**2, np.inf)
        best = int(np.argmin(ends))
        if not np.min(inner, initial=np.inf) < ends[best]:
            return float(alphas[best])
        i = int(np.argmin(inner))
        return float(alphas[i] + t[i] * (alphas[i + 1] - alphas[i]))

    def _by_criterion(self, X: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> float:
        """The knot of least information criterion. (Between knots the number of non-zeros is
        constant, and the error falls as `alpha` does.)"""
        n = len(y) if weight is None else int(np.count_nonzero(weight))
        d = X.shape[1]
        free = n - d - bool(self.fit_intercept)
        all_rows = slice(None)
        path = self.coef_path_, self.intercept_path_
        squares = n * mean_squares(X, y, weight, all_rows, *path)
        variance = self.noise_variance
        if variance is None:
            # The squares of what rounding leaves of an exact fit are below 1e-28 of those of `y`.
            if free <= 0 or squares[-1] <= 1e-26 * squares[0]:
                raise ValueError(
                    f"`noise_variance` cannot be estimated: {n} rows and {d} columns leave no "
                    "residuals. Pass it, or use criterion='cv'."
                )
            variance = squares[-1] / free
        count = np.count_nonzero(self.coef_path_, axis=1)
        self.criterion_path_ = information_criterion(
            squares / variance, np.log(variance), count, n, self.criterion
        )
        return float(self.alphas_[np.argmin(self.criterion_path_)])
