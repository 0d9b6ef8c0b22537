"""A lane that fails, masked by its `result`, has the derivative 0: in both modes, however it fails,
and in a batch that shares parameters."""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def _lasso(problem, forward):
    point = dln.lasso(problem, jnp.array([0.9, 4.0]), max_steps=20, throw=False)
    result = dln.RESULTS.where(
        jnp.all(point.result == dln.RESULTS.successful),
        dln.RESULTS.successful,
        dln.RESULTS.gap_not_reached,
    )
    return result, (point.x, point.gap)


def _flow(problem, forward):
    flow = dln.gradient_flow(
        NET,
        problem,
        P[:3],
        log_eps=-20.0,
        max_steps=120,
        throw=False,
        adjoint=diffrax.ForwardMode() if forward else None,
    )
    return flow.result, (flow.x, flow.x_mean, flow.z, flow.dual, dln.certificate(problem, flow))


def _ends(problem, forward):
    end = dln.interpolator(NET, problem, log_eps=-20.0, max_steps=12, throw=False)
    return end.result, (end.x, jnp.where(jnp.isfinite(end.dual), end.dual, 0))


def _limit_point(problem, forward):
    point = dln.limit_point(NET, problem, throw=False)
    return point.result, (point.x, jnp.where(jnp.isfinite(point.dual), point.dual, 0))


def _pursuit(problem, forward):
    point = dln.basis_pursuit(problem, max_knots=2, throw=False)
    return point.result, (point.x, point.gap, point.infeasibility)


def _null_space(problem, forward):
    constant = dln.null_space_constant(problem, max_knots=2, throw=False)
    return constant.result, (constant.value,)


def _train(problem, forward):
    run = dln.train(
        NET, problem, optax.sgd(0.1), log_eps=-2.0, steps=4, key=jax.random.key(0), throw=False
    )
    return run.result, (run.x,)


class Case(NamedTuple):
    fn: Callable
    fails: set[str]  # of the lanes, at least these


INVALID = {"NaN", "overflow", "NaN response"}
CASES = {
    "lasso_path": Case(_path, INVALID | {"hard", "negative decay"}),
    "limit_flow": Case(_limit, INVALID | {"hard", "negative decay"}),
    "lasso": Case(_lasso, INVALID | {"hard", "negative decay"}),
    "gradient_flow": Case(_flow, INVALID | {"hard", "negative decay"}),
    "interpolator": Case(_ends, INVALID | {"hard", "negative decay"}),
    "limit_point": Case(_limit_point, INVALID),
    "basis_pursuit": Case(_pursuit, INVALID | {"hard"}),
    "null_space_constant": Case(_null_space, INVALID | {"hard"}),
    "train": Case(_train, INVALID | {"negative decay"}),
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
        both = lambda scale, own, forward: jax.vmap(
            lambda own, *data: masked(scale, own, *data, forward=forward)
        )(own, *LANES)
        backward = jax.value_and_grad(
            lambda *args: (lambda v, good: (jnp.sum(v), good))(*both(*args, False)),
            argnums=(0, 1),
            has_aux=True,
        )(scale, own)
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
