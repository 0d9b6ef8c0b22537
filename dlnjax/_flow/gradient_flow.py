"""`gradient_flow`: the trajectory of a diagonal linear network, in rescaled time `s`.

A formulation (`formulations.py`) gives the vector field (`terms/`) and its solver; `driver.py`
integrates it, and the states at the times `s` are read as `x(s)`, `z(s) = ∫₀ˢ x`, `x̄(s) = z(s)/s`
and the dual `Xᵀν(s) = −∫₀ˢ ∇ℓ(x)`. Derivatives in the data go through the steps, whose lengths are
held fixed; in `s` the derivative of a state is the vector field.
"""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import (
    as_float,
    check_finite,
    check_nonempty,
    check_type,
    is_concrete,
)
from .._problem import AbstractProblem
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractNetwork
from .adjoint import at_time, trajectory
from .driver import Moving, counts
from .formulations import AbstractFormulation, AcceleratedForm, DualForm, MomentumForm
from .run import Run, as_run


class Flow(eqx.Module):
    """A trajectory of gradient flow at the times `s`.

    !!! example

        ```python
        problem, s = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])), jnp.array([0.0, 2.0])
        flow = dln.gradient_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem, s, eps=1e-9)
        flow.x[1]  # (2.0, 1.0): the loss is minimised
        flow.x_mean[1]  # (1.450, 0.467); the lasso at μ = 2 is (1.5, 0.5)
        flow.result  # successful
        ```

    **Attributes:**

    - `s`: the grid of rescaled times, shape `(S,)`.
    - `x`: the linear model `x(s)`, shape `(S, d)`.
    - `x_mean`: its average `x̄(s) = z(s)/s` over `[0, s]`, with `x̄(0) = x(0)`, shape `(S, d)`:
        this is what compares with the lasso path at `μ = s`.
    - `z`: `∫₀ˢ x`, shape `(S, d)`.
    - `dual`: `Xᵀν(s) = −∫₀ˢ ∇ℓ(x)`, which is `s r − M z(s)` for the square, shape `(S, d)`. NaN for
        another loss in the weight form and with momentum.
    - `log_eps`: `log ε` of the initialisation, a scalar.
    - `positive`: whether the network can only represent `x ≥ 0`.
    - `has_momentum`: whether it is a flow of `MomentumForm` or `AcceleratedForm`.
    - `result`: how the solve ended. If it failed, all arrays but `s` and `log_eps` are NaN.
    - `stats`: what diffrax counts, such as `num_steps` and `num_rejected_steps`.
    """

    s: Float[Array, " S"]
    x: Float[Array, "S d"]
    x_mean: Float[Array, "S d"]
    z: Float[Array, "S d"]
    dual: Float[Array, "S d"]
    log_eps: Float[Array, ""]
    result: RESULTS
    stats: dict[str, Any]
    positive: bool = eqx.field(static=True)
    has_momentum: bool = eqx.field(static=True, default=False)


def gradient_flow(
    network: AbstractNetwork,
    problem: AbstractProblem,
    s: ArrayLike,
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    formulation: AbstractFormulation | None = None,
    solver: diffrax.AbstractSolver[Any] | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 65536,
    throw: bool = True,
) -> Flow:
    """The trajectory of a network under gradient flow, from an initialisation of size `ε`.

    `d(weights)/dt = −∇(ℓ(x) + penalty)`, at rescaled times `s` ([B25] §2).

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.linspace(0.0, 4.0, 9)
        flow = dln.gradient_flow(network, problem, s, eps=1e-9)
        flow.x_mean[-1]  # (1.725, 0.733)
        dln.lasso_path(problem).x(4.0)  # (1.75, 0.75)
        ```

    **Arguments:**

    - `network`: its weights are the shape of the initialisation.
    - `problem`: a `LeastSquares`, `Quadratic` or `GeneralizedLinear` problem, such as `Logistic`,
        weight decay included. `WeightForm()` also takes a problem with any other loss.
    - `s`: non-decreasing rescaled times `≥ 0`, shape `(S,)`. (`t = s·log(1/ε)/2` for `UV`,
        `t = s·log(1/ε)/4` for `USquared` and `Deep` at depth 2, `t = s/(D(D−2) ε^{1−2/D})` at
        depth `D > 2`.)
    - `eps` or `log_eps`: `ε ∈ (0, 1)` or its logarithm, exactly one, scalar.
    - `formulation`: `DualForm()` (default) or `WeightForm()`; `MomentumForm(inertia)` and
        `AcceleratedForm(alpha)` are flows with momentum.
    - `solver`: any diffrax solver; default `Rodas5P()` for the dual form, above rank 24
        `AutoTsit5()`; diffrax's `Kvaerno5` for the others.
    - `rtol`, `atol`: tolerances of the embedded error of a step; `atol` is relative to the size
        of `w`, `w(0)` at depth `D > 2` and 1 at depth 2 (for the weight form, to `ε^½` times the
        shape). By default `rtol` is 1e-7 in float64, 1e-8 for the others, and 1e-4 in float32, and
        `atol` a tenth of `rtol`. Errors of `x_mean` are up to some hundred times the tolerance,
        relative to its largest value. Before the first jump `x_mean` is exponentially small, as `x`
        is, and has fewer correct digits than `x`.
    - `max_steps`: the most steps that are tried. Reverse mode keeps a bounded number of states
        whatever it is (`_flow/adjoint.py`).
    - `throw`: whether to raise on failure. Under tracing, and with `throw=False`, nothing is
        raised: failed lanes are NaN, with their `result`.

    **Returns:** a `Flow`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if the
    solver fails.

    !!! cite "Reference"

        [B25] §2 and §4.2 (the dual variable); arXiv 2509.18766.
    """
    formulation = DualForm() if formulation is None else formulation
    run = as_run(network, problem, eps, log_eps, formulation, rtol, atol, max_steps)
    s = as_times(s, problem.r.dtype)
    solver = formulation.default_solver(problem) if solver is None else solver
    check_type(solver, "solver", diffrax.AbstractSolver, "a solver, such as `diffrax.Kvaerno5()`")
    flow = _solve(run, s, solver)
    return raise_on_failure(flow, flow.result, throw)


