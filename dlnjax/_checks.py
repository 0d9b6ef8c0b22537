"""Checks of user input: shapes and dtypes always, values when they are concrete.

`as_…` functions convert an argument and raise a `ValueError` or `TypeError` that names it, its
value and the fix; `check_…` functions only raise. Their counterparts `is_…` make the same test of
traced values, which cannot raise: they return a Boolean array, from which solvers make a `RESULTS`.
"""

import contextlib
import functools
import math
import operator
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike


def is_concrete(*arrays: ArrayLike) -> bool:
    """Whether the values are known, i.e. are not traced by `jit`, `vmap` or `grad`."""
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def eager_if_known(*arrays: ArrayLike) -> contextlib.AbstractContextManager[Any]:
    """A context in which results of known arrays stay known under `jit`, so that bad values raise
    at once."""
    return jax.ensure_compile_time_eval() if is_concrete(*arrays) else contextlib.nullcontext()


def as_float(
    value: ArrayLike | Sequence[ArrayLike], name: str, like: jnp.dtype | None = None
) -> Array:
    """`value` as a real floating-point array, of dtype `like` if given."""
    try:
        array = jnp.asarray(_columns(value) if _is_table(value) else value)
    except (TypeError, ValueError) as e:
        raise TypeError(f"`{name}` must be an array of numbers, got {_not_numbers(value)}.") from e
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got dtype {array.dtype}. Pass its real part.")
    if like is None:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            like = jnp.result_type(float)
        else:
            like = _common_dtype(array.dtype, jnp.dtype(jnp.float32))
            if like == jnp.float32 and (_is_table(value) or _dtype(value) == np.float64):
                _warn_of_float32()
    return array.astype(like)


@functools.cache  # once a process: Python's own memory of warnings is cleared by others
def _warn_of_float32() -> None:
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(
        "Arrays of float64 become float32, of 7 digits, in which JAX computes by default. For "
        'float64, call jax.config.update("jax_enable_x64", True) before anything else; if float32 '
        "is meant, pass arrays of it.",
        UserWarning,
        stacklevel=level,
    )


_INSIDE = ("dlnjax", "equinox", "jax", "jaxtyping", "beartype")  # no lines of the user's


def _is_table(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "dtypes")


def _columns(table: Any) -> np.ndarray:
    """One column after the other: numbers beside Booleans would be objects to NumPy, and missing
    integers no numbers."""
    columns = [table[name] for name in table.columns]
    if not all(map(_holds_numbers, columns)):
        raise TypeError
    return np.stack([np.asarray(column, float) for column in columns], axis=1)


def _dtype(value: Any) -> Any:
    return getattr(value, "dtype", None)


def _not_numbers(value: Any) -> str:
    """What `value` is, with the first columns or entry that are no numbers."""
    kind = type(value).__name__
    if _is_table(value):
        bad = [f"{c!r} ({value[c].dtype})" for c in value.columns if not _holds_numbers(value[c])]
        shown = ", ".join(bad[:5]) + (", …" if len(bad) > 5 else "")
        return f"a {kind} in which columns hold others: {shown}. Encode or drop them"
    if _dtype(value) is not None:
        for place, entry in np.ndenumerate(np.asarray(value)):
            if not isinstance(entry, int | float | np.number | np.bool_):
                where = ", ".join(map(str, place))
                return f"a {kind} of dtype {value.dtype} with {str(entry)[:40]!r} at [{where}]"
        return f"a {kind} of dtype {value.dtype}. Convert it: `.astype(float)`"
    return kind + (" that makes none" if isinstance(value, list | tuple) else "")


def _holds_numbers(column: Any) -> bool:
    try:
        np.asarray(column, float)
    except (TypeError, ValueError):
        return False
    return not str(column.dtype).startswith(("datetime", "timedelta"))


