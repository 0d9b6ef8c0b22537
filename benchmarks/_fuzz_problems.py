"""The problems of `fuzz`: what is drawn, from which seed. All NumPy; a lane is one problem.

Data are kept twice: as solved, `X` and `y` in their dtype, and in units where they are of order 1,
`X/c_X` and `y/c_y`, which is exact since `c_X` and `c_y` are powers of 2.
"""

from typing import Any, NamedTuple

import numpy as np

from tests.families import FAMILIES

Arrays = dict[str, Any]
TIMES, MUS = 6, 5


class Config(NamedTuple):
    """One compiled program."""

    n: int
    d: int
    network: str = "UV"
    problem: str = "LeastSquares"
    dtype: str = "float64"
    lanes: int = 512
    batches: int = 1  # in each round

    @property
    def name(self) -> str:
        return f"{self.n}x{self.d} {self.network} {self.problem} {self.dtype}"

    @property
    def positive(self) -> bool:
        return self.network == "USquared"

    @property
    def depth(self) -> int:
        return int(self.network[-1]) if self.network.startswith("Deep") else 2

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)


# Even ones go to one worker, odd ones to the other: of about equal cost.
CONFIGS = (
    Config(3, 4, batches=6),
    Config(4, 3, batches=6),
    Config(3, 4, "USquared", batches=3),
    Config(4, 3, "UV", "Quadratic", batches=2),
    Config(3, 4, "Deep3"),
    Config(4, 3, "Deep3", "Quadratic"),
    Config(3, 4, dtype="float32", batches=2),
    Config(4, 3, dtype="float32", batches=2),
    Config(10, 6, lanes=256),
    Config(6, 10, lanes=256),
    Config(4, 3, "USquared", "Quadratic", batches=2),
    Config(3, 4, "Deep2", "Quadratic", batches=2),
    Config(6, 10, "USquared", dtype="float32", lanes=128),
    Config(10, 6, "USquared", lanes=128),
    Config(20, 40, lanes=16),
    Config(1, 1, batches=2),
)
# What a lane may have wrong, for it must then be flagged, and by which functions.
EVERY = ("path", "limit", "flow", "end", "limit_point", "lasso", "basis_pursuit")
DATA = dict.fromkeys(("nan in X", "inf in X", "nan in y", "negative decay"), EVERY)
DATA |= dict.fromkeys(("indefinite M", "asymmetric M", "r off the range"), EVERY)
BAD = DATA | {
    "log_eps = 0": ("flow", "end"),
    "log_eps = nan": ("flow", "end"),
    "unsorted s": ("flow",),
    "negative s": ("flow",),
    "mu = 0": ("lasso",),
    "nan in weights": ("path", "lasso", "basis_pursuit"),
    "negative weight": ("path", "lasso", "basis_pursuit"),
    "degenerate shape": ("flow", "end", "limit_point"),
    "nan in start": ("limit",),
}


