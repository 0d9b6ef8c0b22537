"""Papazov, Pesme & Flammarion, *Leveraging continuous time to understand momentum when training
diagonal linear networks*, arXiv 2403.05293.

For the equation of this paper, `m θ̈ + θ̇ = −∇ℓ`: as `ε → 0` the first coordinate activates at
`1/ψ(‖r‖_∞)`, `ψ(a) = (√(1 + 4ma) − 1)/(2m)`, later than at `1/‖r‖_∞` without momentum. (That is our
own claim: the paper has a fixed `ε`.) Measured by `crossing_times`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from .. import UV, LeastSquares, MomentumForm, crossing_times, gradient_flow
from .claim import Claim, Measurement

INERTIA = 0.05
LOG_EPS = (-40 * math.log(10), -160 * math.log(10), -300 * math.log(10))
D = 4


def problem() -> LeastSquares:
    """A problem 3 × 4 whose first jump is at 0.9526 without momentum."""
    # The first draw of numbers of this seed is that of the problem.
    rng = np.random.default_rng(0)
    rng.normal(size=50)
    X = 0.6 * rng.normal(size=(3, D))
    return LeastSquares(X, np.array([1.0, -0.7, 0.4]))


def network() -> UV:
    return UV(jnp.ones(D), jnp.zeros(D))


def level(of: LeastSquares) -> float:
    """Half of the first plateau of the coordinate that is first."""
    j = int(jnp.argmax(jnp.abs(of.r)))
    return float(0.5 * jnp.abs(of.r[j]) / of.gram_diagonal()[j])


def jumps(log_eps: np.ndarray, inertia: np.ndarray) -> np.ndarray:
    """When the first coordinate crosses its level, in `s`, for each `ε` and inertia. NaN where the
    flow fails."""
    of = problem()
    size = level(of)

    @jax.jit
    @jax.vmap
    def first(log_eps, inertia):
        form = MomentumForm(inertia)
        return crossing_times(network(), of, 2.0, size, log_eps=log_eps, formulation=form).s[0]

    return np.asarray(first(jnp.asarray(log_eps), jnp.asarray(inertia)))


def curves(s: np.ndarray) -> np.ndarray:
    """The coordinate that is first, with the sign of its plateau, shape `(3, S)`."""
    of = problem()
    j = int(jnp.argmax(jnp.abs(of.r)))

    @jax.jit
    @jax.vmap
    def flow(log_eps):
        form = MomentumForm(INERTIA)
        return gradient_flow(network(), of, s, log_eps=log_eps, formulation=form).x[:, j]

    return np.asarray(flow(jnp.array(LOG_EPS)) * jnp.sign(of.r[j]))


def momentum() -> list[Measurement]:
    """Pap24-momentum: the first jump at `ε = 1e-160` and `1e-300`."""
    of = problem()
    predicted = float(MomentumForm(INERTIA).first_jump(network(), of))
    largest = float(jnp.max(jnp.abs(of.r)))
    measured = jumps(np.array(LOG_EPS), np.full(3, INERTIA))
    where = f"inertia {INERTIA:g}, where it is at {1 / largest:.4f} without momentum"
    rows = [
        Measurement(
            "Pap24-momentum",
            f"first jump at ε = 1e-{size}, {where}",
            predicted,
            float(found),
            5e-3,
            "as stated: C/log(1/ε), and 1.7/log(1/ε) is measured",
        )
        for size, found in zip((160, 300), measured[1:], strict=True)
    ]
    off = np.abs(measured - predicted)
    rows += [
        Measurement(
            "Pap24-momentum",
            "its distance to 1/ψ(‖r‖_∞) at ε = 1e-300, relative to that at 1e-160",
            160 / 300,
            float(off[2] / off[1]),
            0.02,
            "the distance is C/log(1/ε), and the next order",
        ),
        Measurement(
            "Pap24-momentum",
            "ψ(a) at the predicted jump: m ψ² + ψ − ‖r‖_∞",
            0.0,
            INERTIA / predicted**2 + 1 / predicted - largest,
            1e-14,
            "rounding: ψ is the root of this equation",
        ),
    ]
    return rows


CLAIMS = [Claim("Pap24-momentum", "with momentum the first jump is at 1/ψ(‖r‖_∞)", momentum)]
