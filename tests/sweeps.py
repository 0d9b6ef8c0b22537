"""A sweep that solves nothing, and its store."""

from pathlib import Path

import jax.numpy as jnp

import dlnjax as dln

ROOT = Path(__file__).parents[1]


INSTANCES = 17_000  # five blocks


def scaled(problem):
    return jnp.exp(-jnp.sum(problem.r**2))


def correlations(problem):
    return problem.r


def cheap(**changes):
    """Nothing is solved: compiles at once."""
    metrics = [scaled, dln.Metric(correlations, dims=("coordinate",), units="u")]
    arguments = {"instances": INSTANCES, "sizes": [(2, 3), (3, 4)], "metrics": metrics}
    return dln.Sweep(**{**arguments, **changes})


def chunks(path):
    """The bytes of all chunks of a store, by file, but for those that say when and by what."""
    files = (file for file in Path(path).rglob("*") if file.is_file())
    found = {str(f.relative_to(path)): f.read_bytes() for f in files if f.name != "zarr.json"}
    return {name: data for name, data in found.items() if not name.startswith("block_")}


def computed(tmp_path_factory):
    """A store of `cheap()`, for a fixture of a module."""
    path = tmp_path_factory.mktemp("sweep") / "store"
    dln.run_sweep(cheap(), path)
    return path
