"""How far a trajectory is from the lasso path, and what theory says about it."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from ._checks import (
    as_float,
    as_positive,
    check_scalar,
    check_type,
    is_concrete,
    leading_axes,
)
from ._flow.gradient_flow import Flow
from ._path import (
    LimitFlow,
    PiecewiseLinearPath,
    kkt_violations,
    penalties,
    penalty,
    rounding_units,
)
from ._problem import AbstractProblem, check_quadratic, nan_unless_valid
from ._results import has_no_nan, one_unless


class SuboptimalityGap(eqx.Module):
    """`absolute` is `Lasso(x, μ) − Lasso_*(μ)`; `relative` is that over `Lasso_*(μ)`, and 0
    where both are 0. Both have the shape `(...)` of the points."""

    absolute: Float[Array, "..."]
    relative: Float[Array, "..."]


def suboptimality_gap(
    problem: AbstractProblem,
    x: Real[ArrayLike, "... d"],
    mu: Real[ArrayLike, "..."],
    *,
    path: PiecewiseLinearPath,
) -> SuboptimalityGap:
    """The exact suboptimality of `x` for the lasso at `μ`.

    **Arguments:** `problem`; `x` of shape `(..., d)`; `mu > 0`, broadcast against its leading axes;
    `path`, the `lasso_path` of the problem (its weights and sign constraint are used).

    **Returns:** a `SuboptimalityGap`, in units of the loss. (The relative one is infinite where
    only the optimum is exactly 0; its derivatives there are 0.)

    **Raises:** `ValueError` if `μ ≤ 0`, or if the path is not optimal for this problem, by more
    than half of the digits: it is another one's (NaN under tracing).

    !!! cite "Reference"

        [B25] Fig. 1.
    """
    check_quadratic(problem)
    dtype = problem.r.dtype
    x, mu = problem.as_points(x), as_positive(mu, "mu", dtype)
    leading_axes(x, mu, "mu")
    what = "what `lasso_path` returns"
    check_type(path, "path", PiecewiseLinearPath, what)
    if isinstance(path, LimitFlow):  # its points are not optimal
        raise TypeError(f"`path` must be {what}, got a LimitFlow.")
    path.check_size(problem)
    gap, is_optimal = _gap_at_all(problem, x, mu, path)
    if is_concrete(is_optimal) and not bool(jnp.all(is_optimal)):
        other = np.broadcast_to(mu, is_optimal.shape)[~np.asarray(is_optimal)]
        raise ValueError(
            f"`path` is not optimal for this problem at μ = {other.flat[0]:.4g}. Pass the path of "
            "this problem, `lasso_path(problem)`, with the same weight decay"
            " (if `path.result` is not successful, it may be inaccurate)."
        )
    return gap


@eqx.filter_jit
def _gap_at_all(
    problem: AbstractProblem, x: Array, mu: Array, path: PiecewiseLinearPath
) -> tuple[SuboptimalityGap, Bool[Array, "..."]]:
    is_valid = has_no_nan((problem, path.weights, path.knots))
    problem, weights = one_unless(is_valid, (problem, path.weights))

    def at(x, mu):
        best = path.x(mu)
        is_known = has_no_nan((x, best))
        x, best, mu = one_unless(is_known, (x, best, mu))
        kappa = penalties(problem, weights, mu)
        cost = lambda x: penalty(x, kappa)
        # ℓ is quadratic, so the difference is a sum of small terms, without cancellation:
        # ½⟨δ, Mδ⟩ + Σ [κᵢ|xᵢ| − κᵢ|x*ᵢ| − (r − Mx*)ᵢ δᵢ].
        step = x - best
        linear = cost(x) - cost(best) + problem.gradient(best) * step
        absolute = 0.5 * jnp.sum(step * problem.matvec(step)) + jnp.sum(linear)
        if path.positive:
            absolute = jnp.where(jnp.any(x < 0), jnp.inf, absolute)
        least = problem.loss(best) + jnp.sum(cost(best))
        # The derivative of what is divided by 0 would be NaN.
        is_zero = least == 0
        relative = absolute / jnp.where(is_zero, 1, least)
        relative = jnp.where(is_zero & (absolute != 0), jnp.inf, relative)
        # The gap of another problem's path is none, and may be below 0.
        excess = kkt_violations(problem, best, kappa, path.positive)
        rounding = jnp.finfo(x.dtype).eps ** 0.5 * rounding_units(problem, best)
        is_optimal = ~jnp.any(excess > rounding)
        good = is_optimal & is_known & is_valid
        absolute, relative = (jnp.where(good, v, jnp.nan) for v in (absolute, relative))
        return absolute, relative, is_optimal | ~(is_known & is_valid)

    batch = jnp.broadcast_shapes(x.shape[:-1], mu.shape)
    x, mu = jnp.broadcast_to(x, (*batch, x.shape[-1])), jnp.broadcast_to(mu, batch)
    *gaps, is_optimal = jnp.vectorize(at, signature="(d),()->(),(),()")(x, mu)
    gaps = [nan_unless_valid(problem, gap) for gap in gaps]
    return SuboptimalityGap(*gaps), is_optimal


def certificate(problem: AbstractProblem, flow: Flow) -> Float[Array, " S"]:
    """An upper bound of the absolute lasso gap of `flow.x_mean` at `μ = s`, without any lasso:
    the duality gap of the residual of the average, which the flow makes almost dual feasible.

    **Arguments:** `problem`, and a `flow` on it.

    **Returns:** shape `(S,)`, in units of the loss; infinite at `s = 0`. Where several coordinates
    have the largest correlation, its derivatives are a mean over them.

    !!! cite "Reference"

        Kim, Koh, Lustig, Boyd, Gorinevsky, *An Interior-Point Method for Large-Scale
        ℓ1-Regularized Least Squares* (2007): the dual point from a scaled residual.
    """
    check_quadratic(problem)
    check_type(flow, "flow", Flow, "what `gradient_flow` returns")
    if flow.x.shape[-1:] != problem.r.shape:
        raise ValueError(
            f"The flow has {flow.x.shape[-1]} coordinates, the problem has {problem.r.shape[0]}. "
            "Pass the problem that was integrated."
        )
    started = flow.s > 0
    kappa = problem.weight_decay + 1 / jnp.where(started, flow.s, 1)
    is_valid = has_no_nan(problem) & ~jnp.all(jnp.isnan(flow.x_mean))
    problem = one_unless(is_valid, problem)
    is_known = is_valid & ~jnp.any(jnp.isnan(flow.x_mean), axis=-1)
    x = jnp.where(is_known[..., None], flow.x_mean, 1)
    kappa = jnp.where(is_valid, kappa, 1)  # of which the weight decay is a part
    bound = problem.duality_gap(x, kappa, positive=flow.positive)
    return jnp.where(started, jnp.where(is_known, bound, jnp.nan), jnp.inf)


def eta(
    weight_decay: Real[ArrayLike, ""],
    s: Real[ArrayLike, "..."],
    downward_variation: Real[ArrayLike, "..."],
) -> Float[Array, "..."]:
    """`η(λ, s, z↓) = (1 + λs)[√z↓/s + z↓/s²]`, which bounds the limit of the gap up to a constant
    ([B25] Eq. 2.4, Theorem 2.2). 0 on monotone paths.

    **Arguments:** `weight_decay` `λ`, a scalar; `s > 0` and `downward_variation`, which is
    `path.downward_variation(s)`, of the same shape `(...)`.

    **Returns:** shape `(...)`.

    **Raises:** `ValueError` if `s ≤ 0`.
    """
    down = as_float(downward_variation, "downward_variation")
    s = as_positive(s, "s", down.dtype)
    decay = as_float(weight_decay, "weight_decay", down.dtype)
    check_scalar(decay, "weight_decay")
    for value, name in ((decay, "weight_decay"), (down, "downward_variation")):
        if is_concrete(value) and bool(jnp.any(value < 0)):
            raise ValueError(f"`{name}` must be non-negative, got {float(jnp.min(value))}.")
    if () not in (s.shape, down.shape) and s.shape != down.shape:
        raise ValueError(
            f"`s` and `downward_variation` must have the same shape, got {s.shape} and "
            f"{down.shape}. Pass `path.downward_variation(s)`."
        )
    # The derivative of √0 would be NaN.
    root = jnp.where(down == 0, 0, jnp.sqrt(jnp.where(down == 0, 1, down)))
    return (1 + decay * s) * (root / s + down / s**2)
