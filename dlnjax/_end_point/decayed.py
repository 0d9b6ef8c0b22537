"""The end point with weight decay `λ > 0`, at depth 2: the lasso at `κ = λ`."""

import jax.numpy as jnp

from .._derivatives import held
from .._lasso.path import lasso_path
from .._path import kkt_violation, largest_correlation
from .._problem import AbstractProblem
from .point import EndPoint, rounding


def decayed_end(problem: AbstractProblem, positive: bool) -> EndPoint:
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
        dual=jnp.where(jnp.abs(c) > rounding(fixed), jnp.sign(c) * jnp.inf, 0),
        result=path.result,
        stats=stats,
    )
