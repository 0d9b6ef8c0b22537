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
    # is differentiable all the same, also where columns are the same but for their signs, or depend
    # on each other otherwise.
    rng, lanes, n, d = np.random.default_rng(1), 96, 4, 6
    design = rng.choice([-1.0, 1], size=(lanes, n, d))
    response = rng.choice([-1.0, 1, 2], size=(lanes, n))
    shape = np.exp(0.5 * rng.normal(size=(lanes, 2, d)) * (np.arange(lanes) % 2)[:, None, None])
    decay, direction = np.full(lanes, 0.05), rng.normal(size=(lanes, n))

    def z(design, y, shape, decay):
        problem = dln.LeastSquares(design, y, weight_decay=decay)
        return dln.limit_flow(dln.Deep(*shape, depth=2), problem, throw=False).z(P)

    @jax.jit
    @jax.vmap
    def run(design, y, shape, decay, direction):
        return jax.jvp(lambda y: z(design, y, shape, decay), (y,), (direction,))

    value, tangent = run(design, response, shape, decay, direction)
    ahead, behind = (
        run(design, response + h * direction, shape, decay, direction)[0] for h in (STEP, -STEP)
    )
    difference = (ahead - behind) / (2 * STEP)
    # Where z has a kink, one side differs from the other in some coordinate.
    is_smooth = np.all(np.abs(ahead + behind - 2 * value) < 2e-5 * STEP, axis=-1)
    assert np.mean(is_smooth) > 0.7
    # Differences of numbers up to 40 hold 8 digits of a slope.
    np.testing.assert_allclose(tangent[is_smooth], difference[is_smooth], rtol=1e-6, atol=1e-6)
