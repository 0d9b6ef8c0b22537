"""Problems: values against their definitions, gaps against outside solvers, refusals."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import dlnjax as dln
from dlnjax._problem import AbstractProblem, validity

SHAPES = {"n > d": (6, 4), "n < d": (3, 5), "rank 2 of 4": (6, 4)}


def _data(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    n, d = SHAPES[name]
    X = rng.normal(size=(n, d))
    if name == "rank 2 of 4":
        X = X[:, :2] @ rng.normal(size=(2, d))
    return X, rng.normal(size=n)


def _least_squares(X, y, decay=0.3):
    return dln.LeastSquares(X, y, weight_decay=decay)


def _quadratic(X, y, decay=0.3):
    return dln.Quadratic(X.T @ X, X.T @ y, constant=0.5 * np.sum(y**2), weight_decay=decay)


BOTH = pytest.mark.parametrize("make", [_least_squares, _quadratic])
EVERY_SHAPE = pytest.mark.parametrize("name", SHAPES)


def _points(d, batch):
    return np.random.default_rng(len(batch)).normal(size=(*batch, d))


def _relative(a, b):
    return np.max(np.abs(np.asarray(a) - b)) / np.max(np.abs(b))


_loss = jax.jit(lambda problem, x: problem.loss(x))
_objective = jax.jit(AbstractProblem.lasso_objective)
_gap = jax.jit(AbstractProblem.duality_gap, static_argnames="positive")


# --- values ---------------------------------------------------------------------------------


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
    X, y = _data(name)
    x, M = _points(X.shape[1], batch), X.T @ X
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
    least_squares, quadratic = _least_squares(X, y), _quadratic(X, y)
    got = _everything(least_squares, x, mu, 1 / mu)
    for key, value in want.items():
        assert got[key].shape == value.shape
        assert _relative(got[key], value) < 1e-13
    for key, value in _everything(quadratic, x, mu, 1 / mu).items():
        assert value.shape == got[key].shape
        assert _relative(value, got[key]) < 1e-12
    assert least_squares.rank_bound == min(X.shape)
    assert quadratic.rank_bound == X.shape[1]


@BOTH
def test_gradient_against_finite_differences(make):
    problem = make(*_data("n < d"))
    x = jnp.asarray(_points(5, ()))
    # The loss is quadratic: central differences are exact but for rounding, eps/step.
    steps = 1e-3 * jnp.stack([jnp.eye(5), -jnp.eye(5)])
    ahead, behind = _loss(problem, jnp.broadcast_to(x, steps.shape) + steps)
    np.testing.assert_allclose((ahead - behind) / 2e-3, problem.gradient(x), atol=1e-11)


BROADCASTS = pytest.mark.parametrize(
    "points, mus, batch",
    [((), (5,), (5,)), ((5,), (), (5,)), ((4,), (3, 1), (3, 4)), ((2, 4), (4,), (2, 4))],
)


@BROADCASTS
def test_mu_broadcasts_against_the_batch_of_x(points, mus, batch):
    X, y = _data("n > d")
    x = _points(4, points)
    mu = np.linspace(0.2, 3, int(np.prod(mus))).reshape(mus)
    want = 0.5 * np.sum((x @ X.T - y) ** 2, -1) + (0.3 + 1 / mu) * np.abs(x).sum(-1)
    problem = _least_squares(X, y)
    objective = _objective(problem, x, mu)
    assert objective.shape == want.shape == batch
    assert _relative(objective, want) < 1e-14


@BROADCASTS
def test_kappa_broadcasts_against_the_batch_of_x(points, mus, batch):
    problem = _least_squares(*_data("n > d"))
    x = _points(4, points)
    kappa = np.linspace(0.2, 3, int(np.prod(mus))).reshape(mus)
    want = _gap(problem, np.broadcast_to(x, (*batch, 4)), np.broadcast_to(kappa, batch))
    gap = _gap(problem, x, kappa)
    assert gap.shape == batch
    assert _relative(gap, want) < 1e-14


def test_infinite_mu_leaves_the_weight_decay():
    X, y = _data("n > d")
    x = _points(4, ())
    want = 0.5 * np.sum((X @ x - y) ** 2) + 0.3 * np.abs(x).sum()
    assert _relative(_least_squares(X, y).lasso_objective(x, np.inf), want) < 1e-14


# --- duality gap ------------------------------------------------------------------------------


def _optimum(X, y, kappa, positive):
    model = Lasso(alpha=kappa / len(y), fit_intercept=False, positive=positive, tol=1e-15)
    return model.set_params(max_iter=1_000_000).fit(X, y).coef_


@EVERY_SHAPE
@pytest.mark.parametrize("positive", [False, True])
def test_duality_gap_bounds_the_gap_and_vanishes_at_the_optimum(name, positive):
    X, y = _data(name)
    largest = np.max(X.T @ y if positive else np.abs(X.T @ y))
    kappa = np.array([1.5, 0.5, 0.05])[:, None] * largest
    best = np.stack([_optimum(X, y, float(k[0]), positive) for k in kappa])[:, None]
    # The optimum, then points further and further from it.
    x = best + np.append(0, np.logspace(-6, 1, 30))[:, None] * _points(X.shape[1], (3, 31))
    x = np.abs(x) if positive else x
    objective = 0.5 * np.sum((x @ X.T - y) ** 2, axis=-1) + kappa * np.abs(x).sum(axis=-1)
    true = objective - objective[:, :1]
    rounding = 1e-14 * np.sum(y**2)
    assert np.all(true > -rounding)
    for make in [_least_squares, _quadratic]:
        gap = np.asarray(_gap(make(X, y), x, kappa, positive=positive))
        assert np.all(np.isfinite(gap))
        assert np.all(gap >= true - rounding)
        # The gap of the optimum is what scikit-learn's stopping left.
        assert np.all(gap[:, 0] < 1e-9 * np.sum(y**2))


def test_duality_gap_is_exactly_zero_at_zero_above_the_largest_correlation():
    X, y = _data("n > d")
    for positive, size in [(False, np.abs(X.T @ y).max()), (True, (X.T @ y).max())]:
        assert _gap(_least_squares(X, y), np.zeros(4), 1.01 * size, positive=positive) == 0


def test_duality_gap_of_a_negative_point_is_infinite_for_the_positive_lasso():
    x = np.array([[1.0, -1e-9, 0, 0], [1.0, 1e-9, 0, 0]])
    gap = _gap(_least_squares(*_data("n > d")), x, np.ones(2), positive=True)
    assert np.isinf(gap[0]) and np.isfinite(gap[1])


@EVERY_SHAPE
def test_duality_gap_without_penalty(name):
    X, y = _data(name)
    problem = _least_squares(X, y)
    x = _points(X.shape[1], (10,))
    least = 0.5 * np.sum((X @ np.linalg.lstsq(X, y)[0] - y) ** 2)
    gap = np.asarray(_gap(problem, x, np.zeros(10)))
    assert np.all(gap >= 0.5 * np.sum((x @ X.T - y) ** 2, axis=-1) - least - 1e-14)
    assert np.all(np.isfinite(gap))
    # An exact fit has no gap: residual and penalty are both exactly 0.
    assert _gap(dln.LeastSquares(np.eye(3), np.ones(3)), np.ones(3), 0.0) == 0


# --- the constant of a quadratic -----------------------------------------------------------------


@EVERY_SHAPE
def test_default_constant_makes_the_least_loss_zero(name):
    X, y = _data(name)
    M, r = X.T @ X, X.T @ y
    problem = dln.Quadratic(M, r)
    best = np.linalg.pinv(M, hermitian=True) @ r
    assert abs(float(problem.constant) - 0.5 * r @ best) < 1e-13 * (0.5 * r @ best)
    assert 0 <= float(problem.loss(jnp.asarray(best))) < 1e-14 * float(problem.constant)
    rest = 0.5 * np.sum(y**2) - float(problem.constant)
    fit = X @ np.linalg.lstsq(X, y)[0]
    assert abs(rest - 0.5 * np.sum((y - fit) ** 2)) < 1e-13 * np.sum(y**2)


@EVERY_SHAPE
def test_derivative_of_the_default_constant(name):
    # Along a curve of M = FᵀF of constant rank, with r kept in the range of M.
    X, y = _data(name)
    rng = np.random.default_rng(7)
    # Rank is kept by moving the right factor of X = B C.
    B, C = (X, np.eye(X.shape[1])) if name != "rank 2 of 4" else (X[:, :2], _right_factor(X))
    dC, dy = rng.normal(size=C.shape), rng.normal(size=len(y))

    def constant(t):
        F = B @ (C + t * dC)
        return dln.Quadratic(F.T @ F, F.T @ (y + t * dy)).constant

    values = jax.jit(jax.vmap(constant))
    h = 1e-5  # the error of the difference is about h² and eps/h
    ahead, behind = values(jnp.array([h, -h]))
    difference = float(ahead - behind) / (2 * h)
    reverse, (_, forward) = jax.jit(
        lambda t: (jax.grad(constant)(t), jax.jvp(constant, (t,), (1.0,)))
    )(0.0)
    assert abs(reverse - difference) < 1e-8 * max(1, abs(difference))
    assert abs(reverse - forward) < 1e-12 * max(1, abs(difference))


def _right_factor(X):
    return np.linalg.lstsq(X[:, :2], X)[0]


# --- refusals ----------------------------------------------------------------------------------


X0, Y0 = np.arange(6.0).reshape(3, 2) + np.eye(3, 2), np.ones(3)
PROBLEM = dln.LeastSquares(X0, Y0)


def _with(array, where, value):
    array = array.copy()
    array[where] = value
    return array


REFUSED = {
    "NaN in X": (
        lambda: dln.LeastSquares(_with(X0, (1, 0), np.nan), Y0),
        ValueError,
        "`X[1, 0]` is nan, and 1 of 6 entries of `X` are not finite. Remove or impute",
    ),
    "inf in y": (
        lambda: dln.LeastSquares(X0, _with(Y0, 2, -np.inf)),
        ValueError,
        "`y[2]` is -inf, and 1 of 3 entries of `y` are not finite. Remove or impute",
    ),
    "rows of X and y": (
        lambda: dln.LeastSquares(X0, np.ones(4)),
        ValueError,
        "`X` has 3 rows but `y` has 4 entries",
    ),
    "1-D X": (
        lambda: dln.LeastSquares(np.ones(3), Y0),
        ValueError,
        "`X` must be a matrix (n, d), got shape (3,). Use `X[:, None]`",
    ),
    "3-D X": (
        lambda: dln.LeastSquares(np.ones((2, 3, 2)), Y0),
        ValueError,
        "got shape (2, 3, 2)",
    ),
    "2-D y": (
        lambda: dln.LeastSquares(X0, np.ones((3, 1))),
        ValueError,
        "`y` must be a vector (n,), got shape (3, 1). Use `y[:, 0]`",
    ),
    "no rows": (
        lambda: dln.LeastSquares(np.ones((0, 2)), np.ones(0)),
        ValueError,
        "`X` has an empty axis: its shape is (0, 2)",
    ),
    "no columns": (
        lambda: dln.LeastSquares(np.ones((3, 0)), Y0),
        ValueError,
        "`X` has an empty axis: its shape is (3, 0)",
    ),
    "complex X": (
        lambda: dln.LeastSquares(X0 + 0j, Y0),
        TypeError,
        "`X` must be real, got dtype complex128. Pass its real part",
    ),
    "text in X": (
        lambda: dln.LeastSquares(X0.astype(str), Y0),
        TypeError,
        "`X` must be an array of numbers, got ndarray",
    ),
    "objects in y": (
        lambda: dln.LeastSquares(X0, np.array([1.0, None, "a"], dtype=object)),
        TypeError,
        "`y` must be an array of numbers, got ndarray",
    ),
    "negative decay": (
        lambda: dln.LeastSquares(X0, Y0, weight_decay=-0.5),
        ValueError,
        "`weight_decay` must be finite and non-negative, got -0.5",
    ),
    "NaN decay": (
        lambda: dln.LeastSquares(X0, Y0, weight_decay=np.nan),
        ValueError,
        "`weight_decay` must be finite and non-negative, got nan",
    ),
    "infinite decay": (
        lambda: dln.Quadratic(np.eye(2), np.ones(2), weight_decay=np.inf),
        ValueError,
        "`weight_decay` must be finite and non-negative, got inf",
    ),
    "vector of decays": (
        lambda: dln.LeastSquares(X0, Y0, weight_decay=np.ones(2)),
        ValueError,
        "`weight_decay` must be a scalar, got shape (2,). Use `jax.vmap`",
    ),
    "M not square": (
        lambda: dln.Quadratic(np.ones((2, 3)), np.ones(2)),
        ValueError,
        "`M` must be a square matrix, got shape (2, 3)",
    ),
    "1-D M": (
        lambda: dln.Quadratic(np.ones(2), np.ones(2)),
        ValueError,
        "`M` must be a square matrix, got shape (2,)",
    ),
    "empty M": (
        lambda: dln.Quadratic(np.ones((0, 0)), np.ones(0)),
        ValueError,
        "`M` has an empty axis: its shape is (0, 0)",
    ),
    "shape of r": (
        lambda: dln.Quadratic(np.eye(2), np.ones(3)),
        ValueError,
        "`r` must have shape (2,) to match `M`, got (3,)",
    ),
    "NaN in M": (
        lambda: dln.Quadratic(_with(np.eye(2), (0, 1), np.nan), np.ones(2)),
        ValueError,
        "`M[0, 1]` is nan",
    ),
    "inf in r": (
        lambda: dln.Quadratic(np.eye(2), np.array([1, np.inf])),
        ValueError,
        "`r[1]` is inf",
    ),
    "asymmetric M": (
        lambda: dln.Quadratic(np.array([[1, 0.25], [0, 1]]), np.ones(2)),
        ValueError,
        "`M` must be symmetric, but differs from its transpose by 0.25. Pass `(M + M.T) / 2`",
    ),
    "indefinite M": (
        lambda: dln.Quadratic(np.diag([1, -0.5]), np.ones(2)),
        ValueError,
        "semidefinite, but scaled to a unit diagonal it has the eigenvalue -1:",
    ),
    "r outside the range": (
        lambda: dln.Quadratic(np.diag([1.0, 0]), np.array([1, 0.5])),
        ValueError,
        "`r` must lie in the range of `M`, but is off by 0.5: the loss would be unbounded "
        "below. Use `LeastSquares(X, y)`, or project `r`",
    ),
    "constant too small": (
        lambda: dln.Quadratic(np.eye(2), np.ones(2), constant=0.25),
        ValueError,
        "`constant` = 0.25 makes the loss negative: with this `M` and `r` it must be at least 1.0",
    ),
    "NaN constant": (
        lambda: dln.Quadratic(np.eye(2), np.ones(2), constant=np.nan),
        ValueError,
        "`constant` is nan",
    ),
    "μ = 0": (
        lambda: PROBLEM.lasso_objective(np.ones(2), 0.0),
        ValueError,
        "`mu` must be positive, got 0.0. Start the grid above 0",
    ),
    "negative μ in a grid": (
        lambda: PROBLEM.lasso_objective(np.ones(2), np.array([1.0, -2.0])),
        ValueError,
        "`mu` must be positive, got -2.0",
    ),
    "NaN μ": (
        lambda: PROBLEM.lasso_objective(np.ones(2), np.nan),
        ValueError,
        "`mu` must be positive, got nan",
    ),
    "negative κ": (
        lambda: PROBLEM.duality_gap(np.ones(2), -1.5),
        ValueError,
        "`kappa` must be non-negative, got -1.5",
    ),
    "length of x": (
        lambda: PROBLEM.lasso_objective(np.ones((2, 3)), 1.0),
        ValueError,
        "The last axis of `x` must have the 2 coordinates of the problem, got shape (2, 3)",
    ),
    "scalar x": (
        lambda: PROBLEM.loss(jnp.asarray(1.0)),
        ValueError,
        "The last axis of `x` must have the 2 coordinates of the problem, got shape ()",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_accepts_rounding_in_a_quadratic():
    # Semidefinite, symmetric and in the range only to rounding: what XᵀX and Xᵀy are.
    rng = np.random.default_rng(3)
    for _ in range(20):
        X, y = rng.normal(size=(8, 12)) * 10.0 ** rng.uniform(-8, 8), rng.normal(size=8)
        M = X.T @ X
        M = M * (1 + 1e-15 * rng.normal(size=M.shape))
        problem = dln.Quadratic(M, X.T @ y, constant=0.5 * np.sum(y**2))
        assert float(problem.constant) == 0.5 * np.sum(y**2)
    assert float(dln.Quadratic(np.zeros((2, 2)), np.zeros(2)).constant) == 0


# --- types and transformations -------------------------------------------------------------------


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
    assert _relative(jax.jit(jax.vmap(loss))(*data), want) < 1e-13
    gradients = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1, 2, 3))))(*data)
    norm = np.abs(x).sum(-1)
    pulled = np.einsum("bnd,bn->bd", X, residual) + (decay + 1)[:, None] * np.sign(x)
    for got, want in zip(
        gradients,
        [residual[:, :, None] * x[:, None, :], -residual, norm, pulled],
        strict=True,
    ):
        assert _relative(got, want) < 1e-12


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


def test_duality_gap_without_penalty_has_derivatives():
    rng = np.random.default_rng(2)
    problem, x = dln.LeastSquares(rng.normal(size=(3, 4)), rng.normal(size=3)), rng.normal(size=4)
    by_x, by_kappa = jax.grad(problem.duality_gap, argnums=(0, 1))(jnp.asarray(x), 0.0)
    np.testing.assert_allclose(by_x, problem.gradient(x), rtol=1e-12)
    assert np.isfinite(by_kappa)


# --- what is no convex quadratic ------------------------------------------------------------------


def _designs(dtype=np.float64, lanes: int = 64, n: int = 7, d: int = 5, decades: float = 10):
    """Gaussian, with a duplicate or an empty column in some, each column in units of its own."""
    rng = np.random.default_rng(4)
    X, y = rng.normal(size=(lanes, n, d)), rng.normal(size=(lanes, n))
    X[::4, :, 1] = -X[::4, :, 0]
    X[::6, :, 2] = 0
    least = [0.5 * np.sum((A @ np.linalg.lstsq(A, b)[0]) ** 2) for A, b in zip(X, y, strict=True)]
    units = 10.0 ** rng.uniform(-decades, decades, size=(lanes, d))
    return X.astype(dtype), y.astype(dtype), units.astype(dtype), np.array(least)


@jax.jit
@jax.vmap
def _judge(M, r, constant):
    problem = dln.Quadratic(M, r, constant)
    return validity(problem), problem.constant


@pytest.mark.parametrize("dtype, decades", [(np.float64, 10), (np.float32, 3)])
def test_gram_matrices_are_convex_in_all_units(dtype, decades):
    X, y, units, least = _designs(dtype, decades=decades)
    X = X * units[:, None, :]
    M, r = np.einsum("lni,lnj->lij", X, X), np.einsum("lni,ln->li", X, y)
    given = 0.5 * np.sum(y**2, axis=1)
    result, constant = _judge(M, r, given)
    assert np.all(result == dln.RESULTS.successful)
    np.testing.assert_array_equal(constant, given)
    free = jax.jit(jax.vmap(lambda M, r: dln.Quadratic(M, r).constant))(M, r)
    # The spectrum of S has a condition number of up to 1e3 or so.
    np.testing.assert_allclose(free, least, rtol=1e4 * np.finfo(dtype).eps)
    for lane in range(0, 64, 7):  # the same where the values are known
        np.testing.assert_allclose(dln.Quadratic(M[lane], r[lane]).constant, free[lane], rtol=1e-3)


def test_bad_quadratics_are_refused_or_marked_in_all_units():
    X, y, units, least = _designs()
    M, r = np.einsum("lni,lnj->lij", X, X), np.einsum("lni,ln->li", X, y)
    c = 0.5 * np.sum(y**2, axis=1)
    rng, lane = np.random.default_rng(5), np.arange(64)
    fault = lane % 6
    # No duplicates or empty columns in lanes that are to be spoilt as a full-rank matrix is.
    v = np.linalg.eigh(M)[1]
    spoilt = 0.1 * np.einsum("li,lj->lij", v[:, :, 0], v[:, :, 0])
    size = np.linalg.eigvalsh(M)[:, 0]
    M = np.where((fault == 1)[:, None, None], M - (size[:, None, None] * 10 + 1) * spoilt, M)
    M[fault == 2, 0, 3] += 1e-6
    empty = np.einsum("lni,lnj->lij", X[:, :, :4], X[:, :, :4])  # off the range by its last entry
    M = np.where((fault == 3)[:, None, None], np.pad(empty, ((0, 0), (0, 1), (0, 1))), M)
    M[fault == 4, 1, 1] *= -1e-3
    M[fault == 4, 1, 1] -= 1e-3
    c = np.where(fault == 5, least * 0.999, c)
    for scale in (np.ones_like(units), units):
        scaled = M * scale[:, :, None] * scale[:, None, :], r * scale, c
        result, constant = _judge(*scaled)
        np.testing.assert_array_equal(result == dln.RESULTS.invalid_problem, fault > 0)
        np.testing.assert_array_equal(np.isnan(constant), fault > 0)
        for i in rng.choice(lane[fault > 0], 8, replace=False):
            with pytest.raises(ValueError, match="must be symmetric|semidefinite|range|negative"):
                dln.Quadratic(*(a[i] for a in scaled))


def test_a_loss_below_zero_beyond_rounding_is_not_hidden():
    good = dln.Quadratic(np.eye(2), np.ones(2))
    bad = eqx.tree_at(lambda p: p.M, good, jnp.array([[1.0, 2], [2, 1]]))
    assert float(bad.loss(np.array([3.0, -3]))) == pytest.approx(-8)
    # Of 0.1 · 3, rounding leaves −5.6e-17.
    x = np.random.default_rng(0).normal(size=(1000, 2)) * 1e-9 + 1
    assert np.min(good.loss(x)) == 0


def test_a_known_matrix_inside_of_a_traced_function():
    M = jnp.eye(2)
    assert jax.jit(lambda r: dln.Quadratic(M, r).constant)(jnp.ones(2)) == 1
    with pytest.raises(ValueError, match="semidefinite"):
        negative = -M
        jax.jit(lambda r: dln.Quadratic(negative, r).constant)(jnp.ones(2))
