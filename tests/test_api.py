"""The public interface changes on purpose only."""

import subprocess
import sys
from pathlib import Path

from public import API, api, public_names

import dlnjax as dln


def test_is_what_api_txt_says():
    """If the change is meant: `python tests/public.py`, and a line in the changelog."""
    assert api().splitlines() == API.read_text(encoding="utf-8").splitlines()


def test_star_import_and_dir_show_it():
    short = {name.removeprefix("dlnjax.") for name in public_names()}
    assert {name for name in short if "." not in name} <= set(dir(dln))
    namespace = {}
    exec("from dlnjax import *", namespace)
    assert namespace["lasso_path"] is dln.lasso_path


def _printed_by(code: str) -> str:
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return run.stdout.strip()


def test_import_is_light():
    """Neither JAX nor optional packages nor matplotlib are loaded before they are needed, by the
    data sets of the command line either, which scripts load without the extra `cli`."""
    heavy = ["jax", "sklearn", "xarray", "zarr", "tqdm", "typer", "rich", "matplotlib", "pandas"]
    code = f"import sys, dlnjax.cli.data; print([name for name in {heavy} if name in sys.modules])"
    assert _printed_by(code) == "[]"


def test_public_modules_are_attributes():
    names = ["generators", "graphs", "metrics", "networks"]
    assert _printed_by(f"import dlnjax; [getattr(dlnjax, name) for name in {names}]") == ""


def test_first_use_within_a_trace():
    """What is imported then holds no value of that trace."""
    code = """
import gc, importlib, pkgutil, jax, dlnjax

def first_use(x):
    for module in pkgutil.walk_packages(dlnjax.__path__, "dlnjax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return x

with jax.checking_leaks():
    jax.jit(first_use)(1.0)
print([value for value in gc.get_objects() if isinstance(value, jax.core.Tracer)])
"""
    assert _printed_by(code) == "[]"
