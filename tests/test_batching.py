"""`batched`: the same as `vmap`, in another order."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln
from dlnjax import _batching

LANES = 7
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(LANES, 3, 4)), RNG.normal(size=(LANES, 3))
S = jnp.asarray([0.5, 5.0, 20.0])


def _flow(X, y):
    network = dln.UV(jnp.ones(4), jnp.zeros(4))
    return dln.gradient_flow(network, dln.LeastSquares(X, y), S, eps=1e-5, throw=False)


def _path(X, y):
    return dln.lasso_path(dln.LeastSquares(X, y), throw=False)


@pytest.mark.parametrize("chunk", [3, 7, 100])
def test_the_same_as_vmap(chunk):
    want = eqx.filter_vmap(_path)(X, Y)
    got = dln.batched(_path, X, Y, chunk=chunk, difficulty=RNG.permutation(LANES))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    np.testing.assert_array_equal(got.num_knots, want.num_knots)
    np.testing.assert_allclose(got.slopes, want.slopes, rtol=1e-12, atol=1e-13)
    assert bool(jnp.all(got.result == dln.RESULTS.successful))


def test_a_flow_probed_and_one_trace():
    traces = []

    def solve(X, y):
        traces.append(None)
        return _flow(X, y)

    probe = lambda X, y: jnp.max(jnp.abs(X.T @ y))
    flow = dln.batched(solve, X, Y, chunk=2, difficulty=probe)
    assert len(traces) == 1
    want = jax.vmap(_flow)(X, Y)
    np.testing.assert_allclose(flow.x_mean, want.x_mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(flow.stats["num_steps"], want.stats["num_steps"])


def test_lanes_of_a_chunk_are_neighbours_in_difficulty():
    # A loop under `vmap` counts, in every lane, up to the largest of its chunk.
    @jax.custom_batching.custom_vmap
    def largest(v):
        return v

    largest.def_vmap(lambda size, _, v: (jnp.full(size, jnp.max(v)), True))
    steps = RNG.permutation(6)
    seen = dln.batched(largest, steps, chunk=2, difficulty=steps.astype(np.uint8))
    np.testing.assert_array_equal(seen, 2 * (steps // 2) + 1)


def test_pytrees_and_shared_values():
    problems = eqx.filter_vmap(dln.LeastSquares)(X, Y)
    out = dln.batched(lambda p, n: (p.loss(jnp.ones(4)), n[0]), problems, ("a",), chunk=4)
    np.testing.assert_allclose(out[0], jax.vmap(lambda p: p.loss(jnp.ones(4)))(problems))
    assert out[1] == "a"
    np.testing.assert_array_equal(dln.batched(lambda a, c: a * c, Y, 2.0, chunk=4), 2 * Y)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="chunks on CPU")
def test_default_chunks_stay_in_cache():
    def lanes_together(nbytes, lanes=300):
        sizes = []

        @jax.custom_batching.custom_vmap
        def see(v):
            return v

        @see.def_vmap
        def _(size, _, v):
            sizes.append(size)
            return v, True

        dln.batched(see, np.zeros((lanes, nbytes // 8)))
        return sizes[-1]

    assert lanes_together(8) == 100  # three chunks of at most 128
    assert lanes_together(40_000) == 6
    assert lanes_together(10**6, lanes=3) == 1


def test_chunks_run_side_by_side_with_the_results_of_one_thread(monkeypatch):
    both_here = threading.Barrier(2, timeout=60)

    def meet(X, y):
        """Returns once two chunks are computed at the same time."""

        def wait(X):
            both_here.wait()
            return X

        return _flow(jax.pure_callback(wait, X, X, vmap_method="broadcast_all"), y)

    monkeypatch.setattr(_batching, "cores", lambda: 2)
    flow = dln.batched(meet, X[:6], Y[:6], chunk=3)
    monkeypatch.setattr(_batching, "cores", lambda: 1)
    alone = dln.batched(_flow, X[:6], Y[:6], chunk=3)
    np.testing.assert_array_equal(flow.x_mean, alone.x_mean)


def test_the_precision_is_that_of_the_caller():
    with jax.enable_x64(False):
        out = dln.batched(
            lambda v: v * jnp.arange(3, dtype=v.dtype), np.ones((4, 3), np.float32), chunk=2
        )
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, np.tile(np.arange(3), (4, 1)))


def test_lanes_of_keys():
    keys = jax.random.split(jax.random.key(0), 5)
    draw = lambda key: jax.random.normal(key)
    np.testing.assert_array_equal(dln.batched(draw, keys), jax.vmap(draw)(keys))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: dln.batched(_path, X, Y[:3]), "same leading axis"),
        (lambda: dln.batched(_path), "no arrays"),
        (lambda: dln.batched(_path, X, Y, chunk=0), "at least 1"),
        (lambda: dln.batched(_path, X, Y, difficulty=np.ones(3)), r"shape \(7,\)"),
        (lambda: jax.jit(lambda X: dln.batched(_path, X, Y))(X), "outside `jit`"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
