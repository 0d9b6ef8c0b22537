"""`gossip_rates`: how fast the nodes of a graph agree, one random edge a step.

With `B` the incidence matrix, `p` the probabilities of the edges and `Λ = Bᵀ diag(p) B`,

    μ = λ₂(Λ),    R_e = b_eᵀ Λ⁺ b_e,    Σ p_e R_e = n − 1 (Foster).
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

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
    - `max_resistance`: the largest, a scalar.
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
    - `throw`: raise if the edges of positive probability do not connect all nodes (to rounding).
        Under tracing nothing is raised: such lanes are NaN, with the result `invalid_gossip`.

    **Returns:** a `GossipRates`.

    **Raises:** `TypeError` for what is no graph; `ValueError` for bad probabilities; an
    `EquinoxRuntimeError` for a graph that is not connected.

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
    ends = (graph.edges >= 0) & (graph.edges < n)
    is_valid = (
        are_probabilities(p) & jnp.all(ends) & jnp.all(graph.edges[:, 0] != graph.edges[:, 1])
    )
    eps = float(jnp.finfo(p.dtype).eps)
    B = graph.incidence().astype(p.dtype)

    def laplacian(p):
        """`Λ + (tr Λ) 11ᵀ/n`: it takes `1` to the largest eigenvalue, and `b_e` does not see it."""
        M = matmul(B.T * p[None, :], B)
        return M + jnp.trace(M) / n

    p = jnp.where(is_valid, p, 1 / len(p))
    values, V = eigh(lax.stop_gradient(laplacian(p)))
    # `tr Λ` is 2; eigenvalues round by some units of it. 100 times more would call the path of 10⁵
    # nodes, whose μ is 1e-15, disconnected in float64; less, and rounding would connect nodes.
    rounding = n * eps * values[-1]
    is_connected = values[0] > rounding
    verdict = first_failure((is_valid & is_connected, RESULTS.invalid_gossip))
    # Where it is not connected, compute with a graph that is: NaN would spread to other lanes.
    B = jnp.where(is_connected, B, 0)
    p = jnp.where(is_connected, p, 1 / len(p))
    M = jnp.where(is_connected, laplacian(p), jnp.eye(n, dtype=p.dtype))
    # The Rayleigh quotient has the derivative of a simple eigenvalue, and their mean for others.
    is_least = (values - values[0] <= rounding).astype(p.dtype)
    quotients = jnp.sum(V * matmul(M, V), axis=0)
    mu = jnp.sum(is_least * quotients) / jnp.sum(is_least)
    resistances = jnp.sum(B * jax.vmap(Cholesky(M).solve)(B), axis=1)
    good = verdict == RESULTS.successful
    mu, resistances = one_unless(good, (mu, resistances))
    largest = jnp.max(resistances)
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
