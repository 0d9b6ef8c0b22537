"""`Pretrained`: a network that starts at a linear model `x₀`, as after an earlier training.

With the conserved quantity of the network's own start (without weight decay, `w⁺ + w⁻`), where
`x₀ ≠ 0`:

    D = 2:  q⁺q⁻ = c²,  q⁺ − q⁻ = x₀,   so that  q = (|x₀| + √(x₀² + 4c²))/2  for the sign of x₀;
    D > 2:  w⁺ + w⁻ = S,  q⁺ − q⁻ = x₀, so that  w⁺/w⁻ = e^{−v},  with `v` by Newton's method.

Both are solved in logarithms: at `log ε = −2000` the smaller `q` is `e^{−4000}`.
"""

import math

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, check_finite, check_type, is_concrete
from .._derivatives import held, vanishing
from .._loops import fori_loop
from .base import AbstractDualNetwork, Constant
from .growth import Growth
from .prior import Prior
from .signs import sides

# Steps of Newton's method for `v`: a fixed number, so that `vmap` has no predicate to carry. By
# experiment (`D − 2` from 1e-3 to 1e3, `log |x₀|/ε` from −700 to 2000) six steps reach 1e-13, and
# five 2e-7. 12 is twice what is needed; more only cost time.
_STEPS = 12


