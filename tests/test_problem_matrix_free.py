"""`MatrixFree` against `LeastSquares` of the same matrix, and Fourier modes of large graphs."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import eval_jacobi

import dlnjax as dln

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 4)), RNG.normal(size=6)
MATRIX = jnp.asarray(X)
FREE = dln.MatrixFree(lambda x: MATRIX @ x, lambda v: v @ MATRIX, Y)
NETWORK = dln.UV(jnp.ones(4), jnp.zeros(4))


def test_what_it_computes():
    x = RNG.normal(size=(2, 3, 4))
    np.testing.assert_allclose(FREE.matvec(x), x @ X.T @ X, rtol=1e-12)
    np.testing.assert_allclose(FREE.loss(x), ((x @ X.T - Y) ** 2).sum(axis=-1) / 2, rtol=1e-13)
    np.testing.assert_allclose(FREE.gradient(x), (x @ X.T - Y) @ X, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(FREE.gram_column(2), (X.T @ X)[:, 2], rtol=1e-13)
    np.testing.assert_allclose(FREE.column_norms(), np.linalg.norm(X, axis=0), rtol=1e-13)
    dense = dln.LeastSquares(X, Y)
    gap = dense.duality_gap(x, 0.5)
    np.testing.assert_allclose(FREE.duality_gap(x, 0.5), gap, rtol=1e-12)


def test_flows():
    # Norms that are given set the units of tolerances only.
    given = dln.MatrixFree(FREE.apply, FREE.adjoint, Y, column_norms=np.linalg.norm(X, axis=0))
    solver, s = diffrax.Tsit5(), jnp.array([0.5, 3.0])
    how = {"eps": 1e-3, "formulation": dln.WeightForm(), "solver": solver}
    flow = dln.gradient_flow(NETWORK, given, s, **how)
    want = dln.gradient_flow(NETWORK, dln.LeastSquares(X, Y), s, **how)
    np.testing.assert_allclose(flow.x, want.x, rtol=1e-9, atol=1e-12)
    bound = dln.certificate(dln.LeastSquares(X, Y), flow)
    np.testing.assert_allclose(dln.certificate(FREE, flow), bound, rtol=1e-9)


def test_training_has_derivatives_and_lanes():
    def end(scale, problem_of):
        problem = problem_of(scale * jnp.asarray(Y))
        return dln.train(NETWORK, problem, optax.sgd(1e-2), eps=1e-2, steps=200, throw=False).x[-1]

    free = lambda y: dln.MatrixFree(FREE.apply, FREE.adjoint, y, 0.1)
    dense = lambda y: dln.LeastSquares(X, y, 0.1)
    both = [
        jax.jit(jax.vmap(lambda c, of=of: end(c, of)))(jnp.array([1, 2.0])) for of in (free, dense)
    ]
    np.testing.assert_allclose(*both, rtol=1e-11, atol=1e-14)
    slopes = [jax.jit(jax.jacrev(lambda c, of=of: end(c, of)))(1.5) for of in (free, dense)]
    np.testing.assert_allclose(*slopes, rtol=1e-10, atol=1e-13)
    # A matrix that is traced: NaN in it is bad data, in its lane only.
    bad = jnp.stack([MATRIX, MATRIX.at[0, 0].set(jnp.nan)])
    of = lambda A: end(1.0, lambda y: dln.MatrixFree(lambda x: A @ x, lambda v: v @ A, y, 0.1))
    x = jax.jit(jax.vmap(of))(bad)
    np.testing.assert_allclose(x[0], both[1][0], rtol=1e-11, atol=1e-14)
    assert np.all(np.isnan(x[1]))


def test_a_flow_has_derivatives_in_what_functions_close_over():
    form, s = dln.AcceleratedForm(1.0), jnp.array([0.5, 3.0])
    how = {"eps": 1e-2, "formulation": form, "solver": diffrax.Tsit5()}
    free = lambda A: dln.MatrixFree(jax.jit(lambda x: A @ x), lambda v: v @ A, Y)
    dense = lambda A: dln.LeastSquares(A, Y)

    def value(A, of):
        flow = dln.gradient_flow(NETWORK, of(A), s, **how)
        return jnp.sum(flow.x), flow.x

    both = [jax.grad(value, has_aux=True)(MATRIX, of) for of in (free, dense)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *both)
    # They are part of the problem where they are traced, and only there: else the functions are the
    # same for `jit` each time.
    assert jax.tree.structure(free(MATRIX).apply).num_leaves == 0
    lanes = jax.vmap(free)(jnp.stack([MATRIX, 2 * MATRIX]))
    loss = jax.jit(jax.vmap(lambda problem: problem.loss(jnp.ones(4))))(lanes)
    want = [np.sum((c * X.sum(axis=1) - Y) ** 2) / 2 for c in (1, 2)]
    np.testing.assert_allclose(loss, want, rtol=1e-13)


def gossip(graph, node, optimizer, steps):
    """The values after some steps from 1 at one node."""
    problem = dln.MatrixFree(graph.differences, graph.divergence, jnp.zeros(len(graph.edges)))
    start = dln.Linear(jnp.zeros(graph.num_nodes).at[node].set(2.0))
    return np.asarray(dln.train(start, problem, optimizer, eps=0.5, steps=steps).x[-1])


def test_ten_thousand_nodes():
    # Of the torus of 100 × 100, W = I − BᵀB/4 has the eigenvalue (cos ξ + cos η)/2.
    graph, cos = (
        dln.graphs.lattice((100, 100), periodic=True),
        np.cos(2 * np.pi * np.arange(100) / 100),
    )
    values = (cos[:, None] + cos[None, :]) / 2
    far = (np.arange(100) - 50) ** 2
    square = (far[:, None] + far[None, :]).ravel()
    for optimizer, of, moment in (
        (dln.jacobi(1.0, step_size=0.25), eval_jacobi(45, 1, 0, values) / 46, 45 * 47 / 4),
        (optax.sgd(0.25), values**45, 45),
    ):
        x = gossip(graph, 50 * 100 + 50, optimizer, 45)
        want = np.roll(np.fft.ifft2(of).real, (50, 50), axis=(0, 1)).ravel()
        np.testing.assert_allclose(x, want, atol=1e-14)  # rounding of values of 1/45² or so
        np.testing.assert_allclose(x @ square, moment, rtol=1e-12)


def test_second_moment_after_three_hundred_steps():
    # n(n + α + 1)/(2(α + 1)) at α = ½, and n.
    square = (np.arange(603) - 301) ** 2
    x = gossip(dln.graphs.cycle(603), 301, dln.jacobi(0.5, step_size=0.5), 300)
    assert x @ square == pytest.approx(300 * 301.5 / 3, rel=1e-10)
    x = gossip(dln.graphs.cycle(603), 301, optax.sgd(0.5), 300)
    assert x @ square == pytest.approx(300, rel=1e-10)


def test_what_refuses_it():
    s = jnp.ones(1)
    for refused in (
        lambda: dln.gradient_flow(NETWORK, FREE, s, eps=0.1),
        lambda: dln.lasso_path(FREE),
        lambda: dln.lasso(FREE, 1.0),
        lambda: dln.limit_flow(NETWORK, FREE),
        lambda: dln.end_point(NETWORK, FREE, eps=0.1),
        lambda: dln.basis_pursuit(FREE),
        lambda: FREE.gram_block(jnp.arange(2)),
    ):
        with pytest.raises(TypeError, match=r"no Gram matrix.*pass `LeastSquares\(X, y\)`"):
            refused()
    with pytest.raises(ValueError, match="which has none. Use `LeastSquares"):
        dln.train(NETWORK, FREE, optax.sgd(1.0), eps=0.1, steps=1, batches=np.zeros((1, 1), int))


def test_bad_input():
    apply, adjoint = FREE.apply, FREE.adjoint
    with pytest.raises(ValueError, match="not adjoint"):
        dln.MatrixFree(apply, lambda v: 2 * adjoint(v), Y)
    with pytest.raises(ValueError, match="without a constant"):
        dln.MatrixFree(lambda x: apply(x) + 1, adjoint, Y)
    with pytest.raises(ValueError, match=r"got \(6,\) to \(4,\) to \(5,\)"):
        dln.MatrixFree(lambda x: apply(x)[:5], adjoint, Y)
    with pytest.raises(TypeError, match="keep the dtype of `y`, float64"):
        dln.MatrixFree(lambda x: apply(x).astype(jnp.float32), adjoint, Y)
    with pytest.raises(ValueError, match="`y` must be a vector"):
        dln.MatrixFree(apply, adjoint, X)
    with pytest.raises(ValueError, match=r"`column_norms` must have shape \(4,\)"):
        dln.MatrixFree(apply, adjoint, Y, column_norms=np.ones(3))
    with pytest.raises(ValueError, match="`weight_decay` must be finite"):
        dln.MatrixFree(apply, adjoint, Y, -1.0)
    with pytest.raises(ValueError, match="must have the 4 coordinates"):
        FREE.loss(np.ones(3))
