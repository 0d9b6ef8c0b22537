"""Tables: what is accepted; what is refused, with the line, the column, the value and the fix."""

import numpy as np
import pytest
from data_files import GOOD, fails

from dlnjax.cli.data import DataError, Dataset, TableOptions, load


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


def test_csv_of_other_countries(write):
    data = load(write("a;b;y\n1,5;2;3\n4;-5e-1;6,25\n"), "y", TableOptions(";", ","))
    np.testing.assert_array_equal(data.X, [[1.5, 2], [4, -0.5]])
    np.testing.assert_array_equal(data.y, [3, 6.25])
    data = load(write("a\tb\n1\t2\n"), "b", TableOptions("\t"))
    assert (data.X[0, 0], data.y[0]) == (1, 2)


def test_csv_without_rows_with_missing_values(write):
    path = write("a,b,y\n1,2,3\n4,NA,6\n7,8,\n9,10,11\n")
    data = load(path, "y", TableOptions(drop_missing=True))
    np.testing.assert_array_equal(data.X, [[1, 2], [9, 10]])
    [note] = data.notes
    assert note == "table.csv: left out 2 of 4 rows, which have missing values"
    with pytest.raises(DataError, match="every row has a missing value"):
        load(write("a,y\n1,\n,2\n"), "y", TableOptions(drop_missing=True))


def test_csv_kinds(write):
    rows = "red,1,2\nblue,3,4\nred,5,6\n7,7,8\nblue,0,0\n7,0,0\n"
    data = load(write("colour,b,y\n" + rows), "y", TableOptions(one_hot=True))
    assert data.columns == ["colour=7", "colour=blue", "colour=red", "b"]
    np.testing.assert_array_equal(data.X[:, 2], [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(np.sum(data.X[:, :3], axis=1), 1)
    two = load(write("sex,y\nm,1\nf,2\nm,3\n"), "y", TableOptions(one_hot=True))
    assert two.columns == ["sex=m"] and two.X[:, 0].tolist() == [1, 0, 1]
    names = "".join(f"person {i},{i}\n" for i in range(6))
    with pytest.raises(DataError, match="has 6 values in 6 rows"):
        load(write("name,y\n" + names), "y", TableOptions(one_hot=True))
    with pytest.raises(DataError, match="row on line 3, .*a text is missing"):
        load(write("a,y\nred,1\n,2\n"), "y", TableOptions(one_hot=True))


@pytest.mark.parametrize(
    "options, text, words",
    [
        (TableOptions(), "a;b;y\n1;2;3\n", "separated by ';'. Pass --sep"),
        (TableOptions(), "a\ty\n1\t3\n", "Pass --sep tab"),
        (TableOptions(), 'a,y\n"1,5",3\n', "has a comma. Pass --decimal"),
        (TableOptions(";", ","), "a;y\n1.234;3\n", "'1.234' is text"),
        (TableOptions(), "a,y\nred,3\n", "pass --one-hot"),
        (TableOptions(), "a,y\n,3\n", "pass --drop-missing"),
        (TableOptions(";"), "a,y\n1,3\n", "separated by ','. Pass --sep ,"),
        (TableOptions(";", one_hot=True), "a;y\n1,5;3\n2,5;4\n", "Pass --decimal ,"),
        (TableOptions(one_hot=True), "a,a=z,y\nx,1,3\nz,2,4\n", "a second column 'a=z'"),
    ],
)
def test_csv_errors_name_the_option(write, options, text, words):
    with pytest.raises(DataError, match=words):
        load(write(text), "y", options)


# What is refused. Rows go by their line in the file.


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
    fails(path, *words, "Fill it in, remove the row, or pass --drop-missing", target="y")


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


def test_csv_two_texts_as_classes(write):
    rows = "a,y\n1,no\n2,yes\n3,no\n"
    data = load(write(rows), "y", TableOptions(classes=True))
    np.testing.assert_array_equal(data.y, [-1, 1, -1])
    assert data.notes == ("the class 'yes' is 1, 'no' is −1",)
    for more, said in (
        ("4,maybe\n", "needs two classes, got 'maybe', 'no', 'yes'"),
        ("4,1\n", "needs two classes, got '1', 'no', 'yes'"),
        ("4,NA\n", r"line 5, column 'y': missing value \('NA'\)"),
    ):
        with pytest.raises(DataError, match=said):
            load(write(rows + more), "y", TableOptions(classes=True))
    with pytest.raises(DataError, match="needs two classes, got 'no'"):
        load(write("a,y\n1,no\n2,no\n"), "y", TableOptions(classes=True))
    plain = load(write("a,y\n1,0\n2,1\n"), "y", TableOptions(classes=True))
    np.testing.assert_array_equal(plain.y, [0, 1])
    assert plain.notes == ()


def test_csv_decimal_comma(write):
    fails(write('a,y\n"3,14",1\n'), "line 2", "'a'", "'3,14'", "--decimal ,", target="y")


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
        pytest.param("a;y\n1,5;2\n", ["line 1", "';'", "--sep"], id="semicolons"),
        pytest.param("a\ty\n1\t2\n", ["line 1", "--sep tab"], id="tabs"),
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
