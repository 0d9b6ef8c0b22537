"""What `fuzz` asks of the library: one program for each `Config`, everything of a batch at once."""

import functools as ft
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln
from dlnjax._results import result_code

from ._fuzz_problems import Arrays, Config

FUNCTIONS = ("path", "limit", "flow", "end", "limit_point", "lasso", "basis_pursuit")
SOLVED = ("X", "y", "M", "r", "decay", "s", "log_eps", "p", "start", "weights", "mu")
LASSO_STEPS = 1024  # those on the active set are a few dozen
MAX_STEPS = 512  # of flows: twice what 95 % of them take; see `retried`
# Lanes that are solved together, and wait for the slowest of them.
TOGETHER = 32


def solve(config: Config, batch: Arrays, functions: Sequence[Any] = FUNCTIONS) -> Arrays:
    """The results of some functions, in float64, as NumPy arrays."""
    data = {key: batch[key].astype(config.dtype) for key in SOLVED}
    data["constant"] = (np.sum(batch["y"] ** 2, axis=1) / 2).astype(config.dtype)
    out, results, seconds = {}, {}, {}
    for name in functions:
        start = time.perf_counter()
        some, code = jax.device_get(_program(PROGRAMS[name], config)(data))
        out[name] = jax.tree.map(lambda v: v.astype(float) if v.dtype == np.float32 else v, some)
        results[name], seconds[name] = code, time.perf_counter() - start
    return out | {"results": results, "seconds": seconds}


@ft.cache
def _program(function, config: Config):
    # One program for each function: one for all takes ten times as long to compile.
    one = lambda a: function(config, _problem(config, a), a)
    return jax.jit(lambda a: jax.lax.map(one, a, batch_size=TOGETHER))


def network(config: Config, p: Any) -> dln.AbstractDualNetwork:
    """Whose `q(0)` is `ε p^D`."""
    if config.positive:
        return dln.USquared(p[0])
    if config.network == "UV":
        return dln.UV(p[0] + p[1], p[0] - p[1])
    return dln.Deep(p[0], p[1], depth=config.depth)


def _problem(config: Config, a: Arrays) -> dln.AbstractProblem:
    if config.problem == "Quadratic":
        return dln.Quadratic(a["M"], a["r"], a["constant"], a["decay"])
    return dln.LeastSquares(a["X"], a["y"], a["decay"])


def _at_knots(run: dln.PiecewiseLinearPath) -> Arrays:
    """At the knots, between them, and beyond."""
    middle = jnp.sqrt(run.knots[:-1]) * jnp.sqrt(run.knots[1:])
    at = jnp.concatenate([run.knots, middle, 10 * run.knots[-1:]])
    return {"at": at, "x": run.x(at), "slope": run.slope(at)}


def _path(config: Config, problem, a: Arrays):
    path = dln.lasso_path(problem, positive=config.positive, weights=a["weights"], throw=False)
    out = _at_knots(path) | {"at_mu": path.x(a["mu"]), "at_s": path.x(a["s"])}
    return out | {"last": path.slopes[-1]}, result_code(path.result)


def _limit(config: Config, problem, a: Arrays):
    limit = dln.limit_flow(network(config, a["p"]), problem, start=a["start"], throw=False)
    out = _at_knots(limit) | {"at_s": limit.x_mean(a["s"]), "last_knot": limit.knots[-1]}
    return out, result_code(limit.result)


def retried(config: Config, a: Arrays, lane: int) -> bool:
    """Whether a flow fails with the default of `max_steps` too."""
    data = {key: np.stack([a[key][lane]] * 2).astype(config.dtype) for key in SOLVED}
    data["constant"] = (np.sum(a["y"][[lane] * 2] ** 2, axis=1) / 2).astype(config.dtype)
    _, code = jax.device_get(_program(_long_flow, config)(data))
    return bool(code[0] != 0)


def _long_flow(config: Config, problem, a: Arrays):
    return _flow(config, problem, a, 65536)


def _flow(config: Config, problem, a: Arrays, max_steps: int = MAX_STEPS):
    flow = dln.gradient_flow(
        network(config, a["p"]),
        problem,
        a["s"],
        log_eps=a["log_eps"],
        max_steps=max_steps,
        throw=False,
    )
    out = {"x": flow.x, "x_mean": flow.x_mean, "dual": flow.dual}
    out |= {"bound": dln.certificate(problem, flow), "steps": flow.stats["num_steps"]}
    return out, result_code(flow.result)


def _end(config: Config, problem, a: Arrays):
    net = network(config, a["p"])
    end = dln.end_point(net, problem, log_eps=a["log_eps"], throw=False)
    return {"x": end.x, "dual": end.dual}, result_code(end.result)


def _limit_point(config: Config, problem, a: Arrays):
    point = dln.limit_point(network(config, a["p"]), problem, throw=False)
    out = {"x": point.x, "dual": point.dual}
    return out, result_code(point.result)


def _lasso(config: Config, problem, a: Arrays):
    point = dln.lasso(problem, a["mu"], positive=config.positive, weights=a["weights"], throw=False)
    return {"x": point.x, "gap": point.gap}, result_code(point.result)


def _basis_pursuit(config: Config, problem, a: Arrays):
    point = dln.basis_pursuit(problem, positive=config.positive, weights=a["weights"], throw=False)
    out = {"x": point.x, "dual": point.dual, "gap": point.gap}
    return out, result_code(point.result)


programs = (_path, _limit, _flow, _end, _limit_point, _lasso, _basis_pursuit)
PROGRAMS = dict(zip(FUNCTIONS, programs, strict=True))
