"""`as_run`: the arguments that `gradient_flow` and `crossing_times` share.

It checks them, has the default tolerances, and returns a `Run`: the vector field, the validity of
traced input, the first step and the step size controller.
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from .._checks import (
    as_count,
    as_log_eps,
    as_tolerance,
    check_type,
    is_log_eps,
    is_tolerance,
)
from .._derivatives import held
from .._problem import (
    AbstractProblem,
    check_known_loss,
    check_problem,
    harmless_data,
    may_decay,
    validity,
    without_decay,
)
from .._results import RESULTS, first_failure
from ..networks import AbstractNetwork
from ..networks.base import harmless_network, matched, shape_of, takes
from .driver import Fixed, State, prepared
from .formulations import AbstractFormulation
from .terms.base import AbstractDualTerm, AbstractFlowTerm


class Run(eqx.Module):
    """The checked arguments of a flow, its vector field and its step size control."""

    network: AbstractNetwork
    problem: AbstractProblem
    log_eps: Float[Array, ""]
    formulation: AbstractFormulation
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    max_steps: int = eqx.field(static=True)
    decays: bool = eqx.field(static=True)  # whether the weight decay may be positive

    def term(self) -> AbstractFlowTerm:
        """The vector field."""
        problem = self.problem if self.decays else without_decay(self.problem)
        return self.formulation.term(self.network, problem, self.log_eps)

    def validity(self, term: AbstractFlowTerm) -> RESULTS:
        """The first reason why traced input is invalid, or `successful`."""
        takes_decay = takes(self.network, self.problem.weight_decay)
        return first_failure(
            validity(self.problem, self.formulation.any_loss),
            (is_log_eps(self.log_eps), RESULTS.invalid_eps),
            shape_of(self.network, self.log_eps),
            term.validity(),
            (takes_decay, RESULTS.invalid_decay),
            (is_tolerance(self.rtol) & is_tolerance(self.atol), RESULTS.invalid_tolerance),
        )

    def harmless(self, valid: Bool[Array, ""]) -> "Run":
        """The same run, with harmless input unless `valid`."""
        # Any solvable values will do, as the results are blanked; derivatives through NaN would be
        # NaN all the same.
        return dataclasses.replace(
            self,
            network=harmless_network(self.network, valid),
            problem=harmless_data(self.problem, valid, self.formulation.any_loss),
            log_eps=jnp.where(valid, self.log_eps, -1),
            rtol=jnp.where(valid, self.rtol, 1e-3),
            atol=jnp.where(valid, self.atol, 1e-3),
        )

    def first_step(self, term: AbstractFlowTerm, valid: Bool[Array, ""]) -> Float[Array, ""]:
        """The first step in `s`: 0.01 of the time at which the first coordinate may activate."""
        # As ε → 0 that is the threshold of the dual over ‖∇ℓ‖_∞, with ∇ℓ at x(0), or at 0 if x(0)
        # is a minimum. The factor 0.01 is not critical: with 1e-4, 1 or 100 the number of steps
        # changed by 2 % at most (64 Gaussian problems 3 × 4, log ε from −11 to −700), since the
        # controller corrects a step by up to 10. No derivatives: how steps change with the data is
        # of the order of their errors.
        start, _, _ = term.read(0, term.initial())
        gradients = jnp.stack([self.problem.r, self.problem.gradient(start)])
        size = lax.stop_gradient(jnp.max(jnp.abs(gradients)))
        return 0.01 * jnp.where(valid & (size > 0), term.threshold() / size, 1)

    def fixed(
        self,
        term: AbstractFlowTerm,
        solver: diffrax.AbstractSolver[Any],
        grid: Float[Array, " S"],
        valid: Bool[Array, ""],
    ) -> Fixed:
        """How to integrate to the last of the times `grid`."""
        controller, end = held(self.controller(term)), grid[-1]
        return Fixed(
            solver=prepared(held(solver), controller),
            controller=controller,
            grid=grid,
            first_step=jnp.minimum(self.first_step(term, valid), jnp.where(end > 0, end, 1)),
            max_steps=self.max_steps,
        )

    def cause(self, term: AbstractFlowTerm, last: State) -> RESULTS:
        """Why an integration ended at the state `last`."""
        result = term.cause(last.y, last.result)
        if not isinstance(term, AbstractDualTerm):
            return result
        # The velocity is known to the rounding of the sums in it, by Cauchy's inequality at most
        # `|r_i| + ‖X_i‖ Σ_j ‖X_j‖ |x_j|`. What drifts by more than the tolerance until `s`, in
        # directions in which nothing draws it back, makes steps that never grow.
        x, _, _ = term.read(last.s, last.y)
        norms = jnp.sqrt(self.problem.gram_diagonal())
        size = jnp.max(jnp.abs(self.problem.r) + norms * jnp.sum(norms * jnp.abs(x)))
        unit = float(jnp.finfo(x.dtype).eps)
        # With a tolerance near rounding, that of the steps is the cause, at any time.
        is_lost = unit * last.s * size > jnp.maximum(self.rtol, 1e3 * unit) * term.threshold()
        by_steps = (result == RESULTS.max_steps_reached) | (result == RESULTS.step_too_small)
        return RESULTS.where(by_steps & is_lost, RESULTS.flow_not_resolved, result)

    def controller(self, term: AbstractFlowTerm) -> diffrax.PIDController:
        """The step size controller."""
        # A safety of 0.8, not diffrax's 0.9: at a jump the step must shrink by orders of magnitude.
        # Measured at log ε = −11, −46, −700: 15, 33, 57 rejected steps instead of 27, 48, 71, of
        # 156, 194, 197 in all (3 × 4), and 44 instead of 80 of 545 (20 × 40). The number in all
        # stays the same to 3 %; with 0.7 it is 1 to 5 % larger.
        return diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol * term.size(),
            norm=term.norm(),
            safety=0.8,
        )


def as_run(
    network: AbstractNetwork,
    problem: AbstractProblem,
    eps: ArrayLike | None,
    log_eps: ArrayLike | None,
    formulation: AbstractFormulation,
    rtol: Real[ArrayLike, ""] | None,
    atol: Real[ArrayLike, ""] | None,
    max_steps: int,
) -> Run:
    """Check the arguments that `gradient_flow` and `crossing_times` share.

    **Raises:** `ValueError`/`TypeError` for bad input of which the values are known."""
    what = "`DualForm()`, `WeightForm()`, `MomentumForm(inertia)` or `AcceleratedForm(alpha)`"
    check_type(formulation, "formulation", AbstractFormulation, what)
    (check_problem if formulation.any_loss else check_known_loss)(problem, any_decay=True)
    dtype = problem.r.dtype
    network = matched(network, problem)
    log_eps = as_log_eps(eps, log_eps, dtype)
    formulation.check(network, log_eps)
    # The default tolerances: `atol` is a tenth of `rtol`. In float64 errors of x̄ are then up to
    # 2e-8 (`docs/accuracy.md`); the steps of the weight form leave ten times as much, so that its
    # `rtol` is a tenth of that. In float32 they are 3e-6 (worst 2e-5); with 100 times less they
    # stay at 2e-6, the level of rounding, for twice the steps; with 100 times more they are 1e-4
    # (worst 1e-3; `python -m benchmarks scaling`). 1e-10 lies between the two rounding units.
    default = 1e-4 if jnp.finfo(dtype).eps > 1e-10 else formulation.default_rtol
    rtol = as_tolerance(default if rtol is None else rtol, "rtol", dtype)
    return Run(
        network=network,
        problem=problem,
        log_eps=log_eps,
        formulation=formulation,
        rtol=rtol,
        atol=rtol / 10 if atol is None else as_tolerance(atol, "atol", dtype),
        max_steps=as_count(max_steps, "max_steps"),
        decays=may_decay(problem.weight_decay),
    )
