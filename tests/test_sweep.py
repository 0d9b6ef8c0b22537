"""Sweeps: what they compute, and what they survive."""

import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zarr

import dlnjax as dln
from dlnjax._sweep import program, store as _store, task
from dlnjax._sweep.lock import driving
from dlnjax._sweep.progress import Progress
from dlnjax._sweep.task import pack
from dlnjax._version import provenance
from dlnjax.cli.workers import executor

ROOT = Path(__file__).parents[1]
INSTANCES = 17_000  # five blocks
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
    """The bytes of all chunks of a store, by file, but for those that say when and by what."""
    files = (file for file in Path(path).rglob("*") if file.is_file())
    found = {str(f.relative_to(path)): f.read_bytes() for f in files if f.name != "zarr.json"}
    return {name: data for name, data in found.items() if not name.startswith("block_")}


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


def test_damage_is_not_read(store, copy):
    """Every flipped bit, a torn chunk, a lost one; and `resume` mends them all."""
    files = copy / "correlations" / "c" / "0" / "0"
    first, second = files / "0" / "0" / "0", files / "1" / "0" / "0"
    whole = second.read_bytes()
    rng = np.random.default_rng(0)
    data = dln.open_sweep(copy).correlations.isel(size=0, instance=slice(4096, 8192))
    for bit in rng.choice(8 * len(whole), 50, replace=False):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << (bit % 8)
        second.write_bytes(changed)
        with pytest.raises(ValueError, match="checksum"):
            data.compute()
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(ValueError, match="checksum"):
        dln.open_sweep(copy).load()
    (copy / "scaled" / "c" / "1" / "0" / "0" / "0").unlink()
    (files / "0.1.partial").write_bytes(b"half")
    with pytest.warns(UserWarning, match="1 of 10 blocks .* are not on disk any more"):
        computed = dln.open_sweep(copy).computed
    assert computed[0].all() and not computed[1, 0, :4096].any() and computed[1, 0, 4096:].all()
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)


def test_torn_metadata(store, copy):
    for name in ("block_done", "block_made_by"):
        (copy / name / "c" / "0" / "0" / "0").write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged"):
        dln.open_sweep(copy)
    dln.run_sweep(cheap(), copy, resume=True)
    assert dln.open_sweep(copy).computed.all()
    for file, change in (
        (copy / "zarr.json", lambda text: text[:300]),
        (copy / "zarr.json", lambda text: text.replace("Gaussian", "Gausqian")),
        (copy / "scaled" / "zarr.json", lambda text: text.replace("17000", "16000")),
    ):
        text = file.read_text()
        file.write_text(change(text))
        for look in (dln.open_sweep, lambda path: dln.run_sweep(cheap(), path, resume=True)):
            with pytest.raises(ValueError, match="no sweep at .*damaged"):
                look(copy)
        file.write_text(text)
    assert dln.open_sweep(copy).computed.all()


def undo(path, size, block):
    """As if the block had not been computed."""
    done = zarr.open_group(str(path))["block_done"]
    assert isinstance(done, zarr.Array)
    done[size, 0, block] = 0


def test_full_disk_and_no_access(store, copy):
    undo(copy, 1, 1)
    with pytest.warns(UserWarning, match="1 of 10 blocks .* are not computed yet"):
        dln.open_sweep(copy)
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
    (copy / "file").write_text("no folder")
    with pytest.raises(OSError, match="Cannot write"):
        dln.run_sweep(cheap(), copy / "file" / "store")


def test_interrupted(store, copy, monkeypatch):
    undo(copy, 0, 1)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as error:
        patch.setattr(_store.Store, "mark", interrupt)
        dln.run_sweep(cheap(), copy, resume=True)
    assert "resume=True" in error.value.__notes__[0]
    dln.run_sweep(cheap(), copy, resume=True)
    assert chunks(copy) == chunks(store)


def test_blocks_of_other_versions(copy, monkeypatch):
    undo(copy, 0, 1)
    other = {**provenance(), "versions": {"jax": "0.0.1"}}
    monkeypatch.setattr(task, "_made_by", lambda: other)
    with pytest.warns(UserWarning, match="other versions .*0.0.1.*`block_made_by`"):
        data = dln.run_sweep(cheap(), copy, resume=True)
    assert json.loads(data.provenance) == [provenance(), other]
    assert data.block_made_by.values.tolist() == [[[0, 1, 0, 0, 0]], [[0, 0, 0, 0, 0]]]


def test_one_driver_at_a_time(copy):
    undo(copy, 0, 0)
    before = chunks(copy)
    with driving(copy):
        who = f"computed by process {os.getpid()} on {socket.gethostname()}, since"
        with pytest.raises(BlockingIOError, match=who):
            dln.run_sweep(cheap(), copy, resume=True)
        # As a driver that was killed leaves them.
        left = [copy.with_name(f".copy.{name}") for name in ("lock", "driver")]
        assert all(file.exists() for file in left)
    assert chunks(copy) == before
    for file in left:
        file.write_text("process 1 on a host that is gone")
    assert dln.run_sweep(cheap(), copy, resume=True).computed.all()


def test_another_sweep_is_refused(store):
    with pytest.raises(FileExistsError, match="resume=True"):
        dln.run_sweep(cheap(), store)
    with pytest.raises(ValueError, match=r"differs in 'instances', 'key'.*17000 there and 7 here"):
        dln.run_sweep(cheap(instances=7, key=1), store, resume=True)


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


FACTOR = 2.0


def helper(x):
    return x * FACTOR


def calls_helper(problem):
    return helper(jnp.sum(problem.r))


