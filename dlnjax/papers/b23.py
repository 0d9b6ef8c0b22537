"""Berthier, *Incremental Learning in Diagonal Linear Networks*, JMLR 24(171).

Claims, for `u∘u` and positive definite `M` with `M_ij ≤ 0` off the diagonal: the positive lasso
path is monotone; coordinates activate one after another, the first at `s = 1/max rᵢ`, and between
activations `x` minimises the loss on the active coordinates. The jumps of the flow come later than
those of its limit, by `C/log(1/ε)`.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .. import (
    RESULTS,
    CrossingTimes,
    LimitFlow,
    Quadratic,
    USquared,
    crossing_times,
    gradient_flow,
    lasso_path,
    limit_flow,
)
from .._linalg import eigvalsh
from .claim import Claim, Measurement

D = 4


def _instance(key: Array, r_is_positive: bool = False) -> Quadratic:
    """A problem whose `M` is a Stieltjes matrix: positive definite, with no positive entry off the
    diagonal."""
    # Since A ≥ 0, its eigenvalues lie between −λ and its largest one, λ: those of 1.25 λ − A lie
    # between λ/4 and 9λ/4. A factor near 1 would make M almost singular.
    M_key, scale_key, r_key = jr.split(key, 3)
    A = jr.uniform(M_key, (D, D))
    A = (A + A.T) * (1 - jnp.eye(D)) / 2
    M = 1.25 * eigvalsh(A)[-1] * jnp.eye(D) - A
    scale = jnp.exp(jr.normal(scale_key, (D,)) / 2)
    r = jr.normal(r_key, (D,))
    return Quadratic(
        scale[:, None] * M * scale[None, :], scale * (jnp.abs(r) if r_is_positive else r)
    )


@eqx.filter_jit
def _monotone(indices: Int[Array, " m"]) -> tuple[Bool[Array, " m"], Bool[Array, " m"]]:
    def one(index):
        path = lasso_path(_instance(jr.fold_in(jr.key(0), index)), positive=True, throw=False)
        return path.is_monotone(), path.result == RESULTS.successful

    return jax.vmap(one)(indices)


def monotone(instances: int = 2000) -> list[Measurement]:
    """B23-monotone: the fraction of instances whose positive lasso path is monotone."""
    flags, good = map(np.asarray, _monotone(jnp.arange(instances)))
    return [
        Measurement(
            "B23-monotone",
            f"fraction of monotone positive paths, {instances} random M with M_ij ≤ 0, d = {D}",
            1.0,
            float(np.mean(flags & good)),
            0.0,
            "exact; decreases below eps^(5/8) = 1.6e-10 of the largest slope are rounding",
        )
    ]


@eqx.filter_jit
def _limit(problem: Quadratic) -> LimitFlow:
    return limit_flow(USquared(jnp.ones(D)), problem, throw=False)


def activation_instance() -> tuple[Quadratic, LimitFlow]:
    """The instance of B23-activation and its limit process."""
    problem = _instance(jr.key(1), r_is_positive=True)
    return problem, _limit(problem)


@eqx.filter_jit
def flows(
    problem: Quadratic, log_eps: Float[Array, " E"], s: Float[Array, "E S"]
) -> Float[Array, "E S d"]:
    """`x(s)` of `u∘u` from `u = ε^½` on a grid for each `ε`. NaN where it fails."""
    network = USquared(jnp.ones(D))
    run = lambda log_eps, s: gradient_flow(network, problem, s, log_eps=log_eps, throw=False).x
    return jax.vmap(run)(log_eps, s)


class Delays(NamedTuple):
    """How late the flow jumps after its limit, for each `log(1/ε)`."""

    length: np.ndarray  # log(1/ε), (E,)
    delay: np.ndarray  # in s, of the time at which x_i is at half of its plateau, (E, K)
    late: np.ndarray  # x half way between jumps at the smallest ε, (K, d)


@eqx.filter_jit
def _jumps(
    problem: Quadratic, log_eps: Float[Array, " E"], s_max: Array, level: Float[Array, " d"]
) -> CrossingTimes:
    network = USquared(jnp.ones(D))
    run = lambda log_eps: crossing_times(
        network, problem, s_max, level, log_eps=log_eps, throw=False
    )
    return jax.vmap(run)(log_eps)


def delays(problem: Quadratic, limit: LimitFlow) -> Delays:
    """How late the flow jumps, if one coordinate activates at each of the `K = D` jumps."""
    # The flow jumps when the new coordinate reaches half of its plateau.
    jumps, slopes = np.asarray(limit.jumps)[:D], np.asarray(limit.slopes)[:D]
    first = np.argmax(np.asarray(limit.activations)[:D], axis=1)
    level = np.empty(D)
    level[first] = slopes[np.arange(D), first] / 2
    # The delay is C/log(1/ε) only if the other jumps are far. From log(1/ε) = 400 on, the last two
    # are apart by 16 times the time in which a coordinate grows by a factor e, so that they disturb
    # each other by e^(−16).
    length = np.array([400.0, 800, 1600, 3200])
    found = _jumps(problem, jnp.asarray(-length), 2 * limit.jumps[D - 1], jnp.asarray(level))
    rises = np.asarray(found.activations)[:, :, first]  # (E, K', K)
    times = np.where(rises, np.asarray(found.s)[:, :, None], 0).sum(axis=1)
    once = rises.sum(axis=1) == 1
    # Half way between jumps, where the flow should be at the plateau of the limit.
    middle = np.append((jumps[1:] + jumps[:-1]) / 2, 2 * jumps[-1])
    late = flows(problem, jnp.asarray(-length[-1:]), jnp.asarray(middle[None]))
    return Delays(length, np.where(once, times - jumps, np.nan), np.asarray(late)[0])


def activation() -> list[Measurement]:
    """B23-activation: jumps and plateaus of `limit_flow`, and those of the flow near them."""
    problem, limit = activation_instance()
    number = int(limit.num_jumps)
    jumps, slopes = np.asarray(limit.jumps)[:number], np.asarray(limit.slopes)[:number]
    joins = np.asarray(limit.activations)[:number]
    # The truth for the plateaus: minimisers on their own supports, by NumPy.
    M, r = np.asarray(problem.gram()), np.asarray(problem.r)
    best = np.zeros_like(slopes)
    for row, active in zip(best, slopes != 0, strict=True):
        row[active] = np.linalg.solve(M[np.ix_(active, active)], r[active])
    rows = [
        Measurement("B23-activation", "number of jumps", D, number, 0, "exact"),
        Measurement(
            "B23-activation",
            "most coordinates that activate at one jump, plus all that deactivate",
            1.0,
            float(np.max(joins.sum(1)) + np.sum(np.asarray(limit.deactivations)[:number])),
            0.0,
            "exact",
        ),
        Measurement(
            "B23-activation",
            "time of the first jump, times max rᵢ",
            1.0,
            float(jumps[0] * r.max()),
            1e-14,
            "a few roundings",
        ),
        Measurement(
            "B23-activation",
            "plateaus against the minimisers on their supports, largest relative error",
            0.0,
            float(np.max(np.abs(slopes - best)) / np.max(np.abs(best))),
            1e-13,
            "rounding times the condition number of M, below 100",
        ),
    ]
    # Delays are those of single activations: without them the rows above have failed already.
    if number != D or np.any(joins.sum(1) != 1):
        return rows

    flow = delays(problem, limit)
    for k, delay in enumerate(np.abs(flow.delay).T):
        # NaN does not hold: a jump that was not found, or not late, fails the claim.
        slope = np.nan
        if np.all(delay > 0):
            slope = float(np.polyfit(np.log(flow.length), np.log(delay), 1)[0])
        rows.append(
            Measurement(
                "B23-activation",
                f"slope of the error of jump {k + 1} of the flow in log log(1/ε), 400 … 3200",
                -1.0,
                slope,
                0.02,
                "C/log(1/ε) is exact up to e^(−16), with which jumps overlap, and steps at 1e-7",
            )
        )
    rows.append(
        Measurement(
            "B23-activation",
            "plateaus of the flow at log ε = −3200 against those of the limit, relative",
            0.0,
            float(np.max(np.abs(flow.late - slopes)) / np.max(slopes)),
            1e-5,
            "exponentially small in log(1/ε) between jumps; steps at rtol = 1e-7 times 3200",
        )
    )
    return rows


CLAIMS = [
    Claim("B23-monotone", "M_ij ≤ 0: the positive lasso path is monotone, always", monotone),
    Claim("B23-activation", "coordinates activate one after another", activation),
]
