"""Which form of the active set a problem of some shape gets."""

import jax.numpy as jnp

from .._problem import AbstractProblem
from .compact import Compact
from .state import AbstractActiveSet, Scaled
from .tableau import Tableau

# Beyond, the tableaux of a few lanes do not fit the second-level cache.
MOST_COORDINATES = 100


def has_tableau(problem: AbstractProblem) -> bool:
    """Whether the active set is a `Tableau`: where a pivot on it is faster than on `Compact`.

    A pivot passes over `2d²` numbers, compared with some `4k² + 5kd` in more, and smaller, pieces.
    Measured, the CPU time of a pivot on `Compact` over that on `Tableau`, in batches on one core:
    1.2 at 3 × 4, 1.2 to 1.4 at 20 × 40, 1.0 to 1.4 at 50 × 100, 1.7 to 2 at 442 × 10, 100 × 30 and
    50 × 60; but 0.9 at 10 × 40, 0.6 at 20 × 100 and 5 × 40, 0.8 at 60 × 120, 0.9 at 100 × 200. (At
    100 × 128 it would be 1.5: tall problems pay somewhat longer.)

    Not in float32, whose digits it wastes: at correlation 0.999, 6 × 10, a basis pursuit ended with
    an infeasibility of 5e-5, where `Compact` reaches 3e-7 (fuzz, seed 12,12,0,0, lane 44).
    """
    d = problem.r.shape[0]
    is_double = bool(jnp.finfo(problem.r.dtype).eps < 1e-10)  # between the two rounding units
    return is_double and d <= 2 * problem.rank_bound and d <= MOST_COORDINATES


def active_set(problem: AbstractProblem, scaled: Scaled, slots: int) -> AbstractActiveSet:
    """The set in which no coordinate is active, for up to `slots` of them."""
    if has_tableau(problem):
        return Tableau.empty(problem, scaled)
    return Compact.empty(slots, scaled.scale)


def numbers_of(problem: AbstractProblem, slots: int) -> int:
    """About how many numbers the matrices of the set hold, all of which an event reads."""
    d = problem.r.shape[0]
    return 2 * d * d if has_tableau(problem) else slots * d + slots * slots
