"""What identifies a value in a specification, as plain JSON: two runs compare by it."""

import dataclasses
import functools as ft
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SHORT = 1024  # numbers that are written out; longer arrays are known by their hash


def identity(value: Any) -> Any:
    """Numbers, strings and short arrays are themselves; functions are their qualified name and a
    hash of their source; dataclasses (all modules of dlnjax and Equinox are) their type and fields.

    **Raises:** `TypeError` for other objects, which nothing distinguishes.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        impl = str(jax.random.key_impl(value))
        return {"key": np.asarray(jax.random.key_data(value)).tolist(), "impl": impl}
    if isinstance(value, np.ndarray | jax.Array):
        return _of_array(np.asanyarray(value))
    if isinstance(value, Mapping):
        return {str(k): identity(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [identity(v) for v in value]
    if isinstance(value, ft.partial):
        return {"partial": identity(value.func), "args": identity([value.args, value.keywords])}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: identity(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {**_of_code(type(value)), **fields}
    if inspect.isfunction(value) or inspect.isclass(value):
        return _of_code(value)
    if inspect.isroutine(value):
        return {"name": value.__qualname__, "module": value.__module__}
    raise TypeError(
        f"A sweep is compared with its store by what it is made of, but nothing tells one "
        f"{type(value).__name__} from another. Make it a function or a dataclass."
    )


def _of_array(value: np.ndarray) -> Any:
    if value.size <= _SHORT:
        return value.tolist()
    digest = hashlib.sha256()
    for part in value if value.ndim > 1 else [value]:  # a memory map need not fit in memory
        digest.update(np.asarray(part).tobytes())
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest.hexdigest()}


def _of_code(value: Any) -> dict[str, str]:
    name = f"{value.__module__}.{value.__qualname__}"
    if name.startswith("dlnjax."):
        return {"name": name}  # the store records our version
    try:
        source = inspect.getsource(value).encode()
    except (OSError, TypeError):  # typed at a prompt
        code = getattr(value, "__code__", None)
        source = code.co_code + repr(code.co_names).encode() if code else b""
    return {"name": name, "source": hashlib.sha256(source).hexdigest()[:16]}
