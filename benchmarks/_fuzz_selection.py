"""How `fuzz` checks which minimiser is selected, where columns of the support depend on each
other: `_fuzz_checks.py` says what must hold."""

import numpy as np
from scipy.optimize import linprog

from ._fuzz_conditioning import null_vectors
from ._fuzz_problems import Arrays, Config
from ._fuzz_units import ROUNDING, correlation, sizes


def _selection(config: Config, u: Arrays, x: np.ndarray, reference: np.ndarray, lane: int) -> float:
    """How far `log|xᵢ|` of a point are from where they should be; `reference` is `log x₀`."""
    # Smaller entries have too few digits.
    size, least = np.abs(x) * u["columns"][lane], max(1e-6, 1e3 * config.eps)
    support = size > least * np.max(size)
    columns = (u["X"][lane] * np.sign(x))[:, support]
    null = null_vectors(columns, config.eps)
    if null is None or not len(null):
        return 0.0
    if config.depth == 2:
        return float(np.max(np.abs(null @ (np.log(np.abs(x[support])) - reference[support]))))
    terms = null * np.abs(x[support]) ** (2 / config.depth - 1)
    return float(np.max(np.abs(np.sum(terms, axis=1)) / np.sum(np.abs(terms), axis=1)))


def point_selection(config: Config, a: Arrays, u: Arrays, x: np.ndarray) -> np.ndarray:
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


def limit_selection(config: Config, a: Arrays, u: Arrays, limit: Arrays) -> np.ndarray:
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
        # `log x₀`, on both sides.
        logs = np.log(np.abs(np.where(start != 0, start, 1)))
        sides = np.array([[1], [-1]])[: len(shape)] * np.sign(start)
        reference = np.where(
            sides > 0, logs, np.where(sides < 0, np.sum(shape, axis=0) - logs, shape)
        )
        for s, row in zip(knots, rows, strict=True):
            plateau = x[lane, row]
            own = np.where(plateau >= 0, reference[0], reference[-1])
            off[lane] = max(off[lane], _selection(config, u, plateau, own, lane))
            if _leaves_out(config, u, lane, s, plateau, mean[row], reference):
                off[lane] = np.inf
    return off


def _leaves_out(
    config: Config,
    u: Arrays,
    lane: int,
    s: float,
    plateau: np.ndarray,
    mean: np.ndarray,
    reference: np.ndarray,
) -> bool:
    """Whether an entry is 0 that should be positive: of those with `w = 0` that rest there, along a
    line on which `Xx` is constant. The potential has an infinite slope at 0: it is taken at the
    least number that the dtype has."""
    one = {key: u[key][lane : lane + 1] for key in ("X", "y", "safe", "columns", "norm")}
    slope, average = (correlation(one, v[None, None])[0, 0] for v in (plateau, mean))
    moved = u["moved"][lane] / u["safe"][lane]
    sides = np.array([1.0, -1.0])[: len(moved), None]
    decay = u["decay"][lane] / u["safe"][lane]
    w = moved - s * u["unit"][lane] * (sides * average - decay)
    speed = decay - sides * slope
    large, fast = (sizes(one, v[None, None])[0, 0] for v in (mean, plateau))
    digits = 1e3 * config.eps
    large = np.max(moved) + s * u["unit"][lane] * large
    rests = (np.abs(w) < digits * large) & (np.abs(speed) < digits * fast)
    rests &= (u["columns"][lane] > 0) & np.isfinite(w)
    first = (moved + s * u["unit"][lane] * decay) * np.ones((len(sides), 1))
    columns = np.concatenate([u["X"][lane] * sign for sign in sides[:, 0]], axis=1)
    # As late as this `w` is rounding. But copies of what is positive rest as that does.
    at = (sides * plateau > 0).ravel()
    same = np.all(columns[:, :, None] == columns[:, None, at], axis=0)
    same &= first.ravel()[:, None] == first.ravel()[None, at]
    is_late = digits * large > 1e-6 * moved
    rests &= ~is_late | np.any(same, axis=1).reshape(rests.shape)
    columns = columns[:, rests.ravel()]
    values = (sides * plateau)[rests] * u["columns"][lane][np.nonzero(rests)[1]]
    # Normal equations, as the limit solves them, square the condition number.
    known = np.linalg.svd(columns / np.linalg.norm(columns, axis=0), compute_uv=False)
    least = np.min(known[known > 1e-3], initial=1)
    zero = values <= ROUNDING * config.eps / least**2 * np.max(np.abs(values), initial=0)
    if not np.any(zero):
        return False
    null = null_vectors(columns, config.eps)
    if null is None or not null.size:
        return False
    # Columns that are as near as that, but not equal, have different `w`.
    unit = columns / np.linalg.norm(columns, axis=0)
    apart = np.linalg.norm(unit[:, :, None] - unit[:, None, :], axis=0)
    if np.any((apart > 64 * config.eps) & (apart < 1e6 * config.eps)):
        return False
    # Where all `w` are 0, `Σ w(0) x` does not change either: else they only seem to be.
    norms = np.linalg.norm(columns, axis=0)
    sums, terms = null @ first[rests], np.abs(null) @ first[rests]
    off = np.abs(sums) / np.where(terms > 0, terms, 1)
    k = np.argmax(off)
    if off[k] > ROUNDING * config.eps / least:
        null = np.delete(null - np.outer(sums / sums[k], null[k]), k, axis=0)
    if not len(null):
        return False
    x = np.maximum(values / norms, float(np.finfo(config.dtype).tiny))
    slope = np.log(x) - reference[rests]
    if config.depth > 2:
        slope = -(x ** (2 / config.depth - 1))
    # Steps are what they change in the response: of an entry that is small, no more than it is.
    room = np.where(zero, 0, np.minimum(1, values / (1e-6 * np.max(values))))
    run = linprog(
        null @ slope / np.max(np.abs(slope / norms)),
        A_ub=np.concatenate([(null * norms).T, -(null * norms).T]),
        b_ub=np.concatenate([np.ones(len(zero)), room]),
        bounds=(None, None),
    )
    if not run.success:
        return False
    step = run.x @ null
    moves = np.any((step * norms)[zero] > 1e-6)
    # Entries are rounded, and their logarithms by as much: all there is where one has moved little.
    terms = np.abs(step * slope)
    digits = ROUNDING * config.eps * np.sum(np.abs(step) if config.depth == 2 else terms)
    return bool(moves and step @ slope < -1e-3 * np.sum(terms) - digits)
