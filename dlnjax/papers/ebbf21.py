"""Even, Berthier, Bach, Flammarion et al., *A Continuized View on Nesterov Acceleration*,
arXiv 2106.07644.

Claims: the continuized method, whose steps are at the times of a Poisson process, satisfies the
bounds of Nesterov's, in expectation over these times. Measured on quadratics; gossip is in
`ebbf21_gossip.py`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from scipy.linalg import expm

from .. import continuized_nesterov
from ..plot.axes import COLORS, DASHES
from .claim import Claim, Measurement
from .panels import panel

RUNS, STEPS = 20_000, 200
# Curvatures with L = 1 and μ = 1/100, and of a loss that is hardly strongly convex.
STRONG, CONVEX = np.geomspace(0.01, 1, 10), np.array([1, 0.1, 1e-2, 1e-3, 1e-4, 1e-6])


@eqx.filter_jit
def losses(
    curvatures: Float[Array, " d"], mu: float, runs: int = RUNS
) -> tuple[Float[Array, "runs steps"], Float[Array, "runs steps"]]:
    """The times of the steps, and the loss `Σ hᵢxᵢ²/2` after each of them, from `x = 1`."""

    def one(key):
        optimizer: Any = continuized_nesterov(1.0, mu, key=key)

        def step(carry, _):
            weights, state = carry
            updates, after = optimizer.update(curvatures * weights, state, weights)
            loss = jnp.sum(curvatures * after.x**2) / 2
            return (optax.apply_updates(weights, updates), after), (state.time, loss)

        start = jnp.ones_like(curvatures)
        return jax.lax.scan(step, (start, optimizer.init(start)), length=STEPS)[1]

    return jax.vmap(one)(jax.random.split(jax.random.key(0), runs))


def over_bounds(runs: int = RUNS) -> tuple[np.ndarray, np.ndarray]:
    """`E[e^{ηT} f]` and `E[T² f]` after each step, over their bounds: strongly convex, and not."""
    time, loss = map(np.asarray, losses(jnp.asarray(STRONG), 0.01, runs))
    bound = np.sum(STRONG) / 2 + 0.01 / 2 * len(STRONG)
    strong = np.mean(np.exp(0.1 * time) * loss, axis=0) / bound
    time, loss = map(np.asarray, losses(jnp.asarray(CONVEX), 0.0, runs))
    return strong, np.mean(time**2 * loss, axis=0) / (2 * len(CONVEX))


def exact_over_bound(t: np.ndarray) -> np.ndarray:
    """`E f(x_t)` over its bound at the times `t`, strongly convex, without sampling: the second
    moments of `(x, z)` in each coordinate solve a linear equation."""
    eta, total = 0.1, np.zeros(len(t))
    drift, identity = eta * np.array([[-1, 1], [1, -1]]), np.eye(2)
    for h in STRONG:
        jump = np.array([[1 - h, 0], [-h / eta, 1]])
        generator = np.kron(drift, identity) + np.kron(identity, drift)
        generator += np.kron(jump, jump) - np.eye(4)
        total += [h / 2 * (expm(time * generator) @ np.ones(4))[0] for time in t]
    return total / (np.sum(STRONG) / 2 + eta**2 / 2 * len(STRONG)) * np.exp(eta * t)


def rates() -> list[Measurement]:
    """EBBF21-rates: the expectations are below their bounds after each of 200 steps, and up to a
    time of 200."""
    strong, convex = over_bounds()
    row = lambda claim, value: Measurement(
        "EBBF21-rates", claim, 1.0, float(np.max(value)), 0.0, "a bound of 20 000 runs", "at most"
    )
    return [
        row("κ = 100: largest E[e^{ηT} (f − f*)] over f₀ − f* + μ/2 ‖z₀ − x*‖²", strong),
        row("convex: largest E[T² (f − f*)] over 2L ‖z₀ − x*‖²", convex),
        Measurement(
            "EBBF21-rates",
            "κ = 100, continuous time: largest E(f − f*) over its bound, exact, at t = 0",
            0.961,
            float(np.max(exact_over_bound(np.linspace(0, 200, 41)))),
            5e-4,
            "three digits are stated; steps start with the first jump, which takes most of it",
        ),
    ]


def figure() -> Figure:
    """EBBF21-rates: losses of runs and their mean, below the bounds."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    steps = np.arange(1, STEPS + 1)
    cases = [(STRONG, 0.01, "κ = 100"), (CONVEX, 0.0, "convex, μ = 0")]
    for ax, (curvatures, mu, title) in zip(figure.subplots(1, 2), cases, strict=True):
        time, loss = map(np.asarray, losses(jnp.asarray(curvatures), mu, 2000))
        for k in range(12):
            label = "runs" if k == 0 else None
            ax.semilogy(time[k], loss[k], color=COLORS[0], linewidth=0.6, alpha=0.5, label=label)
        plain = (1 - curvatures[None]) ** (2 * steps[:, None]) @ curvatures / 2
        ax.semilogy(steps, plain, color=COLORS[1], label="gradient descent")
        if mu:
            start = np.sum(curvatures) / 2 + mu / 2 * len(curvatures)
            bound = start * np.exp(-np.sqrt(mu) * steps)
        else:
            bound = 2 * len(curvatures) / steps**2
        ax.semilogy(steps, bound, color="black", linestyle=DASHES, label="bound of the mean")
        ax.legend(fontsize=8, frameon=False)
        ax.set_xlim(0, STEPS)
        panel(ax, title, "time T", "loss" if mu else "")
    return figure


CLAIMS = [Claim("EBBF21-rates", "the continuized method is within the bounds of Nesterov's", rates)]
