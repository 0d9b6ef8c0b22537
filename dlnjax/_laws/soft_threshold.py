"""Moments of soft thresholding, in closed form.

With `Y = v + Z`, `Z` standard normal, and `η(y) = sign(y) (|y| − α)₊`, an expectation over `Z` is a
sum of `φ` and of the upper tail `Q` at `α ∓ v`. All are written in the signed `v`, since `|v|`
would lose second derivatives at 0.
"""

import jax.lax as lax
import jax.numpy as jnp
from jax.nn import logsumexp
from jax.scipy.special import erfc, log_ndtr
from jaxtyping import Array, Float

# Beyond this the density and the tail are 0 in float64, exp(−1800), so that larger arguments change
# nothing; without the bound `α² Q` would be inf · 0.
FAR = 60.0


def density(a: Array) -> Array:
    """`φ(a)`, of a standard normal."""
    return jnp.exp(-(a**2) / 2) * (2 * jnp.pi) ** -0.5


def tail(a: Array) -> Array:
    """`Q(a) = P(Z > a)`."""
    return erfc(a * 0.5**0.5) / 2


def _sides(v: Array, alpha: Array) -> Array:
    # As one array: XLA writes out a tail in some hundred operations wherever it is called.
    return jnp.stack([alpha - v, alpha + v])


def _bounded(v: Array, alpha: Array) -> tuple[Array, Array]:
    most = jnp.minimum(jnp.finfo(v.dtype).tiny ** -0.25, FAR + lax.stop_gradient(jnp.abs(v)))
    alpha = jnp.minimum(alpha, most)
    far = lax.stop_gradient(alpha) + FAR
    return jnp.clip(v, -far, far), alpha


def active(v: Float[Array, " K"], alpha: Float[Array, ""]) -> Float[Array, " K"]:
    """`P(η(Y) ≠ 0)`."""
    v, alpha = _bounded(v, alpha)
    return jnp.sum(tail(_sides(v, alpha)), axis=0)


def risk(v: Float[Array, " K"], alpha: Float[Array, ""]) -> Float[Array, " K"]:
    """`E(η(Y) − v)²`."""
    v, alpha = _bounded(v, alpha)
    sides = _sides(v, alpha)
    tails = tail(jnp.stack([sides, -sides]))
    moved = (1 + alpha**2) * jnp.sum(tails[0], axis=0) - jnp.sum(
        sides[::-1] * density(sides), axis=0
    )
    # P(η = 0) as the difference of the two smaller tails.
    still = jnp.where(v >= 0, tails[1, 0] - tails[0, 1], tails[1, 1] - tails[0, 0])
    return moved + v**2 * still


def one_norm(v: Float[Array, " K"], alpha: Float[Array, ""]) -> Float[Array, " K"]:
    """`E|η(Y)|`."""
    sides = _sides(v, alpha)
    return jnp.sum(density(sides) - sides * tail(sides), axis=0)


def log_hazard(
    v: Float[Array, " K"], probabilities: Float[Array, " K"], alpha: Float[Array, ""]
) -> Float[Array, ""]:
    """The logarithm of the hazard rate of `|Y|` at `α`, `Σ p (φ(α − v) + φ(α + v)) / P(|Y| > α)`.

    The risk falls in `α` where this is above `log α`: its derivative is `2(α P − Σ p (φ + φ))`. In
    logarithms, since both parts underflow where signals are weak and `α` is large."""
    sides = _sides(v, alpha)
    p = jnp.broadcast_to(probabilities, sides.shape)
    log_density = -(sides**2) / 2 - 0.5 * jnp.log(2 * jnp.asarray(jnp.pi, v.dtype))
    return logsumexp(log_density, b=p) - logsumexp(log_ndtr(-sides), b=p)
