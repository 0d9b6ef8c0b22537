"""Even, Berthier, Bach, Flammarion et al., arXiv 2106.07644, on gossip: EBBF21-gossip.

Claims: gossip with one random edge a step is accelerated by the continuized method, to the rate
`√(μ/2R_max)`. Runs of `train` are measured against second moments by recursion, without sampling,
and the rate of these against the bound.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from .. import GossipRates, LeastSquares, Linear, continuized_nesterov, gossip_rates, graphs, train
from ..graphs import Graph
from ..plot.axes import COLORS, DASHES
from .claim import Claim, Measurement
from .panels import panel

STEPS, RUNS, NODES = (1000, 2000, 4000), 500, 30


def small_graphs() -> dict[str, Graph]:
    return {
        "path of 6": graphs.lattice((6,)),
        "cycle of 9": graphs.cycle(9),
        "3 × 3 lattice": graphs.lattice((3, 3)),
        "complete graph of 8": graphs.complete(8),
    }


def accelerated(graph: Graph, rates: GossipRates, key: Array) -> optax.GradientTransformation:
    """Accelerated gossip, of which `train` takes one row of the incidence matrix a step."""
    edges = len(graph.edges)
    how: Any = {"statistical_condition": rates.max_resistance, "key": key}
    return continuized_nesterov(2 * edges, edges * rates.mu, **how)


@eqx.filter_jit
def spread(
    graph: Graph, steps: tuple[int, ...], is_accelerated: bool, runs: int
) -> Float[Array, "runs S"]:
    """`‖x − x̄‖²` after some steps from standard normal values, of runs of `train`."""
    problem = LeastSquares(graph.incidence(), jnp.zeros(len(graph.edges)))
    rates = gossip_rates(graph)

    def one(key):
        of_start, of_edges, of_times = jax.random.split(key, 3)
        simple = optax.sgd(1 / (2 * len(graph.edges)))
        optimizer = accelerated(graph, rates, of_times) if is_accelerated else simple
        network = Linear(2 * jax.random.normal(of_start, (graph.num_nodes,)))  # times ε = 1/2
        how: Any = {"eps": 0.5, "steps": np.array(steps), "batch_size": 1, "key": of_edges}
        x = train(network, problem, optimizer, throw=False, **how).x
        return jnp.sum((x - jnp.mean(x, axis=1, keepdims=True)) ** 2, axis=1)

    return jax.vmap(one)(jax.random.split(jax.random.key(0), runs))


def exact_spread(graph: Graph, steps: int, is_accelerated: bool) -> np.ndarray:
    """`E‖x − x̄‖²` after each of `0, …, steps` steps, by the recursion of the second moments."""
    B, n, rates = np.asarray(graph.incidence()), graph.num_nodes, gossip_rates(graph)
    p, far = 1 / len(B), float(rates.accelerated) if is_accelerated else 0.0
    # A step takes ½ and γ′ times `b⟨b, x⟩` from x and from z; simple gossip has no z.
    gain = 1 / np.sqrt(2 * float(rates.mu) * float(rates.max_resistance))
    gains = np.array([0.5, gain if is_accelerated else 0.0])
    # Mixing for the exponential time Δ keeps (x + z)/2 and takes (x − z)/2 times e^{−2ηΔ}, of mean
    # 1/(1 + 2η) and mean square 1/(1 + 4η).
    turn, fall = np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]) / 2, 1 / (1 + 2 * far)
    mixing = turn @ np.diag([1, fall, fall, 1 / (1 + 4 * far)]) @ turn
    S = np.ones((2, 2, 1, 1)) * (np.eye(n) - 1 / n)  # of x and z
    laplacian, out = p * B.T @ B, [np.trace(S[0, 0])]
    for _ in range(steps):
        drop = gains[:, None, None, None] * (laplacian @ S[0])
        size = p * np.sum((B @ S[0, 0]) * B, axis=1)
        jump = np.multiply.outer(np.outer(gains, gains), B.T @ (size[:, None] * B))
        S = S - drop - drop.transpose(1, 0, 3, 2) + jump
        S = (mixing @ S.reshape(4, -1)).reshape(S.shape)
        out.append(np.trace(S[0, 0]))
    return np.array(out)


def exact_rate(graph: Graph) -> float:
    """The rate at which second moments of accelerated gossip decay in continuous time: of their
    generator, an eigenvalue."""
    rates, n = gossip_rates(graph), graph.num_nodes
    B, far = np.asarray(graph.incidence()), float(rates.accelerated)
    # In an orthonormal basis of what has mean 0.
    B = B @ np.linalg.svd(np.ones((1, n)))[2][1:].T
    gain = 1 / np.sqrt(2 * float(rates.mu) * float(rates.max_resistance))
    identity = np.eye(2 * (n - 1))
    drift = far * np.kron([[-1, 1], [1, -1]], np.eye(n - 1))
    generator = np.kron(drift, identity) + np.kron(identity, drift)
    for b in B:
        jump = identity - np.kron([[0.5, 0], [gain, 0]], np.outer(b, b))
        generator += (np.kron(jump, jump) - np.kron(identity, identity)) / len(B)
    return -float(np.max(np.linalg.eigvals(generator).real))


def gossip() -> list[Measurement]:
    """EBBF21-gossip: rates, and second moments on a cycle of 30 nodes."""
    row = lambda *of, **kind: Measurement("EBBF21-gossip", *of, **kind)
    small, ring = small_graphs(), graphs.cycle(NODES)
    rates = gossip_rates(small["complete graph of 8"])
    why = "rounding of the eigenvalues and solves of an 8 × 8 matrix"
    out = [
        row("complete graph of 8: μ/2", 1 / 7, float(rates.simple), 1e-14, why),
        row("complete graph of 8: √(μ/2R_max)", 1 / 7, float(rates.accelerated), 1e-14, why),
    ]
    over = {name: float(gossip_rates(g).accelerated) / exact_rate(g) for name, g in small.items()}
    out.append(
        row(
            f"√(μ/2R_max) over the exact rate, on {', '.join(over)}: the largest",
            1.0,
            max(over.values()),
            1e-9,
            "on the complete graph they are equal, up to rounding of 196 × 196 eigenvalues",
            kind="at most",
        )
    )
    exact = exact_spread(ring, max(STEPS), False)
    runs = np.asarray(spread(ring, STEPS, False, RUNS))
    for steps, values in zip(STEPS, runs.T, strict=True):
        claim = f"simple gossip on a cycle of 30: mean of ‖x − x̄‖² after {steps} steps"
        error = np.std(values) / np.sqrt(RUNS)
        measured, why = float(np.mean(values)), f"4 standard errors of {RUNS} runs"
        out.append(row(claim, float(exact[steps]), measured, float(4 * error), why))
    fast = exact_spread(ring, 2000, True)[2000]
    claim = "accelerated gossip on it: E‖x − x̄‖² after 2000 steps"
    out.append(row(claim, 1e-5, float(fast), 0.0, "a bound, by exact moments", kind="at most"))
    values = np.asarray(spread(ring, (2000,), True, RUNS))
    claim = f"the same, mean of {RUNS} runs"
    out.append(row(claim, 1e-5, float(np.mean(values)), 0.0, "a bound", kind="at most"))
    return out


def figure() -> Figure:
    """EBBF21-gossip: runs and exact means on a cycle; and rates against the size of the graph."""
    ring = graphs.cycle(NODES)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = tuple(range(0, 2001, 50))
    for colour, is_fast, label in ((COLORS[1], False, "simple"), (COLORS[0], True, "accelerated")):
        for values in np.asarray(spread(ring, steps, is_fast, 12)):
            left.semilogy(steps, values, color=colour, linewidth=0.6, alpha=0.5)
        exact = exact_spread(ring, 2000, is_fast)
        left.semilogy(exact, color=colour, linewidth=1.6, label=label)
    rates = gossip_rates(ring)
    bound = 2 * (ring.num_nodes - 1) * np.exp(-float(rates.accelerated) * np.array(steps))
    left.semilogy(steps, bound, color="black", linestyle=DASHES, label="bound")
    left.legend(fontsize=8, frameon=False)
    panel(left, "cycle of 30; thick: exact means", "step", r"$\|x - \bar x\|^2$")
    families = {
        "cycle": [graphs.cycle(4**k) for k in (1, 2, 3, 4)],
        "lattice, 2-D": [graphs.lattice((2**k, 2**k)) for k in (1, 2, 3, 4)],
        "complete": [graphs.complete(4**k) for k in (1, 2, 3)],
    }
    for colour, (name, family) in zip(COLORS, families.items(), strict=False):
        of = [gossip_rates(graph) for graph in family]
        nodes = [graph.num_nodes for graph in family]
        right.loglog(nodes, [float(r.accelerated) for r in of], "o-", color=colour, markersize=3)
        simple = [float(r.simple) for r in of]
        right.loglog(nodes, simple, color=colour, linestyle=DASHES, linewidth=0.9)
        right.plot([], [], color=colour, label=name)
    right.legend(fontsize=8, frameon=False)
    panel(right, r"$\sqrt{\mu/2R_{\max}}$; dashed: simple, μ/2", "nodes", "rate per step")
    return figure


CLAIMS = [Claim("EBBF21-gossip", "the continuized method accelerates gossip", gossip)]
