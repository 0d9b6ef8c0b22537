"""Whole figures: of `dlnjax compare`, of [B25] Fig. 1, and of a sweep."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .axes import COLORS, DASHES, GREY, LIMIT, axes_or_new, eps_label, label_axes, logarithmic
from .comparisons import TradeOff, draw_gap, draw_tradeoff, gap_entries
from .curves import BOTH, Curves, colors_of, coordinate_names, draw_lines, legend_handles
from .sweeps import share_scale, sweep, title_of

_PANELS = 6  # in a figure
_LANES = 20_000  # that the quantiles over s are taken of
_NOTES = {r"flow $\bar x^\varepsilon(s)$": "-", r"lasso $x(\mu)$, $\mu=s$": DASHES}


def comparison_figure(
    title: str,
    s: np.ndarray,
    names: Sequence[str],
    lasso: dict[str, np.ndarray],
    limit: dict | None,
    flows: Sequence[dict],
) -> Figure:
    """The figure of `dlnjax compare`, with its `title` and the `names` of the coordinates.

    **Arguments:**

    - `s`: times, `(S,)`.
    - `lasso`: `x`, `loss`, `norm` and `nonzeros` at these times.
    - `limit`: the same of the average of `limit_flow`, with `label`, `relative_gap`, and with
      `at_s`, the plateaus; None without it.
    - `flows`: the same of flows, with `certified_gap`. With none of them the limit is drawn.

    !!! example

        ```python
        s, x = np.linspace(0.1, 3, 50), np.linspace(0, [2.0, 1.0], 50)
        lasso = {"x": x, "loss": 3 - x.sum(1), "norm": x.sum(1), "nonzeros": (x > 0).sum(1)}
        limit = lasso | {"label": "ε → 0", "relative_gap": 1e-6 / s, "at_s": np.round(x)}
        flow = limit | {"label": "ε = 1e-5", "relative_gap": 1e-3 / s, "certified_gap": 1e-2 / s}
        figure = dln.plot.comparison_figure("two columns", s, ["a", "b"], lasso, limit, [flow])
        figure.savefig("compare.png")
        ```
    """
    figure = Figure(figsize=(11, 9), layout="constrained")
    left, right = ("path", "plateaus", "gap"), ("norm", "nonzeros")
    parts: Any = figure.subfigures(1, 2, width_ratios=[1.6, 1])
    over_s, of_loss = parts
    panels = [*over_s.subplots(3, 1, height_ratios=[1.4, 1, 1]), *of_loss.subplots(2, 1)]
    axes: dict[str, Axes] = dict(zip((*left, *right), panels, strict=True))
    # Names of columns and files are no formulas.
    title, *names = (text.replace("$", r"\$") for text in (title, *names))
    figure.suptitle(title, fontsize=11)
    trained = [*flows, *([] if limit is None else [limit])]
    looks = [*({} for _ in flows), LIMIT]
    last = flows[-1] if flows else trained[-1]
    of_lasso = Curves(s, lasso["x"])
    shown = colors_of(of_lasso)
    draw_lines(axes["path"], Curves(s, last["x"]), of_lasso, shown)
    label_axes(axes["path"], "", "coordinates")
    # Legends stand below what they explain: they would cover curves.
    small: dict[str, Any] = {"fontsize": 7, "frameon": False}
    handles = legend_handles(shown, names, _NOTES)
    # One that is wider than the axes would make them narrower: they hold some 80 characters.
    ncols = max(1, min(4, 80 // max(len(str(handle.get_label())) for handle in handles)))
    below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 0), "ncols": ncols}
    axes["path"].legend(handles=handles, **below, **small)
    axes["path"].set_title(
        f"averaged flow at {last['label']} over the lasso path", fontsize=9, loc="left"
    )
    jumps = None if limit is None or limit is last else Curves(s, limit["at_s"], True)
    draw_lines(axes["plateaus"], Curves(s, last["at_s"], last is limit), jumps, shown)
    label_axes(axes["plateaus"], "", "$x(s)$, not averaged")
    beside = "" if jumps is None else ", dashed its limit ε → 0"
    axes["plateaus"].set_title(f"the flow at {last['label']}{beside}", fontsize=9, loc="left")
    axes_or_new(axes["gap"], len(flows))
    for part, look in zip(trained, looks, strict=False):
        bound = part.get("certified_gap")
        draw_gap(axes["gap"], s, part["relative_gap"], bound, part["label"], look)
    label_axes(axes["gap"], BOTH, "relative lasso gap")
    for name in left:
        axes[name].set_xlim(s[0], s[-1])
        logarithmic(axes[name], s[-1] / s[0])
    for name in left[:2]:
        axes[name].tick_params(which="both", labelbottom=False)
    for name in right:
        of = [TradeOff("lasso", lasso[name], lasso["loss"], {})]
        drawn = zip(trained, looks, strict=False)
        curves = [TradeOff(p["label"], p[name], p["loss"], look) for p, look in drawn]
        draw_tradeoff(axes_or_new(axes[name], len(flows)), of, curves, name)
    grey = Line2D([], [], color=GREY, linewidth=3.5, label="lasso")
    of_curves = [*gap_entries(axes["gap"]), grey]
    figure.legend(
        handles=of_curves, loc="outside lower center", ncols=min(len(of_curves), 7), **small
    )
    axes["norm"].set_title("averaged flows: loss against complexity", fontsize=9, loc="left")
    return figure


def instances_figure(title: str, s: np.ndarray, panels: Sequence[dict]) -> Figure:
    """[B25] Fig. 1, with a `title`: for each instance the coordinates above and the relative gap
    below. Each of `panels` has `title`, and `x`, `lasso` and `relative_gap` at the times `s`.

    !!! example

        ```python
        s, x = np.linspace(0.1, 3, 50), np.linspace(0, [2.0, 1.0], 50)
        panel = {"title": "instance 0", "x": x, "lasso": x, "relative_gap": 1e-3 / s}
        figure = dln.plot.instances_figure("two columns", s, [panel, panel])
        ```
    """
    figure = Figure(figsize=(10, 8.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    colors = colors_of(Curves(s, panels[0]["lasso"]))
    names = coordinate_names(None, panels[0]["lasso"].shape[1])
    handles = legend_handles(colors, names, _NOTES)
    figure.legend(
        handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=len(handles)
    )
    rows = (len(panels) + 1) // 2
    grid = figure.subfigures(rows, 2, squeeze=False)
    low = min(float(np.max(p["relative_gap"])) for p in panels)
    high = max(float(np.max(p["relative_gap"])) for p in panels)
    for panel, part in zip(panels, grid.ravel(), strict=False):
        top, bottom = part.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        draw_lines(top, Curves(s, panel["x"]), Curves(s, panel["lasso"]), colors)
        label_axes(top, "", "coordinates").set_title(panel["title"], fontsize=9, loc="left")
        draw_gap(bottom, s, panel["relative_gap"], None, "relative gap", {"color": COLORS[0]})
        label_axes(bottom, r"$s = \mu$", "relative lasso gap")
        bottom.set_ylim(min(1e-5, low / 10), 2 * high)
        bottom.set_xlim(0, s[-1])
    return figure


def sweep_figures(data: Any) -> dict[str, Figure]:
    """The figures that fit the `data` of `open_sweep`, by name: for each metric quantiles over `s`,
    a scaling plot for two values of `ε` or more, and heat maps over sizes, or over three networks
    or more and `ε`.

    !!! example

        ```python
        spec = dln.Sweep(instances=20, sizes=[(3, 4), (4, 5)], metrics=["num_knots"])
        data = dln.run_sweep(spec, "knots.zarr", progress=False)
        figures = dln.plot.sweep_figures(data)  # {"num_knots-sizes": …}, a heat map
        ```
    """
    n, d, networks = set(data["n"].values), set(data["d"].values), data["network"].values
    several_eps = "log_eps" in data.dims and data.sizes["log_eps"] > 1
    figures = {}
    for metric in data.data_vars:
        dims = set(data[metric].dims)
        if metric.endswith("_result") or "coordinate" in dims:
            continue
        if "s" in dims:
            part = data.isel(instance=slice(_LANES))
            part = part.isel(log_eps=-1) if "log_eps" in dims else part
            over = {"size": data["size"].values, "network": networks}
            figures[metric] = _panels("bands", part, metric, over)
        elif "log_eps" in dims:
            if several_eps:
                figures[f"{metric}-scaling"] = _panels("scaling", data, metric, {})
            if several_eps and len(networks) > 2:
                over = {"size": data["size"].values}
                figures[f"{metric}-networks"] = _panels("heatmap", data, metric, over)
        elif len(n) > 1 and len(d) > 1:
            figures[f"{metric}-sizes"] = _panels("heatmap", data, metric, {"network": networks})
    return figures


def _panels(kind: Any, data: Any, metric: str, over: dict[str, Any]) -> Figure:
    """A panel for each combination of the values of `over` and the weight decays; the first ones if
    there are many."""
    over = {**over, "weight_decay": data["weight_decay"].values}
    grid = np.meshgrid(*over.values(), indexing="ij")
    every = list(zip(*(axis.ravel() for axis in grid), strict=True))
    chosen = every[:_PANELS]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(1.5 + 4 * columns, 0.8 + 3.2 * rows), layout="constrained")
    title = title_of(data, metric, kind)
    if kind == "bands" and data.sizes["instance"] == _LANES:
        title += f", first {_LANES:,} instances"
    if "computed" in data.coords and not (computed := data["computed"].values).all():
        title += f", {100 * computed.mean():.0f} % computed"
    if len(chosen) < len(every):
        title += f" (first {_PANELS} of {len(every)} panels)"
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, values in zip(axes, chosen, strict=False):
        place = dict(zip(over, values, strict=True))
        sweep(data.sel(place), metric, kind=kind, ax=ax)
        decay = place.pop("weight_decay")
        title = [str(value) for value in place.values()] + [f"λ = {decay:g}"] * bool(decay)
        if "log_eps" in data.coords and not data["log_eps"].ndim:
            title.append(f"ε = {eps_label(data['log_eps'].item())}")
        ax.set_title(", ".join(title), fontsize=9, loc="left")
    for ax in axes[len(chosen) :].tolist():
        ax.remove()
    if kind == "heatmap":
        share_scale(figure.axes)
    return figure
