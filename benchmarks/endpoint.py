"""The end points of [W23] Fig. 1, by `end_point`, against the integration that they replace.

Three instances, depths 2, 2.5, 3, 4, and `α^D` from 1 to 1e-9: 120 end points, in one vmapped call
per instance and link family (depth 2, and the others). The peer integrates with SciPy's Radau until
`‖Xx − y‖` is 1e-9 of `‖y‖`: a sample of three sizes a depth, whose mean time stands for all.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import dlnjax as dln
from dlnjax.papers.w23 import FIRST, SECOND

from ._report import seconds, write
from ._timing import median

DEPTHS = (2, 2.5, 3.0, 4.0)
SIZES = 10.0 ** -np.arange(10)  # α^D
RESIDUAL = 1e-9
RTOL = 1e-8


def instances() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        "2 × 3": FIRST,
        "2 × 4": SECOND,
        "3 × 5": (rng.normal(size=(3, 5)), rng.normal(size=3)),
    }


def _end(X, y, log_size, depth) -> dln.EndPoint:
    # ε must be below 1: what is left of α^D goes into the shape.
    log_eps = jnp.minimum(log_size, -1.0)
    shape = jnp.full(X.shape[1], jnp.exp((log_size - log_eps) / depth))
    network = dln.Deep(shape, shape, depth=depth)
    return dln.end_point(network, dln.LeastSquares(X, y), log_eps=log_eps, throw=False)


@jax.jit
def end_points(X, y, log_sizes, depths) -> tuple[dln.EndPoint, dln.EndPoint]:
    """Depth 2, `(sizes,)`, and the depths above, `(depths, sizes)`."""
    shallow = jax.vmap(lambda size: _end(X, y, size, 2))(log_sizes)
    deep = jax.vmap(lambda depth: jax.vmap(lambda size: _end(X, y, size, depth))(log_sizes))
    return shallow, deep(depths)


def integrate(X: np.ndarray, y: np.ndarray, size: float, depth: float) -> np.ndarray:
    """In the dual variable, `dν/dt = y − Xx`, which is far less stiff than the weights."""
    power = 0.0 if depth == 2 else depth / (depth - 2)

    def sides(nu):
        dual = X.T @ nu
        if depth == 2:
            return size * np.exp(dual), size * np.exp(-dual)
        return size * (1 - dual) ** -power, size * (1 + dual) ** -power

    def x(nu):
        plus, minus = sides(nu)
        return plus - minus

    def field(t, nu):
        return y - X @ x(nu)

    def jacobian(t, nu):
        plus, minus = sides(nu)
        if depth > 2:
            dual = X.T @ nu
            plus, minus = power * plus / (1 - dual), power * minus / (1 + dual)
        return -(X * (plus + minus)) @ X.T

    def rest(t, nu):
        return float(np.linalg.norm(field(t, nu)) / np.linalg.norm(y) - RESIDUAL)

    rest.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    start = np.zeros(len(y))
    with np.errstate(all="ignore"):  # trial steps leave the domain of a real power
        nu = solve_ivp(
            field, (0, 1e14), start, "Radau", events=rest, jac=jacobian, rtol=RTOL, atol=1e-2 * RTOL
        ).y[:, -1]
    return x(nu)


def main(out: Path, quick: bool) -> None:
    log_sizes, depths = jnp.log(SIZES), jnp.asarray(DEPTHS[1:])
    rows = []
    for name, (X, y) in instances().items():
        run = lambda X=X, y=y: end_points(jnp.asarray(X), jnp.asarray(y), log_sizes, depths)
        ours = median(run, 5) / (len(SIZES) * len(DEPTHS))
        shallow, deep = run()
        x = np.concatenate([shallow.x[None], deep.x])  # (depths, sizes, d)
        failed = int(np.sum(~np.isfinite(x).all(axis=2)))
        residual = float(np.nanmax(np.abs(np.einsum("nd,abd->abn", X, x) - y)))
        times, errors, gave_up = [], [], 0
        for i, depth in enumerate(DEPTHS[:2] if quick else DEPTHS):
            for j in (3,) if quick else (1, 5, 9):
                start = time.perf_counter()
                reference = integrate(X, y, float(SIZES[j]), depth)
                took = time.perf_counter() - start
                where = f"  {name}, D = {depth:g}, α^D = {SIZES[j]:.0e}: Radau {seconds(took)}"
                rest = np.linalg.norm(X @ reference - y) / np.linalg.norm(y)
                if not rest <= 10 * RESIDUAL:  # it stops at the wall of the link
                    gave_up += 1
                    print(f"{where}, gave up at residual {rest:.1e}", flush=True)
                    continue
                times.append(took)
                errors.append(float(np.abs(reference - x[i, j]).max() / np.abs(x[i, j]).max()))
                print(f"{where}, difference {errors[-1]:.1e}", flush=True)
        row = {
            "instance": name,
            "end_points": x.shape[0] * x.shape[1],
            "failed": failed,
            "seconds_each": ours,
            "radau_seconds_each": float(np.mean(times)),
            "radau_gave_up": gave_up,
            "ratio": float(np.mean(times)) / ours,
            "residual": residual,
            "largest_difference": max(errors),
        }
        rows.append(row)
        print(
            f"{name}: {row['end_points']} end points, {failed} failed, residual {residual:.1e}, "
            f"{seconds(ours)} each; Radau {seconds(row['radau_seconds_each'])} each: "
            f"{row['ratio']:.0f}×",
            flush=True,
        )
        write(out, "endpoint", {"settings": {"rtol": RTOL, "quick": quick}, "rows": rows})
