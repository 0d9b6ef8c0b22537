import io
import os
import pickle
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import lars_path

from dlnjax.cli.data import DataError, Dataset, load, standardize

MAIN = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
BUILT_IN = ("diabetes", "diabetes-quadratic", "khan")


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file, and return its path as a string."""

    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def savez(tmp_path):
    """Write arrays to a `.npz` file, and return its path as a string."""

    def savez(**arrays):
        path = tmp_path / "arrays.npz"
        np.savez(path, **arrays)
        return str(path)

    return savez


def fails(source, *words, target=None):
    """`load` raises a short `DataError` that contains all `words`."""
    with pytest.raises(DataError) as info:
        load(source, target)
    message = str(info.value)
    for word in words:
        assert word in message, f"{word!r} not in {message!r}"
    assert "\n" not in message and len(message) < 600
    return message


# Built-in data sets


def test_diabetes():
    data = load("diabetes")
    assert data.name == "diabetes" and data.target == "progression"
    assert data.columns == MAIN
    assert data.X.shape == (442, 10) and data.y.shape == (442,)
    assert data.X.dtype == data.y.dtype == np.float64
    assert (data.y.min(), data.y.max()) == (25, 346)


def test_diabetes_reproduces_the_order_of_the_lars_paper():
    data = standardize(load("diabetes"))
    order = lars_path(data.X, data.y, method="lar")[1]
    # Efron et al. (2004), Figure 3, which numbers the columns from 1.
    assert [int(j) + 1 for j in order] == [3, 9, 4, 7, 2, 10, 5, 8, 6, 1]


def test_diabetes_quadratic():
    data = load("diabetes-quadratic")
    assert data.X.shape == (442, 64) and len(set(data.columns)) == len(data.columns) == 64
    assert data.columns[:10] == MAIN
    np.testing.assert_array_equal(data.X[:, :10], load("diabetes").X)
    pairs = [name for name in data.columns if ":" in name]
    squares = [name for name in data.columns if name.endswith("^2")]
    assert len(pairs) == 45 and len(squares) == 9
    assert "sex^2" not in squares
    column = dict(zip(data.columns, data.X.T, strict=True))
    np.testing.assert_array_equal(column["age:bmi"], column["age"] * column["bmi"])
    np.testing.assert_array_equal(column["bmi^2"], column["bmi"] ** 2)


def test_diabetes_quadratic_standardised():
    data = standardize(load("diabetes-quadratic"))
    np.testing.assert_allclose(np.linalg.norm(data.X, axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(data.X.mean(axis=0), 0, atol=1e-16)
    assert np.linalg.matrix_rank(data.X) == 64
    # The strongest single effects are main effects, as on the 10 columns.
    first = np.argsort(-np.abs(data.X.T @ data.y))[:3]
    assert {data.columns[j] for j in first} == {"bmi", "s5", "bp"}


def test_without_scikit_learn_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for source in ("diabetes", "diabetes-quadratic"):
        fails(source, "scikit-learn", 'pip install "dlnjax[data]"')


def test_built_in_target():
    assert load("diabetes", "progression").target == "progression"
    fails("diabetes", "'bmi'", "'progression'", "Leave --target out", target="bmi")


# khan. The real files have quoted names, one row a patient, and the classes under the header "x".

KHAN_X = '"V1","V2","V3"\n0.7733437,-2.438405,-0.4825622\n-0.07817778,-2.415754,4.2e-1\n'
KHAN_Y = '"x"\n2\n4\n'


@pytest.fixture
def islp(tmp_path, monkeypatch):
    """Install a fake ISLP that cannot be imported, only located."""

    def islp(**files):
        package = tmp_path / "site" / "ISLP"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise AssertionError('ISLP was imported')\n")
        for name, text in files.items():
            (package / "data" / f"{name}.csv").write_text(text)
        monkeypatch.syspath_prepend(str(package.parent))

    return islp


def test_khan(islp):
    islp(Khan_xtrain=KHAN_X, Khan_ytrain=KHAN_Y)
    data = load("khan")
    assert data.name == "khan" and data.target == "class"
    assert data.columns == ["V1", "V2", "V3"]
    np.testing.assert_array_equal(data.y, [2, 4])
    np.testing.assert_array_equal(
        data.X, [[0.7733437, -2.438405, -0.4825622], [-0.07817778, -2.415754, 0.42]]
    )
    assert "ISLP" not in sys.modules


@pytest.mark.parametrize("files", [{}, {"Khan_xtrain": KHAN_X}, {"Khan_ytrain": KHAN_Y}])
def test_khan_without_its_files(islp, files):
    islp(**files)
    fails("khan", "ISLP", "Khan_xtrain.csv", "pip install --no-deps ISLP")


def test_khan_without_islp(monkeypatch):
    monkeypatch.setattr("dlnjax.cli.data.find_spec", lambda name: None)
    fails("khan", "ISLP", "pip install --no-deps ISLP")


@pytest.mark.parametrize(
    "x, y, words",
    [
        (KHAN_X, '"x"\n2\n', ["damaged", "(2, 3)", "(1, 1)", "--force-reinstall"]),
        (KHAN_X, '"x","z"\n2,1\n4,1\n', ["damaged", "(2, 2)", "--force-reinstall"]),
        (KHAN_X.replace("4.2e-1", "NA"), KHAN_Y, ["Khan_xtrain.csv", "line 3", "'V3'", "missing"]),
        (KHAN_X, KHAN_Y.replace("4", "BL"), ["Khan_ytrain.csv", "line 3", "'x'", "'BL'"]),
        (KHAN_X, "", ["Khan_ytrain.csv", "empty"]),
    ],
)
def test_khan_damaged(islp, x, y, words):
    islp(Khan_xtrain=x, Khan_ytrain=y)
    fails("khan", *words)


@pytest.mark.skipif(find_spec("ISLP") is None, reason="needs pip install --no-deps ISLP")
def test_khan_real():
    data = load("khan")
    assert data.X.shape == (63, 2308) and data.columns[-1] == "V2308"
    assert np.bincount(data.y.astype(int)).tolist() == [0, 8, 23, 12, 20]
    np.testing.assert_allclose(np.linalg.norm(standardize(data).X, axis=0), 1, rtol=1e-13)


# .csv: what is accepted

GOOD = "a,b,y\n1,2,3\n4,5,6\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(GOOD, id="plain"),
        pytest.param(b"\xef\xbb\xbf" + GOOD.encode(), id="byte-order mark"),
        pytest.param(GOOD.replace("\n", "\r\n"), id="windows"),
        pytest.param(GOOD.replace("\n", "\r"), id="old mac"),
        pytest.param(GOOD.rstrip(), id="no final newline"),
        pytest.param(GOOD + "\n\n  \n", id="blank trailing lines"),
        pytest.param("\n" + GOOD, id="blank leading line"),
        pytest.param('"a","b","y"\n"1","2","3"\n4,"5",6\n', id="quotes"),
        pytest.param(" a , b,y \n 1 , 2,\t3\n4, 5 ,6\n", id="whitespace"),
        pytest.param(' "a", "b", "y"\n"1", " 2 ", 3\n4,5,6\n', id="quotes and whitespace"),
        pytest.param("a,b,y\n1.0,2e0,+3\n.4e1,5.,0006\n", id="notations"),
    ],
)
def test_csv(write, content):
    data = load(write(content), "y")
    assert isinstance(data, Dataset)
    assert data.name == "table.csv" and data.target == "y" and data.columns == ["a", "b"]
    np.testing.assert_array_equal(data.X, [[1, 2], [4, 5]])
    np.testing.assert_array_equal(data.y, [3, 6])
    assert data.X.dtype == data.y.dtype == np.float64


@pytest.mark.parametrize("target, X, y", [("a", [[2, 3]], [1]), ("b", [[1, 3]], [2])])
def test_csv_target_anywhere(write, target, X, y):
    data = load(write("a,b,c\n1,2,3\n"), target)
    np.testing.assert_array_equal(data.X, X)
    np.testing.assert_array_equal(data.y, y)


def test_csv_odd_names(write):
    data = load(write('"weight, kg","say ""hi""",2001,y\n1,2,3,4\n', "TABLE.CSV"), "y")
    assert data.columns == ["weight, kg", 'say "hi"', "2001"]


