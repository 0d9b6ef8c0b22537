"""Lyu, Jin, Li, Du, Lee & Hu, *Dichotomy of Early and Late Phase Implicit Biases Can Provably
Induce Grokking*, arXiv 2311.18817.

Claim: `x = u∘u − v∘v` from weights of size `α`, under the logistic loss with a small weight decay
`λ`, first is the separator of the largest 2-norm margin. At `t = log α/λ` the decay has brought the
weights to size 1, and `x` becomes the separator of the largest 1-norm margin, the more abruptly the
larger `α` is. In units of that time, `c = λt/log α`, nothing else happens.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import nnls

from .. import Deep, DualForm, Flow, Logistic, gradient_flow, max_margin
from .claim import Claim, Measurement

ROWS, COLUMNS, SUPPORT = 24, 120, 3
LOG_ALPHA = (5.0, 20.0, 50.0)
TIMES = (0.95, 1.05, 1.2)
# By SciPy's Radau in `ν`, at rtol = 1e-9: the cosine with the 2-norm separator, and the 1-norm
# margin over the largest. A row for each `α`.
COSINES = (
    (0.998804, 0.998070, 0.970925),
    (0.999657, 0.926810, 0.705182),
    (0.999908, 0.750033, 0.654845),
)
RATIOS = (
    (0.596512, 0.599583, 0.645150),
    (0.610176, 0.714557, 0.913762),
    (0.617871, 0.911509, 0.966016),
)


def instance(n: int = ROWS, d: int = COLUMNS) -> np.ndarray:
    """`A = diag(y) X`, of random signs `X` and the majority `y` of the first three, shape `(n,
    d)`."""
    X = np.random.default_rng(0).choice([-1.0, 1.0], size=(n, d))
    return np.sign(np.sum(X[:, :SUPPORT], axis=1))[:, None] * X


@eqx.filter_jit
def flow(
    A: Float[Array, "n d"],
    log_alpha: Float[Array, ""],
    c: Float[Array, " S"],
    rtol: float | None = None,
) -> Flow:
    """At the times `c` in units of `log α/λ`. NaN where it fails."""
    # The network starts from its shape times ε^½, and ε < 1.
    alpha = jnp.exp(log_alpha + 0.5) * jnp.ones(A.shape[1])
    # The paper's loss is a mean, and its λ times ½‖θ‖²; s = 4t. As there λ is small: α^{−½}/100.
    n = A.shape[0]
    decay = n / 2 * jnp.exp(-log_alpha / 2) / 100
    problem = Logistic(A, jnp.ones(n), decay)
    s = 2 * c * log_alpha / decay
    options: dict[str, Any] = dict(formulation=DualForm(large_start=True), throw=False, rtol=rtol)
    return gradient_flow(Deep(alpha, alpha, depth=2), problem, s, log_eps=-1.0, **options)


def transition(
    log_alpha: Sequence[float], c: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The cosine with the 2-norm separator, and the 1-norm margin over the largest, each of shape
    `(a, S)`, at the times `c`."""
    A = instance()
    x = np.stack([flow(jnp.asarray(A), jnp.asarray(size), jnp.asarray(c)).x for size in log_alpha])
    norm = lambda v: np.linalg.norm(v, axis=-1)
    widest = separator(A)
    best = float(max_margin(Logistic(A, np.ones(ROWS))).margin)
    margin = np.min(x @ A.T, axis=-1) / np.sum(np.abs(x), axis=-1)
    return x @ widest / norm(x) / norm(widest), margin / best


def separator(A: np.ndarray) -> np.ndarray:
    """The `x` of least 2-norm with `Ax ≥ 1`."""
    # Its multipliers minimise ½‖Aᵀp‖² − 1ᵀp over p ≥ 0: the residual of (0, 1) in least squares by
    # (Aᵀ; 1ᵀ)p, which is x up to a factor.
    n, d = A.shape
    p, _ = nnls(np.vstack([A.T, np.ones(n)]), np.append(np.zeros(d), 1.0))
    return p @ A


def grokking() -> list[Measurement]:
    """Lyu24-grokking: the transition at `t = log α/λ`."""
    cosines, ratios = transition(LOG_ALPHA, TIMES)
    rows = []
    for what, stated, measured in [
        ("cosine with the 2-norm separator", COSINES, cosines),
        ("1-norm margin over the largest", RATIOS, ratios),
    ]:
        for size, one, other in zip(LOG_ALPHA, stated, measured, strict=True):
            off = int(np.argmax(np.abs(other - one)))
            rows.append(
                Measurement(
                    "Lyu24-grokking",
                    f"log α = {size:g}: {what} at λt/log α = .95, 1.05, 1.2; here the "
                    f"worst, {TIMES[off]:g}",
                    one[off],
                    float(other[off]),
                    1e-3,
                    "three digits are stated; steps at rtol = 1e-7 leave less than 1e-5",
                )
            )
    return rows


CLAIMS = [
    Claim("Lyu24-grokking", "weight decay: from the 2-norm to the 1-norm separator", grokking),
]
