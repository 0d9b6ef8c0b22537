"""When the coordinates of a flow cross a level."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Real
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from .._checks import check_type
from .._flow.crossings import CrossingTimes
from .._path import LimitFlow
from .axes import BLACK, COLORS, MARKERS, add_legend, axes_or_new, colors_for, label_axes
from .curves import TIME, coordinate_names, short_name


def crossings(
    times: CrossingTimes,
    log_eps: Real[ArrayLike, " E"] | None = None,
    *,
    limit: LimitFlow | None = None,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
) -> Axes:
    """When coordinates open: of one flow, a row a coordinate; of flows at several `ε`, against
    `log(1/ε)`.

    In a row, a dot is where `|xᵢ|` rises to the level, a ring where it falls to it, and a bar where
    the limit `ε → 0` activates the coordinate. Against `log(1/ε)`, a line is the time at which
    `|xᵢ|` first rises to the level; with a `limit`, the distance of that time to the jump at which
    the limit first activates the coordinate, `O(1/log(1/ε))` at depth 2.

    **Arguments:**

    - `times`: what `crossing_times` returns; with `log_eps`, a batch of `E` of them.
    - `log_eps`: `log ε` of each of the batch, shape `(E,)`.
    - `limit`: what `limit_flow` returns.
    - `ax`, `names`: as in `path`.

    **Returns:** the axes.

    **Raises:** `TypeError` for something else than these; `ValueError` for a batch without its
    `log_eps`, one of another length, or another number of names.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, log_eps = dln.UV(jnp.ones(2), jnp.zeros(2)), -jnp.array([50.0, 100.0, 200.0])
        find = lambda size: dln.crossing_times(network, problem, 3.0, 0.5, log_eps=size)
        rows = dln.plot.crossings(find(-50.0))
        limit = dln.limit_flow(network, problem)
        delays = dln.plot.crossings(jax.vmap(find)(log_eps), log_eps, limit=limit)
        ```
    """
    check_type(times, "times", CrossingTimes, "what `crossing_times` returns")
    if limit is not None:
        check_type(limit, "limit", LimitFlow, "what `limit_flow` returns")
    d, batch = times.activations.shape[-1], times.s.shape[:-1]
    named = [short_name(name) for name in coordinate_names(names, d)]
    if log_eps is None:
        if batch:
            raise ValueError(
                f"This is a batch of crossing times, of shape {batch}. Pass its `log_eps`, or one "
                "of them, such as `jax.tree.map(lambda leaf: leaf[0], times)`."
            )
        return _rows(axes_or_new(ax), times, limit, named)
    size = -np.asarray(log_eps, float)
    if size.ndim != 1 or size.shape != batch:
        raise ValueError(
            f"`log_eps` must have one entry a lane, shape {batch} (of one axis), got {size.shape}. "
            "Leave it out for a single flow."
        )
    if not np.all(size > 0):
        raise ValueError("`log_eps` must be negative: pass `jnp.log(eps)`, not `eps`.")
    return _against_eps(axes_or_new(ax), times, size, limit, named)


def _colors(shown: Sequence[int]) -> dict[int, str]:
    """As in `path` for up to eight coordinates; of more, some have the same."""
    return {i: COLORS[i % len(COLORS)] for i in shown} | colors_for(shown)


def _rows(ax: Axes, times: CrossingTimes, limit: LimitFlow | None, names: list[str]) -> Axes:
    count = int(times.num_crossings)
    s = np.asarray(times.s)[:count]
    up, down = np.asarray(times.activations)[:count], np.asarray(times.deactivations)[:count]
    opened = np.zeros((0, len(names)), bool)
    jumps = np.zeros(0)
    if limit is not None:
        jumps = np.asarray(limit.jumps)[: int(limit.num_jumps)]
        opened = np.asarray(limit.activations)[: len(jumps)]
    shown = np.flatnonzero(up.any(axis=0) | down.any(axis=0) | opened.any(axis=0)).tolist()
    colors = _colors(shown)
    for row, i in enumerate(shown):
        look: dict[str, Any] = {"color": colors[i], "linestyle": "none"}
        at = lambda times, row=row: (times, np.full(len(times), row))
        ax.plot(*at(jumps[opened[:, i]]), "|", color=BLACK, markersize=14, zorder=2)
        ax.plot(*at(s[up[:, i]]), "o", markersize=5, zorder=3, **look)
        ax.plot(*at(s[down[:, i]]), "o", markersize=5, fillstyle="none", zorder=3, **look)
    ax.set_yticks(range(len(shown)), [names[i] for i in shown])
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    if not shown:
        ax.text(0.5, 0.5, "none crosses its level", transform=ax.transAxes, ha="center", fontsize=9)
    dot = {"marker": "o", "color": "#555555", "linestyle": "none", "markersize": 5}
    keys = []
    if up.any():
        keys.append(Line2D([], [], label="rises to the level", **dot))
    if down.any():
        keys.append(Line2D([], [], fillstyle="none", label="falls to it", **dot))
    if limit is not None:
        bar = dot | {"marker": "|", "color": BLACK, "markersize": 10}
        keys.append(Line2D([], [], label="jump as ε → 0", **bar))
    add_legend(ax, keys)
    return label_axes(ax, TIME, "coordinate")


def _against_eps(
    ax: Axes, times: CrossingTimes, size: np.ndarray, limit: LimitFlow | None, names: list[str]
) -> Axes:
    first = _first(
        np.asarray(times.s), np.asarray(times.activations), np.asarray(times.num_crossings)
    )
    y = r"opening time $s_i^\varepsilon$"
    if limit is not None:
        jumps, opened, count = limit.jumps[None], limit.activations[None], limit.num_jumps[None]
        first = np.abs(first - _first(*map(np.asarray, (jumps, opened, count))))
        y = r"delay $|s_i^\varepsilon - s_i|$"
        ax.set_yscale("log")
    shown = np.flatnonzero(np.isfinite(first).any(axis=0)).tolist()
    lines, colors = [], _colors(shown)
    for place, i in enumerate(shown):
        color, marker = colors[i], MARKERS[place % len(MARKERS)]
        look: dict[str, Any] = {"linewidth": 1.4, "markersize": 4, "label": names[i]}
        lines += ax.plot(size, first[:, i], color=color, marker=marker, **look)
    log_eps_axis(ax, size)
    add_legend(ax, lines)
    return label_axes(ax, r"$\log(1/\varepsilon)$", y)


def _first(s: np.ndarray, up: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The time of the first of `count` activations, `(E, d)`, NaN where there is none."""
    is_known = np.arange(s.shape[1]) < count[:, None]
    at = np.where(up & is_known[:, :, None], s[:, :, None], np.inf).min(axis=1)
    return np.where(np.isfinite(at), at, np.nan)


def log_eps_axis(ax: Axes, size: np.ndarray) -> None:
    """A logarithmic axis of `log(1/ε)` with a tick at each value that there is room for."""
    ax.set_xscale("log")
    ticks: list[float] = []
    for value in np.sort(size):
        # 0.99: of ten even sizes all are nine steps apart but for rounding.
        if not ticks or np.log(value / ticks[-1]) >= 0.99 * np.log(size.max() / size.min()) / 9:
            ticks.append(float(value))
    ax.set_xticks(ticks, [f"{value:.4g}" for value in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
