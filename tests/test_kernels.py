"""How many kernels a step of each loop launches: on an accelerator a step of a small batch takes as
long as launching them, a few microseconds each."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

LANES, N, D = 64, 3, 4
# Instructions that launch nothing.
FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "call", "iota"}


def _flow(X, y):
    network = dln.UV(jnp.ones(D), jnp.zeros(D))
    s = jnp.linspace(0.1, 5.0, 8)
    return dln.gradient_flow(network, dln.LeastSquares(X, y), s, eps=1e-20, throw=False).x_mean


def _path(X, y):
    return dln.lasso_path(dln.LeastSquares(X, y), throw=False).slopes


def _limit(X, y):
    network = dln.UV(jnp.ones(D), jnp.zeros(D))
    return dln.limit_flow(network, dln.LeastSquares(X, y), throw=False).slopes


def _computations(text: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each computation of a compiled program, as (operation, line)."""
    found, lines = {}, []
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            lines = found[start.group(1)] = []
        elif one := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(", line):
            lines.append((one.group(1), line))
    return found


def _kernels(name: str, computations) -> Counter[str]:
    """What one run of a computation launches, without the loops in it."""
    found = Counter()
    for operation, line in computations[name]:
        if operation == "call":
            [name] = re.findall(r"to_apply=%?([\w.\-]+)", line)
            found += _kernels(name, computations)
        elif operation not in FREE:
            found[operation] += 1
    return found


def _steps(function) -> list[Counter[str]]:
    """The kernels of the bodies of all loops."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(LANES, N, D)), rng.normal(size=(LANES, N))
    text = jax.jit(jax.vmap(function)).lower(*data).compile().as_text()
    assert text is not None
    computations = _computations(text)
    bodies = re.findall(r" while\(.*body=%?([\w.\-]+)", text)
    return [_kernels(body, computations) for body in bodies]


# A tenth more than there are with jaxlib 0.10 (114, 92, 164, 90), in the largest loops. Of the flow
# 18 are products, two for each of eight stages. The first loop of the limit selects minimisers,
# once a plateau where columns depend on each other; the second one is the step of the process.
@pytest.mark.parametrize("function, most", [(_flow, [125]), (_path, [101]), (_limit, [180, 99])])
def test_a_step_launches_few_kernels(function, most):
    steps = sorted(_steps(function), key=lambda step: -sum(step.values()))[: len(most)]
    counts = [sum(step.values()) for step in steps]
    assert min(counts) > 20  # the step was found
    assert np.all(np.array(counts) <= most)
    assert steps[-1]["dot"] <= 20
