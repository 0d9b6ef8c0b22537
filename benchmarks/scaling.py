"""How cost grows: with ε, n, d, the batch; memory of a batch; reachable accuracy in float32."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._data import normal_batch
from ._report import seconds, write
from ._scaling_figures import draw
from ._timing import median
from .flow import dlnjax_flow
from .lasso import solve as lasso_paths

S = np.linspace(0, 20, 51)[1:]
RTOL = 1e-7


def _flow_row(n: int, d: int, log_eps: float, lanes: int) -> dict:
    X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d))
    flow = dlnjax_flow(d)
    run = lambda: flow(X, y, log_eps, S, RTOL)
    time = median(run)
    steps = np.asarray(run().stats["num_steps"])
    row = {"n": n, "d": d, "log_eps": log_eps, "lanes": lanes, "seconds": time}
    row |= {"steps": float(steps.mean()), "most_steps": int(steps.max())}
    print(
        f"  flow {n:4d} × {d:<5d} ln ε = {log_eps:9.4g} {lanes:6d} lanes: "
        f"{seconds(time / lanes):>8s} a lane, {steps.mean():.0f} steps (most {steps.max()})",
        flush=True,
    )
    return row


def _path_row(n: int, d: int, lanes: int) -> dict:
    X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d))
    time = median(lambda: lasso_paths(X, y))
    knots = np.asarray(lasso_paths(X, y).num_knots)
    print(
        f"  path {n:4d} × {d:<5d} {lanes:6d} lanes: {seconds(time / lanes):>8s} a lane, "
        f"{knots.mean():.0f} knots (most {knots.max()})",
        flush=True,
    )
    row = {"n": n, "d": d, "lanes": lanes, "seconds": time}
    return row | {"knots": float(knots.mean()), "most_knots": int(knots.max())}


def against_eps(quick: bool) -> list[dict]:
    values = [math.log(10.0**-k) for k in (2, 3, 5, 10, 20, 50, 100)] + [-700.0, -2000.0, -5000.0]
    shapes = [(3, 4, 64)] if quick else [(3, 4, 256), (20, 40, 16)]
    values = values[2::7] if quick else values
    return [_flow_row(n, d, v, lanes) for n, d, lanes in shapes for v in values]


def against_n(quick: bool) -> dict:
    sizes = (5,) if quick else (5, 10, 20, 50, 100, 200)
    log_eps = math.log(1e-20)
    return {
        "flow": [_flow_row(n, 2 * n, log_eps, 1) for n in sizes],
        "path": [_path_row(n, 2 * n, 1) for n in sizes],
    }


def against_d(quick: bool) -> dict:
    sizes = (40,) if quick else (40, 100, 400, 1000, 4000, 10_000)
    log_eps = math.log(1e-20)
    return {
        "flow": [_flow_row(20, d, log_eps, 1) for d in sizes],
        "path": [_path_row(20, d, 1) for d in sizes],
    }


def against_batch(quick: bool) -> dict:
    sizes = (1, 100) if quick else (1, 10, 100, 1000, 10_000)
    log_eps = math.log(1e-5)
    return {
        "flow": [_flow_row(3, 4, log_eps, lanes) for lanes in sizes],
        "path": [_path_row(3, 4, lanes) for lanes in sizes],
    }


def _temporary(function: Callable, *arguments) -> int:
    analysis: Any = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def memory(quick: bool) -> list[dict]:
    """Bytes of temporaries that XLA reserves for flows, against lanes, with a linear fit; nothing
    runs. (Paths run in chunks: from some lanes on they take no more.)"""
    shapes = [(3, 4)] if quick else [(3, 4), (20, 40), (50, 100)]
    lanes = (1, 100) if quick else (1, 10, 100, 1000)
    rows = []
    for n, d in shapes:
        flow = dlnjax_flow(d)
        solve = lambda X, y, flow=flow: flow(X, y, math.log(1e-5), S, RTOL)
        shape = lambda *size: jax.ShapeDtypeStruct(size, np.float64)
        sizes = [_temporary(solve, shape(k, n, d), shape(k, n)) for k in lanes]
        # Relative residuals, so that small batches count as much as large ones.
        weights = 1 / np.asarray(sizes, float)
        slope, constant = np.polyfit(lanes, sizes, 1, w=weights)
        off = float(np.max(np.abs(slope * np.asarray(lanes) + constant - sizes) * weights))
        rows.append(
            {
                "what": "flow",
                "n": n,
                "d": d,
                "lanes": list(lanes),
                "bytes": sizes,
                "bytes_a_lane": float(slope),
                "constant": float(constant),
                "largest_relative_residual": off,
            }
        )
        print(
            f"  flow {n} × {d}: {slope / 1e3:.3g} kB a lane + {constant / 1e3:.3g} kB "
            f"(fit within {100 * off:.1f} %)",
            flush=True,
        )
    return rows


def single_precision(quick: bool) -> list[dict]:
    """Error of `x_mean` in float32 against float64 at rtol 1e-11, by tolerance."""
    lanes, n, d = (8, 3, 4) if quick else (32, 10, 20)
    X, y = normal_batch(lanes, n, d)
    flow = dlnjax_flow(d)
    rows = []
    for eps in (1e-5, 1e-20):
        reference = np.asarray(flow(X, y, math.log(eps), S, 1e-11).x_mean)
        scale = np.abs(reference).max(axis=(1, 2))
        for rtol in (1e-2, 1e-4) if quick else (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
            single = flow(X.astype(np.float32), y.astype(np.float32), math.log(eps), S, rtol)
            double = flow(X, y, math.log(eps), S, rtol)
            errors = [
                np.abs(np.asarray(f.x_mean, float) - reference).max(axis=(1, 2)) / scale
                for f in (single, double)
            ]
            done = np.isfinite(errors[0])
            row = {
                "eps": eps,
                "rtol": rtol,
                "float32": float(np.median(errors[0][done])) if done.any() else math.inf,
                "float32_worst": float(np.max(errors[0][done])) if done.any() else math.inf,
                "failed": int(np.sum(~done)),
                "float64": float(np.median(errors[1])),
                "float64_worst": float(np.max(errors[1])),
                "steps": float(np.mean(np.asarray(single.stats["num_steps"]))),
            }
            rows.append(row)
            print(
                f"  ε = {eps:g}, rtol {rtol:g}: float32 {row['float32']:.1e} (worst lane "
                f"{row['float32_worst']:.1e}, failed {row['failed']} of {lanes}), float64 "
                f"{row['float64']:.1e} (worst {row['float64_worst']:.1e}), "
                f"{row['steps']:.0f} steps",
                flush=True,
            )
    return rows


PARTS = {
    "eps": against_eps,
    "n": against_n,
    "d": against_d,
    "batch": against_batch,
    "memory": memory,
    "float32": single_precision,
}


def main(out: Path, quick: bool) -> None:
    results: dict = {"settings": {"rtol": RTOL, "s": "50 points on (0, 20]", "quick": quick}}
    for name, part in PARTS.items():
        print(f"\n{name}")
        results[name] = part(quick)
        write(out, "scaling", results)
    draw(out, results)
