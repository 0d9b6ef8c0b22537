"""Instances that hypothesis draws, and how their solutions are checked."""

from typing import NamedTuple

import numpy as np
from hypothesis import event, example, strategies as st

EPS = float(np.finfo(float).eps)
SHAPES = [(3, 4), (4, 3)]
ANY_SHAPE, WIDE = st.sampled_from(SHAPES), st.just(SHAPES[0])
WELL_POSED = ("none", "twin", "opposite", "zero column", "zero y", "one row", "one entry")
DEFECTS = (*WELL_POSED, "near twin", "dependent", "column scales", "explained y")


class Instance(NamedTuple):
    """Data in units of order 1, and the units, powers of 2: `c_X X` and `c_y y` are solved."""

    X: np.ndarray
    y: np.ndarray
    c_X: float
    c_y: float
    decay: float  # in units of c_X c_y
    log_eps: float
    defect: str

    @property
    def size(self) -> float:
        return np.max(np.abs(self.X.T @ self.y)) or 1.0

    @property
    def unit(self) -> float:
        return self.c_X * self.c_y

    @property
    def x_unit(self) -> float:
        return self.c_y / self.c_X

    def data(self, dtype=float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        data = self.c_X * self.X, self.c_y * self.y, np.asarray(self.unit * self.decay)
        return tuple(a.astype(dtype) for a in data)  # pyright: ignore[reportReturnType]

    def shape(self, dtype=float) -> np.ndarray:
        """Of a network whose `ε` is in the units of `x`."""
        return np.full(self.X.shape[1], self.x_unit**0.5, dtype)


@st.composite
def instances(draw, shapes=ANY_SHAPE, defects=DEFECTS, scale=40, decays=True) -> Instance:
    n, d = draw(shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    family = draw(st.sampled_from(["normal", "signs", "integers"]))
    if family == "normal":
        X, y = rng.normal(size=(n, d)), rng.normal(size=n)
    elif family == "signs":
        X, y = rng.choice([-1.0, 1.0], (n, d)), rng.choice([-1.0, 1.0], n)
    else:
        X, y = rng.integers(-2, 3, (n, d)).astype(float), rng.integers(-2, 3, n).astype(float)
    defect, near = draw(st.sampled_from(defects)), 10 ** draw(st.floats(-16, 0))
    if defect == "twin":
        X[:, 1] = X[:, 0]
    elif defect == "opposite":
        X[:, 1] = -X[:, 0]
    elif defect == "near twin":
        X[:, 1] = X[:, 0] + near * rng.normal(size=n)
    elif defect == "dependent":
        U, values, V = np.linalg.svd(X, full_matrices=False)
        values[-1] *= near
        X = (U * values) @ V
    elif defect == "column scales":
        X = X * 10 ** rng.uniform(-6, 6, d)
    elif defect == "zero column":
        X[:, 1] = 0
    elif defect == "one row":
        X[1:], y[1:] = 0, 0
    elif defect == "one entry":
        X[1:], X[:, 1:] = 0, 0
    elif defect == "zero y":
        y = 0 * y
    elif defect == "explained y":
        y = X[:, 0] + near * y
    power = st.integers(-scale, scale)
    c_X, c_y = 2.0 ** draw(power), 2.0 ** draw(power)
    size = np.max(np.abs(X.T @ y)) or 1.0
    decay = draw(st.sampled_from([0.0, 0.0, 1e-3, 0.3, 1.5])) * size if decays else 0.0
    log_eps = -(10 ** draw(st.floats(-1, 3.3)))
    event(defect)
    return Instance(X, y, c_X, c_y, decay, log_eps, defect)


def _padded(X, y, decay: float) -> Instance:
    X, y = np.array(X), np.array(y)
    wide = np.zeros((4, 3))
    wide[: X.shape[0], : X.shape[1]] = X
    return Instance(wide, np.append(y, np.zeros(4 - len(y))), 1.0, 1.0, decay, -30.0, "orthogonal")


# `y` is orthogonal to `X` but for rounding: found by `python -m benchmarks.fuzz`, whose check asked
# for more digits than `Xᵀy` has.
BELOW_ONE = 0.9999999999999997
FOUND = (
    _padded([[BELOW_ONE], [1.0]], [1.0, -1.0], 0.0),
    _padded([[BELOW_ONE], [-1.0]], [-1.0, -1.0], 1.0446e-17),
    _padded(
        [[BELOW_ONE, -3.953883593734332e-12], [1.0, 3.9538835937343324e-12]], [-1e-5, 1e-5], 0.0
    ),
    _padded([[-0.9999999999999993], [1.9999999999999958], [5.406e-16]], [-2.0, -1, 2], 1.22e-18),
)


def found(test):
    for instance in FOUND:
        test = example(instance)(test)
    return test


def scaled(instance: Instance) -> Instance:
    """The same in other units, 2⁴⁰ and more away."""
    return instance._replace(c_X=2.0**-20 / instance.c_X, c_y=2.0**22 / instance.c_y)


def correlation(instance: Instance, x, eps=EPS) -> tuple[np.ndarray, np.ndarray]:
    """`c` at points `x` (m, d) in units, and what rounding may change in it."""
    x, X, y = np.asarray(x, float), instance.X, instance.y
    columns = np.linalg.norm(X, axis=0)
    rounding = 64 * eps * columns * (np.linalg.norm(y) + np.abs(x) @ columns)[:, None]
    return (y - x @ X.T) @ X, rounding


def violation(instance: Instance, x, kappa, support=None, eps=EPS) -> np.ndarray:
    """Of the optimality conditions at points `x` (m, d) in units, beyond rounding."""
    kappa = np.asarray(kappa, float)[:, None]
    sign = np.sign(x if support is None else np.asarray(support))
    c, rounding = correlation(instance, x, eps)
    off = np.maximum(np.abs(c) - kappa, np.where(sign != 0, np.abs(c - kappa * sign), 0))
    return np.max(np.maximum(off - rounding, 0), axis=1) / instance.size
