"""The end points: `end_point`, the flow at `s = ∞`, and `limit_point`, its limit as `ε → 0`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import (
    as_count,
    as_log_eps,
    as_tolerance,
    is_concrete,
    is_log_eps,
    is_tolerance,
)
from .._derivatives import held
from .._lasso.basis_pursuit import faces, minimum_norm, rounding_of_residual
from .._lasso.path import lasso_path
from .._path import kkt_violation, largest_correlation, rounding_units
from .._problem import (
    AbstractProblem,
    check_quadratic,
    harmless,
    validity,
    without_decay,
)
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractDualNetwork, Linear
from ..networks.base import (
    harmless_network,
    has_shape,
    matched,
    takes,
)
from .derivatives import differentiable_end
from .linear import linear_end
from .newton import Newton


class EndPoint(eqx.Module):
    """Where a flow ends.

    **Attributes:**

    - `x`: shape `(d,)`.
    - `dual`: `Xᵀν(∞)`, shape `(d,)`; infinite where it diverges, because a residual remains (with
        weight decay, or where no `x ≥ 0` interpolates).
    - `result`: how the solve ended (a failed one is NaN).
    - `stats`: `num_steps`, Newton steps; `residual`, that of `Xx = y` and of the dual equation,
        relative to `x`; `sensitivity`, the relative change of `x` if the dual changes in its last
        digit, or by the rounding of an initialisation that is larger than `x`; both in units in
        which columns are of about the same length.
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
    max_steps: int = 256,
    throw: bool = True,
) -> EndPoint:
    """The end point of `gradient_flow`, at `s = ∞`, without integrating.

    Without weight decay it minimises a potential over the minimisers of the loss (over `x ≥ 0` for
    `USquared`), for example `Σ q_D(xᵢ/ε)` for unit shapes: see `potential`. With weight
    decay `λ`, which depth 2 takes only, it is the lasso at `κ = λ`, whatever `ε` is. For `Linear`
    it is the minimiser closest to the start in the 2-norm; with decay, ridge regression.

    `x` is exact to `rtol`, or to `stats["sensitivity"]` where that is more: where points of almost
    the same norm compete at depth `D > 2`, it hangs on `w ~ ε^{1−2/D}` of the active coordinates,
    and one rounding of `w(0)`, of the shape or of `X`, moves it by their ratio. (At `D = 4`,
    `ε = 1e-9`: 1e-11.)

    Differentiable by the implicit function theorem, in both modes and to every order. At `λ = 0`,
    where the end point jumps, the derivative in `λ` is 0 (for `limit_point` of `Linear`, which does
    not, it is `−(M†)²r`); where `X` has not full rank, that in `X`
    is for changes that keep its rank. Where fewer coordinates are active than `X` has rows and `ε`
    is tiny, float64 does not determine the derivatives of `dual`.

    **Arguments:**

    - `network`: its weights are the shape of the initialisation. A large initialisation goes
        there too.
    - `problem`: a `LeastSquares` or `Quadratic` problem, weight decay included. Singular values
        below rounding count as 0.
    - `eps` or `log_eps`: `ε ∈ (0, 1)` or its logarithm, exactly one, scalar.
    - `rtol`: bound of the residual, relative to the largest `‖Xⱼ‖|xⱼ|`. Default `512` units of
        rounding. Where the initialisation is larger than `x`, its rounding, which
        `stats["sensitivity"]` includes, is enough.
    - `max_steps`: Newton steps.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** an `EndPoint`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if Newton's
    method fails, or if `x` depends on digits that the dtype does not have.

    !!! cite "Reference"

        [Woo20] arXiv 2002.09277, Theorems 1 and 3; [W23] arXiv 2307.07410; with weight decay,
        [B25] arXiv 2509.18766, Lemma 4.4.
    """
    check_quadratic(problem)
    log_eps = as_log_eps(eps, log_eps, problem.r.dtype)
    return _end(network, problem, log_eps, rtol, max_steps, throw)


