"""Exact paths and grids of lasso solutions by other packages, in one convention:
`½‖Xx − y‖² + κ‖x‖₁`. Packages that are not installed are left out."""

import os
import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from joblib import Parallel, delayed

Path = tuple[np.ndarray, np.ndarray]  # κ at the knots (K,), x there (K, d)
Grid = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def load(name: str) -> Any:
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        return __import__(name)
    except ImportError:
        return None
    finally:
        # adelie pins the process to one CPU when it is imported, which would slow all others.
        if affinity is not None:
            os.sched_setaffinity(0, affinity)


def lars(X: np.ndarray, y: np.ndarray) -> Path:
    from sklearn.linear_model import lars_path

    alpha, _, coef = cast(Any, lars_path(X, y, method="lasso"))
    return alpha * len(y), coef.T


def spams(X: np.ndarray, y: np.ndarray) -> Path:
    """SPAMS takes Fortran order (given here, so that nothing is copied) and does not return `κ`."""
    import spams  # pyright: ignore[reportMissingImports]

    options = {"return_reg_path": True, "lambda1": 0.0, "mode": spams.PENALTY, "numThreads": 1}
    _, path = cast(Any, spams.lasso(y[:, None], X, **options))
    return np.empty(0), path.T


EXACT = {
    "scikit-learn lars_path": lars,
    **({"SPAMS (C++)": spams} if load("spams") is not None else {}),
}


def loop(method: Callable[..., Path], X, y) -> list[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [method(X[i], y[i]) for i in range(len(X))]


def parallel(pool: Parallel, method: Callable[..., Path], X, y) -> list[Path]:
    half = len(X) // 2
    parts = (slice(0, half), slice(half, len(X)))
    paths: Any = pool(delayed(loop)(method, X[i], y[i]) for i in parts)
    return [path for part in paths for path in part]


# Grids: κ decreasing, `tol` in each package's own meaning; x of shape (len(κ), d).


def _scikit_learn(X, y, kappa, tol):
    from sklearn.linear_model import lasso_path

    return lasso_path(X, y, alphas=kappa / len(y), tol=tol, max_iter=1_000_000)[1].T


def _skglm(X, y, kappa, tol):
    from skglm import Lasso  # pyright: ignore[reportMissingImports]

    model = Lasso(tol=tol, fit_intercept=False, max_iter=1000, max_epochs=100_000)
    return model.path(X, y, alphas=kappa / len(y))[1].T


def _celer(X, y, kappa, tol):
    from celer import celer_path  # pyright: ignore[reportMissingImports]

    return celer_path(X, y, "lasso", alphas=kappa / len(y), tol=tol, max_iter=1000)[1].T


def _adelie(X, y, kappa, tol):
    import adelie  # pyright: ignore[reportMissingImports]

    state = adelie.grpnet(
        X,
        adelie.glm.gaussian(y),
        lmda_path=kappa / len(y),
        tol=tol,
        max_iters=1_000_000,
        adev_tol=1.0,  # never stop before the end of the grid
        ddev_tol=0.0,
        intercept=False,
        progress_bar=False,
        early_exit=False,
    )
    return np.asarray(state.betas.toarray())


GRIDS: dict[str, Grid] = {
    name: grid
    for package, name, grid in (
        ("sklearn", "scikit-learn lasso_path", _scikit_learn),
        ("skglm", "skglm", _skglm),
        ("celer", "celer_path", _celer),
        ("adelie", "adelie", _adelie),
    )
    if load(package) is not None
}


def quiet(grid: Grid, X, y, kappa, tol: float) -> np.ndarray:
    """NaN where a package stops early or raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # packages warn where their own criterion is not met
        try:
            x = grid(X, y, kappa, tol)
        except Exception as e:
            print(f"  ({grid.__name__.strip('_')} at {tol:g}: {e})")
            x = np.empty((0, X.shape[1]))
    return x if len(x) == len(kappa) else np.full((len(kappa), X.shape[1]), np.nan)
