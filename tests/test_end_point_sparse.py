"""Fewer active coordinates than rows: the dual determines what the response does not."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from end_points import D_, FIRST, N, network_of

import dlnjax as dln


def test_tiny_entries_obey_the_dual():
    # With fewer than n active coordinates Xx = y hardly sees the others, which the dual determines.
    rng = np.random.default_rng(1)
    X = rng.normal(size=(40, N, D_))
    y = X[:, :, 0] * rng.normal(size=(40, 1))
    network, log_eps = dln.UV(2 * jnp.ones(D_), jnp.zeros(D_)), -110.0

    @jax.jit
    @jax.vmap
    def ends(X, y):
        return dln.end_point(network, dln.LeastSquares(X, y), log_eps=log_eps, throw=False)

    end = ends(X, y)
    assert jnp.all(end.result == dln.RESULTS.successful)
    q = [np.exp(log_eps * (1 - sign * np.asarray(end.dual))) for sign in (1, -1)]
    np.testing.assert_allclose(end.x, q[0] - q[1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(jnp.einsum("lnd,ld->ln", X, end.x), y, rtol=0, atol=1e-12)
    # They are there to be seen.
    assert np.median(np.max(np.abs(end.x[:, 1:]), axis=1)) > 1e-20


def test_undetermined_is_flagged():
    # Two points share the norm, and w of the active coordinates is 1e-20: it has no digits.
    problem, network = dln.LeastSquares(*FIRST), network_of(3.0, jnp.ones(D_))
    with pytest.raises(eqx.EquinoxRuntimeError, match="limit_point"):
        dln.end_point(network, problem, eps=1e-60)
    end = dln.end_point(network, problem, eps=1e-60, throw=False)
    assert end.result == dln.RESULTS.end_point_undetermined and np.all(np.isnan(end.x))


@pytest.mark.parametrize("D", [3.0, 4.0])
def test_planted_responses_obey_every_condition(D):
    # The end point is the one point where all of them hold: Xx = y, a dual in the range of Xᵀ, and
    # w = (ε/q)^p, which is 1 ∓ dual.
    rng = np.random.default_rng(6)
    lanes, p = 200, 1 - 2 / D
    X, x = rng.normal(size=(lanes, N, D_)), rng.normal(size=(lanes, D_))
    x[:, 2:] = x[::2, 1] = 0
    y = np.einsum("bnd,bd->bn", X, x)
    w_sizes = np.array([1e-4, 1e-6, 1e-8, 1e-14])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def ends(X, y, log_eps):
        return dln.end_point(
            network_of(D, jnp.ones(D_)), dln.LeastSquares(X, y), log_eps=log_eps, throw=False
        )

    end = ends(X, y, np.log(w_sizes) / p)
    assert np.all(end.result == dln.RESULTS.successful)
    size = np.abs(end.x).max(axis=2)
    off = np.einsum("bnd,bed->ben", X, end.x) - y[:, None]
    unit, tolerance = np.finfo(float).eps, 512 * np.finfo(float).eps
    assert np.max(np.abs(off).max(axis=2) / size) < 1e-12  # the tolerance, times ‖X‖ ≤ 6
    dual, x = np.asarray(end.dual), np.asarray(end.x)
    V = np.linalg.svd(X, full_matrices=False)[2]
    image = np.einsum("bki,bkj,bej->bei", V, V, dual)
    assert np.max(np.abs(image - dual)) < 64 * unit
    eps = w_sizes[:, None] ** (1 / p)
    other = eps * (1 + np.abs(dual)) ** (-1 / p)
    want = (eps / (np.abs(x) + other)) ** p
    seen = np.abs(x) > 1e-9 * size[..., None]
    np.testing.assert_array_equal(np.sign(x)[seen], np.sign(dual)[seen])
    # The dual has some roundings. `x` is exact to the tolerance in `Vx`, which is that over the
    # least singular value σ of the active columns in `x`, and moves `w = (ε/x)^p` by p w δx/x.
    values = np.linalg.svd(V[:, None] * seen[:, :, None], compute_uv=False)
    last = np.minimum(seen.sum(axis=2, keepdims=True), N) - 1
    exact_to = tolerance * size[..., None] / np.take_along_axis(values, last, axis=2)
    digits = 64 * unit + p * want * exact_to / np.maximum(np.abs(x), 1e-300)
    assert np.all((np.abs(1 - np.abs(dual) - want) < digits)[seen])
    # What is not seen in x is where w has not come to 0.
    assert np.all((1 - np.abs(dual) > -64 * unit) & (seen | (want > 1e-13)))
