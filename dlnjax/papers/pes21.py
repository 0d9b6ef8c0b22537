"""Pesme, Pillaud-Vivien & Flammarion, *Implicit Bias of SGD for Diagonal Linear Networks: a
Provable Benefit of Stochasticity*, arXiv 2106.09524.

Claim: stochastic gradient flow of `w₊² − w₋²` with the loss `L = ‖Xx − y‖²/(4n)`,

    dw_± = −∇L dt ± 2√(γL/n) w_±∘XᵀdB,

ends where gradient flow from `α_∞ = α exp(−2γ diag(XᵀX)/n ∫L dt)` ends. Measured: these weights, in
the units of the paper, against `stochastic_flow` on the same Brownian path; and the end against
`end_point` from `α_∞`.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Key

from .. import (
    UV,
    LeastSquares,
    Pretrained,
    StochasticFlow,
    basis_pursuit,
    end_point,
    stochastic_flow,
)
from .claim import Claim, Measurement

N, D, ACTIVE, PATHS = 5, 20, 3, 16
# A large initialisation, as for EPGF23: at small ε all end points are near the minimum 1-norm.
LOG_EPS = float(np.log(0.04))
ALPHA = np.exp(LOG_EPS / 2)
# In units of dlnjax: that of the paper is N times as large.
STEP_SIZE = 0.02
END = 4.0  # where the residual is still a few percent of y
# Steps of the weights, and those of the flow, whose error is far below.
STEPS, FINE = (2**8, 2**10, 2**12, 2**14), 2**14
# Until the residual is rounding.
LAST = 120.0
SIZES = np.array([0.0, 0.005, 0.01, 0.02, 0.04])


def problem() -> LeastSquares:
    """Noiseless sparse regression, 5 × 20."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D))
    return LeastSquares(X, X[:, :ACTIVE] @ np.array([1.0, -1.5, 0.8]))


def network() -> UV:
    """`w_± = (u ± v)/2`, from `w_± = α`."""
    return UV(2 * jnp.ones(D), jnp.zeros(D))


@eqx.filter_jit
def flows(keys: Key[Array, " m"], step_size: Float[Array, " m"], end: Array) -> StochasticFlow:
    """The flows at `s = end`, with a leading axis."""

    def one(key, step_size):
        return stochastic_flow(
            network(),
            problem(),
            end,
            key=key,
            step_size=step_size,
            log_eps=LOG_EPS,
            steps=FINE,
            throw=False,
        )

    return jax.vmap(one)(keys, step_size)


@eqx.filter_jit
def weights(keys: Key[Array, " m"], steps: int) -> tuple[Float[Array, "m d"], Float[Array, "m d"]]:
    """`w_±` at `s = END`, by the method of Euler and Maruyama in the units of the paper."""
    of = problem()
    scale = -LOG_EPS / 2 * N  # its time over s
    gamma, dt = N * STEP_SIZE, scale * END / steps

    def one(key):
        tree = diffrax.VirtualBrownianTree(0.0, END, END / 2**22, (N,), key)
        path: Any = jax.vmap(tree.evaluate)(jnp.linspace(0, END, steps + 1))

        def step(w, dB):
            plus, minus = w
            residual = of.X @ (plus**2 - minus**2) - of.y
            loss = jnp.sum(residual**2) / (4 * N)
            push = 2 * jnp.sqrt(gamma * loss / N) * (dB @ of.X) - residual @ of.X / N * dt
            return (plus + push * plus, minus - push * minus), None

        start = jnp.full(D, ALPHA)
        w, _ = lax.scan(step, (start, start), jnp.sqrt(scale) * jnp.diff(path, axis=0))
        return w

    return jax.vmap(one)(keys)


