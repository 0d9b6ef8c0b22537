"""The ℓ1-penalised generalised linear model on a grid of μ, against its peers.

Ours at its default and tighter tolerances, peers at the loosest tolerance of their own, by decades,
at which the measured gap reaches the target (`grid.py` says why). The gap is `P(x) − D(θ)` with one
`θ` for all, from a solution of ours at `gap_tol=1e-13`, scaled until it is feasible.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import entr, expit

import dlnjax as dln

from ._peers_lasso import load, quiet
from ._report import draw_ratios, print_row, write
from ._timing import LONG, Contender, compete, once
from .grid import PATIENCE, TOLERANCES


class Problem:
    """ℓ1-logistic regression with 10 features that matter, and lower bounds by its dual."""

    def __init__(self, n: int, d: int):
        rng = np.random.default_rng(0)
        self.X = rng.normal(size=(n, d))
        margin = self.X[:, :10] @ rng.normal(size=10)
        self.y = np.where(rng.random(n) < expit(margin), 1.0, -1.0)
        self.largest = float(np.abs(self.X.T @ self.y).max() / 2)

    def bound(self, kappa: np.ndarray) -> np.ndarray:
        """`D(θ) = Σ H(|θᵢ|)`, the binary entropies."""
        x = np.asarray(dln.lasso(dln.Logistic(self.X, self.y), 1 / kappa, gap_tol=1e-13).x)
        theta = self.y * expit(-self.y * (x @ self.X.T))
        theta *= np.minimum(1, kappa / np.abs(theta @ self.X).max(axis=1))[:, None]
        return np.sum(entr(np.abs(theta)) + entr(1 - np.abs(theta)), axis=1)

    def gap(self, kappa: np.ndarray, bound: np.ndarray, x: np.ndarray) -> float:
        """The largest gap over the grid, relative to the objective."""
        loss = np.logaddexp(0, -self.y * (x @ self.X.T)).sum(axis=1)
        objective = loss + kappa * np.abs(x).sum(axis=1)
        worst = float(np.max((objective - bound) / objective))
        return max(worst, 0.0) if math.isfinite(worst) else math.inf


def _sklearn(solver: str, X, y, kappa, tol) -> np.ndarray:
    """Warm-started where the solver takes a start."""
    from sklearn.linear_model import LogisticRegression

    options: Any = {"solver": solver, "l1_ratio": 1.0, "fit_intercept": False, "tol": tol}
    model = LogisticRegression(max_iter=100_000, warm_start=solver == "saga", **options)
    return np.array([model.set_params(C=1 / k).fit(X, y).coef_[0].copy() for k in kappa])


def _liblinear(X, y, kappa, tol):
    return _sklearn("liblinear", X, y, kappa, tol)


def _saga(X, y, kappa, tol):
    return _sklearn("saga", X, y, kappa, tol)


def _celer(X, y, kappa, tol):
    from celer import celer_path  # pyright: ignore[reportMissingImports]

    # Its logistic loss has no factor 1/n, unlike its square.
    return celer_path(X, y, "logreg", alphas=kappa, tol=tol, max_iter=1000)[1].T


def _skglm(X, y, kappa, tol):
    from skglm.datafits import Logistic  # pyright: ignore[reportMissingImports]
    from skglm.penalties import L1  # pyright: ignore[reportMissingImports]
    from skglm.solvers import ProxNewton  # pyright: ignore[reportMissingImports]

    solver = ProxNewton(tol=tol, fit_intercept=False, warm_start=True, max_iter=1000)
    x, points = np.zeros(X.shape[1]), []
    for k in kappa:
        solution: Any = solver.solve(X, y, Logistic(), L1(k / len(y)), w_init=x, Xw_init=X @ x)
        x = solution[0]
        points.append(x.copy())
    return np.array(points)


PEERS: dict[str, Callable[..., np.ndarray]] = {
    name: solve
    for package, name, solve in (
        ("celer", "celer_path", _celer),
        ("skglm", "skglm ProxNewton", _skglm),
        ("sklearn", "scikit-learn liblinear", _liblinear),
        ("sklearn", "scikit-learn saga", _saga),
    )
    if load(package) is not None
}


def tune(problem: Problem, solve, kappa, bound, target: float) -> float:
    """The loosest tolerance that reaches the target on every tenth μ."""
    some = slice(9, None, 10)
    for tol in TOLERANCES:
        seconds, x = once(partial(solve, kappa[some], tol))
        if seconds > PATIENCE or problem.gap(kappa[some], bound[some], x) <= target:
            return tol
    return TOLERANCES[-1]


@jax.jit
def _ours(X, y, mu, tol):
    return dln.lasso(dln.Logistic(X, y), mu, gap_tol=tol, throw=False).x


def main(out: Path, quick: bool) -> None:
    (n, d), count, target = ((20, 60), 20, 1e-8) if quick else ((200, 1000), 100, 1e-8)
    problem = Problem(n, d)
    kappa = problem.largest * np.geomspace(1, 1e-2, count)
    bound = problem.bound(kappa)
    ours = lambda: np.asarray(_ours(problem.X, problem.y, 1 / kappa, np.asarray(target)))
    contenders = [Contender(f"dlnjax lasso, gap_tol={target:g}", ours)]
    fortran = np.asfortranarray(problem.X)
    for name, peer in PEERS.items():
        solve = partial(quiet, peer, fortran, problem.y)
        tol = tune(problem, solve, kappa, bound, target)
        seconds, _ = once(run := partial(solve, kappa, tol))
        contenders.append(Contender(name, run, 1.0, seconds < LONG, f"tol {tol:.0e}"))
    us, them = compete(contenders[0], contenders[1:], 3)
    solvers = []
    for measured in (us, *them):
        gap = problem.gap(kappa, bound, np.asarray(measured.output))
        solvers.append(measured.record(gap, us, "" if gap <= target else "target not reached"))
    work = f"ℓ1-logistic, {count} μ, {n} × {d}, κ_max to κ_max/100, relative gap ≤ {target:g}"
    row = {"work": work, "lanes": 1, "accuracy": target, "solvers": solvers}
    print_row(row)
    write(out, "glm", {"settings": {"quick": quick}, "rows": [row]})
    draw_ratios(out, "glm", [row], "ℓ1-penalised logistic regression")
