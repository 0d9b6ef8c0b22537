"""A sweep on disk: a Zarr group that xarray opens, with one file a variable and block of instances.

| array | is | written by |
|---|---|---|
| metrics, `…_result` | what `open_sweep` shows; a chunk is a block | the task of the block |
| `block_done` | when: seconds since 1970, 0 where it is not computed | the driver |
| `block_made_by` | by what: a place in the attribute `provenance`, −1 if unknown | the driver |

Zarr writes a chunk under another name and renames it, and a checksum ends it: whatever is killed, a
chunk is the whole one or not there, and one that changed later raises when it is read. No two tasks
write the same file, and a task that runs twice writes the same bytes.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._results import result_names
from .program import SOLVES, Layout
from .spec import Cell, KnotGrid, Sweep

_AXES = ("size", "network", "instance", "weight_decay")
_BLOCKS = ("size", "network", "block")
NOT_COMPUTED = -1
UNKNOWN = -1
_SOLVED = {"path": "lasso path", "limit": "limit process", "flow": "gradient flow"}


def need(package: str) -> ModuleType:
    """Import a package of the extra `sweep`."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"Sweeps need {package!r}: run `pip install 'dlnjax[sweep]'`."
        ) from e


def open_group(path: Path, mode: str) -> Any:
    """The Zarr group at `path`. **Raises:** `ValueError` if its metadata changed on disk."""
    group = need("zarr").open_group(str(path), mode=mode, zarr_format=3)
    attributes = dict(group.attrs)
    if attributes.pop("metadata_sha256") != _digest(path, attributes):
        raise ValueError("its metadata is not what was written")
    return group


