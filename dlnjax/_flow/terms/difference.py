"""How errors of a step count in `x`, and what units a flow has that starts larger than `x`.

Where `x` is the difference of nearly equal `q⁺` and `q⁻`, a change of `g = Xᵀν` changes `σ²x`
by `E = E⁺ + E⁻`, the slopes, times as much. With `E` a thousand times the size of `σ²x`,
`max |r|`, all of training happens while `g` moves by a thousandth: `excess` is this number. So
errors of `g` count by what they change in `x`, and units of time and of `z` are smaller by
`excess`. Weight decay lets `q` shrink, and `excess` becomes 1.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
    if len(slope) < 3:
        return jnp.zeros_like(slope[0])
    return jnp.where(is_balanced(slope), slope[0] + slope[1], 0)


def _largest(r: Float[Array, " d"]) -> Float[Array, ""]:
    largest = jnp.max(jnp.abs(r))
    return jnp.where(largest > 0, largest, 1)


def excess(slope: Float[Array, "rows d"], r: Float[Array, " d"]) -> Float[Array, ""]:
    """By how much `q` exceeds `x`; at least 1."""
    return jnp.maximum(1, jnp.max(_balanced_slope(slope)) / _largest(r))


def error_of_difference(
    slope: Float[Array, "rows d"],
    x: Float[Array, " d"],
    error: Float[Array, " d"],
    r: Float[Array, " d"],
) -> Float[Array, " d"]:
    """`IN_X` times the error of `σ²x` by one of `g`, relative to `σ²x + max |r|`."""
    return IN_X * jnp.abs(error) * _balanced_slope(slope) / (_largest(r) + jnp.abs(x))


def error_of_average(z: Array, error: Array, excess: Float[Array, ""]) -> Array:
    """An error of `z` such that a tolerance `atol + rtol |z|` is one of `atol/excess` where `z` is
    small, and of `rtol |z|` where it is large."""
    size = jnp.abs(z)
    return jnp.abs(error) * (1 + size) / (1 / excess + size)
