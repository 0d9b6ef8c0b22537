"""The table that summarises a sweep: mean, median and quantiles of each scalar metric in each cell,
and how many lanes failed."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

AXES = ("size", "network", "weight_decay", "log_eps")


class Row(NamedTuple):
    """Statistics of a metric in one cell, over the `known` instances whose value is finite."""

    metric: str
    place: dict[str, Any]  # size, network, weight_decay and, where it applies, log_eps
    known: int
    mean: float
    standard_error: float
    median: float
    high: float  # the 95 % quantile
    largest: float


def summary(data: Any) -> Iterator[Row]:
    """A row for each metric without an axis `s` or `coordinate`, and each cell of a dataset of
    `open_sweep`. With no finite value the statistics are NaN."""
    for name in sorted(data.data_vars):
        values = data[name]
        if name.endswith("_result") or not set(values.dims) <= {*AXES, "instance"}:
            continue
        # One metric in memory at a time: a dataset of `open_sweep` is read lazily.
        values = values.load().stack(cell=[axis for axis in AXES if axis in values.dims])
        for k in range(values.sizes["cell"]):
            one = values.isel(cell=k)
            place = {axis: one[axis].item() for axis in AXES if axis in one.coords}
            # NaN are failed lanes, which `failures` counts. An infinite gap has no mean either.
            good = one.values[np.isfinite(one.values)]
            if not len(good):
                yield Row(name, place, 0, *[np.nan] * 5)
                continue
            spread = np.std(good, ddof=1) if len(good) > 1 else np.nan
            median, high, largest = np.quantile(good, [0.5, 0.95, 1])
            error = spread / len(good) ** 0.5
            yield Row(name, place, len(good), good.mean(), error, median, high, largest)


def failures(data: Any) -> dict[str, int]:
    """The number of lanes that ended in each result other than `successful`, by solve and result.
    Lanes that were not computed count as well."""
    counts = {}
    for name, values in data.data_vars.items():
        if name.endswith("_result"):
            meanings = values.attrs["flag_meanings"].split()
            names = dict(zip(values.attrs["flag_values"], meanings, strict=True))
            codes, found = np.unique(values.values, return_counts=True)
            for code, count in zip(codes, found, strict=True):
                if code != 0:
                    counts[f"{name.removesuffix('_result')}: {names[int(code)]}"] = int(count)
    return counts
