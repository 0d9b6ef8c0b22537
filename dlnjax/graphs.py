"""Graphs, whose nodes gossip: each has a value, and edges average the values at their ends.

As a problem, gossip is `LeastSquares(graph.incidence(), 0)` with `x = u` of `Linear`, whose loss is
`½ Σ (x_v − x_w)²` over the edges `(v, w)`. Messages that take time to arrive are not a network, an
optimiser or a problem, and are not here; nor are grids for the partial differential equations to
which gossip on large lattices tends.
"""

import math
from collections.abc import Sequence
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray
from scipy.spatial import KDTree

from ._checks import (
    are_probabilities,
    as_count,
    as_flag,
    as_float,
    as_probabilities,
    check_finite,
    check_key,
    check_nonempty,
    eager_if_known,
    is_concrete,
)


class Graph(eqx.Module):
    """Nodes `0, …, n − 1` and the edges between them.

    **Attributes:** `edges`, shape `(E, 2)`: the nodes that each connects; `num_nodes`, `n`.

    !!! example

        ```python
        graph = dln.graphs.Graph([[0, 1], [1, 2], [2, 0], [2, 3]])
        graph.num_nodes, graph.edges.shape  # (4, (4, 2))
        graph.degrees()  # (2, 2, 3, 1)
        ```
    """

    edges: Int[Array, "E 2"]
    num_nodes: int = eqx.field(static=True)

    def __init__(self, edges: ArrayLike | Sequence, num_nodes: SupportsIndex | None = None):
        """**Arguments:**

        - `edges`: pairs of different nodes, shape `(E, 2)`, such as `list(g.edges)` of a graph `g`
            of networkx whose nodes are whole numbers. An edge may be there twice.
        - `num_nodes`: by default one more than the largest node.

        **Raises:** `TypeError` for what are no pairs of whole numbers; `ValueError` for an edge
        from a node to itself, or to a node that does not exist. Traced edges that are none of the
        graph make its functions NaN, `degrees` −1, and a run on it ends as `invalid_data`.
        """
        is_known = is_concrete(*jax.tree.leaves(edges))
        try:
            # Known edges stay known inside `jit`, so that they are checked and counted there too.
            pairs: Any = np.asarray(edges) if is_known else jnp.asarray(edges)
        except ValueError as e:
            raise TypeError(
                f"`edges` must be pairs of nodes, got pairs of other lengths: {e}"
            ) from e
        if pairs.size == 0:
            raise ValueError("`edges` is empty: a graph needs at least one edge.")
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not jnp.issubdtype(pairs.dtype, jnp.integer):
            raise TypeError(
                "`edges` must be pairs of nodes, whole numbers of shape (E, 2), got shape "
                f"{pairs.shape} of {pairs.dtype}."
            )
        if num_nodes is None:
            if not is_known:
                raise TypeError("Pass `num_nodes` for traced `edges`: a shape must be known.")
            num_nodes = int(np.max(pairs)) + 1
        n = as_count(num_nodes, "num_nodes")
        if is_known:
            bad = ~_are_edges(pairs, n)
            if np.any(bad):
                k = int(np.argmax(bad))
                raise ValueError(
                    f"An edge must connect two different nodes from 0 to {n - 1}, got edges[{k}] = "
                    f"({pairs[k, 0]}, {pairs[k, 1]})."
                )
        # A narrow type of theirs might not hold `n`. A graph that a module holds may be made first
        # inside `jit`: its edges must be no tracers.
        with eager_if_known(pairs):
            self.edges = jnp.asarray(pairs.astype(jnp.result_type(int)))
        self.num_nodes = n

    def _are_edges(self) -> Bool[Array, " E"]:
        """Which edges connect two different nodes: of known ones, all."""
        return _are_edges(self.edges, self.num_nodes)

    def differences(self, x: ArrayLike) -> Float[Array, "... E"]:
        """`Bx`, that is `x_v − x_w` of each edge `(v, w)`, without forming `B`.
        `(..., n) -> (..., E)`. **Raises:** `ValueError` for another last axis.

        !!! example

            ```python
            dln.graphs.cycle(3).differences(jnp.array([0.0, 1.0, 3.0]))  # (-1, -2, 3)
            ```
        """
        x = as_float(x, "x")
        _check_last_axis(x, "x", self.num_nodes, "nodes")
        differences = x[..., self.edges[:, 0]] - x[..., self.edges[:, 1]]
        return jnp.where(self._are_edges(), differences, jnp.nan)

    def divergence(self, flow: ArrayLike) -> Float[Array, "... n"]:
        """`Bᵀf`, what leaves each node by its edges, less what enters. `(..., E) -> (..., n)`.
        **Raises:** `ValueError` for another last axis.

        !!! example

            ```python
            graph = dln.graphs.cycle(3)
            graph.divergence(graph.differences(jnp.array([0.0, 1.0, 3.0])))  # (-4, -1, 5)
            ```
        """
        flow = as_float(flow, "flow")
        _check_last_axis(flow, "flow", len(self.edges), "edges")
        start = jnp.where(jnp.all(self._are_edges()), 0, jnp.nan).astype(flow.dtype)
        zero = jnp.broadcast_to(start, (*flow.shape[:-1], self.num_nodes))
        return zero.at[..., self.edges[:, 0]].add(flow).at[..., self.edges[:, 1]].add(-flow)

    def incidence(self) -> Float[Array, "E n"]:
        """The incidence matrix `B`, in the default float type: row `e` is `e_v − e_w`, shape
        `(E, n)`. `BᵀB` is the Laplacian of the graph.

        !!! example

            ```python
            dln.graphs.Graph([[0, 1], [1, 2]]).incidence()  # [[1, -1, 0], [0, 1, -1]]
            ```
        """
        row = jnp.arange(len(self.edges))
        zero = jnp.zeros((len(self.edges), self.num_nodes), jnp.result_type(float))
        B = zero.at[row, self.edges[:, 0]].add(1).at[row, self.edges[:, 1]].add(-1)
        return jnp.where(self._are_edges()[:, None], B, jnp.nan)

    def degrees(self) -> Int[Array, " n"]:
        """The number of edges of each node, shape `(n,)`: the diagonal of `BᵀB`.

        !!! example

            ```python
            dln.graphs.lattice((2, 3)).degrees()  # (2, 3, 2, 2, 3, 2)
            ```
        """
        counts = jnp.bincount(self.edges.ravel(), length=self.num_nodes)
        return jnp.where(jnp.all(self._are_edges()), counts, -1)

    def sample(
        self,
        key: PRNGKeyArray,
        steps: SupportsIndex,
        probabilities: ArrayLike | Sequence[float] | None = None,
    ) -> Int[Array, "steps 1"]:
        """One edge a step: the `batches` of `train`, shape `(steps, 1)`.

        **Arguments:** `key`; `steps`, their number; `probabilities` of the edges, shape `(E,)`,
        which sum to 1. Default: all alike, for which `batch_size=1` of `train` is shorter.

        **Raises:** `ValueError` for probabilities of another shape, or known ones that are negative
        or do not sum to 1. Traced ones give the edge −1 throughout, which `train` ends as
        `invalid_training`.

        !!! example

            ```python
            graph = dln.graphs.cycle(3)
            graph.sample(jax.random.key(0), 5, [0.5, 0.5, 0.0]).ravel()  # no 2
            ```
        """
        check_key(key, "sample")
        shape = (as_count(steps, "steps"), 1)
        if probabilities is None:  # a cumulative sum of equal ones would round
            return jax.random.randint(key, shape, 0, len(self.edges))
        p = as_probabilities(probabilities, len(self.edges))
        drawn = jax.random.choice(key, len(self.edges), shape, p=p)
        return jnp.where(are_probabilities(p), drawn, -1)


