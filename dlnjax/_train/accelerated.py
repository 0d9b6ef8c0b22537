"""Accelerated methods as optax optimisers: `continuized_nesterov` and `jacobi`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from .._checks import as_float, check_key, check_scalar, is_concrete


class ContinuizedState(NamedTuple):
    """The state of `continuized_nesterov`.

    **Attributes:** `x` and `z`, the two iterates; `time`, of the next step, and `wait` before it;
    `key`, of all further ones.
    """

    x: PyTree[Array]
    z: PyTree[Array]
    time: Float[Array, ""]
    wait: Float[Array, ""]
    key: PRNGKeyArray


class JacobiState(NamedTuple):
    """The state of `jacobi`: the number of steps taken, and the last one."""

    num_steps: Int[Array, ""]
    step: PyTree[Array]


def continuized_nesterov(
    L: ArrayLike,
    mu: ArrayLike = 0.0,
    *,
    statistical_condition: ArrayLike = 1.0,
    key: PRNGKeyArray,
) -> optax.GradientTransformation:
    """Nesterov's method with steps at the times of a Poisson process of rate 1, between which two
    iterates mix continuously.

    With `L` the smoothness of the loss `f`, `μ` its strong convexity, and `Δ` the exponential time
    from `T_k` to `T_{k+1}`,

        y = x + τ(z − x),    x⁺ = y − ∇f(y)/L,    z⁺ = z + τ′(y − z) − γ′∇f(y).

    - `μ = 0`: `τ = 1 − (T_k/T_{k+1})²`, `τ′ = 0`, `γ′ = T_{k+1}/(2κL)`;
        `E[T² (f(x) − f*)] ≤ 2L ‖z₀ − x*‖²`.
    - `μ > 0`: `τ = (1 − e^{−2ηΔ})/2`, `τ′ = tanh(ηΔ)`, `γ′ = 1/√(κμL)` with `η = √(μ/κL)`;
        `E[e^{ηT} (f(x) − f*)] ≤ f(x₀) − f* + μ/2 ‖z₀ − x*‖²`.

    These bounds are for the gradient itself, where `κ = 1`. With single rows `a` of noiseless least
    squares, of Hessian `H`, in place of it (as with `batch_size=1`, where `H = XᵀX` and `a` is `√n`
    times a row), `L` and `κ` are such that

        E[‖a‖² aaᵀ] ⪯ L H,    E[⟨a, H⁻¹a⟩ aaᵀ] ⪯ κ H,

    and in continuous time `t`, `E‖x − x*‖²` has the bounds `4κL ‖z₀ − x*‖²_{H⁻¹}/t²` for `μ = 0`,
    and `(‖x₀ − x*‖² + μ ‖z₀ − x*‖²_{H⁻¹}) e^{−ηt}`. `gossip_rates` has `μ` and `κ` of a graph.

    The weights that optax holds are the points `y`, where gradients are taken; the state has `x`.

    **Arguments:**

    - `L` and `mu`: the largest and the least curvature of the loss in the weights, `0 ≤ μ ≤ L`; of
        single rows, `L` is that above, and `μ` may be the least curvature but 0 if the solution
        that is meant is the closest one.
    - `statistical_condition`: `κ ≥ 1` above.
    - `key`: of the times.

    **Returns:** an optax optimiser, for `train` or any other loop.

    **Raises:** `ValueError` for known `L`, `mu` and `statistical_condition` that are not such
    numbers, or without a key; `TypeError` if it is no key.

    !!! example

        ```python
        problem = dln.Quadratic(jnp.diag(jnp.array([1.0, 0.01])), jnp.array([1.0, 0.01]))
        optimizer = dln.continuized_nesterov(1.0, 0.01, key=jax.random.key(0))
        run = dln.train(dln.Linear(jnp.zeros(2)), problem, optimizer, eps=0.5, steps=300)
        run.x[-1]  # (1, 1) up to 1e-11; `optax.sgd(1.0)` is at (1, 0.95)
        ```

    !!! cite "Reference"

        Even, Berthier, Bach, Flammarion, Gaillard, Hendrikx, Massoulié, Taylor, arXiv 2106.07644.
    """
    L = as_float(L, "L", jnp.result_type(float))
    mu = as_float(mu, "mu", L.dtype)
    condition = as_float(statistical_condition, "statistical_condition", L.dtype)
    check_scalar(L, "L")
    check_scalar(mu, "mu")
    check_scalar(condition, "statistical_condition")
    if is_concrete(L) and not 0 < float(L) < jnp.inf:
        raise ValueError(f"`L` must be positive and finite, got {float(L)}.")
    if is_concrete(L, mu) and not 0 <= float(mu) <= float(L):
        raise ValueError(f"`mu` must be from 0 to L = {float(L):.6g}, got {float(mu):.6g}.")
    if is_concrete(condition) and not 1 <= float(condition) < jnp.inf:
        raise ValueError(
            f"`statistical_condition` must be finite and at least 1, got {float(condition)}. Leave "
            "it out for gradients of the whole loss."
        )
    check_key(key, "continuized_nesterov")
    # A traced one that is no such number is NaN, and ends as `invalid_training`.
    is_valid = (mu >= 0) & (mu <= L) & jnp.isfinite(L) & (condition >= 1) & jnp.isfinite(condition)
    mu = jnp.where(is_valid, mu, jnp.nan)
    is_strong = mu != 0
    some = jnp.where(is_strong, mu, L)  # the derivative of √ is infinite at 0
    slow = condition * L
    rate, strong_step = jnp.sqrt(some / slow), 1 / jnp.sqrt(some * slow)

    def init(params: PyTree[Array]) -> ContinuizedState:
        following, now = jr.split(key)
        wait = jr.exponential(now, dtype=L.dtype)
        return ContinuizedState(params, params, wait, wait, following)

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None
    ) -> tuple[PyTree[Array], ContinuizedState]:
        if params is None:
            raise ValueError(
                "`continuized_nesterov` needs the weights: `update(g, state, params)`."
            )
        back = jnp.where(is_strong, jnp.tanh(rate * state.wait), 0)
        step = jnp.where(is_strong, strong_step, state.time / (2 * slow))
        x = jax.tree.map(lambda y, g: y - (1 / L).astype(y.dtype) * g, params, updates)

        def moved(z, y, g):
            return z + back.astype(z.dtype) * (y - z) - step.astype(z.dtype) * g

        z = jax.tree.map(moved, state.z, params, updates)
        following, now = jr.split(state.key)
        wait = jr.exponential(now, dtype=L.dtype)
        time = state.time + wait
        mix = jnp.where(is_strong, -jnp.expm1(-2 * rate * wait) / 2, 1 - (state.time / time) ** 2)
        step_of = lambda x, z, y: x + mix.astype(x.dtype) * (z - x) - y
        return jax.tree.map(step_of, x, z, params), ContinuizedState(x, z, time, wait, following)

    return optax.GradientTransformation(init, update)


def jacobi(
    alpha: ArrayLike, beta: ArrayLike = 0.0, *, step_size: ArrayLike
) -> optax.GradientTransformation:
    """Heavy ball with the coefficients of the Jacobi polynomials, `P_t(W)` on a quadratic loss.

    With `W = I − γ∇²f`, the step from `x_t` is

        x_{t+1} = x_t − a_t γ ∇f(x_t) + c_t (x_t − x_{t−1}),

    so that `x_t − x* = π_t(W)(x₀ − x*)`, where `π_t` is the Jacobi polynomial of degree `t` with
    `π_t(1) = 1`. Gossip on a lattice of dimension `D` is accelerated by `α = D/2`, `β = 0`: in `t`
    steps it spreads over a distance of order `t` in place of `√t`.

    **Arguments:**

    - `alpha` and `beta`: above −1. They suit a spectrum of `W` whose density is about
        `(1 − λ)^{α − 1}` at 1 and `(1 + λ)^β` at −1.
    - `step_size`: `γ > 0`, at most 2 over the largest curvature.

    **Returns:** an optax optimiser, for `train` or any other loop.

    **Raises:** `ValueError` for known arguments that are not such numbers.

    !!! example

        ```python
        problem = dln.Quadratic(jnp.diag(jnp.array([1.0, 0.01])), jnp.array([1.0, 0.01]))
        optimizer = dln.jacobi(0.5, step_size=1.0)
        run = dln.train(dln.Linear(jnp.zeros(2)), problem, optimizer, eps=0.5, steps=40)
        run.x[-1]  # (0.98, 1.09); `optax.sgd(1.0)` is at (1, 0.33)
        ```

    !!! cite "Reference"

        Berthier, Bach, Gaillard, *Accelerated Gossip in Networks of Given Dimension Using Jacobi
        Polynomial Iterations*, SIAM J. Math. Data Sci. 2020; Berthier & Li, arXiv 2202.10742.
    """
    dtype = jnp.result_type(float)
    alpha, beta = as_float(alpha, "alpha", dtype), as_float(beta, "beta", dtype)
    step_size = as_float(step_size, "step_size", dtype)
    for name, value, least in (
        ("alpha", alpha, -1.0),
        ("beta", beta, -1.0),
        ("step_size", step_size, 0.0),
    ):
        check_scalar(value, name)
        if is_concrete(value) and not least < float(value) < jnp.inf:
            raise ValueError(f"`{name}` must be finite and above {least:g}, got {float(value)}.")
    # A traced one that is no such number makes the steps NaN, and ends as `invalid_training`.
    is_valid = (alpha > -1) & (beta > -1) & (step_size > 0) & jnp.isfinite(alpha + beta + step_size)
    step_size = jnp.where(is_valid, step_size, jnp.nan)

    def init(params: PyTree[Array]) -> JacobiState:
        return JacobiState(jnp.zeros((), int), jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: PyTree[Array], state: Any, params: PyTree[Array] | None = None
    ) -> tuple[PyTree[Array], JacobiState]:
        del params
        a, c = _recurrence(alpha, beta, state.num_steps.astype(dtype))
        gain = a * step_size
        step = jax.tree.map(
            lambda g, last: c.astype(g.dtype) * last - gain.astype(g.dtype) * g, updates, state.step
        )
        return step, JacobiState(state.num_steps + 1, step)

    return optax.GradientTransformation(init, update)


def _recurrence(alpha: Array, beta: Array, t: Array) -> tuple[Array, Array]:
    """`a_t` and `c_t` of `π_{t+1}(λ) = (a_t λ + 1 − a_t + c_t) π_t(λ) − c_t π_{t−1}(λ)`."""
    total = alpha + beta
    # At 0, where its factor t + 1 + α + β cancels, and may be 0.
    first = (total + 2) / (2 * (1 + alpha))
    over = jnp.where(t > 0, (t + 1 + total) * (t + 1 + alpha), 1)
    a = (2 * t + total + 1) * (2 * t + total + 2) / (2 * over)
    middle = jnp.where(t > 0, 2 * t + total, 1)
    c = t * (t + beta) * (2 * t + total + 2) / (over * middle)
    return jnp.where(t > 0, a, first), c
