"""What `dlnjax compare` computes: in units of the problem, so that they do not matter."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._flow.gradient_flow import gradient_flow
from .._gap import certificate, suboptimality_gap
from .._lasso.path import lasso_path
from .._lasso.point import lasso
from .._limit.limit_flow import limit_flow
from .._problem import AbstractProblem, LeastSquares, Logistic
from .._results import RESULTS
from .._sweep.arguments import NETWORKS
from ..networks import AbstractDualNetwork
from ..plot.comparisons import excess, nonzero_above, nonzeros
from .console import CommandError
from .data import Dataset

POINTS = 200
DECADES = 3


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user asked for, in units of the data; `eps` in those of `x`, see `Units`."""

    network: tuple[Any, ...]  # a name, and what `NETWORKS` takes beside `d`
    loss: str
    eps: Sequence[float]
    s_max: float | None
    weight_decay: float

    def model(self, d: int) -> AbstractDualNetwork:
        name, *arguments = self.network
        network = NETWORKS[name](d, *arguments)
        assert isinstance(network, AbstractDualNetwork)
        return network


@dataclasses.dataclass(frozen=True)
class Units:
    """By what results are multiplied: those of a problem whose largest column has norm 1 and whose
    response is such that one column alone explains 1 of it. `ε` is relative to `x`."""

    X: float
    y: float

    @property
    def x(self) -> float:
        return self.y / self.X

    @property
    def s(self) -> float:
        return 1 / (self.X * self.y)

    @property
    def loss(self) -> float:
        return self.y**2


