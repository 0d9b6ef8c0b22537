"""How `fuzz` checks end points and points of least norm: `_fuzz_checks.py` says what must hold."""

from typing import Any

import numpy as np
import scipy.linalg

from ._fuzz_conditioning import NULL
from ._fuzz_problems import Arrays, Config
from ._fuzz_units import ROUNDING, correlation, excess, sizes

NEAR = 1e-8  # what needs a closer look


def least_squares(
    config: Config, u: Arrays, x: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """Violation of the conditions of (non-negative) least squares at `x (lanes, d)`. Where a sign
    has an infinite weight, it is not allowed."""
    c = correlation(u, x[:, None])[:, 0]
    if weights is not None:
        held = [(x == 0) & np.isinf(weights[:, k]) for k in (0, 1)]
        c = np.where((c > 0) & held[0] | (c < 0) & held[1], 0, c)
    # What is 0 in the end is so to rounding of the start.
    size = sizes(u, (np.abs(x) + np.sum(u["q0"], axis=1))[:, None])[:, 0]
    # Subnormal numbers have fewer digits the smaller they are.
    size = np.where(size > 1e18 * float(np.finfo(config.dtype).tiny), size, 1)
    if not config.positive:
        return np.max(np.abs(c), axis=1) / size
    # Entries are never 0, only small: complementarity is the size of the product.
    share = u["columns"] * np.abs(x)
    most = np.max(share, axis=1, keepdims=True)
    product = np.abs(c) * share / np.where(most > 0, most, 1)
    worst = np.maximum(np.max(c, axis=1), np.max(product, axis=1)) / size
    return np.where(np.any(x < 0, axis=1), np.inf, np.maximum(worst, 0))


def link(config: Config, w: np.ndarray, log_eps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`q = φ_ε(w)`, and `−d log q/dw`."""
    if config.depth == 2:
        return np.exp(np.minimum(w * log_eps, 690)), -log_eps * np.ones_like(w)
    a = config.depth / (config.depth - 2)
    safe = np.maximum(w, 1e-300)
    return np.exp(np.minimum(log_eps - a * np.log(safe), 690)), a / safe


def rounding_of_link(
    config: Config,
    w: np.ndarray,
    q: np.ndarray,
    folds: np.ndarray,
    size: np.ndarray,
    rounding: np.ndarray | float = ROUNDING,
) -> np.ndarray:
    """What rounding of `w`, a sum of terms as large as `size`, changes in `q`."""
    digits = rounding * config.eps * size
    lost = (config.depth > 2) & (np.abs(w) < 10 * digits)
    return np.where(lost, np.inf, q * (folds * digits + rounding * config.eps))


def dual_start(config: Config, a: Arrays, u: Arrays) -> np.ndarray:
    """`w(0)`, at `ε`, shape `(lanes, signs, d)`."""
    if config.depth == 2:
        return 1 + 2 * np.log(a["p"]) / a["log_eps"][:, None, None]
    return u["base"]


def _signed(q: np.ndarray) -> np.ndarray:
    return q[:, 0] if q.shape[1] == 1 else q[:, 0] - q[:, 1]


def on_sides(v: np.ndarray, signs: int) -> np.ndarray:
    return np.stack([v, -v][:signs], axis=-2)


def decayed(config: Config, u: Arrays, x: np.ndarray) -> np.ndarray:
    """Violation of the conditions of the lasso at `κ = λ`."""
    x = (x / u["x_unit"][:, None])[:, None]
    kappa = np.broadcast_to(u["decay"][:, None, None, None], (len(x), 1, 2, x.shape[2]))
    return excess(config, u, x, kappa, np.sign(x)).max(axis=(1, 2)) / u["top"]


def ends(config: Config, a: Arrays, u: Arrays, end: Arrays) -> dict[str, np.ndarray]:
    x, dual = end["x"] / u["x_unit"][:, None], end["dual"]
    decays = a["decay"] > 0
    found = {"end": np.where(decays, decayed(config, u, end["x"]), least_squares(config, u, x))}

    free = np.isfinite(dual)
    start, log_eps = dual_start(config, a, u), a["log_eps"][:, None, None]
    # Where nothing is asked, the initialisation is what there is to compare with.
    kept = np.sum(u["q0"], axis=1)
    asked = np.max(np.abs(correlation(u, np.zeros_like(x)[:, None])), axis=(1, 2))
    asked = asked > ROUNDING * config.eps * u["norm"]
    size = np.abs(x) + np.where(asked[:, None], 0, kept)
    most = np.max(u["columns"] * size, axis=1, keepdims=True)
    # Numbers below that underflow.
    share = np.where(most > 1e-30, u["columns"] / np.maximum(most, 1e-30), 0)
    # A column of 0 keeps its start.
    share = np.where(
        u["columns"] > 0, share, np.where(kept > 1e-30, 1 / np.maximum(kept, 1e-30), 0)
    )

    def of(dual: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`x`, its rounding, and how much of it a change of the dual changes."""
        w = start - on_sides(dual, start.shape[1])
        q, folds = link(config, w, log_eps)
        q = q / u["x_unit"][:, None, None]
        # Rounding of the dual, in x.
        digits = rounding_of_link(config, w, q, folds, np.abs(start) + np.abs(dual)[:, None])
        return np.where(free, _signed(q), 0), np.sum(digits, axis=1), np.sum(q * folds, axis=1)

    known = np.where(free, dual, 0)
    want, close, slope = of(known)

    def off(v: np.ndarray, close: np.ndarray) -> np.ndarray:
        # Where no digit of the dual is left, x says nothing of it.
        beyond = np.maximum(np.abs(v - want) - close, 0) * share
        return np.max(np.where(close * share > 0.1, 0, beyond), axis=1)

    found["end, link"] = np.where(decays, 0, off(x, close))
    moved, is_known, rounding = _in_range(config.eps, u, known, free)
    _, folds = link(config, start - on_sides(known, start.shape[1]), log_eps)
    close = close + rounding * slope
    counts = ~decays & is_known
    for lane in np.flatnonzero(counts & (off(of(moved)[0], close) > NEAR)).tolist():
        # What is negligible must not grow.
        weight = slope[lane] * share[lane] + 1e-3 * np.max(folds[lane], axis=0)
        moved[lane] = _closest(u, lane, known[lane], free[lane], weight)
    found["end, range"] = np.where(counts, off(of(moved)[0], close), 0)
    return found


def _in_range(
    eps: float, u: Arrays, dual: np.ndarray, free: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The dual projected to the range of `Xᵀ`, on the coordinates that are free; where that range
    is known; and what rounding may change in the projection."""
    X = np.where(free[:, None], u["X"] / u["safe"][:, None], 0)
    _, values, V = np.linalg.svd(np.where(np.isfinite(X), X, 0), full_matrices=False)
    values = values / np.where(values[:, :1] > 0, values[:, :1], 1)
    counts = values > 1e-3
    is_known = np.all(counts | (values < NULL * eps), axis=1)
    V = V * counts[:, :, None]
    part = np.einsum("lkj,lk->lj", V, np.einsum("lkj,lj->lk", V, dual / u["safe"]))
    worst = 1 / np.min(values, axis=1, where=counts, initial=1)
    most = np.max(np.abs(dual) / u["safe"], axis=1, where=free, initial=0)
    rounding = (ROUNDING * eps * worst * most)[:, None] * u["safe"]
    # Of independent columns the range is all: a projection would only round.
    is_all = np.sum(counts, axis=1) == np.sum(free, axis=1)
    return np.where(is_all[:, None], dual, part * u["safe"]), is_known, rounding


def _closest(
    u: Arrays, lane: int, dual: np.ndarray, free: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """The dual in the range of `Xᵀ` that is closest in weighted entries, which may differ by any
    power of ten: a QR factorisation of sorted rows, with pivots, is exact to rounding in each."""
    if not (np.all(np.isfinite(weight)) and np.any(weight > 0)):
        return dual
    X = np.where(free, u["X"][lane] / u["safe"][lane], 0)
    _, values, V = np.linalg.svd(X, full_matrices=False)
    V = V[values > 1e-3 * values[0]].T
    weight = np.where(free, weight * u["safe"][lane], 0)
    weight = np.maximum(weight, 1e-30 * np.max(weight))  # so that none is 0
    order = np.argsort(-weight)
    rows = (weight[:, None] * V)[order]
    factors: Any = scipy.linalg.qr(rows, mode="economic", pivoting=True)
    Q, R, columns = factors
    coefficients = np.zeros(V.shape[1])
    known = (weight * dual / u["safe"][lane])[order]
    coefficients[columns] = scipy.linalg.solve_triangular(R, Q.T @ known)
    return np.where(free, V @ coefficients * u["safe"][lane], 0)


def norms(
    name: str, config: Config, u: Arrays, point: Arrays, weights: np.ndarray
) -> dict[str, np.ndarray]:
    x = point["x"] / u["x_unit"][:, None]
    dual = point["dual"]
    free = np.isfinite(dual)
    known = np.where(free, dual, 0)
    moved, is_known, rounding = _in_range(config.eps, u, known, free)
    moved = np.where(is_known[:, None], moved, dual)
    gap = _gap(config, u, point, weights, moved, is_known, rounding)
    for lane in np.flatnonzero(is_known & (gap > NEAR)).tolist():
        # Digits count in units of the bounds. Where none is, an entry may be all rounding.
        most = np.max(np.abs(known[lane]) / u["safe"][lane]) * u["safe"][lane]
        bound = np.where(known[lane] > 0, weights[lane, 0], weights[lane, -1])
        if config.positive:
            bound = np.where(known[lane] > 0, bound, np.inf)
        weight = 1 / np.maximum(np.where(np.isfinite(bound), bound, most), 1e-12 * most)
        moved[lane] = _closest(u, lane, known[lane], free[lane], weight)
    off = np.max(np.abs(moved - known) / u["safe"], axis=1, where=free, initial=0)
    most = np.max(np.abs(known) / u["safe"], axis=1, initial=0)
    off = np.where(is_known & (most > 0), off / np.where(most > 0, most, 1), 0)
    gap = np.maximum(_gap(config, u, point, weights, moved, is_known, rounding), off)
    if config.problem == "Quadratic":
        for lane in np.flatnonzero(gap > NEAR).tolist():
            gap[lane] = max(gap[lane] - _of_gram(config, u, x[lane], lane), 0)
    return {name: least_squares(config, u, x, weights), f"{name}, norm": gap}


def _of_gram(config: Config, u: Arrays, x: np.ndarray, lane: int) -> float:
    """What rounding of `M` changes in `x`, relative: it squares the condition of the support."""
    support = x != 0
    if not np.any(support):
        return 0.0
    columns = (u["X"][lane] / u["safe"][lane])[:, support]
    values = np.linalg.svd(columns, compute_uv=False)
    return float(ROUNDING * config.eps * (values[0] / max(values[-1], config.eps)) ** 2)


def _gap(
    config: Config,
    u: Arrays,
    point: Arrays,
    weights: np.ndarray,
    moved: np.ndarray,
    is_known: np.ndarray,
    rounding: np.ndarray,
) -> np.ndarray:
    """Between the norm of a point and what a dual proves of it, relative to the norm."""
    x, free = point["x"] / u["x_unit"][:, None], np.isfinite(point["dual"])
    # Entries that are rounding of the others may cost anything, by their weights.
    share = u["columns"] * np.abs(x)
    least = ROUNDING * config.eps * np.max(share, axis=1, keepdims=True)
    x = np.where((u["columns"] > 0) & (share <= least), 0, x)
    cost = np.where(x == 0, 0, np.where(x > 0, weights[:, 0], weights[:, 1]) * np.abs(x))
    norm = np.sum(cost, axis=1)
    above = np.zeros(len(x))
    for k, side in enumerate((moved, -moved)[: 1 if config.positive else 2]):
        counts = free & np.isfinite(weights[:, k]) & (weights[:, k] > 0)
        ratio = (side - rounding) / np.where(counts, weights[:, k], 1)
        above = np.maximum(above, np.max(ratio, axis=1, where=counts, initial=1))
    gap = norm - np.sum(np.where(free, moved * x, 0), axis=1) / above
    digits = ROUNDING * config.eps * np.sum(np.abs(np.where(free, moved * x, 0)), axis=1)
    digits = digits + np.sum(np.where(is_known[:, None], rounding * np.abs(x), 0), axis=1)
    gap = np.maximum(gap - digits, 0)
    return gap / np.where(norm > 0, norm, 1)
