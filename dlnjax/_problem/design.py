"""The two classes of problems.

- `LeastSquares(X, y)`: `ℓ(x) = ½‖Xx − y‖²`, so `M = XᵀX`, `r = Xᵀy`, `c = ½‖y‖²`. Products with `M`
  go through `X`; `M` is formed on demand.
- `AbstractDesign`: what `LeastSquares` shares with `generalized.py`, the products with `XᵀX`.
- `Quadratic(M, r, c)`: `ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c`. The constructor tests that `ℓ` is convex and
  bounded below, by `semidefinite.py`. For traced values it sets `c = NaN` where it is not, which
  `is_convex` reads.
"""

from typing import Any, ClassVar

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, ArrayLike, Bool, Float

from .._checks import (
    as_float,
    check_finite,
    check_nonempty,
    check_scalar,
    eager_if_known,
    is_concrete,
    to_common_dtype,
)
from .._linalg import matmul
from .base import AbstractProblem
from .schedule import Schedule
from .semidefinite import Semidefinite


class AbstractDesign(AbstractProblem):
    """The problems with a design matrix: `M = XᵀX`, which is formed on demand only."""

    X: AbstractVar[Float[Array, "n d"]]
    y: AbstractVar[Float[Array, " n"]]

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

    @property
    def rank_bound(self) -> int:
        return min(self.X.shape)


class LeastSquares(AbstractDesign):
    """Least squares, `ℓ(x) = ½‖Xx − y‖²`, without a factor `1/n` (scikit-learn's `alpha` is `κ/n`).

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        problem.loss(jnp.zeros(2))  # ½‖y‖² = 2.5
        problem.gradient(jnp.zeros(2))  # −Xᵀy = (−2, −1)
        problem.lasso_objective(jnp.array([1.0, 0.0]), mu=1.0)  # ½(1² + 1²) + 1 = 2
        ```

    !!! cite "Reference"

        [B25] Berthier, *Diagonal Linear Networks and the Lasso Regularization Path*,
        arXiv 2509.18766, §1.
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    weight_decay: Any  # as in `AbstractProblem`
    quadratic_by_construction: ClassVar[bool] = True

    def __init__(self, X: ArrayLike, y: ArrayLike, weight_decay: ArrayLike | Schedule = 0.0):
        """**Arguments:**

        - `X`: design matrix, shape `(n, d)`.
        - `y`: response, shape `(n,)`.
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `Xᵀy`, or a `Schedule`.

        **Raises:** `TypeError` for non-numeric data; `ValueError` for mismatched or empty
        shapes, NaN or inf, `λ < 0`.
        """
        X, y = as_design(X, y, "LeastSquares")
        self.X, self.y = X, y
        self.weight_decay = as_weight_decay(weight_decay, X.dtype)

    @property
    def r(self) -> Array:
        return matmul(self.y, self.X)

    def is_in_range(self) -> Array:
        return has_squares(self.X) & jnp.all(jnp.isfinite(self.r))

    def rows(self) -> tuple[Array, Array]:
        return self.X, self.y

    def loss(self, x: ArrayLike) -> Array:
        x = self.as_points(x)
        fit = matmul(x, self.X.T)
        return 0.5 * jnp.sum((fit - jnp.broadcast_to(self.y, fit.shape)) ** 2, axis=-1)


class Quadratic(AbstractProblem):
    """A quadratic, `ℓ(x) = ½⟨x, Mx⟩ − ⟨r, x⟩ + c` with `M ⪰ 0` symmetric and `r ∈ range M`.

    !!! example

        ```python
        problem = dln.Quadratic(jnp.diag(jnp.array([1.0, 4.0])), jnp.array([1.0, 2.0]))
        problem.constant  # ½⟨r, M⁻¹r⟩ = 1
        problem.loss(jnp.array([1.0, 0.5]))  # 0, the least loss
        dln.lasso_path(problem).x(1.0)  # (0, 0.25)
        ```

    !!! cite "Reference"

        [B25] §1, arXiv 2509.18766.
    """

    M: Float[Array, "d d"]
    linear: Float[Array, " d"]
    constant: Float[Array, ""]
    weight_decay: Any  # as in `AbstractProblem`
    quadratic_by_construction: ClassVar[bool] = True

    def __init__(
        self,
        M: ArrayLike,
        r: ArrayLike,
        constant: ArrayLike | None = None,
        weight_decay: ArrayLike | Schedule = 0.0,
    ):
        """**Arguments:**

        - `M`: symmetric positive semidefinite, shape `(d, d)`.
        - `r`: in the range of `M`, shape `(d,)`.
        - `constant`: `c`; by default `½⟨r, M†r⟩`, so that the least loss is 0.
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `r`, or a `Schedule`.

        **Raises:** `TypeError` for non-numeric data; `ValueError` if `M` is not square, symmetric
        and positive semidefinite, if `r` is not in its range, if the least loss is negative, for
        NaN or inf, `λ < 0`.
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
        self.weight_decay = as_weight_decay(weight_decay, dtype)
        with eager_if_known(M):
            spectrum = Semidefinite(M)
        # The constant ½⟨r, M†r⟩ needs derivatives in M and r, but those of the pseudo-inverse are
        # NaN where eigenvalues are equal. One Newton step with M† held fixed gives x = M†r the
        # right first derivative. Since x makes ⟨r, x⟩ − ½⟨x, Mx⟩ stationary, errors of x enter
        # squared: the derivatives of the constant are right up to order three.
        with eager_if_known(M, r):
            x = lax.stop_gradient(spectrum.solve(r))
            x = x + spectrum.solve(r - matmul(M, x))
            least = jnp.sum(r * x) - 0.5 * jnp.sum(x * matmul(M, x))
        c = least if constant is None else as_float(constant, "constant", dtype)
        check_scalar(c, "constant")
        check_finite(c, "constant")
        with eager_if_known(M):
            spectrum.refuse(M, r, x, c, least)
        is_convex = (
            spectrum.is_symmetric()
            & spectrum.is_semidefinite()
            & spectrum.contains(r, matmul(M, x))
            & spectrum.is_bounded(x, c, least)
        )
        # Traced values cannot raise: NaN marks the problem as invalid.
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
        # At a minimum of 0 rounding may make ℓ negative, but as a squared norm it must be ≥ 0: the
        # gap has 2ℓ = ‖ρ‖². The bound, 100 units of rounding of all terms, is the margin by which
        # `Semidefinite.is_bounded` accepts a `constant` that is too small: with less, problems that
        # it accepts would have negative losses. With 100 times more, a loss that is truly negative
        # by 0.1 % of its terms would be hidden in float32.
        norms = jnp.broadcast_to(self.column_norms(), x.shape)
        terms = jnp.sum(norms * jnp.abs(x), axis=-1) ** 2 + jnp.sum(jnp.abs(r * x), axis=-1)
        rounding = 100 * jnp.finfo(x.dtype).eps * (terms + self.constant)
        return jnp.where((value < 0) & (value >= -rounding), 0, value)


