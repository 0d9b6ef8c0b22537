"""Berthier & Li, *Acceleration of Gossip Algorithms through the Euler–Poisson–Darboux Equation*,
arXiv 2202.10742.

Claims: gossip with Jacobi polynomials spreads over a distance of order `t` in place of `√t`, to a
uniform density; its limit is a damped wave equation, whose modes are Bessel functions. It is the
flow of Nesterov.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from matplotlib.figure import Figure
from scipy.special import gamma, jv

from .. import AcceleratedForm, LeastSquares, Linear, Quadratic, gradient_flow, jacobi, train
from ..plot.axes import COLORS
from .claim import Claim, Measurement
from .panels import panel

STEPS, ALPHA = 100, 0.5
CURVATURES, S = np.array([1.0, 9.0, 100.0]), np.linspace(0, 6, 121)


def cycle(n: int) -> LeastSquares:
    """`½ Σ (x_v − x_w)²` over the edges of a cycle: `I − ½∇²ℓ` is its simple random walk."""
    return LeastSquares(np.eye(n) - np.roll(np.eye(n), 1, axis=1), np.zeros(n))


def spread(optimizer: optax.GradientTransformation, steps: list[int]) -> Array:
    """The values after some steps of gossip from 1 at one node, on a cycle that they do not go
    around, shape `(S, n)`. Their sum is 1."""
    n = 2 * max(steps) + 3
    start = jnp.zeros(n).at[n // 2].set(2.0)
    return train(Linear(start), cycle(n), optimizer, eps=0.5, steps=steps).x


def second_moment(values: np.ndarray) -> float:
    """The mean square of the distance to the first node."""
    return float(values @ (np.arange(len(values)) - len(values) // 2) ** 2)


def mode(alpha: float, t: np.ndarray) -> np.ndarray:
    """`Γ(α + 1)(2/t)^α J_α(t)`, 1 at 0."""
    t = np.maximum(t, 1e-9)
    return gamma(alpha + 1) * (2 / t) ** alpha * jv(alpha, t)


def modes(alpha: float, **options: Any) -> np.ndarray:
    """Nesterov's flow of linear models from `x = 1` towards 0, shape `(S, 3)`."""
    problem = Quadratic(jnp.diag(jnp.asarray(CURVATURES)), jnp.zeros(3))
    form, start = AcceleratedForm(alpha), Linear(jnp.full(3, 2.0))
    flow = gradient_flow(start, problem, S, eps=0.5, formulation=form, **options)
    return np.asarray(flow.x)


def moments() -> list[Measurement]:
    """BL22-moment: the second moment after 100 steps, of Jacobi and of simple gossip."""
    of = lambda optimizer: second_moment(np.asarray(spread(optimizer, [STEPS])[-1]))
    why = "rounding over 100 steps"
    exact = STEPS * (STEPS + ALPHA + 1) / (2 * (ALPHA + 1))
    row = lambda claim, stated, measured: Measurement(
        "BL22-moment", claim, stated, measured, 1e-10 * stated, why
    )
    return [
        row("n(n + α + 1)/(2(α + 1))", exact, of(jacobi(ALPHA, step_size=0.5))),
        row("simple gossip: n", STEPS, of(optax.sgd(0.5))),
    ]


def bessel() -> list[Measurement]:
    """BL22-bessel: modes of the limit, Nesterov's flow, and of the iteration."""
    exact = lambda alpha: mode(alpha, S[:, None] * np.sqrt(CURVATURES))
    off = [
        np.max(np.abs(modes(alpha, rtol=1e-12, atol=1e-13) - exact(alpha)))
        for alpha in (0.0, 0.5, 1.0)
    ]
    # Of the walk with values cos(ξ/n) after n steps.
    xi, sizes = np.linspace(1e-6, 30, 400), np.array([100, 800])
    errors = []
    for n in sizes:
        walk = Quadratic(jnp.diag(jnp.asarray(2 * (1 - np.cos(xi / n)))), jnp.zeros(len(xi)))
        start, optimizer = Linear(jnp.full(len(xi), 2.0)), jacobi(ALPHA, step_size=0.5)
        x = train(start, walk, optimizer, eps=0.5, steps=[int(n)]).x[-1]
        time = (n + (ALPHA + 1) / 2) / n
        errors.append(np.max(np.abs(np.asarray(x) - mode(ALPHA, xi * time))))
    order = np.log(errors[0] / errors[1]) / np.log(sizes[1] / sizes[0])
    return [
        Measurement(
            "BL22-bessel",
            "Nesterov's flow, α = 0, ½, 1: distance to Γ(α + 1)(2/ρt)^α J_α(ρt)",
            0.0,
            float(np.max(off)),
            1e-10,
            "steps to 1e-12, some hundred of them over 60 radians",
        ),
        Measurement(
            "BL22-bessel",
            "order in 1/n of the iteration's distance to it, at t = (n + (α + 1)/2)/n",
            2.0,
            float(order),
            0.05,
            "terms of order 1/n⁴ at n = 100, where ξ/n is .3",
        ),
    ]


def figure() -> Figure:
    """BL22-moment: how far gossip spreads, and the modes of its limit."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    place = np.arange(2 * STEPS + 3) - STEPS - 1
    reached = (place - STEPS) % 2 == 0  # after an even number of steps, every other node
    optimizers = {
        "simple gossip": optax.sgd(0.5),
        "Jacobi, α = ½": jacobi(ALPHA, step_size=0.5),
    }
    for colour, (label, optimizer) in zip(COLORS, optimizers.items(), strict=False):
        values = np.asarray(spread(optimizer, [STEPS])[-1])
        left.plot(place[reached], values[reached], color=colour, label=label)
    left.legend(fontsize=8, frameon=False)
    panel(left, f"after {STEPS} steps from node 0", "node", "value")
    for colour, alpha in zip(COLORS, (0.0, 0.5, 1.0), strict=False):
        right.plot(S, mode(alpha, S), color=colour, linewidth=4, alpha=0.25)
        right.plot(S, modes(alpha)[:, 0], color=colour, linewidth=1.2, label=f"α = {alpha:g}")
    right.legend(fontsize=8, frameon=False)
    panel(right, "Nesterov's flow; thick: Bessel functions", "t", "x")
    return figure


CLAIMS = [
    Claim("BL22-moment", "Jacobi gossip spreads over a distance of order t", moments),
    Claim("BL22-bessel", "its limit has Bessel functions as modes", bessel),
]
