"""Berthier, *Diagonal Linear Networks and the Lasso Regularization Path*, arXiv 2509.18766v3.

The ensemble of its Figure 1: `X` and `y` with independent standard normal entries, `n = 3`,
`d = 4`, no weight decay; the network `UV` from `β = 1`, `γ = 0`, at `ε = 1e−5`. Claim B25-monotone:
about three in four lasso paths are coordinate-wise monotone. Its theorems are in `b25_limits.py`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from .._flow.gradient_flow import gradient_flow
from .._gap import suboptimality_gap
from .._lasso.path import lasso_path
from .._problem import LeastSquares
from .._results import RESULTS
from ..networks import UV
from .claim import Claim, Measurement

N, D = 3, 4
EPS = 1e-5
# The paper's own sample, whose size is part of the tolerance.
STATED_MONOTONE_FRACTION = 0.76
STATED_INSTANCES = 1000


def instance(key: Key[Array, ""], index: Int[Array, ""]) -> LeastSquares:
    """Instance number `index`, a function of `(key, index)` alone."""
    x_key, y_key = jr.split(jr.fold_in(key, index))
    return LeastSquares(jr.normal(x_key, (N, D)), jr.normal(y_key, (N,)))


class PathSummary(eqx.Module):
    """Whether the path is monotone, and whether it was solved."""

    is_monotone: Bool[Array, "*m"]
    is_valid: Bool[Array, "*m"]


@eqx.filter_jit
def monotone(key: Key[Array, ""], indices: Int[Array, " m"]) -> PathSummary:
    """Whether `μ ↦ μx(μ)` is coordinate-wise monotone, for each instance."""

    def one(index):
        path = lasso_path(instance(key, index), throw=False)
        return PathSummary(path.is_monotone(), path.result == RESULTS.successful)

    return jax.vmap(one)(indices)


def monotone_claim(fraction: float, instances: int) -> Measurement:
    """B25-monotone: the fraction of monotone instances, 0.76 in the paper."""
    # Both fractions are binomial, so that their difference has the variance p(1 − p)(1/N + 1/N');
    # the stated one is also rounded to two digits, by at most 0.005.
    p = STATED_MONOTONE_FRACTION
    error = (p * (1 - p) * (1 / STATED_INSTANCES + 1 / instances)) ** 0.5
    return Measurement(
        id="B25-monotone",
        claim="fraction of instances with a coordinate-wise monotone path",
        stated=p,
        measured=fraction,
        tolerance=3 * error + 0.005,
        why="three standard errors of the two samples, and rounding to two digits",
    )


class Trajectories(eqx.Module):
    """Averaged flows and lasso paths of `m` instances on a grid of `S` times `s = μ`."""

    x_mean: Float[Array, "*m S d"]
    lasso: Float[Array, "*m S d"]
    relative_gap: Float[Array, "*m S"]
    is_monotone: Bool[Array, "*m"]
    is_valid: Bool[Array, "*m"]


@eqx.filter_jit
def trajectories(
    key: Key[Array, ""], indices: Int[Array, " m"], s: Float[Array, " S"]
) -> Trajectories:
    """B25-fig1: the averaged flow beside the lasso path at `μ = s > 0`, and its relative gap."""

    def one(index):
        problem = instance(key, index)
        network = UV(jnp.ones(D), jnp.zeros(D))
        path = lasso_path(problem, throw=False)
        flow = gradient_flow(network, problem, s, eps=EPS, throw=False)
        gap = suboptimality_gap(problem, flow.x_mean, s, path=path)
        return Trajectories(
            flow.x_mean,
            path.x(s),
            gap.relative,
            path.is_monotone(),
            (path.result == RESULTS.successful) & (flow.result == RESULTS.successful),
        )

    return jax.vmap(one)(indices)


def measure_monotone(instances: int = 20_000, seed: int = 0) -> list[Measurement]:
    """B25-monotone. The measured value is NaN, which fails, if any path was not solved."""
    # In chunks of one size: one compiled program, and bounded memory.
    key, chunk = jr.key(seed), 1000
    parts = [
        monotone(key, jnp.arange(start, start + chunk)) for start in range(0, instances, chunk)
    ]
    flags, good = (
        np.concatenate([np.asarray(getattr(part, name)) for part in parts])[:instances]
        for name in ("is_monotone", "is_valid")
    )
    return [monotone_claim(float(np.mean(flags)) if np.all(good) else np.nan, instances)]


CLAIMS = [Claim("B25-monotone", "about three in four paths are monotone", measure_monotone)]
