"""Built-in data sets, and what is neither one of them nor a file that can be read."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from data_files import GOOD, fails

from dlnjax.cli.data import load, standardize

BUILT_IN = ("diabetes", "diabetes-quadratic", "khan")
MAIN = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]


def test_diabetes():
    data = load("diabetes")
    assert data.name == "diabetes" and data.target == "progression"
    assert data.columns == MAIN
    assert data.X.shape == (442, 10) and data.y.shape == (442,)
    assert data.X.dtype == data.y.dtype == np.float64
    assert (data.y.min(), data.y.max()) == (25, 346)


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


# What cannot be read


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
