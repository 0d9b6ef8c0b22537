"""A sweep on disk: a Zarr group that xarray opens, one chunk a block and variable.

A block is its variables and, written last, a checksum over all their values in `block_checksum`.
Zarr writes each chunk under another name and renames it, so that a process killed at any moment
leaves a block that is whole or one whose checksum says that it is not.
"""

import hashlib
import itertools
import json
import shutil
import warnings
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
NOT_COMPUTED = -1


def need(package: str) -> ModuleType:
    """Import a package of the extra `sweep`."""
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError(
            f"Sweeps need {package!r}: run `pip install 'dlnjax[sweep]'`."
        ) from e


class Store:
    """An open store."""

    def __init__(self, path: Path):
        """**Raises:** `ValueError` if there is no sweep at `path`."""
        zarr = need("zarr")
        try:
            self._group = zarr.open_group(str(path), mode="r+", zarr_format=3)
            self.spec: dict[str, Any] = json.loads(self._group.attrs["spec"])
            self.layout = Layout(**json.loads(self._group.attrs["layout"]))
            config = {"write_empty_chunks": True}
            self._arrays = {name: a.with_config(config) for name, a in self._group.arrays()}
            self._checksums = self._arrays["block_checksum"]
        except (FileNotFoundError, KeyError, TypeError, ValueError) as e:
            raise ValueError(
                f"There is no sweep at {path}, or its metadata is damaged ({e}). Pass another "
                "path, or remove it and start again."
            ) from e
        self.path = path
        self._variables = {
            name: array
            for name, array in self._arrays.items()
            if array.metadata.dimension_names[:4] == _AXES
        }

    # -- blocks

    def write(self, cell: Cell, block: int, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Write a block, whatever was there, and then its checksum. Returns its results."""
        mark = (cell.size, cell.network, block)
        self._remove(self._checksums, mark)
        kept = {}
        # Results last: where one is known, so are the values.
        for name in sorted(values, key=lambda name: (name.endswith("_result"), name)):
            array = self._variables[name]
            kept[name] = self._fit(array, values[name], block)
            # Zarr would read a chunk that it completes, which may be damaged.
            self._remove(array, (*mark, *[0] * (array.ndim - 3)))
            array[self._region(cell, block)] = kept[name]
        self._checksums[mark] = _checksum(kept)
        return [value for name, value in kept.items() if name.endswith("_result")]

    def is_whole(self, cell: Cell, block: int) -> bool:
        """Whether the block was written to its end, and is still what was written."""
        try:
            known = int(self._checksums[cell.size, cell.network, block])
            if known == 0:
                return False
            region = self._region(cell, block)
            return known == _checksum({n: a[region] for n, a in self._variables.items()})
        except Exception:  # whatever a codec makes of damaged bytes
            return False

    def missing(self, sweep: Sweep, process: int, processes: int) -> Iterator[tuple[Cell, int]]:
        """The blocks that this process has to compute. Which ones are its own depends on their
        number only, since others write meanwhile."""
        blocks = range(self._checksums.shape[2])
        for cell, block in list(itertools.product(sweep.cells, blocks))[process::processes]:
            if not self.is_whole(cell, block):
                yield cell, block

    def instances_in(self, block: int) -> int:
        """How many of its instances count: the last block may be larger than what is left."""
        total = self._variables[next(iter(self._variables))].shape[2]
        return min(self.layout.block, total - block * self.layout.block)

    def _region(self, cell: Cell, block: int) -> tuple[Any, ...]:
        start = block * self.layout.block
        return cell.size, cell.network, slice(start, start + self.instances_in(block))

    def _fit(self, array: Any, value: np.ndarray, block: int) -> np.ndarray:
        """Without the instances beyond the last, and with NaN in coordinates beyond the last."""
        value = value[: self.instances_in(block)]
        if np.issubdtype(value.dtype, np.floating):
            value = np.where(np.isnan(value), np.nan, value)  # one NaN, for the checksum
        pairs = zip(array.shape[3:], value.shape[1:], strict=True)
        beyond = [(0, full - size) for full, size in pairs]
        return np.pad(value, [(0, 0), *beyond], constant_values=array.fill_value)

    def _remove(self, array: Any, chunk: tuple[int, ...]) -> None:
        key = array.metadata.encode_chunk_key(chunk)
        (self.path / array.path / key).unlink(missing_ok=True)

    # -- provenance

    def remember(self, line: str) -> None:
        """Add a line to the attribute `history`."""
        self._group.attrs["history"] = f"{self._group.attrs['history']}\n{line}"

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions and devices of the run that wrote last."""
        return json.loads(self._group.attrs["provenance"])

    def set_provenance(self, provenance: dict[str, Any]) -> None:
        """Say what writes from now on."""
        self._group.attrs["provenance"] = json.dumps(provenance)

    def clean(self) -> None:
        """Remove what a killed process left half written."""
        for file in self.path.rglob("*.partial"):
            file.unlink(missing_ok=True)


def _checksum(values: dict[str, np.ndarray]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(values[name].tobytes())
    return int.from_bytes(digest.digest(), "little") or 1  # 0 means none


def create(path: Path, sweep: Sweep, layout: Layout, provenance: dict[str, Any], line: str) -> None:
    """A new store, complete at once or not there at all.

    **Raises:** `FileExistsError` if something is at `path`.
    """
    zarr = need("zarr")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.creating")
    shutil.rmtree(draft, ignore_errors=True)
    group = zarr.create_group(
        str(draft),
        zarr_format=3,
        attributes={
            "title": "Diagonal linear networks: a sweep by dlnjax",
            "spec": json.dumps(sweep.describe(), ensure_ascii=False),
            "layout": json.dumps(layout._asdict()),
            "provenance": json.dumps(provenance),
            "history": line,
            "coordinates": "n d",  # what else xarray takes for a coordinate
        },
    )
    _create_coordinates(group, sweep)
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
    one_block = {**lengths, "size": 1, "network": 1, "instance": layout.block, "block": 1}

    def array(name: str, dims: tuple[str, ...], dtype: Any, fill: Any, **attributes: Any) -> None:
        group.create_array(
            name,
            shape=[lengths[dim] for dim in dims],
            chunks=[one_block[dim] for dim in dims],
            dtype=dtype,
            fill_value=fill,
            dimension_names=dims,
            attributes=attributes,
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
    array(
        "block_checksum",
        ("size", "network", "block"),
        "uint64",
        0,
        long_name="Checksum of a block of instances, 0 where it is not computed",
    )
    try:
        draft.rename(path)
    except OSError as e:
        shutil.rmtree(draft, ignore_errors=True)
        raise FileExistsError(f"There is something at {path} already.") from e


_SOLVED = {"path": "lasso path", "limit": "limit process", "flow": "gradient flow"}


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
    if not isinstance(sweep.s, KnotGrid) and any("s" in m.dims for m in sweep.metrics.values()):
        name = "Rescaled training time s, and inverse regularisation μ"
        coordinate("s", "s", sweep.s, name, units="1/units of Xᵀy")


def open_sweep(path: str | Path) -> Any:
    """The data of a sweep, finished or not, as an `xarray.Dataset` that reads what is asked for.

    Dimensions are `size`, `network`, `instance`, `weight_decay` and, where they apply, `log_eps`,
    `s` and `coordinate`. `path_result`, `limit_result` and `flow_result` say how each lane ended
    (`flag_meanings`), and metrics are NaN unless it was `successful` (0). With a `KnotGrid`, `time`
    holds the times. Attributes: `spec`, `layout` and `provenance` (JSON), `history`.

    **Arguments:** `path`, of a store written by `run_sweep`.

    **Returns:** an `xarray.Dataset`, without dask: `.load()` reads all of it.

    **Raises:** `ModuleNotFoundError` without the extra `sweep`; `ValueError` if there is no sweep
    at `path`. Warns where blocks are missing: metrics are NaN, results −1, `not_computed`.

    !!! example

        ```python
        sweep = dln.Sweep(instances=20, sizes=[(3, 4)], metrics=["num_knots"])
        dln.run_sweep(sweep, "knots.zarr", progress=False)
        data = dln.open_sweep("knots.zarr")
        float(data.num_knots.mean())  # about 4
        ```
    """
    xarray = need("xarray")
    need("zarr")
    try:
        data = xarray.open_zarr(str(path), chunks=None, consolidated=False)
        checksums = data["block_checksum"].values
    except (FileNotFoundError, KeyError, ValueError) as e:
        raise ValueError(f"There is no sweep at {path}: {e}") from e
    if missing := int((checksums == 0).sum()):
        warnings.warn(
            f"{missing} of {checksums.size} blocks of {path} are not computed yet: run the sweep "
            "again with `resume=True`.",
            stacklevel=2,
        )
    return data.drop_vars("block_checksum")
