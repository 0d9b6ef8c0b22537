"""`Growth`: a link function that is an exponential or a power, relative to its start."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Growth(eqx.Module):
    """The link function in logarithmic variables: how far the dual moves while `q` grows to
    `q(0) e^δ`.

    `±Xᵀν = h (1 − e^{−pδ})/p`, which is `hδ` at `p = 0`. This is `q = φ_ε(w)` for exponential and
    power links, in variables that neither overflow nor cancel at any `ε`.

    !!! example

        ```python
        growth = dln.Deep(jnp.ones(2), jnp.ones(2), depth=4).growth(jnp.log(1e-4))
        growth.exponent  # p = 1 − 2/D = 0.5
        growth.unit  # h = p w(0) = 0.5, shape (2, 2)
        ```

    **Attributes:**

    - `log_initial`: `log q(0)`, shape `(1, d)`, or `(2, d)` for signed networks.
    - `unit`: `h`, in units of `w`, of the same shape.
    - `exponent`: `p = 1 − 2/D`, the number 0.0 at depth 2.
    """

    log_initial: Float[Array, "signs d"]
    unit: Float[Array, "signs d"]
    exponent: float | Float[Array, ""]

    @property
    def is_exponential(self) -> bool:
        """Whether `p = 0` statically: the link of depth 2, `φ_ε(w) = exp(−w log(1/ε))`."""
        return isinstance(self.exponent, float) and self.exponent == 0

    def dual(self, delta: Array) -> Array:
        """The change of the dual in units of `h`, `(1 − e^{−pδ})/p`, for `q` to grow to `q(0) e^δ`.

        !!! example

            ```python
            growth = dln.Deep(jnp.ones(2), jnp.ones(2), depth=4).growth(jnp.log(1e-4))
            growth.dual(jnp.log(4.0))  # (1 − 4^{−1/2})/(1/2) = 1
            ```
        """
        p = self.exponent
        return delta if self.is_exponential else -jnp.expm1(-p * delta) / p

    def log_growth(self, dual: Array) -> Array:
        """The inverse of `dual`: `δ = log q/q(0)` where the dual has changed by `dual · h`.

        !!! example

            ```python
            growth = dln.Deep(jnp.ones(2), jnp.ones(2), depth=4).growth(jnp.log(1e-4))
            growth.log_growth(jnp.array(1.0))  # log 4 = 1.386
            ```
        """
        p = self.exponent
        return dual if self.is_exponential else -jnp.log1p(-p * dual) / p

    def dual_per_log_growth(self, delta: Array) -> Array:
        """The derivative `h e^{−pδ}` of the dual in `log q`, shape `(signs, d)`.

        !!! example

            ```python
            growth = dln.Deep(jnp.ones(1), jnp.ones(1), depth=4).growth(jnp.log(1e-4))
            growth.dual_per_log_growth(jnp.log(4.0))  # ½ 4^{−1/2} = 0.25 for both signs
            ```
        """
        return self.unit * jnp.exp(-self.exponent * delta)

    def longest_step(self, change: float) -> Array:
        """The `δ` over which `dual_per_log_growth` changes by the factor `e^{−change}`: `change/p`.

        It is infinite at `p = 0`. `end_point` limits its continuation steps in `log ε` by it.

        !!! example

            ```python
            growth = dln.Deep(jnp.ones(2), jnp.ones(2), depth=4).growth(jnp.log(1e-4))
            growth.longest_step(1.0)  # 1/p = 2
            ```
        """
        length = jnp.inf if self.is_exponential else change / self.exponent
        return jnp.asarray(length, self.unit.dtype)
