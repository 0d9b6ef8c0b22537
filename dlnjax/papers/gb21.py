"""Gerbelot & Berthier, *Graph-based Approximate Message Passing Iterations*, arXiv 2109.11905.

Claims: iterations of approximate message passing on large Gaussian matrices follow state evolution.
So do their fixed points: the lasso path of a large Gaussian design, and with it the averaged flow
of a diagonal linear network, has a risk, a sparsity, a 1-norm and a loss that are known. (The lasso
is Bayati and Montanari's, arXiv 1008.2581, the transition without noise Donoho and Tanner's.)
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from .. import (
    UV,
    GaussianDesign,
    GaussianGraph,
    gradient_flow,
    lasso_asymptotics,
    lasso_path,
    message_passing,
    optimal_stopping,
)
from .claim import Claim, Measurement

VALUES, PROBABILITIES = np.array([-1.0, 0.0, 1.0]), np.array([0.05, 0.9, 0.05])
DELTA, SIGMA = 0.5, 0.2
KAPPAS = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
RUNS = 24
# Of message passing.
KAPPA, ITERATIONS = 0.2, 200
ZS = np.array([0.3, 0.7, 1.2, 2.0, 3.0])


def law(delta: float | Array = DELTA, noise: float | Array = SIGMA) -> GaussianDesign:
    return GaussianDesign(delta, (VALUES, PROBABILITIES), noise)


def numbers(kappas: np.ndarray) -> np.ndarray:
    """Risk, active fraction, 1-norm and loss as the law says, shape `(4, K)`."""
    found = lasso_asymptotics(law(), kappas)
    return np.stack([found.risk, found.active, found.one_norm, found.loss])


def draws(d: int, kappas: np.ndarray, with_flow: bool) -> np.ndarray:
    """The same of the lasso in `RUNS` draws of `d/2` rows, by its path, shape `(RUNS, 4, K)`; or
    of the averaged flow of depth 2 at `ε = e^−700`, after the path, `(RUNS, 8, K)`."""
    network, s = UV(jnp.ones(d), jnp.zeros(d)), jnp.asarray(1 / kappas[::-1])

    @jax.jit
    @jax.vmap
    def one(key):
        problem, x_star = law().sample(key, d // 2, d)

        def of(x: Array) -> Array:
            left = problem.y[None, :] - jnp.matmul(x, problem.X.T, precision="highest")
            rows = [(x - x_star[None, :]) ** 2, jnp.where(x != 0, 1.0, 0.0), jnp.abs(x), left**2]
            return jnp.stack([jnp.mean(row, axis=1)[::-1] for row in rows])

        found = of(lasso_path(problem, throw=False).x(s))
        if with_flow:
            flow = gradient_flow(network, problem, s, log_eps=-700.0, throw=False)
            found = jnp.concatenate([found, of(flow.x_mean)])
        return found

    return np.asarray(one(jax.random.split(jax.random.key(0), RUNS)))


def donoho_tanner(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points `(δ, share of entries that are not 0)` of the line, in closed form."""
    delta = 2 * norm.pdf(z) / (z + 2 * (norm.pdf(z) - z * norm.sf(z)))
    return delta, delta * (1 - z * norm.sf(z) / norm.pdf(z))


@jax.jit
@jax.vmap
def risk_of_share(delta: Array, share: Array, noise: Array, kappa: Array) -> Array:
    """The risk for entries 0, and ±1 in this share, each `(m,)`."""
    p = jnp.stack([share / 2, 1 - share, share / 2])
    of = GaussianDesign(delta, (VALUES, p), noise)
    return lasso_asymptotics(of, kappa, throw=False).risk


def transitions(delta: np.ndarray) -> np.ndarray:
    """From which share on basis pursuit without noise fails, by bisection."""
    low, high = 0 * delta, 1 * delta
    for _ in range(50):
        middle = (low + high) / 2
        fails = np.asarray(risk_of_share(delta, middle, 0 * delta, 0 * delta)) > 0
        low, high = np.where(fails, low, middle), np.where(fails, middle, high)
    return (low + high) / 2


