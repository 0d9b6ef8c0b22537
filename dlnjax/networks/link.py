"""The link `q = φ_ε(w)` of a dual network, as the terms of the flow evaluate it.

Trial steps of a solver overshoot. There `q` is capped: without a cap it overflows, and reverse mode
turns the infinity of a rejected step into NaN. No `x` that counts as finite reaches the cap.
"""

import abc

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float

from .._results import RESULTS, first_failure
from .base import AbstractDualNetwork, Growth, is_in_range, log_cap


class AbstractLink(eqx.Module):
    """All arrays have the shape `(signs, d)` of `w`."""

    start: AbstractVar[Float[Array, "signs d"]]  # w(0)

    @abc.abstractmethod
    def q(self, w: Float[Array, "signs d"]) -> Float[Array, "signs d"]:
        """`φ_ε(w)`, capped."""

    @abc.abstractmethod
    def slope(
        self, w: Float[Array, "signs d"], q: Float[Array, "signs d"]
    ) -> Float[Array, "signs d"]:
        """`−φ_ε'(w) ≥ 0`, where `q = φ_ε(w)`."""

    @abc.abstractmethod
    def read(self, w: Float[Array, "signs d"]) -> Float[Array, "signs d"]:
        """`φ_ε(w)` of a state that was reached, as it is returned."""

    def is_consistent(self, w: Float[Array, "signs d"]) -> Bool[Array, ""]:
        """Whether the network's own link is one at states that were reached: `q ≥ 0`."""
        return jnp.asarray(True)

    def is_held(self) -> Bool[Array, ""]:
        """Whether the dtype resolves `w` where a coordinate is active."""
        return jnp.asarray(True)

    def validity(self) -> RESULTS:
        """Under tracing: a degenerate shape is an infinite dual variable, which never moves."""
        in_range = jnp.all(jnp.isfinite(self.start)) & is_in_range(self.read(self.start))
        return first_failure(
            (in_range, RESULTS.invalid_shape), (self.is_held(), RESULTS.invalid_eps)
        )


class ExponentialLink(AbstractLink):
    """`φ_ε(w) = exp(−w log(1/ε))`, at depth 2."""

    start: Float[Array, "signs d"]
    log_eps: Float[Array, ""]

    def q(self, w):
        return jnp.exp(jnp.minimum(w * self.log_eps, log_cap(w.dtype)))

    def slope(self, w, q):
        return -self.log_eps * q

    def read(self, w):
        return self.q(w)


class PowerLink(AbstractLink):
    """`φ_ε(w) = ε w^{−a}`, with a wall at `w = 0`.

    An active coordinate sits at `w = (ε/q)^{1/a}`, far below the rounding of `w(0)`. Two roundings
    remain, of size `u` (the unit): `s`, in which a coordinate reaches the wall within
    `δs ≈ (ε/q)^{1/a}/ρ`; and the sum of steps that takes `w` from `w(0)` to the wall, relative to
    where it ends. The second only matters where more coordinates are active than `X` has rank,
    since else `Xx = y` determines them. So `ε` acts on a coordinate no smaller than where, active,
    it has `w = u^{2/3} w(0)` (4e-11 in float64). Below that, `x̄` keeps an error of this size, the
    distance to its limit `ε → 0`, and the choice among dependent columns one of `u^{1/3}`.
    """

    start: Float[Array, "signs d"]
    exponent: Float[Array, ""]  # a
    log_eps: Float[Array, "signs d"]
    acting_log_eps: Float[Array, "signs d"]

    def __init__(self, growth: Growth, start: Array, largest_x: Array):
        self.start = start
        self.exponent = exponent = 1 / jnp.asarray(growth.exponent, start.dtype)
        # log q(0) = log ε − a log w(0)
        self.log_eps = growth.log_initial + exponent * jnp.log(start)
        smallest = jnp.finfo(start.dtype).eps ** (2 / 3) * start
        least = lax.stop_gradient(exponent * jnp.log(smallest) + jnp.log(largest_x))
        self.acting_log_eps = jnp.maximum(self.log_eps, least)

    def _q(self, w: Array, log_eps: Array) -> Array:
        w = jnp.maximum(w, jnp.finfo(w.dtype).tiny)
        return jnp.exp(jnp.minimum(log_eps - self.exponent * jnp.log(w), log_cap(w.dtype)))

    def q(self, w):
        return self._q(w, self.acting_log_eps)

    def slope(self, w, q):
        return self.exponent * q / jnp.maximum(w, jnp.finfo(w.dtype).tiny)

    def read(self, w):
        # Away from the wall it is the q of ε itself: exact at s = 0, and tiny.
        away = w > jnp.finfo(w.dtype).eps ** (1 / 3) * self.start
        return self._q(w, jnp.where(away, self.log_eps, self.acting_log_eps))


