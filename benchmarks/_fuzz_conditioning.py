"""Which problems of `fuzz` are well-conditioned, computed in NumPy."""

import itertools as it
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog, nnls
from sklearn.linear_model import lars_path

from ._fuzz_problems import Arrays, Config

NULL = 8  # units of rounding, below which a singular value of columns of norm 1 is 0


def null_vectors(columns: np.ndarray, eps: float) -> np.ndarray | None:
    """A basis of `a` with `Σ aᵢ columnᵢ = 0`, `Σ |aᵢ| = 1`; `None` where rounding decides."""
    norms = np.linalg.norm(columns, axis=0)
    _, values, V = np.linalg.svd(columns / norms)
    values = np.append(values, np.zeros(len(V) - len(values)))
    is_null = values < NULL * eps
    if np.any(~is_null & (values < 1e-3)):
        return None
    # What is rounding, over a norm of 1e-14, would be as large as what is not.
    null = np.where(np.abs(V[is_null]) > 1e3 * eps, V[is_null], 0) / norms
    return null / np.sum(np.abs(null), axis=1, keepdims=True)


class Conditioning(NamedTuple):
    """Of the columns, each divided by its norm.

    `worst`: the largest condition number of a set of at most `min(n, d)` independent ones (of some
    hundred sets where there are many). `is_clear`: the rank of every set is clear, singular values
    are either rounding or above `LEAST`. `is_general`: every set has full rank.
    """

    worst: float
    is_clear: bool
    is_general: bool


def conditioning(config: Config, a: Arrays, lane: int) -> Conditioning:
    X = a["X"][lane] / a["c_X"][lane]
    norms = np.linalg.norm(X, axis=0)
    X = X[:, norms > 0] / norms[norms > 0]
    n, d = X.shape
    if d == 0:
        return Conditioning(1.0, True, True)
    least = 0.03 if config.dtype == "float32" else 1e-3
    worst, is_clear, is_general = 1.0, True, bool(np.all(norms > 0))
    rng = np.random.default_rng(lane)
    for size in range(1, min(n, d) + 1):
        sets = list(it.islice(it.combinations(range(d), size), 300))
        if len(sets) == 300:
            sets += [np.sort(rng.permutation(d)[:size]) for _ in range(200)]
        values = np.linalg.svd(X[:, np.array(sets)].transpose(1, 0, 2), compute_uv=False)
        counts = values > NULL * config.eps
        is_clear &= bool(np.all(~counts | (values > least)))
        is_general &= bool(np.all(counts))
        last = np.min(np.where(counts, values, np.inf), axis=1)
        worst = max(worst, float(np.max(values[:, 0] / last)))
    return Conditioning(worst, is_clear, is_general)


def is_well(config: Config, a: Arrays, lane: int) -> bool:
    """Whether there is no excuse for a flag: the rank of all sets of columns is clear, the start is
    in the units of the data, and the correlations with `y` are not rounding."""
    X, y = a["X"][lane] / a["c_X"][lane], a["y"][lane] / a["c_y"][lane]
    norms = np.linalg.norm(X, axis=0)
    r = np.abs(X.T @ y) / np.where(norms > 0, norms, 1)
    is_seen = np.max(r) > 1e3 * config.eps * np.linalg.norm(y) or not np.any(y)
    return bool(is_seen and not a["is_far"][lane]) and conditioning(config, a, lane).is_clear


def diverges(X: np.ndarray, y: np.ndarray) -> bool:
    """Whether a coordinate with residual 0 is 0 in all minimisers of the loss over `x ≥ 0`."""
    norms = np.linalg.norm(X, axis=0)
    X, size = X[:, norms > 0] / norms[norms > 0], np.linalg.norm(y)
    x, _ = nnls(X, y / (size if size > 0 else 1))
    rest = X.T @ (y / (size if size > 0 else 1) - X @ x)
    free = X[:, rest > -1e-9]
    most = [linprog(-e, A_eq=free, b_eq=X @ x) for e in np.eye(free.shape[1])]
    return any(run.status == 0 and -run.fun < 1e-9 for run in most)


def _is_all_rounding(a: Arrays, lane: int, eps: float) -> bool:
    """Whether at the latest `μ` the objective of the lasso is below what rounding leaves."""
    X, y = a["X"][lane] / a["c_X"][lane], a["y"][lane] / a["c_y"][lane]
    omega = (a["weights"][lane] / np.max(a["mu"][lane]) + a["decay"][lane]).ravel()
    taken, columns = np.isfinite(omega), np.concatenate([X, -X], axis=1)
    fit = columns[:, taken] @ np.linalg.lstsq(columns[:, taken], y, rcond=None)[0]
    # The cheapest of the points that fit best.
    size = max(np.max(omega[taken], initial=0), 1e-300)
    run = linprog(omega[taken] / size, A_eq=columns[:, taken], b_eq=fit)
    if not run.success:
        return False
    x = np.zeros(2 * X.shape[1])
    x[taken] = run.x
    cost = size * run.fun / (a["c_X"][lane] * a["c_y"][lane])
    x = x[: X.shape[1]] - x[X.shape[1] :]
    terms = np.sum(np.linalg.norm(X, axis=0) * np.abs(x))
    rounding = 1e5 * eps * (np.linalg.norm(y) + terms) * terms
    return bool(np.sum((y - X @ x) ** 2) / 2 + cost < rounding)


