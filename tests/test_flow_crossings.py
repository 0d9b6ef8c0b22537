import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import ArrayLike

import dlnjax as dln
from dlnjax._flow.events import _first_below
from dlnjax._results import names_of
from dlnjax.papers.pf23 import FIXTURE

NETWORK = dln.UV(jnp.ones(4), jnp.zeros(4))
# Half of the plateaus that x₁, x₃ and x₄ of [PF23]'s example come to; x₂ stays at 0.
LEVEL = jnp.array([0.4, 0.1, 0.7, 0.1])
S_MAX = 8.0


@jax.jit
@jax.vmap
def jumps(X, y, log_eps, level):
    problem = dln.LeastSquares(X, y)
    return dln.crossing_times(
        NETWORK, problem, S_MAX, level, log_eps=log_eps, max_crossings=5, throw=False
    )


FALLS = {
    # where a function falls below 0 between two points
    "exponential": (lambda s: 1 - 1e-6 * jnp.exp(9 * s), 0.0, 4.0, np.log(1e6) / 9),
    "linear": (lambda s: 2.5 - s, 1.0, 3.0, 2.5),
    "jump": (lambda s: jnp.where(s < 0.7, 1.0, -1.0), 0.0, 1.0, 0.7),
    "kink": (lambda s: jnp.minimum(1 - s, 10 * (0.9 - s)), 0.5, 2.0, 0.9),
    "triple": (lambda s: (1.3 - s) ** 3, 0.0, 2.0, 1.3),
    "at its start": (lambda s: 0.5 - s, 0.5, 9.0, 0.5),
    "at its end": (lambda s: 1.0 - s, 0.0, 1.0, 1.0),
}


@pytest.mark.parametrize("name", FALLS)
def test_first_below(name):
    fn, low, high, root = FALLS[name]
    found = jax.jit(lambda low, high: _first_below(fn, low, high))(low, high)
    # Two roundings of the bracket, and those of the function.
    np.testing.assert_allclose(found, root, rtol=1e-15)


def test_on_the_fixture_they_tend_to_the_jumps_of_the_limit():
    log_eps = jnp.array([-100.0, -400, -2000, -5000])
    X, y = (jnp.broadcast_to(a, (4, *a.shape)) for a in map(jnp.asarray, FIXTURE))
    found = jumps(X, y, log_eps, np.tile(LEVEL, (4, 1)))
    assert jnp.all(found.result == dln.RESULTS.successful)
    np.testing.assert_array_equal(found.num_crossings, 4)
    # x₁ activates, x₃ does, x₁ deactivates beside it, x₄ activates.
    ups, downs = np.zeros((5, 4), bool), np.zeros((5, 4), bool)
    ups[[0, 1, 3], [0, 2, 3]] = downs[2, 0] = True
    for lane in range(4):
        np.testing.assert_array_equal(found.activations[lane], ups)
        np.testing.assert_array_equal(found.deactivations[lane], downs)
    np.testing.assert_array_equal(found.s[:, 4], found.s[:, 3])
    # x₁ alone: x = ½ ε sinh(L g), dg/ds = 1 − 1.25 x, so that ds = dx/(L x (1 − 1.25 x)).
    np.testing.assert_allclose(found.s[:, 0], 1 + np.log(4 * 0.8) / -log_eps, atol=1e-7)
    delays = np.abs(found.s[:, :4] - np.array([[1, 4, 4, 4 + 80 / 49]])) * -log_eps[:, None]
    np.testing.assert_allclose(delays[1:], np.tile(delays[3], (3, 1)), rtol=2e-3)


