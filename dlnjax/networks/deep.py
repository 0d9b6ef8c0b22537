"""`Deep`: the network `x = u^D − v^D` of real depth `D ≥ 2`.

    D = 2:  q = exp(w log ε),              w(0) = 1 + 2 log(shape)/log ε;
    D > 2:  q = ε w^{−a}, a = D/(D−2),     w(0) = shape^{2−D},

with `q⁺ = u^D`, `q⁻ = v^D` and `q(0) = ε shape^D`. In the terms of `Growth`, `p = 1 − 2/D` and
`h = p w(0)` at `D > 2`.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, check_scalar, is_concrete, to_common_dtype
from .base import AbstractDualNetwork, Constant, as_network_weights
from .depth2 import exponential_growth, exponential_link, exponential_w
from .growth import Growth


class Deep(AbstractDualNetwork):
    """The network `x = u^D − v^D` with `u, v > 0` and real `D ≥ 2`, start `(ε^{1/D} u, ε^{1/D} v)`.

    At `D = 2` the loss is `ℓ(x) + λ(‖u‖² + ‖v‖²)` and `t = s log(1/ε)/4`; at `D > 2` there is no
    weight decay, and `t = s / (D(D−2) ε^{1−2/D})`. Without decay gradient flow conserves `u∘v` at
    `D = 2` and `u^{2−D} + v^{2−D}` at `D > 2`.

    At `D > 2`, `gradient_flow` integrates an active coordinate with an `ε` no smaller than the one
    for which its `w` is `eps^{2/3} w(0)`, `eps` the rounding unit: in float64 about 5e-32 at depth
    3 and 1e-21 at depth 4. If the true `ε` is smaller, `x_mean` is within about 4e-11 of its limit.

    !!! example

        ```python
        network = dln.Deep(jnp.ones(2), jnp.ones(2), depth=3)
        network()  # (0, 0)
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, -1.0]))
        dln.limit_flow(network, problem).x(2.0)  # (1.5, −0.5), the lasso at μ = 2
        ```

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
                        f"{float(np.asarray(weights)[i])}. For `x(0) = 0` take u = v = 1."
                    )
        self.u, self.v = u, v
        self._depth = None if _is_two(depth) else Constant(_as_depth(depth, u.dtype))

    @property
    def depth(self) -> Float[Array, ""] | int:
        """The depth `D`; the Python number 2 at depth 2."""
        return 2 if self._depth is None else self._depth.value

    @property
    def exponent(self) -> Float[Array, ""] | None:
        """The exponent `a = D/(D−2)` of the link `ε w^{−a}`; `None` at depth 2."""
        return None if self._depth is None else self._depth.value / (self._depth.value - 2)

    def _shape(self) -> Array:
        # NaN for values that the constructor would refuse, so that traced lanes are found invalid.
        shape = jnp.stack([self.u, self.v])
        allowed = shape > 0
        if self._depth is not None:
            allowed = allowed & (self._depth.value > 2) & jnp.isfinite(self._depth.value)
        return jnp.where(allowed, shape, jnp.nan)

    def __call__(self) -> Array:
        # Trial steps of the weight form may cross 0, and a real power of a negative number is NaN.
        return jnp.abs(self.u) ** self.depth - jnp.abs(self.v) ** self.depth

    def initial(self, log_eps: Array) -> "Deep":
        u, v = self._shape() * jnp.exp(log_eps / self.depth)
        return eqx.tree_at(lambda net: (net.u, net.v), self, (u, v))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        # The sign of x is that of a difference of two powers, which are known to relative rounding.
        return -math.inf

    def time_scale(self, log_eps: Array) -> Array:
        if self._depth is None:
            return -log_eps / 4
        depth = self.depth
        return jnp.exp((2 / depth - 1) * log_eps) / (depth * (depth - 2))

    def penalty(self, weight_decay: Array) -> Array:
        """`λ(‖u‖² + ‖v‖²)` at depth 2.

        **Raises:** `ValueError` for weight decay at `D > 2` (under tracing, it is NaN).

        !!! example

            ```python
            dln.Deep(jnp.ones(2), jnp.ones(2), depth=2).penalty(jnp.array(0.5))  # 0.5 · (2 + 2) = 2
            ```
        """
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
            return exponential_link(w, log_eps)
        return jnp.exp(log_eps - self.exponent * jnp.log(w))

    def initial_dual(self, log_eps: Array) -> Array:
        if self._depth is None:
            return exponential_w(self._shape(), log_eps)
        # As exp of a product, since NaN ** 0 is 1, and the shape of an invalid lane is NaN.
        return jnp.exp((2 - self.depth) * jnp.log(self._shape()))

    def growth(self, log_eps: Array) -> Growth:
        if self._depth is None:
            return exponential_growth(self._shape(), log_eps)
        start, p = self.depth * jnp.log(self._shape()) + log_eps, 1 - 2 / self.depth
        return Growth(start, p * self.initial_dual(log_eps), p)

    def _with_log_q(self, log_q: Array) -> "Deep":
        u, v = jnp.exp(log_q / self.depth)
        return eqx.tree_at(lambda net: (net.u, net.v), self, (u, v))


def _is_two(depth: ArrayLike) -> bool:
    # Decided by the Python number, so that the kind of link is static.
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