def errors() -> tuple[np.ndarray, np.ndarray]:
    """For each number of `STEPS`, the distance of the weights to the flow, relative to `x`, in the
    mean square over the paths; and that of `log α_∞ = log √(w₊w₋)`."""
    keys = jr.split(jr.key(0), PATHS)
    flow = flows(keys, jnp.full(PATHS, STEP_SIZE), jnp.array([END]))
    x, log_alpha = np.asarray(flow.x[:, 0]), np.asarray(flow.effective_log_eps[:, 0]) / 2
    off, off_alpha = [], []
    for steps in STEPS:
        plus, minus = map(np.asarray, weights(keys, steps))
        off.append(np.sqrt(np.mean((plus**2 - minus**2 - x) ** 2) / np.mean(x**2)))
        off_alpha.append(np.sqrt(np.mean((np.log(np.abs(plus * minus)) / 2 - log_alpha) ** 2)))
    return np.array(off), np.array(off_alpha)


def ends() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At the end: `‖x‖₁` over the minimum, of each step size and path, `(k, m)`; how far `x` is
    from the end of gradient flow from `α_∞`, the same; and the residual `Xx − y`."""
    of = problem()
    keys = jr.split(jr.key(1), PATHS)
    grid = jnp.repeat(jnp.asarray(SIZES), PATHS)
    flow = flows(jnp.tile(keys, len(SIZES)), grid, jnp.array([LAST]))

    @jax.jit
    @jax.vmap
    def gradient_end(effective):
        start = Pretrained(network(), exponents=(effective / LOG_EPS, effective / LOG_EPS))
        return end_point(start, of, log_eps=LOG_EPS, throw=False).x

    x = np.asarray(flow.x[:, 0])
    away = np.abs(x - np.asarray(gradient_end(flow.effective_log_eps[:, 0]))).max(axis=1)
    least = np.abs(np.asarray(basis_pursuit(of).x)).sum()
    residual = np.abs(x @ np.asarray(of.X).T - np.asarray(of.y)).max(axis=1)
    shape = (len(SIZES), PATHS)
    excess = np.abs(x).sum(axis=1) / least - 1
    return excess.reshape(shape), away.reshape(shape), residual.reshape(shape)


def sgf() -> list[Measurement]:
    """Pes21-sgf, on a noiseless sparse instance 5 × 20."""
    off, off_alpha = errors()
    excess, away, residual = ends()
    orders = [-np.polyfit(np.log(STEPS), np.log(v), 1)[0] for v in (off, off_alpha)]
    of = f"of the weights against the flow on the same Brownian path, {PATHS} paths"
    rows = []
    for what, error, order, bound in (
        ("x", off, orders[0], 0.01),
        ("log α_∞", off_alpha, orders[1], 0.02),
    ):
        rows += [
            Measurement(
                "Pes21-sgf",
                f"{what} {of}: error of {STEPS[-1]} steps",
                0.0,
                float(error[-1]),
                bound,
                "strong error of the method of Euler and Maruyama",
            ),
            Measurement(
                "Pes21-sgf",
                f"{what} {of}: order of the error in the steps' length, as −order",
                -0.5,
                -float(order),
                0.05,
                "the method has the order ½ (1 where the noise is small); the mean over the paths "
                "is known to a tenth",
                "at most",
            ),
        ]
    return [
        *rows,
        Measurement(
            "Pes21-sgf",
            "largest |Xx − y| at the end",
            0.0,
            float(np.max(residual)),
            1e-9,
            f"rounding: the residual has decayed at s = {LAST:g}",
        ),
        Measurement(
            "Pes21-sgf",
            "largest distance of the end to that of gradient flow from α_∞",
            0.0,
            float(np.max(away)),
            1e-9,
            "the residual at the end, and rounding: the identity holds at any step",
        ),
        Measurement(
            "Pes21-sgf",
            "mean ‖x‖₁ over the minimum at the largest γ, relative to that without noise",
            1.0,
            float(np.mean(excess[-1]) / np.mean(excess[0])),
            0.0,
            "the benefit of noise: α_∞ < α, and the 1-norm falls with it",
            "at most",
        ),
    ]


CLAIMS = [
    Claim("Pes21-sgf", "SGF ends where gradient flow from α exp(−2γh∫L) does", sgf),
]
