"""`.csv` files: what is accepted, and errors that name line, column, value and fix."""

import csv
import io
import math
from pathlib import Path

import numpy as np

from .dataset import DataError, Dataset, TableOptions, dropped, listed, read_bytes, short

Row = tuple[int, list[str]]  # line of the file at which it starts, cells
_MISSING = {"", "na", "n/a", "nan", "+nan", "-nan", "null", "none", "?", "#n/a", ".", "-"}


def load_csv(path: Path, target: str | None, options: TableOptions) -> Dataset:
    name = path.name
    _check(options)
    columns, rows = read_csv(path, options)
    if target is None or target not in columns:
        problem = "which column is the response?" if target is None else f"no column {target!r}."
        raise DataError(f"{name}: {problem} Pass --target with one of {listed(columns)}.")
    if len(columns) == 1:
        raise DataError(
            f"{name}: no feature column is left beside the target {target!r}. Add at least one."
        )
    notes: tuple[str, ...] = ()
    if options.drop_missing:
        whole = [row for row in rows if not any(map(_is_missing, row[1]))]
        notes = dropped(name, len(rows) - len(whole), len(rows))
        rows = whole
    if options.classes:
        rows, more = _classes(name, columns.index(target), columns, rows, options.decimal)
        notes += more
    if options.one_hot:
        columns, rows = _encoded(name, columns, rows, target, options.decimal)
    values = numbers(name, columns, rows, target, options.decimal)
    j = columns.index(target)
    features = columns[:j] + columns[j + 1 :]
    return Dataset(name, np.delete(values, j, axis=1), values[:, j], features, target, notes)


def _check(options: TableOptions) -> None:
    separator, decimal = options.separator, options.decimal
    if decimal not in (".", ","):
        raise DataError(f"The decimal point is `.` or `,`, got {decimal!r} as --decimal.")
    if len(separator) != 1 or separator in ("\n", "\r", '"'):
        raise DataError(
            f"Cells are separated by one character, got {separator!r} as --sep. For a tabulator "
            "pass --sep tab."
        )
    if separator == decimal:
        raise DataError(
            f"{separator!r} cannot both separate cells and be the decimal point. Pass --sep ';', "
            "or what the file has."
        )


def _classes(
    name: str, j: int, columns: list[str], rows: list[Row], decimal: str
) -> tuple[list[Row], tuple[str, ...]]:
    """With −1 and 1 for two texts in column `j`, in alphabetical order, and a note of it."""
    values = sorted({cells[j] for _, cells in rows if not _is_missing(cells[j])})
    if not any(_is_text(value, decimal) for value in values):
        return rows, ()
    if len(values) != 2:
        raise DataError(
            f"{name}, column {short(columns[j])}: --loss logistic needs two classes, got "
            f"{listed(values)}. Keep the rows of two, or choose another --target."
        )
    code = dict(zip(values, ("-1", "1"), strict=True))
    # A missing one stays, and is named later.
    of = lambda cells: [*cells[:j], code.get(cells[j], cells[j]), *cells[j + 1 :]]
    first, second = map(short, values)
    note = f"the class {second} is 1, {first} is −1"
    return [(line, of(cells)) for line, cells in rows], (note,)


