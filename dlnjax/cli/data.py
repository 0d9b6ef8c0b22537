"""Data sets for the command line: built-in names, `.csv` and `.npz` files. Never unpickles."""

import csv
import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._standardize import centered


class DataError(ValueError):
    """The data cannot be used. The message names the place, the value and the fix."""


class Dataset(NamedTuple):
    """A regression problem: `X` is `(n, d)`, `y` is `(n,)`, both float64 and finite."""

    name: str
    X: np.ndarray
    y: np.ndarray
    columns: list[str]
    target: str


def load(source: str, target: str | None = None) -> Dataset:
    """Read a built-in data set or a file.

    **Arguments:**

    - `source`: `diabetes`, `diabetes-quadratic`, `khan`, or a path that ends in `.csv` or `.npz`.
    - `target`: the response. For `.csv`, the name of a column (all others are features); for
        `.npz`, the name of an array, `y` by default. Built-in data sets have their own.

    **Returns:** a `Dataset`, as stored: not centred, not scaled.

    **Raises:** `DataError` for anything that cannot be used as it stands.
    """
    if source in _BUILT_IN:
        data = _BUILT_IN[source]()
        if target not in (None, data.target):
            raise DataError(
                f"The response of {source} is always {data.target!r}, but the target {target!r} "
                "was asked for. Leave --target out."
            )
        return data
    path = Path(source)
    if os.path.isdir(source):
        raise DataError(f"{source!r} is a directory. {_ACCEPTED}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{source!r} is no known data set, nor a known kind of file. {_ACCEPTED}")
    return reader(path, target)


def standardize(data: Dataset, center_target: bool = True) -> Dataset:
    """Centre `y`, unless it holds classes; centre the columns of `X` and scale them to unit
    Euclidean norm, as in the LARS paper. A constant column becomes exactly 0, which the lasso never
    selects.

    **Raises:** `DataError` if `y`, or every column of `X`, is constant.

    !!! cite "Reference"

        Efron, Hastie, Johnstone, Tibshirani (2004), Least Angle Regression, §1.
    """
    X, y = centered(data.X), centered(data.y)
    if not y.norm:
        raise DataError(
            f"The target {data.target!r} is constant ({data.y[0]:g} in every row, "
            f"n = {len(data.y)}), so there is nothing to explain. Choose another --target, or add "
            "rows."
        )
    if not X.norm.any():
        raise DataError(
            f"Every feature is constant ({_listed(data.columns)}), so nothing can be selected. "
            "Add a column that varies."
        )
    X = X.values / np.where(X.norm > 0, X.norm, 1)
    return data._replace(X=X, y=y.values * y.unit if center_target else data.y)


# Built-in data sets


def _diabetes() -> Dataset:
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as e:
        raise DataError(
            "The diabetes data come with scikit-learn, which cannot be imported. Install it with "
            'pip install "dlnjax[data]"'
        ) from e
    bunch: Any = load_diabetes()
    X, y = np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.float64)
    return Dataset("diabetes", X, y, list(bunch.feature_names), "progression")


def _diabetes_quadratic() -> Dataset:
    """The quadratic model of the LARS paper (§3): 10 main effects, 45 interactions, 9 squares."""
    main = _diabetes()
    # scikit-learn ships the main effects centred and with unit norm already.
    X, names = main.X, main.columns
    pairs = list(itertools.combinations(range(len(names)), 2))
    # The square of a two-valued column (sex) is an affine function of it: no new direction.
    squares = [j for j in range(len(names)) if len(np.unique(X[:, j])) > 2]
    features = [X[:, i] * X[:, j] for i, j in pairs] + [X[:, j] ** 2 for j in squares]
    columns = [f"{names[i]}:{names[j]}" for i, j in pairs] + [f"{names[j]}^2" for j in squares]
    return main._replace(
        name="diabetes-quadratic", X=np.column_stack([X, *features]), columns=names + columns
    )


