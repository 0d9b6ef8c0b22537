"""What a worker does: one block of a sweep, in whatever thread or process an executor has.

A task is a function of its arguments, and writes files of its own: it may run anywhere, twice, and
beside others of the same process. Tasks of a process share programs, which are compiled once and,
in processes other than the driver's, are stored for the next one (`dlnjax.enable_cache`).
"""

import contextlib
import copy
import functools as ft
import os
import pickle
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .._batching import enable_x64
from .._cache import enable_cache
from .._version import provenance
from ..generators import Given
from .program import Layout, Program, Values, inputs, plan
from .spec import Cell, Sweep
from .store import Store

# Options of JAX, beside `jax_enable_x64`, that change numbers: workers take those of the driver's
# thread, where contexts may have set them.
_OPTIONS: dict[str, Any] = {
    "jax_default_prng_impl": jax.default_prng_impl,
    "jax_threefry_partitionable": jax.threefry_partitionable,
    "jax_default_matmul_precision": jax.default_matmul_precision,
}


class Interrupted(Exception):
    """The driver was interrupted: the task ended before its block."""


class Replaced(RuntimeError):
    """The store of the task is gone: that of a driver which died, long ago."""


class Job(NamedTuple):
    """What the tasks of a run have in common."""

    path: Path  # of the store, the same for all workers
    sweep: Sweep | bytes  # in the driver's process, or as `pack` made it
    driver: str  # the process: there, JAX is configured already
    x64: bool
    options: dict[str, Any]
    run: str  # Dask would take equal calls for one
    stop: threading.Event | None  # in the driver's process: set when it is interrupted
    store: str = ""  # its `id`


class Outcome(NamedTuple):
    """What the driver is told of a block."""

    cell: int  # index into `sweep.cells`
    block: int
    failed: int  # solves
    seconds: float  # of computing and writing, without compiling
    made_by: dict[str, Any]  # versions and device


def make_job(path: Path, sweep: Sweep, in_process: bool) -> Job:
    """The job of this process as driver. **Raises:** `ValueError` if the sweep cannot travel."""
    return Job(
        path=path,
        sweep=sweep if in_process else pack(sweep),
        driver=_here(),
        x64=jax.config.jax_enable_x64,  # pyright: ignore[reportAttributeAccessIssue]
        options={name: getattr(jax.config, name) for name in _OPTIONS},
        run=os.urandom(8).hex(),
        stop=threading.Event() if in_process else None,
    )


def pack(sweep: Sweep) -> bytes:
    """A sweep for other processes, without the data of a `Given`, which come block by block."""
    if isinstance(sweep.generator, Given):
        one = Given(*sweep.generator.take(np.zeros(1, int)))
        sweep = copy.copy(sweep)
        object.__setattr__(sweep, "generator", one)
    try:
        # Functions of notebooks and closures too. Dask and loky bring it.
        import cloudpickle
    except ModuleNotFoundError:
        cloudpickle = pickle
    try:
        return cloudpickle.dumps(sweep)
    except Exception as e:
        raise ValueError(
            f"The sweep cannot be sent to other processes ({e}). Define its functions at the top "
            "level of a module, or `pip install cloudpickle`."
        ) from e


def choose_layout(job: Job, memory: int) -> Layout:
    """The layout of a new store, for the devices that workers have."""
    with _as_the_driver(job) as sweep, _device() as device:

        def program(cell: Cell, batch: int, lanes: int) -> Program:
            with _LOCK:
                return _program(job.x64, sweep, cell, batch, lanes, device)

        return plan(sweep, memory, program)


def compute(job: Job, layout: Layout, cell_index: int, block: int, data: Any = None) -> Outcome:
    """Compute a block, and write it. `data` of its instances, if they are given and not here."""
    with _as_the_driver(job) as sweep, _device() as device:
        cell = sweep.cells[cell_index]
        lanes = layout.lanes[cell_index]
        with _LOCK:
            program = _program(job.x64, sweep, cell, layout.batch, lanes, device)
            store = _store(job.path, job.store)
        program.compiled()
        started = time.perf_counter()
        batches = -(-store.instances_in(block) // layout.batch)
        parts: list[Values] = []
        waiting = None  # is computed while the next one is started
        for batch in range(batches):
            if job.stop is not None and job.stop.is_set():
                raise Interrupted
            first = batch * layout.batch
            index, own = inputs(sweep, block * layout.block + first, layout.batch)
            if data is not None:
                own = tuple(values[first : first + layout.batch] for values in data)
            running = program(index, own)
            if waiting is not None:
                parts.append(jax.device_get(waiting))
            waiting = running
        parts.append(jax.device_get(waiting))
        values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if not store.is_there():
            raise Replaced(f"There is another store at {job.path} now, or none.")
        failed = store.write(cell, block, values)
        return Outcome(cell_index, block, failed, time.perf_counter() - started, _made_by())


def forget() -> None:
    """Let go of programs and data of earlier runs in this process."""
    with _LOCK:
        _program.cache_clear()
        _store.cache_clear()


_LOCK = threading.Lock()  # two threads that miss a cache of functools would both make the value
_running: Counter[Any] = Counter()
_made_by = ft.cache(provenance)


# All of these under the lock, and few of each, since a worker may live for long.
@ft.lru_cache(maxsize=4)
def _unpack(packed: bytes, x64: bool) -> Sweep:
    return pickle.loads(packed)


@ft.lru_cache(maxsize=4)
def _store(path: Path, store: str) -> Store:
    found = Store(path)
    if found.id != store:
        raise Replaced(f"There is another store at {path} now.")
    return found


@ft.lru_cache(maxsize=32)
def _program(x64: bool, *arguments: Any) -> Program:
    return Program(*arguments)


@contextlib.contextmanager
def _as_the_driver(job: Job) -> Iterator[Sweep]:
    """The sweep, with JAX configured as in the driver's thread."""
    if job.driver != _here():
        if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
            with contextlib.suppress(OSError):  # no place for them: each process compiles its own
                enable_cache()
    with contextlib.ExitStack() as contexts:
        contexts.enter_context(enable_x64(job.x64))
        for name, value in job.options.items():
            contexts.enter_context(_OPTIONS[name](value))
        with _LOCK:
            sweep = job.sweep if isinstance(job.sweep, Sweep) else _unpack(job.sweep, job.x64)
        yield sweep


def _here() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@contextlib.contextmanager
def _device() -> Iterator[Any]:
    """The device of this process that has the least to do."""
    with _LOCK:
        device = min(jax.local_devices(), key=lambda device: _running[device])
        _running[device] += 1
    try:
        yield device
    finally:
        with _LOCK:
            _running[device] -= 1
