"""Figures: functions that draw on an `Axes` and return it, and whole figures made of these.

They use `matplotlib.figure.Figure` without pyplot, so that they need no display and leave the
user's backend alone. `import dlnjax` imports neither matplotlib nor this module.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

Values = np.ndarray | Array

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#6A51A3")
_GREY = "#B8B8B8"
_LASSO = "#222222"
_DASHES = (0, (4, 2))
_CERTIFIED = "certified, without any lasso"
# Of sweeps:
_BANDS = ((0.05, 0.95), (0.25, 0.75))  # of quantiles
_PANELS = 6  # in a figure
_LANES = 20_000  # that the quantiles over s are taken of


def style(ax: Axes) -> Axes:
    """What all axes here look like: `ax` with a grid, small labels and two sides only.

    !!! example

        ```python
        from matplotlib.figure import Figure

        ax = dln.plot.style(Figure().subplots())
        ```
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", color="#EDEDED", linewidth=0.8)
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


# Training beside the lasso


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


def _colors(lasso: np.ndarray) -> dict[int, str]:
    """A colour for each coordinate if there are few, else for the largest ones."""
    d = lasso.shape[1]
    order = np.argsort(-np.max(np.abs(lasso), axis=0), kind="stable")
    chosen = range(d) if d <= len(COLORS) else order[: len(COLORS)].tolist()
    return dict(zip(chosen, COLORS, strict=False))


