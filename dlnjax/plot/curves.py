"""Coordinates along the lasso path, the averaged flow and the network itself."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Real
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from .._checks import as_float, check_type
from .._flow.gradient_flow import Flow
from .._lasso.point import LassoPoint
from .._path import LassoPath, LimitFlow, PiecewiseLinearPath
from .axes import (
    BLACK,
    COLORS,
    DASHES,
    GREY,
    add_legend,
    axes_or_new,
    colors_for,
    label_axes,
    scale_times,
)

TIME = r"rescaled time $s$"
BOTH = r"rescaled time $s$  =  inverse regularisation $\mu$"
_LASSO = r"lasso $x(\mu)$, $\mu = s$"
_TIMES = 400  # by default


class Curves(NamedTuple):
    """Values of all coordinates, `(S, d)`, at the times `s`, `(S,)`."""

    s: np.ndarray
    x: np.ndarray
    is_staircase: bool = False


def path(
    path: LassoPath | LassoPoint,
    s: Real[ArrayLike, " S"] | None = None,
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    legend: bool = True,
) -> Axes:
    """The lasso path: each coordinate of `x(μ)` against `μ`.

    Up to eight coordinates are coloured, the largest ones if there are more; the rest is grey.

    **Arguments:**

    - `path`: what `lasso_path` returns. For other losses than the square, `lasso(problem, s)`.
    - `s`: values of `μ`, shape `(S,)`: those of the solutions; of a path by default 400 and the
        knots, from half of the first knot to twice the last one. The axis is logarithmic where they
        are spaced so.
    - `ax`: what is drawn on; by default the axes of a new figure, as in all functions of `plot`.
    - `names`: of the `d` coordinates; `x₁`, `x₂`, … by default.
    - `legend`: whether to add one.

    **Returns:** the axes.

    **Raises:** `TypeError` for something else than a path; `ValueError` for a batch of paths,
    solutions without their `μ`, or another number of names.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        ax = dln.plot.path(dln.lasso_path(problem), names=["age", "income"])
        ax.figure.savefig("path.png")
        ```
    """
    check_type(path, "path", (LassoPath, LassoPoint), "what `lasso_path` or `lasso` returns")
    at = _times(path, s)
    x = path.x if isinstance(path, LassoPoint) else path.x(at)
    solid, ax = Curves(at, np.asarray(x)), axes_or_new(ax)
    draw(ax, solid, None, names, legend=legend)
    return label_axes(ax, r"inverse regularisation $\mu$", r"lasso $x(\mu)$")


def flow(
    flow: Flow | LimitFlow,
    path: LassoPath | LassoPoint | LimitFlow | None = None,
    s: Real[ArrayLike, " S"] | None = None,
    *,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    legend: bool = True,
) -> Axes:
    """The averaged flow `x̄^ε(s)` (solid) over the lasso path `x(μ)` at `μ = s` (dashed).

    Up to eight coordinates are coloured, the largest ones if there are more; the rest is grey.

    **Arguments:**

    - `flow`: what `gradient_flow` returns, or `limit_flow`, for `x̄⁰(s)`.
    - `path`: what `lasso_path` returns. For other losses than the square, `lasso(problem, s)` at
        the times of the flow; and a limit draws `x̄⁰(s)` dashed.
    - `s`: times, shape `(S,)`, of a limit: a flow has its own. As in `path` by default.
    - `ax`, `names`, `legend`: as in `path`.

    **Returns:** the axes.

    **Raises:** `TypeError` for something else than these; `ValueError` for a batch of them, times
    of a flow, solutions at other times, or another number of names.

    !!! example

        ```python
        problem, s = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])), jnp.geomspace(0.1, 9, 50)
        flow = dln.gradient_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem, s, eps=1e-10)
        ax = dln.plot.flow(flow, dln.lasso_path(problem))
        ```
    """
    solid = averages(flow, s)
    of_flow = rf"\bar x^{_power(flow)}(s)"
    dashed, y = None, f"${of_flow}$"
    kind = "limit" if isinstance(flow, LimitFlow) else "flow"
    notes: dict[str, Any] = {f"{kind} ${of_flow}$": "-"}
    if isinstance(path, LimitFlow):
        dashed = averages(path, solid.s)
        notes[r"limit $\bar x^0(s)$"] = DASHES
    elif path is not None:
        dashed = Curves(solid.s, solutions(path, solid))
        notes[_LASSO] = DASHES
        y += r", $x(\mu)$"
    ax = axes_or_new(ax)
    draw(ax, solid, dashed, names, notes if dashed else {}, legend)
    return label_axes(ax, BOTH if _LASSO in notes else TIME, y)


def plateaus(
    flow: Flow | LimitFlow,
    s: Real[ArrayLike, " S"] | None = None,
    *,
    limit: LimitFlow | None = None,
    ax: Axes | None = None,
    names: Sequence[str] | None = None,
    legend: bool = True,
) -> Axes:
    """The network itself, not averaged: `x(s)` rests near plateaus and jumps between them.

    Up to eight coordinates are coloured, the largest ones if there are more; the rest is grey.

    **Arguments:**

    - `flow`: what `gradient_flow` returns, or `limit_flow`, for the plateaus as `ε → 0`.
    - `s`: times, shape `(S,)`, of a limit: a flow has its own. As in `path` by default.
    - `limit`: what `limit_flow` returns: its plateaus dashed, and dotted lines at its jumps.
    - `ax`, `names`, `legend`: as in `path`.

    **Returns:** the axes.

    **Raises:** as `flow`.

    !!! example

        ```python
        problem, s = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])), jnp.geomspace(0.1, 9, 50)
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        flow = dln.gradient_flow(network, problem, s, eps=1e-10)
        ax = dln.plot.plateaus(flow, limit=dln.limit_flow(network, problem))
        ```
    """
    check_type(flow, "flow", (Flow, LimitFlow), "what `gradient_flow` or `limit_flow` returns")
    if isinstance(flow, LimitFlow):
        solid = _staircase(flow, _times(flow, s))
    else:
        solid = Curves(_own_times(flow, s), np.asarray(flow.x))
    of_flow, dashed, ax = f"$x^{_power(flow)}(s)$", None, axes_or_new(ax)
    notes = {}
    if limit is not None:
        check_type(limit, "limit", LimitFlow, "what `limit_flow` returns")
        dashed = _staircase(limit, solid.s)
        notes = {f"flow {of_flow}": "-", "limit $x^0(s)$": DASHES}
        for jump in _within(limit, solid.s):
            ax.axvline(jump, color="#999999", linewidth=0.7, linestyle=":", zorder=0)
    draw(ax, solid, dashed, names, notes, legend)
    return label_axes(ax, TIME, of_flow)


def averages(flow: Flow | LimitFlow, s: ArrayLike | None) -> Curves:
    """`x̄` of a flow at its own times, or of a limit at `s`."""
    check_type(flow, "flow", (Flow, LimitFlow), "what `gradient_flow` or `limit_flow` returns")
    if isinstance(flow, LimitFlow):
        at = _times(flow, s)
        return Curves(at, np.asarray(flow.x_mean(at)))
    return Curves(_own_times(flow, s), np.asarray(flow.x_mean))


def times_of(path: PiecewiseLinearPath) -> np.ndarray:
    """From half of the first knot to twice the last one, the knots among them."""
    knots = _knots(path)
    if not len(knots):  # x = 0 everywhere
        return np.linspace(0, 1, 2)
    grid = np.geomspace(knots[0] / 2, 2 * knots[-1], _TIMES)
    return np.union1d(grid, knots)


def _knots(path: PiecewiseLinearPath) -> np.ndarray:
    """Those that are positive and finite, once each; of a limit, its jumps."""
    count = path.num_jumps if isinstance(path, LimitFlow) else path.num_knots
    knots = np.unique(np.asarray(path.knots)[: int(count)])
    return knots[(knots > 0) & np.isfinite(knots)]


def _within(limit: LimitFlow, s: np.ndarray) -> np.ndarray:
    """The jumps from the first to the last time."""
    jumps = _knots(limit)
    return jumps[(s[0] < jumps) & (jumps < s[-1])]


def _staircase(limit: LimitFlow, s: np.ndarray) -> Curves:
    """Plateaus, from jump to jump: constant between two times that follow each other."""
    at = np.union1d(s, _within(limit, s))
    return Curves(at, np.asarray(limit.plateau(at)), True)


def check_single(curve: Flow | PiecewiseLinearPath | LassoPoint) -> None:
    """Raise a `ValueError` for a batch, and for a solution at one `μ` alone."""
    if isinstance(curve, LassoPoint):
        if curve.x.ndim != 2:
            raise ValueError(
                f"Solutions at several `μ` are drawn, of shape (S, d), these have {curve.x.shape}. "
                "Pass `lasso(problem, s)`."
            )
        return
    values, what = (curve.x, "flows") if isinstance(curve, Flow) else (curve.values, "paths")
    if values.ndim != 2:
        raise ValueError(
            f"This is a batch of {what}, of shape {values.shape[:-2]}. Draw one of them, such as "
            "`jax.tree.map(lambda leaf: leaf[0], batch)`."
        )


def _own_times(flow: Flow, s: ArrayLike | None) -> np.ndarray:
    if s is not None:
        raise ValueError("A flow has its own times, `flow.s`: leave `s` out.")
    check_single(flow)
    return np.asarray(flow.s)


def _times(path: PiecewiseLinearPath | LassoPoint, s: ArrayLike | None) -> np.ndarray:
    """Those given, or `times_of` the path."""
    check_single(path)
    if isinstance(path, LassoPoint):
        if s is None or np.shape(s) != path.x.shape[:1]:
            raise ValueError(f"Pass the `μ` of the {len(path.x)} solutions as `s`.")
    elif s is None:
        return times_of(path)
    at = np.asarray(as_float(s, "s"))
    is_grid = at.ndim == 1 and len(at) > 0 and at[0] >= 0 and np.all(np.diff(at) >= 0)
    if not (is_grid and np.all(np.isfinite(at))):
        raise ValueError("`s` must be times from 0 on, in increasing order, of shape (S,).")
    return at


def solutions(path: LassoPath | LassoPoint, beside: Curves) -> np.ndarray:
    check_type(path, "path", (LassoPath, LassoPoint), "what `lasso_path` or `lasso` returns")
    if isinstance(path, LassoPath):
        return np.asarray(path.x(beside.s))
    if path.x.shape != beside.x.shape:
        raise ValueError(
            f"The solutions have shape {path.x.shape}, the flow has {beside.x.shape}. Pass those "
            "at its times above 0, `lasso(problem, flow.s)`."
        )
    return np.asarray(path.x)


def _power(flow: Flow | LimitFlow) -> str:
    return "0" if isinstance(flow, LimitFlow) else r"\varepsilon"


def draw(
    ax: Axes,
    solid: Curves,
    dashed: Curves | None,
    names: Sequence[str] | None = None,
    notes: dict[str, Any] | None = None,
    legend: bool = True,
) -> None:
    """Coordinates in colours, with a legend of their `names` and of the dashes in `notes`."""
    if dashed is not None and dashed.x.shape[1] != solid.x.shape[1]:
        raise ValueError(
            f"The solid curves have {solid.x.shape[1]} coordinates, the dashed ones have "
            f"{dashed.x.shape[1]}: they are of other problems."
        )
    colors = colors_of(solid if dashed is None else dashed)
    draw_lines(ax, solid, dashed, colors)
    scale_times(ax, solid.s)
    named = coordinate_names(names, solid.x.shape[1])
    if legend:
        add_legend(ax, legend_handles(colors, named, notes or {}))


def draw_lines(ax: Axes, solid: Curves, dashed: Curves | None, colors: dict[int, str]) -> None:
    """One coordinate after the other, grey ones first."""
    how = lambda curves: "steps-post" if curves.is_staircase else "default"
    for i in sorted(range(solid.x.shape[1]), key=lambda i: i in colors):
        color, z = colors.get(i, GREY), 3 if i in colors else 1
        width = 1.6 if i in colors else 0.7
        look = {"color": color, "zorder": z}
        ax.plot(solid.s, solid.x[:, i], linewidth=width, drawstyle=how(solid), **look)
        if dashed is not None:
            look |= {"linewidth": 0.7 * width, "linestyle": DASHES, "drawstyle": how(dashed)}
            ax.plot(dashed.s, dashed.x[:, i], **look)
    ax.axhline(0, color=BLACK, linewidth=0.6, zorder=0)


def colors_of(curves: Curves) -> dict[int, str]:
    """A colour for each coordinate if there are few, else for the largest ones."""
    d = curves.x.shape[1]
    size = np.max(np.abs(np.nan_to_num(curves.x)), axis=0)
    order = np.argsort(-size, kind="stable").tolist()
    return colors_for(order if d <= len(COLORS) else [i for i in order if size[i] > 0])


def coordinate_names(names: Sequence[str] | None, d: int) -> list[str]:
    if names is None:
        return [f"$x_{{{i + 1}}}$" for i in range(d)]
    if len(names) != d:
        raise ValueError(f"`names` must have {d} entries, one a coordinate, got {len(names)}.")
    return [*names]


def legend_handles(
    colors: dict[int, str], names: Sequence[str], notes: dict[str, Any]
) -> list[Line2D]:
    """Of the coordinates that are coloured, and of dashes."""
    few = [Line2D([], [], color=color, label=short_name(names[i])) for i, color in colors.items()]
    if len(names) > len(colors):
        few.append(Line2D([], [], color=GREY, label="others"))
    dashes = [Line2D([], [], color="#555555", linestyle=d, label=n) for n, d in notes.items()]
    return few + dashes


def short_name(name: str, limit: int = 24) -> str:
    """The name, cut if it is long, but for formulas: names with a pair of `$` that are no text."""
    is_formula = name.replace(r"\$", "").count("$") > 1
    return name if len(name) <= limit or is_formula else name[: limit - 1] + "…"
