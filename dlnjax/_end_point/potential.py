"""The potential `q_D` that end points minimise, its derivative (the mirror map) and the inverse.

With `k = D/(D − 2)`, `D > 2`, the inverse mirror map is `h(g) = (1 − g)^{−k} − (1 + g)^{−k}`. In
the variable `t = artanh g` no power overflows and no difference cancels:

    z = h(tanh t) = 2 coshᵏ(t) sinh(kt)                            (solved for t by Newton's method)
    ∫₀ᵍ h = ((1 − g)^{1−k} + (1 + g)^{1−k} − 2)/(k − 1)
          = 2 (expm1(s) cosh a + 2 sinh²(a/2))/(k − 1),  s = (k−1) log cosh t,  a = (k−1) t
    q_D(z) = z tanh t − ∫₀^{tanh t} h                              (Legendre transform)

Derivatives come from these equations, not from Newton's loop.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import as_float, check_scalar, is_concrete
from .._loops import fori_loop

# Steps of Newton's method in `_rapidity`: a fixed number, so that `vmap` has no predicate to carry.
# By experiment (`|z|` from 1e-300 to 1e300, `D − 2` from 1e-9 to 1e8) four steps reach rounding in
# float64 and three leave a relative error of 1e-10. 12 is three times what is needed; more only
# cost time.
_STEPS = 12


def potential(z: Real[ArrayLike, "..."], depth: Real[ArrayLike, ""] = 2) -> Float[Array, "..."]:
    """The potential `q_D` whose sum the flow of a network `u^D − v^D` minimises: from `u = v = α`
    it ends at the minimiser of `Σ q_D(xᵢ/α^D)` over `Xx = y`.

    `q_2(z) = 2 − √(4 + z²) + z asinh(z/2)`, the hyperbolic entropy, and for `D > 2`
    `q_D(z) = ∫₀ᶻ h_D⁻¹` with `h_D` the `inverse_mirror_map`. Near 0 (kernel regime) it behaves like
    `z²`; far from 0 (rich regime) like `|z|`, at `D = 2` like `|z| log|z|`. As `D → 2`,
    `q_D D/(D − 2)` tends to `q_2`.

    **Arguments:** `z`, any shape: `x/α^D`, or `x/ε` for unit shape; `depth`, `D ≥ 2`, a scalar. The
    Python number 2 selects the formula of `q_2`; a traced depth must be larger than 2.

    **Returns:** `q_D(z)`, of the shape of `z`, to a few units of rounding for all `z`.
    Differentiable in `z` to any order, and in `depth`.

    **Raises:** `ValueError` if a concrete `depth` is below 2 or infinite, or `depth` is no scalar.

    !!! example

        ```python
        z = jnp.array([0.1, 100.0])
        dln.potential(z)  # (0.0025, 362.5): about z²/4, and |z| log|z| − |z| + 2
        dln.potential(z, depth=3)  # (0.00083, 68.5): about z²/12, and |z| − 1.5|z|^{2/3} + 7/8
        ```

    !!! cite "Reference"

        [Woo20] arXiv 2002.09277, Theorems 1 and 3; [W23] arXiv 2307.07410, Fig. 3.
    """
    z, k = _arguments(z, depth)
    if k is None:
        return _entropy(z)
    return _deep(z, k)


def mirror_map(z: Real[ArrayLike, "..."], depth: Real[ArrayLike, ""] = 2) -> Float[Array, "..."]:
    """The derivative `q_D'` of `potential`: `asinh(z/2)` at `D = 2`, `h_D⁻¹(z) ∈ (−1, 1)` for
    `D > 2`. The end point `x` is optimal because `q_D'(x/α^D)` lies in the range of `Xᵀ`.

    **Arguments:** `z`, any shape, and `depth`, as for `potential`.

    **Returns:** the derivative, of the shape of `z`.

    **Raises:** `ValueError`, as `potential`.

    !!! example

        ```python
        g = dln.mirror_map(7.0, depth=3)  # 0.4846
        dln.inverse_mirror_map(g, depth=3)  # 7
        ```

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
    """The inverse of `mirror_map`: `x/α^D` as a function of the dual variable `g`.

    It is `2 sinh g` at `D = 2`, and `h_D(g) = (1 − g)^{−D/(D−2)} − (1 + g)^{−D/(D−2)}` on
    `(−1, 1)` for `D > 2`; NaN beyond.

    **Arguments:** `g`, any shape, and `depth`, as for `potential`.

    **Returns:** `x/α^D`, of the shape of `g`.

    **Raises:** `ValueError`, as `potential`.

    !!! example

        ```python
        dln.inverse_mirror_map(0.5, depth=3)  # 0.5⁻³ − 1.5⁻³ = 7.7037
        dln.inverse_mirror_map(0.5)  # 2 sinh 0.5 = 1.0422
        ```

    !!! cite "Reference"

        [Woo20] arXiv 2002.09277, Theorems 1 and 3.
    """
    g, k = _arguments(g, depth, "g")
    if k is None:
        return 2 * jnp.sinh(g)
    t = jnp.arctanh(g)
    return 2 * jnp.exp(k * _log_cosh(t)) * jnp.sinh(k * t)


