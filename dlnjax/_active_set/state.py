"""The active set of the lasso path and of the limit process: `k` slots, the inverse of their block
of `M`, and its updates."""

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

TINY = 1e-30


def indices(size: int) -> Int[Array, " size"]:
    return jnp.arange(size, dtype=jnp.int32)


def gather(v: Shaped[Array, "... d"], index: Int[Array, " k"]) -> Shaped[Array, "... k"]:
    """`v` at the active coordinates, 0 in empty slots."""
    return v.at[..., index].get(mode="fill", fill_value=0)


def scatter(index: Int[Array, "*K k"], v: Shaped[Array, "*K k"], d: int) -> Shaped[Array, "*K d"]:
    """From slots to coordinates: the transpose of `gather`."""
    rows = () if index.ndim == 1 else (indices(index.shape[0])[:, None],)
    return jnp.zeros((*index.shape[:-1], d), v.dtype).at[*rows, index].set(v, mode="drop")


class Scaled(eqx.Module):
    """The problem in units where every column has norm 1. Rows are signs: `+`, then `−` unless
    only `x ≥ 0` is asked."""

    scale: Float[Array, " d"]  # 1/‖Xⱼ‖, and 0 for a zero column
    r: Float[Array, " d"]
    # ±r − λ: correlation beyond its bound at x = 0, as τ → 0. Far below 0 where the bound is ∞.
    excess: Float[Array, "s d"]
    b: Float[Array, "s d"]  # the bound's growth with τ
    terms: Float[Array, " d"]  # what `r` is a sum of, in absolute values

    def __init__(self, problem: AbstractProblem, weights: Array, positive: bool):
        diagonal = problem.gram_diagonal()
        is_zero = diagonal <= 0
        self.scale = jnp.where(is_zero, 0, 1 / jnp.sqrt(jnp.where(is_zero, 1, diagonal)))
        self.r = self.scale * problem.r
        a = problem.weight_decay * self.scale
        signs = 1 if positive else 2
        is_excluded = jnp.isinf(weights[:signs])
        excess = jnp.stack([self.r - a, -self.r - a][:signs])
        self.excess = jnp.where(is_excluded, float(jnp.finfo(excess.dtype).min) / 4, excess)
        self.b = jnp.where(is_excluded, 0, weights[:signs]) * self.scale[None, :]
        self.terms = jnp.abs(self.r)
        rows = problem.rows()
        if rows is not None:
            X, y = rows
            terms = self.scale * matmul(jnp.abs(y), jnp.abs(X))
            # Where `y` is orthogonal to all columns, the path of what rounding left is as good.
            self.terms = jnp.minimum(terms, jnp.max(self.terms))

    @property
    def norms(self) -> Float[Array, " d"]:
        """`‖Xⱼ‖`."""
        return jnp.where(self.scale > 0, 1 / jnp.where(self.scale > 0, self.scale, 1), 0)

    def column(self, problem: AbstractProblem, j: Array) -> Array:
        return self.scale[j] * self.scale * problem.gram_column(j)

    def hidden(self, active: "ActiveSet", tol: Tolerances) -> tuple[Array, Array]:
        """What rounding may hide in `r − Mu` and in `Mw`, each entry in its own scale."""
        sums = tol.sum * active.coherence
        in_image, in_speed = active.size()
        return sums * in_image + tol.floor * self.terms, sums * in_speed


class Event(eqx.Module):
    tau: Float[Array, ""]
    j: Int[Array, ""]
    sign: Float[Array, ""]
    rhs: Float[Array, "2"]  # of a coordinate that joins
    slot: Int[Array, ""]
    leaves: Bool[Array, ""]


