"""How `fuzz` checks results: in NumPy, in units where `X` and `y` are of order 1, by formulas that
share nothing with the solvers.

- *path*, *limit*, and *end* with weight decay: the optimality conditions `|c| ≤ κ`, and
  `c = κ sign x` on the support, of `c = Xᵀ(y − Xx)` (for the limit: of `x̄` and the sign of its
  plateaus), at knots, between them and beyond, relative to `max |Xᵀy|`;
- *end* without: `c = 0`, relative to `‖X‖(‖y‖ + ‖X‖ max |x|)`, for singular values below rounding
  count as 0 (and what is below that of the start, of size `ε`; with `x ≥ 0`, the conditions of
  non-negative least squares);
- *flow*: *dual*, `dual = s Xᵀ(y − Xx̄)`; *link*, `x = φ_ε(w(0) ∓ dual + λs)`; *gap*, that the lasso
  gap is not negative, and below the certificate; *bound*, that with the lasso point `p` at `s`
  `s [f(x̄) − f(p)] ≤ D(p, x(0))`, `f = ℓ + λ‖·‖₁` and `D` the divergence of the entropy over
  `log(1/ε)`, as it is for every mirror flow. Losses are relative to `½‖y‖²`, duals to
  `1 + s ‖Xⱼ‖ (‖y‖ + Σ ‖Xₖ‖|x̄ₖ|)`, the digits of `z` that the steps bound;
- *integration*: `x̄` at the last time, of a few flows, against SciPy's LSODA, relative to the
  largest entry of `x̄`.

Of `c` what may be rounding of its evaluation counts as 0: `ROUNDING ‖Xⱼ‖ (‖y‖ + Σ ‖Xₖ‖|xₖ|)`.
(Where `y` is orthogonal to `X` but for rounding, `max |Xᵀy|` is of that size.)
"""

from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

ROUNDING = 64 * np.finfo(float).eps
Arrays = dict[str, Any]


def _units(a: Arrays) -> Arrays:
    """Data in units where they are of order 1, with what is derived from them."""
    unit, x_unit = a["X_scale"] * a["y_scale"], a["y_scale"] / a["X_scale"]
    X, y = a["X"] / a["X_scale"][:, None, None], a["y"] / a["y_scale"][:, None]
    r = np.einsum("lij,li->lj", X, y)
    size = np.max(np.abs(r), axis=1)
    return {
        "X": X,
        "y": y,
        "unit": unit,
        "x_unit": x_unit,
        "decay": a["decay"] / unit,
        "s": a["s"] * unit[:, None],
        "size": np.where(size > 0, size, 1),
        "columns": np.linalg.norm(X, axis=1),
        "scale": np.where(np.any(y != 0, axis=1), np.sum(y**2, axis=1) / 2, 1),
    }


