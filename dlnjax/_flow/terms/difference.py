"""How errors of a step count in `x`, and what units a flow has that starts larger than `x`.

Where `x` is the difference of nearly equal `q⁺` and `q⁻`, a change of `g = Xᵀν` changes `σ²x`
by `E = E⁺ + E⁻`, the slopes, times as much. In units in which `w` is of size 1, with `E` a thousand
times the size of `σ²x` (`size_of_x`), all of training happens while `g` moves by a thousandth:
`excess` is this number. So tolerances of `g` and `z`, and the unit of time, are smaller by that of
the start, as long as the dtype holds their difference (`is_held`).

With `large_start` errors of `g` count by what they change in `x` at each step: weight decay lets
`q` shrink, and `excess` becomes 1.

In the weight form and with momentum errors of the weights, or of their logarithms, count `excess`
times (`DifferenceNorm`).
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree

from ..._results import RESULTS, first_failure
from ..link_base import AbstractLink

# The weight of a relative error of x beside an error of w, in the error of a step. An error of w in
# an active coordinate is a relative error of x = exp(−w log(1/ε)) that is log(1/ε) times larger.
# With 0, errors of x at the first jump reach 2e-5 at log ε = −2000; with 0.3 they stay
# below 1e-6. It costs steps: at log ε = −23 (median of eight problems UV 10 × 4) 217, 222, 252, 302
# with 0, 0.1, 0.3, 1, so a sixth more with 0.3, and 39 % more with 1.
IN_X = 0.3


def is_balanced(slope: Float[Array, "3 d"]) -> Bool[Array, " d"]:
    """Where `q⁺` and `q⁻` nearly are equal, to a factor `e²`, by the slopes `E⁺`, `E⁻` and their
    difference."""
    return jnp.abs(slope[2]) < math.tanh(1) * (slope[0] + slope[1])


def _balanced_slope(slope: Float[Array, "rows d"]) -> Float[Array, " d"]:
    if len(slope) == 1:
        return jnp.zeros_like(slope[0])
    if len(slope) == 2:
        slope = jnp.stack([*slope, slope[0] - slope[1]])
    return jnp.where(is_balanced(slope), slope[0] + slope[1], 0)


def excess(slope: Float[Array, "rows d"], largest: Float[Array, ""]) -> Float[Array, ""]:
    """By how much `q` exceeds the `largest` entry of `σ²x`, at least 1. The slopes are those in
    units of `w`."""
    if len(slope) == 1:
        return jnp.ones_like(largest)
    # At depth 2 `q⁺q⁻` is conserved: so large are both where `x` becomes small, also after a start
    # at which one of them is far larger.
    balanced = 2 * jnp.sqrt(slope[0]) * jnp.sqrt(slope[1])
    return jnp.maximum(1, jnp.max(balanced) / largest)


def is_held(excess: Float[Array, ""]) -> Bool[Array, ""]:
    """Whether `q⁺ − q⁻` has digits enough of an `x` that is so much smaller."""
    # Rounding is then at most a tenth of √eps relative to x, 1.5e-9 in float64: below the default
    # tolerance of steps, 1e-8. With 100 times more it would exceed it, so that steps shrink without
    # end; with 100 times less starts would be refused that have six digits to spare.
    return excess <= 0.1 * float(jnp.finfo(excess.dtype).eps) ** -0.5


class DifferenceNorm(eqx.Module):
    """The maximum norm of the error of a state `(weights, z)`, in which that of the weights counts
    `excess` times: a number for each array of them, or for all."""

    excess: PyTree[Float[Array, ""]]

    def __call__(self, error: Any) -> Float[Array, ""]:
        weights, z = error
        scaled = jax.tree.map(lambda k, part: k * optx.max_norm(part), self.excess, weights)
        return jnp.maximum(optx.max_norm(scaled), optx.max_norm(z))


def error_of_difference(
    slope: Float[Array, "rows d"],
    x: Float[Array, " d"],
    error: Float[Array, " d"],
    largest: Float[Array, ""],
) -> Float[Array, " d"]:
    """`IN_X` times the error of `σ²x` by one of `g`, relative to `σ²x` and its `largest`
    entry."""
    return IN_X * jnp.abs(error) * _balanced_slope(slope) / (largest + jnp.abs(x))


def error_of_average(z: Array, error: Array, excess: Float[Array, ""]) -> Array:
    """An error of `z` such that a tolerance `atol + rtol |z|` is one of `atol/excess` where `z` is
    small, and of `rtol |z|` where it is large."""
    size = jnp.abs(z)
    return jnp.abs(error) * (1 + size) / (1 / excess + size)


def validity_of_start(link: AbstractLink, excess: Float[Array, ""]) -> RESULTS:
    """Whether the start is valid, and not too large for the rows that `w` has."""
    if link.has_third_row():
        return link.validity()
    return first_failure(link.validity(), (is_held(excess), RESULTS.start_too_large))
