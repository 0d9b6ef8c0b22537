"""Arrays with a row for each sign that a network has: `(1, d)`, or `(2, d)` with `+` first."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def signed(q: Float[Array, "signs d"]) -> Float[Array, " d"]:
    """`q`, or `q⁺ − q⁻`."""
    return q[0] if q.shape[0] == 1 else q[0] - q[1]


def sides(v: Float[Array, " d"], like: Shaped[Array, "signs d"]) -> Float[Array, "signs d"]:
    """`v`, or `v` and `−v`: its transpose."""
    return jnp.stack([v, -v][: like.shape[0]])
