"""Formulations: the variables in which the flow is integrated.

| formulation | state | network | solver |
|---|---|---|---|
| `DualForm()` | dual variable `w` or `ν`, and `z` | `AbstractDualNetwork`, `Linear` | `Rodas5P`, |
| | | | above rank 24 `AutoTsit5` |
| `WeightForm()` | all weights, and `z` | any `AbstractNetwork` | Kvaerno5 |
| `MomentumForm(inertia)` | `w`, `dw/ds` and `z` | of depth 2 | Kvaerno5 |
| `AcceleratedForm(alpha)` | all weights, velocities, `z` | any `AbstractNetwork` | Dopri8 |

The first two are forms of gradient flow. The others are other flows, those with momentum.
"""

import abc
import math
from typing import TYPE_CHECKING, Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_flag, as_float, check_scalar, is_concrete
from .._linalg import INVERTED
from .._problem import (
    AbstractProblem,
    Schedule,
    check_known_loss,
    nan_unless_valid,
)
from ..networks import AbstractDualNetwork, AbstractNetwork, Linear
from ..networks.base import matched
from ..networks.signs import sides
from .auto_tsit5 import AutoTsit5
from .depth2 import check_depth_2, weight_rate
from .kvaerno5 import StagewiseKvaerno5
from .rodas5p import Rodas5P
from .terms.accelerated import AcceleratedTerm
from .terms.base import AbstractFlowTerm
from .terms.dual import dual_term
from .terms.linear import linear_term
from .terms.momentum import MomentumTerm
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
    of `d`) otherwise. A step of `Rodas5P` has a Cholesky factorisation of size `n` or `d`, at depth
    2 with `n` far below `d` of at most some `1.25 n`; for problems of rank above 24 the default is
    `AutoTsit5`, which factorises only where it must.

    `x` is a difference of `q⁺` and `q⁻`, which are as large as the start. A start that is so much
    larger than `x` that its digits are lost (a factor of some 1e6 in float64) ends as
    `start_too_large`; with `large_start=True` it may be of any size, at two to three times the cost
    of a step: `Xᵀν` is then kept beside `w`.

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

    large_start: bool = eqx.field(static=True)
    any_loss: ClassVar[bool] = False
    default_rtol: ClassVar[float] = 1e-7

    def __init__(self, *, large_start: bool = False):
        """**Arguments:** `large_start`, whether the start may be of any size, also far larger than
        `x`. Default: no.

        **Raises:** `TypeError` if it is not True or False.
        """
        self.large_start = as_flag(large_start, "large_start")

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
        if self.large_start and not network.positive and network.growth(log_eps) is None:
            raise TypeError(
                f"`large_start` needs a network with a `growth`, which {type(network).__name__} "
                "does not have. Use `UV` or `Deep`."
            )
        return dual_term(network, problem, log_eps, self.large_start)

    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        # Up to this size a batch factorises fast (`_linalg.INVERTED`), and AutoTsit5 takes about as
        # long and compiles longer. `python -m benchmarks.switching`, at log ε = −46 and −700: 0.85
        # and 1.1 of the time at 20 × 40, 0.5 and 1.5 at 30 × 60, 0.35 and 1.2 at 50 × 100.
        return Rodas5P() if problem.rank_bound <= INVERTED else AutoTsit5()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        pass


