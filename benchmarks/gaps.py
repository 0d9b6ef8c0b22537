"""How far the averaged flow is from the lasso path and from its limit: two tables.

- *gaps*: the sweep `studies/sizes.toml`, of `UV` (`β = 1`, `γ = 0`) on iid normal `X` and `y`, for
  sizes and `ε` down to the limit `ε = 0`: the fraction of monotone paths, the largest relative gap
  over `s`, and the largest gap over the largest `η` ([B25] Theorem 2.2). `s` runs over 200 points,
  geometrically from half of the first knot of the lasso path to twice its last one.
- *limit*: `max_s |x̄^ε − x̄⁰| / max_s |x̄⁰|`, times `log(1/ε)` at depth 2 and `ε^{2/D−1}` at depth
  `D > 2`.
"""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import dlnjax as dln
from dlnjax._sweep.toml import read_sweep
from dlnjax.plot import eps_label

from ._data import normal_batch
from ._report import write

QUANTILES = (0.5, 0.95, 1.0)
STUDY = Path(__file__).parent.parent / "studies" / "sizes.toml"


def _quantiles(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(values, QUANTILES)] if len(values) else []


def gaps(quick: bool) -> list[dict]:
    sweep = read_sweep(STUDY)
    if quick:
        sweep = dln.Sweep(
            sizes=[(3, 4)], instances=16, metrics=sweep.metrics, log_eps=sweep.log_eps[:1]
        )
    with tempfile.TemporaryDirectory() as folder:
        data = dln.run_sweep(sweep, Path(folder, "store")).isel(network=0, weight_decay=0).load()
    return [_gaps_of(data.isel(size=k)) for k in range(data.sizes["size"])]


def _gaps_of(data) -> dict:
    """Of one size."""
    monotone, eta = data["is_monotone"].values, data["max_eta"].values
    good, n, d = np.isfinite(monotone), data["n"].item(), data["d"].item()
    row = {
        "n": n,
        "d": d,
        "instances": len(monotone),
        "paths_solved": int(good.sum()),
        "monotone_fraction": float(monotone[good].mean()),
        "eps": {},
    }
    runs = {eps_label(at): data.sel(log_eps=at) for at in data["log_eps"].values}
    runs = {eps: (run["max_gap"], run["max_relative_gap"]) for eps, run in runs.items()}
    runs["0"] = data["max_gap_of_limit"], data["max_relative_gap_of_limit"]
    for name, (gap, relative) in runs.items():
        relative, ratio = relative.values, gap.values / np.where(eta > 0, eta, 1)
        known = np.isfinite(relative)
        down = known & (monotone == 0)
        cell = row["eps"][name] = {
            "solved": int(known.sum()),
            "relative_gap_monotone": _quantiles(relative[known & (monotone == 1)]),
            "relative_gap_other": _quantiles(relative[down]),
            "gap_over_eta_other": _quantiles(ratio[down]),
        }
        show = lambda v: " ".join(f"{x:8.2e}" for x in v) or "-"
        print(
            f"  {n:3d} × {d:3d}  ε = {name:6s}  solved {known.sum()}/{len(known)}  "
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
        size = jnp.max(jnp.abs(limit.x_mean(s)))
        return jnp.where(good, jnp.max(jnp.abs(flow.x_mean - limit.x_mean(s))) / size, jnp.nan)

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
    content["gaps"] = gaps(quick)
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
