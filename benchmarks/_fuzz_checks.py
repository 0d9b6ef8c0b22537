"""How `fuzz` checks paths, limits and points: in NumPy, in units where `X` and `y` are of order 1,
by formulas that share nothing with the solvers. `_fuzz_flow.py` does so for flows.

Each check gives one number a lane, 0 if all is as it should be; above `wrong` the result is wrong.
Correlations `c = Xᵀ(y − Xx)` are divided by the norms of the columns, and are relative to the
largest one at `x = 0`. What may be rounding of their evaluation counts as 0: `ROUNDING` units of
rounding of `‖y‖ + Σ ‖Xₖ‖|xₖ|`. (Where `y` is orthogonal to `X` but for rounding, that is all of
`c`.)

- *path*: `−κ⁻ ≤ c ≤ κ⁺`, equal on the support, `κ = λ + ω/μ`, at knots, between them and beyond. A
  violation of `v` means: the exact solution for correlations that are off by `v` of the largest.
- *limit*: the same of `x̄` with `κ = λ + w(0)/s` and the signs of the plateau: `w ≥ 0`, and 0 where
  `x ≠ 0`. *Selection*: where columns of the support depend on each other,
  `Σ aᵢ log(|xᵢ|/x₀ᵢ) = 0` for all `Σ aᵢ Fᵢ = 0` (`Σ aᵢ |xᵢ|^{2/D−1} = 0` at `D > 2`): by how much
  entries are off, in logarithms; infinite where an entry is 0 that can be positive.
- *end*: with decay the conditions of the lasso at `κ = λ`. Without: those of (non-negative) least
  squares; *link*, `x = φ_ε(w(0) ∓ dual)`; *range*, `dual` in the range of `Xᵀ`, by what that
  changes in `x`. Together they characterise the end point.
- *limit_point*, *basis_pursuit*: (non-negative) least squares; *norm*, the duality gap of the
  weighted 1-norm with the dual that is given, relative to the norm; *selection* as above.
- *lasso*: that the gap is as small as asked, and *bound*, that it bounds what a point on the path
  (any would do) has less of the objective.
- *copies*: the same problem rotated, permuted, reflected and in other units has the same results.
"""

import numpy as np
from scipy.optimize import linprog

from ._fuzz_conditioning import NULL, null_vectors
from ._fuzz_problems import Arrays, Config, copies

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


@np.errstate(all="ignore")
def violations(config: Config, a: Arrays, out: Arrays) -> dict[str, np.ndarray]:
    u = units(config, a)
    x_unit = u["x_unit"][:, None, None]
    found = {}
    both = lambda v: np.broadcast_to(v, (len(v), 2, v.shape[2]))
    for name, first in (("path", a["weights"]), ("limit", both(u["moved"]))):
        if name not in out:
            continue
        at, x, slope = (out[name][key] for key in ("at", "x", "slope"))
        kappa = first[:, None] / (at * u["unit"][:, None])[:, :, None, None]
        kappa = kappa + u["decay"][:, None, None, None]
        off = excess(config, u, x / x_unit, kappa, np.sign(x if name == "path" else slope))
        known = ~(at <= 0) & ~np.isinf(at)
        found[name] = np.max(np.where(known, off.max(axis=2), 0), axis=1) / u["top"]
    if "limit" in out:
        found["limit, selection"] = _limit_selection(config, a, u, out["limit"])
    if "end" in out:
        found |= _end(config, a, u, out["end"])
    if "limit_point" in out:
        found |= _limit_point(config, a, u, out["limit_point"], both(u["base"]))
    if "basis_pursuit" in out:
        found |= _norms("basis_pursuit", config, u, out["basis_pursuit"], a["weights"])
    if "lasso" in out:
        found |= _lasso(config, a, u, out)
    found |= _copies(config, u, a, out)
    return {name: np.where(np.isnan(v), np.inf, v) for name, v in found.items()}