def _span(config: Config, a: Arrays, lane: int) -> float:
    """The quotient of the last and the first knot of the path: by LARS, or by column norms if it is
    larger by these; 1 where there is none."""
    if not np.any(a["y"][lane]):
        return 1.0
    weights = a["weights"][lane][0]
    X = a["X"][lane] / np.where((weights > 0) & np.isfinite(weights), weights, 1)
    X, y = X / np.max(np.abs(X)), a["y"][lane] / np.max(np.abs(a["y"][lane]))
    penalised = (weights > 0) & np.isfinite(weights) & (np.linalg.norm(X, axis=0) > 0)
    knots, _, _ = lars_path(X[:, penalised], y, method="lasso", positive=config.positive)
    knots = knots[knots > 0]
    norms = np.linalg.norm(X[:, penalised], axis=0)
    by_norm = np.max(norms) / np.min(norms) if len(norms) else 1.0
    return float(max(by_norm, knots[0] / knots[-1] if len(knots) else 1.0))


def _is_nearly_explained(config: Config, a: Arrays, lane: int) -> bool:
    """Whether fewer columns than the rank explain all of `y` that `X` explains but for something
    between rounding and half of the digits: which face has the least norm is decided by that."""
    X, y = a["X"][lane] / a["c_X"][lane], a["y"][lane] / a["c_y"][lane]
    norms = np.linalg.norm(X, axis=0)
    X = X[:, norms > 0] / norms[norms > 0]
    if np.max(np.abs(y @ X)) < config.eps**0.5 * np.linalg.norm(y):
        return True  # the second half of the digits of what is explained is rounding of `y`
    y = X @ np.linalg.lstsq(X, y)[0]
    for size in range(1, np.linalg.matrix_rank(X)):
        for some in it.islice(it.combinations(range(X.shape[1]), size), 3000):
            columns = X[:, list(some)]
            rest = y - columns @ np.linalg.lstsq(columns, y)[0]
            if 1e3 * config.eps < np.linalg.norm(rest) / np.linalg.norm(y) < 10 * config.eps**0.5:
                return True
    return False


def _nearly_ties(config: Config, a: Arrays, lane: int) -> bool:
    """Whether rounding decides which coordinates, or which minimiser, a limit process at depth 2
    has at its end: by linear programming, `min ⟨w(0), q⟩` with `Xq = y`.

    The limit depends on `M` alone, whose entries (of columns of norm 1) have some roundings each.
    On the support `B` of the vertex `w_j = w_j(0) − V_jᵀw_B(0)`, `V = M_BB⁻¹M_Bj`, and `u` with
    `M_BB u = r` then move by at most

        δ (1 + |V_j|₁) |M_BB⁻¹w_B(0)|₁     and     δ |M_BB⁻¹|_∞ (|r|_∞ + |u|₁).

    A `w` above what one rounding may make it, and below what a hundred may, decides nothing; nor
    does a `u` below that, where other `w` are 0 and that is more than half of the digits.
    """
    X, y = a["X"][lane] / a["c_X"][lane], a["y"][lane] / a["c_y"][lane]
    start = np.sign(a["start"][lane])
    sides = (1,) if config.positive else (1, -1)
    norms = np.linalg.norm(X, axis=0)
    columns = np.concatenate([side * X[:, norms > 0] for side in sides], axis=1)
    first = np.concatenate([1 - side * start[norms > 0] for side in sides])
    units = np.concatenate([norms[norms > 0] for _ in sides])
    run = linprog(first, A_eq=columns, b_eq=y)
    if not run.success:
        return False
    F, share = columns / units, run.x * units
    w = first - columns.T @ run.eqlin.marginals
    basis = np.flatnonzero(share > 1e-12 * np.max(share))
    for j in np.argsort(w):  # up to the rank: a vertex may have fewer positive entries
        more = np.append(basis, j)
        if np.linalg.matrix_rank(F[:, more], tol=1e3 * config.eps) == len(more):
            basis = more
    inverse = np.linalg.pinv(F[:, basis].T @ F[:, basis])
    others = np.setdiff1d(np.arange(len(w)), basis)
    V = inverse @ F[:, basis].T @ F[:, others]
    costs = (first / units)[basis]
    moved = (1 + np.sum(np.abs(V), axis=0)) * np.sum(np.abs(inverse @ costs)) * config.eps
    small = w[others] / units[others]
    if np.any((small > moved) & (small < 100 * moved)):
        return True
    size = np.max(np.abs(F.T @ y)) + np.sum(share)
    lost = 100 * config.eps * size * np.max(np.sum(np.abs(inverse), axis=1))
    is_vague = np.any(share[basis] < lost) and lost > config.eps**0.5 * np.max(share)
    return bool(is_vague and np.any(small <= moved))


