"""Grids of 100 μ, at equal measured accuracy.

1. `dlnjax.lasso` against iterative peers at a relative duality gap of 1e-8, κ_max to κ_max/100.
2. The exact path and its interpolation against the same peers at 1e-10, κ_max to κ_max/1000
   (scikit-learn's default grid).

Every solver, ours too, runs at the loosest tolerance of its own, by decades, at which the measured
gap reaches the target: packages mean different things by `tol`. The decade is found on every tenth
μ and tightened if the whole grid needs it. The gap is `P(x) − D(θ)`, with `θ` the dual point of the
exact path: the rescaled residual of `x`, by which solvers stop, overstates the gap of a good `x` by
orders of magnitude, and by more for some packages than for others.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln

from ._data import normal_batch
from ._peers_lasso import GRIDS, quiet
from ._report import print_row
from ._timing import LONG, Contender, compete, once

TOLERANCES = [10.0**-k for k in range(3, 15)]
PATIENCE = 30.0  # seconds for every tenth μ: no tighter tolerance after that

Solve = Callable[[np.ndarray, float], np.ndarray]  # κ, tolerance -> x


class Problem:
    """A lasso problem with the lower bounds `D(θ)` that its gaps are measured from."""

    def __init__(self, n: int, d: int):
        self.X, self.y = (v[0] for v in normal_batch(1, n, d))
        self.largest = float(np.abs(self.X.T @ self.y).max())
        self.path = dln.lasso_path(dln.LeastSquares(self.X, self.y))

    def bound(self, kappa: np.ndarray) -> np.ndarray:
        """`D(θ)`, the residual of the exact path scaled to be feasible to the last digit."""
        theta = self.y - np.asarray(self.path.x(1 / kappa)) @ self.X.T
        theta *= np.minimum(1, kappa / np.abs(theta @ self.X).max(axis=1))[:, None]
        return theta @ self.y - 0.5 * np.sum(theta**2, axis=1)

    def gap(self, kappa: np.ndarray, x: np.ndarray) -> float:
        """The largest duality gap over the grid, relative to the objective."""
        residual = self.y - x @ self.X.T
        objective = 0.5 * np.sum(residual**2, axis=1) + kappa * np.abs(x).sum(axis=1)
        worst = float(np.max((objective - self.bound(kappa)) / objective))
        return max(worst, 0.0) if math.isfinite(worst) else math.inf


class Entry(NamedTuple):
    name: str
    solve: Solve
    tolerance: float | None = None  # None: to be found


def tune(problem: Problem, solve: Solve, kappa: np.ndarray, target: float) -> float:
    """The loosest tolerance that reaches the target, on every tenth μ and then on all."""
    some = kappa[9::10]
    solve(some, TOLERANCES[0])  # to compile (numba takes half a minute) before patience is measured
    for tol in TOLERANCES:
        seconds, x = once(partial(solve, some, tol))
        if seconds > PATIENCE:
            return tol
        if problem.gap(some, x) <= target and problem.gap(kappa, solve(kappa, tol)) <= target:
            return tol
    return TOLERANCES[-1]


def race(
    problem: Problem, work: str, target: float, entries: list[Entry], kappa, repetitions: int
) -> dict:
    contenders = []
    for name, solve, tolerance in entries:
        tol = tune(problem, solve, kappa, target) if tolerance is None else tolerance
        seconds, _ = once(partial(solve, kappa, tol))
        note = "" if name.endswith("path, interpolated") else f"tol {tol:.0e}"
        compiles = seconds < LONG  # what is slow has been warmed up by now
        contenders.append(Contender(name, partial(solve, kappa, tol), 1.0, compiles, note))
    us, them = compete(contenders[0], contenders[1:], repetitions)
    solvers = []
    for measured in (us, *them):
        gap = problem.gap(kappa, np.asarray(measured.output))
        solvers.append(measured.record(gap, us, "" if gap <= target else "target not reached"))
    row = {"work": work, "lanes": 1, "accuracy": target, "solvers": solvers}
    print_row(row)
    return row


def grids(quick: bool) -> Iterator[dict]:
    (n, d), count = ((20, 60), 20) if quick else ((200, 1000), 100)
    problem = Problem(n, d)
    fortran = np.asfortranarray(problem.X)
    device = jnp.asarray(problem.X), jnp.asarray(problem.y)

    @jax.jit
    def proximal(X, y, mu, tol):
        return dln.lasso(dln.LeastSquares(X, y), mu, gap_tol=tol, throw=False).x

    @jax.jit
    def interpolated(X, y, mu):
        return dln.lasso_path(dln.LeastSquares(X, y), throw=False).x(mu)

    peers = {name: partial(quiet, grid, fortran, problem.y) for name, grid in GRIDS.items()}
    if quick:  # no time for the others to be tuned
        peers = {name: peers[name] for name in list(peers)[:1]}
    peers = [Entry(name, solve) for name, solve in peers.items()]
    ours = lambda kappa, tol: np.asarray(proximal(*device, 1 / kappa, tol))
    exact = lambda kappa, tol: np.asarray(interpolated(*device, 1 / kappa))
    label = f"{count} μ, {n} × {d}, κ_max to κ_max"

    entries = [Entry("dlnjax lasso", ours), Entry("dlnjax lasso, gap_tol=1e-8", ours, 1e-8), *peers]
    kappa = problem.largest * np.geomspace(1, 1e-2, count)
    yield race(problem, f"{label}/100, relative gap ≤ 1e-8", 1e-8, entries, kappa, 3)

    entries = [Entry("dlnjax lasso_path, interpolated", exact, 0.0), *peers]
    kappa = problem.largest * np.geomspace(1, 1e-3, count)
    yield race(problem, f"{label}/1000, relative gap ≤ 1e-10", 1e-10, entries, kappa, 3)
