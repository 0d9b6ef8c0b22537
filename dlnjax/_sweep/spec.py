"""The specification of a sweep: its axes, its grid of times and its metrics.

| axis | from | cost |
|---|---|---|
| size, network | `sizes`, `networks` | one compiled program for each pair, a `Cell` |
| instance | `instances`, `key` | lanes of that program |
| weight decay | `weight_decay` | lanes |
| ε | `eps` or `log_eps`, for metrics of the flow | one pass over the lanes for each value |

Nothing here runs anything. `program.py` compiles a cell, `run.py` runs all of them into a store.
"""

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
from .._path import LassoPath
from .._problem import AbstractProblem
from .._results import result_names
from ..metrics import Metric
from ..networks import AbstractNetwork
from . import arguments as _arguments
from .identity import identity


@dataclasses.dataclass(frozen=True)
class KnotGrid:
    """Times `s` that follow the lasso path of each instance: `points` of them, in geometric
    progression from `before` times its first knot to `after` times its last one.

    A path without knots (`r = 0`, or `r ≤ 0` for `x ≥ 0`) counts as one with a knot at `1/‖r‖_∞`.

    **Arguments:** `points`, at least 2; `before` and `after`, with `0 < before ≤ 1 ≤ after`.
    **Raises:** `ValueError` or `TypeError` for others.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        path = dln.lasso_path(problem)  # knots at μ = 0.5 and 1
        dln.KnotGrid(points=4)(problem, path)  # (0.25, 0.5, 1, 2)
        ```
    """

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

    def __call__(self, problem: AbstractProblem, path: LassoPath) -> Float[Array, " S"]:
        """The times `s` for one instance, shape `(points,)`, in units of `1/(Xᵀy)`."""
        size = jnp.max(jnp.abs(problem.r))
        unit = 1 / jnp.where(size > 0, size, 1)
        knots = jnp.where(path.num_knots > 0, path.knots, unit)
        return jnp.geomspace(self.before * knots[0], self.after * knots[-1], self.points)


class Cell(NamedTuple):
    """A pair of a size and a network. Its instances share a compiled program."""

    size: int  # index into `sizes`
    network: int  # index into `networks`
    n: int
    d: int
    name: str  # of the network


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Sweep:
    """The specification of a sweep: every combination of the axes below. `run_sweep` runs it.

    Instance `i` is a function of `key`, `(n, d)` and `i` alone, so that any part of a sweep can be
    computed again anywhere.

    **Attributes:** the arguments of the constructor, normalised.

    !!! example

        ```python
        sweep = dln.Sweep(
            generator="gaussian",
            instances=1000,
            sizes=[(3, 4), (5, 8)],
            metrics=["is_monotone", "max_relative_gap"],
            eps=[1e-5, 1e-20],
        )
        sweep.log_eps, sweep.points, len(sweep.cells)  # ((-11.51…, -46.05…), 200, 2)
        ```
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
            metrics=_arguments.as_metrics(metrics),
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
            # Each instance has a grid of its own, which values at its times need beside them.
            self._set(metrics={"time": _metrics.NAMED["time"], **self.metrics})

    def _set(self, **values: Any) -> None:
        # The class is frozen: the constructor normalises by way of `object`.
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def cells(self) -> list[Cell]:
        """All pairs of a size and a network, in the order of the store."""
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
        """The names, among `dlnjax.metrics.NEEDS`, of what has to be computed for the metrics."""
        # A flow is computed at times, and times on a `KnotGrid` come from the path.
        needs = frozenset[str]().union(*(metric.needs for metric in self.metrics.values()))
        needs |= {"s"} if "flow" in needs else set()
        return needs | ({"path"} if "s" in needs and isinstance(self.s, KnotGrid) else set())

    @property
    def size_labels(self) -> list[str]:
        """`"n×d"` for each size."""
        return [f"{n}×{d}" for n, d in self.sizes]

    def network(self, cell: Cell) -> AbstractNetwork:
        """The network of a cell, at unit shape unless it was given as an object.

        **Raises:** `TypeError` for what is no network; `ValueError` if its size, or the weight
        decay, does not fit.

        !!! example

            ```python
            sweep = dln.Sweep(instances=2, sizes=[(3, 4)], metrics=["num_knots"])
            sweep.network(sweep.cells[0]).u  # (1, 1, 1, 1): a `UV` of unit shape
            ```
        """
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
                # Networks of depth D > 2 raise here, before anything is compiled.
                network.penalty(jnp.asarray(decay))
        return network

    def instance_key(self, cell: Cell, index: Array) -> Key[Array, ""]:
        """The key of instance `index`, of the key of the sweep, `n`, `d` and `index` alone.

        !!! example

            ```python
            sweep = dln.Sweep(instances=9, sizes=[(3, 4)], metrics=["num_knots"])
            key = sweep.instance_key(sweep.cells[0], jnp.asarray(7))
            X, y = sweep.generator(key, 3, 4)  # instance 7, anywhere and at any time
            ```
        """
        key = jr.fold_in(jr.fold_in(self._typed_key(), cell.n), cell.d)
        return jr.fold_in(key, index)

    def _typed_key(self) -> Key[Array, ""]:
        return jr.key(self.key) if isinstance(self.key, int) else self.key

    def describe(self) -> dict[str, Any]:
        """The specification as plain JSON values. A store keeps it, and is compared with it when a
        sweep resumes. Functions are their name, a hash of their bytecode, and all that they use:
        defaults, what a closure holds, globals, and the functions that they call.

        !!! example

            ```python
            sweep = dln.Sweep(instances=9, sizes=[(3, 4)], metrics=["num_knots"])
            sweep.describe()["sizes"]  # [[3, 4]]
            ```
        """
        # Precision and the codes of `result` are no arguments, but change what numbers mean.
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["key"] = self._typed_key()  # with the kind of generator, an option of JAX
        return {
            **{name: identity(value) for name, value in fields.items()},
            "dtype": str(jnp.result_type(float)),
            "results": result_names(),
        }