def parts_of(data: Dataset, asked: Asked) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of the report, as they get ready: the lasso, the limit `ε → 0`, one flow per
    `ε`."""
    compared = _beside_solutions if asked.loss == "logistic" else _beside_path
    network = asked.model(data.X.shape[1])
    units, problem, s, lasso, gap_of = compared(data, asked, network.positive)
    describe = lambda x: _described(problem, x, units)
    shown = {
        "units": {"x": units.x, "s": units.s, "loss": units.loss},
        "nonzero_above": nonzero_above(problem) * units.x,
    }
    yield "lasso", {"s": s * units.s, **shown, **lasso, **describe(lasso["x"])}
    limit = limit_flow(network, problem, throw=False)
    part: dict[str, Any] = {"eps": 0.0, "label": "ε → 0"}
    if limit.result == RESULTS.successful:
        gap, _ = gap_of(limit.x_mean(s))
        part |= describe(limit.x_mean(s)) | {"relative_gap": gap}
        part["at_s"] = np.asarray(limit.plateau(s), float) * units.x
        ends = np.isnan(gap)
        part["separates_at"] = s[np.argmax(ends)] * units.s if ends.any() else None
    else:
        part["refused"] = str(RESULTS[limit.result])
    yield "limit", part
    for value in asked.eps:
        flow = gradient_flow(network, problem, s, eps=value)
        gap, best = gap_of(flow.x_mean)
        yield (
            "flow",
            {
                "eps": value,
                "label": f"ε = {value:g}",
                "steps": int(flow.stats["num_steps"]),
                "relative_gap": gap,
                "certified_gap": np.asarray(certificate(problem, flow) / best),
                "at_s": np.asarray(flow.x, float) * units.x,
                **describe(flow.x_mean),
            },
        )


_Gap = Callable[[jax.Array], tuple[np.ndarray, jax.Array]]  # relative, and the least objective
_Compared = tuple[Units, AbstractProblem, np.ndarray, dict[str, Any], _Gap]


def _beside_path(data: Dataset, asked: Asked, positive: bool) -> _Compared:
    """Beside the path."""
    columns = np.linalg.norm(data.X, axis=0)
    safe = np.where(columns > 0, columns, 1)
    along = (data.X / safe).T @ data.y
    units = Units(_or_one(columns), _or_one(np.abs(along)))
    if not (np.finfo(float).tiny < units.loss < np.inf and 0 < units.s < np.inf):
        raise CommandError(
            f"The loss of the target {data.target!r}, whose largest entry is "
            f"{np.max(np.abs(data.y)):.4g}, leaves the range of float64. Use other units."
        )
    correlation = columns * (along if positive else np.abs(along))
    _check_start(float(np.max(correlation)), asked, positive)
    decay = asked.weight_decay * units.s
    problem = LeastSquares(data.X / units.X, data.y / units.y, decay)
    path = lasso_path(problem, positive=positive)
    knots = np.asarray(path.knots)[: int(path.num_knots)]
    first, last = map(float, knots[[0, -1]]) if len(knots) else (np.inf, np.inf)
    s = _time_grid(first, 2 * last, asked.s_max, units)

    def gap_of(x):
        gap = suboptimality_gap(problem, x, s, path=path)
        # Of the limit on a monotone path it is rounding, of either sign.
        return np.maximum(gap.relative, 0), problem.lasso_objective(x, s) - gap.absolute

    part = {
        "x": path.x(s),
        "num_knots": len(knots),
        "knots_beyond": int(np.sum(knots > s[-1])),
        "first_knot": first * units.s,
        "last_knot": last * units.s,
        "is_monotone": bool(path.is_monotone()),
        "kkt_residual": float(jnp.max(path.kkt_residual(problem))),
    }
    return units, problem, s, part, gap_of


def _check_start(largest: float, asked: Asked, positive: bool) -> None:
    """Raise where the path is 0 for every μ, given the largest correlation."""
    if largest > asked.weight_decay:
        return
    if positive and largest <= 0:
        raise CommandError(
            "The lasso path is 0 for every μ: `usquared` represents x ≥ 0, and no column has a "
            "positive correlation with the response. Use --network uv, or the negative response."
        )
    raise CommandError(
        "The lasso path is 0 for every μ: no column correlates with the response by more than the "
        f"weight decay, {asked.weight_decay:g}; the largest correlation is {largest:.4g}. Lower "
        "--weight-decay, or look at the data."
    )


def _beside_solutions(data: Dataset, asked: Asked, positive: bool) -> _Compared:
    """Beside solutions on a grid: the path is not piecewise linear, and may have no end."""
    labels = np.unique(data.y)
    if len(labels) != 2 or tuple(labels) not in ((-1, 1), (0, 1)):
        shown = ", ".join(f"{v:g}" for v in labels[:4]) + (", ..." if len(labels) > 4 else "")
        raise CommandError(
            f"--loss logistic needs two classes in the target {data.target!r}, 1 and −1 or 1 and "
            f"0, got {shown}. Map the classes to them or to two texts, or leave --loss out."
        )
    units = Units(_or_one(np.linalg.norm(data.X, axis=0)), 1.0)
    decay = asked.weight_decay * units.s
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels 0 and 1, which are meant here
        problem = Logistic(data.X / units.X, data.y, decay)
    largest = float(jnp.max(problem.r if positive else jnp.abs(problem.r)))
    _check_start(largest / units.s, asked, positive)
    s = _time_grid(1 / (largest - decay), np.inf, asked.s_max, units)
    # Its gaps are subtracted from those of flows.
    point = lasso(problem, s, positive=positive, gap_tol=1e-12)
    gap_of = lambda x: excess(problem, x, point.x, s)

    part = {
        "x": point.x,
        "first_knot": float(s[0]) * units.s,
        "duality_gap": np.asarray(point.gap / problem.lasso_objective(point.x, s)),
    }
    return units, problem, s, part, gap_of


def _or_one(values: np.ndarray) -> float:
    largest = float(np.max(values))
    return largest if largest > 0 else 1.0


def _time_grid(first: float, last: float, s_max: float | None, units: Units) -> np.ndarray:
    """`POINTS` times, log-spaced from the first knot to `last`, at most `DECADES` decades, unless
    `s_max` says otherwise."""
    end = min(last, 10.0**DECADES * first) if s_max is None else s_max / units.s
    if end <= first:
        raise CommandError(
            f"--s-max = {s_max:g} ends before the first knot of the path, s = "
            f"{first * units.s:.4g}: everything is 0 there. Pass a larger value."
        )
    grid = np.geomspace(first, end, POINTS)
    return np.concatenate([[first], grid[1:-1], [end]])  # exact ends


def _described(problem: AbstractProblem, x: jax.Array, units: Units) -> dict[str, np.ndarray]:
    size = np.abs(np.asarray(x, float))
    number = nonzeros(problem, x).sum(axis=1)
    return {
        "x": np.asarray(x, float) * units.x,
        "loss": np.asarray(problem.loss(x), float) * units.loss,
        "norm": size.sum(axis=1) * units.x,
        "nonzeros": np.where(np.isfinite(size).all(axis=1), number, np.nan),
    }
