"""`effective_initialization`: the convex problem that (stochastic) gradient descent solved."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._check import is_concrete
from ._linalg import matmul
from ._network import UV
from ._problem import AbstractProblem, LeastSquares
from ._training import Training


class EffectiveInitialization(eqx.Module):
    """From where gradient flow would have ended at the point of the run.

    **Attributes:**

    - `alpha`: `α_∞`, shape `(d,)`, and `shift`: `β̃₀`, shape `(d,)`, a linear model. Where
        `Xx = y` is reached, `x` minimises over its solutions the Bregman divergence to `β̃₀` of
        the hyperbolic entropy at scale `α_∞`, whose gradient is `asinh(x/α_∞²)/2`.
    - `network`: the same as a `UV` whose weights are a shape at the run's `ε`:
        `interpolator(network, problem, log_eps=run.log_eps).x` is `x` again.
    - `dual`: `asinh(x/α_∞²) − asinh(β̃₀/α_∞²)`, shape `(d,)`, of order `log(1/ε)`.
    - `dual_residual`: the largest entry of what `dual` has outside the range of `Xᵀ`.
    - `primal_residual`: the largest entry of `∇ℓ(x)`, relative to that of `Xᵀy`.

    Both residuals at rounding certify that problem.
    """

    alpha: Float[Array, " d"]
    shift: Float[Array, " d"]
    network: UV
    dual: Float[Array, " d"]
    dual_residual: Float[Array, ""]
    primal_residual: Float[Array, ""]


def effective_initialization(problem: AbstractProblem, run: Training) -> EffectiveInitialization:
    """The initialisation that the steps of a run amount to, with the residuals that certify it.

    A step of size `γ` with the gradient `g` in `x` multiplies `u ± v` by `1 ∓ γg`, of which
    gradient flow would keep the factor `e^{∓γg}`. What is left over all steps, at any step size and
    with any batches or label noise, changes the initialisation, `u ± v = √2 α±`:

        α±² = (u ± v)²/2 · exp(−Σ q±(γg)),  q±(a) = ∓2a − log (1 ∓ a)²,
        α_∞² = α₊α₋,  β̃₀ = ½(α₊² − α₋²),

    and `asinh(x/α_∞²) − asinh(β̃₀/α_∞²) = −2 Σ γg` is in the range of `Xᵀ`. It is here computed from
    the trained `x`, and so measures the rounding of the run as well.

    **Arguments:** `problem`, without weight decay, and a `run` on it of `train` with a `UV` network
    and plain gradient steps: `optax.sgd(γ)` with any step size, schedule, batch or label
    noise, but without momentum.

    **Returns:** an `EffectiveInitialization`; NaN where the run failed.

    **Raises:** `TypeError` for another network; `ValueError` for weight decay, or if the steps were
    not plain gradient steps (NaN under tracing).

    !!! cite "Reference"

        Even, Pesme, Gunasekar & Flammarion, *(S)GD over Diagonal Linear Networks*,
        arXiv 2302.08982, Theorem 1.
    """
    if run.sides is None or not isinstance(run.network, UV):
        raise TypeError(
            f"`effective_initialization` is known for `UV` networks only, got a run of "
            f"{type(run.network).__name__}."
        )
    if run.sides.ndim != 2:
        raise ValueError(
            f"`run` must be one run, got a batch of shape {run.sides.shape[:-2]}. Use `jax.vmap`."
        )
    if is_concrete(problem.weight_decay) and float(problem.weight_decay) != 0:
        raise ValueError(
            f"With weight decay, {float(problem.weight_decay)} here, no interpolating point is "
            "approached: `dlnjax.lasso(problem, jnp.inf)` is."
        )
    u, v, x = run.network.u[-1], run.network.v[-1], run.x[-1]
    plus, minus = run.sides
    # By how much the weights are not what plain gradient steps would have made them.
    size = jnp.max(jnp.abs(jnp.stack([u, v])))
    away = jnp.max(jnp.abs(jnp.stack([u + v - plus, u - v - minus])))
    is_plain = ~(away > jnp.sqrt(jnp.finfo(x.dtype).eps) * size)
    if is_concrete(is_plain) and not bool(np.asarray(is_plain)):
        raise ValueError(
            "The steps of this run were not plain gradient steps: its weights are "
            f"{float(away):.2g} away from what those would have made them. Use "
            "`optax.sgd(step_size)` without momentum, and no weight decay."
        )
    is_plain = is_plain & (problem.weight_decay == 0)
    sides = jnp.where(is_plain, jnp.abs(run.sides), jnp.nan)
    # Logarithms of α± √2; the sum of the gradients is that of the dual in units of t.
    moved = run.dual * run.network.time_scale(run.log_eps)
    log_sides = jnp.log(sides) - jnp.stack([moved, -moved])
    gap = log_sides[0] - log_sides[1]  # asinh(β̃₀/α_∞²)
    square = sides[0] * sides[1] / 2
    dual = jnp.arcsinh(x / square) - gap
    shape = jnp.exp(log_sides - run.log_eps / 2) / 2
    A = problem.X.T if isinstance(problem, LeastSquares) else problem.gram()
    fit = matmul(A, jnp.linalg.lstsq(A, dual)[0])
    return EffectiveInitialization(
        alpha=jnp.sqrt(square),
        shift=square * jnp.sinh(gap),
        network=UV(shape[0] + shape[1], shape[0] - shape[1]),
        dual=dual,
        dual_residual=jnp.max(jnp.abs(dual - fit)),
        primal_residual=jnp.max(jnp.abs(problem.gradient(x))) / jnp.max(jnp.abs(problem.r)),
    )
