"""How far a trajectory is from the lasso path: the exact suboptimality, a bound without a path, and
the bound of the theory.

    suboptimality_gap    Lasso(x, μ) − Lasso_*(μ), from a `lasso_path`
    certificate          an upper bound of it for `flow.x_mean`, from the duality gap
    eta                  η(λ, s, z↓), which bounds its limit ε → 0 up to a constant
"""

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
    LassoPath,
    kkt_violations,
    penalties,
    penalty,
    rounding_units,
)
from ._problem import (
    AbstractProblem,
    check_known_loss,
    check_quadratic,
    nan_unless_valid,
    total_decay,
)
from ._results import has_no_nan, one_unless


class SuboptimalityGap(eqx.Module):
    """The suboptimality of points for the lasso.

    **Attributes:**

    - `absolute`: `Lasso(x, μ) − Lasso_*(μ)`, shape `(...)`, in units of the loss.
    - `relative`: that over `Lasso_*(μ)`, and 0 where both are 0, shape `(...)`.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        gap = dln.suboptimality_gap(problem, jnp.zeros(2), 1.0, path=dln.lasso_path(problem))
        gap.absolute, gap.relative  # 0.5 and 0.25
        ```
    """

    absolute: Float[Array, "..."]
    relative: Float[Array, "..."]


def suboptimality_gap(
    problem: AbstractProblem,
    x: Real[ArrayLike, "... d"],
    mu: Real[ArrayLike, "..."],
    *,
    path: LassoPath,
) -> SuboptimalityGap:
    """The exact suboptimality of `x` for the lasso at `μ`: `Lasso(x, μ) − Lasso_*(μ)`.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem.
    - `x`: the points, shape `(..., d)`.
    - `mu`: `μ > 0`, broadcast against the leading axes of `x`.
    - `path`: the `lasso_path` of the problem. Its weights and sign constraint are used.

    **Returns:** a `SuboptimalityGap`, absolute (in units of the loss) and relative. The relative
    one is infinite where the optimum is exactly 0 and the gap is not; its derivatives there are 0.

    **Raises:** `ValueError` if `μ ≤ 0`, or if the path violates the optimality conditions of this
    problem by more than half of the digits, so that it is the path of another one (NaN under
    tracing); `TypeError` if `path` is no `LassoPath`.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        path = dln.lasso_path(problem)
        x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
        dln.suboptimality_gap(problem, x, 1.0, path=path).absolute  # 0.5 and 0
        ```

    !!! cite "Reference"

        [B25] Fig. 1, arXiv 2509.18766.
    """
    check_quadratic(problem)
    dtype = problem.r.dtype
    x, mu = problem.as_points(x), as_positive(mu, "mu", dtype)
    leading_axes(x, mu, "mu")
    what = "what `lasso_path` returns"
    check_type(path, "path", LassoPath, what)
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
    problem: AbstractProblem, x: Array, mu: Array, path: LassoPath
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
        # A quotient by 0 would have NaN derivatives, also where it is not selected.
        is_zero = least == 0
        relative = absolute / jnp.where(is_zero, 1, least)
        relative = jnp.where(is_zero & (absolute != 0), jnp.inf, relative)
        # The gap from another problem's path means nothing, and may be negative: the conditions are
        # checked at each `μ`. √eps, since a path is flagged at that violation
        # (`Tolerances.violation`), and every path that is not must pass.
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
    """An upper bound of the lasso gap of `flow.x_mean` at `μ = s`, without solving a lasso.

    It is the duality gap with the residual of the average, `−F′(X x̄(s))`, as the dual point, scaled
    until it is feasible. For the square that is `y − X x̄(s) = ν(s)/s`, which the flow keeps almost
    feasible, since `w ≥ 0` up to terms of order `1/log(1/ε)`.

    **Arguments:**

    - `problem`: the problem that was integrated.
    - `flow`: what `gradient_flow` returned for it, at `S` times.

    **Returns:** the bound of the absolute gap, shape `(S,)`, in units of the loss; infinite at
    `s = 0`. Where several coordinates have the largest correlation, its derivatives are a mean over
    them.

    **Raises:** `TypeError` if `flow` is no flow, `ValueError` if its size is not that of the
    problem.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        net, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([1.0, 4.0])
        flow = dln.gradient_flow(net, problem, s, eps=1e-9)
        bound = dln.certificate(problem, flow)
        gap = dln.suboptimality_gap(problem, flow.x_mean, s, path=dln.lasso_path(problem))
        bool(jnp.all(gap.absolute <= bound))  # True
        ```

    !!! cite "Reference"

        Kim, Koh, Lustig, Boyd, Gorinevsky, *An Interior-Point Method for Large-Scale
        ℓ1-Regularized Least Squares* (2007): the dual point from a scaled residual.
    """
    check_known_loss(problem, any_decay=True)
    check_type(flow, "flow", Flow, "what `gradient_flow` returns")
    if flow.x.shape[-1:] != problem.r.shape:
        raise ValueError(
            f"The flow has {flow.x.shape[-1]} coordinates, the problem has {problem.r.shape[0]}. "
            "Pass the problem that was integrated."
        )
    started = flow.s > 0
    s = jnp.where(started, flow.s, 1)
    # With a `Schedule`, that of the averaged decay.
    kappa = (1 + total_decay(problem.weight_decay, s)) / s
    is_valid = has_no_nan(problem) & ~jnp.all(jnp.isnan(flow.x_mean))
    problem = one_unless(is_valid, problem)
    is_known = is_valid & ~jnp.any(jnp.isnan(flow.x_mean), axis=-1)
    x = jnp.where(is_known[..., None], flow.x_mean, 1)
    # κ contains the weight decay, which may be what is invalid.
    kappa = jnp.where(is_valid, kappa, 1)
    bound = problem.duality_gap(x, kappa, positive=flow.positive)
    return jnp.where(started, jnp.where(is_known, bound, jnp.nan), jnp.inf)


