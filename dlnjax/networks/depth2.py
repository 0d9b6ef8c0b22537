"""The networks of depth 2, `UV` and `USquared`, and their exponential link.

    q = φ_ε(w) = exp(w log ε),    w(0) = 1 + 2 log|shape|/log ε,    q(0) = ε shape²,

so that `log q = log q(0) ± log(1/ε) Xᵀν`: in the terms of `Growth`, `p = 0` and `h = 1/log(1/ε)`.
The shape is `α` for `USquared` and `(β ± γ)/2` for `UV`.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import is_concrete, to_common_dtype
from .base import AbstractDualNetwork, as_network_weights
from .growth import Growth


def exponential_link(w: Array, log_eps: Array) -> Array:
    """`φ_ε(w) = ε^w`."""
    return jnp.exp(w * log_eps)


def exponential_w(shape: Array, log_eps: Array) -> Array:
    """`w(0)`; 1 as `ε → 0`."""
    return 1 + 2 * jnp.log(jnp.abs(shape)) / log_eps


def exponential_growth(shape: Array, log_eps: Array) -> Growth:
    """`Growth` of the exponential link."""
    start = 2 * jnp.log(jnp.abs(shape)) + log_eps
    return Growth(start, jnp.broadcast_to(-1 / log_eps, start.shape), 0.0)


class UV(AbstractDualNetwork):
    """The network `x = u∘v`: loss `ℓ(x) + λ/2 (‖u‖² + ‖v‖²)`, start `(ε^½ β, ε^½ γ)`,
    `t = s log(1/ε)/2`.

    It is signed: `x = q⁺ − q⁻` with `q^± = ((u ± v)/2)²`. Without weight decay its flow conserves
    `u² − v²`.

    !!! example

        ```python
        network = dln.UV(jnp.ones(2), jnp.zeros(2))  # β = 1, γ = 0
        network.initial(jnp.log(1e-4)).u  # √ε β = (0.01, 0.01)
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, -1.0]))
        dln.limit_flow(network, problem).x(2.0)  # (1.5, −0.5), the lasso at μ = 2
        ```

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
                    f"Degenerate shape: |u[{i}]| = |v[{i}]| = {abs(float(np.asarray(u)[i]))}. "
                    "From there `u∘v` keeps its sign forever. Use different sizes, such as u = 1, "
                    "v = 0; where all weights do start equal, `USquared(u)` is that network, at "
                    "the same ε and s."
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
        return exponential_link(w, log_eps)

    def initial_dual(self, log_eps: Array) -> Array:
        return exponential_w(self._shape(), log_eps)

    def growth(self, log_eps: Array) -> Growth:
        return exponential_growth(self._shape(), log_eps)

    def _shape(self):
        return jnp.stack([self.u + self.v, self.u - self.v]) / 2

    def _with_log_q(self, log_q: Array) -> "UV":
        p, m = jnp.sign(self._shape()) * jnp.exp(log_q / 2)
        return eqx.tree_at(lambda net: (net.u, net.v), self, (p + m, p - m))


class USquared(AbstractDualNetwork):
    """The network `x = u∘u ≥ 0`: loss `ℓ(x) + λ‖u‖²`, start `ε^½ α`, `t = s log(1/ε)/4`.

    It compares with the positive lasso, `lasso_path(problem, positive=True)`.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, -1.0]))
        dln.limit_flow(dln.USquared(jnp.ones(2)), problem).x(2.0)  # (1.5, 0)
        ```

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
        # x is not a difference of weights: each weight keeps its sign and its digits.
        return -math.inf

    def time_scale(self, log_eps: Array) -> Array:
        return -log_eps / 4

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay * jnp.sum(self.u**2)

    def link(self, w: Array, log_eps: Array) -> Array:
        return exponential_link(w, log_eps)

    def initial_dual(self, log_eps: Array) -> Array:
        return exponential_w(self.u[None, :], log_eps)

    def growth(self, log_eps: Array) -> Growth:
        return exponential_growth(self.u[None, :], log_eps)

    def _with_log_q(self, log_q: Array) -> "USquared":
        return eqx.tree_at(lambda net: net.u, self, jnp.sign(self.u) * jnp.exp(log_q[0] / 2))
