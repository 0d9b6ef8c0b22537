"""`end_point`, the flow at `s = ∞`, and `limit_point`, the limit of that point as `ε → 0`.

| case | the end point is | computed by |
|---|---|---|
| `Linear` | closest minimiser to the start, or ridge regression | `linear.py`: closed form |
| `λ > 0` (depth 2) | the lasso at `κ = λ` | `decayed.py`: last slope of `lasso_path` |
| `λ = 0`, signed | minimiser of the potential over `argmin ℓ` | `selected.py`: Newton on all `q` |
| `λ = 0`, `x ≥ 0` | the same over `argmin ℓ` in `x ≥ 0` | its zeros by `lasso_path`, then Newton |
| `λ = 0`, `ε → 0` | the selected minimum 1-norm point | its face by `minimum_norm`, then Newton |
| traced `λ` | either | both cases, then select |
| a `Schedule` | either, by its last value, from `w(0) + Λ` | as above |
| another loss | that of a least-squares problem | its minimiser, then as above (`_as_square`) |

Newton's method is in `newton.py`. Solutions carry derivatives by the implicit function
theorem (`derivatives.py`); everything that decides which equations hold is constant (`held`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Real

from .._active_set.convex import square_of
from .._checks import (
    as_count,
    as_log_eps,
    as_tolerance,
    is_concrete,
    is_log_eps,
    is_tolerance,
)
from .._problem import (
    AbstractProblem,
    Schedule,
    check_known_loss,
    harmless,
    validity,
    with_decay,
    without_decay,
)
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractDualNetwork, Linear
from ..networks.base import (
    harmless_network,
    matched,
    shape_of,
    takes,
)
from .decayed import decayed_end
from .linear import linear_end
from .point import EndPoint
from .selected import selected_end


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
    check_known_loss(problem, any_decay=True)
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
    check_known_loss(problem, any_decay=True)
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
        end = linear_end(network, problem, log_eps)
    elif decays is None:
        decayed = decayed_end(problem, network.positive)
        end = selected_end(network, problem, log_eps, rtol, max_steps, total)
        is_decayed = problem.weight_decay > 0
        end = jax.tree.map(lambda a, b: jnp.where(is_decayed, a, b), decayed, end)
    elif decays:
        end = decayed_end(problem, network.positive)
    else:
        end = selected_end(network, problem, log_eps, rtol, max_steps, total)

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
        problem = with_decay(problem, decay)
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
