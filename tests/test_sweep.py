"""Sweeps: what they compute, and what they survive."""

import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln
from dlnjax._sweep import store as _store

ROOT = Path(__file__).parents[1]
INSTANCES = 17_000  # three blocks
slow = pytest.mark.skipif(
    "DLNJAX_KILL" not in os.environ, reason="runs for minutes: set DLNJAX_KILL=1"
)


def scaled(problem):
    return jnp.exp(-jnp.sum(problem.r**2))


def correlations(problem):
    return problem.r


def cheap(**changes):
    """Nothing is solved: compiles at once."""
    metrics = [scaled, dln.Metric(correlations, dims=("coordinate",), units="u")]
    arguments = {"instances": INSTANCES, "sizes": [(2, 3), (3, 4)], "metrics": metrics}
    return dln.Sweep(**{**arguments, **changes})


def chunks(path):
    """The bytes of all chunks of a store, by file."""
    files = (file for file in Path(path).rglob("*") if file.is_file())
    return {str(f.relative_to(path)): f.read_bytes() for f in files if f.name != "zarr.json"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "store"
    dln.run_sweep(cheap(), path)
    return path


@pytest.fixture
def copy(store, tmp_path):
    return Path(shutil.copytree(store, tmp_path / "copy"))


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


def test_damaged_blocks_are_redone(store, copy):
    files = copy / "correlations" / "c" / "0" / "0"
    first, second = files / "0" / "0" / "0", files / "1" / "0" / "0"
    first.write_bytes(first.read_bytes()[:100])  # torn
    changed = bytearray(second.read_bytes())
    changed[500] ^= 1
    second.write_bytes(changed)
    (copy / "scaled" / "c" / "1" / "0" / "0" / "0").unlink()
    (copy / "block_checksum" / "c" / "1" / "0" / "2").unlink()
    (files / "0.1.partial").write_bytes(b"half")
    with pytest.warns(UserWarning, match="1 of 6 blocks"):
        dln.open_sweep(copy)
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)


def test_full_disk(store, copy):
    (copy / "block_checksum" / "c" / "1" / "0" / "1").unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for metadata, not for a chunk: what the system refuses is a real `OSError`.
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"before are intact.*resume=True"):
            dln.run_sweep(cheap(), copy, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)


def test_interrupted(store, copy, monkeypatch):
    (copy / "block_checksum" / "c" / "0" / "0" / "1").unlink()

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as error:
        patch.setattr(_store.Store, "write", interrupt)
        dln.run_sweep(cheap(), copy, resume=True)
    assert "resume=True" in error.value.__notes__[0]
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)


def test_another_sweep_is_refused(store, monkeypatch):
    with pytest.raises(FileExistsError, match="resume=True"):
        dln.run_sweep(cheap(), store)
    with pytest.raises(ValueError, match=r"differs in 'instances', 'key'.*17000 there and 7 here"):
        dln.run_sweep(cheap(instances=7, key=1), store, resume=True)
    monkeypatch.setattr(scaled, "__code__", correlations.__code__)
    other = cheap(metrics=[dln.Metric(scaled, dims=("coordinate",)), correlations])
    assert other.describe()["metrics"] != cheap().describe()["metrics"]


def test_what_is_not_a_sweep(tmp_path):
    with pytest.raises(ValueError, match="no sweep at"):
        dln.open_sweep(tmp_path / "nowhere")
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="no sweep at"):
        dln.run_sweep(cheap(), tmp_path, resume=True)


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
    with pytest.warns(UserWarning, match="18 lanes failed: .*`flow_result`, `path_result` of"):
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


def test_given_data(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9000, 2, 3)), rng.normal(size=(9000, 2))
    sweep = dln.Sweep(
        generator=dln.generators.Given(X, y), metrics=[dln.Metric(correlations, ("coordinate",))]
    )
    data = dln.run_sweep(sweep, tmp_path / "store")
    got = data.correlations.squeeze().values
    np.testing.assert_allclose(got, np.einsum("ind,in->id", X, y), rtol=1e-12)


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


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
WORKER = """
import sys, jax
jax.config.update("jax_enable_x64", True)
path, port, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
if port != "0":
    jax.distributed.initialize("127.0.0.1:" + port, 2, index)
import dlnjax as dln
assert not {"xarray", "zarr", "tqdm"} & {*sys.modules}  # no extra is imported
import test_sweep
dln.run_sweep(test_sweep.cheap(), path, resume=True)
print(jax.process_count(), len(jax.local_devices()))
"""


def _work(path, *, port="0", index=0, devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), port, str(index)],
        env={**ENVIRONMENT, "XLA_FLAGS": flags},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _said(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split()[-2:]  # after what the transport says


def test_devices_and_processes_do_not_matter(store, tmp_path):
    assert _said(_work(tmp_path / "devices", devices=4)) == ["1", "4"]
    assert chunks(tmp_path / "devices") == chunks(store)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [_work(tmp_path / "processes", port=port, index=i) for i in range(2)]
    assert [_said(process) for process in both] == [["2", "1"]] * 2
    assert chunks(tmp_path / "processes") == chunks(store)


@slow
def test_killed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kill_sweep", "--kills", "2"]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


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
        ({"metrics": [lambda problem: problem.q]}, AttributeError, "q"),
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
