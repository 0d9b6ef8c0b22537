"""The convex problem: a quadratic loss with weight decay, and its lasso."""

import abc
import contextlib
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._checks import (
    as_flag,
    as_float,
    as_positive,
    check_finite,
    check_nonempty,
    check_scalar,
    check_type,
    is_concrete,
    leading_axes,
    to_common_dtype,
)
from .._linalg import matmul
from .._results import RESULTS, first_failure, has_no_nan, one_unless
from .quadratic_loss import agrees
from .semidefinite import Semidefinite


class AbstractProblem(eqx.Module):
    """`ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c` with weight decay `λ ≥ 0`.

    Everything that a solver asks of a problem is here: `r`, products with `M`, columns of
    `M`, its diagonal. Arguments `x` may carry leading batch axes, `(..., d)`.
    """

    weight_decay: AbstractVar[Float[Array, ""]]

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


def _as_weight_decay(value: ArrayLike, dtype) -> Array:
    # Under `jit` a constant stays one, so that what only weight decay needs is not computed.
    with _eager(value):
        decay = as_float(value, "weight_decay", dtype)
    check_scalar(decay, "weight_decay")
    if is_concrete(decay) and not 0 <= float(decay) < np.inf:
        raise ValueError(f"`weight_decay` must be finite and non-negative, got {float(decay)}.")
    return decay


