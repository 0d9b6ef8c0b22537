"""The optimality conditions of the lasso, and the penalties that they compare with."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._problem import AbstractProblem


def penalties(
    problem: AbstractProblem, weights: Float[Array, "2 d"], mu: Float[Array, ""]
) -> Float[Array, "2 d"]:
    """`κ = λ + ω/μ` of both signs, shape `(2, d)`; ∞ where `ω` is, also at `μ = ∞`."""
    # Where ω = ∞, ω/μ has NaN derivatives, and is NaN at μ = ∞: the quotient is made without it.
    is_excluded = jnp.isinf(weights)
    kappa = problem.weight_decay + jnp.where(is_excluded, 0, weights) / mu
    return jnp.where(is_excluded, jnp.inf, kappa)


def penalty(x: Float[Array, " d"], kappa: Float[Array, "2 d"]) -> Float[Array, " d"]:
    """`κᵢ|xᵢ|` with the `κ` of its sign, shape `(d,)`; 0 where `xᵢ = 0`, even if `κᵢ = ∞`."""
    return jnp.where(x > 0, kappa[0], jnp.where(x < 0, kappa[1], 0)) * jnp.abs(x)


def largest_correlation(
    problem: AbstractProblem,
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """The largest `|rⱼ|/‖Xⱼ‖`, and `‖Xⱼ‖` (1 where it is 0)."""
    norms = problem.column_norms()
    some = norms > 0
    norms = jnp.where(some, norms, 1)
    return jnp.max(jnp.where(some, jnp.abs(problem.r) / norms, 0)), norms


def kkt_violation(
    problem: AbstractProblem,
    x: Float[Array, " d"],
    kappa: Float[Array, "2 d"],
    positive: bool,
    norms: Float[Array, " d"],
) -> Float[Array, ""]:
    """The largest violation of the lasso's optimality conditions at `x`, each over its norm."""
    largest = jnp.max(kkt_violations(problem, x, kappa, positive) / norms)
    # XLA's maximum may drop a NaN when it is vectorised.
    return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, largest)


def kkt_violations(
    problem: AbstractProblem,
    x: Float[Array, " d"],
    kappa: Float[Array, "2 d"],
    positive: bool,
) -> Float[Array, " d"]:
    """The violation of the lasso's optimality conditions of each coordinate, in units of `r`.

    With `c = r − Mx`: `cⱼ ≤ κⱼ⁺`, `−cⱼ ≤ κⱼ⁻` (unless `positive`), with equality where `xⱼ > 0` or
    `xⱼ < 0`. An `xⱼ < 0` that is not allowed is an infinite violation.
    """
    c = -problem.gradient(x)
    upper, lower = kappa
    bound = c - upper
    if not positive:
        bound = jnp.maximum(bound, -c - lower)
    active = jnp.where(x > 0, jnp.abs(c - upper), 0)
    if positive:
        active = jnp.where(x < 0, jnp.inf, active)
    else:
        active = jnp.where(x < 0, jnp.abs(c + lower), active)
    return jnp.maximum(jnp.maximum(bound, active), 0)


def rounding_units(problem: AbstractProblem, x: Float[Array, " d"]) -> Float[Array, " d"]:
    """The size of the terms whose difference each entry of `r − Mx` is, shape `(d,)`: its rounding
    is some eps times that. It is `‖Xⱼ‖(maxᵢ |rᵢ|/‖Xᵢ‖ + Σᵢ ‖Xᵢ‖|xᵢ|)`, a bound of both."""
    size, _ = largest_correlation(problem)
    norms = problem.column_norms()
    return norms * (size + jnp.sum(norms * jnp.abs(x)))