# .csv: what is refused. Rows go by their line in the file.


@pytest.mark.parametrize("cell", ["", "  ", "NA", "na", "N/A", "NaN", "-nan", "null", "None", "?"])
@pytest.mark.parametrize("column", ["a", "b", "y"])
def test_csv_missing_value(write, cell, column):
    row = ",".join(({"a": "4", "b": "5", "y": "6"} | {column: cell}).values())
    path = write(f"a,b,y\n1,2,3\n{row}\n7,8,9\n")
    words = [
        "table.csv",
        "row on line 3",
        f"column '{column}'",
        f"missing value ({cell.strip()!r})",
    ]
    fails(path, *words, "Fill it in or remove the row", target="y")


@pytest.mark.parametrize(
    "cell", ["high", "1_000", "3 kg", "0x1F", "1e", "--1", "true", "2024-01-31"]
)
def test_csv_text(write, cell):
    path = write(f"a,b,y\n1,2,3\n4,{cell},6\n")
    words = ["row on line 3", "column 'b'", repr(cell), "text", "Encode it as numbers"]
    fails(path, *words, "remove the column", target="y")


def test_csv_text_in_the_target(write):
    path = write("a,y\n1,benign\n")
    message = fails(path, "line 2", "'y'", "'benign'", "choose another --target", target="y")
    assert "remove the column" not in message


