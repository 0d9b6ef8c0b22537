"""Decleves, Boursier & Flammarion 2026, on pretraining and fine-tuning of diagonal linear networks.

Claims for the network `Pretrained`, which starts at a linear model `x₀`, as `ε → 0`: entries of
`x₀` are there from the start and those that are missing activate first; it ends at the
interpolating `x` with the least 1-norm of the weights `1 ∓ sign x₀`. Where several have it, it is
the one that is closest to `x₀` in the relative entropy. Measured against linear programmes and
Newton's method.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linprog

from .. import UV, LeastSquares, Pretrained, end_point, gradient_flow, limit_flow
from .claim import Claim, Measurement

INSTANCES, N, D = 50, 4, 8
LOG_EPS = -2000.0
# An entry with this slack in the linear programme is of size `e^{−2000 slack}` at that `ε`.
SLACK = 0.02
# The paper's setting of a sparse truth, of which a part is inherited.
ROWS, COLUMNS, SUPPORT, INHERITED = 220, 32, 6, 2
SIZES = np.array([50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0])  # log 1/ε
S = np.linspace(0.01, 2, 300)


def instances(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`X`, `y` and `x₀`. First `INSTANCES` with fewer inherited entries than rows; then as many
    with more, and some `x` of their signs interpolates."""
    rng = np.random.default_rng(seed)
    m = 2 * INSTANCES
    X, y = rng.normal(size=(m, N, D)) / 2, rng.normal(size=(m, N))
    x0 = np.zeros((m, D))
    for i in range(m):
        number = rng.integers(0, N) if i < INSTANCES else rng.integers(N + 1, D + 1)
        on = rng.choice(D, number, replace=False)
        x0[i, on] = np.exp(rng.normal(size=number) / 2) * rng.choice([-1, 1], number)
        if i >= INSTANCES:
            y[i] = X[i] @ (np.sign(x0[i]) * np.exp(rng.normal(size=D) / 2))
    return X, y, x0


def programme(X: np.ndarray, y: np.ndarray, x0: np.ndarray) -> tuple[np.ndarray, float]:
    """The interpolating `x` with the least weighted 1-norm, by HiGHS, and the smallest slack of an
    entry that is 0 there."""
    weights, both = 1 - np.concatenate([np.sign(x0), -np.sign(x0)]), np.hstack([X, -X])
    found = linprog(weights, A_eq=both, b_eq=y, method="highs")
    slack = weights - both.T @ found.eqlin.marginals
    return found.x[:D] - found.x[D:], float(np.min(slack[found.x < 1e-12]))


def projection(X: np.ndarray, y: np.ndarray, x0: np.ndarray) -> np.ndarray:
    """The interpolating `x` with the signs of `x₀` that is closest to it in the relative entropy,
    `|x| = |x₀| e^{±Xᵀν}`, by Newton's method in `ν` with halved steps."""
    signs, prior = np.sign(x0), np.abs(x0)
    A = X * signs
    at = lambda nu: prior * np.exp(A.T @ nu)
    dual = lambda nu: np.sum(at(nu)) - y @ nu
    nu = np.zeros(N)
    for _ in range(100):
        off = A @ at(nu) - y
        if np.max(np.abs(off)) < 1e-13:
            break
        step, t = np.linalg.solve((A * at(nu)) @ A.T, -off), 1.0
        while t > 1e-9 and dual(nu + t * step) > dual(nu) + 1e-4 * t * (off @ step) + 1e-14:
            t /= 2
        nu = nu + t * step
    return signs * at(nu)


@jax.jit
@jax.vmap
def _ends(
    X: Float[Array, "m n d"], y: Float[Array, "m n"], x0: Float[Array, "m d"]
) -> Float[Array, "m d"]:
    """Where the flow at `LOG_EPS` ends; NaN for a failure."""
    network = Pretrained(UV(jnp.ones(D), jnp.zeros(D)), x0)
    return end_point(network, LeastSquares(X, y), log_eps=LOG_EPS, throw=False).x


def transfer() -> tuple[UV, LeastSquares, np.ndarray]:
    """The network alone, a problem with a sparse truth, and its first entries as `x₀`."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, COLUMNS)) / np.sqrt(ROWS)
    truth = np.zeros(COLUMNS)
    truth[:SUPPORT] = [1, -1, 1, 1, -1, 1]
    x0 = np.where(np.arange(COLUMNS) < INHERITED, truth, 0)
    return UV(jnp.ones(COLUMNS), jnp.zeros(COLUMNS)), LeastSquares(X, X @ truth), x0


def approach() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The flow at the smallest `ε` of `SIZES` and its limit at the times `S`, each `(S, d)`, and
    the largest distance of time averages at each `ε`."""
    alone, problem, x0 = transfer()
    network = Pretrained(alone, x0)

    @jax.jit
    @jax.vmap
    def run(size):
        flow = gradient_flow(network, problem, S, log_eps=-size)
        return flow.x, flow.x_mean

    x, mean = map(np.asarray, run(jnp.asarray(SIZES)))
    limit = limit_flow(network, problem)
    away = np.max(np.abs(mean - np.asarray(limit.x_mean(S))), axis=(1, 2))
    return x[-1], np.asarray(limit.plateau(S)), away


def start() -> list[Measurement]:
    """Dec26-start."""
    X, y, x0 = instances()
    x = np.asarray(_ends(X, y, x0))
    lanes = list(zip(X, y, x0, strict=True))
    solved = [programme(*lane) for lane in lanes[:INSTANCES]]
    want = np.stack([x for x, _ in solved] + [projection(*lane) for lane in lanes[INSTANCES:]])
    error = np.max(np.abs(x - want), axis=1) / np.max(np.abs(want), axis=1)
    few, many = error[:INSTANCES], error[INSTANCES:]
    is_clear = np.array([slack for _, slack in solved]) > SLACK

    alone, problem, inherited = transfer()
    limit = limit_flow(Pretrained(alone, inherited), problem, throw=False)
    truth = np.arange(COLUMNS) < SUPPORT
    # The first rows of a process are its first activations; that of the start is before them.
    missing = SUPPORT - INHERITED
    on = np.asarray(limit.slopes)[missing] != 0
    id, where = "Dec26-start", f"{N} × {D} at log ε = {LOG_EPS:g}, relative"
    return [
        Measurement(
            id,
            f"distance to the linear programme, {np.sum(is_clear)} instances with fewer inherited "
            f"entries than rows, {where}",
            0.0,
            float(np.max(few[is_clear])),
            1e-9,
            f"as stated: what is 0 has a slack above {SLACK:g}, so that it is below e^-40",
        ),
        Measurement(
            id,
            f"distance to the closest x in the relative entropy, {INSTANCES} with more inherited "
            f"entries than rows, {where}",
            0.0,
            float(np.max(many)),
            1e-8,
            "as stated: the rounding of w, times log(1/ε) and the condition of the designs",
        ),
        Measurement(
            id,
            f"missing entries among the first {missing} activations, {ROWS} × {COLUMNS}, "
            f"{INHERITED} of {SUPPORT} inherited",
            missing,
            int(np.sum(on & truth & (inherited == 0)) - np.sum(on & ~truth)),
            0,
            "exact",
        ),
    ]


CLAIMS = [
    Claim("Dec26-start", "a pretrained start: what is missing activates first; the end", start),
]
