"""How `fuzz` checks flows, in NumPy and with SciPy.

- *dual*: `dual = s Xᵀ(y − Xx̄)`; *link*: `x = φ_ε(w(0) ∓ dual + λs)`, beyond what rounding of the
  dual changes in `x`;
- *certificate*: no point has an objective `f = ℓ + λ‖·‖₁ + ‖·‖₁/s` lower than that of `x̄` by more
  than the bound;
- *bound*, *last*: the flow is a mirror flow, whose `f = ℓ + λ‖·‖₁` falls, so that
  `s [f(x̄) − f(p)] ≤ D(p, x(0))` and `s [f(x) − f(p)] ≤ D(p, x(0))` for every point `p`, `D` the
  divergence of its potential. Here `p` is a lasso point, and the least squares point. Both
  relative to `½‖y‖²`: an error `e` of `x` beyond the jumps is `e²` in *last*;
- *far*: `x` where nothing moves any more (by the rate of the linearised flow) is the least squares
  point, relative to its largest entry;
- *scipy*: `x` and `x̄` of a few flows by Radau, in the variables `w` and `z`, at all times, relative
  to the largest entry, and beyond what an error of 1e-5 in the time changes. *limit, scipy*: the
  plateaus of the limit process by the same at `log ε = −20000`, where jumps are far away.
"""

import itertools

import numpy as np
from scipy.integrate import solve_ivp

from ._fuzz_bounds import least_share
from ._fuzz_checks import objective
from ._fuzz_ends import dual_start, link, on_sides, rounding_of_link
from ._fuzz_problems import Arrays, Config
from ._fuzz_units import ROUNDING, correlation, sizes, units

# Evaluations of the field after which Radau counts as failed: one flow in 20 000 did not end within
# seven minutes, where others take seconds.
SCIPY_CALLS = 300_000


