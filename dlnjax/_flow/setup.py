"""Formulations of the flow, checked input, and the control of step sizes.

| formulation | state | network | solver |
|---|---|---|---|
| `DualForm()` | dual variable `w` or `ν`, and `z` | `AbstractDualNetwork`, `Linear` | `Rodas5P`, |
| | | | above rank 24 `AutoTsit5` |
| `WeightForm()` | all weights, and `z` | any `AbstractNetwork` | Kvaerno5 |

`as_run` checks the arguments that `gradient_flow` and `crossing_times` share, and returns a `Run`:
the vector field, the validity of traced input, the first step and the step size controller.
"""

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
from .._derivatives import held
from .._linalg import INVERTED
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
from .auto_tsit5 import AutoTsit5
from .driver import Fixed, prepared
from .kvaerno5 import StagewiseKvaerno5
from .link import ExponentialLink, link_of
from .rodas5p import Rodas5P
from .terms.base import AbstractDualTerm, AbstractFlowTerm, column_scale, size_of_x
from .terms.coordinates import CoordinateTerm
from .terms.linear import linear_term, x_size
from .terms.rows import RowTerm
from .terms.weights import WeightTerm, check_least_eps

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractFormulation(eqx.Module):
    """Interface of a formulation: the variables in which the flow is integrated.

    `any_loss` says whether it takes losses other than the quadratic of `M` and `r`."""

    any_loss: AbstractClassVar[bool]

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

    @abc.abstractmethod
    def atol_scale(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Float[Array, ""]
    ) -> Float[Array, ""]:
        """The size of the state, by which `atol` is multiplied: 1, or `ε^½` for weights.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.ones(2))
            network = dln.UV(jnp.ones(2), jnp.zeros(2))
            dln.WeightForm().atol_scale(network, problem, jnp.log(1e-4))  # 0.01
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

    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        # Up to this size a batch factorises fast (`_linalg.INVERTED`), and AutoTsit5 takes about as
        # long and compiles longer. `python -m benchmarks.switching`, at log ε = −46 and −700: 0.85
        # and 1.1 of the time at 20 × 40, 0.5 and 1.5 at 30 × 60, 0.35 and 1.2 at 50 × 100.
        return Rodas5P() if problem.rank_bound <= INVERTED else AutoTsit5()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        pass

    def atol_scale(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> Array:
        return jnp.ones_like(log_eps)


def dual_term(
    network: AbstractDualNetwork, problem: AbstractProblem, log_eps: Float[Array, ""]
) -> AbstractDualTerm:
    """The vector field of the dual form, in rows (`ν`) where that is smaller and accurate."""
    scale = column_scale(problem)
    link = link_of(network, log_eps, size_of_x(problem))
    data = problem.rows()
    if data is not None:
        X, y = data
        # For n ≤ d the velocity goes through X, whose rounding does less harm (see
        # `CoordinateTerm.velocity`); for n > d through M, at a cost of d² instead of 2nd.
        data = (X / scale, y * scale) if X.shape[0] <= X.shape[1] else None
    decay = problem.weight_decay
    # A traced weight decay may be positive. See `terms/rows.py` for what rows require.
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

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        return WeightTerm(network, problem, log_eps)

    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        return StagewiseKvaerno5()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        check_least_eps(network, log_eps)

    def atol_scale(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> Array:
        # The weights of `Linear` are x itself, which grows to its own size from any start.
        if isinstance(network, Linear):
            return x_size(network, problem, log_eps)
        return jnp.exp(log_eps / 2)


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
            (has_shape(self.network, self.log_eps), RESULTS.invalid_shape),
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
            problem=harmless(self.problem, valid),
            log_eps=jnp.where(valid, self.log_eps, -1),
            rtol=jnp.where(valid, self.rtol, 1e-3),
            atol=jnp.where(valid, self.atol, 1e-3),
        )

    def first_step(self, term: AbstractFlowTerm, valid: Bool[Array, ""]) -> Float[Array, ""]:
        """The first step in `s`: 0.01 of the time at which the first coordinate may activate."""
        # As ε → 0 that is 1/‖∇ℓ‖_∞, with ∇ℓ at x(0), or at 0 if x(0) is a minimum. The factor 0.01
        # is not critical: with 1e-4, 1 or 100 the number of steps changed by 2 % at most (64
        # Gaussian problems 3 × 4, log ε from −11 to −700), since the controller corrects a step by
        # up to 10. No derivatives: how steps change with the data is of the order of their errors.
        start, _, _ = term.read(0, term.initial())
        gradients = jnp.stack([self.problem.r, self.problem.gradient(start)])
        size = lax.stop_gradient(jnp.max(jnp.abs(gradients)))
        return 0.01 / jnp.where(valid & (size > 0), size, 1)

    def fixed(
        self,
        term: AbstractFlowTerm,
        solver: diffrax.AbstractSolver[Any],
        grid: Float[Array, " S"],
        valid: Bool[Array, ""],
    ) -> Fixed:
        """How to integrate to the last of the times `grid`."""
        controller, end = held(self.controller()), grid[-1]
        return Fixed(
            solver=prepared(held(solver), controller),
            controller=controller,
            grid=grid,
            first_step=jnp.minimum(self.first_step(term, valid), jnp.where(end > 0, end, 1)),
            max_steps=self.max_steps,
        )

    def controller(self) -> diffrax.PIDController:
        """The step size controller, in the maximum norm."""
        # The maximum norm, since a mean over all coordinates would hide the one that jumps. A
        # safety of 0.8, not diffrax's 0.9: at a jump the step must shrink by orders of magnitude.
        # Measured at log ε = −11, −46, −700: 15, 33, 57 rejected steps instead of 27, 48, 71, of
        # 156, 194, 197 in all (3 × 4), and 44 instead of 80 of 545 (20 × 40). The number in all
        # stays the same to 3 %; with 0.7 it is 1 to 5 % larger.
        return diffrax.PIDController(
            rtol=self.rtol,
            atol=self.atol * self.formulation.atol_scale(self.network, self.problem, self.log_eps),
            norm=optx.max_norm,
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
    what = "`DualForm()` or `WeightForm()`"
    check_type(formulation, "formulation", AbstractFormulation, what)
    (check_problem if formulation.any_loss else check_quadratic)(problem)
    dtype = problem.r.dtype
    network = matched(network, problem)
    log_eps = as_log_eps(eps, log_eps, dtype)
    formulation.check(network, log_eps)
    # The default tolerances. float64: errors of x̄ are up to 2e-8 (`docs/accuracy.md`). float32:
    # they are 3e-6 (worst 2e-5); with 100 times less they stay at 2e-6, the level of rounding, for
    # twice the steps; with 100 times more they are 1e-4 (worst 1e-3; `python -m benchmarks
    # scaling`). 1e-10 lies between the rounding units of the two, 2e-16 and 1e-7.
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
