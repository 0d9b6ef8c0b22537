"""Derivatives on segments that `test_derivatives.py` leaves out."""

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

N, D = 4, 6
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
P = jnp.array([0.4, 1.5, 6.0, 40.0])
STEP = 1e-6


def test_positive_limit_of_a_quadratic():
    def z(A, r, decay):
        problem = dln.Quadratic(A.T @ A + jnp.eye(D), r, weight_decay=decay)
        limit = dln.limit_flow(dln.USquared(jnp.ones(D)), problem, throw=False)
        return jnp.ravel(limit.z(P))

    # One batch: the point itself, and both ends of a difference.
    rng, args = np.random.default_rng(0), (X, np.abs(X.T @ Y), np.array(0.1))
    along = tuple(rng.normal(size=a.shape) for a in args)
    lanes = [np.stack([a, a + STEP * v, a - STEP * v]) for a, v in zip(args, along, strict=True)]
    run = jax.jit(jax.vmap(lambda *args: jax.jvp(z, args, along)))
    values, tangents = run(*lanes)
    assert np.max(np.abs(tangents[0])) > 0
    difference = (values[1] - values[2]) / (2 * STEP)
    np.testing.assert_allclose(tangents[0], difference, rtol=1e-6, atol=1e-7)


def test_second_order():
    def energy(y):
        return jnp.sum(dln.lasso_path(dln.LeastSquares(X, y), throw=False).x(P) ** 2)

    # Forward over reverse. x is affine in y on a segment, so its square is quadratic.
    direction, step = np.array([1.0, -0.5, 0, 0.3]), 1e-5
    ys = Y + np.array([[0], [step], [-step]]) * direction
    run = jax.jit(jax.vmap(lambda y: jax.jvp(jax.grad(energy), (y,), (direction,))))
    gradients, products = run(ys)
    difference = (gradients[1] - gradients[2]) / (2 * step)
    np.testing.assert_allclose(products[0], difference, rtol=1e-8, atol=1e-9)


def test_degenerate_problems_have_finite_derivatives():
    # Ties at every knot, a duplicate, a zero column, and no response; at μ = ∞; beside a μ that
    # fails; of η where it is 0.
    design = np.array([[1.0, 1, 0, 0, 0], [0, 0, 1, -1, 0], [1, 1, 0, 0, 0]])
    response = np.array([[1.0, 1, 1], [0, 0, 0]])

    def all_of_them(y, design, decay):
        problem = dln.LeastSquares(design, y, weight_decay=decay)
        process = dln.limit_flow(dln.UV(jnp.ones(5), jnp.zeros(5)), problem, throw=False)
        point = dln.lasso(problem, jnp.append(P, decay - 1), throw=False).x
        path = dln.lasso_path(problem, throw=False)
        eta = dln.eta(decay, P, path.downward_variation(P))
        values = [path.x(P), path.x(jnp.inf), process.z(P), point, eta]
        flat = jnp.concatenate([jnp.ravel(v) for v in values])
        return jnp.where(jnp.isfinite(flat), flat, 0)

    slopes = jax.jacrev(all_of_them, argnums=(0, 1, 2))
    slopes = jax.jit(jax.vmap(slopes, in_axes=(0, None, None)))(response, design, 0.0)
    for part in slopes:
        assert np.all(np.isfinite(part))
    assert np.any(slopes[0] != 0)


def test_limit_process_after_ties():
    # Coordinates that jump together at this design jump one after another beside it; what follows
    # is differentiable all the same.
    rng = np.random.default_rng(1)
    design, response = (
        rng.choice([-1.0, 1], size=(12, 3, 4)),
        rng.choice([-1.0, 1, 2], size=(12, 3)),
    )
    decay, direction = np.full(12, 0.05), rng.normal(size=(12, 3))

    def z(design, y, decay):
        problem = dln.LeastSquares(design, y, weight_decay=decay)
        return dln.limit_flow(dln.UV(jnp.ones(4), jnp.zeros(4)), problem, throw=False).z(P)

    @jax.jit
    @jax.vmap
    def run(design, y, decay, direction):
        return jax.jvp(lambda y: z(design, y, decay), (y,), (direction,))

    value, tangent = run(design, response, decay, direction)
    ahead, behind = (
        run(design, response + h * direction, decay, direction)[0] for h in (STEP, -STEP)
    )
    ahead, behind = (ahead - value) / STEP, (value - behind) / STEP
    # Of columns that are the same, but for their signs, only the sum: how it is shared is selected,
    # and its derivative after a tie is that of one of the jumps.
    gram = np.einsum("lij,lik->ljk", design, design)
    share = np.where(np.abs(gram) == 3, gram / 3, 0)
    tangent, ahead, behind = (
        np.einsum("ljk,lpk->lpj", share, np.asarray(v)) for v in (tangent, ahead, behind)
    )
    is_smooth = np.abs(ahead - behind) < 1e-5
    assert np.mean(is_smooth) > 0.9
    np.testing.assert_allclose(tangent[is_smooth], ahead[is_smooth], rtol=1e-6, atol=1e-6)