def test_the_flow_is_at_the_level():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(4, 2, 4)), rng.normal(size=(4, 2))
    log_eps = jnp.full(4, -60.0)
    level = np.full((4, 4), 0.05)
    found = jumps(X, y, log_eps, level)

    @jax.vmap
    def flow(X, y, s, log_eps):
        problem = dln.LeastSquares(X, y)
        return dln.gradient_flow(NETWORK, problem, s, log_eps=log_eps, rtol=1e-10, atol=1e-11).x

    assert jnp.all(found.result == dln.RESULTS.successful) and jnp.all(found.num_crossings > 0)
    grid = jnp.linspace(0, S_MAX, 401)
    s = jnp.concatenate([found.s, jnp.broadcast_to(grid, (4, 401))], axis=1)
    order = jnp.argsort(s, axis=1)
    x = flow(X, y, jnp.take_along_axis(s, order, axis=1), log_eps)
    x = np.take_along_axis(np.asarray(x), np.argsort(order, axis=1)[:, :, None], axis=1)
    for lane, number in enumerate(found.num_crossings):
        at, on_grid = np.abs(x[lane, :5]), np.abs(x[lane, 5:])
        crosses = np.asarray(found.activations | found.deactivations)[lane]
        assert not np.any(crosses[number:])
        # An error of 1e-7 in w is 60 times that in log x.
        error = np.abs(at / 0.05 - 1)[crosses]
        assert error.max() < 1e-5
        # None is missing that the grid can see, and each goes the way that it says.
        above = on_grid > 0.05
        rises = np.asarray(found.activations)[lane].astype(int).sum(0)
        falls = np.asarray(found.deactivations)[lane].astype(int).sum(0)
        np.testing.assert_array_equal(rises - falls, above[-1])
        assert np.all(rises + falls >= np.abs(np.diff(above.astype(int), axis=0)).sum(0))


def test_ties_and_lanes_that_fail_alone():
    X, y = map(np.array, FIXTURE)
    twins = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]]), np.array([1.0, 1.0])
    many = np.full((4, 2, 4), X), np.full((4, 2), y)
    many[0][0], many[1][0] = twins
    many[1][1] = 0
    many[1][2, 0] = np.nan
    level = np.tile(LEVEL, (4, 1))
    level[3, 0] = -1
    found = jumps(*many, jnp.full(4, -100.0), level)
    want = ["successful", "successful", "invalid_data", "invalid_grid"]
    assert names_of(found.result).tolist() == want
    # Two pairs of twins: x = (.5, .5, .5, .5), and x₁ stays below .4 only for a while; all four
    # have the same law, and x₂ and x₄ the same level.
    assert found.num_crossings[0] == 2
    np.testing.assert_array_equal(
        found.activations[0, :2], [[False, True, False, True], [True, False, False, False]]
    )
    assert found.num_crossings[1] == 0
    np.testing.assert_array_equal(found.s[1], 0)
    assert jnp.all(jnp.isnan(found.s[2:]))


def test_single_precision():
    # Late jumps, where the first step after one must not be lost in the rounding of s; and with 64
    # bits enabled, as here.
    X, y = np.eye(2, 3, dtype=np.float32), np.array([1, 2e-3], np.float32)
    network = dln.UV(jnp.ones(3, np.float32), jnp.zeros(3, np.float32))
    level = np.append(0.5 * y, np.float32(1))
    found = dln.crossing_times(network, dln.LeastSquares(X, y), 1250.0, level, log_eps=-30.0)
    assert found.s.dtype == np.float32 and found.num_crossings == 2
    # x = ½ ε sinh(L g) with dg/ds = yᵢ − x.
    exact = (1 + np.log(4 * 0.5 * y / (1 - 0.5)) / 30) / y
    np.testing.assert_allclose(found.s[:2], exact, rtol=1e-3)


def test_bad_input_says_what_to_do():
    problem = dln.LeastSquares(*FIXTURE)

    def run(s: float = S_MAX, level: ArrayLike = 0.1, **options):
        return dln.crossing_times(NETWORK, problem, s, level, eps=1e-5, **options)

    with pytest.raises(ValueError, match="`s_max` must be positive"):
        run(s=0.0)
    with pytest.raises(ValueError, match="`s_max` is inf"):
        run(s=np.inf)
    with pytest.raises(ValueError, match="`level` must be positive"):
        run(level=0.0)
    with pytest.raises(ValueError, match=r"scalar or of shape \(4,\), got shape \(3,\)"):
        run(level=jnp.ones(3))
    with pytest.raises(ValueError, match="`max_crossings` must be at least 1"):
        run(max_crossings=0)
    short = jax.jit(lambda: run(level=LEVEL, max_crossings=2, throw=False))()
    assert short.result == dln.RESULTS.max_crossings_reached and short.num_crossings == 2
    assert jnp.all(jnp.isfinite(short.s))
