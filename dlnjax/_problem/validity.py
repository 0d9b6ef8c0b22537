"""What a traced problem cannot raise: the first reason why it is invalid, and what solvers compute
with in its place. (`problem: Any`, since `AbstractProblem` itself is built on these.)
"""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import is_concrete
from .._results import RESULTS, first_failure
from .quadratic_loss import is_quadratic
from .schedule import Schedule, is_decay

_P = TypeVar("_P", bound=Any)


def validity(problem: Any, any_loss: bool = False) -> RESULTS:
    """The first reason why a traced problem is invalid, or `successful`.

    It covers what the constructors raise for known values, and `check_known_loss` unless
    `any_loss`."""
    is_loss = problem.is_convex()
    if not any_loss and problem.glm() is None:
        is_loss = is_loss & is_quadratic(problem)
    return first_failure(
        (problem.is_in_range(), RESULTS.invalid_data),
        (is_loss, RESULTS.invalid_problem),
        (is_decay(problem.weight_decay), RESULTS.invalid_decay),
    )


def nan_unless_valid(problem: Any, value: Array) -> Array:
    """`value`, or NaN for an invalid traced problem: for functions that return no `result`."""
    # Known values have passed the checks of the constructor.
    if is_concrete(*jax.tree.leaves(problem)):
        return value
    return jnp.where(validity(problem) == RESULTS.successful, value, jnp.nan)


def harmless(problem: _P, valid: Array) -> _P:
    """`problem`, with all its numbers 0 unless `valid`.

    Iterations of LAPACK on NaN or inf may not terminate, and Newton's method on them does not."""
    zero_unless = lambda v: jnp.where(valid, v, 0) if eqx.is_inexact_array(v) else v
    return jax.tree.map(zero_unless, problem)


def harmless_data(problem: _P, valid: Array, any_loss: bool = False) -> _P:
    """`problem`, with data of 0 if they are bad, and `λ = 0` unless the lane is `valid`.

    For solvers that end at once, or do no harm, on good data in a lane that is refused for another
    reason. Masked by `valid`, as in `harmless`, the data that lanes of a `vmap` over `ε` or over
    networks share would become a copy for each, and products with them no longer be one product."""
    bare = without_decay(problem)
    are_good = validity(bare, any_loss) == RESULTS.successful
    return with_decay(harmless(bare, are_good), harmless(problem.weight_decay, valid))


def without_decay(problem: _P) -> _P:
    """The problem with `λ = 0`."""
    # A concrete 0 also under `jit`: code that only weight decay needs is then not compiled.
    with jax.ensure_compile_time_eval():
        zero = jnp.zeros((), problem.r.dtype)
    return with_decay(problem, zero)


def with_decay(problem: _P, decay: Array | Schedule) -> _P:
    """The problem with another `λ`."""
    return eqx.tree_at(lambda problem: problem.weight_decay, problem, decay)
