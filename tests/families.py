"""Families of lasso problems that are known to break path algorithms: one table for tests and
benchmarks. Each entry maps a NumPy generator to `(X, y)`."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np

Instance = tuple[np.ndarray, np.ndarray]


def _normal(rng: np.random.Generator, n: int, d: int) -> Instance:
    return rng.normal(size=(n, d)), rng.normal(size=n)


def _identity(rng):
    return np.eye(8), rng.choice([1.0, 2.0, 3.0], 8) * rng.choice([-1.0, 1.0], 8)


def _orthonormal(rng):
    Q = np.linalg.qr(rng.normal(size=(20, 10)))[0]
    return Q, Q @ (rng.choice([1.0, 2.0], 10) * rng.choice([-1.0, 1.0], 10))


def _signs(n, d):
    def make(rng):
        return rng.choice([-1.0, 1.0], (n, d)), rng.choice([-1.0, 1.0], n)

    return make


def _integers(rng):
    return rng.integers(-3, 4, (10, 6)).astype(float), rng.integers(-3, 4, 10).astype(float)


def _duplicates(rng):
    X, y = _normal(rng, 10, 5)
    return np.concatenate([X, X[:, :3], -X[:, 1:4]], axis=1), y


def _near_duplicates(rng):
    X, y = _normal(rng, 10, 5)
    return np.concatenate([X, X[:, :3] + 1e-8 * rng.normal(size=(10, 3))], axis=1), y


def _scaled(x_scale, y_scale):
    def make(rng):
        X, y = _normal(rng, 10, 20)
        return x_scale * X, y_scale * y

    return make


def _hilbert(rng):
    i = np.arange(10)
    return 1 / (1.0 + i[:, None] + i[None, :]), rng.normal(size=10)


def _correlated(rng):
    X, y = _normal(rng, 20, 10)
    return np.sqrt(0.001) * X + np.sqrt(0.999) * rng.normal(size=(20, 1)), y


def _vandermonde(rng):
    return np.vander(np.sort(rng.uniform(-1, 1, 12)), 8), rng.normal(size=12)


def _noiseless(rng):
    X, _ = _normal(rng, 20, 40)
    return X, X[:, :4] @ rng.normal(size=4)


def _zero_column(rng):
    X, y = _normal(rng, 10, 6)
    X[:, 2] = 0
    return X, y


def _dependent(rng):
    X, y = _normal(rng, 10, 5)
    return np.concatenate([X, X @ rng.normal(size=(5, 3))], axis=1), y


FAMILIES: dict[str, Callable[[np.random.Generator], Instance]] = {
    "identity design, tied |y|": _identity,
    "orthonormal, tied correlations": _orthonormal,
    "±1 design and response, 20×10": _signs(20, 10),
    "±1 design and response, 20×40": _signs(20, 40),
    "small integers, 10×6": _integers,
    "duplicated and negated columns": _duplicates,
    "near-duplicates at 1e-8": _near_duplicates,
    "X scaled by 1e-6": _scaled(1e-6, 1.0),
    "y scaled by 1e-6": _scaled(1.0, 1e-6),
    "Hilbert 10×10": _hilbert,
    "correlation 0.999": _correlated,
    "Vandermonde 12×8": _vandermonde,
    "noiseless, 20×40": _noiseless,
    "zero column": _zero_column,
    "dependent columns": _dependent,
    "generic 3×4": lambda rng: _normal(rng, 3, 4),
    "generic 10×6": lambda rng: _normal(rng, 10, 6),
    "generic 20×40": lambda rng: _normal(rng, 20, 40),
}

# Where conditioning leaves no exact path in float64, and a flag is the right answer.
ILL_CONDITIONED = {"near-duplicates at 1e-8", "Hilbert 10×10"}


def kkt_violation(X, y, x, kappa, rounding: float = 0.0) -> np.ndarray:
    """Largest violation of the lasso's conditions at rows of `x` (m, d), in units of `Xᵀy`."""
    c = (y - x @ X.T) @ X
    kappa = kappa[:, None]
    # Entries within `rounding` of the largest one count as 0: they have no sign.
    size = np.abs(x)
    active = size > rounding * size.max(axis=1, keepdims=True)
    mismatch = np.where(active, np.abs(c - kappa * np.sign(x)), 0)
    return np.maximum(np.maximum(np.abs(c) - kappa, 0), mismatch).max(axis=1)


def exact_path(X, y) -> tuple[list[Fraction], list[list[Fraction]]]:
    """Kinks `κ` and solutions there, in exact rationals, for generic data (no ties)."""
    n, d = len(X), len(X[0])
    zero = Fraction(0)
    M = [[sum((X[k][i] * X[k][j] for k in range(n)), zero) for j in range(d)] for i in range(d)]
    r = [sum((X[k][i] * y[k] for k in range(n)), zero) for i in range(d)]
    active: list[tuple[int, int]] = []
    kappa: Fraction | None = None
    kinks, points = [], []
    while True:
        A = [i for i, _ in active]
        u = _solve([[M[i][j] for j in A] for i in A], [r[i] for i in A])
        w = _solve([[M[i][j] for j in A] for i in A], [Fraction(s) for _, s in active])
        best: tuple[Fraction, int, int] | None = None
        for j in set(range(d)) - set(A):
            p = r[j] - sum((M[j][i] * ui for i, ui in zip(A, u, strict=True)), zero)
            q = sum((M[j][i] * wi for i, wi in zip(A, w, strict=True)), zero)
            for s in (1, -1):
                if 1 - s * q > 0:
                    t = s * p / (1 - s * q)
                    just_left = kappa is not None and t == kappa
                    if t > 0 and not just_left and (best is None or t > best[0]):
                        best = (t, j, s)
        for (i, s), ui, wi in zip(active, u, w, strict=True):
            if s * wi < 0 and 0 < ui / wi and (kappa is None or ui / wi < kappa):
                if best is None or ui / wi > best[0]:
                    best = (ui / wi, i, 0)
        if best is None:
            return kinks, points
        kappa, j, s = best
        x = [Fraction(0)] * d
        for i, ui, wi in zip(A, u, w, strict=True):
            x[i] = ui - kappa * wi
        if s == 0:
            x[j] = Fraction(0)
        kinks.append(kappa)
        points.append(x)
        active = [a for a in active if a[0] != j] if s == 0 else [*active, (j, s)]


def _solve(A: list[list[Fraction]], b: list[Fraction]) -> list[Fraction]:
    A = [[*row, value] for row, value in zip(A, b, strict=True)]
    m = len(b)
    for i in range(m):
        pivot = next(k for k in range(i, m) if A[k][i] != 0)
        A[i], A[pivot] = A[pivot], A[i]
        A[i] = [a / A[i][i] for a in A[i]]
        for k in range(m):
            if k != i and A[k][i] != 0:
                A[k] = [a - A[k][i] * p for a, p in zip(A[k], A[i], strict=True)]
    return [row[m] for row in A]


def worst_case(p: int) -> tuple[list[list[Fraction]], list[Fraction]]:
    """Mairal & Yu (arXiv 1205.0079), Theorem 1: a `p × p` problem with `(3^p + 1)/2` segments."""
    X, y = [[Fraction(1)]], [Fraction(1)]
    for _ in range(p - 1):
        last = exact_path(X, y)[0][-1]
        square = sum(v * v for v in y)
        alpha = last / (2 * (2 * square + 1))
        X = [[*row, 2 * alpha * v] for row, v in zip(X, y, strict=True)]
        X.append([Fraction(0)] * (len(X[0]) - 1) + [alpha])
        y = [*y, Fraction(1)]
    return X, y