def _least_squares(
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
    size = np.where(size > 0, size, 1)
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
    lost = (config.depth > 2) & (w < 10 * digits)
    return np.where(lost, np.inf, q * (folds * digits + rounding * config.eps))


def dual_start(config: Config, a: Arrays, u: Arrays) -> np.ndarray:
    """`w(0)`, at `ε`, shape `(lanes, signs, d)`."""
    if config.depth == 2:
        return 1 + 2 * np.log(a["p"]) / a["log_eps"][:, None, None]
    return u["base"]


def _signed(q: np.ndarray) -> np.ndarray:
    return q[:, 0] if q.shape[1] == 1 else q[:, 0] - q[:, 1]


def _on_sides(v: np.ndarray, signs: int) -> np.ndarray:
    return np.stack([v, -v][:signs], axis=1)


def _decayed(config: Config, u: Arrays, x: np.ndarray) -> np.ndarray:
    """Violation of the conditions of the lasso at `κ = λ`."""
    x = (x / u["x_unit"][:, None])[:, None]
    kappa = np.broadcast_to(u["decay"][:, None, None, None], (len(x), 1, 2, x.shape[2]))
    return excess(config, u, x, kappa, np.sign(x)).max(axis=(1, 2)) / u["top"]


def _end(config: Config, a: Arrays, u: Arrays, end: Arrays) -> dict[str, np.ndarray]:
    x, dual = end["x"] / u["x_unit"][:, None], end["dual"]
    decays, decayed = a["decay"] > 0, _decayed(config, u, end["x"])
    found = {"end": np.where(decays, decayed, _least_squares(config, u, x))}

    free = np.isfinite(dual)
    start, log_eps = dual_start(config, a, u), a["log_eps"][:, None, None]
    largest = np.max(np.abs(x), axis=1, keepdims=True)
    largest = np.where(largest > 0, largest, 1)

    def of(dual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        w = start - _on_sides(dual, start.shape[1])
        q, folds = link(config, w, log_eps)
        q = q / u["x_unit"][:, None, None]
        # Rounding of the dual, in x.
        digits = rounding_of_link(config, w, q, folds, np.abs(start) + np.abs(dual)[:, None])
        return np.where(free, _signed(q), 0), np.sum(digits, axis=1)

    want, close = of(np.where(free, dual, 0))
    off = np.maximum(np.abs(x - want) - close, 0) / largest
    # Where no digit of the dual is left, x says nothing of it.
    off = np.where(close > 0.1 * largest, 0, off)
    found["end, link"] = np.where(decays, 0, np.max(off, axis=1))
    moved, is_known, rounding = _in_range(config.eps, u, np.where(free, dual, 0), free)
    changed, _ = of(moved)
    _, folds = link(config, start - _on_sides(np.where(free, dual, 0), start.shape[1]), log_eps)
    close = close + rounding * np.abs(want) * np.max(folds, axis=1)
    off = np.maximum(np.abs(changed - want) - close, 0) / largest
    off = np.where(close > 0.1 * largest, 0, off)
    found["end, range"] = np.where(decays | ~is_known, 0, np.max(off, axis=1))
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
    return part * u["safe"], is_known, rounding


def _norms(
    name: str, config: Config, u: Arrays, point: Arrays, weights: np.ndarray
) -> dict[str, np.ndarray]:
    x = point["x"] / u["x_unit"][:, None]
    dual = point["dual"]
    free = np.isfinite(dual)
    moved, is_known, rounding = _in_range(config.eps, u, np.where(free, dual, 0), free)
    moved = np.where(is_known[:, None], moved, dual)
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
    # What the result itself says of its gap is no error.
    told = point["gap"] / u["x_unit"] if "gap" in point else 0
    gap = np.where(gap > 2 * np.abs(told), np.maximum(gap - digits, 0), 0)
    gap = gap / np.where(norm > 0, norm, 1)
    return {name: _least_squares(config, u, x, weights), f"{name}, norm": gap}


def _limit_point(
    config: Config, a: Arrays, u: Arrays, point: Arrays, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """With decay the limit is that of the end point, which is the same for all ε."""
    decays, found = a["decay"] > 0, _norms("limit_point", config, u, point, weights)
    decayed = _decayed(config, u, point["x"])
    found["limit_point"] = np.where(decays, decayed, found["limit_point"])
    found["limit_point, selection"] = _point_selection(config, a, u, point["x"])
    without = lambda name, v: v if name == "limit_point" else np.where(decays, 0, v)
    return {name: without(name, v) for name, v in found.items()}


def _selection(config: Config, u: Arrays, x: np.ndarray, reference: np.ndarray, lane: int) -> float:
    """How far `log|xᵢ|` of a point are from where they should be; `reference` is `log x₀`."""
    support = np.abs(x) * u["columns"][lane] > 1e-6 * np.max(np.abs(x) * u["columns"][lane])
    columns = (u["X"][lane] * np.sign(x))[:, support]
    null = null_vectors(columns, config.eps)
    if null is None or not len(null):
        return 0.0
    if config.depth == 2:
        return float(np.max(np.abs(null @ (np.log(np.abs(x[support])) - reference[support]))))
    terms = null * np.abs(x[support]) ** (2 / config.depth - 1)
    return float(np.max(np.abs(np.sum(terms, axis=1)) / np.sum(np.abs(terms), axis=1)))


def _point_selection(config: Config, a: Arrays, u: Arrays, x: np.ndarray) -> np.ndarray:
    off = np.zeros(len(x))
    x = x / u["x_unit"][:, None]
    for lane in np.flatnonzero(np.isfinite(x).all(axis=1) & ~_is_independent(config, u)).tolist():
        shape = 2 * np.log(a["p"][lane])
        reference = np.where(x[lane] >= 0, shape[0], shape[-1])
        off[lane] = _selection(config, u, x[lane], reference, lane)
    return off


def _is_independent(config: Config, u: Arrays) -> np.ndarray:
    """Designs that obviously have no dependent columns, of full column rank."""
    values = np.linalg.svd(u["X"] / u["safe"][:, None], compute_uv=False)
    return (values[:, -1] > 1e-3) & (u["X"].shape[1] >= u["X"].shape[2])


def _limit_selection(config: Config, a: Arrays, u: Arrays, limit: Arrays) -> np.ndarray:
    x = limit["slope"] / u["x_unit"][:, None, None]
    off = np.zeros(len(x))
    independent = _is_independent(config, u)
    # More columns than rows can only depend on each other where as many are active.
    for lane in np.flatnonzero(~independent & np.isfinite(x).all(axis=(1, 2))).tolist():
        start = a["start"][lane] / u["x_unit"][lane]
        if config.depth > 2 and np.any(start != 0):
            continue
        shape = 2 * np.log(a["p"][lane]) - np.log(u["x_unit"][lane])
        at, mean = limit["at"][lane], limit["x"][lane] / u["x_unit"][lane]
        knots, rows = np.unique(at[: len(at) // 2], return_index=True)
        for s, row in zip(knots, rows, strict=True):
            plateau = x[lane, row]
            reference = np.where(plateau >= 0, shape[0], shape[-1])
            same, known = np.sign(plateau) == np.sign(start), start != 0
            logs = np.log(np.abs(np.where(known, start, 1)))
            opposite = shape[0] + shape[-1] - logs
            reference = np.where(known, np.where(same, logs, opposite), reference)
            off[lane] = max(off[lane], _selection(config, u, plateau, reference, lane))
            if _leaves_out(config, u, lane, s, plateau, mean[row]):
                off[lane] = np.inf
    return off


def _leaves_out(
    config: Config, u: Arrays, lane: int, s: float, plateau: np.ndarray, mean: np.ndarray
) -> bool:
    """Whether an entry is 0 that can be positive: of those with `w = 0` that rest there, along a
    line on which `Xx` is constant. Entropy has an infinite slope at 0, so that all of them are."""
    one = {key: u[key][lane : lane + 1] for key in ("X", "y", "safe", "columns", "norm")}
    slope, average = (correlation(one, v[None, None])[0, 0] for v in (plateau, mean))
    moved = u["moved"][lane] / u["safe"][lane]
    sides = np.array([1.0, -1.0])[: len(moved), None]
    decay = u["decay"][lane] / u["safe"][lane]
    w = moved - s * u["unit"][lane] * (sides * average - decay)
    speed = decay - sides * slope
    size = np.max(moved) + s * u["unit"][lane] * u["top"][lane]
    rests = (np.abs(w) < 1e-9 * size) & (np.abs(speed) < 1e-9 * u["top"][lane])
    rests &= (u["columns"][lane] > 0) & np.isfinite(w)
    columns = np.concatenate([u["X"][lane] * sign for sign in sides[:, 0]], axis=1)
    columns = columns[:, rests.ravel()]
    values = (sides * plateau)[rests] * u["columns"][lane][np.nonzero(rests)[1]]
    zero = values <= config.eps * np.max(np.abs(values), initial=0)
    if not np.any(zero):
        return False
    null = null_vectors(columns, config.eps)
    if null is None or not null.size:
        return False
    null = null * np.linalg.norm(columns, axis=0)
    # Where all `w` are 0, `Σ w(0) x` does not change either: else they only seem to be, as late as
    # `w` is rounding.
    first = ((moved + s * u["unit"][lane] * decay) * np.ones((len(sides), 1)))[rests]
    sums, terms = null @ first, np.abs(null) @ first
    off = np.abs(sums) / np.where(terms > 0, terms, 1)
    k = np.argmax(off)
    if off[k] > 1e5 * config.eps:
        null = np.delete(null - np.outer(sums / sums[k], null[k]), k, axis=0)
    if not len(null):
        return False
    run = linprog(
        -null @ zero,
        A_ub=np.concatenate([null.T, -null.T]),
        b_ub=np.concatenate([np.ones(len(zero)), np.where(zero, 0, 1)]),
        bounds=(None, None),
    )
    return bool(run.success and -run.fun > 1e-3)


def objective(u: Arrays, x: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    """`½‖y − Xx‖² + Σ κ|x|` at points, `kappa (lanes, points, 2, d)`."""
    rest = u["y"][:, None] - np.einsum("lij,lkj->lki", u["X"], x)
    kappa = np.where(x >= 0, kappa[:, :, 0], kappa[:, :, 1])
    return np.sum(rest**2, axis=2) / 2 + np.sum(np.where(x == 0, 0, kappa * np.abs(x)), axis=2)


def _lasso(config: Config, a: Arrays, u: Arrays, out: Arrays) -> dict[str, np.ndarray]:
    x_unit, tol = u["x_unit"][:, None, None], 1e-4 if config.dtype == "float32" else 1e-8
    x = out["lasso"]["x"] / x_unit
    best = out["path"]["at_mu"] / x_unit if "path" in out else np.full_like(x, np.nan)
    gap = out["lasso"]["gap"] / a["c_y"][:, None] ** 2
    kappa = a["weights"][:, None] / (a["mu"] * u["unit"][:, None])[:, :, None, None]
    kappa = kappa + u["decay"][:, None, None, None]
    value = objective(u, x, kappa)
    digits = ROUNDING * config.eps * (sizes(u, x) ** 2 + sizes(u, np.nan_to_num(best)) ** 2)
    good = out["results"]["lasso"] == 0
    too_large = np.maximum(gap - digits, 0) / np.where(value > 0, tol * value, 1)
    if config.positive:
        too_large = np.where(np.any(x < 0, axis=2), np.inf, too_large)
    above = value - objective(u, best, kappa) - gap - digits
    # Without a path there is nothing to compare with.
    above = np.where(np.isfinite(best).all(axis=2) & ~(above <= 0), above, 0)
    above = above / u["scale"][:, None]
    most = lambda v: np.max(np.where(good, v, 0), axis=1)
    return {"lasso": most(too_large), "lasso, bound": most(above)}


def _copies(config: Config, u: Arrays, a: Arrays, out: Arrays) -> dict[str, np.ndarray]:
    m = copies(config)
    first, last = np.arange(m), np.arange(config.lanes - m, config.lanes)
    order, flips, unit = (a[key][last] for key in ("order", "flips", "copy_unit"))
    results = {"path": "at_mu", "limit": "at_s", "flow": "x_mean", "end": "x", "limit_point": "x"}
    found = {}
    for name in results.keys() & out.keys():
        key = results[name]
        v = out[name][key] if out[name][key].ndim == 3 else out[name][key][:, None]
        want = np.take_along_axis(v[first], order[:, None], axis=2)
        want = want * flips[:, None] * unit[:, None, None]
        share = u["columns"][last][:, None]
        size = np.max(np.abs(want) * share, axis=2)
        if name == "flow":
            # Steps are to digits of what x comes to: before it moves it has fewer.
            size = np.maximum(size, 1e-3 * np.max(size, axis=1, keepdims=True))
        off = np.max(np.abs(v[last] - want) * share, axis=2) / np.where(size > 0, size, 1)
        both = (out["results"][name][first] == 0) & (out["results"][name][last] == 0)
        found[f"{name}, copies"] = np.zeros(config.lanes)
        found[f"{name}, copies"][last] = np.where(both, np.max(off, axis=1), 0)
    return found
