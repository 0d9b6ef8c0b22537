"""The active set of the lasso path and of the limit process.

`ActiveSet` holds the active coordinates `A` in `k` slots, with the inverse of `M_AA` and the
solutions of

    M_AA u = (r − λσ)_A,   M_AA w = (ωσ)_A,   σ the signs on A.

On the lasso path `x_A = u − τw` with `τ = 1/μ`; in the limit process `x` moves towards `u`, and
`w = 0`. An `Event` is a pivot: one coordinate joins or leaves. `ActiveSet.pivot` changes the
inverse and the solutions by rank one, in `O(kd + k²)`, and corrects the solutions by one step of
iterative refinement. `pivot_until_done` repeats the step of a solver, and factorises `M_AA` again
where the updated inverse has become too inaccurate for refinement.

All is in units in which the columns have norm 1 (`Scaled`).
"""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float, Int, Shaped

from .._batching import any_lane
from .._linalg import inverse_factor, matmul
from .._loops import cond, while_loop
from .._problem import AbstractProblem
from .tolerances import Tolerances

# Keeps 0/0 out of a relative residual whose right-hand side is 0, as at the first join, where the
# residual is 0 too. Any number that float32 holds and that is far below a correlation will do.
TINY = 1e-30


def indices(size: int) -> Int[Array, " size"]:
    """`0, …, size − 1`, as the 32-bit integers that index the slots."""
    return jnp.arange(size, dtype=jnp.int32)


def gather(v: Shaped[Array, "... d"], index: Int[Array, " k"]) -> Shaped[Array, "... k"]:
    """`v` at the active coordinates, 0 in empty slots."""
    return v.at[..., index].get(mode="fill", fill_value=0)


def scatter(index: Int[Array, "*K k"], v: Shaped[Array, "*K k"], d: int) -> Shaped[Array, "*K d"]:
    """From slots to coordinates, 0 where no slot is: the transpose of `gather`."""
    rows = () if index.ndim == 1 else (indices(index.shape[0])[:, None],)
    return jnp.zeros((*index.shape[:-1], d), v.dtype).at[*rows, index].set(v, mode="drop")


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

    def hidden(self, active: "ActiveSet", tol: Tolerances) -> tuple[Array, Array]:
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


