"""A lane that fails, masked by its `result`, has the derivative 0: in both modes, however it fails,
and in a batch that shares parameters. Least squares with bad values, traced, end in their own
result, and NaN."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dlnjax as dln
from dlnjax._results import names_of

N, D = 3, 4
RNG = np.random.default_rng(0)
P = jnp.array([0.3, 0.9, 4.0])
EASY = {
    "X": np.eye(N, D) + 0.2 * RNG.normal(size=(N, D)),
    "y": np.zeros(N),
    "decay": np.array(0.0),
    "log_eps": np.array(-20.0),
    "shape": np.array([1.0, 0.9, 1.1, 1.0]),
}
EASY["y"] = EASY["X"] @ np.array([2.0, -1.0, 0.0, 0.0])
HARD = EASY | {"X": RNG.normal(size=(N, D)), "y": RNG.normal(size=N)}


def _with(value, name, *index):
    array = HARD[name].copy()
    array[index] = value
    return HARD | {name: array}


# What a lane holds, and the result that every function ends with that sees it.
LANES = {
    "easy": (EASY, "successful"),
    "hard": (HARD, ""),  # for solvers with few steps
    "near twins": (HARD | {"X": HARD["X"][:, [0, 0, 1, 2]] + 1e-9 * RNG.normal(size=(N, D))}, ""),
    "large": (HARD | {"X": 1e3 * HARD["X"]}, ""),  # with which training diverges
    "NaN": (_with(np.nan, "X", 0, 0), "invalid_data"),
    "inf": (_with(np.inf, "X", 1, 2), "invalid_data"),
    "overflow": (_with(1e200, "X", 0, 0), "invalid_data"),
    "NaN response": (HARD | {"y": np.full(N, np.nan)}, "invalid_data"),
    "inf response": (_with(-np.inf, "y", 1), "invalid_data"),
    "decay": (_with(-1.0, "decay"), "invalid_decay"),
    "NaN decay": (_with(np.nan, "decay"), "invalid_decay"),
    "ε": (_with(1.0, "log_eps"), "invalid_eps"),
    "NaN ε": (_with(np.nan, "log_eps"), "invalid_eps"),
    "degenerate": (_with(0.0, "shape", 1), "invalid_shape"),
    "NaN shape": (_with(np.nan, "shape", 0), "invalid_shape"),
}
NAMES = list(LANES)
# A factor of what is NaN has derivatives that are NaN, whatever is done with the product: shared
# parameters are added.
ALONG = {
    "X": RNG.normal(size=(N, D)) * (np.arange(D) < 2),
    "y": np.array([1.0, 0.5, 0.0]),
    "log_eps": np.array(1.0),
    "shape": np.array([0.3, 0.2, 0.1, 0.0]),
}


def _network(lane):
    return dln.UV(lane["shape"], jnp.zeros(D))


def _path(problem, lane):
    path = dln.lasso_path(problem, max_knots=2, throw=False)
    gap = dln.suboptimality_gap(problem, jnp.ones(D), P, path=path)
    asked = path.x(P), path.z(P), path.slope(P), path.x(jnp.inf), path.downward_variation(P)
    return path.result, (*asked, path.kkt_residual(problem), gap.absolute, gap.relative, path.knots)


def _limit(problem, lane):
    limit = dln.limit_flow(_network(lane), problem, max_knots=2, throw=False)
    asked = limit.x(P), limit.z(P), limit.plateau(P), limit.dual(problem, P), limit.jumps
    return limit.result, (*asked, limit.kkt_residual(problem), limit.slopes**2)


def _lasso(problem, lane):
    point = dln.lasso(problem, jnp.array(40.0), max_steps=3, throw=False)
    values = problem.lasso_objective(point.x, 40.0), problem.duality_gap(point.x, 0.1)
    return point.result, (point.x, point.gap, *values)


def _flow(problem, lane):
    flow = dln.gradient_flow(
        _network(lane),
        problem,
        P,
        log_eps=lane["log_eps"],
        max_steps=120,
        throw=False,
    )
    return flow.result, (flow.x, flow.x_mean, flow.z, flow.dual, dln.certificate(problem, flow))


def _end(problem, lane):
    end = dln.end_point(_network(lane), problem, log_eps=lane["log_eps"], max_steps=14, throw=False)
    return end.result, (end.x, jnp.where(jnp.isinf(end.dual), 0, end.dual))


def _limit_point(problem, lane):
    point = dln.limit_point(_network(lane), problem, throw=False)
    return point.result, (point.x, jnp.where(jnp.isinf(point.dual), 0, point.dual))


def _projection(problem, lane):
    x = jnp.array([0.3, -0.2, 0.1, 0.0])
    end = dln.bregman_projection(
        _network(lane), problem, x, log_eps=lane["log_eps"], max_steps=16, throw=False
    )
    return end.result, (end.x, end.dual)


def _pursuit(problem, lane):
    point = dln.basis_pursuit(problem, max_knots=2, throw=False)
    return point.result, (point.x, point.dual, point.gap, point.infeasibility)


LABELS = jnp.array([1.0, -1.0, 1.0])


def _max_margin(problem, lane):
    best = dln.max_margin(dln.Logistic(problem.X, LABELS), max_knots=4, throw=False)
    return best.result, (best.x, best.margin, best.dual)


def _margin_flow(problem, lane):
    flow = dln.margin_flow(
        _network(lane),
        dln.Logistic(problem.X, LABELS),
        P,
        log_eps=lane["log_eps"],
        max_steps=120,
        throw=False,
    )
    return flow.result, (flow.x, flow.margin, flow.margin_bound)


def _null_space(problem, lane):
    constant = dln.null_space_constant(problem, max_knots=2, throw=False)
    return constant.result, (constant.value,)


def _train(problem, lane):
    run = dln.train(
        _network(lane), problem, optax.sgd(0.1), log_eps=lane["log_eps"] / 10, steps=12, throw=False
    )
    effective = dln.effective_initialization(problem, run)
    return run.result, (run.x, run.loss, effective.alpha, effective.dual)


class Case(NamedTuple):
    fn: Callable
    ignores: set[str]  # which bad values it does not see
    fails: bool  # whether it does not solve the hard lane


PROBLEM_ONLY = {"ε", "NaN ε", "degenerate", "NaN shape"}
DATA_ONLY = {"decay", "NaN decay", "NaN response", "inf response"}  # labels, without decay
CASES = {
    "lasso_path": Case(_path, PROBLEM_ONLY, True),
    # At depth 2 the limits do not see a shape of 0.
    "limit_flow": Case(_limit, {"ε", "NaN ε"}, True),
    "lasso": Case(_lasso, PROBLEM_ONLY, True),
    "gradient_flow": Case(_flow, set(), True),
    "end_point": Case(_end, set(), False),
    "limit_point": Case(_limit_point, {"ε", "NaN ε"}, False),
    "bregman_projection": Case(_projection, {"decay", "NaN decay"}, False),
    "basis_pursuit": Case(_pursuit, PROBLEM_ONLY | {"decay", "NaN decay"}, True),
    "max_margin": Case(_max_margin, PROBLEM_ONLY | DATA_ONLY, False),
    "margin_flow": Case(_margin_flow, DATA_ONLY, False),
    "null_space_constant": Case(_null_space, PROBLEM_ONLY | {"decay", "NaN decay"}, True),
    "train": Case(_train, set(), False),
}


def _program(case: Case):
    """Of lanes, and which are counted: results, which are NaN, and derivatives in both modes, in
    four parameters that are shared and in one of each lane."""

    def masked(shared, own, lane):
        lane = lane | {k: lane[k] + t * v for (k, v), t in zip(ALONG.items(), shared, strict=True)}
        problem = dln.LeastSquares(lane["X"], lane["y"] + own * ALONG["y"], lane["decay"])
        result, values = case.fn(problem, lane)
        total = sum(jnp.sum(jnp.sin(v)) for v in values)
        all_nan = jnp.stack([jnp.all(jnp.isnan(v)) for v in values])
        return jnp.where(result == dln.RESULTS.successful, total, 0), (result, all_nan)

    lanes = jax.vmap(masked, in_axes=(None, 0, 0))

    @jax.jit
    def run(data, counted):
        at = jnp.zeros(len(ALONG)), jnp.zeros(len(NAMES))
        along = jnp.eye(len(ALONG) + 1)
        along = along[:, :-1], jnp.broadcast_to(along[:, -1:], (len(along), len(NAMES)))
        _, push, aux = jax.linearize(lambda *at: lanes(at[0], at[1], data), *at, has_aux=True)
        pull = jax.linear_transpose(push, *at)
        return aux, jax.vmap(push)(*along), pull(counted)

    return run


@pytest.mark.parametrize("name", CASES)
def test_masked_failures_have_no_derivatives(name):
    case, run = CASES[name], _program(CASES[name])
    lanes = [EASY if name in case.ignores else lane for name, (lane, _) in LANES.items()]
    batch = jax.tree.map(lambda *v: np.stack(v), *lanes)
    ones = np.ones(len(NAMES))
    (result, all_nan), forward, backward = jax.device_get(run(batch, ones))
    names, all_nan = names_of(result), np.asarray(all_nan)
    for i, (lane, (_, want)) in enumerate(LANES.items()):
        if want and lane not in case.ignores:
            assert names[i] == want, (lane, names[i])
        elif lane in case.ignores:
            assert names[i] == "successful", (lane, names[i])
    is_bad = np.array([bool(w) and w != "successful" for _, w in LANES.values()])
    is_bad &= ~np.isin(NAMES, list(case.ignores))
    np.testing.assert_array_equal(all_nan[is_bad], True)
    good = names == "successful"
    assert good[0] and good[1] != case.fails

    np.testing.assert_array_equal(forward[:, ~good], 0)
    np.testing.assert_array_equal(backward[1][~good], 0)
    # Both modes agree, and the good lanes alone, with good data in place of the others, too.
    scale = np.max(np.abs(forward))
    assert scale > 0
    np.testing.assert_allclose(backward[0], forward[:-1].sum(axis=1), atol=1e-6 * scale)
    np.testing.assert_allclose(backward[1], forward[-1], atol=1e-6 * scale)
    alone = {k: np.where(good.reshape(-1, *(1,) * v[0].ndim), v, v[0]) for k, v in batch.items()}
    _, alone_forward, alone_backward = jax.device_get(run(alone, good.astype(float)))
    np.testing.assert_allclose(alone_forward[:, good], forward[:, good], atol=1e-12 * scale)
    np.testing.assert_allclose(alone_backward[0], backward[0], atol=1e-12 * scale)
