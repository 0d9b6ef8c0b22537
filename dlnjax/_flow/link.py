"""The link function `q = φ_ε(w)` of a dual network, as the terms of the flow evaluate it.

| class | `φ_ε(w)` | used where |
|---|---|---|
| `ExponentialLink` | `exp(−w log(1/ε))` | `growth` is an exponential: depth 2 |
| `PowerLink` | `ε w^{−a}` | `growth` is a power: depth `D > 2`, `a = D/(D−2)` |
| `NetworkLink` | the network's own `link` | `growth` is `None` |
| `ModelLink` | the positive and negative part of its `model` | `x` is no difference of links |

Trial steps of a solver overshoot. So `q` is capped (`cap_of`): without a cap it overflows, and
reverse mode turns the infinity of a rejected step into NaN. An `x` at the cap counts as not finite.
"""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._problem.losses import log_cap
from ..networks import AbstractDualNetwork, Growth
from ..networks.base import has_link
from ..networks.signs import sides
from .link_base import AbstractLink


class ExponentialLink(AbstractLink):
    """The link at depth 2, `φ_ε(w) = exp(−w log(1/ε))`."""

    start: Float[Array, "signs d"]
    log_eps: Float[Array, ""]
    log_cap: Float[Array, "1 d"]
    large_start: bool = eqx.field(static=True)

    def has_third_row(self):
        return self.large_start and len(self.start) == 2

    @property
    def unit(self):
        # Over it, q changes by the factor ε.
        return jnp.ones_like(self.start)

    def q(self, w):
        return jnp.exp(jnp.minimum(w * self.log_eps, self.log_cap))

    def slope(self, w, q):
        return -self.log_eps * q

    def read(self, w):
        return self.q(w)

    def balance(self, w, is_output):
        return self.log_eps * (w[0] + w[1]) / 2, -self.log_eps * self._h(w)

    def tilt(self, slope, x):
        return -self.log_eps * x


class PowerLink(AbstractLink):
    """The link at depth `D > 2`, `φ_ε(w) = ε w^{−a}`, with a pole at `w = 0`.

    An active coordinate has `w = (ε/q)^{1/a}`, which for small `ε` is far below the rounding of
    `w(0)`. With `u` the rounding unit, two effects limit how small `w` may become:

    - the rounding of `s`: near the pole a coordinate moves within `δs ≈ (ε/q)^{1/a}/ρ`, for a
      correlation `ρ` with the residual;
    - the rounding of the steps that add up from `w(0)` to `w`: an error `u w(0)/w` relative to `w`.
      It affects `x` only where more coordinates are active than `X` has rank: otherwise `Xx = y`
      determines them.

    So each coordinate is integrated with an `ε` no smaller than the one for which its active `w` is
    `u^{2/3} w(0)` (4e-11 w(0) in float64). If the true `ε` is smaller, `x̄` has an error of this
    size, `u^{2/3}`, which is its distance to the limit `ε → 0`, and the choice among linearly
    dependent columns has one of `u^{1/3}`.
    """

    start: Float[Array, "signs d"]
    alone: Float[Array, "signs d"]  # w(0); where x starts at a size of its own, that of both signs
    exponent: Float[Array, ""]  # a
    log_eps: Float[Array, "signs d"]  # that of the network
    acting_log_eps: Float[Array, "signs d"]  # that of the integration, which is not smaller
    log_cap: Float[Array, "1 d"]
    large_start: bool = eqx.field(static=True)

    def __init__(
        self,
        growth: Growth,
        start: Array,
        limit: Array,
        largest_x: Array,
        log_cap: Array,
        large_start: bool,
    ):
        self.start, self.log_cap, self.large_start = start, log_cap, large_start
        # There `w` goes up to their sum, which is conserved, and rounds as that does.
        alone = jnp.where(limit > 0, limit, jnp.sum(limit, axis=0)[None, :])
        self.alone = lax.stop_gradient(jnp.where(alone > 0, alone, 1))
        self.exponent = exponent = 1 / jnp.asarray(growth.exponent, start.dtype)
        # From log q(0) = log ε − a log w(0).
        self.log_eps = growth.log_initial + exponent * jnp.log(start)
        self.acting_log_eps = jnp.maximum(
            self.log_eps, _least_log_eps(exponent, self.alone, largest_x)
        )

    def has_third_row(self):
        return self.large_start and len(self.start) == 2

    @property
    def unit(self):
        # A coordinate jumps when its w has come from w(0) to 0.
        return self.alone

    def is_held(self):
        # A larger ε in place of the true one would move a start of the size of x.
        return jnp.all(self.start >= jnp.finfo(self.start.dtype).eps ** (2 / 3) * self.alone)

    def _q(self, w: Array, log_eps: Array) -> Array:
        w = jnp.maximum(w, jnp.finfo(w.dtype).tiny)
        return jnp.exp(jnp.minimum(log_eps - self.exponent * jnp.log(w), self.log_cap))

    def q(self, w):
        return self._q(w, self.acting_log_eps)

    def slope(self, w, q):
        return self.exponent * q / jnp.maximum(w, jnp.finfo(w.dtype).tiny)

    def read(self, w):
        # Inactive coordinates are returned with the true ε, so that x(0) is exact. The switch at
        # w = u^{1/3} w(0) is half way, in digits, between w(0) and an active w. Where the two ε
        # differ, q is at most u^{a/3} x there, with a > 1, so that the jump is small.
        away = w > jnp.finfo(w.dtype).eps ** (1 / 3) * self.alone
        return self._q(w, jnp.where(away, self.log_eps, self.acting_log_eps))

    def balance(self, w, is_output):
        log_eps = self.log_eps if is_output else self.acting_log_eps
        h, w = self._h(w), jnp.maximum(w[:2], jnp.finfo(w.dtype).tiny)
        # Beyond 0.9 |v| is above 1, as a is.
        ratio = jnp.clip(2 * h / jnp.sum(w, axis=0), -0.9, 0.9)
        v = (log_eps[0] - log_eps[1]) / 2 + self.exponent * jnp.arctanh(ratio)
        return jnp.sum(log_eps - self.exponent * jnp.log(w), axis=0) / 2, v


