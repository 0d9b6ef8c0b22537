"""Depth 1: the linear model itself, whose flow is a linear equation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import expm

import dlnjax as dln

FORMS = {"dual": dln.DualForm(), "weights": dln.WeightForm()}
S = np.array([0, 0.1, 1, 10, 1e3])


def _exact(X, y, decay, start, s) -> tuple[np.ndarray, np.ndarray]:
    """`x` and its integral, by the matrix exponential."""
    d = len(start)
    A = np.zeros((2 * d + 1, 2 * d + 1))
    A[:d, :d], A[:d, -1] = -(X.T @ X + decay * np.eye(d)), X.T @ y
    A[d : 2 * d, :d] = np.eye(d)
    v = expm(s * A) @ np.concatenate([start, np.zeros(d), [1]])
    return v[:d], v[d : 2 * d]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n, decay", [(6, 0.0), (3, 0.0), (3, 0.3)])
def test_against_the_matrix_exponential(form, n, decay):
    rng = np.random.default_rng(n)
    X, y, u = rng.normal(size=(n, 5)), rng.normal(size=n), rng.normal(size=5)
    scales = np.array([1.0, 1e-6, 1e6])  # of y and u: the flow is linear in them

    @jax.jit
    @jax.vmap
    def solve(scale):
        problem = dln.LeastSquares(X, scale * y, decay)
        network = dln.Linear(2 * scale * u)
        return dln.gradient_flow(network, problem, S, eps=0.5, formulation=FORMS[form], throw=False)

    flow = solve(scales)
    assert np.all(np.asarray(flow.result == dln.RESULTS.successful))
    x, z = (np.stack(v) for v in zip(*(_exact(X, y, decay, u, s) for s in S), strict=True))
    unit = scales[:, None, None]
    # Steps are to 1e-7, and Kvaerno5 takes some seventy.
    np.testing.assert_allclose(flow.x / unit, np.broadcast_to(x, flow.x.shape), atol=2e-6)
    error = np.abs(flow.z / unit - z[None]) / (1 + np.abs(z))[None]
    assert error.max() < 2e-6
    # Where it ends: closest to the start, or ridge regression.
    if decay:
        end = np.linalg.solve(X.T @ X + decay * np.eye(5), X.T @ y)
    else:
        end = u + np.linalg.pinv(X) @ (y - X @ u)
    gap = np.linalg.svd(X)[1][-1] ** 2 + decay
    if gap * S[-1] > 30:
        np.testing.assert_allclose(flow.x[0, -1], end, atol=2e-6)


def test_starts_at_0_and_below_the_range_of_the_dtype():
    X, y = np.eye(3), np.array([1.0, 2, 3])
    for network, log_eps in ((dln.Linear(np.zeros(3)), -1.0), (dln.Linear(np.ones(3)), -2000.0)):
        for form in FORMS.values():
            flow = dln.gradient_flow(
                network, dln.LeastSquares(X, y), np.array([1.0]), log_eps=log_eps, formulation=form
            )
            np.testing.assert_allclose(flow.x[0], (1 - np.exp(-1)) * y, rtol=1e-6)


def _end_of(point, decay) -> np.ndarray:
    """NumPy's end point from `u` for `X = AB`."""
    A, B, y, u = point
    X = A @ B
    if decay > 0:
        return np.linalg.solve(X.T @ X + decay * np.eye(X.shape[1]), X.T @ y)
    return u + np.linalg.pinv(X, rcond=1e-10) @ (y - X @ u)


