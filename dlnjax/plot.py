"""Figures: functions that draw on an `Axes` and return it, and the layouts that use them.

Built on `matplotlib.figure.Figure` without pyplot, so that they work without a display and
leave the user's backend alone.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8A6D3B",
    "#6A51A3",
)
CERTIFIED = "certified, without any lasso"
_GREY = "#B8B8B8"
_LASSO = "#222222"
_DASHES = (0, (4, 2))


def style(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", color="#EDEDED", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    return ax


def _logarithmic(ax: Axes, s: np.ndarray) -> None:
    """A logarithmic `s` axis, without the clutter of minor labels on short ranges."""
    ax.set_xscale("log")
    ax.set_xlim(s[0], s[-1])
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if s[-1] / s[0] < 1e4:
        ax.xaxis.set_major_formatter(plain)
    if s[-1] / s[0] < 10:
        ax.xaxis.set_minor_formatter(plain)
        ax.tick_params(axis="x", which="minor", labelsize=7)
    else:
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _colours(lasso: np.ndarray) -> dict[int, str]:
    """A colour for each coordinate if there are few, else for the largest ones."""
    d = lasso.shape[1]
    order = np.argsort(-np.max(np.abs(lasso), axis=0), kind="stable")
    chosen = range(d) if d <= len(COLORS) else order[: len(COLORS)].tolist()
    return dict(zip(chosen, COLORS, strict=False))


def _coordinate_handles(colours: dict[int, str], names: Sequence[str]) -> list[Line2D]:
    return [
        *(Line2D([], [], color=colour, label=names[i]) for i, colour in colours.items()),
        Line2D([], [], color="#555555", label=r"flow $\bar x^\varepsilon(s)$"),
        Line2D([], [], color="#555555", linestyle=_DASHES, label=r"lasso $x(\mu)$, $\mu=s$"),
    ]


def plot_coordinates(ax: Axes, s: np.ndarray, flow_mean: np.ndarray, lasso: np.ndarray) -> Axes:
    """Coordinates of the averaged flow (solid) over the lasso path (dashed), arrays `(S, d)`. Up
    to eight coordinates are coloured, the largest ones if there are more; the rest is grey."""
    colours = _colours(lasso)
    for i in sorted(range(lasso.shape[1]), key=lambda i: i in colours):
        colour, z = colours.get(i, _GREY), 3 if i in colours else 1
        width = 1.6 if i in colours else 0.7
        ax.plot(s, flow_mean[:, i], color=colour, linewidth=width, zorder=z)
        ax.plot(s, lasso[:, i], color=colour, linewidth=0.7 * width, linestyle=_DASHES, zorder=z)
    ax.axhline(0, color=_LASSO, linewidth=0.6, zorder=0)
    ax.set_ylabel("coordinates", fontsize=9)
    return style(ax)


def plot_gap(
    ax: Axes,
    s: np.ndarray,
    gap: np.ndarray,
    bound: np.ndarray | None = None,
    *,
    label: str = "relative gap",
    colour: str = COLORS[0],
) -> Axes:
    """The relative lasso gap of the averaged flow, and what the certificate bounds it by."""
    floor = 1e-16
    ax.plot(s, np.maximum(gap, floor), color=colour, linewidth=1.6, label=label)
    if bound is not None:
        ax.plot(
            s,
            np.maximum(bound, floor),
            color=colour,
            linewidth=1.0,
            linestyle=(0, (1, 1.5)),
            label=CERTIFIED,
        )
    ax.set_yscale("log")
    ax.set_ylabel("relative lasso gap", fontsize=9)
    return style(ax)


def plot_trade_off(
    ax: Axes,
    flows: Sequence[tuple[str, np.ndarray, np.ndarray]],
    lasso: tuple[np.ndarray, np.ndarray],
    xlabel: str,
) -> Axes:
    """Loss against complexity along training (`label, complexity, loss`) beside the lasso."""
    ax.plot(*lasso, color=_LASSO, linewidth=2.6, alpha=0.35, label="lasso")
    for (label, complexity, loss), colour in zip(flows, COLORS, strict=False):
        ax.plot(complexity, loss, color=colour, linewidth=1.4, label=label)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.set_ylabel(r"loss $\ell$", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.legend(fontsize=7, frameon=False, loc="best")
    return style(ax)


def comparison_figure(
    title: str,
    s: np.ndarray,
    names: Sequence[str],
    lasso: dict[str, np.ndarray],
    flows: Sequence[dict],
) -> Figure:
    """The figure of `dlnjax compare`. `lasso` has `x`, `loss`, `norm`, `nonzeros`; each of
    `flows` these for `x_mean`, and `label`, `relative_gap`, `certified_gap`."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplot_mosaic(
        [["path", "norm"], ["gap", "nonzeros"]], width_ratios=[1.6, 1], height_ratios=[1.5, 1]
    )
    figure.suptitle(title, fontsize=11)
    last = flows[-1]
    plot_coordinates(axes["path"], s, last["x"], lasso["x"])
    handles = _coordinate_handles(_colours(lasso["x"]), names)
    axes["path"].legend(handles=handles, fontsize=7, frameon=False, loc="upper left", ncols=2)
    low, high = axes["path"].get_ylim()
    axes["path"].set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes["path"].set_title(
        f"averaged flow at {last['label']} over the lasso path", fontsize=9, loc="left"
    )
    for flow, colour in zip(flows, COLORS, strict=False):
        plot_gap(
            axes["gap"],
            s,
            flow["relative_gap"],
            flow["certified_gap"],
            label=flow["label"],
            colour=colour,
        )
    handles, labels = axes["gap"].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    entries[CERTIFIED] = entries.pop(CERTIFIED)  # once, and last
    axes["gap"].legend(entries.values(), entries.keys(), fontsize=7, frameon=False)
    axes["gap"].set_xlabel(
        r"rescaled training time $s$  =  inverse regularisation $\mu$", fontsize=9
    )
    for name in ("path", "gap"):
        _logarithmic(axes[name], s)
    axes["path"].tick_params(labelbottom=False)
    for name, xlabel in (
        ("norm", r"1-norm $\Vert x\Vert_1$"),
        ("nonzeros", "non-zero coordinates"),
    ):
        plot_trade_off(
            axes[name],
            [(flow["label"], flow[name], flow["loss"]) for flow in flows],
            (lasso[name], lasso["loss"]),
            xlabel,
        )
    axes["norm"].set_title("what early stopping traces", fontsize=9, loc="left")
    return figure


