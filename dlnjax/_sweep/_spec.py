"""What a sweep computes: its axes, its grid of times and its metrics."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from .._network import UV, AbstractNetwork, Deep, USquared
from .._path import PiecewiseLinearPath
from .._problem import AbstractProblem
from .._solution import result_names
from . import _generators, _metrics
from ._identity import identity
from ._metrics import Metric

_NETWORKS: dict[str, Callable[..., AbstractNetwork]] = {
    "uv": lambda d: UV(jnp.ones(d), jnp.zeros(d)),
    "usquared": lambda d: USquared(jnp.ones(d)),
    "deep": lambda d, depth: Deep(jnp.ones(d), jnp.ones(d), depth=depth),
}
# Names of dimensions, coordinates and variables of a store.
_RESERVED = {
    *("size", "network", "instance", "weight_decay", "log_eps", "s", "coordinate", "block"),
    *("n", "d", "path_result", "limit_result", "flow_result", "block_checksum"),
}


@dataclasses.dataclass(frozen=True)
class KnotGrid:
    """Times that follow the lasso path of each instance: `points` of them, geometrically from
    `before` times its first knot to `after` times its last one (a path without knots counts as
    one with a knot at `1/‖r‖_∞`)."""

    points: int = 200
    before: float = 0.5
    after: float = 2.0

    def __post_init__(self):
        if self.points < 2:
            raise ValueError(f"A grid has at least 2 `points`, got {self.points}.")
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
            generator=_as_generator(generator),
            networks=_named(networks, "networks", _as_network, _network_label),
            metrics=_named(metrics, "metrics", _as_metric, lambda metric: metric.name),
            log_eps=_as_log_eps(eps, log_eps),
            weight_decay=_as_axis(weight_decay, "weight_decay", 0.0, math.inf, "[0, ∞)"),
            s=s if isinstance(s, KnotGrid) else _as_times(s),
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            key=_as_key(key),
        )
        if isinstance(self.generator, _generators.Given):
            shape = self.generator.X.shape
            instances = len(self.generator) if instances is None else instances
            sizes = [shape[1:]] if sizes is None else sizes
            if instances > len(self.generator) or [tuple(v) for v in sizes] != [shape[1:]]:
                raise ValueError(
                    f"The data has {shape[0]} instances of size {shape[1:]}, but `instances` = "
                    f"{instances} and `sizes` = {list(sizes)}. Leave both out to use all of it."
                )
        if instances is None or sizes is None:
            raise ValueError("A generator needs `instances` (a number) and `sizes`, [(n, d), …].")
        if not isinstance(instances, int | np.integer) or instances < 1:
            raise ValueError(f"`instances` must be a positive integer, got {instances!r}.")
        self._set(instances=int(instances), sizes=_as_sizes(sizes))
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"`{name}` must lie in (0, 1), got {value}.")
        if max_steps < 1:
            raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
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
            network = _NETWORKS[kind](cell.d, *arguments)
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


def _as_generator(value: Any) -> Any:
    if isinstance(value, str | tuple | list):
        name, *arguments = [value] if isinstance(value, str) else value
        if name not in _generators.NAMED:
            raise ValueError(
                f"There is no generator {name!r}: there are {', '.join(_generators.NAMED)}. Your "
                "own is a function (key, n, d) -> (X, y)."
            )
        return _called(_generators.NAMED[name], arguments, f"generator {name!r}")
    if isinstance(value, type) or not (callable(value) or isinstance(value, _generators.Given)):
        raise TypeError(
            f"`generator` is a name, a function (key, n, d) -> (X, y), or `generators.Given(X, y)`;"
            f" got {value!r}."
        )
    return value


def _called(make: Callable[..., Any], arguments: Sequence[Any], what: str) -> Any:
    try:
        return make(*arguments)
    except TypeError as e:
        raise TypeError(f"The {what} does not take the arguments {arguments}: {e}.") from e


def _as_network(value: Any) -> Any:
    if isinstance(value, str | tuple | list):
        name, *arguments = [value] if isinstance(value, str) else value
        if name not in _NETWORKS or len(arguments) != (name == "deep"):
            raise ValueError(
                f"There is no network {value!r}: there are 'uv', 'usquared' and ('deep', D). "
                "Others are objects, or functions d -> network."
            )
        return (name, *map(float, arguments))
    if isinstance(value, type) or not (callable(value) or isinstance(value, AbstractNetwork)):
        raise TypeError(f"A network is a name, an object or a function of d, got {value!r}.")
    return value


def _network_label(value: Any) -> str:
    if isinstance(value, tuple):
        return value[0] + "".join(f"({argument:g})" for argument in value[1:])
    if isinstance(value, AbstractNetwork):
        return type(value).__name__
    return getattr(value, "__name__", type(value).__name__)


def _as_metric(value: Any) -> Metric:
    if isinstance(value, str):
        if value not in _metrics.NAMED:
            raise ValueError(
                f"There is no metric {value!r}: there are {', '.join(_metrics.NAMED)}. Your own "
                f"are functions of some of {', '.join(_metrics.NEEDS)}."
            )
        return _metrics.NAMED[value]
    if isinstance(value, Metric):
        return value
    # A built-in function keeps its dims and units.
    known = [metric for metric in _metrics.NAMED.values() if metric.fn is value]
    return known[0] if known else Metric(value)


def _named(
    values: Any, argument: str, convert: Callable[[Any], Any], label: Callable[[Any], str]
) -> dict[str, Any]:
    """What is given as a list or a dict, by name."""
    if isinstance(values, str) or not isinstance(values, Sequence | Mapping):
        raise TypeError(f"`{argument}` is a list or a dict, got {values!r}. Use [{values!r}].")
    if isinstance(values, Mapping):
        named = {str(name): convert(value) for name, value in values.items()}
    else:
        converted = [convert(value) for value in values]
        named = {label(value): value for value in converted}
    if len(named) < len(values) or not named:
        raise ValueError(
            f"`{argument}` needs at least one entry, and different names; got {len(values)} with "
            f"the names {list(named)}. Pass a dict to choose them."
        )
    for name in named:
        if not name.strip() or "/" in name or name.startswith(("_", ".")) or name in _RESERVED:
            raise ValueError(f"`{argument}` cannot use the name {name!r}. Choose another one.")
    return named


def _as_axis(
    values: Any, name: str, low: float, high: float, interval: str, is_open: bool = False
) -> tuple[float, ...]:
    """Distinct numbers in an interval."""
    try:
        array = np.atleast_1d(np.asarray(values, np.float64))
    except (TypeError, ValueError) as e:
        raise TypeError(f"`{name}` must be a list of numbers, got {values!r}.") from e
    if array.ndim != 1 or not len(array):
        raise ValueError(f"`{name}` must be a list of at least one number, got {values!r}.")
    good = (low < array if is_open else low <= array) & (array < high)
    if not good.all():
        raise ValueError(f"`{name}` must lie in {interval}, got {float(array[~good][0])}.")
    if len(np.unique(array)) < len(array):
        raise ValueError(f"`{name}` has the same value twice: {array.tolist()}. Drop one.")
    return tuple(array.tolist())


def _as_log_eps(eps: Any, log_eps: Any) -> tuple[float, ...]:
    if eps is not None and log_eps is not None:
        raise ValueError("Pass `eps` or `log_eps`, not both.")
    if eps is not None:
        return tuple(math.log(v) for v in _as_axis(eps, "eps", 0.0, 1.0, "(0, 1)", is_open=True))
    if log_eps is not None:
        return _as_axis(log_eps, "log_eps", -math.inf, 0.0, "(−∞, 0)", is_open=True)
    return ()


def _as_times(s: Any) -> np.ndarray:
    try:
        times = np.asarray(s, np.float64)
    except (TypeError, ValueError) as e:
        raise TypeError(f"`s` is a grid of times or a `KnotGrid`, got {s!r}.") from e
    if times.ndim != 1 or not len(times):
        raise ValueError(f"`s` must have shape (S,), got {times.shape}.")
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"`s` must be finite, non-negative and increasing, got {times}.")
    return times


def _as_sizes(sizes: Any) -> tuple[tuple[int, int], ...]:
    out = []
    for size in sizes:
        good = isinstance(size, tuple | list) and len(size) == 2
        if not good or any(not isinstance(v, int | np.integer) or v < 1 for v in size):
            raise ValueError(f"`sizes` are pairs (n, d) of positive integers, got {size!r}.")
        out.append((int(size[0]), int(size[1])))
    if not out or len(set(out)) < len(out):
        raise ValueError(f"`sizes` needs at least one pair, and none twice; got {out}.")
    return tuple(out)


def _as_key(key: Any) -> Any:
    if isinstance(key, int | np.integer) and 0 <= key < 2**63:
        return int(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim == 0:
            return key
    raise TypeError(f"`key` must be an integer ≥ 0 or one `jax.random.key(…)`, got {key!r}.")
