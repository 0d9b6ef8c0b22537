"""`GaussianGraph`: vertices with vectors, and Gaussian matrices on oriented edges."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from .._checks import (
    as_count,
    as_float,
    check_finite,
    check_nonempty,
    check_scalar,
    check_type,
    is_concrete,
)

Edge = tuple[str, str]


def reverse(edge: Edge) -> Edge:
    return edge[1], edge[0]


def _all_finite(matrix: Any) -> Any:
    return (np if isinstance(matrix, np.ndarray) else jnp).isfinite(matrix).all()


def _is_symmetric(matrix: Any) -> Any:
    # Sums in another order are symmetric but for rounding.
    off, most = abs(matrix - matrix.T).max(), abs(matrix).max()
    return off <= 100 * float(jnp.finfo(matrix.dtype).eps) * most


class GaussianGraph(eqx.Module):
    """A graph whose edges carry Gaussian matrices, for `message_passing` and `state_evolution`.

    An edge `(v, w)` has a matrix with independent normal entries of variance `s`, shape
    `(n_w, n_v)`, and takes vectors at `v` to vectors at `w`. Its reverse `(w, v)`, with the
    transposed matrix, comes with it. A loop `(v, v)` has a symmetric matrix (entries of variance
    `s` off the diagonal), and is its own reverse. Several vertices make block matrices, whose
    variances may differ by block, such as spatially coupled designs.

    **Attributes:**

    - `matrices`: by edge, without reverses; `None` where only the shape is known.
    - `variances`: `s` by edge, without reverses, scalars.
    - `sizes`: `n_v` by vertex.

    !!! example

        ```python
        X = jax.random.normal(jax.random.key(0), (100, 200)) / 10
        graph = dln.GaussianGraph({("columns", "rows"): X})
        graph.edges  # (("columns", "rows"), ("rows", "columns"))
        graph.sizes  # {"columns": 200, "rows": 100}
        float(graph.variances["columns", "rows"])  # 0.01
        ```
    """

    matrices: dict[Edge, Float[Array, "m n"] | None]
    variances: dict[Edge, Float[Array, ""]]
    sizes: dict[str, int] = eqx.field(static=True)

    def __init__(
        self,
        matrices: Mapping[Any, ArrayLike | tuple[int, int]],
        variances: Mapping[Any, ArrayLike] | None = None,
    ):
        """**Arguments:**

        - `matrices`: from edges `(v, w)`, pairs of names, to matrices of shape `(n_w, n_v)`; or to
            that shape as a tuple, which is enough for `state_evolution`.
        - `variances`: of their entries, by edge. Default `1/n_w`: rows for `X` of `GaussianDesign`.

        **Raises:** `ValueError` for sizes that contradict each other, an edge beside its reverse, a
        loop that is not symmetric, a variance that is not positive, or NaN; `TypeError` for
        what are no edges. Traced values out of range end as `invalid_graph` in the functions that
        take the graph.
        """
        if not isinstance(matrices, Mapping):
            raise TypeError(
                f"`matrices` must map edges to matrices, got {type(matrices).__name__}."
            )
        if not matrices:
            raise ValueError("`matrices` is empty: a graph needs at least one edge.")
        variances = {} if variances is None else variances
        check_type(variances, "variances", Mapping, "a dict from edges to variances")
        self.matrices, self.variances, sizes = {}, {}, {}
        for edge, matrix in matrices.items():
            name = f"matrices[{edge!r}]"
            if not (
                isinstance(edge, tuple) and len(edge) == 2 and all(isinstance(v, str) for v in edge)
            ):
                raise TypeError(f"An edge must be a pair of names, got {edge!r}.")
            v, w = edge
            if v != w and (w, v) in matrices:
                raise ValueError(f"The reverse of {edge!r} comes with it. Leave one of them out.")
            if isinstance(matrix, tuple):
                shape, matrix = tuple(as_count(n, f"{name} as a shape") for n in matrix), None
                dtype = jnp.result_type(float)
            else:
                matrix = as_float(matrix, name)
                shape, dtype = matrix.shape, matrix.dtype
            if len(shape) != 2:
                raise ValueError(f"`{name}` must have shape (n_w, n_v), got {shape}.")
            if matrix is not None:
                check_nonempty(matrix, name)
                check_finite(matrix, name)
            for vertex, size in zip((w, v), shape, strict=True):
                if sizes.setdefault(vertex, size) != size:
                    raise ValueError(
                        f"`{name}` has shape {shape}, but the vertex {vertex!r} has size "
                        f"{sizes[vertex]}. The matrix of an edge (v, w) has shape (n_w, n_v)."
                    )
            if v == w and matrix is not None and is_concrete(matrix):
                if not _is_symmetric(np.asarray(matrix)):
                    raise ValueError(
                        f"`{name}` is a loop, and must be symmetric: take (A + A.T)/2."
                    )
            variance = as_float(variances.get(edge, 1 / shape[0]), f"variances[{edge!r}]", dtype)
            check_scalar(variance, f"variances[{edge!r}]")
            if is_concrete(variance) and not 0 < float(variance) < np.inf:
                raise ValueError(f"`variances[{edge!r}]` must be positive, got {float(variance)}.")
            self.matrices[edge], self.variances[edge] = matrix, variance
        if unknown := [edge for edge in variances if edge not in self.matrices]:
            raise ValueError(f"`variances` has {unknown[0]!r}, which is no edge of `matrices`.")
        self.sizes = sizes

    def is_valid(self) -> Bool[Array, ""]:
        """Whether all numbers are in their range. Shape `()`."""
        s = jnp.stack([s.astype(float) for s in self.variances.values()])
        holds = jnp.all((s > 0) & jnp.isfinite(s))
        for (v, w), matrix in self.matrices.items():
            if matrix is not None:
                # In NumPy where it is known: XLA would fold a large constant when it compiles.
                A = np.asarray(matrix) if is_concrete(matrix) else matrix
                holds = holds & _all_finite(A)
                holds = holds & (_is_symmetric(A) if v == w else True)
        return holds

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, with their reverses."""
        given = tuple(self.matrices)
        return given + tuple((w, v) for v, w in given if v != w)

    def variance(self, edge: Edge) -> Array:
        """`s` of an edge or of a reverse."""
        return self.variances[edge if edge in self.variances else reverse(edge)]

    def matrix(self, edge: Edge) -> Any:
        """The matrix of an edge, or the transposed one of a reverse."""
        if edge in self.matrices:
            return self.matrices[edge]
        matrix = self.matrices[reverse(edge)]
        return None if matrix is None else matrix.T
