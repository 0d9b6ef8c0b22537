"""scikit-learn estimators: linear models learned by a diagonal linear network and regularised by
early stopping. Needs the extra `sklearn`.

The problem that is solved has no units: columns and response are centred (with `fit_intercept`) and
scaled to norm 1, all columns by one number unless `standardize`; `eps` and `shape` refer to it, and
times are in units of `1/‖Xᵀy‖_∞`. So `X → cX` and `y → cy` change nothing but the units of `coef_`,
and a stopping time means the same on a fold as on all rows.

- `regressors.py`: the two estimators.
- `base.py`: what both share, on the side of scikit-learn.
- `training.py`: the batched solve, on the side of JAX.
"""

try:
    from .regressors import DLNRegressor as DLNRegressor, DLNRegressorCV as DLNRegressorCV
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "`dlnjax.sklearn` needs scikit-learn: run `pip install 'dlnjax[sklearn]'`."
    ) from _error
