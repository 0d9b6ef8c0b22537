"""The active set as a tableau, for problems with few coordinates: slot `j` is for coordinate `j`.

With `A` the active coordinates and `I` the others, the tableau is the symmetric `d × d` matrix

    T_AA = −M_AA⁻¹,   T_AI = M_AA⁻¹ M_AI = T_IAᵀ,   T_II = M_II − M_IA M_AA⁻¹ M_AI,

the principal pivot transform of `M`, up to signs. A pivot on `j`, be it a join or a leave, changes
all of it by one rank-one formula (the sweep operator, Goodnight, *A tutorial on the SWEEP
operator*, The American Statistician 33, 1979), and row `j` before the pivot is all that it needs:
on `A` the row expands column `j` in the active ones, and `T_jj` is the squared distance of column
`j` from their span. There are no gathers, since slots are coordinates.

The tableau accumulates the rounding of all its pivots, so nothing is taken from it alone:

- `Mu` and `Mw` are products with `M` itself at each event: the times of events, and the
  certificate, see the true residuals of `u` and `w`.
- Where these residuals are more than rounding (`tol.residual`), `u` and `w` are refined before the
  next event. A pivot on a small or a large `T_jj` (`tol.small`), which amplifies rounding, waits
  one step, in which its row is refined as well. (If that moves the event to another coordinate, its
  pivot does not wait again.)
- Where refinement does not reach that, the set is stale, and `factorize` makes the tableau anew.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._batching import any_lane
from .._linalg import inverse_factor, matmul
from .._loops import cond
from .._problem import AbstractProblem
from .state import TINY, AbstractActiveSet, Event, Scaled, indices, largest, total
from .tolerances import Tolerances


def _row(matrix: Float[Array, "d d"], j: Int[Array, ""]) -> Float[Array, " d"]:
    return lax.dynamic_index_in_dim(matrix, j, 0, keepdims=False)


def _images(v: Float[Array, "m d"], matrix: Float[Array, "d d"]) -> Float[Array, "m d"]:
    """`v @ matrix`."""
    # XLA writes the product of one row into the program, but calls a library for several. In a
    # batch of matrices 4 × 4 a call takes 0.2 µs, as long as all the rest of a pivot; from 40 × 40
    # on it is as fast, and faster at 100 × 100.
    if matrix.shape[0] <= 32:
        return jnp.stack([matmul(row, matrix) for row in v])
    return matmul(v, matrix)


def _is_rounding(residual: Array, solution: Array, unit: Array, tol: Tolerances) -> Array:
    """Whether the residuals of both `u` and `w` are no more than rounding."""
    bound = tol.residual * (4 * unit + total(jnp.abs(solution)))
    return jnp.all(largest(jnp.abs(residual)) <= bound)


class Tableau(AbstractActiveSet):
    """The active set in `d` slots, one a coordinate, with the tableau `T`.

    The rank-one change of `T` is kept as vectors and made at the next event: XLA would otherwise
    recompute the vectors for each entry of `T`.
    """

    sign: Float[Array, " d"]
    x: Float[Array, " d"]
    rhs: Float[Array, "2 d"]
    solution: Float[Array, "2 d"]
    product: Float[Array, "2 d"]
    pivots: Float[Array, " d"]
    coherence: Float[Array, " d"]
    last: Float[Array, " d"]  # the expansion of the last event
    gram: Float[Array, "d d"]  # M
    table: Float[Array, "d d"]  # T before its last change
    # That change: `keeps` is 0 at the coordinate of the pivot, else 1, and multiplies the rows and
    # the columns; then the outer product of the two vectors is subtracted.
    keeps: Float[Array, " d"]
    change: Float[Array, "2 d"]
    unit: Float[Array, "2"]  # the largest entries of `rhs` so far
    awaited: Int[Array, ""]  # the coordinate whose pivot waits for a refined row; d if none
    is_vague: Bool[Array, ""]  # to be refined before the next event
    is_poor: Bool[Array, ""]  # refinement was not enough

    @classmethod
    def empty(cls, problem: AbstractProblem, scaled: Scaled) -> "Tableau":
        """No coordinate is active: the tableau is `M`."""
        d, dtype = scaled.scale.shape[0], scaled.scale.dtype
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        gram = scaled.scale[:, None] * problem.gram() * scaled.scale[None, :]
        return cls(
            sign=zeros(d),
            x=zeros(d),
            rhs=zeros(2, d),
            solution=zeros(2, d),
            product=zeros(2, d),
            pivots=(scaled.scale > 0).astype(dtype),
            coherence=zeros(d),
            last=zeros(d),
            gram=gram,
            table=gram,
            keeps=jnp.ones(d, dtype),
            change=zeros(2, d),
            unit=jnp.full(2, TINY, dtype),
            awaited=jnp.asarray(d, jnp.int32),
            is_vague=jnp.asarray(False),
            is_poor=jnp.asarray(False),
        )

    @property
    def is_direct(self) -> bool:
        return True

    @property
    def expansion(self) -> Array:
        return self.last

    @property
    def index(self) -> Array:
        d = self.sign.shape[0]
        return jnp.where(self.sign != 0, indices(d), d)

    @property
    def is_active(self) -> Array:
        return self.sign != 0

    @property
    def residual(self) -> Array:
        return self.at(self.rhs - self.product)

    def at(self, v: Array) -> Array:
        is_active = self.is_active.reshape((1,) * (v.ndim - 1) + self.sign.shape)
        return jnp.where(is_active, v, jnp.zeros_like(v))

    def with_active(self, v: Array, slots: Array) -> Array:
        return jnp.where(self.is_active, slots, v)

    def largest(self, v: Array, slots: Array) -> Array:
        return largest(jnp.maximum(v, slots))

    def slot(self, j: Array, leaves: Array) -> Array:
        return j

    def column(self, problem: AbstractProblem, scaled: Scaled, j: Array) -> Array:
        return _row(self.gram, j)

    def resting(self, x: Array) -> "Tableau":
        fields = lambda a: (a.rhs, a.solution, a.product)
        rests = tuple(pair.at[1].set(0) for pair in fields(self))
        unit = self.unit.at[1].set(TINY)
        return eqx.tree_at(lambda a: (a.x, a.unit, *fields(a)), self, (x, unit, *rests))

    def factorize(self) -> "Tableau":
        active = self.is_active
        both = active[:, None] & active[None, :]
        block = jnp.where(both, self.gram, 0) + jnp.diag((~active).astype(self.x.dtype))
        half = inverse_factor(block)
        # Where M_AA is not positive definite to rounding, the factor is NaN: the tableau is kept.
        good = jnp.all(jnp.isfinite(half))
        half = jnp.where(active[None, :], half, 0)  # the identity there
        projected = matmul(half, self.gram)
        across, rest = matmul(half.T, projected), self.gram - matmul(projected.T, projected)
        table = jnp.where(active[None, :], across.T, rest)
        inverse = matmul(half.T, half)
        table = jnp.where(active[:, None], jnp.where(active[None, :], -inverse, across), table)
        # An exact 0 marks a zero column, or one whose join has just failed: it stays excluded.
        pivots = jnp.where(self.pivots != 0, jnp.diagonal(table), 0)
        fields = lambda a: (a.table, a.pivots, a.keeps, a.change, a.is_vague)
        new = table, pivots, jnp.ones_like(self.keeps), jnp.zeros_like(self.change), good
        new = [jnp.where(good, new, old) for new, old in zip(new, fields(self), strict=True)]
        return eqx.tree_at(fields, self, tuple(new))

    def prepared(self, tol: Tolerances, is_vague: Array | None = None) -> "Tableau":
        """The set with the last change made, and refined where it is vague: `u`, `w`, and the row
        of the pivot that waits."""
        keeps = self.keeps[:, None] * self.keeps[None, :]
        table = self.table * keeps - self.change[0][:, None] * self.change[1][None, :]
        fields = lambda a: (a.table, a.keeps, a.change)
        new = table, jnp.ones_like(self.keeps), jnp.zeros_like(self.change)
        active_set = eqx.tree_at(fields, self, new)
        is_vague = self.is_vague if is_vague is None else self.is_vague | is_vague
        # The branch returns only what it changes: XLA would copy the other fields of the set.
        changed = lambda a: (a.table, a.solution, a.product, a.is_poor)

        def refine(a: Tableau) -> tuple[Array, ...]:
            d = a.sign.shape[0]
            here = indices(d) == a.awaited
            row = _row(a.table, jnp.minimum(a.awaited, d - 1))
            leaves = jnp.any(here & a.is_active)
            side = jnp.where(leaves, -1, 1).astype(row.dtype)
            expansion = jnp.where(here & ~leaves, -1, a.at(side * row))
            unit = jnp.where(here & leaves, 1, 0).astype(row.dtype)
            off = a.at(unit - _images(expansion[None], a.gram)[0])
            change = a.at(-_images(jnp.concatenate([off[None], a.residual]), a.table))
            expansion, solution = expansion + change[0], a.solution + change[1:]
            images = _images(jnp.concatenate([expansion[None], solution]), a.gram)
            row = jnp.where(a.is_active, side * expansion, -side * images[0])
            row = jnp.where(here & leaves, -expansion, row)
            table = jnp.where(here[None, :], row[:, None], a.table)
            table = jnp.where(here[:, None], row[None, :], table)
            # One step squares the error of the row, which is none if no row waits.
            is_poor = jnp.any(here) & ~(largest(jnp.abs(off)) < tol.defect)
            # Of ill-conditioned equations a solution whose residual is rounding is as good as any,
            # and changing it would move the event that it has decided.
            left, before = a.at(a.rhs - images[1:]), a.residual
            better = (largest(jnp.abs(left)) < largest(jnp.abs(before)))[:, None]
            pick = lambda new, old: jnp.where(better, new, old)
            solution, product = pick(solution, a.solution), pick(images[1:], a.product)
            is_poor = is_poor | ~_is_rounding(pick(left, before), solution, a.unit, tol)
            choose = lambda new, old: jnp.where(is_vague, new, old)
            return jax.tree.map(choose, (table, solution, product, is_poor), changed(a))

        new = cond(any_lane(is_vague), refine, changed, active_set)
        return eqx.tree_at(changed, active_set, new)

    def pivot(
        self, event: Event, column: Array, tol: Tolerances, is_frozen: Array, is_fresh: Array
    ) -> tuple["Tableau", Array, Array, Array]:
        """See `AbstractActiveSet.pivot`.

        With row `j` of `T` and `T_jj`, the rank-one change is that of the row by itself over `T_jj`
        (with other signs in row and column `j`), and `u` and `w` change by multiples of the
        expansion.
        """
        d, j, leaves = self.sign.shape[0], event.j, event.leaves
        here = indices(d) == j
        row = _row(self.table, j)
        side = jnp.where(leaves, -1, 1).astype(row.dtype)
        expansion = jnp.where(here & ~leaves, -1, self.at(side * row))
        size = row[j]
        is_extreme = (jnp.abs(size) < tol.small) | (jnp.abs(size) * tol.small > 1)
        waits = ~is_frozen & is_extreme & (self.awaited == d)
        is_stale = self.is_poor & ~is_frozen & ~is_fresh
        is_kept = is_frozen | waits | is_stale

        # Rounding of `M` changes this Schur complement by ε (1 + ‖v‖₁)², which is large
        # where columns that are active almost depend on each other.
        rounding = tol.unit * (1 + total(jnp.abs(expansion))) ** 2
        is_dependent = ~leaves & ~(size > jnp.maximum(tol.pivot, rounding))
        possible = ~is_dependent & ~is_kept
        inverse = jnp.where(possible, 1 / jnp.where(possible, size, 1), 0)
        change = jnp.where(here, -side, row)
        moved = here & possible
        keeps = jnp.where(moved, 0, 1).astype(row.dtype)
        pivots = self.pivots * keeps - inverse * change**2
        # A column found dependent is set to exactly 0, or the same join would be tried again at
        # once. When a coordinate leaves, the change makes it positive again where it has become
        # independent.
        pivots = jnp.where(here & is_dependent & ~is_kept, 0, pivots)

        put = lambda old, new: jnp.where(moved, jnp.where(leaves, 0, new), old)
        sign, x = put(self.sign, event.sign), jnp.where(moved, 0, self.x)
        rhs = jnp.stack([put(old, new) for old, new in zip(self.rhs, event.rhs, strict=True)])
        # M_jA u at a coordinate that joins, `u` at one that leaves.
        value = jnp.where(self.is_active[None, :], self.solution, self.product)[:, j]
        mismatch = inverse * (value - jnp.where(leaves, 0, event.rhs))
        solution = self.solution + mismatch[:, None] * expansion[None, :]
        solution = jnp.where((moved & leaves)[None, :], 0, solution)
        product = _images(solution, self.gram)
        residual = jnp.where((sign != 0)[None, :], rhs - product, 0)
        unit = jnp.maximum(self.unit, jnp.where(possible & ~leaves, jnp.abs(event.rhs), 0))
        is_exact = is_frozen | _is_rounding(residual, solution, unit, tol)
        after = Tableau(
            sign=sign,
            x=x,
            rhs=rhs,
            solution=solution,
            product=product,
            pivots=pivots,
            coherence=jnp.maximum(self.coherence, jnp.abs(column)),
            last=jnp.where(is_kept, 0, expansion),
            gram=self.gram,
            table=self.table,
            keeps=keeps,
            change=jnp.stack([change, inverse * change]),
            unit=unit,
            awaited=jnp.where(waits, j, jnp.where(is_kept, self.awaited, d)),
            is_vague=waits | is_stale | ~is_exact,
            is_poor=is_stale,
        )
        return after, possible, is_stale, is_kept
