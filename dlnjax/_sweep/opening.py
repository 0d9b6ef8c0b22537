"""`open_sweep`: what is on disk as labelled data, with what is not there said."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .store import lost, need, open_group


def open_sweep(path: str | Path) -> Any:
    """The data of a sweep, finished or not, as an `xarray.Dataset` that reads what is asked for.

    Dimensions are `size`, `network`, `instance`, `weight_decay` and, where they apply, `log_eps`
    (with `eps` beside it), `s` and `coordinate`. `path_result`, `limit_result` and `flow_result`
    say how each lane ended (`flag_meanings`); metrics are NaN unless it was `successful` (0). With
    a `KnotGrid`, each instance has times of its own, the coordinate `time`. `computed` says which
    instances are there: the others are NaN, and their results −1, `not_computed`. Each block of
    instances has `block_done`, when, and `block_made_by`, a place in the attribute `provenance`
    (versions and devices, JSON). The attributes `spec` and `layout` are JSON too.

    A chunk that changed on disk raises a `ValueError` of Zarr when it is read.

    **Arguments:** `path`, of a store written by `run_sweep`.

    **Returns:** an `xarray.Dataset`, without dask: `.load()` reads all of it.

    **Raises:** `ModuleNotFoundError` without the extra `sweep`; `ValueError` if there is no sweep
    at `path`, or its metadata is damaged. Warns where blocks are missing.

    !!! example

        ```python
        sweep = dln.Sweep(instances=20, sizes=[(3, 4)], metrics=["num_knots"])
        dln.run_sweep(sweep, "knots.zarr", progress=False)
        data = dln.open_sweep("knots.zarr")
        float(data.num_knots.mean())  # about 4
        bool(data.computed.all())  # True
        ```
    """
    xarray = need("xarray")
    path = Path(path)
    try:
        group = open_group(path, "r")
        # Format 3 alone: format 2 can name codecs that unpickle.
        data = xarray.open_zarr(str(path), chunks=None, consolidated=False, zarr_format=3)
        done = data["block_done"].values != 0
        gone = list(lost(path, group, done))
        block = json.loads(data.attrs["layout"])["block"]
    except (OSError, KeyError, TypeError, ValueError) as e:
        raise ValueError(
            f"There is no sweep at {path}, or it is damaged ({e}). Running it again with "
            "`resume=True` mends all but the files zarr.json."
        ) from e
    for reason, count in (("computed yet", int((~done).sum())), ("on disk any more", len(gone))):
        if count:
            warnings.warn(
                f"{count} of {done.size} blocks of {path} are not {reason}: run the sweep again "
                "with `resume=True`.",
                stacklevel=2,
            )
    for place in gone:
        done[place] = False
    computed = np.repeat(done, block, axis=2)[..., : data.sizes["instance"]]
    return data.assign_coords(
        computed=(
            ("size", "network", "instance"),
            computed,
            {"long_name": "Whether it is there: elsewhere metrics are NaN"},
        ),
        block_done=data["block_done"].astype("datetime64[s]").where(data["block_done"] != 0),
    )
