"""Values of a specification as plain JSON, by which a sweep is compared with its store.

Resuming a sweep must not mix metrics or generators that differ. Objects have no equality that lasts
across processes, so that functions are compared by their source, arrays by their numbers or a hash,
and dataclasses by type and fields.
"""

import dataclasses
import functools as ft
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Arrays up to this many numbers are written out, so that people can read the stored specification
# and an error can show what differs; longer ones, such as data, are known by their hash. Changing
# it makes stores of earlier versions look like other sweeps.
_SHORT = 1024


def identity(value: Any) -> Any:
    """`value` as plain JSON that is equal for equal values.

    Numbers, strings and short arrays are themselves; functions are their qualified name and a hash
    of their source text; dataclasses (all modules of dlnjax and Equinox are) their type and fields.
    What a closure captured, and what a function calls, is not part of its identity.

    **Raises:** `TypeError` for other objects, of which nothing tells one from another.
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
    # Row by row: a memory map need not fit in memory.
    for part in value if value.ndim > 1 else [value]:
        digest.update(np.asarray(part).tobytes())
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest.hexdigest()}


def _of_code(value: Any) -> dict[str, str]:
    name = f"{value.__module__}.{value.__qualname__}"
    if name.startswith("dlnjax."):
        # No hash: the store records our version, and a new comment here is no other sweep.
        return {"name": name}
    try:
        source = inspect.getsource(value).encode()
    except (OSError, TypeError):
        # Typed at a prompt, a function has no source, but bytecode and names.
        code = getattr(value, "__code__", None)
        source = code.co_code + repr(code.co_names).encode() if code else b""
    return {"name": name, "source": hashlib.sha256(source).hexdigest()[:16]}
