"""The interface of links (`link.py`), and `x` without cancellation.

Where the start is larger than `x`, `q⁺` and `q⁻` are as large as it is, and their difference is
rounding. With `DualForm(large_start=True)` exponential and power links of two signs have a third
row of `w` (`rows`): `g = Xᵀν`, which is 0 at the start. With `h = (w⁻ − w⁺)/2 = h(0) + g`, and
`v = ½ log(q⁺/q⁻)`, which is `h log(1/ε)`, or `a artanh(2h/(w⁺ + w⁻))`,

    x = q⁺ − q⁻ = 2 √(q⁺q⁻) sinh v    is used where |v| < 1.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float

from .._results import RESULTS, first_failure
from ..networks.signs import signed


class AbstractLink(eqx.Module):
    """Interface of a link function and its derivative. All arrays have the shape of `w`."""

    start: AbstractVar[Float[Array, "signs d"]]  # w(0)
    log_cap: AbstractVar[Float[Array, "1 d"]]  # the logarithm of the largest q

    @property
    @abc.abstractmethod
    def unit(self) -> Float[Array, "signs d"]:
        """The size of `w`, to which its error is relative."""

    @abc.abstractmethod
    def q(self, w: Float[Array, "signs d"]) -> Float[Array, "signs d"]:
        """`φ_ε(w)`, capped: for the stages of a step."""

    @abc.abstractmethod
    def slope(
        self, w: Float[Array, "signs d"], q: Float[Array, "signs d"]
    ) -> Float[Array, "signs d"]:
        """The derivative `−φ_ε'(w) ≥ 0`, given `q = φ_ε(w)`."""

    @abc.abstractmethod
    def read(self, w: Float[Array, "signs d"]) -> Float[Array, "signs d"]:
        """`φ_ε(w)` at an accepted state, for output."""

    def balance(
        self, w: Float[Array, "3 d"], is_output: bool
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]] | None:
        """`log √(q⁺q⁻)` and `v`; `None` if the link takes no third row."""
        return None

    def has_third_row(self) -> bool:
        """Whether `w` has the row of `g`."""
        return False

    @property
    def rows(self) -> Float[Array, "rows d"]:
        """`w(0)`, with the row of `g` if there is one."""
        if not self.has_third_row():
            return self.start
        return jnp.concatenate([self.start, jnp.zeros_like(self.start[:1])])

    def _h(self, w: Float[Array, "3 d"]) -> Float[Array, " d"]:
        return (self.start[1] - self.start[0]) / 2 + w[2]

    def x(self, w: Float[Array, "rows d"], is_output: bool = False) -> Float[Array, " d"]:
        """`x`, of `q` or as `read`."""
        signs = len(self.start)
        q = (self.read if is_output else self.q)(w[:signs])
        balance = self.balance(w, is_output) if len(w) > signs else None
        if balance is None:
            return signed(q)
        log_mean, v = balance
        is_near = jnp.abs(v) < 1
        mean = jnp.exp(jnp.minimum(log_mean, self.log_cap[0]))
        return jnp.where(is_near, 2 * mean * jnp.sinh(jnp.where(is_near, v, 0)), signed(q))

    def response(
        self, w: Float[Array, "rows d"]
    ) -> tuple[Float[Array, " d"], Float[Array, "rows d"]]:
        """`x`, and the slopes `−φ_ε'(w)`; with the third row, their difference in one."""
        signs = len(self.start)
        x, slope = self.x(w), self.slope(w[:signs], self.q(w[:signs]))
        if len(w) > signs:
            slope = jnp.concatenate([slope, self.tilt(slope, x)[None]])
        return x, slope

    def tilt(self, slope: Float[Array, "2 d"], x: Float[Array, " d"]) -> Float[Array, " d"]:
        """The difference of the slopes of both signs."""
        return slope[0] - slope[1]

    def is_consistent(self, w: Float[Array, "signs d"]) -> Bool[Array, ""]:
        """Whether a user's link is non-negative at the accepted state `w`."""
        return jnp.asarray(True)

    def is_held(self) -> Bool[Array, ""]:
        """Whether the dtype resolves `w` of an active coordinate at this `ε`."""
        return jnp.asarray(True)

    def is_in_range(self, x: Float[Array, "... d"]) -> Bool[Array, ""]:
        """Whether all entries of `x` are below the cap."""
        # A factor 0.999 in the logarithm, so that an entry at the cap counts as out of range,
        # whatever the rounding of exp and log: about 3e-6 of 22 in float32, a factor of 1e4 below
        # this margin.
        cap = jnp.broadcast_to(self.log_cap[0], x.shape)
        return jnp.all(jnp.log(jnp.abs(x)) < 0.999 * cap)

    def validity(self) -> RESULTS:
        """Whether the start is valid: `w(0)` is finite (it is infinite for a degenerate shape, from
        which a coordinate never moves), `x(0)` is in range, and `is_held`."""
        in_range = jnp.all(jnp.isfinite(self.start)) & self.is_in_range(self.read(self.start))
        return first_failure(
            (in_range, RESULTS.invalid_shape), (self.is_held(), RESULTS.invalid_eps)
        )
