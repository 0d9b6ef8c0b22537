"""Berthier, arXiv 2509.18766v3: its theorems about `ε → 0`, on the ensemble of its Figure 1.

Theorems about the limit are measured on the limit process, which is exact; that the flow tends to
it is measured on flows down to `log ε = −2000`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .. import (
    RESULTS,
    UV,
    LeastSquares,
    USquared,
    eta,
    gradient_flow,
    lasso_path,
    limit_flow,
    suboptimality_gap,
)
from .._problem.solution_space import SolutionSpace
from .b25 import D, instance
from .claim import Claim, Measurement

# From the ε of the paper's figure down. The distance to the limit is O(1/log(1/ε)), so that each
# step, which multiplies log(1/ε) by 2.8 or more, shows as a decrease.
LOG_EPS = np.array([np.log(1e-5), -50, -200, -700, -2000])
# Times `s = μ`, to the end of the paper's figure.
GRID = np.linspace(0, 10, 101)[1:]
# Weight decay in units of ‖r‖_∞, the decay at which the lasso is 0.
DECAY = 0.02


def _network(positive: bool) -> UV | USquared:
    return USquared(jnp.ones(D)) if positive else UV(jnp.ones(D), jnp.zeros(D))


def _problem(index: Array, decay: Array) -> LeastSquares:
    problem = instance(jr.key(0), index)
    size = jnp.max(jnp.abs(problem.r))
    return LeastSquares(problem.X, problem.y, weight_decay=decay * size)


class Limits(eqx.Module):
    """The limit process beside the lasso path, for `m` instances."""

    relative_gap: Float[Array, "*m S"]  # of the average
    distance: Float[Array, "*m"]  # of X z between the two, relative to s‖y‖, at its largest
    end: Float[Array, "*m"]  # gap of the last plateau to the lasso at κ = λ, relative
    ratio: Float[Array, "*m S"]  # gap over η
    downward: Float[Array, "*m S"]  # z↓
    early: Float[Array, "*m"]  # the largest entry of both before s = 1/max(‖r‖_∞, 1)
    is_monotone: Bool[Array, "*m"]
    moves: Bool[Array, "*m"]  # or is always 0, as `u∘u` where r ≤ 0


@eqx.filter_jit
def limits(indices: Int[Array, " m"], decay: Float[Array, ""], positive: bool) -> Limits:
    """NaN where a solver fails."""
    s = jnp.asarray(GRID)

    def one(index):
        problem = _problem(index, decay)
        path = lasso_path(problem, positive=positive, throw=False)
        limit = limit_flow(_network(positive), problem, throw=False)
        gap = suboptimality_gap(problem, limit.x_mean(s), s, path=path)
        size = jnp.linalg.norm(problem.y)
        # At μ = ∞ without decay the least loss is 0, and a gap relative to it would be undefined:
        # take it relative to ½‖y‖², an upper bound of the optimum.
        end = suboptimality_gap(problem, limit.x(jnp.inf), jnp.inf, path=path)
        down = path.downward_variation(s)
        bound = eta(problem.weight_decay, s, down)
        # Just before the time up to which nothing may have moved; at it, rounding could decide.
        onset = 0.999 / jnp.maximum(jnp.max(jnp.abs(problem.r)), 1)
        early = jnp.maximum(jnp.max(jnp.abs(path.x(onset))), jnp.max(jnp.abs(limit.x_mean(onset))))
        distance = jnp.max(jnp.abs((limit.x_mean(s) - path.x(s)) @ problem.X.T)) / size
        good = (path.result == RESULTS.successful) & (limit.result == RESULTS.successful)
        nan_unless = lambda v: jnp.where(good, v, jnp.nan)
        return Limits(
            nan_unless(gap.relative),
            nan_unless(distance),
            nan_unless(end.absolute / (0.5 * size**2)),
            nan_unless(gap.absolute / jnp.where(bound > 0, bound, 1)),
            down,
            nan_unless(early),
            path.is_monotone(),
            limit.num_jumps > 0,
        )

    return jax.vmap(one)(indices)


class Flows(eqx.Module):
    """Averaged flows at every `LOG_EPS`, at their worst over `0 < s ≤ 10`."""

    largest_gap: Float[Array, "*m E"]  # relative
    largest_x: Float[Array, "*m E"]  # 1-norm of x, relative to the largest of the limit


@eqx.filter_jit
def flows(indices: Int[Array, " m"], decay: Float[Array, ""], positive: bool) -> Flows:
    """NaN where a solver fails."""
    s = jnp.asarray(GRID)

    def one(index):
        problem = _problem(index, decay)
        network = _network(positive)
        path = lasso_path(problem, positive=positive, throw=False)
        plateaus = limit_flow(network, problem, throw=False).slopes
        top = jnp.max(jnp.sum(jnp.abs(plateaus), axis=1))
        top = jnp.where(top > 0, top, 1)

        def at(log_eps):
            flow = gradient_flow(network, problem, s, log_eps=log_eps, throw=False)
            gap = suboptimality_gap(problem, flow.x_mean, s, path=path).relative
            return jnp.max(gap), jnp.max(jnp.sum(jnp.abs(flow.x), axis=1)) / top

        return Flows(*jax.vmap(at)(jnp.asarray(LOG_EPS)))

    return jax.vmap(one)(indices)


def _rows(
    id: str, of: str, decay: float, positive: bool, instances: int, flow_instances: int
) -> list[Measurement]:
    """The rows of a theorem for monotone paths: two of the limit process, two of the flow."""
    # Instances that stay at 0, `u∘u` with r ≤ 0, have no gap to measure.
    limit = limits(jnp.arange(instances), jnp.asarray(decay), positive)
    limit = jax.tree.map(np.asarray, limit)
    monotone = np.flatnonzero(limit.is_monotone & limit.moves)
    chosen = np.resize(monotone, flow_instances)
    flow = flows(jnp.asarray(chosen), jnp.asarray(decay), positive)
    gap = np.asarray(flow.largest_gap)
    steps = gap[:, 1:] / gap[:, :-1]
    expected = LOG_EPS[0] / LOG_EPS[-1]
    return [
        Measurement(
            id,
            f"largest |X(x̄⁰(s) − x(s))|/‖y‖, s ≤ 10, {len(monotone)} monotone instances, {of}",
            0.0,
            float(np.max(limit.distance[monotone])),
            1e-12,
            "rounding times the condition numbers of the faces, which reach 1e3",
        ),
        Measurement(
            id,
            f"largest relative gap of x̄⁰(s), s ≤ 10, {len(monotone)} monotone instances, {of}",
            0.0,
            float(np.max(limit.relative_gap[monotone])),
            1e-12,
            "as for the distance: the gap is at most linear in it",
        ),
        Measurement(
            id,
            f"worst factor of the flow's gap when ε decreases, log ε = −11.5 … −2000, {of}",
            1.0,
            float(np.max(steps)),
            0.0,
            "the gap is to decrease, on each instance and at each step",
            "at most",
        ),
        Measurement(
            id,
            f"median over instances of gap(log ε = −2000)/gap(log ε = −11.5), {of}",
            expected,
            float(np.median(gap[:, -1] / gap[:, 0])),
            0.0,
            "x̄ is O(1/log(1/ε)) from its limit, and its gap no further",
            "at most",
        ),
    ]


def monotone_limit(instances: int = 400, flow_instances: int = 20) -> list[Measurement]:
    """B25-thm2.1: `u∘v` on instances with a monotone path."""
    return _rows("B25-thm2.1", "u∘v", 0.0, False, instances, flow_instances)


def positive_limit(instances: int = 400, flow_instances: int = 20) -> list[Measurement]:
    """B25-thm3.1: `u∘u` on instances with a monotone positive path."""
    return _rows("B25-thm3.1", "u∘u, positive lasso", 0.0, True, instances, flow_instances)


def decayed_limit(instances: int = 400, flow_instances: int = 20) -> list[Measurement]:
    """B25-decay: `u∘v` with weight decay, to the lasso at `κ = λ + 1/s`, and at `s = ∞`."""
    limit = limits(jnp.arange(instances), jnp.asarray(DECAY), False)
    end = Measurement(
        "B25-decay",
        f"gap of the last plateau to the lasso at κ = λ, over ½‖y‖², {instances} instances",
        0.0,
        float(np.max(np.asarray(limit.end))),
        1e-13,
        "quadratic in the distance, which is rounding",
    )
    of = f"u∘v, λ = {DECAY} ‖r‖_∞"
    return [end, *_rows("B25-decay", of, DECAY, False, instances, flow_instances)]


def _deviation(id: str, of: str, positive: bool, instances: int) -> list[Measurement]:
    """The rows of a theorem for all paths, of the limit process: its gap is the limit of the
    flow's. Nothing is stated about the size of `C`: that it is finite is measured, and its
    quantiles are reported."""
    rows = []
    for decay in (0.0, DECAY):
        limit = limits(jnp.arange(instances), jnp.asarray(decay), positive)
        limit = jax.tree.map(np.asarray, limit)
        others = np.flatnonzero(~limit.is_monotone)
        before = limit.downward[others] == 0
        gap, ratio = limit.relative_gap[others], np.where(before, 0, limit.ratio[others])
        constant = np.max(ratio, axis=1, initial=0)
        where = f"{len(others)} non-monotone instances, {of}, λ = {decay} ‖r‖_∞"
        low, median, high = np.quantile(constant, (0.05, 0.5, 0.95)) if len(others) else [0] * 3
        rows += [
            Measurement(
                id,
                f"largest relative gap while z↓ = 0, {where}",
                0.0,
                float(np.max(np.where(before, gap, 0), initial=0)),
                1e-12,
                "where η vanishes so does the gap, to rounding in the faces",
            ),
            Measurement(
                id,
                f"fraction with a finite C = max gap/η over s ≤ 10 (5 %, median, 95 %: {low:.1e}, "
                f"{median:.1e}, {high:.1e}), {where}",
                1.0,
                float(np.mean(np.isfinite(constant))),
                0.0,
                "exact",
            ),
        ]
    return rows


def deviation(instances: int = 400) -> list[Measurement]:
    """B25-thm2.2: `u∘v` on instances whose path is not monotone."""
    return _deviation("B25-thm2.2", "u∘v", False, instances)


def positive_deviation(instances: int = 400) -> list[Measurement]:
    """B25-thm3.2: `u∘u` on instances whose positive path is not monotone."""
    return _deviation("B25-thm3.2", "u∘u", True, instances)


def bounded(instances: int = 20) -> list[Measurement]:
    """B25-prop4.1: the largest 1-norm of the flow over that of its limit, over times and `ε`."""
    rows = []
    for name, positive in (("u∘v", False), ("u∘u", True)):
        size = np.asarray(flows(jnp.arange(instances), jnp.asarray(0.0), positive).largest_x)
        rows.append(
            Measurement(
                "B25-prop4.1",
                f"sup over s ≤ 10 and log ε = −11.5 … −2000 of ‖x‖₁ over that of the limit, {name}",
                1.0,
                float(np.max(size)),
                0.1,
                "a plateau may be exceeded by O(1/log(1/ε)), which is 0.09 at ε = 1e-5",
                "at most",
            )
        )
    return rows


def small_s(instances: int = 400) -> list[Measurement]:
    """B25-small-s: the lasso and the limit just before `s = 1/max(‖r‖_∞, 1)`."""
    rows = []
    for name, positive in (("u∘v", False), ("u∘u", True)):
        early = np.asarray(limits(jnp.arange(instances), jnp.asarray(0.0), positive).early)
        rows.append(
            Measurement(
                "B25-small-s",
                f"largest |x| of the lasso and the limit at s = 0.999/max(‖r‖_∞, 1), "
                f"{instances} instances, {name}",
                0.0,
                float(np.max(early)),
                0.0,
                "exact",
            )
        )
    return rows


@eqx.filter_jit
def _distance_from_range(
    indices: Int[Array, " m"], log_eps: Float[Array, " E"]
) -> Float[Array, "m E"]:
    """Distance of `log q⁺/q⁺(0)` from the range of `Xᵀ`, relative to its size, at its worst over
    `s`."""
    s = jnp.asarray(GRID[4::5])

    def one(index):
        problem = _problem(index, jnp.asarray(0.0))
        solutions = SolutionSpace(problem, jnp.ones(D, bool))

        def at(log_eps):
            flow = gradient_flow(_network(False), problem, s, log_eps=log_eps, throw=False)
            # From β = 1, γ = 0: q⁺q⁻ = (ε/4)² and x = q⁺ − q⁻ = (ε/2) sinh(log q⁺/q⁺(0)).
            fold = jnp.arcsinh(2 * flow.x * jnp.exp(-log_eps))
            off_range = fold - jax.vmap(solutions.in_range)(fold)
            return jnp.max(jnp.abs(off_range)) / jnp.max(jnp.abs(fold))

        return jax.vmap(at)(log_eps)

    return jax.vmap(one)(indices)


def bregman(instances: int = 50) -> list[Measurement]:
    """B25-lemma4.4: the optimality condition of the Bregman projection, along the flow."""
    # Down to −200: `x e^{−log ε}`, which is inverted, would overflow beyond −700.
    sizes = jnp.asarray([LOG_EPS[0], -50.0, -200])
    distance = np.asarray(_distance_from_range(jnp.arange(instances), sizes))
    return [
        Measurement(
            "B25-lemma4.4",
            f"distance of log q(s)/q(0) from the range of Fᵀ, {instances} instances, s ≤ 10, "
            "log ε = −11.5 … −200",
            0.0,
            float(np.max(distance)),
            1e-12,
            "rounding times the condition number of X, below 1e3",
        )
    ]


CLAIMS = [
    Claim(
        "B25-thm2.1", "monotone path: the flow's average tends to the lasso path", monotone_limit
    ),
    Claim("B25-thm2.2", "in general: the gap is at most C η(λ, s, z↓)", deviation),
    Claim("B25-thm3.1", "u∘u: the average tends to a monotone positive path", positive_limit),
    Claim("B25-thm3.2", "u∘u in general: the gap is at most C η", positive_deviation),
    Claim(
        "B25-lemma4.4", "q(t) minimises the Bregman divergence to q(0) with the same Fq", bregman
    ),
    Claim("B25-prop4.1", "trajectories are bounded uniformly in time and ε", bounded),
    Claim("B25-small-s", "before 1/max(‖r‖_∞, 1) the lasso and the limit are 0", small_s),
    Claim(
        "B25-decay", "weight decay: the gap to κ = λ + 1/s vanishes, also at s = ∞", decayed_limit
    ),
]
