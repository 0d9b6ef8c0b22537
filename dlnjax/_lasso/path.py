"""`lasso_path`: the path, event by event (`homotopy.py`)."""

from jaxtyping import ArrayLike, Real

from .._checks import as_count, as_flag, as_weights, may_be_zero
from .._path import LassoPath
from .._problem import AbstractProblem, check_quadratic
from .._results import raise_on_failure
from .homotopy import homotopy


def lasso_path(
    problem: AbstractProblem,
    *,
    positive: bool = False,
    weights: Real[ArrayLike, "..."] | None = None,
    max_knots: int | None = None,
    throw: bool = True,
) -> LassoPath:
    """The exact lasso path `μ ↦ x(μ)`, for all `μ ≥ 0` at once.

    `x(μ)` minimises `ℓ(x) + Σᵢ (λ + ωᵢ/μ)|xᵢ|`, and `z(μ) = μ x(μ)` is piecewise linear.

    Differentiable in both modes in the data, `ω`, `λ` and `μ`, on the active sets found. At a knot
    the derivative is that of the segment that follows; where columns are linearly dependent, it is
    that of the solution chosen.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem.
    - `positive`: restrict to `x ≥ 0`.
    - `weights`: `ω ≥ 0`, shape `(d,)`, or `(2, d)` for weights that differ between positive
        (first row) and negative entries, in units of `r`. Default 1. A coordinate of weight 0 is
        unpenalised (an intercept, or `limit.weights` of a `limit_flow` from a `start`): the first
        knot is then at `μ = 0`, and `z` has a slope from there on. One of weight `inf` is kept
        at 0.
    - `max_knots`: static size of the buffers, default `4 min(n, d) + 16`. (30 000 Gaussian
        problems up to 20 × 40 had at most `3.7 min(n, d)` knots; the worst case has `(3^d + 1)/2`
        segments, Mairal & Yu, arXiv 1205.0079.)
    - `throw`: raise if the path was cut short or is inaccurate. Under tracing nothing is raised:
        failed lanes are NaN, with their `result`. With `throw=False` they keep what was found.

    **Returns:** a `LassoPath` in `p = μ`. It is NaN beyond its last knot if `max_knots`
    was too small. Where unpenalised columns are linearly dependent, `x` is one of several
    solutions.

    **Raises:** `ValueError` for bad `weights` or `max_knots`.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        path = dln.lasso_path(problem)
        path.knots[:2]  # (0.5, 1)
        path.x(jnp.array([0.5, 1.0, 2.0]))  # (0, 0), (1, 0), (1.5, 0.5)
        path.x(jnp.inf)  # (2, 1), the least squares point
        ```

    !!! cite "Reference"

        Osborne, Presnell & Turlach, *A new approach to variable selection in least squares
        problems* (2000); Efron, Hastie, Johnstone & Tibshirani, *Least Angle Regression* (2004); in
        this parametrisation [B25] §4.5, arXiv 2509.18766.
    """
    check_quadratic(problem)
    positive = as_flag(positive, "positive")
    omega = as_weights(weights, problem.r.shape[0], problem.r.dtype)
    max_knots = None if max_knots is None else as_count(max_knots, "max_knots")
    path = homotopy(problem, omega, positive, max_knots, may_be_zero(weights))
    return raise_on_failure(path, path.result, throw, kept=("knots", "values", "slopes", "norms"))
