"""The command line, run in this process through its real entry point."""

import json
import os
import pty
import subprocess
import sys

import numpy as np
import pytest

import dlnjax
from dlnjax import cli
from dlnjax.cli import checks
from dlnjax.papers.claim import Claim, Measurement
from dlnjax.papers.ledger import CLAIMS


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 4))
    y = X @ [1.0, -2.0, 0.0, 0.5] + 0.1 * rng.normal(size=20)
    rows = np.column_stack([X, y])
    path = tmp_path / "table.csv"
    np.savetxt(path, rows, delimiter=",", header="a,b,c,d,y", comments="")
    return path


def test_compare_writes_table_figure_and_report(run, table, tmp_path):
    out = tmp_path / "new" / "folder"
    code, text, _ = run(
        "compare", table, "--target", "y", "--eps", "1e-20", "--eps", "1e-3", "--out", out
    )
    assert code == 0
    assert "20 × 4" in text and "KKT residual" in text and "monotone" in text
    assert text.count("averaged flow at") == 2
    assert (out / "compare.png").stat().st_size > 10_000
    assert "ε → 0" in text and "non-zero: " in text
    report = json.loads((out / "compare.json").read_text())
    assert report["columns"] == ["a", "b", "c", "d"]
    assert [flow["eps"] for flow in report["flows"]] == [1e-3, 1e-20]
    s = np.array(report["lasso"]["s"])
    assert s[0] == report["lasso"]["first_knot"]
    assert np.all(np.diff(s) > 0)
    coarse, fine = (np.array(flow["relative_gap"]) for flow in report["flows"])
    assert np.all(coarse >= 0) and np.all(fine >= 0)
    assert fine.max() < coarse.max() / 5  # the gap closes like 1/log(1/ε) at worst
    for flow in report["flows"]:
        certified = np.array(flow["certified_gap"])
        assert np.all(certified >= np.array(flow["relative_gap"]) * (1 - 1e-9))
    # The path is monotone, on which the limit follows it.
    assert max(report["limit"]["relative_gap"]) < 1e-12
    np.testing.assert_allclose(report["limit"]["x"], report["lasso"]["x"], atol=1e-9)
    # Its plateaus jump to least squares on the columns that are active.
    values = np.loadtxt(table, delimiter=",", skiprows=1)
    X = values[:, :4] - values[:, :4].mean(axis=0)
    full = np.linalg.lstsq(X / np.linalg.norm(X, axis=0), values[:, 4] - values[:, 4].mean())[0]
    np.testing.assert_allclose(report["limit"]["at_s"][-1], full, rtol=1e-9)


@pytest.mark.parametrize("x_unit, y_unit", [(1, 1e3), (1, 1e-6), (1e4, 1)])
def test_compare_does_not_depend_on_units(run, table, tmp_path, x_unit, y_unit):
    values = np.loadtxt(table, delimiter=",", skiprows=1)
    values[:, :4] *= x_unit
    values[:, 4] *= y_unit
    other = tmp_path / "other.csv"
    np.savetxt(other, values, delimiter=",", header="a,b,c,d,y", comments="")
    reports = []
    for path in (table, other):
        code, *_ = run("compare", path, "--target", "y", "--no-standardize", "--out", tmp_path)
        assert code == 0
        reports.append(json.loads((tmp_path / "compare.json").read_text()))
    one, two = reports
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-9 * np.max(np.abs(b)))
    close(two["lasso"]["s"], np.array(one["lasso"]["s"]) / (x_unit * y_unit))
    for a, b in ((one["lasso"], two["lasso"]), (one["flows"][0], two["flows"][0])):
        close(b["x"], np.array(a["x"]) * y_unit / x_unit)
        close(b["loss"], np.array(a["loss"]) * y_unit**2)
        assert a["nonzeros"] == b["nonzeros"]
    close(two["flows"][0]["relative_gap"], one["flows"][0]["relative_gap"])
    # What the figure is to show.
    assert max(one["flows"][0]["relative_gap"]) < 0.01


