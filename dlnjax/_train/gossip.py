"""`gossip_rates`: how fast the nodes of a graph agree, one random edge a step.

With `B` the incidence matrix, `p` the probabilities of the edges and `Λ = Bᵀ diag(p) B`,

    μ = λ₂(Λ),    R_e = b_eᵀ Λ⁺ b_e,    Σ p_e R_e = n − 1 (Foster).
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from .._checks import are_probabilities, as_probabilities, check_type
from .._linalg import Cholesky, eigh, matmul
from .._results import RESULTS, first_failure, one_unless, raise_on_failure
from ..graphs import Graph


class GossipRates(eqx.Module):
    """The rates of gossip with one random edge a step, per step.

    **Attributes:**

    - `mu`: `μ`, the smallest eigenvalue of `Λ` but 0, a scalar.
    - `resistances`: `R_e`, the effective resistance between the ends of each edge, shape `(E,)`, in
        the network of resistors `1/p_e`.
    - `max_resistance`: the largest of the edges of positive probability, a scalar.
    - `foster_sum`: `Σ p_e R_e`, which is `n − 1`: how far it is from that says how accurate the
        resistances are.
    - `simple`: `μ/2`. If both ends of the edge take their mean, `E‖x_k − x̄‖²` falls by a factor
        `1 − simple` a step, or more.
    - `accelerated`: `√(μ/2R_max)`. With `continuized_nesterov`, `E‖x − x̄‖²` is at most
        `2e^{−accelerated·t}` times its start after a time of `t`, about as many steps.
    - `result`: `successful`, or why all numbers are NaN.

    !!! example

        ```python
        rates = dln.gossip_rates(dln.graphs.cycle(100))
        rates.simple, rates.accelerated  # 2.0e-05, 0.00045
        rates.foster_sum  # 99
        ```
    """

    mu: Float[Array, ""]
    resistances: Float[Array, " E"]
    max_resistance: Float[Array, ""]
    foster_sum: Float[Array, ""]
    simple: Float[Array, ""]
    accelerated: Float[Array, ""]
    result: RESULTS


def gossip_rates(
    graph: Graph,
    probabilities: ArrayLike | Sequence[float] | None = None,
    *,
    throw: bool = True,
) -> GossipRates:
    """The rates of simple and of accelerated gossip on a graph, one random edge a step.

    In `train`, simple gossip is `optax.sgd(1/2E)` on `LeastSquares(graph.incidence(), 0)` with one
    row a step; accelerated gossip is `continuized_nesterov(2E, E μ,
    statistical_condition=max_resistance, key=key)`.

    **Arguments:**

    - `graph`: connected, of up to some thousand nodes: matrices of `n × n` are factorised.
    - `probabilities`: of the edges, shape `(E,)`, which sum to 1. Default: all alike. They may be
        traced. Where `μ` is an eigenvalue several times, as on a cycle, it has no derivative: then
        it is the mean over its eigenvectors. Second derivatives of `μ` are wrong.
    - `throw`: raise if the edges of positive probability do not connect all nodes, or `μ` is below
        the rounding of the largest eigenvalue. Under tracing nothing is raised: such lanes are NaN,
        with the result `invalid_gossip` or `gossip_not_resolved`.

    **Returns:** a `GossipRates`.

    **Raises:** `TypeError` for what is no graph; `ValueError` for bad probabilities; an
    `EquinoxRuntimeError` for a graph that is not connected, or not to rounding: the cycle of `n`
    nodes is up to `n = 370` in float32.

    !!! example

        ```python
        graph = dln.graphs.complete(8)
        rates = dln.gossip_rates(graph)
        rates.simple, rates.accelerated  # 1/7 both: nothing to accelerate
        jax.grad(lambda p: dln.gossip_rates(graph, p).mu)(jnp.full(28, 1 / 28))  # 2/7 each
        ```

    !!! cite "Reference"

        Boyd, Ghosh, Prabhakar, Shah, *Randomized Gossip Algorithms*, IEEE Trans. Inf. Theory 2006;
        [EBBF21] arXiv 2106.07644, for the accelerated rate.
    """
    check_type(graph, "graph", Graph, "a graph, such as `dlnjax.graphs.cycle(30)`")
    rates = _rates(graph, as_probabilities(probabilities, len(graph.edges)))
    return raise_on_failure(rates, rates.result, throw)


@eqx.filter_jit
def _rates(graph: Graph, p: Float[Array, " E"]) -> GossipRates:
    n = graph.num_nodes
    is_valid = are_probabilities(p) & jnp.all(graph._are_edges())
    is_valid = is_valid & _are_connected(graph, p > 0)
    # Where it is not connected, compute with a graph that is: NaN would spread to other lanes.
    B = jnp.where(is_valid, graph.incidence().astype(p.dtype), 0)
    p = jnp.where(is_valid, p, 1 / len(p))
    M = matmul(B.T * p[None, :], B)
    # `b_e` does not see `11ᵀ`, which takes `1` to an eigenvalue above all others: these are at most
    # twice the largest diagonal entry (Gershgorin; two nodes are there). Larger ones round more.
    above = lax.stop_gradient(3 * jnp.max(jnp.diagonal(M)))
    M = jnp.where(is_valid, M + above / n, jnp.eye(n, dtype=p.dtype))
    values, V = eigh(lax.stop_gradient(M))
    # Eigenvalues round by some units of the largest one, and `n` bounds how many. Below that the
    # eigenvector may be any.
    rounding = n * float(jnp.finfo(p.dtype).eps) * above
    is_resolved = values[0] > rounding
    verdict = first_failure(
        (is_valid, RESULTS.invalid_gossip), (is_resolved, RESULTS.gossip_not_resolved)
    )
    M = jnp.where(is_resolved, M, jnp.eye(n, dtype=p.dtype))
    # The Rayleigh quotient has the derivative of a simple eigenvalue, and their mean for others. As
    # a sum of squares over the edges it does not cancel, and is more accurate than `values[0]`.
    is_least = (values - values[0] <= rounding).astype(p.dtype)
    quotients = matmul(p, matmul(B, V) ** 2)
    mu = jnp.sum(is_least * quotients) / jnp.sum(is_least)
    resistances = jnp.sum(B * jax.vmap(Cholesky(M).solve)(B), axis=1)
    good = verdict == RESULTS.successful
    mu, resistances = one_unless(good, (mu, resistances))
    largest = jnp.max(jnp.where(p > 0, resistances, 0))
    known = lambda v: jnp.where(good, v, jnp.nan)
    return GossipRates(
        mu=known(mu),
        resistances=known(resistances),
        max_resistance=known(largest),
        foster_sum=known(jnp.sum(p * resistances)),
        simple=known(mu / 2),
        accelerated=known(jnp.sqrt(mu / (2 * largest))),
        result=verdict,
    )


def _are_connected(graph: Graph, is_open: Bool[Array, " E"]) -> Bool[Array, ""]:
    """Whether the open edges connect all nodes, exactly."""
    u, v = graph.edges[:, 0], graph.edges[:, 1]

    def disagree(labels):
        return is_open & (labels[u] != labels[v])

    def spread(labels):
        """Each label is a node of the same component, and falls until both ends of edges agree."""
        least = jnp.where(is_open, jnp.minimum(labels[u], labels[v]), graph.num_nodes)
        after = labels.at[u].min(least).at[v].min(least)
        # The nodes that the labels name, too, and then theirs: it takes about log n rounds, not n.
        after = after.at[labels[u]].min(least).at[labels[v]].min(least)
        return after[after]

    start = jnp.arange(graph.num_nodes)
    labels = lax.while_loop(lambda labels: jnp.any(disagree(labels)), spread, start)
    return jnp.all(labels == 0)