class WeightForm(AbstractFormulation):
    """The weight form of the flow: it integrates the weights, for any network and loss.

    The gradient is taken by automatic differentiation. At small `ε` the sign of `x` is lost to
    rounding (for `UV`, `u² − v²` cancels): an `ε` below `network.least_log_eps`, for `UV` 3.7e-11
    in float64, is refused; and so, as `start_too_large`, is a start of which `x` is a difference
    that is 7e5 times smaller (float32: 30 times). Use it for networks without a dual form, for
    other losses, and to check the dual form.

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


class MomentumForm(AbstractFormulation):
    """The flow with momentum, `m θ̈ + θ̇ = −∇(ℓ(x) + penalty)`, of the weights `θ` in the time `t`.

    The weights start at rest. It is integrated in the logarithms of the weights, so that any `ε`
    will do; of large starts those that `WeightForm` takes. Gradient descent with steps `γ` and
    heavy-ball momentum `β` follows it with the inertia `m = γ/(1 − β)²`, at `t = γ/(1 − β)` a step.

    As `ε → 0`, while `x` rests, the scaled dual variable moves at `dw/ds = −ψ(a)` in place of `−a`,
    where `a^± = ∓∇ℓ(x) − λ`, and with `c = 1` for `UV`, 2 for `USquared` and `Deep`:

        ψ(a) = (√(1 + 4 m c a) − 1)/(2 m c) ≤ a.

    So coordinates activate later than without momentum: `first_jump`.

    **Break-down.** Where `4 m c a < −1`, as for the sign that a coordinate does not have, the
    weights are a damped oscillator that passes through 0, where their logarithms end. If this lasts
    for a few `m c/log(1/ε)` in `s`, the result is `momentum_oscillates`.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, form = dln.UV(jnp.ones(2), jnp.zeros(2)), dln.MomentumForm(0.1)
        form.first_jump(network, problem)  # 0.585; without momentum it is 0.5
        flow = dln.gradient_flow(network, problem, jnp.array([2.0]), log_eps=-2e3, formulation=form)
        flow.x[0], flow.x_mean[0]  # (2, 1), (1.415, 0.454)
        ```

    !!! cite "Reference"

        Papazov, Pesme & Flammarion, *Leveraging continuous time to understand momentum when
        training diagonal linear networks*, arXiv 2403.05293, where `m` is `λ`.
    """

    inertia: Float[Array, ""]
    any_loss: ClassVar[bool] = False
    default_rtol: ClassVar[float] = 1e-8

    def __init__(self, inertia: ArrayLike):
        """**Arguments:** `inertia = m > 0`, scalar, in units of `t`, as a step size is.

        **Raises:** `ValueError` if it is no scalar, or not positive and finite. (For `m = 0` there
        is `DualForm()`.)
        """
        self.inertia = as_float(inertia, "inertia")
        check_scalar(self.inertia, "inertia")
        if is_concrete(self.inertia) and not 0 < float(self.inertia) < math.inf:
            raise ValueError(
                f"`inertia` must be positive and finite, got {float(self.inertia)}. Without "
                "momentum the flow is that of `DualForm()`, the default."
            )

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        check_depth_2(network, "Momentum")
        assert isinstance(network, AbstractDualNetwork)
        if isinstance(problem.weight_decay, Schedule):
            raise TypeError(
                "Momentum has one weight decay, got a `Schedule`. Pass a number, or use "
                "`DualForm()` or `WeightForm()`."
            )
        return MomentumTerm(network, problem, log_eps, self.inertia.astype(log_eps.dtype))

    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        return StagewiseKvaerno5()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        check_depth_2(network, "Momentum")

    def first_jump(
        self, network: AbstractDualNetwork, problem: AbstractProblem
    ) -> Float[Array, ""]:
        """When the first coordinate activates as `ε → 0`, in rescaled time `s`, a scalar:
        `min w(0)/ψ(a)` over the `a > 0` of `x = 0`, so `1/ψ(‖r‖_∞)` for `UV` without weight decay;
        `inf` if there is none.

        At a finite `ε` the jump is later, by `O(1/log(1/ε))`.

        **Arguments:** `network` and `problem` as in `gradient_flow`. If some `w(0)` is 0, as of
        `Pretrained`, the jump is at 0.

        **Raises:** `TypeError` for another network than those of depth 2; `ValueError` where some
        `4 m c a < −1` (NaN under tracing).

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            network = dln.USquared(jnp.ones(2))
            dln.MomentumForm(0.1).first_jump(network, problem)  # 0.4/(√2.6 − 1) = 0.653
            ```
        """
        check_known_loss(problem)
        network = matched(network, problem)
        check_depth_2(network, "Momentum")
        dtype = problem.r.dtype
        start = network.initial_dual(jnp.asarray(-jnp.inf, dtype))
        pull = self.inertia.astype(dtype) * weight_rate(network, -jnp.ones((), dtype))
        a = sides(-problem.gradient(jnp.zeros_like(problem.r)), start) - problem.weight_decay
        inside = 1 + 4 * pull * a
        if is_concrete(inside) and bool(jnp.any(inside < 0)):
            raise ValueError(
                f"With an inertia of {float(self.inertia):.4g} weights oscillate at the start, as "
                f"4 m c a is {float(jnp.min(inside)) - 1:.4g} for some, below −1. Use an inertia "
                f"of at most {float(-self.inertia / (4 * jnp.min(pull * a))):.4g}."
            )
        # ψ(a), in a form without cancellation.
        speed = 2 * a / (1 + jnp.sqrt(jnp.maximum(inside, 0)))
        waits = (a > 0) & (start > 0)
        first = jnp.min(jnp.where(waits, start / jnp.where(waits, speed, 1), jnp.inf))
        first = jnp.where(jnp.any(start == 0), 0, first)
        is_known = jnp.all(inside >= 0) & (pull > 0) & jnp.all(jnp.isfinite(start))
        return nan_unless_valid(problem, jnp.where(is_known, first, jnp.nan))


class AcceleratedForm(AbstractFormulation):
    """Nesterov's flow, `θ̈ + (2α + 1)/t θ̇ = −∇(ℓ(x) + penalty)`, of the weights `θ` of any network
    in the time `t = time_scale · s`, from rest.

    `α = 1` is the limit of Nesterov's method. For a linear model it is the equation of
    Euler–Poisson–Darboux: a mode of curvature `ρ²` is `Γ(α + 1)(2/ρt)^α J_α(ρt)`. As in
    `WeightForm`, an `ε` below `network.least_log_eps` is refused.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(1), jnp.array([1.0]))
        form, s = dln.AcceleratedForm(0.5), jnp.array([1.0, 2.0])
        flow = dln.gradient_flow(dln.Linear(jnp.zeros(1)), problem, s, eps=0.5, formulation=form)
        flow.x[:, 0]  # 1 − sin(t)/t, (0.159, 0.545)
        ```

    !!! cite "Reference"

        Su, Boyd & Candès, arXiv 1503.01243; Berthier & Li, arXiv 2202.10742.
    """

    alpha: Float[Array, ""]
    is_large: bool = eqx.field(static=True)
    any_loss: ClassVar[bool] = True
    default_rtol: ClassVar[float] = 1e-8

    def __init__(self, alpha: ArrayLike = 1.0):
        """**Arguments:** `alpha`, a scalar of at least −1/2. Default: 1, Nesterov's. Above 2 the
        flow is stiff at its start, and the default solver Kvaerno5: pass it for a traced `alpha`.

        **Raises:** `ValueError` if it is no scalar, below −1/2 or not finite.
        """
        self.alpha = as_float(alpha, "alpha")
        check_scalar(self.alpha, "alpha")
        if is_concrete(self.alpha) and not -0.5 <= float(self.alpha) < math.inf:
            raise ValueError(
                f"`alpha` must be finite and at least −1/2, got {float(self.alpha)}: the friction "
                "is (2α + 1)/t. Nesterov's flow has 1."
            )
        self.is_large = is_concrete(self.alpha) and float(self.alpha) > 2

    def term(
        self, network: AbstractNetwork, problem: AbstractProblem, log_eps: Array
    ) -> AbstractFlowTerm:
        return AcceleratedTerm(network, problem, log_eps, self.alpha.astype(log_eps.dtype))

    def default_solver(self, problem: AbstractProblem) -> diffrax.AbstractSolver[Any]:
        # Modes oscillate and hardly decay, so that steps are limited by accuracy, not by stiffness:
        # the order counts. Kvaerno5 takes three to five times as many steps. But the friction is
        # stiff at small s, by a factor 2α + 2.
        return StagewiseKvaerno5() if self.is_large else diffrax.Dopri8()

    def check(self, network: AbstractNetwork, log_eps: Array) -> None:
        check_least_eps(network, log_eps)