def test_csv_decimal_comma(write):
    fails(write('a,y\n"3,14",1\n'), "line 2", "'a'", "'3,14'", "Encode", target="y")


def test_csv_long_text_is_shortened(write):
    message = fails(write(f"a,y\n{'x' * 5000},1\n"), "line 2", "xxx...'", "text", target="y")
    assert len(message) < 200


@pytest.mark.parametrize("cell", ["inf", "-inf", "Infinity", "1e999", "-1e400"])
def test_csv_infinite(write, cell):
    path = write(f"a,b,y\n1,{cell},3\n")
    words = [
        "row on line 2",
        "column 'b'",
        repr(cell),
        "not finite",
        "Correct it or remove the row",
    ]
    fails(path, *words, target="y")


@pytest.mark.parametrize("row, count", [("4,5", 2), ("4,5,6,7", 4), ("4", 1), ("4,5,6,", 4)])
def test_csv_ragged(write, row, count):
    path = write(f"a,b,y\n1,2,3\n{row}\n")
    fails(path, "row on line 3", f"{count} cells", "3 columns", "'a'", "commas", target="y")


def test_csv_lines_are_those_of_the_file(write):
    # A blank line and a cell of two lines come before the bad row; it starts on line 6.
    path = write('a,"b\nb",y\n\n1,"\n2",3\n"4",oops,6\n')
    fails(path, "row on line 6", "'oops'", target="y")


@pytest.mark.parametrize(
    "content, words",
    [
        pytest.param("", ["empty", "header"], id="empty"),
        pytest.param("\n \n", ["empty", "header"], id="blank"),
        pytest.param(b"\xef\xbb\xbf", ["empty", "header"], id="only a byte-order mark"),
        pytest.param("a,y\n", ["header but no rows", "Add"], id="only a header"),
        pytest.param(
            "1,2.5\n3,4\n", ["line 1", "'1', '2.5'", "missing", "Add a first row"], id="-"
        ),
        pytest.param("\n1,NA\n3,4\n", ["line 2", "'NA'", "Add a first row"], id="line 2"),
        pytest.param("1,2\n", ["line 1", "Add a first row"], id="one row"),
        pytest.param("a,b,a,y\n1,2,3,4\n", ["1 and 3", "'a'", "Rename"], id="duplicate"),
        pytest.param("y,a, y\n1,2,3\n", ["1 and 3", "'y'", "Rename"], id="duplicate target"),
        pytest.param(",a,y\n0,1,2\n", ["line 1", "column 1", "index=False"], id="row index"),
        pytest.param("a,y,\n0,1,2\n", ["line 1", "column 3", "Name it"], id="unnamed"),
        pytest.param("y\n1\n2\n", ["no feature column", "'y'", "Add"], id="no feature"),
        pytest.param("a;y\n1,5;2\n", ["line 1", "semicolons", "commas"], id="semicolons"),
        pytest.param("a\ty\n1\t2\n", ["line 1", "tabs", "commas"], id="tabs"),
        pytest.param('a,y\n1,2\n"3,4\n', ["line 3", "malformed", "quotes"], id="open quote"),
        pytest.param('a,y\n1,"2"3\n', ["line 2", "malformed", "quotes"], id="stray quote"),
        pytest.param("a,y\n1," + "2" * 200_000, ["line 2", "malformed"], id="huge cell"),
        pytest.param(b"a,y\n1,2\n\xe9,4\n", ["line 3", "0xe9", "Save it", "UTF-8"], id="latin-1"),
        pytest.param("a,y\n1,2\n".encode("utf-16"), ["line 1", "UTF-8"], id="utf-16"),
        pytest.param(b"PK\x03\x04\x14\x00\x06\x00\xff", ["line 1", "UTF-8"], id="spreadsheet"),
        pytest.param(b"a,y\n1,2\x00\n", ["line 2", "'y'", "text"], id="NUL"),
    ],
)
def test_csv_refused(write, content, words):
    fails(write(content), "table.csv", *words, target="y")