def _least_log_eps(exponent: Array, start: Array, largest_x: Array) -> Array:
    """The `ε` of a power link for which an active `w` is `u^{2/3} w(0)`."""
    # The power 2/3 was chosen between the two errors of `PowerLink`, u^{2/3} and u^{1/3}. With a
    # bound on w smaller by 100 the choice among dependent columns would have errors of 6e-4 instead
    # of 6e-6 in float64; with one larger by 100, x̄ would have errors of 4e-9 instead of 4e-11.
    unit = jnp.finfo(start.dtype).eps
    smallest = unit ** (2 / 3) * start
    # One size of x for all coordinates: how their ε compare decides which x is selected among
    # linearly dependent columns. In columns that are larger by a factor c an active w is then
    # larger by c^{1/a}; beyond c = u^{−1/3} that would be more than the error of the steps.
    size = jnp.minimum(jnp.max(largest_x), jnp.min(largest_x) / unit ** (1 / 3))
    return lax.stop_gradient(exponent * jnp.log(smallest)) + jnp.log(size)


class NetworkLink(AbstractLink):
    """The `link` method of a network without `growth`, differentiated automatically.

    If the link has a pole at `w = 0`, as a power has, an `ε` for which an active coordinate has
    `w < u^{2/3} w(0)`, with `u` the rounding unit, is refused: the rounding errors are those of
    `PowerLink`, but without `growth` no larger `ε` can be substituted.
    """

    start: Float[Array, "signs d"]
    network: "AbstractDualNetwork | _Along"
    log_eps: Float[Array, ""]
    has_pole: Bool[Array, "signs d"]
    at_wall: Float[Array, "signs d"]  # φ_ε(0⁺): finite, or ∞ at a pole
    is_resolved: Bool[Array, ""]
    log_cap: Float[Array, "1 d"]

    def __init__(
        self,
        network: "AbstractDualNetwork | _Along",
        start: Array,
        log_eps: Array,
        largest_x: Array,
        log_cap: Array,
    ):
        self.start, self.network, self.log_eps, self.log_cap = start, network, log_eps, log_cap
        unit = jnp.finfo(start.dtype).eps
        link = lambda w: lax.stop_gradient(network.link(lax.stop_gradient(w), log_eps))
        size = jnp.where(start == 0, 1, jnp.abs(start))  # large initialisations start at w ≤ 0
        # φ_ε(0⁺) is evaluated at w = u⁴ (2e-63 in float64, 2e-28 in float32), still a normal
        # number: for the ε that are accepted, a power is there u^{−10/3} times the largest x or
        # more. The 4 units of rounding keep a smooth link, which may come out a unit lower at w < 0
        # than at 0⁺, from looking like one with a pole.
        self.at_wall = (1 - 4 * unit) * link(unit**4 * size)
        least = unit ** (2 / 3) * size
        # A link without a pole, such as an exponential, is larger at −w than at w: all ε are fine.
        # For powers it is equal (even), negative (odd) or NaN. The exponential's ratio is
        # 1 + 2 · 4e-11 log(1/ε) in float64, far above 4 units of rounding.
        goes_on = link(-least) > (1 + 4 * unit) * link(least)
        self.is_resolved = jnp.all(goes_on | (link(least) >= largest_x))
        self.has_pole = ~goes_on

    @property
    def unit(self):
        # As of a power where there is a pole, as of an exponential where there is none.
        size = jnp.where(self.start == 0, 1, jnp.abs(self.start))
        return jnp.where(self.has_pole, lax.stop_gradient(size), 1)

    def is_held(self):
        return self.is_resolved

    def _link(self, w: Array) -> Array:
        # Only trial steps reach w < 0. Beyond a pole at 0 a link may be negative, infinite, NaN or
        # decreasing: q is then the cap. A link that is negative at w > 0 is a fault of the network,
        # which `is_consistent` finds.
        q = lax.stop_gradient(self.network.link(w, self.log_eps))
        top = jnp.exp(self.log_cap)
        good = (q >= 0) & (q < top) & ~((w < 0) & (q < self.at_wall))
        beyond = jnp.where((q < 0) & (w > 0), 0, top)
        # Evaluated again, at w(0) where the cap is chosen: derivatives of the branch that `where`
        # discards may be infinite, and times 0 they are NaN.
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