def test_what_is_not_a_sweep(tmp_path):
    with pytest.raises(ValueError, match="no sweep at"):
        dln.open_sweep(tmp_path / "nowhere")
    (tmp_path / "zarr.json").write_text("{")
    with pytest.raises(ValueError, match="no sweep at"):
        dln.run_sweep(cheap(), tmp_path, resume=True)
    # Format 2 can name codecs that unpickle.
    zarr.create_group(str(tmp_path / "old"), zarr_format=2)
    with pytest.raises(ValueError, match="no sweep at"):
        dln.open_sweep(tmp_path / "old")


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


class Elsewhere(Executor):
    """Computes at once what has travelled as if to another process."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(pickle.loads(pickle.dumps(fn))(*pickle.loads(pickle.dumps(args))))
        return future


def test_given_data(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9000, 2, 3)), rng.normal(size=(9000, 2))
    sweep = dln.Sweep(
        generator=dln.generators.Given(X, y), metrics=[dln.Metric(correlations, ("coordinate",))]
    )
    data = dln.run_sweep(sweep, tmp_path / "store")
    got = data.correlations.squeeze().values
    np.testing.assert_allclose(got, np.einsum("ind,in->id", X, y), rtol=1e-12)
    # The data travel with their blocks, and are not in each task.
    assert len(pack(sweep)) < 20_000
    dln.run_sweep(sweep, tmp_path / "elsewhere", executor=Elsewhere())
    assert chunks(tmp_path / "elsewhere") == chunks(tmp_path / "store")


def test_workers_take_options_that_a_context_sets(tmp_path):
    sweep = cheap(instances=9, sizes=[(2, 3)], metrics=[dln.Metric(correlations, ("coordinate",))])
    with jax.default_prng_impl("rbg"):
        data = dln.run_sweep(sweep, tmp_path / "threads")
        dln.run_sweep(sweep, tmp_path / "elsewhere", executor=Elsewhere())
        make: Any = sweep.generator
        X, y = make(sweep.instance_key(sweep.cells[0], jnp.asarray(0)), 2, 3)
    np.testing.assert_allclose(data.correlations.squeeze()[0], y @ X, rtol=1e-12)
    assert chunks(tmp_path / "elsewhere") == chunks(tmp_path / "threads")


def test_many_instances_make_few_files():
    """And few instances some blocks, for several cores."""
    few, many = (
        dln.Sweep(instances=n, sizes=[(3, 4)], metrics=["num_steps", "num_knots"], eps=[1e-5])
        for n in (1000, 10**6)
    )
    layout = program.plan(few, 2**40, lambda *_: Free())  # pyright: ignore[reportArgumentType]
    assert layout.block == layout.batch == 128
    layout = program.plan(many, 2**40, lambda *_: Free())  # pyright: ignore[reportArgumentType]
    assert layout.batch == 1024 and layout.block % 1024 == 0
    variables = 4  # and the results of path and flow
    assert 500 < variables * 10**6 / layout.block <= 900
    with pytest.raises(ValueError, match="takes 1 bytes, but `memory` = 0"):
        program.plan(few, 0, lambda *_: Free())  # pyright: ignore[reportArgumentType]


class Free:
    bytes = 1


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
    line = "2 of 22 blocks, 20 of 220 instances, 0.667 instances/s, 06:30 left, 1 lanes failed"
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


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
DEVICES = """
import sys, jax
jax.config.update("jax_enable_x64", True)
import dlnjax as dln
assert not {"xarray", "zarr", "tqdm", "distributed"} & {*sys.modules}  # no extra is imported
import test_sweep
assert len(jax.local_devices()) == 3
dln.run_sweep(test_sweep.cheap(), sys.argv[1])
"""


def test_devices_and_processes_do_not_matter(store, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=3"
    command = [sys.executable, "-c", DEVICES, str(tmp_path / "devices")]
    devices = subprocess.Popen(command, env={**ENVIRONMENT, "XLA_FLAGS": flags})
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as processes:
        dln.run_sweep(cheap(), tmp_path / "processes", executor=processes)
    assert devices.wait(timeout=300) == 0
    assert chunks(tmp_path / "processes") == chunks(tmp_path / "devices") == chunks(store)
    made_by = json.loads(dln.open_sweep(tmp_path / "processes").provenance)
    assert made_by == [provenance()]


@pytest.mark.filterwarnings("default")  # Dask's own
def test_a_killed_worker(store, tmp_path):
    """Dask, as the command line starts it. One worker dies at work: its block is computed by the
    other one, or by the one that takes its place."""
    path = tmp_path / "killed"
    with executor(2, None, ROOT) as workers:
        assert workers is not None
        pids = workers._client.run(os.getpid)  # pyright: ignore[reportAttributeAccessIssue]

        def kill():
            while not path.exists():  # from then on, both have blocks
                time.sleep(0.01)
            time.sleep(0.5)
            os.kill(min(pids.values()), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        dln.run_sweep(cheap(), path, executor=workers)
        killer.join()
    assert chunks(path) == chunks(store)


def test_lost_workers(tmp_path):
    class Broken(Elsewhere):
        def submit(self, fn, /, *args, **kwargs):
            raise BrokenProcessPool("a process died")

    with pytest.raises(RuntimeError, match="lost its workers.*BrokenProcessPool.*resume=True"):
        dln.run_sweep(cheap(), tmp_path / "store", executor=Broken())
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=fork) as forked:
        with pytest.raises(ValueError, match="get_context..spawn"):
            dln.run_sweep(cheap(), tmp_path / "store", executor=forked)
    with pytest.raises(ValueError, match="cannot be sent to other processes"):
        lock = threading.Lock()
        metric = dln.Metric(lambda problem, other=lock: problem.r, ("coordinate",))
        pack(cheap(metrics={"it": metric}))


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