def _khan() -> Dataset:
    # Only data files are wanted. `find_spec` finds them without importing ISLP, whose
    # dependencies are many and not installed under --no-deps.
    spec = find_spec("ISLP")
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    for folder in folders:
        paths = [Path(folder, "data", f"Khan_{part}train.csv") for part in "xy"]
        if all(path.is_file() for path in paths):
            break
    else:
        raise DataError(
            "The Khan gene expressions come with the Python package ISLP, whose files "
            "Khan_xtrain.csv and Khan_ytrain.csv were not found. Get them with "
            "pip install --no-deps ISLP"
        )
    (columns, _), _ = tables = [_read_csv(path) for path in paths]
    X, y = (_numbers(path.name, *table) for path, table in zip(paths, tables, strict=True))
    if y.shape != (len(X), 1):
        raise DataError(
            f"ISLP's Khan files are damaged: expressions of shape {X.shape}, classes of shape "
            f"{y.shape}. Get them anew with pip install --no-deps --force-reinstall ISLP"
        )
    return Dataset("khan", X, y[:, 0], columns, "class")


# .csv

_Row = tuple[int, list[str]]  # line of the file at which it starts, cells
_MISSING = {"", "na", "n/a", "nan", "+nan", "-nan", "null", "none", "?"}


def _load_csv(path: Path, target: str | None) -> Dataset:
    name = path.name
    columns, rows = _read_csv(path)
    if target is None or target not in columns:
        problem = "which column is the response?" if target is None else f"no column {target!r}."
        raise DataError(f"{name}: {problem} Pass --target with one of {_listed(columns)}.")
    if len(columns) == 1:
        raise DataError(
            f"{name}: no feature column is left beside the target {target!r}. Add at least one."
        )
    values = _numbers(name, columns, rows, target)
    j = columns.index(target)
    features = columns[:j] + columns[j + 1 :]
    return Dataset(name, np.delete(values, j, axis=1), values[:, j], features, target)


def _read_csv(path: Path) -> tuple[list[str], list[_Row]]:
    """The column names and the rows, as text; the rows fit the header."""
    name = path.name
    rows = _csv_rows(name, _read_text(path))
    if not rows:
        raise DataError(f"{name} is empty. It needs a header with column names, then one row each.")
    line, header = rows.pop(0)
    where = f"{name}, header on line {line}"
    if any(header) and not any(map(_is_text, header)):
        raise DataError(
            f"{where}: it holds only numbers ({_listed(header)}), so the header seems to be "
            "missing. Add a first row with the column names."
        )
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise DataError(f"{where}: cells are separated by semicolons or tabs. Use commas.")
    first: dict[str, int] = {}
    for j, column in enumerate(header, start=1):
        if not column:
            raise DataError(
                f"{where}: column {j} has no name. Name it, or remove it if it is a row index "
                "(pandas: index=False)."
            )
        if first.setdefault(column, j) != j:
            raise DataError(
                f"{where}: columns {first[column]} and {j} are both named {_short(column)}. "
                "Rename one."
            )
    if not rows:
        raise DataError(f"{name} has a header but no rows of data. Add at least one row.")
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{name}, row on line {line}: {len(cells)} cells, but the header has "
                f"{len(header)} columns, {_listed(header)}. Add or remove commas; quote cells "
                "that contain one."
            )
    return header, rows


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        raise DataError(
            f"{path.name}, line {line}: byte 0x{e.object[e.start]:02x} is not UTF-8 text. Save it "
            "as comma-separated text in UTF-8."
        ) from e


def _csv_rows(name: str, text: str) -> list[_Row]:
    """All rows but blank ones, cells stripped."""
    # Not by pandas: its C parser reads `"2"3` as 23, and neither of its parsers says on which line
    # of the file a row starts.
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    rows = []
    line = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if cells not in ([], [""]):
                rows.append((line, cells))
            # Where the next row starts: a quoted cell may span several lines.
            line = reader.line_num + 1
    except csv.Error as e:
        raise DataError(
            f"{name}, row on line {line}: malformed ({e}). Check the quotes of this row."
        ) from e
    return rows


def _numbers(
    name: str, columns: list[str], rows: list[_Row], target: str | None = None
) -> np.ndarray:
    values = np.empty((len(rows), len(columns)))
    for i, (line, cells) in enumerate(rows):
        for j, cell in enumerate(cells):
            values[i, j] = _number(cell)
            if not math.isfinite(values[i, j]):
                where = f"{name}, row on line {line}, column {_short(columns[j])}"
                raise DataError(f"{where}: {_fault(cell, columns[j] == target)}")
    return values


