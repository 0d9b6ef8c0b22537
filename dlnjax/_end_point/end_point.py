"""`end_point`, the flow at `s = ∞`, and `limit_point`, the limit of that point as `ε → 0`.

| case | the end point is | computed by |
|---|---|---|
| `Linear` | closest minimiser to the start, or ridge regression | closed form, `linear.py` |
| `λ > 0` (depth 2) | the lasso at `κ = λ` | last slope of `lasso_path` |
| `λ = 0`, signed | minimiser of the potential over `argmin ℓ` | Newton on all `q` |
| `λ = 0`, `x ≥ 0` | the same over `argmin ℓ` in `x ≥ 0` | its zeros by `lasso_path`, then Newton |
| `λ = 0`, `ε → 0` | the selected minimum 1-norm point | its face by `minimum_norm`, then Newton |
| traced `λ` | either | both cases, then select |
| a `Schedule` | either, by its last value, from `w(0) + Λ` | as above |
| another loss | that of a least-squares problem | its minimiser, then as above (`_as_square`) |

The Newton method is that of `newton.py`. Solutions carry derivatives by the implicit function
theorem (`derivatives.py`); everything that decides which equations hold is constant (`held`).
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._active_set.convex import square_of
from .._checks import (
    as_count,
    as_log_eps,
    as_tolerance,
    is_concrete,
    is_log_eps,
    is_tolerance,
)
from .._derivatives import held
from .._lasso.basis_pursuit import faces, is_seen, minimum_norm, rounding_of_residual
from .._lasso.path import lasso_path
from .._path import kkt_violation, largest_correlation, rounding_units
from .._problem import (
    AbstractProblem,
    Schedule,
    check_loss,
    harmless,
    validity,
    with_decay,
    without_decay,
)
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractDualNetwork, Linear
from ..networks.base import (
    harmless_network,
    matched,
    shape_of,
    takes,
)
from .derivatives import differentiable_end
from .linear import linear_end
from .newton import Newton, position


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


def end_point(
    network: AbstractDualNetwork | Linear,
    problem: AbstractProblem,
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 512,
    throw: bool = True,
) -> EndPoint:
    """The end point of `gradient_flow` (`s = ∞`), computed without integrating the flow.

    Without weight decay it minimises a potential over the minimisers of the loss (for `USquared`,
    over those with `x ≥ 0`). For `Deep` of unit shape this is `Σ q_D(xᵢ/ε)`: see `potential`. With
    weight decay `λ`, which only networks of depth 2 take, it is the lasso at `κ = λ`, whatever `ε`
    is. Of a `Schedule` the last value counts; if that is 0, it is the end point of `ε^{1 + Λ}`, `Λ`
    the total decay. For `Linear` it is the minimiser closest to the start in the 2-norm; with
    decay, ridge regression.

    `x` is exact to `rtol`, or to `stats["sensitivity"]` if that is larger. This happens at depth
    `D > 2` where points of almost the same norm compete: `x` then depends on `w ~ ε^{1−2/D}` of the
    active coordinates, and one rounding of `w(0)`, of the shape or of `X` moves it by the ratio of
    the two. (At `D = 4`, `ε = 1e-9`: 1e-11.)

    For another loss than the square (`Logistic`, `Poisson`, `Huber`) the same holds of its
    minimisers, and of its lasso. Where the data separate there are none: `data_separate`.

    Differentiable by the implicit function theorem, in both modes and to every order. At `λ = 0`
    the end point jumps, and the derivative in `λ` is 0 (`limit_point` of `Linear` does not jump:
    its derivative is `−(M†)²r`). If `X` does not have full rank, the derivative in `X` holds along
    changes that keep the rank. If fewer coordinates are active than `X` has rows and `ε` is tiny,
    float64 does not determine the derivatives of `dual`.

    **Arguments:**

    - `network`: its weights are the shape of the initialisation. A large initialisation goes
        there too.
    - `problem`: a `LeastSquares`, `Quadratic` or `GeneralizedLinear` problem, weight decay included
        (0 for `Linear` and another loss than the square). Singular values below rounding count as
        0.
    - `eps` or `log_eps`: `ε ∈ (0, 1)` or its logarithm, exactly one, scalar.
    - `rtol`: bound of the residual, relative to the largest `‖Xⱼ‖|xⱼ|`. Default: 512 roundings.
        Where the initialisation is larger than `x`, the residual may be the rounding of the
        initialisation, which `stats["sensitivity"]` includes.
    - `max_steps`: the most Newton steps.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** an `EndPoint`.

    **Raises:** `ValueError`/`TypeError` for bad input, and `TypeError` for a network without the
    method `growth`; an `EquinoxRuntimeError` if Newton's method fails, if `x` depends on digits
    that the dtype does not have, or if the data separate.

    !!! example

        ```python
        X, y = jnp.array([[1.0, 2.0]]), jnp.array([3.0])
        network = dln.Deep(jnp.ones(2), jnp.ones(2), depth=3)
        end = dln.end_point(network, dln.LeastSquares(X, y), eps=1e-2)
        end.x  # (0.0440, 1.4780)
        dln.mirror_map(end.x / 1e-2, depth=3)  # (0.405, 0.811): in the range of Xᵀ
        ```

    !!! cite "Reference"

        [Woo20] arXiv 2002.09277, Theorems 1 and 3; [W23] arXiv 2307.07410; with weight decay,
        [B25] arXiv 2509.18766, Lemma 4.4.
    """
    check_loss(problem, any_decay=True)
    log_eps = as_log_eps(eps, log_eps, problem.r.dtype)
    return _end(network, problem, log_eps, rtol, max_steps, throw)


def limit_point(
    network: AbstractDualNetwork | Linear,
    problem: AbstractProblem,
    *,
    rtol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 512,
    throw: bool = True,
) -> EndPoint:
    """The limit of `end_point` as `ε → 0`: among the points of minimum 1-norm, the one that small
    initialisations select.

    At `D = 2` it minimises `Σ |xᵢ|(log|xᵢ| − log shapeᵢ²)` over them. At `D > 2` the norm
    is `Σ w(0)ᵢ|xᵢ|`, `w(0) = shape^{2−D}`, and the point maximises `Σ |xᵢ|^{2/D}`. For `Linear` it
    is the minimiser of least 2-norm. With weight decay the limit is `end_point` itself, the lasso
    at `κ = λ` or, for `Linear`, ridge regression: neither depends on `ε`.

    **Arguments:** as for `end_point`, without `ε`.

    **Returns:** an `EndPoint`. Its `dual` attains `±w(0)` at least where `x ≠ 0`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the path to the
    minimum 1-norm is cut short or inaccurate, or Newton's method fails.

    !!! example

        ```python
        # Both (1, 2, 0) and (0, 0, 3) have the minimum 1-norm 3: the depth decides between them.
        X, y = jnp.array([[1.0, 1, 1], [3, 0, 1]]), jnp.array([3.0, 3])
        problem, ones = dln.LeastSquares(X, y), jnp.ones(3)
        dln.limit_point(dln.UV(ones, 0 * ones), problem).x  # (0.6540, 1.3079, 1.0381)
        dln.limit_point(dln.Deep(ones, ones, depth=3), problem).x  # (0.6581, 1.3162, 1.0258)
        ```

    !!! cite "Reference"

        [W23] arXiv 2307.07410, on which minimiser is chosen.
    """
    check_loss(problem, any_decay=True)
    return _end(network, problem, None, rtol, max_steps, throw)


def _end(network, problem, log_eps, rtol, max_steps, throw) -> EndPoint:
    dtype = problem.r.dtype
    network = matched(network, problem)
    is_known = isinstance(network, Linear)
    if isinstance(network, AbstractDualNetwork):
        of_limit = network._growth_of_prior(dtype) is not None
        is_known = of_limit and (log_eps is None or network.growth(log_eps) is not None)
        if of_limit and not is_known:
            raise TypeError(
                f"The end point of `{type(network).__name__}` is known in the limit `ε → 0` only. "
                "Use `limit_point`, or `gradient_flow` and a large `s`."
            )
    if not is_known:
        raise TypeError(
            "The end point is known for `Linear`, and for networks with a dual form and a "
            f"`growth`, for `Pretrained` at depth 2, got {type(network).__name__}. Use "
            "`gradient_flow` and a large `s`, `limit_flow`, or give an `AbstractDualNetwork` that "
            "method."
        )
    max_steps = as_count(max_steps, "max_steps")
    # 512 eps = 1.1e-13 in float64. Newton's method converges quadratically, and mostly ends far
    # below. In the experiment of `newton.py` 100 times more saves half a step of 14 and leaves
    # errors of 3e-11; 100 times less, 5 eps, is reached in up to 1.6 times the steps, but leaves no
    # room for the rounding of longer sums.
    rtol = as_tolerance(512 * jnp.finfo(dtype).eps if rtol is None else rtol, "rtol", dtype)
    decay, total = problem.weight_decay, None
    if isinstance(decay, Schedule):
        if isinstance(network, Linear):
            raise TypeError(
                "The end point of `Linear` is known for one weight decay, got a `Schedule`. Use "
                "`gradient_flow(..., formulation=dlnjax.WeightForm())` and a large `s`."
            )
        decay, total = decay.last()
    # If `weight_decay` is traced its sign is not known: compute both cases and select.
    decays = bool(np.asarray(decay) > 0) if is_concrete(decay) else None
    if isinstance(network, Linear) and problem.glm() is not None and decays:
        raise TypeError(
            "The end point of `Linear` with weight decay is known for the square only, got the "
            f"loss of {type(problem).__name__} and a decay of {float(decay)}. Use "
            "`weight_decay=0`, or `gradient_flow` and a large `s`."
        )
    end = _solve(network, problem, log_eps, rtol, jnp.asarray(max_steps), decays, total)
    return raise_on_failure(end, end.result, throw)


@eqx.filter_jit
def _solve(
    network: AbstractDualNetwork | Linear,
    problem: AbstractProblem,
    log_eps: Array | None,
    rtol: Array,
    max_steps: Array,
    decays: bool | None,
    total: Array | None,
) -> EndPoint:
    # Solve a valid problem in place of an invalid one: what LAPACK returns for NaN, and derivatives
    # of NaN, would spread to the lanes beside it.
    verdict = first_failure(
        validity(problem),
        (jnp.asarray(True) if log_eps is None else is_log_eps(log_eps), RESULTS.invalid_eps),
        shape_of(network, -jnp.ones_like(rtol)),
        (takes(network, problem.weight_decay), RESULTS.invalid_decay),
        (is_tolerance(rtol), RESULTS.invalid_tolerance),
    )
    valid = verdict == RESULTS.successful
    if isinstance(problem.weight_decay, Schedule):
        problem = with_decay(problem, problem.weight_decay.values[-1])
        total = None if total is None else jnp.where(valid, total, 0)
    problem, network = harmless(problem, valid), harmless_network(network, valid)
    if log_eps is not None:
        log_eps = jnp.where(valid, log_eps, -1)
    if problem.glm() is not None:
        problem, verdict = _as_square(network, problem, verdict, decays)
    if isinstance(network, Linear):
        end = _linear(network, problem, log_eps)
    elif decays is None:
        decayed = _with_decay(problem, network.positive)
        end = _without_decay(network, problem, log_eps, rtol, max_steps, total)
        is_decayed = problem.weight_decay > 0
        end = jax.tree.map(lambda a, b: jnp.where(is_decayed, a, b), decayed, end)
    elif decays:
        end = _with_decay(problem, network.positive)
    else:
        end = _without_decay(network, problem, log_eps, rtol, max_steps, total)

    result = first_failure(verdict, end.result)
    good = result == RESULTS.successful
    x, dual = jax.tree.map(lambda v: jnp.where(good, v, jnp.nan), (end.x, end.dual))
    return EndPoint(x, dual, result, end.stats)


def _as_square(
    network: AbstractDualNetwork | Linear,
    problem: AbstractProblem,
    verdict: RESULTS,
    decays: bool | None,
) -> tuple[AbstractProblem, RESULTS]:
    """The least-squares problem with the same end point as that of another loss, which is found as
    a minimiser, and `verdict` with the outcome of that."""
    if decays is None:
        # At λ = 0 the end point jumps, and its derivative in λ is 0, as it is for the square.
        decay = jnp.where(problem.weight_decay > 0, problem.weight_decay, 0)
        problem = eqx.tree_at(lambda problem: problem.weight_decay, problem, decay)
    elif not decays:
        problem = without_decay(problem)
    if isinstance(network, Linear):
        # Its decay is a ridge, not a 1-norm.
        verdict = first_failure(verdict, (problem.weight_decay == 0, RESULTS.invalid_decay))
        problem = without_decay(problem)
    positive = isinstance(network, AbstractDualNetwork) and network.positive
    square, found = square_of(problem, positive)
    verdict = first_failure(verdict, found)
    return harmless(square, verdict == RESULTS.successful), verdict


def _linear(network: Linear, problem: AbstractProblem, log_eps: Array | None) -> EndPoint:
    x, dual = linear_end(network, problem, log_eps)
    fixed, end = held(problem), held(x)
    size, norms = largest_correlation(fixed)
    # By the normal equations `Mx + λx = r`, which the closed form has not used.
    rest = jnp.abs(fixed.r - fixed.matvec(end) - fixed.weight_decay * end)
    stats = {
        "num_steps": jnp.asarray(0),
        "residual": jnp.max(rest / norms) / jnp.where(size > 0, size, 1),
        "sensitivity": jnp.zeros_like(size),
    }
    # Half of the digits. By experiment, random, almost dependent, Hilbert and low-rank designs
    # leave at most 3e-13 of these units. Only columns whose norms span some ten decades, for which
    # one unit of all columns is too coarse, reach 1.5e-8. 100 times less flags more of those;
    # 100 times more accepts an `x` with six digits.
    rounding = jnp.finfo(x.dtype).eps ** 0.5 * rounding_units(fixed, end)
    is_reached = jnp.all(rest <= rounding + _rounding_of_data(fixed))
    result = first_failure(
        (jnp.all(jnp.isfinite(end)), RESULTS.invalid_shape),
        (is_reached, RESULTS.end_point_not_reached),
    )
    return EndPoint(x, dual, result, stats)


def _rounding_of_data(problem: AbstractProblem) -> Float[Array, " d"]:
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


def _rounding(problem: AbstractProblem) -> Float[Array, " d"]:
    """How large `|r − Mx|` may be by rounding, in each coordinate."""
    return rounding_of_residual(problem) + _rounding_of_data(problem)


def _with_decay(problem: AbstractProblem, positive: bool) -> EndPoint:
    """The lasso at `κ = λ`: the path at `μ = ∞`, where `x(μ) = z(μ)/μ` is its last slope."""
    path = lasso_path(problem, positive=positive, throw=False)
    x = path.slopes[-1]
    end, fixed = held(x), held(problem)
    c = fixed.r - fixed.matvec(end)
    size, norms = largest_correlation(fixed)
    kappa = jnp.full((2, x.shape[0]), fixed.weight_decay)
    violation = kkt_violation(fixed, end, kappa, positive, norms)
    stats = {
        "num_steps": path.stats["num_pivots"].astype(int),
        "residual": violation / jnp.where(size > 0, size, 1),
        "sensitivity": jnp.zeros_like(size),
    }
    # A residual that remains drives the dual to infinity; one that is rounding of 0 does not.
    return EndPoint(
        x=x,
        dual=jnp.where(jnp.abs(c) > _rounding(fixed), jnp.sign(c) * jnp.inf, 0),
        result=path.result,
        stats=stats,
    )


def _without_decay(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    log_eps: Array | None,
    rtol: Array,
    max_steps: Array,
    total: Array | None,
) -> EndPoint:
    # First find which `q` may be positive (`is_allowed`), then solve the equations on these.
    problem = without_decay(problem)
    fixed = held(problem)
    size, point = problem.r.shape, None
    initial_dual = network.initial_dual(jnp.full_like(rtol, -jnp.inf))
    # After a total decay `Λ` the flow without decay is that from `w(0) + Λ`, `q(0) ε^Λ`.
    if total is not None:
        initial_dual = initial_dual + total
    start_after = lambda growth, log_eps: (
        growth
        if total is None
        else eqx.tree_at(lambda g: g.log_initial, growth, growth.log_initial + total * log_eps)
    )
    if log_eps is None:
        # On the face of minimum norm the potentials of all `ε` differ by a multiple of that norm,
        # a constant: `log ε = −1` has the same minimiser.
        growth = start_after(network._growth_of_prior(rtol.dtype), -1)
        weights = jnp.broadcast_to(initial_dual, (2, *size))
        # Mostly `w(0) > 0`, but traced values do not say so, and zeros need more code.
        may_be_zero = network._may_start_active()
        minimum = minimum_norm(problem, weights, network.positive, None, may_be_zero)
        is_allowed = faces(held(minimum.dual), held(weights), network.positive)
        certificate, result, point = minimum.dual, minimum.result, held(minimum.x)
    else:
        growth = start_after(network.growth(log_eps), log_eps)
        certificate, result = None, RESULTS.successful
        is_allowed = jnp.ones((1 if network.positive else 2, *size), bool)
        if network.positive:
            # Complementarity: a minimiser over `x ≥ 0` is positive only where its residual is 0,
            # and all minimisers have the same residual. The positive lasso path ends at one.
            path = lasso_path(fixed, positive=True, throw=False)
            point, result = path.slopes[-1], path.result
            rest = fixed.r - fixed.matvec(point)
            is_allowed = ~(rest < -_rounding(fixed))[None, :]

    is_free = jnp.any(is_allowed, axis=0)
    # In the limit `ε` is free: begin, and end, with `q(0)` of the size of the solution.
    from_size = log_eps is None
    if point is not None:
        # A path that failed is NaN: `result` says so, and Newton's method needs numbers.
        point = jnp.where(jnp.isfinite(point), point, 0)
    solutions = SolutionSpace(fixed, is_free, point if network.positive else None)
    newton = Newton(held(growth), solutions, is_allowed, held(initial_dual), point, from_size)
    state = newton.solve(rtol, max_steps)
    sensitivity = newton.sensitivity(state)
    if from_size:
        # Where the face has several minimisers, whether a nearly dependent column belongs to it is
        # a decision up to rounding, and all of x hangs on that. (At one `ε` all columns are in.)
        has_choice = solutions.rank() < jnp.sum(is_free)
        digits = jnp.where(has_choice, newton.sensitivity_to_data(state), 0)
        sensitivity = jnp.maximum(sensitivity, digits)
    x, dual = differentiable_end(newton, state, growth, problem)
    if log_eps is not None:
        # A column of zeros keeps its start, for which Newton's method does not wait.
        start = growth.log_initial
        _, kept = position(start, jnp.zeros_like(start), start)
        x = jnp.where(problem.gram_diagonal() > 0, x, kept)
    dual = jnp.where(is_free, dual, -jnp.inf) if certificate is None else certificate

    # Newton's residual covers the allowed coordinates only. If moving another one still lowers the
    # loss, it should have been allowed, and the face was wrong.
    rest = fixed.r - fixed.matvec(held(x))
    rest = rest if network.positive else jnp.abs(rest)
    is_minimal = jnp.all(is_free | (rest <= _rounding(fixed)))
    if from_size:
        # Where `y` is orthogonal to `X` the limit is 0, unless the start is of the size of `x`;
        # what was solved is of the initialisation, as it is where the face has no part of `y`.
        stays = is_allowed & (initial_dual == 0)
        is_zero, is_empty = ~is_seen(fixed), jnp.any(is_free) & ~(solutions.size() > 0)
        is_zero, is_empty = is_zero & ~jnp.any(stays), is_empty & ~jnp.any(stays)
        x, is_minimal = jnp.where(is_zero, 0, x), (is_minimal & ~is_empty) | is_zero
    is_reached = newton.is_reached(state, rtol) & is_minimal
    # Half of the digits of `x` at least. Below, `sensitivity` says how many there are; 100 times
    # more would return points of which six digits are arbitrary in float64, and one in float32.
    is_sharp = sensitivity <= jnp.finfo(rtol.dtype).eps ** 0.5
    result = first_failure(
        result,
        (is_reached, RESULTS.end_point_not_reached),
        (is_sharp, RESULTS.end_point_undetermined),
    )
    stats = {"num_steps": state.steps, "residual": state.residual, "sensitivity": sensitivity}
    return EndPoint(x, dual, result, stats)
