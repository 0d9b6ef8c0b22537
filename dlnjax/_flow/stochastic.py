"""`stochastic_flow`: stochastic gradient flow, the diffusion of which SGD is a discretisation.

In rescaled time, with `T = t/s`, the step size `γ` and `v = ‖y − Xx‖² + nσ²`, the weights of a
network of depth 2 are a function of `n + 1` numbers (`depth2.py` has `c`):

    dν = (y − Xx) ds + √(γv/T) dB,    dA = v/2 ds,    w = w(0) ∓ Xᵀν + λs + cγ diag(XᵀX) A.

Noise acts on `w` as a weight decay would: `cγ diag(XᵀX) dA` is what Itô's formula adds to `d log p`
for `dp/p`. The state is `(ν, A, z)`, integrated by Heun's method on a grid of equal steps and the
times `s`. It is a method for Stratonovich's integral: the drift has `−½ Σⱼ b ∂b/∂νⱼ eⱼ` in
addition, for `b² = γv/T`, which is `γ/(2T) K (y − Xx)` with `K = XEXᵀ` and `E = −φ'(w)` summed over
signs. Where there is no noise it has order 2, and order ½ in general (`b` depends on `ν`, and the
components of the noise do not commute).

Explicit steps `h` are stable up to `h‖K‖ = 2`. The mean of `hK` in the direction of `y − Xx` is the
`stiffness` of a step: what has it below 1 decays without oscillating.
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from .._checks import as_count, as_float, check_key, check_scalar, is_concrete
from .._derivatives import held
from .._linalg import matmul
from .._loops import scan
from .._problem import AbstractProblem, check_quadratic
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractDualNetwork
from ..networks.signs import sides, signed
from .depth2 import check_depth_2, weight_rate
from .driver import with_derivatives
from .formulations import DualForm
from .gradient_flow import as_times
from .link import link_of
from .link_base import AbstractLink
from .run import Run, as_run
from .terms.base import size_of_x

# Steps whose noise is drawn at once; reverse mode keeps the state at the start of each chunk only.
CHUNK = 128
# The Brownian tree has 22 levels: the path is the same for every number of steps. Steps must be
# longer than what it resolves, with two levels to spare.
MOST_STEPS = 2**20
RESOLUTION = 1 / (4 * MOST_STEPS)

State = tuple[Float[Array, " n"], Float[Array, ""], Float[Array, " d"]]


class StochasticFlow(eqx.Module):
    """A trajectory of stochastic gradient flow at the times `s`.

    !!! example

        ```python
        X, y = jnp.array([[1.0, 0.5, 0.2], [0.3, 1.0, -0.4]]), jnp.array([1.0, 0.5])
        network, problem = dln.UV(jnp.ones(3), jnp.zeros(3)), dln.LeastSquares(X, y)
        s, key = jnp.array([0.0, 100.0]), jax.random.key(0)
        flow = dln.stochastic_flow(network, problem, s, key=key, step_size=0.3, eps=0.1)
        flow.effective_log_eps[-1] / flow.log_eps  # (1.289, 1.331, 1.053)
        ```

    **Attributes:**

    - `s`: the grid of rescaled times, shape `(S,)`.
    - `x`, `x_mean`, `z`: the linear model, its average and its integral, as in `Flow`, `(S, d)`.
    - `dual`: `Xᵀν(s)`, which is `∫₀ˢ Xᵀ(y − Xx)` and its noise, shape `(S, d)`.
    - `effective_log_eps`: `log ε_∞`, shape `(S, d)`: see `stochastic_flow`.
    - `log_eps`, `positive`: as in `Flow`.
    - `result`: how the solve ended. If it failed, all arrays but `s` and `log_eps` are NaN.
    - `stats`: `stiffness`, the largest of all steps; above 1 the result is `steps_too_long`.
    """

    s: Float[Array, " S"]
    x: Float[Array, "S d"]
    x_mean: Float[Array, "S d"]
    z: Float[Array, "S d"]
    dual: Float[Array, "S d"]
    effective_log_eps: Float[Array, "S d"]
    log_eps: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Any]
    positive: bool = eqx.field(static=True)


def stochastic_flow(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    s: ArrayLike,
    *,
    key: PRNGKeyArray,
    step_size: ArrayLike,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    label_noise: ArrayLike = 0.0,
    steps: int = 4096,
    throw: bool = True,
) -> StochasticFlow:
    """The trajectory of a network of depth 2 under stochastic gradient flow, from size `ε`.

    It is the diffusion that single-sample SGD with steps `γ` discretises, as `train(network,
    problem, optax.sgd(γ), batch_size=1)`, with the noise of all rows taken to be of one size: for
    weights `p_± = (u ± v)/2` of `UV`, in the time `t`,

        dp_± = ∓Xᵀ(Xx − y)∘p_± dt ± √(γ(‖Xx − y‖² + nσ²)) p_±∘XᵀdB.

    It closes in `n + 1` numbers, so that any `ε` will do. At every time `x` is what gradient
    flow reaches with the same dual `Xᵀν` from another initialisation, of size `ε_∞` in each
    coordinate: with `c = 1` for `UV`, 2 for `USquared` and `Deep`,

        log ε_∞ = log ε (1 + cγ diag(XᵀX) ∫₀ˢ ½(‖Xx − y‖² + nσ²) ds).

    So `α_∞ = α exp(−½cγ log(1/ε) diag(XᵀX) ∫…) ≤ α`: noise makes the initialisation smaller. Once
    `Xx = y`, `x` is the end of gradient flow from there:
    `end_point(Pretrained(network, exponents=(a, a)), problem, log_eps=log_eps)` with
    `a = flow.effective_log_eps[-1] / flow.log_eps`. For `Pretrained(network, exponents=e)` these
    exponents are `e + a − 1`, of `network`.

    **Arguments:**

    - `network`: a `UV`, `USquared`, `Deep` at depth 2, or one of these `Pretrained`.
    - `problem`: a `LeastSquares` problem, with its weight decay.
    - `s`: non-decreasing rescaled times `≥ 0`, shape `(S,)`, as in `gradient_flow`; without
        derivatives.
    - `key`: a `jax.random.key`. `B`, in units of `s`, is
        `diffrax.VirtualBrownianTree(0, s[-1], s[-1]/2**22, (n,), key)`: the same path for any
        number of steps.
    - `step_size`: `γ ≥ 0`, scalar, in units of `t`; with batches of `b` rows, `γ/b`. At 0 it is
        gradient flow.
    - `eps` or `log_eps`: `ε ∈ (0, 1)` or its logarithm, exactly one, scalar.
    - `label_noise`: the standard deviation `σ ≥ 0` of noise on the label of a sample, drawn anew
        at each step of SGD, in units of `y`. (Label noise alone, on all rows at once, has no term
        `‖Xx − y‖²`, and is not this flow.)
    - `steps`: the number of steps of the solver, besides the times `s`, at most 2²⁰. The error
        falls with their length `h` as `h²` where `γ` is small, and as `√h` in general. Their
        stiffness is about `h log(1/ε) |x| ‖X‖²`: the number needed is in proportion to
        `log(1/ε) s[-1]`, and too few are `steps_too_long`.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** a `StochasticFlow`, differentiable in both modes along the path of the noise
    (but for the derivative in `step_size` at 0, which is infinite and comes as that of the drift).

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the steps are
    too long, or `x` overflows.

    !!! example

        ```python
        X, y = jnp.array([[1.0, 0.5, 0.2], [0.3, 1.0, -0.4]]), jnp.array([1.0, 0.5])
        network, problem = dln.UV(jnp.ones(3), jnp.zeros(3)), dln.LeastSquares(X, y)
        s, key = jnp.array([100.0]), jax.random.key(0)
        flow = dln.stochastic_flow(network, problem, s, key=key, step_size=0.3, eps=0.1)
        flow.x[-1]  # (0.8751, 0.2436, 0.0154)
        exponents = flow.effective_log_eps[-1] / flow.log_eps
        effective = dln.Pretrained(network, exponents=(exponents, exponents))
        dln.end_point(effective, problem, eps=0.1).x  # the same
        dln.end_point(network, problem, eps=0.1).x  # (0.8720, 0.2472, 0.0220): without noise
        ```

    !!! cite "Reference"

        Pesme, Pillaud-Vivien & Flammarion, *Implicit Bias of SGD for Diagonal Linear Networks: a
        Provable Benefit of Stochasticity*, arXiv 2106.09524. Its loss is `‖Xx − y‖²/(4n)`: its
        time is `n t`, its step size `nγ`, its initialisation `α_∞ = ε_∞^½` times the shape.
    """
    check_depth_2(network, "Stochastic gradient flow")
    check_quadratic(problem)
    if problem.rows() is None:
        raise TypeError(
            "Stochastic gradient flow has the noise of the rows of `LeastSquares(X, y)`, got a "
            f"{type(problem).__name__}."
        )
    run = as_run(network, problem, eps, log_eps, DualForm(), None, None, 1)
    dtype = problem.r.dtype
    steps = as_count(steps, "steps")
    if steps > MOST_STEPS:
        raise ValueError(f"`steps` must be at most {MOST_STEPS}, got {steps}.")
    check_key(key, "stochastic_flow")
    flow = _solve(
        run,
        as_times(s, dtype),
        key,
        _as_size(step_size, "step_size", dtype),
        _as_size(label_noise, "label_noise", dtype),
        steps,
    )
    return raise_on_failure(flow, flow.result, throw)


def _as_size(value: ArrayLike, name: str, dtype) -> Array:
    array = as_float(value, name, dtype)
    check_scalar(array, name)
    if is_concrete(array) and not 0 <= float(array) < float("inf"):
        raise ValueError(f"`{name}` must be finite and non-negative, got {float(array)}.")
    return array


class _Term(diffrax.AbstractTerm[Any, Any]):
    """Drift and noise, for one step. The state is `(ν, A, z)`."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    link: AbstractLink
    weight_decay: Float[Array, ""]
    shrinks: Float[Array, " d"]  # cγ diag(XᵀX)
    strength: Float[Array, ""]  # γ/T
    label_variance: Float[Array, ""]  # nσ²
    increment: Float[Array, " n"]  # of B

    def dual(self, s: Any, state: State) -> Array:
        nu, A, _ = state
        moved = self.weight_decay * s + self.shrinks * A
        return self.link.start - sides(matmul(nu, self.X), self.link.start) + moved[None, :]

    def response(self, w: Array) -> tuple[Array, Array, Array]:
        """`x`, `y − Xx` and `K(y − Xx)`."""
        q = self.link.q(w)
        x, slope = signed(q), jnp.sum(self.link.slope(w, q), axis=0)
        residual = self.y - matmul(self.X, x)
        return x, residual, matmul(self.X, slope * matmul(residual, self.X))

    def vf(self, t, y, args):
        x, residual, curved = self.response(self.dual(t, y))
        v = jnp.sum(residual**2) + self.label_variance
        drift = residual + self.strength / 2 * curved
        # The derivative of √ is infinite at 0.
        square = self.strength * v
        noise = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        return (drift, v / 2, x), noise

    def contr(self, t0, t1, **kwargs):
        return t1 - t0, self.increment

    def prod(self, vf, control):
        ((nu, A, z), noise), (h, increment) = vf, control
        return h * nu + noise * increment, h * A, h * z

    def stiffness(self, s: Array, state: State, h: Array) -> Array:
        _, residual, curved = self.response(self.dual(s, state))
        square = jnp.sum(residual**2)
        return h * jnp.sum(residual * curved) / jnp.where(square > 0, square, 1)


