"""`AbstractProblem`: a quadratic loss with weight decay, its lasso objective and duality gap.

    ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c,    Lasso(x, μ) = ℓ(x) + κ‖x‖₁,    κ = λ + 1/μ.

Where its values are known, a bad problem raises: in its constructor, and in `checks.py`. Under
tracing nothing can be raised: `validity.py` returns a `RESULTS`, and invalid lanes become NaN.
"""

import abc
from typing import Any, ClassVar

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
    is_concrete,
    leading_axes,
)
from .._results import RESULTS, has_no_nan, one_unless
from .losses import AbstractLoss
from .quadratic_loss import check_own_loss
from .schedule import check_constant
from .validity import harmless, validity


class AbstractProblem(eqx.Module):
    """Interface of the problems `ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c` with weight decay `λ ≥ 0`, and of
    those with a convex loss of each row (`glm`).

    Solvers access a problem only through these methods: `r`, products with `M`, columns, blocks
    and the diagonal of `M`, and `loss`. Points `x` may have leading batch axes, `(..., d)`. `r` and
    `κ` are in units of `Xᵀy`, losses in units of `‖y‖²`.

    A convex loss of the rows is a `GeneralizedLinear`, such as `Logistic`. A subclass may have any
    other loss: `gradient_flow` with `WeightForm()`, and `train`, follow it; solvers that assume the
    quadratic raise a `TypeError`.

    !!! example

        ```python
        class Quartic(dln.LeastSquares):
            loss = lambda self, x: jnp.sum((x @ self.X.T - self.y) ** 4, axis=-1)
            gradient = lambda self, x: jax.grad(lambda x: jnp.sum(self.loss(x)))(x)


        problem = Quartic(jnp.eye(2), jnp.array([1.0, -1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        run = dln.train(network, problem, optax.sgd(0.1), eps=0.1, steps=100)
        run.x[-1]  # of the signs of y
        ```

    !!! cite "Reference"

        [B25] §1, arXiv 2509.18766.
    """

    # A scalar, or a `Schedule`. Functions that know one `λ` only refuse that (`checks.py`): to them
    # it is an array.
    weight_decay: AbstractVar[Any]
    # Classes whose `loss` is the quadratic of `r` and `M` set it to True. Their loss is then not
    # evaluated to test that (`quadratic_loss.py`).
    quadratic_by_construction: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def r(self) -> Float[Array, " d"]:
        """The linear term, `−∇ℓ(0)`: `Xᵀy` for least squares. Shape `(d,)`."""

    @abc.abstractmethod
    def matvec(self, x: Float[ArrayLike, "... d"]) -> Float[Array, "... d"]:
        """`Mx`, of shape `(..., d)`, for `x` of shape `(..., d)`.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.matvec(jnp.ones(2))  # (4, 4)
            ```
        """

    @abc.abstractmethod
    def gram(self) -> Float[Array, "d d"]:
        """The Gram matrix `M`, shape `(d, d)`; `XᵀX` for least squares.

        !!! example

            ```python
            dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2)).gram()  # 4I
            ```
        """

    @abc.abstractmethod
    def gram_column(self, j: ArrayLike) -> Float[Array, " d"]:
        """Column `j` of `M`, shape `(d,)`, without forming `M`.

        !!! example

            ```python
            dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2)).gram_column(1)  # (0, 4)
            ```
        """

    @abc.abstractmethod
    def gram_block(self, index: Int[Array, " k"]) -> Float[Array, "k k"]:
        """The submatrix of `M` with rows and columns `index`, shape `(k, k)`, without forming `M`.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.gram_block(jnp.array([1]))  # [[4]]
            ```
        """

    @abc.abstractmethod
    def gram_diagonal(self) -> Float[Array, " d"]:
        """The diagonal of `M`, shape `(d,)`: the squared norms of the columns of `X`.

        !!! example

            ```python
            dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2)).gram_diagonal()  # (4, 4)
            ```
        """

    def column_norms(self) -> Float[Array, " d"]:
        """The column norms `‖Xⱼ‖ = √Mⱼⱼ`, shape `(d,)`.

        !!! example

            ```python
            dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2)).column_norms()  # (2, 2)
            ```
        """
        square = self.gram_diagonal()
        # `where` on the argument of √ too: its derivative at 0 is infinite, and `where` on the
        # value alone would multiply it by 0, which is NaN.
        some = square > 0
        return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)

    def rows(self) -> tuple[Float[Array, "n d"], Float[Array, " n"]] | None:
        """`(X, y)` of shapes `(n, d)` and `(n,)` with `M = XᵀX` and `r = Xᵀy`, or `None` where the
        problem is given by `M` and `r` alone. Solvers choose row or coordinate algorithms by it.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            X, y = problem.rows()
            dln.Quadratic(X.T @ X, y @ X).rows()  # None
            ```
        """
        return None

    def glm(self) -> tuple[Float[Array, "n d"], Float[Array, " n"], AbstractLoss] | None:
        """`(X, y, f)` with `ℓ(x) = Σᵢ f((Xx)ᵢ, yᵢ)`, for a loss other than the square; else `None`.

        !!! example

            ```python
            dln.LeastSquares(jnp.eye(2), jnp.ones(2)).glm()  # None
            X, y, loss = dln.Logistic(jnp.eye(2), jnp.ones(2)).glm()
            ```
        """
        return None

    @property
    @abc.abstractmethod
    def rank_bound(self) -> int:
        """A static upper bound of the rank of `M`: `min(n, d)` for least squares, else `d`."""

    @abc.abstractmethod
    def loss(self, x: Real[ArrayLike, "... d"]) -> Float[Array, "..."]:
        """The loss `ℓ(x)`, without weight decay. `(..., d) -> (...)`.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.loss(jnp.zeros(2))  # ½‖y‖² = 1
            ```
        """

    def is_in_range(self) -> Bool[Array, ""]:
        """Whether all data are finite, and the squared column norms and `r` too. Shape `()`.
        `LeastSquares` also requires that no squared norm underflows.

        !!! example

            ```python
            dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2)).is_in_range()  # True
            ```
        """
        # Bad weight decay has a result of its own, `invalid_decay`.
        data = eqx.tree_at(lambda problem: problem.weight_decay, self, None)
        leaves = [a for a in jax.tree.leaves(data) if eqx.is_inexact_array(a)]
        leaves += [self.gram_diagonal(), self.r]
        return jnp.stack([jnp.all(jnp.isfinite(a)) for a in leaves]).all()

    def is_convex(self) -> Bool[Array, ""]:
        """Whether the loss is convex, bounded below, and its minimum at least 0. Shape `()`.

        !!! example

            ```python
            dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2)).is_convex()  # True
            ```
        """
        return jnp.asarray(True)

    def gradient(self, x: Real[ArrayLike, "... d"]) -> Float[Array, "... d"]:
        """The gradient `∇ℓ(x) = Mx − r`, without weight decay. `(..., d) -> (..., d)`.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.gradient(jnp.zeros(2))  # −r = (−2, −2)
            ```
        """
        x = self.as_points(x)
        return self.matvec(x) - jnp.broadcast_to(self.r, x.shape)

    def lasso_objective(
        self, x: Real[ArrayLike, "... d"], mu: Real[ArrayLike, "..."]
    ) -> Float[Array, "..."]:
        """The lasso objective `Lasso(x, μ) = ℓ(x) + κ‖x‖₁`, `κ = λ + 1/μ` ([B25] Eq. 1.4).

        **Arguments:** `x` of shape `(..., d)`; `mu > 0`, the inverse regularisation in units of
        `1/Xᵀy`, broadcast against the leading axes of `x`.

        **Returns:** the objective, of the broadcast shape `(...)`; NaN where `x` is.

        **Raises:** `ValueError` if `mu ≤ 0` or the last axis of `x` is not `d`; `TypeError` if the
        weight decay is a `Schedule`.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.lasso_objective(jnp.ones(2), 1.0)  # 1 + 2 = 3
            ```
        """
        check_constant(self.weight_decay)
        x = self.as_points(x)
        mu = as_positive(mu, "mu", x.dtype)
        batch = leading_axes(x, mu, "mu")
        valid = validity(self, any_loss=True) == RESULTS.successful
        # Compute with finite values and blank the result: NaN inside would make the derivatives
        # of valid entries NaN too.
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
        """The duality gap of `x` for the lasso at `κ`: an upper bound of `ℓ(x) + κ‖x‖₁ − min`.

        The dual point is the residual `y − Xx`, scaled into the dual feasible set. No solution of
        the lasso is needed.

        **Arguments:** `x` of shape `(..., d)`; `kappa ≥ 0` broadcast against its leading axes
        (units of `r`); `positive` for the lasso over `x ≥ 0` (infinite where some `x < 0`).

        **Returns:** the gap, `≥ 0` up to rounding, of the broadcast shape `(...)`, in units of the
        loss. At `κ = 0` all coordinates with `∇ℓ(x)ᵢ ≠ 0` attain the minimum that scales the dual
        point: the derivative in `κ` is a mean over them, not the one-sided derivative.

        **Raises:** `ValueError` if `kappa < 0`, or the last axis of `x` is not `d`; `TypeError` if
        the loss is neither the quadratic nor that of a `GeneralizedLinear`.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.duality_gap(jnp.full(2, 0.25), 1.0)  # 0: the solution at κ = 1
            ```
        """
        x = self.as_points(x)
        kappa = as_float(kappa, "kappa", x.dtype)
        positive = as_flag(positive, "positive")
        leading_axes(x, kappa, "kappa")
        check_own_loss(self)
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
        """The duality gap of one point `x`, `(d,)`, with a `κ` for each sign of each coordinate.

        **Arguments:** `bounds`, the `κ` of positive entries (row 0) and of negative ones (row 1), 0
        and ∞ allowed; `positive` for `x ≥ 0`; `rounding`, a bound on the rounding error of each
        entry of `Xᵀ(y − Xx)`. With it, a dual constraint that is violated by less counts as
        satisfied, and the error that this may cause, `Σ roundingᵢ|xᵢ|`, is added to the gap.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.gap_at(jnp.full(2, 0.25), jnp.ones((2, 2)), False)  # 0
            ```
        """
        # With ρ = y − Xx the residual, c = Xᵀρ and the dual point αρ, the gap is
        #     ½(1 − α)²‖ρ‖² + Σᵢ (κᵢ|xᵢ| − α cᵢ xᵢ).
        # All terms are non-negative, so that nothing cancels, as it would in the difference of the
        # primal and the dual value. And ‖ρ‖² = 2ℓ(x) follows from M, r and c alone.
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
            # The gap is a convex quadratic in α: its minimum over [0, α_max] is the stationary
            # point 1 + ⟨c, x⟩/‖ρ‖², clipped.
            best = 1 + jnp.where(square > 0, inner / jnp.where(square > 0, square, 1), 0)
            alpha = jnp.clip(best, 0, alpha_max)
            return 0.5 * (1 - alpha) ** 2 * square + jnp.sum(linear - alpha * c * x)

        gap = gap_within(0.0)
        if rounding is not None:
            # A constraint that is violated within `rounding` makes terms of the sum negative.
            within = jnp.maximum(gap_within(rounding), 0) + jnp.sum(rounding * jnp.abs(x))
            gap = jnp.minimum(gap, within)
        if positive:
            gap = jnp.where(jnp.any(x < 0), jnp.inf, gap)
        return gap

    def as_points(self, x: ArrayLike) -> Array:
        """`x` as a floating-point array of points, `(..., d)`, in the dtype of the problem.

        **Raises:** `ValueError` if the last axis is not `d`; `TypeError` if `x` is not numeric.

        !!! example

            ```python
            problem = dln.LeastSquares(2 * jnp.eye(2), jnp.ones(2))
            problem.as_points(np.ones((3, 2), int)).dtype  # float64
            ```
        """
        x = as_float(x, "x", self.r.dtype)
        if x.ndim == 0 or x.shape[-1] != self.r.shape[0]:
            raise ValueError(
                f"The last axis of `x` must have the {self.r.shape[0]} coordinates of the "
                f"problem, got shape {x.shape}."
            )
        return x


@eqx.filter_jit
def _gap_at_all(problem: AbstractProblem, x: Array, kappa: Array, positive: bool) -> Array:
    # Invalid lanes are computed with harmless values: derivatives through NaN would be NaN.
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


def default_events(problem: AbstractProblem) -> int:
    """How many events buffers hold by default, `4 min(n, d) + 16`.

    30 000 Gaussian problems up to 20 × 40 had at most 3.7 min(n, d) knots of the lasso path, and 2
    min(n, d) jumps of the limit; 16 more for the smallest. More end in a result of their own
    (`max_knots_reached`), and too large a buffer costs memory."""
    return 4 * problem.rank_bound + 16