@pytest.mark.parametrize("target", [None, "z", "Y", ""])
def test_csv_target_lists_the_columns(write, target):
    message = fails(write(GOOD), "'a', 'b', 'y'", "--target", target=target)
    assert target is None or f"no column {target!r}" in message


def test_csv_target_list_is_shortened(write):
    names = [f"gene{j}" for j in range(2000)]
    path = write(",".join(names) + "\n" + ",".join("1" * 2000) + "\n")
    message = fails(path, "'gene0'", "'gene9'", "...", "2000 in all", "--target")
    assert "'gene10'" not in message


def test_csv_target_comes_before_values(write):
    # Somebody who forgot the target should hear so, whatever the cells hold.
    fails(write("a,y\nhigh,NA\n"), "--target")


# .npz


def test_npz(savez):
    X = np.arange(6).reshape(3, 2)
    data = load(savez(X=X, y=np.array([True, False, True])))
    assert data.name == "arrays.npz" and data.target == "y" and data.columns == ["x0", "x1"]
    np.testing.assert_array_equal(data.X, X)
    np.testing.assert_array_equal(data.y, [1, 0, 1])
    assert data.X.dtype == data.y.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.float16, ">f4", np.longdouble])
def test_npz_dtypes(savez, dtype):
    data = load(savez(X=np.ones((2, 3), dtype), height=np.array([1, 2], dtype)), "height")
    assert data.target == "height" and data.X.dtype == data.y.dtype == np.float64
    np.testing.assert_array_equal(data.y, [1, 2])


def test_npz_compressed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", X=np.ones((2, 3)), y=np.ones(2))
    assert load(str(tmp_path / "a.npz")).X.shape == (2, 3)


def _with(value, shape, index):
    array = np.zeros(shape)
    array[index] = value
    return array


ONES = np.ones((3, 2))
OBJECTS = np.array([1.0, None, "a"], dtype=object)


