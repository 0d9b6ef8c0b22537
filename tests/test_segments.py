"""Derivatives of the lasso, its path and the limit process against central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

N, D = 4, 6
RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
SHAPE = np.exp(0.3 * RNG.normal(size=D))
P = jnp.array([0.4, 1.5, 6.0, 40.0])
STEP = 1e-6


def path(X, y, weights, decay):
    problem = dln.LeastSquares(X, y, weight_decay=decay)
    found = dln.lasso_path(problem, weights=weights, throw=False)
    return jnp.append(jnp.ravel(found.x(P)), found.knots[:4])


def point(X, y, weights, decay):
    problem = dln.LeastSquares(X, y, weight_decay=decay)
    found = dln.lasso(problem, P, weights=weights, gap_tol=1e-13, throw=False)
    return jnp.ravel(found.x)


def limit(X, y, shape, s_max):
    network = dln.Deep(shape, shape, depth=3.0)
    found = dln.limit_flow(network, dln.LeastSquares(X, y), s_max, throw=False)
    # z, the jumps, and the time at which it was stopped.
    last = found.knots[found.num_knots - 1]
    return jnp.concatenate([jnp.ravel(found.z(P[:3])), found.jumps[:3], last[None]])


def positive_limit(X, r, decay):
    network = dln.USquared(jnp.ones(D))
    problem = dln.Quadratic(X.T @ X + jnp.eye(D), r, weight_decay=decay)
    return jnp.ravel(dln.limit_flow(network, problem, throw=False).z(P))


CASES = {
    "path": (path, (X, Y, SHAPE, np.array(0.0))),
    "point": (point, (X, Y, SHAPE, np.array(0.1))),
    "limit": (limit, (X, Y, SHAPE, np.array(30.0))),
    "positive limit": (positive_limit, (X, np.abs(X.T @ Y), np.array(0.1))),
}


@pytest.mark.parametrize("name", CASES)
def test_against_differences(name):
    fn, args = CASES[name]

    @jax.jit
    @jax.vmap
    def run(*args):
        value, pull = jax.vjp(fn, *args)
        return value, jax.vmap(pull)(jnp.eye(value.shape[0]))

    # One batch: the point itself, and both ends of a difference along a direction in each argument
    # (but for the weight decay of the path, which is 0 and cannot be less).
    rng = np.random.default_rng(0)
    which = [i for i in range(len(args)) if (name, i) != ("path", 3)]
    directions = {i: rng.normal(size=args[i].shape) for i in which}
    lanes = [args]
    for i, direction in directions.items():
        move = lambda h, i=i, direction=direction: tuple(
            a + h * direction if j == i else a for j, a in enumerate(args)
        )
        lanes += [move(STEP), move(-STEP)]
    values, jacobians = run(*(np.stack(v) for v in zip(*lanes, strict=True)))
    for row, (i, direction) in enumerate(directions.items()):
        tangent = np.tensordot(np.asarray(jacobians[i][0]), direction, axes=direction.ndim)
        difference = (values[2 * row + 1] - values[2 * row + 2]) / (2 * STEP)
        assert np.all(np.isfinite(tangent))
        assert np.max(np.abs(tangent)) > 0
        np.testing.assert_allclose(tangent, difference, rtol=1e-6, atol=1e-7)


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
