"""What `dlnjax compare` computes."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._flow.gradient_flow import gradient_flow
from .._gap import certificate, suboptimality_gap
from .._lasso.path import lasso_path
from .._lasso.point import lasso
from .._problem import AbstractProblem, LeastSquares, Logistic
from .._sweep.arguments import NETWORKS
from .console import CommandError
from .data import Dataset

POINTS = 200
DECADES = 3
# x̄ is never exactly 0: a coordinate counts once it is this large beside the largest of all.
NONZERO = 1e-3


def parts_of(
    data: Dataset,
    network: str,
    loss: str,
    eps: Sequence[float],
    s_max: float | None,
    weight_decay: float,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of the report, as they get ready: first the lasso, then one flow per `ε`."""
    parts = _logistic_parts if loss == "logistic" else _square_parts
    return parts(data, network, eps, s_max, weight_decay)


def _square_parts(
    data: Dataset, network: str, eps: Sequence[float], s_max: float | None, weight_decay: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Beside the path."""
    problem = LeastSquares(data.X, data.y, weight_decay)
    net = NETWORKS[network](data.X.shape[1])
    path = lasso_path(problem, positive=net.positive)
    empty = int(path.num_knots) == 0
    first, last = (np.inf, np.inf) if empty else (float(path.knots[0]), float(path.knots[-1]))
    s = _time_grid(first, 2 * last, s_max)
    yield (
        "lasso",
        {
            "s": s,
            "num_knots": int(path.num_knots),
            "first_knot": first,
            "last_knot": last,
            "is_monotone": bool(path.is_monotone()),
            "kkt_residual": float(jnp.max(path.kkt_residual(problem))),
            **_describe(problem, path.x(s), exact=True),
        },
    )
    for value in eps:
        flow = gradient_flow(net, problem, s, eps=value)
        gap = suboptimality_gap(problem, flow.x_mean, s, path=path)
        least = problem.lasso_objective(flow.x_mean, s) - gap.absolute
        yield (
            "flow",
            {
                "eps": value,
                "label": f"ε = {value:g}",
                "steps": int(flow.stats["num_steps"]),
                "relative_gap": np.asarray(gap.relative),
                "certified_gap": np.asarray(certificate(problem, flow) / least),
                **_describe(problem, flow.x_mean, exact=False),
            },
        )


def _logistic_parts(
    data: Dataset, network: str, eps: Sequence[float], s_max: float | None, weight_decay: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Beside solutions on a grid: the path is not piecewise linear, and may have no end."""
    labels = np.unique(data.y)
    if len(labels) != 2 or tuple(labels) not in ((-1, 1), (0, 1)):
        shown = ", ".join(f"{v:g}" for v in labels[:4]) + (", ..." if len(labels) > 4 else "")
        raise CommandError(
            f"--loss logistic needs two classes in the target {data.target!r}, 1 and −1 or 1 and "
            f"0, got {shown}. Map the classes to them, or leave --loss out."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels 0 and 1, which are meant here
        problem = Logistic(data.X, data.y, weight_decay)
    net = NETWORKS[network](data.X.shape[1])
    excess = float(jnp.max(problem.r if net.positive else jnp.abs(problem.r))) - weight_decay
    s = _time_grid(1 / excess if excess > 0 else np.inf, np.inf, s_max)
    # Its gaps are subtracted from those of flows.
    point = lasso(problem, s, positive=net.positive, gap_tol=1e-12)
    best = problem.lasso_objective(point.x, s)
    yield (
        "lasso",
        {
            "s": s,
            "first_knot": float(s[0]),
            "duality_gap": np.asarray(point.gap / best),
            **_describe(problem, point.x, exact=True),
        },
    )
    for value in eps:
        flow = gradient_flow(net, problem, s, eps=value)
        gap = problem.lasso_objective(flow.x_mean, s) - best
        yield (
            "flow",
            {
                "eps": value,
                "label": f"ε = {value:g}",
                "steps": int(flow.stats["num_steps"]),
                # Up to the gap of the solutions, by which it may be negative.
                "relative_gap": np.maximum(gap / best, 0),
                "certified_gap": np.asarray(certificate(problem, flow) / best),
                **_describe(problem, flow.x_mean, exact=False),
            },
        )


def _time_grid(first: float, last: float, s_max: float | None) -> np.ndarray:
    """`POINTS` times, log-spaced from the first knot to `last`, at most `DECADES` decades, unless
    `s_max` says otherwise."""
    if first == np.inf:
        raise CommandError(
            "The lasso path is 0 for every μ: no column correlates with the response by more "
            "than the weight decay. Lower --weight-decay, or look at the data."
        )
    if s_max is None:
        s_max = min(last, 10.0**DECADES * first)
    if s_max <= first:
        raise CommandError(
            f"--s-max = {s_max:g} ends before the first knot of the path, s = {first:.4g}: "
            "everything is 0 there. Pass a larger value."
        )
    grid = np.geomspace(first, s_max, POINTS)
    return np.concatenate([[first], grid[1:-1], [s_max]])  # exact ends


def _describe(problem: AbstractProblem, x: jax.Array, exact: bool) -> dict[str, np.ndarray]:
    size = np.abs(np.asarray(x))
    threshold = 0 if exact else NONZERO * size.max()
    return {
        "x": np.asarray(x),
        "loss": np.asarray(problem.loss(x)),
        "norm": size.sum(axis=1),
        "nonzeros": (size > threshold).sum(axis=1),
    }
