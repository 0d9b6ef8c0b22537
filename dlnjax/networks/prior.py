"""`Prior`: where a network starts, as `ε → 0`."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .growth import Growth


class Prior(eqx.Module):
    """The link relative to the start, as a function of `g = Fᵀν`, in the limit `ε → 0`.

    Depth 2: `log q = log s + g/h`. Depth `D > 2`: `c q^{−p} = o − g`.
    """

    log_s: Float[Array, "signs d"]
    unit: Float[Array, "signs d"]  # h at depth 2, c otherwise
    offset: Float[Array, "signs d"]  # o
    exponent: Float[Array, ""] | None  # p; None at depth 2

    def log_q(self, g: Array, free: Array) -> Array:
        """`log q`; 0 where not `free`, so that derivatives there are finite."""
        if self.exponent is None:
            return jnp.where(free, self.log_s + g / self.unit, 0)
        return -jnp.log(jnp.where(free, (self.offset - g) / self.unit, 1)) / self.exponent

    def log_growth(self, log_q: Array) -> Array:
        """`dg/d log q` at this `log q`."""
        if self.exponent is None:
            return self.unit
        return self.exponent * self.unit * jnp.exp(-self.exponent * log_q)

    def g_at(self, log_q: Array) -> Array:
        """`g` at which `q` has this logarithm: the inverse of `log_q`."""
        if self.exponent is None:
            return self.unit * (log_q - self.log_s)
        return self.offset - self.unit * jnp.exp(-self.exponent * log_q)


def prior_of(growth: Growth, initial_dual: Float[Array, "signs d"]) -> Prior:
    """The prior of a network with this `growth` at `ε = 1/e`, whose `w(0)` tends to `initial_dual`
    as `ε → 0`: another `ε` only scales and shifts `g`."""
    p = None if growth.is_exponential else jnp.asarray(growth.exponent, initial_dual.dtype)
    log_s, unit = growth.log_initial + (initial_dual if p is None else 1), growth.unit
    if p is not None:
        unit = unit / p * jnp.exp(p * log_s)
    return Prior(log_s, unit, jnp.zeros_like(log_s), p)
