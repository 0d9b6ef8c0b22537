"""Values of a specification as plain JSON, by which a sweep is compared with its store.

Resuming a sweep must not mix metrics or generators that differ. Objects have no equality that lasts
across processes, so that functions are compared by what they run, arrays by their numbers or a
hash, and dataclasses by type and fields.
"""

import dataclasses
import dis
import enum
import functools as ft
import hashlib
import inspect
import json
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Arrays up to this many numbers are written out, so that people can read the stored specification
# and an error can show what differs; longer ones, such as data, are known by their hash. Changing
# it makes stores of earlier versions look like other sweeps.
_SHORT = 1024
_INSTALLED = [
    Path(path).resolve()
    for name, path in sysconfig.get_paths().items()
    if name in ("stdlib", "platstdlib", "purelib", "platlib")
]


def identity(value: Any) -> Any:
    """`value` as plain JSON that is equal for equal values.

    Numbers, strings and short arrays are themselves; dataclasses (all modules of dlnjax and Equinox
    are) are their type and fields. Functions are their qualified name, a hash of their bytecode
    and constants (comments and formatting are none of it; another minor version of Python is), and
    the identity of all that they use: defaults, what a closure captured, and the globals that they
    name, helper functions and constants alike. Of installed packages, only names count: a store
    keeps versions too.

    **Raises:** `TypeError` for other objects, of which nothing tells one from another.
    """
    return _identity(value, ())


def _identity(value: Any, within: tuple[int, ...]) -> Any:
    # `within` are the functions and classes that led here, which may refer to each other.
    of = ft.partial(_identity, within=within)
    if isinstance(value, enum.Enum | bytes | complex | slice | range | types.EllipsisType):
        return repr(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value if value == value else "nan"  # which would differ from itself
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        impl = str(jax.random.key_impl(value))
        return {"key": np.asarray(jax.random.key_data(value)).tolist(), "impl": impl}
    if isinstance(value, np.ndarray | jax.Array):
        return _of_array(np.asanyarray(value))
    if isinstance(value, Mapping):
        return {str(k): of(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [of(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((of(v) for v in value), key=json.dumps)
    if isinstance(value, ft.partial):
        return {"partial": of(value.func), "args": of([value.args, value.keywords])}
    if isinstance(value, types.MethodType):
        return {"method": of(value.__func__), "of": of(value.__self__)}
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: of(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {**of(type(value)), "fields": fields}
    if inspect.isclass(value):
        return _of_class(value, within)
    if inspect.isfunction(value):
        return _of_function(value, within)
    if hasattr(value, "__wrapped__"):  # by `jax.jit` and others
        return {"name": type(value).__name__, "wraps": of(value.__wrapped__)}
    if inspect.isroutine(value) or (callable(value) and is_installed(type(value).__module__)):
        # Of an installed package, such as a ufunc.
        return {"name": getattr(value, "__name__", None) or repr(value)}
    raise TypeError(
        f"A sweep is compared with its store by what it is made of, but nothing tells one "
        f"{type(value).__name__} from another. Make it a function or a dataclass."
    )


def _of_array(value: np.ndarray) -> Any:
    if value.size <= _SHORT and not (value != value).any():
        return value.tolist()
    digest = hashlib.sha256()
    # Row by row: a memory map need not fit in memory.
    for part in value if value.ndim > 1 else [value]:
        digest.update(np.asarray(part).tobytes())
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest.hexdigest()}


def _of_class(value: type, within: tuple[int, ...]) -> dict[str, Any]:
    name = {"name": f"{value.__module__}.{value.__qualname__}"}
    if id(value) in within or is_installed(value.__module__):
        return name
    within = (*within, id(value))
    parts = {}
    for key, part in vars(value).items():
        part = getattr(part, "__func__", getattr(part, "fget", part))  # static methods, properties
        part = inspect.unwrap(part) if callable(part) else part
        if inspect.isfunction(part) and part.__module__ == value.__module__:
            parts[key] = _of_function(part, within)
    bases = [_of_class(base, within) for base in value.__bases__]
    return {**name, "bases": bases, "parts": parts}


def _of_function(value: types.FunctionType, within: tuple[int, ...]) -> dict[str, Any]:
    name = {"name": f"{value.__module__}.{value.__qualname__}"}
    if id(value) in within or is_installed(value.__module__):
        return name
    within = (*within, id(value))
    uses = _names(value.__code__)
    used = {
        "defaults": [value.__defaults__, value.__kwdefaults__],
        "closure": {
            name: _contents(cell)
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        },
        "globals": {
            name: _of_module(found, uses, within)
            if isinstance(found := value.__globals__[name], types.ModuleType)
            else found
            for name in sorted(_globals(value.__code__) & value.__globals__.keys())
        },
    }
    code = hashlib.sha256(repr(_of_code(value.__code__)).encode()).hexdigest()[:16]
    kept = {key: found for key, found in used.items() if found and found != [None, None]}
    try:
        return {**name, "code": code, **_identity(kept, within)}
    except TypeError as e:
        raise TypeError(f"{e} It is used by {name['name']}.") from None


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _of_module(module: types.ModuleType, uses: set[str], within: tuple[int, ...]) -> Any:
    """A module of the user's is what is used of it."""
    if is_installed(module.__name__) or id(module) in within:
        return module
    within = (*within, id(module))
    return {
        name: _of_module(found, uses, within)
        if isinstance(found := getattr(module, name), types.ModuleType)
        else found
        for name in sorted(uses & vars(module).keys())
    }


def _of_code(code: types.CodeType) -> list[Any]:
    constants = [
        _of_code(c)
        if isinstance(c, types.CodeType)
        else sorted(map(repr, c))
        if isinstance(c, frozenset)
        else repr(c)
        for c in code.co_consts
    ]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_exceptiontable]
    return [code.co_code, constants, names]


def _nested(code: types.CodeType) -> list[types.CodeType]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [code, *(deeper for one in inner for deeper in _nested(one))]


def _names(code: types.CodeType) -> set[str]:
    """All names of globals and attributes."""
    return {name for one in _nested(code) for name in one.co_names}


def _globals(code: types.CodeType) -> set[str]:
    steps = (step for one in _nested(code) for step in dis.get_instructions(one))
    return {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


@ft.cache
def is_installed(module: str | None) -> bool:
    """Whether a module belongs to Python or to an installed package: its version tells it."""
    if module is None or module == "__main__":
        return False
    if module.partition(".")[0] == "dlnjax":
        return True
    found = getattr(sys.modules.get(module), "__file__", None)
    if found is None:  # built into the interpreter, or made by hand
        return module in sys.builtin_module_names
    path = Path(found).resolve()
    return any(folder in path.parents for folder in _INSTALLED)