class Pretrained(AbstractDualNetwork):
    """A network that starts at a linear model `x₀` of its own size, not of size `ε`: fine-tuning,
    after an earlier training from a small initialisation.

    Every function takes it: flows in both formulations at any `ε`, their limit `ε → 0`, crossing
    times, end points. Weights, time scale, weight decay and conserved quantities are those of the
    network that it wraps; only where the flow starts is another. Where `x₀ᵢ = 0`, it starts as the
    network alone does. Elsewhere `q⁺ − q⁻ = x₀ᵢ`, and `w⁺ + w⁻` is what the flow of the network
    conserves without weight decay: at depth 2 `q⁺q⁻`, for `UV` `u² − v²`. As `ε → 0`, at depth 2,

        w^±(0) = 1 ∓ sign x₀,

    and the flow ends at the interpolating `x` with the least `Σ w⁺(0)x⁺ + w⁻(0)x⁻`: entries of
    `x₀` cost nothing, and their opposites twice as much as others. Where several have it, it is the
    one with the least `Σ |xᵢ|(log |xᵢ|/sᵢ − 1)`, with `sᵢ = |x₀ᵢ|` where `x₀` has that sign.

    With `exponents` it is instead a start that may shrink with `ε`: `q^± = ε^{a^±}` times the
    square of the shape, so that `w^±(0) = a^±` as `ε → 0`. A positive `x₀` of size `ε^a` has
    `(a, 2 − a)`, the network alone `(1, 1)`.

    At depth `D > 2` an active `w` is of size `(ε/|x₀|)^{1−2/D}`. `gradient_flow` refuses an `ε` for
    which that is below `eps^{2/3} w(0)`, `eps` the rounding unit: in float64 about 5e-32 at depth 3
    and 1e-21 at depth 4. `limit_flow` takes every depth, `end_point` and `limit_point` depth 2.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 2.0]]), jnp.array([3.0]))
        alone = dln.UV(jnp.ones(2), jnp.zeros(2))
        network = dln.Pretrained(alone, jnp.array([1.0, 0.0]))
        dln.end_point(alone, problem, log_eps=-2000.0).x  # (0, 1.5): the least 1-norm
        dln.end_point(network, problem, log_eps=-2000.0).x  # (3, 0): x₁ costs nothing
        dln.limit_flow(network, problem).plateau(1.0)  # (3, 0)
        ```

    !!! cite "Reference"

        Decleves, Boursier, Flammarion (2026), on pretraining and fine-tuning of diagonal linear
        networks; [W23] arXiv 2307.07410, on which minimiser is chosen.
    """

    network: AbstractDualNetwork
    _x0: Constant | None
    _exponents: Constant | None

    def __init__(
        self,
        network: AbstractDualNetwork,
        x0: ArrayLike | None = None,
        *,
        exponents: tuple[ArrayLike, ...] | None = None,
    ):
        """**Arguments:**

        - `network`: `UV`, `USquared`, `Deep` or another `AbstractDualNetwork` of `d` coordinates.
        - `x0`: the linear model `x₀` at which it starts, shape `(d,)`. One can differentiate by it
            and `vmap` over it; an entry that is 0 is held there.
        - `exponents`: instead of `x0`, `(a⁺, a⁻)`, or `(a,)` for a network with `x ≥ 0`: each a
            number or of shape `(d,)`, `≥ 0`. For depth 2 only.

        **Raises:** `TypeError` for another network or one that is pretrained already; `ValueError`
        for both or neither of `x0` and `exponents`, another shape, NaN or inf, an `x0` that is
        negative where the network represents `x ≥ 0`, an exponent below 0, or exponents at
        `D > 2`.
        """
        what = "a network with a dual form, such as `dlnjax.UV(u, v)`"
        check_type(network, "network", AbstractDualNetwork, what)
        if isinstance(network, Pretrained):
            raise TypeError("`network` is `Pretrained` already. Pass the network that it wraps.")
        if (x0 is None) == (exponents is None):
            both = "neither" if x0 is None else "both"
            raise ValueError(f"Pass exactly one of `x0` and `exponents`, got {both}.")
        self.network = network
        self._x0 = None if x0 is None else Constant(as_start(x0, "x0", network))
        self._exponents = None
        if exponents is not None:
            self._exponents = Constant(_as_exponents(exponents, network))

    @property
    def positive(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether `x ≥ 0` always, as of the network that it wraps."""
        return self.network.positive

    @property
    def x0(self) -> Float[Array, " d"] | None:
        """Where it starts, shape `(d,)`; `None` if `exponents` say it."""
        return None if self._x0 is None else self._x0.value

    @property
    def exponents(self) -> Float[Array, "signs d"] | None:
        """`a^±`, shape `(1, d)`, or `(2, d)` for signed networks; `None` if `x0` is given."""
        return None if self._exponents is None else self._exponents.value

    def __call__(self) -> Array:
        return self.network()

    def initial(self, log_eps: Array) -> "Pretrained":
        growth = self.growth(log_eps)
        if growth is None:
            raise TypeError(_needs_growth(self.network))
        weights = self.network._with_log_q(growth.log_initial)
        return eqx.tree_at(lambda net: net.network, self, weights)

    def time_scale(self, log_eps: Array) -> Array:
        return self.network.time_scale(log_eps)

    def penalty(self, weight_decay: Array) -> Array:
        return self.network.penalty(weight_decay)

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return self.network.least_log_eps(dtype)

    def link(self, w: Array, log_eps: Array) -> Array:
        return self.network.link(w, log_eps)

    def initial_dual(self, log_eps: Array) -> Array:
        is_limit = jnp.isneginf(log_eps)
        limit = self._limit_dual(log_eps)
        # In the branch that is not taken derivatives would be NaN.
        finite = jnp.where(is_limit, -1, log_eps)
        growth = self.growth(finite)
        if growth is None:
            # By NumPy: under `jit` `is_limit` is traced, also of a known value.
            if not is_concrete(log_eps) or not np.isneginf(np.asarray(log_eps)):
                raise TypeError(_needs_growth(self.network))
            return limit
        if growth.is_exponential:
            start = growth.log_initial / finite
        else:
            start = growth.unit / growth.exponent
        return jnp.where(is_limit, limit, start)

    def growth(self, log_eps: Array) -> Growth | None:
        alone = self.network.growth(log_eps)
        if alone is None:
            return None
        log_q = self._log_q(alone, log_eps)
        # `h`, relative to another start, is as far as the dual moves while that `q` grows.
        unit = alone.dual_per_log_growth(log_q - alone.log_initial)
        return Growth(log_q, unit, alone.exponent)

    def _towards(self, like: Array) -> Array:
        """`±x₀`, shape `(signs, d)`; NaN if one entry is invalid."""
        assert self.x0 is not None
        return sides(jnp.where(self._has_start(), self.x0, jnp.nan), like)

    def _limit_dual(self, log_eps: Array) -> Array:
        """`w(0)` as `ε → 0`: 0 for the sign of `x₀`, where the coordinate is active; the other sign
        has the sum of both, which is conserved."""
        alone = self.network.initial_dual(jnp.full_like(log_eps, -jnp.inf))
        if self.exponents is not None:
            return jnp.broadcast_to(self.exponents, alone.shape)
        towards = self._towards(alone)
        other = jnp.where(towards < 0, jnp.sum(alone, axis=0)[None, :], alone)
        return jnp.where(jnp.isnan(towards), jnp.nan, jnp.where(towards > 0, 0, other))

    def _log_q(self, alone: Growth, log_eps: Array) -> Array:
        """`log q(0)`, where that of the network alone is `alone.log_initial`."""
        start = alone.log_initial
        if self.exponents is not None:
            return start + (self.exponents - 1) * log_eps
        towards = self._towards(start)
        moves = towards != 0
        log_x = jnp.log(jnp.where(moves, jnp.abs(towards), 1))
        if self.positive:
            return jnp.where(moves, log_x, start)
        pair = _pair if alone.is_exponential else _deep_pair
        own, other = pair(log_x[0], alone)
        return jnp.where(moves, jnp.where(towards < 0, other[None, :], own[None, :]), start)

    def _has_start(self) -> Array:
        if self.exponents is not None:
            return jnp.all(jnp.isfinite(self.exponents) & (self.exponents >= 0))
        assert self.x0 is not None
        allowed = self.x0 >= 0 if self.positive else True
        return jnp.all(jnp.isfinite(self.x0) & allowed)

    def _may_start_active(self) -> bool:
        return True

    def _prior(self, dtype) -> Prior | None:
        prior = self.network._prior(dtype)
        if prior is None or self.exponents is not None:
            return prior
        towards = self._towards(prior.log_s)
        moves = towards != 0
        log_x, p = jnp.log(jnp.where(moves, jnp.abs(towards), 1)), prior.exponent
        if p is None:
            # w⁺ + w⁻ is conserved, hence q⁺q⁻ = s⁺s⁻: if q⁺ = |x₀|, then q⁻ = s⁺s⁻/|x₀|.
            other = jnp.sum(prior.log_s, axis=0)[None, :] - log_x
            log_s = jnp.where(towards < 0, other, prior.log_s)
            log_s = jnp.where(towards > 0, log_x, log_s)
            return Prior(log_s, prior.unit, prior.offset, None)
        # w⁺ + w⁻ is conserved: the sign opposite to x₀ has the offset −o.
        unit = jnp.where(towards[0] > 0, prior.unit[0], prior.unit[-1])
        offset = jnp.sign(towards) * unit[None, :] * jnp.exp(-p * log_x)
        return Prior(prior.log_s, prior.unit, jnp.where(moves, offset, 0), p)

    def _growth_of_prior(self, dtype) -> Growth | None:
        prior = self._prior(dtype)
        # At D > 2 the sign opposite to x₀ would need a negative w(0).
        if prior is None or prior.exponent is not None:
            return None
        return Growth(prior.log_s - self._limit_dual(jnp.ones((), dtype)), prior.unit, 0.0)


def as_start(value: ArrayLike, name: str, network: AbstractDualNetwork) -> Array:
    """`value` as a linear model `x₀` from which `network` may start, shape `(d,)`."""
    model = jax.eval_shape(lambda net: net(), network)
    x = as_float(value, name, model.dtype)
    if x.shape != model.shape:
        raise ValueError(
            f"`{name}` must be a linear model of shape {model.shape}, got {x.shape}. Use "
            "`jax.vmap` for several."
        )
    check_finite(x, name)
    if network.positive and is_concrete(x) and np.any(np.asarray(x) < 0):
        i = int(np.argmax(np.asarray(x) < 0))
        raise ValueError(
            f"`{name}[{i}]` = {float(np.asarray(x)[i])} is negative, but the network represents "
            "`x ≥ 0` only. Use `UV` for signed models."
        )
    return x


def _as_exponents(value: tuple[ArrayLike, ...], network: AbstractDualNetwork) -> Array:
    model = jax.eval_shape(lambda net: net(), network)
    signs = 1 if network.positive else 2
    names = "`(a,)`, as `x ≥ 0`" if network.positive else "`(a_plus, a_minus)`"
    if not isinstance(value, tuple | list) or len(value) != signs:
        raise ValueError(f"`exponents` must be {names}, a tuple of {signs}, got {value!r}.")
    growth = network.growth(-jnp.ones((), model.dtype))
    if growth is None or not growth.is_exponential:
        raise ValueError(
            "`exponents` are known at depth 2, where `w(0)` is the exponent of `ε`, but "
            f"this {type(network).__name__} is deeper or has no `growth`. Pass `x0`."
        )
    rows = []
    for k, row in enumerate(value):
        row = as_float(row, f"exponents[{k}]", model.dtype)
        if row.shape not in ((), model.shape):
            raise ValueError(
                f"`exponents[{k}]` must be a number or have shape {model.shape}, got {row.shape}."
            )
        check_finite(row, f"exponents[{k}]")
        if is_concrete(row) and np.any(np.asarray(row) < 0):
            raise ValueError(
                f"`exponents[{k}]` must be ≥ 0, got {float(np.min(np.asarray(row)))}: `ε^a` would "
                "grow without bound as ε → 0."
            )
        rows.append(jnp.broadcast_to(row, model.shape))
    return jnp.stack(rows)


def _needs_growth(network: AbstractDualNetwork) -> str:
    return (
        f"A pretrained start at ε > 0 needs the link of {type(network).__name__} in logarithms. "
        "Give the network the method `growth`, or use `limit_flow`."
    )


def _pair(log_x: Array, alone: Growth) -> tuple[Array, Array]:
    """`log q` for the sign of `x₀` and for the other one, at depth 2."""
    log_square = jnp.sum(alone.log_initial, axis=0)  # log c²
    root = jnp.logaddexp(2 * log_x, log_square + 2 * math.log(2)) / 2  # log √(x₀² + 4c²)
    own = jnp.logaddexp(log_x, root) - math.log(2)
    return own, log_square - own


def _deep_pair(log_x: Array, alone: Growth) -> tuple[Array, Array]:
    """The same at `D > 2`, where `q = C w^{−a}`: with `w = S e^{∓v/2}/(2 cosh v/2)`,

    `|x₀| = C S^{−a} (1 + e^{−v})^a (e^{av} − 1)`.
    """
    p = jnp.asarray(alone.exponent, log_x.dtype)
    a = 1 / p
    w = alone.unit / p  # w(0) of the network alone
    log_ratio = log_x - alone.log_initial[0] + a * (jnp.log(jnp.sum(w, axis=0)) - jnp.log(w[0]))

    def excess(v: Array) -> tuple[Array, Array]:
        """By how much `av` is too large, and its derivative."""
        inner = log_ratio - a * jnp.log1p(jnp.exp(-v))
        slope = 1 - jax.nn.sigmoid(inner) * jax.nn.sigmoid(-v)
        return a * v - jax.nn.softplus(inner), a * slope

    def newton(_, v):
        off, slope = held(excess(v))
        return v - off / slope

    first = lax.stop_gradient(jax.nn.softplus(log_ratio) / a)
    v = held(fori_loop(0, _STEPS, newton, first))
    for _ in range(2):  # steps of length 0, which have the first two derivatives
        off, slope = excess(v)
        v = v - vanishing(off) / slope
    own = log_x - jnp.log(-jnp.expm1(-a * v))
    return own, own - a * v
