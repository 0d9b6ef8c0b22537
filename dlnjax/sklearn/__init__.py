"""scikit-learn estimators: linear models learned by a diagonal linear network and regularised by
early stopping, and the exact lasso path. Needs the extra `sklearn`.

The problem that is solved has no units: columns and response are centred (with `fit_intercept`) and
scaled to norm 1, all columns by one number unless `standardize`; `eps` and `shape` refer to it, and
times are in units of `1/‖Xᵀy‖_∞` (of a classifier, with `y` less its frequency). So `X → cX` and
`y → cy` change nothing but the units of `coef_`, and a stopping time means the same on a fold as on
all rows.

- `regressors.py`, `lasso.py`, `classifier.py`: the estimators.
- `base.py`, `checks.py`: what they share, on the side of scikit-learn.
- `training.py`: the batched solve, on the side of JAX.
"""

try:
    from .classifier import DLNClassifier as DLNClassifier
    from .lasso import LassoPathRegressor as LassoPathRegressor
    from .regressors import DLNRegressor as DLNRegressor, DLNRegressorCV as DLNRegressorCV
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "`dlnjax.sklearn` needs scikit-learn: run `pip install 'dlnjax[sklearn]'`."
    ) from _error
