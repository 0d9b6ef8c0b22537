"""`SingleIndex`: the Hermite coefficients of a shallow network that learns a function of one
direction."""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import is_concrete
from .base import AbstractNetwork, Constant, as_network_weights, zero_penalty


class SingleIndex(AbstractNetwork):
    """The network `f(p) = (1/m) Σᵢ aᵢ σ(⟨uᵢ, p⟩)` of `m` neurons on Gaussian inputs `p` of many
    dimensions, which learns a function `φ(⟨u*, p⟩)` of one direction, by its Hermite coefficients

        x_k = (σ_k/m) Σᵢ aᵢ sᵢ^k,    sᵢ = ⟨uᵢ, u*⟩,    k = 0, …, d − 1.

    The problem is `LeastSquares(I, φ)` with those of `φ` (`hermite`). Directions stay on the unit
    sphere, and output weights are faster than they are by `1/ε`: with `s` in place of `t`,

        ε daᵢ/ds = Σ_k σ_k (φ_k − x_k) sᵢ^k,
        dsᵢ/ds = (1 − sᵢ²) aᵢ Σ_k k σ_k (φ_k − x_k) sᵢ^{k−1}.

    This is gradient flow in `√ε a` and in `θ = arcsin s`, the weights, with `t = ms`. `x(0)` does
    not depend on `ε`. From `s = 0` the coefficients are learned one after another, `x_k` for
    `k ≥ 1` at about `ε^{1/(2k)}`. It runs in the weight form; there is no weight decay.

    !!! example

        ```python
        sigma, phi = jnp.array([0.5, 0.6, 0.5]), jnp.array([0.6, 0.7, 0.6])
        network = dln.networks.SingleIndex(jnp.array([1.0, -0.5, 0.8]), jnp.zeros(3), sigma)
        problem, form = dln.LeastSquares(jnp.eye(3), phi), dln.WeightForm()
        times = dln.crossing_times(
            network, problem, 9.0, phi / 2, eps=1e-8, formulation=form, max_crossings=3
        )
        times.s  # degree 0, 1, 2: (9.8e-9, 1.4e-3, 5.2e-2)
        ```

    !!! cite "Reference"

        Berthier, Montanari, Zhou, *Learning time-scales in two-layers neural networks*,
        arXiv 2303.00055: the limit of many dimensions, where `⟨uᵢ, uⱼ⟩ = sᵢsⱼ` for `i ≠ j`, and the
        terms `i = j` of the loss are left out.
    """

    a: Float[Array, " m"]  # in training √ε times that of the paper
    angle: Float[Array, " m"]  # θ
    sigma: Constant
    log_gain: Constant  # x is that of a e^log_gain: 0 for a shape, log(1/ε)/2 in training
    positive: ClassVar[bool] = False

    def __init__(self, a: ArrayLike, s: ArrayLike, sigma: ArrayLike):
        """**Arguments:** `a`, the output weights, `(m,)`; `s`, the correlations of the neurons with
        the direction, `(m,)`, between −1 and 1; `sigma`, the Hermite coefficients of the
        activation, `(d,)`. A neuron at `|s| = 1` never moves: it is no start.

        **Raises:** `ValueError` for other shapes, NaN or inf, or `|s| ≥ 1` (under tracing the flow
        ends as `invalid_shape`).
        """
        self.a, s = as_network_weights(a, "a"), as_network_weights(s, "s")
        if s.shape != self.a.shape:
            raise ValueError(
                f"`a` and `s` must have one entry a neuron, got shapes {self.a.shape} and "
                f"{s.shape}."
            )
        self.angle = as_angles(s, "s")
        self.sigma = Constant(as_network_weights(sigma, "sigma"))
        self.log_gain = Constant(jnp.zeros((), self.a.dtype))

    def __call__(self) -> Array:
        sigma, s = self.sigma.value, jnp.sin(self.angle)
        # By products: `s**k` with an array of exponents has no derivative at s = 0.
        powers = [jnp.ones_like(s)]
        for _ in range(len(sigma) - 1):
            powers.append(powers[-1] * s)
        a = self.a * jnp.exp(self.log_gain.value)
        return sigma * jnp.mean(a[None] * jnp.stack(powers), axis=1)

    def initial(self, log_eps: Array) -> "SingleIndex":
        parts = lambda net: (net.a, net.log_gain.value)
        return eqx.tree_at(parts, self, (self.a * jnp.exp(log_eps / 2), -log_eps / 2))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        # While `x₁` is learned, output weights grow to ε^{−1/4}. `x` is a mean of numbers of this
        # size, with a rounding of eps ε^{−1/4}: as in the base class, a third of the digits stay.
        return 8 / 3 * math.log(jnp.finfo(dtype).eps)

    def time_scale(self, log_eps: Array) -> Array:
        return jnp.full_like(log_eps, len(self.a))

    def penalty(self, weight_decay: Array) -> Array:
        """0: there is no weight decay.

        **Raises:** `ValueError` for weight decay (under tracing, it is NaN).

        !!! example

            ```python
            network = dln.networks.SingleIndex(jnp.ones(2), jnp.zeros(2), jnp.ones(3))
            network.penalty(jnp.array(0.0))  # 0
            ```
        """
        return zero_penalty(self, weight_decay, "directions stay on the sphere")


def as_angles(s: Array, name: str) -> Array:
    """`arcsin s` of correlations, NaN where they are not between −1 and 1.

    **Raises:** `ValueError` if they are known."""
    # At ±1 a direction never moves, but for rounding, which may grow; `arcsin` has no derivative.
    if is_concrete(s) and np.any(np.abs(s) >= 1):
        worst = float(np.ravel(s)[np.argmax(np.abs(s))])
        raise ValueError(
            f"`{name}` must be between −1 and 1, got {worst}. At ±1 a direction never moves: "
            "start beside it, such as at 1 − 1e-6."
        )
    return jnp.where(jnp.abs(s) < 1, jnp.arcsin(s), jnp.nan)