@np.errstate(all="ignore")
def flow_violations(config: Config, a: Arrays, out: Arrays) -> dict[str, np.ndarray]:
    u, flow = units(config, a), out["flow"]
    x_unit = u["x_unit"][:, None, None]
    x, x_mean = flow["x"] / x_unit, flow["x_mean"] / x_unit
    best = out["path"]["at_s"] / x_unit if "path" in out else np.full_like(x, np.nan)
    s = a["s"] * u["unit"][:, None]
    found = {}

    # In units of the dual, for columns of norm 1.
    c = correlation(u, x_mean)
    rounding = ROUNDING * config.eps * sizes(u, x_mean)[..., None]
    off = np.abs(flow["dual"] / u["safe"][:, None] - s[..., None] * c) - s[..., None] * rounding
    # With decay it is the difference of numbers that grow, sums of steps, each of which is rounded.
    steps = np.maximum(ROUNDING, 4 * flow["steps"])[:, None, None]
    decayed = (u["decay"][:, None] * s)[..., None, None]
    off = off - steps * config.eps * decayed[..., 0] / u["safe"][:, None]
    # And `x` is known to the rounding of the start, where that cancels in it.
    start = dual_start(config, a, u)
    begin, _ = link(config, start[:, None], a["log_eps"][:, None, None, None])
    begin = ROUNDING * config.eps * sizes(u, np.sum(begin, axis=2) / x_unit)[..., None]
    off = off - s[..., None] * begin
    w_size = np.max(np.abs(u["base"]) / u["safe"][:, None], axis=(1, 2))[:, None, None]
    of_z = s[..., None] * rounding / (ROUNDING * config.eps)
    found["flow, dual"] = np.max(np.maximum(off, 0) / (w_size + of_z), axis=(1, 2))

    signs = start.shape[1]
    log_eps = a["log_eps"][:, None, None, None]
    w = start[:, None] - on_sides(flow["dual"], signs) + decayed
    q, folds = link(config, w, log_eps)
    q = q / x_unit[..., None]
    want = q[:, :, 0] - q[:, :, 1] if signs == 2 else q[:, :, 0]
    w_sum = np.abs(start[:, None]) + np.abs(flow["dual"])[:, :, None] + decayed
    close = np.sum(rounding_of_link(config, w, q, folds, w_sum, steps[..., None]), axis=2)
    largest = np.maximum(np.max(np.abs(x), axis=2), 1e-25)[..., None]  # data are of order 1
    # Where rounding of the dual is all of x, it says nothing, nor do subnormal numbers.
    lost = np.max(np.abs(flow["x"]), axis=2) < 1e18 * float(np.finfo(config.dtype).tiny)
    close = np.where(lost[..., None], np.inf, close)
    # And the error of steps is in w: far less than they are asked for, but at the wall, at D > 2.
    # With two signs x may cancel; the error is of q. At the wall the link of the dual may be 0.
    error = 1e3 * config.eps if config.depth == 2 else config.eps**0.55
    q = np.maximum(q, np.abs(x)[:, :, None])
    off = np.abs(x - want) - close - error * np.sum(w_sum * folds * q, axis=2)
    off = np.where(close > 0.1 * largest, 0, np.maximum(off, 0) / largest)
    found["flow, link"] = np.max(off, axis=(1, 2))
    # What rounding of `w` changes in `Xx`: all of it where the start is far larger than `y`.
    of_w = np.sum(ROUNDING * config.eps * w_sum * folds * q, axis=2)
    of_w = np.sum(of_w * u["columns"][:, None], axis=2)

    scale = u["scale"][:, None]
    free = np.zeros((len(x), 1, 2, x.shape[2])) + u["decay"][:, None, None, None]
    with_norm = free + (1 / s)[:, :, None, None]
    bound = flow["bound"] / a["c_y"][:, None] ** 2
    known = np.isfinite(best).all(axis=2)
    value = objective(u, x_mean, with_norm)
    above = value - objective(u, best, with_norm) - bound
    digits = 16 * ROUNDING * config.eps * (sizes(u, x_mean) + sizes(u, np.nan_to_num(best))) ** 2
    digits = digits + ROUNDING * config.eps * value  # and of what columns of 0 cost
    above = np.where(known, np.maximum(above - digits, 0) / scale, 0)
    found["flow, certificate"] = np.max(above, axis=1)

    # Where nothing but the start decays, the unit of `f` is what that costs.
    begins = np.sum(u["q0"], axis=1)[:, None]
    scale = np.maximum(scale, np.sum(u["decay"][:, None, None] * begins, axis=2))
    least = _least_squares_point(config, u)[:, None] + np.zeros_like(x)
    for name, v in {"bound": x_mean, "last": x}.items():
        worst = np.zeros(s.shape)
        for p in (best, least):
            is_point = np.isfinite(p).all(axis=2) & ((p >= 0).all(axis=2) | (not config.positive))
            value = objective(u, v, free)
            above = value - objective(u, p, free) - _divergence(config, a, u, p) / s
            digits = 16 * ROUNDING * config.eps * (sizes(u, v) + sizes(u, np.nan_to_num(p))) ** 2
            digits = digits + of_w**2 + ROUNDING * config.eps * value  # as above
            worst = np.maximum(worst, np.where(is_point, above - digits, 0))
        found[f"flow, {name}"] = np.max(worst / scale, axis=1)
    found["flow, far"] = _far(config, a, u, x, least, out)
    return {name: np.where(np.isnan(v), np.inf, v) for name, v in found.items()}


def _least_squares_point(config: Config, u: Arrays) -> np.ndarray:
    """By QR's stand-in, the pseudo-inverse of columns of norm 1; any point would be right."""
    X = u["X"] / u["safe"][:, None]
    values = np.linalg.pinv(np.where(np.isfinite(X), X, 0), rcond=1e-11)
    return np.einsum("lji,li->lj", values, np.nan_to_num(u["y"])) / u["safe"]


def _divergence(config: Config, a: Arrays, u: Arrays, p: np.ndarray) -> np.ndarray:
    """`D(p, x(0))`, of the potential whose gradient is `−w`, `(lanes, points)`."""
    start = dual_start(config, a, u)
    q0 = u["q0"][:, None]
    q = np.maximum(on_sides(p, start.shape[1]), 0)
    log_eps = a["log_eps"][:, None, None, None]
    if config.depth == 2:
        safe = np.where(q > 0, q, 1)
        log_start = start[:, None] * log_eps - np.log(u["x_unit"])[:, None, None, None]
        terms = (q * np.where(q > 0, np.log(safe) - log_start, 0) - q + q0) / -log_eps
    else:
        # h(q) = −(D/2) ε^{1−2/D} q^{2/D}, in the units of x and of w.
        D = config.depth
        unit = np.exp((1 - 2 / D) * (log_eps - np.log(u["x_unit"])[:, None, None, None]))
        h = lambda q: -D / 2 * unit * q ** (2 / D)
        terms = h(q) - h(q0) + start[:, None] * (q - q0)
    return np.sum(terms, axis=(2, 3))