def _coordinate_handles(colors: dict[int, str], names: Sequence[str]) -> list[Line2D]:
    return [
        *(Line2D([], [], color=color, label=names[i]) for i, color in colors.items()),
        Line2D([], [], color="#555555", label=r"flow $\bar x^\varepsilon(s)$"),
        Line2D([], [], color="#555555", linestyle=_DASHES, label=r"lasso $x(\mu)$, $\mu=s$"),
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
    colors = _colors(lasso)
    for i in sorted(range(lasso.shape[1]), key=lambda i: i in colors):
        color, z = colors.get(i, _GREY), 3 if i in colors else 1
        width = 1.6 if i in colors else 0.7
        ax.plot(s, flow_mean[:, i], color=color, linewidth=width, zorder=z)
        ax.plot(s, lasso[:, i], color=color, linewidth=0.7 * width, linestyle=_DASHES, zorder=z)
    ax.axhline(0, color=_LASSO, linewidth=0.6, zorder=0)
    ax.set_ylabel("coordinates", fontsize=9)
    return style(ax)


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
) -> Axes:
    """Loss against complexity, called `xlabel`, on `ax`: of `flows`, each a label, its complexity
    and its loss along training, and of `lasso`, the same without the label.

    !!! example

        ```python
        from matplotlib.figure import Figure

        norm, loss = np.linspace(0, 3, 50), np.linspace(3, 0, 50) ** 2
        flows = [("ε = 1e-5", norm, 1.1 * loss)]
        ax = dln.plot.plot_trade_off(Figure().subplots(), flows, (norm, loss), "1-norm")
        ```
    """
    ax.plot(*lasso, color=_LASSO, linewidth=2.6, alpha=0.35, label="lasso")
    for (label, complexity, loss), color in zip(flows, COLORS, strict=False):
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
    flows: Sequence[dict],
) -> Figure:
    """The figure of `dlnjax compare`, with its `title` and the `names` of the coordinates. `lasso`
    has `x`, `loss`, `norm` and `nonzeros` at the times `s`; each of `flows` has these of `x_mean`,
    and `label`, `relative_gap` and `certified_gap`.

    !!! example

        ```python
        s, x = np.linspace(0.1, 3, 50), np.linspace(0, [2.0, 1.0], 50)
        lasso = {"x": x, "loss": 3 - x.sum(1), "norm": x.sum(1), "nonzeros": (x > 0).sum(1)}
        flow = lasso | {"label": "ε = 1e-5", "relative_gap": 1e-3 / s, "certified_gap": 1e-2 / s}
        figure = dln.plot.comparison_figure("two columns", s, ["a", "b"], lasso, [flow])
        figure.savefig("compare.png")
        ```
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplot_mosaic(
        [["path", "norm"], ["gap", "nonzeros"]], width_ratios=[1.6, 1], height_ratios=[1.5, 1]
    )
    figure.suptitle(title, fontsize=11)
    last = flows[-1]
    plot_coordinates(axes["path"], s, last["x"], lasso["x"])
    handles = _coordinate_handles(_colors(lasso["x"]), names)
    axes["path"].legend(handles=handles, fontsize=7, frameon=False, loc="upper left", ncols=2)
    low, high = axes["path"].get_ylim()
    axes["path"].set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes["path"].set_title(
        f"averaged flow at {last['label']} over the lasso path", fontsize=9, loc="left"
    )
    for flow, color in zip(flows, COLORS, strict=False):
        gap, bound = flow["relative_gap"], flow["certified_gap"]
        plot_gap(axes["gap"], s, gap, bound, label=flow["label"], color=color)
    handles, labels = axes["gap"].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    entries[_CERTIFIED] = entries.pop(_CERTIFIED)  # once, and last
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
    colors = _colors(panels[0]["lasso"])
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


# Sweeps, finished or not: lanes that failed or are missing are left out.


def plot_quantiles(ax: Axes, data: Any, metric: str, *, color: str = COLORS[0]) -> Axes:
    """Median of a metric over `s`, and bands that hold 50 and 90 % of the instances.

    Where each instance has times of its own, `s` is counted from its first time, 0, to its last, 1,
    on a logarithmic scale.

    **Arguments:**

    - `ax`: what is drawn on, and returned.
    - `data`: of `open_sweep`, at one size, network, weight decay and `ε` (`isel`, `sel`).
    - `metric`: the name of one that has the axis `s`.
    - `color`: of the median and the bands.

    !!! example

        ```python
        import xarray as xr
        from matplotlib.figure import Figure

        s, rng = np.linspace(0.1, 3, 50), np.random.default_rng(0)
        gap = (("instance", "s"), rng.exponential(size=(20, 50)) / s)  # as `open_sweep` has them
        ax = dln.plot.plot_quantiles(Figure().subplots(), xr.Dataset({"gap": gap}, {"s": s}), "gap")
        ```
    """
    values = data[metric].transpose("instance", "s").values
    good = values[np.isfinite(values).all(1)]
    s = data["s"].values if "s" in data.coords else np.linspace(0, 1, values.shape[1])
    for (low, high), alpha in zip(_BANDS, (0.15, 0.3), strict=True):
        if len(good):
            edges = np.quantile(good, [low, high], axis=0)
            label = f"{100 * (high - low):.0f} % of instances"
            ax.fill_between(s, *edges, color=color, alpha=alpha, linewidth=0, label=label)
    if len(good):
        ax.plot(s, np.median(good, axis=0), color=color, linewidth=1.6, label="median")
        ax.legend(fontsize=7, frameon=False)
    if len(good) and (good >= 0).all() and np.median(good[:, -1]) < 0.1 * np.median(good.max(1)):
        ax.set_yscale("log")
        ax.set_ylim(bottom=max(np.quantile(good, 0.01), 1e-6 * good.max()))
    own = "position between the first time (0) and the last (1), logarithmic"
    ax.set_xlabel(r"rescaled training time $s$" if "s" in data.coords else own, fontsize=9)
    return style(ax)


def plot_sizes(ax: Axes, data: Any, metric: str) -> Axes:
    """Heat map on `ax`, over `n` and `d`, of the mean of a `metric` over instances. The `data` are
    of `open_sweep`, at one network and weight decay.

    !!! example

        ```python
        import xarray as xr
        from matplotlib.figure import Figure

        knots = (("size", "instance"), np.arange(40.0).reshape(2, 20))  # as `open_sweep` has them
        data = xr.Dataset({"knots": knots, "n": ("size", [3, 6]), "d": ("size", [4, 8])})
        ax = dln.plot.plot_sizes(Figure().subplots(), data, "knots")
        ```
    """
    means = data[metric].mean("instance").values
    rows, columns = np.unique(data["n"].values), np.unique(data["d"].values)
    table = np.full((len(rows), len(columns)), np.nan)
    where = np.searchsorted(rows, data["n"].values), np.searchsorted(columns, data["d"].values)
    table[where] = means
    return _heat_map(ax, table, (rows, "n"), (columns, "d"))


def plot_networks(ax: Axes, data: Any, metric: str) -> Axes:
    """Heat map on `ax`, over networks (depths) and `ε`, of the median of a `metric` over instances.
    The `data` are of `open_sweep`, at one size and weight decay.

    !!! example

        ```python
        import xarray as xr
        from matplotlib.figure import Figure

        values = np.arange(120.0).reshape(3, 2, 20)  # as `open_sweep` has them
        axes = {"network": ["2", "3", "4"], "log_eps": [-5.0, -10.0]}
        data = xr.Dataset({"gap": (("network", "log_eps", "instance"), values)}, axes)
        ax = dln.plot.plot_networks(Figure().subplots(), data, "gap")
        ```
    """
    table = data[metric].transpose("network", "log_eps", "instance").median("instance").values
    names = data["network"].values
    eps = [eps_label(value) for value in data["log_eps"].values]
    return _heat_map(ax, table, (names, "network"), (eps, r"$\varepsilon$"))


def _heat_map(ax: Axes, table: np.ndarray, rows: Any, columns: Any) -> Axes:
    ax.set_facecolor("#DDDDDD")  # of what is missing
    ax.imshow(table, aspect="auto", origin="lower", cmap="Blues")
    middle = (np.nanmin(table) + np.nanmax(table)) / 2 if np.isfinite(table).any() else 0
    for (i, j), value in np.ndenumerate(table):
        if np.isfinite(value):
            ink = "white" if value > middle else "#222222"
            ax.text(j, i, f"{value:.3g}", ha="center", va="center", fontsize=8, color=ink)
    ax.set_yticks(range(len(rows[0])), [str(v) for v in rows[0]], fontsize=8)
    ax.set_xticks(range(len(columns[0])), [str(v) for v in columns[0]], fontsize=8)
    ax.set_ylabel(rows[1], fontsize=9)
    ax.set_xlabel(columns[1], fontsize=9)
    return ax


def plot_scaling(ax: Axes, data: Any, metric: str) -> Axes:
    """Median (solid) and 95 % quantile (dashed) over instances of a `metric` against `log(1/ε)`, on
    `ax`, for each size and network. The `data` are of `open_sweep`, at one weight decay.

    !!! example

        ```python
        import xarray as xr
        from matplotlib.figure import Figure

        values = np.exp(np.arange(60.0)).reshape(1, 1, 3, 20)  # as `open_sweep` has them
        axes = {"size": ["3 × 4"], "network": ["uv"], "log_eps": [-20.0, -10.0, -5.0]}
        data = xr.Dataset({"gap": (("size", "network", "log_eps", "instance"), values)}, axes)
        ax = dln.plot.plot_scaling(Figure().subplots(), data, "gap")
        ```
    """
    x = -data["log_eps"].values
    cells = [(size, name) for size in data["size"].values for name in data["network"].values]
    for k, (size, name) in enumerate(cells):
        values = data[metric].sel(size=size, network=name).transpose("log_eps", "instance").values
        good = [row[np.isfinite(row)] for row in values]
        quantiles = np.array([np.quantile(row, [0.5, 0.95]) for row in good if len(row)])
        if not len(quantiles):
            continue
        at = x[[len(row) > 0 for row in good]]
        color = COLORS[k % len(COLORS)]
        marker = "os^D"[k // len(COLORS) % 4]
        ax.plot(
            at, quantiles[:, 0], f"{marker}-", color=color, markersize=3, label=f"{size}, {name}"
        )
        ax.plot(at, quantiles[:, 1], f"{marker}--", color=color, markersize=3, linewidth=1)
    ax.set_xscale("log")
    ax.set_xticks(x, [f"{value:.3g}" for value in x])
    ax.xaxis.set_minor_locator(NullLocator())
    if all(np.min(line.get_ydata()) > 0 for line in ax.get_lines()):
        ax.set_yscale("log")
    ax.set_xlabel(r"$\log(1/\varepsilon)$", fontsize=9)
    if ax.get_lines():
        ax.legend(
            fontsize=7,
            frameon=False,
            title="median –, 95 % - -",
            title_fontsize=7,
            loc="upper left",
            bbox_to_anchor=(1, 1),
        )
    return style(ax)


_OF_INSTANCES = {plot_sizes: ": mean over instances", plot_networks: ": median over instances"}


def sweep_figures(data: Any) -> dict[str, Figure]:
    """The figures that fit the `data` of `open_sweep`, by name: for each metric quantiles over `s`,
    a scaling plot for two values of `ε` or more, and heat maps over sizes, or over three networks
    or more and `ε`.

    !!! example

        ```python
        sweep = dln.Sweep(instances=20, sizes=[(3, 4), (3, 5)], metrics=["num_knots"])
        data = dln.run_sweep(sweep, "knots.zarr", progress=False)
        figures = dln.plot.sweep_figures(data)  # {"num_knots": …}, a heat map over sizes
        ```
    """
    n, d, networks = set(data["n"].values), set(data["d"].values), data["network"].values
    several_eps = "log_eps" in data.dims and data.sizes["log_eps"] > 1
    figures = {}
    for metric in data.data_vars:
        dims = set(data[metric].dims)
        if metric.endswith("_result") or metric == "time" or "coordinate" in dims:
            continue
        if "s" in dims:
            part = data.isel(instance=slice(_LANES))
            part = part.isel(log_eps=-1) if "log_eps" in dims else part
            over = {"size": data["size"].values, "network": networks}
            figures[metric] = _panels(plot_quantiles, part, metric, over)
        elif "log_eps" in dims:
            if several_eps:
                figures[f"{metric}-scaling"] = _panels(plot_scaling, data, metric, {})
            if several_eps and len(networks) > 2:
                over = {"size": data["size"].values}
                figures[f"{metric}-networks"] = _panels(plot_networks, data, metric, over)
        elif len(n) > 1 and len(d) > 1:
            figures[f"{metric}-sizes"] = _panels(plot_sizes, data, metric, {"network": networks})
    return figures


def _panels(plot: Any, data: Any, metric: str, over: dict[str, Any]) -> Figure:
    """A panel for each combination of the values of `over` and the weight decays; the first ones if
    there are many."""
    over = {**over, "weight_decay": data["weight_decay"].values}
    grid = np.meshgrid(*over.values(), indexing="ij")
    every = list(zip(*(axis.ravel() for axis in grid), strict=True))
    chosen = every[:_PANELS]
    columns = min(3, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(1.5 + 4 * columns, 0.8 + 3.2 * rows), layout="constrained")
    title = (data[metric].attrs.get("long_name") or metric).rstrip(".")
    title += _OF_INSTANCES.get(plot, "")
    if plot is plot_quantiles and data.sizes["instance"] == _LANES:
        title += f", first {_LANES:,} instances"
    if len(chosen) < len(every):
        title += f" (first {_PANELS} of {len(every)} panels)"
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, values in zip(axes, chosen, strict=False):
        place = dict(zip(over, values, strict=True))
        plot(ax, data.sel(place), metric)
        decay = place.pop("weight_decay")
        title = [str(value) for value in place.values()] + [f"λ = {decay:g}"] * bool(decay)
        if "log_eps" in data.coords and not data["log_eps"].ndim:
            title.append(f"ε = {eps_label(data['log_eps'].item())}")
        ax.set_title(", ".join(title), fontsize=9, loc="left")
    for ax in axes[len(chosen) :].tolist():
        ax.remove()
    return figure
