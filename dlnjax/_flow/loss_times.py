"""`loss_times`: when the loss of a flow at finite `ε` has fallen to a level, by the search of
`events.py`."""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import as_positive, check_finite, check_nonempty, check_scalar, check_type
from .._derivatives import held
from .._problem import AbstractProblem
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractNetwork
from .driver import Moving, counts
from .events import AbstractHeights, search, times_of
from .formulations import AbstractFormulation, DualForm
from .run import Run, as_run


class LossTimes(eqx.Module):
    """The first times at which the loss of a flow has fallen to some levels.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))  # ℓ(0) = 2.5
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        times = dln.loss_times(network, problem, 3.0, jnp.array([1.0, 0.1]), log_eps=-1000.0)
        times.s  # (0.501, 1.002)
        ```

    **Attributes:**

    - `s`: the times, in the shape of the levels; 0 where the loss starts at or below the level,
        infinite where it is above it up to `s_max`.
    - `result`: how the solve ended. If it failed, the times are NaN.
    - `stats`: as in `Flow`.
    """

    s: Float[Array, "..."]
    result: RESULTS
    stats: dict[str, Any]


def loss_times(
    network: AbstractNetwork,
    problem: AbstractProblem,
    s_max: Real[ArrayLike, ""],
    loss: Real[ArrayLike, "..."],
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    formulation: AbstractFormulation | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 65536,
    throw: bool = True,
) -> LossTimes:
    """The first times in `[0, s_max]` at which the loss `ℓ(x(s))` is at most `loss`: where training
    that stops at a loss ends. `gradient_flow` at these times has the flow there.

    The integration ends when the last level is reached. Without weight decay or momentum the loss
    never rises along the flow. With them, a loss that falls below a level and rises again within
    one step of the solver is not detected. Derivatives, in both modes and to second order, take
    another integration.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        times = dln.loss_times(network, problem, 3.0, 0.1, log_eps=-1000.0)
        dln.gradient_flow(network, problem, times.s[None], log_eps=-1000.0).x  # (2.000, 0.553)
        ```

    **Arguments:**

    - `network`, `problem`: as in `gradient_flow`.
    - `s_max`: where to stop if the loss has not fallen so far, `> 0` and finite, a scalar, in
        rescaled time.
    - `loss`: positive levels of `problem.loss`, of shape `()` or `(m,)`, in any order.
    - the others: as in `gradient_flow`.

    **Returns:** a `LossTimes`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the solver
    fails.

    !!! cite "Reference"

        [B25] §2 and §4.2 (the flow); arXiv 2509.18766.
    """
    formulation = DualForm() if formulation is None else formulation
    run = as_run(network, problem, eps, log_eps, formulation, rtol, atol, max_steps)
    dtype = problem.r.dtype
    s_max, loss = as_positive(s_max, "s_max", dtype), as_positive(loss, "loss", dtype)
    check_scalar(s_max, "s_max")
    check_finite(s_max, "s_max")
    check_finite(loss, "loss")
    check_nonempty(loss, "loss")
    if loss.ndim > 1:
        raise ValueError(
            f"`loss` must be one level or several, of shape () or (m,), got {loss.shape}. Flatten "
            "it."
        )
    solver = formulation.default_solver(problem) if solver is None else solver
    check_type(solver, "solver", diffrax.AbstractSolver, "a solver, such as `diffrax.Kvaerno5()`")
    times = _solve(run, s_max, loss, solver)
    return raise_on_failure(times, times.result, throw)


class _Depths(AbstractHeights):
    """The levels in units of the loss."""

    problem: AbstractProblem
    level: Float[Array, " m"]
    only_first: ClassVar[bool] = True

    @property
    def count(self) -> int:
        return len(self.level)

    def __call__(self, x: Array) -> Array:
        # The loss may round to 0, or below: it is then below every level, by a large finite factor.
        least = jnp.finfo(x.dtype).eps * self.level
        return self.level / jnp.maximum(self.problem.loss(x), least)


@eqx.filter_jit
def _solve(run: Run, s_max: Array, loss: Array, solver: diffrax.AbstractSolver) -> LossTimes:
    level = loss.ravel()
    term = run.term()
    ends = jnp.isfinite(s_max) & (s_max > 0)
    is_level = jnp.all(level > 0) & jnp.all(jnp.isfinite(level))
    verdict = first_failure(run.validity(term), (ends & is_level, RESULTS.invalid_grid))
    valid = verdict == RESULTS.successful
    run = run.harmless(valid)
    term, heights = run.term(), _Depths(run.problem, jnp.where(valid, level, 1))
    # A lane with invalid input integrates over an empty interval.
    fixed = run.fixed(term, solver, jnp.where(valid, s_max, 0)[None], valid)
    moving = Moving(term, term.initial())
    found, state = held(search(moving, fixed, heights, len(level)))
    result = first_failure(verdict, found.result, run.cause(term, state))
    times = times_of(moving, fixed, heights, found)
    rises = found.crossed[0]
    s = jnp.where(found.is_above, 0, jnp.inf)
    s = jnp.where(jnp.any(rises, axis=0), times[jnp.argmax(rises, axis=0)], s)
    s = jnp.where(result == RESULTS.successful, s, jnp.nan)
    return LossTimes(s.reshape(loss.shape), result, counts(state))
