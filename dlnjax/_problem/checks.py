"""What raises for a known problem that a solver does not take."""

from typing import Any

from .._checks import check_type
from .base import AbstractProblem
from .quadratic_loss import check_own_loss
from .schedule import check_constant


def check_problem(problem: Any, any_decay: bool = False) -> None:
    """Raise a `TypeError` if `problem` is not an `AbstractProblem`, or, unless `any_decay`, if its
    weight decay is a `Schedule`."""
    what = "a problem, such as `dlnjax.LeastSquares(X, y)`"
    check_type(problem, "problem", AbstractProblem, what)
    if not any_decay:
        check_constant(problem.weight_decay)


def check_known_loss(problem: Any, any_decay: bool = False) -> None:
    """Raise a `TypeError` unless the loss is the quadratic of `r` and `M`, where values are known,
    or that of a `GeneralizedLinear`; or as `check_problem` does."""
    check_problem(problem, any_decay)
    check_own_loss(problem)


def check_quadratic(problem: Any, any_decay: bool = False) -> None:
    """Raise a `TypeError` if `loss` is not the quadratic of `r` and `M`, where values are known; or
    as `check_problem` does."""
    check_problem(problem, any_decay)
    if problem.glm() is not None:
        raise TypeError(
            f"The square of `LeastSquares` is assumed here, got the loss of "
            f"`{type(problem).__name__}`, whose lasso path is not piecewise linear. `dlnjax.lasso` "
            "solves it on a grid of μ; `gradient_flow`, `limit_flow` and `end_point` take it, too."
        )
    check_own_loss(problem)
