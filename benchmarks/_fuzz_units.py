"""Data of `fuzz` in units where they are of order 1."""

import numpy as np

from ._fuzz_problems import Arrays, Config

# Units of rounding that the evaluation of a sum may lose.
ROUNDING = 64


def units(config: Config, a: Arrays) -> Arrays:
    """Data in units where they are of order 1, with what is derived from them."""
    c_X, c_y = a["c_X"], a["c_y"]
    # Bad input is not checked here.
    X, y = (np.nan_to_num(a[key], posinf=0, neginf=0) for key in "Xy")
    X, y = X / c_X[:, None, None], y / c_y[:, None]
    columns = np.linalg.norm(X, axis=1)
    safe = np.where(columns > 0, columns, 1)
    top = np.max(np.abs(np.einsum("lij,li->lj", X, y)) / safe, axis=1)
    q0 = np.exp(a["log_eps"])[:, None, None] * a["p"] ** config.depth
    depth = config.depth
    base = np.ones_like(a["p"]) if depth == 2 else a["p"] ** (2 - depth)
    sides = np.stack([a["start"], -a["start"]][: a["p"].shape[1]], axis=1)
    total = np.sum(base, axis=1, keepdims=True)
    return {
        "X": X,
        "y": y,
        "unit": c_X * c_y,
        "x_unit": c_y / c_X,
        "columns": columns,
        "safe": safe,
        "top": np.where(top > 0, top, 1),
        "norm": np.linalg.norm(y, axis=1),
        "scale": np.where(np.any(y != 0, axis=1), np.sum(y**2, axis=1) / 2, 1),
        "decay": a["decay"] / (c_X * c_y),
        "q0": q0 / (c_y / c_X)[:, None, None],
        "base": base,
        "moved": np.where(sides > 0, 0, np.where(sides < 0, total, base)),
    }


def sizes(u: Arrays, x: np.ndarray) -> np.ndarray:
    """`‖y‖ + Σ ‖Xₖ‖|xₖ|`, of points `x (lanes, points, d)`."""
    return u["norm"][:, None] + np.sum(np.abs(x) * u["columns"][:, None], axis=2)


def correlation(u: Arrays, x: np.ndarray) -> np.ndarray:
    """`c` at points `x (lanes, points, d)`, for columns of norm 1."""
    rest = u["y"][:, None] - np.einsum("lij,lkj->lki", u["X"], x)
    return np.einsum("lij,lki->lkj", u["X"], rest) / u["safe"][:, None]


def excess(
    config: Config, u: Arrays, x: np.ndarray, kappa: np.ndarray, sign: np.ndarray
) -> np.ndarray:
    """By how much each condition is violated, `(lanes, points, d)`, for `kappa` `(lanes, points, 2,
    d)`."""
    c = correlation(u, x)
    kappa = kappa / u["safe"][:, None, None]
    upper, lower = kappa[:, :, 0], kappa[:, :, 1]
    off = np.maximum(c - upper, np.where(sign > 0, np.abs(c - upper), 0))
    if config.positive:
        off = np.where((sign < 0) | (x < 0), np.inf, off)
    else:
        off = np.maximum(off, np.maximum(-c - lower, np.where(sign < 0, np.abs(c + lower), 0)))
    rounding = ROUNDING * config.eps * sizes(u, x)[..., None]
    return np.where(np.isnan(off), np.inf, np.maximum(off - rounding, 0))
