"""What a sweep measures: plain functions whose parameter names say what they need."""

import dataclasses
import inspect
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._flow.gradient_flow import Flow
from ._gap import certificate, eta, suboptimality_gap
from ._path import LimitFlow, PiecewiseLinearPath
from ._problem import AbstractProblem

NEEDS = ("problem", "network", "log_eps", "s", "flow", "limit", "path")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function of one lane of a sweep, and what its values are.

    **Arguments:**

    - `fn`: its parameters are among `problem`, `network`, `log_eps`, `s`, `flow`, `limit` and
        `path` (others need defaults); only what some metric names is computed, and one that names
        neither `flow` nor `log_eps` has no axis of `ε`. It runs on the device, under `vmap`.
    - `dims`: the axes of what it returns: `()`, or some of `"s"` and `"coordinate"`.
    - `units`, `description`: for the labels. The description is by default the first line of the
        docstring.

    **Raises:** `TypeError` for a parameter of another name, `ValueError` for other `dims`.
    """

    fn: Callable[..., Array]
    dims: tuple[str, ...] = ()
    units: str = "1"
    description: str = ""

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"A metric is a function, got {type(self.fn).__name__}.")
        object.__setattr__(self, "dims", tuple(self.dims))
        if len(set(self.dims)) < len(self.dims) or not {*self.dims} <= {"s", "coordinate"}:
            raise ValueError(
                f"`dims` of a metric are some of 's' and 'coordinate', got {self.dims}. For a "
                "scalar leave it out."
            )
        if not self.description:
            lines = (inspect.getdoc(self.fn) or "").splitlines()
            object.__setattr__(self, "description", lines[0] if lines else "")
        if unknown := sorted(self._parameters() - {*NEEDS}):
            raise TypeError(
                f"The metric {self.name} has the parameter {unknown[0]!r}. Parameters say what a "
                f"metric needs: {', '.join(NEEDS)}. Give others a default."
            )

    def _parameters(self) -> set[str]:
        parameters = inspect.signature(self.fn).parameters.values()
        return {p.name for p in parameters if p.default is p.empty or p.name in NEEDS}

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    @property
    def needs(self) -> frozenset[str]:
        """Which of its parameters a sweep provides."""
        return frozenset(self._parameters())

    @property
    def has_eps(self) -> bool:
        """Whether it has an axis of `ε`."""
        return bool(self.needs & {"flow", "log_eps"})


def is_monotone(path: PiecewiseLinearPath) -> Array:
    """Whether the lasso path is coordinate-wise monotone (1) or not (0)."""
    return path.is_monotone()


def num_knots(path: PiecewiseLinearPath) -> Array:
    """Number of knots of the lasso path."""
    return path.num_knots


def num_jumps(limit: LimitFlow) -> Array:
    """Number of jumps of the limit process."""
    return limit.num_jumps


def time(s: Array) -> Array:
    """Rescaled training time s, and inverse regularisation μ."""
    return s


def _gap(problem: AbstractProblem, x: Array, s: Array, path: PiecewiseLinearPath):
    """The gaps, which are 0 at `s = 0`: everything minimises an infinite penalty there."""
    started = s > 0
    gap = suboptimality_gap(problem, x, jnp.where(started, s, 1), path=path)
    return jnp.where(started, gap.absolute, 0), jnp.where(started, gap.relative, 0)


def relative_gap(
    problem: AbstractProblem, flow: Flow, path: PiecewiseLinearPath
) -> Float[Array, " S"]:
    """Relative lasso gap of the averaged flow at μ = s."""
    return _gap(problem, flow.x_mean, flow.s, path)[1]


def max_relative_gap(problem: AbstractProblem, flow: Flow, path: PiecewiseLinearPath) -> Array:
    """Largest relative lasso gap of the averaged flow at μ = s, over s."""
    return jnp.max(relative_gap(problem, flow, path))


def max_gap(problem: AbstractProblem, flow: Flow, path: PiecewiseLinearPath) -> Array:
    """Largest lasso gap of the averaged flow at μ = s, over s."""
    return jnp.max(_gap(problem, flow.x_mean, flow.s, path)[0])


def max_relative_gap_of_limit(
    problem: AbstractProblem, limit: LimitFlow, s: Array, path: PiecewiseLinearPath
) -> Array:
    """Largest relative lasso gap of the averaged limit process at μ = s, over s."""
    return jnp.max(_gap(problem, limit.x_mean(s), s, path)[1])


def max_gap_of_limit(
    problem: AbstractProblem, limit: LimitFlow, s: Array, path: PiecewiseLinearPath
) -> Array:
    """Largest lasso gap of the averaged limit process at μ = s, over s."""
    return jnp.max(_gap(problem, limit.x_mean(s), s, path)[0])


def max_eta(problem: AbstractProblem, s: Array, path: PiecewiseLinearPath) -> Array:
    """Largest η(λ, s, z↓(s)) over s, which bounds the gap as ε → 0 up to a constant."""
    started = s > 0
    s = jnp.where(started, s, 1)
    value = eta(problem.weight_decay, s, path.downward_variation(s))
    return jnp.max(jnp.where(started, value, 0))


def max_distance_to_limit(flow: Flow, limit: LimitFlow) -> Array:
    """max |x̄^ε(s) − x̄⁰(s)| over s and coordinates, relative to max |x̄⁰(s)|."""
    x = limit.x_mean(flow.s)
    return jnp.max(jnp.abs(flow.x_mean - x)) / jnp.max(jnp.abs(x))


def max_certificate(problem: AbstractProblem, flow: Flow) -> Array:
    """Largest certificate (bound of the lasso gap of the averaged flow) over s > 0."""
    return jnp.max(jnp.where(flow.s > 0, certificate(problem, flow), 0))


def num_steps(flow: Flow) -> Array:
    """Steps of the integrator."""
    return jnp.asarray(flow.stats["num_steps"])


_OF_LOSS = "units of the loss"

NAMED = {
    metric.name: metric
    for metric in (
        Metric(is_monotone),
        Metric(num_knots),
        Metric(num_jumps),
        Metric(time, dims=("s",), units="1/units of Xᵀy"),
        Metric(relative_gap, dims=("s",)),
        Metric(max_relative_gap),
        Metric(max_gap, units=_OF_LOSS),
        Metric(max_relative_gap_of_limit),
        Metric(max_gap_of_limit, units=_OF_LOSS),
        Metric(max_eta),
        Metric(max_distance_to_limit),
        Metric(max_certificate, units=_OF_LOSS),
        Metric(num_steps),
    )
}
