"""Woodworth et al., *Kernel and Rich Regimes in Overparametrized Models*, arXiv 2002.09277.

Claim: the flow of `u^D − v^D` from `u = v = α` ends at the minimiser of `Σ q_D(xᵢ/α^D)` over
`Xx = y`, for every `α`; for large `α` that is the minimum 2-norm. Measured: the optimality
conditions of `end_point` with `q_D'` from `mirror_map`, and the flow itself against `end_point`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from .. import Deep, LeastSquares, gradient_flow, mirror_map
from .claim import Claim, Measurement
from .end_points import D as SIZE, Lane, N, end_points, off_range

LANES = 4
# Large enough that the flow at s = 1000 has come to its end to rounding.
FLOW_EPS = 1e-2


def _instances() -> tuple[np.ndarray, np.ndarray]:
    X_key, y_key = jr.split(jr.key(0))
    return np.asarray(jr.normal(X_key, (LANES, N, SIZE))), np.asarray(jr.normal(y_key, (LANES, N)))


# `depth` None is depth 2, another program: the others are traced.
@eqx.filter_jit
def _flow_ends(
    depth: Float[Array, ""] | None, X: Float[Array, "m n d"], y: Float[Array, "m n"]
) -> Float[Array, "m d"]:
    def one(X, y):
        ones = jnp.ones(X.shape[1])
        network = Deep(ones, ones, depth=2 if depth is None else depth)
        flow = gradient_flow(
            network,
            LeastSquares(X, y),
            jnp.array([0.0, 1000.0]),
            eps=FLOW_EPS,
            rtol=1e-11,
            atol=1e-12,
            throw=False,
        )
        return flow.x[-1]

    return jax.vmap(one)(X, y)


def minimiser() -> list[Measurement]:
    """Woo20-Q: the end point minimises `Σ q_D(xᵢ/α^D)` over `Xx = y`, for every `α`."""
    X, y = _instances()
    rows = []
    for D in (2, 3, 4):
        for alpha in (1e-2, 1.0, 1e3):
            # ε is below 1: what is left of α^D ≥ 1 goes into the shape, α = shape · ε^{1/D}.
            log_eps = -1.0 if alpha >= 1 else D * np.log(alpha)
            shape = alpha * np.exp(-log_eps / D)
            x = end_points([Lane(D, X[i], y[i], log_eps, shape) for i in range(LANES)])
            slope = np.asarray(mirror_map(x / alpha**D, D))
            off = off_range(X, slope)
            residual = np.abs(np.einsum("mnd,md->mn", X, x) - y).max(1) / np.abs(y).max(1)
            rows.append(
                Measurement(
                    "Woo20-Q",
                    f"distance of q_D'(x/α^D) from range Xᵀ, and Xx − y, D = {D}, α = {alpha:g}",
                    0.0,
                    float(np.max(np.maximum(off, residual))),
                    1e-10,
                    "as stated; rounding of a coordinate near 0 counts 1e-16/α^D ≤ 1e-8 times the "
                    "slope of q_D', which is small there at small α",
                )
            )
            # So large an α is the kernel regime.
            if alpha == 1e3:
                ridgeless = np.einsum("mdn,mn->md", np.linalg.pinv(X), y)
                rows.append(
                    Measurement(
                        "Woo20-Q",
                        f"kernel regime: distance to the minimum 2-norm, D = {D}, α = {alpha:g}",
                        0.0,
                        float(np.max(np.abs(x - ridgeless))),
                        1e-10,
                        "of order α^(−2D) ≤ 1e-12, times the cube of x",
                    )
                )
    for D in (2, 3):
        depth = None if D == 2 else jnp.asarray(D, float)
        flow = np.asarray(_flow_ends(depth, jnp.asarray(X), jnp.asarray(y)))
        ends = end_points([Lane(D, X[i], y[i], float(np.log(FLOW_EPS))) for i in range(LANES)])
        rows.append(
            Measurement(
                "Woo20-Q",
                f"flow at s = 1000 against the minimiser, D = {D}, ε = {FLOW_EPS:g}",
                0.0,
                float(np.max(np.abs(flow - ends))),
                1e-10,
                "as stated; steps at rtol = 1e-11, and z, hence Xx = y, is drawn to the limit",
            )
        )
    return rows


CLAIMS = [
    Claim("Woo20-Q", "the end point of the flow minimises Σ q_D(xᵢ/α^D), for every α", minimiser)
]
