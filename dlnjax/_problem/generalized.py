"""Problems with another loss than the square: `ℓ(x) = Σᵢ f((Xx)ᵢ, yᵢ)`, without a factor `1/n`.

`losses.py` has the losses `f`. Each class here names one, and checks its targets.
"""

import warnings
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from equinox import AbstractVar
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_type, is_concrete
from .._linalg import matmul
from .base import AbstractProblem
from .checks import check_problem
from .design import AbstractDesign, as_design, as_weight_decay, has_squares
from .losses import AbstractLoss, ExponentialLoss, HuberLoss, LogisticLoss, PoissonLoss
from .schedule import Schedule


class AbstractGeneralizedLinear(AbstractDesign):
    """The problems `ℓ(x) = Σᵢ f((Xx)ᵢ, yᵢ)` with a convex pointwise loss `f`.

    `r = −∇ℓ(0)`; `M = XᵀX` gives columns their units only.
    """

    pointwise: AbstractVar[AbstractLoss]
    quadratic_by_construction: ClassVar[bool] = False

    def glm(self) -> tuple[Array, Array, AbstractLoss]:
        return self.X, self.y, self.pointwise

    @property
    def r(self) -> Array:
        zero = jnp.zeros_like(self.y)
        return -matmul(self.pointwise.derivative(zero, self.y), self.X)

    def is_in_range(self) -> Array:
        targets = jnp.all(self.pointwise.takes(self.y))
        return has_squares(self.X) & targets & jnp.all(jnp.isfinite(self.r))

    def loss(self, x: ArrayLike) -> Array:
        u = matmul(self.as_points(x), self.X.T)
        return jnp.sum(self.pointwise.value(u, jnp.broadcast_to(self.y, u.shape)), axis=-1)

    def gradient(self, x: ArrayLike) -> Array:
        u = matmul(self.as_points(x), self.X.T)
        return matmul(self.pointwise.derivative(u, jnp.broadcast_to(self.y, u.shape)), self.X)

    def gap_at(
        self, x: Array, bounds: Array, positive: bool, rounding: Array | None = None
    ) -> Array:
        # With u = Xx, θ = −f′(u), c = Xᵀθ and the dual point αθ, the gap is
        #     Σᵢ [f(uᵢ) + f*(−αθᵢ) + αθᵢuᵢ] + Σⱼ (κⱼ|xⱼ| − α cⱼxⱼ).
        # The first sum (Fenchel–Young) is 0 at α = 1, and grows as α falls: take the largest α ≤ 1
        # that is feasible. (Domains of conjugates are convex and contain 0 or y: all α ≤ 1 are in.)
        f, y = self.pointwise, self.y
        u = matmul(self.X, x)
        theta = -f.derivative(u, y)
        c = matmul(theta, self.X)
        lost = 0 if rounding is None else rounding
        upper, lower = bounds[0] + lost, bounds[1] + lost
        scale_to = lambda c, bound: jnp.where(c > bound, bound / jnp.where(c > bound, c, 1), 1)
        alpha = jnp.min(scale_to(c, upper))
        if not positive:
            alpha = jnp.minimum(alpha, jnp.min(scale_to(-c, lower)))
        # At α = 1 another α, whose value is not used: at the end of its domain a conjugate may have
        # an infinite derivative.
        inner = jnp.where(alpha == 1, 0.5, alpha)
        young = f.value(u, y) + f.conjugate(-inner * theta, y) + inner * theta * u
        young = jnp.where(alpha == 1, 0, jnp.maximum(jnp.sum(young), 0))
        linear = jnp.where(x == 0, 0, jnp.where(x > 0, bounds[0], bounds[1]) * jnp.abs(x))
        gap = young + jnp.sum(linear - alpha * c * x)
        if rounding is not None:
            gap = jnp.maximum(gap, 0) + jnp.sum(rounding * jnp.abs(x))
        if positive:
            gap = jnp.where(jnp.any(x < 0), jnp.inf, gap)
        return gap


