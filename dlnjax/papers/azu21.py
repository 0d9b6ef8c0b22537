"""Azulay et al., *On the Implicit Bias of Initialization Shape*, arXiv 2102.09769.

Claim: with unbalanced layers `(u₀, v₀)` the flow ends at the minimiser of the potential with the
gradient `asinh(2x/k)`, `k = 2 ε (u₀² + v₀²)`. Measured: `asinh(2x/k) ∈ range Xᵀ` and `Xx = y`.
This is the ledger's example of a user's network: four methods, and the weight form.
"""

from typing import ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from .. import AbstractNetwork, LeastSquares, WeightForm, gradient_flow
from .claim import Claim, Measurement
from .end_points import D, N, off_range

# From where the initialisation matters most to where it hardly does, above the 3.7e-11 below which
# differences of products of weights lose the sign of `x`.
EPS = (1e-1, 1e-2, 1e-4)
# The end in `s`: long enough for `Xx − y` to fall below e^(−30) on these instances. `rtol` is near
# rounding, since asinh(2x/k) has absolutely the error that the weights have relatively, and a
# hundred steps add up: at 1e-11 the claim could only be measured to 1e-9.
END, RTOL = 200.0, 1e-13


class Unbalanced(AbstractNetwork):
    """`x = u₊∘v₊ − u₋∘v₋`, both products from `(ε^½ u₀, ε^½ v₀)`, so that `x(0) = 0`;
    `t = s log(1/ε)/2`.

    With `p = u + v`, `m = u − v` and `G = ∫ Xᵀ(y − Xx) dt`, gradient flow has `p_± = p₀ e^{±G}`
    and `m_± = m₀ e^{∓G}`, hence `x = ε (u₀² + v₀²) sinh 2G`: the potential of [Azu21] with
    `k = 2 ε (u₀² + v₀²)`.
    """

    u: Float[Array, "2 d"]  # u₊ and u₋
    v: Float[Array, "2 d"]
    positive: ClassVar[bool] = False

    def __call__(self) -> Array:
        plus, minus = self.u * self.v
        return plus - minus

    def initial(self, log_eps: Array) -> "Unbalanced":
        scale = jnp.exp(log_eps / 2)
        return Unbalanced(self.u * scale, self.v * scale)

    def time_scale(self, log_eps: Array) -> Array:
        return -log_eps / 2

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay / 2 * (jnp.sum(self.u**2) + jnp.sum(self.v**2))


@eqx.filter_jit
def _ends(
    key: Key[Array, " i"], log_eps: Float[Array, " e"]
) -> tuple[
    Float[Array, "i n d"], Float[Array, "i n"], Float[Array, "i e d"], Float[Array, "i e d"]
]:
    """`X`, `y`, and `k` and `x` at the end of the flow for every `ε`, of the instance of each key.
    The entries of `X`, `y`, `u₀` and `v₀` are independent and standard normal. NaN where a solve
    fails."""

    def one(key):
        X_key, y_key, u_key, v_key = jr.split(key, 4)
        problem = LeastSquares(jr.normal(X_key, (N, D)), jr.normal(y_key, (N,)))
        u, v = jr.normal(u_key, (D,)), jr.normal(v_key, (D,))
        network = Unbalanced(jnp.stack([u, u]), jnp.stack([v, v]))

        def end(log_eps):
            flow = gradient_flow(
                network,
                problem,
                jnp.array([END]),
                log_eps=log_eps,
                formulation=WeightForm(),
                # Of high order, since the tolerance is near rounding.
                solver=diffrax.Dopri8(),
                rtol=RTOL,
                atol=RTOL,
                throw=False,
            )
            return 2 * jnp.exp(log_eps) * (u**2 + v**2), flow.x[0]

        return problem.X, problem.y, *jax.vmap(end)(log_eps)

    return jax.vmap(one)(key)


def shape(instances: int = 4) -> list[Measurement]:
    """Azu21-shape: `asinh(2x/k) ∈ range Xᵀ` and `Xx = y`, the conditions of the minimiser."""
    keys = jr.split(jr.key(0), instances)
    X, y, k, x = map(np.asarray, _ends(keys, jnp.log(jnp.array(EPS))))
    rows = []
    for j, eps in enumerate(EPS):
        off = off_range(X, np.arcsinh(2 * x[:, j] / k[:, j]))
        residual = np.abs(np.einsum("mnd,md->mn", X, x[:, j]) - y).max(1) / np.abs(y).max(1)
        for claim, error, why in (
            (
                "distance of asinh(2x/k) from range Xᵀ",
                off,
                f"steps at rtol = {RTOL:g}, at most a hundred while the weights move; asinh(2x/k) "
                "has the absolute error that the weights have relatively",
            ),
            (
                "Xx − y",
                residual,
                f"steps at rtol = {RTOL:g}; the flow draws Xx to y, what is left is below e^(−30)",
            ),
        ):
            rows.append(
                Measurement(
                    "Azu21-shape",
                    f"{claim}, relative, {instances} instances {N} × {D}, ε = {eps:g}",
                    0.0,
                    float(np.max(error)),
                    1e-11,
                    why,
                )
            )
    return rows


CLAIMS = [
    Claim("Azu21-shape", "unbalanced layers end where asinh(2x/k) is in the range of Xᵀ", shape)
]
