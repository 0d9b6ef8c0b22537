"""`run_sweep`: blocks of instances over processes and devices, into a store.

| event | what happens |
|---|---|
| a lane fails | its metrics are NaN, its `…_result` says why, and one warning counts them |
| a generator or metric raises, or has a wrong shape | the sweep ends before anything is written |
| the process is killed | whole blocks stay; `resume=True` computes the others |
| a block is damaged on disk | its checksum differs: `resume=True` computes it again |
| the store cannot be written | `OSError`; what was written before stays |
| the store is of another sweep | `ValueError` that names what differs |
| other versions or devices | a warning, and a line in the attribute `history` |

Process 0 creates the store while the others wait. The blocks of a process depend on its number
alone, so that no two write the same one. While a block is computed, the one before is written.
"""

import datetime
import itertools
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._checks import check_type
from .._version import provenance
from .program import Program, Values, check, plan
from .spec import Cell, Sweep
from .store import Store, create, need, open_sweep


def run_sweep(
    sweep: Sweep,
    path: str | Path,
    *,
    resume: bool = False,
    memory: int = 2**30,
    progress: bool = True,
) -> Any:
    """Compute a sweep, block by block, into a Zarr store. The process may be killed at any moment.

    Blocks of instances go to all local devices and, after `jax.distributed.initialize()`, to all
    processes, which share the folder; each process calls this with the same arguments. The stored
    values do not depend on the number of devices or processes. A lane that fails is NaN and is
    flagged in `path_result`, `limit_result` or `flow_result`; the others go on.

    **Arguments:**

    - `sweep`: the `Sweep`.
    - `path`: the folder of the store. It must not exist yet, unless `resume`.
    - `resume`: go on with a store at `path`, if there is one. Blocks that are missing or damaged
        are computed; with the same versions on the same kind of device, bit for bit as in an
        uninterrupted run.
    - `memory`: bytes that a block may take on a device. It sets the size of blocks when the store
        is created. Memory does not grow with the number of instances.
    - `progress`: show a bar on stderr, if that is a terminal.

    **Returns:** the data, as `open_sweep(path)`.

    **Raises:** `ModuleNotFoundError` without the extra `sweep`; `FileExistsError` if `path` exists
    and `resume` is false; `ValueError` if the sweep differs from that of the store, for metrics of
    other shapes than their dims say, and if one instance needs more than `memory`; `OSError`
    if the store cannot be written: what is in it stays good.

    !!! example

        ```python
        sweep = dln.Sweep(instances=20, sizes=[(3, 4)], metrics=["is_monotone", "num_knots"])
        data = dln.run_sweep(sweep, "knots.zarr", progress=False)  # needs the extra `sweep`
        data.num_knots.shape  # (1, 1, 20, 1): size, network, instance, weight decay
        data = dln.run_sweep(sweep, "knots.zarr", resume=True)  # computes nothing
        ```
    """
    for package in ("xarray", "zarr", "tqdm"):
        need(package)
    check_type(sweep, "sweep", Sweep, "a `dlnjax.Sweep`")
    path = Path(path)
    if memory < 1:
        raise ValueError(f"`memory` is a number of bytes, got {memory}.")
    if path.exists() and not resume:
        raise FileExistsError(
            f"There is something at {path} already. Pass `resume=True` to go on with that sweep, "
            "or another path."
        )
    # Trace everything first: a mistake in a metric costs seconds, not a half-written store.
    check(sweep)
    devices = jax.local_devices()
    programs: dict[Cell, Program] = {}
    tqdm = need("tqdm")
    bar = tqdm.tqdm(
        desc="compiling …",
        unit=" instances",
        unit_scale=True,
        file=sys.stderr,
        disable=not (progress and jax.process_index() == 0 and sys.stderr.isatty()),
    )
    try:
        # Wait before process 0 creates the store, so that all have seen whether `path` exists, and
        # after it, also if it failed, so that nobody waits for ever.
        _wait()
        try:
            if jax.process_index() == 0:
                programs = _prepare(sweep, path, memory, devices)
        finally:
            _wait()
        store = Store(path)
        _compare(sweep, store)
        failed = _run(sweep, store, programs, devices, bar)
    except FileExistsError:
        raise
    except KeyboardInterrupt as e:
        e.add_note(f"The blocks that were written to {path} are kept: go on with `resume=True`.")
        raise
    except OSError as e:
        raise OSError(
            f"Cannot write to {path} ({e.strerror or e}). The blocks that were written before are "
            "intact: make room or get access, and go on with `resume=True`."
        ) from e
    finally:
        bar.close()
    _wait()
    data = open_sweep(path)
    if failed:
        names = sorted(str(name) for name in data if str(name).endswith("_result"))
        reasons = ", ".join(f"`{name}`" for name in names)
        warnings.warn(
            f"{failed} {'lane' if failed == 1 else 'lanes'} failed: metrics are NaN there, and "
            f"{reasons} of the data say why.",
            stacklevel=2,
        )
    return data


def _wait() -> None:
    """Wait until all processes have come to this line."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("dlnjax sweep")


def _prepare(sweep: Sweep, path: Path, memory: int, devices: Sequence[Any]) -> dict[Cell, Program]:
    """Create the store, or check and clean the one that is there. Returns the programs that were
    compiled to choose its layout."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    here = provenance()
    if not path.exists():
        layout, programs = plan(sweep, memory, devices)
        create(path, sweep, layout, here, f"{now} created: {json.dumps(here)}")
        return programs
    store = Store(path)
    _compare(sweep, store)
    store.clean()
    if store.provenance != here:
        warnings.warn(
            f"Blocks of {path} were computed with other versions or on another kind of device, "
            f"{store.provenance}, than the next ones, {here}: rounding may differ between them. "
            "The attribute `history` keeps both.",
            stacklevel=3,
        )
        store.set_provenance(here)
    store.remember(f"{now} resumed: {json.dumps(here)}")
    return {}


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


def _run(
    sweep: Sweep,
    store: Store,
    programs: dict[Cell, Program],
    devices: Sequence[Any],
    bar: Any,
) -> int:
    """Compute the missing blocks of this process. Returns the number of lanes that failed."""
    missing = list(store.missing(sweep, jax.process_index(), jax.process_count()))
    bar.reset(total=sum(store.instances_in(block) for _, block in missing))
    failed = 0

    def write(cell: Cell, blocks: Sequence[int], started: Sequence[Values]) -> None:
        nonlocal failed
        for block, values in zip(blocks, started, strict=True):
            results = store.write(cell, block, jax.device_get(values))
            failed += sum(int(np.count_nonzero(codes)) for codes in results)
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(store.instances_in(block))

    # `waiting` is the last group of blocks that was started. JAX computes it while the next one is
    # dispatched and the one before is written: `device_get` in `write` is what waits.
    waiting: tuple[Any, ...] = ()
    for cell, group in itertools.groupby(missing, key=lambda pair: pair[0]):
        blocks = [block for _, block in group]
        label = f"{sweep.size_labels[cell.size]}, {cell.name}"
        program = programs.pop(cell, None)
        if program is None:
            # Compiling takes long: write first, so that a kill meanwhile loses nothing.
            if waiting:
                write(*waiting)
                waiting = ()
            bar.set_description(f"{label}: compiling …")
            program = Program(sweep, cell, store.layout, devices)
        bar.set_description(label)
        for i in range(0, len(blocks), len(devices)):
            some = blocks[i : i + len(devices)]
            started = program(some)
            if waiting:
                write(*waiting)
            waiting = (cell, some, started)
    if waiting:
        write(*waiting)
    return failed
