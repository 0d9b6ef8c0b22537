"""`effective_initialization`: the convex problem that (stochastic) gradient descent on `UV` solves.

With `g_k` the gradient of step `k` in `x`, a step of size `γ_k` multiplies `u ± v` by
`1 ∓ γ_k g_k`; gradient flow over the time `γ_k` at the same gradient multiplies by `e^{∓γ_k g_k}`.
The quotient of the two, over all steps, changes the initialisation. `train` records the sum of
`γ_k g_k` (`dual`) and the products (`sides`), so that

    log √2 α± = log |u ± v| ± Σ γ_k g_k,    α_∞² = α₊α₋,    asinh(β̃₀/α_∞²) = log α₊ − log α₋.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_type, is_concrete
from .._problem import (
    AbstractProblem,
    check_quadratic,
    harmless,
    nan_unless_valid,
    validity,
)
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, has_no_nan, one_unless
from ..networks import UV
from .train import Training


class EffectiveInitialization(eqx.Module):
    """The initialisation from which gradient flow ends where a run of `train` ended.

    **Attributes:**

    - `alpha`: `α_∞`, shape `(d,)`, and `shift`: `β̃₀`, shape `(d,)`, a linear model. Once
        `Xx = y` is reached, `x` minimises over its solutions the Bregman divergence to `β̃₀` of
        the hyperbolic entropy at scale `α_∞`, whose gradient is `asinh(x/α_∞²)/2`.
    - `network`: the same initialisation as a `UV`, the shape at the run's `ε`:
        `end_point(network, problem, log_eps=run.log_eps).x` is `x` again.
    - `dual`: `asinh(x/α_∞²) − asinh(β̃₀/α_∞²)`, shape `(d,)`, of order `log(1/ε)`.
    - `dual_residual`: the largest entry of the part of `dual` outside the range of `Xᵀ`, a scalar.
    - `primal_residual`: the largest entry of `∇ℓ(x)`, relative to that of `Xᵀy`, a scalar.

    If both residuals are rounding, `x` solves that convex problem. `dual_residual` alone proves
    nothing: it is rounding at every step of a run, converged or not.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 0.5], [0.3, 1.0]]), jnp.array([1.0, 0.5]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        run = dln.train(network, problem, optax.sgd(0.1), eps=0.1, steps=2000)
        found = dln.effective_initialization(problem, run)
        found.dual_residual < 1e-10, found.primal_residual < 1e-10  # (True, True): a certificate
        ```
    """

    alpha: Float[Array, " d"]
    shift: Float[Array, " d"]
    network: UV
    dual: Float[Array, " d"]
    dual_residual: Float[Array, ""]
    primal_residual: Float[Array, ""]


def effective_initialization(problem: AbstractProblem, run: Training) -> EffectiveInitialization:
    """The initialisation from which gradient flow would end at the trained `x`, with the residuals
    that certify it.

    A step of size `γ` with the gradient `g` in `x` multiplies `u ± v` by `1 ∓ γg`; gradient flow
    would multiply it by `e^{∓γg}`. The quotient, over all steps, at any step size and with any
    batches or label noise, changes the initialisation `u ± v = √2 α±`:

        α±² = (u ± v)²/2 · exp(−Σ q±(γg)),  q±(a) = ∓2a − log (1 ∓ a)²,
        α_∞² = α₊α₋,  β̃₀ = ½(α₊² − α₋²),

    and `asinh(x/α_∞²) − asinh(β̃₀/α_∞²) = −2 Σ γg` is in the range of `Xᵀ`. The left-hand side is
    computed from the trained `x`, so that its residual measures the rounding of the run as well.

    **Arguments:** `problem`, without weight decay, and a `run` on it of `train` with a `UV` network
    and plain gradient steps: `optax.sgd(γ)` with any step size, schedule, batch or label
    noise, but without momentum.

    **Returns:** an `EffectiveInitialization`, at the last record of the run; NaN where the run
    failed. Use `jax.vmap` for a batch of runs.

    **Raises:** `TypeError` for another network; `ValueError` for weight decay, for a problem of
    another size, a batch of runs, or if the steps were not plain gradient steps (NaN under
    tracing).

    !!! example

        ```python
        X, y = jnp.array([[1.0, 0.5, 0.2], [0.3, 1.0, -0.4]]), jnp.array([1.0, 0.5])
        network, problem = dln.UV(jnp.ones(3), jnp.zeros(3)), dln.LeastSquares(X, y)
        run = dln.train(network, problem, optax.sgd(0.3), eps=0.1, steps=2000)
        found = dln.effective_initialization(problem, run)
        run.x[-1]  # (0.8711, 0.2483, 0.0240)
        dln.end_point(found.network, problem, eps=0.1).x  # the same
        dln.end_point(network, problem, eps=0.1).x  # (0.8720, 0.2472, 0.0220): gradient flow
        ```

    !!! cite "Reference"

        Even, Pesme, Gunasekar & Flammarion, *(S)GD over Diagonal Linear Networks*,
        arXiv 2302.08982, Theorem 1.
    """
    check_quadratic(problem)
    check_type(run, "run", Training, "what `dlnjax.train` returns")
    if run.sides is None or not isinstance(run.network, UV):
        raise TypeError(
            f"`effective_initialization` is known for `UV` networks only, got a run of "
            f"{type(run.network).__name__}."
        )
    if run.sides.ndim != 3:
        raise ValueError(
            f"`run` must be one run, got a batch of shape {run.sides.shape[:-3]}. Use `jax.vmap`."
        )
    if is_concrete(problem.weight_decay) and float(problem.weight_decay) != 0:
        raise ValueError(
            f"With weight decay, {float(problem.weight_decay)} here, no interpolating point is "
            "approached: `dlnjax.lasso(problem, jnp.inf)` is."
        )
    x, sides, dual = run.x[-1], run.sides[-1], run.dual[-1]
    if x.shape != problem.r.shape:
        raise ValueError(
            f"The run has {x.shape[0]} coordinates, the problem has {problem.r.shape[0]}. Pass the "
            "problem that was trained on."
        )
    # Half of the digits: plain steps deviate by less than one rounding, in float32 as well, also
    # with schedules; momentum, clipping or decay by their own size. 100 times more would let pass
    # a momentum of 1e-6 in float64; 100 times less would still be far above rounding, and nothing
    # known needs it.
    away = jnp.asarray(run.stats["max_deviation"])
    tolerance = float(jnp.finfo(x.dtype).eps) ** 0.5
    if is_concrete(away, x) and float(away) > tolerance and np.all(np.isfinite(np.asarray(x))):
        raise ValueError(
            "The steps of this run were not plain gradient steps: one was away from that by "
            f"{float(away):.2g} of its size. Use `optax.sgd(step_size)` without momentum, and no "
            "weight decay."
        )
    is_plain = (away <= tolerance) & (problem.weight_decay == 0)
    sides = nan_unless_valid(problem, jnp.where(is_plain, sides, jnp.nan))
    # Compute with 1 where a number is NaN, then put NaN back: the derivative of a NaN would be NaN
    # even in lanes that `jnp.where` does not select.
    known = has_no_nan((problem, x, sides, dual, run.log_eps))
    problem, x, sides, dual, log_eps = one_unless(known, (problem, x, sides, dual, run.log_eps))
    # `run.dual` is in units of `s`; in units of `t` it is −Σ γ_k g_k.
    moved = dual * run.network.time_scale(log_eps)
    effective = _at(problem, x, sides, moved, log_eps)
    return jax.tree.map(lambda v: jnp.where(known, v, jnp.nan), effective)


@eqx.filter_jit
def _at(
    problem: AbstractProblem, x: Array, sides: Array, moved: Array, log_eps: Array
) -> EffectiveInitialization:
    # In logarithms: at small ε the products underflow, and the sum of the gradients is large.
    log_sides = jnp.log(jnp.abs(sides)) - jnp.stack([moved, -moved])  # log √2 α±
    turn = log_sides[0] - log_sides[1]  # asinh(β̃₀/α_∞²)
    square = jnp.abs(sides[0] * sides[1]) / 2
    dual = jnp.arcsinh(x / square) - turn
    shape = jnp.exp(log_sides - log_eps / 2) / 2
    # The projection on the range of Xᵀ is a measurement: hold the data, since the derivative of an
    # SVD is infinite at equal singular values.
    held = harmless(lax.stop_gradient(problem), validity(problem) == RESULTS.successful)
    fit = SolutionSpace(held, jnp.ones_like(x, bool)).in_range(dual)
    primal = jnp.max(jnp.abs(problem.gradient(x)))
    # At y = 0, x = 0 both are 0, and so is the residual.
    scale = jnp.where(primal == 0, 1, jnp.max(jnp.abs(problem.r)))
    return EffectiveInitialization(
        alpha=jnp.sqrt(square),
        shift=square * jnp.sinh(turn),
        network=UV(shape[0] + shape[1], shape[0] - shape[1]),
        dual=dual,
        dual_residual=jnp.max(jnp.abs(dual - fit)),
        primal_residual=primal / scale,
    )
