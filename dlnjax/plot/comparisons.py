"""Numbers of a flow beside those of the lasso path: the gap, and loss against complexity."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Real
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .._checks import check_type
from .._flow.gradient_flow import Flow
from .._gap import certificate as certified, suboptimality_gap
from .._lasso.point import LassoPoint
from .._path import LassoPath, LimitFlow
from .._problem import AbstractProblem, Schedule
from .axes import (
    DOTS,
    GREY,
    LIMIT,
    add_legend,
    axes_or_new,
    eps_label,
    label_axes,
    scale_times,
)
from .curves import BOTH, Curves, averages, check_single, solutions, times_of

_CERTIFIED = "certified, without any lasso"
_CUT = "dlnjax-cut"  # names the note, to find it again
# x̄ is never exactly 0: a coordinate counts where what it explains of the response, |xᵢ|‖Xᵢ‖, is
# this large beside the most that one column alone explains, (|Xⱼᵀy| − λ)/‖Xⱼ‖.
NONZERO = 1e-3


def gap(
    problem: AbstractProblem,
    flow: Flow | LimitFlow,
    path: LassoPath | LassoPoint,
    *,
    s: Real[ArrayLike, " S"] | None = None,
    certificate: bool = True,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
) -> Axes:
    """The relative lasso gap of the averaged flow, and dotted what the certificate bounds it by.

    The axis ends where the gap is rounding. Another call on the same axes takes the next colour.

    **Arguments:**

    - `problem`: the problem of both.
    - `flow`: what `gradient_flow` returns, or `limit_flow`.
    - `path`: what `lasso_path` returns. For other losses than the square, `lasso(problem, s)` at
        the times of the flow above 0, without weights and with the sign constraint of the
        network: the gap is as exact as these solutions.
    - `s`: times, shape `(S,)`, of a limit: a flow has its own. As in `path` by default. Where
        `s = 0` there is no gap.
    - `certificate`: whether to draw it. It is of a flow, and bounds the gap of a path with weights
        1 and the same sign constraint: elsewhere it is left out.
    - `ax`: as in `path`.
    - `label`, `color`: of the curve. By default its `ε`, and the next colour; a limit is black and
        dashed.

    **Returns:** the axes.

    **Raises:** as `suboptimality_gap`; and `TypeError` for something else than a flow,
    `ValueError` for a batch of flows, times of a flow, or solutions at other times.

    !!! example

        ```python
        problem, s = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])), jnp.geomspace(0.6, 9, 50)
        flow = dln.gradient_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem, s, eps=1e-10)
        ax = dln.plot.gap(problem, flow, dln.lasso_path(problem))
        ```
    """
    at, x, _ = averages(flow, s)
    after = at > 0
    at, x = at[after], x[after]
    is_bound = isinstance(flow, Flow)
    if isinstance(path, LassoPath):
        of = suboptimality_gap(problem, x, at, path=path)
        relative, least = of.relative, problem.lasso_objective(x, at) - of.absolute
        is_bound &= path.positive == getattr(flow, "positive", None)
        is_bound &= bool(jnp.all(path.weights == 1))
    else:
        relative, least = excess(problem, x, solutions(path, Curves(at, x)), at)
        # Half of the digits, beyond what the solutions certify.
        room = path.gap + jnp.finfo(x.dtype).eps ** 0.5 * jnp.abs(least)
        if bool(jnp.any(problem.lasso_objective(x, at) < least - room)):
            raise ValueError(
                "The flow is better than these solutions: they are of other `μ`, or of another "
                "problem. Pass those at its times, `lasso(problem, flow.s)`."
            )
    bound = None
    if certificate and isinstance(flow, Flow) and is_bound:
        bound = np.asarray(certified(problem, flow)[after] / jnp.abs(least))
    ax = axes_or_new(ax)
    look: dict[str, Any] = LIMIT if isinstance(flow, LimitFlow) else {}
    look = look if color is None else look | {"color": color}
    label = label_of(flow) if label is None else label
    draw_gap(ax, at, np.asarray(relative), bound, label, look)
    scale_times(ax, at)
    add_legend(ax, gap_entries(ax), ncols=1)
    return label_axes(ax, BOTH, "relative lasso gap")


def excess(
    problem: AbstractProblem, x: ArrayLike, best: ArrayLike, s: ArrayLike
) -> tuple[np.ndarray, Array]:
    """The gap of `x` above solutions, over the size of their objective, and that objective, both of
    shape `(S,)`. Solutions have a gap of their own, by which `x` may be better: 0 there."""
    least = problem.lasso_objective(best, s)
    return np.maximum((problem.lasso_objective(x, s) - least) / jnp.abs(least), 0), least


def draw_gap(
    ax: Axes,
    s: np.ndarray,
    gap: np.ndarray,
    bound: np.ndarray | None,
    label: str,
    look: dict[str, Any],
) -> None:
    (line,) = ax.plot(s, gap, label=label, linewidth=1.6, **look)
    if bound is not None:
        color = line.get_color()
        ax.plot(s, bound, color=color, linewidth=1.0, linestyle=DOTS, label=_CERTIFIED)
    _cut(ax, 1e-10 if gap.dtype == np.float64 else 1e-6)
    ax.set_yscale("log")  # after that, since it warns where no gap is positive


def _cut(ax: Axes, rounding: float) -> None:
    """Where some gaps are below `rounding`, end the logarithmic axis at the decade of the least
    other one, and say so."""
    gaps = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.get_lines()])
    gaps = gaps[np.isfinite(gaps)]
    shown = gaps[gaps >= rounding]
    for note in [text for text in ax.texts if text.get_gid() == _CUT]:
        note.remove()
    if not len(shown):
        ax.set_ylim(rounding, 1)
    elif len(shown) < len(gaps):
        largest, least = shown.max(), max(10.0 ** np.floor(np.log10(shown.min())), rounding)
        ax.set_ylim(least, largest * max(largest / least, 10) ** 0.05)
    if len(shown) < len(gaps):
        said = f"{'the rest' if len(shown) else 'all'} below {rounding:g}: rounding"
        look: dict[str, Any] = {"color": "#777777", "bbox": {"color": "white", "pad": 1}}
        place: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "fontsize": 7}
        ax.annotate(said, (0.995, 0.02), gid=_CUT, **place, **look)


def gap_entries(ax: Axes) -> list[Any]:
    """What a legend of gaps shows: the certificate once, and last."""
    handles, labels = ax.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    if _CERTIFIED in entries:
        entries[_CERTIFIED] = entries.pop(_CERTIFIED)
    return [*entries.values()]


def label_of(curve: Flow | LimitFlow | LassoPath | LassoPoint) -> str:
    if isinstance(curve, Flow):
        failed = ", failed" if bool(jnp.all(jnp.isnan(curve.x_mean))) else ""
        return f"ε = {eps_label(float(curve.log_eps))}{failed}"
    return "ε → 0" if isinstance(curve, LimitFlow) else "lasso"


def nonzeros(problem: AbstractProblem, x: ArrayLike) -> np.ndarray:
    """Which coordinates of `x`, shape `(S, d)`, count as not 0: booleans of the same shape."""
    return np.abs(np.asarray(x)) > nonzero_above(problem)


def nonzero_above(problem: AbstractProblem) -> np.ndarray:
    """The size above which each coordinate counts, `(d,)`; infinite for columns of zeros."""
    norms = np.sqrt(np.asarray(problem.gram_diagonal()))
    decay = 0 if isinstance(problem.weight_decay, Schedule) else float(problem.weight_decay)
    beyond = np.maximum(np.abs(np.asarray(problem.r)) - decay, 0)
    alone = np.max(beyond / np.where(norms > 0, norms, 1))
    return np.divide(NONZERO * alone, norms, where=norms > 0, out=np.full_like(norms, np.inf))


class TradeOff(NamedTuple):
    """A curve: its label, complexity and loss, shape `(S,)` each, and what it looks like."""

    label: str
    complexity: np.ndarray
    loss: np.ndarray
    look: dict[str, Any]


def tradeoff(
    problem: AbstractProblem,
    curves: Sequence[Flow | LimitFlow | LassoPath | LassoPoint],
    *,
    complexity: Literal["norm", "nonzeros"] = "norm",
    s: Real[ArrayLike, " S"] | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The loss against the complexity of `x`, as training goes on: of averaged flows, of their
    limit (dashed), and of the lasso path (grey).

    **Arguments:**

    - `problem`: whose loss it is.
    - `curves`: what `gradient_flow`, `limit_flow` and `lasso_path` return, or `lasso` at several
        `μ`, for other losses than the square.
    - `complexity`: `"norm"`, the 1-norm, or `"nonzeros"`, the number of coordinates that are not 0.
        Those of a flow never are: a coordinate counts where `|xᵢ|‖Xᵢ‖` is above 0.001 of the
        largest `(|Xⱼᵀy| − λ)/‖Xⱼ‖` (a `Schedule` counts as `λ = 0`).
    - `s`: times, shape `(S,)`, of limits and paths: flows have their own. By default those of the
        first flow, or, without one, as in `path`.
    - `labels`: one a curve; by default `ε`, and *lasso*.
    - `ax`: as in `path`.

    **Returns:** the axes.

    **Raises:** `TypeError` for another curve; `ValueError` for another `complexity`, a batch of
    flows or paths, or another number of labels.

    !!! example

        ```python
        problem, s = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])), jnp.geomspace(0.1, 9, 50)
        flow = dln.gradient_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem, s, eps=1e-10)
        ax = dln.plot.tradeoff(problem, [flow, dln.lasso_path(problem)])
        ```
    """
    if complexity not in XLABELS:
        raise ValueError(f"`complexity` must be 'norm' or 'nonzeros', got {complexity!r}.")
    what = "what `gradient_flow`, `limit_flow`, `lasso_path` or `lasso` returns"
    known = (Flow, LimitFlow, LassoPath, LassoPoint)
    if isinstance(curves, known) or not len(curves):
        raise ValueError(f"`curves` must be a list of one or more of {what}.")
    for curve in curves:
        check_type(curve, "curves[i]", known, what)
        check_single(curve)
    if labels is not None and len(labels) != len(curves):
        raise ValueError(
            f"`labels` must have {len(curves)} entries, one a curve, got {len(labels)}."
        )
    own = [curve.s for curve in curves if isinstance(curve, Flow)]
    s = own[0] if s is None and own else s
    named = [label_of(curve) for curve in curves] if labels is None else labels
    lasso, others = [], []
    for curve, label in zip(curves, named, strict=True):
        if isinstance(curve, LassoPoint):
            x = curve.x
        elif isinstance(curve, LassoPath):
            x = curve.x(times_of(curve) if s is None else s)
        else:
            x = averages(curve, None if isinstance(curve, Flow) else s).x
        size = np.abs(np.asarray(x))
        counted = size if complexity == "norm" else nonzeros(problem, x)
        number = np.where(np.isnan(size).any(axis=1), np.nan, counted.sum(axis=1))
        look = LIMIT if isinstance(curve, LimitFlow) else {}
        drawn = TradeOff(label, number, np.asarray(problem.loss(x)), look)
        (lasso if isinstance(curve, LassoPath | LassoPoint) else others).append(drawn)
    ax = axes_or_new(ax, len(others))
    draw_tradeoff(ax, lasso, others, complexity)
    add_legend(ax, ncols=1)
    return ax


XLABELS = {"norm": r"1-norm $\Vert x\Vert_1$", "nonzeros": "non-zero coordinates"}


def draw_tradeoff(
    ax: Axes, lasso: Sequence[TradeOff], others: Sequence[TradeOff], complexity: str
) -> None:
    for label, x, loss, _ in lasso:
        ax.plot(x, loss, color=GREY, linewidth=3.5, label=label)
    for label, x, loss, look in others:
        ax.plot(x, loss, linewidth=1.4, label=label, **look)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=complexity == "nonzeros"))
    label_axes(ax, XLABELS[complexity], r"loss $\ell$")
