"""`dlnjax compare --html`: the page as text, and moved in a browser, beside the report."""

import base64
import gzip
import html
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import in_browser

from dlnjax.cli.compare import PAGE_EPS

NAMES = (
    "</script><script>window.injected = 1</script>",
    "<img src=x onerror='window.injected = 1'>",
    r"$$\alpha$$",
    "a & b",
)


@pytest.fixture
def table(tmp_path):
    """Names that would run, or have a library for formulas loaded, if they got into the page."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(23, 4))
    y = X @ [1.0, -2.0, 0.0, 0.5] + 0.1 * rng.normal(size=23)
    path = tmp_path / "<b>table.csv"
    header = ",".join((*NAMES, "<i>y"))
    np.savetxt(path, np.column_stack([X, y]), delimiter=",", header=header, comments="")
    return path


@pytest.fixture
def made(run, table, tmp_path):
    """The page and the report."""

    def call(*args):
        code, text, message = run("compare", *args, "--html", "--out", tmp_path / "out")
        assert (code, message) == (0, "") and "compare.json and " in text
        report = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
        return (tmp_path / "out" / "compare.html").read_text(encoding="utf-8"), report

    return call


class Tags(HTMLParser):
    """The elements of a page; the texts of some."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if (last := self.found[-1][0] if self.found else "") in self.texts:
            self.texts[last].append(data)


def arrays(value) -> list[np.ndarray]:
    """All that a document of bokeh holds."""
    if isinstance(value, list):
        return [array for item in value for array in arrays(item)]
    if not isinstance(value, dict):
        return []
    if value.get("type") == "ndarray":
        data = base64.b64decode(value["array"]["data"])
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        return [np.frombuffer(data, value["dtype"]).reshape(value["shape"])]
    return arrays(list(value.values()))


