"""Diagonal linear networks: `UV`, `USquared`, `Deep`."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, check_scalar, is_concrete, to_common_dtype
from .base import AbstractDualNetwork, Constant, Growth, as_network_weights


def _exponential_link(w: Array, log_eps: Array) -> Array:
    return jnp.exp(w * log_eps)


def _exponential_dual(shape: Array, log_eps: Array) -> Array:
    return 1 + 2 * jnp.log(jnp.abs(shape)) / log_eps


def _exponential_growth(shape: Array, log_eps: Array) -> Growth:
    start = 2 * jnp.log(jnp.abs(shape)) + log_eps
    return Growth(start, jnp.broadcast_to(-1 / log_eps, start.shape), 0.0)


class UV(AbstractDualNetwork):
    """`x = u∘v`, loss `ℓ(x) + λ/2 (‖u‖² + ‖v‖²)`, from `(ε^½ β, ε^½ γ)`; `t = s log(1/ε)/2`.

    !!! cite "Reference"

        [B25] §2: arXiv 2509.18766. Its figures use `β = 1`, `γ = 0`.
    """

    u: Float[Array, " d"]
    v: Float[Array, " d"]
    positive: ClassVar[bool] = False

    def __init__(self, u: ArrayLike, v: ArrayLike):
        """**Arguments:** `u = β` and `v = γ`, the shape of the initialisation, each `(d,)`.

        **Raises:** `ValueError` for mismatched shapes, NaN or inf, or `βᵢ = ±γᵢ`, from
        where a coordinate could never leave 0 in one direction.
        """
        u, v = as_network_weights(u, "u"), as_network_weights(v, "v")
        if u.shape != v.shape:
            raise ValueError(f"`u` and `v` must have the same shape, got {u.shape} and {v.shape}.")
        self.u, self.v = to_common_dtype(u, v)
        if is_concrete(u, v):
            bad = np.flatnonzero(np.abs(np.asarray(u)) == np.abs(np.asarray(v)))
            if len(bad):
                i = int(bad[0])
                raise ValueError(
                    f"Degenerate shape: |u[{i}]| = |v[{i}]| = {abs(float(u[i]))}. From there "
                    "`u∘v` keeps its sign forever. Use different sizes, such as u = 1, v = 0; "
                    "where all weights do start equal, `USquared(u)` is that network, at the same "
                    "ε and s."
                )

    def __call__(self) -> Array:
        return self.u * self.v

    def initial(self, log_eps: Array) -> "UV":
        scale = jnp.exp(log_eps / 2)
        weights = (self.u * scale, self.v * scale)
        return eqx.tree_at(lambda net: (net.u, net.v), self, weights)

    def time_scale(self, log_eps: Array) -> Array:
        return -log_eps / 2

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay / 2 * (jnp.sum(self.u**2) + jnp.sum(self.v**2))

    def link(self, w: Array, log_eps: Array) -> Array:
        return _exponential_link(w, log_eps)

    def initial_dual(self, log_eps: Array) -> Array:
        return _exponential_dual(self._shape(), log_eps)

    def growth(self, log_eps: Array) -> Growth:
        return _exponential_growth(self._shape(), log_eps)

    def _shape(self):
        return jnp.stack([self.u + self.v, self.u - self.v]) / 2


class USquared(AbstractDualNetwork):
    """`x = u∘u`, loss `ℓ(x) + λ‖u‖²`, from `ε^½ α`; `t = s log(1/ε)/4`. Compares with the
    positive lasso.

    !!! cite "Reference"

        [B25] §3: arXiv 2509.18766; [B23] JMLR 24(171).
    """

    u: Float[Array, " d"]
    positive: ClassVar[bool] = True

    def __init__(self, u: ArrayLike):
        """**Arguments:** `u = α`, the shape of the initialisation, `(d,)`.

        **Raises:** `ValueError` for NaN or inf, or `αᵢ = 0`, which never moves.
        """
        self.u = as_network_weights(u, "u")
        if is_concrete(self.u):
            bad = np.flatnonzero(np.asarray(self.u) == 0)
            if len(bad):
                raise ValueError(
                    f"Degenerate shape: u[{int(bad[0])}] = 0 never moves under gradient "
                    "flow. Use a non-zero shape, such as 1."
                )

    def __call__(self) -> Array:
        return self.u**2

    def initial(self, log_eps: Array) -> "USquared":
        return eqx.tree_at(lambda net: net.u, self, self.u * jnp.exp(log_eps / 2))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return -math.inf  # each weight keeps its sign, and its digits

    def time_scale(self, log_eps: Array) -> Array:
        return -log_eps / 4

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay * jnp.sum(self.u**2)

    def link(self, w: Array, log_eps: Array) -> Array:
        return _exponential_link(w, log_eps)

    def initial_dual(self, log_eps: Array) -> Array:
        return _exponential_dual(self.u[None, :], log_eps)

    def growth(self, log_eps: Array) -> Growth:
        return _exponential_growth(self.u[None, :], log_eps)


class Deep(AbstractDualNetwork):
    """`x = u^D − v^D` with `u, v > 0` and real `D ≥ 2`, from `(ε^{1/D} u, ε^{1/D} v)`. At `D = 2`,
    loss `ℓ(x) + λ(‖u‖² + ‖v‖²)` and `t = s log(1/ε)/4`; at `D > 2` no weight decay, and
    `t = s / (D(D−2) ε^{1−2/D})`.

    Without decay gradient flow conserves `u∘v` at `D = 2` and `u^{2−D} + v^{2−D}` at `D > 2`.

    At `D > 2` in `gradient_flow`, `ε` acts on an active coordinate no smaller than where `w` is
    `u^{2/3} w(0)`, `u` the unit of rounding: in float64 4e-11, about `ε = 5e-32` at `D = 3` and
    1e-21 at `D = 4`. Below that `x_mean` is within about 4e-11 of its limit.

    !!! cite "Reference"

        [W23] Wind, Antun, Hansen, arXiv 2307.07410; [Woo20] §5, arXiv 2002.09277.
    """

    u: Float[Array, " d"]
    v: Float[Array, " d"]
    _depth: Constant | None  # None: 2
    positive: ClassVar[bool] = False

    def __init__(self, u: ArrayLike, v: ArrayLike, *, depth: ArrayLike):
        """**Arguments:**

        - `u` and `v`: the shape of the initialisation, each `(d,)`, positive.
        - `depth`: `D`. The Python number 2 is depth 2; anything else is an array above 2, by
            which one can differentiate and over which one can `vmap`.

        **Raises:** `ValueError` for mismatched shapes, NaN or inf, a weight that is not positive,
        `D < 2`, an array equal to 2.
        """
        u, v = as_network_weights(u, "u"), as_network_weights(v, "v")
        if u.shape != v.shape:
            raise ValueError(f"`u` and `v` must have the same shape, got {u.shape} and {v.shape}.")
        u, v = to_common_dtype(u, v)
        for name, weights in (("u", u), ("v", v)):
            if is_concrete(weights):
                bad = np.flatnonzero(~(np.asarray(weights) > 0))
                if len(bad):
                    i = int(bad[0])
                    raise ValueError(
                        f"The weights of `Deep` must be positive, got {name}[{i}] = "
                        f"{float(weights[i])}. For `x(0) = 0` take u = v = 1."
                    )
        self.u, self.v = u, v
        self._depth = None if _is_two(depth) else Constant(_as_depth(depth, u.dtype))

    @property
    def depth(self) -> Float[Array, ""] | int:
        """`D`; the Python number 2 at depth 2."""
        return 2 if self._depth is None else self._depth.value

    @property
    def exponent(self) -> Float[Array, ""] | None:
        """`a = D/(D−2)`, of the link `ε w^{−a}`; `None` at depth 2."""
        return None if self._depth is None else self._depth.value / (self._depth.value - 2)

    def _shape(self) -> Array:
        # NaN in place of what the constructor refuses, so that traced lanes are found invalid.
        shape = jnp.stack([self.u, self.v])
        allowed = shape > 0
        if self._depth is not None:
            allowed = allowed & (self._depth.value > 2) & jnp.isfinite(self._depth.value)
        return jnp.where(allowed, shape, jnp.nan)

    def __call__(self) -> Array:
        # Trial steps may cross 0, where a real power is NaN.
        return jnp.abs(self.u) ** self.depth - jnp.abs(self.v) ** self.depth

    def initial(self, log_eps: Array) -> "Deep":
        u, v = self._shape() * jnp.exp(log_eps / self.depth)
        return eqx.tree_at(lambda net: (net.u, net.v), self, (u, v))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return -math.inf  # each weight keeps its sign, and its digits

    def time_scale(self, log_eps: Array) -> Array:
        if self._depth is None:
            return -log_eps / 4
        depth = self.depth
        return jnp.exp((2 / depth - 1) * log_eps) / (depth * (depth - 2))

    def penalty(self, weight_decay: Array) -> Array:
        """**Raises:** `ValueError` for weight decay at `D > 2` (NaN under tracing)."""
        if self._depth is None:
            return weight_decay * (jnp.sum(self.u**2) + jnp.sum(self.v**2))
        if is_concrete(weight_decay) and float(weight_decay) != 0:
            raise ValueError(
                f"A network of depth {self.depth} takes no weight decay, got "
                f"{float(weight_decay)}: its flow would not close in the dual variable. Use "
                "`weight_decay=0`, or `depth=2`."
            )
        return jnp.where(weight_decay == 0, 0, jnp.nan).astype(self.u.dtype)

    def link(self, w: Array, log_eps: Array) -> Array:
        if self.exponent is None:
            return _exponential_link(w, log_eps)
        return jnp.exp(log_eps - self.exponent * jnp.log(w))

    def initial_dual(self, log_eps: Array) -> Array:
        if self._depth is None:
            return _exponential_dual(self._shape(), log_eps)
        return jnp.exp((2 - self.depth) * jnp.log(self._shape()))  # NaN ** 0 would be 1

    def growth(self, log_eps: Array) -> Growth:
        if self._depth is None:
            return _exponential_growth(self._shape(), log_eps)
        start, p = self.depth * jnp.log(self._shape()) + log_eps, 1 - 2 / self.depth
        return Growth(start, p * self.initial_dual(log_eps), p)


def _is_two(depth: ArrayLike) -> bool:
    return isinstance(depth, int | float) and depth == 2


def _as_depth(value: ArrayLike, dtype) -> Array:
    depth = as_float(value, "depth", dtype)
    check_scalar(depth, "depth")
    if is_concrete(depth) and not 2 < float(depth) < np.inf:
        remedy = (
            "Pass the Python number 2: at depth 2 the network has another link."
            if float(depth) == 2
            else "`u^D − v^D` needs a depth of at least 2."
        )
        raise ValueError(f"`depth` must be finite and above 2, got {depth}. {remedy}")
    return depth
