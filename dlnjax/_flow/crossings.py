"""`crossing_times`: when the coordinates of a flow at finite `ε` cross a level, by the search of
`events.py`: activations are rises of `|xᵢ|/levelᵢ` to 1, deactivations falls."""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._checks import (
    as_count,
    as_positive,
    check_finite,
    check_scalar,
    check_type,
)
from .._derivatives import held
from .._problem import AbstractProblem, default_events
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractNetwork
from .driver import Moving, counts
from .events import AbstractHeights, search, times_of
from .formulations import AbstractFormulation, DualForm
from .run import Run, as_run


class CrossingTimes(eqx.Module):
    """The times at which coordinates of a flow cross a level.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        times = dln.crossing_times(network, problem, 3.0, 0.5, log_eps=-100.0)
        times.num_crossings  # 2
        times.activations[:2]  # x₁ first, then x₂
        ```

    **Attributes:**

    - `s`: the times, increasing, shape `(K,)`: the first `num_crossings`, then the last one
        repeated (0 if there is none).
    - `activations`: which `|xᵢ|` rise to the level at each time; `deactivations`: which fall to
        it. Shape `(K, d)`.
    - `num_crossings`: the number of crossing times, a scalar.
    - `result`: how the solve ended. If it failed, the times are NaN; with `max_crossings_reached`
        the first `K` crossings are kept.
    - `stats`: as in `Flow`.
    """

    s: Float[Array, " K"]
    activations: Bool[Array, "K d"]
    deactivations: Bool[Array, "K d"]
    num_crossings: Int[Array, ""]
    result: RESULTS
    stats: dict[str, Any]


def crossing_times(
    network: AbstractNetwork,
    problem: AbstractProblem,
    s_max: Real[ArrayLike, ""],
    level: Real[ArrayLike, "..."],
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    formulation: AbstractFormulation | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 65536,
    max_crossings: int | None = None,
    throw: bool = True,
) -> CrossingTimes:
    """The times in `(0, s_max]` at which `|xᵢ(s)|` crosses `level`, by root finding within steps.

    As `ε → 0` they tend to the jumps of `limit_flow`, at a distance of `O(1/log(1/ε))` at depth 2,
    for every level strictly between the values of `|xᵢ|` before and after the jump.

    A coordinate that crosses twice within one step of the solver is not detected. One that starts
    at the level counts as above it. Derivatives, in both modes and to second order, take another
    integration.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        times = dln.crossing_times(network, problem, 3.0, 0.5, log_eps=-1000.0)
        times.s[:2]  # (0.5005, 1.0014): the limit process jumps at 0.5 and 1
        ```

    **Arguments:**

    - `network`, `problem`: as in `gradient_flow`.
    - `s_max`: where to stop, `> 0` and finite, a scalar, in rescaled time.
    - `level`: positive, a scalar or of shape `(d,)`, in units of `x`. For example half of each
        coordinate's first plateau.
    - `max_crossings`: static size `K` of the buffers, default `4 min(n, d) + 16`.
    - the others: as in `gradient_flow`.

    **Returns:** a `CrossingTimes`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the solver
    fails or there are more than `max_crossings` crossings.

    !!! cite "Reference"

        [B23] Theorem 1, JMLR 24(171).
    """
    formulation = DualForm() if formulation is None else formulation
    run = as_run(network, problem, eps, log_eps, formulation, rtol, atol, max_steps)
    dtype, d = problem.r.dtype, problem.r.shape[0]
    s_max, level = as_positive(s_max, "s_max", dtype), as_positive(level, "level", dtype)
    check_scalar(s_max, "s_max")
    check_finite(s_max, "s_max")
    check_finite(level, "level")
    if level.shape not in ((), (d,)):
        raise ValueError(f"`level` must be a scalar or of shape ({d},), got shape {level.shape}.")
    if max_crossings is None:
        max_crossings = default_events(problem)  # crossings tend to the events of the limit
    max_crossings = as_count(max_crossings, "max_crossings")
    solver = formulation.default_solver(problem) if solver is None else solver
    check_type(solver, "solver", diffrax.AbstractSolver, "a solver, such as `diffrax.Kvaerno5()`")
    jumps = _solve(run, s_max, jnp.broadcast_to(level, d), solver, max_crossings)
    return raise_on_failure(jumps, jumps.result, throw, kept=("s",))


class _Sizes(AbstractHeights):
    """`|xᵢ|` in units of its level."""

    level: Float[Array, " d"]
    only_first: ClassVar[bool] = False

    @property
    def count(self) -> int:
        return len(self.level)

    def __call__(self, x: Array) -> Array:
        return jnp.abs(x) / self.level


@eqx.filter_jit
def _solve(
    run: Run, s_max: Array, level: Array, solver: diffrax.AbstractSolver, max_crossings: int
) -> CrossingTimes:
    term = run.term()
    ends = jnp.isfinite(s_max) & (s_max > 0)
    is_level = jnp.all(level > 0) & jnp.all(jnp.isfinite(level))
    verdict = first_failure(run.validity(term), (ends & is_level, RESULTS.invalid_grid))
    valid = verdict == RESULTS.successful
    run = run.harmless(valid)
    term, heights = run.term(), _Sizes(jnp.where(valid, level, 1))
    # A lane with invalid input integrates over an empty interval.
    end = jnp.where(valid, s_max, 0)
    fixed = run.fixed(term, solver, end[None], valid)
    moving = Moving(term, term.initial())
    found, state = held(search(moving, fixed, heights, max_crossings))
    result = first_failure(verdict, found.result, run.cause(term, state))
    times = times_of(moving, fixed, heights, found)
    is_known = (result == RESULTS.successful) | (result == RESULTS.max_crossings_reached)
    last = times[jnp.clip(found.row - 1, 0)]
    times = jnp.where(jnp.arange(max_crossings, dtype=jnp.int32) < found.row, times, last)
    return CrossingTimes(
        s=jnp.where(is_known, times, jnp.nan),
        activations=found.crossed[0],
        deactivations=found.crossed[1],
        num_crossings=found.row,
        result=result,
        stats=counts(state),
    )
