"""Berthier, Montanari & Zhou, *Learning time-scales in two-layers neural networks*,
arXiv 2303.00055.

Claims: a shallow network whose output weights are faster than its directions by `1/ε` learns the
Hermite coefficients of a function of one direction one after another, the constant at time `ε`, and
that of degree `k` at about `ε^{1/(2k)}`: the canonical order. How often random networks keep to it
is measured by `draws`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from matplotlib.figure import Figure

from .. import RESULTS, LeastSquares, WeightForm, crossing_times, gradient_flow
from ..networks import SingleIndex
from ..plot.axes import COLORS, DASHES
from .claim import Claim, Measurement
from .panels import panel

SIGMA, PHI = np.array([0.5, 0.6, 0.5, 0.4, 0.3]), np.array([0.6, 0.7, 0.6, 0.5, 0.4])
NEURONS = 20
LOG_EPS = np.log(10.0) * np.arange(-9, -13, -1)
DEGREES = len(SIGMA)


def start() -> np.ndarray:
    """The output weights at the start; directions start at `s = 0`."""
    rng = np.random.default_rng(0)
    return rng.choice([-1.0, 1.0], NEURONS) * rng.uniform(0.5, 1.5, NEURONS)


class Draw(NamedTuple):
    """A network, a function, and until when it is trained."""

    a: Float[Array, " m"]
    sigma: Float[Array, " d"]
    phi: Float[Array, " d"]
    log_eps: Float[Array, ""]
    s_max: Float[Array, ""]


def first_times(draw: Draw, rtol: float = 1e-8) -> tuple[Float[Array, " d"], RESULTS]:
    """When each `|x_k|` first rises to `|φ_k|/2`, `inf` if it does not until `s_max`."""
    found = crossing_times(
        SingleIndex(draw.a, jnp.zeros_like(draw.a), draw.sigma),
        LeastSquares(jnp.eye(len(draw.phi)), draw.phi),
        draw.s_max,
        jnp.abs(draw.phi) / 2,
        log_eps=draw.log_eps,
        formulation=WeightForm(),
        rtol=rtol,
        max_crossings=8 * len(draw.phi),
        throw=False,
    )
    rises = found.activations
    s = jnp.where(jnp.any(rises, axis=0), found.s[jnp.argmax(rises, axis=0)], jnp.inf)
    return jnp.where(found.result == RESULTS.successful, s, jnp.nan), found.result


def stated_times() -> Float[Array, "E d"]:
    """`first_times` of the example, up to degree 3."""
    ends = 0.08 * np.exp((LOG_EPS - LOG_EPS[0]) / 8)
    one = lambda size, end: first_times(
        Draw(jnp.asarray(start()), jnp.asarray(SIGMA), jnp.asarray(PHI), size, end)
    )[0]
    return jax.jit(jax.vmap(one))(jnp.asarray(LOG_EPS), jnp.asarray(ends))


def random_draw(key: Key[Array, ""], neurons: int, log_eps: Float[Array, ""]) -> Draw:
    """Coefficients of modulus between .3 and .8 and of any sign; centred normal output weights,
    so that `x₀` starts at 0."""
    of_sigma, of_phi, of_a = jax.random.split(key, 3)

    def coefficients(key):
        size, sign = jax.random.split(key)
        modulus = jax.random.uniform(size, (DEGREES,), float, 0.3, 0.8)
        return modulus * jax.random.rademacher(sign, (DEGREES,), float)

    a = jax.random.normal(of_a, (neurons,), float)
    a = a - jnp.mean(a)
    return Draw(a, coefficients(of_sigma), coefficients(of_phi), log_eps, jnp.asarray(1.0))


def draws(
    count: int, neurons: int, log_eps: Float[Array, ""], rtol: float = 1e-6
) -> tuple[Float[Array, "count d"], RESULTS]:
    """`first_times` of random draws, in one program."""
    keys = jax.random.split(jax.random.key(0), count)
    one = lambda key: first_times(random_draw(key, neurons, log_eps), rtol)
    return jax.vmap(one)(keys)


def in_order(times: Float[np.ndarray, "count d"]) -> tuple[np.ndarray, np.ndarray]:
    """For each two degrees that follow each other, how often the lower one is first, among draws in
    which it or the next is learned; and that share's standard error."""
    known = times[np.all(~np.isnan(times), axis=1)]
    low, high = known[:, :-1], known[:, 1:]
    number = np.sum(np.isfinite(low) | np.isfinite(high), axis=0)
    share = np.sum(low < high, axis=0) / number
    return share, np.sqrt(share * (1 - share) / number)


