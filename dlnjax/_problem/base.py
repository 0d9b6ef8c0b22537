"""What a problem is: a loss with weight decay, and its lasso; and which problems are refused."""

import abc
from typing import Any, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._checks import (
    as_flag,
    as_float,
    as_positive,
    check_type,
    is_concrete,
    leading_axes,
)
from .._results import RESULTS, first_failure, has_no_nan, one_unless
from .quadratic_loss import agrees


class AbstractProblem(eqx.Module):
    """`ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c` with weight decay `λ ≥ 0`.

    Everything that a solver asks of a problem is here: `r`, products with `M`, columns of
    `M`, its diagonal. Arguments `x` may carry leading batch axes, `(..., d)`.
    """

    weight_decay: AbstractVar[Float[Array, ""]]
    # Set by classes whose `loss` is the quadratic of `r` and `M`, so that it is not looked at.
    quadratic_by_construction: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def r(self) -> Float[Array, " d"]:
        """The linear term, `Xᵀy` for least squares. Shape `(d,)`."""

    @abc.abstractmethod
    def matvec(self, x: Float[ArrayLike, "... d"]) -> Float[Array, "... d"]:
        """`Mx`, shape `(..., d)`."""

    @abc.abstractmethod
    def gram(self) -> Float[Array, "d d"]:
        """`M`, shape `(d, d)`."""

    @abc.abstractmethod
    def gram_column(self, j: ArrayLike) -> Float[Array, " d"]:
        """Column `j` of `M`, shape `(d,)`, without forming `M`."""

    @abc.abstractmethod
    def gram_block(self, index: Int[Array, " k"]) -> Float[Array, "k k"]:
        """The rows and columns `index` of `M`, without forming `M`."""

    @abc.abstractmethod
    def gram_diagonal(self) -> Float[Array, " d"]:
        """Diagonal of `M`, shape `(d,)`."""

    def column_norms(self) -> Float[Array, " d"]:
        """`‖Xⱼ‖`, the root of the diagonal of `M`, shape `(d,)`."""
        square = self.gram_diagonal()
        some = square > 0  # the derivative of √0 would be NaN
        return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)

    def rows(self) -> tuple[Float[Array, "n d"], Float[Array, " n"]] | None:
        """`X` and `y`, where `M = XᵀX` and `r = Xᵀy` come from them; `None` where they are not
        known."""
        return None

    @property
    @abc.abstractmethod
    def rank_bound(self) -> int:
        """A static upper bound of the rank of `M`: `min(n, d)` for least squares."""

    @abc.abstractmethod
    def loss(self, x: Real[ArrayLike, "... d"]) -> Float[Array, "..."]:
        """`ℓ(x)`, without weight decay. `(..., d) -> (...)`."""

    def is_in_range(self) -> Bool[Array, ""]:
        """Whether the data are finite, and the squares of columns neither overflow nor underflow.
        Shape `()`."""
        data = eqx.tree_at(lambda problem: problem.weight_decay, self, None)
        leaves = [a for a in jax.tree.leaves(data) if eqx.is_inexact_array(a)]
        leaves += [self.gram_diagonal(), self.r]
        return jnp.stack([jnp.all(jnp.isfinite(a)) for a in leaves]).all()

    def is_convex(self) -> Bool[Array, ""]:
        """Whether the loss is convex and has a minimum, which is at least 0. Shape `()`."""
        return jnp.asarray(True)

    def gradient(self, x: Real[ArrayLike, "... d"]) -> Float[Array, "... d"]:
        """`∇ℓ(x) = Mx − r`, without weight decay. `(..., d) -> (..., d)`."""
        x = self.as_points(x)
        return self.matvec(x) - jnp.broadcast_to(self.r, x.shape)

    def lasso_objective(
        self, x: Real[ArrayLike, "... d"], mu: Real[ArrayLike, "..."]
    ) -> Float[Array, "..."]:
        """`Lasso(x, μ) = ℓ(x) + κ‖x‖₁`, `κ = λ + 1/μ` ([B25] Eq. 1.4).

        **Arguments:** `x` of shape `(..., d)`; `mu > 0`, broadcast against the leading axes
        of `x`.

        **Raises:** `ValueError` if `mu ≤ 0` or the last axis of `x` is not `d`.
        """
        x = self.as_points(x)
        mu = as_positive(mu, "mu", x.dtype)
        batch = leading_axes(x, mu, "mu")
        valid = validity(self, any_loss=True) == RESULTS.successful
        # Derivatives of NaN are NaN.
        is_known = ~jnp.any(jnp.isnan(x), axis=-1) & valid
        x, problem = jnp.where(is_known[..., None], x, 1), harmless(self, valid)
        kappa = jnp.broadcast_to(problem.weight_decay + 1 / mu, batch)
        norm = jnp.broadcast_to(jnp.sum(jnp.abs(x), axis=-1), batch)
        value = jnp.broadcast_to(problem.loss(x), batch) + kappa * norm
        return jnp.where(jnp.broadcast_to(is_known, batch), value, jnp.nan)

    def duality_gap(
        self,
        x: Real[ArrayLike, "... d"],
        kappa: Real[ArrayLike, "..."],
        positive: bool = False,
    ) -> Float[Array, "..."]:
        """An upper bound of `ℓ(x) + κ‖x‖₁ − min`, from the residual scaled into the dual
        feasible set. Needs no solution.

        **Arguments:** `x` of shape `(..., d)`; `kappa ≥ 0` broadcast against its leading axes
        (units of `r`); `positive` for the lasso over `x ≥ 0` (infinite where some `x < 0`). At
        `κ = 0` the derivative in `κ` is a mean over coordinates, and no side's.
        """
        x = self.as_points(x)
        kappa = as_float(kappa, "kappa", x.dtype)
        positive = as_flag(positive, "positive")
        leading_axes(x, kappa, "kappa")
        check_quadratic(self)
        if is_concrete(kappa) and not bool(np.all(np.asarray(kappa) >= 0)):
            raise ValueError(
                f"`kappa` must be non-negative, got {float(np.min(np.asarray(kappa)))}."
            )
        return _gap_at_all(self, x, kappa, positive)

    def gap_at(
        self,
        x: Float[Array, " d"],
        bounds: Float[Array, "2 d"],
        positive: bool,
        rounding: Float[Array, " d"] | None = None,
    ) -> Float[Array, ""]:
        """The duality gap where the two signs of each coordinate have their own `κ`, 0 and ∞
        included. With `rounding`, what may be rounding in each entry of `Xᵀ(y − Xx)`, a bound that
        counts as met within it: the gap is then right up to `Σ roundingᵢ|xᵢ|`, which is added."""
        # With ρ = y − Xx the residual, c = Xᵀρ and the dual point αρ, the gap is
        #     ½(1 − α)²‖ρ‖² + Σᵢ (κᵢ|xᵢ| − α cᵢ xᵢ),
        # a sum of non-negative terms: no cancellation, and only ‖ρ‖² = 2ℓ(x) is needed.
        c = -self.gradient(x)
        upper, lower = bounds
        square = 2 * self.loss(x)
        inner = jnp.sum(c * x)
        linear = jnp.where(x == 0, 0, jnp.where(x > 0, upper, lower) * jnp.abs(x))
        scale_to = lambda c, bound: jnp.where(c > bound, bound / jnp.where(c > bound, c, 1), 1)

        def gap_within(rounding: Array | float) -> Array:
            fits = scale_to(c, upper + rounding)
            if not positive:
                fits = jnp.minimum(fits, scale_to(-c, lower + rounding))
            alpha_max = jnp.min(fits)
            # Beyond feasibility, the best scaling in [0, α_max] is where the gap is stationary.
            best = 1 + jnp.where(square > 0, inner / jnp.where(square > 0, square, 1), 0)
            alpha = jnp.clip(best, 0, alpha_max)
            return 0.5 * (1 - alpha) ** 2 * square + jnp.sum(linear - alpha * c * x)

        gap = gap_within(0.0)
        if rounding is not None:
            # A sum of non-negative terms, but for rounding.
            within = jnp.maximum(gap_within(rounding), 0) + jnp.sum(rounding * jnp.abs(x))
            gap = jnp.minimum(gap, within)
        if positive:
            gap = jnp.where(jnp.any(x < 0), jnp.inf, gap)
        return gap

    def as_points(self, x: ArrayLike) -> Array:
        """`x` as an array of points, `(..., d)`."""
        x = as_float(x, "x", self.r.dtype)
        if x.ndim == 0 or x.shape[-1] != self.r.shape[0]:
            raise ValueError(
                f"The last axis of `x` must have the {self.r.shape[0]} coordinates of the "
                f"problem, got shape {x.shape}."
            )
        return x


