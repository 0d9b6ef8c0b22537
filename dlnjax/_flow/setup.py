"""What every integration of a flow begins with: a formulation, checked input, and tolerances."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

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
from ..networks import AbstractDualNetwork, AbstractNetwork, Linear
from ..networks.base import (
    harmless_network,
    has_shape,
    matched,
    takes,
)
from ..networks.link import ExponentialLink, link_of
from .kvaerno5 import StagewiseKvaerno5
from .rodas5p import Rodas5P
from .terms.base import AbstractDualTerm, AbstractFlowTerm, column_scale
from .terms.coordinates import CoordinateTerm
from .terms.linear import linear_term, x_size
from .terms.rows import RowTerm
from .terms.weights import WeightTerm, check_least_eps

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractFormulation(eqx.Module):
    """In which variables the flow is integrated, and by which solver by default. `any_loss` says
    whether the loss may be another one than the quadratic."""

    any_loss: AbstractClassVar[bool]

    @abc.abstractmethod
    def term(
        self,
        network: AbstractNetwork,
        problem: AbstractProblem,
        log_eps: Float[Array, ""],
    ) -> AbstractFlowTerm:
        """The vector field."""

    @abc.abstractmethod
    def default_solver(self) -> diffrax.AbstractSolver[Any]:
        """The solver that `gradient_flow` uses unless told otherwise."""

    @abc.abstractmethod
    def check(self, network: AbstractNetwork, log_eps: Float[Array, ""]) -> None:
        """Refuse an `ε` at which the numbers of its dtype do not hold the trajectory."""

    @abc.abstractmethod
    def atol_scale(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Float[Array, ""]
    ) -> Float[Array, ""]:
        """The size of the state in whose units `atol` is given."""


class DualForm(AbstractFormulation):
    """The dual variable of the flow: works at every `ε`, in one of two state spaces, `ν ∈ R^n` (for
    `n < d`, at depth 2, without weight decay) or `w`, with one Cholesky factorisation a step, of
    size `n` or `d`. The default.

    !!! cite "Reference"

        [B25] §4.2, arXiv 2509.18766.
    """

    any_loss: ClassVar[bool] = False

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        if isinstance(network, Linear):
            return linear_term(network, problem, log_eps)
        if not isinstance(network, AbstractDualNetwork):
            raise TypeError(
                f"`{type(network).__name__}` has no dual form. Pass "
                "`formulation=dln.WeightForm()`, or derive it from `AbstractDualNetwork`."
            )
        return dual_term(network, problem, log_eps)

    def default_solver(self) -> diffrax.AbstractSolver[Any]:
        return Rodas5P()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        pass

    def atol_scale(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> Array:
        return jnp.ones_like(log_eps)


def dual_term(
    network: AbstractDualNetwork, problem: AbstractProblem, log_eps: Float[Array, ""]
) -> AbstractDualTerm:
    """The term for the smaller of the state spaces that keep their digits."""
    scale = column_scale(problem)
    link = link_of(network, log_eps, jnp.max(jnp.abs(problem.r)) / scale**2)
    data = problem.rows()
    if data is not None:
        X, y = data
        data = (X / scale, y * scale) if X.shape[0] <= X.shape[1] else None
    decay = problem.weight_decay
    decays = not is_concrete(decay) or float(decay) > 0
    if data is not None and isinstance(link, ExponentialLink) and not decays:
        if problem.rank_bound < problem.r.shape[0]:
            return RowTerm(X=data[0], y=data[1], link=link, scale=scale)
    return CoordinateTerm(
        M=problem.gram() / scale**2,
        data=data,
        r=problem.r,
        link=link,
        weight_decay=decay if decays else None,
        scale=scale,
    )


class WeightForm(AbstractFormulation):
    """The weights themselves, with the gradient of any network's loss by automatic
    differentiation. At small `ε` the sign of `x` drowns in rounding (for `UV`, `u² − v²` cancels):
    below `network.least_log_eps`, for `UV` 3.7e-11 in float64, it is refused. It is there for
    networks of one's own, and to check the dual form."""

    any_loss: ClassVar[bool] = True

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        return WeightTerm(network, problem, log_eps)

    def default_solver(self) -> diffrax.AbstractSolver[Any]:
        return StagewiseKvaerno5()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        check_least_eps(network, log_eps)

    def atol_scale(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> Array:
        if isinstance(network, Linear):  # its weights are of the size of x, wherever they start
            return x_size(network, problem, log_eps)
        return jnp.exp(log_eps / 2)


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
