"""Expectations over a standard normal `G`: `hermite`, the Hermite coefficients of a function, and
the mean and the standard deviation of `erf(t + gG)`."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, as_whole, is_concrete
from .._linalg import matmul

# Nodes of `hermite`, at the multiples of STEP up to END. With equal steps the error for a function
# that is analytic within `r` of the real line falls like e^{−2πr/STEP}; Gauss's nodes, of which 256
# are .2 apart, have 3 digits of tanh(10z) where these have all. The polynomial of degree 100
# oscillates up to 20, and has fallen to rounding at END.
STEP, END = 1 / 32, 30.0


def hermite(fn: Callable[[Array], Array], degree: int) -> Float[Array, " k"]:
    """The Hermite coefficients `E[fn(G) he_k(G)]`, `k = 0, …, degree`, for a standard normal `G`.

    The polynomials `he_k = He_k/√k!` are orthonormal: `1, z, (z² − 1)/√2, …`. The expectation is a
    sum over nodes `1/32` apart, up to `|z| = 30`, and 13 in float32. It is exact to rounding where
    `fn` varies slowly on the scale `1/10`: for `tanh(cz)` it is off by 1e-14 at `c = 10`, 4e-8 at
    20 and 5e-6 at 30. A kink as of `max(z, 0)` costs 4e-5, and a jump of 1 up to .007.

    !!! example

        ```python
        dln.networks.hermite(lambda z: z**2, 2)  # z² = 1 + √2 he₂: (1, 0, 1.4142)
        ```

    **Arguments:** `fn`, an elementwise real function, finite at the nodes; `degree`, from 0 to 100.

    **Returns:** the coefficients, shape `(degree + 1,)`, in JAX's default precision.

    **Raises:** `TypeError`/`ValueError` for another degree, or if `fn` is complex, not elementwise,
    or NaN or inf at a node (under tracing the coefficients are not finite).

    !!! cite "Reference"

        Berthier, Montanari, Zhou, *Learning time-scales in two-layers neural networks*,
        arXiv 2303.00055.
    """
    if not callable(fn):
        raise TypeError(f"`fn` must be an elementwise function, such as `jnp.tanh`, got {fn!r}.")
    degree = as_whole(degree, "degree")
    if not 0 <= degree <= 100:
        raise ValueError(f"`degree` must be from 0 to 100, got {degree}.")
    dtype = jnp.result_type(float)
    z = np.arange(-END, END + STEP, STEP)
    w = np.exp(-(z**2) / 2)
    # In float32 weights underflow from 13 on, where functions that grow may overflow.
    z, w = (v[w >= jnp.finfo(dtype).tiny] for v in (z, w / np.sum(w)))
    rows = [np.ones_like(z), z]
    for k in range(1, degree):
        rows.append((z * rows[k] - np.sqrt(k) * rows[k - 1]) / np.sqrt(k + 1))
    values = as_float(fn(jnp.asarray(z, dtype)), "fn(z)", dtype)
    if values.shape != z.shape:
        raise ValueError(
            f"`fn` must be elementwise, but takes shape {z.shape} to {values.shape}. Use "
            "`jax.vmap(fn)` if it takes one number."
        )
    if is_concrete(values) and not np.all(np.isfinite(values)):
        first = int(np.argmin(np.isfinite(values)))
        raise ValueError(
            f"`fn` must be finite up to |z| = {z[-1]:.4g}, but is {float(values[first])} at "
            f"z = {z[first]:.4g}. Clip its argument: the density e^(−z²/2) is tiny there."
        )
    return matmul(jnp.asarray(w * np.stack(rows[: degree + 1]), dtype), values)


def erf_mean(t: Array, g: ArrayLike) -> Array:
    """`E erf(t + gG)`."""
    return erf(t / jnp.hypot(1.0, 2**0.5 * jnp.asarray(g)))


def erf_deviation(t: Array, g: ArrayLike) -> Array:
    """The standard deviation of `erf(t + gG)`, for `g > 0`."""
    # E erf² = 1 − 8 T(h, a) and (E erf)² = 1 − 8 T(h, 1), h = √2 t/√(1 + 2g²), a = 1/√(1 + 4g²),
    # with Owen's T(h, a) = ∫₀ᵃ e^{−h²(1 + u²)/2}/(1 + u²) du/2π. Their difference, the integral
    # from a to 1, does not cancel. It vanishes like e^{−h²(1 + a²)/2} and like 1 − a: with these
    # outside of the root, its derivatives are finite everywhere. 40 nodes have all digits.
    u, w = (v.astype(t.dtype) for v in np.polynomial.legendre.leggauss(40))
    wide = jnp.hypot(1.0, 2 * jnp.asarray(g))
    a, part = 1 / wide, 2 * jnp.asarray(g) / wide  # 1 − a² = part²
    half = part * part / (1 + a) / 2
    h = 2**0.5 * t / jnp.hypot(1.0, 2**0.5 * jnp.asarray(g))
    beyond = half * (1 + u)  # u − a, at the nodes
    node = a + beyond
    mean = matmul(jnp.exp(-(h**2) / 2 * beyond * (node + a)) / (1 + node**2), w)
    return part * jnp.sqrt(2 / jnp.pi * mean / (1 + a)) * jnp.exp(-(h**2) * (1 + a**2) / 4)
