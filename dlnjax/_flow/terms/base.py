"""What every formulation of the flow hands to diffrax: two interfaces.

- `AbstractFlowTerm`: the flow in rescaled time, its initial state, and how to read a state.
- `AbstractDualTerm`: the dual form, which knows its own Jacobian.

With `w = w(0) ∓ Xᵀν + λs` and `x = Σ ± φ_ε(w)`, the flow is `dν/ds = y − Xx`, `dz/ds = x`. Each
state space is one file, with one Cholesky factorization a step:

- `rows.py`: `(ν, z)`, for `n < d` without weight decay at depth 2;
- `coordinates.py`: `(w, z)`;
- `linear.py`: `(x, z)`, of depth 1;
- `weights.py` is the weight form, of any network.
"""

import abc
from typing import Any

import diffrax
import jax
import jax.lax as lax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float, PyTree

from ..._problem import AbstractProblem
from ..._results import RESULTS

# diffrax passes times as arrays of shape () or as numbers.
RealScalarLike = Any
State = tuple[Float[Array, "..."], Float[Array, " d"]]


class AbstractFlowTerm(diffrax.AbstractTerm[Any, Any]):
    """The flow in rescaled time `s`, with its initial state and how to read a state."""

    @abc.abstractmethod
    def initial(self) -> Any:
        """The state at `s = 0`."""

    @abc.abstractmethod
    def validity(self) -> RESULTS:
        """Under tracing: what of the network its constructor refuses."""

    @abc.abstractmethod
    def read(
        self, s: RealScalarLike, state: Any
    ) -> tuple[Float[Array, " d"], Float[Array, " d"], Float[Array, " d"]]:
        """`x`, `z = ∫x` and the dual `Xᵀν = s r − Mz`, each `(d,)`."""

    def is_consistent(self, state: Any) -> Bool[Array, ""]:
        """Whether the network's own functions hold what they promise at a state."""
        return jnp.asarray(True)

    def is_in_range(self, x: Float[Array, "... d"]) -> Bool[Array, ""]:
        """Whether `x` is below the cap of the links, above which nothing is known of it."""
        return jnp.asarray(True)

    def contr(self, t0: RealScalarLike, t1: RealScalarLike, **kwargs: Any) -> RealScalarLike:
        return t1 - t0

    def prod(self, vf: Any, control: RealScalarLike) -> Any:
        return jax.tree.map(lambda v: control * v, vf)


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
