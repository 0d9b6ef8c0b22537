"""A sweep from a TOML file: the arguments of `Sweep` by their names.

`s` may be a table with the arguments of `KnotGrid`. Generators, networks and metrics of your own
are `"module:name"`; modules beside the file are found.
"""

import dataclasses
import difflib
import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .spec import Sweep

# Each is checked with those before it, so that an error belongs to the first key that fails.
KEYS = (
    *("sizes", "instances", "generator", "networks", "weight_decay", "eps", "log_eps"),
    *("s", "rtol", "atol", "max_steps", "key", "metrics"),
)
EXAMPLES = {"metrics": '["is_monotone"]', "instances": "1000", "sizes": "[[3, 4]]"}


class SpecError(Exception):
    """What is wrong in a file, with its line."""


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a file and what it says, if it has no keys but those of a sweep. Needs no JAX.

    **Raises:** `SpecError` that names the file, the line and the fix.
    """
    text = ""
    try:
        text = path.read_text("utf-8")
        content = tomllib.loads(text)
    except OSError as e:
        raise SpecError(f"Cannot read {path}: {e.strerror}.") from e
    except UnicodeDecodeError as e:
        raise SpecError(f"{path} is not text in UTF-8: save it as such.") from e
    except tomllib.TOMLDecodeError as e:
        message, _, place = str(e).partition(" (at ")
        found = re.match(r"line (\d+)", place)
        line = found[1] if found else len(text.splitlines())
        raise SpecError(f"{path}, line {line}: this is not TOML: {message}.") from e

    for key in content:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            fix = f"Did you mean `{near[0]}`?" if near else f"There are {', '.join(KEYS)}."
            raise _error(path, text, content, key, f"there is no key `{key}`. {fix}")
    return text, content


def _error(
    path: Path, text: str, content: dict[str, Any], key: str | None, why: object
) -> SpecError:
    return SpecError(f"{path}, line {_line(text, content, key)}: {why}")


def read_sweep(path: str | Path) -> "Sweep":
    """The sweep that a TOML file describes, checked as far as can be without computing it.

    **Raises:** `SpecError` that names the file, the line and the fix.
    """
    path = Path(path)
    text, content = read_toml(path)
    # Here, since they import JAX, which takes seconds.
    from .. import metrics as named
    from ..generators import Given
    from .program import check, check_inputs
    from .spec import Sweep

    def error(message: object, key: str | None = None) -> SpecError:
        return _error(path, text, content, key, message)

    values: dict[str, Any] = {}
    for key in content:
        try:
            values[key] = _value(key, content[key], path.absolute().parent)
        except Exception as e:
            raise error(e, key) from e
    base: dict[str, Any] = {"instances": 1, "sizes": [(1, 1)]}
    if isinstance(values.get("generator"), Given):  # has both
        base = {"generator": values["generator"]}
    for key in ("metrics", *(key for key in base if key in EXAMPLES)):
        if key not in values:
            raise error(f"`{key}` is missing. Add, say, `{key} = {EXAMPLES[key]}`.")
    arguments = {"metrics": ["num_knots"], **base}
    for key in (key for key in KEYS if key in values):
        arguments[key] = values[key]
        try:
            sweep = Sweep(**arguments)
            check_inputs(sweep)
            if key == "metrics" and not {*sweep.metrics.values()} <= {*named.NAMED.values()}:
                check(sweep)
        except Exception as e:
            notes = [note for note in getattr(e, "__notes__", []) if note.startswith("In the ")]
            raise error(" ".join([str(e), *notes]), key) from e
    return Sweep(**arguments)


def _value(key: str, value: Any, folder: Path) -> Any:
    """A value of the file as `Sweep` takes it."""
    if key == "s" and isinstance(value, dict):
        from .spec import KnotGrid

        fields = [field.name for field in dataclasses.fields(KnotGrid)]
        if unknown := [name for name in value if name not in fields]:
            raise ValueError(f"`s` has no {unknown[0]!r}: as a table it has {', '.join(fields)}.")
        return KnotGrid(**value)
    if key == "generator":
        return _own(value, folder)
    if key in ("networks", "metrics"):
        if isinstance(value, dict):
            return {name: _own(entry, folder) for name, entry in value.items()}
        if isinstance(value, list):
            return [_own(entry, folder) for entry in value]
    return value


def _own(value: Any, folder: Path) -> Any:
    """What `"module:name"` names; other values as they are."""
    if not isinstance(value, str) or ":" not in value:
        return value
    module, _, name = value.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        raise ValueError(
            f"{value!r} asks for the module {e.name!r}, which is neither in {folder} nor installed."
        ) from e
    except (AttributeError, ValueError) as e:
        raise ValueError(f"There is no {name!r} in the module {module!r}, for {value!r}.") from e


def _line(text: str, content: dict[str, Any], key: str | None = None) -> int:
    """The number of the line where `key` is set, as a key or as a table; without one, the last."""
    lines = text.splitlines()
    table = ""
    for number, line in enumerate(lines, 1):
        header = re.match(r"\s*\[\s*[\"']?(\w+)", line)
        if header and isinstance(content.get(header[1]), dict):
            table = header[1]
        setting = re.match(r"\s*[\"']?(\w+)[\"']?\s*[=.]", line)
        if key and (table == key or (not table and setting and setting[1] == key)):
            return number
    return max(len(lines), 1)
