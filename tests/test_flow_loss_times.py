"""When the loss has fallen to a level: against SciPy's events on the weights, and a closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit

import dlnjax as dln
from dlnjax._results import names_of

N, D, S_MAX = 6, 4, 6.0
rng = np.random.default_rng(0)
X, Y = rng.normal(size=(N, D)), rng.normal(size=N)
LABELS = np.sign(rng.normal(size=N))
SHARES = np.array([0.9, 0.5, 0.2])  # of the way from ℓ(0) to the loss at S_MAX


def _by_scipy(force, loss, levels, log_eps, decay):
    """The loss at `S_MAX`, and the first times at which it is at the levels, along the weights."""

    def field(s, w):
        u, v = w[:D], w[D:]
        pull = force(u * v)
        return -log_eps / 2 * np.r_[pull * v - decay * u, pull * u - decay * v]

    events = [lambda s, w, level=level: loss(w[:D] * w[D:]) - level for level in levels]
    start = np.r_[np.ones(D), np.zeros(D)] * np.exp(log_eps / 2)
    options: dict[str, Any] = dict(rtol=1e-12, atol=1e-15, events=events)
    run = solve_ivp(field, (0, S_MAX), start, "DOP853", **options)
    assert run.t_events is not None
    first = [times[0] if len(times) else np.inf for times in run.t_events]
    return loss(run.y[:D, -1] * run.y[D:, -1]), first


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_against_events_on_the_weights(decay):
    square = dln.LeastSquares(X, Y, decay)
    logistic = dln.Logistic(X, LABELS, decay)
    losses = {
        "square": (
            square,
            lambda x: X.T @ (Y - X @ x),
            lambda x: 0.5 * np.sum((X @ x - Y) ** 2),
        ),
        "logistic": (
            logistic,
            lambda x: X.T @ (LABELS * expit(-LABELS * (X @ x))),
            lambda x: np.sum(np.logaddexp(0, -LABELS * (X @ x))),
        ),
    }
    for problem, force, loss in losses.values():
        top = loss(np.zeros(D))
        least, _ = _by_scipy(force, loss, [], np.log(1e-2), decay)
        # The last one is never reached.
        levels = np.append(top + (least - top) * SHARES, least / 20)

        @jax.jit
        @jax.vmap
        def solve(log_eps, problem=problem, levels=levels):
            network = dln.UV(jnp.ones(D), jnp.zeros(D))
            options: dict[str, Any] = dict(log_eps=log_eps, rtol=1e-10, atol=1e-11, throw=False)
            return dln.loss_times(network, problem, S_MAX, levels, **options)

        logs = np.log([1e-2, 1e-6])
        found = solve(logs)
        assert jnp.all(found.result == dln.RESULTS.successful)
        for ours, log_eps in zip(found.s, logs, strict=True):
            _, want = _by_scipy(force, loss, levels, log_eps, decay)
            assert np.isinf(want[-1]) and np.all(np.isfinite(want[:-1]))
            # Some hundred times rtol, over the slope of the loss.
            np.testing.assert_allclose(ours, want, rtol=1e-7)


LOG_EPS = -12.0


def test_derivatives_against_the_closed_form():
    """`USquared` on one coordinate: `q' = L q(r − q)`, and `ℓ = ½(r − q)²`. First and second."""

    def time(r, level):
        problem = dln.LeastSquares(jnp.ones((1, 1)), r[None])
        options: dict[str, Any] = dict(log_eps=LOG_EPS, rtol=1e-10, atol=1e-12, throw=False)
        return dln.loss_times(dln.USquared(jnp.ones(1)), problem, 4.0, level, **options).s

    def exact(r, level):
        eps, q = jnp.exp(LOG_EPS), r - jnp.sqrt(2 * level)
        return jnp.log(q * (r - eps) / (eps * (r - q))) / (-LOG_EPS * r)

    at, along = (jnp.asarray(1.5), jnp.asarray(0.2)), (jnp.asarray(1.0), jnp.asarray(0.3))
    reverse = lambda fn: jax.tree.leaves(jax.jit(jax.value_and_grad(fn, (0, 1)))(*at))
    np.testing.assert_allclose(reverse(time), reverse(exact), rtol=1e-7)
    first = lambda fn: lambda *at: jax.jvp(fn, at, along)[1]
    both = lambda fn: jax.jit(lambda: jax.jvp(first(fn), at, along))()
    np.testing.assert_allclose(both(time), both(exact), rtol=1e-5)


def test_at_any_epsilon_and_where_it_starts():
    # x = (2, 0) from s = ½ on, (2, 1) from s = 1: the loss 2.5 falls to 0.5 and to 0.
    problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
    network = dln.UV(jnp.ones(2), jnp.zeros(2))
    levels = jnp.array([0.1, 3.0, 1.0])
    times = dln.loss_times(network, problem, 3.0, levels, log_eps=-2000.0)
    # x = ½ ε sinh(L g), so that x < r is reached at s = (1 + log(4xr/(r − x))/L)/r.
    delay = lambda x, r: (1 + np.log(4 * x * r / (r - x)) / 2000) / r
    want = [delay(1 - np.sqrt(0.2), 1), 0, delay(2 - np.sqrt(2 * 0.5), 2)]
    np.testing.assert_allclose(times.s, want, atol=1e-6)
    assert dln.loss_times(network, problem, 3.0, 0.1, log_eps=-2000.0).s.shape == ()
    # The integration ends with the last level, of however long an interval.
    long = dln.loss_times(network, problem, 1e9, levels, log_eps=-2000.0)
    assert long.stats["num_steps"] <= times.stats["num_steps"] + 64


def test_bad_input():
    network = dln.UV(jnp.ones(D), jnp.zeros(D))
    run = lambda s, loss: dln.loss_times(network, dln.LeastSquares(X, Y), s, loss, eps=1e-2)
    with pytest.raises(ValueError, match="`s_max` is inf"):
        run(np.inf, 1.0)
    with pytest.raises(ValueError, match="`loss` must be positive"):
        run(1.0, 0.0)
    with pytest.raises(ValueError, match=r"shape \(\) or \(m,\), got \(1, 2\)"):
        run(1.0, np.ones((1, 2)))
    traced = jax.vmap(
        lambda y, s, level: dln.loss_times(
            network, dln.LeastSquares(X, y), s, level, eps=1e-2, throw=False
        )
    )(np.stack([Y, Y * np.nan, Y, Y]), jnp.array([1.0, 1, -1, 1]), jnp.array([1.0, 1, 1, jnp.nan]))
    want = ["successful", "invalid_data", "invalid_grid", "invalid_grid"]
    assert names_of(traced.result).tolist() == want
    np.testing.assert_array_equal(np.isnan(traced.s), [False, True, True, True])


def test_a_failure_after_the_last_level_is_none():
    # Steps are taken in blocks of 64; the level is reached after some 20 of them.
    problem, network = dln.LeastSquares(X, Y), dln.UV(jnp.ones(D), jnp.zeros(D))
    top = float(problem.loss(jnp.zeros(D)))
    options: dict[str, Any] = dict(eps=1e-2, throw=False)
    few = dln.loss_times(network, problem, 1e3, np.array([0.9 * top]), max_steps=50, **options)
    many = dln.loss_times(network, problem, 1e3, np.array([0.9 * top]), **options)
    assert few.result == many.result == dln.RESULTS.successful
    assert few.s == many.s
    missed = dln.loss_times(network, problem, 1e3, np.array([1e-6 * top]), max_steps=50, **options)
    assert missed.result == dln.RESULTS.max_steps_reached
