"""The limit `ε → 0` where the weight decay is a `Schedule`: one process a phase, put together.

Between two breakpoints the decay is constant, and the process is that of `process.py` or
`generalized.py`. The next phase begins with `w` as it is at the breakpoint. There `x` jumps, as the
minimiser on `{w = 0}` is another for another decay: the breakpoint is a knot.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._active_set.tolerances import Tolerances
from .._derivatives import held, vanishing
from .._loops import scan
from .._path import LimitFlow
from .._problem import AbstractProblem, Schedule, with_decay
from .._results import RESULTS, first_failure
from ..networks.signs import sides

# `(problem, w(0), s_max)` to the limit process, for a constant decay.
Solve = Callable[[AbstractProblem, Array, Array], LimitFlow]


class _Rows(eqx.Module):
    """The rows of a path; those count that are jumps or cuts."""

    knots: Float[Array, " K"]
    values: Float[Array, "K d"]
    slopes: Float[Array, "K d"]
    is_jump: Bool[Array, " K"]
    is_cut: Bool[Array, " K"]


class _Phase(eqx.Module):
    """Where a phase begins: the time, `w`, `z` and the plateau before it."""

    s: Float[Array, ""]
    w: Float[Array, "signs d"]
    z: Float[Array, " d"]
    plateau: Float[Array, " d"]
    is_over: Bool[Array, ""]  # `x` is infinite, or not known


def follow_phases(
    problem: AbstractProblem,
    schedule: Schedule,
    initial_dual: Float[Array, "signs d"],
    s_max: Float[Array, ""],
    solve: Solve,
) -> LimitFlow:
    """The limit process of `problem`, whose weight decay is `schedule`. Its buffers hold the rows
    of all phases."""
    ends = jnp.minimum(jnp.append(schedule.breakpoints, jnp.inf), s_max)

    def follow(phase: _Phase, row: tuple[Array, Array]):
        decay, end = row
        is_asked = ~phase.is_over & ((phase.s < s_max) | (phase.s == 0))
        length = jnp.where(is_asked, end - phase.s, 1)
        constant = with_decay(problem, decay)
        limit = solve(constant, phase.w, length)
        rows = _rows(limit, phase, s_max, is_asked, is_asked & (end >= s_max))
        return _after(constant, limit, phase, length, is_asked), (limit, rows, is_asked)

    zeros = jnp.zeros_like(problem.r)
    phase = _Phase(jnp.zeros_like(s_max), initial_dual, zeros, zeros, jnp.asarray(False))
    _, (limits, rows, asked) = scan(follow, phase, (schedule.values, ends))

    every = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), rows)
    is_row = every.is_jump | every.is_cut
    num_knots = jnp.sum(is_row, dtype=jnp.int32)
    # First the rows that count, then the last of them again.
    order = jnp.argsort(~is_row)
    row = jnp.arange(len(order), dtype=jnp.int32)
    order = order[jnp.clip(row, 0, jnp.maximum(num_knots - 1, 0))]
    blank = lambda v: jnp.where(is_row.reshape(-1, *[1] * (v.ndim - 1)), v, 0)[order]
    is_invalid = jnp.isnan(limits.knots[0, 0])
    nan_if = lambda v: jnp.where(is_invalid, jnp.nan, v)
    of_asked = lambda v: jnp.where(asked.reshape(-1, *[1] * (v.ndim - 1)), v, 0)
    results = [jax.tree.map(lambda v, k=k: v[k], limits.result) for k in range(len(asked))]
    checks = [(~yes | (r == RESULTS.successful), r) for yes, r in zip(asked, results, strict=True)]
    return LimitFlow(
        knots=nan_if(blank(every.knots)),
        values=nan_if(blank(every.values)),
        slopes=nan_if(blank(every.slopes)),
        num_knots=num_knots,
        weights=limits.weights[0],
        norms=limits.norms[0],
        result=first_failure(*checks),
        stats={
            "num_pivots": jnp.sum(of_asked(limits.stats["num_pivots"]), dtype=jnp.int32),
            "max_violation": jnp.max(of_asked(limits.stats["max_violation"])),
        },
        positive=limits.positive,
        num_jumps=jnp.sum(every.is_jump, dtype=jnp.int32),
        face=jnp.sum(of_asked(limits.face), axis=0, dtype=jnp.int32),
    )


def _rows(
    limit: LimitFlow,
    phase: _Phase,
    s_max: Float[Array, ""],
    is_asked: Bool[Array, ""],
    is_final: Bool[Array, ""],
) -> _Rows:
    """The rows of one phase, in the time and with the `z` of the whole process."""
    number = jnp.arange(limit.knots.shape[0], dtype=jnp.int32)
    is_jump = is_asked & (number < limit.num_jumps)
    # The cut at the end of a phase is none of the whole, but for the last one: just after `s_max`,
    # so that the process is still known there.
    is_cut = is_final & ~is_jump & (number < limit.num_knots)
    end = jnp.nextafter(held(s_max), jnp.full_like(s_max, jnp.inf)) + vanishing(s_max)
    knots = jnp.where(is_cut, jnp.where(jnp.isfinite(s_max), end, 0), phase.s + limit.knots)
    rows = _Rows(knots, phase.z[None, :] + limit.values, limit.slopes, is_jump, is_cut)
    # One row for the breakpoint itself, in place of one at time 0 of the phase. (In the first phase
    # that is where a network starts at a model of its own size.)
    is_open = (limit.num_jumps > 0) & (limit.knots[0] == 0)
    plateau = jnp.where(is_open, limit.slopes[0], 0)
    moves = jnp.any(phase.plateau != 0) | jnp.any(plateau != 0)
    rows = eqx.tree_at(lambda r: r.is_jump, rows, is_jump & ~((number == 0) & is_open))
    one = phase.s, phase.z, plateau, is_asked & moves, jnp.asarray(False)
    breakpoint = _Rows(*(v[None] for v in one))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), breakpoint, rows)


def _after(
    problem: AbstractProblem,
    limit: LimitFlow,
    phase: _Phase,
    length: Float[Array, ""],
    is_asked: Bool[Array, ""],
) -> _Phase:
    """Where the next phase begins, `length` after this one."""
    # Beyond its end a phase is NaN: the next one, which is not asked for, has numbers all the same.
    failed = (limit.result != RESULTS.successful) | jnp.any(limit.face != 0)
    length, z = (jnp.where(failed | jnp.isinf(length), 0, v) for v in (length, limit.values[-1]))
    number = jnp.arange(limit.knots.shape[0], dtype=jnp.int32)
    is_known = (number < limit.num_jumps)[:, None] & ~failed
    slopes = jnp.where(is_known, limit.slopes, 0)
    plateau = jnp.where(limit.num_jumps > 0, slopes[jnp.maximum(limit.num_jumps - 1, 0)], 0)
    if problem.glm() is None:
        dual = length * problem.r - problem.matvec(z)
    else:
        # `dual` is no function of `z`: it adds up, plateau by plateau.
        knots = jnp.where(failed, 0, limit.knots)
        times = jnp.diff(knots, append=knots[-1:])
        force = -problem.gradient(slopes)
        dual = jnp.sum(times[:, None] * force, axis=0) + knots[0] * problem.r
    moved = problem.weight_decay * length - sides(dual, phase.w)
    w, size = phase.w + moved, held(phase.w + jnp.abs(sides(dual, phase.w)) + jnp.abs(moved))
    # w = 0 exactly on the plateau. Elsewhere a `w` that is 0 to rounding would jump a moment later:
    # that is the same knot (`Tolerances.merge`).
    is_zero = (sides(plateau, w) > 0) | (w <= Tolerances(w.dtype).merge * size)
    return _Phase(
        s=phase.s + length,
        w=jnp.where(is_zero, 0, w),
        z=phase.z + z,
        plateau=plateau,
        is_over=phase.is_over | (is_asked & failed),
    )
