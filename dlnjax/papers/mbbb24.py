"""Marion, Berthier, Biau & Boyer, *Attention layers provably solve single-location regression*,
arXiv 2410.01537.

Claims: the risk of the attention layer of `SingleLocation` is a function of five scalars,

    κ = ⟨k, k*⟩,  ν = ⟨v, v*⟩,  θ = ⟨k, v*⟩,  η = ⟨v, k*⟩,  ρ = ⟨k, v⟩;

projected gradient descent stays on the manifold `θ = η = ρ = 0`, where it finds `k*` and `v*`; and
the risk tends to that of Bayes where `λ²L → 0` and `λ√d → ∞`.

Outside of dlnjax, since they need training loops of their own: what the paper probes in BERT, and
gradient steps on streams of sampled sequences. The published code evaluates `ζ(g, t)` for `ζ(t, g)`
in a derivative of the risk; `zeta` and its derivatives here are those of the formula.
"""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf
from jaxtyping import Array, ArrayLike, Float
from matplotlib.figure import Figure

from .. import LeastSquares, WeightForm, gradient_flow
from ..networks import SingleLocation
from ..networks.gaussian import erf_deviation, erf_mean as xi
from ..plot.axes import COLORS, DASHES
from .claim import Claim, Measurement
from .panels import panel

GAMMA, LENGTH = 0.5**0.5, 10
DIMENSIONS = np.array([1e2, 1e4, 1e6, 1e8])
STATED = (0.64, 0.045, 0.0029, 0.00018)


class Setting(NamedTuple):
    """The dimension `d` of tokens, the inverse temperature `λ`, the noise `γ`, the length `L`."""

    dimension: ArrayLike
    lam: ArrayLike
    gamma: ArrayLike = GAMMA
    length: ArrayLike = LENGTH


class Scalars(NamedTuple):
    """What the risk depends on. `k` and `v` have norm 1, and `k*` and `v*` are orthogonal."""

    kappa: Array
    nu: Array
    theta: Array
    eta: Array
    rho: Array


def zeta_slope(t: Array, g: ArrayLike) -> Array:
    """The derivative of `zeta` in `t`."""
    wide = 1 + 2 * jnp.asarray(g) ** 2
    bell = 4 / jnp.sqrt(jnp.pi * wide) * jnp.exp(-(t**2) / wide)
    return bell * erf(t / jnp.sqrt((1 + 4 * jnp.asarray(g) ** 2) * wide))


@jax.custom_jvp
def zeta(t: Array, g: Array) -> Array:
    """`E erf²(t + gG)` for a standard normal `G`."""
    return xi(t, g) ** 2 + erf_deviation(t, g) ** 2


@zeta.defjvp
def _(primals, tangents):
    t, g = primals
    # A function of t + gG has ∂_g = g ∂_t² of its expectation.
    slope, curvature = jax.value_and_grad(zeta_slope)(t, g)
    return zeta(t, g), slope * tangents[0] + g * curvature * tangents[1]


def risk(at: Scalars, of: Setting) -> Array:
    """`E(Σ_l erf(λ⟨X_l, k⟩)⟨X_l, v⟩ − Y)²`. Of a predictor that is 0 it is `γ²`."""
    kappa, nu, theta, eta, rho = at
    lam, gamma, others = jnp.asarray(of.lam), jnp.asarray(of.gamma), of.length - 1
    half = jnp.sqrt(jnp.asarray(of.dimension) / 2)
    t, g = lam * half * kappa, lam * gamma
    xi_t, zeta_t = jax.grad(xi), zeta_slope
    # The token that matters: ⟨X, k⟩ = half κ + γa, ⟨X, v⟩ = half η + γb and Y = γc, with normals of
    # covariances E ab = ρ, E ac = θ, E bc = ν. Normals in front of a function of a are derivatives
    # of its expectation in t.
    first = half * eta * xi(t, g) + gamma * rho * g * xi_t(t, g)
    bilinear = nu * xi(t, g) + rho * theta * g**2 * jax.grad(xi_t)(t, g)
    product = half * eta * theta * g * xi_t(t, g) + gamma * bilinear
    square = (
        (half * eta) ** 2 * zeta(t, g)
        + 2 * half * eta * gamma * rho * g * zeta_t(t, g)
        + gamma**2 * (zeta(t, g) + rho**2 * g**2 * jax.grad(zeta_t)(t, g))
    )
    # The others: the same with no shift and no noise.
    zero = jnp.zeros_like(t)
    mean = rho * lam * xi_t(zero, lam)
    power = silence(lam) + rho**2 * lam**2 * jax.grad(zeta_t)(zero, lam)
    return (
        square
        - 2 * gamma * product
        + gamma**2
        + others * (power + 2 * first * mean + (others - 1) * mean**2)
    )


