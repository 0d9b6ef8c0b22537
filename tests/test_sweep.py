"""Sweeps: what they compute."""

import dataclasses
import json
import sys
import types
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import INSTANCES, cheap, computed, correlations, scaled

import dlnjax as dln
from dlnjax._sweep.progress import Progress


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return computed(tmp_path_factory)


def test_values_and_labels(store):
    data = dln.open_sweep(store)
    assert data.correlations.dims == ("size", "network", "instance", "weight_decay", "coordinate")
    assert data.scaled.shape == (2, 1, INSTANCES, 1)
    assert data.correlations.attrs["units"] == "u"
    assert list(data["size"].values) == ["2×3", "3×4"] and list(data.n.values) == [2, 3]
    values = data.correlations.sel(size="2×3", network="uv", weight_decay=0)
    assert np.isnan(values.isel(coordinate=3)).all()
    # Each instance depends on the key, the size and its number.
    for i in (0, 9000, INSTANCES - 1):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 3), i)
        X, y = dln.generators.Gaussian()(key, 2, 3)
        np.testing.assert_allclose(values.isel(instance=i)[:3], X.T @ y, rtol=1e-12)


def make(factor):
    def metric(problem, power=2.0):
        return factor * jnp.sum(problem.r**power)

    return metric


def test_functions_are_what_they_use(monkeypatch):
    """Closures, defaults, constants, globals, and all of that in helper functions."""

    def of(fn):
        return json.loads(json.dumps(cheap(metrics={"it": fn}).describe()["metrics"]))

    assert of(make(1.0)) == of(make(1.0)) != of(make(5.0))
    other = make(1.0)
    other.__defaults__ = (3.0,)
    assert of(other) != of(make(1.0))
    first, second = [lambda problem: 1.0, lambda problem: 2.0]
    assert of(first) != of(second) and of(jax.jit(first)) != of(jax.jit(second))
    before = of(calls_helper)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    changed = of(calls_helper)
    assert changed != before
    monkeypatch.setattr(sys.modules[__name__], "helper", lambda x: x + FACTOR)
    assert of(calls_helper) not in (before, changed)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", object())
    with pytest.raises(
        TypeError, match="nothing tells one object from another.*calls_helper|lambda"
    ):
        of(calls_helper)


@dataclasses.dataclass(frozen=True)
class Noise:
    name: str

    def __call__(self, key, n, d):
        return jax.random.normal(key, (n, d)), jnp.ones(n)


def test_fields_do_not_hide_what_they_are_of():
    assert cheap(generator=Noise("a")).describe() != cheap(generator=Noise("b")).describe()
    described = json.dumps(cheap(generator=Noise("a")).describe()["generator"])
    assert "Noise" in described and '"a"' in described


FACTOR = 2.0


def helper(x):
    return x * FACTOR


def calls_helper(problem):
    return helper(jnp.sum(problem.r))


def spoilt(key, n, d):
    """One in four instances is NaN."""
    X, y = dln.generators.Planted(1, noise=0.1)(key, n, d)
    is_bad = jax.random.uniform(jax.random.fold_in(key, 0)) < 0.25
    return X, jnp.where(is_bad, jnp.nan, y)


def test_flows_and_bad_lanes(tmp_path):
    sweep = dln.Sweep(
        generator=spoilt,
        instances=9,
        sizes=[(2, 3)],
        networks=["usquared"],
        weight_decay=[0.0, 0.1],
        eps=[1e-5, 1e-20],
        s=dln.KnotGrid(points=3),
        metrics={"gap": dln.metrics.relative_gap, "monotone": "is_monotone"},
        key=3,
    )
    with pytest.warns(UserWarning, match="18 solves failed: .*`flow_result`, `path_result` of"):
        data = dln.run_sweep(sweep, tmp_path / "store").load()
    assert data.gap.dims[-2:] == ("log_eps", "s") and data.monotone.dims[-1] == "weight_decay"
    names = data.flow_result.flag_meanings.split()
    good = (data.flow_result == 0).squeeze().values  # (instance, decay, ε)
    assert 0 < (~good).sum() < good.size
    invalid = data.flow_result.flag_values[names.index("invalid_data")]
    assert set(np.unique(data.flow_result)) == {0, invalid}
    assert (np.isnan(data.gap.squeeze().values) == ~good[..., None]).all()
    assert (np.isnan(data.monotone.squeeze().values) == ~good[..., 0]).all()

    # By hand.
    def one(index, decay, log_eps):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 2), 3)
        problem = dln.LeastSquares(*spoilt(jax.random.fold_in(key, index), 2, 3), decay)
        path = dln.lasso_path(problem, positive=True, throw=False)
        s = dln.KnotGrid(points=3)(problem, path)
        network = dln.USquared(jnp.ones(3))
        flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, throw=False)
        return dln.suboptimality_gap(problem, flow.x_mean, s, path=path).relative

    lanes = np.meshgrid(np.arange(9), [0.0, 0.1], np.log([1e-5, 1e-20]), indexing="ij")
    want = jax.vmap(one)(*(jnp.asarray(v.ravel()) for v in lanes)).reshape(9, 2, 2, 3)
    np.testing.assert_allclose(data.gap.squeeze(), want, rtol=1e-6, atol=1e-12)


