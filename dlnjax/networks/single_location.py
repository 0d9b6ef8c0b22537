"""`SingleLocation`: an attention layer that learns which token of a sequence matters."""

import math
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, as_positive, check_finite, check_scalar, is_concrete
from .base import AbstractNetwork, Constant, zero_penalty
from .gaussian import erf_deviation, erf_mean
from .single_index import as_angles


class SingleLocation(AbstractNetwork):
    """The attention layer `Σ_l erf(λ⟨X_l, k⟩) ⟨X_l, v⟩` on a sequence of tokens `X_l ∈ R^D` of
    which one, at `√(D/2) k* + γ N(0, I)`, determines the output `⟨X_l, v*⟩`; others are `N(0, I)`.

    With `κ = ⟨k, k*⟩` and `ν = ⟨v, v*⟩`, and where `⟨k, v*⟩ = ⟨v, k*⟩ = ⟨k, v⟩ = 0`, its risk is

        R = γ² E[1 − 2νt + t²] + const,    t = erf(λ√(D/2) κ + λγ G),    G ~ N(0, 1).

    With the mean `μ` and the standard deviation `σ` of `t`, which have closed forms, this is the
    least squares of

        x = (νμ, √(1 − ν²) μ, σ),    y = (1, 0, 0),    R = 2γ² ℓ(x) + const.

    The weights are `arcsin κ` and `arcsin ν`: gradient flow in them, in `t = 2γ² s`, is that of `k`
    and `v` on the unit sphere, in the time `s`. There is no `ε`: any will do. It runs in the weight
    form; there is no weight decay.

    !!! example

        ```python
        network = dln.networks.SingleLocation(0.05, -0.02, dimension=400, lam=0.1, gamma=0.5**0.5)
        problem = dln.LeastSquares(jnp.eye(3), network.target())
        flow = dln.gradient_flow(
            network, problem, jnp.array([0.0, 80.0]), eps=0.5, formulation=dln.WeightForm()
        )
        jax.vmap(problem.loss)(flow.x)  # R = 2γ² ℓ + const: (0.508, 0.0014)
        ```

    !!! cite "Reference"

        Marion, Berthier, Biau, Boyer, *Attention layers provably solve single-location
        regression*, arXiv 2410.01537.
    """

    angle_k: Float[Array, ""]  # arcsin κ
    angle_v: Float[Array, ""]  # arcsin ν
    dimension: Constant
    lam: Constant
    gamma: Constant
    positive: ClassVar[bool] = False

    def __init__(
        self,
        kappa: ArrayLike,
        nu: ArrayLike,
        *,
        dimension: ArrayLike,
        lam: ArrayLike,
        gamma: ArrayLike,
    ):
        """**Arguments:** `kappa` and `nu`, where training starts, between −1 and 1 and not both 0;
        `dimension = D`, `lam = λ` and `gamma = γ`, positive. All are scalars. At ±1 a direction
        never moves, and where both are 0 none does: these are no starts.

        **Raises:** `ValueError` for other values (under tracing the flow ends as `invalid_shape`).
        """
        kappa, nu = as_float(kappa, "kappa"), as_float(nu, "nu")
        dtype = jnp.result_type(kappa, nu)
        for name, value in (("kappa", kappa), ("nu", nu)):
            check_scalar(value, name)
            check_finite(value, name)
        rests = (kappa == 0) & (nu == 0)
        if is_concrete(rests) and bool(rests):
            raise ValueError(
                "`kappa` and `nu` are both 0, a saddle from which nothing moves. Start beside it."
            )
        constants, valid = [], ~rests
        for name, value in (("dimension", dimension), ("lam", lam), ("gamma", gamma)):
            value = as_positive(value, name, dtype)
            check_scalar(value, name)
            check_finite(value, name)
            valid &= (value > 0) & jnp.isfinite(value)
            constants.append(Constant(value))
        self.angle_k = jnp.where(valid, as_angles(kappa, "kappa"), jnp.nan).astype(dtype)
        self.angle_v = as_angles(nu, "nu").astype(dtype)
        self.dimension, self.lam, self.gamma = constants

    def __call__(self) -> Array:
        shift = self.lam.value * jnp.sqrt(self.dimension.value / 2) * jnp.sin(self.angle_k)
        noise = self.lam.value * self.gamma.value
        mean = erf_mean(shift, noise)
        # √(1 − ν²) is a cosine: the loss is smooth where the flow reaches ν = ±1.
        along, across = jnp.sin(self.angle_v) * mean, jnp.cos(self.angle_v) * mean
        return jnp.stack([along, across, erf_deviation(shift, noise)])

    def target(self) -> Float[Array, " d"]:
        """`y` of the least squares problem, `LeastSquares(I, y)`, shape `(3,)`.

        !!! example

            ```python
            network = dln.networks.SingleLocation(0.1, 0.1, dimension=100, lam=0.1, gamma=1.0)
            network.target()  # (1, 0, 0)
            ```
        """
        return jnp.array([1, 0, 0], self.angle_k.dtype)

    def initial(self, log_eps: Array) -> "SingleLocation":
        return self

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return -math.inf  # there is no ε

    def time_scale(self, log_eps: Array) -> Array:
        return 2 * self.gamma.value**2

    def penalty(self, weight_decay: Array) -> Array:
        """0: there is no weight decay.

        **Raises:** `ValueError` for weight decay (under tracing, it is NaN).

        !!! example

            ```python
            network = dln.networks.SingleLocation(0.1, 0.1, dimension=100, lam=0.1, gamma=1.0)
            network.penalty(jnp.array(0.0))  # 0
            ```
        """
        return zero_penalty(self, weight_decay, "`k` and `v` stay on the sphere")
