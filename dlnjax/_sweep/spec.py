"""What a sweep computes: its axes, its grid of times and its metrics."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from .. import generators as _generators, metrics as _metrics
from .._path import PiecewiseLinearPath
from .._problem import AbstractProblem
from .._results import result_names
from ..metrics import Metric
from ..networks import AbstractNetwork
from . import arguments as _arguments
from .identity import identity


@dataclasses.dataclass(frozen=True)
class KnotGrid:
    """Times that follow the lasso path of each instance: `points` of them, geometrically from
    `before` times its first knot to `after` times its last one (a path without knots counts as
    one with a knot at `1/‖r‖_∞`)."""

    points: int = 200
    before: float = 0.5
    after: float = 2.0

    def __post_init__(self) -> None:
        if not isinstance(self.points, int) or self.points < 2:
            raise ValueError(f"A grid has at least 2 `points`, got {self.points!r}.")
        if not all(isinstance(v, int | float) for v in (self.before, self.after)):
            raise TypeError(
                f"`before` and `after` are numbers, got {self.before!r} and {self.after!r}."
            )
        if not 0 < self.before <= 1 <= self.after < math.inf:
            raise ValueError(
                "A `KnotGrid` starts before the first knot and ends after the last one, "
                f"0 < before ≤ 1 ≤ after: got before = {self.before} and after = {self.after}."
            )

    def __call__(self, problem: AbstractProblem, path: PiecewiseLinearPath) -> Float[Array, " S"]:
        """The times, shape `(points,)`."""
        size = jnp.max(jnp.abs(problem.r))
        unit = 1 / jnp.where(size > 0, size, 1)
        knots = jnp.where(path.num_knots > 0, path.knots, unit)
        return jnp.geomspace(self.before * knots[0], self.after * knots[-1], self.points)


class Cell(NamedTuple):
    """One size and one network: what shares a compiled program."""

    size: int  # index into `sizes`
    network: int  # index into `networks`
    n: int
    d: int
    name: str  # of the network


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Sweep:
    """What to compute: every combination of the axes below. `run_sweep` runs it.

    Instance `i` is a function of `key`, `(n, d)` and `i` alone.

    **Attributes:** the arguments of the constructor, normalised.
    """

    generator: Callable[..., Any] | _generators.Given
    instances: int
    sizes: tuple[tuple[int, int], ...]
    networks: dict[str, Any]
    metrics: dict[str, Metric]
    log_eps: tuple[float, ...]
    weight_decay: tuple[float, ...]
    s: np.ndarray | KnotGrid
    rtol: float | None
    atol: float | None
    max_steps: int
    key: Any

    def __init__(
        self,
        *,
        generator: Any = "gaussian",
        instances: int | None = None,
        sizes: Any = None,
        networks: Any = ("uv",),
        metrics: Any,
        eps: Sequence[float] | np.ndarray | None = None,
        log_eps: Sequence[float] | np.ndarray | None = None,
        weight_decay: Sequence[float] | np.ndarray = (0.0,),
        s: Any = KnotGrid(),  # noqa: B008
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int = 65536,
        key: Any = 0,
    ):
        """**Arguments:**

        - `generator`: a function `(key, n, d) -> (X, y)` or `-> problem`, such as those of
            `dlnjax.generators`; or the name of one of these, `"gaussian"`, `"rademacher"` or
            `"z_matrix"`, or its name and arguments, `("toeplitz", 0.5)`, `("equicorrelated",
            0.5)`, `("planted", nonzeros, noise)`; or your data, `dlnjax.generators.Given(X, y)`.
        - `instances`: how many of them. Default, for `Given`: all.
        - `sizes`: pairs `(n, d)`. Default, for `Given`: that of the data.
        - `networks`: `"uv"`, `"usquared"`, `("deep", D)`, all with unit shape; a network; or a
            function `d -> network`. A dict gives them names.
        - `metrics`: names of built-in ones (`dlnjax.metrics`), functions, or `Metric` objects. A
            dict gives them names.
        - `eps` or `log_eps`: values of `ε ∈ (0, 1)` or of its logarithm. Needed if a metric asks
            for `flow` or `log_eps`.
        - `weight_decay`: values of `λ ≥ 0`.
        - `s`: rescaled times, shape `(S,)`, the same for all; or a `KnotGrid`.
        - `rtol`, `atol`, `max_steps`: of `gradient_flow`.
        - `key`: an integer or a `jax.random.key`.

        **Raises:** `TypeError` or `ValueError` that names the argument and the fix.
        """
        self._set(
            generator=_arguments.as_generator(generator),
            networks=_arguments.named(
                networks, "networks", _arguments.as_network, _arguments.network_label
            ),
            metrics=_arguments.named(
                metrics, "metrics", _arguments.as_metric, lambda metric: metric.name
            ),
            log_eps=_arguments.as_log_eps(eps, log_eps),
            weight_decay=_arguments.as_axis(weight_decay, "weight_decay", 0.0, math.inf, "[0, ∞)"),
            s=s if isinstance(s, KnotGrid) else _arguments.as_times(s),
            rtol=_arguments.as_tolerance(rtol, "rtol"),
            atol=_arguments.as_tolerance(atol, "atol"),
            max_steps=_arguments.as_count(max_steps, "max_steps"),
            key=_arguments.as_key(key),
        )
        if isinstance(self.generator, _generators.Given):
            shape = self.generator.X.shape
            instances = len(self.generator) if instances is None else instances
            sizes = [shape[1:]] if sizes is None else sizes
            count, pairs = _arguments.as_count(instances, "instances"), _arguments.as_sizes(sizes)
            if count > len(self.generator) or pairs != (shape[1:],):
                raise ValueError(
                    f"The data has {shape[0]} instances of size {shape[1:]}, but `instances` = "
                    f"{instances} and `sizes` = {list(sizes)}. Leave both out to use all of it."
                )
        if instances is None or sizes is None:
            raise ValueError("A generator needs `instances` (a number) and `sizes`, [(n, d), …].")
        self._set(
            instances=_arguments.as_count(instances, "instances"), sizes=_arguments.as_sizes(sizes)
        )
        with_eps = [name for name, metric in self.metrics.items() if metric.has_eps]
        if with_eps and not self.log_eps:
            raise ValueError(
                f"The metric {with_eps[0]!r} depends on ε: pass `eps=[1e-5, …]`, or `log_eps`."
            )
        if isinstance(self.s, KnotGrid) and any("s" in m.dims for m in self.metrics.values()):
            # Values on a grid of their own need it.
            self._set(metrics={"time": _metrics.NAMED["time"], **self.metrics})

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def cells(self) -> list[Cell]:
        """All pairs of a size and a network."""
        return [
            Cell(i, j, n, d, name)
            for i, (n, d) in enumerate(self.sizes)
            for j, name in enumerate(self.networks)
        ]

    @property
    def points(self) -> int:
        """`S`, the number of times."""
        return self.s.points if isinstance(self.s, KnotGrid) else len(self.s)

    @property
    def needs(self) -> frozenset[str]:
        """What has to be computed for the metrics."""
        needs = frozenset[str]().union(*(metric.needs for metric in self.metrics.values()))
        needs |= {"s"} if "flow" in needs else set()
        return needs | ({"path"} if "s" in needs and isinstance(self.s, KnotGrid) else set())

    @property
    def size_labels(self) -> list[str]:
        """`"n×d"` for each size."""
        return [f"{n}×{d}" for n, d in self.sizes]

    def network(self, cell: Cell) -> AbstractNetwork:
        """The network of a cell. **Raises:** `TypeError` or `ValueError` if it does not fit."""
        name, spec = cell.name, self.networks[cell.name]
        if isinstance(spec, tuple):
            kind, *arguments = spec
            network = _arguments.NETWORKS[kind](cell.d, *arguments)
        else:
            network = spec if isinstance(spec, AbstractNetwork) else spec(cell.d)
        if not isinstance(network, AbstractNetwork):
            raise TypeError(
                f"The network {name!r} must be a network, or a function d -> network, but it "
                f"returned a {type(network).__name__}."
            )
        if (size := jax.eval_shape(lambda net: net(), network).shape) != (cell.d,):
            raise ValueError(
                f"The network {name!r} has {size[0]} coordinates, but the size "
                f"{self.size_labels[cell.size]} has {cell.d}. Pass a function d -> network."
            )
        for decay in self.weight_decay:
            if decay > 0:
                network.penalty(jnp.asarray(decay))  # raises where the network refuses it
        return network

    def instance_key(self, cell: Cell, index: Array) -> Key[Array, ""]:
        """The key of instance `index`."""
        key = jr.key(self.key) if isinstance(self.key, int) else self.key
        return jr.fold_in(jr.fold_in(jr.fold_in(key, cell.n), cell.d), index)

    def describe(self) -> dict[str, Any]:
        """The specification as plain JSON values, by which a store is compared with it: functions
        by their name and a hash of their source. With the precision in use, and the codes of
        `result`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **{name: identity(value) for name, value in fields.items()},
            "dtype": str(jnp.result_type(float)),
            "results": result_names(),
        }