class NetworkLink(AbstractLink):
    """The link of a network of which nothing else is known, by automatic differentiation.

    A link with a wall at `w = 0`, as a power has, is followed down to where an active coordinate
    sits at `w = u^{2/3} w(0)`, with `u` the unit of rounding. Below that, where `PowerLink` lets a
    larger `ε` act, the sum of steps that leads there loses its digits, and the `ε` is refused.
    """

    start: Float[Array, "signs d"]
    network: AbstractDualNetwork
    log_eps: Float[Array, ""]
    at_wall: Float[Array, "signs d"]  # φ_ε as w falls to 0
    is_resolved: Bool[Array, ""]

    def __init__(
        self, network: AbstractDualNetwork, start: Array, log_eps: Array, largest_x: Array
    ):
        self.start, self.network, self.log_eps = start, network, log_eps
        unit = jnp.finfo(start.dtype).eps
        link = lambda w: lax.stop_gradient(network.link(lax.stop_gradient(w), log_eps))
        size = jnp.where(start == 0, 1, jnp.abs(start))  # large initialisations start at w ≤ 0
        self.at_wall = (1 - 4 * unit) * link(unit**4 * size)
        least = unit ** (2 / 3) * size
        goes_on = link(-least) > (1 + 4 * unit) * link(least)  # as exponentials do
        self.is_resolved = jnp.all(goes_on | (link(least) >= largest_x))

    def is_held(self):
        return self.is_resolved

    def _link(self, w: Array) -> Array:
        # Beyond a wall at 0 a link may be negative, infinite, NaN, or decrease again: only trial
        # steps get there. Where it is negative before, `is_consistent` says so.
        q = lax.stop_gradient(self.network.link(w, self.log_eps))
        top = jnp.exp(jnp.asarray(log_cap(w.dtype), w.dtype))
        good = (q >= 0) & (q < top) & ~((w < 0) & (q < self.at_wall))
        beyond = jnp.where((q < 0) & (w > 0), 0, top)
        # The derivatives of what is not chosen may be infinite: it is asked elsewhere.
        q = self.network.link(jnp.where(good, w, self.start), self.log_eps)
        return jnp.where(good, q, beyond)

    def q(self, w):
        return self._link(w)

    def slope(self, w, q):
        _, derivative = jax.jvp(self._link, (w,), (jnp.ones_like(w),))
        return jnp.maximum(-derivative, 0)

    def read(self, w):
        return self._link(w)

    def is_consistent(self, w):
        return jnp.all((self.network.link(w, self.log_eps) >= 0) | ~jnp.isfinite(w))


def link_of(
    network: AbstractDualNetwork, log_eps: Float[Array, ""], largest_x: Float[Array, ""]
) -> AbstractLink:
    """The most exact form that the network's `growth` tells of. `largest_x` is the size of `x`."""
    start = network.initial_dual(log_eps)
    growth = network.growth(log_eps)
    if growth is None:
        return NetworkLink(network, start, log_eps, largest_x)
    if growth.is_exponential:
        return ExponentialLink(start, log_eps)
    return PowerLink(growth, start, largest_x)
