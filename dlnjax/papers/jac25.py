"""Jacobs, Zhou & Burkholz, *Mirror, Mirror of the Flow: How Does Regularization Shape Implicit
Bias?*, arXiv 2504.12883.

Claim: weight decay has a lasting effect. Switched off at `s₁`, it leaves exactly the end point of a
smaller initialisation, `ε^{1 + Λ}` with `Λ = ∫₀^{s₁} λ`. Measured on flows with a `Schedule`,
integrated to their end, against `end_point` without decay.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import UV, LeastSquares, Schedule, basis_pursuit, end_point, gradient_flow
from .claim import Claim, Measurement

N, D = 3, 6
SWITCH = 2.0
TOTALS = np.linspace(0, 1.5, 6)
LOG_EPS = np.log([1e-1, 1e-2, 1e-4])
# Where the flow rests: it ends at the rate log(1/ε) λ_min(X E Xᵀ) in s, `E` of the size of x. On
# these instances e^{−rate s} is below rounding.
S_END = 2000.0


def instance(seed: int) -> LeastSquares:
    """A normal instance 3 × 6."""
    rng = np.random.default_rng(seed)
    return LeastSquares(rng.normal(size=(N, D)), rng.normal(size=N))


@eqx.filter_jit
def _ends(
    problem: LeastSquares, total: Float[Array, " m"], log_eps: Float[Array, " m"]
) -> Float[Array, "m 2 d"]:
    """The flow after a total decay at `ε`, and the end point without decay from `ε^{1 + Λ}`."""
    network = UV(jnp.ones(D), jnp.zeros(D))

    def one(total, log_eps):
        decay = Schedule([SWITCH], jnp.stack([total / SWITCH, jnp.zeros_like(total)]))
        decayed = LeastSquares(problem.X, problem.y, decay)
        s = jnp.array([S_END])
        flow = gradient_flow(
            network, decayed, s, log_eps=log_eps, rtol=1e-10, atol=1e-11, throw=False
        )
        end = end_point(network, problem, log_eps=(1 + total) * log_eps, throw=False)
        return jnp.stack([flow.x[0], end.x])

    return jax.vmap(one)(total, log_eps)


def norms(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """By how much the 1-norm exceeds the least one: of the flows and of the end points at
    `ε^{1 + Λ}`, over `LOG_EPS` and `TOTALS`; and the largest distance of the two, relative."""
    problem = instance(seed)
    log_eps, total = map(np.ravel, np.meshgrid(LOG_EPS, TOTALS, indexing="ij"))
    x = np.asarray(_ends(problem, jnp.asarray(total), jnp.asarray(log_eps)))
    x = x.reshape(len(LOG_EPS), len(TOTALS), 2, D)
    least = float(jnp.sum(jnp.abs(basis_pursuit(problem).x)))
    away = np.max(np.abs(x[:, :, 0] - x[:, :, 1])) / np.max(np.abs(x))
    return np.sum(np.abs(x), axis=-1) / least - 1, away


def decay(instances: int = 4) -> list[Measurement]:
    """Jac25-decay, on normal instances 3 × 6."""
    away = max(float(norms(seed)[1]) for seed in range(instances))
    sizes = ", ".join(f"{np.exp(size):g}" for size in LOG_EPS)
    return [
        Measurement(
            "Jac25-decay",
            f"distance to the end point of ε^(1 + Λ) relative to x, {instances} instances, "
            f"ε ∈ {{{sizes}}}, Λ up to {TOTALS[-1]:g}",
            0.0,
            away,
            1e-8,
            "as stated; steps at rtol = 1e-10",
        )
    ]


CLAIMS = [
    Claim("Jac25-decay", "decay switched off leaves the end point of ε^(1 + Λ)", decay),
]
