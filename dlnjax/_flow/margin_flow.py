"""`margin_flow`: gradient flow on separable data, far beyond where the loss underflows.

The flow is integrated in the loss clock `τ` (`terms/margin.py`). There the time at which the loss
has a given value is not known: as for `crossing_times`, each block of steps is searched for the
values that `T = log 1/ℓ` passes in it, by bisection in the dense output. `T` rises along the flow:

| event | condition | what changes |
|---|---|---|
| value passed | `T` reaches an asked value in a step | its time and state are stored |
| end | all values are passed | the lane is done |
| no margin | `Aᵀp` is rounding, for some `p ≥ 0` | `not_separable` |
| failure | the solver fails, `x` reaches its cap, the link is negative | its result |
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Real

from .._batching import any_lane
from .._checks import as_float, check_finite, check_nonempty, check_type, is_concrete
from .._derivatives import differentiated_as, held, vanishing
from .._linalg import matmul
from .._loops import fori_loop, while_loop
from .._problem import (
    AbstractProblem,
    LogisticLoss,
    check_labels,
    glm_of,
    without_decay,
)
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractDualNetwork
from .adjoint import at_time, trajectory
from .driver import Fixed, Moving, Record, State, block, counts, prepared, start
from .formulations import DualForm
from .rodas5p import Rodas5P
from .run import Run, as_run
from .terms.coordinates import CoordinateTerm
from .terms.dual import dual_term
from .terms.fit import LossClock
from .terms.margin import MarginTerm
from .terms.rows import RowTerm


class MarginFlow(eqx.Module):
    """A trajectory of gradient flow on separable data, where `log 1/ℓ` has given values.

    **Attributes:**

    - `log_inverse_loss`: those values `T`, shape `(S,)`.
    - `x`: the linear model, shape `(S, d)`. It grows like `T`.
    - `log_s`: the logarithm of the rescaled time `s`, which grows like `T` too, shape `(S,)`.
    - `margin`: `minᵢ yᵢ(Xx)ᵢ / ‖x‖₁`, shape `(S,)`: at most that of `max_margin(problem)`.
    - `margin_bound`: an upper bound of that maximum from the dual alone, `‖Xᵀ(y∘ν)‖_∞ / Σνᵢ`,
        shape `(S,)`. (Without the entries that `x ≥ 0` excludes, if the network is positive.)
    - `log_loss`: `log ℓ(x)`, which is `−T`, shape `(S,)`.
    - `dual`: `ν = ∫₀ˢ −∂ℓ/∂m ≥ 0`, with the margins `m = y∘Xx`, shape `(S, n)`.
    - `result`: how the solve ended. If it failed, all arrays but the first are NaN.
    - `stats`: as in `Flow`.

    !!! example

        ```python
        problem = dln.Exponential(jnp.eye(2), jnp.array([1.0, -1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        flow = dln.margin_flow(network, problem, jnp.array([1e6]), eps=1e-3)
        flow.x[0] / flow.log_inverse_loss  # (1.000, −1.000)
        flow.margin, flow.margin_bound  # ½, the largest margin, and its bound ½
        ```
    """

    log_inverse_loss: Float[Array, " S"]
    x: Float[Array, "S d"]
    log_s: Float[Array, " S"]
    margin: Float[Array, " S"]
    margin_bound: Float[Array, " S"]
    log_loss: Float[Array, " S"]
    dual: Float[Array, "S n"]
    result: RESULTS
    stats: dict[str, Any]


def margin_flow(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    log_inverse_loss: ArrayLike,
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    atol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 65536,
    throw: bool = True,
) -> MarginFlow:
    """The trajectory of a network under gradient flow on separable data, to any loss.

    Where data separate, the loss tends to 0 and `s` to infinity, so that neither can be followed to
    the end: a loss of `e^{−10⁶}` is reached at `s` of about `e^{10⁶}`. In the clock `dτ = ℓ ds` the
    flow takes some hundred steps to there. (For the logistic loss `dτ = (1 − e^{−ℓ}) ds`.)

    Margins are as large as `T`, and a rounding of `ν` changes them by `T log(1/ε)` times as much.
    So float32 holds the flow up to `T log(1/ε)` of about 1e5 (measured on a design
    6 × 12), and ends as `step_too_small` beyond.

    **Arguments:**

    - `network`: its weights are the shape of the initialisation.
    - `problem`: a `Logistic` or `Exponential` problem, without weight decay.
    - `log_inverse_loss`: the non-decreasing values `T` of `log 1/ℓ` at which the flow is returned,
        shape `(S,)`. They must be above that of the start, which is about `−log n` (`−log(n log 2)`
        for the logistic loss).
    - `eps` or `log_eps`: `ε ∈ (0, 1)` or its logarithm, exactly one, scalar.
    - `rtol`, `atol`, `max_steps`, `throw`: as in `gradient_flow`.

    **Returns:** a `MarginFlow`.

    **Raises:** `TypeError` for a problem without labels, or a network without dual form;
    `ValueError` for other bad input; an `EquinoxRuntimeError` if the data do not separate, or the
    solver fails.

    !!! example

        ```python
        X = jnp.array([[2.0, 1.0], [1.0, -2.0]])
        problem = dln.Exponential(X, jnp.array([1.0, 1.0]))
        network, T = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([10.0, 1e3, 1e6])
        flow = dln.margin_flow(network, problem, T, log_eps=-20.0)
        flow.margin  # tends to 1, that of x ∝ (1, 0)
        flow.margin_bound  # from above
        dln.max_margin(problem).margin  # 1
        ```

    !!! cite "Reference"

        Moroshko, Gunasekar, Woodworth, Lee, Srebro & Soudry, *Implicit Bias in Deep Linear
        Classification*, arXiv 2007.06738; Gunasekar, Lee, Soudry & Srebro, *Characterizing Implicit
        Bias in Terms of Optimization Geometry*, arXiv 1802.08246.
    """
    check_labels(problem, "margin_flow")
    what = "a network with a dual form, such as `dlnjax.UV(u, v)`"
    check_type(network, "network", AbstractDualNetwork, what)
    decay = problem.weight_decay
    if is_concrete(decay) and float(decay) > 0:
        raise ValueError(
            f"With weight decay the loss does not tend to 0, got `weight_decay` {float(decay)}. "
            "Follow it in `s`, by `gradient_flow`."
        )
    run = as_run(network, problem, eps, log_eps, DualForm(), rtol, atol, max_steps)
    targets = as_float(log_inverse_loss, "log_inverse_loss", problem.r.dtype)
    if targets.ndim != 1:
        raise ValueError(
            f"`log_inverse_loss` must be a grid of shape (S,), got shape {targets.shape}. Pass "
            "`[T]` for one value, `jax.vmap` for several grids."
        )
    check_nonempty(targets, "log_inverse_loss")
    check_finite(targets, "log_inverse_loss")
    if is_concrete(targets) and np.any(np.diff(np.asarray(targets)) < 0):
        raise ValueError("`log_inverse_loss` must be increasing. Sort it.")
    flow = _solve(run, targets)
    return raise_on_failure(flow, flow.result, throw)


def _term(run: Run) -> MarginTerm:
    """The vector field in the loss clock."""
    assert isinstance(run.network, AbstractDualNetwork)
    inner = dual_term(run.network, without_decay(run.problem), run.log_eps)
    assert isinstance(inner, RowTerm | CoordinateTerm)
    X, y, loss = glm_of(run.problem)
    fit = LossClock(X / inner.scale, y, inner.scale, isinstance(loss, LogisticLoss))
    # In this clock `x` grows beyond any start.
    inner = dataclasses.replace(inner, fit=fit, excess=jnp.ones_like(inner.excess))
    return MarginTerm(inner)


class _Found(NamedTuple):
    """Where each value of `T` is passed: the clock, the state there, and whether it was reached."""

    tau: Float[Array, " S"]
    states: PyTree[Array]
    is_passed: Bool[Array, " S"]
    result: RESULTS


@eqx.filter_jit
def _solve(run: Run, targets: Array) -> MarginFlow:
    term = _term(run)
    is_grid = jnp.all(jnp.isfinite(targets)) & jnp.all(targets[1:] >= targets[:-1])
    verdict = first_failure(
        run.validity(term),
        (run.problem.weight_decay == 0, RESULTS.invalid_decay),
        (is_grid, RESULTS.invalid_grid),
        (targets[0] > term.log_inverse_loss(term.initial()), RESULTS.invalid_grid),
    )
    valid = verdict == RESULTS.successful
    run = run.harmless(valid)
    term = _term(run)
    moving, fixed = Moving(term, term.initial()), _fixed(run, term, valid)
    found, last = held(_search(moving, fixed, jnp.where(valid, targets, jnp.inf), ~valid))
    result = first_failure(verdict, found.result, last.result)
    good = result == RESULTS.successful
    states = _states(moving, fixed, jnp.where(good, targets, 0), found)
    x, _, image = jax.vmap(lambda state: term.read(0, state))(states)
    m = jax.vmap(term.margins)(states)
    log_loss = jax.vmap(term.fit.log_loss)(m)
    # `ν ≥ 0` but for the errors of steps.
    n = m.shape[1]
    nu = jnp.maximum(term.fit.y[None] * states[1][:, -n:] / term.scale, 0)
    image, _ = _image(run, nu)
    rises = image if run.network.positive else jnp.abs(image)
    total = jnp.sum(nu, axis=1)
    norm = jnp.sum(jnp.abs(x), axis=1)
    divided = lambda a, b: a / jnp.where(good & (b > 0), b, 1)
    rho = states[0][:, -1]
    log_s = jnp.log(jnp.where(good & (rho > 0), rho, 1)) - log_loss
    margin, bound = divided(jnp.min(m, axis=1), norm), divided(jnp.max(rises, axis=1), total)
    finite = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(log_s))
    is_consistent = jnp.all(jax.vmap(term.is_consistent)(states))
    result = first_failure(
        result,
        (finite & term.is_in_range(x), RESULTS.flow_not_finite),
        (is_consistent, RESULTS.invalid_network),
    )
    nan_unless = lambda v: jnp.where(result == RESULTS.successful, v, jnp.nan)
    x, log_s, margin, bound, log_loss, nu = map(nan_unless, (x, log_s, margin, bound, log_loss, nu))
    return MarginFlow(targets, x, log_s, margin, bound, log_loss, nu, result, counts(last))


def _image(run: Run, nu: Float[Array, "*S n"]) -> tuple[Array, Array]:
    """`Aᵀν` for `A = diag(y) X`, and the sums of the absolute values of its terms."""
    X, y, _ = glm_of(run.problem)
    A = y[:, None] * X
    return matmul(nu, A), matmul(jnp.abs(nu), jnp.abs(A))


def _fixed(run: Run, term: MarginTerm, valid: Array) -> Fixed:
    """How to integrate, without an end."""
    controller = held(run.controller(term))
    # A hundredth of the time in which the first coordinate may activate, as in `Run.first_step`.
    x = term.x(term.image(term.initial()[0]))
    d = term.fit.X.shape[1]
    speed = jnp.max(jnp.abs(matmul(x[d + 2 :], term.fit.X)))
    step = held(0.01 * jnp.where(valid & (speed > 0), term.threshold() / speed, 1))
    end = jnp.full((1,), jnp.inf, step.dtype)
    return Fixed(prepared(Rodas5P(), controller), controller, end, step, run.max_steps)


def _search(
    moving: Moving, fixed: Fixed, targets: Float[Array, " S"], is_done: Bool[Array, ""]
) -> tuple[_Found, State]:
    """Integrate block by block until `T` has passed all values. No derivatives."""
    moving, fixed = held((moving, fixed))
    term = moving.term
    assert isinstance(term, MarginTerm)
    state = start(moving, fixed)
    state = state._replace(is_done=is_done)
    spread = lambda v: jnp.broadcast_to(v, (*targets.shape, *v.shape))
    found = _Found(
        tau=jnp.zeros_like(targets),
        states=jax.tree.map(spread, moving.y0),
        is_passed=jnp.zeros(targets.shape, bool),
        result=RESULTS.successful,
    )

    def step(carry):
        state, found = carry
        after, records, count = block(moving, fixed, state)
        found = _passed(term, fixed, targets, found, records, count, after)
        is_over = jnp.all(found.is_passed)
        # A failure after the last value has been passed is none.
        result = RESULTS.where(is_over, RESULTS.successful, after.result)
        is_done = after.is_done | is_over | (found.result != RESULTS.successful)
        return after._replace(is_done=is_done, result=result), found

    state, found = while_loop(lambda c: any_lane(~c[0].is_done), step, (state, found))
    return found, state


def _passed(
    term: MarginTerm,
    fixed: Fixed,
    targets: Array,
    found: _Found,
    records: Record,
    count: Array,
    after: State,
) -> _Found:
    """`found`, with the values that are passed in the steps of a block."""
    # The state after an attempt is the one before the next; rows from `count` on are empty.
    states = jax.tree.map(
        lambda before, last: jnp.roll(before, -1, axis=0).at[count - 1].set(last),
        records.y,
        after.y,
    )
    is_used = jnp.arange(fixed.block, dtype=jnp.int32) < count
    T = jnp.where(is_used, jax.vmap(term.log_inverse_loss)(states), -jnp.inf)
    is_past = T[None, :] >= targets[:, None]
    is_here = jnp.any(is_past, axis=1) & ~found.is_passed

    def locate(target, past):
        record = jax.tree.map(lambda v: v[jnp.argmax(past)], records)
        inner = fixed.solver.interpolation_cls(t0=record.s, t1=record.s1, **record.dense)

        def halve(_, bracket):
            low, high = bracket
            middle = low + (high - low) / 2
            is_beyond = term.log_inverse_loss(inner.evaluate(middle)) >= target
            return jnp.where(is_beyond, low, middle), jnp.where(is_beyond, middle, high)

        digits = jnp.finfo(target.dtype).nmant + 3
        _, root = fori_loop(0, digits, halve, (record.s, record.s1))
        return root, inner.evaluate(root)

    tau, at = jax.vmap(locate)(targets, is_past)
    pick = lambda new, old: jnp.where(is_here.reshape(-1, *[1] * (old.ndim - 1)), new, old)
    # A proof that nothing separates: p ≥ 0 with Aᵀp = 0, to half of the digits of its terms. Along
    # the flow Aᵀp falls like 1/τ then. Where ν is the state, it is known to rtol: three eighths.
    # Data that separate by less of their entries are refused too, as the result says.
    p = jax.vmap(lambda state: term.fit.pull(term.margins(state)))(states)
    A = term.fit.y[:, None] * term.fit.X
    image, terms = matmul(p, A), matmul(p, jnp.abs(A))
    rises = image if len(term.inner.link.start) == 1 else jnp.abs(image)
    power = 0.375 if isinstance(term.inner, RowTerm) else 0.5
    refutes = jnp.all(rises <= jnp.finfo(p.dtype).eps ** power * terms, axis=1)
    # What comes after the last value has been passed does not count.
    is_over = jnp.all(is_here | found.is_passed)
    is_refuted = jnp.any(refutes & is_used) & ~is_over
    in_range = term.is_in_range(term.read(0, after.y)[0]) | is_over
    return _Found(
        tau=pick(tau, found.tau),
        states=jax.tree.map(pick, at, found.states),
        is_passed=found.is_passed | is_here,
        result=first_failure(
            found.result,
            (~is_refuted, RESULTS.not_separable),
            (in_range, RESULTS.flow_not_finite),
        ),
    )


def _explicit(moving: Moving, fixed: Fixed, targets: Array, found: _Found) -> PyTree[Array]:
    """The states as functions of the data and of `T`: the flow is integrated again to the times at
    which the values are passed, and two Newton steps of length 0 move these times."""
    tau = held(found.tau)
    states, _ = trajectory(moving, dataclasses.replace(fixed, grid=tau))
    term = moving.term
    assert isinstance(term, MarginTerm)

    def moved(tau, state, target):
        lacks = lambda tau: target - term.log_inverse_loss(at_time(tau, state, term))
        for _ in range(2):
            lack, slope = jax.jvp(lacks, (tau,), (jnp.ones_like(tau),))
            rises = slope < 0
            tau = tau - jnp.where(rises, vanishing(lack) / jnp.where(rises, slope, 1), 0)
        return at_time(tau, state, term)

    return jax.vmap(moved)(tau, states, targets)


@differentiated_as(_explicit)
def _states(moving: Moving, fixed: Fixed, targets: Array, found: _Found) -> PyTree[Array]:
    return found.states
