"""`EndPoint`, what all ways to an end return, and the rounding that each of them allows for."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._lasso.basis_pursuit import rounding_of_residual
from .._problem import AbstractProblem
from .._results import RESULTS


class EndPoint(eqx.Module):
    """The end point of a flow, with its dual variable: what `end_point`, `limit_point` and
    `bregman_projection` return.

    **Attributes:**

    - `x`: the linear model, shape `(d,)`.
    - `dual`: `Xᵀν(∞)`, the integral of `Xᵀ(y − Xx)` over `s`, shape `(d,)`. It is ±∞ in coordinates
        where a residual remains: with weight decay, or where no `x ≥ 0` interpolates.
    - `result`: how the solve ended. If it failed, `x` and `dual` are NaN.
    - `stats`: `num_steps`, Newton steps (with weight decay, pivots of the lasso path; 0 for
        `Linear`); `residual`, the largest violation of `Xx = y` and of the dual equation, relative
        to the largest `‖Xⱼ‖|xⱼ|` (with weight decay and for `Linear`: of the optimality conditions,
        relative to the largest `|rⱼ|/‖Xⱼ‖`); `sensitivity`, the relative change of `x` when the
        dual changes by one rounding, or by the rounding of an initialisation that is larger than
        `x`, both in units in which columns have about the same norm.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 2.0]]), jnp.array([3.0]))
        end = dln.end_point(dln.UV(jnp.ones(2), jnp.zeros(2)), problem, eps=1e-9)
        end.x  # (1.9e-5, 1.49999)
        end.dual  # (0.543, 1.086), a multiple of Xᵀ
        end.stats["residual"] < 1e-13  # True
        ```
    """

    x: Float[Array, " d"]
    dual: Float[Array, " d"]
    result: RESULTS
    stats: dict[str, Any]


def rounding_of_data(problem: AbstractProblem) -> Float[Array, " d"]:
    """How far rounding can move each entry of `r = Xᵀy`: by all of it where `y` is orthogonal to
    the column."""
    # ‖y‖ = √(2ℓ(0)), infinite or NaN for a `Quadratic` whose constant is not known to be right.
    length = jnp.sqrt(2 * problem.loss(jnp.zeros_like(problem.r)))
    # An inner product of `rank_bound` terms is wrong by at most that many roundings of ‖Xⱼ‖‖y‖, and
    # so are the products with `M` beside it. It decides where `r` is all rounding: by experiment
    # (`y` orthogonal to designs 7 × 3 and 40 × 10) 8 times that makes 5 of 5200 entries of the dual
    # infinite, 100 times more none, and 100 times less flags 95 % of the end points of `Linear`.
    unit = 8 * (1 + problem.rank_bound) * jnp.finfo(length.dtype).eps
    return unit * jnp.where(jnp.isfinite(length), length, 0) * problem.column_norms()


def rounding(problem: AbstractProblem) -> Float[Array, " d"]:
    """How large `|r − Mx|` may be by rounding, in each coordinate."""
    return rounding_of_residual(problem) + rounding_of_data(problem)
