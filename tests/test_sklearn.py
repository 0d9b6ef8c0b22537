"""The estimators: scikit-learn's own checks, and against the library, `Lasso` and plain loops."""

import importlib
import pickle
import re
import sys
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import sklearn
from jax import numpy_dtype_promotion, numpy_rank_promotion
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from sklearn.model_selection import GridSearchCV, GroupKFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import dlnjax as dln
from dlnjax._batching import enable_x64
from dlnjax.sklearn import DLNRegressor, DLNRegressorCV


@pytest.fixture(autouse=True)
def as_users_run_it():
    """In JAX's own configuration, which stays as it is."""
    with enable_x64(False), numpy_rank_promotion("allow"), numpy_dtype_promotion("standard"):
        yield
        assert jnp.ones(1).dtype == jnp.float32


def _data(n=40, d=6, seed=0):
    """Columns of several sizes and means, half of which matter."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.geomspace(0.1, 10, d) + rng.normal(size=d)
    w = (np.arange(d) % 2 - 0.3) / X.std(0)
    return X, X @ w + rng.normal(size=n) + 2


def _clone(model) -> Any:
    return clone(model)


# Two of them are skipped unless SCIPY_ARRAY_API=1 is set when SciPy is first imported.
@pytest.mark.filterwarnings("ignore:The best of the candidates for `s` is the last one")
@parametrize_with_checks([DLNRegressor(), DLNRegressorCV(cv=3)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# --- against the library and the lasso --------------------------------------------------------


def _close(actual, expected, rtol):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.max(np.abs(expected)))


FLOWS = {
    # u² − v² with u = v = 1 at first is u∘v with u = 2, v = 0.
    "decay": (40, {"weight_decay": 0.05}, dln.UV(2 * np.ones(6), np.zeros(6))),
    "positive, wide": (10, {"positive": True, "eps": 1e-5}, dln.USquared(np.ones(20))),
}


@pytest.mark.parametrize(("n", "options", "network"), FLOWS.values(), ids=FLOWS)
def test_is_the_flow(n, options, network):
    d = len(network.u)
    X, y = _data(n, d)
    model = DLNRegressor(s=100, rtol=1e-9, **options).fit(X, y)
    assert model.coef_path_.shape == (100, d) and model.s_path_[-1] == 100
    np.testing.assert_array_equal(model.coef_, model.coef_path_[-1])
    assert model.coef_.dtype == np.float64 and model.n_iter_ > 10
    _close(model.predict(X).mean(), y.mean(), 1e-13)
    _close(model.intercept_path_ + model.coef_path_ @ X.mean(0), np.full(100, y.mean()), 1e-13)

    # The same by hand: everything centred and of norm 1.
    X, y = X - X.mean(0), y - y.mean()
    scale, size = np.linalg.norm(X, axis=0), np.linalg.norm(y)
    r = (X / scale).T @ (y / size)
    largest = np.max(r if model.positive else abs(r))
    with enable_x64(True):
        problem = dln.LeastSquares(X / scale, y / size, model.weight_decay * largest)
        s = model.s_path_ / largest
        flow = dln.gradient_flow(network, problem, s, eps=model.eps, rtol=1e-9, atol=1e-10)
        bound = float(dln.certificate(problem, flow)[-1])
    # Both have errors of their steps.
    _close(model.coef_path_ * scale / size, np.asarray(flow.x_mean), 1e-8)
    np.testing.assert_allclose(model.certificate_, bound * size**2, rtol=1e-5)
    model.set_params(average=False).fit(X, y)
    _close(model.coef_path_ * scale / size, np.asarray(flow.x), 1e-6)


def test_deep_networks_tend_to_their_limit():
    X, y = _data()
    flow = DLNRegressor(s=100, eps=1e-30, depth=3, shape=np.geomspace(0.7, 1.4, 6)).fit(X, y)
    limit = _clone(flow).set_params(eps=0).fit(X, y)
    _close(flow.coef_path_, limit.coef_path_, 1e-7)
    uniform = _clone(limit).set_params(shape=1.0).fit(X, y)
    assert not np.allclose(uniform.coef_, limit.coef_, rtol=0.01)
    _close(uniform.coef_, _clone(uniform).set_params(depth=2).fit(X, y).coef_, 1e-10)


LASSO = {
    "standardized": {},
    "in units": {"standardize": False},
    "decay": {"weight_decay": 0.05},
    "no intercept": {"fit_intercept": False, "standardize": False},
    "deep": {"depth": 4, "s": 10},
    "positive": {"positive": True},
}


@pytest.mark.parametrize("options", LASSO.values(), ids=LASSO)
def test_limit_is_the_lasso(options):
    X, y = _data(400, 5)
    X = (X - X.mean(0)) / X.std(0) * np.linspace(0.8, 1.2, 5) + 0.1
    model = DLNRegressor(**{"s": 300, "eps": 0, **options}).fit(X, y)
    inputs: Any = StandardScaler().fit_transform(X) if model.standardize else X
    centred = inputs - inputs.mean(0) * model.fit_intercept
    with enable_x64(True):
        assert dln.is_always_monotone(dln.LeastSquares(centred, y), positive=model.positive)
    lasso = Lasso(
        model.alpha_,
        fit_intercept=model.fit_intercept,
        positive=model.positive,
        tol=1e-15,
        max_iter=100_000,
    ).fit(inputs, y)
    _close(model.predict(X), lasso.predict(inputs), 1e-9)
    assert 0 <= model.certificate_ < 1e-12 * np.sum(y**2)
    if not model.standardize:
        _close(model.coef_, lasso.coef_, 1e-9)
        np.testing.assert_allclose(model.intercept_, lasso.intercept_, rtol=1e-9, atol=1e-9)


def test_units_change_nothing():
    X, y = _data()
    units = 2.0 ** np.arange(-3, 3)
    one = DLNRegressor().fit(X, y)
    for scale, standardize in [(units, True), (0.25, False)]:
        one.set_params(standardize=standardize).fit(X, y)
        other = _clone(one).fit(X * scale, y * 1024)
        np.testing.assert_allclose(other.coef_path_, one.coef_path_ * 1024 / scale, rtol=1e-9)
        np.testing.assert_allclose(other.intercept_, one.intercept_ * 1024, rtol=1e-9)
        np.testing.assert_allclose(other.certificate_, one.certificate_ * 1024**2, rtol=1e-9)


def test_no_square_overflows_or_is_lost():
    X, y = _data()
    plain = DLNRegressor(s=5, eps=0).fit(X, y)
    for X_scale, y_scale in ((1, 1e200), (1e-200, 1), (10.0 ** np.arange(-150, 150, 50), 1e-100)):
        model = DLNRegressor(s=5, eps=0).fit(X * X_scale, y * y_scale)
        _close(model.coef_ * X_scale, plain.coef_ * y_scale, 1e-9)
    assert np.all(DLNRegressor(s=5, eps=0).fit(X, np.full(len(y), 0.1)).coef_ == 0)


@pytest.mark.parametrize("eps", [1e-10, 0])
def test_degenerate_data(eps):
    X, y = _data()
    model = DLNRegressor(eps=eps)
    reference = _clone(model).fit(X[:, [0, 1, 2, 4, 5]], y)
    X[:, 3] = 0.1  # which is no sum of powers of 2: its centred values are rounding
    model.fit(X, y)
    assert model.coef_[3] == 0
    _close(np.delete(model.coef_, 3), reference.coef_, 1e-6)
    for data in [(X, np.full(40, 0.1)), (X[:1], y[:1]), (np.ones((40, 6)), y)]:
        model.fit(*data)
        _close(model.predict(X), np.full(40, data[1].mean()), 1e-12)
        assert abs(model.certificate_) < 1e-12 * np.sum(data[1] ** 2) + 1e-30


# --- cross-validation -------------------------------------------------------------------------


def test_cross_validation_is_a_loop():
    X, y = _data()
    y = y + np.random.default_rng(1).normal(size=40)
    cv = ShuffleSplit(3, test_size=0.3, random_state=0)
    model = DLNRegressorCV(cv=cv).fit(X, y)
    errors = []
    for train, test in cv.split(X):
        fold = DLNRegressor(s=1000).fit(X[train], y[train])
        np.testing.assert_array_equal(fold.s_path_, model.s_path_)
        predictions = X[test] @ fold.coef_path_.T + fold.intercept_path_
        errors.append(np.mean((predictions - y[test, None]) ** 2, axis=0))
    np.testing.assert_allclose(model.mse_path_, np.transpose(errors), rtol=1e-9)
    best = np.argmin(np.mean(errors, axis=0))
    assert model.s_ == model.s_path_[best] and 0 < best < 99
    whole = DLNRegressor(s=1000).fit(X, y)
    _close(model.coef_path_, whole.coef_path_, 1e-9)
    # And trained only until then, up to the errors of the steps.
    whole.set_params(s=model.s_).fit(X, y)
    for name in ("coef_", "intercept_", "alpha_"):
        _close(getattr(model, name), getattr(whole, name), 1e-6)
    np.testing.assert_allclose(model.certificate_, whole.certificate_, rtol=1e-4)


def test_several_outputs_are_fitted_as_if_alone():
    X, y = _data()
    both = np.stack([y, X[:, 1] - 1e3 * X[:, 2] + 5], axis=1)
    for model in (DLNRegressor(), DLNRegressorCV(times=50, cv=3)):
        model = _clone(model)
        with warnings.catch_warnings():  # the second output has no noise: later is better
            warnings.filterwarnings("ignore", "The best of the candidates")
            model.fit(X, both)
            alone = [_clone(model).fit(X, output) for output in both.T]
        assert model.coef_.shape == (2, 6) and model.predict(X).shape == (40, 2)
        for name in ("coef_", "intercept_", "alpha_"):
            each = np.stack([getattr(one, name) for one in alone])
            np.testing.assert_allclose(getattr(model, name), each, rtol=1e-8, atol=1e-12)
        bounds = [one.certificate_ for one in alone]  # a difference of numbers like the squares
        atol = 1e-12 * np.sum(both**2, axis=0)
        assert np.all(abs(model.certificate_ - bounds) < atol)
        paths = np.stack([one.coef_path_ for one in alone], axis=1)
        _close(model.coef_path_, paths, 1e-9)
        np.testing.assert_allclose(
            model.score(X, both),
            np.mean([one.score(X, out) for one, out in zip(alone, both.T, strict=True)]),
        )
    assert list(model.s_) == [one.s_ for one in alone]
    assert model.mse_path_.shape == (50, 3, 2)


@pytest.mark.parametrize("eps", [1e-10, 0])
def test_weights_count_rows(eps):
    X, y = _data()
    count = np.arange(40) % 4
    weighted = DLNRegressor(eps=eps, rtol=1e-9).fit(X, y, sample_weight=count / 7)
    repeated = _clone(weighted).fit(np.repeat(X, count, axis=0), np.repeat(y, count))
    for name in ("coef_path_", "intercept_", "alpha_", "s_path_"):
        _close(getattr(weighted, name), getattr(repeated, name), 1e-7)
    mean_weight = np.mean(count[count > 0])
    np.testing.assert_allclose(
        weighted.certificate_ * mean_weight, repeated.certificate_, rtol=1e-3, atol=1e-9
    )


def test_weights_count_test_errors():
    X, y = _data()
    weight = np.linspace(0, 2, 40)
    model = DLNRegressorCV(times=20, cv=2).fit(X, y, sample_weight=weight)
    train, test = np.arange(20, 40), np.arange(20)
    fold = DLNRegressor(s=1000, n_times=20).fit(X[train], y[train], weight[train])
    errors = (X[test] @ fold.coef_path_.T + fold.intercept_path_ - y[test, None]) ** 2
    expected = weight[test] @ errors / np.sum(weight[test])
    np.testing.assert_allclose(model.mse_path_[:, 0], expected, rtol=1e-6)


def test_groups_stay_together():
    X, y = _data()
    groups = np.arange(40) // 3
    cv = GroupKFold(4)
    direct = DLNRegressorCV(times=10, cv=cv).fit(X, y, groups=groups)
    listed = DLNRegressorCV(times=10, cv=list(cv.split(X, y, groups))).fit(X, y)
    np.testing.assert_array_equal(direct.mse_path_, listed.mse_path_)
    with sklearn.config_context(enable_metadata_routing=True):
        routed: Any = DLNRegressorCV(times=10, cv=cv).set_fit_request(groups=True)
        model: Any = make_pipeline(StandardScaler(), routed).fit(X, y, groups=groups)
    np.testing.assert_allclose(model[-1].mse_path_, direct.mse_path_, rtol=1e-5)


def test_refuses_weights():
    X, y = _data()
    with pytest.raises(ValueError, match="non-zero number|0 for every row"):
        DLNRegressor().fit(X, y, np.zeros(40))
    with pytest.raises(ValueError, match="Negative values"):
        DLNRegressor().fit(X, y, -np.ones(40))
    with pytest.raises(ValueError, match="0 for all rows of a fold, or for all others"):
        DLNRegressorCV(cv=2).fit(X, y, (np.arange(40) < 20).astype(float))


def test_says_when_the_best_time_is_the_last():
    X = np.random.default_rng(0).normal(size=(40, 3))
    with pytest.warns(UserWarning, match=r"the last one, 1000.*np.geomspace\(1, 100000\)"):
        DLNRegressorCV(times=10).fit(X, X[:, 0])


def test_pipeline_and_grid_search():
    X, y = _data()
    times = np.geomspace(2, 500, 100)
    model = DLNRegressorCV(times, cv=3).fit(X, y)
    some = [0, 40, 60, 99]
    search: Any = GridSearchCV(
        make_pipeline(StandardScaler(), DLNRegressor()),
        {"dlnregressor__s": times[some], "dlnregressor__eps": [1e-10, 1e-5]},
        scoring="neg_mean_squared_error",
        cv=3,
    ).fit(X, y)
    scores = search.cv_results_["mean_test_score"].reshape(2, -1)
    np.testing.assert_allclose(-scores[0], model.mse_path_.mean(1)[some], rtol=1e-5)
    assert np.all(scores[0] != scores[1])
    assert search.best_params_["dlnregressor__s"] in times[some]
    assert search.predict(X).shape == (40,) and search.score(X, y) < 0


def test_clone_and_pickle():
    X, y = _data()
    model = DLNRegressor(shape=np.linspace(0.5, 1, 6), s=10).fit(X, y)
    copy = _clone(model)
    assert not hasattr(copy, "coef_")
    np.testing.assert_array_equal(copy.fit(X, y).coef_, model.coef_)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


# --- what goes wrong --------------------------------------------------------------------------

REFUSED = {
    "s = 0": ({"s": 0}, "`s` must be a positive, finite number, got 0"),
    "s = inf": ({"s": np.inf}, "`s` must be a positive, finite number, got inf"),
    "s = text": ({"s": "10"}, "`s` must be a positive, finite number, got '10'"),
    "eps = 1": ({"eps": 1.0}, "`eps` must be a number in [0, 1), 0 for the limit"),
    "eps = NaN": ({"eps": np.nan}, "`eps` must be a number in [0, 1)"),
    "depth = 1": ({"depth": 1}, "`depth` must be a finite number of at least 2, got 1"),
    "deep, positive": ({"depth": 3, "positive": True}, "(or pass `positive=False`), got 3"),
    "deep, decay": ({"depth": 3, "weight_decay": 0.1}, "(or pass `weight_decay=0.0`), got 3"),
    "decay = 1": ({"weight_decay": 1}, "`weight_decay` must be a number in [0, 1), a fraction"),
    "shape = 0": ({"shape": 0.0}, "`shape` must be positive and finite"),
    "shapes": ({"shape": np.ones(5)}, "a number or one for each of the 6 columns"),
    "shape = text": ({"shape": "large"}, "`shape` must be positive and finite"),
    "rtol = 0": ({"rtol": 0}, "`rtol` must be a number in (0, 1), such as 1e-7, got 0"),
    "n_times = 1": ({"n_times": 1}, "`n_times` must be a whole number of at least 2, got 1"),
    "times = 1": ({"times": 1}, "`times` must be a whole number of at least 2, or an increasing"),
    "times = 0, 1": ({"times": [0, 1]}, "an increasing array of positive times, got [0, 1]"),
    "times = 2, 1": ({"times": [2, 1]}, "an increasing array of positive times, got [2, 1]"),
    "times = []": ({"times": []}, "an increasing array of positive times, got []"),
    "no folds": ({"times": 5, "cv": []}, "`cv` must be folds, each with rows to train on"),
    "empty fold": ({"times": 5, "cv": [([0, 1], []), ([0], [1])]}, "and rows to test"),
    "times = inf": ({"times": [1, np.inf]}, "an increasing array of positive times"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(options, message):
    kind = DLNRegressorCV if "times" in options else DLNRegressor
    model = kind(**options)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.fit(*_data())
    assert not hasattr(model, "coef_")


def test_says_when_training_fails():
    X = scipy.linalg.hilbert(12)
    y = np.random.default_rng(0).normal(size=12)
    with pytest.warns(ConvergenceWarning, match=r"inexact \(limit_inaccurate\)") as caught:
        model = DLNRegressor(s=1e6, eps=0).fit(X, y)
    assert len(caught) == 1 and np.all(np.isfinite(model.coef_))
    with pytest.raises(RuntimeError, match=r"did not reach its end \(invalid_shape\)"):
        DLNRegressor(shape=1e300).fit(X, y)


def test_without_scikit_learn_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    for name in [name for name in sys.modules if name.startswith("dlnjax.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'dlnjax[sklearn]'")):
        importlib.import_module("dlnjax.sklearn")
