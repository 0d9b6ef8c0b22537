"""What the homotopy leaves behind, a row a knot, and the path that is made of it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._active_set.state import Scaled, indices, scatter
from .._path import LassoPath
from .._results import RESULTS


class Row(eqx.Module):
    """What is recorded of a knot: `τ`, the active set after it, and `z` and `dz/dμ` there."""

    tau: Float[Array, "*K"]
    sign: Float[Array, "*K k"]
    z: Float[Array, "*K k"]
    slope: Float[Array, "*K k"]
    index: Float[Array, "*K k"] | None  # as numbers like the others; `None` if slots are direct


class Record(eqx.Module):
    """One row a knot, with all of it side by side: in a batch, writing one array takes one
    operation, and writing five takes five."""

    rows: Float[Array, "K m"]

    def write(self, row: Array, entries: Row) -> "Record":
        """The record with `entries` in `row`; unchanged beyond the last one."""
        flat = jnp.concatenate([jnp.ravel(v) for v in jax.tree.leaves(entries)])
        return Record(self.rows.at[row].set(flat, mode="drop"))

    def read(self, slots: int) -> Row:
        """All rows."""
        parts = (self.rows.shape[1] - 1) // slots
        sign, z, slope, *index = jnp.split(self.rows[:, 1:], parts, axis=1)
        return Row(self.rows[:, 0], sign, z, slope, index[0] if index else None)


def assemble(
    record: Row,
    index: Int[Array, "K k"],
    row: Array,
    result: RESULTS,
    stats: dict[str, Array],
    is_cut: Array,
    is_invalid: Array,
    scaled: Scaled,
    weights: Array,
    positive: bool,
) -> LassoPath:
    """The path in the user's units, from the record of active sets, of which `row` is the last."""
    K, d = record.tau.shape[0], scaled.r.shape[0]
    num_knots = row + 1
    rows = jnp.clip(indices(K), 0, jnp.maximum(row, 0))

    def spread(v):
        full = v if record.index is None else scatter(index, v, d)
        return jnp.where(num_knots > 0, full[rows] * scaled.scale[None, :], 0)

    is_unknown = is_cut & (indices(K) >= row)
    nan_if = lambda bad, v: jnp.where(bad, jnp.nan, v)
    return LassoPath(
        knots=nan_if(is_invalid, jnp.where(num_knots > 0, 1 / record.tau[rows], 0)),
        values=nan_if(is_invalid, spread(record.z)),
        slopes=nan_if((is_unknown | is_invalid)[:, None], spread(record.slope)),
        num_knots=num_knots,
        weights=weights,
        norms=scaled.norms,
        result=result,
        stats=stats,
        positive=positive,
    )
