"""The metrics of a sweep: plain functions whose parameter names say what has to be computed.

| parameter | is | computed by |
|---|---|---|
| `problem`, `network` | those of the lane | |
| `log_eps` | `log ε`, a scalar | |
| `s` | the times, shape `(S,)` | |
| `path` | the lasso path | `lasso_path` |
| `limit` | the limit process | `limit_flow` |
| `flow` | the flow at `s` | `gradient_flow` |

The first line of a metric's docstring is its description in the store and in plots.
"""

import dataclasses
import inspect
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._flow.gradient_flow import Flow
from ._gap import certificate, eta, suboptimality_gap
from ._path import LassoPath, LimitFlow
from ._problem import AbstractProblem

NEEDS = ("problem", "network", "log_eps", "s", "flow", "limit", "path")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function that a sweep evaluates on each lane, with the axes and units of its values.

    **Arguments:**

    - `fn`: a function whose parameters are among `problem`, `network`, `log_eps`, `s`, `flow`,
        `limit` and `path`; others need defaults. A sweep computes only what some metric names. A
        metric that names neither `flow` nor `log_eps` has no axis of `ε`. It runs on the device,
        under `vmap`, and returns an array.
    - `dims`: the axes of the value: `()`, or some of `"s"`, of length `S`, and `"coordinate"`, of
        length `d`.
    - `units`, `description`: for labels. Default description: the first line of the docstring.

    **Raises:** `TypeError` for a parameter of another name, or an `fn` that is no function;
    `ValueError` for other `dims`.

    !!! example

        ```python
        def sparsity(path):
            return jnp.sum(path.x(jnp.inf) != 0)


        metric = dln.Metric(sparsity, description="non-zeros at the end of the lasso path")
        metric.name, metric.needs, metric.has_eps  # ("sparsity", {"path"}, False)
        dln.Metric(lambda flow: flow.x, dims=("s", "coordinate")).has_eps  # True
        ```
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
        """The name of the function, under which its values are stored unless a dict names them."""
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    @property
    def needs(self) -> frozenset[str]:
        """The names of its parameters that a sweep provides, a subset of `NEEDS`."""
        return frozenset(self._parameters())

    @property
    def has_eps(self) -> bool:
        """Whether its values have an axis of `ε`: it needs `flow` or `log_eps`."""
        return bool(self.needs & {"flow", "log_eps"})


def is_monotone(path: LassoPath) -> Array:
    """Whether the lasso path is coordinate-wise monotone (1) or not (0).

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        dln.metrics.is_monotone(dln.lasso_path(problem))  # True: orthogonal columns
        ```
    """
    return path.is_monotone()


def num_knots(path: LassoPath) -> Array:
    """Number of knots of the lasso path.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        dln.metrics.num_knots(dln.lasso_path(problem))  # 2
        ```
    """
    return path.num_knots


def num_jumps(limit: LimitFlow) -> Array:
    """Number of jumps of the limit process.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
        dln.metrics.num_jumps(limit)  # 2
        ```
    """
    return limit.num_jumps


def time(s: Array) -> Array:
    """Rescaled training time s, and inverse regularisation μ.

    !!! example

        ```python
        dln.metrics.time(jnp.array([1.0, 2.0]))  # (1, 2): the `s` of each instance, to store it
        ```
    """
    return s


def _largest(values: Array) -> Array:
    """The largest one, NaN if one is. XLA's maximum may drop a NaN where it is vectorised."""
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, jnp.max(values))


def _gap(problem: AbstractProblem, x: Array, s: Array, path: LassoPath):
    """The absolute and the relative lasso gap of `x` at `μ = s`, shape `(S,)`; 0 at `s = 0`."""
    # At s = 0 the penalty κ = 1/s is infinite: compute at s = 1 and replace, as NaN and its
    # derivatives must not enter.
    started = s > 0
    gap = suboptimality_gap(problem, x, jnp.where(started, s, 1), path=path)
    return jnp.where(started, gap.absolute, 0), jnp.where(started, gap.relative, 0)


