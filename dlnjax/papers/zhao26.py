"""Zhao et al. 2026, arXiv 2607.12332, on diagonal linear networks of several distinct layers from a
small start.

Claims for the network `Layers`: a coordinate activates after a growth time, an integral over what
its layers conserve, and as `ε → 0` the flow ends where the 1-norm, weighted by the growth times, is
least, up to the order of `ε`. Measured against elliptic integrals and linear programmes.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linprog
from scipy.special import elliprf

from .. import RESULTS, Layers, LeastSquares, gradient_flow
from .claim import Claim, Measurement

N, D, STARTS, LAYERS = 3, 5, 4, 4
# The slope is that of all but the last, where only the tolerances of the steps are left.
LOG_EPS: np.ndarray = -np.log(10) * np.array([6.0, 7.0, 8.0, 9.0, 10.0, 60.0])
# The flows rest by then.
S_END = 1e3


def problem() -> LeastSquares:
    """A normal instance 3 × 5."""
    rng = np.random.default_rng(0)
    return LeastSquares(rng.normal(size=(N, D)), rng.normal(size=N))


def weights(layers: int, d: int = D, seed: int = 1) -> np.ndarray:
    """A normal start, shape `(layers, d)`."""
    return np.random.default_rng(seed).normal(size=(layers, d))


def elliptic(weights: np.ndarray) -> np.ndarray:
    """Growth times of three layers, shape `(2, d)`, by Carlson's integral:
    `∫_a^∞ db/√((b² + c₁)(b² + c₂)) = R_F(a², a² + c₁, a² + c₂)`."""
    smallest, *others = np.sort(np.abs(weights), axis=0)
    c = [(other - smallest) * (other + smallest) for other in others]
    time = lambda a: elliprf(a**2, a**2 + c[0], a**2 + c[1])
    towards, total = time(smallest), time(0 * smallest)
    signs = np.where(np.prod(np.sign(weights), axis=0) > 0, 1, -1)
    return np.where(signs * np.array([[1], [-1]]) > 0, towards, 2 * total - towards)


def programme(weights: np.ndarray) -> np.ndarray:
    """The interpolating `x` with the least 1-norm, weighted by the growth times, by HiGHS."""
    X, y = map(np.asarray, (problem().X, problem().y))
    times = np.asarray(Layers(weights).growth_times)
    found = linprog(times.ravel(), A_eq=np.hstack([X, -X]), b_eq=y)
    return found.x[:D] - found.x[D:]


@eqx.filter_jit
def _flows(weights: Float[Array, "m L d"], log_eps: Float[Array, " E"]) -> Float[Array, "m E d"]:
    """Where flows end; NaN where one fails."""

    def one(weights, size):
        s = jnp.array([S_END])
        flow = gradient_flow(Layers(weights), problem(), s, log_eps=size, throw=False)
        return jnp.where(flow.result == RESULTS.successful, flow.x[0], jnp.nan)

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(weights, log_eps)


def ends() -> np.ndarray:
    """Distances of flows to the weighted programmes of `STARTS` starts, relative to the largest
    entry, at `LOG_EPS`, shape `(m, E)`."""
    starts = np.stack([weights(LAYERS, seed=seed) for seed in range(1, 1 + STARTS)])
    want = np.stack([programme(start) for start in starts])[:, None]
    x = np.asarray(_flows(jnp.asarray(starts), jnp.asarray(LOG_EPS)))
    return np.max(np.abs(x - want), axis=2) / np.max(np.abs(want), axis=2)


def growth() -> list[Measurement]:
    """Zhao26-growth."""
    start = weights(3, 1000, seed=0)
    off = np.asarray(Layers(start).growth_times) / elliptic(start) - 1
    away = ends()
    slopes = [np.polyfit(LOG_EPS[:-1], np.log(row[:-1]), 1)[0] for row in away]
    which = f"{LAYERS} layers, {STARTS} starts"
    id = "Zhao26-growth"
    return [
        Measurement(
            id,
            "largest relative error of the growth times of 1000 normal starts of 3 layers",
            0.0,
            float(np.max(np.abs(off))),
            1e-12,
            "as stated; both are sums of some ten roundings",
        ),
        Measurement(
            id,
            f"{which}: distance to the weighted linear programme at ε = 1e-60, relative",
            0.0,
            float(np.max(away[:, -1])),
            1e-9,
            "the tolerance of HiGHS; that of the steps is 1e-7, of which little is left at rest",
        ),
        *(
            Measurement(
                id,
                f"{which}: the {word} slope of the flow's distance in ε, from 1e-6 to 1e-10",
                1.0,
                float(slope),
                0.05,
                "as stated; the next order in ε at 1e-6, the tolerances of the steps at 1e-10",
            )
            for word, slope in (("smallest", min(slopes)), ("largest", max(slopes)))
        ),
    ]


CLAIMS = [
    Claim("Zhao26-growth", "distinct layers: growth times, and their 1-norm at the end", growth),
]
