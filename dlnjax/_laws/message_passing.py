"""Approximate message passing on a graph of Gaussian matrices, and its state evolution.

Each edge `e = (v, w)` with the matrix `A` has an iterate `x_e` at its end `w`, and a message
`m_e = f_e(t, x)` at its start `v`, made of the iterates that arrive there. With `ē` the reverse,

    x_e⁺ = A m_e − m_ē⁻ b_eᵀ,        b_e = s Σ_i ∂(f_e)_i/∂(x_ē)_i,

where `m_ē⁻` is the message of the step before. The Onsager term `b` cancels what `A` has in common
with the past, so that `x_e` is as Gaussian as with a new matrix in each step: its rows have the
covariance `K_e⁺ = s m_eᵀ m_e`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from .._checks import (
    as_count,
    as_flag,
    as_float,
    check_finite,
    check_key,
    check_nonempty,
    check_type,
    is_concrete,
)
from .._linalg import matmul
from .._loops import scan
from .._results import RESULTS, first_failure, names_of, raise_on_failure, result_code
from .graph import Edge, GaussianGraph, reverse

# Keys are edges. (`Mapping` is invariant in them, so that `Edge` would refuse a dict of literals.)
MessageFunctions = Mapping[Any, Callable[[Array, dict[str, Array]], Array]]
_Vectors = dict[Edge, Array]


class MessagePassing(eqx.Module):
    """A run of `message_passing`.

    **Attributes:**

    - `iterates`: `x_e` by edge `(v, w)`, shape `(steps + 1, n_w)` or `(steps + 1, n_w, q)`, the
        start first.
    - `messages`: `m_e` by edge, shape `(steps, n_v)` or `(steps, n_v, q)`: what the iterate of the
        same number made, so that `iterates[e][t + 1]` comes from `messages[e][t]`.
    - `onsager`: `b_e` by edge, shape `(steps, q_e, q_ē)`, without an axis of which there is no `q`.
    - `result`: how it ended. If it failed, all numbers are NaN.

    !!! example

        ```python
        A = jax.random.normal(jax.random.key(0), (500, 500))
        graph = dln.GaussianGraph({("v", "v"): (A + A.T) / 1000**0.5})
        functions = {("v", "v"): lambda t, x: jnp.tanh(x["v"])}
        run = dln.message_passing(graph, functions, 3, start={("v", "v"): jnp.ones(500)})
        run.iterates["v", "v"].shape  # (4, 500)
        ```
    """

    iterates: dict[Edge, Float[Array, "..."]]
    messages: dict[Edge, Float[Array, "..."]]
    onsager: dict[Edge, Float[Array, "..."]]
    result: RESULTS


_STARTS = (Mapping, MessagePassing, type(None))


class StateEvolution(eqx.Module):
    """The law of `message_passing` on large graphs.

    **Attributes:**

    - `covariances`: `K_e` of the rows of `x_e` by edge, shape `(steps,)`, or `(steps, q, q)`: entry
        `t` is that of `iterates[e][t + 1]`.
    - `iterates`: vectors with this law, independent of each other, as in `MessagePassing`.
    - `result`: how it ended. If it failed, all numbers are NaN.

    !!! example

        ```python
        graph = dln.GaussianGraph({("v", "v"): (100_000, 100_000)})
        functions = {("v", "v"): lambda t, x: jnp.tanh(x["v"])}
        start = {("v", "v"): jnp.ones(100_000)}
        law = dln.state_evolution(graph, functions, 3, start=start, key=jax.random.key(0))
        law.covariances["v", "v"]  # (0.580, 0.299, 0.197)
        ```
    """

    covariances: dict[Edge, Float[Array, "..."]]
    iterates: dict[Edge, Float[Array, "..."]]
    result: RESULTS


def message_passing(
    graph: GaussianGraph,
    functions: MessageFunctions,
    steps: int,
    *,
    start: Mapping[Any, ArrayLike] | MessagePassing | None = None,
    key: Key[Array, ""] | None = None,
    throw: bool = True,
) -> MessagePassing:
    """Approximate message passing (AMP) on a graph of Gaussian matrices.

    All edges step together. A bipartite graph, such as that of the lasso, so has two interleaved
    runs; start both at the same point, and each second step is one of the usual iteration.

    The Onsager term is computed by automatic differentiation, as `s Σ_i ε_i (J ε)_i` with random
    signs `ε` and one product `J ε` by `jvp` for each column of `x_ē`. It is exact where row `i` of
    a message depends on rows `i` of the iterates only (a separable function), since
    `ε_i² = 1`; for others it is unbiased, and its error is that of `1/√n`, as of AMP itself.

    **Arguments:**

    - `graph`: a `GaussianGraph` with matrices.
    - `functions`: from each edge `(v, w)`, reverses included, to a function of the step `t`, an
        integer from 0 on (traced, for `theta[t]`), and of a dict from the vertices `u` with an
        edge to `v` to the iterates `x_(u, v)`, shape `(n_v,)` or `(n_v, q)`. It returns the
        message, `(n_v,)` or `(n_v, q_e)`, with the `q_e` of the start of this edge. It may hold
        data, such as `y`.
    - `steps`: how many, a Python integer.
    - `start`: iterates at `t = 0` by edge `(v, w)`, shape `(n_w,)`, or `(n_w, q)` for a
        matrix-valued edge. Default 0, shape `(n_w,)`. A run goes on where it ended, with its
        memory, so that functions may change with what it found, such as adaptive thresholds.
    - `key`: of the signs, one `jax.random.key`, by default `jax.random.key(0)`.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** a `MessagePassing`. Call it under `jit` if it is called more than once: functions
    are new to JAX each time that they are defined.

    **Raises:** `ValueError` for an edge without function, a graph without matrices, shapes that do
    not match, or a run as `start` that failed; `TypeError` for a message that is not real; an
    `EquinoxRuntimeError` with `messages_not_finite` if the iteration diverges.

    !!! example

        ```python
        # The lasso of a large design: `theta = alpha * tau` makes κ = 0.2 its fixed point.
        law = dln.GaussianDesign(0.5, ([-1.0, 0.0, 1.0], [0.05, 0.9, 0.05]), noise=0.2)
        large = dln.lasso_asymptotics(law, 0.2)
        problem, x_star = law.sample(jax.random.key(0), 500, 1000)
        theta = large.alpha * large.tau
        soft = lambda u: jnp.sign(u) * jnp.maximum(jnp.abs(u) - theta, 0)
        functions = {
            ("columns", "rows"): lambda t, x: soft(x["rows"]),  # x
            ("rows", "columns"): lambda t, x: problem.y - x["columns"],  # the residual
        }
        graph = dln.GaussianGraph({("columns", "rows"): problem.X})
        run = dln.message_passing(graph, functions, 60)
        x = run.messages["columns", "rows"][-1]
        jnp.mean((x - x_star) ** 2), large.risk  # 0.0373 and 0.0366
        ```

    !!! cite "Reference"

        Gerbelot & Berthier, *Graph-based Approximate Message Passing Iterations*, Information and
        Inference 12 (2023), arXiv 2109.11905.
    """
    before, of_start = {}, RESULTS.successful
    check_type(start, "start", _STARTS, "a dict from edges to arrays, or a MessagePassing")
    if isinstance(start, MessagePassing):
        of_start = start.result
        if is_concrete(result_code(of_start)) and np.any(names_of(of_start) != "successful"):
            raise ValueError(
                f"`start` is a run that failed, as {names_of(of_start)}: it has no end to go on "
                "from. Mend that run, or pass a dict."
            )
        before = {edge: m[-1] for edge, m in start.messages.items()}
        start = {edge: x[-1] for edge, x in start.iterates.items()}
    names, start = _check(graph, functions, steps, start)
    as_flag(throw, "throw")
    if None in graph.matrices.values():
        raise ValueError(
            "`graph` has shapes in place of matrices: only `state_evolution` takes it."
        )
    if key is None:
        key = jax.random.key(0)
    check_key(key, "message_passing")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    matrices = {edge: graph.matrix(edge) for edge in names}

    def step(state: tuple[_Vectors, _Vectors], t: Array) -> tuple[Any, Any]:
        x, before = state
        m, b, new = {}, {}, {}
        for edge in names:
            of_iterates = lambda x, edge=edge: _message(graph, functions, edge, t, x)
            m[edge], b[edge] = _onsager(of_iterates, edge, x, keys[edge], graph.variance(edge))
        for edge in names:
            memory = matmul(_columns(before[reverse(edge)]), _matrix(b[edge], m[edge]).T)
            new[edge] = matmul(matrices[edge], m[edge]) - memory.reshape(x[edge].shape)
        return (new, m), (new, m, b)

    empty = {
        edge: jnp.zeros((graph.sizes[edge[0]], *x.shape[1:]), x.dtype) for edge, x in start.items()
    }
    _, (x, m, b) = scan(step, (start, empty | before), jnp.arange(steps))
    x = {edge: jnp.concatenate([start[edge][None], x[edge]]) for edge in names}
    result = first_failure(of_start, (graph.is_valid(), RESULTS.invalid_graph), _is_finite((x, m)))
    x, m, b = _nan_unless(result, (x, m, b))
    return raise_on_failure(MessagePassing(x, m, b, result), result, throw)


def state_evolution(
    graph: GaussianGraph,
    functions: MessageFunctions,
    steps: int,
    *,
    key: Key[Array, ""],
    start: Mapping[Any, ArrayLike] | None = None,
    throw: bool = True,
) -> StateEvolution:
    """State evolution: the law of the iterates of `message_passing` as sizes go to infinity.

    Rows of the iterate of an edge are independent normals, independent also of those of other edges
    and of the data in `functions`, with the covariance `K_e⁺ = s m_eᵀ m_e`. Expectations over
    them are averages over the `n_v` entries of a vertex, with new normals in each step: their
    errors are of the order of `1/√n_v`. A graph of shapes needs no matrices, so that `n_v` may be
    millions. It is the law of each step by itself, not of two together.

    What is data for AMP must be independent of the matrices here. For `y = Xx* + noise`, subtract
    the solution: `soft(x["rows"] + x_star) - x_star` and `noise - x["columns"]`.

    **Arguments:** as for `message_passing`; `graph` may have shapes in place of matrices, and `key`
    is that of the normals.

    **Returns:** a `StateEvolution`, differentiable in what the functions hold, at a given key.

    **Raises:** as `message_passing`.

    !!! example

        ```python
        n, d, kappa = 50_000, 100_000, 0.2
        law = dln.GaussianDesign(0.5, ([-1.0, 0.0, 1.0], [0.05, 0.9, 0.05]), noise=0.2)
        large = dln.lasso_asymptotics(law, kappa)
        theta = large.alpha * large.tau
        x_star = jax.random.choice(jax.random.key(1), law.values, (d,), p=law.probabilities)
        noise = 0.2 * jax.random.normal(jax.random.key(2), (n,))
        soft = lambda u: jnp.sign(u) * jnp.maximum(jnp.abs(u) - theta, 0)
        functions = {
            ("columns", "rows"): lambda t, x: soft(x["rows"] + x_star) - x_star,
            ("rows", "columns"): lambda t, x: noise - x["columns"],
        }
        graph = dln.GaussianGraph({("columns", "rows"): (n, d)})
        found = dln.state_evolution(graph, functions, 60, key=jax.random.key(3))
        found.covariances["rows", "columns"][-1], large.tau**2  # 0.115 and 0.113
        ```

    !!! cite "Reference"

        Gerbelot & Berthier, arXiv 2109.11905, Theorem 1.
    """
    check_type(start, "start", (Mapping, type(None)), "a dict from edges to arrays")
    names, start = _check(graph, functions, steps, start)
    as_flag(throw, "throw")
    check_key(key, "state_evolution")

    def step(x: _Vectors, t_and_key: tuple[Array, Array]) -> tuple[Any, Any]:
        t, of_step = t_and_key
        new, K = {}, {}
        for edge, of_edge in zip(names, jax.random.split(of_step, len(names)), strict=True):
            m = _message(graph, functions, edge, t, x)
            columns = _columns(m)
            cov = graph.variance(edge) * matmul(columns.T, columns)
            normal = jax.random.normal(of_edge, (x[edge].shape[0], len(cov)), m.dtype)
            new[edge] = matmul(normal, _root(cov).T).reshape(x[edge].shape)
            K[edge] = cov.reshape(m.shape[1:] * 2)
        return new, (new, K)

    over = jnp.arange(steps), jax.random.split(key, steps)
    _, (x, K) = scan(step, start, over)
    x = {edge: jnp.concatenate([start[edge][None], x[edge]]) for edge in names}
    result = first_failure((graph.is_valid(), RESULTS.invalid_graph), _is_finite((x, K)))
    x, K = _nan_unless(result, (x, K))
    return raise_on_failure(StateEvolution(K, x, result), result, throw)


def _check(
    graph: Any, functions: Any, steps: Any, start: Mapping[Any, ArrayLike] | None
) -> tuple[tuple[Edge, ...], _Vectors]:
    """The edges, and the start of each."""
    check_type(graph, "graph", GaussianGraph, "a GaussianGraph")
    as_count(steps, "steps")
    names = graph.edges
    check_type(functions, "functions", Mapping, "a dict from edges to functions")
    for edge in names:
        if not callable(functions.get(edge)):
            raise ValueError(
                f"`functions` has no function for the edge {edge!r}. It needs one for each of "
                f"{names}."
            )
    start = {} if start is None else start
    if unknown := [edge for edge in start if edge not in names]:
        raise ValueError(f"`start` has {unknown[0]!r}, which is no edge of the graph: {names}.")
    found = {}
    for edge in names:
        n, dtype = graph.sizes[edge[1]], graph.variance(edge).dtype
        x = (
            as_float(start[edge], f"start[{edge!r}]", dtype)
            if edge in start
            else jnp.zeros(n, dtype)
        )
        if x.ndim not in (1, 2) or x.shape[0] != n:
            raise ValueError(
                f"`start[{edge!r}]` must have shape ({n},) or ({n}, q), got {x.shape}."
            )
        check_nonempty(x, f"start[{edge!r}]")
        check_finite(x, f"start[{edge!r}]")
        found[edge] = x
    return names, found


def _message(
    graph: GaussianGraph, functions: MessageFunctions, edge: Edge, t: Array, x: _Vectors
) -> Array:
    v = edge[0]
    m = functions[edge](t, {u: value for (u, w), value in x.items() if w == v})
    want = (graph.sizes[v], *x[edge].shape[1:])
    if getattr(m, "shape", None) != want:
        raise ValueError(
            f"`functions[{edge!r}]` must return an array of shape {want}, got "
            f"{getattr(m, 'shape', type(m).__name__)}. Its columns are those of `start[{edge!r}]`."
        )
    if jnp.issubdtype(m.dtype, jnp.complexfloating):
        raise TypeError(
            f"`functions[{edge!r}]` must return real numbers, got dtype {m.dtype}. Take its real "
            "part."
        )
    return m.astype(x[edge].dtype)


def _columns(v: Array) -> Array:
    """A matrix with one column where `v` has none."""
    return v.reshape(v.shape[0], -1)


def _matrix(b: Array, m: Array) -> Array:
    return b.reshape(_columns(m).shape[1], -1)


def _onsager(
    message: Callable[[_Vectors], Array], edge: Edge, x: _Vectors, key: Array, variance: Array
) -> tuple[Array, Array]:
    """The message of an edge, and `b` with the axes `q_e`, `q_ē` that there are."""
    back = x[reverse(edge)]
    m, push = jax.linearize(lambda back: message(x | {reverse(edge): back}), back)
    signs = jax.random.rademacher(key, (back.shape[0], 1), back.dtype)
    count = _columns(back).shape[1]

    def column(j: Array) -> Array:
        here = jnp.where(jnp.arange(count) == j, signs, 0)
        return matmul(signs[:, 0], _columns(push(here.reshape(back.shape))))

    b = variance * jax.vmap(column)(jnp.arange(count)).T
    return m, b.reshape(m.shape[1:] + back.shape[1:])


def _root(cov: Array) -> Array:
    """A lower triangular `L` with `LLᵀ = cov`, which may be singular."""
    q = len(cov)
    L = jnp.zeros_like(cov)
    # Small, and so written out, as `_linalg` does. What is 0 but for rounding is 0.
    for j in range(q):
        column = cov[:, j] - matmul(L, L[j])
        is_zero = column[j] <= 8 * jnp.finfo(cov.dtype).eps * cov[j, j]
        pivot = jnp.sqrt(jnp.where(is_zero, 1, column[j]))
        below = jnp.where((jnp.arange(q) >= j) & ~is_zero, column / pivot, 0)
        L = L.at[:, j].set(below)
    return L


def _is_finite(tree: Any) -> RESULTS:
    all_finite = [jnp.all(jnp.isfinite(v)) for v in jax.tree.leaves(tree)]
    return first_failure((jnp.stack(all_finite).all(), RESULTS.messages_not_finite))


def _nan_unless(result: RESULTS, tree: Any) -> Any:
    good = result == RESULTS.successful
    return jax.tree.map(lambda v: jnp.where(good, v, jnp.nan), tree)