def is_told(config: Config, a: Arrays, lane: int, function: str, result: str) -> bool:
    """Whether the dtype tells the result. At `D > 2`, where active columns depend on each other,
    the end point hangs on their `w`, of the order of `ε^{1−2/D}`, of which rounding of `w(0)` or
    `X` may leave less than half of the digits; so may units of columns that differ by as much. With
    `x ≥ 0` its dual may diverge. A flow ends where the rounding of `sr`, or of `sMx`, exceeds what
    its steps may be wrong by. A gap is none where the objective itself is rounding, as at the
    latest `μ` in float32 always. Columns that are nearly equal are equal in float32, and so are
    times at which coordinates activate that differ in its second half of digits. A start that is
    far larger in one column than in another, in what it explains of `y`, loses the digits of the
    smaller one; and so does the dual of the last knot, where that is as far from the first. Where
    one column explains the response, but for 1e-12 of it, the rest may cost as much as that column,
    if weights differ; so it may if the path has knots beyond what rounding leaves of the
    correlations. Nor is it told which face has the least norm. A coordinate that passes 0 leaves
    and returns within a share of `μ` that is the quotient of its weight and the largest one: if
    that is below `eps^0.7`, both count as one event."""
    if config.dtype == "float32" and "near" in str(a["defects"][lane]):
        return False
    if function == "limit" and np.any(a["start"][lane]):
        share = np.abs(a["start"][lane]) * np.linalg.norm(a["X"][lane], axis=0)
        if np.min(share[share > 0], initial=np.inf) < config.eps**0.5 * np.max(share):
            return False
    norms = np.linalg.norm(a["X"][lane], axis=0)
    uneven = np.max(norms) / np.min(norms[norms > 0], initial=np.inf)
    if result == "limit_inaccurate":
        # What a start explains may cancel: its rounding then hides half of the digits of `y`.
        share = np.max(np.abs(a["start"][lane]) * norms)
        return share <= 0.1 * config.eps**-0.5 * np.linalg.norm(a["y"][lane])
    if function == "lasso" and result == "invalid_data":
        # The gap that is asked for underflows.
        gap = 1e-4 if config.dtype == "float32" else 1e-8
        return gap * np.sum(a["y"][lane] ** 2) / 2 >= np.finfo(config.dtype).tiny
    if result == "limit_undetermined" and config.depth == 2 and not a["decay"][lane]:
        return not _nearly_ties(config, a, lane)
    if result == "path_inaccurate" and function in ("limit_point", "basis_pursuit"):
        return _span(config, a, lane) < config.eps**-0.5
    if result == "end_point_not_reached":
        if function == "limit_point" and uneven * config.eps**0.7 > 1:
            return False  # the norm, in which small columns cost that much more, hides the others
        if function == "limit_point" and _is_nearly_explained(config, a, lane):
            return False
        return not (config.positive and diverges(a["X"][lane], a["y"][lane]))
    if result == "end_point_undetermined":
        if uneven * config.eps**0.7 > 1:
            return False
        if function == "limit_point":
            return True  # has no ε
        q0 = np.exp(a["log_eps"][lane]) * np.max(a["p"][lane]) ** config.depth
        if q0 * np.max(norms) > 0.1 * config.eps**-0.5 * np.linalg.norm(a["y"][lane]):
            return False  # the rounding of a start that large hides half of the digits of x
        w_log = (1 - 2 / config.depth) * a["log_eps"][lane]
        return not w_log < np.log(config.eps) / 2
    if result in ("max_steps_reached", "step_too_small", "flow_not_resolved", "start_too_large"):
        w_size = np.min(a["p"][lane]) ** (2 - config.depth)
        q0 = np.exp(a["log_eps"][lane]) * np.max(a["p"][lane]) ** config.depth
        X, y = a["X"][lane], a["y"][lane]
        columns, r = np.linalg.norm(X, axis=0), np.abs(X.T @ y)
        explained = np.max(r[columns > 0] / columns[columns > 0], initial=0)
        # Of a start that large, w keeps no digits of x.
        largest = 0.05 * config.eps**-0.5 / max(-a["log_eps"][lane], 3)
        if q0 * np.max(columns) > largest * explained > 0:
            return False
        if result == "start_too_large":
            return True
        summed = columns * (columns @ np.abs(np.linalg.lstsq(X, y)[0]))
        late = np.max(a["s"][lane]) * np.max(r + summed) / w_size
        steps = 1e-4 if config.dtype == "float32" else 1e-7
        # At D > 2, of the time in which an active coordinate goes from one wall to the other.
        return late * config.eps < (steps if config.depth == 2 else config.eps ** (2 / 3) / 10)
    if result == "gap_not_reached":
        return config.dtype == "float64" and not _is_all_rounding(a, lane, config.eps)
    if result == "path_inaccurate" and _span(config, a, lane) > 0.01 / config.eps:
        return False
    if result == "path_inaccurate":
        w = a["weights"][lane][(a["weights"][lane] > 0) & np.isfinite(a["weights"][lane])]
        most = 1e4 if "explained" in str(a["defects"][lane]) else config.eps**-0.7
        return function == "end" or w.size == 0 or np.max(w) / np.min(w) < most
    return True
