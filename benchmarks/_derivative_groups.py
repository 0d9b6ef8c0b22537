"""The instances and the functions of which `derivatives.py` takes derivatives, group by group."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import dlnjax as dln

Arrays = dict[str, Any]
# Differences must not feel the error of the steps.
FINE = dict(rtol=1e-12, atol=1e-13)


def _twins(rng, X, y):
    X[:, 1] = -X[:, 0]
    if X.shape[1] > 5:
        X[:, 3] = X[:, 2]
    return X, y


def _zero_column(rng, X, y):
    X[:, 1] = 0
    return X, y


def _signs(rng, X, y):
    return rng.choice([-1.0, 1.0], X.shape), rng.choice([-1.0, 1.0], y.shape)


def _deficient(rng, X, y):
    U, s, V = np.linalg.svd(X, full_matrices=False)
    s[-1] = 0
    return (U * s) @ V, y


def _near(rng, X, y):
    """The first two coordinates activate first, at almost the same time."""
    first = X[:, :2]
    top = 2 * np.max(np.abs(y @ X))
    goal = np.array([top, -top * (1 + 1e-3)])
    return X, y + first @ np.linalg.solve(first.T @ first, goal - y @ first)


FAMILIES: dict[str, Callable] = {
    "random": lambda rng, X, y: (X, y),
    "weight decay": lambda rng, X, y: (X, y),
    "twin columns": _twins,
    "zero column": _zero_column,
    "±1, tied": _signs,
    "rank deficient": _deficient,
    "y = 0": lambda rng, X, y: (X, 0 * y),
    "close jumps": _near,
}


def instances(n: int, d: int | None, count: int) -> tuple[list[str], Arrays]:
    """The family of each lane, and the lanes: `n × d`, or a `Quadratic` of size `n`."""
    rng = np.random.default_rng([n, d or 0])
    names, lanes = [], []
    for name, change in FAMILIES.items():
        if d == 1 and name not in ("random", "weight decay", "y = 0"):
            continue
        for _ in range(count * (1 + (name == "random"))):
            columns = d or n
            rows = n + (d is None)
            X, y = change(rng, rng.normal(size=(rows, columns)), rng.normal(size=rows))
            M = X.T @ X
            lane = {"X": X, "y": y} if d else {"M": M, "r": y @ X}
            lane["decay"] = np.array(0.1 if name == "weight decay" else 0.0)
            lane["u"] = np.exp(0.3 * rng.normal(size=columns))
            lane["v"] = 0.2 * rng.uniform(-1, 1, columns) * lane["u"]
            lane["s"] = np.sort(rng.uniform(0.5, 12, 3))
            lane["mu"] = np.sort(np.exp(rng.uniform(math.log(0.5), math.log(50), 3)))
            lane["x"] = rng.normal(size=columns)
            names.append(name)
            lanes.append(lane)
    return names, {key: np.stack([lane[key] for lane in lanes]) for key in lanes[0]}


def direction(rng: np.random.Generator, name: str, a: Arrays, keeps_rank: bool) -> np.ndarray:
    """Entries ±1; but those that keep the domain, or the rank where `keeps_rank`."""
    value = a[name]
    if name == "decay":
        return np.ones_like(value)
    v = rng.choice([-1.0, 1.0], value.shape)
    if name in ("M", "r"):
        s, V = np.linalg.eigh(a["M"])
        V = V[:, s > 1e-10 * np.max(s)]
        P = V @ V.T
        return P @ (v + v.T) @ P / 2 if name == "M" else P @ v
    if name == "X" and keeps_rank and np.linalg.matrix_rank(value) < min(value.shape):
        return value @ rng.choice([-1.0, 1.0], (value.shape[1],) * 2)
    return v


def problem_of(a: Arrays) -> dln.AbstractProblem:
    decay = a.get("decay", 0.0)
    if "M" in a:
        return dln.Quadratic(a["M"], a["r"], weight_decay=decay)
    return dln.LeastSquares(a["X"], a["y"], decay)


def uv(a: Arrays) -> dln.AbstractDualNetwork:
    return dln.UV(a["u"], a["v"])


def squared(a: Arrays) -> dln.AbstractDualNetwork:
    return dln.USquared(a["u"])


def deep(a: Arrays) -> dln.AbstractDualNetwork:
    return dln.Deep(a["u"], jnp.exp(a["v"]), depth=a["depth"])


def flow(network: Callable) -> Callable:
    def run(a: Arrays) -> Arrays:
        problem = problem_of(a)
        flow = dln.gradient_flow(
            network(a),
            problem,
            a["s"],
            log_eps=a["log_eps"],
            throw=False,
            rtol=FINE["rtol"],
            atol=FINE["atol"],
        )
        bound = dln.certificate(problem, flow)
        return {"x": flow.x, "x_mean": flow.x_mean, "z": flow.z, "certificate": bound}

    return run


def lasso(a: Arrays) -> Arrays:
    problem = problem_of(a)
    path = dln.lasso_path(problem, throw=False)
    point = dln.lasso(problem, a["mu"], gap_tol=1e-13, throw=False)
    gap = dln.suboptimality_gap(problem, a["x"], a["mu"], path=path)
    return {
        "path, x(μ)": path.x(a["mu"]),
        "path, knots": jnp.arcsinh(path.knots),
        "lasso, x": point.x,
        "gap": gap.absolute,
        "relative gap": gap.relative,
        "duality gap": problem.duality_gap(a["x"], a["decay"] + 1 / a["mu"]),
    }


def limit(network: Callable) -> Callable:
    def run(a: Arrays) -> Arrays:
        limit = dln.limit_flow(network(a), problem_of(a), throw=False)
        return {
            "x̄(s)": limit.x_mean(a["s"]),
            "plateaus": limit.plateau(a["s"]),
            "jumps": jnp.arcsinh(limit.jumps),
        }

    return run


def end(network: Callable) -> Callable:
    def run(a: Arrays) -> Arrays:
        end = dln.end_point(
            network(a), problem_of(a), log_eps=a["log_eps"], throw=False, max_steps=512
        )
        # With weight decay the dual diverges.
        return {"x": end.x, "dual": jnp.where(jnp.isinf(end.dual), 0, end.dual)}

    return run


class Group(NamedTuple):
    """What is measured in one batch."""

    name: str
    fn: Callable
    size: tuple[int, int | None]  # n × d; a `Quadratic` has none
    arguments: str
    log_eps: tuple[float, ...] = ()
    depth: float | None = None
    smooth: bool = False
    decay: float | None = None

    def step(self, name: str, lane: Arrays) -> float:
        """The largest one of the differences, which shrink by `ratio`."""
        if "log_eps" not in lane:
            return 1e-2
        if name in ("u", "v", "log_eps", "depth"):
            return 0.1
        if not self.smooth and name in ("y", "r") and not np.any(lane[name]):
            return 0.1 * math.exp(lane["log_eps"])  # the size of x
        return 0.3 / abs(float(lane["log_eps"]))  # x = exp(w log ε)

    @property
    def ratio(self) -> float:
        return 2.0 if self.smooth else 3.0


NAMES = {math.log(eps): f"{eps:.0e}" for eps in (1e-2, 1e-5, 1e-20)} | {-700.0: "e^-700"}
DECAYING = (math.log(1e-5), math.log(1e-20), -700.0)
DEEP = (math.log(1e-2), math.log(1e-5), math.log(1e-20))
FLOW = "X y decay u v log_eps s"
GROUPS = [
    Group("lasso", lasso, (3, 4), "X y decay mu x"),
    Group("lasso", lasso, (10, 6), "X y decay mu x"),
    Group("lasso", lasso, (5, 8), "X y decay mu x"),
    Group("lasso", lasso, (3, 1), "X y decay mu x"),
    Group("lasso", lasso, (4, None), "M r decay mu x"),
    Group("limit, UV", limit(uv), (3, 4), "X y decay s"),
    Group("limit, UV", limit(uv), (10, 6), "X y decay s"),
    Group("limit, UV", limit(uv), (5, 8), "X y decay s"),
    Group("limit, UV", limit(uv), (3, 1), "X y decay s"),
    Group("limit, UV", limit(uv), (4, None), "M r decay s"),
    Group("limit, USquared", limit(squared), (5, 8), "X y decay s"),
    Group("limit, D = 3", limit(deep), (3, 4), "X y u v depth s", depth=3.0),
    # With weight decay it is a lasso: at λ = 0 it jumps.
    Group("end, λ = 0.1", end(uv), (3, 4), "X y decay", DECAYING[:1], decay=0.1),
    Group("end, UV", end(uv), (3, 4), "X y u v log_eps", DECAYING, decay=0.0),
    Group("end, UV", end(uv), (10, 6), "X y u v log_eps", DECAYING, decay=0.0),
    Group("end, UV", end(uv), (4, None), "M r u v log_eps", DECAYING, decay=0.0),
    Group("end, D = 3", end(deep), (3, 4), "X y u v log_eps depth", DEEP, 3.0),
    Group("flow, UV", flow(uv), (3, 4), FLOW, DECAYING, smooth=True),
    Group("flow, UV", flow(uv), (10, 6), FLOW, DECAYING, smooth=True),
    Group("flow, UV", flow(uv), (5, 8), FLOW, DECAYING, smooth=True),
    Group("flow, UV", flow(uv), (3, 1), FLOW, DECAYING, smooth=True),
    Group("flow, UV", flow(uv), (4, None), "M r decay u v log_eps s", DECAYING, smooth=True),
    Group("flow, USquared", flow(squared), (3, 4), "X y decay u log_eps s", DECAYING, smooth=True),
    Group("flow, D = 3", flow(deep), (3, 4), "X y u v log_eps depth s", DEEP, 3.0, True),
]


def lanes_of(group: Group, count: int) -> tuple[list[str], Arrays]:
    families, lanes = instances(*group.size, count)
    if group.depth is not None:
        lanes["depth"] = np.full(len(families), group.depth)
        lanes["decay"] = 0 * lanes["decay"]
    if group.decay is not None:
        lanes["decay"] = np.full(len(families), group.decay)
    many = group.log_eps
    if many:
        repeat = lambda v: np.tile(v, (len(many),) + (1,) * (v.ndim - 1))
        lanes = {k: repeat(v) for k, v in lanes.items()}
        lanes["log_eps"] = np.repeat(many, len(families))
    return families * max(len(many), 1), lanes
