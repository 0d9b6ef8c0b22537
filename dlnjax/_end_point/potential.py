"""The potentials that end points of the flow minimise, and their mirror maps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import as_float, check_scalar, is_concrete
from .._loops import fori_loop

# Newton's method on a function that is almost linear: the most that any `z` and depth need.
_STEPS = 12


def potential(z: Real[ArrayLike, "..."], depth: Real[ArrayLike, ""] = 2) -> Float[Array, "..."]:
    """The potential `q_D`: the flow of a network `u^D − v^D` from `u = v = α` ends at the minimiser
    of `Σ q_D(xᵢ/α^D)` over `Xx = y`.

    `q_2(z) = 2 − √(4 + z²) + z asinh(z/2)`, the hyperbolic entropy, and for `D > 2`
    `q_D(z) = ∫₀ᶻ h_D⁻¹` with `h_D` the `inverse_mirror_map`. It is like `z²` near 0 (the kernel
    regime) and, far away (the rich one), like `|z|`, or `|z| log|z|` at `D = 2`. As `D → 2`,
    `q_D D/(D − 2)` tends to `q_2`.

    **Arguments:** `z`, any shape, `x` in units of `ε`; `depth`, `D ≥ 2`, a scalar. The number 2 is
    another formula than a traced depth, which has to be larger than 2.

    **Returns:** `q_D(z)`, of the shape of `z`, to a few units of rounding for all `z`.
    Differentiable in `z` to any order, and in `depth`.

    **Raises:** `ValueError` for `depth < 2`.

    !!! cite "Reference"

        [Woo20] arXiv 2002.09277, Theorems 1 and 3; [W23] arXiv 2307.07410, Fig. 3.
    """
    z, k = _arguments(z, depth)
    if k is None:
        return _entropy(z)
    return _deep(z, k)


def mirror_map(z: Real[ArrayLike, "..."], depth: Real[ArrayLike, ""] = 2) -> Float[Array, "..."]:
    """The derivative of `potential`: `asinh(z/2)` at `D = 2`, and `h_D⁻¹(z) ∈ (−1, 1)` for `D > 2`.
    At the end point it lies in the range of `Xᵀ`.

    **Arguments:** `z`, any shape, and `depth`, as for `potential`.

    **Returns:** the derivative, of the shape of `z`.

    **Raises:** `ValueError` for `depth < 2`.

    !!! cite "Reference"

        [Woo20] arXiv 2002.09277, Theorems 1 and 3.
    """
    z, k = _arguments(z, depth)
    if k is None:
        return jnp.arcsinh(z / 2)
    return jnp.tanh(_rapidity(z, k))


def inverse_mirror_map(
    g: Real[ArrayLike, "..."], depth: Real[ArrayLike, ""] = 2
) -> Float[Array, "..."]:
    """`x/α^D` as a function of the dual: `2 sinh g` at `D = 2`, and
    `h_D(g) = (1 − g)^{−D/(D−2)} − (1 + g)^{−D/(D−2)}` on `(−1, 1)` for `D > 2`; NaN beyond.

    **Arguments:** `g`, any shape, and `depth`, as for `potential`.

    **Returns:** `x/α^D`, of the shape of `g`.

    **Raises:** `ValueError` for `depth < 2`.

    !!! cite "Reference"

        [Woo20] arXiv 2002.09277, Theorems 1 and 3.
    """
    g, k = _arguments(g, depth, "g")
    if k is None:
        return 2 * jnp.sinh(g)
    t = jnp.arctanh(g)
    return 2 * jnp.exp(k * _log_cosh(t)) * jnp.sinh(k * t)


def _arguments(z: ArrayLike, depth: ArrayLike, name: str = "z") -> tuple[Array, Array | None]:
    """`z` and `k = D/(D − 2)`; no `k` at depth 2."""
    z = as_float(z, name)
    D = as_float(depth, "depth", z.dtype)
    check_scalar(D, "depth")
    if is_concrete(depth):  # not D, which is traced inside `jit`
        value = float(np.asarray(depth))
        if not 2 <= value < math.inf:
            raise ValueError(f"`depth` must be a finite number D ≥ 2, got {value}.")
        if value == 2:
            return z, None
    return z, D / (D - 2)


def _log_cosh(t: Array) -> Array:
    """`log cosh t`, to rounding near 0 and far away."""
    size = jnp.abs(t)
    small = jnp.minimum(size, 1)
    near = jnp.log1p(2 * jnp.sinh(small / 2) ** 2)
    return jnp.where(size < 1, near, size - math.log(2) + jnp.log1p(jnp.exp(-2 * size)))


@jax.custom_jvp
def _entropy(z: Array) -> Array:
    # The difference 2 − √(4 + z²), without its cancellation.
    size = jnp.abs(z)
    return size * (jnp.arcsinh(size / 2) - size / (2 + jnp.hypot(size, jnp.full_like(z, 2))))


@_entropy.defjvp
def _(primals, tangents):
    (z,), (dz,) = primals, tangents
    return _entropy(z), jnp.arcsinh(z / 2) * dz


@jax.custom_jvp
def _rapidity(z: Array, k: Array) -> Array:
    """`t = artanh h⁻¹(z)`, which solves `z = 2 coshᵏ(t) sinh(kt)`."""
    size = jnp.abs(z)

    def newton(_, t):
        a = jnp.arcsinh(size * jnp.exp(-k * _log_cosh(t)) / 2)
        return t + (a - k * t) / (k * (1 + jnp.tanh(t) * jnp.tanh(a)))

    # From above; no step leads below 0.
    return jnp.sign(z) * fori_loop(0, _STEPS, newton, jnp.arcsinh(size / 2) / k)


@_rapidity.defjvp
def _(primals, tangents):
    (z, k), (dz, dk) = primals, tangents
    t = _rapidity(z, k)
    by_z = jnp.exp(-k * _log_cosh(t) - _log_cosh(k * t)) / 2
    by_k = jnp.tanh(k * t) * _log_cosh(t) + t
    return t, (by_z * dz - by_k * dk) / (k * (1 + jnp.tanh(t) * jnp.tanh(k * t)))


def _conjugate(t: Array, k: Array) -> Array:
    """`∫₀ᵘ h = ((1 − u)^{1−k} + (1 + u)^{1−k} − 2)/(k − 1)` at `u = tanh t`, in terms ≥ 0."""
    s, a = (k - 1) * _log_cosh(t), (k - 1) * t
    return 2 * (jnp.expm1(s) * jnp.cosh(a) + 2 * jnp.sinh(a / 2) ** 2) / (k - 1)


@jax.custom_jvp
def _deep(z: Array, k: Array) -> Array:
    t = _rapidity(z, k)
    return z * jnp.tanh(t) - _conjugate(t, k)


@_deep.defjvp
def _(primals, tangents):
    (z, k), (dz, dk) = primals, tangents
    t = _rapidity(z, k)
    # The potential is stationary in t.
    _, by_k = jax.jvp(lambda k: _conjugate(t, k), (k,), (dk,))
    return _deep(z, k), jnp.tanh(t) * dz - by_k
