"""What this machine can do, and how far the flow is from it.

Two bounds for the flow in rows (`n < d`), from its flops counted by formula:
- *peak*: every flop at the rate of a large matrix product, which products with vectors never reach;
- *kernels*: each kind of work at the rate measured here for that kernel at the same sizes.
"""

import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np

from ._data import normal_batch
from ._report import write
from ._timing import median
from .flow import dlnjax_flow

STAGES = 8
S = np.linspace(0, 20, 51)[1:]
REPEATS = 64  # of a small kernel inside one call, so that dispatch does not count


def rate(run: Callable, work: float) -> float:
    return work / median(run, 5)


def _inside(kernel: Callable, *operands) -> Callable:
    """`REPEATS` dependent calls of a kernel in one compiled loop."""

    @jax.jit
    def run(operands):
        def again(_, carry):
            out = kernel(*operands[:-1], operands[-1] + carry)
            # Depends on the result without changing the operand, as XLA cannot know.
            return jnp.where(jnp.isnan(jnp.sum(out)), 1.0, 0.0)

        return lax.fori_loop(0, REPEATS, again, 0.0)

    return lambda: run(operands)


def machine_limits(quick: bool) -> dict[str, float]:
    size = 300 if quick else 1000
    rng = np.random.default_rng(0)
    A = rng.normal(size=(size, size))
    device = jnp.asarray(A)
    product = jax.jit(lambda a: a @ a)
    big = jnp.ones(200_000 if quick else 20_000_000)
    copy = jax.jit(lambda v: v + 1.0)
    exponential = jax.jit(jnp.exp)
    numbers = jnp.linspace(-1, 1, 100_000 if quick else 1_000_000)
    limits = {
        "gemm_jax_gflops": 1e-9 * rate(lambda: product(device), 2 * size**3),
        "gemm_numpy_gflops": 1e-9 * rate(lambda: A @ A, 2 * size**3),
        "exp_per_second_1e9": 1e-9 * rate(lambda: exponential(numbers), numbers.size),
        # One read and one write of each number.
        "bandwidth_gb_per_second": 1e-9 * rate(lambda: copy(big), 16 * big.size),
    }
    for m, count in ((3, 1000), (20, 200)) if quick else ((3, 10_000), (20, 500), (50, 64)):
        matrix = jnp.asarray(np.broadcast_to(np.eye(m) * m + 0.1, (count, m, m)))
        factor = jax.jit(lambda a: lax.linalg.cholesky(a, symmetrize_input=False))
        limits[f"cholesky_{m}_per_second"] = rate(lambda f=factor, a=matrix: f(a), count)
    for name, value in limits.items():
        print(f"  {name:28s} {value:12.4g}")
    return limits


def kernel_seconds(n: int, d: int) -> dict[str, float]:
    """Seconds of each kernel of a step, at its sizes, one lane."""
    X = jnp.asarray(normal_batch(1, n, d)[0][0])
    matrix = X @ X.T + jnp.eye(n)
    factor = jnp.linalg.cholesky(matrix)

    def solves(factor, v):
        half = lax.linalg.triangular_solve(factor, v[:, None], left_side=True, lower=True)
        return lax.linalg.triangular_solve(
            factor, half, left_side=True, lower=True, transpose_a=True
        )

    operations = {
        "product with X": _inside(lambda X, v: X @ v, X, jnp.ones(d)),
        "product with Xᵀ": _inside(lambda X, v: v @ X, X, jnp.ones(n)),
        "X E Xᵀ": _inside(lambda X, e: (X * e) @ X.T, X, jnp.ones(d)),
        "Cholesky": _inside(lambda a: lax.linalg.cholesky(a, symmetrize_input=False), matrix),
        "two triangular solves": _inside(solves, factor, jnp.ones(n)),
        "exp": _inside(jnp.exp, jnp.ones(2 * d)),
    }
    return {name: median(run, 3) / REPEATS for name, run in operations.items()}


# How often each kernel is needed in a step: a field evaluation is Xᵀν, exp, Xx; a stage adds its
# solve and the quadrature's Xᵀ(…). Linearising needs Xᵀν and exp once more.
COUNTS = {
    "product with X": STAGES,
    "product with Xᵀ": 2 * STAGES + 1,
    "X E Xᵀ": 1,
    "Cholesky": 1,
    "two triangular solves": STAGES,
    "exp": STAGES + 1,
}


def flops(n: int, d: int) -> dict[str, float]:
    """Of one call of each kernel; an exp counts for none (it has its own limit)."""
    return {
        "product with X": 2 * n * d,
        "product with Xᵀ": 2 * n * d,
        "X E Xᵀ": n * d + 2 * n * n * d,
        "Cholesky": n**3 / 3,
        "two triangular solves": 2 * n * n,
        "exp": 0,
    }


def bound(n: int, d: int, lanes: int, limits: dict[str, float]) -> dict:
    X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d))
    flow, log_eps, rtol = dlnjax_flow(d), math.log(1e-20), 1e-7
    run = lambda: flow(X, y, log_eps, S, rtol)
    steps = int(np.sum(np.asarray(run().stats["num_steps"])))
    time = median(run) / steps
    one = flops(n, d)
    work = sum(COUNTS[k] * one[k] for k in COUNTS)
    peak = work / (1e9 * limits["gemm_jax_gflops"])
    peak += COUNTS["exp"] * 2 * d / (1e9 * limits["exp_per_second_1e9"])
    each = kernel_seconds(n, d)
    parts = {k: COUNTS[k] * each[k] for k in COUNTS}
    kernels = sum(parts.values())
    print(
        f"  {n} × {d}, {lanes} lane(s): {1e6 * time:.3g} µs a step and lane, {work / 1e6:.3g} "
        f"Mflop; {time / peak:.1f}× the bound at peak, {time / kernels:.2f}× that of its kernels"
    )
    print("    " + ", ".join(f"{k} {1e6 * v:.3g} µs" for k, v in parts.items()), flush=True)
    return {
        "n": n,
        "d": d,
        "lanes": lanes,
        "steps": steps,
        "seconds_a_step": time,
        "flop_a_step": work,
        "peak_seconds_a_step": peak,
        "kernel_seconds_a_step": kernels,
        "parts_seconds_a_step": parts,
        "over_peak": time / peak,
        "over_kernels": time / kernels,
    }


def main(out: Path, quick: bool) -> None:
    print("\nlimits of this machine")
    limits = machine_limits(quick)
    print("\ntime of a step of the flow, ε = 1e-20, 50 points saved, against its bounds")
    full = [
        (50, 100, 1),
        (50, 100, 16),
        (100, 200, 1),
        (200, 400, 1),
        (200, 1000, 1),
        (63, 2308, 1),
    ]
    cases = [(20, 40, 1)] if quick else full
    content = {"settings": {"quick": quick}, "limits": limits, "flow": []}
    for n, d, lanes in cases:
        content["flow"].append(bound(n, d, lanes, limits))
        write(out, "limits", content)
