"""Graphs, whose nodes gossip: each has a value, and edges average the values at their ends.

As a problem, gossip is `LeastSquares(graph.incidence(), 0)` with `x = u` of `Linear`, whose loss is
`½ Σ (x_v − x_w)²` over the edges `(v, w)`. Messages that take time to arrive are not a network, an
optimiser or a problem, and are not here; nor are grids for the partial differential equations to
which gossip on large lattices tends.
"""

import math
from collections.abc import Sequence
from typing import SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray
from scipy.spatial import KDTree

from ._checks import (
    as_count,
    as_flag,
    as_float,
    as_probabilities,
    check_finite,
    check_key,
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
        from a node to itself, or to a node that does not exist.
        """
        pairs = jnp.asarray(edges)
        if pairs.ndim != 2 or pairs.shape[1] != 2 or not jnp.issubdtype(pairs.dtype, jnp.integer):
            raise TypeError(
                "`edges` must be pairs of nodes, whole numbers of shape (E, 2), got shape "
                f"{pairs.shape} of {pairs.dtype}."
            )
        if len(pairs) == 0:
            raise ValueError("`edges` is empty: a graph needs at least one edge.")
        if num_nodes is None:
            if not is_concrete(pairs):
                raise TypeError("Pass `num_nodes` for traced `edges`: a shape must be known.")
            num_nodes = int(np.max(np.asarray(pairs))) + 1
        n = as_count(num_nodes, "num_nodes")
        if is_concrete(pairs):
            known = np.asarray(pairs)
            bad = np.any((known < 0) | (known >= n), axis=1) | (known[:, 0] == known[:, 1])
            if np.any(bad):
                k = int(np.argmax(bad))
                raise ValueError(
                    f"An edge must connect two different nodes from 0 to {n - 1}, got edges[{k}] = "
                    f"({known[k, 0]}, {known[k, 1]})."
                )
        self.edges, self.num_nodes = pairs, n

    def differences(self, x: ArrayLike) -> Float[Array, "... E"]:
        """`Bx`, that is `x_v − x_w` of each edge `(v, w)`, without forming `B`.
        `(..., n) -> (..., E)`.

        !!! example

            ```python
            dln.graphs.cycle(3).differences(jnp.array([0.0, 1.0, 3.0]))  # (-1, -2, 3)
            ```
        """
        x = as_float(x, "x")
        return x[..., self.edges[:, 0]] - x[..., self.edges[:, 1]]

    def divergence(self, flow: ArrayLike) -> Float[Array, "... n"]:
        """`Bᵀf`, what leaves each node by its edges, less what enters. `(..., E) -> (..., n)`.

        !!! example

            ```python
            graph = dln.graphs.cycle(3)
            graph.divergence(graph.differences(jnp.array([0.0, 1.0, 3.0])))  # (-4, -1, 5)
            ```
        """
        flow = as_float(flow, "flow")
        zero = jnp.zeros((*flow.shape[:-1], self.num_nodes), flow.dtype)
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
        return zero.at[row, self.edges[:, 0]].add(1).at[row, self.edges[:, 1]].add(-1)

    def degrees(self) -> Int[Array, " n"]:
        """The number of edges of each node, shape `(n,)`: the diagonal of `BᵀB`.

        !!! example

            ```python
            dln.graphs.lattice((2, 3)).degrees()  # (2, 3, 2, 2, 3, 2)
            ```
        """
        return jnp.bincount(self.edges.ravel(), length=self.num_nodes)

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
        or do not sum to 1.

        !!! example

            ```python
            graph = dln.graphs.cycle(3)
            graph.sample(jax.random.key(0), 5, [0.5, 0.5, 0.0]).ravel()  # no 2
            ```
        """
        check_key(key, "sample")
        p = as_probabilities(probabilities, len(self.edges))
        return jax.random.choice(key, len(self.edges), (as_count(steps, "steps"), 1), p=p)


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

    **Raises:** `ValueError` for points of another shape, NaN or inf, or if none are so close;
    `TypeError` for traced ones.

    !!! example

        ```python
        points = jax.random.uniform(jax.random.key(0), (200, 2))
        graph = dln.graphs.geometric(points, 0.15)
        graph.edges.shape  # (1190, 2)
        ```
    """
    if not is_concrete(points, radius):
        raise TypeError(
            "`points` and `radius` must be known: they decide how many edges there are."
        )
    array = as_float(points, "points")
    if array.ndim != 2:
        raise ValueError(f"`points` must have shape (n, D), got {array.shape}.")
    check_finite(array, "points")
    edges = KDTree(np.asarray(array)).query_pairs(float(radius), output_type="ndarray")
    if len(edges) == 0:
        raise ValueError(f"No two points are within `radius` = {radius:g}: take a larger one.")
    return Graph(edges[np.lexsort(edges.T[::-1])], len(array))
