"""Gissin, Shalev-Shwartz & Daniely, *The Implicit Bias of Depth*, arXiv 1909.12051.

Claim: one coordinate of `u∘u` with target `σ` follows the logistic function,
`x(t) = σ/(1 + (σ/ε − 1) e^{−4σt})`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import LeastSquares, USquared, gradient_flow
from .claim import Claim, Measurement


@eqx.filter_jit
def _flows(target: Float[Array, " m"], log_eps: Float[Array, " m"], s: Float[Array, "m S"]):
    def one(target, log_eps, s):
        problem = LeastSquares(jnp.ones((1, 1)), target[None])
        network = USquared(jnp.ones(1))
        # NaN where it fails. Near rounding: an error of `w` is multiplied by log(1/ε) in `x`.
        flow = gradient_flow(
            network, problem, s, log_eps=log_eps, rtol=1e-12, atol=1e-13, throw=False
        )
        return flow.x[:, 0]

    return jax.vmap(one)(target, log_eps, s)


def curves() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`σ` and `ε`, shape `(9,)`; `t`, the flow `x(t)` and its closed form, shape `(9, 61)`."""
    # In s the rise is at 1/σ whatever ε is: a grid to 3/σ covers it and the plateau.
    target, eps = map(np.ravel, np.meshgrid([0.5, 1.0, 2.0], [1e-2, 1e-5, 1e-10]))
    length = -np.log(eps)
    s = np.linspace(0, 3, 61) / target[:, None]
    x = np.asarray(_flows(jnp.asarray(target), jnp.asarray(-length), jnp.asarray(s)))
    t = s * length[:, None] / 4
    ratio = (target / eps - 1)[:, None] * np.exp(-4 * target[:, None] * t)
    return target, eps, t, x, target[:, None] / (1 + ratio)


def scalar() -> list[Measurement]:
    """Gis20-scalar: `x = u²` on one coordinate with target `σ` grows like the logistic function at
    rate `4σ` in the time `t` of gradient flow."""
    target, _, _, x, closed = curves()
    return [
        Measurement(
            "Gis20-scalar",
            "largest error over t, relative to σ ∈ {½, 1, 2}, ε ∈ {1e-2, 1e-5, 1e-10}",
            0.0,
            float(np.max(np.abs(x - closed) / target[:, None])),
            1e-9,
            "as stated; steps at rtol = 1e-12, times log(1/ε) = 23 and some hundred steps",
        )
    ]


CLAIMS = [
    Claim("Gis20-scalar", "one coordinate of u∘u: logistic growth at rate 4σ", scalar),
]