def document(page: str) -> dict:
    (text,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    return next(iter(json.loads(html.unescape(text)).values()))


def test_page_is_self_contained(made, table):
    page, report = made(table, "--target", "<i>y", "--eps", "1e-3", "--eps", "1e-10")
    tags = Tags(page)
    assert {tag for tag, _ in tags.found} == {*"html head meta title style script body div".split()}
    assert [keys for _, keys in tags.found if {"src", "href", "onerror"} & set(keys)] == []
    assert not re.search(r"url\(|@import", "".join(tags.texts["style"]))
    assert "".join(tags.texts["title"]).strip() == "<b>table.csv: 23 × 4, target <i>y, uv"
    assert len(page.encode()) < 2e6
    # bokeh's part with the formulas is neither there nor fetched.
    assert "bokeh-mathjax" not in page.replace('"bokeh-mathjax"', "")
    held = arrays(document(page))
    assert {array.dtype for array in held if array.size == 800} == {np.dtype(np.float32)}
    assert all(23 not in array.shape for array in held)  # nothing by rows of the data
    lasso = np.array(report["lasso"]["x"])[:, ::-1]  # the first is drawn last, on top
    assert any(a.shape == lasso.shape and np.allclose(a, lasso, rtol=1e-6) for a in held)


STEPS = """
    const seen = (extra) => {
      const data = (name) => Object.fromEntries(
        Object.entries(named(name).data).map(([key, value]) => [key, Array.from(value)]))
      results.push({
        lines: data("lines"), curve: data("curve"), marks: data("marks"), point: data("point"),
        lasso_point: data("lasso_point"), readout: named("readout").text,
        spans: named("path").center.map((c) => c.location ?? null),
        titles: ["path", "plateaus", "gap", "norm"].map((name) => named(name).title.text),
        eps: named("eps").value, s: named("s").value, injected: window.injected ?? null,
        shown: named("eps").visible,
      })
    }
    seen()
    for (const [eps, s] of %s) {
      named("eps").value = eps
      named("s").value = s
      await rest()
      seen()
    }
    for (const x of %s) {
      named("gap").trigger_event({event_name: "tap", x, y: 1})
      await rest()
      seen()
    }
"""


def check(state: dict, report: dict, names: tuple[str, ...]) -> None:
    """What the page shows is what the report has, rounded to single precision."""
    lasso, parts = report["lasso"], [*report["flows"], report["limit"]]
    part, i = parts[state["eps"]], state["s"]
    close = lambda a, b: np.testing.assert_allclose(
        np.array(a, float), np.array(b, float), rtol=1e-6, atol=1e-30
    )
    lines = state["lines"]
    order = [names.index(name) for name in lines["name"]]
    assert sorted(order) == list(range(len(names)))
    curves = lambda values: np.transpose(np.array(values, float))[order]
    for key, expected in {"mean": part["x"], "lasso": lasso["x"]}.items():
        close(lines[key], curves(expected))
    close(lines["s"], [lasso["s"]] * len(names))
    limit = curves(report["limit"]["at_s"])
    stairs = np.repeat(limit, 2, axis=1)[:, :-1]  # it keeps its value up to the next time
    corners = [np.repeat(lasso["s"], 2)[1:]] * len(names)
    if part["eps"]:
        close(lines["at_s"], curves(part["at_s"]))
        close(lines["at_s_times"], lines["s"])
        close(lines["limit"], stairs)
        close(lines["limit_times"], corners)
    else:
        assert lines["limit"] == lines["limit_times"] == [[]] * len(names)
        close(lines["at_s"], stairs)
        close(lines["at_s_times"], corners)
    curve = state["curve"]
    for key in ("loss", "norm", "nonzeros"):
        close(curve[key], part[key])
        close(state["point"][key], [part[key][i]])
        close(state["lasso_point"][key], [lasso[key][i]])
    close(curve["gap"], np.maximum(np.array(part["relative_gap"], float), 1e-13))
    if part["eps"]:
        close(curve["bound"], part["certified_gap"])
    else:
        assert set(curve["bound"]) == {None}  # NaN
    close(state["point"]["gap"], [curve["gap"][i]])
    close(state["point"]["s"], [lasso["s"][i]])
    close(state["marks"]["x"], np.array(part["x"][i], float)[order])
    assert state["marks"]["color"] == lines["color"]
    close(state["spans"][-1], lasso["s"][i])
    assert all(part["label"] in title for title in state["titles"])
    _check_readout(state["readout"], part, lasso, i, names)
    assert state["injected"] is None


def _check_readout(readout: str, part: dict, lasso: dict, i: int, names: tuple[str, ...]) -> None:
    cells = re.findall(r"<td>(.*?)</td>", readout)
    assert cells[:2] == [f"flow, {part['label']}", "lasso"]
    expected = [one[key][i] for key in ("loss", "norm", "nonzeros") for one in (part, lasso)]
    expected += [
        part["relative_gap"][i],
        "",
        *([part["certified_gap"][i], ""] if part["eps"] else []),
    ]
    for cell, number in zip(cells[2:], expected, strict=True):
        if number is None:
            assert cell == "–"
        elif number == "":
            assert cell == ""
        else:
            assert float(cell) == pytest.approx(number, rel=1e-3)
    groups = [set(re.findall(r"<b [^>]*>(.*?)</b>", line)) for line in readout.split("<br>")]
    assert "not drawn" not in readout
    least = np.array(lasso["nonzero_above"], float)
    active = []
    for one in (part, lasso):
        large = np.abs(np.array(one["x"][i], float)) > least
        active.append(
            {
                html.escape(names[j][:23] + "…" if len(names[j]) > 24 else names[j])
                for j in np.flatnonzero(large)
            }
        )
    assert groups == [active[0] & active[1], active[0] - active[1], active[1] - active[0]]


def test_page_moves_to_the_numbers_of_the_report(made, table, tmp_path):
    page, report = made(table, "--target", "<i>y")
    assert [flow["eps"] for flow in report["flows"]] == list(PAGE_EPS)
    s = report["lasso"]["s"]
    moves = [(0, 0), (0, 199), (4, 120), (8, 120), (8, 3), (2, 50)]
    taps = [s[70] * 1.001, s[0] / 10, s[-1] * 10]
    seen = in_browser(page, STEPS % (json.dumps(moves), json.dumps(taps)), tmp_path)
    assert (seen["errors"], seen["loaded"]) == ([], [])
    start, *states = seen["results"]
    check(start, report, NAMES)  # filled without a move
    assert (start["eps"], start["s"]) == (len(PAGE_EPS) - 1, 100) and start["shown"]
    positions = [(state["eps"], state["s"]) for state in states]
    assert positions == [*moves, (2, 70), (2, 0), (2, 199)]
    for state in states:
        check(state, report, NAMES)


@pytest.mark.parametrize("direction", [[1, 1, 0, 0], [1, 0, 0, 0]])
def test_page_of_classes_that_are_separated(made, tmp_path, direction):
    """From some s on, or everywhere, the limit is infinite; and there is no ε to choose."""
    X = np.random.default_rng(1).normal(size=(30, 4))
    path = tmp_path / "classes.npz"
    np.savez(path, X=X, y=np.sign(X @ direction))
    page, report = made(path, "--loss", "logistic", "--eps", "0")
    beyond = report["limit"]["loss"].index(None)
    assert (beyond > 0) == (direction[1] > 0)
    moves = [(0, max(beyond - 1, 0)), (0, beyond), (0, 199)]
    seen = in_browser(page, STEPS % (json.dumps(moves), "[]"), tmp_path)
    assert (seen["errors"], seen["loaded"]) == ([], [])
    for state in seen["results"]:
        check(state, report, ("x0", "x1", "x2", "x3"))
        assert not state["shown"]


def synthetic(d: int, unit: float = 1.0) -> dict:
    """A report of `d` columns, whose coordinates are `unit (j + 1) s`."""
    s = np.geomspace(0.1, 0.3, 5)
    x = unit * np.outer(s, np.arange(1.0, d + 1))
    shared = {"x": x, "loss": unit**2 * (9 - s), "norm": x.sum(axis=1), "nonzeros": np.full(5, d)}
    part = shared | {"at_s": x, "relative_gap": np.zeros(5)}
    return {
        "columns": [f"c{j}" for j in range(d)],
        "standardized": True,
        "dtype": "float64",
        "lasso": shared | {"s": s, "nonzero_above": np.zeros(d)},
        "limit": {"refused": "It is not unique."},
        "flows": [part | {"eps": 1e-5, "label": "ε = 1e-05", "certified_gap": np.ones(5)}],
    }


def test_many_columns(tmp_path):
    """100 are drawn, the largest ones, and the page says so; the limit is not known."""
    from dlnjax.cli.page import page

    text = page("130 columns", synthetic(130))
    held = arrays(document(text))
    for array in (array for array in held if array.ndim == 2):
        assert array.shape == (5, 100)
        np.testing.assert_allclose(np.sort(array[-1]), 0.3 * np.arange(31, 131), rtol=1e-6)
    assert "100 of 130 coordinates are drawn" in text and "stays below 9 in size" in text
    seen = in_browser(text, STEPS % ("[[0, 1]]", "[]"), tmp_path)
    assert (seen["errors"], seen["loaded"]) == ([], [])
    readout = seen["results"][-1]["readout"]
    assert "88 more" in readout and "some that are not drawn" in readout
    named = re.findall(r"<b [^>]*>(\w+)</b>", readout)
    assert sorted(named) == [f"c{j}" for j in range(118, 130)]  # the largest ones


@pytest.mark.parametrize("unit", [1e-60, 1e60])
def test_units_that_single_precision_does_not_hold(unit):
    from dlnjax.cli.page import page

    held = [
        array for array in arrays(document(page("units", synthetic(3, unit)))) if array.ndim == 2
    ]
    for array in held:
        np.testing.assert_allclose(np.sort(array[-1]), 0.3 * unit * np.arange(1, 4), rtol=1e-12)
    assert len(held) == 3


def test_without_bokeh_says_how_to_install_it(run, table, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bokeh", None)
    code, _, message = run("compare", table, "--target", "<i>y", "--html", "--out", tmp_path)
    assert code == 1 and "'bokeh': run `pip install 'dlnjax[html]'`" in message
