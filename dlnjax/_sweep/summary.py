"""The table that summarises a sweep: mean, median and quantiles of each scalar metric in each cell,
and how many solves failed. It has one cell of one variable in memory at a time."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

AXES = ("size", "network", "weight_decay", "log_eps")


class Row(NamedTuple):
    """Statistics of a metric in one cell, over the `known` instances whose value is finite."""

    metric: str
    place: dict[str, Any]  # size, network, weight_decay and, where it applies, log_eps
    known: int
    missing: int  # instances that are not computed
    mean: float
    standard_error: float
    median: float
    high: float  # the 95 % quantile
    largest: float


def summary(data: Any) -> Iterator[Row]:
    """A row for each metric without an axis `s` or `coordinate`, and each cell of a dataset of
    `open_sweep`. With no finite value the statistics are NaN."""
    for name in sorted(data.data_vars):
        if name.endswith("_result") or not set(data[name].dims) <= {*AXES, "instance"}:
            continue
        for one in _cells(data[name]):
            place = {axis: one[axis].item() for axis in AXES if axis in one.coords}
            missing = int((~one["computed"].values).sum())
            # NaN are failed lanes, which `failures` counts. An infinite gap has no mean either.
            good = one.values
            good = good[np.isfinite(good)]
            if not len(good):
                yield Row(name, place, 0, missing, *[np.nan] * 5)
                continue
            mean, spread = good.mean(), np.std(good, ddof=1) if len(good) > 1 else np.nan
            median, high, largest = np.quantile(good, [0.5, 0.95, 1], overwrite_input=True)
            error = spread / len(good) ** 0.5
            yield Row(name, place, len(good), missing, mean, error, median, high, largest)


def failures(data: Any) -> dict[str, int]:
    """The number of lanes that ended in each result other than `successful`, by solve and result,
    among those that were computed."""
    counts = Counter[str]()
    for name, values in data.data_vars.items():
        if name.endswith("_result"):
            meanings = values.attrs["flag_meanings"].split()
            names = dict(zip(values.attrs["flag_values"], meanings, strict=True))
            for one in _cells(values):
                codes, found = np.unique(one.values[one["computed"].values], return_counts=True)
                for code, count in zip(codes.tolist(), found.tolist(), strict=True):
                    if code != 0:
                        counts[f"{name.removesuffix('_result')}: {names[code]}"] += count
    return dict(counts)


def not_computed(data: Any) -> int:
    """How many instances, of all sizes and networks, are not there."""
    return int((~data["computed"].values).sum())


def _cells(values: Any) -> Iterator[Any]:
    """The cells of a variable, each read when it is looked at and forgotten after that."""
    axes = [axis for axis in AXES if axis in values.dims]
    for place in itertools.product(*(range(values.sizes[axis]) for axis in axes)):
        yield values.isel(dict(zip(axes, place, strict=True)))
