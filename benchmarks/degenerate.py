"""The table of degenerate families (tests/families.py): dlnjax beside scikit-learn.

`python -m benchmarks.degenerate [INSTANCES] [--float32]`. Each path is checked at its knots,
half-way between them and beyond the last one, in float64, by a NumPy function that shares
nothing with either solver. Violations are relative to `max |Xᵀy|`; "worst" is over paths
that are not flagged.
"""

import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import lars_path

import dlnjax as dln
from tests.families import FAMILIES, kkt_violation

BAD = 1e-6


@eqx.filter_jit
def solve(X, y):
    def one(X, y):
        path = dln.lasso_path(dln.LeastSquares(X, y), throw=False)
        start, end = path.knots, jnp.append(path.knots[1:], 2 * path.knots[-1:])
        grid = jnp.concatenate([start, 0.5 * (start + end), 10 * path.knots[-1:]])
        return path.result == dln.RESULTS.successful, grid, path.x(grid)

    return jax.vmap(one)(X, y)


def scikit_learn(X, y) -> tuple[float, bool, bool]:
    """Violation at and between the knots; whether it warned; whether it stopped early. An error of
    its own (its sizes may not fit after a drop) is a warning, and an early end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            alpha, _, coef = lars_path(X, y, method="lasso")
        except ValueError:
            return 0.0, True, True
    kappa, x = alpha * len(y), coef.T
    kappa = np.concatenate([kappa, 0.5 * (kappa[1:] + kappa[:-1])])
    x = np.concatenate([x, 0.5 * (x[1:] + x[:-1])])
    size = np.abs(X.T @ y).max()
    violation = kkt_violation(X, y, x, kappa, rounding=1e-13).max() / size
    return violation, bool(caught), alpha[-1] * len(y) > 1e-9 * size


def main(instances: int, dtype) -> None:
    rounding = 0.0 if dtype == np.float64 else 1e-5
    print(f"{instances} instances a family, {np.dtype(dtype).name}")
    print(f"{'':34s}{'dlnjax':>28s}{'scikit-learn lars_path':>38s}")
    print(f"{'family':34s}{'wrong':>7s}{'flagged':>9s}{'worst':>12s}", end="")
    print(f"{'wrong':>10s}{'warned':>8s}{'early':>8s}{'worst':>12s}")
    for name, make in FAMILIES.items():
        rng = np.random.default_rng(1)
        X, y = (np.stack(a) for a in zip(*(make(rng) for _ in range(instances)), strict=True))
        good, grid, x = (np.asarray(a, float) for a in solve(X.astype(dtype), y.astype(dtype)))
        ours = np.array(
            [
                kkt_violation(X[i], y[i], x[i], 1 / grid[i], rounding).max()
                / np.abs(X[i].T @ y[i]).max()
                for i in range(instances)
                if good[i]
            ]
            or [0.0]
        )
        peer = [scikit_learn(X[i], y[i]) for i in range(instances)]
        wrong, warned, early = (np.array(v) for v in zip(*peer, strict=True))
        percent = lambda flags: f"{100 * np.mean(flags):.1f} %"
        print(
            f"{name:34s}{percent(ours > BAD):>7s}{percent(good == 0):>9s}{ours.max():12.1e}", end=""
        )
        print(f"{percent(wrong > BAD):>10s}{percent(warned):>8s}", end="")
        print(f"{percent(early):>8s}{wrong.max():12.1e}")


if __name__ == "__main__":
    float32 = "--float32" in sys.argv
    numbers = [a for a in sys.argv[1:] if a.isdigit()]
    jax.config.update("jax_enable_x64", not float32)
    main(int(numbers[0]) if numbers else 200, np.float32 if float32 else np.float64)
