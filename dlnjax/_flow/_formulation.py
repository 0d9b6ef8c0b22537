"""In which variables the flow is integrated."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._network import AbstractDualNetwork, AbstractNetwork, Deep
from .._problem import AbstractProblem
from ._dual import dual_term
from ._power import power_term
from ._rosenbrock import Rodas5P
from ._term import AbstractFlowTerm
from ._weight import WeightTerm

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
    def atol_scale(self, log_eps: Float[Array, ""]) -> Float[Array, ""]:
        """The size of the state in whose units `atol` is given."""


class DualForm(AbstractFormulation):
    """The dual variable `w` of the flow: works at every `ε`, in the smaller of two state spaces,
    `ν ∈ R^n` or `z ∈ R^d`, with one Cholesky factorisation a step. The default.

    !!! cite "Reference"

        [B25] §4.2, arXiv 2509.18766.
    """

    any_loss: ClassVar[bool] = False

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        if not isinstance(network, AbstractDualNetwork):
            raise TypeError(
                f"`{type(network).__name__}` has no dual form. Pass "
                "`formulation=dln.WeightForm()`, or derive it from `AbstractDualNetwork`."
            )
        if isinstance(network, Deep) and network.exponent is not None:
            return power_term(network, problem, log_eps)
        return dual_term(network, problem, log_eps)

    def default_solver(self) -> diffrax.AbstractSolver[Any]:
        return Rodas5P()

    def atol_scale(self, log_eps: Array) -> Array:
        return jnp.ones_like(log_eps)


class WeightForm(AbstractFormulation):
    """The weights themselves, with the gradient of any network's loss by automatic
    differentiation. At small `ε` the sign of `x` drowns in rounding (for `UV`, `u² − v²`
    cancels): use it for `ε ≳ 1e−10`, and to check the dual form."""

    any_loss: ClassVar[bool] = True

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        return WeightTerm(network, problem, log_eps)

    def default_solver(self) -> diffrax.AbstractSolver[Any]:
        return diffrax.Kvaerno5()

    def atol_scale(self, log_eps: Array) -> Array:
        return jnp.exp(log_eps / 2)
