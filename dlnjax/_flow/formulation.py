"""In which variables the flow is integrated."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import is_concrete
from .._problem import AbstractProblem
from ..networks.base import AbstractDualNetwork, AbstractNetwork
from ..networks.linear import Linear
from ..networks.link import ExponentialLink, link_of
from .kvaerno5 import StagewiseKvaerno5
from .rodas5p import Rodas5P
from .terms.base import AbstractFlowTerm
from .terms.coordinates import CoordinateTerm
from .terms.dual import AbstractDualTerm, column_scale
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