def _digest(path: Path, attributes: dict[str, Any]) -> str:
    """Of all metadata: chunks have checksums of their own, names and labels have this one."""
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    for file in sorted(path.glob("*/zarr.json")):
        digest.update(file.parent.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _set_attributes(group: Any, path: Path, **changes: Any) -> None:
    attributes = {**group.attrs, **changes}
    attributes.pop("metadata_sha256", None)
    group.update_attributes({**changes, "metadata_sha256": _digest(path, attributes)})


class Store:
    """An open store, for the driver or for a task."""

    def __init__(self, path: Path):
        """**Raises:** `ValueError` if there is no sweep at `path`."""
        try:
            self._group = open_group(path, "r+")
            self.spec: dict[str, Any] = json.loads(self._group.attrs["spec"])
            self.layout = Layout.from_json(self._group.attrs["layout"])
            self.id: str = self._group.attrs["id"]
            # The versions and devices that computed blocks.
            self.provenance: list[dict[str, Any]] = json.loads(self._group.attrs["provenance"])
            # Chunks of NaN alone are written too: one that is not there is lost.
            config = {"write_empty_chunks": True}
            arrays = {name: a.with_config(config) for name, a in self._group.arrays()}
            self._done, self._made_by = arrays["block_done"], arrays["block_made_by"]
            self._variables = {
                name: array
                for name, array in arrays.items()
                if array.metadata.dimension_names[:4] == _AXES
            }
            self.instances: int = next(iter(self._variables.values())).shape[2]
        except (OSError, StopIteration, KeyError, TypeError, ValueError) as e:
            raise ValueError(
                f"There is no sweep at {path}, or its metadata is damaged ({e}). Pass another "
                "path, or remove it and start again."
            ) from e
        self.path = path
        self._marks: dict[tuple[int, int, int], tuple[int, int]] = {}

    # -- blocks

    def instances_in(self, block: int) -> int:
        """How many instances a block has: the last one may be smaller."""
        return min(self.layout.block, self.instances - block * self.layout.block)

    def is_there(self) -> bool:
        """Whether this store is still at its path, and not one that was made since."""
        try:
            metadata = json.loads((self.path / "zarr.json").read_text("utf-8"))
        except FileNotFoundError:
            return False
        return metadata["attributes"]["id"] == self.id

    def write(self, cell: Cell, block: int, values: dict[str, np.ndarray]) -> int:
        """Write a block, whatever was there. Returns how many of its solves failed."""
        failed = 0
        for name, value in values.items():
            array = self._variables[name]
            value = value[: self.instances_in(block)]
            failed += int(np.count_nonzero(value)) if name.endswith("_result") else 0
            # Coordinates beyond those of this size are NaN.
            pairs = zip(array.shape[3:], value.shape[1:], strict=True)
            beyond = [(0, full - size) for full, size in pairs]
            array[self._region(cell, block)] = np.pad(
                value, [(0, 0), *beyond], constant_values=array.fill_value
            )
        return failed

    def _is_whole(self, cell: Cell, block: int) -> bool:
        try:
            for array in self._variables.values():
                if not _file(self.path, array, cell.size, cell.network, block).exists():
                    return False
                array[self._region(cell, block)]
        except Exception:  # whatever a codec makes of damaged bytes
            return False
        return True

    def _region(self, cell: Cell, block: int) -> tuple[Any, ...]:
        start = block * self.layout.block
        return cell.size, cell.network, slice(start, start + self.instances_in(block))

    # -- what the driver alone writes

    def mark(self, cell: Cell, block: int, made_by: dict[str, Any]) -> None:
        """Note that a block is done, when, and by which versions on which device."""
        if made_by not in self.provenance:
            self.provenance.append(made_by)
            _set_attributes(self._group, self.path, provenance=json.dumps(self.provenance))
        by = self.provenance.index(made_by)
        self._marks[cell.size, cell.network, block] = by, int(time.time())

    def save_marks(self) -> None:
        """Write what `mark` noted since the last call."""
        if not self._marks:
            return
        done, made_by = np.asarray(self._done[:]), np.asarray(self._made_by[:])
        for place, (by, when) in self._marks.items():
            made_by[place], done[place] = by, when
        self._made_by[:] = made_by
        self._done[:] = done
        self._marks.clear()

    def recover(self, sweep: Sweep) -> list[tuple[Cell, int]]:
        """The blocks that are not done, or damaged since: all that is done is read. Removes what
        killed tasks left half written."""
        for file in self.path.rglob("*.partial"):
            file.unlink(missing_ok=True)
        try:
            done = np.asarray(self._done[:])
        except Exception:  # as in `_is_whole`: the blocks themselves tell
            done = np.full(self._done.shape, int(time.time()))
        missing = [
            (cell, block)
            for cell in sweep.cells
            for block in range(-(-self.instances // self.layout.block))
            if not (done[cell.size, cell.network, block] and self._is_whole(cell, block))
        ]
        for cell, block in missing:
            done[cell.size, cell.network, block] = 0
        self._done[:] = done
        try:
            self._made_by[:]
        except Exception:  # as in `_is_whole`
            self._made_by[:] = UNKNOWN
        return missing


def _file(path: Path, array: Any, size: int, network: int, block: int) -> Path:
    """Where the chunk of a block is."""
    chunk = (size, network, block, *[0] * (array.ndim - 3))
    return path / array.basename / array.metadata.encode_chunk_key(chunk)


def lost(path: Path, group: Any, done: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The blocks that are `done`, of which a file is not there."""
    variables = [a for _, a in group.arrays() if a.metadata.dimension_names[:4] == _AXES]
    for size, network, block in np.argwhere(done).tolist():
        if not all(_file(path, array, size, network, block).exists() for array in variables):
            yield size, network, block


def create(path: Path, sweep: Sweep, layout: Layout) -> None:
    """A new store, complete at once or not there at all."""
    zarr = need("zarr")
    draft = path.with_name(f".{path.name}.creating")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        group = zarr.create_group(
            str(draft),
            zarr_format=3,
            attributes={
                "title": "Diagonal linear networks: a sweep by dlnjax",
                # Tells it from another store at the same path, earlier or later.
                "id": os.urandom(8).hex(),
                "spec": json.dumps(sweep.describe(), ensure_ascii=False),
                "layout": json.dumps(layout._asdict()),
                "provenance": "[]",
                # What else xarray takes for a coordinate.
                "coordinates": "n d eps time computed block_done block_made_by",
            },
        )
        _create_variables(group, sweep, layout)
        _create_coordinates(group, sweep)
        _set_attributes(group, draft)
        os.rename(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _checksummed() -> dict[str, Any]:
    # A CRC of what zstd made, since it finds every flipped bit; zstd's own checksum leaves out the
    # header of a frame.
    codecs = need("zarr").codecs
    return {"compressors": [codecs.ZstdCodec(), codecs.Crc32cCodec()]}


def _create_variables(group: Any, sweep: Sweep, layout: Layout) -> None:
    lengths = {
        "size": len(sweep.sizes),
        "network": len(sweep.networks),
        "instance": sweep.instances,
        "weight_decay": len(sweep.weight_decay),
        "log_eps": len(sweep.log_eps),
        "s": sweep.points,
        "coordinate": max(d for _, d in sweep.sizes),
        "block": -(-sweep.instances // layout.block),
    }
    one_block = {**lengths, "size": 1, "network": 1, "instance": layout.block}

    def array(name: str, dims: tuple[str, ...], dtype: Any, fill: Any, **attributes: Any) -> None:
        chunks = lengths if dims == _BLOCKS else one_block
        group.create_array(
            name,
            shape=[lengths[dim] for dim in dims],
            chunks=[chunks[dim] for dim in dims],
            dtype=dtype,
            fill_value=fill,
            dimension_names=dims,
            attributes=attributes,
            **_checksummed(),
        )

    eps_axis = {True: ("log_eps",), False: ()}
    for name, metric in sweep.metrics.items():
        dims = (*_AXES, *eps_axis[metric.has_eps], *metric.dims)
        text = {"units": metric.units, "long_name": metric.description}
        array(name, dims, jnp.result_type(float), np.nan, **text)
    names = ["not_computed", *result_names()]
    for solve in SOLVES:
        has_eps = solve == "flow"
        if solve in sweep.needs:
            array(
                f"{solve}_result",
                (*_AXES, *eps_axis[has_eps]),
                "int8",
                NOT_COMPUTED,
                long_name=f"How the {_SOLVED[solve]} ended, NaN in metrics unless successful",
                flag_values=list(range(NOT_COMPUTED, len(names) - 1)),
                flag_meanings=" ".join(names),
            )
    when = "When the block was done, seconds since 1970, 0 where it is not computed"
    array("block_done", _BLOCKS, "int64", 0, long_name=when)
    by = "Versions and device of the block: a place in the attribute `provenance`"
    array("block_made_by", _BLOCKS, "int16", UNKNOWN, long_name=by)


def _create_coordinates(group: Any, sweep: Sweep) -> None:
    def coordinate(name: str, dim: str, values: Any, long_name: str, **more: str) -> None:
        values = np.asarray(values)
        is_text = values.dtype.kind == "U"
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype="str" if is_text else values.dtype,
            fill_value="" if is_text else np.nan if values.dtype.kind == "f" else 0,
            dimension_names=(dim,),
            attributes={"long_name": long_name, **more},
            config={"write_empty_chunks": True},
            **_checksummed(),
        )
        array[:] = values

    coordinate("size", "size", sweep.size_labels, "Size of the problem, n×d")
    coordinate("n", "size", [n for n, _ in sweep.sizes], "Rows of X", units="1")
    coordinate("d", "size", [d for _, d in sweep.sizes], "Columns of X", units="1")
    coordinate("network", "network", list(sweep.networks), "Network")
    decay = "Weight decay λ"
    coordinate("weight_decay", "weight_decay", sweep.weight_decay, decay, units="units of Xᵀy")
    if any(metric.has_eps for metric in sweep.metrics.values()):
        coordinate("log_eps", "log_eps", sweep.log_eps, "log ε, natural logarithm", units="1")
        coordinate("eps", "log_eps", np.exp(sweep.log_eps), "ε, 0 where it underflows", units="1")
    if not isinstance(sweep.s, KnotGrid) and any("s" in m.dims for m in sweep.metrics.values()):
        name = "Rescaled training time s, and inverse regularisation μ"
        coordinate("s", "s", sweep.s, name, units="1/units of Xᵀy")