class LeastSquares(AbstractProblem):
    """`ℓ(x) = ½‖Xx − y‖²`, without a factor `1/n` (scikit-learn's `alpha` is `κ/n`).

    !!! cite "Reference"

        [B25] Berthier, *Diagonal Linear Networks and the Lasso Regularization Path*,
        arXiv 2509.18766, §1.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    weight_decay: Float[Array, ""]

    def __init__(self, X: ArrayLike, y: ArrayLike, weight_decay: ArrayLike = 0.0):
        """**Arguments:**

        - `X`: design matrix, shape `(n, d)`.
        - `y`: response, shape `(n,)`.
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `Xᵀy`.

        **Raises:** `TypeError` for non-numeric data; `ValueError` for mismatched or empty
        shapes, NaN or inf, `λ < 0`.
        """
        X, y = to_common_dtype(as_float(X, "X"), as_float(y, "y"))
        if X.ndim == 1 and y.ndim == 2:
            raise ValueError(
                f"`X` has shape {X.shape} and `y` has {y.shape}: the matrix comes first, "
                "`LeastSquares(X, y)`."
            )
        if X.ndim != 2:
            raise ValueError(
                f"`X` must be a matrix (n, d), got shape {X.shape}. Use `X[:, None]` for "
                "one column, `jax.vmap` for several problems."
            )
        if y.ndim != 1:
            raise ValueError(
                f"`y` must be a vector (n,), got shape {y.shape}. Use `y[:, 0]` for one "
                "column, `jax.vmap` for several responses."
            )
        check_nonempty(X, "X")
        if X.shape[0] != y.shape[0]:
            raise ValueError(
                f"`X` has {X.shape[0]} rows but `y` has {y.shape[0]} entries: one row of "
                "`X` is one entry of `y`."
            )
        check_finite(X, "X")
        check_finite(y, "y")
        self.X, self.y = X, y
        self.weight_decay = _as_weight_decay(weight_decay, X.dtype)

    @property
    def r(self) -> Array:
        return matmul(self.y, self.X)

    def matvec(self, x: ArrayLike) -> Array:
        return matmul(matmul(x, self.X.T), self.X)

    def gram(self) -> Array:
        return matmul(self.X.T, self.X)

    def gram_column(self, j: ArrayLike) -> Array:
        return matmul(jnp.take(self.X, j, axis=1), self.X)

    def gram_block(self, index: Array) -> Array:
        X = jnp.take(self.X, index, axis=1)
        return matmul(X.T, X)

    def gram_diagonal(self) -> Array:
        return jnp.sum(self.X**2, axis=0)

    def is_in_range(self) -> Array:
        square = self.gram_diagonal()
        lost = (square < jnp.finfo(square.dtype).tiny) & jnp.any(self.X != 0, axis=0)
        return ~jnp.any(lost) & jnp.all(jnp.isfinite(square)) & jnp.all(jnp.isfinite(self.r))

    @property
    def rank_bound(self) -> int:
        return min(self.X.shape)

    def loss(self, x: ArrayLike) -> Array:
        x = self.as_points(x)
        fit = matmul(x, self.X.T)
        return 0.5 * jnp.sum((fit - jnp.broadcast_to(self.y, fit.shape)) ** 2, axis=-1)


class Quadratic(AbstractProblem):
    """`ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c` with `M ⪰ 0` symmetric and `r ∈ range M`.

    !!! cite "Reference"

        [B25] §1, arXiv 2509.18766.
    """

    M: Float[Array, "d d"]
    linear: Float[Array, " d"]
    constant: Float[Array, ""]
    weight_decay: Float[Array, ""]

    def __init__(
        self,
        M: ArrayLike,
        r: ArrayLike,
        constant: ArrayLike | None = None,
        weight_decay: ArrayLike = 0.0,
    ):
        """**Arguments:**

        - `M`: symmetric positive semidefinite, shape `(d, d)`.
        - `r`: in the range of `M`, shape `(d,)`.
        - `constant`: `c`; by default `½⟨r, M†r⟩`, so that the least loss is 0.
        - `weight_decay`: `λ ≥ 0`, scalar.

        **Raises:** `ValueError` if `M` is not square, symmetric and positive semidefinite,
        if `r` is not in its range, if the least loss is negative, for NaN or inf, `λ < 0`.
        """
        M, r = to_common_dtype(as_float(M, "M"), as_float(r, "r"))
        dtype = M.dtype
        if M.ndim != 2 or M.shape[0] != M.shape[1]:
            raise ValueError(f"`M` must be a square matrix, got shape {M.shape}.")
        if r.shape != M.shape[:1]:
            raise ValueError(f"`r` must have shape ({M.shape[0]},) to match `M`, got {r.shape}.")
        check_nonempty(M, "M")
        check_finite(M, "M")
        check_finite(r, "r")
        self.M, self.linear = M, r
        self.weight_decay = _as_weight_decay(weight_decay, dtype)
        with _eager(M):
            spectrum = Semidefinite(M)
        # ½⟨r, M†r⟩, whose derivatives through the pseudo-inverse itself can be NaN. One Newton
        # step with that held fixed gives x = M†r its first derivative, and since x makes
        # ⟨r, x⟩ − ½⟨x, Mx⟩ stationary, that gives the constant three.
        with _eager(M, r):
            x = lax.stop_gradient(spectrum.solve(r))
            x = x + spectrum.solve(r - matmul(M, x))
            least = jnp.sum(r * x) - 0.5 * jnp.sum(x * matmul(M, x))
        c = least if constant is None else as_float(constant, "constant", dtype)
        check_scalar(c, "constant")
        check_finite(c, "constant")
        with _eager(M):
            spectrum.refuse(M, r, x, c, least)
        is_convex = (
            spectrum.is_symmetric()
            & spectrum.is_semidefinite()
            & spectrum.contains(r, matmul(M, x))
            & spectrum.is_bounded(x, c, least)
        )
        # What is traced is not refused: then there is no such constant.
        self.constant = jnp.where(is_convex, c, jnp.nan)

    @property
    def r(self) -> Array:
        return self.linear

    def matvec(self, x: ArrayLike) -> Array:
        return matmul(x, self.M)

    def gram(self) -> Array:
        return self.M

    def gram_column(self, j: ArrayLike) -> Array:
        return jnp.take(self.M, j, axis=1)

    def gram_block(self, index: Array) -> Array:
        return self.M[index[:, None], index[None, :]]

    def gram_diagonal(self) -> Array:
        return jnp.diagonal(self.M)

    def is_in_range(self) -> Array:
        return jnp.all(jnp.isfinite(self.M)) & jnp.all(jnp.isfinite(self.linear))

    def is_convex(self) -> Array:
        return ~jnp.isnan(self.constant)

    @property
    def rank_bound(self) -> int:
        return self.M.shape[0]

    def loss(self, x: ArrayLike) -> Array:
        x = self.as_points(x)
        r = jnp.broadcast_to(self.r, x.shape)
        value = jnp.sum((0.5 * self.matvec(x) - r) * x, axis=-1) + self.constant
        # A squared norm, which rounding must not make negative. What rounding does not explain
        # is no squared norm, and not hidden.
        norms = jnp.broadcast_to(self.column_norms(), x.shape)
        terms = jnp.sum(norms * jnp.abs(x), axis=-1) ** 2 + jnp.sum(jnp.abs(r * x), axis=-1)
        rounding = 100 * jnp.finfo(x.dtype).eps * (terms + self.constant)
        return jnp.where((value < 0) & (value >= -rounding), 0, value)


def _eager(*arrays: ArrayLike) -> contextlib.AbstractContextManager[Any]:
    """Under `jit`, what is made of concrete arrays stays concrete, and is refused at once."""
    return jax.ensure_compile_time_eval() if is_concrete(*arrays) else contextlib.nullcontext()


def check_problem(problem: Any) -> None:
    """Refuse what is not a problem."""
    what = "a problem, such as `dlnjax.LeastSquares(X, y)`"
    check_type(problem, "problem", AbstractProblem, what)


def check_quadratic(problem: Any) -> None:
    """Refuse a problem whose loss is not the quadratic of its `r` and `M`."""
    check_problem(problem)
    if type(problem) in _OURS or not is_concrete(*jax.tree.leaves(problem)):
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
    return jnp.asarray(True) if type(problem) in _OURS else agrees(problem)


_OURS = (LeastSquares, Quadratic)


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