def test_compare_the_limit_alone(run, table, tmp_path):
    code, text, _ = run(
        "compare", table, "--target", "y", "--eps", "0", "--network", "deep:3", "--s-max", "0.2",
        "--format", "svg", "--no-standardize", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0 and "averaged flow at ε → 0 beside" in text and "deep:3" in text
    assert "of 4 knots lie beyond" in text
    assert (tmp_path / "compare.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "compare.json").read_text())["flows"] == []


def test_compare_names_equal_columns_and_goes_back_to_those_of_the_file(run, tmp_path, table):
    values = np.loadtxt(table, delimiter=",", skiprows=1)
    path = tmp_path / "same.npz"
    np.savez(path, X=np.hstack([values[:, :4] + 5, -2 * values[:, :1]]), y=values[:, 4])
    code, text, _ = run("compare", path, "--eps", "0", "--out", tmp_path)
    assert code == 0 and "columns 'x0' and 'x4' are equal or opposite" in text
    report = json.loads((tmp_path / "compare.json").read_text())
    x, means, norms = (np.array(report[k]) for k in ("columns", "means", "norms"))
    assert len(x) == 5
    np.testing.assert_allclose(means[:4], values[:, :4].mean(axis=0) + 5)
    x = np.array(report["limit"]["at_s"][-1]) / norms
    fit = (np.load(path)["X"] - means) @ x + values[:, 4].mean()
    full = np.linalg.lstsq(np.column_stack([values[:, :4], np.ones(20)]), values[:, 4])[0]
    np.testing.assert_allclose(fit, np.column_stack([values[:, :4], np.ones(20)]) @ full)


def test_compare_says_where_classes_are_separated(run, tmp_path):
    X = np.random.default_rng(1).normal(size=(30, 4))
    np.savez(tmp_path / "classes.npz", X=X, y=np.sign(X[:, 0]))
    code, text, _ = run(
        "compare", tmp_path / "classes.npz", "--loss", "logistic", "--eps", "0", "--out", tmp_path
    )
    assert code == 0 and "separate the classes: as ε → 0 x is infinite from s = " in text
    limit = json.loads((tmp_path / "compare.json").read_text())["limit"]
    beyond = [loss is None for loss in limit["loss"]]
    assert any(beyond) and beyond == [number is None for number in limit["nonzeros"]]


def test_compare_refuses_what_usquared_cannot_represent(run, tmp_path):
    np.savez(tmp_path / "a.npz", X=np.eye(3), y=[-1.0, -2, -3])
    code, _, message = run(
        "compare", tmp_path / "a.npz", "--network", "usquared", "--no-standardize", "--out",
        tmp_path,
    )  # fmt: skip
    assert code == 1 and "no column has a positive correlation" in message


def test_compare_without_the_limit(run, tmp_path, table):
    """Two columns that are equal but for rounding: no dtype tells which minimiser is meant."""
    values = np.loadtxt(table, delimiter=",", skiprows=1)
    twins = values[:, :1] * (1 + 1e-12 * np.sin(np.arange(20))[:, None])
    path = tmp_path / "twins.npz"
    np.savez(path, X=np.hstack([values[:, :4], twins]), y=values[:, 4])
    code, text, _ = run("compare", path, "--no-standardize", "--out", tmp_path)
    assert code == 0 and "ε → 0 is left out. " in text
    code, _, message = run("compare", path, "--no-standardize", "--eps", "0", "--out", tmp_path)
    assert code == 1 and "pass --eps 1e-10" in message


def test_compare_positive_with_decay(run, table, tmp_path):
    code, text, _ = run(
        "compare", table, "--target", "y", "--network", "usquared", "--weight-decay", "0.1",
        "--s-max", "50", "--no-standardize", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0 and "positive lasso path" in text and "λ = 0.1" in text
    report = json.loads((tmp_path / "compare.json").read_text())
    assert np.min(report["flows"][0]["x"]) >= 0 and np.min(report["lasso"]["x"]) >= 0
    assert report["lasso"]["s"][-1] == 50
    assert report["standardized"] is False


def _classes(path, values):
    """Two overlapping classes, `y > 0` of `table`, called by `values`."""
    header, *rows = path.read_text().splitlines()
    cells = np.array([row.split(",") for row in rows], float)
    y = np.where(cells[:, 4] + np.sin(np.arange(20)) > 0, *values)
    out = path.with_name("classes.csv")
    table = np.column_stack([cells[:, :4], y])
    np.savetxt(out, table, delimiter=",", header=header, comments="")
    return out, table


@pytest.mark.filterwarnings("error:Labels")
def test_compare_classes(run, table, tmp_path):
    path, values = _classes(table, (1, 0))
    code, text, _ = run(
        "compare", path, "--target", "y", "--loss", "logistic", "--no-standardize",
        "--eps", "1e-20", "--eps", "1e-3", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0 and "logistic lasso: 200 solutions" in text and "two values" not in text
    report = json.loads((tmp_path / "compare.json").read_text())
    assert report["loss"] == "logistic"
    X, y = values[:, :4], 2 * values[:, 4] - 1
    s, x = np.array(report["lasso"]["s"]), np.array(report["lasso"]["x"])
    # Optimal for classes ±1: at the first knot the largest correlation is 1/μ, and so it stays.
    np.testing.assert_allclose(s[0], 2 / np.max(np.abs(X.T @ y)), rtol=1e-14)
    correlation = (y / (1 + np.exp(y * (x @ X.T)))) @ X
    # √ of the gap of 1e-12.
    np.testing.assert_allclose(np.max(np.abs(correlation), axis=1) * s, 1, atol=1e-5)
    np.testing.assert_allclose(report["lasso"]["loss"], np.sum(np.log1p(np.exp(-y * (x @ X.T))), 1))
    best = report["lasso"]["loss"] + report["lasso"]["norm"] / s
    for flow in report["flows"]:
        gap = (flow["loss"] + flow["norm"] / s) / best - 1
        np.testing.assert_allclose(flow["relative_gap"], gap, atol=1e-10)
        assert np.all(np.array(flow["certified_gap"]) >= gap - 1e-11)


def test_compare_mentions_the_logistic_loss(run, table, tmp_path):
    path, _ = _classes(table, (2, 5))
    code, text, _ = run("compare", path, "--target", "y", "--out", tmp_path)
    assert code == 0 and text.startswith("The target has two values") and "--loss logistic" in text


def test_compare_in_single_precision(run, table, tmp_path):
    code, _, _ = run("compare", table, "--target", "y", "--float32", "--out", tmp_path)
    report = json.loads((tmp_path / "compare.json").read_text())
    assert code == 0 and report["dtype"] == "float32"
    assert max(report["flows"][0]["relative_gap"]) < 0.2


def test_reproduce_figure(run, tmp_path):
    code, text, _ = run(
        "reproduce", "B25-fig1", "--instances", 40, "--path-instances", 1000, "--out", tmp_path
    )
    report = json.loads((tmp_path / "B25-fig1.json").read_text())
    assert code == 0 and "holds" in text
    assert abs(report["monotone"]["measured"] - 0.76) < report["monotone"]["tolerance"]
    gaps = report["largest_relative_gap"]
    assert gaps["monotone"]["0.5"] < gaps["non-monotone"]["0.5"]
    kinds = [panel["kind"] for panel in report["shown"]]
    assert kinds == ["monotone", "monotone", "non-monotone", "non-monotone"]
    assert (tmp_path / "B25-fig1.png").stat().st_size > 10_000


def test_reproduce_rows(run, tmp_path):
    code, text, _ = run("reproduce", "PF23-fixture", "--out", tmp_path)
    report = json.loads((tmp_path / "ledger.json").read_text())
    assert code == 0 and "7 of 7 measurements hold" in text
    assert all(row["holds"] for row in report["rows"])
    assert "jax" in report["versions"]


def test_reproduce_fails_loudly(run, tmp_path, monkeypatch):
    row = Measurement("W23-which", "a wrong value", 2.0, 1.0, 0.1, "none")
    monkeypatch.setitem(CLAIMS, "W23-which", Claim("W23-which", "statement", lambda: [row]))
    code, text, _ = run("reproduce", "W23-which", "--out", tmp_path)
    assert code == 1 and "0 of 1 measurements hold; FAILS: W23-which" in text
    assert not json.loads((tmp_path / "ledger.json").read_text())["rows"][0]["holds"]


def test_reproduce_list(run):
    code, text, _ = run("reproduce", "--list")
    assert code == 0 and len(text.splitlines()) == len(CLAIMS)
    assert all(id in text for id in CLAIMS)


def test_info(run):
    code, text, _ = run("info")
    assert code == 0
    assert all(word in text for word in ("dlnjax", "jaxlib", "diffrax", "device", "float64"))


def test_info_checks_the_solvers(run, monkeypatch):
    kept = ("lasso path", "flow, u∘v")  # the others have tests of their own
    monkeypatch.setattr(checks, "SOLVERS", {name: checks.SOLVERS[name] for name in kept})
    code, text, _ = run("info", "--check")
    assert code == 0 and text.count("ok ") == 2
    solve, stored = checks.SOLVERS["lasso path"]
    monkeypatch.setattr(checks, "SOLVERS", {"lasso path": (solve, (*stored[:3], 1e-5))})
    code, text, message = run("info", "--check")
    assert code == 1 and "wrong lasso path" in text and "report" in message


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["compare", "nothing.csv"], 1, ["nothing.csv"]),
        (["compare", "TABLE"], 1, ["--target", "a", "b"]),
        (["compare", "TABLE", "--target", "nope"], 1, ["nope", "a", "y"]),
        (["compare", "TABLE", "--target", "y", "--eps", "2"], 2, ["[0, 1)", "2"]),
        (["compare", "TABLE", "--target", "y", "--eps", "-0.1"], 2, ["[0, 1)", "-0.1"]),
        (["compare", "TABLE", "--target", "y", "--eps", "1e-400"], 2, ["too small", "`log_eps`"]),
        (["compare", "TABLE", "--target", "y", "--eps", "small"], 2, ["'small' is no number"]),
        (["compare", "TABLE", "--target", "y", "--network", "deep:1"], 2, ["deep:1", "D ≥ 2"]),
        (["compare", "TABLE", "--target", "y", "--sep", "ab"], 1, ["one character", "ab"]),
        (["compare", "TABLE", "--target", "y", "--decimal", ","], 1, ["--sep"]),
        (["compare", "TABLE", "--target", "y", "--network", "mlp"], 2, ["mlp", "uv", "usquared"]),
        (["compare", "TABLE", "--target", "y", "--s-max", "-1"], 2, ["positive", "-1"]),
        (["compare", "TABLE", "--target", "y", "--weight-decay", "-1"], 2, ["non-negative", "-1"]),
        (
            ["compare", "TABLE", "--target", "y", "--weight-decay", "1e9"],
            1,
            ["1e+09", "largest corr"],
        ),
        (
            [*("compare", "TABLE", "--target", "y"), "--network", "deep:3", "--weight-decay", "1"],
            1,
            ["deep:3 takes no weight decay", "--weight-decay 1:"],
        ),
        (["compare", "TABLE", "--target", "y", "--s-max", "1e-9"], 1, ["first knot", "larger"]),
        (
            ["compare", "TABLE", "--target", "y", "--loss", "logistic"],
            1,
            ["two classes", "1 and 0"],
        ),
        (["reproduce", "B99"], 2, ["B99", "B25-fig1", "W23-which"]),
        (["reproduce", "PF23-fixture", "B99"], 2, ["B99", "B25-fig1"]),
        (["reproduce"], 2, ["--all", "--list"]),
        (["reproduce", "W23-which", "--float32"], 2, ["float64", "B25-fig1"]),
        (["compare", "TABLE", "--target", "y", "--out", "TABLE"], 1, ["folder"]),
    ],
)
def test_bad_calls_name_value_and_fix(run, table, args, code, words):
    args = [str(table) if a == "TABLE" else a for a in args]
    got, _, message = run(*args)
    message = " ".join(message.replace("│", " ").split())
    assert got == code
    for word in words:
        assert word in message
    assert "Traceback" not in message


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_extra_says_how_to_install_it(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "rich.markup", raising=False)
    with pytest.raises(SystemExit, match=f"needs '{package}.*pip install 'dlnjax.cli.'"):
        cli.main()


def test_version(run):
    assert run("--version")[:2] == (0, f"dlnjax {dlnjax.__version__}\n")


def test_runs_as_a_module():
    command = [sys.executable, "-m", "dlnjax.cli", "reproduce", "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == len(CLAIMS)


@pytest.mark.parametrize(
    "args",
    [["--help"], ["compare", "--help"], ["compare", "no.csv"], ["sweep", "no.toml", "--out", "x"]],
)
def test_answers_without_importing_jax(args):
    code = f"""
import sys
from dlnjax.cli import main
sys.argv = ["dlnjax", *{args}]
try:
    main()
finally:
    print("jax" in sys.modules or "bokeh" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "Traceback" not in done.stderr


def test_says_that_it_compiles_and_keeps_the_programs(table, tmp_path):
    """In a terminal, with a cache of its own."""
    screen, terminal = pty.openpty()
    command = [sys.executable, "-m", "dlnjax.cli", "compare", table, "--target", "y"]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(
        [*command, "--out", tmp_path], stderr=terminal, stdout=subprocess.DEVNULL, env=env
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(screen, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0
    assert "compiling …" in shown.decode()
    assert len(list(tmp_path.glob("dlnjax/*/*-cache"))) >= 2  # the path and the flow
