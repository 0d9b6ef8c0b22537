"""Factorisations, written out and by LAPACK; and that no two of LAPACK wait for each other."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dlnjax as dln
from dlnjax import _linalg
from dlnjax._linalg import Cholesky, matmul


@pytest.mark.parametrize("size", [1, 2, 3, _linalg.UNROLLED, _linalg.UNROLLED + 1, 20, 30])
def test_solves_are_backward_stable(size):
    rng = np.random.default_rng(size)
    # Slopes of the link spread over any number of decades: condition 1e16 and more.
    spread = 10.0 ** rng.uniform(-12, 12, size=(50, 1, 2 * size))
    X = rng.normal(size=(50, size, 2 * size))
    matrix = np.eye(size) + (X * spread) @ X.transpose(0, 2, 1)
    rhs = rng.normal(size=(50, size))
    x = jax.jit(jax.vmap(lambda a, b: Cholesky(a).solve(b)))(matrix, rhs)
    residual = np.abs(np.einsum("lij,lj->li", matrix, x) - rhs).max(axis=1)
    size_of = np.abs(matrix).sum(axis=2).max(axis=1) * np.abs(x).max(axis=1)
    assert np.all(residual <= 1e-15 * (10 + size) * (size_of + 1))


def test_unrolled_derivatives():
    rng = np.random.default_rng(0)
    X, b = rng.normal(size=(3, 5)), rng.normal(size=3)

    def ours(X):
        return jnp.sum(Cholesky(matmul(X, X.T)).solve(jnp.asarray(b)) ** 2)

    def theirs(X):
        return jnp.sum(jnp.linalg.solve(matmul(X, X.T), b) ** 2)

    for derivative in (jax.grad, jax.jacfwd):
        np.testing.assert_allclose(derivative(ours)(X), derivative(theirs)(X), rtol=1e-9)


@pytest.mark.parametrize("lanes", [1, 3, 50])
@pytest.mark.parametrize("size", [8, 40])
def test_batches_in_pieces(size, lanes):
    """Whatever is batched, over one axis or two, and however many pieces that makes."""
    X = np.random.default_rng(size).normal(size=(2, lanes, size, size + 2))
    M, b = X @ X.transpose(0, 1, 3, 2), X[..., :2]

    def twice(fn, axes: Any = 0):
        return jax.jit(jax.vmap(jax.vmap(fn, axes), axes))

    solve = lambda L, b: _linalg.lower_solve_transposed(L, _linalg.lower_solve(L, b))
    L = twice(_linalg.cholesky)(M)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.max(np.abs(b)))
    close(L, np.linalg.cholesky(M))
    close(twice(_linalg.inverse_factor)(M), np.linalg.inv(np.linalg.cholesky(M)))
    close(twice(_linalg.eigh)(M)[0], np.linalg.eigvalsh(M))
    close(twice(_linalg.eigvalsh)(M), np.linalg.eigvalsh(M))
    close(twice(_linalg.svd)(X)[1], np.linalg.svd(X)[1])
    close(twice(solve)(L, b), np.linalg.solve(M, b))
    close(twice(solve, (None, 0))(L[0, 0], b), np.linalg.solve(M[0, 0], b))
    close(twice(solve, (0, None))(L, b[0, 0]), np.linalg.solve(M, b[0, 0]))
    outer = jax.jit(jax.vmap(jax.vmap(solve, (None, 0)), (0, 0)))
    close(outer(L[:, 0], b), np.linalg.solve(M[:, :1], b))


@pytest.mark.parametrize("shape", [(4, 4), (4, 7), (7, 4)])
def test_derivatives_of_spectra(shape):
    """Those of JAX's own functions."""
    X = np.random.default_rng(1).normal(size=(3, *shape))
    along = np.random.default_rng(2).normal(size=(3, *shape))
    gram = lambda X: matmul(X, X.T) + jnp.diag(jnp.arange(float(shape[0])))
    pairs = [
        (_linalg.svd, lambda X: jnp.linalg.svd(X, full_matrices=False)),
        (lambda X: _linalg.eigh(gram(X)), lambda X: jnp.linalg.eigh(gram(X))),
    ]
    for ours, theirs in pairs:
        (value, change), (_, want) = (
            jax.jit(jax.vmap(lambda X, v, f=f: jax.jvp(lambda X: tuple(f(X)), (X,), (v,))))(
                X, along
            )
            for f in (ours, theirs)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), change, want
        )
        total = lambda X, f=ours: sum(jnp.sum(v**3) for v in f(X))
        gradient = jax.vmap(jax.grad(total))(X)
        slope = sum(
            jnp.sum(3 * v**2 * dv, axis=range(1, v.ndim))
            for v, dv in zip(value, change, strict=True)
        )
        np.testing.assert_allclose(jnp.sum(gradient * along, (1, 2)), slope, rtol=1e-8)