def instances_figure(title: str, s: np.ndarray, panels: Sequence[dict]) -> Figure:
    """[B25] Fig. 1: for each instance the coordinates above and the relative gap below. Each panel
    has `title`, `x`, `lasso`, `relative_gap`."""
    figure = Figure(figsize=(10, 8.5), layout="constrained")
    figure.suptitle(title, fontsize=11)
    colours = _colours(panels[0]["lasso"])
    handles = _coordinate_handles(colours, [f"$x_{i + 1}$" for i in colours])
    figure.legend(
        handles=handles, fontsize=8, frameon=False, loc="outside lower center", ncols=len(handles)
    )
    rows = (len(panels) + 1) // 2
    grid = figure.subfigures(rows, 2, squeeze=False)
    low = min(float(np.max(p["relative_gap"])) for p in panels)
    high = max(float(np.max(p["relative_gap"])) for p in panels)
    for panel, part in zip(panels, grid.ravel(), strict=False):
        top, bottom = part.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        plot_coordinates(top, s, panel["x"], panel["lasso"])
        top.set_title(panel["title"], fontsize=9, loc="left")
        plot_gap(bottom, s, panel["relative_gap"])
        bottom.set_ylim(min(1e-5, low / 10), 2 * high)
        bottom.set_xlabel(r"$s = \mu$", fontsize=9)
        bottom.set_xlim(0, s[-1])
    return figure
