"""Wide designs whose flow has coordinates for its state: each step factorises in the rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flows import radau
from jax import export

import dlnjax as dln
from dlnjax._flow.terms.coordinates import CoordinateTerm
from dlnjax._flow.terms.decayed_rows import DecayedRowTerm
from dlnjax._flow.terms.dual import dual_term
from dlnjax._flow.terms.systems import DenseSystem, RowSystem, in_rows
from dlnjax._results import names_of

N, D = 5, 48
RNG = np.random.default_rng(0)
X, NOISE = RNG.normal(size=(N, D)) / 2, RNG.normal(size=N)
Y = X[:, 0] * 3 - X[:, 1] * 2 + 0.3 * NOISE
SHAPE = RNG.uniform(0.5, 2, D)
S = np.array([0.5, 1, 2, 5, 20, 50]) / np.max(np.abs(X.T @ Y))
LOG_EPS = [-5.0, -46.0, -700.0]
NETWORKS = {
    "UV": lambda: dln.UV(SHAPE, np.zeros(D)),
    "USquared": lambda: dln.USquared(SHAPE),
    "UV, logistic": lambda: dln.UV(SHAPE, np.zeros(D)),
}


@functools.cache
def _solved(kind: str):
    def run(log_eps, X, y):
        network = NETWORKS[kind]()
        of, y = (dln.Logistic, jnp.sign(y)) if "logistic" in kind else (dln.LeastSquares, y)
        return dln.gradient_flow(network, of(X, y, 0.1), S, log_eps=log_eps)

    return jax.jit(run)


@pytest.mark.parametrize("log_eps", LOG_EPS)
@pytest.mark.parametrize("kind", ["UV", "USquared"])
def test_weight_decay_against_radau(kind, log_eps):
    flow = _solved(kind)(log_eps, X, Y)
    weights = (SHAPE, np.zeros(D)) if kind == "UV" else (SHAPE,)
    z = radau(X, Y, weights, 0.1, log_eps, S)
    mean = z / S[:, None]
    np.testing.assert_allclose(flow.x_mean, mean, rtol=0, atol=5e-7 * np.max(np.abs(mean)))


@pytest.mark.parametrize("log_eps", [*LOG_EPS, -2000.0])
@pytest.mark.parametrize("kind", NETWORKS)
def test_rows_of_zeros_change_nothing(kind, log_eps):
    """With as many rows as columns the same flow is solved with a `d × d` factorisation."""
    tall, longer = (np.concatenate([v, np.zeros((D, *v.shape[1:]))]) for v in (X, Y))
    if "logistic" in kind:  # the loss of a row of zeros is a constant
        longer[N:] = 1
    wide, other = (_solved(kind)(log_eps, *data) for data in ((X, Y), (tall, longer)))
    size = np.max(np.abs(other.x))
    # Both are at rtol = 1e-7; at a jump the time of the jump counts, times log(1/ε).
    np.testing.assert_allclose(wide.x_mean, other.x_mean, rtol=0, atol=1e-7 * size)
    np.testing.assert_allclose(wide.x, other.x, rtol=0, atol=1e-6 * size)


@pytest.mark.parametrize("depth", [2, 6.0])
@pytest.mark.parametrize("dtype, close", [(np.float64, 1e-8), (np.float32, 1e-4)])
def test_copies_stay_equal(depth, dtype, close):
    """More coordinates than `m` are active, the copies of two columns."""
    X = np.array([[1, 1], [1, -1]], dtype).repeat(20, axis=1)
    one, y = np.ones(40, dtype), np.array([1, 0.3], dtype)
    problem = dln.LeastSquares(X, y, 0.1 if depth == 2 else 0.0)
    s = np.array([1, 5, 100, 1e4], dtype)
    flow = dln.gradient_flow(dln.Deep(one, one, depth=depth), problem, s, log_eps=-46.0)
    for x, bound in ((flow.x_mean, close), (flow.x, 46 * close)):  # log(1/ε) times as much
        apart = np.ptp(np.asarray(x).reshape(4, 2, 20), axis=2)
        assert np.max(apart) < bound * np.max(np.abs(x))


@pytest.mark.parametrize("far", [1e-3, 1.0, 1e6, 1e200])
@pytest.mark.parametrize("loss", [dln.LeastSquares, dln.Logistic])
def test_both_systems_agree(loss, far):
    """Slopes of `far` on some active coordinates, and of 1e-3 and less on the others."""
    rng = np.random.default_rng(1)
    y = np.sign(Y) if loss is dln.Logistic else Y
    term = dual_term(NETWORKS["UV"](), loss(X, y, 0.1), jnp.asarray(-5.0))
    assert isinstance(term, CoordinateTerm) and term.fit is not None
    assert in_rows(term.fit, term.link)
    x = jnp.asarray(rng.normal(size=D)) * 0.1
    slope = np.exp(rng.uniform(-20, -7, D))
    slope[[3, 20, 40]] = far
    gamma_h = jnp.asarray(2.0)
    a, c = jnp.asarray(rng.normal(size=(2, D)))
    rows = RowSystem(term.fit, x, jnp.zeros(D), jnp.asarray(slope), gamma_h).solve(a, c)
    curvature = term.fit.curvature(x)
    half = term.fit.X if curvature is None else curvature.root_transposed(term.fit.X)
    M = np.asarray(half.T @ half)
    dense = DenseSystem(jnp.asarray(M), jnp.asarray(slope), gamma_h).solve(a, c)
    # By LAPACK with pivots, in which rows of E are scaled out: (E⁻¹ + γhM) EV = a + γhMc.
    change = np.linalg.solve(np.diag(1 / slope) + 2 * M, np.asarray(a) + 2 * M @ np.asarray(c))
    for found in (rows, dense):
        np.testing.assert_allclose(found, change / slope, rtol=1e-9)


@pytest.mark.parametrize("columns", [12, D])  # all of them are chosen, or `m`
@pytest.mark.parametrize("loss", [dln.LeastSquares, dln.Logistic])
def test_the_system_with_rows_as_unknowns(loss, columns):
    """Against LAPACK, eliminated from both unknowns: the definitions of `RowSystem`."""
    rng = np.random.default_rng(2)
    y, d, h = np.sign(Y) if loss is dln.Logistic else Y, columns, 0.7
    network = dln.UV(SHAPE[:d], np.zeros(d))
    term = dual_term(network, loss(X[:, :d], y, 0.1), jnp.asarray(-5.0))
    assert isinstance(term, CoordinateTerm) and term.fit is not None
    fit = term.fit
    both, is_near = rng.uniform(0.1, 3, d), rng.uniform(size=d) < 0.4
    near, far = np.where(is_near, both, 0), np.where(is_near, 0, both)
    x, (a, c) = 0.1 * rng.normal(size=d), rng.normal(size=(2, d))
    b = rng.normal(size=N)
    system = RowSystem(fit, *map(jnp.asarray, (x, near, far, h)))
    found, nu = system.solve_both(*map(jnp.asarray, (a, c, b)))
    F, curvature = np.asarray(fit.X), fit.curvature(jnp.asarray(x))
    H = np.eye(N) if curvature is None else np.diag(curvature.weight)
    known = a + h * F.T @ b
    want = np.linalg.solve(np.eye(N) / h + H @ F * both @ F.T, b + H @ F @ (far * known - c))
    np.testing.assert_allclose(nu, want, rtol=1e-10, atol=1e-12)
    moved = F.T @ want
    unknown = np.where(is_near, -moved, known - moved)
    np.testing.assert_allclose(found, unknown, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("large_start", [False, True])
def test_no_array_has_two_axes_of_columns(large_start):
    """Else 100 000 columns would take 80 GB."""
    d, ones = 3000, np.ones(3000)
    form, log_eps = dln.DualForm(large_start=large_start), jnp.asarray(-9.0)
    network, problem = dln.UV(ones, 0 * ones), lambda X: dln.LeastSquares(X, np.ones(4), 0.1)
    run = lambda X: dln.gradient_flow(
        network, problem(X), np.array([1.0]), log_eps=log_eps, formulation=form, throw=False
    )
    wide = np.zeros((4, d))
    term = form.term(network, problem(wide), log_eps)
    assert isinstance(term, DecayedRowTerm if large_start else CoordinateTerm)
    memory = jax.jit(run).lower(wide).compile().memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < d**2 * 8


def test_it_lowers_for_cuda():
    run = jax.vmap(lambda X, y: _solved("UV")(-9.0, X, y).x_mean)
    program = export.export(jax.jit(run), platforms=["cuda"])
    assert "callback" not in program(np.stack([X, X]), np.stack([Y, Y])).mlir_module()


def test_lanes_and_derivatives():
    """A batch is a loop, a NaN lane fails alone, and both modes agree with differences."""
    run = lambda log_eps: dln.gradient_flow(
        NETWORKS["UV"](), dln.LeastSquares(X, Y, 0.1), S[:4], log_eps=log_eps, throw=False
    )
    some = jnp.array([-3.0, jnp.nan, -40.0])
    batch = jax.vmap(run)(some)
    assert list(names_of(batch.result)) == ["successful", "invalid_eps", "successful"]
    for i in (0, 2):
        np.testing.assert_allclose(batch.x[i], run(some[i]).x, rtol=0, atol=1e-9)
    total = lambda y: jnp.sum(
        dln.gradient_flow(
            NETWORKS["UV"](), dln.LeastSquares(X, y, 0.1), S[3:4], log_eps=-4.0, rtol=1e-11
        ).x_mean[0] * SHAPE
    )  # fmt: skip
    ahead, back = jax.jacfwd(total)(Y), jax.grad(total)(Y)
    np.testing.assert_allclose(ahead, back, rtol=1e-8, atol=1e-8)
    step = 1e-5 * np.eye(N)
    differences = [(total(Y + e) - total(Y - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(ahead, differences, rtol=1e-6, atol=1e-6)