def relative_gap(problem: AbstractProblem, flow: Flow, path: LassoPath) -> Float[Array, " S"]:
    """Relative lasso gap of the averaged flow at μ = s.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        path = dln.lasso_path(problem)
        flow = dln.gradient_flow(network, problem, s, eps=1e-5)
        dln.metrics.relative_gap(problem, flow, path)  # (0.0082, 0.0047)
        ```
    """
    return _gap(problem, flow.x_mean, flow.s, path)[1]


def max_relative_gap(problem: AbstractProblem, flow: Flow, path: LassoPath) -> Array:
    """Largest relative lasso gap of the averaged flow at μ = s, over s.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        path = dln.lasso_path(problem)
        flow = dln.gradient_flow(network, problem, s, eps=1e-5)
        dln.metrics.max_relative_gap(problem, flow, path)  # 0.0082
        ```
    """
    return _largest(relative_gap(problem, flow, path))


def max_gap(problem: AbstractProblem, flow: Flow, path: LassoPath) -> Array:
    """Largest lasso gap of the averaged flow at μ = s, over s.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        path = dln.lasso_path(problem)
        flow = dln.gradient_flow(network, problem, s, eps=1e-5)
        dln.metrics.max_gap(problem, flow, path)  # 0.0165, in units of the loss
        ```
    """
    return _largest(_gap(problem, flow.x_mean, flow.s, path)[0])


def max_relative_gap_of_limit(
    problem: AbstractProblem, limit: LimitFlow, s: Array, path: LassoPath
) -> Array:
    """Largest relative lasso gap of the averaged limit process at μ = s, over s.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        path = dln.lasso_path(problem)
        limit = dln.limit_flow(network, problem)
        dln.metrics.max_relative_gap_of_limit(problem, limit, s, path)  # 0: a monotone path
        ```
    """
    return _largest(_gap(problem, limit.x_mean(s), s, path)[1])


def max_gap_of_limit(
    problem: AbstractProblem, limit: LimitFlow, s: Array, path: LassoPath
) -> Array:
    """Largest lasso gap of the averaged limit process at μ = s, over s.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        path = dln.lasso_path(problem)
        limit = dln.limit_flow(network, problem)
        dln.metrics.max_gap_of_limit(problem, limit, s, path)  # 0: a monotone path
        ```
    """
    return _largest(_gap(problem, limit.x_mean(s), s, path)[0])


def max_eta(problem: AbstractProblem, s: Array, path: LassoPath) -> Array:
    """Largest η(λ, s, z↓(s)) over s, which bounds the gap as ε → 0 up to a constant.

    !!! example

        ```python
        X, y = jnp.array([[1.0, 0.5, 0.7, 0.0], [0.5, 1.0, 0.1, 0.7]]), jnp.array([1.0, 0.0])
        problem, s = dln.LeastSquares(X, y), jnp.array([2.0, 5.0])
        path = dln.lasso_path(problem)
        dln.metrics.max_eta(problem, s, path)  # 0.385
        ```
    """
    started = s > 0
    s = jnp.where(started, s, 1)
    value = eta(problem.weight_decay, s, path.downward_variation(s))
    return _largest(jnp.where(started, value, 0))


def max_distance_to_limit(flow: Flow, limit: LimitFlow) -> Array:
    """max |x̄^ε(s) − x̄⁰(s)| over s and coordinates, relative to max |x̄⁰(s)|.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        flow = dln.gradient_flow(network, problem, s, eps=1e-5)
        limit = dln.limit_flow(network, problem)
        dln.metrics.max_distance_to_limit(flow, limit)  # 0.120, of order 1/log(1/ε)
        ```
    """
    x = limit.x_mean(flow.s)
    return _largest(jnp.abs(flow.x_mean - x)) / _largest(jnp.abs(x))


def max_certificate(problem: AbstractProblem, flow: Flow) -> Array:
    """Largest certificate (bound of the lasso gap of the averaged flow) over s > 0.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        flow = dln.gradient_flow(network, problem, s, eps=1e-5)
        dln.metrics.max_certificate(problem, flow)  # 0.0308, above the gap 0.0165
        ```
    """
    return _largest(jnp.where(flow.s > 0, certificate(problem, flow), 0))


def num_steps(flow: Flow) -> Array:
    """Steps of the integrator.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 2.0])
        flow = dln.gradient_flow(network, problem, s, eps=1e-5)
        dln.metrics.num_steps(flow) > 0  # True
        ```
    """
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
