"""Values of problems, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    BROADCASTS,
    SHAPES,
    data_of,
    least_squares_of,
    points_of,
    quadratic_of,
    relative,
)

from dlnjax._problem import AbstractProblem

BOTH = pytest.mark.parametrize("make", [least_squares_of, quadratic_of])

_loss = jax.jit(lambda problem, x: problem.loss(x))
_objective = jax.jit(AbstractProblem.lasso_objective)


@jax.jit
def _everything(problem, x, mu, kappa):
    """All that can be asked of a problem, in one compilation."""
    return {
        "loss": problem.loss(x),
        "gradient": problem.gradient(x),
        "matvec": problem.matvec(x),
        "objective": problem.lasso_objective(x, mu),
        "gap": problem.duality_gap(x, kappa),
        "positive gap": problem.duality_gap(abs(x), kappa, positive=True),
        "r": problem.r,
        "gram": problem.gram(),
        "column": problem.gram_column(1),
        "diagonal": problem.gram_diagonal(),
        "derivative": jax.grad(lambda x: jnp.sum(problem.loss(x)))(x),
    }


@pytest.mark.parametrize("name, batch", [*zip(SHAPES, [(), (7,), (2, 3)], strict=True)])
def test_matches_definitions(name, batch):
    X, y = data_of(name)
    x, M = points_of(X.shape[1], batch), X.T @ X
    mu = np.linspace(0.5, 2, int(np.prod(batch))).reshape(batch)
    loss = 0.5 * np.sum((x @ X.T - y) ** 2, axis=-1)
    gradient = (x @ X.T - y) @ X
    want = {
        "loss": loss,
        "gradient": gradient,
        "derivative": gradient,
        "matvec": x @ M,
        "objective": loss + (0.3 + 1 / mu) * np.abs(x).sum(-1),
        "r": X.T @ y,
        "gram": M,
        "column": M[:, 1],
        "diagonal": np.diag(M),
    }
    least_squares, quadratic = least_squares_of(X, y), quadratic_of(X, y)
    got = _everything(least_squares, x, mu, 1 / mu)
    for key, value in want.items():
        assert got[key].shape == value.shape
        assert relative(got[key], value) < 1e-13
    for key, value in _everything(quadratic, x, mu, 1 / mu).items():
        assert value.shape == got[key].shape
        assert relative(value, got[key]) < 1e-12
    assert least_squares.rank_bound == min(X.shape)
    assert quadratic.rank_bound == X.shape[1]


@BOTH
def test_gradient_against_finite_differences(make):
    problem = make(*data_of("n < d"))
    x = jnp.asarray(points_of(5, ()))
    # The loss is quadratic: central differences are exact but for rounding, eps/step.
    steps = 1e-3 * jnp.stack([jnp.eye(5), -jnp.eye(5)])
    ahead, behind = _loss(problem, jnp.broadcast_to(x, steps.shape) + steps)
    np.testing.assert_allclose((ahead - behind) / 2e-3, problem.gradient(x), atol=1e-11)


@BROADCASTS
def test_mu_broadcasts_against_the_batch_of_x(points, mus, batch):
    X, y = data_of("n > d")
    x = points_of(4, points)
    mu = np.linspace(0.2, 3, int(np.prod(mus))).reshape(mus)
    want = 0.5 * np.sum((x @ X.T - y) ** 2, -1) + (0.3 + 1 / mu) * np.abs(x).sum(-1)
    problem = least_squares_of(X, y)
    objective = _objective(problem, x, mu)
    assert objective.shape == want.shape == batch
    assert relative(objective, want) < 1e-14


def test_infinite_mu_leaves_the_weight_decay():
    X, y = data_of("n > d")
    x = points_of(4, ())
    want = 0.5 * np.sum((X @ x - y) ** 2) + 0.3 * np.abs(x).sum()
    assert relative(least_squares_of(X, y).lasso_objective(x, np.inf), want) < 1e-14