class GeneralizedLinear(AbstractGeneralizedLinear):
    """A generalised linear model with a loss of your own, `ℓ(x) = Σᵢ f((Xx)ᵢ, yᵢ)`.

    `Logistic`, `Poisson`, `Huber` and `Exponential` are ready ones.

    !!! example

        ```python
        X, y = jnp.eye(2), jnp.array([3.0, 1.0])
        problem = dln.GeneralizedLinear(X, y, dln.PoissonLoss())  # the same as dln.Poisson(X, y)
        problem.gradient(jnp.log(y))  # 0
        ```
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    pointwise: AbstractLoss
    weight_decay: Any  # as in `AbstractProblem`

    def __init__(
        self,
        X: ArrayLike,
        y: ArrayLike,
        pointwise: AbstractLoss,
        weight_decay: ArrayLike | Schedule = 0.0,
    ):
        """**Arguments:**

        - `X`: design matrix, shape `(n, d)`.
        - `y`: targets, shape `(n,)`.
        - `pointwise`: the loss `f`, an `AbstractLoss`.
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `∇ℓ`, or a `Schedule`.

        **Raises:** `TypeError` for non-numeric data or another loss; `ValueError` for mismatched or
        empty shapes, NaN or inf, a target that the loss does not take, `λ < 0`.
        """
        what = "a loss, such as `dlnjax.PoissonLoss()`"
        check_type(pointwise, "pointwise", AbstractLoss, what)
        self.X, self.y = as_design(X, y, "GeneralizedLinear")
        self.pointwise = pointwise
        self.weight_decay = as_weight_decay(weight_decay, self.X.dtype)
        name = type(pointwise).__name__
        _check_targets(self, f"`{name}` does not take this target", "See its `takes`.")


class Logistic(AbstractGeneralizedLinear):
    """Logistic regression, `ℓ(x) = Σᵢ log(1 + exp(−yᵢ(Xx)ᵢ))`, for labels `y = ±1`.

    !!! example

        ```python
        problem = dln.Logistic(jnp.eye(2), jnp.array([1.0, -1.0]))
        problem.gradient(jnp.zeros(2))  # −Xᵀy/2 = (−0.5, 0.5)
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([4.0])
        dln.gradient_flow(network, problem, s, log_eps=-2000.0).x[0]  # (1.77, −1.77)
        ```
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    weight_decay: Any  # as in `AbstractProblem`

    def __init__(self, X: ArrayLike, y: ArrayLike, weight_decay: ArrayLike | Schedule = 0.0):
        """**Arguments:**

        - `X`: design matrix, shape `(n, d)`.
        - `y`: labels 1 and −1, shape `(n,)`. (1 and 0 are taken as such, with a warning.)
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `∇ℓ`, or a `Schedule`.

        **Raises:** `TypeError` for non-numeric data; `ValueError` for mismatched or empty shapes,
        NaN or inf, other labels, `λ < 0`.
        """
        self.X, y = as_design(X, y, "Logistic")
        self.y = _as_signs(y)
        self.weight_decay = as_weight_decay(weight_decay, self.X.dtype)
        _check_targets(self, "`y` must be 1 or −1", "Map the two classes to them.")

    @property
    def pointwise(self) -> AbstractLoss:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The loss of one row."""
        return LogisticLoss()


class Exponential(AbstractGeneralizedLinear):
    """The exponential loss, `ℓ(x) = Σᵢ exp(−yᵢ(Xx)ᵢ)`, for labels `y = ±1`.

    !!! example

        ```python
        problem = dln.Exponential(jnp.eye(2), jnp.array([1.0, -1.0]))
        problem.gradient(jnp.zeros(2))  # −Xᵀy = (−1, 1)
        ```
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    weight_decay: Any  # as in `AbstractProblem`

    def __init__(self, X: ArrayLike, y: ArrayLike, weight_decay: ArrayLike | Schedule = 0.0):
        """**Arguments:** `X`, `y` and `weight_decay`, as for `Logistic`.

        **Raises:** as for `Logistic`.
        """
        self.X, y = as_design(X, y, "Exponential")
        self.y = _as_signs(y)
        self.weight_decay = as_weight_decay(weight_decay, self.X.dtype)
        _check_targets(self, "`y` must be 1 or −1", "Map the two classes to them.")

    @property
    def pointwise(self) -> AbstractLoss:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The loss of one row."""
        return ExponentialLoss()


class Poisson(AbstractGeneralizedLinear):
    """Poisson regression, `ℓ(x) = Σᵢ exp((Xx)ᵢ) − yᵢ(Xx)ᵢ`, for counts `y ≥ 0` of mean `e^{Xx}`.

    !!! example

        ```python
        problem = dln.Poisson(jnp.eye(2), jnp.array([3.0, 0.0]))
        problem.gradient(jnp.zeros(2))  # Xᵀ(1 − y) = (−2, 1)
        ```
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    weight_decay: Any  # as in `AbstractProblem`

    def __init__(self, X: ArrayLike, y: ArrayLike, weight_decay: ArrayLike | Schedule = 0.0):
        """**Arguments:**

        - `X`: design matrix, shape `(n, d)`.
        - `y`: counts `≥ 0`, shape `(n,)`.
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `∇ℓ`, or a `Schedule`.

        **Raises:** `TypeError` for non-numeric data; `ValueError` for mismatched or empty shapes,
        NaN or inf, negative counts, `λ < 0`.
        """
        self.X, self.y = as_design(X, y, "Poisson")
        self.weight_decay = as_weight_decay(weight_decay, self.X.dtype)
        _check_targets(self, "`y` must be counts ≥ 0", "For real targets use `LeastSquares`.")

    @property
    def pointwise(self) -> AbstractLoss:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The loss of one row."""
        return PoissonLoss()


class Huber(AbstractGeneralizedLinear):
    """Huber's robust regression: `½r²` for residuals `|r| ≤ δ`, linear with slope `δ` beyond.

    !!! example

        ```python
        problem = dln.Huber(jnp.eye(2), jnp.array([3.0, 0.5]), delta=1.0)
        problem.gradient(jnp.zeros(2))  # (−1, −0.5): the outlier counts as 1
        ```
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    delta: Float[Array, ""]
    weight_decay: Any  # as in `AbstractProblem`

    def __init__(
        self,
        X: ArrayLike,
        y: ArrayLike,
        delta: ArrayLike = 1.0,
        weight_decay: ArrayLike | Schedule = 0.0,
    ):
        """**Arguments:**

        - `X`: design matrix, shape `(n, d)`.
        - `y`: response, shape `(n,)`.
        - `delta`: `δ > 0`, scalar, in units of `y`.
        - `weight_decay`: `λ ≥ 0`, scalar, in units of `∇ℓ`, or a `Schedule`.

        **Raises:** `TypeError` for non-numeric data; `ValueError` for mismatched or empty shapes,
        NaN or inf, `δ ≤ 0`, `λ < 0`.
        """
        self.X, self.y = as_design(X, y, "Huber")
        self.delta = HuberLoss(delta).delta.astype(self.X.dtype)
        self.weight_decay = as_weight_decay(weight_decay, self.X.dtype)

    @property
    def pointwise(self) -> AbstractLoss:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The loss of one row."""
        return HuberLoss(self.delta)


def _as_signs(y: Array) -> Array:
    """Labels 0 and 1 as −1 and 1; others as they are."""
    if not is_concrete(y):
        return y
    values = np.asarray(y)
    if not np.all((values == 0) | (values == 1)) or not np.any(values == 0):
        return y
    warnings.warn("Labels 0 and 1 are taken as −1 and 1. Pass `2 * y - 1` to say so.", stacklevel=3)
    return 2 * y - 1


def _check_targets(problem: AbstractGeneralizedLinear, rule: str, fix: str) -> None:
    """Raise a `ValueError` for a known target that the loss does not take."""
    if is_concrete(problem.y, *jax.tree.leaves(problem.pointwise)):
        # Known labels stay known under `jit`.
        with jax.ensure_compile_time_eval():
            bad = np.flatnonzero(~np.asarray(problem.pointwise.takes(problem.y)))
        if len(bad):
            i = int(bad[0])
            raise ValueError(f"{rule}, got y[{i}] = {float(np.asarray(problem.y)[i])}. {fix}")


def glm_of(problem: AbstractProblem) -> tuple[Array, Array, AbstractLoss]:
    """`problem.glm()` of a problem that is known to have one."""
    glm = problem.glm()
    assert glm is not None
    return glm


def check_labels(problem: AbstractProblem, function: str) -> None:
    """Raise a `TypeError` unless `problem` has labels: a logistic or exponential loss."""
    check_problem(problem)
    glm = problem.glm()
    if glm is None or not isinstance(glm[2], LogisticLoss | ExponentialLoss):
        raise TypeError(
            f"`{function}` is about classes, and needs labels 1 and −1: pass "
            "`dlnjax.Logistic(X, y)` or `dlnjax.Exponential(X, y)`, got "
            f"`{type(problem).__name__}`."
        )