def batch(config: Config, seed: list[int], free_weights: bool, spoils: bool = True) -> Arrays:
    """The lanes of one batch: the last eighth repeats the first one in other units, with rows
    rotated and columns permuted and reflected, and the 32nd before that is invalid."""
    rng = np.random.default_rng(seed)
    count = config.lanes - config.lanes // 8
    lanes = [_problem(rng, config, free_weights) for _ in range(count)]
    for lane in lanes[count - config.lanes // 32 :] if spoils else ():
        _spoil(rng, lane, config)
    lanes += [_copy(rng, lane, config) for lane in lanes[: config.lanes // 8]]
    return {key: np.stack([lane[key] for lane in lanes]) for key in lanes[0]}


def copies(config: Config) -> int:
    return config.lanes // 8


def _fit(v: np.ndarray, size: int, axis: int, rng: np.random.Generator) -> np.ndarray:
    """A part of `v`, or `v` and zeros."""
    if v.shape[axis] >= size:
        return np.take(v, np.sort(rng.permutation(v.shape[axis])[:size]), axis)
    pad = [(0, 0)] * v.ndim
    pad[axis] = (0, size - v.shape[axis])
    return np.pad(v, pad)


def _design(rng: np.random.Generator, n: int, d: int) -> tuple[str, np.ndarray, np.ndarray]:
    kind = rng.integers(8)
    if kind == 0:
        return "signs", rng.choice([-1.0, 1.0], (n, d)), rng.choice([-1.0, 1.0], n)
    if kind == 1:
        X = rng.integers(-2, 3, (n, d)).astype(float)
        return "integers", X, rng.integers(-2, 3, n).astype(float)
    if kind in (2, 3):
        name = list(FAMILIES)[rng.integers(len(FAMILIES))]
        X, y = FAMILIES[name](rng)
        joined = _fit(np.column_stack([X, y]), n, 0, rng)
        return name, _fit(joined[:, :-1], d, 1, rng), joined[:, -1].copy()
    return "normal", rng.normal(size=(n, d)), rng.normal(size=n)


def _problem(rng: np.random.Generator, config: Config, free_weights: bool) -> Arrays:
    """Each defect with some probability."""
    n, d, depth, single = config.n, config.d, config.depth, config.dtype == "float32"
    happens = lambda probability: rng.random() < probability
    defects = []
    family, X, y = _design(rng, n, d)
    i, j = rng.integers(d), rng.integers(d)
    if happens(0.15):
        sign, near = rng.choice([-1, 1]), happens(0.6)
        X[:, i] = sign * X[:, j] + near * 10 ** rng.uniform(-16, -1) * rng.normal(size=n)
        defects += ["near twin" if near else "twin"]
    if happens(0.07):
        X[:, i] = 0
        defects += ["zero column"]
    if happens(0.07):
        U, s, V = np.linalg.svd(X, full_matrices=False)
        near = happens(0.5)
        s[-1] *= near * 10 ** rng.uniform(-16, 0)
        X = (U * s) @ V
        # Of orthogonal columns one has become rounding.
        X[:, np.linalg.norm(X, axis=0) < 1e-13 * s[0]] = 0
        defects += ["near rank deficient" if near else "rank deficient"]
    if happens(0.1):
        X = X * 10 ** (rng.uniform(-1, 1, d) * (3 if single else 6))
        defects += ["units"]
    if happens(0.07):
        y = X[:, j] * rng.choice([-1, 1]) + happens(0.5) * 10 ** rng.uniform(-16, -1) * y
        defects += ["explained y"]
    if happens(0.02):
        y = 0 * y
        defects += ["zero y"]
    signs = 1 if config.positive else 2
    p = np.full((signs, d), 1.0 if config.positive or depth > 2 else 0.5)
    if happens(0.15):
        p = p * 10 ** rng.uniform(-1, 1, (signs, d) if happens(0.5) else (1, d))
        defects += ["shape"]
    start = np.zeros(d)
    if happens(0.15):
        support = rng.permutation(d)[: rng.integers(1, d + 1)]
        sign = 1 if config.positive else rng.choice([-1, 1], d)
        start[support] = (sign * 10 ** rng.uniform(-1, 1, d))[support]
        if happens(0.6):  # the signed face interpolates
            y = X @ (sign * (start != 0) * 10 ** rng.uniform(-1, 1, d))
        defects += ["start"]

    # Units: a power of 2 each, and the start of the network in those of x, or not.
    span = 10 if single else 40
    powers = rng.integers(-span, span + 1, 2) if happens(0.4) else np.zeros(2)
    c_X, c_y = np.exp2(powers)
    is_far = depth == 2 and happens(0.1)
    x_unit = c_y / c_X
    shape_unit = 1.0 if is_far else x_unit
    as_solved = lambda v: v.astype(config.dtype).astype(float)
    X, y = as_solved(c_X * X), as_solved(c_y * y)
    w_unit = shape_unit ** ((2 - depth) / depth)
    size = np.max(np.abs(X.T @ y))
    size = size if size > 0 else c_X * c_y
    s = np.sort(10 ** rng.uniform(-0.5, 3, TIMES))
    if happens(0.35):
        s[-3:] = np.sort(10 ** rng.uniform(3, 8, 3))
        defects += ["far"]
    decay = size * 10 ** rng.uniform(-4, 0.2) if depth == 2 and happens(0.25) else 0.0
    weights = np.ones((2, d))
    if happens(0.12):
        decay = 0.0
        weights = 10 ** (
            rng.uniform(-1, 1, (2, d) if happens(0.3) else (1, d)) * (2 if single else 6)
        )
        weights = weights * np.ones((2, 1))
        defects += ["weights"]
        if free_weights and happens(0.5):
            special = rng.random(d)
            weights = np.where(special < 0.15, 0.0, np.where(special > 0.85, np.inf, weights))
            defects += ["free"]
    bound = np.where((weights > 0) & np.isfinite(weights), weights, np.inf)
    first = np.max(np.abs(X.T @ y)[None] / bound)
    first = first if first > 0 else size
    power = rng.uniform(0.5, 3) if depth == 2 or happens(0.1) else rng.uniform(0.5, 1.3)
    return {
        "X": X,
        "y": y,
        "M": X.T @ X,
        "r": X.T @ y,
        "c_X": np.array(c_X),
        "c_y": np.array(c_y),
        "decay": as_solved(np.array(decay)),
        "s": as_solved(s / size * w_unit),
        "w_unit": np.array(w_unit),
        "log_eps": as_solved(np.array(-(10**power) * 1.9)),
        "p": as_solved(p * shape_unit ** (1 / depth)),
        "start": as_solved(start * x_unit),
        "weights": as_solved(weights),
        "mu": as_solved(np.sort(10.0 ** np.array([-0.2, 0.3, 1.5, 4, 8]) / first)),
        "is_far": np.array(is_far),
        "family": np.array(family, "U40"),
        "defects": np.array("+".join(defects), "U100"),
        "bad": np.array("", "U30"),
        # Of a copy: x is x[order]·flips·copy_unit of what it is a copy of.
        "order": np.arange(d),
        "flips": np.ones(d),
        "copy_unit": np.array(1.0),
    }


def _spoil(rng: np.random.Generator, lane: Arrays, config: Config) -> None:
    names = [name for name in BAD if config.problem == "Quadratic" or "M" not in name[-2:]]
    names = [name for name in names if config.problem == "Quadratic" or name[0] != "r"]
    if config.problem == "Quadratic":
        names = [name for name in names if not name.endswith((" X", " y"))]
    name = names[rng.integers(len(names))]
    i = rng.integers(config.d)
    if name.endswith((" X", " y")):
        v = lane[name[-1]]
        v[rng.integers(config.n), ...] = np.nan if name[:3] == "nan" else np.inf
    elif name == "negative decay":
        lane["decay"] = -np.max(np.abs(lane["r"])) - 1e-3
    elif name.startswith("log_eps"):
        lane["log_eps"] = np.array(0.0 if name[-1] == "0" else np.nan)
    elif name == "unsorted s":
        lane["s"] = lane["s"][::-1].copy()
    elif name == "negative s":
        lane["s"] = np.concatenate([-lane["s"][:1], lane["s"][1:]])
    elif name == "mu = 0":
        lane["mu"] = np.zeros(MUS)
    elif name.endswith(("weights", "weight")):
        lane["weights"][:, i] = np.nan if name[:3] == "nan" else -1.0
    elif name == "degenerate shape":
        lane["p"][:, i] = 0
    elif name == "nan in start":
        lane["start"][i] = np.nan
    else:
        # Of order 1: in other units these defects are the same, and tested by the copies' rule.
        d = config.d
        Q = np.linalg.qr(rng.normal(size=(d, d)))[0]
        values = np.linspace(1, 2, d)
        if name == "indefinite M":
            values[0] = -0.5
        elif name == "r off the range":
            values[0] = 0
        M = (Q * values) @ Q.T
        M = (M + M.T) / 2
        if name == "asymmetric M":
            M[0, -1] += 0.5
        lane["M"], lane["r"] = M, Q @ rng.choice([-1.0, 1.0], d) * rng.uniform(0.5, 1)
    lane["bad"] = np.array(name, "U30")


def _copy(rng: np.random.Generator, lane: Arrays, config: Config) -> Arrays:
    """The same problem, but for rounding."""
    n, d, single = config.n, config.d, config.dtype == "float32"
    order = rng.permutation(d)
    flips = np.ones(d) if config.positive else rng.choice([-1.0, 1.0], d)
    turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
    span = 4 if single else 20
    a, b = np.exp2(rng.integers(-span, span + 1, 2))
    as_solved = lambda v: v.astype(config.dtype).astype(float)
    new = dict(lane)
    new["X"] = as_solved(a * (turn @ lane["X"])[:, order] * flips)
    new["y"] = as_solved(b * (turn @ lane["y"]))
    new["M"], new["r"] = new["X"].T @ new["X"], new["X"].T @ new["y"]
    new["c_X"], new["c_y"] = lane["c_X"] * a, lane["c_y"] * b
    turned = lambda v: np.where(flips > 0, v, v[::-1])  # columns whose signs are exchanged
    # Depth 2: shapes in the units of x, so that w stays. Else w is in units of its start.
    w_unit = (b / a) ** ((2 - config.depth) / config.depth)
    new["w_unit"] = lane["w_unit"] * w_unit
    new["p"] = as_solved(turned(lane["p"][:, order]) * (b / a) ** (1 / config.depth))
    new["weights"] = turned(lane["weights"][:, order])
    new["start"] = as_solved(lane["start"][order] * flips * b / a)
    new["decay"] = as_solved(lane["decay"] * a * b)
    new["s"] = as_solved(lane["s"] / (a * b) * w_unit)
    new["mu"] = as_solved(lane["mu"] / (a * b))
    new["order"], new["flips"], new["copy_unit"] = order, flips, b / a
    return new
