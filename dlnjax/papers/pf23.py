"""Pesme & Flammarion, *Saddle-to-Saddle Dynamics in Diagonal Linear Networks*, arXiv 2304.00488.

Claims about the limit process of `u∘v`: its jumps and plateaus, on an instance whose first
coordinate is deactivated; and that it ends at the minimum 1-norm solution.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int

from .. import RESULTS, UV, LeastSquares, basis_pursuit, limit_flow
from .claim import Claim, Measurement

# At the second jump the first coordinate leaves and the third enters. Jumps and plateaus are exact
# rational numbers.
FIXTURE: tuple[np.ndarray, np.ndarray] = (
    np.array([[1, 0.5, 0.7, 0], [0.5, 1, 0.1, 0.7]]),
    np.array([1.0, 0]),
)
JUMPS: np.ndarray = np.array([1, 4, 4 + 80 / 49])
PLATEAUS: np.ndarray = np.array([[0.8, 0, 0, 0], [0, 0, 1.4, 0], [0, 0, 10 / 7, -10 / 49]])


def fixture() -> list[Measurement]:
    """PF23-fixture: the jumps and plateaus of the instance."""
    # Padded with NaN, so that too few jumps fail instead of raising.
    limit = limit_flow(UV(np.ones(4), np.zeros(4)), LeastSquares(*FIXTURE), throw=False)
    number = int(limit.num_jumps)
    jumps, plateaus = np.full(3, np.nan), np.full((3, 4), np.nan)
    shown = min(number, 3)
    jumps[:shown] = np.asarray(limit.jumps)[:shown]
    plateaus[:shown] = np.asarray(limit.slopes)[:shown]
    why = "a hundred roundings of numbers below 6; the faces have condition numbers below 10"
    return [
        Measurement("PF23-fixture", "number of jumps", 3, number, 0, "exact"),
        *(
            Measurement("PF23-fixture", f"jump {i + 1}", float(want), float(got), 1e-13, why)
            for i, (want, got) in enumerate(zip(JUMPS, jumps, strict=True))
        ),
        *(
            Measurement(
                "PF23-fixture",
                f"x after jump {i + 1}, its largest error",
                0.0,
                float(np.max(np.abs(want - got))),
                1e-13,
                why,
            )
            for i, (want, got) in enumerate(zip(PLATEAUS, plateaus, strict=True))
        ),
    ]


@eqx.filter_jit
def _norm_gaps(indices: Int[Array, " m"], n: int, d: int) -> Float[Array, " m"]:
    """An upper bound of the relative excess of the 1-norm at the end of the process over the
    minimum: the duality gap with the dual of basis pursuit, scaled to be feasible. At least the
    relative residual of `Xx = y`."""

    def one(index):
        X_key, y_key = jr.split(jr.fold_in(jr.key(0), index))
        problem = LeastSquares(jr.normal(X_key, (n, d)), jr.normal(y_key, (n,)))
        limit = limit_flow(UV(jnp.ones(d), jnp.zeros(d)), problem, throw=False)
        x, dual = limit.x(jnp.inf), basis_pursuit(problem, throw=False).dual
        norm, size = jnp.sum(jnp.abs(x)), jnp.max(jnp.abs(problem.r))
        gap = (norm - jnp.sum(dual * x) / jnp.maximum(jnp.max(jnp.abs(dual)), 1)) / norm
        residual = jnp.max(jnp.abs(problem.gradient(x))) / size
        good = limit.result == RESULTS.successful
        return jnp.where(good, jnp.maximum(gap, residual), jnp.nan)

    return jax.vmap(one)(indices)


def end(instances: int = 20) -> list[Measurement]:
    """PF23-end: the 1-norm at the end of the process, at two sizes."""
    return [
        Measurement(
            "PF23-end",
            f"largest relative 1-norm gap and residual, {instances} instances {n} × {d}",
            0.0,
            float(np.max(np.asarray(_norm_gaps(jnp.arange(instances), n, d)))),
            1e-10,
            "rounding times the condition numbers of the Gram matrices of the faces: a square "
            "Gaussian matrix of size 50 has about 1e2, the worst of 20 1e4, squared",
        )
        for n, d in ((20, 30), (50, 100))
    ]


CLAIMS = [
    Claim("PF23-fixture", "saddle-to-saddle with a deactivation: jumps and plateaus", fixture),
    Claim("PF23-end", "the limit process ends at the minimum 1-norm solution", end),
]
