"""`hermite`: the Hermite coefficients of a function of a Gaussian, by Gauss's quadrature."""

import functools as ft
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_whole
from .._linalg import matmul

# Coefficients of tanh have 9 digits with 64 nodes, 13 with 128 and all of them with 200. From
# about 400 on the weights of NumPy overflow.
NODES = 256


@ft.cache
def gauss_hermite(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `z` and weights `w`, `Σ w = 1`, with `Σ w f(z) ≈ E f(G)` for a standard normal `G`."""
    z, w = np.polynomial.hermite_e.hermegauss(count)
    return z, w / np.sum(w)


def hermite(fn: Callable[[Array], Array], degree: int) -> Float[Array, " k"]:
    """The Hermite coefficients `E[fn(G) he_k(G)]`, `k = 0, …, degree`, for a standard normal `G`.

    The polynomials `he_k = He_k/√k!` are orthonormal: `1, z, (z² − 1)/√2, …`. Of a smooth `fn`
    that grows no faster than a polynomial of degree 300 the coefficients are exact to rounding. A
    kink costs digits: those of `max(z, 0)` are off by up to 7e-4.

    !!! example

        ```python
        dln.networks.hermite(lambda z: z**2, 2)  # z² = 1 + √2 he₂: (1, 0, 1.4142)
        ```

    **Arguments:** `fn`, an elementwise function; `degree`, from 0 to 100.

    **Returns:** the coefficients, shape `(degree + 1,)`, in JAX's default precision.

    **Raises:** `TypeError`/`ValueError` for another degree, or if `fn` is not elementwise.

    !!! cite "Reference"

        Berthier, Montanari, Zhou, *Learning time-scales in two-layers neural networks*,
        arXiv 2303.00055.
    """
    if not callable(fn):
        raise TypeError(f"`fn` must be an elementwise function, such as `jnp.tanh`, got {fn!r}.")
    degree = as_whole(degree, "degree")
    if not 0 <= degree <= 100:
        raise ValueError(f"`degree` must be from 0 to 100, got {degree}.")
    z, w = gauss_hermite(NODES)
    rows = [np.ones_like(z), z]
    for k in range(1, degree):
        rows.append((z * rows[k] - np.sqrt(k) * rows[k - 1]) / np.sqrt(k + 1))
    values = jnp.asarray(fn(jnp.asarray(z, float))).astype(jnp.result_type(float))
    if values.shape != z.shape:
        raise ValueError(
            f"`fn` must be elementwise, but takes shape {z.shape} to {values.shape}. Use "
            "`jax.vmap(fn)` if it takes one number."
        )
    return matmul(jnp.asarray(w * np.stack(rows[: degree + 1]), values.dtype), values)