def test_time_left_is_by_the_cost_of_each_cell(capsys, monkeypatch):
    now = 0.0
    clock = types.SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("dlnjax._sweep.progress.time", clock)
    progress = Progress(shown=True)
    now = 40.0
    progress.tick()
    assert "compiling" in capsys.readouterr().err
    now = 0.0
    progress.begin(Counter({0: 20, 1: 200}), 22)
    now = 10.0
    progress.update(0, 10, seconds=10.0, failed=1)  # 1 s each, one at a time
    assert progress.seconds_left() is None  # of the other cell nothing is known
    now = 30.0
    progress.update(1, 10, seconds=20.0, failed=0)  # 2 s each
    assert progress.seconds_left() == 10 * 1 + 190 * 2
    progress._last_line = 0.0
    progress.tick()
    line = "2 of 22 blocks, 20 of 220 instances, 0.667 instances/s, 06:30 left, 1 failed"
    assert capsys.readouterr().err.strip() == line
    now = 31.0
    progress.tick()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "name", ["rademacher", "z_matrix", "toeplitz", "equicorrelated", "planted"]
)
def test_generators(name):
    arguments = {"toeplitz": (0.5,), "equicorrelated": (0.5,), "planted": (2, 0.0)}.get(name, ())
    generator: Any = cheap(generator=(name, *arguments)).generator
    keys = jax.random.split(jax.random.key(0), 4000)
    n = 4 if name == "z_matrix" else 1
    X, y = jax.vmap(lambda key: generator(key, n, 4))(keys)
    assert X.shape == (4000, n, 4) and y.shape == (4000, n)
    if name == "z_matrix":
        off = (X.mT @ X)[:, ~np.eye(4, dtype=bool)]
        assert float(off.max()) < 1e-12
        return
    lag = abs(np.arange(4)[:, None] - np.arange(4)[None, :])
    covariance = {"toeplitz": 0.5**lag, "equicorrelated": np.where(lag, 0.5, 1)}
    np.testing.assert_allclose(
        np.cov(X[:, 0].T), covariance.get(name, np.eye(4)), atol=4 / 4000**0.5
    )
    if name == "rademacher":
        assert set(np.unique(X)) == set(np.unique(y)) == {-1.0, 1.0}


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"generator": "normal"}, ValueError, "There is no generator 'normal'.*gaussian"),
        ({"generator": ("toeplitz", 2.0)}, ValueError, r"`correlation` must lie in \[0, 1\)"),
        ({"generator": "toeplitz"}, TypeError, "does not take the arguments"),
        ({"generator": 3}, TypeError, "`generator` is a name"),
        ({"instances": 0}, ValueError, "`instances` must be a positive integer"),
        ({"instances": None}, ValueError, "needs `instances`"),
        ({"sizes": [3, 4]}, ValueError, r"`sizes` are pairs"),
        ({"sizes": [(3, 4), (3, 4)]}, ValueError, "none twice"),
        ({"networks": "uv"}, TypeError, r"`networks` is a list or a dict.*\['uv'\]"),
        ({"networks": ["vv"]}, ValueError, "There is no network 'vv'"),
        ({"networks": ["uv", "uv"]}, ValueError, "different names"),
        ({"metrics": []}, ValueError, "at least one entry"),
        ({"metrics": ["gap"]}, ValueError, "There is no metric 'gap'.*max_gap"),
        ({"metrics": [lambda flows: 0]}, TypeError, "has the parameter 'flows'"),
        ({"metrics": {"size": scaled}}, ValueError, "cannot use the name 'size'"),
        ({"metrics": {"time": scaled}}, ValueError, "cannot use the name 'time'"),
        ({"metrics": {"a_result": scaled}}, ValueError, "cannot use the name 'a_result'"),
        ({"metrics": {"a/b": scaled}}, ValueError, "Choose letters, digits"),
        ({"metrics": [lambda problem: 0]}, ValueError, "'<lambda>'.*A dict gives names"),
        ({"metrics": {"a": scaled, "A": scaled}}, ValueError, "differ in more than case"),
        ({"metrics": ["max_gap"]}, ValueError, r"'max_gap' depends on ε: pass `eps="),
        ({"eps": [1e-5], "log_eps": [-5.0]}, ValueError, "not both"),
        ({"eps": [2.0]}, ValueError, r"`eps` must lie in \(0, 1\), got 2.0"),
        ({"log_eps": [0.0]}, ValueError, "`log_eps` must lie in"),
        ({"weight_decay": [-1.0]}, ValueError, "`weight_decay` must lie in"),
        ({"weight_decay": [0.1, 0.1]}, ValueError, "same value twice"),
        ({"s": [2.0, 1.0]}, ValueError, "`s` must be finite, non-negative and increasing"),
        ({"rtol": 2.0}, ValueError, "`rtol` must lie in"),
        ({"key": "a"}, TypeError, "`key` must be an integer"),
    ],
)
def test_bad_specifications(changes, error, message):
    with pytest.raises(error, match=message):
        cheap(**changes)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"metrics": [correlations]}, ValueError, r"returns shape \(3,\) at size 2×3"),
        ({"metrics": {"it": lambda problem: problem.q}}, AttributeError, "q"),
        ({"networks": [dln.USquared(np.ones(3))]}, ValueError, "3 coordinates.*3×4 has 4"),
        ({"networks": [("deep", 3.0)], "weight_decay": [0.1]}, ValueError, "no weight decay"),
        ({"networks": {"mine": lambda d: d}}, TypeError, "returned a int"),
        ({"generator": lambda key, n, d: spoilt(key, d, n)}, ValueError, "of size"),
        ({"generator": "z_matrix"}, ValueError, "square designs"),
    ],
)
def test_what_is_checked_before_anything_runs(changes, error, message, tmp_path):
    with pytest.raises(error, match=message):
        dln.run_sweep(cheap(**changes), tmp_path / "store")
    assert not any(tmp_path.iterdir())