class ActiveSet(eqx.Module):
    """Active coordinates in `k` slots. Empty slots have index `d` and zeros elsewhere
    (but for `rows`, where they may have anything).

    Updates of the inverse wait for the next event because XLA would otherwise compute `v` and its
    factor again for each entry.

    Pairs of vectors are rows, since `(2, k) @ (k, d)` costs no more than one product with a vector.
    """

    index: Int[Array, " k"]
    sign: Float[Array, " k"]
    x: Float[Array, " k"]  # at the current τ; exactly 0 where it has just joined
    rhs: Float[Array, "2 k"]  # (r − λs)_A and (ωs)_A
    solution: Float[Array, "2 k"]  # u and w
    product: Float[Array, "2 d"]  # Mu and Mw
    residual: Float[Array, "2 k"]  # rhs − M_AA solution
    rows: Float[Array, "k d"]  # rows A of M
    inverse: Float[Array, "k k"]  # of M_AA, by rank-one updates, one update behind
    update: Float[Array, "2 k"]  # its next update is the product of these two
    pivots: Float[Array, " d"]  # squared norm of each column, projected off the active ones
    is_active: Bool[Array, " d"]
    coherence: Float[Array, " d"]  # the largest correlation with a column that was tried

    @classmethod
    def empty(cls, k: int, scale: Array) -> "ActiveSet":
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
        """Of `u` and of `w`: the sum of their absolute values."""
        return jnp.sum(jnp.abs(self.solution), axis=1)

    def factorize(self) -> tuple[Array, Array]:
        """`inverse` and `pivots` from scratch, `O(k²(k + d))`."""
        is_empty = self.sign == 0
        block = jnp.where(is_empty[:, None], 0, gather(self.rows, self.index))
        block = block + jnp.diag(is_empty.astype(block.dtype))
        half = inverse_factor(block)
        # Not positive definite to rounding: keep what the updates gave.
        good = jnp.all(jnp.isfinite(half))
        half = jnp.where(is_empty[None, :], 0, half)  # the identity there
        projected = 1 - jnp.sum(matmul(half, self.rows) ** 2, axis=0)
        inverse = jnp.where(good, matmul(half.T, half), self.inverse)
        return inverse, jnp.where(good & (self.pivots != 0), projected, self.pivots)

    def refined(self) -> "ActiveSet":
        """The solution corrected by its residual, without waiting for the next event."""
        active = (self.sign != 0).astype(self.rhs.dtype)
        inverse = self.inverse + self.update[0][:, None] * self.update[1][None, :]
        change = matmul(self.residual * active[None, :], inverse) * active[None, :]
        solution = self.solution + change
        product = matmul(solution, self.rows)
        residual = self.rhs - gather(product, self.index)
        fields = lambda a: (a.solution, a.product, a.residual)
        return eqx.tree_at(fields, self, (solution, product, residual))

    def pivot(self, event: Event, column: Array, tol, is_frozen: Array, is_fresh: Array) -> tuple:
        """The active set after `event`, whether that was possible, and whether the inverse is too
        stale to tell. A frozen set stays as it is, and so does one that is stale.

        The inverse, the solution and the projected norms change by multiples of `v`: for a join it
        is the new column's expansion in the active ones, for a drop a column of the inverse. The
        solution is corrected by its residual beforehand, so that its errors do not add up.
        """
        k, d = self.rows.shape
        joins, leaves = ~event.leaves, event.leaves
        here, there = indices(k) == event.slot, indices(d) == event.j
        dot = lambda a, b: jnp.sum(a * b, axis=-1)

        active = (self.sign != 0).astype(column.dtype)
        inverse = self.inverse + self.update[0][:, None] * self.update[1][None, :]
        inverse = inverse * (active[:, None] * active[None, :])
        # At a drop this changes nothing. If a join turns out impossible, its slot stays empty.
        rows = self.rows.at[event.slot].set(column, mode="promise_in_bounds")
        joined = gather(column, self.index)
        unit = here.astype(column.dtype)
        rhs = jnp.where(leaves, unit, joined)
        change = matmul(jnp.concatenate([rhs[None], self.residual]), inverse)
        image = matmul(jnp.where(here & joins, -1, change[0])[None], rows)[0]
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
        # Where a join turns out impossible, `update` tells how the column depends on the others.
        v = jnp.where(possible | (is_dependent & ~is_kept), v, 0)
        pivots = self.pivots - shift * image**2
        # The drift of the update cannot hide a dependence that was just measured.
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
    """What the state of a solver that pivots has in common."""

    active: AbstractVar[ActiveSet]
    is_done: AbstractVar[Bool[Array, ""]]
    is_fresh: AbstractVar[Bool[Array, ""]]  # the inverse was just factorised
    is_stale: AbstractVar[Bool[Array, ""]]  # the inverse has drifted too far for refinement


_S = TypeVar("_S", bound=Pivoting)
_R = TypeVar("_R")


def pivot_until_done(
    step: Callable[[tuple[_S, _R]], tuple[_S, _R]], carry: tuple[_S, _R]
) -> tuple[_S, _R]:
    """Rank-one updates until the inverse has drifted, which ill-conditioned problems do; then a
    factorisation. Under `vmap` the outer loop runs as often as the worst lane needs."""

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