@pytest.mark.parametrize("is_quadratic", [False, True])
@pytest.mark.parametrize("n, k", [(7, 5), (3, 3), (7, 3)])
def test_where_it_ends(n, k, is_quadratic):
    # Full rank, more coordinates than rows, low rank; λ is traced. Derivatives of first and second
    # order are along changes that keep the rank.
    rng, d, step = np.random.default_rng(n), 5, 1e-4
    point = (rng.normal(size=(n, k)), rng.normal(size=(k, d)), rng.normal(size=n))
    point = (*point, rng.normal(size=d))
    along = tuple(rng.normal(size=v.shape) for v in point)
    decays, turns = np.array([0.0, 0.4]), np.array([0.0, 0.3])

    def end(A, B, y, u, decay):
        X = A @ B
        problem = dln.LeastSquares(X, y, decay)
        if is_quadratic:
            problem = dln.Quadratic(X.T @ X, X.T @ y, weight_decay=decay)
        return dln.end_point(dln.Linear(2 * u), problem, eps=0.5, throw=False)

    @jax.jit
    @jax.vmap
    def run(decay, turn):
        values, tangents = (*point, decay), (*along, turn)
        x = lambda *args: end(*args).x
        first = lambda *args: jax.jvp(x, args, tangents)[1]
        backward = jax.grad(lambda *args: jnp.vdot(x(*args), W), argnums=range(5))(*values)
        terms = [g * t for g, t in zip(backward, tangents, strict=True)]
        backward = sum(jnp.sum(v) for v in terms), sum(jnp.sum(jnp.abs(v)) for v in terms)
        return end(*values), first(*values), jax.jvp(first, values, tangents)[1], backward

    W = jnp.cos(jnp.arange(5.0))
    found, first, second, (backward, terms) = run(decays, turns)
    assert np.all(np.asarray(found.result == dln.RESULTS.successful))
    for i, (decay, turn) in enumerate(zip(decays, turns, strict=True)):
        want, ahead, behind = (
            _end_of([v + h * t for v, t in zip(point, along, strict=True)], decay + h * turn)
            for h in (0, step, -step)
        )
        # The condition number of X, up to 30, to the power of the order.
        np.testing.assert_allclose(found.x[i], want, rtol=1e-11, atol=1e-11)
        slope, curve = (ahead - behind) / (2 * step), (ahead - 2 * want + behind) / step**2
        np.testing.assert_allclose(first[i], slope, rtol=1e-5, atol=1e-5 * np.abs(slope).max())
        np.testing.assert_allclose(second[i], curve, rtol=1e-3, atol=1e-3 * np.abs(curve).max())
        # To rounding of the terms, times the square of the condition number.
        np.testing.assert_allclose(backward[i], np.vdot(first[i], W), atol=1e-12 * float(terms[i]))
        gradient = (point[0] @ point[1]).T @ (point[2] - point[0] @ point[1] @ want)
        if decay:
            assert np.all(np.asarray(found.dual[i]) == np.sign(gradient) * np.inf)
        else:
            np.testing.assert_allclose(found.dual[i], want - point[3], atol=1e-11)


def _numpy_end(X, y, decay, u) -> np.ndarray:
    if decay > 0:
        return np.linalg.solve(X.T @ X + decay * np.eye(X.shape[1]), X.T @ y)
    return u + np.linalg.pinv(X, rcond=1e-6) @ (y - X @ u)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_in_any_units_of_the_data(dtype):
    # X → cX with λ → c²λ, and y → c'y: value, and derivative in y, λ and X. The other
    # design has a low rank and a column of 0.
    rng, d = np.random.default_rng(1), 4
    designs = [rng.normal(size=(6, d)), rng.normal(size=(3, d)).repeat(2, axis=0)]
    designs[1][:, 1] = 0
    y, along, u = rng.normal(size=6), rng.normal(size=6), rng.normal(size=d)
    powers = [-12, -10, -6, 0, 6, 10, 12] + ([-80, 80] if dtype == np.float64 else [])
    cases = [(X, decay, p) for X in designs for decay in (0.0, 0.3) for p in powers]
    X, decay, power = (np.stack(v) for v in zip(*cases, strict=True))
    c = 10.0**power
    inputs = (c[:, None, None] * X, np.tile(y, (len(c), 1)), c**2 * decay)

    @jax.jit
    @jax.vmap
    def run(X, y, decay, along, unit):
        def end(X, y, decay):
            return dln.end_point(
                dln.Linear(2 * jnp.asarray(u, dtype) / unit),
                dln.LeastSquares(X, y, decay),
                eps=0.5,
                throw=False,
            )

        x = lambda *args: end(*args).x
        zero = jnp.zeros_like(y)
        in_y = jax.jvp(x, (X, y, decay), (0 * X, along, 0 * decay))[1]
        in_X = jax.jvp(x, (X, y, decay), (X, zero, 2 * decay))[1]  # along X → cX
        return end(X, y, decay), in_y, in_X

    found, in_y, in_X = run(*(v.astype(dtype) for v in (*inputs, np.tile(along, (len(c), 1)), c)))
    assert np.all(np.asarray(found.result == dln.RESULTS.successful))
    assert found.x.dtype == dtype
    rtol = 2e3 * np.finfo(dtype).eps  # κ(X)², up to 60, and rounding of the data
    for i, (X, decay, _) in enumerate(cases):
        want, ahead, none = (_numpy_end(X, v, decay, u) for v in (y, y + along, 0 * y))
        slope = ahead - want
        for value, truth in (
            (found.x[i], want),
            (in_y[i], slope),
            # x is of degree −1 in X, but for what is left of the start.
            (in_X[i], -(want - none)),
        ):
            error = np.abs(np.asarray(value, float) * c[i] - truth).max()
            assert error <= rtol * (np.abs(want) + np.abs(slope)).max(), (i, error)


