"""Where depth 1 ends: the minimiser closest to the start, or ridge regression."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._derivatives import held, vanishing
from .._linalg import matmul
from .._problem import AbstractProblem
from .._problem.solution_space import SolutionSpace
from ..networks import Linear


def linear_end(
    network: Linear, problem: AbstractProblem, log_eps: Float[Array, ""] | None
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """`x` and `Xᵀν` at `s = ∞`, without weight decay `x(0) + M†(r − Mx(0))`, with it
    `(M + λI)⁻¹r`; `x(0) = 0` without `log ε`. The values come from the spectrum, the derivatives
    from linear systems: to every order, at a constant rank. At `λ = 0` the end point jumps, and has
    the derivative 0 in `λ`, but for the limit without `log ε`, which has that of `(M + λI)⁻¹r`."""
    fixed = held(problem)
    norms = fixed.column_norms()
    # One unit for all columns, which keeps the 2-norm: a power of 2 of about the largest. In the
    # user's units, squares of eigenvalues would overflow and underflow.
    _, exponent = jnp.frexp(jnp.where(jnp.max(norms) > 0, jnp.max(norms), 1))
    unit = jnp.ldexp(jnp.ones((), norms.dtype), exponent)
    spectrum = SolutionSpace(fixed, norms > 0, units=jnp.full_like(norms, unit))
    r, start = problem.r / unit, jnp.zeros_like(norms)
    if log_eps is not None:
        start = unit * network.initial(log_eps)()
    decays = fixed.weight_decay > 0
    decay = jnp.where(decays, problem.weight_decay / unit / unit, 1)
    # Without decay: 0, of which the limit from 0 has derivatives.
    small = jnp.where(decays, 0, problem.weight_decay / unit / unit) if log_eps is None else 0.0

    def matvec(v: Array) -> Array:
        return problem.matvec(v / unit) / unit

    def on_range(v: Array, factor: Array) -> Array:
        return matmul(factor * matmul(spectrum.V, v), spectrum.V)

    def off_range(v: Array) -> Array:
        return v - on_range(v, jnp.ones_like(spectrum.inverse))

    shrunk = 1 / (1 + held(decay) * spectrum.inverse)
    ridge = matmul(shrunk * spectrum.target, spectrum.V)
    # Twice, so that what is left is exact beside itself, however large the start is.
    closest = matmul(spectrum.target, spectrum.V) + off_range(off_range(held(start)))
    x = jnp.where(decays, ridge, closest)

    ridge = lax.custom_linear_solve(
        lambda v: matvec(v) + decay * v,
        r,
        lambda _, b: on_range(b, shrunk * spectrum.inverse) + off_range(b) / held(decay),
        symmetric=True,
    )
    # x = x(0) + Mη, for some η: all that is left open of η is lost in Mη.
    eta = lax.custom_linear_solve(
        lambda v: matvec(matvec(v) + small * v),
        r - matvec(start),
        lambda _, b: on_range(b, spectrum.inverse**2),
        symmetric=True,
    )
    eta = on_range(x - held(start), spectrum.inverse) + vanishing(eta)
    closest = start + matvec(eta)
    x = x + vanishing(jnp.where(decays, ridge, closest))
    # With decay, λx is left of the residual.
    grows = jnp.where(x == 0, 0, jnp.sign(held(x)) * jnp.inf)
    return x / unit, jnp.where(decays, grows, (x - start) / unit)
