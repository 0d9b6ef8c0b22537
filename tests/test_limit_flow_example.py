"""The limit `ε → 0` of one problem, the example of [PF23]: what it knows, where it starts and
stops, and what it refuses."""

import re
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

# --- the example ------------------------------------------------------------------------------

PF23 = np.array([[1, 0.5, 0.7, 0], [0.5, 1, 0.1, 0.7]]), np.array([1.0, 0])
UV = dln.UV(np.ones(4), np.zeros(4))


@pytest.fixture(scope="module")
def deactivating():
    """[PF23]'s example, in which the first coordinate activates and comes back to 0."""
    problem = dln.LeastSquares(*PF23)
    return problem, dln.limit_flow(UV, problem)


def test_a_deactivation(deactivating):
    problem, limit = deactivating
    assert limit.num_jumps == limit.num_knots == 3
    last = 4 + 80 / 49
    np.testing.assert_allclose(limit.jumps[:4], [1, 4, last, last], rtol=1e-13)
    plateaus = np.array([[0.8, 0, 0, 0], [0, 0, 1.4, 0], [0, 0, 10 / 7, -10 / 49]])
    np.testing.assert_allclose(limit.plateau(limit.jumps[:3]), plateaus, atol=1e-13)
    np.testing.assert_array_equal(limit.slopes[:3] == 0, plateaus == 0)
    z = np.array([[0, 0, 0, 0], [2.4, 0, 0, 0], [2.4, 0, 1.4 * 80 / 49, 0]])
    np.testing.assert_allclose(limit.z(limit.jumps[:3]), z, atol=1e-13)
    np.testing.assert_array_equal(np.argwhere(limit.activations), [[0, 0], [1, 2], [2, 3]])
    np.testing.assert_array_equal(np.argwhere(limit.deactivations), [[1, 0]])
    # The dual variable of what is active is 1 in absolute value, and nothing is beyond.
    dual = limit.dual(problem, np.append(0, limit.jumps[:3]))
    np.testing.assert_allclose(dual[:, [0, 2, 3]].T[[0, 1, 2], [1, 2, 3]], [1, 1, -1], atol=1e-13)
    assert np.all(np.abs(dual) <= 1 + 1e-13) and not np.any(dual[0])
    np.testing.assert_array_equal(limit.weights, np.ones((2, 4)))
    assert limit.stats["max_violation"] < 1e-14 and limit.is_monotone()
    assert not np.allclose(limit.kkt_residual(problem), 0, atol=1e-3)  # no lasso path


def test_the_flow_tends_to_it(deactivating):
    problem, limit = deactivating
    s = np.linspace(0, 10, 201)
    error = {}
    for log_eps in (-200.0, -2000.0):
        flow = dln.gradient_flow(UV, problem, s, log_eps=log_eps)
        error[log_eps] = np.max(np.abs(flow.x_mean - limit.x_mean(s)))
    # O(1/log(1/ε)).
    assert error[-2000.0] < 5e-3
    assert 5 < error[-200.0] / error[-2000.0] < 20


# --- where it starts and where it stops -------------------------------------------------------


def test_stops_at_s_max(deactivating):
    problem, limit = deactivating
    first, second = map(float, limit.jumps[:2])
    for s_max, jumps in [(0.5, 0), (first, 1), (3.0, 1), (second, 2), (1e3, 3)]:
        cut = dln.limit_flow(UV, problem, s_max)
        assert cut.num_jumps == jumps and cut.num_knots == jumps + 1
        np.testing.assert_array_equal(cut.jumps[:jumps], limit.jumps[:jumps])
        inside = s_max * np.array([0, 0.3, 0.9, 1.0])
        np.testing.assert_allclose(cut.x_mean(inside), limit.x_mean(inside), rtol=1e-13, atol=1e-15)
        np.testing.assert_array_equal(cut.plateau(inside), limit.plateau(inside))
        assert np.all(np.isnan(cut.x_mean(s_max * np.array([1 + 1e-12, 2, np.inf]))))
        assert np.sum(cut.activations) == jumps and not cut.is_monotone()


