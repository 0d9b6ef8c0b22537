"""Paths: a lane that fails, masked by its `result`, has the derivative 0: in both modes, however it
fails, and in a batch that shares parameters."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

RNG = np.random.default_rng(0)
P = jnp.array([0.3, 0.9, 4.0, 50.0])


def _lanes():
    easy_X, easy_y = np.eye(3, 4), np.array([2.0, -1.0, 0.0])
    hard_X, hard_y = RNG.normal(size=(3, 4)), RNG.normal(size=3)
    bad_X, twin_X, large_X = hard_X.copy(), hard_X.copy(), hard_X.copy()
    bad_X[0, 0] = np.nan
    twin_X[:, 1] = twin_X[:, 0] + 1e-8 * RNG.normal(size=3)
    large_X[0, 0] = 1e200
    lanes = {
        "easy": (easy_X, easy_y, 0.0),
        "hard": (hard_X, hard_y, 0.0),
        "NaN": (bad_X, hard_y, 0.0),
        "negative decay": (hard_X, hard_y, -1.0),
        "near twins": (twin_X, hard_y, 0.0),
        "overflow": (large_X, hard_y, 0.0),
        "NaN response": (hard_X, np.full(3, np.nan), 0.0),
    }
    return list(lanes), tuple(np.stack(part) for part in zip(*lanes.values(), strict=True))


NAMES, LANES = _lanes()
# A factor of what is NaN has derivatives that are NaN, whatever is done with the product.
ALONG_X, ALONG_Y = RNG.normal(size=(3, 4)) * (np.arange(4) < 2), np.array([1.0, 0.5, 0])
NET = dln.UV(jnp.ones(4), jnp.zeros(4))


def _path(problem, forward):
    path = dln.lasso_path(problem, max_knots=2, throw=False)
    gap = dln.suboptimality_gap(problem, jnp.ones(4), P, path=path)
    asked = path.x(P), path.z(P), path.slope(P), path.x(jnp.inf), path.downward_variation(P)
    return path.result, (*asked, path.kkt_residual(problem), gap.absolute, gap.relative, path.knots)


def _limit(problem, forward):
    limit = dln.limit_flow(NET, problem, max_knots=2, throw=False)
    asked = limit.x(P), limit.z(P), limit.slope(P), limit.dual(problem, P), limit.jumps
    return limit.result, (*asked, limit.kkt_residual(problem), limit.slopes**2)


class Case(NamedTuple):
    fn: Callable
    fails: set[str]  # of the lanes, at least these


INVALID = {"NaN", "overflow", "NaN response"}
CASES = {
    "lasso_path": Case(_path, INVALID | {"hard", "negative decay"}),
    "limit_flow": Case(_limit, INVALID | {"hard", "negative decay"}),
}


@pytest.mark.parametrize("name", CASES)
def test_masked_failures_have_no_derivatives(name):
    case = CASES[name]

    def masked(scale, own, X, y, decay, forward=False):
        result, values = case.fn(
            dln.LeastSquares(X + scale * ALONG_X, y + own * ALONG_Y, decay), forward
        )
        total = sum(jnp.sum(jnp.sin(v)) for v in values)
        good = result == dln.RESULTS.successful
        return jnp.where(good, total, 0), good

    @jax.jit
    def run(scale, own):
        def both(scale, own, forward):
            lane = lambda own, *data: masked(scale, own, *data, forward=forward)
            return jax.vmap(lane)(own, *LANES)

        def total(scale, own):
            values, good = both(scale, own, False)
            return jnp.sum(values), good

        backward = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(scale, own)
        shared = jax.jvp(lambda scale: both(scale, own, True)[0], (scale,), (1.0,))[1]
        each = jax.jvp(lambda own: both(scale, own, True)[0], (own,), (jnp.ones_like(own),))[1]
        return backward, shared, each

    ((_, good), (shared, each)), forward_shared, forward_each = jax.device_get(
        run(jnp.zeros(()), jnp.zeros(len(NAMES)))
    )
    failed = {name for name, is_good in zip(NAMES, good, strict=True) if not is_good}
    assert failed >= case.fails and "easy" not in failed, failed
    np.testing.assert_array_equal(each[~good], 0)
    np.testing.assert_array_equal(forward_each[~good], 0)
    np.testing.assert_array_equal(forward_shared[~good], 0)
    assert each[0] != 0
    scale = np.max(np.abs(forward_each)) + np.max(np.abs(forward_shared))
    np.testing.assert_allclose(each, forward_each, atol=1e-6 * scale)
    np.testing.assert_allclose(shared, np.sum(forward_shared), atol=1e-6 * scale)