def _number(cell: str) -> float:
    """Its value, NaN if it is text."""
    try:
        # Python reads 1_000 as a number; in data, an underscore is more likely part of a label.
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _is_text(cell: str) -> bool:
    return cell.lower() not in _MISSING and math.isnan(_number(cell))


def _fault(cell: str, is_target: bool) -> str:
    if cell.lower() in _MISSING:
        return f"missing value ({cell!r}). Fill it in or remove the row."
    if _is_text(cell):
        fix = "choose another --target" if is_target else "remove the column"
        return f"{_short(cell)} is text. Encode it as numbers or {fix}."
    return f"{_short(cell)} is not finite. Correct it or remove the row."


# .npz


def _load_npz(path: Path, target: str | None) -> Dataset:
    target = "y" if target is None else target
    name = path.name
    raw = _read_bytes(path)
    how = "Write it with np.savez(path, X=X, y=y)."
    if not raw.startswith((b"PK\3\4", b"PK\5\6")):
        # np.load would take the bytes for a pickle, and its error advises to allow that.
        raise DataError(f"{name} is not a .npz archive. {how}")
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            stored = list(archive.files)
            arrays = {k: np.asarray(archive[k]) for k in ("X", target) if k in stored}
    except Exception as e:  # zipfile, zlib, struct, MemoryError: damaged bytes can raise anything
        if "Object arrays" in str(e):
            raise DataError(
                f"{name} holds an array of Python objects, which would have to be unpickled: that "
                "could run code. Convert it to numbers first, as in X.astype(float)."
            ) from e
        raise DataError(f"{name} is damaged ({type(e).__name__}). {how}") from e
    for key in ("X", target):
        if key not in arrays:
            raise DataError(
                f"{name} has no array {key!r}; it holds {_listed(stored) or 'none'}. {how} The "
                "response may have another name, given by --target."
            )
    X, y = (_numeric(name, key, arrays[key]) for key in ("X", target))
    if X.ndim != 2 or 0 in X.shape:
        fix = "Save X[:, None] if it is a single feature." if X.ndim == 1 else how
        raise DataError(
            f"{name}: 'X' must have one row a sample and one column a feature, shape (n, d), "
            f"got {X.shape}. {fix}"
        )
    if y.shape != (len(X),):
        flat = y.shape == (len(X), 1)
        fix = f"Save {target}[:, 0]." if flat else "Save one number for each row of 'X'."
        raise DataError(
            f"{name}: {target!r} must have shape ({len(X)},) to match 'X' of shape {X.shape}, "
            f"got {y.shape}. {fix}"
        )
    return Dataset(name, X, y, [f"x{j}" for j in range(X.shape[1])], target)


def _numeric(name: str, key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: {key!r} must hold real numbers, got dtype {array.dtype}. Encode it as "
            "numbers, then save it again."
        )
    with np.errstate(over="ignore"):  # long doubles beyond float64 become inf, refused below
        array = array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        place = f"{key}[{', '.join(map(str, index))}]"
        raise DataError(
            f"{name}: {place} is {array[index]} ({len(bad)} of {array.size} entries are not "
            "finite). Fill it in or remove the row."
        )
    return array


# Shared


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise DataError(
            f"{str(path)!r} cannot be read: {e.strerror or e}. Check the path and its "
            f"permissions. {_ACCEPTED}"
        ) from e


def _listed(names: Sequence[str], limit: int = 10) -> str:
    shown = ", ".join(_short(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


def _short(text: str, limit: int = 40) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


_BUILT_IN: dict[str, Callable[[], Dataset]] = {
    "diabetes": _diabetes,
    "diabetes-quadratic": _diabetes_quadratic,
    "khan": _khan,
}
_READERS: dict[str, Callable[[Path, str | None], Dataset]] = {".csv": _load_csv, ".npz": _load_npz}
_ACCEPTED = f"Accepted: {', '.join(_BUILT_IN)}, or a path that ends in {' or '.join(_READERS)}."
