"""Where depth 1 ends: the minimiser closest to the start, or ridge regression."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._constraint import Constraint
from ._flow._end_derivatives import held, vanishing
from ._linalg import matmul
from ._linear import Linear
from ._problem import AbstractProblem


def linear_end(
    network: Linear, problem: AbstractProblem, log_eps: Float[Array, ""] | None
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """`x` and `Xᵀν` at `s = ∞`, without weight decay `x(0) + M†(r − Mx(0))`, with it
    `(M + λI)⁻¹r`; `x(0) = 0` without `log ε`. The values come from the spectrum, the derivatives
    from linear systems: to every order, at a constant rank."""
    d = problem.r.shape[0]
    start = jnp.zeros_like(problem.r) if log_eps is None else network.initial(log_eps)()
    spectrum = Constraint(held(problem), jnp.ones(d, bool), units=jnp.ones_like(start))
    decays = held(problem.weight_decay) > 0
    decay = jnp.where(decays, problem.weight_decay, 1)

    def on_range(v: Array, factor: Array) -> Array:
        return matmul(factor * matmul(spectrum.V, v), spectrum.V)

    def off_range(v: Array) -> Array:
        return v - on_range(v, jnp.ones_like(spectrum.inverse))

    shrunk = 1 / (1 + held(decay) * spectrum.inverse)
    ridge = matmul(shrunk * spectrum.target, spectrum.V)
    closest = matmul(spectrum.target, spectrum.V) + off_range(held(start))
    x = jnp.where(decays, ridge, closest)

    ridge = lax.custom_linear_solve(
        lambda v: problem.matvec(v) + decay * v,
        problem.r,
        lambda _, b: on_range(b, shrunk * spectrum.inverse) + off_range(b) / held(decay),
        symmetric=True,
    )
    # x = x(0) + Mη, for some η: all that is left open of η is lost in Mη.
    eta = lax.custom_linear_solve(
        lambda v: problem.matvec(problem.matvec(v)),
        problem.r - problem.matvec(start),
        lambda _, b: on_range(b, spectrum.inverse**2),
        symmetric=True,
    )
    eta = on_range(x - held(start), spectrum.inverse) + vanishing(eta)
    closest = start + problem.matvec(eta)
    x = x + vanishing(jnp.where(decays, ridge, closest))
    # With decay, λx is left of the residual.
    grows = jnp.where(x == 0, 0, jnp.sign(held(x)) * jnp.inf)
    return x, jnp.where(decays, grows, x - start)