@eqx.filter_jit
def _gap_at_all(problem: AbstractProblem, x: Array, kappa: Array, positive: bool) -> Array:
    # Derivatives of NaN are NaN.
    is_valid = validity(problem) == RESULTS.successful
    problem = harmless(problem, is_valid)

    def at(x, kappa):
        is_known = has_no_nan((x, kappa)) & is_valid
        x, kappa = one_unless(is_known, (x, kappa))
        gap = problem.gap_at(x, jnp.full((2, x.shape[0]), kappa), positive)
        return jnp.where(is_known, gap, jnp.nan)

    batch = jnp.broadcast_shapes(x.shape[:-1], kappa.shape)
    x, kappa = jnp.broadcast_to(x, (*batch, x.shape[-1])), jnp.broadcast_to(kappa, batch)
    return jnp.vectorize(at, signature="(d),()->()")(x, kappa)


def check_problem(problem: Any) -> None:
    """Refuse what is not a problem."""
    what = "a problem, such as `dlnjax.LeastSquares(X, y)`"
    check_type(problem, "problem", AbstractProblem, what)


def check_quadratic(problem: Any) -> None:
    """Refuse a problem whose loss is not the quadratic of its `r` and `M`."""
    check_problem(problem)
    if _is_quadratic_by_construction(problem) or not is_concrete(*jax.tree.leaves(problem)):
        return
    with jax.ensure_compile_time_eval():
        is_refused = bool(problem.is_in_range() & ~agrees(problem))
    if is_refused:
        raise TypeError(
            f"The loss of {type(problem).__name__} is not the quadratic `½⟨x, Mx⟩ − ⟨r, x⟩ + c` of "
            "its `matvec` and `r`, which is assumed here. Train it with `gradient_flow(..., "
            "formulation=dlnjax.WeightForm())`, or with `dlnjax.train`."
        )


