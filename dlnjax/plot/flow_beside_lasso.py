"""Training beside the lasso: what `dlnjax compare` and [B25] Fig. 1 show."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from .axes import (
    COLORS,
    DASHES,
    GREY,
    LASSO,
    Values,
    coordinate_colors,
    short_name,
    style,
)

_CERTIFIED = "certified, without any lasso"


def _logarithmic(ax: Axes, s: np.ndarray) -> None:
    """A logarithmic `s` axis, without the clutter of minor labels on short ranges."""
    ax.set_xscale("log")
    ax.set_xlim(s[0], s[-1])
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    span = s[-1] / s[0]
    if span < 1e4:
        ax.xaxis.set_major_formatter(plain)
    if span < 100:
        ax.xaxis.set_minor_locator(LogLocator(subs=range(2, 10) if span < 5 else (2, 5)))
        ax.xaxis.set_minor_formatter(plain)
        ax.tick_params(axis="x", which="minor", labelsize=7)
    else:
        ax.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _coordinate_handles(colors: dict[int, str], names: Sequence[str]) -> list[Line2D]:
    return [
        *(Line2D([], [], color=color, label=short_name(names[i])) for i, color in colors.items()),
        Line2D([], [], color="#555555", label=r"flow $\bar x^\varepsilon(s)$"),
        Line2D([], [], color="#555555", linestyle=DASHES, label=r"lasso $x(\mu)$, $\mu=s$"),
    ]


def plot_coordinates(ax: Axes, s: Values, flow_mean: Values, lasso: Values) -> Axes:
    """Coordinates of the averaged flow (solid) over those of the lasso path (dashed).

    Up to eight coordinates are coloured, the largest ones if there are more; the rest is grey.

    **Arguments:**

    - `ax`: what is drawn on, and returned.
    - `s`: times, `(S,)`, for the path too, at `μ = s`.
    - `flow_mean`, `lasso`: `flow.x_mean` and `path.x(s)`, `(S, d)`.

    !!! example

        ```python
        from matplotlib.figure import Figure

        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        path, s = dln.lasso_path(problem), jnp.linspace(0.1, 3, 50)
        limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
        ax = dln.plot.plot_coordinates(Figure().subplots(), s, limit.x_mean(s), path.x(s))
        ```
    """
    s, flow_mean, lasso = map(np.asarray, (s, flow_mean, lasso))
    _lines(ax, s, flow_mean, lasso, coordinate_colors(lasso))
    ax.set_ylabel("coordinates", fontsize=9)
    return style(ax)


def plot_plateaus(ax: Axes, s: Values, x: Values, limit: Values | None = None) -> Axes:
    """Coordinates of the network itself, not averaged: near plateaus, with jumps between them.

    Up to eight coordinates are coloured, the largest ones if there are more; the rest is grey.

    **Arguments:**

    - `ax`: what is drawn on, and returned.
    - `s`: times, `(S,)`.
    - `x`: `flow.x`, `(S, d)`; solid.
    - `limit`: `limit.plateau(s)`, of `ε → 0`, `(S, d)`; dashed.

    !!! example

        ```python
        from matplotlib.figure import Figure

        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.linspace(0.1, 3, 50)
        flow = dln.gradient_flow(network, problem, s, eps=1e-10)
        limit = dln.limit_flow(network, problem).plateau(s)
        ax = dln.plot.plot_plateaus(Figure().subplots(), s, flow.x, limit)
        ```
    """
    s, x = np.asarray(s), np.asarray(x)
    _lines(ax, s, x, None if limit is None else np.asarray(limit), coordinate_colors(x))
    ax.set_ylabel("$x(s)$", fontsize=9)
    return style(ax)


def _lines(
    ax: Axes, s: np.ndarray, solid: np.ndarray, dashed: np.ndarray | None, colors: dict[int, str]
) -> None:
    for i in sorted(range(solid.shape[1]), key=lambda i: i in colors):
        color, z = colors.get(i, GREY), 3 if i in colors else 1
        width = 1.6 if i in colors else 0.7
        ax.plot(s, solid[:, i], color=color, linewidth=width, zorder=z)
        if dashed is not None:
            ax.plot(s, dashed[:, i], color=color, linewidth=0.7 * width, linestyle=DASHES, zorder=z)
    ax.axhline(0, color=LASSO, linewidth=0.6, zorder=0)


def plot_gap(
    ax: Axes,
    s: Values,
    gap: Values,
    bound: Values | None = None,
    *,
    label: str = "relative gap",
    color: str = COLORS[0],
) -> Axes:
    """The relative lasso gap of the averaged flow.

    **Arguments:**

    - `ax`: what is drawn on, and returned.
    - `s`: times, `(S,)`.
    - `gap`: `(S,)`, such as `suboptimality_gap(...).relative`.
    - `bound`: what the certificate bounds it by, `(S,)`; drawn dotted.
    - `label`, `color`: of the curve.

    !!! example

        ```python
        from matplotlib.figure import Figure

        s = np.linspace(0.1, 3, 50)
        ax = dln.plot.plot_gap(Figure().subplots(), s, 1e-3 / s, 1e-2 / s, label="ε = 1e-5")
        ```
    """
    floor = 1e-16
    ax.plot(s, np.maximum(gap, floor), color=color, linewidth=1.6, label=label)
    if bound is not None:
        line = {"color": color, "linewidth": 1.0, "linestyle": (0, (1, 1.5))}
        ax.plot(s, np.maximum(bound, floor), **line, label=_CERTIFIED)
    ax.set_yscale("log")
    ax.set_ylabel("relative lasso gap", fontsize=9)
    return style(ax)


def plot_trade_off(
    ax: Axes,
    flows: Sequence[tuple[str, Values, Values]],
    lasso: tuple[Values, Values],
    xlabel: str,
    colors: Sequence[str] = COLORS,
) -> Axes:
    """Loss against complexity, called `xlabel`, on `ax`: of `flows`, each a label, its complexity
    and its loss along training, in these `colors`, and of `lasso`, the same without the label.

    !!! example

        ```python
        from matplotlib.figure import Figure

        norm, loss = np.linspace(0, 3, 50), np.linspace(3, 0, 50) ** 2
        flows = [("ε = 1e-5", norm, 1.1 * loss)]
        ax = dln.plot.plot_trade_off(Figure().subplots(), flows, (norm, loss), "1-norm")
        ```
    """
    ax.plot(*lasso, color=GREY, linewidth=3.5, label="lasso")
    for (label, complexity, loss), color in zip(flows, colors, strict=False):
        ax.plot(complexity, loss, color=color, linewidth=1.4, label=label)
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
        limit = lasso | {"label": "ε = 0", "relative_gap": 1e-6 / s, "at_s": np.round(x)}
        flow = limit | {"label": "ε = 1e-5", "relative_gap": 1e-3 / s, "certified_gap": 1e-2 / s}
        figure = dln.plot.comparison_figure("two columns", s, ["a", "b"], lasso, limit, [flow])
        figure.savefig("compare.png")
        ```
    """
    figure = Figure(figsize=(11, 9), layout="constrained")
    left, right = ("path", "plateaus", "gap"), ("norm", "nonzeros")
    axes = figure.subplot_mosaic(
        [[left[i // 2], right[i // 3]] for i in range(6)],
        width_ratios=[1.6, 1],
        height_ratios=[1.4, 1.4, 1, 1, 1, 1],
    )
    # Names of columns and files are no formulas.
    title, *names = (text.replace("$", r"\$") for text in (title, *names))
    figure.suptitle(title, fontsize=11)
    trained = [*flows, *([] if limit is None else [limit])]
    colors = [*COLORS[: len(flows)], LASSO]
    last = flows[-1] if flows else trained[-1]
    plot_coordinates(axes["path"], s, last["x"], lasso["x"])
    handles = _coordinate_handles(coordinate_colors(lasso["x"]), names)
    axes["path"].legend(handles=handles, fontsize=7, frameon=False, loc="upper left", ncols=2)
    low, high = axes["path"].get_ylim()
    room = min(0.07 * ((len(handles) + 1) // 2), 0.5)  # for the legend
    axes["path"].set_ylim(low, high + room / (1 - room) * (high - low))
    axes["path"].set_title(
        f"averaged flow at {last['label']} over the lasso path", fontsize=9, loc="left"
    )
    jumps = None if limit is None or limit is last else limit["at_s"]
    _lines(axes["plateaus"], s, last["at_s"], jumps, coordinate_colors(lasso["x"]))
    style(axes["plateaus"]).set_ylabel("$x(s)$, not averaged", fontsize=9)
    beside = "" if jumps is None else ", dashed its limit ε → 0"
    axes["plateaus"].set_title(f"the flow at {last['label']}{beside}", fontsize=9, loc="left")
    for part, color in zip(trained, colors, strict=False):
        gap, bound = part["relative_gap"], part.get("certified_gap")
        plot_gap(axes["gap"], s, gap, bound, label=part["label"], color=color)
    _cut(axes["gap"], [part["relative_gap"] for part in trained])
    handles, labels = axes["gap"].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    if _CERTIFIED in entries:
        entries[_CERTIFIED] = entries.pop(_CERTIFIED)  # once, and last
    axes["gap"].legend(entries.values(), entries.keys(), fontsize=7, frameon=False)
    axes["gap"].set_xlabel(
        r"rescaled training time $s$  =  inverse regularisation $\mu$", fontsize=9
    )
    for name in left:
        _logarithmic(axes[name], s)
    for name in left[:2]:
        axes[name].tick_params(which="both", labelbottom=False)
    for name, xlabel in (
        ("norm", r"1-norm $\Vert x\Vert_1$"),
        ("nonzeros", "non-zero coordinates"),
    ):
        curves = [(part["label"], part[name], part["loss"]) for part in trained]
        plot_trade_off(axes[name], curves, (lasso[name], lasso["loss"]), xlabel, colors)
    axes["nonzeros"].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes["norm"].set_title("averaged flows: loss against complexity", fontsize=9, loc="left")
    return figure


def _cut(ax: Axes, gaps: Sequence[np.ndarray]) -> None:
    """Cut a logarithmic axis of gaps where they are rounding, and say so."""
    floor = 1e-10 if gaps[0].dtype == np.float64 else 1e-6
    if any(np.any(gap < floor) for gap in gaps):
        ax.set_ylim(bottom=floor)
        ax.annotate(
            f"below {floor:g} not shown",
            (0.995, 0.02),
            xycoords="axes fraction",
            ha="right",
            fontsize=7,
            color="#777777",
            bbox={"color": "white", "pad": 1},
        )


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
    colors = coordinate_colors(panels[0]["lasso"])
    handles = _coordinate_handles(colors, [f"$x_{i + 1}$" for i in colors])
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
