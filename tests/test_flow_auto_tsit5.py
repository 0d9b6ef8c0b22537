"""AutoTsit5: its steps against diffrax's Tsit5, its switch on flows in closed form."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln
from dlnjax._flow import auto_tsit5
from dlnjax._flow.terms.dual import dual_term

RNG = np.random.default_rng(0)


def test_the_interval_of_stability():
    tableau = diffrax.Tsit5.tableau
    A = np.zeros((7, 7))
    for i, row in enumerate(tableau.a_lower):
        A[i + 1, : len(row)] = row
    z = np.linspace(-0.01, -4, 4000)
    solved = np.linalg.solve(np.eye(7) - z[:, None, None] * A, np.ones((4000, 7, 1)))[:, :, 0]
    growth = np.abs(1 + z * (solved @ np.asarray(tableau.b_sol)))
    assert -z[np.argmax(growth > 1)] == pytest.approx(auto_tsit5.STABLE, abs=0.01)


def test_conditions_of_the_second_estimate():
    tableau, e = diffrax.Tsit5.tableau, auto_tsit5._SECOND
    A = np.zeros((7, 7))
    for i, row in enumerate(tableau.a_lower):
        A[i + 1, : len(row)] = row
    c = A.sum(axis=1)
    # Order 3, and of a field that depends on time only, order 4: in exact arithmetic these are 0.
    np.testing.assert_allclose(np.stack([c**0, c, c**2, c**3, A @ c]) @ e, 0, atol=1e-14)
    assert e @ np.asarray(tableau.b_error) == pytest.approx(0, abs=1e-14)
    assert np.linalg.norm(e) == pytest.approx(np.linalg.norm(tableau.b_error))


@pytest.mark.parametrize("rows", [3, 6])
def test_a_step_is_that_of_diffrax(rows):
    X, y = RNG.normal(size=(rows, 5)), RNG.normal(size=rows)
    problem, network = dln.LeastSquares(X, y), dln.UV(jnp.ones(5), jnp.zeros(5))
    term = dual_term(network, problem, jnp.asarray(-3.0))
    h = 0.05

    def run(solver):
        y0 = term.initial()
        for t in (0.0, h):
            state = solver.init(term, t, t + h, y0, None)
            y1, error, dense, _, _ = solver.step(
                term, jnp.asarray(t), jnp.asarray(t + h), y0, None, state, False
            )
            y0 = y1
        inner = solver.interpolation_cls(t0=h, t1=2 * h, **dense)
        return y1, error, [inner.evaluate(h * (1 + theta)) for theta in (0.0, 0.3, 0.8, 1.0)]

    ours, error, inner = jax.jit(lambda: run(dln.AutoTsit5()))()
    theirs, raw, other = jax.jit(lambda: run(diffrax.Tsit5(scan_kind="lax")))()
    # The controller sees the error through the term.
    error_of_theirs = term.error(theirs, raw)
    for a, b in zip(jax.tree.leaves((ours, inner)), jax.tree.leaves((theirs, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(error[0], error_of_theirs[0], rtol=1e-5, atol=1e-13)
    # That of `z` may be the second estimate.
    assert np.all(error[1] >= (1 - 1e-5) * error_of_theirs[1] - 1e-13)
    np.testing.assert_allclose(error[1], error_of_theirs[1], rtol=1e-5, atol=1e-11)


@eqx.filter_jit
def _of_identity(log_eps, r, s, solver):
    """Flows of `USquared` on the identity, one lane each."""
    network = dln.USquared(jnp.ones(r.shape[1]))

    def one(log_eps, r):
        problem = dln.LeastSquares(jnp.eye(r.size), r)
        return dln.gradient_flow(network, problem, s, log_eps=log_eps, solver=solver, throw=False)

    return jax.vmap(one)(log_eps, r)


def _exact(log_eps, r, s):
    """q' = 4q(r − q) in t = s log(1/ε)/4, from ε: a logistic function."""
    log_odds = -log_eps[:, None, None] * r[:, None] * s[None, :, None] + log_eps[:, None, None]
    with np.errstate(over="ignore"):
        return r[:, None] / (1 + (r[:, None] - np.exp(log_eps)[:, None, None]) * np.exp(-log_odds))


def test_flows_in_closed_form_and_who_integrates_them():
    # Plateaus are long: at log ε = −3000 Tsit5 alone would take 4 · 3000 / 3.5 steps.
    log_eps, s = np.array([-5.0, -40.0, -400.0, -3000.0]), np.array([0.4, 1.5, 4.0])
    r = np.tile(np.array([3.0, 1.0, 0.4]), (4, 1))
    flow = _of_identity(jnp.asarray(log_eps), jnp.asarray(r), jnp.asarray(s), dln.AutoTsit5())
    assert np.all(flow.result == dln.RESULTS.successful)
    # An error of 1e-7 in w is log(1/ε) times that in x.
    atol = 1e-6 * (1 + -log_eps / 10)[:, None, None]
    away = np.abs(np.asarray(flow.x) - _exact(log_eps, r, s))
    assert np.all(away < atol), away.max(axis=(1, 2))
    steps = np.asarray(flow.stats["num_steps"])
    assert steps[0] < 120 and np.all(steps[2:] < 400), steps
    # Lanes that wait for each other take the steps that they take alone.
    for i in range(4):
        alone = _of_identity(
            jnp.asarray(log_eps[[i]]), jnp.asarray(r[[i]]), jnp.asarray(s), dln.AutoTsit5()
        )
        assert alone.stats["num_steps"][0] == steps[i]
        np.testing.assert_allclose(alone.x[0], flow.x[i], rtol=1e-9, atol=1e-12)


def test_derivatives():
    r, s = jnp.array([3.0, 1.0, 0.4]), jnp.array([0.4, 1.5, 4.0])

    def mean(log_eps, r):
        flow = _of_identity(log_eps[None], r[None], s, dln.AutoTsit5())
        return jnp.sum(jnp.sin(flow.x_mean))

    for log_eps in (-20.0, -300.0):
        at, along = (jnp.asarray(log_eps), r), (jnp.asarray(1.0), jnp.array([0.3, -0.2, 0.1]))
        shifted = lambda h, at=at, along=along: mean(
            *(a + h * b for a, b in zip(at, along, strict=True))
        )
        difference = (shifted(1e-3) - shifted(-1e-3)) / 2e-3
        gradient = jax.grad(mean, (0, 1))(*at)
        forward = jax.jvp(mean, at, along)[1]
        backward = sum(jnp.vdot(g, v) for g, v in zip(gradient, along, strict=True))
        np.testing.assert_allclose(forward, difference, rtol=1e-3)
        np.testing.assert_allclose(backward, forward, rtol=1e-9)


def test_default_above_rank_24():
    small, large = (dln.LeastSquares(np.eye(n), np.ones(n)) for n in (24, 25))
    assert isinstance(dln.DualForm().default_solver(small), dln.Rodas5P)
    assert isinstance(dln.DualForm().default_solver(large), dln.AutoTsit5)
    with pytest.raises(ValueError, match="dual form only"):
        dln.gradient_flow(
            dln.UV(np.ones(2), np.zeros(2)),
            dln.LeastSquares(np.eye(2), np.ones(2)),
            jnp.ones(1),
            eps=0.1,
            formulation=dln.WeightForm(),
            solver=dln.AutoTsit5(),
        )
