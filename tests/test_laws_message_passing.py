"""Message passing against state evolution, the lasso, and integrals of SciPy."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import dlnjax as dln
from dlnjax._results import names_of

RNG = np.random.default_rng(0)


def gaussian(m, n, variance=None):
    return RNG.normal(size=(m, n)) * np.sqrt(1 / m if variance is None else variance)


def symmetric(n):
    A = RNG.normal(size=(n, n)) / np.sqrt(2 * n)
    return A + A.T


def covariance(x):
    x = np.asarray(x).reshape(len(x), -1)
    return x.T @ x / len(x)


def close_to_law(run, law, sigmas=5.0):
    """The covariance of all iterates is that of state evolution, to `sigmas` standard errors of a
    sample of this size, and they are normal: their fourth moment."""
    for edge, x in run.iterates.items():
        for t, K in enumerate(np.asarray(law.covariances[edge])):
            K = K.reshape(covariance(x[1]).shape)
            found, n = covariance(x[t + 1]), x.shape[1]
            scale = np.sqrt(np.outer(np.diag(K), np.diag(K)))
            # √(2/n) from the rows, and as much again from the messages that made K.
            assert np.all(np.abs(found - K) < sigmas * 2 * np.sqrt(2 / n) * scale), (edge, t)
            fourth = np.mean(np.asarray(x[t + 1]).reshape(n, -1) ** 4, axis=0)
            assert np.all(np.abs(fourth / (3 * np.diag(found) ** 2) - 1) < sigmas * np.sqrt(11 / n))


def soft(u, theta):
    return jnp.sign(u) * jnp.maximum(jnp.abs(u) - theta, 0)


def mean_square(v, t, theta):
    """`E(η(v + tZ; θ) − v)²` by quadrature."""
    f = lambda z: (np.sign(v + t * z) * max(abs(v + t * z) - theta, 0) - v) ** 2 * norm.pdf(z)
    kinks = [(-theta - v) / t, (theta - v) / t]
    return quad(f, -12, 12, points=np.clip(kinks, -12, 12), limit=200)[0]


VALUES, PROBABILITIES = np.array([-1.0, 0, 1]), np.array([0.05, 0.9, 0.05])
SIGMA = 0.2


def test_lasso():
    d, n = 2000, 1000
    large = dln.lasso_asymptotics(dln.GaussianDesign(0.5, (VALUES, PROBABILITIES), SIGMA), 0.2)
    theta = float(large.alpha * large.tau)
    # Exact fractions, so that the draw is closer to the law.
    x_star = np.repeat(VALUES, (d * PROBABILITIES).astype(int))
    X, noise = gaussian(n, d), SIGMA * RNG.normal(size=n)
    y = X @ x_star + noise
    graph = dln.GaussianGraph({("columns", "rows"): X})
    functions = {
        ("columns", "rows"): lambda t, x: soft(x["rows"], theta),
        ("rows", "columns"): lambda t, x: y - x["columns"],
    }
    run = eqx.filter_jit(dln.message_passing)(graph, functions, 240)
    x = np.asarray(run.messages["columns", "rows"])
    # `τ²` by quadrature. Two steps of the graph are one of the usual iteration, of two alike.
    square = SIGMA**2 + PROBABILITIES @ VALUES**2 / 0.5
    for k in range(1, 8):
        t = np.sqrt(square)
        risk = sum(p * mean_square(v, t, theta) for v, p in zip(VALUES, PROBABILITIES, strict=True))
        square = SIGMA**2 + risk / 0.5
        # The first message of the residual is `y` itself.
        found = np.mean((x[2 * k - 1] - x_star) ** 2)
        assert abs(found / risk - 1) < 0.12
    assert abs(square / float(large.tau) ** 2 - 1) < 2e-2
    # Its fixed point is the lasso at `κ = θ (1 − |A|/n)`.
    share = np.mean(x[-1] != 0) * d / n
    kappa = theta * (1 - share)
    assert abs(kappa / 0.2 - 1) < 0.05
    correlations = X.T @ (y - X @ x[-1])
    off = np.maximum(np.abs(correlations) - kappa, 0) + (x[-1] != 0) * np.abs(
        correlations - kappa * np.sign(x[-1])
    )
    assert np.max(off) < 1e-10 * kappa
    # State evolution, whose data are independent of the matrix.
    size = 20
    x_star, noise = np.tile(x_star, size), SIGMA * RNG.normal(size=n * size)
    functions = {
        ("columns", "rows"): lambda t, x: soft(x["rows"] + x_star, theta) - x_star,
        ("rows", "columns"): lambda t, x: noise - x["columns"],
    }
    graph = dln.GaussianGraph({("columns", "rows"): (n * size, d * size)})
    law = dln.state_evolution(graph, functions, 40, key=jax.random.key(0))
    # Averages over 20 000 residuals and 40 000 entries, which the iteration passes on: 5 times
    # √(2/20 000).
    last = float(law.covariances["rows", "columns"][-1])
    assert abs(last / float(large.tau) ** 2 - 1) < 0.05
    error = float(law.covariances["columns", "rows"][-1])
    assert abs(error / (float(large.risk) / 0.5) - 1) < 0.05


def test_spiked_wigner():
    # Z₂ synchronisation: Y = (λ/n) x xᵀ + W, and the overlap by quadrature.
    n, strength = 2000, 1.5
    x_star = np.sign(RNG.normal(size=n))
    W = symmetric(n)
    expected = lambda q, f: quad(
        lambda z: f(strength**2 * q + strength * np.sqrt(q) * z) * norm.pdf(z), -12, 12
    )[0]
    start = 0.3 * x_star + RNG.normal(size=n)
    # x_t = λ M x* + √V Z with M, V of the messages; the Bayes-optimal tanh has M = V.
    means, squares = [np.mean(np.tanh(strength * start) * x_star)], []
    squares.append(np.mean(np.tanh(strength * start) ** 2))
    for _ in range(19):
        at = lambda f, m=means[-1], v=squares[-1]: quad(
            lambda z: f(np.tanh(strength * (strength * m + np.sqrt(v) * z))) * norm.pdf(z), -12, 12
        )[0]
        means.append(at(lambda u: u))
        squares.append(at(np.square))
    edge = ("v", "v")
    functions = {edge: lambda t, x: jnp.tanh(strength * x["v"])}
    spiked = dln.GaussianGraph({edge: strength / n * np.outer(x_star, x_star) + W})
    run = dln.message_passing(spiked, functions, 20, start={edge: start})
    messages = np.asarray(run.messages[edge])
    found = messages @ x_star / n
    # The standard deviation of ten draws is 0.02, as near the transition draws differ.
    np.testing.assert_allclose(found, means, atol=5 / np.sqrt(n))
    # The fixed point of the replica formula, q = E tanh(λ²q + λ√q Z).
    q = 0.5
    for _ in range(200):
        q = expected(q, np.tanh)
    assert abs(means[-1] - q) < 1e-2 and abs(found[-1] - q) < 5 / np.sqrt(n)
    # The Gaussian part alone, with the mean that it adds to the signal.
    lift = jnp.asarray([0.0, *means[:-1]])
    centred = {edge: lambda t, x: jnp.tanh(strength * (x["v"] + strength * lift[t] * x_star))}
    run = dln.message_passing(dln.GaussianGraph({edge: W}), centred, 20, start={edge: start})
    law = dln.state_evolution(
        dln.GaussianGraph({edge: (n, n)}), centred, 20, start={edge: start}, key=jax.random.key(1)
    )
    close_to_law(run, law)
    np.testing.assert_allclose(law.covariances[edge], squares, atol=5 / np.sqrt(n))
    # The Onsager term of a separable function is exact.
    slopes = 1 - np.asarray(run.messages[edge]) ** 2
    np.testing.assert_allclose(run.onsager[edge], strength * slopes.mean(axis=1), rtol=1e-12)


def test_layers():
    # Three vertices in a row; in the middle, two iterates arrive.
    sizes = (900, 1200, 700)
    edges = [("a", "b"), ("b", "c")]
    matrices = {e: gaussian(sizes[k + 1], sizes[k]) for k, e in enumerate(edges)}
    gain = jnp.linspace(1.0, 2.0, 6)
    data = {v: RNG.normal(size=n) for v, n in zip("abc", sizes, strict=True)}
    functions = {
        ("a", "b"): lambda t, x: jnp.tanh(x["b"] + data["a"]),
        ("b", "a"): lambda t, x: jnp.maximum(x["a"] + 0.3 * x["c"], 0) - 0.5 * data["b"],
        ("b", "c"): lambda t, x: jnp.sin(x["c"] * gain[t]) + x["a"],
        ("c", "b"): lambda t, x: soft(x["b"] + data["c"], 0.5),
    }
    ends = {edge: data[edge[1]] for edge in functions}
    compare(matrices, functions, ends, 6)


def compare(matrices, functions, start, steps, variances=None):
    graph = dln.GaussianGraph(matrices, variances)
    run = dln.message_passing(graph, functions, steps, start=start)
    law = dln.state_evolution(graph, functions, steps, start=start, key=jax.random.key(2))
    close_to_law(run, law)
    return run, law


def test_matrix_valued():
    n, edge = 1500, ("v", "v")
    mixing = jnp.array([[1.0, 0.4], [-0.3, 0.8]])
    functions = {edge: lambda t, x: jnp.tanh(x["v"] @ mixing) + 0.5 * jnp.sin(x["v"][:, ::-1])}
    A = symmetric(n)
    start = {edge: RNG.normal(size=(n, 2)) @ np.array([[1, 0.5], [0, 1]])}
    run, law = compare({edge: A}, functions, start, 6)
    # A run that goes on has its memory.
    half = dln.message_passing(dln.GaussianGraph({edge: A}), functions, 3, start=start)
    whole = dln.message_passing(dln.GaussianGraph({edge: A}), functions, 3, start=half)
    np.testing.assert_allclose(whole.iterates[edge][-1], run.iterates[edge][-1], atol=1e-11)
    assert run.onsager[edge].shape == (6, 2, 2) and law.covariances[edge].shape == (6, 2, 2)
    # `b` by differences, entry by entry.
    x, h = np.asarray(run.iterates[edge][2]), 1e-6
    f = lambda x: np.asarray(functions[edge](2, {"v": x}))
    for j in range(2):
        step = h * np.eye(2)[j]
        want = np.mean((f(x + step) - f(x - step)) / (2 * h), axis=0)
        np.testing.assert_allclose(run.onsager[edge][2][:, j], want, atol=1e-8)
    # Without it the iterates are not what the law says.
    x, m = jnp.asarray(start[edge]), None
    for t in range(6):
        m = functions[edge](t, {"v": x})
        x = A @ m
    K = np.asarray(law.covariances[edge][-1])
    assert np.max(np.abs(covariance(x) - K)) > 0.3 * np.max(K)


def test_spatially_coupled():
    # Two blocks of rows and two of columns, with variances that differ, and edges of shape (n, 1).
    rows, columns, d, n = ("r0", "r1"), ("c0", "c1"), 900, 700
    scale = {("c0", "r0"): 1.0, ("c0", "r1"): 0.3, ("c1", "r0"): 0.2, ("c1", "r1"): 1.5}
    variances = {e: w / n for e, w in scale.items()}
    matrices = {e: gaussian(n, d, variances[e]) for e in scale}
    signal = {
        c: np.sign(RNG.normal(size=(d, 1))) * (RNG.uniform(size=(d, 1)) < 0.2) for c in columns
    }
    noise = {r: 0.1 * RNG.normal(size=(n, 1)) for r in rows}
    functions = {}
    for c in columns:
        for r in rows:
            functions[c, r] = lambda t, x, c=c: soft(x["r0"] + x["r1"] + signal[c], 0.4) - signal[c]
            functions[r, c] = lambda t, x, r=r: noise[r] - x["c0"] - x["c1"]
    start = {e: np.zeros((n, 1)) for e in matrices} | {e[::-1]: np.zeros((d, 1)) for e in matrices}
    compare(matrices, functions, start, 6, variances)


def test_divergence_of_other_functions():
    # Of the mean of all entries it is 1/n of them: random signs see it, ones would see n times it.
    n, edge = 2000, ("v", "v")
    functions = {edge: lambda t, x: jnp.full_like(x["v"], jnp.mean(x["v"]))}
    graph = dln.GaussianGraph({edge: symmetric(n)})
    keys = jax.random.split(jax.random.key(0), 200)
    run = jax.vmap(
        lambda key: dln.message_passing(graph, functions, 1, key=key, start={edge: jnp.ones(n)})
    )(keys)
    b = np.asarray(run.onsager[edge][:, 0])
    assert abs(b.mean() - 1 / n) < 5 * np.sqrt(2 / 200) / n and np.max(b) < 20 / n


def test_traced_and_diverging():
    n, edge = 50, ("v", "v")
    A = symmetric(n)

    @jax.jit
    @jax.vmap
    def run(gain):
        graph = dln.GaussianGraph({edge: gain * A}, {edge: gain**2 / n})
        functions = {edge: lambda t, x: gain * jnp.maximum(x["v"], 0)}
        return dln.message_passing(graph, functions, 400, start={edge: jnp.ones(n)})

    found = run(jnp.array([0.5, 100.0]))
    assert names_of(found.result).tolist() == ["successful", "messages_not_finite"]
    assert np.all(np.isnan(found.iterates[edge][1])) and np.all(
        np.isfinite(found.iterates[edge][0])
    )

    # Derivatives, against differences.
    def last(theta):
        functions = {edge: lambda t, x: jnp.tanh(theta * x["v"])}
        graph = dln.GaussianGraph({edge: A})
        of = dln.message_passing(graph, functions, 3, start={edge: jnp.ones(n)})
        law = dln.state_evolution(
            graph, functions, 3, start={edge: jnp.ones(n)}, key=jax.random.key(0)
        )
        return jnp.stack([jnp.sum(of.iterates[edge][-1] ** 2), law.covariances[edge][-1]])

    h = 1e-5
    differences = (last(1 + h) - last(1 - h)) / (2 * h)
    np.testing.assert_allclose(jax.jacrev(last)(1.0), differences, rtol=1e-7)
    np.testing.assert_allclose(jax.jacfwd(last)(1.0), differences, rtol=1e-7)


def test_traced_graphs_out_of_range():
    n, edge = 20, ("v", "v")
    A, functions, start = symmetric(n), {edge: lambda t, x: jnp.tanh(x["v"])}, {edge: np.ones(n)}

    @jax.jit
    @jax.vmap
    def run(variance, skew, entry):
        matrix = jnp.asarray(A).at[0, 1].add(skew).at[2, 2].add(entry)
        graph = dln.GaussianGraph({edge: matrix}, {edge: variance})
        law = dln.state_evolution(graph, functions, 2, start=start, key=jax.random.key(0))
        shape = dln.GaussianGraph({edge: (n, n)}, {edge: variance})
        of_shape = dln.state_evolution(shape, functions, 2, start=start, key=jax.random.key(0))
        return dln.message_passing(graph, functions, 2, start=start), law, of_shape

    nan, inf = jnp.nan, jnp.inf
    variances = jnp.array([1 / n, -1, 0, nan, inf, 1 / n, 1 / n, 1 / n])
    skews = jnp.array([0, 0, 0, 0, 0, 1e-3, 1e-17, 0])
    found = run(variances, skews, jnp.array([0, 0, 0, 0, 0, 0, 0, nan]))
    good = np.array([1, 0, 0, 0, 0, 0, 1, 0], bool)
    for run_or_law in found[:2]:
        names = np.where(good, "successful", "invalid_graph")
        assert np.all(names_of(run_or_law.result) == names)
        assert np.all(np.isnan(run_or_law.iterates[edge][:, -1]) == ~good[:, None])
    # A shape has no matrix that could be wrong.
    names = ["successful"] + ["invalid_graph"] * 4 + ["successful"] * 3
    assert names_of(found[2].result).tolist() == names

    # A graph that comes out of `jit` is no longer traced.
    graph = jax.jit(lambda s: dln.GaussianGraph({edge: A}, {edge: s}))(-1.0)
    assert names_of(dln.message_passing(graph, functions, 1, throw=False).result) == "invalid_graph"
    with pytest.raises(eqx.EquinoxRuntimeError, match="invalid_graph: A variance of the"):
        dln.state_evolution(graph, functions, 1, key=jax.random.key(0))


@pytest.mark.usefixtures("as_users_run_it")
def test_bad_starts():
    edge = ("v", "v")
    graph, functions = dln.GaussianGraph({edge: np.eye(2)}), {edge: lambda t, x: x["v"]}
    explode = {edge: lambda t, x: 1e200 * (1 + x["v"] ** 2)}
    failed = dln.message_passing(graph, explode, 9, throw=False)
    law = dln.state_evolution(graph, functions, 1, key=jax.random.key(0))
    run: Any = lambda start: dln.message_passing(graph, functions, 1, start=start)
    evolve: Any = lambda start: dln.state_evolution(
        graph, functions, 1, start=start, key=jax.random.key(0)
    )
    a_dict = "`start` must be a dict from edges to arrays"
    either, thin = a_dict + ", or a MessagePassing, got ", {edge: np.ones((2, 0))}
    for error, message, call in [
        (
            ValueError,
            "has an empty axis: its shape is (2, 0)",
            lambda: run(thin),
        ),
        (TypeError, either + "StateEvolution", lambda: run(law)),
        (TypeError, either + "int", lambda: run(3)),
        (
            TypeError,
            a_dict + ", got MessagePassing",
            lambda: evolve(failed),
        ),
        (ValueError, "`start` is a run that failed, as messages_not_finite", lambda: run(failed)),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            call()
    # Traced, it keeps its cause.
    assert names_of(jax.jit(run)(failed).result) == "messages_not_finite"


@pytest.mark.usefixtures("as_users_run_it")
def test_bad_graphs_and_functions():
    graph = dln.GaussianGraph
    for error, message, arguments in [
        (TypeError, "`matrices` must map edges to matrices, got list", ([1],)),
        (ValueError, "`matrices` is empty: a graph needs at least one edge", ({},)),
        (
            TypeError,
            "`variances` must be a dict from edges to variances, got int",
            ({("a", "b"): (2, 3)}, 3),
        ),
        (TypeError, "An edge must be a pair of names, got 'ab'", ({"ab": np.eye(2)},)),
        (ValueError, "The reverse of ('a', 'b')", ({("a", "b"): (2, 3), ("b", "a"): (3, 2)},)),
        (ValueError, "has shape (2, 3), but the vertex 'v'", ({("v", "v"): (2, 3)},)),
        (ValueError, "is a loop, and must be symm", ({("v", "v"): np.array([[0, 1], [2, 0]])},)),
        (ValueError, "must be positive, got 0.0", ({("a", "b"): (2, 3)}, {("a", "b"): 0})),
        (ValueError, "`variances` has ('b', 'a')", ({("a", "b"): (2, 3)}, {("b", "a"): 1})),
        (ValueError, "must have shape (n_w, n_v), got (2,)", ({("a", "b"): np.ones(2)},)),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            graph(*arguments)
    edge = ("v", "v")
    good, functions = graph({edge: np.eye(2)}), {edge: lambda t, x: x["v"]}
    for error, message, call in [
        (ValueError, "no function for the edge", lambda: dln.message_passing(good, {}, 1)),
        (
            ValueError,
            "must return an array of shape (2,), got ()",
            lambda: dln.message_passing(good, {edge: lambda t, x: jnp.sum(x["v"])}, 1),
        ),
        (
            TypeError,
            "must return real numbers, got dtype complex",
            lambda: dln.message_passing(
                good, {edge: lambda t, x: jax.lax.complex(x["v"], x["v"])}, 1
            ),
        ),
        (
            ValueError,
            "must have shape (2,) or (2, q), got (3,)",
            lambda: dln.message_passing(good, functions, 1, start={edge: np.ones(3)}),
        ),
        (
            ValueError,
            "`graph` has shapes in place of matrices",
            lambda: dln.message_passing(graph({edge: (2, 2)}), functions, 1),
        ),
        (
            TypeError,
            "`graph` must be a GaussianGraph",
            lambda: dln.message_passing(1, functions, 1),  # pyright: ignore[reportArgumentType]
        ),
        (ValueError, "`steps` must be at least 1", lambda: dln.message_passing(good, functions, 0)),
    ]:
        with pytest.raises(error, match=re.escape(message)):
            call()
    explode = {edge: lambda t, x: 1e200 * (1 + x["v"] ** 2)}
    with pytest.raises(eqx.EquinoxRuntimeError, match="messages_not_finite: The messages overflow"):
        dln.message_passing(good, explode, 9)