def test_ends_where_nothing_is_left_but_rounding():
    # y orthogonal to the columns but for rounding: the target is 0. A column of 0 stays where it
    # started, and at 0 with weight decay. And columns of other units.
    rng = np.random.default_rng(2)
    X = rng.normal(size=(200, 3, 2))
    y = rng.normal(size=(200, 3))
    y = y - np.stack([a @ np.linalg.pinv(a) @ b for a, b in zip(X, y, strict=True)])
    zero = X * np.array([1.0, 0.0])

    other = rng.normal(size=y.shape)

    @jax.jit
    @jax.vmap
    def run(X, y, decay):
        problem = dln.LeastSquares(X, y, decay)
        quadratic = dln.Quadratic(X.T @ X, X.T @ y, weight_decay=decay)
        end = lambda problem: dln.end_point(network, problem, eps=0.5, throw=False)
        return end(problem), end(quadratic), dln.limit_point(network, problem, throw=False)

    network = dln.Linear(2 * jnp.ones(2))
    cases = [(a, b, c) for a in (X, zero) for b in (y, other) for c in (0.0, 0.5)]
    inputs = [(a, b, np.full(len(a), c)) for a, b, c in cases]
    X, y, decay = (np.concatenate(v) for v in zip(*inputs, strict=True))
    ends = run(X, y, decay)
    for end, start in zip(ends, (1, 1, 0), strict=True):
        assert np.all(np.asarray(end.result == dln.RESULTS.successful))
        stays = np.where(decay > 0, 0, start)[:, None]
        assert np.all(np.where(X[:, 0] == 0, np.asarray(end.x) == stays, True))
    # In each coordinate, of the condition number of X, at most some 1e4.
    is_left = np.all(np.isin(y, other), axis=1)
    stays = np.where(X[:, 0] == 0, np.where(decay > 0, 0, 1)[:, None], 0)
    assert np.abs(np.asarray(ends[0].x) - stays)[~is_left].max() < 1e-11


def test_masked_shapes_that_are_not_finite_have_no_derivatives():
    X, y = np.array([[1.0, 0.5], [0.2, 1.0]]), np.array([1.0, 2])

    @jax.jit
    @jax.vmap
    def run(u):
        def total(X, u):
            network, problem = dln.Linear(u), dln.LeastSquares(X, y)
            end = dln.end_point(network, problem, eps=0.5, throw=False)
            steps = dln.train(network, problem, optax.sgd(0.1), eps=0.5, steps=3, throw=False)
            results = jnp.stack([v.result == dln.RESULTS.invalid_shape for v in (end, steps)])
            parts = jnp.stack([jnp.sum(v.x) for v in (end, steps)])
            return jnp.sum(jnp.where(results, 0, parts)), results

        return jax.grad(total, argnums=(0, 1), has_aux=True)(X, u)

    gradients, is_bad = run(np.array([[1.0, 1], [np.nan, 1], [np.inf, 1]]))
    assert is_bad.tolist() == [[False] * 2, [True] * 2, [True] * 2]
    for gradient in gradients:
        assert np.all(np.isfinite(gradient)) and not np.any(gradient[1:])


def test_the_derivative_of_the_limit_in_the_weight_decay():
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(3, 5)), rng.normal(size=3)

    def x(decay):
        return dln.limit_point(dln.Linear(jnp.ones(5)), dln.LeastSquares(X, y, decay)).x

    first, second = jax.jit(lambda v: (jax.jacfwd(x)(v), jax.jacfwd(jax.jacrev(x))(v)))(0.0)
    P = np.linalg.pinv(X.T @ X)
    np.testing.assert_allclose(first, -P @ P @ X.T @ y, rtol=1e-11)
    np.testing.assert_allclose(second, 2 * P @ P @ P @ X.T @ y, rtol=1e-11)