def _common_dtype(*dtypes) -> jnp.dtype:
    # Users may mix dtypes, also where JAX's promotion is set to strict (as in our tests).
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def to_common_dtype(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, converted to the widest of their dtypes."""
    dtype = _common_dtype(*(a.dtype for a in arrays))
    return tuple(a.astype(dtype) for a in arrays)


def check_finite(array: Array, name: str) -> None:
    """Raise a `ValueError` for NaN or inf, which names the first such entry."""
    if not is_concrete(array):
        return
    bad = np.argwhere(~np.isfinite(np.asarray(array)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        entry = f"{name}[{', '.join(map(str, where))}]" if where else name
        raise ValueError(
            f"`{entry}` is {float(np.asarray(array)[where])}, and {len(bad)} of {array.size} "
            f"entries of `{name}` are not finite. Remove or impute them first."
        )


def check_scalar(value: Array, name: str) -> None:
    """Raise a `ValueError` for anything but a scalar; for batches it names `vmap`."""
    if value.ndim != 0:
        raise ValueError(
            f"`{name}` must be a scalar, got shape {value.shape}. Use `jax.vmap` over "
            f"`{name}` for several values."
        )


def check_nonempty(array: Array, name: str) -> None:
    """Raise a `ValueError` if an axis is empty."""
    if 0 in array.shape:
        raise ValueError(
            f"`{name}` has an empty axis: its shape is {array.shape}. Every axis needs at "
            "least one entry."
        )


def as_whole(value: Any, name: str) -> int:
    """`value` as a Python integer. Integers of NumPy and JAX are accepted, Booleans are not."""
    error = TypeError(f"`{name}` must be a whole number, got {value!r}.")
    if isinstance(value, bool | np.bool_):
        raise error
    try:
        return operator.index(value)
    except TypeError:  # its message does not name the argument
        raise error from None


def as_count(value: Any, name: str) -> int:
    """`value` as a Python integer of at least 1."""
    count = as_whole(value, name)
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}.")
    return count


def as_flag(value: Any, name: str) -> bool:
    """`value` as a Python bool. Other values that count as true raise a `TypeError`."""
    # A flag decides which program is compiled, so that it must be known. A truthy value is often an
    # argument in the wrong place.
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {value!r}.")
    return bool(value)


def check_type(value: Any, name: str, kind: type | tuple[type, ...], what: str) -> None:
    """Raise a `TypeError` for an argument that is not a `kind`, for instance in the wrong order."""
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"`{name}` must be {what}, got {given}.")


def as_tolerance(value: ArrayLike, name: str, dtype) -> Array:
    """A tolerance as a positive finite scalar array."""
    # An array, so that another value does not compile again.
    array = as_float(value, name, dtype)
    check_scalar(array, name)
    if is_concrete(array) and not 0 < float(array) < math.inf:
        raise ValueError(
            f"`{name}` must be positive and finite, got {float(array)}. Leave it out for the "
            "default."
        )
    return array


def is_tolerance(value: Array) -> Array:
    """Whether a traced value is one that `as_tolerance` accepts."""
    return (value > 0) & jnp.isfinite(value)


def as_parameter(value: ArrayLike, name: str, dtype) -> Array:
    """Parameters `≥ 0` of a path, an array of any shape. NaN is allowed, and gives NaN."""
    array = as_float(value, name, dtype)
    if is_concrete(array):
        least = np.min(np.asarray(array), initial=0, where=~np.isnan(np.asarray(array)))
        if least < 0:
            raise ValueError(f"`{name}` must be non-negative, got {float(least)}.")
    return array


def leading_axes(x: Array, value: Array, name: str) -> tuple[int, ...]:
    """The axes of `x (..., d)` but the last, broadcast against those of `value`.

    **Raises:** `ValueError` if they do not broadcast."""
    try:
        return jnp.broadcast_shapes(x.shape[:-1], value.shape)
    except ValueError as e:
        raise ValueError(
            f"`{name}` of shape {value.shape} does not broadcast against the leading axes "
            f"{x.shape[:-1]} of `x`. One value serves all points; a grid needs one point each."
        ) from e


def as_log_eps(eps: ArrayLike | None, log_eps: ArrayLike | None, dtype) -> Array:
    """`log ε`, given exactly one of `eps` and `log_eps`."""
    if (eps is None) == (log_eps is None):
        given = "neither" if eps is None else "both"
        raise ValueError(
            f"Pass exactly one of `eps` and `log_eps`, got {given}. "
            "For example `eps=1e-5`, or `log_eps=-700.0` where ε would underflow."
        )
    if eps is not None:
        value = as_float(eps, "eps", dtype)
        check_scalar(value, "eps")
        if is_concrete(eps) and not 0 < float(np.asarray(eps)) < 1:
            value = float(np.asarray(eps))
            fix = (
                "For ε → 0 there are `limit_flow` and `limit_point`; for an ε too small for its "
                "dtype, `log_eps=...`."
                if value == 0
                else "Put a larger initialisation into the shape of the network."
            )
            raise ValueError(f"`eps` must lie in (0, 1), got {value}. {fix}")
        # The logarithm in float64, before the cast: a Python 1e-100 would underflow in float32.
        return (
            jnp.asarray(float(np.log(np.asarray(eps, np.float64))), dtype)
            if is_concrete(eps)
            else jnp.log(value)
        )
    assert log_eps is not None
    value = as_float(log_eps, "log_eps", dtype)
    check_scalar(value, "log_eps")
    if is_concrete(value) and not -np.inf < float(value) < 0:
        raise ValueError(
            f"`log_eps` must be finite and negative (ε < 1), got {float(value)}. For ε = "
            "1e-5 pass `log_eps=math.log(1e-5)` or `eps=1e-5`."
        )
    return value


def is_log_eps(value: Array) -> Array:
    """Whether a traced value is one that `as_log_eps` accepts."""
    return (value < 0) & jnp.isfinite(value)


def as_positive(value: ArrayLike, name: str, dtype) -> Array:
    """`value` as an array of positive numbers, `inf` included."""
    array = as_float(value, name, dtype)
    if is_concrete(array):
        v = np.asarray(array)
        bad = np.argwhere(~(v > 0))
        if len(bad):
            raise ValueError(
                f"`{name}` must be positive, got {float(v[tuple(bad[0])])}. Start the grid above 0."
            )
    return array


def as_weights(value: ArrayLike | None, d: int, dtype) -> Array:
    """Lasso weights `ω`, shape `(2, d)`: one row for positive entries of `x`, one for negative."""
    if value is None:
        return jnp.ones((2, d), dtype)
    weights = as_float(value, "weights", dtype)
    if weights.shape not in ((d,), (2, d)):
        raise ValueError(f"`weights` must have shape ({d},) or (2, {d}), got {weights.shape}.")
    if is_concrete(weights):
        v = np.asarray(weights)
        bad = np.argwhere(~(v >= 0))
        if len(bad):
            raise ValueError(
                f"`weights` must not be negative, got {float(v[tuple(bad[0])])}. 0 leaves a "
                "coordinate unpenalised, `inf` keeps it at 0."
            )
    return jnp.broadcast_to(weights if weights.ndim == 2 else weights[None, :], (2, d))


def is_weights(value: Array) -> Array:
    """Whether traced weights are some that `as_weights` accepts."""
    return jnp.all(value >= 0)


def may_be_zero(weights: ArrayLike | None) -> bool:
    """Whether some weight is, or if traced may be, 0: unpenalised coordinates need more code."""
    if weights is None:
        return False
    return not (is_concrete(weights) and bool(np.all(np.asarray(weights) > 0)))


def as_probabilities(probabilities: ArrayLike | Sequence[float] | None, num_edges: int) -> Array:
    """Probabilities of the edges of a graph, shape `(E,)`, equal by default."""
    if probabilities is None:
        return jnp.full(num_edges, 1 / num_edges, jnp.result_type(float))
    with eager_if_known(*jax.tree.leaves(probabilities)):
        p = as_float(probabilities, "probabilities")
    if p.shape != (num_edges,):
        raise ValueError(
            f"`probabilities` must have one entry for each of the {num_edges} edges, got shape "
            f"{p.shape}. Use `jax.vmap` over several sets of them."
        )
    check_finite(p, "probabilities")
    with eager_if_known(p):
        if is_concrete(p) and not bool(are_probabilities(p)):
            raise ValueError(
                "`probabilities` must not be negative and sum to 1, got a least one of "
                f"{float(jnp.min(p))} and the sum {float(jnp.sum(p))}. Divide them by their sum."
            )
    return p


def are_probabilities(p: Array) -> Array:
    """Whether traced probabilities are some that `as_probabilities` accepts."""
    # Half of the digits: a sum over 10⁶ edges in float32 rounds at the fourth digit.
    return jnp.all(p >= 0) & (jnp.abs(jnp.sum(p) - 1) <= float(jnp.finfo(p.dtype).eps) ** 0.5)


def check_key(key: Any, what: str) -> None:
    """Raise unless `key`, which `what` needs, is one `jax.random.key`, or one of the older kind."""
    if key is None:
        raise ValueError(f"`{what}` needs randomness: pass `key=jax.random.key(0)`.")
    dtype = getattr(key, "dtype", None)
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not is_typed and dtype != np.uint32:
        raise TypeError(f"`key` must be a key, got {key!r}. Pass `key=jax.random.key(0)`.")
    if key.ndim != (0 if is_typed else 1):
        raise ValueError(
            f"`key` must be one key, got a batch of shape {key.shape}. Use `jax.vmap` over it."
        )