def _term_of(run: Run, step_size: Array, label_noise: Array) -> _Term:
    network, problem = run.network, run.problem
    rows = problem.rows()
    assert rows is not None and isinstance(network, AbstractDualNetwork)
    X, y = rows
    return _Term(
        X=X,
        y=y,
        link=link_of(network, run.log_eps, size_of_x(problem)),
        weight_decay=problem.weight_decay,
        shrinks=weight_rate(network, run.log_eps) * step_size * problem.gram_diagonal(),
        strength=step_size / network.time_scale(run.log_eps),
        label_variance=len(y) * label_noise**2,
        increment=jnp.zeros_like(y),
    )


def _path(key: PRNGKeyArray, n: int, at: Float[Array, " C"]) -> Float[Array, "C n"]:
    """A Brownian path on `[0, 1]`, at the times `at`."""
    shape = jax.ShapeDtypeStruct((n,), at.dtype)
    tree = diffrax.VirtualBrownianTree(0.0, 1.0, RESOLUTION, shape, key)
    # What `tree.evaluate` computes, without its check of the times, which is a host callback.
    return jax.vmap(lambda r: tree._evaluate_leaf(tree.key, r, shape).W)(at)


def _integrate(
    term: _Term, s: Float[Array, " S"], key: PRNGKeyArray, steps: int
) -> tuple[PyTree[Array], State, Float[Array, ""]]:
    """The states at the times `s`, with a leading axis, the last one, and the largest stiffness."""
    n, end = len(term.y), s[-1]
    at = s / jnp.where(end > 0, end, 1)
    nodes = jnp.sort(jnp.concatenate([jnp.arange(1, steps + 1, dtype=s.dtype) / steps, at]))
    # The last step that ends at each time; those of length 0 at the end fill the last chunk.
    index = jnp.searchsorted(nodes, at, side="right").astype(jnp.int32) - 1
    chunks = -(-len(nodes) // CHUNK)
    nodes = jnp.pad(nodes, (0, chunks * CHUNK - len(nodes)), constant_values=1)
    nodes = nodes.reshape(chunks, CHUNK)
    solver = with_derivatives(diffrax.Heun(), True)

    def step(carry, inputs):
        before, state = carry
        now, increment = inputs
        field = dataclasses.replace(term, increment=increment)
        state, _, _, _, _ = solver.step(field, before, now, state, None, None, True)
        return (now, state), state

    @jax.checkpoint
    def chunk(carry, inputs):
        before, state, W, found, stiffness = carry
        number, at = inputs
        path = _path(key, n, at)
        increments = jnp.sqrt(end) * jnp.diff(path, axis=0, prepend=W[None])
        times = end * at
        (last, state), states = scan(step, (before, state), (times, increments))
        lengths = jnp.diff(times, prepend=before[None])
        largest = jnp.max(jax.vmap(term.stiffness)(times, states, lengths))
        row = index - number * CHUNK
        is_here = (row >= 0) & (row < CHUNK)

        def fill(old, new):
            new = new[jnp.clip(row, 0, CHUNK - 1)]
            return jnp.where(is_here.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        found = jax.tree.map(fill, found, states)
        return (last, state, path[-1], found, jnp.maximum(stiffness, held(largest))), None

    start = (jnp.zeros_like(term.y), jnp.zeros_like(end), jnp.zeros_like(term.shrinks))
    found = jax.tree.map(lambda v: jnp.zeros((len(s), *v.shape), v.dtype), start)
    zero = jnp.zeros_like(end)
    carry = (zero, start, jnp.zeros_like(term.y), found, zero)
    numbers = jnp.arange(chunks, dtype=jnp.int32)
    (_, last, _, found, stiffness), _ = scan(chunk, carry, (numbers, nodes))
    return found, last, stiffness


@eqx.filter_jit
def _solve(
    run: Run, s: Array, key: PRNGKeyArray, step_size: Array, label_noise: Array, steps: int
) -> StochasticFlow:
    given = run.log_eps
    is_grid = jnp.all(jnp.isfinite(s)) & (s[0] >= 0) & jnp.all(s[1:] >= s[:-1])
    sizes = jnp.stack([step_size, label_noise])
    is_size = jnp.all((sizes >= 0) & jnp.isfinite(sizes))
    verdict = first_failure(
        run.validity(run.term()),
        (is_grid, RESULTS.invalid_grid),
        (is_size, RESULTS.invalid_training),
    )
    valid = verdict == RESULTS.successful
    run = run.harmless(valid)
    # An invalid lane of a batch makes steps of length 0.
    times, step_size, label_noise = (
        jnp.where(valid, v, 0) for v in (lax.stop_gradient(s), step_size, label_noise)
    )
    term = _term_of(run, step_size, label_noise)
    states, last, stiffness = _integrate(term, times, key, steps)
    w = jax.vmap(term.dual)(times, states)
    x = jax.vmap(signed)(jax.vmap(term.link.read)(w))
    nu, A, z = states
    moving = (times > 0)[:, None]
    x_mean = jnp.where(moving, z / jnp.where(moving, times[:, None], 1), x)
    effective = run.log_eps * (1 + term.shrinks[None, :] * A[:, None])
    arrays = (x, x_mean, z, matmul(nu, term.X), effective)
    is_finite = jnp.stack([jnp.all(jnp.isfinite(v)) for v in [*arrays, *last]]).all()
    result = first_failure(
        verdict,
        # Steps that are too long are the usual cause of an overflow; NaN is no step below 1.
        (stiffness <= 1, RESULTS.steps_too_long),
        (is_finite & term.link.is_in_range(x), RESULTS.flow_not_finite),
    )
    good = result == RESULTS.successful
    x, x_mean, z, dual, effective = (jnp.where(good, v, jnp.nan) for v in arrays)
    return StochasticFlow(
        s=s,
        x=x,
        x_mean=x_mean,
        z=z,
        dual=dual,
        effective_log_eps=effective,
        log_eps=given,
        result=result,
        stats={"stiffness": stiffness},
        positive=run.network.positive,
    )
