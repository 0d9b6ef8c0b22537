"""Moroshko, Gunasekar, Woodworth, Lee, Srebro & Soudry, *Implicit Bias in Deep Linear
Classification: Initialization Scale vs Training Accuracy*, arXiv 2007.06738.

Claim: which classifier a network of depth 2 tends to is decided by the size `α` of the start
relative to the accuracy of training: with `α² = μT`, where the exponential loss is `e^{−T}`, the
direction tends to `argmin Σ q(xᵢ/μ)` over the classifiers of margin 1, as `T → ∞`, with
`q(z) = 2 − √(4 + z²) + z arcsinh(z/2)`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import Deep, Exponential, LeastSquares, end_point, margin_flow
from .claim import Claim, Measurement

MU = (0.1, 1.0, 10.0)
ROWS, COLUMNS = 6, 12


def instance() -> np.ndarray:
    """`A = diag(y) X`, Gaussian, shape `(6, 12)`."""
    return np.random.default_rng(1).normal(size=(ROWS, COLUMNS)) / np.sqrt(COLUMNS)


@eqx.filter_jit
def _flows(A: Float[Array, "n d"], mu: Float[Array, " m"], T: Float[Array, " m"]):
    def one(mu, T):
        # α² = μT; the network starts from its shape times ε^½, and ε < 1.
        alpha = jnp.sqrt(mu * T) * jnp.exp(0.5) * jnp.ones(A.shape[1])
        network, problem = Deep(alpha, alpha, depth=2), Exponential(A, jnp.ones(A.shape[0]))
        # NaN where it fails. The distances go down to 1e-7.
        flow = margin_flow(
            network, problem, T[None], log_eps=-1.0, rtol=1e-10, atol=1e-11, throw=False
        )
        return flow.x[0]

    return jax.vmap(one)(mu, T)


def minimiser(A: np.ndarray, mu: float, support: np.ndarray) -> tuple[np.ndarray, float]:
    """The minimiser of `Σ q(xᵢ/μ)` over `A_S x = 1` for the rows of the mask `S`, which is where
    least squares on them ends from `α² = μ`; and the largest violation of `Ax ≥ 1` and of
    multipliers `≥ 0`, which make it the minimiser over `Ax ≥ 1`."""
    alpha = np.sqrt(mu) * np.exp(0.5) * np.ones(A.shape[1])
    rows = A[support]
    end = end_point(
        Deep(alpha, alpha, depth=2), LeastSquares(rows, np.ones(len(rows))), log_eps=-1.0
    )
    x = np.asarray(end.x)
    multipliers = np.linalg.lstsq(rows.T, np.arcsinh(x / (2 * mu)), rcond=None)[0]
    violation = max(np.max(1 - A @ x), -np.min(multipliers) / np.max(np.abs(multipliers)))
    return x, float(max(violation, 0))


def distances() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`T` from 1e2 to 1e5, shape `(7,)`; for each `μ` the distance of the flow, scaled to margin 1,
    to the minimiser, relative to its largest entry, shape `(3, 7)`; and its violation `(3,)`."""
    A, T = instance(), np.geomspace(1e2, 1e5, 7)
    mu, lanes = (np.ravel(v) for v in np.meshgrid(MU, T, indexing="ij"))
    x = np.asarray(_flows(jnp.asarray(A), jnp.asarray(mu), jnp.asarray(lanes)))
    x = x.reshape(len(MU), len(T), -1)
    margins = x @ A.T
    x = x / np.min(margins, axis=2, keepdims=True)
    off, violations = [], []
    for size, path in zip(MU, x, strict=True):
        # Support vectors have the margin 1 + O(1/T) at the last T, others more by O(1).
        best, violation = minimiser(A, size, A @ path[-1] < 1.01)
        off.append(np.max(np.abs(path - best), axis=1) / np.max(np.abs(best)))
        violations.append(violation)
    return T, np.array(off), np.array(violations)


def path() -> list[Measurement]:
    """Mor20-path: the distance to the minimiser of `Σ q(xᵢ/μ)` falls like `1/T`."""
    T, off, violations = distances()
    rows = [
        Measurement(
            "Mor20-path",
            f"μ = {mu:g}: slope of the distance in T = 1e2 … 1e5, in logarithms",
            -1.0,
            float(np.polyfit(np.log(T), np.log(distance), 1)[0]),
            0.02,
            "as stated; measured within 2e-3, as terms of higher order in 1/T bend the lines",
        )
        for mu, distance in zip(MU, off, strict=True)
    ]
    rows.append(
        Measurement(
            "Mor20-path",
            "largest violation of the optimality conditions by the three minimisers",
            0.0,
            float(np.max(violations)),
            1e-9,
            "Newton's method ends at rounding; 1e-9 is below all distances",
            "at most",
        )
    )
    return rows


CLAIMS = [
    Claim("Mor20-path", "α² = μT: the direction tends to the minimiser of Σ q(xᵢ/μ)", path),
]
