"""What all figures share: colours, where they are drawn, the look of axes, and labels."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Those of Okabe and Ito, and two more: distinct to the colour-blind.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#6A51A3")
GREY = "#B8B8B8"
BLACK = "#222222"
DASHES = (0, (4, 2))
DOTS = ":"
LIMIT: dict[str, Any] = {"color": BLACK, "linestyle": DASHES}
MARKERS = "osD^v"

# The same look for what matplotlib draws itself: `plt.style.use(dln.plot.STYLE)`.
STYLE: dict[str, Any] = {
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#EDEDED",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.figsize": (6.5, 3.6),
    "figure.constrained_layout.use": True,
}


def style(ax: Axes) -> Axes:
    """What all axes here look like: `ax` with a grid, small labels and two sides only.

    !!! example

        ```python
        from matplotlib.figure import Figure

        ax = dln.plot.style(Figure().subplots())
        ```
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", color=STYLE["grid.color"], linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    return ax


def eps_label(log_eps: float) -> str:
    """`ε` as text, from `log_eps`: as `e^log_eps` where it would underflow.

    !!! example

        ```python
        dln.plot.eps_label(np.log(1e-5))  # "1e-05"
        dln.plot.eps_label(-2000.0)  # "e^-2000"
        ```
    """
    return f"{math.exp(log_eps):.3g}" if log_eps > -690 else f"e^{log_eps:g}"


def colors_for(coordinates: Sequence[int]) -> dict[int, str]:
    """A colour for each of up to eight coordinates, the first of them first: that of its number,
    if it is free, so that a coordinate has the same one in most figures."""
    chosen: dict[int, str] = {}
    for i in coordinates[: len(COLORS)]:
        own = COLORS[i % len(COLORS)]
        chosen[i] = own if own not in chosen.values() else ""
    free = iter([color for color in COLORS if color not in chosen.values()])
    return {i: chosen[i] or next(free) for i in sorted(chosen)}


def cycle(count: int) -> Sequence[Any]:
    """Colours of `count` curves: `COLORS`, or steps of a colour map if that has too few."""
    if count <= len(COLORS):
        return COLORS
    return [*matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))]


def axes_or_new(ax: Axes | None, count: int = 1) -> Axes:
    """`ax`, or the axes of a new figure, with our colours where nothing is drawn yet, for `count`
    curves.

    The new figure is one of pyplot where pyplot is in use, or a notebook runs: that is what shows
    it there. Else pyplot is not imported, and nothing but the axes holds the figure.
    """
    if ax is None:
        if "matplotlib.pyplot" in sys.modules or "ipykernel" in sys.modules:
            import matplotlib.pyplot as plt

            ax = plt.figure(layout="constrained").subplots()
        else:
            ax = Figure(layout="constrained").subplots()
    if not ax.has_data():
        ax.set_prop_cycle(color=cycle(count))
    return ax


def label_axes(ax: Axes, x: str, y: str) -> Axes:
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    return style(ax)


def add_legend(ax: Axes, handles: Iterable[Any] | None = None, **options: Any) -> None:
    """A legend of these `handles`, or of all that is labelled, if there are any."""
    shown = [*(ax.get_legend_handles_labels()[0] if handles is None else handles)]
    if shown:
        # More than six would cover what they explain.
        options = {"loc": "best", "ncols": 1 + (len(shown) > 6), **options}
        ax.legend(handles=shown, fontsize=7, frameon=False, **options)


def scale_times(ax: Axes, s: np.ndarray) -> None:
    """A `s` axis that is logarithmic where `s` is spaced so, from the first to the last time."""
    ax.set_xmargin(0)
    if not np.all(np.isfinite(ax.dataLim.intervalx)):  # all is NaN, as of a flow that failed
        ax.set_xlim(s[0], s[-1])
    if is_geometric(s):
        logarithmic(ax, s[-1] / s[0])


def is_geometric(s: np.ndarray) -> bool:
    """Whether the middle time is nearer to the geometric mean of the ends than to their mean."""
    if not s[0] > 0:
        return False
    middle = np.log(s[len(s) // 2])
    mean, geometric = np.log((s[0] + s[-1]) / 2), np.log(s[0] * s[-1]) / 2
    return bool(abs(middle - geometric) < abs(middle - mean))


def logarithmic(ax: Axes, span: float) -> None:
    """A logarithmic `s` axis, without the clutter of minor labels if the `span` is short."""
    ax.set_xscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if span < 1e4:
        ax.xaxis.set_major_formatter(plain)
    if span < 100:
        ax.xaxis.set_minor_locator(LogLocator(subs=range(2, 10) if span < 5 else (2, 5)))
        ax.xaxis.set_minor_formatter(plain)
        ax.tick_params(axis="x", which="minor", labelsize=7)
    else:
        ax.xaxis.set_minor_formatter(NullFormatter())