def iterations(d: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """AMP with the thresholds `θ⁺ = κ + θ|A|/n` for `κ = 0.2`: its mean square errors, those of
    state evolution, and how far each iterate violates the optimality conditions of the lasso at
    this `κ`, relative to it; all of shape `(count,)`."""
    rng, n = np.random.default_rng(seed), d // 2
    X = rng.normal(size=(n, d)) / np.sqrt(n)
    # Exact fractions: a draw of them would be off by some percent.
    x_star = np.repeat(VALUES, np.round(d * PROBABILITIES).astype(int))
    y = jnp.asarray(X @ x_star + SIGMA * rng.normal(size=n))
    large = lasso_asymptotics(law(), KAPPA)
    theta = large.alpha * large.tau
    to_rows, to_columns = ("columns", "rows"), ("rows", "columns")

    def functions(theta: Array):
        soft = lambda u: jnp.sign(u) * jnp.maximum(jnp.abs(u) - theta, 0)
        return {
            to_rows: lambda t, x: soft(x["rows"]),
            to_columns: lambda t, x: y - x["columns"],
        }

    @jax.jit
    def run(graph: GaussianGraph) -> Array:
        # From 0 the first message to the columns is `y`. Then two steps are one iteration, of two
        # equal runs that the graph interleaves.
        begin = message_passing(graph, functions(theta), 1)

        def iterate(theta, run):
            run = message_passing(graph, functions(theta), 2, start=run)
            x = run.messages[to_rows][0]
            active = jnp.sum(jnp.where(x != 0, 1.0, 0.0))
            return KAPPA + theta * active / n, run, x

        first = iterate(theta, begin)

        def step(state, _):
            state = iterate(*state[:2])
            return state, state[2]

        _, rest = jax.lax.scan(step, first, length=count - 1)
        return jnp.concatenate([first[2][None], rest])

    x = np.asarray(run(GaussianGraph({to_rows: X})))
    errors = np.mean((x - x_star) ** 2, axis=1)
    correlations = (np.asarray(y) - x @ X.T) @ X
    off = np.abs(correlations - KAPPA * np.sign(x))
    off = np.where(x != 0, off, np.abs(correlations) - KAPPA)
    return errors, evolution(float(theta), count), np.max(off, axis=1) / KAPPA


def evolution(theta: float, count: int) -> np.ndarray:
    """State evolution of this iteration, by Stein's identity."""
    found, square = [], SIGMA**2 + PROBABILITIES @ VALUES**2 / DELTA
    for _ in range(count):
        t = np.sqrt(square)
        a, b = (-theta - VALUES) / t, (theta - VALUES) / t
        still = norm.cdf(b) - norm.cdf(a)
        inside = (VALUES**2 + square) * still
        inside += (VALUES - theta) * t * norm.pdf(a) - (VALUES + theta) * t * norm.pdf(b)
        risk = PROBABILITIES @ (inside + (theta**2 + square) * (1 - still) - square * still)
        found.append(risk)
        square = SIGMA**2 + risk / DELTA
        theta = KAPPA + theta * float(PROBABILITIES @ (1 - still)) / DELTA
    return np.array(found)


def overlaps(n: int, strength: float, steps: int, count: int) -> tuple[np.ndarray, float]:
    """Overlaps with the truth where AMP for Z₂ synchronisation ends, of `count` draws; and their
    limit, the fixed point `q = E tanh(λ²q + λ√q Z)`, by quadrature."""
    edge, found = ("v", "v"), []
    functions = {edge: lambda t, x: jnp.tanh(strength * x["v"])}
    run = jax.jit(
        lambda Y, x: message_passing(
            GaussianGraph({edge: Y}), functions, steps, start={edge: x}
        ).messages[edge][-1]
    )
    for seed in range(count):
        rng = np.random.default_rng(seed)
        W, x_star = rng.normal(size=(n, n)) / np.sqrt(2 * n), np.sign(rng.normal(size=n))
        Y = strength / n * np.outer(x_star, x_star) + W + W.T
        found.append(np.asarray(run(Y, 0.3 * x_star + rng.normal(size=n))) @ x_star / n)

    def excess(q: float):
        f = lambda z: np.tanh(strength**2 * q + strength * np.sqrt(q) * z) * norm.pdf(z)
        return quad(f, -12, 12)[0] - q

    return np.array(found), float(brentq(excess, 0.05, 1.0))  # pyright: ignore[reportArgumentType]


def risk() -> list[Measurement]:
    """GB21-risk."""
    id, rows = "GB21-risk", []
    measured = draws(500, KAPPAS, with_flow=False)
    error = measured.std(axis=0, ddof=1) / np.sqrt(RUNS)
    mean, stated = measured.mean(axis=0), numbers(KAPPAS)
    for k, kappa in enumerate(KAPPAS):
        rows.append(
            Measurement(
                id,
                f"κ = {kappa:g}: mean risk of the lasso, {RUNS} draws 250 × 500",
                float(stated[0, k]),
                float(mean[0, k]),
                float(2 * error[0, k]),
                "two standard errors of this mean",
            )
        )
    for i, name in enumerate(("active fraction", "1-norm", "loss"), start=1):
        rows.append(
            Measurement(
                id,
                f"{name}: largest relative distance of the means to the law, five κ",
                0.0,
                float(np.max(np.abs(mean[i] / stated[i] - 1))),
                0.06,
                "as stated; of the order of 1/√(24 · 500), and 1/d at small κ",
            )
        )
    few = KAPPAS[1:4]
    small = draws(200, few, with_flow=True)
    error = small.std(axis=0, ddof=1) / np.sqrt(RUNS)
    stated_small = (0.0369, 0.0366, 0.0484)
    for k, kappa in enumerate(few):
        at = f"κ = {kappa:g}"
        rows += [
            Measurement(
                id,
                f"{at}: risk of the law",
                stated_small[k],
                float(numbers(few)[0, k]),
                5e-5,
                "as many digits are stated",
            ),
            Measurement(
                id,
                f"{at}: mean risk of the averaged flow at s = 1/κ, {RUNS} draws 100 × 200",
                float(numbers(few)[0, k]),
                float(small[:, 4, k].mean()),
                float(2 * error[4, k]),
                "two standard errors of this mean",
            ),
            Measurement(
                id,
                f"{at}: that of the flow over that of the lasso path",
                1.0,
                float(small[:, 4, k].mean() / small[:, 0, k].mean()),
                0.01,
                "few coordinates of few paths are not monotone",
            ),
        ]
    delta, share = donoho_tanner(ZS)
    best = optimal_stopping(law())
    slope = jax.grad(lambda kappa: lasso_asymptotics(law(), kappa).risk)(best.kappa)
    noises = np.full_like(delta, 1e-6), np.full_like(delta, 1e-7)
    by_noise = [np.asarray(risk_of_share(delta, 0.99 * share, v, 0 * v)) / v**2 for v in noises]
    rows += [
        Measurement(
            id,
            "transition of basis pursuit without noise over the Donoho–Tanner line, five δ",
            0.0,
            float(np.max(np.abs(transitions(delta) / share - 1))),
            1e-9,
            "τ is found in logarithms: what is left is rounding over the slope at the line",
        ),
        Measurement(
            id,
            "1 % below the line: risk/σ² at σ = 1e-6 and 1e-7, largest relative distance",
            0.0,
            float(np.max(np.abs(by_noise[0] / by_noise[1] - 1))),
            1e-9,
            "the risk is proportional to σ² as σ → 0; rounding over the distance to the line",
        ),
        Measurement(
            id,
            "derivative of the risk in κ at the κ of `optimal_stopping`",
            0.0,
            float(slope),
            1e-12,
            "rounding; the second derivative is 0.5",
        ),
    ]
    return rows


def amp() -> list[Measurement]:
    """GB21-amp."""
    id = "GB21-amp"
    *_, violation = iterations(4000, ITERATIONS)
    runs = [iterations(4000, 20, seed) for seed in range(8)]
    off = np.stack([errors / stated - 1 for errors, stated, _ in runs])
    found, limit = overlaps(1500, 1.5, 25, 8)
    rows = [
        Measurement(
            id,
            "lasso 2000 × 4000: largest relative distance of the mean square error, mean of 8 "
            "draws, to state evolution, iterations 1 to 20",
            0.0,
            float(np.max(np.abs(off.mean(axis=0)))),
            float(3 * np.max(off.std(axis=0, ddof=1)) / np.sqrt(len(off))),
            "three standard errors of this mean: one draw deviates by 0.08",
        )
    ]
    for k, most in ((40, 6e-5), (80, 3e-10), (ITERATIONS, 1e-14)):
        rows.append(
            Measurement(
                id,
                f"its violation of the conditions of the lasso after {k} iterations, relative, in "
                "decades",
                float(np.log10(most)),
                float(np.log10(violation[k - 1])),
                0.5,
                "six draws by NumPy were up to 0.35 from it; the last is rounding",
            )
        )
    rows.append(
        Measurement(
            id,
            "Z₂ synchronisation at λ = 1.5, n = 1500: mean overlap after 25 iterations, 8 draws",
            limit,
            float(found.mean()),
            float(3 * found.std(ddof=1) / np.sqrt(len(found))),
            "three standard errors of this mean",
        )
    )
    return rows


CLAIMS = [
    Claim(
        "GB21-risk", "large Gaussian designs: the lasso and the averaged flow follow a law", risk
    ),
    Claim("GB21-amp", "message passing follows state evolution, and ends at the lasso", amp),
]
