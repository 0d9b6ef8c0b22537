"""Data sets for the command line: built-in names, `.csv` and `.npz` files. Never unpickles."""

import io
import itertools
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .._standardize import centered
from .dataset import (
    ACCEPTED,
    DataError as DataError,
    Dataset as Dataset,
    TableOptions as TableOptions,
    dropped,
    listed,
    read_bytes,
)
from .table import load_csv, numbers, read_csv

PLAIN = TableOptions()


def load(source: str, target: str | None = None, options: TableOptions = PLAIN) -> Dataset:
    """Read a built-in data set or a file.

    **Arguments:**

    - `source`: `diabetes`, `diabetes-quadratic`, `khan`, or a path that ends in `.csv` or `.npz`.
    - `target`: the response. For `.csv`, the name of a column (all others are features); for
        `.npz`, the name of an array, `y` by default. Built-in data sets have their own.
    - `options`: how a table is read; of these `.npz` has `drop_missing` only.

    **Returns:** a `Dataset`, as stored: not centred, not scaled.

    **Raises:** `DataError` for anything that cannot be used as it stands.
    """
    _check_options(source, options)
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
        raise DataError(f"{source!r} is a directory. {ACCEPTED}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{source!r} is no known data set, nor a known kind of file. {ACCEPTED}")
    return reader(path, target, options)


def _check_options(source: str, options: TableOptions) -> None:
    """Raise for options that the source has no use for."""
    kind = Path(source).suffix.lower()
    if kind == ".csv":
        return
    # `classes` is no option of its own.
    plain, used = PLAIN._asdict(), {"classes", *(["drop_missing"] if kind == ".npz" else [])}
    given = [k for k, v in options._asdict().items() if v != plain[k] and k not in used]
    if given:
        flags = {"separator": "--sep"}
        names = ", ".join(flags.get(name, "--" + name.replace("_", "-")) for name in given)
        what = "an archive" if kind == ".npz" else "a data set"
        raise DataError(f"{names} is not for {what} like {source!r}. Leave it out.")


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
            f"Every feature is constant ({listed(data.columns)}), so nothing can be selected. "
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
    (columns, _), _ = tables = [read_csv(path, PLAIN) for path in paths]
    X, y = (numbers(path.name, *table) for path, table in zip(paths, tables, strict=True))
    if y.shape != (len(X), 1):
        raise DataError(
            f"ISLP's Khan files are damaged: expressions of shape {X.shape}, classes of shape "
            f"{y.shape}. Get them anew with pip install --no-deps --force-reinstall ISLP"
        )
    return Dataset("khan", X, y[:, 0], columns, "class")


# .npz


def _load_npz(path: Path, target: str | None, options: TableOptions) -> Dataset:
    target = "y" if target is None else target
    name = path.name
    raw = read_bytes(path)
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
                f"{name} has no array {key!r}; it holds {listed(stored) or 'none'}. {how} The "
                "response may have another name, given by --target."
            )
    notes: tuple[str, ...] = ()
    if options.drop_missing:
        X, y = arrays["X"], arrays[target]
        missing = [np.isnan(v) if v.dtype.kind == "f" else np.zeros(v.shape, bool) for v in (X, y)]
        if X.ndim == 2 and y.shape == X.shape[:1]:
            whole = ~(missing[0].any(axis=1) | missing[1])
            notes = dropped(name, int(np.sum(~whole)), len(y))
            arrays = {"X": X[whole], target: y[whole]}
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
    return Dataset(name, X, y, [f"x{j}" for j in range(X.shape[1])], target, notes)


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
            "finite). Fill it in, remove the row, or pass --drop-missing, for NaN."
        )
    return array


_BUILT_IN: dict[str, Callable[[], Dataset]] = {
    "diabetes": _diabetes,
    "diabetes-quadratic": _diabetes_quadratic,
    "khan": _khan,
}
_READERS: dict[str, Callable[[Path, str | None, TableOptions], Dataset]] = {
    ".csv": load_csv,
    ".npz": _load_npz,
}