def test_the_least_norm_and_what_is_not_there():
    rng = np.random.default_rng(0)
    X, y, network = rng.normal(size=(3, 5)), rng.normal(size=3), dln.Linear(jnp.ones(5))
    limit = dln.limit_point(network, dln.LeastSquares(X, y))
    np.testing.assert_allclose(limit.x, np.linalg.lstsq(X, y)[0], atol=1e-13)
    np.testing.assert_allclose(limit.dual, limit.x, atol=1e-13)
    with pytest.raises(TypeError, match="dual variable"):
        dln.limit_flow(network, dln.LeastSquares(X, y))

    # Of lanes that are invalid alone, in value and gradient.
    @jax.jit
    @jax.vmap
    def run(y):
        def total(y):
            end = dln.limit_point(network, dln.LeastSquares(X, y), throw=False)
            good = end.result == dln.RESULTS.successful
            return jnp.sum(jnp.where(good, end.x, 0)), end

        return jax.value_and_grad(total, has_aux=True)(y)

    (_, end), gradient = run(np.stack([y, np.full(3, np.nan)]))
    assert list(end.result == dln.RESULTS.successful) == [True, False]
    assert np.isnan(end.x[1]).all() and not np.any(gradient[1])
    np.testing.assert_allclose(gradient[0], np.linalg.pinv(X).T @ np.ones(5), rtol=1e-12)


def test_an_eps_that_the_weights_cannot_hold_is_refused():
    problem = dln.LeastSquares(np.eye(3), np.ones(3))
    network = dln.UV(np.ones(3), np.zeros(3))
    s = np.array([1.0])
    with pytest.raises(ValueError, match="too small for weights of UV.*DualForm"):
        dln.gradient_flow(network, problem, s, eps=1e-12, formulation=dln.WeightForm())
    with pytest.raises(ValueError, match="too small for weights of UV"):
        dln.train(network, problem, optax.sgd(1e-3), eps=1e-12, steps=1)

    @jax.jit
    def traced(eps):
        flow = dln.gradient_flow(
            network, problem, s, eps=eps, formulation=dln.WeightForm(), throw=False
        )
        return flow.result, flow.x

    result, x = traced(1e-12)
    assert result == dln.RESULTS.invalid_eps and np.isnan(x).all()
    result, x = traced(1e-10)
    assert result == dln.RESULTS.successful and np.isfinite(x).all()


def test_the_least_eps_that_the_weights_hold():
    # There the weight form has errors of at most some eps^{1/3}, also where a coordinate that has
    # grown turns back. The truth is the dual form in float64, whose variables keep their digits.
    rng, lanes, d = np.random.default_rng(0), 24, 4
    X, y = rng.normal(size=(lanes, 3, d)), rng.normal(size=(lanes, 3))
    y = y / np.abs(np.einsum("lij,li->lj", X, y)).max(axis=1, keepdims=True)
    s = np.array([1, 4, 16])

    def solve(form, dtype):
        @jax.jit
        @jax.vmap
        def run(X, y, log_eps):
            network, problem = dln.UV(np.ones(d), np.zeros(d)), dln.LeastSquares(X, y)
            times = jnp.asarray(s, X.dtype)
            return dln.gradient_flow(
                network,
                problem,
                times,
                log_eps=log_eps,
                formulation=form,
                max_steps=16384,
                throw=False,
            )

        return lambda X, y, least: run(X.astype(dtype), y.astype(dtype), least.astype(dtype))

    dual = solve(dln.DualForm(), np.float64)
    for dtype in (np.float32, np.float64):
        least = dln.UV(np.ones(d), np.zeros(d)).least_log_eps(dtype)
        least = np.full(lanes, least * (1 - 1e-6))  # whose float32 is not below
        want = dual(X, y, least)
        found = solve(dln.WeightForm(), dtype)(X, y, least)
        good = np.asarray(found.result == dln.RESULTS.successful)
        # In float32 some lanes say that their steps are too many for their tolerance.
        assert np.all(np.asarray(want.result == dln.RESULTS.successful))
        assert np.mean(good) >= (1 if dtype == np.float64 else 0.5)
        truth = np.asarray(want.x)
        error = np.abs(np.asarray(found.x, float) - truth).max(axis=(1, 2))
        error = error / np.abs(truth).max(axis=(1, 2))
        assert error[good].max() < np.finfo(dtype).eps ** (1 / 3)
        falls = np.abs(truth[:, :-1]) - np.abs(truth[:, 1:])
        assert np.any(falls[good].max(axis=(1, 2)) > 0.1)