def _encoded(
    name: str, columns: list[str], rows: list[Row], target: str, decimal: str
) -> tuple[list[str], list[Row]]:
    """With a column of 0 and 1 for each value of a column that holds text, or for the second of
    two, but for the target."""
    names, parts = [], []
    for j, column in enumerate(columns):
        cells = [row[j] for _, row in rows]
        if column == target or not any(_is_text(cell, decimal) for cell in cells):
            names.append(column)
            parts.append(cells)
            continue
        missing = [line for (line, _), cell in zip(rows, cells, strict=True) if _is_missing(cell)]
        if missing:
            raise DataError(
                f"{name}, row on line {missing[0]}, column {short(column)}: a text is missing. "
                "Fill it in, remove the row, or pass --drop-missing."
            )
        if decimal == "." and not any(math.isnan(_number(cell, ",")) for cell in cells):
            raise DataError(
                f"{name}, column {short(column)}: numbers have commas. Pass --decimal , if that is "
                "the decimal point."
            )
        levels = sorted(set(cells))
        if len(levels) > max(2, len(cells) // 2):
            raise DataError(
                f"{name}, column {short(column)} has {len(levels)} values in {len(cells)} rows: "
                "a name rather than a kind. Remove the column."
            )
        # Of two values one column says all: a second one would be its opposite.
        for level in levels[len(levels) == 2 :]:
            names.append(f"{column}={level}")
            parts.append(["1" if cell == level else "0" for cell in cells])
    if len(set(names)) < len(names):
        twice = next(one for i, one in enumerate(names) if one in names[:i])
        raise DataError(f"{name}: --one-hot makes a second column {short(twice)}. Rename one.")
    lines = [line for line, _ in rows]
    return names, [
        (line, list(cells)) for line, cells in zip(lines, zip(*parts, strict=True), strict=True)
    ]


def read_csv(path: Path, options: TableOptions) -> tuple[list[str], list[Row]]:
    """The column names and the rows, as text; the rows fit the header."""
    name = path.name
    rows = _csv_rows(name, _read_text(path), options.separator)
    if not rows:
        raise DataError(f"{name} is empty. It needs a header with column names, then one row each.")
    line, header = rows.pop(0)
    where = f"{name}, header on line {line}"
    if any(header) and not any(_is_text(cell, options.decimal) for cell in header):
        raise DataError(
            f"{where}: it holds only numbers ({listed(header)}), so the header seems to be "
            "missing. Add a first row with the column names."
        )
    other = next((c for c in ";\t," if c != options.separator and c in header[0]), None)
    if len(header) == 1 and other:
        fix = {"\t": "--sep tab", ",": "--sep ,"}.get(
            other, "--sep ';', and --decimal , if numbers have commas"
        )
        raise DataError(f"{where}: cells are separated by {other!r}. Pass {fix}.")
    first: dict[str, int] = {}
    for j, column in enumerate(header, start=1):
        if not column:
            raise DataError(
                f"{where}: column {j} has no name. Name it, or remove it if it is a row index "
                "(pandas: index=False)."
            )
        if first.setdefault(column, j) != j:
            raise DataError(
                f"{where}: columns {first[column]} and {j} are both named {short(column)}. "
                "Rename one."
            )
    if not rows:
        raise DataError(f"{name} has a header but no rows of data. Add at least one row.")
    separators = "commas" if options.separator == "," else f"{options.separator!r}"
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{name}, row on line {line}: {len(cells)} cells, but the header has "
                f"{len(header)} columns, {listed(header)}. Add or remove {separators}; quote cells "
                "that contain one."
            )
    return header, rows


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        raise DataError(
            f"{path.name}, line {line}: byte 0x{e.object[e.start]:02x} is not UTF-8 text. Save it "
            "as comma-separated text in UTF-8."
        ) from e


def _csv_rows(name: str, text: str, separator: str) -> list[Row]:
    """All rows but blank ones, cells stripped."""
    # Not by pandas: its C parser reads `"2"3` as 23, and neither of its parsers says on which line
    # of the file a row starts.
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True
    )
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


def numbers(
    name: str,
    columns: list[str],
    rows: list[Row],
    target: str | None = None,
    decimal: str = ".",
) -> np.ndarray:
    values = np.empty((len(rows), len(columns)))
    for i, (line, cells) in enumerate(rows):
        for j, cell in enumerate(cells):
            values[i, j] = _number(cell, decimal)
            if not math.isfinite(values[i, j]):
                where = f"{name}, row on line {line}, column {short(columns[j])}"
                raise DataError(f"{where}: {_fault(cell, columns[j] == target, decimal)}")
    return values


def _number(cell: str, decimal: str) -> float:
    """Its value, NaN if it is text."""
    if decimal == ",":
        cell = "text" if "." in cell else cell.replace(",", ".")  # 1.234 may be 1234
    try:
        # Python reads 1_000 as a number; in data, an underscore is more likely part of a label.
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _is_missing(cell: str) -> bool:
    return cell.lower() in _MISSING


def _is_text(cell: str, decimal: str) -> bool:
    return not _is_missing(cell) and math.isnan(_number(cell, decimal))


def _fault(cell: str, is_target: bool, decimal: str) -> str:
    if _is_missing(cell):
        return f"missing value ({cell!r}). Fill it in, remove the row, or pass --drop-missing."
    if _is_text(cell, decimal):
        if decimal == "." and not math.isnan(_number(cell, ",")):
            return f"{short(cell)} has a comma. Pass --decimal , if that is the decimal point."
        fix = "pass --one-hot, or remove the column"
        if is_target:
            fix = "choose another --target; --loss logistic takes two texts as classes"
        return f"{short(cell)} is text. Encode it as numbers, or {fix}."
    return f"{short(cell)} is not finite. Correct it or remove the row."
