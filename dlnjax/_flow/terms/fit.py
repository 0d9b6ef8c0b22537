"""How predictions `Xx` pull: the residual `−F′(Xx)` and the curvature `F″(Xx)` of the loss.

In the units of the terms (`base.py`): `X/σ`, `σ²x`, and residuals times `σ`.
"""

import abc

import equinox as eqx
from equinox import AbstractVar
from jaxtyping import Array, Float

from ..._linalg import matmul
from ..._problem import AbstractLoss, AbstractProblem


class AbstractFit(eqx.Module):
    """Interface of a loss of the rows, as a function of `σ²x`."""

    X: AbstractVar[Float[Array, "n d"]]  # X/σ

    @abc.abstractmethod
    def residual(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        """`−σF′(Xx)`."""

    @abc.abstractmethod
    def curvature(self, x: Float[Array, " d"]) -> Float[Array, " n"] | None:
        """`F″(Xx)`; `None` if it is 1 everywhere."""


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
        return self.loss.curvature(matmul(self.X, x) / self.scale, self.y)


def fit_of(problem: AbstractProblem, scale: Float[Array, ""]) -> AbstractFit | None:
    """The fit of a problem that has rows."""
    glm, rows = problem.glm(), problem.rows()
    if glm is not None:
        X, y, loss = glm
        return Pointwise(X / scale, y, loss, scale)
    return None if rows is None else Square(rows[0] / scale, rows[1] * scale)