def is_quadratic(problem: AbstractProblem) -> Array:
    """Under tracing: what `check_quadratic` accepts."""
    return jnp.asarray(True) if _is_quadratic_by_construction(problem) else agrees(problem)


def _is_quadratic_by_construction(problem: AbstractProblem) -> bool:
    # Not what a class inherits: it may have another `loss`.
    return vars(type(problem)).get("quadratic_by_construction", False)


def validity(problem: AbstractProblem, any_loss: bool = False) -> RESULTS:
    """Under tracing: what the constructors refuse, and `check_quadratic` unless `any_loss`."""
    decay = problem.weight_decay
    is_loss = problem.is_convex() if any_loss else problem.is_convex() & is_quadratic(problem)
    return first_failure(
        (problem.is_in_range(), RESULTS.invalid_data),
        (is_loss, RESULTS.invalid_problem),
        ((decay >= 0) & jnp.isfinite(decay), RESULTS.invalid_decay),
    )


def nan_unless_valid(problem: AbstractProblem, value: Array) -> Array:
    """For functions without a `result`. Known problems have been looked at already."""
    if is_concrete(*jax.tree.leaves(problem)):
        return value
    return jnp.where(validity(problem) == RESULTS.successful, value, jnp.nan)


_P = TypeVar("_P", bound=AbstractProblem)


def harmless(problem: _P, valid: Array) -> _P:
    """Zeros in place of an invalid problem: with inf in its data LAPACK may not come back, and
    Newton's method does not."""
    zero_unless = lambda v: jnp.where(valid, v, 0) if eqx.is_inexact_array(v) else v
    return jax.tree.map(zero_unless, problem)


def without_decay(problem: _P) -> _P:
    """The problem with `λ = 0`, which is a constant of the program also under tracing."""
    with jax.ensure_compile_time_eval():
        zero = jnp.zeros((), problem.r.dtype)
    return eqx.tree_at(lambda problem: problem.weight_decay, problem, zero)
