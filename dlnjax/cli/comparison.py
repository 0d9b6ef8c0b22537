"""What `dlnjax compare` computes."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._flow.gradient_flow import gradient_flow
from .._gap import certificate, suboptimality_gap
from .._lasso.path import lasso_path
from .._path import PiecewiseLinearPath
from .._problem import LeastSquares
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
    eps: Sequence[float],
    s_max: float | None,
    weight_decay: float,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of the report, as they get ready: first the lasso, then one flow per `ε`."""
    problem = LeastSquares(data.X, data.y, weight_decay)
    net = NETWORKS[network](data.X.shape[1])
    path = lasso_path(problem, positive=net.positive)
    s = _time_grid(path, s_max)
    yield (
        "lasso",
        {
            "s": s,
            "num_knots": int(path.num_knots),
            "first_knot": float(path.knots[0]),
            "last_knot": float(path.knots[-1]),
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


def _time_grid(path: PiecewiseLinearPath, s_max: float | None) -> np.ndarray:
    """`POINTS` times, log-spaced from the first knot to twice the last one, at most `DECADES`
    decades, unless `s_max` says otherwise."""
    if int(path.num_knots) == 0:
        raise CommandError(
            "The lasso path is 0 for every μ: no column correlates with the response by more "
            "than the weight decay. Lower --weight-decay, or look at the data."
        )
    first, last = float(path.knots[0]), float(path.knots[-1])
    if s_max is None:
        s_max = min(2 * last, 10.0**DECADES * first)
    if s_max <= first:
        raise CommandError(
            f"--s-max = {s_max:g} ends before the first knot of the path, s = {first:.4g}: "
            "everything is 0 there. Pass a larger value."
        )
    grid = np.geomspace(first, s_max, POINTS)
    return np.concatenate([[first], grid[1:-1], [s_max]])  # exact ends


def _describe(problem: LeastSquares, x: jax.Array, exact: bool) -> dict[str, np.ndarray]:
    size = np.abs(np.asarray(x))
    threshold = 0 if exact else NONZERO * size.max()
    return {
        "x": np.asarray(x),
        "loss": np.asarray(problem.loss(x)),
        "norm": size.sum(axis=1),
        "nonzeros": (size > threshold).sum(axis=1),
    }