def _arguments(z: ArrayLike, depth: ArrayLike, name: str = "z") -> tuple[Array, Array | None]:
    """`z`, and `k = D/(D − 2)`, `None` at depth 2, where it would be infinite."""
    z = as_float(z, name)
    D = as_float(depth, "depth", z.dtype)
    check_scalar(D, "depth")
    # Ask `depth`: inside `jit` its conversion `D` is traced even where `depth` is a number.
    if is_concrete(depth):
        value = float(np.asarray(depth))
        if not 2 <= value < math.inf:
            raise ValueError(f"`depth` must be a finite number D ≥ 2, got {value}.")
        if value == 2:
            return z, None
    return z, D / (D - 2)


def _log_cosh(t: Array) -> Array:
    """`log cosh t`, to rounding near 0 and far away."""
    # Near 0 the second formula cancels `log 2`; far away the first overflows. At |t| = 1 both have
    # all digits. `small` keeps the branch that is not taken finite, and so its derivative.
    size = jnp.abs(t)
    small = jnp.minimum(size, 1)
    near = jnp.log1p(2 * jnp.sinh(small / 2) ** 2)
    return jnp.where(size < 1, near, size - math.log(2) + jnp.log1p(jnp.exp(-2 * size)))


@jax.custom_jvp
def _entropy(z: Array) -> Array:
    # 2 − √(4 + z²) = −z²/(2 + √(4 + z²)) does not cancel near 0, and `hypot` does not overflow.
    size = jnp.abs(z)
    return size * (jnp.arcsinh(size / 2) - size / (2 + jnp.hypot(size, jnp.full_like(z, 2))))


@_entropy.defjvp
def _(primals, tangents):
    (z,), (dz,) = primals, tangents
    return _entropy(z), jnp.arcsinh(z / 2) * dz


@jax.custom_jvp
def _rapidity(z: Array, k: Array) -> Array:
    """`t = artanh h⁻¹(z)`, the root of `z = 2 coshᵏ(t) sinh(kt)`."""
    # Newton's method on `kt = asinh(z cosh^{−k}(t)/2)`, the same equation without its powers, which
    # overflow for large k (D near 2).
    size = jnp.abs(z)

    def newton(_, t):
        a = jnp.arcsinh(size * jnp.exp(-k * _log_cosh(t)) / 2)
        return t + (a - k * t) / (k * (1 + jnp.tanh(t) * jnp.tanh(a)))

    # Start from above: cosh t ≥ 1. No step leads below 0, since a ≥ 0 and the slope is ≥ k.
    return jnp.sign(z) * fori_loop(0, _STEPS, newton, jnp.arcsinh(size / 2) / k)


@_rapidity.defjvp
def _(primals, tangents):
    (z, k), (dz, dk) = primals, tangents
    t = _rapidity(z, k)
    by_z = jnp.exp(-k * _log_cosh(t) - _log_cosh(k * t)) / 2
    by_k = jnp.tanh(k * t) * _log_cosh(t) + t
    return t, (by_z * dz - by_k * dk) / (k * (1 + jnp.tanh(t) * jnp.tanh(k * t)))


def _conjugate(t: Array, k: Array) -> Array:
    """`∫₀ᵘ h = ((1 − u)^{1−k} + (1 + u)^{1−k} − 2)/(k − 1)` at `u = tanh t`."""
    # Both terms are ≥ 0: nothing cancels near t = 0, where the integral is O(t²).
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
    # The Legendre transform is stationary in `t`: the derivative in `k` is that at fixed `t`.
    _, by_k = jax.jvp(lambda k: _conjugate(t, k), (k,), (dk,))
    return _deep(z, k), jnp.tanh(t) * dz - by_k
