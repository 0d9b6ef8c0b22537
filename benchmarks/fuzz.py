"""`python -m benchmarks.fuzz [--problems N] [--seed K] [--out DIR]`: random problems, most of them
degenerate or badly scaled, through `lasso_path`, `limit_flow`, `gradient_flow` and `interpolator`.

Every result that is not flagged is checked, in units where `X` and `y` are of order 1: paths,
limits and end points in NumPy, by formulas that share nothing with the solvers; of flows only that
they are consistent:

- *path*, *limit*, and *end* with weight decay: the optimality conditions `|c| ≤ κ`, and
  `c = κ sign x` on the support, of `c = Xᵀ(y − Xx)` (for the limit: of `x̄` and the sign of its
  plateaus), at knots, between them and beyond, relative to `max |Xᵀy|`;
- *end* without: `c = 0`, relative to `‖X‖(‖y‖ + ‖X‖ max |x|)`, for singular values below rounding
  count as 0;
- *flow*: `dual = s Xᵀ(y − Xx̄)`, relative to `s max |Xᵀy|`, and that the lasso gap is below the
  certificate, relative to `½‖y‖²`.

What exceeds `WRONG`, or is not finite, is *wrong*. Prints a tally; writes fuzz.json, which names
the seed of every wrong result.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln
from dlnjax._solution import result_code, result_names

from ._report import write

SIZES = ((1, 1), (1, 3), (2, 2), (3, 1), (3, 4), (4, 3), (5, 8), (6, 6))
BATCH = 512
WRONG = 1e-6
MAX_STEPS = 4096  # of flows
Arrays = dict[str, Any]


def problems(rng: np.random.Generator, n: int, d: int) -> Arrays:
    """A batch; each lane has every defect with some probability."""
    lanes = [problem(rng, n, d) for _ in range(BATCH)]
    return {key: np.stack([lane[key] for lane in lanes]) for key in lanes[0]}


def problem(rng: np.random.Generator, n: int, d: int) -> Arrays:
    kind = rng.integers(4)
    if kind == 0:
        X, y = rng.choice([-1.0, 1.0], (n, d)), rng.choice([-1.0, 1.0], n)
    elif kind == 1:
        X, y = rng.integers(-2, 3, (n, d)).astype(float), rng.integers(-2, 3, n).astype(float)
    else:
        X, y = rng.normal(size=(n, d)), rng.normal(size=n)
    happens = lambda probability: rng.random() < probability
    i, j = rng.integers(d), rng.integers(d)
    if happens(0.2):  # (almost) the same column, or its negative
        X[:, i] = rng.choice([-1, 1]) * X[:, j] + happens(0.7) * 10 ** rng.uniform(
            -16, -1
        ) * rng.normal(size=n)
    if happens(0.1):
        X[:, i] = 0
    if happens(0.1):  # (almost) rank deficient
        U, s, V = np.linalg.svd(X, full_matrices=False)
        s[-1] *= happens(0.5) * 10 ** rng.uniform(-16, 0)
        X = (U * s) @ V
    if happens(0.1):
        X = X * 10 ** rng.uniform(-6, 6, d)
    if happens(0.1):
        y = X[:, j] * rng.choice([-1, 1]) + happens(0.5) * 10 ** rng.uniform(-16, -1) * y
    if happens(0.03):
        y = 0 * y
    X_scale, y_scale = 10 ** (rng.uniform(-12, 12, 2) * happens(0.5))
    size = np.max(np.abs(X.T @ y)) * X_scale * y_scale
    size = size if size > 0 else X_scale * y_scale
    return {
        "X": X_scale * X,
        "y": y_scale * y,
        "decay": np.array(happens(0.3) * size * 10 ** rng.uniform(-4, 0.2)),
        "s": np.sort(10 ** rng.uniform(-0.5, 3, 6)) / size,
        "log_eps": np.array(-(10 ** rng.uniform(0.5, 2.8))),
        "X_scale": X_scale,
        "y_scale": y_scale,
    }


@jax.jit
@jax.vmap
def solve(a: Arrays) -> Arrays:
    problem = dln.LeastSquares(a["X"], a["y"], a["decay"])
    network = dln.UV(jnp.ones_like(a["X"][0]), jnp.zeros_like(a["X"][0]))
    path = dln.lasso_path(problem, throw=False)
    limit = dln.limit_flow(network, problem, throw=False)
    flow = dln.gradient_flow(
        network, problem, a["s"], log_eps=a["log_eps"], throw=False, max_steps=MAX_STEPS
    )
    end = dln.interpolator(network, problem, log_eps=a["log_eps"], throw=False)
    out: Arrays = {}
    for name, run in {"path": path, "limit": limit}.items():
        middle = jnp.sqrt(run.knots[:-1]) * jnp.sqrt(run.knots[1:])
        at = jnp.concatenate([run.knots, middle, 10 * run.knots[-1:]])
        out[name] = {"at": at, "x": run.x(at), "slope": run.slope(at)}
    gap = dln.suboptimality_gap(problem, flow.x_mean, a["s"], path=path).absolute
    bound = dln.certificate(problem, flow)
    out["flow"] = {"x": flow.x_mean, "dual": flow.dual, "gap": gap, "bound": bound}
    out["end"] = {"x": end.x}
    results = {"path": path, "limit": limit, "flow": flow, "end": end}
    return out | {"results": {name: result_code(run.result) for name, run in results.items()}}


def conditions(c: np.ndarray, kappa: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Largest violation in each row of `c`."""
    bound = np.maximum(np.abs(c) - kappa[..., None], 0)
    mismatch = np.where(sign != 0, np.abs(c - kappa[..., None] * sign), 0)
    return np.maximum(bound, mismatch).max(axis=-1)


