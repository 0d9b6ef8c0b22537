"""`LassoPathRegressor` against scikit-learn's lassos and fine grids."""

import re
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Lasso, LassoCV, LassoLarsIC, LinearRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from dlnjax.sklearn import LassoPathRegressor


def _data(n=40, d=6, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.geomspace(0.1, 10, d) + rng.normal(size=d)
    w = (np.arange(d) % 2) / X.std(0)
    return X, X @ w + 2 * rng.normal(size=n) + 2


def _lasso(alpha, **options) -> Any:
    return Lasso(alpha, tol=1e-14, max_iter=1_000_000, **options)


# Two of them are skipped unless SCIPY_ARRAY_API=1 is set when SciPy is first imported.
@parametrize_with_checks([LassoPathRegressor(), LassoPathRegressor(alpha=0.1, positive=True)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("shape", [(40, 6), (10, 20)])
def test_is_the_lasso(shape, fit_intercept, positive):
    X, y = _data(*shape)
    options = {"fit_intercept": fit_intercept, "positive": positive}
    path = LassoPathRegressor(0.0, standardize=False, **options).fit(X, y)
    for alpha in np.geomspace(0.01, 0.9, 4) * path.alphas_[0]:
        model = LassoPathRegressor(alpha, standardize=False, **options).fit(X, y)
        lasso = _lasso(alpha, **options).fit(X, y)
        np.testing.assert_allclose(model.coef_, lasso.coef_, atol=1e-8 * np.max(abs(lasso.coef_)))
        np.testing.assert_allclose(model.intercept_, lasso.intercept_, rtol=1e-8, atol=1e-8)
    above = LassoPathRegressor(2 * path.alphas_[0], **options).fit(X, y)
    assert not above.coef_.any()


def test_standardizes_as_scikit_learn():
    X, y = _data()
    model = LassoPathRegressor(0.3).fit(X, y)
    scaler = StandardScaler().fit(X)
    lasso = _lasso(0.3).fit(scaler.transform(X), y)
    np.testing.assert_allclose(model.coef_ * scaler.scale_, lasso.coef_, atol=1e-8)
    np.testing.assert_allclose(model.predict(X), lasso.predict(scaler.transform(X)), rtol=1e-8)


def test_path_ends_at_least_squares():
    X, y = _data()
    model = LassoPathRegressor(0).fit(X, y)
    end = LinearRegression().fit(X, y)
    np.testing.assert_allclose(model.coef_, end.coef_, rtol=1e-9)
    assert model.alphas_[-1] == 0 and np.all(np.diff(model.alphas_) < 0)
    assert not model.coef_path_[0].any() and model.n_iter_ >= 6
    # Between knots the path is linear in alpha.
    middle = (model.alphas_[1] + model.alphas_[2]) / 2
    between = LassoPathRegressor(middle).fit(X, y)
    np.testing.assert_allclose(between.coef_, model.coef_path_[1:3].mean(0), rtol=1e-12, atol=1e-14)


def test_number_of_nonzeros():
    X, y = _data()
    for k in range(8):
        model = LassoPathRegressor(n_nonzero=k).fit(X, y)
        assert np.count_nonzero(model.coef_) == min(k, 6)
        later = LassoPathRegressor(0.999 * model.alpha_).fit(X, y)
        assert np.count_nonzero(later.coef_) == min(k + 1, 6)


def test_nonzeros_that_leave_again():
    X, y = np.array([[2, 1], [0, 0.5]]), np.array([1, 1.5])
    model = LassoPathRegressor(n_nonzero=1, fit_intercept=False, standardize=False).fit(X, y)
    # Lasso(.7) has two, since one coefficient is not 0 between two knots.
    assert np.count_nonzero(_lasso(0.7, fit_intercept=False).fit(X, y).coef_) == 2
    np.testing.assert_allclose(model.alpha_, 0.75, rtol=1e-12)


@pytest.mark.parametrize("criterion", ["aic", "bic"])
def test_criterion_is_that_of_scikit_learn(criterion):
    X, y = _data()
    scaled = StandardScaler().fit_transform(X)
    theirs = LassoLarsIC(criterion).fit(scaled, y)
    model = LassoPathRegressor(criterion=criterion).fit(X, y)
    np.testing.assert_allclose(model.alphas_, theirs.alphas_, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(model.criterion_path_, theirs.criterion_, rtol=1e-9)
    np.testing.assert_allclose(model.alpha_, theirs.alpha_, rtol=1e-8)
    for seed in range(5):
        exact = np.random.default_rng(seed).normal(size=(30, 5))
        with pytest.raises(ValueError, match="cannot be estimated: 30 rows and 5 columns leave no"):
            LassoPathRegressor(criterion=criterion).fit(exact, exact[:, 0])
    X, y = _data(10, 20)
    with pytest.raises(ValueError, match="cannot be estimated: 10 rows and 20 columns leave no"):
        LassoPathRegressor(criterion=criterion).fit(X, y)
    known = LassoPathRegressor(criterion=criterion, noise_variance=4.0).fit(X, y)
    theirs = LassoLarsIC(criterion, noise_variance=4.0).fit(StandardScaler().fit_transform(X), y)
    np.testing.assert_allclose(known.alpha_, theirs.alpha_, rtol=1e-8)


def test_cross_validation_is_exact():
    X, y = _data()
    model = LassoPathRegressor(cv=4, standardize=False).fit(X, y)
    top = model.cv_alphas_[0]
    grid = np.concatenate(
        [model.alpha_ * np.linspace(0.99, 1.01, 51), np.geomspace(1e-4, 1, 50) * top]
    )
    lasso_cv: Any = LassoCV  # whose types know numbers of alphas only
    options = {"cv": 4, "tol": 1e-13, "max_iter": 1_000_000}
    theirs = lasso_cv(alphas=np.sort(grid)[::-1], **options).fit(X, y)
    at = np.argmin(abs(theirs.alphas_ - model.alpha_))
    error = theirs.mse_path_.mean(axis=1)
    assert np.argmin(error) == at
    # Each fold is quadratic in alpha between knots: the same numbers at the knots.
    some = model.cv_alphas_[[1, 5, 9]]
    again = lasso_cv(alphas=some, **options).fit(X, y)
    np.testing.assert_allclose(again.mse_path_, model.mse_path_[[1, 5, 9]], rtol=1e-7)
    np.testing.assert_allclose(model.coef_, _lasso(model.alpha_).fit(X, y).coef_, atol=1e-8)


def test_weights_count_rows_and_groups_stay_together():
    X, y = _data()
    count = np.arange(40) % 4
    model = LassoPathRegressor(0.2, standardize=False).fit(X, y, sample_weight=count)
    lasso = _lasso(0.2).fit(X, y, sample_weight=count)
    np.testing.assert_allclose(model.coef_, lasso.coef_, atol=1e-8)
    standardized = LassoPathRegressor(0.2).fit(X, y, sample_weight=count)
    repeated = LassoPathRegressor(0.2).fit(np.repeat(X, count, axis=0), np.repeat(y, count))
    np.testing.assert_allclose(standardized.coef_, repeated.coef_, rtol=1e-10, atol=1e-12)
    for criterion in ("aic", "bic"):
        chosen = LassoPathRegressor(criterion=criterion).fit(X, y, sample_weight=np.full(40, 0.3))
        same = LassoPathRegressor(criterion=criterion).fit(X, y)
        np.testing.assert_allclose(chosen.alpha_, same.alpha_, rtol=1e-10)
    some = np.arange(40) % 3 > 0
    left_out = LassoPathRegressor(criterion="bic").fit(X[some], y[some])
    far = X.copy()
    far[~some] = 1e200
    weighted = LassoPathRegressor(criterion="bic").fit(far, y, sample_weight=1e308 * some)
    np.testing.assert_allclose(weighted.coef_, left_out.coef_, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="0 for all rows of a fold, or for all others"):
        LassoPathRegressor(cv=5).fit(X, y, sample_weight=np.arange(40) >= 8)
    groups, cv = np.arange(40) // 3, GroupKFold(4)
    direct = LassoPathRegressor(cv=cv).fit(X, y, groups=groups)
    listed = LassoPathRegressor(cv=list(cv.split(X, y, groups))).fit(X, y)
    assert direct.alpha_ == listed.alpha_


def test_of_several_best_the_largest_is_taken():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3))
    y = np.where(np.arange(40) < 20, rng.normal(size=40), -5 * X[:, 0])
    y[:20] -= y[:20].mean() - y[20:].mean()
    cv = [(np.arange(20), np.arange(20, 40))]
    model = LassoPathRegressor(cv=cv, standardize=False).fit(X, y)
    theirs: Any = LassoCV(cv=cv).fit(X, y)
    np.testing.assert_array_equal(theirs.coef_, 0)
    np.testing.assert_array_equal(model.coef_, 0)
    few = LassoPathRegressor(cv=2).fit(X[:2], y[:2])  # of one row each fold learns nothing
    np.testing.assert_array_equal(few.coef_, 0)


def test_degenerate_data():
    X, y = _data()
    X[:, 3], X[:, 4] = 0.1, X[:, 1]
    model = LassoPathRegressor(0.01).fit(X, y)
    assert model.coef_[3] == 0 and np.isfinite(model.coef_).all()
    constant = LassoPathRegressor().fit(X, np.full(40, 0.1))
    assert not constant.coef_.any()
    np.testing.assert_allclose(constant.intercept_, 0.1)


REFUSED = {
    "both": ({"alpha": 1.0, "n_nonzero": 2}, "Pass `alpha` or `n_nonzero`, not both"),
    "alpha": ({"alpha": -1.0}, "`alpha` must be a finite number of at least 0, got -1.0"),
    "n_nonzero": ({"n_nonzero": 1.5}, "`n_nonzero` must be a whole number of at least 0, got 1.5"),
    "criterion": ({"criterion": "mdl"}, '`criterion` must be "cv", "aic" or "bic", got \'mdl\''),
    "variance": (
        {"noise_variance": 0},
        "`noise_variance` must be a positive, finite number, got 0",
    ),
    "no folds": ({"cv": []}, "`cv` must be folds, each with rows to train on"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LassoPathRegressor(**options).fit(*_data())
