"""Problems of every type, and made under `jit`, `vmap` and `grad`."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import relative

import dlnjax as dln
from dlnjax._checks import _warn_of_float32
from dlnjax._problem import validity


@pytest.mark.parametrize(
    "x_dtype, y_dtype, want",
    [
        (np.float32, np.float32, np.float32),
        (np.float32, np.float64, np.float64),
        (np.float64, np.float32, np.float64),
        (np.int32, np.float64, np.float64),
        (np.float16, np.float32, np.float32),
        (bool, np.int64, np.float64),
    ],
)
def test_computes_in_the_widest_type(x_dtype, y_dtype, want):
    X, y = np.eye(3).astype(x_dtype), np.ones(3).astype(y_dtype)

    def everything():
        for make in [dln.LeastSquares, dln.Quadratic]:
            problem = make(X, y, weight_decay=1)
            yield problem
            yield problem.loss(jnp.zeros(3, want)), problem.gradient(jnp.zeros(3, want))
            yield problem.lasso_objective(np.zeros(3), 1.0), problem.duality_gap(np.ones(3), 1.0)

    shapes = jax.eval_shape(lambda: list(everything()))
    assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype(want)}


def test_says_once_that_float64_becomes_float32():
    X = np.eye(2)
    _warn_of_float32.cache_clear()
    with jax.enable_x64(False), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        dln.LeastSquares(X.astype(np.float32), np.array([1, 2]))
        dln.LeastSquares(jnp.eye(2), jnp.ones(2))
        assert not caught
        for _ in range(3):
            dln.gradient_flow(dln.UV(X[0], X[1]), dln.LeastSquares(X, X[0]), X[1] + 1, eps=0.1)
    assert [str(one.message)[:38] for one in caught] == ["Arrays of float64 become float32, of 7"]


def _loss_of_least_squares(X, y, decay, x):
    return dln.LeastSquares(X, y, weight_decay=decay).lasso_objective(x, 1.0)


def _loss_of_quadratic(X, y, decay, x):
    problem = dln.Quadratic(X.T @ X, X.T @ y, constant=0.5 * y @ y, weight_decay=decay)
    return problem.lasso_objective(x, 1.0)


@pytest.mark.parametrize("loss", [_loss_of_least_squares, _loss_of_quadratic])
def test_constructs_under_jit_vmap_and_grad(loss):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(5, 6, 4)), rng.normal(size=(5, 6))
    decay, x = rng.uniform(size=5), rng.normal(size=(5, 4))
    residual = np.einsum("bnd,bd->bn", X, x) - y
    want = 0.5 * np.sum(residual**2, -1) + (decay + 1) * np.abs(x).sum(-1)
    data = tuple(map(jnp.asarray, (X, y, decay, x)))
    assert relative(jax.jit(jax.vmap(loss))(*data), want) < 1e-13
    gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2, 3))))(*data)
    norm = np.abs(x).sum(-1)
    pulled = np.einsum("bnd,bn->bd", X, residual) + (decay + 1)[:, None] * np.sign(x)
    for got, want in zip(
        gradients,
        [residual[:, :, None] * x[:, None, :], -residual, norm, pulled],
        strict=True,
    ):
        assert relative(got, want) < 1e-12


@pytest.mark.parametrize("make", [dln.LeastSquares, dln.Quadratic])
def test_bad_values_under_tracing_are_marked_not_raised(make):
    def valid(A, b, decay):
        return validity(make(A, b, weight_decay=decay)) == dln.RESULTS.successful

    A, b = jnp.eye(3), jnp.ones(3)
    decays = jnp.array([0.0, 2.0, -1.0, jnp.nan, jnp.inf])
    got = jax.jit(jax.vmap(valid, in_axes=(None, None, 0)))(A, b, decays)
    assert got.tolist() == [True, True, False, False, False]
    bad = jax.jit(jax.vmap(valid, in_axes=(0, None, None)))
    assert bad(jnp.stack([A, A.at[0, 1].set(jnp.nan)]), b, 0.0).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"shape \(3, 2\)|3 rows|square"):
        jax.jit(valid)(jnp.ones((3, 2)), jnp.ones(2), 0.0)


def test_known_labels_with_a_traced_design():
    X, y = np.random.default_rng(0).normal(size=(2, 3, 2)), jnp.array([1.0, -1.0, 1.0])
    for make in (dln.Logistic, dln.Exponential, dln.Poisson, dln.Huber):
        labels = jnp.abs(y) if make is dln.Poisson else y
        value = jax.jit(jax.vmap(lambda X, f=make, y=labels: f(X, y).loss(jnp.ones(2))))(X)
        want = [make(each, labels).loss(jnp.ones(2)) for each in X]
        np.testing.assert_allclose(value, want, rtol=1e-14)
    with pytest.raises(ValueError, match="y.1. = -1"):
        jax.jit(lambda X: dln.Poisson(X, y))(X[0])
