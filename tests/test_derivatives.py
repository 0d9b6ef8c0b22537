"""Derivatives of everything, in both modes, against differences: one table. `python -m benchmarks
derivatives` measures more of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

Arrays = dict[str, Any]
RNG = np.random.default_rng(5)
N, D = 3, 4
DATA = {"X": RNG.normal(size=(N, D)), "y": RNG.normal(size=N)}
SHAPE = {"u": np.exp(0.3 * RNG.normal(size=D)), "v": np.exp(0.3 * RNG.normal(size=D)) / 4}
DEPTH = {"depth": np.array(3.0)}
DECAY = {"decay": np.array(0.1)}
S = {"s": np.array([0.7, 2.3, 9.0])}
CUT = {"s_max": np.array(11.0)}
LASSO = {
    "weights": np.exp(0.3 * RNG.normal(size=D)),
    "mu": np.array([0.6, 2.5, 6.0, 40.0]),
    "point": RNG.normal(size=D),
}


def problem(a: Arrays):
    return dln.LeastSquares(a["X"], a["y"], a.get("decay", 0.0))


def network(a: Arrays):
    if "depth" in a:
        return dln.Deep(a["u"], a["v"], depth=a["depth"])
    return dln.UV(a["u"], a["v"])


ATOL = 1e-13


def flow(a: Arrays):
    flow = dln.gradient_flow(
        network(a),
        problem(a),
        a["s"],
        log_eps=a["log_eps"],
        rtol=1e-12,  # what the differences see of it must be below 1e-6
        atol=ATOL,
        max_steps=8192,
        throw=False,
    )
    return flow.x, flow.x_mean, flow.z, dln.certificate(problem(a), flow)


def lasso(a: Arrays):
    options = dict(weights=a["weights"], throw=False)
    path = dln.lasso_path(problem(a), **options)
    point = dln.lasso(problem(a), a["mu"], gap_tol=1e-13, **options)
    gap = dln.suboptimality_gap(problem(a), a["point"], a["mu"], path=path)
    bound = problem(a).duality_gap(a["point"], 1 / a["mu"])
    return path.x(a["mu"]), path.knots[:4], point.x, gap.absolute, gap.relative, bound


def limit(a: Arrays):
    limit = dln.limit_flow(network(a), problem(a), a["s_max"], throw=False)
    # The last knot is where it was stopped.
    return limit.x_mean(a["s"]), limit.plateau(a["s"]), limit.jumps[:3], limit.knots[-1]


def end(a: Arrays):
    end = dln.end_point(network(a), problem(a), log_eps=a["log_eps"], throw=False)
    return end.x, jnp.where(jnp.isfinite(end.dual), end.dual, 0)  # infinite with weight decay


class Case(NamedTuple):
    fn: Callable
    args: Arrays
    log_eps: tuple[float, ...] = ()  # of the lanes
    atol: float = 0  # what the differences see of it, divided by their least step


SMALL, WIDE = (math.log(1e-5), math.log(1e-20)), (math.log(1e-2), math.log(1e-20))
CASES = {
    "flow": Case(flow, DATA | DECAY | SHAPE | S, SMALL, ATOL),
    "lasso": Case(lasso, DATA | DECAY | LASSO),
    "limit": Case(limit, DATA | SHAPE | DEPTH | S | CUT),
    "end": Case(end, DATA | SHAPE, (*SMALL, -700.0)),
    "end, D = 3": Case(end, DATA | SHAPE | DEPTH, WIDE),
}


def lanes_of(case: Case) -> Arrays:
    lanes = {k: np.stack([v] * (len(case.log_eps) or 2)) for k, v in case.args.items()}
    return lanes | ({"log_eps": np.array(case.log_eps)} if case.log_eps else {})


def weighted(case: Case) -> Callable:
    """Of each output, a scalar."""
    weigh = lambda v: jnp.vdot(v, jnp.cos(jnp.arange(v.size, dtype=v.dtype)).reshape(v.shape))
    return lambda a, **options: jnp.stack([weigh(v) for v in case.fn(a, **options)])


STEPS = np.array([1, 0.5, 0.25])


def moved(lanes: Arrays, along: Arrays, steps: Arrays) -> Arrays:
    """The lanes, and both ends of differences in each argument."""
    all_of_them = [lanes]
    for k, v in along.items():
        for h in STEPS[:, None] * steps[k]:
            change = h.reshape(-1, *(1,) * (v.ndim - 1)) * v
            all_of_them += [lanes | {k: lanes[k] + change}, lanes | {k: lanes[k] - change}]
    return {k: np.concatenate([part[k] for part in all_of_them]) for k in lanes}


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    case = CASES[name]
    fn, lanes, rng = weighted(case), lanes_of(case), np.random.default_rng(0)
    along = {k: rng.choice([-1.0, 1.0], v.shape) for k, v in lanes.items()}
    count = len(lanes["y"])

    @jax.jit
    @jax.vmap
    def backward(a):
        value, pull = jax.vjp(fn, a)
        return value, jax.vmap(pull)(jnp.eye(value.size))[0]

    @jax.vmap
    @jax.jit
    def forward(a, v):
        return jax.jvp(lambda a: fn(a), (a,), (v,))

    value, gradients = jax.device_get(backward(lanes))
    # x = exp(w log ε), of which a shape is a factor.
    slow = np.abs(lanes.get("log_eps", np.full(count, 20.0)))
    factors = ("log_eps", "depth", "u", "v")
    steps = {k: 0.02 / (np.ones(count) if k in factors else slow) for k in along}
    many = 1 + 6 * len(along)
    values, tangents = forward(
        moved(lanes, along, steps), {k: np.concatenate([v] * many) for k, v in along.items()}
    )
    ends = np.asarray(values)[count:].reshape(len(along), 3, 2, *value.shape)
    assert np.all(np.isfinite(value))
    total = np.zeros_like(value)
    for (k, v), (ahead, behind) in zip(along.items(), np.swapaxes(ends, 1, 2), strict=True):
        # Central differences, extrapolated to step 0.
        want = (ahead - behind) / (2 * STEPS[:, None] * steps[k])[..., None]
        for power in (4, 16):
            want = (power * want[1:] - want[:-1]) / (power - 1)
        gradient = gradients[k].reshape(*value.shape, -1)
        slope = np.sum(gradient * v.reshape(count, 1, -1), axis=-1)
        total += slope
        # Relative to the gradient; but an end point hardly depends on its ε.
        size = np.maximum(np.linalg.norm(gradient, axis=-1), 1e-4 * np.abs(value))
        noise = case.atol * np.abs(value) / (STEPS[-1] * steps[k])[..., None]
        assert np.all(np.abs(slope - want[0]) <= 1e-6 * size + noise), k
    np.testing.assert_allclose(tangents[:count], total, rtol=1e-9, atol=1e-9 * np.abs(total).max())


def test_both_orders_of_jit_and_vmap():
    case = CASES["lasso"]
    fn, lanes = weighted(case), lanes_of(case)
    lanes["y"] += np.array([[0.0], [0.2]])
    gradient = jax.grad(lambda a: jnp.sum(fn(a)))
    inside, outside = jax.vmap(jax.jit(gradient))(lanes), jax.jit(jax.vmap(gradient))(lanes)
    for k, v in inside.items():
        np.testing.assert_allclose(v, outside[k], rtol=1e-12, atol=1e-12)