@pytest.mark.parametrize(
    "arrays, target, words",
    [
        ({"y": np.ones(3)}, None, ["no array 'X'", "holds 'y'", "np.savez"]),
        ({"X": ONES}, None, ["no array 'y'", "holds 'X'", "--target"]),
        ({"X": ONES, "y": np.ones(3)}, "z", ["no array 'z'", "'X', 'y'", "--target"]),
        ({}, None, ["no array 'X'", "none", "np.savez"]),
        ({"X": np.ones(3), "y": np.ones(3)}, None, ["'X'", "(n, d)", "(3,)", "X[:, None]"]),
        ({"X": np.ones((3, 2, 1)), "y": np.ones(3)}, None, ["'X'", "(3, 2, 1)"]),
        ({"X": np.ones((0, 2)), "y": np.ones(0)}, None, ["'X'", "(0, 2)"]),
        ({"X": np.ones((3, 0)), "y": np.ones(3)}, None, ["'X'", "(3, 0)"]),
        ({"X": np.float64(1), "y": np.ones(3)}, None, ["'X'", "()"]),
        ({"X": ONES, "y": np.ones((3, 1))}, None, ["'y'", "(3, 1)", "(3,)", "Save y[:, 0]"]),
        ({"X": ONES, "t": np.ones((3, 1))}, "t", ["'t'", "(3, 1)", "Save t[:, 0]"]),
        ({"X": ONES, "y": np.ones(4)}, None, ["'y'", "(4,)", "(3, 2)", "each row"]),
        ({"X": ONES, "y": np.ones((3, 2))}, None, ["'y'", "(3, 2)", "each row"]),
        ({"X": ONES, "y": np.float64(1)}, None, ["'y'", "()", "each row"]),
        ({"X": ONES, "y": np.ones(3)}, "X", ["'X'", "must have shape (3,)"]),
        ({"X": ONES, "y": OBJECTS}, None, ["Python objects", "unpickled", "astype(float)"]),
        ({"X": ONES.astype(object), "y": np.ones(3)}, None, ["Python objects", "astype(float)"]),
        ({"X": ONES.astype(str), "y": np.ones(3)}, None, ["'X'", "<U", "Encode it"]),
        ({"X": ONES, "y": np.ones(3, complex)}, None, ["'y'", "complex128", "real"]),
        ({"X": ONES, "y": np.ones(3, "M8[s]")}, None, ["'y'", "datetime64", "Encode it"]),
        ({"X": ONES, "y": np.ones(3, "f8,i4")}, None, ["'y'", "f8", "Encode it"]),
        ({"X": _with(np.nan, (3, 2), (2, 1)), "y": np.ones(3)}, None, ["X[2, 1]", "nan", "remove"]),
        ({"X": _with(-np.inf, (3, 2), (0, 1)), "y": np.ones(3)}, None, ["X[0, 1]", "-inf"]),
        (
            {"X": ONES, "y": _with(np.nan, 3, slice(1, 3))},
            None,
            ["y[1]", "nan", "2 of 3", "remove"],
        ),
    ],
)
def test_npz_refused(savez, arrays, target, words):
    fails(savez(**arrays), "arrays.npz", *words, target=target)


def test_npz_unused_objects_are_not_touched(savez):
    assert load(savez(X=ONES, y=np.ones(3), notes=OBJECTS)).y.shape == (3,)


def test_npz_never_unpickles(write, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    array = io.BytesIO()
    np.save(array, np.array([Bomb()], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as z:
        z.writestr("X.npy", array.getvalue())
    for content in (pickle.dumps(Bomb()), array.getvalue(), archive.getvalue()):
        message = fails(write(content, "bomb.npz"), "bomb.npz")
        assert "allow_pickle" not in message
    assert not (tmp_path / "exploded").exists()


def _npz_bytes():
    buffer = io.BytesIO()
    np.savez(buffer, X=np.arange(6.0).reshape(3, 2), y=np.arange(3.0))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"X,y\n1,2\n", b"PK", b"\x93NUMPY\x01\x00v\x00{}"])
def test_npz_of_another_kind(write, content):
    fails(write(content, "a.npz"), "a.npz", "not a .npz archive", "np.savez")


@pytest.mark.parametrize("length", [10, 100, 300, 500])
def test_npz_truncated(write, length):
    fails(write(_npz_bytes()[:length], "a.npz"), "a.npz", "damaged", "np.savez")


def test_npz_with_a_huge_header(write):
    archive = io.BytesIO()
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000000, 9), }"
    with zipfile.ZipFile(archive, "w") as z:
        prefix = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little")
        z.writestr("X.npy", prefix + header + b"\n")
    fails(write(archive.getvalue(), "a.npz"), "damaged", "np.savez")


