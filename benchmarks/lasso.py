"""The lasso against its peers: exact paths, and grids of 100 values of μ.

Paths: the error is the violation of the optimality conditions at every knot (they are linear in
between), relative to `max |Xᵀy|`, by a NumPy function that shares nothing with any solver.
Grids: see `grid.py`.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from joblib import Parallel

import dlnjax as dln
from tests.families import kkt_violation

from . import _peers_lasso
from ._data import at_hand, khan, normal_batch
from ._report import draw_ratios, print_row, write
from ._timing import Contender, compete, once
from .grid import grids

LOOP_SECONDS = 2.0  # a looped peer gets as many lanes as it does in this time, and at least 2


class Work(NamedTuple):
    n: int
    d: int
    lanes: int
    data: str = "normal"

    @property
    def label(self) -> str:
        name = "lasso path, Khan gene expressions" if self.data == "khan" else "lasso path"
        lanes = f"{self.lanes} lanes" if self.lanes > 1 else "one lane"
        return f"{name}, {self.n} × {self.d}, {lanes}"


FULL = [
    Work(3, 4, 10_000),
    Work(20, 40, 500),
    Work(50, 100, 100),
    Work(100, 200, 8),
    Work(100, 1000, 1),
    Work(63, 2308, 1, "khan"),
]
QUICK = [Work(3, 4, 200), Work(20, 40, 8)]


@jax.jit
@jax.vmap
def solve(X, y):
    return dln.lasso_path(dln.LeastSquares(X, y), throw=False)


def violation(X, y, kappa, x) -> float:
    """Of one path. SPAMS gives no `κ`: the largest correlation then, as for a perfect path."""
    if not len(kappa):
        kappa = np.abs((y - x @ X.T) @ X).max(axis=1)
    relative = kkt_violation(X, y, x, kappa, rounding=1e-13) / np.abs(X.T @ y).max()
    return float(relative.max())


def knots(x: np.ndarray) -> int:
    """Distinct points other than 0: packages differ in whether they repeat the ends."""
    return int((np.abs(x).max(axis=1) > 0).sum())


def measure(work: Work, repetitions: int, pool: Parallel) -> dict:
    X, y = khan() if work.data == "khan" else normal_batch(work.lanes, work.n, work.d)
    fortran = [np.asfortranarray(lane) for lane in X]
    entries = [Contender("dlnjax", lambda: solve(X, y))]
    for name, method in _peers_lasso.EXACT.items():
        seconds, _ = once(lambda m=method: _peers_lasso.loop(m, fortran[:2], y[:2]))
        lanes = min(work.lanes, max(2, int(LOOP_SECONDS * min(2, work.lanes) / seconds)))
        run = lambda m=method, k=lanes: _peers_lasso.loop(m, fortran[:k], y[:k])
        share = lanes / work.lanes
        entries.append(Contender(name, run, share, compiles=False))
        if work.lanes > 1:
            both = lambda m=method, k=lanes: _peers_lasso.parallel(pool, m, fortran[:k], y[:k])
            entries.append(Contender(f"{name}, joblib × 2", both, share))  # starts the workers
    us, them = compete(entries[0], entries[1:], repetitions)

    path = us.output
    count = np.asarray(path.num_knots)
    failed = int(np.sum(np.asarray(path.result != dln.RESULTS.successful)))
    # All lanes of ours; not more than 200, for the time that the check takes.
    checked = range(min(work.lanes, 200))
    kappa = [1 / np.asarray(path.knots[i][: count[i]]) for i in checked]
    points = [np.asarray(path.values[i][: count[i]]) * kappa[i][:, None] for i in checked]
    error = max(violation(X[i], y[i], kappa[i], points[i]) for i in checked)
    solvers = [us.record(error, us, f"{failed} lanes flagged" if failed else "")]
    for measured in them:
        lanes = range(min(len(measured.output), len(checked)))
        error = max(violation(X[i], y[i], *measured.output[i]) for i in lanes)
        # Our last knot is where the last ray starts: the peers go on to κ = 0, one more point.
        theirs = np.array([knots(measured.output[i][1]) for i in lanes])
        fewer = int(np.sum(theirs < count[: len(theirs)] - 1))
        note = f"{fewer} of {len(theirs)} paths have fewer knots" if fewer else ""
        solvers.append(measured.record(error, us, note))
    row = {
        "work": work.label,
        "lanes": work.lanes,
        "accuracy": "exact",
        "knots": [int(count.min()), float(np.median(count)), int(count.max())],
        "solvers": solvers,
    }
    print_row(row)
    print(f"  (knots: {count.min()} … {count.max()}, median {np.median(count):g})")
    return row


def main(out: Path, quick: bool) -> None:
    repetitions = 3
    with Parallel(n_jobs=2) as pool:
        rows = []
        for work in at_hand(QUICK if quick else FULL):
            rows.append(measure(work, repetitions, pool))
            write(out, "lasso", {"settings": {"quick": quick}, "rows": rows})
    for row in grids(quick):
        rows.append(row)
        write(out, "lasso", {"settings": {"quick": quick}, "rows": rows})
    draw_ratios(out, "lasso", rows, "Lasso: exact paths, and grids of μ")
