"""The active set in as many slots as the rank, with the inverse of `M_AA`: for any shape."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._batching import any_lane
from .._linalg import inverse_factor, matmul
from .._loops import cond
from .._problem import AbstractProblem
from .state import TINY, AbstractActiveSet, Event, Scaled, gather, indices, largest, lowest
from .tolerances import Tolerances


class Compact(AbstractActiveSet):
    """The active set in `k` slots, in any order, with the rows of `M` and the inverse of `M_AA`.

    The entries of `rows` in empty slots are arbitrary.

    The rank-one update of the inverse is kept as two vectors and applied at the next event: XLA
    would otherwise recompute the vectors for each entry of the `k × k` result.

    `(2, k) @ (k, d)` costs no more than one product with a vector: hence arrays of two rows.
    """

    coordinates: Int[Array, " k"]  # the one in each slot, d in empty ones
    sign: Float[Array, " k"]
    x: Float[Array, " k"]
    rhs: Float[Array, "2 k"]
    solution: Float[Array, "2 k"]
    product: Float[Array, "2 d"]
    remainder: Float[Array, "2 k"]  # rhs − M_AA solution
    rows: Float[Array, "k d"]  # rows A of M
    inverse: Float[Array, "k k"]  # of M_AA, before its last rank-one update
    update: Float[Array, "2 k"]  # that update is the outer product of these two
    pivots: Float[Array, " d"]
    members: Bool[Array, " d"]  # the active coordinates
    coherence: Float[Array, " d"]

    @classmethod
    def empty(cls, k: int, scale: Array) -> "Compact":
        """No coordinate is active: every column has distance 1 from the span of none."""
        d, dtype = scale.shape[0], scale.dtype
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        return cls(
            coordinates=jnp.full(k, d, jnp.int32),
            sign=zeros(k),
            x=zeros(k),
            rhs=zeros(2, k),
            solution=zeros(2, k),
            product=zeros(2, d),
            remainder=zeros(2, k),
            rows=zeros(k, d),
            inverse=zeros(k, k),
            update=zeros(2, k),
            pivots=(scale > 0).astype(dtype),
            members=jnp.zeros(d, bool),
            coherence=zeros(d),
        )

    @property
    def is_direct(self) -> bool:
        return False

    @property
    def index(self) -> Array:
        return self.coordinates

    @property
    def is_active(self) -> Array:
        return self.members

    @property
    def residual(self) -> Array:
        return self.remainder

    @property
    def expansion(self) -> Array:
        return self.update[1]

    def at(self, v: Array) -> Array:
        return gather(v, self.index)

    def with_active(self, v: Array, slots: Array) -> Array:
        return v.at[self.index].set(slots, mode="drop")

    def largest(self, v: Array, slots: Array) -> Array:
        return jnp.maximum(largest(v), largest(slots))

    def slot(self, j: Array, leaves: Array) -> Array:
        return lowest(jnp.where(leaves, self.index == j, self.sign == 0))

    def column(self, problem: AbstractProblem, scaled: Scaled, j: Array) -> Array:
        return scaled.column(problem, j)

    def resting(self, x: Array) -> "Compact":
        fields = lambda a: (a.rhs, a.solution, a.product, a.remainder)
        rests = tuple(pair.at[1].set(0) for pair in fields(self))
        return eqx.tree_at(lambda a: (a.x, *fields(a)), self, (x, *rests))

    def factorize(self) -> "Compact":
        """The set with `inverse` and `pivots` from a factorisation, in `O(k²(k + d))`."""
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
        pivots = jnp.where(good & (self.pivots != 0), projected, self.pivots)
        return eqx.tree_at(lambda a: (a.inverse, a.pivots), self, (inverse, pivots))

    def prepared(self, tol: Tolerances, is_vague: Array | None = None) -> "Compact":
        if is_vague is None:  # `pivot` refines
            return self
        # The branch returns only what it changes: XLA would copy the other fields of the set.
        changed = lambda a: (a.solution, a.product, a.remainder)
        refine = lambda a: jax.tree.map(
            lambda new, old: jnp.where(is_vague, new, old), changed(a._refined()), changed(a)
        )
        return eqx.tree_at(changed, self, cond(any_lane(is_vague), refine, changed, self))

    def _refined(self) -> "Compact":
        """The set after one step of iterative refinement, which `pivot` makes at the next event."""
        active = (self.sign != 0).astype(self.rhs.dtype)
        inverse = self.inverse + self.update[0][:, None] * self.update[1][None, :]
        change = matmul(self.residual * active[None, :], inverse) * active[None, :]
        solution = self.solution + change
        product = matmul(solution, self.rows)
        residual = self.rhs - gather(product, self.index)
        fields = lambda a: (a.solution, a.product, a.remainder)
        return eqx.tree_at(fields, self, (solution, product, residual))

    def pivot(self, event: Event, column: Array, tol, is_frozen: Array, is_fresh: Array) -> tuple:
        """See `AbstractActiveSet.pivot`; the inverse is too inaccurate by `tol.defect`.

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
            Compact(
                coordinates=index,
                sign=put(self.sign, event.sign),
                x=jnp.where(here, 0, self.x),
                rhs=active_rhs,
                solution=solution,
                product=product,
                remainder=active_rhs - gather(product, index),
                rows=rows,
                inverse=inverse,
                update=jnp.stack([shift * v, v]),
                pivots=pivots,
                members=jnp.where(there & possible, joins, self.is_active),
                coherence=jnp.maximum(self.coherence, jnp.abs(column)),
            ),
            possible,
            is_stale,
            is_kept,
        )
