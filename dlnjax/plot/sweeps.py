"""Sweeps, finished or not: lanes that failed or are missing are left out."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from .axes import COLORS, eps_label, style

_BANDS = ((0.05, 0.95), (0.25, 0.75))  # of quantiles
_PANELS = 6  # in a figure
_LANES = 20_000  # that the quantiles over s are taken of


def plot_quantiles(ax: Axes, data: Any, metric: str, *, color: str = COLORS[0]) -> Axes:
    """Median of a metric over `s`, and bands that hold 50 and 90 % of the instances.

    Where each instance has times of its own (the coordinate `time`), values are interpolated in
    `log s` at common ones, from the median of the first times to that of the last ones; at each of
    them, those instances count whose own times reach it.

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
    is_good = np.isfinite(values).all(1)
    good = values[is_good]
    ax.set_xlabel(r"rescaled training time $s$", fontsize=9)
    if not len(good):
        return _without_data(ax, data)
    if "time" in data.coords:
        times = data["time"].transpose("instance", "s").values[is_good]
        s, good = _at_common_times(times, good)
        ax.set_xscale("log")
    else:
        s = data["s"].values
    for (low, high), alpha in zip(_BANDS, (0.15, 0.3), strict=True):
        edges = np.nanquantile(good, [low, high], axis=0)
        label = f"{100 * (high - low):.0f} % of instances"
        ax.fill_between(s, *edges, color=color, alpha=alpha, linewidth=0, label=label)
    median = np.nanmedian(good, axis=0)
    ax.plot(s, median, color=color, linewidth=1.6, label="median")
    ax.legend(fontsize=7, frameon=False)
    if np.nanmin(good) >= 0 and median[-1] < 0.1 * np.median(np.nanmax(good, axis=1)):
        ax.set_yscale("log")
        ax.set_ylim(bottom=max(np.nanquantile(good, 0.01), 1e-6 * np.nanmax(good)))
    return style(ax)


def _at_common_times(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `(instances, S)`: common times, `(S,)`, and values there, NaN beyond an instance's own."""
    first, last = np.median(times[:, 0]), np.median(times[:, -1])
    common = np.linspace(np.log(first), np.log(last), times.shape[1])
    pairs = zip(np.log(times), values, strict=True)
    at = [np.interp(common, own, value, left=np.nan, right=np.nan) for own, value in pairs]
    some = [value for value in at if np.isfinite(value).any()]
    return np.exp(common), np.array(some)


def _without_data(ax: Axes, data: Any) -> Axes:
    ax.text(0.5, 0.5, _why(data), transform=ax.transAxes, ha="center", va="center", fontsize=9)
    return style(ax)


def _why(data: Any) -> str:
    """Why a part of the data has no values."""
    known = "computed" not in data.coords or bool(data["computed"].values.any())
    return "all failed" if known else "not computed"


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
    n, d = data["n"].values, data["d"].values
    rows, columns = np.unique(n), np.unique(d)
    table = np.full((len(rows), len(columns)), np.nan)
    notes = {}
    for k in range(data.sizes["size"]):
        one = data[metric].isel(size=k)
        place = np.searchsorted(rows, n[k]), np.searchsorted(columns, d[k])
        table[place], notes[place] = one.mean("instance").item(), _why(one)
    return _heat_map(ax, table, notes, (rows, "n"), (columns, "d"))


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
    why = [_why(data[metric].isel(network=i)) for i in range(len(names))]
    notes = {place: why[place[0]] for place in np.ndindex(*table.shape)}
    return _heat_map(ax, table, notes, (names, "network"), (eps, r"$\varepsilon$"))


def _heat_map(ax: Axes, table: np.ndarray, notes: dict, rows: Any, columns: Any) -> Axes:
    """`notes` say, by place, why there is no number."""
    ax.set_facecolor("#DDDDDD")  # of what is missing
    ax.imshow(table, aspect="auto", origin="lower", cmap="Blues")
    for (i, j), value in np.ndenumerate(table):
        text = f"{value:.3g}" if np.isfinite(value) else notes.get((i, j), "")
        ax.text(j, i, text, ha="center", va="center", fontsize=8)
    ax.set_yticks(range(len(rows[0])), [str(v) for v in rows[0]], fontsize=8)
    ax.set_xticks(range(len(columns[0])), [str(v) for v in columns[0]], fontsize=8)
    ax.set_ylabel(rows[1], fontsize=9)
    ax.set_xlabel(columns[1], fontsize=9)
    _share_scale([ax])
    return ax


def _share_scale(axes: list[Axes]) -> None:
    """One scale of colours for the heat maps of a quantity, and ink that can be read on it."""
    maps = [ax for ax in axes if ax.images]
    tables = [np.ma.filled(np.ma.asarray(ax.images[0].get_array()), np.nan).ravel() for ax in maps]
    known = np.concatenate(tables)
    if not np.isfinite(known).any():
        return
    low, high = np.nanmin(known), np.nanmax(known)
    for ax, table in zip(maps, tables, strict=True):
        ax.images[0].set_clim(low, high)
        for text, value in zip(ax.texts, table, strict=True):
            text.set_color("white" if 2 * value > low + high else "#222222")


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
            why = _why(data[metric].sel(size=size, network=name))
            ax.plot([], [], color="none", label=f"{size}, {name}: {why}")
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
    if all((np.asarray(line.get_ydata()) > 0).all() for line in ax.get_lines()):
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
        if metric.endswith("_result") or "coordinate" in dims:
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
    if "computed" in data.coords and not (computed := data["computed"].values).all():
        title += f", {100 * computed.mean():.0f} % computed"
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
    if plot in _OF_INSTANCES:
        _share_scale(figure.axes)
    return figure