def _correlation(u: Arrays, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`c` at points `x` (lanes, points, d), in units, and its rounding."""
    rest = u["y"][:, None] - np.einsum("lij,lkj->lki", u["X"], x)
    c = np.einsum("lij,lki->lkj", u["X"], rest)
    terms = np.linalg.norm(u["y"], axis=1)[:, None] + np.sum(
        np.abs(x) * u["columns"][:, None], axis=2
    )
    return c, ROUNDING * u["columns"][:, None] * terms[..., None]


def _conditions(
    c: np.ndarray, kappa: np.ndarray, sign: np.ndarray, rounding: np.ndarray, positive: bool
) -> np.ndarray:
    """Largest violation at each point."""
    kappa = kappa[..., None]
    bound = (c if positive else np.abs(c)) - kappa
    mismatch = np.where(sign != 0, np.abs(c - kappa * sign), 0)
    worst = np.maximum(np.maximum(bound, mismatch) - rounding, 0)
    if positive:
        worst = np.where(sign < 0, np.inf, worst)
    return worst.max(axis=-1)


@np.errstate(all="ignore")
def violations(a: Arrays, out: Arrays, positive: bool) -> dict[str, np.ndarray]:
    """Of each result, relative; NaN counts as infinite."""
    u = _units(a)
    decay, size, x_unit = u["decay"], u["size"], u["x_unit"][:, None, None]
    found = {}
    for name in ("path", "limit"):
        at, x, slope = (out[name][key] for key in ("at", "x", "slope"))
        kappa = decay[:, None] + 1 / (at * u["unit"][:, None])
        support = x if name == "path" else slope
        known = ~(at <= 0) & ~np.isinf(at)
        c, rounding = _correlation(u, x / x_unit)
        worst = _conditions(c, kappa, np.sign(support), rounding, positive) / size[:, None]
        found[name] = np.max(np.where(known, worst, 0), axis=1)

    x = out["end"]["x"][:, None] / x_unit
    c, rounding = _correlation(u, x)
    norm, x_size = np.linalg.norm(u["X"], axis=(1, 2)), np.max(np.abs(x[:, 0]), axis=1)
    backward = norm * (np.linalg.norm(u["y"], axis=1) + norm * x_size)
    # What is 0 in the end is so to rounding of the start, as `rtol` is.
    start = 2 * 512 * np.finfo(float).eps * np.exp(a["log_eps"]) / u["x_unit"] * norm**2
    decays = decay > 0
    relative_to = np.where(decays, size, np.where(backward > 0, backward, 1))
    with_sign = _conditions(c, decay[:, None], np.sign(x), rounding, positive)[:, 0]
    # Without decay entries are never 0, only small: complementarity is the size of the product.
    if positive:
        product = np.max(np.abs(c * x), axis=(1, 2)) / np.where(x_size > 0, x_size, 1)
        least = np.maximum(np.maximum(np.max(c, axis=(1, 2)), 0), product)
        least = np.where(np.any(x < 0, axis=(1, 2)), np.inf, least)
    else:
        least = np.max(np.abs(c), axis=(1, 2))
    found["end"] = np.where(decays, with_sign, np.maximum(least - start, 0)) / relative_to
    found |= _flow(a, out, u, positive)
    return {name: np.where(np.isnan(v), np.inf, v) for name, v in found.items()}


def _sides(v: np.ndarray, positive: bool) -> np.ndarray:
    return np.stack([v] if positive else [v, -v])


def _start(log_eps: np.ndarray, positive: bool) -> np.ndarray:
    """`w(0)`: the shape is 1 for `USquared`, and `(1 ± 0)/2` for `UV`."""
    return 1 + (0 if positive else 2 * np.log(0.5)) / log_eps


def _flow(a: Arrays, out: Arrays, u: Arrays, positive: bool) -> Arrays:
    flow, s, x_unit = out["flow"], u["s"], u["x_unit"][:, None, None]
    x, x_mean, best = (flow[key] / x_unit for key in ("x", "x_mean", "lasso"))
    c, rounding = _correlation(u, x_mean)
    off = np.maximum(np.abs(flow["dual"] - s[..., None] * c) - s[..., None] * rounding, 0)
    dual = np.max(off / (1 + s[..., None] * rounding / ROUNDING), axis=2)

    # The link multiplies rounding of the dual by log(1/ε).
    log_eps = a["log_eps"][:, None, None]
    w = _start(log_eps, positive) - _sides(flow["dual"], positive)
    w = w + (u["decay"][:, None] * s)[..., None]
    q = np.exp(w * log_eps)
    want = (q[0] if positive else q[0] - q[1]) / x_unit
    folds = 1 + np.abs(log_eps) * (1 + np.abs(flow["dual"]) + (s * u["decay"][:, None])[..., None])
    close = ROUNDING * folds * np.sum(q, axis=0) / x_unit
    link = np.maximum(np.abs(x - want) - close, 0)
    link = np.max(link, axis=2) / np.maximum(np.max(np.abs(x), axis=2), 1)

    scale = u["scale"][:, None]
    gap, bound = (flow[key] / a["y_scale"][:, None] ** 2 for key in ("gap", "bound"))
    known = (out["results"]["path"] == 0)[:, None]  # without a path there is no gap
    above = np.maximum(np.where(bound == np.inf, 0, gap - bound), -gap)
    mirror = _objective(u, x_mean) - _objective(u, best) - _divergence(a, u, best, positive)
    terms = {"dual": dual, "link": link}
    # Where x is large, from a large start, losses are differences of larger numbers, and the
    # penalty of a column of 0 is larger than both.
    norms = [np.linalg.norm(u["y"], axis=1)[:, None]]
    norms += [np.sum(np.abs(v) * u["columns"][:, None], axis=2) for v in (x_mean, best)]
    digits = 16 * ROUNDING * sum(norms) ** 2
    for name, excess in {"gap": above, "bound": mirror}.items():
        excess = excess - digits - 16 * ROUNDING * np.abs(gap)
        terms[name] = np.where(known & ~(excess <= 0), excess / scale, 0)
    return {f"flow, {name}": np.max(term, axis=1) for name, term in terms.items()}


def _objective(u: Arrays, x: np.ndarray) -> np.ndarray:
    """`ℓ(x) + λ‖x‖₁`, in units."""
    rest = u["y"][:, None] - np.einsum("lij,lkj->lki", u["X"], x)
    return np.sum(rest**2, axis=2) / 2 + u["decay"][:, None] * np.sum(np.abs(x), axis=2)


def _divergence(a: Arrays, u: Arrays, p: np.ndarray, positive: bool) -> np.ndarray:
    """`D(p, x(0))/s`: `Σ q log(q/q(0)) − q + q(0)` over `s log(1/ε)`, with `q` the parts of `p`."""
    log_eps = a["log_eps"][:, None, None]
    x_unit = u["x_unit"][:, None, None]
    log_start = _start(log_eps, positive) * log_eps - np.log(x_unit)  # of q(0), in units
    q = np.maximum(_sides(p, positive), 0)
    logs = np.where(q > 0, np.log(np.where(q > 0, q, 1)) - log_start, 0)
    terms = q * logs - q + np.exp(log_start)
    return np.sum(terms, axis=(0, 3)) / (-log_eps[:, :, 0] * u["s"])


@np.errstate(all="ignore")
def integrated(a: Arrays, out: Arrays, positive: bool, lane: int) -> float | None:
    """The error of `x̄` at the last time against SciPy; none where SciPy fails."""
    u = {key: value[lane] for key, value in _units(a).items()}
    log_eps, x_unit = a["log_eps"][lane], u["x_unit"]
    M, r, start = u["X"].T @ u["X"], u["X"].T @ u["y"], _start(log_eps, positive)

    def x(s: float, z: np.ndarray) -> np.ndarray:
        dual = s * r - M @ z
        q = np.exp(np.minimum((start - _sides(dual, positive) + u["decay"] * s) * log_eps, 300))
        return (q[0] if positive else q[0] - q[1]) / x_unit

    def jacobian(s: float, z: np.ndarray) -> np.ndarray:
        dual = s * r - M @ z
        q = np.exp(np.minimum((start - _sides(dual, positive) + u["decay"] * s) * log_eps, 300))
        return np.sum(q, axis=0)[:, None] / x_unit * log_eps * M

    last, atol = float(u["s"][-1]), 1e-11 / u["size"]
    z = solve_ivp(
        x,
        (0, last),
        np.zeros(len(r)),
        method="LSODA",
        jac=jacobian,
        rtol=1e-9,
        atol=atol,
        t_eval=[last],
    )
    if not z.success:
        return None
    got, want = out["flow"]["x_mean"][lane, -1] / x_unit, z.y[:, -1] / last
    # What the smallest of steps would not resolve is 0.
    least = 1e-6 * np.linalg.norm(u["y"]) / max(np.max(u["columns"]), 1e-300)
    return float(
        max(np.max(np.abs(got - want)) - atol / last, 0)
        / max(np.max(np.abs(want)), least, np.exp(log_eps) / x_unit, 1e-300)
    )