class ActiveSet(eqx.Module):
    """The active coordinates in `k` slots, with the solutions `u`, `w` and the inverse of `M_AA`.

    An empty slot has index `d`, and 0 in every other field except `rows`, whose entries there are
    arbitrary.

    The rank-one update of the inverse is kept as two vectors and applied at the next event: XLA
    would otherwise recompute the vectors for each entry of the `k × k` result.

    `u` and `w`, and all that is made of them, are the two rows of one array, since
    `(2, k) @ (k, d)` costs no more than one product with a vector.
    """

    index: Int[Array, " k"]
    sign: Float[Array, " k"]
    x: Float[Array, " k"]  # at the current τ; exactly 0 where it has just joined
    rhs: Float[Array, "2 k"]  # (r − λσ)_A and (ωσ)_A
    solution: Float[Array, "2 k"]  # u and w
    product: Float[Array, "2 d"]  # Mu and Mw
    residual: Float[Array, "2 k"]  # rhs − M_AA solution
    rows: Float[Array, "k d"]  # rows A of M
    inverse: Float[Array, "k k"]  # of M_AA, before its last rank-one update
    update: Float[Array, "2 k"]  # that update is the outer product of these two
    pivots: Float[Array, " d"]  # squared distance of each column from the span of the active ones
    is_active: Bool[Array, " d"]
    coherence: Float[Array, " d"]  # the largest |M_ji| over the columns i that were tried so far

    @classmethod
    def empty(cls, k: int, scale: Array) -> "ActiveSet":
        """No coordinate is active: every column has distance 1 from the span of none."""
        d, dtype = scale.shape[0], scale.dtype
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        return cls(
            index=jnp.full(k, d, jnp.int32),
            sign=zeros(k),
            x=zeros(k),
            rhs=zeros(2, k),
            solution=zeros(2, k),
            product=zeros(2, d),
            residual=zeros(2, k),
            rows=zeros(k, d),
            inverse=zeros(k, k),
            update=zeros(2, k),
            pivots=(scale > 0).astype(dtype),
            is_active=jnp.zeros(d, bool),
            coherence=zeros(d),
        )

    def size(self) -> Float[Array, "2"]:
        """The 1-norms of `u` and of `w`."""
        return jnp.sum(jnp.abs(self.solution), axis=1)

    def factorize(self) -> tuple[Array, Array]:
        """`inverse` and `pivots` from a Cholesky factorisation of `M_AA`, in `O(k²(k + d))`."""
        is_empty = self.sign == 0
        block = jnp.where(is_empty[:, None], 0, gather(self.rows, self.index))
        block = block + jnp.diag(is_empty.astype(block.dtype))
        half = inverse_factor(block)
        # Where M_AA is not positive definite to rounding, the factor is NaN: the updated inverse is
        # kept.
        good = jnp.all(jnp.isfinite(half))
        half = jnp.where(is_empty[None, :], 0, half)  # the identity there
        # With L⁻¹ = half, the squared distance of column j is 1 − |L⁻¹ M_Aj|².
        projected = 1 - jnp.sum(matmul(half, self.rows) ** 2, axis=0)
        inverse = jnp.where(good, matmul(half.T, half), self.inverse)
        # An exact 0 marks a zero column, or one whose join has just failed: it stays excluded.
        return inverse, jnp.where(good & (self.pivots != 0), projected, self.pivots)

    def refined(self) -> "ActiveSet":
        """The set after one step of iterative refinement, which `pivot` makes at the next event."""
        active = (self.sign != 0).astype(self.rhs.dtype)
        inverse = self.inverse + self.update[0][:, None] * self.update[1][None, :]
        change = matmul(self.residual * active[None, :], inverse) * active[None, :]
        solution = self.solution + change
        product = matmul(solution, self.rows)
        residual = self.rhs - gather(product, self.index)
        fields = lambda a: (a.solution, a.product, a.residual)
        return eqx.tree_at(fields, self, (solution, product, residual))

    def pivot(self, event: Event, column: Array, tol, is_frozen: Array, is_fresh: Array) -> tuple:
        """The active set after `event`, whether the event was possible, and whether the inverse is
        too inaccurate to tell.

        A join is impossible if the column depends on the active ones (`tol.pivot`). The set is
        returned unchanged if it `is_frozen`, or if the inverse is too inaccurate (`tol.defect`) and
        not `is_fresh`, that is just factorised.

        With `c = M_Aj` and `a = M_AA⁻¹c`, the inverse changes by `vvᵀ/size`, where

            join:   v = (a, −1),            size = M_jj − ⟨c, a⟩  (the squared distance of column j)
            leave:  v = M_AA⁻¹ e_slot,      size = −v_slot

        and `u`, `w` and `pivots` change by multiples of `v` and of `(Mv)²`. Refinement of `u` and
        `w` by their residual comes first, so that their errors do not accumulate.
        """
        k, d = self.rows.shape
        joins, leaves = ~event.leaves, event.leaves
        here, there = indices(k) == event.slot, indices(d) == event.j
        dot = lambda a, b: jnp.sum(a * b, axis=-1)

        active = (self.sign != 0).astype(column.dtype)
        inverse = self.inverse + self.update[0][:, None] * self.update[1][None, :]
        inverse = inverse * (active[:, None] * active[None, :])
        # Written before it is known whether the join is possible: if not, the slot stays empty,
        # where rows are arbitrary. If a coordinate leaves, this is its own row again.
        rows = self.rows.at[event.slot].set(column, mode="promise_in_bounds")
        joined = gather(column, self.index)
        unit = here.astype(column.dtype)
        rhs = jnp.where(leaves, unit, joined)
        change = matmul(jnp.concatenate([rhs[None], self.residual]), inverse)
        image = matmul(jnp.where(here & joins, -1, change[0])[None], rows)[0]
        # The residual of the solve measures the error of the updated inverse, and refines the
        # expansion once.
        residual = jnp.where(leaves, unit, 0) - gather(image, self.index)
        expansion = change[0] + matmul(residual[None], inverse)[0]
        defect = jnp.max(jnp.abs(residual)) / jnp.maximum(jnp.max(jnp.abs(rhs)), TINY)
        is_stale = ~is_frozen & ~is_fresh & ~(defect < tol.defect)
        is_kept = is_frozen | is_stale

        size = jnp.where(leaves, -dot(unit, expansion), column[event.j] - dot(joined, expansion))
        # Rounding of `M` changes this Schur complement by ε (1 + ‖v‖₁)², which is large
        # where columns that are active almost depend on each other.
        rounding = tol.unit * (1 + jnp.sum(jnp.abs(expansion))) ** 2
        is_dependent = joins & ~(size > jnp.maximum(tol.pivot, rounding))
        possible = ~is_dependent & ~is_kept
        shift = jnp.where(possible, 1 / jnp.where(possible, size, 1), 0)
        solution = self.solution + jnp.where(is_kept, 0, change[1:])
        mismatch = dot(solution, jnp.where(leaves, unit, joined)[None, :])
        mismatch = shift * (mismatch - jnp.where(leaves, 0, event.rhs))
        v = jnp.where(here & joins, -1, expansion)
        # If a join is impossible, the shift is 0 and the inverse stays. `v` is kept in `update`
        # all the same: the limit process needs to know how the column depends on the active ones.
        v = jnp.where(possible | (is_dependent & ~is_kept), v, 0)
        pivots = self.pivots - shift * image**2
        # `size` is more accurate than `pivots`, which add up the rounding of all updates. A column
        # found dependent is set to exactly 0, or the same join would be tried again at once. When a
        # coordinate leaves, the update makes it positive again where it has become independent.
        pivots = jnp.where(there & is_dependent & ~is_kept, 0, pivots)

        here = here & possible
        put = lambda old, new: jnp.where(here, jnp.where(leaves, 0, new), old)
        solution = solution + mismatch[:, None] * v[None, :]
        solution = jnp.where(here & leaves, 0, solution)
        product = matmul(solution, rows)
        index = jnp.where(here, jnp.where(leaves, d, event.j), self.index)
        active_rhs = put(self.rhs, event.rhs[:, None])
        return (
            ActiveSet(
                index=index,
                sign=put(self.sign, event.sign),
                x=jnp.where(here, 0, self.x),
                rhs=active_rhs,
                solution=solution,
                product=product,
                residual=active_rhs - gather(product, index),
                rows=rows,
                inverse=inverse,
                update=jnp.stack([shift * v, v]),
                pivots=pivots,
                is_active=jnp.where(there & possible, joins, self.is_active),
                coherence=jnp.maximum(self.coherence, jnp.abs(column)),
            ),
            possible,
            is_stale,
        )


