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


def test_import_is_light():
    """Neither optional packages nor matplotlib are loaded before they are needed, by the data sets
    of the command line either, which scripts load without the extra `cli`."""
    heavy = ["sklearn", "xarray", "zarr", "tqdm", "typer", "rich", "matplotlib", "pandas", "ISLP"]
    code = f"import sys, dlnjax.cli.data; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == "[]"
