"""The page of `dlnjax compare --html`: its report, to move through in a browser, without a network.

bokeh is imported here alone, and this module where a page is asked for. What moves is in `page.js`.
"""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bokeh.core.properties import value
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady, Tap
from bokeh.layouts import column, row
from bokeh.models import (
    ColumnDataSource,
    CustomJS,
    CustomJSTickFormatter,
    Div,
    FixedTicker,
    HoverTool,
    NoOverlap,
    Range1d,
    Slider,
    Span,
)
from bokeh.plotting import figure
from bokeh.resources import INLINE

from .._version import provenance
from ..plot.axes import BLACK, COLORS, GREY
from ..plot.curves import Curves, colors_of, short_name

DRAWN = 100  # coordinates at most, of 16 kB each at nine ε
LEAST_GAP = {"float64": 1e-10, "float32": 1e-6}  # below it is rounding: as in `comparison_figure`
DASHES = value([6, 3])
ON_S = ("path", "plateaus", "gap")
COMPLEXITIES = {"norm": "1-norm ‖x‖₁", "nonzeros": "non-zero coordinates"}
STYLE = """
:host { color: #222; font: 14px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.25rem; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
p { margin: 0.3rem 0; overflow-wrap: anywhere; }
th { font-weight: normal; text-align: left; color: #666; padding-right: 1.2rem; }
td { text-align: right; padding-right: 1.2rem; font-variant-numeric: tabular-nums; }
b { font-weight: normal; border-bottom: 3px solid; }
.key { display: inline-block; margin-right: 1rem; white-space: nowrap; }
.key i { display: inline-block; width: 1.6rem; margin-right: 0.4rem; vertical-align: middle; }
"""
STAYS = {"position": "sticky", "top": "0", "z-index": "2", "background": "white"}
TO_NEAREST = """
const distance = Array.from(lasso.data.s, (s) => Math.abs(Math.log(s / cb_obj.x)))
if (cb_obj.x > 0) s_slider.value = distance.indexOf(Math.min(...distance))
"""
SHORT = """
const value = Number(tick.toPrecision(6))
return Math.abs(value) < 1e7 ? String(value) : value.toExponential()
"""
Panels = dict[str, figure]


class _Sources(NamedTuple):
    """The data of the page, under the names that `page.js` has for them."""

    parts: list[ColumnDataSource]  # one per ε, the limit last: what the others are filled from
    limit: ColumnDataSource | None
    lasso: ColumnDataSource
    lines: ColumnDataSource  # one row per coordinate
    curve: ColumnDataSource  # the chosen ε
    marks: ColumnDataSource  # at the chosen s: the coloured coordinates,
    point: ColumnDataSource  # the flow,
    lasso_point: ColumnDataSource  # and the lasso