def _are_edges(pairs: Any, n: int) -> Any:
    """Which pairs of nodes, of NumPy or JAX, are edges of a graph of `n` nodes."""
    is_node = (pairs >= 0) & (pairs < n)
    return is_node[:, 0] & is_node[:, 1] & (pairs[:, 0] != pairs[:, 1])


def _check_last_axis(array: Array, name: str, size: int, what: str) -> None:
    # Indices beyond the end would be clamped, and a shorter axis broadcast.
    if array.ndim == 0 or array.shape[-1] != size:
        raise ValueError(
            f"The last axis of `{name}` must have the {size} {what} of the graph, got shape "
            f"{array.shape}."
        )


def cycle(n: SupportsIndex) -> Graph:
    """The cycle of `n ≥ 3` nodes.

    **Raises:** `ValueError` for `n < 3`.

    !!! example

        ```python
        dln.graphs.cycle(3).edges  # [[0, 1], [1, 2], [2, 0]]
        ```
    """
    return lattice((n,), periodic=True)


def lattice(shape: Sequence[SupportsIndex], periodic: bool = False) -> Graph:
    """The lattice of a box of any dimension, `(n₁, …, n_D)`: neighbours differ by 1 in one
    coordinate. Nodes are in the order of an array of this shape.

    **Arguments:** `shape`; `periodic`, whether the last node along an axis is a neighbour of the
    first (a torus), which takes three nodes along each.

    **Raises:** `ValueError` for an empty shape, a box of one node, or a periodic axis of less than
    3 nodes.

    !!! example

        ```python
        dln.graphs.lattice((2, 2)).edges  # [[0, 2], [1, 3], [0, 1], [2, 3]]
        len(dln.graphs.lattice((5, 5, 5), periodic=True).edges)  # 375: D a node
        ```
    """
    sides = tuple(as_count(side, "shape") for side in shape)
    periodic, n = as_flag(periodic, "periodic"), math.prod(sides)
    if n < 2 or (periodic and min(sides) < 3):
        least = "at least 3 nodes along each axis" if periodic else "at least 2 nodes"
        raise ValueError(f"The lattice needs {least}, got shape {sides}.")
    node = np.arange(n).reshape(sides)
    edges = []
    for axis in range(len(sides)):
        after = np.roll(node, -1, axis)
        inner = [slice(None, None if periodic or k != axis else -1) for k in range(len(sides))]
        edges.append(np.stack([node[tuple(inner)].ravel(), after[tuple(inner)].ravel()], axis=1))
    return Graph(np.concatenate(edges), n)


