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

from ._fuzz_bounds import least_share
from ._fuzz_ends import decayed, ends, norms
from ._fuzz_problems import Arrays, Config, copies
from ._fuzz_selection import limit_selection, point_selection
from ._fuzz_units import ROUNDING, excess, sizes, units


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
        found["limit, selection"] = limit_selection(config, a, u, out["limit"])
    if "end" in out:
        found |= ends(config, a, u, out["end"])
    if "limit_point" in out:
        found |= _limit_point(config, a, u, out["limit_point"], both(u["base"]))
    if "basis_pursuit" in out:
        found |= norms("basis_pursuit", config, u, out["basis_pursuit"], a["weights"])
    if "lasso" in out:
        found |= _lasso(config, a, u, out)
    found |= _copies(config, u, a, out)
    return {name: np.where(np.isnan(v), np.inf, v) for name, v in found.items()}


def _limit_point(
    config: Config, a: Arrays, u: Arrays, point: Arrays, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """With decay the limit is that of the end point, which is the same for all ε."""
    decays, found = a["decay"] > 0, norms("limit_point", config, u, point, weights)
    found["limit_point"] = np.where(decays, decayed(config, u, point["x"]), found["limit_point"])
    found["limit_point, selection"] = point_selection(config, a, u, point["x"])
    without = lambda name, v: v if name == "limit_point" else np.where(decays, 0, v)
    return {name: without(name, v) for name, v in found.items()}


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
            size = np.maximum(size, least_share(config) * np.max(size, axis=1, keepdims=True))
        if name in ("flow", "end"):
            start = np.sum(u["q0"], axis=1)[last] * u["columns"][last]
            start = np.max(start, axis=1) * u["x_unit"][last]
            size = np.maximum(size, start[:, None])
        # Subnormal numbers have fewer digits the smaller they are, and the flow takes `σ²z` for one
        # from about there on.
        sigma = (a["c_X"] * np.max(u["columns"], axis=1))[:, None]
        large = np.max(np.abs(v), axis=2) * np.minimum(1, sigma**2)
        lost = np.minimum(large[first], large[last]) < np.finfo(config.dtype).tiny ** 0.9
        off = np.max(np.abs(v[last] - want) * share, axis=2) / np.where(size > 0, size, 1)
        off = np.where(lost, 0, off) if name in ("flow", "end") else off
        both = (out["results"][name][first] == 0) & (out["results"][name][last] == 0)
        found[f"{name}, copies"] = np.zeros(config.lanes)
        found[f"{name}, copies"][last] = np.where(both, np.max(off, axis=1), 0)
    return found
