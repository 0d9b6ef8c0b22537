"""What every integration of a flow begins with."""

import dataclasses

import diffrax
import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from .._checks import (
    as_count,
    as_log_eps,
    as_tolerance,
    check_type,
    is_concrete,
    is_log_eps,
    is_tolerance,
)
from .._loops import check_shard_map
from .._problem import (
    AbstractProblem,
    check_problem,
    check_quadratic,
    harmless,
    validity,
    without_decay,
)
from .._results import RESULTS, first_failure
from ..networks.base import (
    AbstractNetwork,
    harmless_network,
    has_shape,
    matched,
    takes,
)
from .formulation import AbstractFormulation
from .terms.base import AbstractFlowTerm


class Run(eqx.Module):
    """Checked input, and how the flow is stepped."""

    network: AbstractNetwork
    problem: AbstractProblem
    log_eps: Float[Array, ""]
    formulation: AbstractFormulation
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    max_steps: int = eqx.field(static=True)
    decays: bool = eqx.field(static=True)  # False: the weight decay is known to be 0

    def term(self) -> AbstractFlowTerm:
        problem = self.problem if self.decays else without_decay(self.problem)
        return self.formulation.term(self.network, problem, self.log_eps)

    def validity(self, term: AbstractFlowTerm) -> RESULTS:
        """Under tracing: what of the input is refused."""
        takes_decay = takes(self.network, self.problem.weight_decay)
        return first_failure(
            validity(self.problem, self.formulation.any_loss),
            (is_log_eps(self.log_eps), RESULTS.invalid_eps),
            (has_shape(self.network, self.log_eps), RESULTS.invalid_shape),
            term.validity(),
            (takes_decay, RESULTS.invalid_decay),
            (is_tolerance(self.rtol) & is_tolerance(self.atol), RESULTS.invalid_tolerance),
        )

    def harmless(self, valid: Bool[Array, ""]) -> "Run":
        """Input that can be solved in place of what is refused: derivatives of NaN are NaN."""
        return dataclasses.replace(
            self,
            network=harmless_network(self.network, valid),
            problem=harmless(self.problem, valid),
            log_eps=jnp.where(valid, self.log_eps, -1),
            rtol=jnp.where(valid, self.rtol, 1e-3),
            atol=jnp.where(valid, self.atol, 1e-3),
        )

    def first_step(self, term: AbstractFlowTerm, valid: Bool[Array, ""]) -> Float[Array, ""]:
        # Nothing happens before about 1/‖∇ℓ‖_∞, at `x(0)`, or at 0 where that is a minimum. How the
        # steps change with the data is of the order of their errors: no derivative of it is taken,
        # here or in the controller.
        start, _, _ = term.read(0, term.initial())
        gradients = jnp.stack([self.problem.r, self.problem.gradient(start)])
        size = lax.stop_gradient(jnp.max(jnp.abs(gradients)))
        return 0.01 / jnp.where(valid & (size > 0), size, 1)

    def controller(self) -> diffrax.PIDController:
        return diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol * self.formulation.atol_scale(self.network, self.problem, self.log_eps),
            norm=optx.max_norm,
            safety=0.8,  # fewer rejected steps at the jumps, where the step must shrink fast
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
    what = "`DualForm()` or `WeightForm()`"
    check_type(formulation, "formulation", AbstractFormulation, what)
    (check_problem if formulation.any_loss else check_quadratic)(problem)
    check_shard_map((network, problem, eps, log_eps))
    dtype = problem.r.dtype
    network = matched(network, problem)
    log_eps = as_log_eps(eps, log_eps, dtype)
    formulation.check(network, log_eps)
    single = jnp.finfo(dtype).eps > 1e-10
    return Run(
        network=network,
        problem=problem,
        log_eps=log_eps,
        formulation=formulation,
        rtol=as_tolerance((1e-4 if single else 1e-7) if rtol is None else rtol, "rtol", dtype),
        atol=as_tolerance((1e-5 if single else 1e-8) if atol is None else atol, "atol", dtype),
        max_steps=as_count(max_steps, "max_steps"),
        decays=not is_concrete(problem.weight_decay) or float(problem.weight_decay) > 0,
    )
