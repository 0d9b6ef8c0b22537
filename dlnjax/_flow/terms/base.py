"""What every formulation of the flow hands to diffrax."""

import abc
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..._results import RESULTS

# diffrax passes times as arrays of shape () or as numbers.
RealScalarLike = Any


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
