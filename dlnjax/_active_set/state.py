"""The active set of the lasso path and of the limit process.

`AbstractActiveSet` holds the active coordinates `A` in slots, with the solutions of

    M_AA u = (r − λσ)_A,   M_AA w = (ωσ)_A,   σ the signs on A.

On the lasso path `x_A = u − τw` with `τ = 1/μ`; in the limit process `x` moves towards `u`, and
`w = 0`. An `Event` is a pivot: one coordinate joins or leaves, and a matrix that solves these
equations changes by rank one. There are two such matrices, behind one interface, so that solvers
have their rules of events once:

| class     | file         | slots           | matrix                            | a pivot      |
|-----------|--------------|-----------------|-----------------------------------|--------------|
| `Compact` | `compact.py` | as many as rank | the inverse of `M_AA`, rows of `M`| `O(kd + k²)` |
| `Tableau` | `tableau.py` | one a coordinate| `M` after all pivots, `d × d`     | `O(d²)`      |

`active_set` in `choice.py` chooses by shape and dtype. `pivot_until_done` repeats the step of a
solver, and factorises `M_AA` again where the matrix has become too inaccurate for refinement.

All is in units in which the columns have norm 1 (`Scaled`).
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._batching import any_lane
from .._linalg import matmul
from .._loops import cond, while_loop
from .._problem import AbstractProblem
from .tolerances import Tolerances

# Keeps 0/0 out of a relative residual whose right-hand side is 0, as at the first join, where the
# residual is 0 too. Any number that float32 holds and that is far below a correlation will do.
TINY = 1e-30


def indices(size: int) -> Int[Array, " size"]:
    """`0, …, size − 1`, as the 32-bit integers that index the slots."""
    return jnp.arange(size, dtype=jnp.int32)


def largest(v: Shaped[Array, "... m"]) -> Shaped[Array, "..."]:
    """The maximum over the last axis."""
    # XLA for CPUs splits a reduction of more than 32 numbers into two kernels, and in a loop of
    # pivots starting a kernel costs as much as a pass over `d` numbers. Halves are compared first,
    # which becomes a part of the one kernel that is left. (256 is a choice.)
    while 32 < v.shape[-1] <= 256:
        half = (v.shape[-1] + 1) // 2
        v = jnp.maximum(v[..., :half], v[..., -half:])
    return jnp.max(v, axis=-1)


def total(v: Float[Array, "... m"]) -> Float[Array, "..."]:
    """The sum over the last axis, in one kernel like `largest`."""
    while 32 < v.shape[-1] <= 256:
        half, odd = divmod(v.shape[-1], 2)
        rest = v[..., 2 * half :]
        v = v[..., :half] + v[..., half : 2 * half]
        v = jnp.concatenate([v, rest], axis=-1) if odd else v
    return jnp.sum(v, axis=-1)


def lowest(flags: Bool[Array, " m"]) -> Int[Array, ""]:
    """The lowest index where `flags` holds; the last one if nowhere."""
    size = flags.shape[0]
    return -largest(-jnp.where(flags, indices(size), size - 1))


def gather(v: Shaped[Array, "... d"], index: Int[Array, " k"]) -> Shaped[Array, "... k"]:
    """`v` at the active coordinates, 0 in empty slots."""
    return v.at[..., index].get(mode="fill", fill_value=0)


def scatter(index: Int[Array, "*K k"], v: Shaped[Array, "*K k"], d: int) -> Shaped[Array, "*K d"]:
    """From slots to coordinates, 0 where no slot is: the transpose of `gather`."""
    rows = () if index.ndim == 1 else (indices(index.shape[0])[:, None],)
    return jnp.zeros((*index.shape[:-1], d), v.dtype).at[*rows, index].set(v, mode="drop")


def packed(index: Int[Array, "K m"], sign: Int[Array, "K m"], k: int) -> tuple[Array, Array]:
    """Rows of active sets in `m` slots, of which at most `k` are in use, in `k` slots."""
    if index.shape[1] == k:
        return index, sign
    order = jnp.argsort(index, axis=1)[:, :k]
    pack = lambda v: jnp.take_along_axis(v, order, axis=1)
    return pack(index), pack(sign)


class Scaled(eqx.Module):
    """The problem in units in which every column has norm 1.

    Arrays of shape `(s, d)` have a row for each sign: `+`, and `−` unless the problem is over
    `x ≥ 0`.
    """

    scale: Float[Array, " d"]  # 1/‖Xⱼ‖, and 0 for a zero column
    r: Float[Array, " d"]
    # ±r − λ: by how much the correlation at x = 0 exceeds its bound λ + τω as τ → 0. Far below 0
    # where the weight is ∞, so that the coordinate never joins.
    excess: Float[Array, "s d"]
    b: Float[Array, "s d"]  # ω, 0 where it is ∞: how fast the bound grows with τ
    terms: Float[Array, " d"]  # Σᵢ|Xᵢⱼ yᵢ|, the sum of absolute values whose rounding `r` has

    def __init__(self, problem: AbstractProblem, weights: Array, positive: bool):
        diagonal = problem.gram_diagonal()
        is_zero = diagonal <= 0
        self.scale = jnp.where(is_zero, 0, 1 / jnp.sqrt(jnp.where(is_zero, 1, diagonal)))
        self.r = self.scale * problem.r
        a = problem.weight_decay * self.scale
        signs = 1 if positive else 2
        is_excluded = jnp.isinf(weights[:signs])
        # A quarter of the least number: correlations can be subtracted from it without reaching
        # −∞, whose difference with another one would be NaN.
        excess = jnp.stack([self.r - a, -self.r - a][:signs])
        self.excess = jnp.where(is_excluded, float(jnp.finfo(excess.dtype).min) / 4, excess)
        self.b = jnp.where(is_excluded, 0, weights[:signs]) * self.scale[None, :]
        self.terms = jnp.abs(self.r)
        rows = problem.rows()
        if rows is not None:
            X, y = rows
            terms = self.scale * matmul(jnp.abs(y), jnp.abs(X))
            # If `y` is orthogonal to all columns, `r` is only rounding, far below `terms`. Capped
            # by the largest `|r|`, `terms` lets the path of that rounding go on, which is as good
            # as none; uncapped, the path would end before its first knot.
            self.terms = jnp.minimum(terms, jnp.max(self.terms))

    @property
    def norms(self) -> Float[Array, " d"]:
        """`‖Xⱼ‖`, shape `(d,)`."""
        return jnp.where(self.scale > 0, 1 / jnp.where(self.scale > 0, self.scale, 1), 0)

    def column(self, problem: AbstractProblem, j: Array) -> Array:
        """Column `j` of the scaled `M`, shape `(d,)`."""
        return self.scale[j] * self.scale * problem.gram_column(j)

    def hidden(self, active: "AbstractActiveSet", tol: Tolerances) -> tuple[Array, Array]:
        """Bounds of the rounding in each entry of `r − Mu` and of `Mw`, shape `(d,)` each.

        They are relative to the sums of absolute values that the entry comes from, `|r|` or
        `|M_jA||u|`, not to the largest entry: so knots may span any number of decades.
        """
        sums = tol.sum * active.coherence
        in_image, in_speed = active.size()
        return sums * in_image + tol.floor * self.terms, sums * in_speed


def most_pivots_of_a_tie(k: int) -> int:
    """Pivots at one knot beyond which a tie has cycled, in `k` slots. A choice: 600 designs with
    ties and up to 20 rows took at most 19. The 64 is for small `k`."""
    return 16 * k + 64


class Event(eqx.Module):
    """A pivot: coordinate `j` joins with `sign` in an empty `slot`, or leaves its slot."""

    tau: Float[Array, ""]  # τ of the lasso path, s of the limit process
    j: Int[Array, ""]
    sign: Float[Array, ""]
    rhs: Float[Array, "2"]  # r − λσ and ωσ of a coordinate that joins
    slot: Int[Array, ""]
    leaves: Bool[Array, ""]


class AbstractActiveSet(eqx.Module):
    """The active coordinates in slots, with the solutions `u` and `w` of their equations.

    `u` and `w`, and all that is made of them, are the two rows of one array. An empty slot has sign
    0, and 0 in every array that is read here.
    """

    sign: AbstractVar[Float[Array, " k"]]
    x: AbstractVar[Float[Array, " k"]]  # at the current τ; exactly 0 where it has just joined
    rhs: AbstractVar[Float[Array, "2 k"]]  # (r − λσ)_A and (ωσ)_A
    solution: AbstractVar[Float[Array, "2 k"]]  # u and w
    product: AbstractVar[Float[Array, "2 d"]]  # Mu and Mw
    pivots: AbstractVar[Float[Array, " d"]]  # squared distance of each column from their span
    coherence: AbstractVar[Float[Array, " d"]]  # the largest |M_ji| over the columns i tried so far

    @property
    @abstractmethod
    def is_direct(self) -> bool:
        """Whether slot `j` is always for coordinate `j`."""

    @property
    @abstractmethod
    def index(self) -> Int[Array, " k"]:
        """The coordinate in each slot, `d` in empty ones."""

    @property
    @abstractmethod
    def is_active(self) -> Bool[Array, " d"]:
        """Which coordinates are active."""

    @property
    @abstractmethod
    def residual(self) -> Float[Array, "2 k"]:
        """`rhs − M_AA solution`."""

    @property
    @abstractmethod
    def expansion(self) -> Float[Array, " k"]:
        """`(a, −1)` with `M_AA a = M_Aj` if `j` was to join last, `M_AA⁻¹ e_j` if to leave."""

    @abstractmethod
    def at(self, v: Shaped[Array, "... d"]) -> Shaped[Array, "... k"]:
        """`v` at the active coordinates, 0 in empty slots."""

    @abstractmethod
    def with_active(self, v: Float[Array, " d"], slots: Float[Array, " k"]) -> Float[Array, " d"]:
        """`v`, replaced by `slots` at the active coordinates."""

    @abstractmethod
    def largest(self, v: Float[Array, " d"], slots: Float[Array, " k"]) -> Float[Array, ""]:
        """The maximum of both."""

    @abstractmethod
    def slot(self, j: Int[Array, ""], leaves: Bool[Array, ""]) -> Int[Array, ""]:
        """The slot of `j` if it `leaves`, else one that it may join."""

    @abstractmethod
    def column(self, problem: AbstractProblem, scaled: Scaled, j: Array) -> Float[Array, " d"]:
        """Column `j` of the scaled `M`."""

    @abstractmethod
    def prepared(
        self, tol: Tolerances, is_vague: Bool[Array, ""] | None = None
    ) -> "AbstractActiveSet":
        """The set as the next event needs it: with `u` and `w` refined if that `is_vague`, or where
        the class finds it necessary."""

    @abstractmethod
    def resting(self, x: Float[Array, " k"]) -> "AbstractActiveSet":
        """The set at `x` with `w = 0`, as if all active coordinates had `ω = 0`."""

    @abstractmethod
    def factorize(self) -> "AbstractActiveSet":
        """The set with its matrix from a Cholesky factorisation of `M_AA`."""

    @abstractmethod
    def pivot(
        self,
        event: Event,
        column: Float[Array, " d"],
        tol: Tolerances,
        is_frozen: Bool[Array, ""],
        is_fresh: Bool[Array, ""],
    ) -> tuple["AbstractActiveSet", Bool[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """The active set after `event`; whether the event was possible; whether the matrix is too
        inaccurate to tell; and whether the event is still to be decided.

        A join is impossible if the `column` depends on the active ones (`tol.pivot`). The event
        stays undecided, and the set unchanged, if it `is_frozen`, or if the matrix is too
        inaccurate and not `is_fresh`, that is just factorised, or if this class asks for another
        look at it after `prepared`.
        """

    def size(self) -> Float[Array, "2"]:
        """The 1-norms of `u` and of `w`."""
        return total(jnp.abs(self.solution))


class Pivoting(eqx.Module):
    """The fields that `pivot_until_done` needs in the state of a solver."""

    active: AbstractVar[AbstractActiveSet]
    is_done: AbstractVar[Bool[Array, ""]]
    is_fresh: AbstractVar[Bool[Array, ""]]  # the matrix was just factorised
    is_stale: AbstractVar[Bool[Array, ""]]  # the matrix is too inaccurate for refinement


_S = TypeVar("_S", bound=Pivoting)
_R = TypeVar("_R")


def pivot_until_done(
    step: Callable[[tuple[_S, _R]], tuple[_S, _R]], carry: tuple[_S, _R]
) -> tuple[_S, _R]:
    """Repeats `step` until the state is done.

    The inner loop makes rank-one updates. It stops where the matrix has become too inaccurate,
    which happens in ill-conditioned problems; the outer loop then factorises `M_AA` and goes on.
    The two are separate because, under `vmap`, a branch inside of the inner loop would factorise
    in every lane at every step. The outer loop runs as often as the worst lane needs.
    """

    def factorize(state: _S) -> _S:
        choose = lambda new, old: old if new is old else jnp.where(state.is_stale, new, old)
        return eqx.tree_at(
            lambda s: (s.active, s.is_fresh, s.is_stale),
            state,
            (
                jax.tree.map(choose, state.active.factorize(), state.active),
                state.is_stale | state.is_fresh,
                jnp.zeros_like(state.is_stale),
            ),
        )

    def until_stale(carry: tuple[_S, _R]) -> tuple[_S, _R]:
        is_running = lambda c: any_lane(~(c[0].is_done | c[0].is_stale))
        state, record = while_loop(is_running, step, carry)
        state = cond(any_lane(state.is_stale), factorize, lambda state: state, state)
        return state, record

    return while_loop(lambda c: any_lane(~c[0].is_done), until_stale, carry)
