"""The problems that every benchmark runs on."""

from importlib.util import find_spec

import numpy as np


def normal_batch(lanes: int, n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`X` of shape `(lanes, n, d)` and `y` of shape `(lanes, n)`, iid normal / √n."""
    rng = np.random.default_rng([seed, n, d])
    size = n**-0.5
    return size * rng.normal(size=(lanes, n, d)), size * rng.normal(size=(lanes, n))


def khan() -> tuple[np.ndarray, np.ndarray]:
    """One lane of 63 × 2308 gene expressions, standardised as by the command line."""
    from dlnjax.cli.data import load, standardize

    data = standardize(load("khan"))
    return data.X[None], data.y[None]


def at_hand(work: list) -> list:
    """The pieces of work whose data are installed; says which are left out."""
    if find_spec("ISLP"):
        return work
    print("  left out, as ISLP is not installed: the Khan data")
    return [w for w in work if w.data != "khan"]