def test_is_known_at_s_max_however_it_rounds():
    X, y = PF23
    rng, found = np.random.default_rng(0), 0
    for scale in rng.uniform(1, 2, 8):  # whether there are such times depends on the jumps' bits
        problem = dln.LeastSquares(X, scale * y)
        limit = dln.limit_flow(UV, problem)
        jumps = np.asarray(limit.jumps[: int(limit.num_jumps)])
        s_max = rng.uniform(jumps[0], 2 * jumps[-1], 1000)
        last = jumps[np.searchsorted(jumps, s_max) - 1]
        hard = s_max[last + (np.nextafter(s_max, np.inf) - last) == s_max]
        found += len(hard)
        for s in hard[:3]:
            cut = dln.limit_flow(UV, problem, s)
            np.testing.assert_array_equal(cut.plateau(s), limit.plateau(s))
            np.testing.assert_allclose(cut.x_mean(s), limit.x_mean(s), rtol=1e-13, atol=1e-15)
    assert found > 10


def test_starts_from_a_linear_model(deactivating):
    problem, _ = deactivating
    start = np.array([0, 1.0, 0, -1e-9])
    limit = dln.limit_flow(UV, problem, start=start)
    assert limit.jumps[0] == 0
    X, y = PF23
    want = np.zeros(4)
    want[[1, 3]] = np.linalg.solve(X[:, [1, 3]], y)
    np.testing.assert_allclose(limit.x(0.0), want, rtol=1e-13)
    np.testing.assert_array_equal(limit.weights, 1 - np.array([[1], [-1]]) * np.sign(start))
    other = dln.limit_flow(UV, problem, start=2 * start)
    np.testing.assert_array_equal(limit.slopes, other.slopes)
    # Its signs are kept on the first plateau: what would change sign is 0.
    flipped = dln.limit_flow(UV, problem, start=-start)
    assert not np.any(flipped.x(0.0)) and flipped.jumps[0] == 0 < flipped.jumps[1]
    # A start at 0 is none.
    plain = dln.limit_flow(UV, problem, start=np.zeros(4))
    np.testing.assert_array_equal(plain.jumps, deactivating[1].jumps)


def test_too_few_knots(deactivating):
    problem, limit = deactivating
    with pytest.raises(RuntimeError, match="Pass a larger `max_knots`"):
        dln.limit_flow(UV, problem, max_knots=2)
    cut = dln.limit_flow(UV, problem, max_knots=2, throw=False)
    assert cut.result == dln.RESULTS.max_knots_reached and cut.num_jumps == 2
    s = np.array([0.5, 2.0, 3.999, 4.001])
    np.testing.assert_allclose(cut.x_mean(s[:3]), limit.x_mean(s[:3]), rtol=1e-14)
    assert np.all(np.isnan(cut.x_mean(s[3])))


# --- transformations --------------------------------------------------------------------------


def test_a_batch_is_a_loop_and_has_derivatives(deactivating):
    _, limit = deactivating
    X, y = PF23
    s = np.array([0.5, 3.0, 5.0, 20.0])

    def means(y, decay):
        problem = dln.LeastSquares(X, y, weight_decay=decay)
        return dln.limit_flow(UV, problem, throw=False).x(s)

    step, h = (np.array([0.3, -0.2]), np.array(0.01)), 1e-5
    tangent = jax.jit(jax.vmap(lambda *args: jax.jvp(means, args, step)))
    y = y + np.array([[0], [0], [h], [-h]]) * step[0]
    decay = np.array([0, 0.02, 0.02, 0.02]) + np.array([0, 0, h, -h]) * step[1]
    value, derivative = tangent(y, decay)
    np.testing.assert_allclose(value[0], limit.x_mean(s), rtol=1e-13, atol=1e-14)
    difference = (value[2] - value[3]) / (2 * h)
    np.testing.assert_allclose(difference, derivative[1], rtol=1e-7, atol=1e-8)


# --- refusals ---------------------------------------------------------------------------------


