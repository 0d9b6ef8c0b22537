"""The problem: a loss with weight decay, its minimisers, and what is refused."""

from .base import (
    AbstractProblem as AbstractProblem,
    check_problem as check_problem,
    check_quadratic as check_quadratic,
    harmless as harmless,
    is_quadratic as is_quadratic,
    nan_unless_valid as nan_unless_valid,
    validity as validity,
    without_decay as without_decay,
)
from .design import LeastSquares as LeastSquares, Quadratic as Quadratic
