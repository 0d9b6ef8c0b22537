"""`python -m benchmarks.fuzz [--problems N] [--seed K] [--out DIR]`: random problems, most of them
degenerate or badly scaled, through `lasso_path`, `limit_flow`, `gradient_flow` and `interpolator`.

`_fuzz_checks.py` says how every result that is not flagged is checked. What exceeds `WRONG`, or is
not finite, is *wrong*. Prints a tally; writes fuzz.json, which names the seed of every wrong
result.
"""

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln
from dlnjax._solution import result_code, result_names

from ._fuzz_checks import integrated, violations
from ._report import write

# Rows, columns, and whether the network is `USquared`, with `x ≥ 0`, or `UV`.
SIZES = ((3, 4, False), (4, 3, False), (3, 4, True))
BATCH = 512
SAMPLED = 2  # flows of a batch that SciPy integrates as well
# Flows are to 1e-7 and 1e-8 a step, of which there are some hundred.
WRONG = {"path": 1e-6, "limit": 1e-6, "end": 1e-6}
WRONG |= {"flow, dual": 1e-5, "flow, link": 1e-5, "flow, gap": 1e-6, "flow, bound": 1e-5}
WRONG |= {"flow, integration": 1e-4}
MAX_STEPS = 1024  # of flows: four times what 95 % of them take
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


@jax.jit(static_argnums=1)
def solve(batch: Arrays, positive: bool) -> Arrays:
    return jax.vmap(lambda lane: _solve(lane, positive))(batch)


def _solve(a: Arrays, positive: bool) -> Arrays:
    problem = dln.LeastSquares(a["X"], a["y"], a["decay"])
    ones = jnp.ones_like(a["X"][0])
    network = dln.USquared(ones) if positive else dln.UV(ones, 0 * ones)
    path = dln.lasso_path(problem, positive=positive, throw=False)
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
    out["flow"] = {"x": flow.x, "x_mean": flow.x_mean, "dual": flow.dual}
    out["flow"] |= {"gap": gap, "bound": bound, "lasso": path.x(a["s"])}
    out["end"] = {"x": end.x}
    results = {"path": path, "limit": limit, "flow": flow, "end": end}
    return out | {"results": {name: result_code(run.result) for name, run in results.items()}}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    names = result_names()
    tally: dict[str, Counter] = {name: Counter() for name in ("path", "limit", "flow", "end")}
    wrong_counts, worst = dict.fromkeys(WRONG, 0), dict.fromkeys(WRONG, 0.0)
    integrations = {"done": 0, "failed": 0}  # by SciPy
    wrong: list[dict] = []
    done = batch = 0
    start = time.perf_counter()
    while done < options.problems:
        n, d, positive = SIZES[batch % len(SIZES)]
        seed = [options.seed, batch]
        a = problems(np.random.default_rng(seed), n, d)
        out = jax.device_get(solve(a, positive))
        codes = out["results"]
        found = violations(a, out, positive)
        of_scipy = np.zeros(BATCH)
        for lane in np.flatnonzero(codes["flow"] == 0)[:SAMPLED].tolist():
            error = integrated(a, out, positive, lane)
            integrations["failed" if error is None else "done"] += 1
            of_scipy[lane] = error or 0
        found["flow, integration"] = of_scipy
        for name, counts in tally.items():
            counts.update(names[code] for code in codes[name].tolist())
        for name, violation in found.items():
            good = codes[name.split(",")[0]] == 0
            right = violation[good & (violation <= WRONG[name])]
            worst[name] = max(worst[name], float(np.max(right, initial=0)))
            for lane in np.flatnonzero(good & ~(violation <= WRONG[name])).tolist():
                wrong_counts[name] += 1
                case = {"of": name, "seed": seed, "size": [n, d], "positive": positive}
                wrong.append(case | {"lane": lane, "violation": float(violation[lane])})
                print(wrong[-1], flush=True)
        done, batch = done + BATCH, batch + 1
        seconds = time.perf_counter() - start
        print(f"{done} problems in {seconds:.0f} s; {len(wrong)} wrong", flush=True)
    settings = {"problems": done, "seed": options.seed, "sizes": SIZES, "wrong": WRONG}
    content: dict[str, Any] = {"settings": settings, "tally": tally, "integrations": integrations}
    content |= {"wrong_counts": wrong_counts, "worst_not_wrong": worst, "wrong": wrong}
    for name, counts in tally.items():
        print(f"{name:6s} {dict(counts)}")
    for name, count in wrong_counts.items():
        print(f"{name:18s} {count} wrong; worst of the others {worst[name]:.1e}")
    write(options.out, "fuzz", content)


if __name__ == "__main__":
    main()
