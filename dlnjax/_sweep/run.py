"""`run_sweep`: the driver of a sweep, which hands its blocks to workers.

| event | what happens |
|---|---|
| a lane fails | its metrics are NaN, its `…_result` says why, and one warning counts them |
| a generator or metric raises, or has a wrong shape | the sweep ends before anything is written |
| a worker is killed | Dask computes its block elsewhere; a pool of processes ends with an error |
| the driver is killed | blocks done more than 2 s ago stay; `resume=True` computes the others |
| a second driver starts | `BlockingIOError` that says who drives; nothing is touched |
| a chunk is damaged or lost on disk | reading raises or warns; `resume=True` computes it again |
| the store cannot be written | `OSError`; what was written before stays |
| the store is of another sweep | `ValueError` that names what differs |
| blocks come from other versions or devices | a warning; `block_made_by` tells them apart |

The driver alone creates the store and marks blocks as done. Workers take blocks as they come, and
write them (`task.py`).
"""

import contextlib
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from pathlib import Path
from typing import Any

import jax

from .._batching import cores
from .._checks import check_type
from ..generators import Given
from .lock import driving
from .opening import open_sweep
from .program import check, inputs
from .progress import Progress
from .spec import Cell, Sweep
from .store import Store, create, need
from .task import Job, Outcome, choose_layout, compute, forget, make_job

_LOG = logging.getLogger(__name__)
# Tasks that are under way or wait for a worker: more than a cluster has workers. Data travel with
# them, of which the driver holds no more than this.
_IN_FLIGHT = 1024
_BYTES = 2**30
# Seconds between writes of which blocks are done. A write takes milliseconds, as long as a block of
# small problems; of a driver that is killed the blocks of two such times are computed again.
_SAVE = 1.0


def run_sweep(
    sweep: Sweep,
    path: str | Path,
    *,
    executor: Executor | None = None,
    resume: bool = False,
    memory: int = 2**30,
    progress: bool = True,
) -> Any:
    """Compute a sweep, block by block, into a Zarr store. Any process may be killed at any moment.

    Blocks of instances go to workers as these become free. The stored values do not depend on how
    many there are, of what sort. A lane that fails is NaN and is flagged in `path_result`,
    `limit_result` or `flow_result`; the others go on.

    **Arguments:**

    - `sweep`: the `Sweep`.
    - `path`: the folder of the store. It must not exist yet, unless `resume`. Workers on other
        hosts need it at the same path.
    - `executor`: the workers. Default: this process, on all its devices and cores. Else any
        `concurrent.futures.Executor`: threads, processes that are *spawned*, loky, MPI, or
        Dask, `distributed.Client(…).get_executor(retries=3)`, which survives dead workers. The
        data of a `Given` travel block by block, about 1 GiB at a time.
    - `resume`: go on with a store at `path`, if there is one. Blocks that are missing or damaged
        are computed; with the same versions on the same kind of device, bit for bit as in an
        uninterrupted run.
    - `memory`: bytes that a task may take on a device. It sets how many instances are computed at a
        time, when the store is created. It does not grow with the number of instances.
    - `progress`: on stderr, a bar if that is a terminal, and a line every half minute if not.

    **Returns:** the data, as `open_sweep(path)`.

    **Raises:** `ModuleNotFoundError` without the extra `sweep`; `FileExistsError` if `path` exists
    and `resume` is false; `BlockingIOError` if another process is computing it; `ValueError` if the
    sweep differs from that of the store, for metrics of other shapes than their dims say, if one
    instance needs more than `memory`, and for functions that cannot be sent to another process;
    `RuntimeError` if the executor has lost its workers; `OSError` if the store cannot be written:
    what is in it stays good.

    !!! example

        ```python
        sweep = dln.Sweep(instances=20, sizes=[(3, 4)], metrics=["is_monotone", "num_knots"])
        data = dln.run_sweep(sweep, "knots.zarr", progress=False)  # needs the extra `sweep`
        data.num_knots.shape  # (1, 1, 20, 1): size, network, instance, weight decay
        data = dln.run_sweep(sweep, "knots.zarr", resume=True)  # computes nothing
        ```
    """
    for package in ("xarray", "zarr", "tqdm", "filelock"):
        need(package)
    check_type(sweep, "sweep", Sweep, "a `dlnjax.Sweep`")
    if executor is not None:
        check_type(executor, "executor", Executor, "a `concurrent.futures.Executor`")
        _check_not_forked(executor)
    if memory < 1:
        raise ValueError(f"`memory` is a number of bytes, got {memory}.")
    path = Path(path).absolute()
    # Trace everything first: a mistake in a metric costs seconds, not a half-written store.
    check(sweep)
    try:
        with driving(path):
            if path.exists() and not resume:
                raise FileExistsError(
                    f"There is something at {path} already. Pass `resume=True` to go on with that "
                    "sweep, or another path."
                )
            with _workers(executor) as workers:
                failed = _drive(sweep, path, workers, memory, progress)
    except (FileExistsError, BlockingIOError):
        raise
    except KeyboardInterrupt as e:
        e.add_note(f"The blocks that were written to {path} are kept: go on with `resume=True`.")
        raise
    except (BrokenExecutor, CancelledError) as e:
        raise RuntimeError(
            f"The executor has lost its workers, or its scheduler ({type(e).__name__}). The blocks "
            "that were written before are intact: go on with `resume=True` and a new executor."
        ) from e
    except OSError as e:
        if e.errno is None or isinstance(e, ConnectionError):  # not of a file
            raise
        raise OSError(
            f"Cannot write to {path} ({e.strerror or e}). The blocks that were written before are "
            "intact: make room or get access, and go on with `resume=True`."
        ) from e
    finally:
        forget()
    data = open_sweep(path)
    if failed:
        names = sorted(str(name) for name in data if str(name).endswith("_result"))
        reasons = ", ".join(f"`{name}`" for name in names)
        warnings.warn(
            f"{failed} {'solve' if failed == 1 else 'solves'} failed: metrics are NaN there, and "
            f"{reasons} of the data say why.",
            stacklevel=2,
        )
    return data