def test_npz_with_flipped_bytes(write):
    """Whatever the damage, there is a `DataError` or a well-formed data set."""
    rng = np.random.default_rng(0)
    good = np.frombuffer(_npz_bytes(), np.uint8)
    refused = 0
    for _ in range(500):
        bad = good.copy()
        bad[rng.integers(4, len(bad), 3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
        try:
            data = load(write(bad.tobytes(), "a.npz"))
        except DataError:
            refused += 1
        else:
            assert data.X.ndim == 2 and np.isfinite(data.X).all()
    assert refused > 250


# Neither


@pytest.mark.parametrize("name", ["missing.csv", "missing.npz", "folder/missing.csv"])
def test_no_such_file(tmp_path, name):
    path = str(tmp_path / name)
    fails(path, path, "No such file", "Check the path", *BUILT_IN, ".csv or .npz")


@pytest.mark.parametrize("name", ["folder", "folder.csv", "folder.npz"])
def test_directory(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    fails(str(path), str(path), "is a directory", *BUILT_IN, ".csv or .npz")


@pytest.mark.parametrize("name", ["a.csv", "a.npz"])
def test_permission_denied(write, monkeypatch, name):
    # Not by chmod: tests may run as root, whom it does not stop.
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    path = write("", name)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    fails(path, path, "Permission denied", "permissions")


@pytest.mark.parametrize(
    "source", ["", "diabtes", "Diabetes", "iris", "a.xlsx", "a.npy", "a" * 300]
)
def test_unknown_source(source):
    fails(source, repr(source), "no known data set", *BUILT_IN, ".csv or .npz")


def test_unknown_extension_of_a_file(write):
    fails(write(GOOD, "table.txt"), "table.txt", *BUILT_IN, ".csv or .npz", target="y")


def test_too_long_a_name():
    fails("a" * 300 + ".csv", "cannot be read", "too long")


# standardize


def make(X, y, name="made"):
    X, y = np.array(X, np.float64), np.array(y, np.float64)
    return Dataset(name, X, y, [f"c{j}" for j in range(X.shape[1])], "response")


def test_standardise():
    rng = np.random.default_rng(0)
    raw = make(5 + 10 * rng.normal(size=(20, 3)), 7 + rng.normal(size=20))
    X, y = raw.X.copy(), raw.y.copy()
    data = standardize(raw)
    assert data._replace(X=raw.X, y=raw.y) == raw  # names are kept
    np.testing.assert_array_equal(raw.X, X)  # and the input is not written to
    np.testing.assert_array_equal(raw.y, y)
    centred = X - X.mean(axis=0)
    np.testing.assert_allclose(data.X, centred / np.sqrt((centred**2).sum(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(data.y, y - y.mean(), rtol=1e-12)


def test_standardise_twice_changes_nothing():
    once = standardize(load("diabetes-quadratic"))
    twice = standardize(once)
    np.testing.assert_allclose(twice.X, once.X, rtol=0, atol=1e-14)
    np.testing.assert_allclose(twice.y, once.y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 0.1, 1e12 + 0.1, 1e-300])
def test_constant_column_becomes_zero(value):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 3))
    X[:, 1] = value
    data = standardize(make(X, rng.normal(size=30)))
    assert data.X.shape == (30, 3)
    assert not data.X[:, 1].any()
    np.testing.assert_allclose(np.linalg.norm(data.X[:, [0, 2]], axis=0), 1, rtol=1e-14)


def test_rounding_noise_is_constant():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 2))
    X[:, 0] = 0.1 + 1e-16 * rng.normal(size=30)
    assert not standardize(make(X, X[:, 1])).X[:, 0].any()


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 1e307])
def test_standardise_at_any_scale(scale):
    rng = np.random.default_rng(0)
    X, y = rng.uniform(-1, 1, (20, 2)), rng.uniform(-1, 1, 20)
    expected, data = standardize(make(X, y)), standardize(make(scale * X, scale * y))
    np.testing.assert_allclose(data.X, expected.X, rtol=1e-7)
    np.testing.assert_allclose(data.y, scale * expected.y, rtol=1e-7)


@pytest.mark.parametrize("offset", [1e8, -1e12, 1e15])
def test_standardise_with_a_large_offset(offset):
    """Whole numbers, whose sums and differences are exact: no digit of the variation is lost."""
    signal = np.arange(20.0)
    data = standardize(make((offset + signal)[:, None], offset + signal))
    centred = signal - signal.mean()
    np.testing.assert_allclose(data.y, centred, rtol=1e-14)
    np.testing.assert_allclose(data.X[:, 0], centred / np.linalg.norm(centred), rtol=1e-14)
    assert abs(data.X.sum()) < 1e-14


@pytest.mark.parametrize("y", [[5, 5, 5], [0, 0, 0], [0.1, 0.1, 0.1]])
def test_constant_target_is_refused(y):
    with pytest.raises(DataError, match=r"'response' is constant \(\d.*n = 3.*another --target"):
        standardize(make(np.eye(3), y))


def test_single_row_is_refused():
    with pytest.raises(DataError, match=r"constant \(4 in every row, n = 1\).*add rows"):
        standardize(make([[1, 2]], [4]))


def test_constant_features_are_refused():
    with pytest.raises(DataError, match="Every feature is constant.*'c0', 'c1'.*Add a column"):
        standardize(make([[1, 2], [1, 2]], [1, 2]))