class Pivoting(eqx.Module):
    """The fields that `pivot_until_done` needs in the state of a solver."""

    active: AbstractVar[ActiveSet]
    is_done: AbstractVar[Bool[Array, ""]]
    is_fresh: AbstractVar[Bool[Array, ""]]  # the inverse was just factorised
    is_stale: AbstractVar[Bool[Array, ""]]  # the inverse is too inaccurate for refinement


_S = TypeVar("_S", bound=Pivoting)
_R = TypeVar("_R")


def pivot_until_done(
    step: Callable[[tuple[_S, _R]], tuple[_S, _R]], carry: tuple[_S, _R]
) -> tuple[_S, _R]:
    """Repeats `step` until the state is done.

    The inner loop makes rank-one updates. It stops where the inverse has become too inaccurate,
    which happens in ill-conditioned problems; the outer loop then factorises `M_AA` and goes on.
    The two are separate because, under `vmap`, a branch inside of the inner loop would factorise
    in every lane at every step. The outer loop runs as often as the worst lane needs.
    """

    def factorize(state: _S) -> _S:
        inverse, pivots = state.active.factorize()
        choose = lambda new, old: jnp.where(state.is_stale, new, old)
        return eqx.tree_at(
            lambda s: (s.active.inverse, s.active.pivots, s.is_fresh, s.is_stale),
            state,
            (
                choose(inverse, state.active.inverse),
                choose(pivots, state.active.pivots),
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