def _far(
    config: Config, a: Arrays, u: Arrays, x: np.ndarray, least: np.ndarray, out: Arrays
) -> np.ndarray:
    if config.positive or config.depth > 2 or config.n < config.d:
        return np.zeros(len(x))
    rate = np.full(x.shape[0], 0.0)
    X = u["X"] * np.sqrt(np.abs(least[:, :1]))
    good = np.isfinite(X).all(axis=(1, 2))
    rate[good] = np.linalg.svd(X[good], compute_uv=False)[:, -1] ** 2 * -a["log_eps"][good]
    condition = np.ones(x.shape[0])
    values = np.linalg.svd(np.nan_to_num(u["X"]) / u["safe"][:, None], compute_uv=False)
    condition = values[:, 0] / np.maximum(values[:, -1], 1e-300)
    if "limit" not in out:
        return np.zeros(len(x))
    last = out["limit"]["last_knot"]
    # Its jumps are close to those of the limit for small ε only.
    last = np.where(np.any(a["start"] != 0, axis=1), np.nan, last) * (1 - 20 / a["log_eps"])
    rests = (a["s"] - 2 * last[:, None]) * u["unit"][:, None] * rate[:, None] > 60
    # In float32 the limit process takes columns at an angle of 4e-3 for dependent ones.
    well = condition < (50 if config.dtype == "float32" else 1e3)
    rests &= (a["decay"] == 0)[:, None] & well[:, None] & ~a["is_far"][:, None]
    size = np.max(np.abs(least[:, 0]), axis=1)[:, None]
    # Nor where `y` is orthogonal to `X` but for rounding, nor where a start is so much larger than
    # x that the rounding of its `w` hides x.
    is_seen = np.sum(np.abs(least[:, 0]) * u["columns"], axis=1) > 1e3 * config.eps * u["norm"]
    start = np.max(u["q0"], axis=(1, 2)) * -a["log_eps"] * 10 * ROUNDING * config.eps
    rests &= is_seen[:, None] & (start[:, None] < size)
    off = np.max(np.abs(x - least), axis=2) / np.where(size > 0, size, 1)
    return np.max(np.where(rests, off, 0), axis=1)


