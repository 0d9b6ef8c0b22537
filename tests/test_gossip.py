"""Graphs, and gossip on them: rates against NumPy, runs against averages by hand."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import dlnjax as dln
from dlnjax._results import names_of
from dlnjax.papers import ebbf21, ebbf21_gossip

POINTS = np.random.default_rng(0).random((25, 2))
GEOMETRIC = dln.graphs.geometric(POINTS, 0.45)


def laplacian_of_path(n, periodic):
    step = np.roll(np.eye(n), 1, axis=1) if periodic else np.eye(n, k=1)
    A = step + step.T
    return np.diag(A.sum(axis=1)) - A


@pytest.mark.parametrize("shape, periodic", [((5,), True), ((4, 3), False), ((3, 4, 5), True)])
def test_lattices(shape, periodic):
    graph = dln.graphs.lattice(shape, periodic)
    want = 0
    for axis, side in enumerate(shape):
        before, after = np.prod(shape[:axis]), np.prod(shape[axis + 1 :])
        of_axis = laplacian_of_path(side, periodic)
        want = want + np.kron(np.kron(np.eye(int(before)), of_axis), np.eye(int(after)))
    B = np.asarray(graph.incidence())
    np.testing.assert_array_equal(B.T @ B, want)
    np.testing.assert_array_equal(graph.degrees(), np.diag(want))
    x = np.random.default_rng(0).normal(size=(2, graph.num_nodes))
    np.testing.assert_allclose(graph.differences(x), x @ B.T, rtol=1e-15)
    np.testing.assert_allclose(graph.divergence(x @ B.T), x @ want, rtol=1e-13, atol=1e-13)


def test_other_graphs():
    B = np.asarray(dln.graphs.complete(5).incidence())
    np.testing.assert_array_equal(B.T @ B, 5 * np.eye(5) - 1)
    apart = np.linalg.norm(POINTS[:, None] - POINTS[None], axis=2)
    want = np.argwhere(np.triu(apart <= 0.45, 1))
    np.testing.assert_array_equal(GEOMETRIC.edges, want)
    assert len(dln.graphs.cycle(7).edges) == 7


def test_rates():
    rng = np.random.default_rng(1)
    B = np.asarray(GEOMETRIC.incidence())
    p = rng.random((3, len(B)))
    p /= p.sum(axis=1, keepdims=True)
    rates = jax.vmap(lambda p: dln.gossip_rates(GEOMETRIC, p))(jnp.asarray(p))
    for k in range(3):
        M = B.T @ (p[k][:, None] * B)
        mu = np.linalg.eigvalsh(M)[1]
        R = np.einsum("ei,ij,ej->e", B, np.linalg.pinv(M), B)
        np.testing.assert_allclose(rates.mu[k], mu, rtol=1e-12)
        np.testing.assert_allclose(rates.resistances[k], R, rtol=1e-10)
        np.testing.assert_allclose(rates.accelerated[k], np.sqrt(mu / 2 / R.max()), rtol=1e-11)
        np.testing.assert_allclose(rates.foster_sum[k], 24, rtol=1e-12)
    # The resistance of an edge of a tree is its own, 1/p.
    p = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    path = dln.gossip_rates(dln.graphs.lattice((5,)), p)
    assert path.resistances.dtype == np.float32
    np.testing.assert_allclose(path.resistances, 1 / p, rtol=1e-5)
    complete = dln.gossip_rates(dln.graphs.complete(8))
    np.testing.assert_allclose([complete.simple, complete.accelerated], 1 / 7, rtol=1e-14)


def test_derivatives_of_rates():
    p = jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(len(GEOMETRIC.edges))))

    def value(p):
        rates = dln.gossip_rates(GEOMETRIC, p / jnp.sum(p))
        return jnp.stack([rates.mu, rates.accelerated, rates.resistances[3]])

    change = p * jnp.asarray(np.random.default_rng(3).normal(size=p.shape))
    h = 1e-5
    want = (value(p + h * change) - value(p - h * change)) / (2 * h)
    forward = jax.jvp(value, (p,), (change,))[1]
    np.testing.assert_allclose(forward, want, rtol=1e-6)
    np.testing.assert_allclose(jax.jacrev(value)(p) @ change, want, rtol=1e-6)
    # All eigenvalues of the complete graph are equal, of trace 2: Λ is 2 over 7 on their space.
    graph = dln.graphs.complete(8)
    slope = jax.grad(lambda p: dln.gossip_rates(graph, p).mu)(jnp.full(28, 1 / 28))
    np.testing.assert_allclose(slope, 2 / 7, rtol=1e-13)


def test_lanes_that_do_not_gossip():
    graph = dln.graphs.cycle(4)
    p = jnp.array([[1, 1, 1, 1], [2, 2, 0, 0], [2, 1, 1, 0], [4, 4, 0, 0], [5, -1, 0, 0.0]]) / 4
    rates, slope = jax.vmap(
        lambda p: (dln.gossip_rates(graph, p), jax.grad(lambda p: dln.gossip_rates(graph, p).mu)(p))
    )(p)
    want = ["successful", "invalid_gossip", "successful", "invalid_gossip", "invalid_gossip"]
    assert list(names_of(rates.result)) == want
    good = np.array([name == "successful" for name in want])
    np.testing.assert_array_equal(np.isfinite(rates.mu), good)
    np.testing.assert_array_equal(np.all(np.isfinite(rates.resistances), axis=1), good)
    assert np.all(np.isfinite(slope[good]))
    np.testing.assert_allclose(rates.resistances[2, 3], 2 + 4 + 4)  # all the way around


def test_edges_of_probability_0_change_nothing():
    # Those of a chord: the rates are the rates without it.
    p = np.array([0.2, 0.3, 0.4, 0.1])
    without = dln.gossip_rates(dln.graphs.lattice((5,)), p)
    chords = dln.graphs.Graph([[0, 1], [1, 2], [2, 3], [3, 4], [0, 4], [1, 4]])
    rates = dln.gossip_rates(chords, np.append(p, [0, 0]))
    for name in ("mu", "max_resistance", "foster_sum", "simple", "accelerated"):
        want = getattr(without, name)
        np.testing.assert_allclose(getattr(rates, name), want, rtol=1e-13)
    # Two nodes, whose eigenvalue is the largest that there is: Λ = [[1, −1], [−1, 1]].
    pair, slope = jax.value_and_grad(lambda p: dln.gossip_rates(dln.graphs.lattice((2,)), p).mu)(
        jnp.ones(1)
    )
    np.testing.assert_allclose([pair, slope[0]], 2, rtol=1e-15)


def test_whether_it_is_connected_is_exact():
    # In float32, by `scipy.sparse.csgraph`, with nodes in any order: long paths, and bridges of any
    # probability above 0.
    graph = dln.graphs.cycle(24)
    order = np.random.default_rng(4).permutation(24)
    graph = dln.graphs.Graph(order[np.asarray(graph.edges)], 24)
    open_edges = np.random.default_rng(5).random((24, 24)) > np.linspace(0, 0.15, 24)[:, None]
    open_edges[0], open_edges[1] = True, np.arange(24) > 0  # a cycle, a path
    p = (open_edges / open_edges.sum(axis=1, keepdims=True)).astype(np.float32)
    result = jax.vmap(lambda p: dln.gossip_rates(graph, p).result)(jnp.asarray(p))
    u, v = np.asarray(graph.edges).T
    parts = [
        connected_components(coo_array((q[q > 0], (u[q > 0], v[q > 0])), (24, 24)))[0] for q in p
    ]
    want = [{1: "successful"}.get(number, "invalid_gossip") for number in parts]
    assert list(names_of(result)) == want and len(set(want)) == 2

    # μ of two cliques of 10 and a bridge of relative weight w, against float64; the smallest one is
    # below rounding, and is not "not connected".
    clique = np.asarray(dln.graphs.complete(10).edges)
    bridged = dln.graphs.Graph(np.concatenate([clique, clique + 10, [[0, 10]]]))
    p = np.append(np.ones((3, 90)), [[1e-1], [1e-3], [1e-9]], axis=1)
    p /= p.sum(axis=1, keepdims=True)
    of = jax.vmap(lambda p: dln.gossip_rates(bridged, p))
    rates, exact = of(jnp.asarray(p, jnp.float32)), of(jnp.asarray(p))
    assert list(names_of(rates.result)) == ["successful"] * 2 + ["gossip_not_resolved"]
    B = np.asarray(bridged.incidence())
    want = [np.linalg.eigvalsh(B.T @ (q[:, None] * B))[1] for q in p]
    np.testing.assert_allclose(exact.mu, want, rtol=1e-9, atol=1e-15)  # NumPy rounds by 1e-16
    np.testing.assert_allclose(rates.mu[:2], want[:2], rtol=1e-4)  # by 1e-7 over μ = 2e-6, squared
    with pytest.raises(eqx.EquinoxRuntimeError, match="connected, but.*Use float64"):
        dln.gossip_rates(bridged, p[2].astype(np.float32))
    # The cycle of 120 nodes was not connected in float32.
    p = np.full(120, 1 / 120, np.float32)
    mu = dln.gossip_rates(dln.graphs.cycle(120), p).mu
    np.testing.assert_allclose(mu, 4 * np.sin(np.pi / 120) ** 2 / 120, rtol=1e-5)


def test_traced_edges_that_are_none():
    edges = jnp.array([[[0, 1], [1, 2]], [[0, 1], [1, 7]], [[-1, 1], [1, 2]], [[0, 1], [1, 1]]])
    is_good = np.array([True, False, False, False])

    def of(edges):
        graph = dln.graphs.Graph(edges, num_nodes=3)
        dense = dln.LeastSquares(graph.incidence(), jnp.zeros(2))
        free = dln.MatrixFree(graph.differences, graph.divergence, jnp.zeros(2))
        start = dln.Linear(jnp.arange(3.0))
        how: Any = {"eps": 0.5, "steps": 3, "throw": False}
        runs = [dln.train(start, problem, optax.sgd(0.1), **how) for problem in (dense, free)]
        values = graph.incidence(), graph.differences(jnp.ones(3)), graph.divergence(jnp.ones(2))
        rates = dln.gossip_rates(graph).result
        return values, [run.result for run in runs], runs[0].x, rates, graph.degrees()

    (B, x, flow), results, ends, rates, degrees = jax.jit(jax.vmap(of))(edges)
    for result in results:
        assert list(names_of(result)) == ["successful"] + 3 * ["invalid_data"]
    assert list(names_of(rates)) == ["successful"] + 3 * ["invalid_gossip"]
    np.testing.assert_array_equal(np.isfinite(B).all(axis=2), [[1, 1], [1, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(np.isfinite(x), [[1, 1], [1, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(np.isfinite(flow).all(axis=1), is_good)
    np.testing.assert_array_equal(np.isfinite(ends).all(axis=(1, 2)), is_good)
    np.testing.assert_array_equal(degrees[0], [1, 2, 1])
    np.testing.assert_array_equal(degrees[1:], -1)


def test_samples():
    # In float32: n/2 draws from n edges have n(1 − e^{−½}) of them, within 4 standard errors. The
    # cumulative sum of equal probabilities rounds, and had 12 standard errors less.
    n = 3_000_000
    with jax.enable_x64(False):
        drawn = dln.graphs.cycle(n).sample(jax.random.key(0), n // 2)
    number, c = len(np.unique(drawn)), math.exp(-0.5)
    assert abs(number - n * (1 - c)) < 4 * math.sqrt(n * c * (1 - 1.5 * c))
    graph = dln.graphs.cycle(10)
    # Traced probabilities that are none: no edge, which ends a run.
    problem, start = dln.LeastSquares(graph.incidence(), np.zeros(10)), dln.Linear(np.ones(10))

    def of(p):
        rows = graph.sample(jax.random.key(0), 5, p)
        how: Any = {"eps": 0.5, "steps": 5, "batches": rows, "throw": False}
        return rows, dln.train(start, problem, optax.sgd(0.01), **how).result

    even = jnp.full(10, 0.1)
    p = jnp.stack(
        [even, even.at[:2].set(jnp.array([0.3, -0.1])), even.at[0].set(jnp.nan), 2 * even]
    )
    rows, result = jax.jit(jax.vmap(of))(p)
    assert list(names_of(result)) == ["successful"] + 3 * ["invalid_training"]
    assert np.all(rows[0] >= 0) and np.all(rows[1:] == -1)


def test_known_graphs_inside_jit(as_users_run_it):
    pairs, points = [[0, 1], [1, 2]], POINTS.astype(np.float32)
    makers = (
        lambda: dln.graphs.Graph(pairs),
        lambda: dln.graphs.Graph(np.array(pairs, np.uint8)),
        lambda: dln.graphs.geometric(points, 0.45),
        lambda: dln.graphs.cycle(4),
    )
    for made in makers:
        want = made()
        got = jax.jit(made)()
        assert got.num_nodes == want.num_nodes
        np.testing.assert_array_equal(got.edges, want.edges)
    graph = dln.graphs.cycle(3)
    text: Any = "wide"
    two: Any = np.array([0.1, 0.2])
    refused = (
        lambda: dln.graphs.Graph([[0, 0], [0, 9]], num_nodes=2),
        lambda: dln.graphs.Graph([]),
        lambda: dln.graphs.Graph([[0, 1], [1]]),
        lambda: dln.graphs.geometric(points, -1.0),
        lambda: dln.graphs.geometric(points, text),
        lambda: dln.graphs.geometric(points, two),
        lambda: dln.gossip_rates(graph, [0.5, 0.7, -0.2]),
        lambda: graph.sample(jax.random.key(0), 2, [1.0, 1.0, 1.0]),
    )
    for call in refused:
        with pytest.raises((TypeError, ValueError)) as raised:
            call()
        with pytest.raises(type(raised.value)) as inside:
            jax.eval_shape(lambda call=call: call() and None)
        assert str(inside.value) == str(raised.value)


def test_simple_gossip_averages_pairs():
    graph = dln.graphs.lattice((3, 3))
    edges, B = np.asarray(graph.edges), graph.incidence()
    p = np.arange(1.0, 13) / 78
    rows = graph.sample(jax.random.key(0), 3000, p)
    problem, start = dln.LeastSquares(B, np.zeros(12)), np.random.default_rng(0).normal(size=9)
    network, optimizer = dln.Linear(2 * start), optax.sgd(1 / 24)
    run = dln.train(network, problem, optimizer, eps=0.5, steps=[1, 50], batches=rows)
    x = start.copy()
    for k, e in enumerate(np.asarray(rows)[:50, 0], start=1):
        x[edges[e]] = x[edges[e]].mean()
        if k == 1:
            np.testing.assert_allclose(run.x[0], x, rtol=1e-13)
    np.testing.assert_allclose(run.x[1], x, rtol=1e-12)
    # Frequencies, within 4 standard errors of the largest one.
    share = np.bincount(np.asarray(rows)[:, 0], minlength=12) / 3000
    np.testing.assert_allclose(share, p, atol=4 * np.sqrt(0.15 * 0.85 / 3000))


def test_second_moments():
    # .7227, .1678 and .00913 are known of another start, so only how fast they fall; 1e-5.
    exact = ebbf21_gossip.exact_spread(dln.graphs.cycle(30), 4000, False)
    np.testing.assert_allclose(exact[4000] / exact[2000], 0.00913 / 0.1678, rtol=1e-3)
    assert ebbf21_gossip.exact_spread(dln.graphs.cycle(30), 2000, True)[2000] < 1e-5
    # From outside, by matrices of all second moments.
    stated = {"path of 6": 0.09586, "cycle of 9": 0.0725, "3 × 3 lattice": 0.0895}
    for name, rate in stated.items():
        measured = ebbf21_gossip.exact_rate(ebbf21_gossip.small_graphs()[name])
        np.testing.assert_allclose(measured, rate, rtol=6e-4)
    # Runs of both kinds on a small graph, within 4 standard errors.
    graph = dln.graphs.cycle(6)
    for is_fast in (False, True):
        runs = np.asarray(ebbf21_gossip.spread(graph, (1, 30), is_fast, 1000))
        want = ebbf21_gossip.exact_spread(graph, 30, is_fast)[[1, 30]]
        off = np.abs(np.mean(runs, axis=0) - want)
        assert np.all(off < 4 * np.std(runs, axis=0) / np.sqrt(1000))
    over = ebbf21.exact_over_bound(np.linspace(0, 200, 9))
    np.testing.assert_allclose(over.max(), 0.961, atol=5e-4)


def test_bad_input():
    with pytest.raises(TypeError, match="pairs of nodes"):
        dln.graphs.Graph(np.zeros((3, 3), int))
    with pytest.raises(ValueError, match=r"edges\[1\] = \(1, 1\)"):
        dln.graphs.Graph([[0, 1], [1, 1]])
    with pytest.raises(ValueError, match=r"edges\[0\] = \(0, 4\)"):
        dln.graphs.Graph([[0, 4]], 3)
    with pytest.raises(ValueError, match="at least 3 nodes along each axis"):
        dln.graphs.cycle(2)
    with pytest.raises(ValueError, match="at least 2 nodes"):
        dln.graphs.lattice((1, 1))
    with pytest.raises(ValueError, match="No two points"):
        dln.graphs.geometric(POINTS, 1e-6)
    for radius in (-1.0, 0.0, np.nan):
        with pytest.raises(ValueError, match="`radius` must be a positive scalar"):
            dln.graphs.geometric(POINTS, radius)
    with pytest.raises(ValueError, match="`edges` is empty"):
        dln.graphs.Graph([])
    graph = dln.graphs.lattice((5,))
    for wrong in (1.0, np.ones(1), np.ones(3), np.ones((5, 1))):
        with pytest.raises(ValueError, match="`x` must have the 5 nodes"):
            graph.differences(wrong)
        with pytest.raises(ValueError, match="`flow` must have the 4 edges"):
            graph.divergence(wrong)
    with pytest.raises(ValueError, match="one entry for each of the 3 edges"):
        dln.gossip_rates(dln.graphs.cycle(3), [0.5, 0.5])
    with pytest.raises(ValueError, match="Divide them by their sum"):
        dln.gossip_rates(dln.graphs.cycle(3), [1.0, 1.0, 1.0])
    with pytest.raises(eqx.EquinoxRuntimeError, match="invalid_gossip"):
        dln.gossip_rates(dln.graphs.Graph([[0, 1], [2, 3]]))
