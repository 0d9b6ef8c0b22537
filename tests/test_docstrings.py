"""Every public function has an example, and every example in a docstring runs."""

import inspect
import re
import textwrap

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from public import lookup, public_names

import dlnjax as dln


def documented() -> dict[str, object]:
    """Public names, and what the public classes define."""
    found = {}
    for name in sorted(public_names()):
        value = lookup(name)
        found[name] = value
        if inspect.isclass(value):
            own = {n: v for n, v in vars(value).items() if not n.startswith("_") and callable(v)}
            found |= {f"{name}.{n}": v for n, v in own.items()}
    return found


def examples(value: object) -> list[str]:
    text = inspect.cleandoc(value.__doc__ or "")
    blocks = re.findall(r"^( *)```python\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(code) for _, code in blocks]


DOCUMENTED = documented()
WITH_EXAMPLES = [name for name, value in DOCUMENTED.items() if examples(value)]


def test_every_function_has_an_example():
    functions = [
        n for n in public_names() if not inspect.isclass(lookup(n)) and callable(lookup(n))
    ]
    assert sorted(name for name in functions if not examples(DOCUMENTED[name])) == []


@pytest.mark.filterwarnings("default")  # of what users import
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    known = {"jax": jax, "jnp": jnp, "np": np, "dln": dln, "diffrax": diffrax, "optax": optax}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for code in examples(DOCUMENTED[name]):
            exec(compile(code, name, "exec"), {"__name__": "example"} | known)
    jax.config.update("jax_enable_x64", True)
