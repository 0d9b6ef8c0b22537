"""The interfaces of vector fields of the flow.

- `AbstractFlowTerm`: a diffrax term in rescaled time, with its initial state and reading of states.
- `AbstractDualTerm`: one of the dual form, which also factorises its own Jacobian, for `Rodas5P`.

With `w = w(0) ∓ Xᵀν + λs` and `x = Σ ± φ_ε(w)`, the flow is `dν/ds = y − Xx`, `dz/ds = x`; for
another loss `F` of the rows, `dν/ds = −F′(Xx)` (`fit.py`). The state spaces:

| file | state | used for | factorised in each step |
|---|---|---|---|
| `rows.py` | `(ν, z)` | `n < d`, depth 2, no weight decay | `I/(γh) + H X E Xᵀ`, `n × n` |
| `decayed_rows.py` | `(w, ν, z)` | `n < d`, depth 2, weight decay, `large_start` | both |
| `coordinates.py` | `(w, z)` | all other networks with a link | `I + γh √E M √E`, `d × d` |
| the same | | depth 2 and `n` far below `d` (`systems.py`) | `n × n` and `m × m`, `m ≈ 1.25n` |
| `linear.py` | `(x, z)` | depth 1 | `I/(γh) + M + λI`, `d × d` |
| `weights.py` | `(weights, z)` | the weight form | by `quadrature.py` |
| `momentum.py` | `(w, dw/ds, z)` | momentum | by `quadrature.py` |
| `accelerated.py` | `(weights, velocity/s, z)` | Nesterov's flow | by `quadrature.py` |

`E` is the diagonal matrix of `−φ_ε'(w)`, summed over signs; `H` that of `F″(Xx)`, for the square
the identity, and `M = XᵀHX`. The table omits the scales
`σ` and `ζ`, see `AbstractDualTerm`.
"""

import abc
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float, PyTree

from ..._problem import AbstractProblem, Schedule, is_quadratic
from ..._results import RESULTS

# diffrax passes times as arrays of shape () or as numbers.
RealScalarLike = Any
State = tuple[Float[Array, "..."], Float[Array, " d"]]


class AbstractFlowTerm(diffrax.AbstractTerm[Any, Any]):
    """Interface of the flow in rescaled time: vector field, initial state, reading of states."""

    @abc.abstractmethod
    def initial(self) -> Any:
        """The state at `s = 0`."""

    @abc.abstractmethod
    def size(self) -> Float[Array, ""]:
        """The size of the state, by which `atol` is multiplied."""

    def norm(self) -> Callable[[PyTree[Array]], Float[Array, ""]]:
        """The norm of errors, in units of their tolerances."""
        # The maximum, since a mean over all coordinates would hide the one that jumps.
        return optx.max_norm

    @abc.abstractmethod
    def threshold(self) -> Float[Array, ""]:
        """About how large the dual is when weights begin to move, for the first step."""

    @abc.abstractmethod
    def validity(self) -> RESULTS:
        """The first reason why a traced network is invalid, or `successful`."""

    @abc.abstractmethod
    def read(
        self, s: RealScalarLike, state: Any
    ) -> tuple[Float[Array, " d"], Float[Array, " d"], Float[Array, " d"]]:
        """`x`, `z = ∫₀ˢ x` and the dual `Xᵀν = −∫₀ˢ ∇ℓ(x)` at a state, each `(d,)`."""

    def schedule(self) -> Schedule | None:
        """How the weight decay changes with `s`, if it does: steps end at its breakpoints."""
        return None

    def at(self, s: RealScalarLike) -> "AbstractFlowTerm":
        """The field from `s` to the next breakpoint, where it is autonomous."""
        return self

    def is_consistent(self, state: Any) -> Bool[Array, ""]:
        """Whether a user's link is non-negative at a state."""
        return jnp.asarray(True)

    def is_in_range(self, x: Float[Array, "... d"]) -> Bool[Array, ""]:
        """Whether all entries of `x` are below the cap of the links; at the cap they are wrong."""
        return jnp.asarray(True)

    def cause(self, state: Any, result: RESULTS) -> RESULTS:
        """Why an integration ended at `state`, where its steps ended as `result`."""
        return result

    def contr(self, t0: RealScalarLike, t1: RealScalarLike, **kwargs: Any) -> RealScalarLike:
        return t1 - t0

    def prod(self, vf: Any, control: RealScalarLike) -> Any:
        return jax.tree.map(lambda v: control * v, vf)