def silence(lam: ArrayLike) -> Array:
    """`ζ(0, λ)`: what a token that does not matter adds to the risk on the manifold."""
    return 2 / jnp.pi * jnp.arcsin(2 * lam**2 / (1 + 2 * lam**2))


def velocity(at: Scalars, of: Setting) -> Scalars:
    """Of the gradient flow of `k` and `v` on the unit sphere."""
    kappa, nu, theta, eta, rho = at
    slope = jax.grad(risk)(at, of)
    # ∇_k R = R_κ k* + R_θ v* + R_ρ v, and ∇_v R = R_ν v* + R_η k* + R_ρ k; less their radial parts.
    along_k = kappa * slope.kappa + theta * slope.theta + rho * slope.rho
    along_v = nu * slope.nu + eta * slope.eta + rho * slope.rho
    of_k = slope.kappa * eta + slope.theta * nu + slope.rho - rho * along_k
    of_v = slope.nu * theta + slope.eta * kappa + slope.rho - rho * along_v
    return Scalars(
        kappa=-(slope.kappa + slope.rho * eta - kappa * along_k),
        nu=-(slope.nu + slope.rho * theta - nu * along_v),
        theta=-(slope.theta + slope.rho * nu - theta * along_k),
        eta=-(slope.eta + slope.rho * kappa - eta * along_v),
        rho=-(of_k + of_v),
    )


