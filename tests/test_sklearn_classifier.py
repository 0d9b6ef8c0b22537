"""`DLNClassifier` against the library, scikit-learn's logistic regression and plain loops."""

import pickle
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import dlnjax as dln
from dlnjax._batching import enable_x64
from dlnjax.sklearn import DLNClassifier


def _data(n=120, d=5, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.geomspace(0.3, 3, d) + rng.normal(size=d)
    scores = (X / X.std(0)) @ rng.normal(size=(d, classes)) + rng.gumbel(size=(n, classes))
    return X, np.argmax(scores - scores.mean(0) + np.linspace(0, 0.5, classes), axis=1)


# Two of them are skipped unless SCIPY_ARRAY_API=1 is set when SciPy is first imported.
@parametrize_with_checks([DLNClassifier()])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_is_the_flow(fit_intercept):
    X, y = _data()
    model = DLNClassifier(20, rtol=1e-9, fit_intercept=fit_intercept, n_times=30).fit(X, y)
    inputs = X - X.mean(0) * fit_intercept
    scale = np.linalg.norm(inputs, axis=0)
    signs = np.where(y == 1, 1.0, -1.0)
    frequency = np.mean(y == 1) if fit_intercept else 0.5
    with enable_x64(True):
        network: Any = dln.Deep(jnp.ones(5), jnp.ones(5), depth=2)
        columns = inputs / scale
        if fit_intercept:
            columns = np.hstack([np.ones((len(y), 1)), columns])
            network = dln.networks.MixedDepth(dln.Linear(jnp.zeros(1)), network)
        largest = np.max(abs((inputs / scale).T @ (y - frequency)))
        problem, s = dln.Logistic(columns, signs), model.s_path_ / largest
        flow = dln.gradient_flow(network, problem, s, eps=1e-10, rtol=1e-9, atol=1e-10)
        x = np.asarray(flow.x_mean)
    coef = x[:, int(fit_intercept) :] / scale
    np.testing.assert_allclose(model.coef_path_[:, 0], coef, atol=1e-7 * np.max(abs(coef)))
    if fit_intercept:
        offset = x[:, 0] - coef @ X.mean(0)
        np.testing.assert_allclose(model.intercept_path_[:, 0], offset, atol=1e-6)
    # C is s in the units of StandardScaler.
    np.testing.assert_allclose(model.C_, 20 / (largest * np.sqrt(len(y))), rtol=1e-10)


def test_limit_is_close_to_the_penalised_regression():
    # Orthogonal columns of a balanced design: no coordinate ever deactivates.
    rng = np.random.default_rng(1)
    X = np.linalg.qr(rng.normal(size=(200, 4)) - 0.0)[0] * np.sqrt(200)
    X -= X.mean(0)
    y = np.where(rng.random(200) < 1 / (1 + np.exp(-X @ [1.5, -1, 0.3, 0])), "b", "a")
    model = DLNClassifier(8, eps=1e-100).fit(X, y)
    scaled = StandardScaler().fit_transform(X)
    penalised = LogisticRegression(
        l1_ratio=1, C=float(model.C_[0]), solver="saga", tol=1e-10, max_iter=100_000
    ).fit(scaled, y)

    def objective(scores, coef):
        loss = np.sum(np.logaddexp(0, np.where(y == "b", -scores, scores)))
        return model.C_[0] * loss + np.sum(abs(coef))

    ours = objective(model.decision_function(X), model.coef_ * X.std(0))
    least = objective(penalised.decision_function(scaled), penalised.coef_)
    assert 0 < ours - least < 0.02 * least
    limit, close = (DLNClassifier(8, eps=eps, fit_intercept=False).fit(X, y) for eps in (0, 1e-300))
    np.testing.assert_allclose(close.coef_, limit.coef_, atol=3e-3 * np.max(abs(limit.coef_)))


def test_several_classes_are_each_against_all_others():
    X, y = _data(classes=3)
    names = np.array(["ant", "bee", "cat"])[y]
    model = DLNClassifier().fit(X, names)
    assert model.coef_.shape == (3, 5) and model.intercept_.shape == model.C_.shape == (3,)
    for k, name in enumerate(model.classes_):
        one = DLNClassifier().fit(X, names == name)
        np.testing.assert_allclose(model.coef_[k], one.coef_[0], rtol=1e-6, atol=1e-9)
    scores = model.decision_function(X)
    assert scores.shape == (len(X), 3)
    np.testing.assert_array_equal(model.predict(X), model.classes_[np.argmax(scores, axis=1)])
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, rtol=1e-12)


def test_two_classes():
    X, y = _data()
    model = DLNClassifier(10).fit(X, y)
    assert model.coef_.shape == (1, 5) and model.decision_function(X).shape == (120,)
    probability = model.predict_proba(X)
    np.testing.assert_allclose(
        np.log(probability[:, 1] / probability[:, 0]), model.decision_function(X), rtol=1e-9
    )
    # Units and names of the labels change nothing.
    units = np.geomspace(1e-3, 1e3, 5)
    other = DLNClassifier(10).fit(X * units, np.where(y, "yes", "no"))
    np.testing.assert_allclose(other.coef_ * units, model.coef_, rtol=1e-7, atol=1e-9)
    swapped = DLNClassifier(10).fit(X, 1 - y)
    np.testing.assert_allclose(swapped.coef_, -model.coef_, rtol=1e-7, atol=1e-9)
    assert np.mean(cross_val_score(model, X, y)) > 0.6
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_data_that_separate():
    X = np.random.default_rng(0).normal(size=(40, 3))
    y = X[:, 0] + X[:, 1] > 0
    model = DLNClassifier(1e4).fit(X, y)
    assert model.score(X, y) == 1 and np.isfinite(model.coef_).all()
    with pytest.raises(RuntimeError, match="did not reach its end"):
        DLNClassifier(1e4, eps=0, fit_intercept=False).fit(X, y)


REFUSED = {
    "s": ({"s": 0}, "`s` must be a positive, finite number, got 0"),
    "eps": ({"eps": 2}, "`eps` must be a number in [0, 1)"),
    "limit": ({"eps": 0}, "`eps` must be above 0 with an intercept: 1e-100 is close (or pass"),
    "depth": ({"depth": 1}, "`depth` must be a finite number of at least 2, got 1"),
    "shape": ({"shape": -1.0}, "`shape` must be positive and finite"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DLNClassifier(**options).fit(*_data())


def test_refuses_one_class():
    X, y = _data()
    with pytest.raises(ValueError, match="only one class, '0'"):
        DLNClassifier().fit(X, 0 * y)
