"""Pushkin, Berthier & Abbe, *On the Minimal Degree Bias in Generalization on the Unseen for
non-Boolean Functions*, arXiv 2406.06354; and Abbe, Bengio, Lotfi & Rizk, arXiv 2301.13105.

Claims: of all functions of signs with the values that are seen, small features choose the one of
least degree; a bias that is less deep than the weights makes a network do so. Which weights of the
1-norm, and which shapes of a deep network, choose it too: measured here on `p₀p₁`, seen where one
of the two is 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from .. import (
    RESULTS,
    UV,
    Deep,
    LeastSquares,
    Linear,
    basis_pursuit,
    degree_profile,
    end_point,
    gradient_flow,
    limit_point,
    walsh,
)
from ..networks import MixedDepth
from ..plot.axes import COLORS, DASHES
from .claim import Claim, Measurement
from .panels import panel

SIGNS = 4
POINTS = 1.0 - 2 * np.array(list(np.ndindex((2,) * SIGNS)))
SUBSETS = walsh(POINTS)[1]
DEGREES = np.array([len(S) for S in SUBSETS], float)
PAIR = SUBSETS.index((0, 1))
# A bias b and a weight w that the data do not tell apart: `b + w = TOTAL`.
TOTAL, LEAK_EPS = 1.5, np.array([1e-1, 1e-2, 1e-4, 1e-8, 1e-40])


def product() -> LeastSquares:
    """`p₀p₁`, where `p₀ = 1` or `p₁ = 1`. Of least degree is `p₀ + p₁ − 1`."""
    seen = POINTS[(POINTS[:, 0] == 1) | (POINTS[:, 1] == 1)]
    return LeastSquares(walsh(seen)[0], seen[:, 0] * seen[:, 1])


def quadratic() -> LeastSquares:
    """`p₀p₁ − 1.25 p₁p₂ + 1.5 p₂p₀`, where `p₀p₁p₂ = 1`: there it is `p₂ − 1.25 p₀ + 1.5 p₁`."""
    seen = POINTS[np.prod(POINTS[:, :3], axis=1) == 1]
    p = seen.T
    return LeastSquares(walsh(seen)[0], p[0] * p[1] - 1.25 * p[1] * p[2] + 1.5 * p[2] * p[0])


def by_weights(ratio: Float[Array, ""]) -> Array:
    """The coefficients of `product` with the least 1-norm, in which degree `j` weighs `ratioʲ`."""
    found = basis_pursuit(product(), weights=ratio**DEGREES, throw=False)
    return jnp.where(found.result == RESULTS.successful, found.x, jnp.nan)


def by_shape(ratio: Float[Array, ""], depth: float = 3.0) -> Array:
    """Where a deep network of shape `ratioʲ` at degree `j` learns `product`, as `ε → 0`."""
    shape = ratio**DEGREES
    found = limit_point(Deep(shape, shape, depth=depth), product(), throw=False)
    return jnp.where(found.result == RESULTS.successful, found.x, jnp.nan)


def switch(solve: Callable[[Array], Array], low: float, high: float) -> float:
    """Between these two, where the coefficient of `p₀p₁` crosses ½. NaN if it does not."""
    pair = jax.jit(lambda ratio: solve(ratio)[PAIR] > 0.5)
    first = bool(pair(jnp.asarray(low)))
    if bool(pair(jnp.asarray(high))) == first:
        return np.nan
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if bool(pair(jnp.asarray(middle))) == first else (low, middle)
    return low


def kernel(size: Float[Array, ""]) -> Array:
    """The interpolation of `product` with the least 2-norm, by features of size `sizeʲ` at degree
    `j`: the end of a linear model."""
    problem, scale = product(), size**DEGREES
    scaled = LeastSquares(problem.X * scale[None], problem.y)
    found = end_point(Linear(jnp.zeros(len(DEGREES))), scaled, eps=0.5, throw=False)
    return jnp.where(found.result == RESULTS.successful, scale * found.x, jnp.nan)


def leaks(log_eps: Float[Array, " E"], s: Float[Array, " S"]) -> Array:
    """Bias and weight during training from `ε`, shape `(E, S, 2)`; NaN where one fails."""

    def one(size):
        network = MixedDepth(Linear(jnp.zeros(1)), UV(jnp.ones(1), jnp.zeros(1)))
        problem = LeastSquares(jnp.ones((1, 2)), jnp.array([TOTAL]))
        flow = gradient_flow(network, problem, s, log_eps=size, throw=False)
        return jnp.where(flow.result == RESULTS.successful, flow.x, jnp.nan)

    return jax.jit(jax.vmap(one))(log_eps)


def switches() -> list[Measurement]:
    """PBA24-switch: which weights and which shapes choose the function of least degree."""
    ratios = jnp.geomspace(0.05, 20, 41)
    coefficients = jax.jit(jax.vmap(lambda ratio: by_shape(ratio, 2.0)))(ratios)
    why = "bisection to 1e-9"
    row = lambda claim, stated, measured, tolerance, why: Measurement(
        "PBA24-switch", claim, stated, measured, tolerance, why
    )
    return [
        row("weight of a degree, 1 + √2", 1 + 2**0.5, switch(by_weights, 1, 4), 2e-9, why),
        row("shape at depth 3, √2 − 1", 2**0.5 - 1, switch(by_shape, 0.2, 0.9), 2e-9, why),
        row(
            "at depth 2, smallest coefficient of p₀p₁ over 41 shapes .05ʲ to 20ʲ",
            1,
            float(jnp.min(coefficients[:, PAIR])),
            1e-9,
            "no shape changes the 1-norm at depth 2: p₀p₁ has norm 1, p₀ + p₁ − 1 has 3",
        ),
    ]


def profiles() -> list[Measurement]:
    """PBA24-profiles: the interpolators of least degree, and how much of others is left."""
    x = np.asarray(basis_pursuit(quadratic(), weights=4.0**DEGREES, throw=False).x)
    exact = np.zeros(len(x))
    exact[[SUBSETS.index(S) for S in ((0,), (1,), (2,))]] = -1.25, 1.5, 1
    sizes = jnp.array([1e-2, 1e-3])
    pair = np.asarray(jax.jit(jax.vmap(kernel))(sizes))[:, PAIR]
    found = np.asarray(leaks(jnp.log(LEAK_EPS), jnp.array([0.1, 1, 10, 1e3])))
    bias, weight = found[..., 0], found[..., 1]
    leak = weight / (LEAK_EPS[:, None] / 2 * np.sinh(2 * bias)) - 1
    row = lambda claim, measured, tolerance, why, stated=0.0: Measurement(
        "PBA24-profiles", claim, stated, measured, tolerance, why
    )
    return [
        row(
            "on p₀p₁p₂ = 1, distance to p₂ − 1.25 p₀ + 1.5 p₁",
            float(np.max(np.abs(x - exact))),
            1e-12,
            "rounding",
        ),
        row(
            "features of size 1e-3ʲ: coefficient of p₀p₁ over ε²",
            float(pair[1] / 1e-6),
            1e-5,
            "the next term is of order ε², 1e-6",
            2.0,
        ),
        row(
            "a bias and a weight from ε: weight over (ε/2) sinh 2b, less 1",
            float(np.max(np.abs(leak))),
            1e-12,
            "both are functions of the dual at one time: rounding",
        ),
        row(
            "and b + w at the end, less that of the data",
            float(np.max(np.abs(np.sum(found[:, -1], axis=1) - TOTAL))),
            1e-9,
            "the tolerances of the steps",
        ),
    ]


def ends(log_eps: Float[Array, ""], ratio: Float[Array, ""]) -> Array:
    """The coefficient of `p₀p₁` where `by_shape` ends from `ε`."""
    shape = ratio**DEGREES
    found = end_point(Deep(shape, shape, depth=3.0), product(), log_eps=log_eps, throw=False)
    return jnp.where(found.result == RESULTS.successful, found.x[PAIR], jnp.nan)


def energies(depths: Float[Array, " D"], shape: float, targets: int) -> Array:
    """The mean share of each degree in what is learned, as `ε → 0`, of random functions of degree 3
    which are seen as `product` is: shape `(D, 5)`. Degree `j` starts from `shapeʲ`."""
    X = product().X
    noise = np.random.default_rng(0).normal(size=(targets, len(DEGREES)))
    y = jnp.asarray(np.where(DEGREES <= 3, noise, 0) @ np.asarray(X).T)
    size = shape**DEGREES

    def one(depth, y):
        found = limit_point(Deep(size, size, depth=depth), LeastSquares(X, y), throw=False)
        profile = degree_profile(found.x, SUBSETS)
        good = found.result == RESULTS.successful
        return jnp.where(good, profile / jnp.sum(profile), jnp.nan)

    each = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(depths, y)
    return jnp.mean(each, axis=1)


def figure() -> Figure:
    """PBA24-switch: the switch to the least degree, the leak into the weight, the degrees that
    deep networks learn."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    ratio = jnp.linspace(0.2, 0.7, 101)
    log_eps = jnp.log(jnp.array([1e-2, 1e-4, 1e-8]))
    sizes = jax.jit(jax.vmap(jax.vmap(ends, (None, 0)), (0, None)))(log_eps, ratio)
    for size, values, colour in zip(log_eps, sizes, COLORS, strict=False):
        left.plot(ratio, values, color=colour, label=f"ε = {np.exp(size):.0e}")
    left.axvline(2**0.5 - 1, color="black", linewidth=0.9, linestyle=DASHES, label="√2 − 1")
    left.legend(fontsize=8, frameon=False)
    panel(left, "depth 3, shape α at each degree", "α", r"coefficient of $p_0p_1$")
    s = np.geomspace(1e-2, 1e3, 121)
    for eps, values, colour in zip(
        LEAK_EPS[1:4],
        np.asarray(leaks(jnp.log(LEAK_EPS[1:4]), jnp.asarray(s))),
        COLORS,
        strict=False,
    ):
        b = np.linspace(1e-2, TOTAL, 60)
        middle.semilogy(b, eps / 2 * np.sinh(2 * b), color=colour, linewidth=4, alpha=0.25)
        middle.semilogy(values[:, 0], values[:, 1], color=colour, label=f"ε = {eps:.0e}")
    middle.set_xlim(0, TOTAL)
    middle.legend(fontsize=8, frameon=False)
    panel(middle, "thick: (ε/2) sinh 2b", "bias b, during training", "weight w of the unseen sign")
    depths = jnp.linspace(2.05, 6, 40)
    for degree, share in enumerate(np.asarray(energies(depths, 0.5, 64)).T):
        right.plot(depths, share, color=COLORS[degree], label=f"degree {degree}")
    right.set_ylim(0)
    right.legend(fontsize=8, frameon=False)
    panel(right, "64 random functions, shape 1/2 at each degree", "depth", "share of the energy")
    return figure


CLAIMS = [
    Claim("PBA24-switch", "the weights and shapes that choose the least degree", switches),
    Claim(
        "PBA24-profiles", "the least degree is chosen, but for a leak of the order of ε", profiles
    ),
]
