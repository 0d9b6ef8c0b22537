"""`SingleLocation`: an attention layer that learns which token of a sequence matters."""

import math
from typing import ClassVar

import jax.numpy as jnp
from jax.scipy.special import erf
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, as_positive, check_finite, check_scalar, is_concrete
from .base import AbstractNetwork, Constant
from .gaussian import gauss_hermite

# The error of the expectations is about (2g²/(1 + 2g²))^NODES, with g = λγ: rounding up to .6.
NODES = 40


class SingleLocation(AbstractNetwork):
    """The attention layer `Σ_l erf(λ⟨X_l, k⟩) ⟨X_l, v⟩` on a sequence of tokens `X_l ∈ R^D` of
    which one, at `√(D/2) k* + γ N(0, I)`, determines the output `⟨X_l, v*⟩`; others are `N(0, I)`.

    With `κ = ⟨k, k*⟩` and `ν = ⟨v, v*⟩`, and where `⟨k, v*⟩ = ⟨v, k*⟩ = ⟨k, v⟩ = 0`, its risk is

        R = γ² E[1 − 2νt + t²] + const,    t = erf(λ√(D/2) κ + λγ G),    G ~ N(0, 1).

    On Gauss–Hermite nodes and weights, `(1 − νt)² + (1 − ν²) t²` makes this the least squares of

        x = √w (νt, √(1 − ν²) t),    y = √w (1, 0),    R = 2γ² ℓ(x) + const.

    The weights are `arcsin κ` and `arcsin ν`: gradient flow in them, in `t = 2γ² s`, is that of `k`
    and `v` on the unit sphere, in the time `s`. There is no `ε`: any will do. It runs in the weight
    form; there is no weight decay.

    !!! example

        ```python
        network = dln.networks.SingleLocation(0.05, -0.02, dimension=400, lam=0.1, gamma=0.5**0.5)
        problem = dln.LeastSquares(jnp.eye(80), network.target())
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
        """**Arguments:** `kappa` and `nu`, where training starts, in `[−1, 1]` and not both 0,
        where nothing moves; `dimension = D`, `lam = λ` and `gamma = γ`, positive. All are scalars.

        **Raises:** `ValueError` for other values (under tracing the flow ends as `invalid_shape`).
        """
        kappa, nu = as_float(kappa, "kappa"), as_float(nu, "nu")
        dtype = jnp.result_type(kappa, nu)
        for name, value in (("kappa", kappa), ("nu", nu)):
            check_scalar(value, name)
            check_finite(value, name)
            if is_concrete(value) and abs(float(value)) > 1:
                raise ValueError(f"`{name}` must be in [−1, 1], got {float(value)}.")
        rests = (kappa == 0) & (nu == 0)
        if is_concrete(rests) and bool(rests):
            raise ValueError(
                "`kappa` and `nu` are both 0, a saddle from which nothing moves. Start beside it."
            )
        self.angle_k = jnp.where(rests, jnp.nan, jnp.arcsin(kappa)).astype(dtype)
        self.angle_v = jnp.arcsin(nu).astype(dtype)
        constants = []
        for name, value in (("dimension", dimension), ("lam", lam), ("gamma", gamma)):
            value = as_positive(value, name, dtype)
            check_scalar(value, name)
            check_finite(value, name)
            constants.append(Constant(value))
        self.dimension, self.lam, self.gamma = constants

    def __call__(self) -> Array:
        z, w = self._nodes()
        shift = self.lam.value * jnp.sqrt(self.dimension.value / 2) * jnp.sin(self.angle_k)
        t = jnp.sqrt(w) * erf(shift + self.lam.value * self.gamma.value * z)
        return jnp.concatenate([jnp.sin(self.angle_v) * t, jnp.cos(self.angle_v) * t])

    def _nodes(self) -> tuple[Array, Array]:
        z, w = gauss_hermite(NODES)
        return jnp.asarray(z, self.angle_k.dtype), jnp.asarray(w, self.angle_k.dtype)

    def target(self) -> Float[Array, " d"]:
        """`y` of the least squares problem, `LeastSquares(I, y)`, shape `(80,)`.

        !!! example

            ```python
            network = dln.networks.SingleLocation(0.1, 0.1, dimension=100, lam=0.1, gamma=1.0)
            jnp.sum(network.target() ** 2)  # Σ w = 1
            ```
        """
        _, w = self._nodes()
        return jnp.concatenate([jnp.sqrt(w), jnp.zeros_like(w)])

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
        if is_concrete(weight_decay) and float(weight_decay) != 0:
            raise ValueError(
                f"`SingleLocation` takes no weight decay, got {float(weight_decay)}: `k` and `v` "
                "stay on the sphere. Use `weight_decay=0`."
            )
        return jnp.where(weight_decay == 0, 0, jnp.nan).astype(self.angle_k.dtype)
