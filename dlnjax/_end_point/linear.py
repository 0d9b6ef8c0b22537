"""The end point at depth 1, in closed form: the minimiser of the loss that is closest to the start,
or, with weight decay, ridge regression.

    λ = 0:  x = x(0) + M†(r − Mx(0)),        λ > 0:  x = (M + λI)⁻¹ r

Values come from the spectrum of `M` (`SolutionSpace`). Its derivatives would be infinite or NaN
where eigenvalues are equal, so derivatives come from linear systems with the same solution.
"""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._derivatives import held, vanishing
from .._linalg import matmul
from .._path import largest_correlation, rounding_units
from .._problem import AbstractProblem
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, first_failure
from ..networks import Linear
from .point import EndPoint, rounding_of_data


def _closed_form(
    network: Linear, problem: AbstractProblem, log_eps: Float[Array, ""] | None
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """`x` and `Xᵀν` at `s = ∞`, each of shape `(d,)`; `x(0) = 0` if `log_eps` is None (`ε → 0`).

    Derivatives are of every order, along changes that keep the rank of `M`. At `λ = 0` the end
    point from `x(0) ≠ 0` jumps in `λ`, and its derivative in `λ` is 0; the limit from `x(0) = 0` is
    continuous, and its derivative is that of `(M + λI)⁻¹r`.
    """
    fixed = held(problem)
    norms = fixed.column_norms()
    # One unit for all columns, so that "closest in the 2-norm" keeps its meaning: the power of 2
    # above the largest norm, exact to divide by. In the user's units `inverse**2` below, the fourth
    # power of norms, would overflow or underflow.
    _, exponent = jnp.frexp(jnp.where(jnp.max(norms) > 0, jnp.max(norms), 1))
    unit = jnp.ldexp(jnp.ones((), norms.dtype), exponent)
    spectrum = SolutionSpace(fixed, norms > 0, units=jnp.full_like(norms, unit))
    r, start = problem.r / unit, jnp.zeros_like(norms)
    if log_eps is not None:
        start = unit * network.initial(log_eps)()
    decays = fixed.weight_decay > 0
    decay = jnp.where(decays, problem.weight_decay / unit / unit, 1)
    # The value 0 that carries the derivative in λ of the limit from 0, at λ = 0.
    small = jnp.where(decays, 0, problem.weight_decay / unit / unit) if log_eps is None else 0.0

    def matvec(v: Array) -> Array:
        return problem.matvec(v / unit) / unit

    def on_range(v: Array, factor: Array) -> Array:
        return matmul(factor * matmul(spectrum.V, v), spectrum.V)

    def off_range(v: Array) -> Array:
        return v - on_range(v, jnp.ones_like(spectrum.inverse))

    shrunk = 1 / (1 + held(decay) * spectrum.inverse)
    ridge = matmul(shrunk * spectrum.target, spectrum.V)
    # Project twice: the first projection leaves rounding of the size of the start in the range of
    # M, the second removes it, as in a repeated Gram-Schmidt step.
    closest = matmul(spectrum.target, spectrum.V) + off_range(off_range(held(start)))
    x = jnp.where(decays, ridge, closest)

    ridge = lax.custom_linear_solve(
        lambda v: matvec(v) + decay * v,
        r,
        lambda _, b: on_range(b, shrunk * spectrum.inverse) + off_range(b) / held(decay),
        symmetric=True,
    )
    # x = x(0) + Mη with M(Mη) = r − Mx(0). η is determined up to the null space of M, which Mη
    # does not see, so that any of them has the right derivatives.
    eta = lax.custom_linear_solve(
        lambda v: matvec(matvec(v) + small * v),
        r - matvec(start),
        lambda _, b: on_range(b, spectrum.inverse**2),
        symmetric=True,
    )
    eta = on_range(x - held(start), spectrum.inverse) + vanishing(eta)
    closest = start + matvec(eta)
    x = x + vanishing(jnp.where(decays, ridge, closest))
    # With decay the residual r − Mx tends to λx ≠ 0, and its integral Xᵀν to ±∞.
    grows = jnp.where(x == 0, 0, jnp.sign(held(x)) * jnp.inf)
    return x / unit, jnp.where(decays, grows, (x - start) / unit)


def linear_end(network: Linear, problem: AbstractProblem, log_eps: Array | None) -> EndPoint:
    """The closed form, certified by the normal equations."""
    x, dual = _closed_form(network, problem, log_eps)
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
    is_reached = jnp.all(rest <= rounding + rounding_of_data(fixed))
    result = first_failure(
        (jnp.all(jnp.isfinite(end)), RESULTS.invalid_shape),
        (is_reached, RESULTS.end_point_not_reached),
    )
    return EndPoint(x, dual, result, stats)