def limit_point(
    network: AbstractDualNetwork | Linear,
    problem: AbstractProblem,
    *,
    rtol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 256,
    throw: bool = True,
) -> EndPoint:
    """The limit of `end_point` as `ε → 0`: of the minimum 1-norm points, the one that small
    initialisations select.

    At `D = 2` it minimises `Σ |xᵢ|(log|xᵢ| − log shapeᵢ²)` among them. At `D > 2` the norm
    is `Σ w(0)ᵢ|xᵢ|`, `w(0) = shape^{2−D}`, and the point maximises `Σ |xᵢ|^{2/D}`. For `Linear` it
    is the minimiser of least 2-norm; with decay, ridge regression.

    **Arguments:** as for `end_point`, without `ε`.

    **Returns:** an `EndPoint`. Its `dual` is one that attains `±w(0)` at least where `x ≠ 0`.

    **Raises:** `ValueError` for bad input; an `EquinoxRuntimeError` if the path to the minimum
    1-norm is cut short or inaccurate, or Newton's method fails.

    !!! cite "Reference"

        [W23] arXiv 2307.07410, on which minimiser is chosen.
    """
    check_quadratic(problem)
    return _end(network, problem, None, rtol, max_steps, throw)


def _end(network, problem, log_eps, rtol, max_steps, throw) -> EndPoint:
    dtype = problem.r.dtype
    network = matched(network, problem)
    is_known = isinstance(network, Linear)
    if isinstance(network, AbstractDualNetwork):
        is_known = network.growth(-jnp.ones((), dtype)) is not None
    if not is_known:
        raise TypeError(
            "The end point is known for `Linear`, and for networks with a dual form and a "
            f"`growth`, got {type(network).__name__}. Use `gradient_flow` and a large `s`, or "
            "give an `AbstractDualNetwork` that method."
        )
    max_steps = as_count(max_steps, "max_steps")
    rtol = as_tolerance(512 * jnp.finfo(dtype).eps if rtol is None else rtol, "rtol", dtype)
    # Which of the two solves a traced weight decay needs is not known: then both are made.
    decay = problem.weight_decay
    decays = bool(np.asarray(decay) > 0) if is_concrete(decay) else None
    end = _solve(network, problem, log_eps, rtol, jnp.asarray(max_steps), decays)
    return raise_on_failure(end, end.result, throw)


@eqx.filter_jit
def _solve(
    network: AbstractDualNetwork | Linear,
    problem: AbstractProblem,
    log_eps: Array | None,
    rtol: Array,
    max_steps: Array,
    decays: bool | None,
) -> EndPoint:
    verdict = first_failure(
        validity(problem),
        (jnp.asarray(True) if log_eps is None else is_log_eps(log_eps), RESULTS.invalid_eps),
        (has_shape(network, -jnp.ones_like(rtol)), RESULTS.invalid_shape),
        (takes(network, problem.weight_decay), RESULTS.invalid_decay),
        (is_tolerance(rtol), RESULTS.invalid_tolerance),
    )
    valid = verdict == RESULTS.successful
    problem, network = harmless(problem, valid), harmless_network(network, valid)
    if log_eps is not None:
        log_eps = jnp.where(valid, log_eps, -1)
    if isinstance(network, Linear):
        end = _linear(network, problem, log_eps)
    elif decays is None:
        decayed = _with_decay(problem, network.positive)
        end = _without_decay(network, problem, log_eps, rtol, max_steps)
        is_decayed = problem.weight_decay > 0
        end = jax.tree.map(lambda a, b: jnp.where(is_decayed, a, b), decayed, end)
    elif decays:
        end = _with_decay(problem, network.positive)
    else:
        end = _without_decay(network, problem, log_eps, rtol, max_steps)

    result = first_failure(verdict, end.result)
    good = result == RESULTS.successful
    x, dual = jax.tree.map(lambda v: jnp.where(good, v, jnp.nan), (end.x, end.dual))
    return EndPoint(x, dual, result, end.stats)