class ModelLink(AbstractLink):
    """The `model` of a network, whose `x` is no difference of links: `q` is the positive and the
    negative part of `x`, and the slopes are the derivatives of `x` in the two rows of `w`.

    Where the network has a `limit_growth` that is a power, one `ε` of all coordinates is held as
    `PowerLink` holds it. Otherwise an `ε` is refused, and trial steps beyond a pole have the cap,
    as in `NetworkLink`: the model is one along the line of constant `w⁺ + w⁻`.
    """

    start: Float[Array, "signs d"]
    network: Any  # tabulated
    log_eps: Float[Array, ""]
    acting_log_eps: Float[Array, ""]
    least: Float[Array, "signs d"] | None  # of a power: the w at which x is at the cap
    unit_of_w: Float[Array, "signs d"]
    is_resolved: Bool[Array, ""]
    log_cap: Float[Array, "1 d"]

    def __init__(
        self,
        network: AbstractDualNetwork,
        start: Array,
        log_eps: Array,
        largest_x: Array,
        log_cap: Array,
    ):
        self.start, self.log_eps, self.log_cap = start, log_eps, log_cap
        self.network = tabulated = network.tabulated()
        growth = network.limit_growth(log_eps)
        if growth is not None and not growth.is_exponential:
            a = 1 / jnp.asarray(growth.exponent, start.dtype)
            # log q + a log w, where x has grown far.
            size = growth.log_initial + a * jnp.log(start)
            shift = jnp.max(_least_log_eps(a, start, largest_x) - size)
            self.acting_log_eps = jnp.maximum(log_eps, lax.stop_gradient(log_eps + shift))
            acting_size = size + self.acting_log_eps - log_eps
            self.least = lax.stop_gradient(jnp.exp((acting_size - log_cap) / a))
            self.unit_of_w = lax.stop_gradient(start)
            self.is_resolved = jnp.asarray(True)
        else:
            self.acting_log_eps, self.least = log_eps, None
            along = _Along(tabulated, jnp.sum(start, axis=0))
            link = NetworkLink(along, start, log_eps, largest_x, log_cap)
            self.unit_of_w, self.is_resolved = link.unit, link.is_resolved

    @property
    def unit(self):
        return self.unit_of_w

    def is_held(self):
        return self.is_resolved

    def _x(self, w: Array, log_eps: Array) -> Array:
        if self.least is not None:
            return self.network.model(jnp.maximum(w, self.least), log_eps)
        # As in `NetworkLink._link`.
        x = lax.stop_gradient(self.network.model(w, log_eps))
        top = jnp.exp(self.log_cap[0])
        good = jnp.abs(x) < top
        beyond = top if len(w) == 1 else jnp.where(w[0] <= w[1], top, -top)
        x = self.network.model(jnp.where(good[None], w, self.start), log_eps)
        return jnp.where(good, x, beyond)

    def _parts(self, x: Array) -> Array:
        return jnp.maximum(sides(x, self.start), 0)

    def q(self, w):
        return self._parts(self._x(w, self.acting_log_eps))

    def slope(self, w, q):
        _, change = jax.linearize(lambda w: self._x(w, self.acting_log_eps), w)
        rows = jnp.eye(len(w), dtype=w.dtype)[:, :, None] * jnp.ones_like(w)[None]
        by_row = jax.vmap(change)(rows)
        return jnp.maximum(by_row * jnp.asarray([[-1.0], [1.0]], w.dtype)[: len(w)], 0)

    def read(self, w):
        # As in `PowerLink.read`: the true ε where a coordinate is inactive.
        x = self._x(w, self.acting_log_eps)
        if self.least is not None:
            away = jnp.all(w > jnp.finfo(w.dtype).eps ** (1 / 3) * self.start, axis=0)
            x = jnp.where(away, self._x(w, self.log_eps), x)
        return self._parts(x)


