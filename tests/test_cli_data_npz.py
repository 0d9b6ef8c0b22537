"""Archives of arrays: what is accepted, what is refused, and that nothing is unpickled."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from data_files import fails

from dlnjax.cli.data import DataError, TableOptions, load


@pytest.fixture
def savez(tmp_path):
    """Write arrays to a `.npz` file, and return its path as a string."""

    def savez(**arrays):
        path = tmp_path / "arrays.npz"
        np.savez(path, **arrays)
        return str(path)

    return savez


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


@pytest.mark.parametrize("source", ["data.npz", "diabetes"])
def test_options_of_a_csv_are_refused(source):
    with pytest.raises(DataError, match=r"--sep, --one-hot is not for .* '" + source):
        load(source, "y", TableOptions(";", one_hot=True))
