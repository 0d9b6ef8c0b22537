"""The arguments of a sweep: from what users write to one form, or an error that says how to fix it.

Nothing here touches a device.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import generators as _generators, metrics as _metrics
from ..metrics import Metric
from ..networks import UV, AbstractNetwork, Deep, USquared

NETWORKS: dict[str, Callable[..., AbstractNetwork]] = {
    "uv": lambda d: UV(jnp.ones(d), jnp.zeros(d)),
    "usquared": lambda d: USquared(jnp.ones(d)),
    "deep": lambda d, depth: Deep(jnp.ones(d), jnp.ones(d), depth=depth),
}
# Names of dimensions, coordinates and variables of a store.
RESERVED = {
    *("size", "network", "instance", "weight_decay", "log_eps", "s", "coordinate", "block"),
    *("n", "d", "eps", "time", "computed", "block_done", "block_made_by"),
}


def as_generator(value: Any) -> Any:
    if isinstance(value, str | tuple | list):
        name, *arguments = [value] if isinstance(value, str) else value or [""]
        if name not in _generators.NAMED:
            raise ValueError(
                f"There is no generator {name!r}: there are {', '.join(_generators.NAMED)}. Your "
                "own is a function (key, n, d) -> (X, y)."
            )
        return called(_generators.NAMED[name], arguments, f"generator {name!r}")
    if isinstance(value, type) or not (callable(value) or isinstance(value, _generators.Given)):
        raise TypeError(
            f"`generator` is a name, a function (key, n, d) -> (X, y), or `generators.Given(X, y)`;"
            f" got {value!r}."
        )
    return value


def called(make: Callable[..., Any], arguments: Sequence[Any], what: str) -> Any:
    try:
        return make(*arguments)
    except TypeError as e:
        raise TypeError(f"The {what} does not take the arguments {arguments}: {e}.") from e


def as_network(value: Any) -> Any:
    if isinstance(value, str | tuple | list):
        name, *arguments = [value] if isinstance(value, str) else value or [""]
        numbers = all(isinstance(argument, int | float) for argument in arguments)
        if name not in NETWORKS or len(arguments) != (name == "deep") or not numbers:
            raise ValueError(
                f"There is no network {value!r}: there are 'uv', 'usquared' and ('deep', D). "
                "Others are objects, or functions d -> network."
            )
        return (name, *map(float, arguments))
    if isinstance(value, type) or not (callable(value) or isinstance(value, AbstractNetwork)):
        raise TypeError(f"A network is a name, an object or a function of d, got {value!r}.")
    return value


def network_label(value: Any) -> str:
    if isinstance(value, tuple):
        return value[0] + "".join(f"({argument:g})" for argument in value[1:])
    if isinstance(value, AbstractNetwork):
        return type(value).__name__
    return getattr(value, "__name__", type(value).__name__)


def as_metric(value: Any) -> Metric:
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


def named(
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
    return named


def as_metrics(values: Any) -> dict[str, Metric]:
    """Metrics by their names, which are variables of the store and files."""
    metrics = named(values, "metrics", as_metric, lambda metric: metric.name)
    folded = Counter(name.casefold() for name in metrics)
    for name, metric in metrics.items():
        if metric == _metrics.NAMED.get(name) == _metrics.NAMED["time"]:
            continue  # it may be asked for: it is what the coordinate holds
        good = name.isidentifier() and name.isascii() and not name.startswith("_")
        if not good or len(name) > 100:
            fix = "letters, digits and underscores, beginning with a letter, at most 100"
        elif name in RESERVED or name.endswith("_result"):
            fix = "another one: the store has that name itself, or names in `_result`"
        elif folded[name.casefold()] > 1:
            fix = "names that differ in more than case, since some file systems ignore it"
        else:
            continue
        raise ValueError(
            f"`metrics` cannot use the name {name!r}. Choose {fix}. A dict gives names, "
            f"`metrics={{'my_name': …}}`."
        )
    return metrics


def as_axis(
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


def as_log_eps(eps: Any, log_eps: Any) -> tuple[float, ...]:
    if eps is not None and log_eps is not None:
        raise ValueError("Pass `eps` or `log_eps`, not both.")
    if eps is not None:
        return tuple(math.log(v) for v in as_axis(eps, "eps", 0.0, 1.0, "(0, 1)", is_open=True))
    if log_eps is not None:
        return as_axis(log_eps, "log_eps", -math.inf, 0.0, "(−∞, 0)", is_open=True)
    return ()


def as_times(s: Any) -> np.ndarray:
    try:
        times = np.asarray(s, np.float64)
    except (TypeError, ValueError) as e:
        raise TypeError(f"`s` is a grid of times or a `KnotGrid`, got {s!r}.") from e
    if times.ndim != 1 or not len(times):
        raise ValueError(f"`s` must have shape (S,), got {times.shape}.")
    if not np.isfinite(times).all() or times[0] < 0 or (np.diff(times) <= 0).any():
        raise ValueError(f"`s` must be finite, non-negative and increasing, got {times}.")
    return times


def as_sizes(sizes: Any) -> tuple[tuple[int, int], ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"`sizes` is a list of pairs (n, d), got {sizes!r}.")
    out = []
    for size in sizes:
        good = isinstance(size, tuple | list) and len(size) == 2
        if not good or any(not isinstance(v, int | np.integer) or v < 1 for v in size):
            raise ValueError(f"`sizes` are pairs (n, d) of positive integers, got {size!r}.")
        out.append((int(size[0]), int(size[1])))
    if not out or len(set(out)) < len(out):
        raise ValueError(f"`sizes` needs at least one pair, and none twice; got {out}.")
    return tuple(out)


def as_count(value: Any, name: str) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    return int(value)


def as_tolerance(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float | np.number):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not 0 < value < 1:
        raise ValueError(f"`{name}` must lie in (0, 1), got {value}.")
    return float(value)


def as_key(key: Any) -> Any:
    if isinstance(key, int | np.integer) and 0 <= key < 2**63:
        return int(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim == 0:
            return key
    raise TypeError(f"`key` must be an integer ≥ 0 or one `jax.random.key(…)`, got {key!r}.")
