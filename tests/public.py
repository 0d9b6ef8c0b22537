"""What is public, and `python tests/public.py`, which writes it into api.txt."""

import importlib
import inspect
import pkgutil
import types
from collections.abc import Iterator
from pathlib import Path

import diffrax

import dlnjax as dln

API = Path(__file__).with_name("api.txt")


def public_names() -> set[str]:
    """What `import dlnjax` gives, and what the public modules in it define."""
    names = {
        f"dlnjax.{name}"
        for name in dir(dln)
        if not name.startswith("_") and not isinstance(getattr(dln, name), types.ModuleType)
    }
    modules = {
        found.name: importlib.import_module(f"dlnjax.{found.name}")
        for found in pkgutil.iter_modules(dln.__path__)
        # `docs/api/papers.md` has the papers; the others are commands.
        if not found.name.startswith("_") and found.name not in ("cli", "papers")
    }
    for short, module in modules.items():
        names |= {
            f"dlnjax.{short}.{name}"
            for name, value in vars(module).items()
            if not name.startswith("_")
            and f"{getattr(value, '__module__', '')}.".startswith(f"{module.__name__}.")
            and f"dlnjax.{name}" not in names
        }
    # It is one class under two names.
    return names - {"dlnjax.metrics.Metric"}


def lookup(name: str):
    value = dln
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def parameters(function) -> str:
    """Names, kinds and defaults: the types are pyright's to check."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def lines(name: str) -> Iterator[str]:
    """A public name, with what can be called or read on it."""
    value = lookup(name)
    if not inspect.isclass(value):
        yield f"{name}{parameters(value)}"
        return
    if value is dln.RESULTS:
        yield name
        ours, theirs = (kind._name_to_item for kind in (value, diffrax.RESULTS))  # pyright: ignore
        yield from (f"{name}.{item}" for item in ours if item not in theirs)
        return
    yield f"{name}{parameters(value)}"
    fields = getattr(value, "__dataclass_fields__", {})
    yield from (f"{name}.{field}" for field in fields if not field.startswith("_"))
    for member in dir(value):
        if member.startswith("_") or member in fields or is_theirs(value, member):
            continue
        of = inspect.getattr_static(value, member)
        function = getattr(of, "__func__", of)
        yield f"{name}.{member}" + (parameters(function) if callable(function) else "")


def is_theirs(value: type, member: str) -> bool:
    """Whether a library that we derive from says what it is."""
    others = [base for base in value.__mro__ if not base.__module__.startswith("dlnjax")]
    return any(member in vars(base) for base in others) or member == "set_score_request"


def api() -> str:
    return "".join(f"{line}\n" for name in sorted(public_names()) for line in lines(name))


if __name__ == "__main__":
    API.write_text(api(), encoding="utf-8")