def _linear(network: Linear, problem: AbstractProblem, log_eps: Array | None) -> EndPoint:
    x, dual = linear_end(network, problem, log_eps)
    fixed, end = held(problem), held(x)
    size, norms = largest_correlation(fixed)
    rest = jnp.abs(fixed.r - fixed.matvec(end) - fixed.weight_decay * end)
    stats = {
        "num_steps": jnp.asarray(0),
        "residual": jnp.max(rest / norms) / jnp.where(size > 0, size, 1),
        "sensitivity": jnp.zeros_like(size),
    }
    rounding = jnp.finfo(x.dtype).eps ** 0.5 * rounding_units(fixed, end)
    is_reached = jnp.all(rest <= rounding + _rounding_of_data(fixed))
    result = first_failure(
        (jnp.all(jnp.isfinite(end)), RESULTS.invalid_shape),
        (is_reached, RESULTS.end_point_not_reached),
    )
    return EndPoint(x, dual, result, stats)


def _rounding_of_data(problem: AbstractProblem) -> Float[Array, " d"]:
    """What of `r = Xᵀy` is rounding of `y`: all of it where `y` is orthogonal to the columns."""
    length = jnp.sqrt(2 * problem.loss(jnp.zeros_like(problem.r)))
    unit = 8 * (1 + problem.rank_bound) * jnp.finfo(length.dtype).eps
    return unit * jnp.where(jnp.isfinite(length), length, 0) * problem.column_norms()


def _rounding(problem: AbstractProblem) -> Float[Array, " d"]:
    """What of `r − Mx` counts as rounding."""
    return rounding_of_residual(problem) + _rounding_of_data(problem)


def _with_decay(problem: AbstractProblem, positive: bool) -> EndPoint:
    """The lasso at `κ = λ`."""
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
) -> EndPoint:
    problem = without_decay(problem)
    fixed = held(problem)
    size, point = problem.r.shape, None
    if log_eps is None:
        growth = network.growth(-jnp.ones_like(rtol))
        weights = network.initial_dual(jnp.full_like(rtol, -jnp.inf))
        weights = jnp.broadcast_to(weights, (2, *size))
        # Traced, they are not known to be positive, as they are.
        minimum = minimum_norm(problem, weights, network.positive, None, may_be_zero=False)
        is_allowed = faces(held(minimum.dual), held(weights), network.positive)
        certificate, result, point = minimum.dual, minimum.result, held(minimum.x)
    else:
        growth = network.growth(log_eps)
        certificate, result = None, RESULTS.successful
        is_allowed = jnp.ones((1 if network.positive else 2, *size), bool)
        if network.positive:
            # What may be positive in a minimiser of the loss over `x ≥ 0`: where its residual
            # vanishes.
            path = lasso_path(fixed, positive=True, throw=False)
            point, result = path.slopes[-1], path.result
            rest = fixed.r - fixed.matvec(point)
            is_allowed = ~(rest < -_rounding(fixed))[None, :]

    is_free = jnp.any(is_allowed, axis=0)
    from_size = log_eps is None
    assert growth is not None
    if point is not None:
        point = jnp.where(jnp.isfinite(point), point, 0)
    solutions = SolutionSpace(fixed, is_free, point if network.positive else None)
    newton = Newton(held(growth), solutions, is_allowed, point, from_size)
    state = newton.solve(rtol, max_steps)
    sensitivity = newton.sensitivity(state)
    x, dual = differentiable_end(newton, state, growth, problem)
    dual = jnp.where(is_free, dual, -jnp.inf) if certificate is None else certificate

    # Newton's residual knows of the coordinates that are allowed; what the others would still
    # lower of the loss says whether they should have been.
    rest = fixed.r - fixed.matvec(held(x))
    rest = rest if network.positive else jnp.abs(rest)
    is_minimal = jnp.all(is_free | (rest <= _rounding(fixed)))
    is_reached = newton.is_reached(state, rtol) & is_minimal
    is_sharp = sensitivity <= jnp.finfo(rtol.dtype).eps ** 0.5
    result = first_failure(
        result,
        (is_reached, RESULTS.end_point_not_reached),
        (is_sharp, RESULTS.end_point_undetermined),
    )
    stats = {"num_steps": state.steps, "residual": state.residual, "sensitivity": sensitivity}
    return EndPoint(x, dual, result, stats)
