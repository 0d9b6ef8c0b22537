"""`MixedDepth`: some coordinates of depth 1 before those of a diagonal linear network."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from .._checks import check_type
from .base import AbstractDualNetwork, zero_penalty
from .linear import Linear


class MixedDepth(AbstractDualNetwork):
    """The network `x = (u, network())`: its first coordinates are a linear model, such as a bias.

    They start from `εu` and follow `du/dt = −∇ℓ`, in the time `t` of `network`, whose coordinates
    come after them. There is no weight decay. In the dual form `u` moves by `time_scale` times the
    dual. As `ε → 0` it is free: the averaged flow tends to the path of the lasso which does not
    penalise it, `lasso_path(weights=)` with weight 0.

    !!! example

        ```python
        # A bias and a weight that data cannot tell apart: the bias grows, as it is less deep.
        weight = dln.UV(jnp.ones(1), jnp.zeros(1))
        network = dln.networks.MixedDepth(dln.Linear(jnp.zeros(1)), weight)
        problem = dln.LeastSquares(jnp.ones((1, 2)), jnp.array([1.5]))
        flow = dln.gradient_flow(network, problem, jnp.array([1e3]), eps=1e-4)
        flow.x[0]  # (b, w) = (1.4995, 5.0e-4): w = (ε/2) sinh 2b
        ```

    !!! cite "Reference"

        Abbe, Bengio, Lotfi, Rizk, arXiv 2301.13105, on networks with a bias.
    """

    linear: Linear
    network: AbstractDualNetwork
    positive: ClassVar[bool] = False

    def __init__(self, linear: Linear, network: AbstractDualNetwork):
        """**Arguments:** `linear`, the shape of the first coordinates; `network`, a signed network
        with a dual form, such as `UV`, of all others.

        **Raises:** `TypeError` for another type; `ValueError` if `network` is positive.
        """
        check_type(linear, "linear", Linear, "a `dlnjax.Linear`, such as `Linear(jnp.zeros(1))`")
        what = "a network with a dual form, such as `dlnjax.UV(u, v)`"
        check_type(network, "network", AbstractDualNetwork, what)
        if network.positive:
            raise ValueError(
                f"`MixedDepth` takes a signed network, got {type(network).__name__}, whose `x` is "
                "positive. Use `UV`, or `Deep` of depth 2."
            )
        self.linear, self.network = linear, network

    def __call__(self) -> Array:
        return jnp.concatenate([self.linear(), self.network()])

    def initial(self, log_eps: Array) -> "MixedDepth":
        start = self.linear.initial(log_eps), self.network.initial(log_eps)
        return eqx.tree_at(lambda net: (net.linear, net.network), self, start)

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return self.network.least_log_eps(dtype)

    def time_scale(self, log_eps: Array) -> Array:
        return self.network.time_scale(log_eps)

    def penalty(self, weight_decay: Array) -> Array:
        """0: there is no weight decay.

        **Raises:** `ValueError` for weight decay (under tracing, it is NaN).

        !!! example

            ```python
            linear, network = dln.Linear(jnp.zeros(1)), dln.UV(jnp.ones(1), jnp.zeros(1))
            dln.networks.MixedDepth(linear, network).penalty(jnp.array(0.0))  # 0
            ```
        """
        # A linear coordinate with decay forgets: it is no function of the dual at that time.
        return zero_penalty(self, weight_decay, "its flow would not close in the dual variable")

    def model(self, w: Array, log_eps: Array) -> Array:
        k = len(self.linear.u)
        u = self.time_scale(log_eps) * (w[1, :k] - w[0, :k]) / 2
        return jnp.concatenate([u, self.network.model(w[:, k:], log_eps)])

    def _check_limit(self) -> None:
        raise TypeError(
            "The limit of `MixedDepth` is no process of thresholds: its linear coordinates are "
            "free. Where the path is monotone it is that of the lasso that does not penalise them, "
            "`lasso_path(problem, weights=…)` with weight 0; or take a small `ε`."
        )

    def initial_dual(self, log_eps: Array) -> Array:
        # 1 as of a coordinate of depth 2; `model` only takes the difference of both.
        moved = self.linear.initial(log_eps).u / self.time_scale(log_eps)
        others = self.network.initial_dual(log_eps)
        return jnp.concatenate([jnp.stack([1 - moved, 1 + moved]), others], axis=1)
