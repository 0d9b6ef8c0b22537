"""What the readers of data share: the data set, its errors, and words for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

ACCEPTED = "Accepted: diabetes, diabetes-quadratic, khan, or a path that ends in .csv or .npz."


class DataError(ValueError):
    """The data cannot be used. The message names the place, the value and the fix."""


class Dataset(NamedTuple):
    """A regression problem: `X` is `(n, d)`, `y` is `(n,)`, both float64 and finite."""

    name: str
    X: np.ndarray
    y: np.ndarray
    columns: list[str]
    target: str
    notes: tuple[str, ...] = ()  # what was done to the file, to be told


class TableOptions(NamedTuple):
    """How a table is read."""

    separator: str = ","
    decimal: str = "."
    drop_missing: bool = False  # leave out rows with missing values
    one_hot: bool = False  # a column of 0 and 1 for each value of a text
    classes: bool = False  # two texts as target are −1 and 1


def dropped(name: str, number: int, of: int) -> tuple[str, ...]:
    """The note on rows that were left out.

    **Raises:** `DataError` if all were."""
    if number == of:
        raise DataError(f"{name}: every row has a missing value. Remove or fill in columns.")
    return (f"{name}: left out {number} of {of} rows, which have missing values",) * (number > 0)


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(
            f"{str(path)!r} cannot be read: {e.strerror or e}. Check the path and its "
            f"permissions. {ACCEPTED}"
        ) from e


def listed(names: Sequence[str], limit: int = 10) -> str:
    shown = ", ".join(short(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


def short(text: str, limit: int = 40) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
