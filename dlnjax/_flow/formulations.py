"""Formulations: the variables in which the flow is integrated.

| formulation | state | network | solver |
|---|---|---|---|
| `DualForm()` | dual variable `w` or `ν`, and `z` | `AbstractDualNetwork`, `Linear` | `Rodas5P`, |
| | | | above rank 24 `AutoTsit5` |
| `WeightForm()` | all weights, and `z` | any `AbstractNetwork` | Kvaerno5 |
"""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import INVERTED
from .._problem import AbstractProblem, Schedule, least_decay, may_decay
from ..networks import AbstractDualNetwork, AbstractNetwork, Linear
from ..networks.signs import sides
from .auto_tsit5 import AutoTsit5
from .kvaerno5 import StagewiseKvaerno5
from .link import ExponentialLink, link_of
from .rodas5p import Rodas5P
from .terms.base import AbstractDualTerm, AbstractFlowTerm, column_scale, size_of_x, size_of_z
from .terms.coordinates import CoordinateTerm
from .terms.fit import fit_of
from .terms.linear import linear_term
from .terms.rows import RowTerm
from .terms.weights import WeightTerm, check_least_eps

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractFormulation(eqx.Module):
    """Interface of a formulation: the variables in which the flow is integrated.

    `any_loss` says whether it takes losses other than the quadratic of `M` and `r` and those of
    `GeneralizedLinear`; `default_rtol` is the default of `rtol` in float64."""

    any_loss: AbstractClassVar[bool]
    default_rtol: AbstractClassVar[float]

    @abc.abstractmethod
    def term(
        self,
        network: AbstractNetwork,
        problem: AbstractProblem,
        log_eps: Float[Array, ""],
    ) -> AbstractFlowTerm:
        """The vector field, with its initial state and how to read a state.

        **Raises:** `TypeError` if the network does not have this form.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.ones(2))
            network = dln.UV(jnp.ones(2), jnp.zeros(2))
            term = dln.DualForm().term(network, problem, jnp.log(1e-4))
            term.read(0.0, term.initial())  # x, z and dual at s = 0: all 0
            ```
        """

    @abc.abstractmethod
    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        """The solver that `gradient_flow` and `crossing_times` use by default.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            dln.DualForm().default_solver(problem)  # Rodas5P()
            ```
        """

    @abc.abstractmethod
    def check(self, network: AbstractNetwork, log_eps: Float[Array, ""]) -> None:
        """Check that the dtype represents the trajectory accurately at this `ε`.

        **Raises:** `ValueError` if `WeightForm()` is used below `network.least_log_eps`.

        !!! example

            ```python
            network = dln.UV(jnp.ones(2), jnp.zeros(2))
            dln.WeightForm().check(network, jnp.log(1e-10))  # raises nothing; at 1e-11 it does
            ```
        """


class DualForm(AbstractFormulation):
    """The dual form of the flow, the default: it integrates the dual variable, at any `ε`.

    The state is `ν ∈ R^n` for `n < d` at depth 2 without weight decay, and `w` (one or two rows
    of `d`) otherwise. A step of `Rodas5P` has one Cholesky factorisation of size `n` or `d`; for
    problems of rank above 24 the default is `AutoTsit5`, which factorises only where it must.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, form = dln.UV(jnp.ones(2), jnp.zeros(2)), dln.DualForm()
        flow = dln.gradient_flow(network, problem, jnp.array([2.0]), log_eps=-2e3, formulation=form)
        flow.x[0]  # (2, 1)
        ```

    !!! cite "Reference"

        [B25] §4.2, arXiv 2509.18766.
    """

    any_loss: ClassVar[bool] = False
    default_rtol: ClassVar[float] = 1e-7

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        if isinstance(network, Linear):
            if isinstance(problem.weight_decay, Schedule):
                raise TypeError(
                    "The dual form of `Linear` has one weight decay, got a `Schedule`. Pass "
                    "`formulation=dlnjax.WeightForm()`."
                )
            if problem.glm() is not None:
                raise TypeError(
                    f"The dual form of `Linear` is that of the square, got the loss of "
                    f"`{type(problem).__name__}`. Pass `formulation=dlnjax.WeightForm()`."
                )
            return linear_term(network, problem, log_eps)
        if not isinstance(network, AbstractDualNetwork):
            raise TypeError(
                f"`{type(network).__name__}` has no dual form. Pass "
                "`formulation=dln.WeightForm()`, or derive it from `AbstractDualNetwork`."
            )
        return dual_term(network, problem, log_eps)

    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        # Up to this size a batch factorises fast (`_linalg.INVERTED`), and AutoTsit5 takes about as
        # long and compiles longer. `python -m benchmarks.switching`, at log ε = −46 and −700: 0.85
        # and 1.1 of the time at 20 × 40, 0.5 and 1.5 at 30 × 60, 0.35 and 1.2 at 50 × 100.
        return Rodas5P() if problem.rank_bound <= INVERTED else AutoTsit5()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        pass


def dual_term(
    network: AbstractDualNetwork, problem: AbstractProblem, log_eps: Float[Array, ""]
) -> AbstractDualTerm:
    """The vector field of the dual form, in rows (`ν`) where that is smaller and accurate."""
    scale = column_scale(problem)
    link = link_of(network, log_eps, size_of_x(problem))
    fit, is_square = fit_of(problem, scale), problem.glm() is None
    # A traced weight decay may be positive. See `terms/rows.py` for what rows require.
    decay, schedule, has_decay = problem.weight_decay, None, may_decay(problem.weight_decay)
    lowest = least_decay(decay)
    if isinstance(decay, Schedule):
        decay, schedule = decay.values[0], decay if has_decay else None
    q, square = link.q(link.start), scale**2
    # Where a decay is switched off later, coordinates may activate then.
    velocity = sides(-problem.r, link.start) + lowest
    slope = square * link.slope(link.start, q)
    z_size = size_of_z(square * q, slope, velocity, jnp.min(link.unit))
    zeta = z_size / jnp.max(link.unit)
    n, d = (problem.r.size, problem.r.size) if fit is None else fit.X.shape
    if fit is not None and isinstance(link, ExponentialLink) and not has_decay and n < d:
        return RowTerm(fit=fit, link=link, scale=scale, zeta=zeta)
    return CoordinateTerm(
        M=problem.gram() / scale**2 if is_square else None,
        # For n ≤ d the velocity goes through X, whose rounding does less harm (see
        # `CoordinateTerm.velocity`); for n > d through M, at a cost of d² instead of 2nd.
        fit=None if is_square and n > d else fit,
        r=problem.r,
        link=link,
        weight_decay=decay if has_decay else None,
        varies=schedule,
        scale=scale,
        zeta=zeta,
    )


class WeightForm(AbstractFormulation):
    """The weight form of the flow: it integrates the weights, for any network and loss.

    The gradient is taken by automatic differentiation. At small `ε` the sign of `x` is lost to
    rounding (for `UV`, `u² − v²` cancels): an `ε` below `network.least_log_eps`, for `UV` 3.7e-11
    in float64, is refused. Use it for networks without a dual form, for other losses, and to check
    the dual form.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, form = dln.UV(jnp.ones(2), jnp.zeros(2)), dln.WeightForm()
        flow = dln.gradient_flow(network, problem, jnp.array([2.0]), eps=1e-4, formulation=form)
        flow.x[0]  # (2.0000, 0.9996)
        ```
    """

    any_loss: ClassVar[bool] = True
    default_rtol: ClassVar[float] = 1e-8

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        return WeightTerm(network, problem, log_eps)

    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        return StagewiseKvaerno5()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        check_least_eps(network, log_eps)