class Integral:
    """`x` and `z` at times, by SciPy, of one lane; in units. `w` and `z` are the state."""

    def __init__(self, config: Config, a: Arrays, lane: int, log_eps: float, s: np.ndarray):
        one = {key: value[lane : lane + 1] for key, value in a.items()}
        one["log_eps"] = np.array([log_eps])
        u = units(config, one)
        X, y, decay = u["X"][0], u["y"][0], u["decay"][0]
        M, r, x_unit = X.T @ X, X.T @ y, u["x_unit"][0]
        start = dual_start(config, one, u)[0]
        signs, d = start.shape
        sign = np.array([1.0, -1.0][:signs])
        size = max(np.max(np.abs(r)), decay, 1e-300)
        w_unit = one["w_unit"][0]

        def of(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            q, folds = link(config, w.reshape(signs, d), np.array(log_eps))
            return q / x_unit, folds

        def field(s: float, state: np.ndarray) -> np.ndarray:
            q, _ = of(state[: signs * d])
            x = sign @ q
            w = -sign[:, None] * (r - M @ x) + decay
            return np.concatenate([w.ravel(), x])

        def jacobian(s: float, state: np.ndarray) -> np.ndarray:
            q, folds = of(state[: signs * d])
            by_w = np.concatenate([-sign[k] * np.diag(q[k] * folds[k]) for k in range(signs)], 1)
            J = np.zeros((signs * d + d,) * 2)
            J[: signs * d, : signs * d] = np.concatenate([sign[k] * M @ by_w for k in range(signs)])
            J[signs * d :, : signs * d] = by_w
            return J

        # In time s·size/w(0), so that tolerances are relative to what is of order 1.
        self.is_known = False
        unit = float(size / w_unit)
        at = s * unit
        # Tolerances in the units of each: w is known to 1e-11 of its unit, and z to 1e-14, or where
        # x decays from its start, to less than it becomes.
        decays = np.all(-sign[:, None] * r + decay >= 0)
        in_z = 1e-10 * min(1e-4, np.max(of(start)[0])) if decays else 1e-14
        atol = np.concatenate([np.full(signs * d, 1e-11 * w_unit), np.full(d, in_z / size)])
        calls = itertools.count()

        def scaled(t: float, v: np.ndarray) -> np.ndarray:
            if next(calls) > SCIPY_CALLS:
                raise ValueError("Radau does not end")
            return field(t, v) / unit

        try:
            run = solve_ivp(
                scaled,
                (0, at[-1]),
                np.concatenate([start.ravel(), np.zeros(d)]),
                method="Radau",
                jac=lambda t, v: jacobian(t, v) / unit,
                rtol=1e-9,
                atol=np.maximum(atol, 1e-300),
                t_eval=at,
                first_step=min(1e-3, at[-1]),
            )
        except ValueError:  # a trial step of Radau may overflow, or it does not end
            return
        if not run.success or run.y.shape[1] != len(s):
            return
        self.is_known = True
        q = [of(w)[0] for w in run.y[: signs * d].T]
        self.x = np.array([sign @ v for v in q])
        self.z = run.y[signs * d :].T
        # What an error of 1e-5 in the time, and in w, changes in x.
        fields = np.array([field(0, v)[: signs * d] for v in run.y.T]).reshape(-1, signs, d)
        folds = [of(w)[1] for w in run.y[: signs * d].T]
        moves = [
            np.sum(k * f * np.abs(w), axis=0) for k, f, w in zip(q, folds, fields, strict=True)
        ]
        self.slack = np.array(moves) * (1e-5 * s + 1e-5 / unit)[:, None]


@np.errstate(all="ignore")
def scipy_flow(config: Config, a: Arrays, out: Arrays, lane: int) -> dict[str, float] | None:
    """Errors of one flow; none where SciPy fails."""
    x_unit, unit = a["c_y"][lane] / a["c_X"][lane], a["c_X"][lane] * a["c_y"][lane]
    s = a["s"][lane] * unit
    right = Integral(config, a, lane, float(a["log_eps"][lane]), s)
    if not right.is_known:
        return None
    x, x_mean = (out["flow"][key][lane] / x_unit for key in ("x", "x_mean"))
    relative = lambda off, size: float(
        np.max(np.max(np.maximum(off, 0), axis=1) / np.maximum(np.max(size, axis=1), 1e-300))
    )
    mean = right.z / s[:, None]
    factor = 1e3 if config.dtype == "float32" else 1
    start = np.exp(a["log_eps"][lane]) * np.max(a["p"][lane]) ** config.depth / x_unit
    largest = np.max(np.abs(mean))
    # Data are of order 1: what `x_mean` has below that is less than steps are asked for.
    least = max(start, 1e-3 * largest, 1e-30)
    least_mean = max(start, least_share(config) * largest, 1e-12)
    return {
        "flow, scipy x": relative(
            np.abs(x - right.x) - factor * right.slack, np.maximum(np.abs(right.x), least)
        ),
        "flow, scipy x_mean": relative(np.abs(x_mean - mean), np.maximum(np.abs(mean), least_mean)),
    }


@np.errstate(all="ignore")
def scipy_limit(config: Config, a: Arrays, out: Arrays, lane: int) -> float | None:
    """Error of the plateaus of one limit process, without a start."""
    knots = out["limit"]["at"][lane]
    slopes = out["limit"]["slope"][lane]
    knots, first = np.unique(knots[: (len(knots)) // 2], return_index=True)
    slopes = slopes[: len(slopes) // 2][first]
    ends = np.append(knots[1:], 4 * knots[-1])
    long = (ends > 1.2 * knots) & (knots > 0)
    if not np.any(long):
        return None
    x_unit, unit = a["c_y"][lane] / a["c_X"][lane], a["c_X"][lane] * a["c_y"][lane]
    s = (0.3 * knots[long] + 0.7 * ends[long]) * unit
    # At depth 3 an active w is ε^{1/3} of its start, 2e-9, which Radau must resolve.
    right = Integral(config, a, lane, -20000.0 if config.depth == 2 else -60.0, s)
    if not right.is_known:
        return None
    want = slopes[long] / x_unit
    off = np.abs(right.x - want) - right.slack
    # Where nothing pulls an entry of 0 back, it falls like 1/time, counted in jumps of length 1/L.
    one = {key: value[lane : lane + 1] for key, value in a.items()}
    u = units(config, one)
    pull = np.abs(correlation(u, want[None])[0]) > 1e-6 * np.max(
        np.abs(correlation(u, 0 * want[None])[0])
    )
    slow = np.where(pull | (want != 0), 0, 10 / 20000 if config.depth == 2 else 0.1)
    largest = max(np.max(np.abs(want)), 1e-300)
    return float(np.max(np.maximum(off / largest - np.max(slow, axis=1, keepdims=True), 0)))