def as_times(s: ArrayLike, dtype) -> Array:
    """`s` as a grid of times; known values are checked."""
    s = as_float(s, "s", dtype)
    if s.ndim != 1:
        raise ValueError(
            f"`s` must be a grid of shape (S,), got shape {s.shape}. Pass `[s]` for one time, "
            "`jax.vmap` for several grids."
        )
    check_nonempty(s, "s")
    check_finite(s, "s")
    if is_concrete(s):
        values = np.asarray(s)
        if values[0] < 0:
            raise ValueError(f"`s` must be non-negative, got s[0] = {float(values[0])}.")
        if np.any(np.diff(values) < 0):
            i = int(np.argmax(np.diff(values) < 0))
            raise ValueError(
                f"`s` must be increasing, but s[{i}] = {float(values[i])} is followed by "
                f"{float(values[i + 1])}. Sort it."
            )
    return s


@eqx.filter_jit
def _solve(run: Run, s: Array, solver: diffrax.AbstractSolver) -> Flow:
    given, term = run.log_eps, run.term()
    is_grid = jnp.all(jnp.isfinite(s)) & (s[0] >= 0) & jnp.all(s[1:] >= s[:-1])
    verdict = first_failure(run.validity(term), (is_grid, RESULTS.invalid_grid))
    valid = verdict == RESULTS.successful
    run = run.harmless(valid)
    term = run.term()
    # An invalid lane of a batch integrates over an empty interval.
    times = jnp.where(valid, s, 0)
    grid = lax.stop_gradient(times)
    fixed = run.fixed(term, solver, grid, valid)
    reached, last = trajectory(Moving(term, term.initial()), fixed)
    # Times that were not reached have the initial state, and are blanked below.
    has_arrived = last.result == RESULTS.successful
    states = jax.vmap(lambda s, state: at_time(s, state, term))(times, reached)
    x, z, dual = jax.vmap(term.read)(times, states)
    if run.network.positive:
        # z = ∫x ≥ 0, but while x is exponentially small the errors of the steps, of size `atol`,
        # may make it negative.
        z = jnp.where(z < 0, 0, z)
    moving = (times > 0)[:, None]
    # At s = 0 the average is x(0), and its derivative in s is half of that of x.
    start, _, _ = term.read(jnp.zeros_like(times[0]), term.initial())
    x_mean = jnp.where(moving, z / jnp.where(moving, times[:, None], 1), (start[None] + x) / 2)

    # Out of range, `x` is held at its cap, and the steps end by their number if by anything: the
    # range is the cause, not the steps.
    end, _, _ = term.read(last.s, last.y)
    in_range = term.is_in_range(end) & term.is_in_range(x)
    finite = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(z)) & has_arrived
    is_consistent = jnp.all(jax.vmap(term.is_consistent)(states))
    result = first_failure(
        verdict,
        (in_range, RESULTS.flow_not_finite),
        run.cause(term, last),
        (finite, RESULTS.flow_not_finite),
        (is_consistent, RESULTS.invalid_network),
    )
    good = result == RESULTS.successful
    x, x_mean, z, dual = jax.tree.map(lambda v: jnp.where(good, v, jnp.nan), (x, x_mean, z, dual))
    momentum = isinstance(run.formulation, MomentumForm | AcceleratedForm)
    return Flow(s, x, x_mean, z, dual, given, result, counts(last), run.network.positive, momentum)
