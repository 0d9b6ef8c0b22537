"""A weight decay that changes with time: flows against the weights, integrated by SciPy from
breakpoint to breakpoint, and a closed form with derivatives; the limit against a process written
here; end points against a root of the stationarity conditions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import nnls, root
from scipy.special import expit

import dlnjax as dln
from dlnjax._results import names_of

N, D = 3, 5
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(N, D)), 2 * rng.normal(size=N)
LABELS = np.sign(rng.normal(size=N))
TIMES, VALUES = np.array([0.8, 1.9]), np.array([0.4, 1.2, 0.0])
S = np.array([0.5, 0.8, 1.3, 1.9, 2.1, 5.0])
BETA, GAMMA = np.ones(D), 0.3 * np.ones(D)
UV = dln.UV(BETA, GAMMA)


def _by_scipy(field, start):
    """States at the times `S` of `field(λ)`, with steps that end at the breakpoints."""
    found, y, s = {}, start, 0.0
    for end in sorted({*TIMES, *S}):
        decay = VALUES[np.searchsorted(TIMES, s, side="right")]
        run = solve_ivp(field(decay), (s, end), y, "DOP853", rtol=1e-13, atol=1e-16)
        y, s = run.y[:, -1], end
        found[end] = y
    return np.stack([found[s] for s in S])


def _weights(log_eps):
    def field(decay):
        def change(s, w):
            u, v = w[:D], w[D : 2 * D]
            pull = X.T @ (Y - X @ (u * v))
            return np.r_[-log_eps / 2 * np.r_[pull * v - decay * u, pull * u - decay * v], u * v]

        return change

    found = _by_scipy(field, np.r_[np.r_[BETA, GAMMA] * np.exp(log_eps / 2), np.zeros(D)])
    return found[:, :D] * found[:, D : 2 * D], found[:, 2 * D :]


FORMS = {
    "dual": {},
    "dual by AutoTsit5": dict(solver=dln.AutoTsit5()),
    "weights": dict(formulation=dln.WeightForm()),
}


@pytest.mark.parametrize("form", FORMS)
def test_flow_against_weights(form):
    logs = np.log([1e-2, 1e-6])

    @jax.jit
    @jax.vmap
    def solve(log_eps):
        problem = dln.LeastSquares(X, Y, dln.Schedule(TIMES, VALUES))
        options: dict[str, Any] = dict(log_eps=log_eps, rtol=1e-9, atol=1e-10, **FORMS[form])
        return dln.gradient_flow(UV, problem, S, **options)

    flow = solve(logs)
    for lane, log_eps in enumerate(logs):
        x, z = _weights(log_eps)
        # Some hundred times rtol. A step across a breakpoint, or a field from before it, errs by
        # 1e-5 and more.
        np.testing.assert_allclose(flow.x[lane], x, atol=1e-7)
        np.testing.assert_allclose(flow.z[lane], z, atol=1e-7)
        dual = S[:, None] * (Y @ X) - z @ (X.T @ X)
        np.testing.assert_allclose(flow.dual[lane], dual, atol=1e-6)


def test_flow_of_another_loss_and_network():
    log_eps = np.log(1e-4)
    field = lambda decay: (
        lambda s, u: -log_eps / 2 * u * (X.T @ (LABELS * expit(-LABELS * (X @ u**2))) - decay)
    )
    u = _by_scipy(field, BETA * np.exp(log_eps / 2))
    problem = dln.Logistic(X, LABELS, dln.Schedule(TIMES, VALUES))
    flow = dln.gradient_flow(dln.USquared(BETA), problem, S, eps=1e-4, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(flow.x, u**2, atol=1e-7 * np.max(u**2), rtol=1e-6)


LOG_EPS = -8.0


def _closed(times, values, s):
    """`USquared` on the identity: `q' = 4q(r − λ − q)` in `t = s log(1/ε)/4`, with `r = 1.5`."""
    q, begin = jnp.exp(LOG_EPS), 0.0
    for k in range(3):
        end = s if k == 2 else times[k]
        rate = 1.5 - values[k]
        grown = jnp.exp(-LOG_EPS * rate * (end - begin))
        q, begin = rate * q * grown / (rate + q * (grown - 1)), end
    return q


def test_derivatives_against_the_closed_form():
    """In the breakpoints, the values and the time: first ones in both modes, and a second one."""

    def flow(times, values, s):
        problem = dln.LeastSquares(jnp.ones((1, 1)), jnp.array([1.5]), dln.Schedule(times, values))
        options: dict[str, Any] = dict(log_eps=LOG_EPS, rtol=1e-10, atol=1e-12, throw=False)
        return dln.gradient_flow(dln.USquared(jnp.ones(1)), problem, s[None], **options).x[0, 0]

    at = jnp.array([0.4, 0.7]), jnp.array([0.3, 0.8, 0.1]), jnp.asarray(0.9)
    along = jnp.array([1.0, -0.4]), jnp.array([0.2, 0.5, -0.3]), jnp.asarray(0.3)
    reverse = lambda fn: jax.tree.leaves(jax.jit(jax.value_and_grad(fn, (0, 1, 2)))(*at))
    for ours, exact in zip(reverse(flow), reverse(_closed), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-7)
    first = lambda fn: lambda *at: jax.jvp(fn, at, along)[1]
    both = lambda fn: jax.jit(lambda: jax.jvp(first(fn), at, along))()
    for ours, exact in zip(both(flow), both(_closed), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-6)


def _minimiser(F, free, decay):
    """The minimiser of `½‖Fq − y‖² + λ⟨1, q⟩` over `q ≥ 0` supported on `free`, by SciPy."""
    q, A = np.zeros(F.shape[1]), F[:, free]
    if A.shape[1]:
        L = np.linalg.cholesky(A.T @ A)
        q[free] = nnls(L.T, np.linalg.solve(L, A.T @ Y - decay))[0]
    return q


def _process(times, values, s_end):
    """The limit: the times at which the plateau changes, and the plateaus."""
    F = np.hstack([X, -X])
    w, s, knots, plateaus = np.ones(2 * D), 0.0, [], [np.zeros(D)]
    while True:
        decay = values[np.searchsorted(times, s, side="right")]
        stop = min([t for t in times if t > s] + [s_end])
        q = _minimiser(F, w == 0, decay)
        x = q[:D] - q[D:]
        if np.max(np.abs(x - plateaus[-1])) > 1e-12:
            knots, plateaus = [*knots, s], [*plateaus, x]
        speed = decay - F.T @ (Y - F @ q)
        speed[q > 0] = 0
        waits = np.where((w > 0) & (speed < 0), w / np.where(speed < 0, -speed, 1), np.inf)
        step = min(np.min(waits), stop - s)
        w = np.maximum(w + step * speed, 0)
        if step == np.min(waits):
            w[np.argmin(waits)] = 0
        s = stop if step == stop - s else s + step
        if s >= s_end:
            return np.array(knots), np.array(plateaus[1:])


# Decay that is raised, off for a while, above all correlations, and that ends.
SCHEDULES = [
    ([0.8, 1.9], [0.4, 1.2, 0.0]),
    ([0.5, 3.0], [0.0, 0.9, 0.3]),
    ([1.5, 1.8], [0.1, 50.0, 0.05]),
]


def test_limit_against_a_process_of_its_own():
    limits = jax.jit(
        jax.vmap(lambda t, v: dln.limit_flow(UV, dln.LeastSquares(X, Y, dln.Schedule(t, v)), 6.0))
    )(*(jnp.array(column) for column in zip(*SCHEDULES, strict=True)))
    assert jnp.all(limits.result == dln.RESULTS.successful)
    for lane, (times, values) in enumerate(SCHEDULES):
        knots, plateaus = _process(np.array(times), np.array(values), 6.0)
        limit = jax.tree.map(lambda v, lane=lane: v[lane], limits)
        count = int(limit.num_jumps)
        np.testing.assert_allclose(limit.jumps[:count], knots, rtol=1e-12)
        np.testing.assert_allclose(limit.slopes[:count], plateaus, atol=1e-12)
        z = np.sum(np.diff(np.append(knots, 6.0))[:, None] * plateaus, axis=0)
        np.testing.assert_allclose(limit.z(6.0), z, rtol=1e-12, atol=1e-12)
        assert np.all(np.isnan(limit.x_mean(6.1)))
        decayed = dln.LeastSquares(X, Y, dln.Schedule(times, values))
        np.testing.assert_allclose(limit.dual(decayed, 6.0), 6 * Y @ X - X.T @ X @ z, atol=1e-11)


def test_derivatives_of_the_limit():
    """Of jumps and averages in breakpoints, values and data, against differences."""

    def at(t, v, y):
        limit = dln.limit_flow(UV, dln.LeastSquares(X, y, dln.Schedule(t, v)), throw=False)
        return limit.jumps, limit.x_mean(4.0), limit.plateau(4.0)

    args = tuple(map(jnp.asarray, (TIMES, np.array([0.4, 1.2, 0.1]), Y)))
    along = jnp.array([0.3, -0.5]), jnp.array([1.0, 0.4, -0.7]), jnp.array([0.2, 1.0, -0.3])
    moved = lambda h: jax.tree.map(lambda a, b: a + h * b, args, along)
    at = jax.jit(at)
    h = 1e-6
    forward = jax.jit(lambda *args: jax.jvp(at, args, along)[1])(*args)
    J = jax.jit(jax.jacrev(at, (0, 1, 2)))(*args)
    for part, (plus, minus) in enumerate(zip(at(*moved(h)), at(*moved(-h)), strict=True)):
        want = (plus - minus) / (2 * h)
        # The rounding of a difference, 1e-16/h, times the sizes here.
        np.testing.assert_allclose(forward[part], want, atol=1e-8)
        back = sum(j @ a for j, a in zip(J[part], along, strict=True))
        np.testing.assert_allclose(back, want, atol=1e-8)


def test_the_limit_of_another_loss():
    # One coordinate: the jump at 1/(|ℓ'(0)| − λ), plateaus where ℓ'(x) = −λ, by a root.
    x, y = np.array([[1.0], [2.0], [0.5]]), np.array([1.0, -1.0, 1.0])
    slope = lambda a: float(np.sum(-y * x[:, 0] * expit(-y * x[:, 0] * a)))
    problem = dln.Logistic(x, y, dln.Schedule([20.0, 30.0], [0.1, 0.2, 0.0]))
    limit = dln.limit_flow(dln.UV(jnp.ones(1), jnp.zeros(1)), problem)
    sign = -np.sign(slope(0.0))
    plateau = lambda decay: root(lambda a: slope(a[0]) + sign * decay, [0.0], tol=1e-14).x[0]
    np.testing.assert_allclose(limit.jumps[:3], [1 / (abs(slope(0.0)) - 0.1), 20, 30], rtol=1e-12)
    want = [plateau(decay) for decay in (0.1, 0.2, 0.0)]
    np.testing.assert_allclose(limit.slopes[:3, 0], want, rtol=1e-10)
    np.testing.assert_allclose(limit.z(35.0), np.diff([*limit.jumps[:3], 35]) @ want, rtol=1e-10)


@pytest.mark.parametrize("eps", [0.1, 1e-3])
def test_the_end_is_that_of_a_smaller_initialisation(eps):
    # q^± = q^±(0) e^{−ΛL ± LXᵀν}: with Λ = 1.64 the start is ε^{1 + Λ} ((β ± γ)/2)², and the end is
    # where Xx = y. By continuation in the start, from 1 down.
    log_start = np.log(eps) * (1 + float(TIMES @ [0.4 - 1.2, 1.2]))
    x, nu, shapes = BETA, np.zeros(N), ((BETA + GAMMA) ** 2 / 4, (BETA - GAMMA) ** 2 / 4)
    for log_scale in np.linspace(0, log_start, 80):
        q = lambda nu, at=log_scale: [
            shape * np.exp(at + sign * X.T @ nu)
            for shape, sign in zip(shapes, (1, -1), strict=True)
        ]
        off = lambda nu, q=q: X @ np.subtract(*q(nu)) - Y
        nu = root(off, nu, jac=lambda nu, q=q: (X * np.add(*q(nu))) @ X.T, tol=1e-15).x
        x = np.subtract(*q(nu))
    problem = dln.LeastSquares(X, Y, dln.Schedule(TIMES, VALUES))
    end = dln.end_point(UV, problem, eps=eps)
    np.testing.assert_allclose(X @ x, Y, rtol=1e-10)
    np.testing.assert_allclose(end.x, x, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(end.dual, X.T @ nu / -np.log(eps), rtol=1e-8)


def test_other_ends():
    problem = lambda last: dln.LeastSquares(X, Y, dln.Schedule([1.0], [0.7, last]))
    # A positive last value: the lasso at it, by its optimality conditions.
    x = np.asarray(dln.end_point(UV, problem(0.3), eps=1e-3).x)
    rest = X.T @ (Y - X @ x)
    np.testing.assert_allclose(rest[x != 0], 0.3 * np.sign(x[x != 0]), atol=1e-12)
    assert np.all(np.abs(rest) <= 0.3 + 1e-12)
    traced = jax.jit(lambda last: dln.end_point(UV, problem(last), eps=1e-3).x)
    np.testing.assert_allclose(traced(0.3), x, atol=1e-12)
    # A start of weights (0, 2) after a total decay of 0.7 has (0.7, 2.7): its weighted 1-norm, by
    # the limit process, which has no such formula.
    x0 = jnp.zeros(D).at[0].set(1.0)
    network = dln.Pretrained(UV, x0)
    end = dln.limit_point(network, problem(0.0)).x
    last = dln.limit_flow(network, problem(0.0)).plateau(1e6)
    np.testing.assert_allclose(end, last, atol=1e-12)


def test_what_is_refused():
    decay = dln.Schedule([1.0], [0.1, 0.0])
    problem = dln.LeastSquares(X, Y, decay)
    for fn in (
        lambda: dln.lasso_path(problem),
        lambda: dln.lasso(problem, 1.0),
        lambda: dln.basis_pursuit(problem),
        lambda: problem.lasso_objective(jnp.zeros(D), 1.0),
        lambda: dln.gradient_flow(dln.Linear(BETA), problem, S, eps=0.1),
        lambda: dln.end_point(dln.Linear(BETA), problem, eps=0.1),
        lambda: dln.gradient_flow(UV, problem, S, eps=0.1, formulation=dln.MomentumForm(0.1)),
    ):
        with pytest.raises(TypeError, match="a `Schedule`"):
            fn()
    with pytest.raises(ValueError, match="weight decay"):
        dln.gradient_flow(dln.Deep(BETA, BETA, depth=3), problem, S, eps=0.1)
    bad = {
        "one entry more": ([1.0], [0.1]),
        "positive and increasing": ([2.0, 1.0], [0.1, 0.2, 0.0]),
        r"breakpoints\[0\] = 0": ([0.0], [0.1, 0.2]),
        "non-negative, got -0.1": ([1.0], [0.1, -0.1]),
        "nan": ([jnp.nan], [0.1, 0.0]),
    }
    for match, arguments in bad.items():
        with pytest.raises(ValueError, match=match):
            dln.Schedule(*arguments)


def test_in_another_dtype_and_nan():
    decay = dln.Schedule([1.0, 1.0 + 1e-9], [0.1, 0.2, 0.0])
    with pytest.raises(ValueError, match="positive and increasing"):
        dln.LeastSquares(X.astype(np.float32), Y.astype(np.float32), decay)
    assert np.isnan(decay(np.nan)) and np.isnan(decay.integral(np.nan))


def test_bad_lanes_fail_alone():
    times = jnp.array([[0.8, 1.9], [1.9, 0.8], [0.8, jnp.nan]])
    want = ["successful", "invalid_decay", "invalid_decay"]

    @jax.jit
    @jax.vmap
    def run(times):
        problem = dln.LeastSquares(X, Y, dln.Schedule(times, VALUES))
        flow = dln.gradient_flow(UV, problem, S, eps=1e-2, throw=False)
        limit = dln.limit_flow(UV, problem, throw=False)
        end = dln.end_point(UV, problem, eps=1e-2, throw=False)
        return (flow.result, flow.x), (limit.result, limit.slopes), (end.result, end.x)

    for result, values in run(times):
        assert names_of(result).tolist() == want
        assert np.all(np.isnan(values[1:])) and not np.all(np.isnan(values[0]))


def test_the_integral():
    decay = dln.Schedule([1.0, 3.0], [0.5, 0.0, 2.0])
    s = jnp.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, jnp.inf])
    np.testing.assert_array_equal(decay.integral(s), [0, 0.25, 0.5, 0.5, 0.5, 2.5, np.inf])
    np.testing.assert_array_equal(decay(s), [0.5, 0.5, 0, 0, 2, 2, 2])
    assert dln.Schedule([1.0], [1.0, 0.0]).integral(jnp.inf) == 1