def page(title: str, report: dict[str, Any]) -> str:
    """The text of the page, from the `report` that is written as JSON: self-contained, with the
    largest coordinates alone, in single precision."""
    lasso, limit = report["lasso"], report["limit"]
    parts = [*report["flows"], *([] if "refused" in limit else [limit])]
    colors = colors_of(Curves(lasso["s"], lasso["x"]))
    drawn, left_out = _drawn([lasso["x"], *(part[key] for part in parts for key in ("x", "at_s"))])
    # The first of the legend on top.
    drawn = [j for j in drawn if j not in colors] + list(colors)[::-1]
    names = [report["columns"][j] for j in drawn]
    sources = _sources(parts, limit, lasso, drawn, names, [colors.get(j, GREY) for j in drawn])
    floor = LEAST_GAP[report["dtype"]]
    panels = _panels(sources, parts, lasso, floor)
    spans = [Span(dimension="height", line_color="#555555") for _ in ON_S]
    for key, span in zip(ON_S, spans, strict=True):
        panels[key].add_layout(span)
    values = [f"{part['eps']:g}" if part["eps"] else "→ 0" for part in parts]
    smallest = max(len(report["flows"]) - 1, 0)
    eps_slider = _slider("eps", "ε", values, smallest)
    s_slider = _slider("s", "s = μ", [f"{s:.4g}" for s in lasso["s"]], len(lasso["s"]) // 2)
    readout = _text("", name="readout", min_height=260)
    args = sources._asdict() | {
        "names": [html.escape(short_name(name)) for name in names],
        "least": np.asarray(lasso["nonzero_above"])[drawn].tolist(),
        "floor": floor / 1e3,  # out of sight, but with a logarithm
        "titles": {key: panel.title for key, panel in panels.items()},
        "spans": spans,
        "eps_slider": eps_slider,
        "s_slider": s_slider,
        "readout": readout,
    }
    move = CustomJS(args=args, code=Path(__file__).with_suffix(".js").read_text(encoding="utf-8"))
    for slider in (eps_slider, s_slider):
        slider.js_on_change("value", move)
    to_nearest = CustomJS(args={"s_slider": s_slider, "lasso": sources.lasso}, code=TO_NEAREST)
    for key, panel in panels.items():
        panel.name = key
        if key in ON_S:
            panel.js_on_event(Tap, to_nearest)
    keys = _keys(report["columns"], colors, len(drawn), left_out)
    document = Document(title=title)
    document.js_on_event(DocumentReady, move)
    document.add_root(
        column(
            _text(f"<h1>{html.escape(title)}</h1><p>{html.escape(_settings(report))}</p>"),
            row(eps_slider, s_slider, sizing_mode="stretch_width", styles=STAYS),
            _text(keys),
            _side_by_side([panels[key] for key in ON_S], [readout, *map(panels.get, COMPLEXITIES)]),
            sizing_mode="stretch_width",
            styles={"max-width": "1500px", "margin": "0 auto", "background": "white"},
        )
    )
    return file_html(document, INLINE, title)


def _drawn(values: Sequence[np.ndarray]) -> tuple[list[int], float]:
    """The coordinates that are largest anywhere, and how large the others are at most."""
    size = np.max([np.nanmax(np.abs(x), axis=0, initial=0) for x in values], axis=0)
    order = np.argsort(-size, kind="stable")
    return sorted(order[:DRAWN].tolist()), float(np.max(size[order[DRAWN:]], initial=0))


def _sources(
    parts: Sequence[dict],
    limit: dict[str, Any],
    lasso: dict[str, Any],
    drawn: Sequence[int],
    names: Sequence[str],
    colors: Sequence[str],
) -> _Sources:
    coloured = [color for color in colors if color != GREY]
    width = [0.8 if color == GREY else 2.0 for color in colors]
    keys = ("s", "mean", "lasso", "at_s_times", "at_s", "limit_times", "limit")
    unfilled = {key: [[]] * len(drawn) for key in keys}
    source = lambda name, data: ColumnDataSource(data, name=name)
    empty = lambda name, *keys: source(name, {key: [] for key in keys})
    trade_off = ("loss", *COMPLEXITIES)
    at_eps = [_source(part, drawn) for part in parts]
    return _Sources(
        at_eps,
        at_eps[-1] if parts[-1] is limit else None,
        _source(lasso, drawn),
        source("lines", {"name": names, "color": colors, "width": width, **unfilled}),
        empty("curve", "s", "gap", "bound", *trade_off),
        source("marks", {"color": coloured} | dict.fromkeys(("s", "x"), [np.nan] * len(coloured))),
        empty("point", "s", "gap", *trade_off),
        empty("lasso_point", *trade_off),
    )


def _source(part: dict[str, Any], drawn: Sequence[int]) -> ColumnDataSource:
    """One row per s; `x` and `at_s` are matrices."""
    curves = {"s", "loss", *COMPLEXITIES, "relative_gap", "certified_gap"} & set(part)
    data: Any = {key: _compact(part[key]) for key in sorted(curves)}
    for key in sorted({"x", "at_s"} & set(part)):
        data[key] = _compact(np.asarray(part[key])[:, drawn])
    tags = [{"eps": part["eps"], "label": part["label"]}] if "label" in part else []
    return ColumnDataSource(data, name=part.get("label", "lasso"), tags=tags)


def _compact(values: Any) -> np.ndarray:
    """By rows, in single precision in the units in which that is possible."""
    values = np.ascontiguousarray(values, float)
    size = np.nanmax(np.abs(values), initial=0)
    return values.astype(np.float32) if 1e-30 < size < 1e30 else values


def _panels(
    sources: _Sources, parts: Sequence[dict], lasso: dict[str, Any], floor: float
) -> Panels:
    """What is drawn. Ranges are those of all ε together, so that one sees what moves."""
    s = _compact(lasso["s"])
    of = lambda key: [part[key] for part in (*parts, lasso) if key in part]
    on_s: dict[str, Any] = {"x_axis_type": "log", "x_range": _between(s[0], s[-1])}
    path = _panel("coordinates", y_range=_range(of("x")), height=300, **on_s)
    plateaus = _panel("x(s), not averaged", y_range=_range(of("at_s")), height=280, **on_s)
    gaps = _logarithmic_range(of("relative_gap") + of("certified_gap"), floor)
    gap = _panel("relative lasso gap", y_range=gaps, y_axis_type="log", height=250, **on_s)
    look = {"line_color": "color", "line_width": "width", "source": sources.lines}
    of_path, of_plateaus = (
        ("s", "mean", "s", "lasso"),
        ("at_s_times", "at_s", "limit_times", "limit"),
    )
    for panel, (s_solid, solid, s_dashed, dashed) in ((path, of_path), (plateaus, of_plateaus)):
        renderer = panel.multi_line(s_solid, solid, **look)
        panel.multi_line(s_dashed, dashed, line_dash=DASHES, **look)
        tooltips = [("", "@name"), ("s", "$x{0.000e+0}"), ("x", "$y{0.000e+0}")]
        panel.yaxis.formatter = CustomJSTickFormatter(code=SHORT)
        panel.add_tools(HoverTool(renderers=[renderer], tooltips=tooltips, line_policy="nearest"))
    path.scatter("s", "x", color="color", size=8, source=sources.marks)
    for part in parts:
        shown = _compact(np.maximum(part["relative_gap"], floor / 1e3))
        gap.line(s, shown, line_color=GREY, line_width=0.8)
    flow = {"line_color": COLORS[0], "source": sources.curve}
    gap.line("s", "gap", line_width=2, **flow)
    gap.line("s", "bound", line_width=1.5, line_dash="dotted", **flow)
    gap.scatter("s", "gap", size=9, color=COLORS[0], source=sources.point)
    for panel in (path, plateaus, gap):
        if ticks := _ticks(float(s[0]), float(s[-1])):
            panel.xaxis.ticker = FixedTicker(ticks=ticks)
            panel.xaxis.formatter = CustomJSTickFormatter(code=SHORT)
    gap.yaxis.minor_tick_line_color = None
    gap.xaxis.axis_label = "rescaled training time s  =  inverse regularisation μ"
    panels = {"path": path, "plateaus": plateaus, "gap": gap}
    losses = _range(of("loss"))
    square = {"marker": "square", "fill_color": "white", "line_color": BLACK, "line_width": 2}
    for key, label in COMPLEXITIES.items():
        panel = _panel("loss ℓ", label, x_range=_range(of(key)), y_range=losses, height=260)
        panel.line(key, "loss", line_color=GREY, line_width=5, source=sources.lasso)
        panel.line(key, "loss", line_width=2, **flow)
        panel.scatter(key, "loss", size=11, source=sources.lasso_point, **square)
        panel.scatter(key, "loss", size=9, color=COLORS[0], source=sources.point)
        panel.axis.formatter = CustomJSTickFormatter(code=SHORT)
        panels[key] = panel
    return panels


def _ticks(low: float, high: float) -> list[float]:
    """Labels of a logarithmic axis of less than three decades, of which bokeh labels a part."""
    if high >= 1e3 * low:
        return []
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    return [tick for tick in every if low <= tick <= high]


def _panel(ylabel: str, xlabel: str | None = None, **options: Any) -> Any:
    tools = "pan,box_zoom,wheel_zoom,reset,save"
    options |= {"tools": tools, "active_drag": None, "sizing_mode": "stretch_width"}
    panel: Any = figure(min_width=330, min_border_left=80, title=" ", **options)
    panel.toolbar.logo = None
    panel.toolbar.autohide = True
    panel.outline_line_color = None
    panel.grid.grid_line_color = "#EDEDED"
    panel.title.text_font_style = "normal"
    panel.title.text_font_size = "12px"
    panel.axis.axis_label_text_font_style = "normal"
    panel.axis.axis_label_text_font_size = "12px"
    panel.axis.major_label_policy = NoOverlap()
    panel.yaxis.axis_label = ylabel
    panel.xaxis.axis_label = xlabel
    return panel


def _between(low: Any, high: Any) -> Range1d:
    return Range1d(start=float(low), end=float(high))


def _finite(values: Sequence[np.ndarray]) -> np.ndarray:
    joined = np.concatenate([np.ravel(np.asarray(part, float)) for part in values])
    return joined[np.isfinite(joined)]


def _range(values: Sequence[np.ndarray]) -> Range1d:
    finite = _finite(values)
    if not len(finite):  # infinite everywhere
        return _between(0, 1)
    low, high = float(finite.min()), float(finite.max())
    room = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return _between(low - room, high + room)


def _logarithmic_range(values: Sequence[np.ndarray], floor: float) -> Range1d:
    """From the least that is above the `floor`, below which all is rounding."""
    shown = [value for value in _finite(values) if value >= floor] or [floor, 1.0]
    return _between(max(min(shown) / 2, floor), 2 * max(shown))


def _slider(name: str, title: str, labels: Sequence[str], start: int) -> Slider:
    """Over the positions of `labels`; not shown where there is nothing to choose."""
    shown = CustomJSTickFormatter(args={"labels": list(labels)}, code="return labels[tick]")
    return Slider(
        start=0,
        end=max(len(labels) - 1, 1),
        step=1,
        value=start,
        title=title,
        format=shown,
        name=name,
        visible=len(labels) > 1,
        sizing_mode="stretch_width",
        margin=(5, 25, 5, 10),
    )


def _text(text: str, **options: Any) -> Div:
    # Without math: a name with dollars would have it loaded from another host.
    options |= {"disable_math": True, "sizing_mode": "stretch_width", "stylesheets": [STYLE]}
    return Div(text=text, **options)


def _side_by_side(left: Sequence[Any], right: Sequence[Any]) -> Any:
    """One below the other where the window is narrow."""
    columns = [
        column(*children, sizing_mode="stretch_width", styles={"flex": flex})
        for children, flex in ((left, "1.6 1 520px"), (right, "1 1 360px"))
    ]
    return row(*columns, sizing_mode="stretch_width", styles={"flex-wrap": "wrap"})


def _keys(columns: Sequence[str], colors: dict[int, str], drawn: int, left_out: float) -> str:
    """The legend, and what is left out."""
    entries = [(f"3px solid {color}", short_name(columns[j])) for j, color in colors.items()]
    if rest := drawn - len(colors):
        entries.append((f"1px solid {GREY}", f"{rest} others"))
    entries += [("2px solid #555", "flow x̄(s)"), ("2px dashed #555", "lasso x(μ), μ = s")]
    keys = "".join(
        f"<span class='key'><i style='border-top: {rule}'></i>{html.escape(text)}</span>"
        for rule, text in entries
    )
    if drawn == len(columns):
        return keys
    return (
        f"{keys}<p>{drawn} of {len(columns)} coordinates are drawn and named, the largest ones; "
        f"each of the others stays below {left_out:.3g} in size.</p>"
    )


def _settings(report: dict[str, Any]) -> str:
    made = f"{report['dtype']}, dlnjax {provenance()['versions']['dlnjax']}"
    standardized = "standardised" if report["standardized"] else "not standardised"
    eps = ", ".join(f"{flow['eps']:g}" for flow in report["flows"])
    shown = [f"ε = {eps}"] * (eps != "") + ["the limit ε → 0"] * ("refused" not in report["limit"])
    return (
        f"Columns {standardized}; {' and '.join(shown)}; {made}. Click into a panel, or move s, to "
        "choose a time: ● is the flow there, □ the lasso."
    )