def as_design(X: ArrayLike, y: ArrayLike, name: str) -> tuple[Array, Array]:
    """`X` and `y` as arrays `(n, d)` and `(n,)` of one dtype, for the class `name`.

    **Raises:** `TypeError` for non-numeric data; `ValueError` for mismatched or empty shapes, NaN
    or inf."""
    X, y = to_common_dtype(as_float(X, "X"), as_float(y, "y"))
    if X.ndim == 1 and y.ndim == 2:
        raise ValueError(
            f"`X` has shape {X.shape} and `y` has {y.shape}: the matrix comes first, "
            f"`{name}(X, y)`."
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
    return X, y


def has_squares(X: Float[Array, "n d"]) -> Bool[Array, ""]:
    """Whether the squared norms of the columns are finite and do not underflow."""
    square = jnp.sum(X**2, axis=0)
    # Below the smallest normal number, squares of small columns lose their digits or are 0: such a
    # column would count as empty. The correlations `Xᵀy` and `M` would be lost with it.
    lost = (square < jnp.finfo(square.dtype).tiny) & jnp.any(X != 0, axis=0)
    return ~jnp.any(lost) & jnp.all(jnp.isfinite(square))


def as_weight_decay(value: ArrayLike | Schedule, dtype) -> Array | Schedule:
    if isinstance(value, Schedule):
        # The constructor checks them again: breakpoints may be equal in float32.
        with eager_if_known(value.breakpoints, value.values):
            return Schedule(value.breakpoints.astype(dtype), value.values.astype(dtype))
    # A concrete `λ` stays concrete under `jit`: for `λ = 0`, code that only weight decay needs is
    # not compiled.
    with eager_if_known(value):
        decay = as_float(value, "weight_decay", dtype)
    check_scalar(decay, "weight_decay")
    if is_concrete(decay) and not 0 <= float(decay) < np.inf:
        raise ValueError(f"`weight_decay` must be finite and non-negative, got {float(decay)}.")
    return decay
