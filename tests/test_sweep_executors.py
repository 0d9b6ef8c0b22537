"""Workers of sweeps: any of them compute the same bytes, and may be lost."""

import importlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sweeps import ROOT, cheap, chunks, computed, correlations

import dlnjax as dln
from dlnjax._sweep import run, task
from dlnjax._sweep.store import Store
from dlnjax._sweep.task import pack
from dlnjax._version import provenance
from dlnjax.cli.workers import executor, send_by_value


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return computed(tmp_path_factory)


ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}


DEVICES = """
import sys, jax
jax.config.update("jax_enable_x64", True)
import dlnjax as dln
assert not {"xarray", "zarr", "tqdm", "distributed"} & {*sys.modules}  # no extra is imported
import sweeps
assert len(jax.local_devices()) == 3
dln.run_sweep(sweeps.cheap(), sys.argv[1])
"""


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


slow = pytest.mark.skipif(
    "DLNJAX_KILL" not in os.environ, reason="runs for minutes: set DLNJAX_KILL=1"
)


@slow
def test_killed(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kill_sweep", "--kills", "2"]
    run = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


class Counted(Executor):
    """Two threads, to which all travels as if to processes; and how many tasks it had at most."""

    def __init__(self):
        self.threads = ThreadPoolExecutor(2)
        self.running, self.most = set[Future[Any]](), 0

    def submit(self, fn, /, *args, **kwargs):
        packed = pickle.dumps((fn, args))

        def run():
            fn, args = pickle.loads(packed)
            return fn(*args)

        self.running = {future for future in self.running if not future.done()}
        future = self.threads.submit(run)
        self.running.add(future)
        self.most = max(self.most, len(self.running))
        return future


@pytest.mark.parametrize("limit, most", [("_IN_FLIGHT", 2), ("_BYTES", 1)])
def test_the_driver_hands_out_few_tasks(tmp_path, monkeypatch, limit, most):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30_000, 2, 3)), rng.normal(size=(30_000, 2))
    metrics = [dln.Metric(correlations, ("coordinate",))]
    sweep = dln.Sweep(generator=dln.generators.Given(X, y), metrics=metrics)
    monkeypatch.setattr(run, limit, most)
    workers = Counted()
    data = dln.run_sweep(sweep, tmp_path / "store", executor=workers)
    assert workers.most == most
    got = data.correlations.squeeze().values
    np.testing.assert_allclose(got, np.einsum("ind,in->id", X, y), rtol=1e-12)


def test_a_task_that_is_late(tmp_path, monkeypatch):
    """The worker of a driver that died may end when there is another store at the same path."""
    path = tmp_path / "store"
    dln.run_sweep(cheap(instances=9), path)
    old = Store(path)
    job = task.make_job(path, cheap(instances=9), in_process=False)._replace(store=old.id)
    shutil.rmtree(path)
    dln.run_sweep(cheap(instances=9, key=1), path)
    before = chunks(path)
    for is_open in (False, True):
        if is_open:  # the worker has opened it before
            monkeypatch.setattr(task, "_store", lambda *_: old)
        with pytest.raises(RuntimeError, match="another store at"):
            task.compute(job, old.layout, 0, 0)
    assert chunks(path) == before


def test_modules_beside_a_study_travel(tmp_path, monkeypatch):
    """Packages too, by value: workers elsewhere do not have them."""
    package = tmp_path / "of_a_study"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "beside_a_study.py").write_text(
        "from of_a_study.inner import twice\ndef four_times(x):\n    return twice(twice(x))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.import_module("beside_a_study").four_times
    send_by_value(tmp_path)
    packed = cloudpickle.dumps(found)
    command = [sys.executable, "-c", "import sys, pickle; print(pickle.load(sys.stdin.buffer)(3))"]
    assert subprocess.run(command, input=packed, capture_output=True).stdout == b"12\n"
    for name in [name for name in sys.modules if "of_a_study" in name or "beside_a" in name]:
        cloudpickle.unregister_pickle_by_value(sys.modules.pop(name))