def unwrapped(terms: Any) -> Any:
    """The term itself: `diffrax.diffeqsolve` wraps it in one with the direction of integration."""
    return getattr(terms, "term", terms)


class AbstractDualTerm(AbstractFlowTerm):
    """Interface of the dual form. The state is `(f, z/ζ)`, and only `f` feeds back:

        g = image(f),    x = x(g),    df/ds = velocity(x),    dz/ds = x.

    `image` is linear, so that the Jacobian of `f` is a product of three matrices. The field is
    autonomous.

    The problem is scaled by `σ`, the largest column norm: `X/σ`, `σy`, `σ²x`, `σ²z`. Entries of
    `M/σ²` are at most 1, so that an error in one entry of `σ²z` changes each entry of `w` by no
    more than itself: one tolerance suits both, whatever the units of `X` are. Where `σ²z` has
    another size than `f`, `ζ` is their quotient.
    """

    scale: AbstractVar[Float[Array, ""]]
    zeta: AbstractVar[Float[Array, ""]]  # ζ

    @abc.abstractmethod
    def response(self, g: Float[Array, "..."]) -> tuple[Float[Array, " d"], Any]:
        """`σ²x` at `g`, and the slopes `−φ_ε'(w)`, which `change` and `factorize` take."""

    @abc.abstractmethod
    def x(self, g: Float[Array, "..."]) -> Float[Array, " d"]:
        """`σ²x` at `g`."""

    @abc.abstractmethod
    def change(self, slope: Any, image: Float[Array, "..."]) -> Float[Array, " d"]:
        """The directional derivative of `σ²x` along a change `image` of `g`."""

    def rounding(self, slope: Float[Array, "..."], g: Float[Array, "..."]) -> Float[Array, " d"]:
        """How far rounding of `g`, whose size is 1 here, moves `σ²x`, which steps cannot tell."""
        return jnp.abs(self.change(slope, jnp.full_like(g, jnp.finfo(g.dtype).eps)))

    @abc.abstractmethod
    def image(self, f: Float[Array, "..."]) -> Float[Array, "..."]:
        """`g`, linear in `f`."""

    @abc.abstractmethod
    def velocity(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """`df/ds` for the value `x` of `σ²x`."""

    @abc.abstractmethod
    def factorize(self, x: Float[Array, " d"], slope: Any, gamma_h) -> PyTree[Array]:
        """Factorise `I/(γh) − J`, with `J` the Jacobian of `f` at the value `x` of `σ²x`."""

    @property
    def drift(self) -> Float[Array, ""] | float:
        """The mean of `df/ds` over both signs, which does not depend on `x`: `λ` in coordinates.

        It is used only where the state has two rows and weight decay."""
        return 0.0

    @abc.abstractmethod
    def solve(
        self, factors: PyTree[Array], rhs: Float[Array, "..."], drift: Float[Array, ""] | float
    ) -> Float[Array, "..."]:
        """`(I/(γh) − J)⁻¹ rhs`, given the mean `drift` of `rhs` over both signs."""

    @property
    @abc.abstractmethod
    def matrix_size(self) -> int:
        """The size of the matrix that a step factorises."""

    @abc.abstractmethod
    def error(self, state: State, error: State) -> State:
        """The error for the step size controller, from the embedded error of a step to `state`."""

    def fixed_zeta(self) -> Array:
        """`ζ`, a constant, to divide by. A loop gives `ζ` the tangent 0, and the derivative of a
        quotient has `1/ζ²`, which is infinite where `σ²z` is 1e-277 (`size_of_z`): 0 · ∞ would be
        NaN."""
        return lax.stop_gradient(self.zeta)

    def vf(self, t: RealScalarLike, y: State, args: Any) -> State:
        x = self.x(self.image(y[0]))
        return self.velocity(x), x / self.fixed_zeta()


def dual_term_of(terms: Any, solver: Any) -> AbstractDualTerm:
    """The term that a solver of the dual form steps, or a `ValueError`."""
    term = unwrapped(terms)
    if not isinstance(term, AbstractDualTerm):
        raise ValueError(f"`{type(solver).__name__}` integrates the dual form only.")
    return term


def dual_of(
    problem: AbstractProblem, s: RealScalarLike, z: Float[Array, " d"]
) -> Float[Array, " d"]:
    """`Xᵀν = ∫ −∇ℓ(x)`, which is `s r − M z` for the quadratic loss only; NaN for others."""
    dual = s * problem.r - problem.matvec(z)
    return jnp.where(is_quadratic(problem), dual, jnp.nan)


def column_scale(problem: AbstractProblem) -> Float[Array, ""]:
    """`σ`, the largest column norm; 1 if all columns are 0."""
    # Without derivatives: the solution does not depend on the scale.
    largest = jnp.sqrt(jnp.max(problem.gram_diagonal()))
    return lax.stop_gradient(jnp.where(largest > 0, largest, 1))


def size_of_z(
    start: Float[Array, "signs d"],
    slope: Float[Array, "signs d"],
    velocity: Float[Array, "signs d"],
    size: Float[Array, ""],
) -> Float[Array, ""]:
    """The size of `σ²z`, given `σ²q` and its slope at the start, and `dw/ds` at `x = 0`: that of
    `w`, `size`, where coordinates may activate.

    Where none does (`dw/ds ≥ 0`: the weight decay exceeds all correlations, or `x ≥ 0` and all of
    them are negative) `x` decays to 0 from the initialisation, each entry in its own time
    `q/(slope · dw/ds)`, and `z` is far below the units of `w`: as large as the largest start times
    the shortest of these times, when entries begin to differ. So `x̄` keeps the relative accuracy
    of entries that start at one size, also where their times differ by decades."""
    decays = jnp.all(velocity >= 0)
    moves = (slope > 0) & (velocity > 0)
    time = start / jnp.where(moves, slope, 1) / jnp.where(moves, velocity, 1)
    largest = jnp.max(start) * jnp.min(jnp.where(moves, time, jnp.inf))
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    # Below tiny^0.9, 1e-277 (float32: 7e-35), errors count as if `σ²z` were that. Without a bound
    # a subnormal `z` is never accurate, and log ε = −700 takes 12 000 steps. With the power 1/2 `x̄`
    # is off by 24 % at log ε = −400 (float32: by 0.2 % at −50).
    least = float(jnp.finfo(start.dtype).tiny) ** 0.9
    small = jnp.minimum(jnp.maximum(largest, least), size)
    return lax.stop_gradient(jnp.where(decays & (largest > 0), small, size))


def size_of_x(problem: AbstractProblem) -> Float[Array, " d"]:
    """How large each entry of `x` may become: `max_j (|r_j|/‖X_j‖) / ‖X_i‖`.

    By Cauchy's inequality the maximum is at most `‖y‖`. The estimate has the units of `x`, whatever
    those of the columns are."""
    norms = jnp.sqrt(lax.stop_gradient(problem.gram_diagonal()))
    norms = jnp.where(norms > 0, norms, column_scale(problem))
    return jnp.max(jnp.abs(lax.stop_gradient(problem.r)) / norms) / norms