def complete(n: SupportsIndex) -> Graph:
    """All `n (n − 1)/2` edges between `n ≥ 2` nodes.

    **Raises:** `ValueError` for `n < 2`.

    !!! example

        ```python
        dln.graphs.complete(3).edges  # [[0, 1], [0, 2], [1, 2]]
        ```
    """
    if as_count(n, "n") < 2:
        raise ValueError("The complete graph needs at least 2 nodes, got n = 1.")
    return Graph(np.stack(np.triu_indices(as_count(n, "n"), 1), axis=1), n)


def geometric(points: ArrayLike, radius: float) -> Graph:
    """The geometric graph of `points`, shape `(n, D)`: neighbours are at most `radius` apart. Of
    uniform points in a square, it is connected for `π radius² n` well above `log n`.

    **Arguments:** both are known, since the number of edges is a shape.

    **Raises:** `ValueError` for points of another shape, NaN or inf, for a `radius` that is not a
    positive scalar, or if no points are so close; `TypeError` for traced ones.

    !!! example

        ```python
        points = jax.random.uniform(jax.random.key(0), (200, 2))
        graph = dln.graphs.geometric(points, 0.15)
        graph.edges.shape  # (1190, 2)
        ```
    """
    known = (*jax.tree.leaves(points), *jax.tree.leaves(radius))
    if not is_concrete(*known):
        raise TypeError(
            "`points` and `radius` must be known: they decide how many edges there are."
        )
    with eager_if_known(*known):
        array, reach = as_float(points, "points"), as_float(radius, "radius")
    if array.ndim != 2:
        raise ValueError(f"`points` must have shape (n, D), got {array.shape}.")
    check_nonempty(array, "points")
    check_finite(array, "points")
    if reach.ndim != 0 or not float(reach) > 0:
        raise ValueError(f"`radius` must be a positive scalar, got {radius}.")
    edges = KDTree(np.asarray(array)).query_pairs(float(radius), output_type="ndarray")
    if len(edges) == 0:
        raise ValueError(f"No two points are within `radius` = {radius:g}: take a larger one.")
    return Graph(edges[np.lexsort(edges.T[::-1])], len(array))
