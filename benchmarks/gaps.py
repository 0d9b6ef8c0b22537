"""How far the averaged flow is from the lasso path and from its limit: two tables.

- *gaps*: of `UV` (`β = 1`, `γ = 0`) on iid normal `X` and `y`, for sizes and `ε` down to the limit
  `ε = 0`: the fraction of monotone paths, the largest relative gap over `s`, and the largest gap
  over the largest `η` ([B25] Theorem 2.2). `s` runs over 200 points, geometrically from half of the
  first knot of the lasso path to twice its last one.
- *limit*: `max_s |x̄^ε − x̄⁰| / max_s |x̄⁰|`, times `log(1/ε)` at depth 2 and `ε^{2/D−1}` at depth
  `D > 2`.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

from ._data import normal_batch
from ._report import write

QUANTILES = (0.5, 0.95, 1.0)
LOG_EPS = {"1e-5": np.log(1e-5), "1e-20": np.log(1e-20), "1e-100": np.log(1e-100), "0": -np.inf}


def _grid(path: dln.PiecewiseLinearPath) -> jax.Array:
    last = path.knots[-1]
    return jnp.geomspace(0.5 * path.knots[0], 2 * last, 200)


@eqx.filter_jit
def _paths(X, y):
    def one(X, y):
        path = dln.lasso_path(dln.LeastSquares(X, y), throw=False)
        return path.is_monotone(), path.result == dln.RESULTS.successful

    return jax.vmap(one)(X, y)


def _gap_of(is_limit: bool):
    """Of one lane `(X, y, log ε)`: the largest relative gap, the largest gap, the largest `η` and
    the largest ratio of the two at the same `s`; NaN if a solver failed."""

    def one(X, y, log_eps):
        problem = dln.LeastSquares(X, y)
        network = dln.UV(jnp.ones(X.shape[1]), jnp.zeros(X.shape[1]))
        path = dln.lasso_path(problem, throw=False)
        s = _grid(path)
        if is_limit:
            run = dln.limit_flow(network, problem, throw=False)
            x_mean = run.x(s)
        else:
            run = dln.gradient_flow(network, problem, s, log_eps=log_eps, throw=False)
            x_mean = run.x_mean
        gap = dln.suboptimality_gap(problem, x_mean, s, path=path)
        eta = dln.eta(problem.weight_decay, s, path.downward_variation(s))
        ratio = jnp.where(eta > 0, gap.absolute / jnp.where(eta > 0, eta, 1), 0)
        good = (path.result == dln.RESULTS.successful) & (run.result == dln.RESULTS.successful)
        values = jnp.stack([gap.relative, gap.absolute, eta, ratio])
        return jnp.where(good, jnp.max(values, axis=1), jnp.nan)

    return one


# One function each, so that lanes of one size compile once.
_GAP_OF_FLOW, _GAP_OF_LIMIT = _gap_of(False), _gap_of(True)


def _quantiles(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(values, QUANTILES)] if len(values) else []


def gaps(n: int, d: int, lanes: int) -> dict:
    X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d))
    monotone, good = map(np.asarray, _paths(X, y))
    row = {
        "n": n,
        "d": d,
        "instances": lanes,
        "paths_solved": int(good.sum()),
        "monotone_fraction": float(monotone[good].mean()),
        "eps": {},
    }
    for name, log_eps in LOG_EPS.items():
        one = _GAP_OF_LIMIT if name == "0" else _GAP_OF_FLOW
        values = dln.batched(one, X, y, np.full(lanes, log_eps))
        relative, absolute, eta, ratio = np.asarray(values).T
        known = np.isfinite(relative)
        down = known & ~monotone
        cell = {
            "solved": int(known.sum()),
            "relative_gap_monotone": _quantiles(relative[known & monotone]),
            "relative_gap_other": _quantiles(relative[down]),
            "gap_over_eta_other": _quantiles(absolute[down] / eta[down]),
        }
        if name == "0":
            cell["gap_over_eta_at_same_s_other"] = _quantiles(ratio[down])
        row["eps"][name] = cell
        show = lambda v: " ".join(f"{x:8.2e}" for x in v) or "-"
        print(
            f"  {n:3d} × {d:3d}  ε = {name:6s}  solved {known.sum()}/{lanes}  "
            f"monotone: {show(cell['relative_gap_monotone'])}  "
            f"others: {show(cell['relative_gap_other'])}  "
            f"over η: {show(cell['gap_over_eta_other'])}",
            flush=True,
        )
    return row


def _distance_at(depth: float | int):
    def one(X, y, log_eps):
        problem = dln.LeastSquares(X, y)
        d = X.shape[1]
        network = dln.Deep(jnp.ones(d), jnp.ones(d), depth=depth)
        limit = dln.limit_flow(network, problem, throw=False)
        s = jnp.geomspace(0.5 * limit.knots[0], 2 * limit.knots[-1], 400)
        flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, throw=False)
        good = (limit.result == dln.RESULTS.successful) & (flow.result == dln.RESULTS.successful)
        size = jnp.max(jnp.abs(limit.x(s)))
        return jnp.where(good, jnp.max(jnp.abs(flow.x_mean - limit.x(s))) / size, jnp.nan)

    return one


def limit(n: int, d: int, lanes: int, depth: float | int, log_eps: list[float]) -> list[dict]:
    X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d, seed=1))
    rows, one = [], _distance_at(depth)
    for size in log_eps:
        distance = np.asarray(dln.batched(one, X, y, np.full(lanes, size)))
        known = np.isfinite(distance)
        unit = 1 / -size if depth == 2 else np.exp((1 - 2 / depth) * size)
        rows.append(
            {
                "n": n,
                "d": d,
                "depth": depth,
                "log_eps": size,
                "instances": lanes,
                "solved": int(known.sum()),
                "distance": _quantiles(distance[known]),
                "distance_scaled": _quantiles(distance[known] / unit),
            }
        )
        scaled = " ".join(f"{v:8.3g}" for v in rows[-1]["distance_scaled"])
        print(
            f"  {n:3d} × {d:3d}  D = {depth:g}  log ε = {size:8.1f}  solved {known.sum()}/{lanes}  "
            f"distance {rows[-1]['distance'][0]:9.2e} (median), scaled {scaled}",
            flush=True,
        )
    return rows


def main(out: Path, quick: bool) -> None:
    content: dict = {"settings": {"quick": quick, "quantiles": QUANTILES}, "gaps": [], "limit": []}
    print(f"\ngaps: quantiles {QUANTILES} over instances of the maximum over s")
    sizes = [(3, 4, 1000), (5, 8, 1000), (10, 20, 500), (20, 40, 200)]
    for n, d, lanes in [(3, 4, 16)] if quick else sizes:
        content["gaps"].append(gaps(n, d, lanes))
        write(out, "gaps", content)
    print(f"\nlimit: quantiles {QUANTILES} over instances")
    cases: list[tuple[float | int, list[float]]] = [
        (2, [-11.5, -50.0, -200.0, -500.0, -1000.0, -2000.0]),
        (3.0, [-7.0, -14.0, -28.0, -42.0, -56.0]),
        (4.0, [-5.0, -10.0, -20.0, -30.0, -40.0]),
    ]
    for depth, log_eps in cases:
        for n, d, lanes in [(3, 4, 16)] if quick else [(3, 4, 200), (10, 20, 50)]:
            content["limit"] += limit(n, d, lanes, depth, log_eps[:2] if quick else log_eps)
            write(out, "gaps", content)