# Four chains of factorisations that a pool of two threads runs side by side: with `jnp.linalg.eigh`
# and jaxlib 0.10.2 it stops for good within a few calls.
SIDE_BY_SIDE = """
import jax, jax.numpy as jnp, numpy as np
from dlnjax._linalg import eigh
X = np.random.default_rng(0).normal(size=(16, 24, 24)).astype(np.float32)
def chains(X):
    ends = []
    for k in range(4):
        a = X @ X.T + k
        for _ in range(20):
            a = a + 1e-9 * jnp.sum(eigh(a)[0])
        ends.append(a)
    return ends
run = jax.jit(jax.vmap(chains))
for _ in range(5):
    jax.block_until_ready(run(X))
"""


def test_batches_do_not_wait_for_each_other():
    environment = os.environ | {"PJRT_NPROC": "2"}  # as many threads as on two cores
    code = [sys.executable, "-c", SIDE_BY_SIDE]
    root = Path(__file__).parents[1]
    subprocess.run(code, check=True, timeout=300, cwd=root, env=environment)


# What jaxlib estimates one call to cost (jaxlib/cpu/lapack_kernels.cc), in units of the first
# operand's size times its shorter side. Batches of 2e5 and more are spread over threads.
ESTIMATES = {"potrf": 1 / 3, "trsm": 1, "syevd": 5, "gesdd": 10, "getrf": 1}
CALL = re.compile(r"custom_call @lapack_.(\w+?)_ffi\(.*\} : \(tensor<([0-9x]+)x\w+>(.*)\) ->")


def spread(lowered: str) -> set[str]:
    found = set()
    for name, first, rest in CALL.findall(lowered):
        *batch, n, d = map(int, first.split("x"))
        side = int(re.findall(r"x(\d+)xf", rest)[0]) if name == "trsm" else min(n, d)
        if math.prod(batch) > 1 and math.prod(batch) * ESTIMATES[name] * n * d * side >= 2e5:
            found.add(f"{name} of {first}")
    return found


def test_spread_calls_are_seen():
    M = jnp.ones((16, 40, 40))
    for fn in (jnp.linalg.cholesky, jnp.linalg.eigh, jnp.linalg.svd, jnp.linalg.inv):
        assert spread(jax.jit(fn).lower(M).as_text())


LANES, N, D = 16, 20, 40
NETWORK = dln.UV(np.ones(D), np.zeros(D))
OPTIONS: dict[str, Any] = {"throw": False}
S = np.array([1.0, 5.0])


def flow(network, problem):
    return dln.gradient_flow(network, problem, S, eps=1e-4, **OPTIONS).x


def weights(problem):
    form = dln.WeightForm()
    return dln.gradient_flow(NETWORK, problem, S, eps=1e-4, formulation=form, **OPTIONS).x


def as_quadratic(problem):
    return dln.Quadratic(problem.gram(), problem.r, weight_decay=problem.weight_decay)


SOLVERS = {
    "lasso_path": lambda p: dln.lasso_path(p, **OPTIONS).x(2.0),
    "limit_flow": lambda p: dln.limit_flow(NETWORK, p, **OPTIONS).x(2.0),
    "lasso": lambda p: dln.lasso(p, 2.0, **OPTIONS).x,
    "quadratic": lambda p: dln.lasso(as_quadratic(p), 2.0, **OPTIONS).x,
    "end_point": lambda p: dln.end_point(NETWORK, p, eps=1e-4, **OPTIONS).x,
    "limit_point": lambda p: dln.limit_point(NETWORK, p, **OPTIONS).x,
    "basis_pursuit": lambda p: dln.basis_pursuit(p, **OPTIONS).x,
    "null_space_constant": lambda p: dln.null_space_constant(p, **OPTIONS).value,
    "rows": lambda p: flow(NETWORK, p),
    "coordinates": lambda p: flow(NETWORK, as_quadratic(p)),
    "deep": lambda p: flow(dln.Deep(np.ones(D), np.ones(D), depth=3.0), p),
    "weights": weights,
    "crossing_times": lambda p: dln.crossing_times(NETWORK, p, 5.0, 0.3, eps=1e-4, **OPTIONS).s,
    "train": lambda p: dln.train(NETWORK, p, optax.sgd(1e-3), eps=0.1, steps=[1, 9], **OPTIONS).x,
}
UNDIFFERENTIATED = {"null_space_constant"}


@pytest.mark.parametrize("name", SOLVERS)
def test_no_batch_is_spread(name):
    """In none of a value, a gradient and a forward derivative."""
    solve = SOLVERS[name]

    def all_of(X, y):
        value = lambda X, y: jnp.sum(solve(dln.LeastSquares(X, y)))
        if name in UNDIFFERENTIATED:
            return value(X, y)
        gradients = jax.value_and_grad(value, (0, 1))(X, y)
        return gradients, jax.jvp(value, (X, y), (X, y))

    X = jax.ShapeDtypeStruct((LANES, N, D), float)
    y = jax.ShapeDtypeStruct((LANES, N), float)
    lowered = jax.jit(jax.vmap(all_of)).lower(X, y).as_text()
    assert not spread(lowered)