@np.errstate(all="ignore")
def violations(a: Arrays, out: Arrays) -> dict[str, np.ndarray]:
    """Of each result, relative; NaN counts as infinite."""
    X, y = a["X"] / a["X_scale"][:, None, None], a["y"] / a["y_scale"][:, None]
    unit, x_unit = a["X_scale"] * a["y_scale"], a["y_scale"] / a["X_scale"]
    decay, r = a["decay"] / unit, np.einsum("lij,li->lj", X, y)
    size = np.max(np.abs(r), axis=1)
    size = np.where(size > 0, size, 1)

    def correlation(x: np.ndarray) -> np.ndarray:
        rest = y[:, None] - np.einsum("lij,lkj->lki", X, x / x_unit[:, None, None])
        return np.einsum("lij,lki->lkj", X, rest)

    found = {}
    for name in ("path", "limit"):
        at, x, slope = (out[name][key] for key in ("at", "x", "slope"))
        kappa = decay[:, None] + 1 / (at * unit[:, None])
        support = x if name == "path" else slope
        known = ~(at <= 0) & ~np.isinf(at)
        worst = conditions(correlation(x), kappa, np.sign(support)) / size[:, None]
        found[name] = np.max(np.where(known, worst, 0), axis=1)
    x = out["end"]["x"][:, None]
    sign = np.sign(np.where(decay[:, None, None] > 0, x, 0))
    norm, x_size = np.linalg.norm(X, axis=(1, 2)), np.max(np.abs(x[:, 0]), axis=1) / x_unit
    backward = norm * (np.linalg.norm(y, axis=1) + norm * x_size)
    relative_to = np.where(decay > 0, size, np.where(backward > 0, backward, 1))
    found["end"] = conditions(correlation(x), decay[:, None], sign)[:, 0] / relative_to
    flow, s = out["flow"], a["s"] * unit[:, None]
    off = flow["dual"] - s[..., None] * correlation(flow["x"])
    dual = np.max(np.abs(off), axis=2) / (1 + s * size[:, None])
    scale = np.sum(y**2, axis=1)[:, None] / 2
    above = (flow["gap"] - flow["bound"]) / a["y_scale"][:, None] ** 2
    above = np.where(np.isfinite(above), np.maximum(above, 0), np.where(above < 0, 0, np.inf))
    above = above / np.where(scale > 0, scale, 1)
    # Without a path there is no gap.
    above = np.where((out["results"]["path"] == 0)[:, None], above, 0)
    found["flow"] = np.max(np.maximum(dual, above), axis=1)
    return {name: np.where(np.isnan(v), np.inf, v) for name, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    names = result_names()
    tally: dict[str, Counter] = {name: Counter() for name in ("path", "limit", "flow", "end")}
    worst = dict.fromkeys(tally, 0.0)
    wrong: list[dict] = []
    done = batch = 0
    while done < options.problems:
        n, d = SIZES[batch % len(SIZES)]
        a = problems(np.random.default_rng([options.seed, batch]), n, d)
        out = jax.device_get(solve(a))
        for name, violation in violations(a, out).items():
            codes = out["results"][name]
            tally[name].update(names[code] for code in codes.tolist())
            good = codes == 0
            right = violation[good & (violation <= WRONG)]
            worst[name] = max(worst[name], float(np.max(right, initial=0)))
            for lane in np.flatnonzero(good & (violation > WRONG)).tolist():
                tally[name]["wrong"] += 1
                found = {"of": name, "seed": [options.seed, batch], "size": [n, d], "lane": lane}
                wrong.append(found | {"violation": float(violation[lane])})
        done, batch = done + BATCH, batch + 1
        counts = {name: tally[name]["wrong"] for name in tally}
        print(f"{done} problems; wrong: {counts}", flush=True)
    content = {"settings": {"problems": done, "seed": options.seed, "wrong": WRONG}}
    content |= {"tally": tally, "worst_not_wrong": worst, "wrong": wrong}
    for name, counts in tally.items():
        print(f"{name:6s} worst {worst[name]:.1e}; {dict(counts)}")
    write(options.out, "fuzz", content)


if __name__ == "__main__":
    main()