def flow(start: Scalars, of: Setting, times: Float[Array, " S"]) -> Scalars:
    """The flow of the five scalars at increasing times, each `(S,)`; NaN where it fails.

    Steps are explicit. Off the manifold `η` decays at rates up to `d`: keep to a moderate `d`."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, at, _: velocity(at, of)),
        diffrax.Tsit5(),
        0,
        times[-1],
        None,
        start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
        max_steps=2**17,
        throw=False,
    )
    good = solution.result == diffrax.RESULTS.successful
    assert solution.ys is not None
    return jax.tree.map(lambda v: jnp.where(good, v, jnp.nan), solution.ys)


def descent(
    k: Float[Array, " d"], v: Float[Array, " d"], of: Setting, step: float, count: int
) -> Scalars:
    """Projected gradient descent in `R^d`, with `k* = e₁` and `v* = e₂`: after each step the five
    scalars, each `(count,)`."""

    def scalars(k, v):
        return Scalars(k[0], v[1], k[1], v[0], jnp.sum(k * v))

    def one(carry, _):
        slopes = jax.grad(lambda pair: risk(scalars(*pair), of))(carry)
        moved = [w - step * (s - jnp.sum(w * s) * w) for w, s in zip(carry, slopes, strict=True)]
        k, v = (w / jnp.sqrt(jnp.sum(w**2)) for w in moved)
        return (k, v), scalars(k, v)

    return jax.lax.scan(one, (k, v), length=count)[1]


def starts(key: Array, count: int, of: Setting) -> Scalars:
    """On the manifold: `κ` and `ν` of random `k` and `v`, normals of variance `1/d`."""
    kappa, nu = jax.random.normal(key, (2, count), float) / jnp.sqrt(of.dimension)
    zero = jnp.zeros(count, float)
    return Scalars(kappa, nu, zero, zero, zero)


def anywhere(count: int, dimension: int, lam: float, until: float) -> tuple[Scalars, Array]:
    """Where flows from uniform `k` and `v` on the sphere are, each `(count,)`, and their risk."""
    of = Setting(dimension, lam)
    k, v = jax.random.normal(jax.random.key(0), (2, count, dimension), float)
    k, v = (w / jnp.linalg.norm(w, axis=1, keepdims=True) for w in (k, v))
    at = Scalars(k[:, 0], v[:, 1], k[:, 1], v[:, 0], jnp.sum(k * v, axis=1))
    last = lambda at: jax.tree.map(lambda w: w[0], flow(at, of, jnp.array([until])))
    found = jax.jit(jax.vmap(last))(at)
    return found, jax.vmap(lambda at: risk(at, of))(found)


def oracle(of: Setting) -> Array:
    """The excess risk of `k = k*`, `v = v*`: that of Bayes is 0."""
    one, zero = jnp.ones((), float), jnp.zeros((), float)
    return risk(Scalars(one, one, zero, zero, zero), of)


def ends(count: int, dimension: float, until: float) -> Array:
    """The excess risk where flows from random starts on the manifold are, shape `(count,)`."""
    of = Setting(dimension, dimension**-0.3)
    solve = lambda at: risk(jax.tree.map(lambda v: v[0], flow(at, of, jnp.array([until]))), of)
    return jax.jit(jax.vmap(solve))(starts(jax.random.key(0), count, of))


def risks() -> list[Measurement]:
    """MBBB24-risk: the excess risk at the optimum, and after training."""
    rows = [
        Measurement(
            "MBBB24-risk",
            f"λ = d^−.3, d = {d:.0e}: excess risk of k*, v*",
            stated,
            float(oracle(Setting(d, d**-0.3))),
            unit / 2,
            "the digits stated",
        )
        for d, stated, unit in zip(DIMENSIONS, STATED, (1e-2, 1e-3, 1e-4, 1e-5), strict=True)
    ]
    found = ends(1000, 1e6, 30.0)
    row = Measurement(
        "MBBB24-risk",
        "d = 1e6: largest excess risk at s = 30 of 1000 flows from random starts",
        STATED[2],
        float(jnp.max(found)),
        5e-5,
        "the digits stated: where erf is at 1 in most digits, κ hardly moves",
    )
    return [*rows, row]


def manifold() -> list[Measurement]:
    """MBBB24-manifold: projected gradient descent in `R^400`, and the flow."""
    of, rng = Setting(400.0, 0.1), np.random.default_rng(1)
    k, v = np.linalg.qr(rng.normal(size=(398, 2)))[0].T
    k = np.concatenate([[0.05, 0], np.sqrt(1 - 0.05**2) * k])
    v = np.concatenate([[0, -0.02], np.sqrt(1 - 0.02**2) * v])
    path = jax.jit(lambda k, v: descent(k, v, of, 4e-3, 20_000))(k, v)
    away = max(float(jnp.max(jnp.abs(w))) for w in (path.theta, path.eta, path.rho))
    net = SingleLocation(0.05, -0.02, dimension=400.0, lam=0.1, gamma=GAMMA)
    problem = LeastSquares(jnp.eye(len(net.target())), net.target())
    run = gradient_flow(
        net, problem, np.array([80.0]), eps=0.5, formulation=WeightForm(), throw=False
    )
    excess = 2 * GAMMA**2 * problem.loss(run.x[0]) + (LENGTH - 1) * silence(0.1)
    end = jax.tree.map(lambda v: v[-1], path)
    row = lambda claim, stated, measured, tolerance, why: Measurement(
        "MBBB24-manifold", claim, stated, float(measured), tolerance, why
    )
    return [
        row("20 000 steps in R^400: largest |θ|, |η|, |ρ|", 0.0, away, 2e-15, "rounding"),
        row("κ at the end", 0.98, end.kappa, 5e-3, "the digits stated"),
        row("ν at the end", 1.0, end.nu, 1e-9, "it is reached at an exponential rate"),
        row(
            "excess risk at the end, less that of the flow at the same time",
            0.0,
            risk(end, of) - excess,
            1e-7,
            "both are at rest but for κ, whose steps are of first order",
        ),
    ]


def figure() -> Figure:
    """MBBB24-risk: the excess risk against the dimension, and flows on the manifold."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    d = np.geomspace(1e2, 1e8, 61)
    for power, colour in zip((0.2, 0.3, 0.4), COLORS, strict=False):
        of = jax.vmap(lambda d, power=power: oracle(Setting(d, d**-power)))
        left.loglog(d, jax.jit(of)(jnp.asarray(d)), color=colour, label=f"λ = d^−{power:g}")
    left.loglog(DIMENSIONS, STATED, "o", color="black", markersize=4)
    left.axhline(GAMMA**2, color="black", linewidth=0.9, linestyle=DASHES, label="predictor 0")
    left.legend(fontsize=8, frameon=False)
    panel(left, "at k*, v*, L = 10", "d", "excess risk")
    of, s = Setting(400.0, 0.1), jnp.linspace(0, 40.0, 401)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False) + 0.1
    zero = jnp.zeros(len(angles))
    at = Scalars(0.4 * jnp.cos(angles), 0.4 * jnp.sin(angles), zero, zero, zero)
    path = jax.jit(jax.vmap(lambda at: flow(at, of, s)))(at)
    for kappa, nu in zip(path.kappa, path.nu, strict=True):
        right.plot(kappa, nu, color=COLORS[0], linewidth=0.8)
    panel(right, "flows on the manifold, d = 400", "κ", "ν")
    return figure


CLAIMS = [
    Claim("MBBB24-risk", "the attention layer tends to the risk of Bayes", risks),
    Claim("MBBB24-manifold", "descent stays on a manifold, where it finds k* and v*", manifold),
]