def eta(
    weight_decay: Real[ArrayLike, ""],
    s: Real[ArrayLike, "..."],
    downward_variation: Real[ArrayLike, "..."],
) -> Float[Array, "..."]:
    """`η(λ, s, z↓) = (1 + λs)[√z↓/s + z↓/s²]`, which bounds the limit `ε → 0` of the lasso gap at
    `μ = s` up to a constant. 0 on monotone paths.

    **Arguments:**

    - `weight_decay`: `λ ≥ 0`, a scalar.
    - `s`: `s > 0`, shape `(...)`.
    - `downward_variation`: `path.downward_variation(s)`, shape `(...)`.

    **Returns:** `η`, shape `(...)`.

    **Raises:** `ValueError` if `s ≤ 0`, a `downward_variation` or the weight decay is negative, or
    the shapes differ.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[2.0, 1.0], [0.0, 0.5]]), jnp.array([1.0, 1.5]))
        path, s = dln.lasso_path(problem), jnp.array([0.5, 1.0])
        dln.eta(0.0, s, path.downward_variation(s))  # 0 and 0.520: z₁ falls from s = 2/3 on
        ```

    !!! cite "Reference"

        [B25] Eq. 2.4 and Theorem 2.2, arXiv 2509.18766.
    """
    down = as_float(downward_variation, "downward_variation")
    s = as_positive(s, "s", down.dtype)
    decay = as_float(weight_decay, "weight_decay", down.dtype)
    check_scalar(decay, "weight_decay")
    for value, name in ((decay, "weight_decay"), (down, "downward_variation")):
        # By NumPy: under `jit` operations of JAX are traced, also those of known values.
        if is_concrete(value) and np.any(np.asarray(value) < 0):
            raise ValueError(f"`{name}` must be non-negative, got {np.min(np.asarray(value))}.")
    if () not in (s.shape, down.shape) and s.shape != down.shape:
        raise ValueError(
            f"`s` and `downward_variation` must have the same shape, got {s.shape} and "
            f"{down.shape}. Pass `path.downward_variation(s)`."
        )
    # The derivative of √z↓ at 0 would be infinite, and NaN in reverse mode.
    root = jnp.where(down == 0, 0, jnp.sqrt(jnp.where(down == 0, 1, down)))
    return (1 + decay * s) * (root / s + down / s**2)