def _check_not_forked(executor: Executor) -> None:
    context = getattr(executor, "_mp_context", None)  # of a `ProcessPoolExecutor`
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "JAX hangs in forked processes. Have them spawned: `ProcessPoolExecutor(…, "
            "mp_context=multiprocessing.get_context('spawn'))`."
        )


@contextlib.contextmanager
def _workers(executor: Executor | None) -> Iterator[Executor]:
    if executor is not None:
        yield executor
        return
    # A program keeps one core of a CPU busy. An accelerator has two tasks, so that it computes one
    # while the chunks of the other are written.
    is_cpu = jax.default_backend() == "cpu"
    with ThreadPoolExecutor(cores() if is_cpu else 2 * len(jax.local_devices())) as threads:
        yield threads


def _drive(sweep: Sweep, path: Path, workers: Executor, memory: int, shown: bool) -> int:
    """Have the missing blocks computed. Returns the number of solves that failed."""
    job = make_job(path, sweep, in_process=isinstance(workers, ThreadPoolExecutor))
    progress = Progress(shown)
    running: set[Future[Any]] = set()
    failed, store, saved = 0, None, time.monotonic()
    try:
        if not path.exists():
            running = {workers.submit(choose_layout, job, memory)}
            for layout in _results(running, progress):
                create(path, sweep, layout)
        store = Store(path)
        _compare(sweep, store)
        missing = _in_order(store.recover(sweep))
        left = Counter[int]()
        for cell, block in missing:
            left[sweep.cells.index(cell)] += store.instances_in(block)
        progress.begin(left, len(missing))
        _LOG.info("%s: %d blocks to compute, %d instances", path, len(missing), left.total())
        job = job._replace(store=store.id)
        later, sent = iter(missing), dict[Future[Any], int]()

        def submit() -> None:
            nonlocal saved
            if time.monotonic() - saved > _SAVE:
                store.save_marks()
                saved = time.monotonic()
            for future in running ^ sent.keys():
                del sent[future]
            while len(sent) < _IN_FLIGHT and sum(sent.values()) < _BYTES:
                if (task := next(later, None)) is None:
                    return
                future, size = _submit(workers, job, sweep, store, *task)
                running.add(future)
                sent[future] = size

        for outcome in _results(running, progress, submit):
            _warn_of_others(store, outcome)
            store.mark(sweep.cells[outcome.cell], outcome.block, outcome.made_by)
            instances = store.instances_in(outcome.block)
            progress.update(outcome.cell, instances, outcome.seconds, outcome.failed)
            _LOG.info(
                "block %d of cell %d: %d instances in %.1f s, %d solves failed",
                outcome.block,
                outcome.cell,
                instances,
                outcome.seconds,
                outcome.failed,
            )
            failed += outcome.failed
        store.save_marks()
    finally:
        # Nothing is left here unless something was raised.
        if store is not None:
            with contextlib.suppress(OSError):  # what was raised first is the cause
                store.save_marks()
        if job.stop is not None:
            job.stop.set()
        for future in running:
            future.cancel()
        progress.close()
    return failed


def _results(
    running: set[Future[Any]], progress: Progress, submit: Callable[[], None] = lambda: None
) -> Iterator[Any]:
    """The results of tasks as they end, which are taken out of `running`. `submit` adds others."""
    submit()
    while running:
        ended, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
        for future in ended:
            running.discard(future)
            yield future.result()
        submit()
        progress.tick()


def _in_order(missing: list[tuple[Cell, int]]) -> list[tuple[Cell, int]]:
    """One block of each cell first: workers compile different programs at the same time, and what
    each cell costs is known early."""
    first = dict(reversed(missing))
    return [*reversed(first.items()), *((c, b) for c, b in missing if b != first[c])]


def _submit(
    workers: Executor, job: Job, sweep: Sweep, store: Store, cell: Cell, block: int
) -> tuple[Future[Outcome], int]:
    """Also the bytes that the task carries."""
    data, size = None, 0
    if isinstance(job.sweep, bytes) and isinstance(sweep.generator, Given):
        _, data = inputs(sweep, block * store.layout.block, store.layout.block)
        size = sum(array.nbytes for array in data)
    future = workers.submit(compute, job, store.layout, sweep.cells.index(cell), block, data)
    return future, size


def _compare(sweep: Sweep, store: Store) -> None:
    """**Raises:** `ValueError` if the store was made by another specification."""
    ours, theirs = sweep.describe(), store.spec
    differing = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"The store at {store.path} belongs to another sweep, which differs in "
            f"{', '.join(map(repr, differing))}: {name!r} is {theirs.get(name)} there and "
            f"{ours.get(name)} here. Pass another path, or the same sweep."
        )


def _warn_of_others(store: Store, outcome: Outcome) -> None:
    known = store.provenance
    if known and outcome.made_by not in known:
        warnings.warn(
            f"Blocks of {store.path} were computed with other versions or on another kind of "
            f"device, {known[0]}, than the next ones, {outcome.made_by}: rounding may differ "
            "between them. `block_made_by` tells them apart.",
            stacklevel=4,
        )
