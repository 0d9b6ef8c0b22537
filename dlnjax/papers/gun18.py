"""Gunasekar, Lee, Soudry & Srebro, *Characterizing Implicit Bias in Terms of Optimization
Geometry*, arXiv 1802.08246.

Claim: on separable data gradient flow of a network of depth 2 tends in direction to a stationary
point of the maximum 1-norm margin. Which one: as `ε → 0` the saddle-to-saddle process ends at the
first face whose columns separate, and the direction is the maximum margin *on that face*, which may
be far below the largest one.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import UV, Exponential, limit_flow, margin_flow, max_margin
from .claim import Claim, Measurement

ROWS, COLUMNS, INSTANCES = 12, 20, 4
LOG_EPS = (-50.0, -500.0, -2000.0)
T = np.array([1e1, 1e2, 1e3, 1e4, 1e5])


def instances() -> np.ndarray:
    """Gaussian `A = diag(y) X`, shape `(4, 12, 20)`."""
    draw = lambda k: np.random.default_rng(k).normal(size=(ROWS, COLUMNS))
    return np.stack([draw(k) for k in range(INSTANCES)]) / np.sqrt(ROWS)


@eqx.filter_jit
def margins(
    A: Float[Array, "m n d"], log_eps: Float[Array, " L"], T: Float[Array, " T"]
) -> tuple[Array, Array, Array]:
    """The margins of the flow, shape `(m, L, T)`; the largest one on the face at which the limit
    ends, and the largest of all, each `(m,)`. NaN where something fails."""

    def one(A):
        network = UV(jnp.ones(A.shape[1]), jnp.zeros(A.shape[1]))
        problem = Exponential(A, jnp.ones(A.shape[0]))
        face = limit_flow(network, problem, throw=False).face
        weights = jnp.where(jnp.stack([face > 0, face < 0]), 1.0, jnp.inf)
        best = jax.vmap(lambda w: max_margin(problem, weights=w, throw=False).margin)(
            jnp.stack([weights, jnp.ones_like(weights)])
        )
        run = lambda size: margin_flow(network, problem, T, log_eps=size, throw=False).margin
        return jax.vmap(run)(log_eps), best[0], best[1]

    return jax.vmap(one)(A)


def margin() -> list[Measurement]:
    """Gun18-margin: at `log ε = −2000` and a loss of `e^{−10⁴}` the flow has the largest margin of
    the face at which the limit `ε → 0` ends."""
    at = lambda v: jnp.asarray(v)
    flow, face, best = margins(at(instances()), at(LOG_EPS[-1:]), at(T[3:4]))
    ratio = np.asarray(flow[:, 0, 0] / face)
    return [
        Measurement(
            "Gun18-margin",
            "smallest margin over that of the face, four instances 12 × 20",
            1.0,
            float(np.min(ratio)),
            1e-4,
            "as stated; the distance falls like 1/T, from 6e-3 at T = 1e2 (measured)",
        ),
        Measurement(
            "Gun18-margin",
            "largest margin of the face over the largest of all, on the same instances",
            0.62,
            float(np.max(np.asarray(face / best))),
            0.0,
            "exact linear programmes: .27 to .615",
            "at most",
        ),
    ]


CLAIMS = [
    Claim("Gun18-margin", "ε → 0 on separable data: the 1-norm margin of the first face", margin),
]
