"""Arrays with one row for each sign of a network.

A positive network has `x = q` and arrays `(1, d)`; a signed one has `x = q⁺ − q⁻` and arrays
`(2, d)`, with the row of `+` first. `signed` is the linear map `q ↦ x`, `sides` its transpose.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def signed(q: Float[Array, "signs d"]) -> Float[Array, " d"]:
    """`x = q`, or `x = q⁺ − q⁻`."""
    return q[0] if q.shape[0] == 1 else q[0] - q[1]


def sides(v: Float[Array, " d"], like: Shaped[Array, "signs d"]) -> Float[Array, "signs d"]:
    """The rows `(v)` or `(v, −v)`, as many as `like` has: the transpose of `signed`."""
    return jnp.stack([v, -v][: like.shape[0]])
