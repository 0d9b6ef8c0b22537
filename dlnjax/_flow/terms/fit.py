"""How predictions `Xx` pull: the residual `−F′(Xx)` and the curvature `F″(Xx)` of the loss.

In the units of the terms (`base.py`): `X/σ`, `σ²x`, and residuals times `σ`.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..._linalg import matmul
from ..._problem import AbstractLoss, AbstractProblem


class Curvature(eqx.Module):
    """A symmetric positive semidefinite matrix of the rows, `SSᵀ` with `S = √H (I − κvvᵀ)`: `H`
    diagonal, `v` a unit vector. Without `v` it is `H`."""

    weight: Float[Array, " n"]  # H
    v: Float[Array, " n"] | None = None
    kappa: Float[Array, ""] | None = None

    def times(self, factor) -> "Curvature":
        """The matrix times a positive number."""
        return Curvature(factor * self.weight, self.v, self.kappa)

    def _root(self) -> Array:
        # Curvatures may be 0, where the derivative of √ is infinite.
        bends = self.weight > 0
        return jnp.where(bends, jnp.sqrt(jnp.where(bends, self.weight, 1)), 0)

    def _turn(self, rows: Array) -> Array:
        if self.v is None or self.kappa is None:
            return rows
        return rows - self.kappa * jnp.tensordot(self.v, jnp.tensordot(self.v, rows, 1), 0)

    def root(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """`Sv`."""
        return self._root() * self._turn(v)

    def root_transposed(self, rows: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """`Sᵀ` times a vector or a matrix."""
        root = self._root()
        return self._turn((root if rows.ndim == 1 else root[:, None]) * rows)

    def product(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """`SSᵀv`."""
        return self.weight * v if self.v is None else self.root(self.root_transposed(v))


class AbstractFit(eqx.Module):
    """Interface of a loss of the rows, as a function of `σ²x`."""

    X: AbstractVar[Float[Array, "n d"]]  # X/σ

    @abc.abstractmethod
    def residual(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """`−σF′(Xx)`."""

    @abc.abstractmethod
    def curvature(self, x: Float[Array, " d"]) -> Curvature | None:
        """`F″(Xx)`; `None` if it is the identity."""


class Square(AbstractFit):
    """`F(u) = ½‖u − y‖²`."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]  # σy

    def residual(self, x):
        return self.y - matmul(self.X, x)

    def curvature(self, x):
        return None


class Pointwise(AbstractFit):
    """`F(u) = Σ f(uᵢ, yᵢ)`."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    loss: AbstractLoss
    scale: Float[Array, ""]  # σ

    def residual(self, x):
        return -self.scale * self.loss.derivative(matmul(self.X, x) / self.scale, self.y)

    def curvature(self, x):
        return Curvature(self.loss.curvature(matmul(self.X, x) / self.scale, self.y))


class LossClock(AbstractFit):
    """The logistic or exponential loss of labels `y = ±1` in the loss clock, `dτ = c(ℓ) ds`.

    With the margins `m = y∘Xx` and `aᵢ = −∂ℓ/∂mᵢ` the residual is `y∘a/c`, which neither vanishes
    nor overflows however small the loss `ℓ` is: all of it is computed in logarithms.

    | loss | `a` | `c` | `−∂(a/c)/∂m` |
    |---|---|---|---|
    | exponential | `e^{−m}` | `ℓ` | `diag p − ppᵀ`, `p = softmax(−m)` |
    | logistic | `σ(−m)` | `1 − e^{−ℓ}`, about `ℓ` | `diag a(1 − a)/c − (1 − c) aaᵀ/c²` |

    Both are `SSᵀ` with `v = y∘√softmax(−m)`, the signs because they act on `Xx`. The second
    is symmetric, and semidefinite, for this `c`: `a/c` is the gradient of `−log(e^ℓ − 1)`, and
    `e^ℓ − 1 = Π(1 + e^{−mᵢ}) − 1` is a sum of exponentials, whose logarithm is convex. (With `Σa`
    in place of `c` it is not symmetric, with `ℓ` not semidefinite.)
    """

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    scale: Float[Array, ""]  # σ
    is_logistic: bool = eqx.field(static=True)

    def margins(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """`y∘Xx`."""
        return self.y * matmul(self.X, x) / self.scale

    def log_loss(self, m: Float[Array, " n"]) -> Float[Array, ""]:
        """`log ℓ` at margins `m`."""
        if not self.is_logistic:
            return jax.nn.logsumexp(-m)
        # log log(1 + e^{−m}) is −m to rounding where e^{−m} is below it.
        far = -m < jnp.log(jnp.finfo(m.dtype).eps)
        inner = jax.nn.softplus(-jnp.where(far, 0, m))
        return jax.nn.logsumexp(jnp.where(far, -m, jnp.log(inner)))

    def log_clock(self, m: Float[Array, " n"]) -> Float[Array, ""]:
        """`log c`."""
        log_loss = self.log_loss(m)
        if not self.is_logistic:
            return log_loss
        # (1 − e^{−ℓ})/ℓ, which is 1 to rounding where ℓ is below it.
        far = log_loss < jnp.log(jnp.finfo(m.dtype).eps)
        loss = jnp.exp(jnp.where(far, 0, log_loss))
        return jnp.where(far, log_loss, jnp.log(-jnp.expm1(-loss)))

    def pull(self, m: Float[Array, " n"]) -> Float[Array, " n"]:
        """`a/c ≥ 0`."""
        log_a = -jax.nn.softplus(m) if self.is_logistic else -m
        return jnp.exp(log_a - self.log_clock(m))

    def residual(self, x):
        return self.scale * self.y * self.pull(self.margins(x))

    def curvature(self, x):
        m = self.margins(x)
        p, v = self.pull(m), self.y * jnp.sqrt(jax.nn.softmax(-m))
        if not self.is_logistic:
            return Curvature(p, v, jnp.ones_like(self.scale))
        # SSᵀ = √H (I − (2κ − κ²)vvᵀ)√H, and 2κ − κ² is (1 − c)/c Σe^{−m} here.
        loss = jnp.exp(self.log_loss(m))
        share = jnp.exp(jnp.minimum(jax.nn.logsumexp(-m) - self.log_clock(m) - loss, 0))
        rest = 1 - share
        rest = jnp.where(rest > 0, jnp.sqrt(jnp.where(rest > 0, rest, 1)), 0)
        return Curvature(p * jax.nn.sigmoid(m), v, 1 - rest)


def fit_of(problem: AbstractProblem, scale: Float[Array, ""]) -> AbstractFit | None:
    """The fit of a problem that has rows."""
    glm, rows = problem.glm(), problem.rows()
    if glm is not None:
        X, y, loss = glm
        return Pointwise(X / scale, y, loss, scale)
    return None if rows is None else Square(rows[0] / scale, rows[1] * scale)
