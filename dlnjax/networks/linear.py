"""The network of depth 1: the linear model itself."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .base import AbstractNetwork, as_network_weights


class Linear(AbstractNetwork):
    """`x = u`, loss `ℓ(x) + λ/2 ‖u‖²`, from `ε u`; `t = s`. Depth 1, for comparison: gradient flow
    ends at the minimiser of the loss that is closest to the start in the 2-norm, and with weight
    decay at ridge regression.

    ```python
    flow = dln.gradient_flow(dln.Linear(jnp.zeros(4)), problem, s, eps=0.5)  # from 0
    ```

    In both formulations, in `end_point` and in `limit_point`; there is no limit process, and so
    no lasso path that it follows.

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
        return -math.inf  # a start that underflows is a start at 0

    def time_scale(self, log_eps: Array) -> Array:
        return jnp.ones_like(log_eps)

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay / 2 * jnp.sum(self.u**2)
