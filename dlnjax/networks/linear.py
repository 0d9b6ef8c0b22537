"""The network of depth 1: the linear model itself."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .base import AbstractNetwork, as_network_weights


class Linear(AbstractNetwork):
    """The linear model `x = u` itself, depth 1: loss `ℓ(x) + λ/2 ‖u‖²`, start `ε u`, `t = s`.

    For comparison: gradient flow ends at the minimiser of the loss that is closest to the start in
    the 2-norm, and with weight decay at ridge regression. It runs in both formulations, in
    `end_point` and in `limit_point`. There is no limit process, and so no lasso path to follow.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.ones((1, 2)), jnp.array([2.0]))
        dln.end_point(dln.Linear(jnp.zeros(2)), problem, eps=0.5).x  # least 2-norm: (1, 1)
        ```

    !!! cite "Reference"

        Ali, Kolter, Tibshirani, *A Continuous-Time View of Early Stopping for Least Squares
        Regression*, arXiv 1810.10082.
    """

    u: Float[Array, " d"]
    positive: ClassVar[bool] = False

    def __init__(self, u: ArrayLike):
        """**Arguments:** `u`, the shape of the initialisation, `(d,)`. It may be 0.

        **Raises:** `ValueError` for another shape, NaN or inf.
        """
        self.u = as_network_weights(u, "u")

    def __call__(self) -> Array:
        return self.u

    def initial(self, log_eps: Array) -> "Linear":
        return eqx.tree_at(lambda net: net.u, self, self.u * jnp.exp(log_eps))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        # The flow from εu depends on ε continuously: a start that underflows to 0 is right.
        return -math.inf

    def time_scale(self, log_eps: Array) -> Array:
        return jnp.ones_like(log_eps)

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay / 2 * jnp.sum(self.u**2)