class _Along(eqx.Module):
    """A `model` along the line `w⁺ + w⁻ = total`, as a link of each sign."""

    network: Any
    total: Float[Array, " d"]

    def link(self, w: Array, log_eps: Array) -> Array:
        if len(w) == 1:
            return self.network.model(w, log_eps)[None]
        plus = jnp.stack([w[0], self.total - w[0]])
        minus = jnp.stack([self.total - w[1], w[1]])
        return jnp.stack([self.network.model(plus, log_eps), -self.network.model(minus, log_eps)])


def cap_of(largest_x: Float[Array, "1 d"]) -> Float[Array, "1 d"]:
    """The logarithm of the largest `q` that a link returns."""
    # The fourth root of the largest number (`log_cap`) in the units of x, where these are large: a
    # flow does not depend on the units of the data. At most the square root, since log(1/ε) times q
    # must be finite too; q is multiplied by ‖X_i‖², which is small where x is large.
    cap = log_cap(largest_x.dtype)
    return jnp.clip(cap + jnp.log(jnp.maximum(largest_x, 1)), cap, 2 * cap)


def link_of(
    network: AbstractDualNetwork,
    log_eps: Float[Array, ""],
    largest_x: Float[Array, " d"],
    large_start: bool = False,
) -> AbstractLink:
    """The link of a network, in the most accurate form: by its `growth`, if there is one.

    `largest_x` is how large each entry of `x` may become, without derivatives; `large_start` asks
    for the third row (`link_base.py`)."""
    start, largest_x = network.initial_dual(log_eps), largest_x[None]
    cap = cap_of(largest_x)
    if not has_link(network):
        return ModelLink(network, start, log_eps, largest_x, cap)
    growth = network.growth(log_eps)
    if growth is None:
        return NetworkLink(network, start, log_eps, largest_x, cap)
    if growth.is_exponential:
        return ExponentialLink(start, log_eps, cap, large_start)
    limit = network.initial_dual(jnp.full_like(log_eps, -jnp.inf))
    return PowerLink(growth, start, limit, largest_x, cap, large_start)
