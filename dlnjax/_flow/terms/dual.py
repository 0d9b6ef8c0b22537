"""The dual form of the flow (DESIGN §2), as diffrax terms that know their own Jacobian.

With `w = w(0) ∓ Xᵀν + λs` and `x = Σ ± φ_ε(w)`, the flow is `dν/ds = y − Xx`, `dz/ds = x`. Two
state spaces, each with one Cholesky factorisation a step (and depth 1, `_linear.py`):

- rows (`_rows.py`): the state is `(ν, z)`, for `n < d` without weight decay at depth 2;
- coordinates (`_coordinates.py`): the state is `(w, z)`.
"""

import abc
from typing import Any

import jax.lax as lax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float, PyTree

from ..._problem import AbstractProblem
from .base import AbstractFlowTerm, RealScalarLike

State = tuple[Float[Array, "..."], Float[Array, " d"]]


class AbstractDualTerm(AbstractFlowTerm):
    """The state is `(f, z)`, of which only `f` feeds back: `g = image(f)`, `x = x(g)`,
    `df/ds = velocity(x)`, affine in `x`, and `dz/ds = x`. Nothing depends on `s` itself.

    The problem is scaled by `σ`, the largest column norm, so that tolerances are in units of
    the dual variable `w`, and so that `x` and its integral are `σ²x`, `σ²z`.
    """

    scale: AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def response(self, g: Float[Array, "..."]) -> tuple[Float[Array, " d"], Float[Array, "..."]]:
        """`σ²x` at `g`, and the slope that `change` and `factorize` take."""

    @abc.abstractmethod
    def x(self, g: Float[Array, "..."]) -> Float[Array, " d"]:
        """`σ²x` at `g`."""

    @abc.abstractmethod
    def change(self, slope: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, " d"]:
        """The first-order change of `σ²x` where `g` moves by `image`."""

    @abc.abstractmethod
    def image(self, f: Float[Array, "..."]) -> Float[Array, "..."]:
        """`g`, linear in `f`."""

    @abc.abstractmethod
    def velocity(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """`df/ds` where the network is at `σ²x`."""

    @abc.abstractmethod
    def factorize(self, slope: Float[Array, "..."], gamma_h) -> PyTree[Array]:
        """Factorise `I/(γh) − J`, with `J` the Jacobian of `f`."""

    @property
    def drift(self) -> Float[Array, ""] | float:
        """The mean velocity of both signs, which `x` does not change; where there is one sign, or
        the other is its negative, nobody asks."""
        return 0.0

    @abc.abstractmethod
    def solve(
        self, factors: PyTree[Array], rhs: Float[Array, "..."], drift: Float[Array, ""] | float
    ) -> Float[Array, "..."]:
        """`(I/(γh) − J)⁻¹ rhs`, where the mean of `rhs` over both signs is `drift`."""

    @abc.abstractmethod
    def error(self, state: State, error: State) -> State:
        """The size of the error of a step that ends in `state`, in the units of the state."""

    def vf(self, t: RealScalarLike, y: State, args: Any) -> State:
        x = self.x(self.image(y[0]))
        return self.velocity(x), x


def column_scale(problem: AbstractProblem) -> Float[Array, ""]:
    """`σ`, the largest column norm."""
    largest = jnp.sqrt(jnp.max(problem.gram_diagonal()))
    return lax.stop_gradient(jnp.where(largest > 0, largest, 1))