def slopes(times: Float[np.ndarray, "E d"]) -> np.ndarray:
    """Of the logarithm of times against `log ε`, for each degree."""
    return np.polyfit(LOG_EPS, np.log(times), 1)[0]


def time_scales() -> list[Measurement]:
    """BMZ23-times: at which power of `ε` each coefficient is learned."""
    times = np.asarray(stated_times())
    measured = slopes(times[:, :4])
    rows = [
        Measurement(
            "BMZ23-times",
            f"slope of log time against log ε, degree {k}",
            stated,
            float(measured[k]),
            0.02,
            why,
        )
        for k, stated, why in (
            (0, 1.0, "the next order of ε is relative to 1"),
            (2, 1 / 4, "for ε ≤ 1e-9; it is approached as a power of ε"),
            (3, 1 / 6, "for ε ≤ 1e-9, where degree 4 is hardly later"),
        )
    ]
    rise = np.polyfit(-LOG_EPS, times[:, 1] / np.exp(LOG_EPS / 2), 1)[0]
    why = "what is of higher order in ε changes it by .002 at 1e-9, and by less below"
    row = Measurement(
        "BMZ23-times",
        "degree 1: rise of time/√ε with log 1/ε, 1/(4 σ₁φ₁)",
        1 / (4 * SIGMA[1] * PHI[1]),
        float(rise),
        0.003,
        why,
    )
    return [*rows, row]


def figure() -> Figure:
    """BMZ23-times: coefficients during training, and the times at which they are learned."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    network = SingleIndex(start(), np.zeros(NEURONS), SIGMA)
    problem, size = LeastSquares(np.eye(DEGREES), PHI), float(LOG_EPS[1])
    s = np.geomspace(1e-12, 0.3, 241)
    flow = gradient_flow(network, problem, s, log_eps=size, formulation=WeightForm(), rtol=1e-6)
    for k in range(DEGREES):
        left.semilogx(s, flow.x[:, k] / PHI[k], color=COLORS[k], label=f"degree {k}")
    left.axhline(0.5, color="black", linewidth=0.9, linestyle=DASHES)
    left.legend(fontsize=8, frameon=False)
    panel(left, "ε = 1e-10", "s", r"$x_k/\varphi_k$")
    times, eps = np.asarray(stated_times()), np.exp(LOG_EPS)
    for k, power in ((0, 1), (1, 1 / 2), (2, 1 / 4), (3, 1 / 6)):
        logarithm = np.log(1 / eps) / (4 * SIGMA[1] * PHI[1]) if k == 1 else 1
        shape = eps**power * logarithm
        right.loglog(eps, shape * times[-1, k] / shape[-1], color=COLORS[k], linewidth=0.9)
        right.loglog(eps, times[:, k], "o", color=COLORS[k], markersize=4)
    panel(right, r"lines: $\varepsilon$, $\sqrt{\varepsilon}\log 1/\varepsilon$, "
          r"$\varepsilon^{1/4}$, $\varepsilon^{1/6}$", "ε", "time of half its value")  # fmt: skip
    return figure


CLAIMS = [
    Claim(
        "BMZ23-times",
        "degrees are learned one after another, at powers of ε",
        time_scales,
    )
]