class WeightsOnly(dln.AbstractNetwork):
    positive: ClassVar[bool] = False

    def __call__(self):
        return jnp.ones(4)

    def initial(self, log_eps):
        return self

    def time_scale(self, log_eps):
        return -log_eps

    def penalty(self, weight_decay):
        return weight_decay


SQUARED = dln.USquared(np.ones(4))
REFUSED = {
    "s_max 0": (UV, {"s_max": 0.0}, ValueError, "`s_max` must be positive, got 0.0"),
    "s_max NaN": (UV, {"s_max": np.nan}, ValueError, "`s_max` must be positive, got nan"),
    "s_max grid": (UV, {"s_max": np.ones(2)}, ValueError, "`s_max` must be a scalar"),
    "start shape": (UV, {"start": np.ones(3)}, ValueError, "shape (4,), got (3,)"),
    "start NaN": (UV, {"start": np.full(4, np.nan)}, ValueError, "`start[0]` is nan"),
    "start sign": (SQUARED, {"start": -np.ones(4)}, ValueError, "`start[0]` = -1.0 is negative"),
    "max_knots": (UV, {"max_knots": 0}, ValueError, "`max_knots` must be at least 1, got 0"),
    "size": (dln.USquared(np.ones(3)), {}, ValueError, "has 3 coordinates, the problem has 4"),
    "no dual form": (WeightsOnly(), {}, TypeError, "WeightsOnly does not have"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    network, kwargs, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        dln.limit_flow(network, dln.LeastSquares(*PF23), **kwargs)


def test_the_shape_does_not_matter_at_depth_two(deactivating):
    problem, limit = deactivating
    other = dln.limit_flow(dln.UV(np.arange(2.0, 6.0), np.ones(4)), problem)
    np.testing.assert_array_equal(other.slopes, limit.slopes)
    # But a degenerate one never moves.
    shape = jax.jit(lambda u: dln.limit_flow(dln.UV(u, np.ones(4)), problem, throw=False))
    assert shape(np.ones(4)).result == dln.RESULTS.invalid_shape


def test_the_choice_is_compiled_where_it_is_needed(caplog):
    X, y = np.array([[1.0, 0.2, 0.3], [0.0, 1.0, 1.0]]), np.array([1.0, 2.0])
    twins, shape = X.copy(), np.array([1.0, 2.0, 1.0])
    twins[:, 1] = twins[:, 0]

    def end(X, y, decay: Any = 0.0):
        return dln.limit_flow(dln.UV(shape, 0 * shape), dln.LeastSquares(X, y, decay)).slopes[-1]

    def programs(X, y):
        caplog.clear()
        with jax.log_compiles():
            x = end(X, y)
        np.testing.assert_allclose(X @ x, y, atol=1e-13)
        return sum("Compiling" in m and "_limit" in m.split(" with ")[0] for m in caplog.messages)

    assert [programs(X, y), programs(X, 2 * y)] == [1, 0]
    assert [programs(twins, y), programs(twins, 2 * y)] == [1, 0]
    # Twins share in the ratio of the squares of their shapes: where the data are known, also inside
    # of `jit`, and in the last phase of a schedule.
    schedule = dln.Schedule([1.0], [0.1, 0.0])
    for x in end(twins, y), jax.jit(lambda: end(twins, y))(), end(twins, y, schedule):
        np.testing.assert_allclose(x, [0.08, 0.32, 2], atol=1e-13)


def test_a_start_for_the_limit_only():
    """Without a `growth` only `w(0) = (0, 1)` is known; the second jump is at `1/y₂`."""

    class Silent(dln.UV):
        def growth(self, log_eps) -> Any:
            return None

    def jumps(y):
        network = Silent(jnp.ones(2), jnp.zeros(2))
        start = jnp.array([1.0, 0.0])
        return dln.limit_flow(network, dln.LeastSquares(np.eye(2), y), start=start).jumps[:2]

    y = jnp.array([1.0, 0.5])
    np.testing.assert_allclose(jumps(y), [0, 2], rtol=1e-13)
    np.testing.assert_allclose(jax.jit(jumps)(y), [0, 2], rtol=1e-13)
