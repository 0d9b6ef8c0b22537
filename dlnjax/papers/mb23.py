"""Marion & Berthier, *Leveraging the two-timescale regime to demonstrate convergence of neural
networks*, arXiv 2304.09576.

Claims: of a shallow network of steps of width `η`, on a piecewise constant function, the two steps
beside a jump `A`, at the distances `a` and `b`, move in the limit of two time scales as

    da/ds = −A²b²/(a + b)²,    db/ds = −A²a²/(a + b)²,    loss A²ab/(a + b),

as `η → 0`. So `a³ − b³` is conserved, and the nearer arrives at `∫₀ᵃ (α + β)²/(A²β²) dα` with
`β³ = α³ + b³ − a³`. With two steps around each jump the loss falls to that of the width; with
one time scale it does not. The paper samples fresh points; here the loss is an integral.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float
from matplotlib.figure import Figure
from scipy.integrate import quad

from .. import AbstractProblem, WeightForm, gradient_flow, loss_times, train
from ..networks import Steps, TwoTimescale
from ..plot.axes import COLORS
from .claim import Claim, Measurement
from .panels import panel

# A jump at 0, in a window, and the widths from which `η → 0` is extrapolated.
JUMP, WINDOW, WIDTHS = 4.0, (-0.1, 0.14), (0.004, 0.002)
PAIR, EQUAL = (0.03, 0.05), (0.04, 0.04)
# A function with five jumps, and two steps around each of them, at random.
PLACES, JUMPS, WIDTH = np.linspace(0.2, 0.8, 5), np.array([4.0, -4.0, 2.0, -2.0, 4.0]), 0.04
EPS, STARTS, TIMES = (0.99, 0.3, 0.03), 20, np.linspace(0, 0.3, 61)
FLOW: dict[str, Any] = dict(formulation=WeightForm(), throw=False)


class Integral(AbstractProblem):
    """`∫ (f* − f)²` over an interval, by equally many values of `f*` at midpoints: it is
    `LeastSquares` of a multiple of the identity, without a matrix."""

    target: Float[Array, " N"]
    length: Float[Array, ""]
    weight_decay: Any
    quadratic_by_construction: ClassVar[bool] = True

    @property
    def _weight(self) -> Array:
        return 2 * self.length / len(self.target)

    @property
    def r(self) -> Array:
        return self._weight * self.target

    def matvec(self, x: ArrayLike) -> Array:
        return self._weight * jnp.asarray(x)

    def gram(self) -> Array:
        return jnp.diag(self.gram_diagonal())

    def gram_column(self, j: ArrayLike) -> Array:
        return jnp.take(self.gram(), j, axis=1)

    def gram_block(self, index: Array) -> Array:
        return self._weight * (index[:, None] == index[None, :])

    def gram_diagonal(self) -> Array:
        return jnp.full_like(self.target, self._weight)

    @property
    def rank_bound(self) -> int:
        return len(self.target)

    def loss(self, x: ArrayLike) -> Array:
        x = self.as_points(x)
        return self._weight / 2 * jnp.sum((x - jnp.broadcast_to(self.target, x.shape)) ** 2, -1)


def instance(
    places: np.ndarray, jumps: np.ndarray, window: tuple[float, float], N: int
) -> tuple[np.ndarray, Integral]:
    """Midpoints of a window, and the integral for the function with these jumps."""
    low, high = window
    points = low + (high - low) * (np.arange(N) + 0.5) / N
    target = np.sum(jumps * (points[:, None] > places), axis=1)
    return points, Integral(jnp.asarray(target), jnp.asarray(high - low), jnp.zeros(()))


def arrival(a: float, b: float, rest: float = 0.0) -> float:
    """When the nearer step is at the distance `rest` from the jump."""
    c = b**3 - a**3
    speed = lambda v: (v / np.cbrt(v**3 + c) + 1) ** 2 / JUMP**2
    return quad(speed, rest, a, epsabs=0, epsrel=1e-12)[0]


def one_jump() -> tuple[np.ndarray, Integral]:
    # 16 points to a step of the least width.
    return instance(np.zeros(1), np.array([JUMP]), WINDOW, 1920)


def two_steps(points: np.ndarray, distances: Any, width: Any) -> TwoTimescale:
    u = jnp.stack([-distances[0], distances[1]])
    return TwoTimescale(Steps(jnp.zeros(3), u, points, width), fast="a")


@eqx.filter_jit
def _arrivals(distances: Float[Array, "k 2"], width: Float[Array, " k"]) -> Array:
    points, problem = one_jump()

    def one(distances, width):
        # A step that is closer than its width feels that of the other side. Before, at the distance
        # η/2, the loss is about that times A²; this time tends to the arrival linearly in η.
        level = JUMP**2 * width / 2
        network = two_steps(points, distances, width)
        return loss_times(network, problem, 0.1, level, eps=0.5, rtol=1e-5, **FLOW).s

    return jax.vmap(one)(distances, width)


def arrivals() -> np.ndarray:
    """The times of arrival from `PAIR` and from `EQUAL`, as `η → 0`, shape `(2,)`."""
    distances = jnp.asarray(np.repeat([PAIR, EQUAL], 2, axis=0))
    wide, narrow = np.asarray(_arrivals(distances, jnp.asarray(WIDTHS * 2))).reshape(2, 2).T
    return 2 * narrow - wide


def conserved() -> np.ndarray:
    """`a³ − b³` from `PAIR` until `a` is a third, relative to its start, by gradient descent."""
    points, problem = one_jump()
    end, steps = arrival(*PAIR, PAIR[0] / 3), 400
    network = two_steps(points, jnp.asarray(PAIR), jnp.asarray(WIDTHS[1]))
    records = np.arange(0, steps + 1, 40)
    run = train(network, problem, optax.sgd(end / steps), eps=0.5, steps=records)
    assert isinstance(run.network, TwoTimescale) and isinstance(run.network.slow, Steps)
    u = np.asarray(run.network.slow.u)
    cubes = -(u[:, 0] ** 3) - u[:, 1] ** 3
    return cubes / cubes[0]


def starts() -> np.ndarray:
    """Places of ten steps, two around each jump, shape `(STARTS, 10)`."""
    rng = np.random.default_rng(0)
    middle = (PLACES[1:] + PLACES[:-1]) / 2
    low, high = np.append(0, middle), np.append(middle, 1)
    size = (STARTS, len(PLACES))
    return np.sort(
        np.concatenate([rng.uniform(low, PLACES, size), rng.uniform(PLACES, high, size)], axis=1),
        axis=1,
    )


@eqx.filter_jit
def losses(u: Float[Array, "k m"], log_eps: Float[Array, " k"] | None) -> Array:
    """The losses at `TIMES`, shape `(k, S)`: at each `ε`, or in the limit."""
    points, problem = instance(PLACES, JUMPS, (0.0, 1.0), 400)

    def one(u, log_eps):
        network = Steps(jnp.zeros(u.shape[0] + 1), u, points, WIDTH)
        if log_eps is None:
            network, log_eps = TwoTimescale(network, fast="a"), -1.0
        flow = gradient_flow(network, problem, TIMES, log_eps=log_eps, rtol=1e-4, **FLOW)
        return problem.loss(flow.x)

    return jax.vmap(one, in_axes=(0, None if log_eps is None else 0))(u, log_eps)


def all_losses() -> tuple[np.ndarray, np.ndarray]:
    """Those of all starts: at each of `EPS`, shape `(E, STARTS, S)`, and in the limit."""
    u = jnp.asarray(starts())
    log_eps = jnp.log(jnp.repeat(jnp.asarray(EPS), STARTS))
    finite = losses(jnp.tile(u, (len(EPS), 1)), log_eps)
    return np.asarray(finite).reshape(len(EPS), STARTS, -1), np.asarray(losses(u, None))


def hitting() -> list[Measurement]:
    """MB23-hitting: when the nearer step arrives at a jump."""
    row = lambda *rest: Measurement("MB23-hitting", *rest)
    near, equal = arrivals()
    stated, equally = arrival(*PAIR), 4 * EQUAL[0] / JUMP**2
    why = "terms in η² of the extrapolation in η, and half a spacing of the points"
    return [
        row(f"arrival from {PAIR}", stated, near, 0.01 * stated, why),
        row(f"arrival from {EQUAL}, 4a/A²", equally, equal, 0.01 * equally, why),
        row(
            "largest relative change of a³ − b³ until a is a third",
            0.0,
            float(np.max(np.abs(conserved() - 1))),
            0.02,
            "400 steps of gradient descent, and the width: 0.002 of a distance of 0.01 or more",
        ),
    ]


def final_losses() -> list[Measurement]:
    """MB23-loss: the loss with one and with two time scales."""
    row = lambda *rest: Measurement("MB23-loss", *rest)
    points, problem = one_jump()
    a, b = PAIR

    def at_start(width):
        network = two_steps(points, jnp.asarray(PAIR), jnp.asarray(width))
        return float(train(network, problem, optax.sgd(0.0), eps=0.5, steps=[0]).loss[0])

    wide, narrow = map(at_start, WIDTHS)
    finite, limit = (values[..., -1] for values in all_losses())
    of_width = WIDTH / 28 * float(np.sum(JUMPS**2))
    means = finite.mean(axis=1)
    return [
        row(
            f"loss from {PAIR}, over A²",
            a * b / (a + b),
            (2 * narrow - wide) / JUMP**2,
            1e-5,
            "terms in η² of the extrapolation in η, and midpoints",
        ),
        row(
            "largest of 20 losses in the limit",
            of_width,
            float(limit.max()),
            0.0,
            "η/28 ΣA², that of one step on each jump; the other of each pair can only help",
            "at most",
        ),
        row(
            "mean loss at ε = 0.03 over that at 0.99",
            0.2,
            float(means[-1] / means[0]),
            0.0,
            "ours: it was 0.12; at 0.03 some steps still move",
            "at most",
        ),
        row(
            "least of 20 losses at ε = 0.99, as −loss",
            -2.0,
            -float(finite[0].min()),
            0.0,
            "ours: it was 2.3, of 3.3 that a constant leaves",
            "at most",
        ),
    ]


def figure() -> Figure:
    """MB23-loss: the loss against the time of `u`, and the times of arrival."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    finite, limit = all_losses()
    names = [*(f"ε = {eps:g}" for eps in EPS), "ε → 0"]
    for colour, name, values in zip(COLORS, names, [*finite, limit], strict=False):
        left.semilogy(TIMES, values.T, color=colour, linewidth=0.4, alpha=0.5)
        left.semilogy(TIMES, np.median(values, axis=0), color=colour, linewidth=1.6, label=name)
    left.legend(fontsize=8, frameon=False)
    panel(left, f"{STARTS} starts, and their median", "s", "loss")
    points, problem = one_jump()
    times = np.linspace(0, 0.95 * arrival(*PAIR), 40)
    rest = np.linspace(PAIR[0], 1e-4, 100)
    far = np.cbrt(rest**3 + PAIR[1] ** 3 - PAIR[0] ** 3)
    exact = JUMP**2 * rest * far / (rest + far)
    right.plot([arrival(*PAIR, r) for r in rest], exact, color="0.3", linewidth=4, alpha=0.25)
    for colour, width in zip(COLORS, (0.016, 0.008, 0.004), strict=False):
        network = two_steps(points, jnp.asarray(PAIR), jnp.asarray(width))
        flow = gradient_flow(network, problem, times, eps=0.5, rtol=1e-4, **FLOW)
        right.plot(times, problem.loss(flow.x), color=colour, linewidth=1.2, label=f"η = {width:g}")
    right.legend(fontsize=8, frameon=False)
    panel(right, "one jump; thick: η → 0", "s", "loss")
    return figure


CLAIMS = [
    Claim("MB23-hitting", "in the limit the nearer of two steps arrives at a jump", hitting),
    Claim("MB23-loss", "with two time scales the loss falls to that of the width", final_losses),
]
