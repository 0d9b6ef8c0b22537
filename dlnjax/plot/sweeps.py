"""Sweeps, finished or not: lanes that failed or are missing are left out."""

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes

from .axes import COLORS, add_legend, axes_or_new, eps_label, label_axes
from .curves import TIME
from .openings import log_eps_axis

_BANDS = ((0.05, 0.95), (0.25, 0.75))  # of quantiles
_LOG_EPS = r"$\log(1/\varepsilon)$"


def sweep(
    data: Any,
    metric: str,
    *,
    kind: Literal["bands", "scaling", "heatmap"] | None = None,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """A metric of a sweep, over instances.

    - `"bands"`: the median, and bands that hold 50 and 90 % of the instances, over `s`, or else
        over `log(1/ε)`. Where each instance has times of its own (the coordinate `time`), values
        are interpolated in `log s` at common ones, from the median of the first times to that of
        the last ones; at each of them, those instances count whose own times reach it.
    - `"scaling"`: the median (solid) and the 95 % quantile (dashed) against `log(1/ε)`, of each
        size and network.
    - `"heatmap"`: the median over networks (depths) and `ε`; for a metric without `ε`, the mean
        over `n` and `d`, or side by side for sizes that are not all pairs of some `n` and `d`.

    **Arguments:**

    - `data`: what `run_sweep` or `open_sweep` returns, with one value of each dimension that is
        not drawn (`data.sel(network="uv")`); where there is only one, nothing has to be selected.
    - `metric`: the name of one in it.
    - `kind`: by default bands for a metric over `s`, scaling for one with `ε`, else a heat map.
    - `ax`: as in `path`.
    - `label`, `color`: of bands: so that several calls on one axes, such as of parts of the
        instances, can be told apart.

    **Returns:** the axes. New ones say in their title what the metric is.

    **Raises:** `ValueError` for a metric that is not there, another `kind`, one that the metric has
    no axis for, or several values of a dimension that is not drawn.

    !!! example

        ```python
        spec = dln.Sweep(instances=20, sizes=[(3, 4), (3, 5)], metrics=["num_knots"])
        data = dln.run_sweep(spec, "knots.zarr", progress=False)
        ax = dln.plot.sweep(data, "num_knots")  # a heat map
        ```
    """
    if metric not in data.data_vars:
        raise ValueError(f"There is no metric {metric!r} in `data`: there are {[*data.data_vars]}.")
    dims = set(data[metric].dims)
    if kind is None:
        kind = "bands" if "s" in dims else "scaling" if "log_eps" in dims else "heatmap"
    if kind not in ("bands", "scaling", "heatmap"):
        raise ValueError(f"`kind` must be 'bands', 'scaling' or 'heatmap', got {kind!r}.")
    if kind == "bands" and not dims & {"s", "log_eps"}:
        raise ValueError(f"{metric!r} has neither `s` nor `ε`: bands need one of them.")
    if kind != "bands" and "s" in dims:
        raise ValueError(f"{metric!r} is over `s`: draw bands, or reduce it, by `data.max('s')`.")
    if kind == "scaling" and "log_eps" not in dims:
        raise ValueError(f"{metric!r} has no `ε`: there is nothing to scale with.")
    over = "s" if "s" in dims else "log_eps" if "log_eps" in dims else "size"
    beside = {"size", "network"} if kind == "scaling" else set()
    if kind == "heatmap" and over == "log_eps":
        beside = {"network"}
    part, drawn = _only(data, metric, {"instance", over} | beside), axes_or_new(ax)
    if kind == "bands":
        _bands(drawn, part, metric, over, label, color)
    elif kind == "scaling":
        _scaling(drawn, part, metric)
    elif over == "log_eps":
        _over_networks(drawn, part, metric)
    else:
        _over_sizes(drawn, part, metric)
    if ax is None:
        drawn.set_title(title_of(data, metric, kind), fontsize=9)
    return drawn


def title_of(data: Any, metric: str, kind: str) -> str:
    """What the metric is, and for heat maps how instances are reduced."""
    how = "median" if "log_eps" in data[metric].dims else "mean"
    title = (data[metric].attrs.get("long_name") or metric).rstrip(".")
    return f"{title}: {how} over instances" if kind == "heatmap" else title


def _only(data: Any, metric: str, drawn: Collection[str]) -> Any:
    """The data without the dimensions that are not drawn, of which there is one value."""
    rest = [dim for dim in data[metric].dims if dim not in drawn]
    for dim in rest:
        if data.sizes[dim] != 1:
            raise ValueError(
                f"`data` has {data.sizes[dim]} values of {dim!r}. Choose one, by "
                f"`data.isel({dim}=0)`."
            )
    return data.isel(dict.fromkeys(rest, 0))


def _bands(
    ax: Axes, data: Any, metric: str, over: str, label: str | None, color: str | None
) -> Axes:
    values = data[metric].transpose("instance", over).values
    x_label = TIME if over == "s" else _LOG_EPS
    is_good = np.isfinite(values).all(1)
    good = values[is_good]
    if not len(good):
        ax.text(0.5, 0.5, _why(data), transform=ax.transAxes, ha="center", va="center", fontsize=9)
        return label_axes(ax, x_label, metric)
    if over == "log_eps":
        at = -data["log_eps"].values
        log_eps_axis(ax, at)
    elif "time" in data.coords:
        times = data["time"].transpose("instance", "s").values[is_good]
        at, good = _at_common_times(times, good)
        ax.set_xscale("log")
    else:
        at = data["s"].values
    median = np.nanmedian(good, axis=0)
    name = "median" if label is None else label
    look = {"marker": "o", "markersize": 3} if over == "log_eps" else {}
    look |= {} if color is None else {"color": color}
    (line,) = ax.plot(at, median, linewidth=1.6, label=name, zorder=3, **look)
    for (low, high), alpha in zip(_BANDS, (0.15, 0.3), strict=True):
        edges = np.nanquantile(good, [low, high], axis=0)
        share = f"{100 * (high - low):.0f} % of instances" if label is None else None
        look = {"color": line.get_color(), "alpha": alpha, "linewidth": 0, "label": share}
        ax.fill_between(at, *edges, **look)
    title = None if label is None else "median, 50 and 90 % of instances"
    add_legend(ax, title=title, title_fontsize=7)
    least, largest = np.nanmin(good), np.nanmax(good)
    if over == "log_eps" and least > 0 and median.max() > 10 * median.min():
        ax.set_yscale("log")
    elif over == "s" and least >= 0 and median[-1] < 0.1 * np.median(np.nanmax(good, axis=1)):
        ax.set_yscale("log")
        ax.set_ylim(bottom=max(np.nanquantile(good, 0.01), 1e-6 * largest))
    return label_axes(ax, x_label, metric)


def _at_common_times(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `(instances, S)`: common times, `(S,)`, and values there, NaN beyond an instance's own."""
    first, last = np.median(times[:, 0]), np.median(times[:, -1])
    common = np.linspace(np.log(first), np.log(last), times.shape[1])
    pairs = zip(np.log(times), values, strict=True)
    at = [np.interp(common, own, value, left=np.nan, right=np.nan) for own, value in pairs]
    some = [value for value in at if np.isfinite(value).any()]
    return np.exp(common), np.array(some)


def _why(data: Any) -> str:
    """Why a part of the data has no values."""
    known = "computed" not in data.coords or bool(data["computed"].values.any())
    return "all failed" if known else "not computed"


def _over_sizes(ax: Axes, data: Any, metric: str) -> Axes:
    if not data["size"].ndim:  # one was selected
        data = data.expand_dims("size")
    n, d, sizes = (np.atleast_1d(data[name].values) for name in ("n", "d", "size"))
    rows, columns = np.unique(n), np.unique(d)
    is_grid = len(sizes) == len(rows) * len(columns)
    if is_grid:
        places = list(zip(np.searchsorted(rows, n), np.searchsorted(columns, d), strict=True))
    else:  # side by side
        places = [(0, k) for k in range(len(sizes))]
    table = np.full((len(rows), len(columns)) if is_grid else (1, len(sizes)), np.nan)
    notes = {}
    for k, place in enumerate(places):
        one = data[metric].isel(size=k)
        table[place], notes[place] = one.mean("instance").item(), _why(one)
    if is_grid:
        return _heat_map(ax, table, notes, (rows, "rows $n$"), (columns, "columns $d$"))
    return _heat_map(ax, table, notes, ([""], ""), (sizes, "size $n \\times d$"))


def _over_networks(ax: Axes, data: Any, metric: str) -> Axes:
    table = data[metric].transpose("network", "log_eps", "instance").median("instance").values
    names = data["network"].values
    eps = [eps_label(value) for value in data["log_eps"].values]
    why = [_why(data[metric].isel(network=i)) for i in range(len(names))]
    notes = {place: why[place[0]] for place in np.ndindex(*table.shape)}
    return _heat_map(ax, table, notes, (names, "network"), (eps, r"$\varepsilon$"))


def _heat_map(ax: Axes, table: np.ndarray, notes: dict, rows: Any, columns: Any) -> Axes:
    """`notes` say, by place, why there is no number."""
    ax.set_facecolor("#DDDDDD")  # of what is missing
    ax.grid(False)
    ax.imshow(table, aspect="auto", origin="lower", cmap="Blues")
    for (i, j), value in np.ndenumerate(table):
        text = f"{value:.3g}" if np.isfinite(value) else notes.get((i, j), "")
        ax.text(j, i, text, ha="center", va="center", fontsize=8)
    ax.set_yticks(range(len(rows[0])), [str(v) for v in rows[0]], fontsize=8)
    ax.set_xticks(range(len(columns[0])), [str(v) for v in columns[0]], fontsize=8)
    ax.set_ylabel(rows[1], fontsize=9)
    ax.set_xlabel(columns[1], fontsize=9)
    share_scale([ax])
    return ax


def share_scale(axes: list[Axes]) -> None:
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


def _scaling(ax: Axes, data: Any, metric: str) -> Axes:
    x = -data["log_eps"].values
    # What was selected before is a coordinate without a dimension.
    for dim in {"size", "network"} - set(data[metric].dims):
        data = data.expand_dims(dim)
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
    log_eps_axis(ax, x)
    if all((np.asarray(line.get_ydata()) > 0).all() for line in ax.get_lines()):
        ax.set_yscale("log")
    add_legend(
        ax,
        ncols=1,
        title="median –, 95 % - -",
        title_fontsize=7,
        loc="upper left",
        bbox_to_anchor=(1, 1),
    )
    return label_axes(ax, _LOG_EPS, metric)
