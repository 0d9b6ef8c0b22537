"""`DLNClassifier`: the logistic loss, stopped at a given time."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import expit
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from .._batching import enable_x64
from .._standardize import padded_size, standardized
from .base import AbstractLinearModel
from .checks import check_network, refuse, report_failure, shape_of, times_until
from .training import train_classifier, training_of


class DLNClassifier(ClassifierMixin, AbstractLinearModel):
    """A linear classifier learned by gradient flow on a diagonal linear network with the logistic
    loss until time `s`.

    Stopping at `s` is like `sklearn.linear_model.LogisticRegression` with an ℓ1 penalty at `C_`,
    `C = s/‖Xᵀ(y − p)‖_∞`, where `p` is the frequency of the class (½ without intercept): `s = 1` is
    where the first coefficient leaves 0. The two are not equal even as `eps → 0`, since averages
    over training commute with the gradient of the square loss only: on classes that overlap much
    they are near, on others coefficients differ by some 10 % and more. Several classes are each
    learned against all others, in one batch.

    Columns are centred and scaled (unless `fit_intercept`, `standardize` say otherwise) to norm 1.
    The intercept is a coordinate of its own, of depth 1, which as `eps → 0` is free. Computes in
    float64 whatever JAX's configuration; fits of similar size share a compiled program.

    **Arguments:** those of `DLNRegressor`, but `positive` and `weight_decay`:

    - `s`: when training stops, `> 0`, in units of `1/‖Xᵀ(y − p)‖_∞`.
    - `eps`: the size of the initialisation, in `[0, 1)`, as small as 1e-300. 0, the limit process,
        needs `fit_intercept=False`. On data that separate, the limit goes to infinity at some time.
    - `depth`: the real number `D ≥ 2` of the network `u^D − v^D`.
    - `shape`: of the initialisation, positive, one number or one for each column.
    - `average`: learn the average of the model over training; `False`: the model at time `s`.
    - `fit_intercept`, `standardize`, `n_times`, `rtol`: as for `DLNRegressor`.

    **Attributes:** after `fit`,

    - `classes_`, `(k,)`.
    - `coef_` and `intercept_`, in the units of the data: `(1, d)` and `(1,)` for two classes,
        `(k, d)` and `(k,)` for more.
    - `s_path_`, `(n_times,)`; `coef_path_`, `(n_times, 1 or k, d)`, and `intercept_path_`,
        `(n_times, 1 or k)`: the models of stopping at these times.
    - `C_`, `(1 or k,)`: the `C` of the ℓ1-penalised logistic regression that `coef_` compares with,
        for columns scaled, if `standardize`, to mean square 1, as by `StandardScaler`.
    - `n_iter_`: steps of the integrator, or of the limit process.
    - `n_features_in_`, `feature_names_in_`: as everywhere in scikit-learn.

    !!! example

        ```python
        from dlnjax.sklearn import DLNClassifier

        X = np.random.default_rng(0).normal(size=(80, 5))
        y = np.where(X[:, 0] - X[:, 1] + 0.5 > 0, "yes", "no")
        model = DLNClassifier(s=10).fit(X, y)
        model.score(X, y)  # 1.0
        ```

    !!! cite "Reference"

        [B25] Berthier, *Diagonal Linear Networks and the Lasso Regularization Path*,
        arXiv 2509.18766; Moroshko, Woodworth, Gunasekar, Lee, Srebro & Soudry, *Implicit Bias in
        Deep Linear Classification*, arXiv 2007.06738.
    """

    # Of any type: scikit-learn asks that the constructor stores what it is given and `fit` checks.
    s: Any
    eps: Any
    depth: Any
    shape: Any
    average: Any
    fit_intercept: Any
    standardize: Any
    n_times: Any
    rtol: Any

    coef_: Any
    intercept_: Any
    classes_: np.ndarray
    s_path_: np.ndarray
    coef_path_: np.ndarray
    intercept_path_: np.ndarray
    C_: np.ndarray
    n_iter_: int

    def __init__(
        self,
        s: Any = 30.0,
        *,
        eps: Any = 1e-10,
        depth: Any = 2,
        shape: Any = 1.0,
        average: Any = True,
        fit_intercept: Any = True,
        standardize: Any = True,
        n_times: Any = 100,
        rtol: Any = 1e-7,
    ):
        self.s = s
        self.eps = eps
        self.depth = depth
        self.shape = shape
        self.average = average
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.n_times = n_times
        self.rtol = rtol

    def fit(self, X: Any, y: Any) -> "DLNClassifier":
        """Train on `X`, `(n, d)`, and the labels `y`, `(n,)`, of any kind. Returns `self`.

        **Raises:** `ValueError` for a bad parameter or bad data, such as a single class;
        `RuntimeError` if training does not reach `s`.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "DLNClassifier needs at least two classes: the data contain only one class, "
                f"{str(self.classes_[0])!r}."
            )
        check_network(self.eps, self.depth, self.rtol)
        if self.eps == 0 and self.fit_intercept:
            need = "above 0 with an intercept: 1e-100 is close (or pass `fit_intercept=False`)"
            refuse("eps", self.eps, need)
        times, (n, d) = times_until(self.s, self.n_times), X.shape
        center = bool(self.fit_intercept)
        part = standardized(X, np.zeros(n), center, bool(self.standardize))
        # Empty rows and columns, to sizes that data share. They change nothing.
        rows, columns = padded_size(n), padded_size(d)
        ones = np.ones((n, int(center)))
        inputs = np.hstack([ones, np.pad(part.X, ((0, 0), (0, columns - d)))])
        inputs = np.pad(inputs, ((0, rows - n), (0, 0)))
        shape = shape_of(self.shape, d)
        shape = np.pad(shape, (int(center), columns - d), constant_values=1)
        two = len(self.classes_) == 2
        labels = np.stack(
            [
                np.pad(np.where(index == k, 1.0, -1.0), (0, rows - n), constant_values=1)
                for k in ([1] if two else range(len(self.classes_)))
            ]
        )
        with enable_x64(True):
            as_array = lambda value: jnp.asarray(value, jnp.float64)
            *solution, result = train_classifier(
                as_array(np.broadcast_to(inputs, (len(labels), *inputs.shape))),
                as_array(labels),
                training_of(self, times, shape),
                center,
            )
            x, largest, steps = map(np.asarray, solution)
            report_failure(result, x, stacklevel=4)
        x = np.swapaxes(x, 0, 1)  # times, lanes, coordinates
        coef = x[:, :, int(center) :][:, :, :d] / part.X_scale
        offset = x[:, :, 0] if center else np.zeros(x.shape[:2])
        self.s_path_, self.coef_path_ = times, coef
        self.intercept_path_ = offset - coef @ part.X_mean
        self.coef_, self.intercept_ = coef[-1].copy(), self.intercept_path_[-1].copy()
        # κ = ‖r‖_∞/s, in units of the columns whose lasso this is.
        self.C_ = times[-1] / np.where(largest > 0, largest * part.unit, np.nan)
        self.n_iter_ = int(np.max(steps))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """`X @ coef_.T + intercept_`: `(n,)` for two classes, where it is positive for the second
        one, else `(n, k)`. Raises as `predict`."""
        scores = self._linear(X)
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row, `(n,)`.

        **Raises:** `NotFittedError` before `fit`; `ValueError` for another number of columns, NaN
        or inf.
        """
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else np.argmax(scores, axis=1)
        return self.classes_[index]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, `(n, k)`: of more than two classes those of each against
        all others, scaled to sum 1. Raises as `predict`."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.stack([expit(-scores), expit(scores)], axis=1)
        each = expit(scores)
        total = each.sum(axis=1, keepdims=True)
        uniform = np.full_like(each, 1 / each.shape[1])
        return np.divide(each, total, out=uniform, where=total > 0)
