"""Random ensembles of problems, for `Sweep` or for use alone.

A generator is a function `(key, n, d) -> (X, y)`, or `-> problem`: an object of one of these
classes, or a function of your own. `X` has shape `(n, d)` and `y` shape `(n,)`, in JAX's default
float type, as functions of the arguments alone. `NAMED` holds the classes by the names that a sweep
knows.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ._checks import as_count
from ._linalg import cholesky, lower_solve, matmul
from ._problem import walsh

Data = tuple[Array, Array]


def _check_correlation(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"`correlation` must lie in [0, 1), got {value}.")


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """`X` and `y` with independent standard normal entries, as in [B25] Fig. 1.

    !!! example

        ```python
        X, y = dln.generators.Gaussian()(jax.random.key(0), 3, 4)
        X.shape, y.shape  # ((3, 4), (3,))
        ```
    """

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        X_key, y_key = jr.split(key)
        return jr.normal(X_key, (n, d)), jr.normal(y_key, (n,))


@dataclasses.dataclass(frozen=True)
class Rademacher:
    """`X` and `y` with independent entries ±1 of equal probability. Such data have many ties.

    !!! example

        ```python
        X, y = dln.generators.Rademacher()(jax.random.key(0), 3, 4)
        jnp.all(jnp.abs(X) == 1)  # True
        ```
    """

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        X_key, y_key = jr.split(key)
        dtype = jnp.result_type(float)
        return jr.rademacher(X_key, (n, d), dtype), jr.rademacher(y_key, (n,), dtype)


@dataclasses.dataclass(frozen=True)
class Toeplitz:
    """`y` standard normal; rows of `X` normal with covariance `correlation^|i−j|` of the entries
    `i` and `j`.

    **Arguments:** `correlation`, in `[0, 1)`. **Raises:** `ValueError` for another one.

    !!! example

        ```python
        X, y = dln.generators.Toeplitz(0.5)(jax.random.key(0), 100_000, 3)
        X.T @ X / 100_000  # about [[1, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 1]]
        ```
    """

    correlation: float

    def __post_init__(self) -> None:
        _check_correlation(self.correlation)

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        X, y = Gaussian()(key, n, d)
        # The Cholesky factor of the covariance, in closed form: `Lᵢⱼ = ρ^{i−j}` in column 0 and
        # `√(1 − ρ²) ρ^{i−j}` in the others, as of an autoregression: no O(d³) factorisation.
        lag = np.arange(d)[:, None] - np.arange(d)[None, :]
        factor = np.where(lag >= 0, float(self.correlation) ** np.maximum(lag, 0), 0)
        factor[:, 1:] *= (1 - self.correlation**2) ** 0.5
        return matmul(X, jnp.asarray(factor.T, X.dtype)), y


@dataclasses.dataclass(frozen=True)
class Equicorrelated:
    """`y` standard normal; rows of `X` normal with entries of variance 1, of which any two have the
    same `correlation`.

    **Arguments:** `correlation`, in `[0, 1)`. **Raises:** `ValueError` for another one.

    !!! example

        ```python
        X, y = dln.generators.Equicorrelated(0.5)(jax.random.key(0), 100_000, 3)
        X.T @ X / 100_000  # about 1 on the diagonal, 0.5 elsewhere
        ```
    """

    correlation: float

    def __post_init__(self) -> None:
        _check_correlation(self.correlation)

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        # A part that all entries of a row share, and one of their own.
        key, common_key = jr.split(key)
        X, y = Gaussian()(key, n, d)
        common = jr.normal(common_key, (n, 1))
        return (1 - self.correlation) ** 0.5 * X + self.correlation**0.5 * common, y


@dataclasses.dataclass(frozen=True)
class Planted:
    """`X` standard normal and `y = Xx*` plus normal noise, where `x*` has `nonzeros` entries ±1 at
    random places.

    **Arguments:** `nonzeros`, at least 1 and at most `d`; `noise ≥ 0`, the standard deviation of
    the noise. **Raises:** `ValueError` for others, for `nonzeros > d` when it is called.

    !!! example

        ```python
        X, y = dln.generators.Planted(nonzeros=2)(jax.random.key(0), 20, 40)
        x = dln.basis_pursuit(dln.LeastSquares(X, y)).x
        jnp.sort(jnp.abs(x))[-3:]  # (0, 1, 1): the minimum 1-norm recovers x*
        ```
    """

    nonzeros: int
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.nonzeros < 1:
            raise ValueError(f"`nonzeros` must be at least 1, got {self.nonzeros}.")
        if not 0 <= self.noise < np.inf:
            raise ValueError(f"`noise` must be finite and non-negative, got {self.noise}.")

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        if self.nonzeros > d:
            raise ValueError(f"`Planted` has {self.nonzeros} nonzeros, but d = {d}: plant fewer.")
        key, sign_key, place_key = jr.split(key, 3)
        X, noise = Gaussian()(key, n, d)
        sign = jr.rademacher(sign_key, (self.nonzeros,), X.dtype)
        place = jr.permutation(place_key, d)[: self.nonzeros]
        x = jnp.zeros(d, X.dtype).at[place].set(sign)
        return X, matmul(x, X.T) + self.noise * noise


@dataclasses.dataclass(frozen=True)
class ZMatrix:
    """A positive definite `M = XᵀX` with `Mᵢⱼ ≤ 0` for `i ≠ j`, and `r = Xᵀy` standard normal;
    `n = d`. The positive lasso path of each is coordinate-wise monotone ([B25] §3.1).

    **Raises:** `ValueError` for `n ≠ d`, when it is called.

    !!! example

        ```python
        problem = dln.LeastSquares(*dln.generators.ZMatrix()(jax.random.key(0), 4, 4))
        dln.lasso_path(problem, positive=True).is_monotone()  # True
        ```
    """

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        if n != d:
            raise ValueError(f"`ZMatrix` makes square designs, got n = {n} and d = {d}.")
        A_key, scale_key, r_key = jr.split(key, 3)
        A = jr.uniform(A_key, (d, d))
        A = (A + A.T) * (1 - jnp.eye(d)) / 2
        # The largest row sum of A bounds its eigenvalues (Gershgorin), so that 1.25 times it, less
        # A, has the condition number 9 at most: far from singular for every key, and still not
        # nearly diagonal. A factor nearer to 1 lets some M be almost singular.
        M = 1.25 * jnp.max(jnp.sum(A, axis=1)) * jnp.eye(d) - A if d > 1 else jnp.ones((1, 1))
        # Columns of unequal norms, by factors of about e^{±1/2}: a scaling keeps the signs.
        scale = jnp.exp(jr.normal(scale_key, (d,)) / 2)
        L = cholesky(scale[:, None] * M * scale[None, :])
        return L.T, lower_solve(L, jr.normal(r_key, (d, 1)))[:, 0]


@dataclasses.dataclass(frozen=True)
class Unseen:
    """A function of `dimension` signs at `n` of the points that are seen, in Walsh functions. Which
    function with these values a network learns is its bias ([PBA24]).

    The points are drawn without repetition. `d` says up to which degree there are columns, in the
    order of `walsh`: `d = Σ_{j ≤ degree} C(dimension, j)`, at most `2^dimension`.

    **Arguments:** `target`, the function, of points `(m, dimension)` with entries ±1 to `(m,)`;
    `seen`, which points may be drawn, of the same to `(m,)`; `dimension`. **Raises:** `ValueError`
    when it is called, for an `n` above the number of points that are seen, or another `d`.

    !!! example

        ```python
        target = lambda p: p[:, 0] * p[:, 1]
        seen = lambda p: (p[:, 0] == 1) | (p[:, 1] == 1)
        X, y = dln.generators.Unseen(target, seen, dimension=3)(jax.random.key(0), 6, 8)
        dln.basis_pursuit(dln.LeastSquares(X, y)).x  # 1 at (0, 1), the fifth: p₀p₁
        ```
    """

    target: Callable[[np.ndarray], np.ndarray]
    seen: Callable[[np.ndarray], np.ndarray]
    dimension: int

    def __post_init__(self) -> None:
        # All points are listed.
        if not 1 <= as_count(self.dimension, "dimension") <= 20:
            raise ValueError(f"`dimension` must be from 1 to 20, got {self.dimension}.")

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        sizes = np.cumsum([math.comb(self.dimension, j) for j in range(self.dimension + 1)])
        if d not in sizes:
            raise ValueError(
                f"Of {self.dimension} signs there are {', '.join(map(str, sizes))} Walsh functions "
                f"up to degree 0, 1, …: d must be one of these, got {d}."
            )
        points = 1.0 - 2 * np.array(list(np.ndindex((2,) * self.dimension)))
        with jax.ensure_compile_time_eval():  # they may be written in JAX
            points = points[np.asarray(self.seen(points), bool)]
            y = jnp.asarray(np.asarray(self.target(points), float))
        n = as_count(n, "n")
        if n > len(points):
            raise ValueError(f"`Unseen` has {len(points)} points that are seen, got n = {n}.")
        design, _ = walsh(points, degree=int(np.searchsorted(sizes, d)))
        if y.shape != (len(points),):
            raise ValueError(f"`target` must return shape ({len(points)},), got {y.shape}.")
        chosen = jr.permutation(key, len(points))[:n]
        return design[chosen], y[chosen]


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """Your own data, as the generator of a sweep: instance `i` is `(X[i], y[i])`.

    **Arguments:** `X`, shape `(instances, n, d)`, and `y`, shape `(instances, n)`: arrays, or NumPy
    memory maps, of which only blocks are read. **Raises:** `ValueError` for other shapes.

    !!! example

        ```python
        rng = np.random.default_rng(0)
        data = dln.generators.Given(rng.normal(size=(100, 3, 4)), rng.normal(size=(100, 3)))
        len(data)  # 100
        sweep = dln.Sweep(generator=data, metrics=["num_knots"])
        sweep.instances, sweep.sizes  # (100, ((3, 4),))
        ```
    """

    X: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        for name in ("X", "y"):
            value = getattr(self, name)
            if not isinstance(value, np.ndarray):
                object.__setattr__(self, name, np.asarray(value))
        X, y = self.X, self.y
        if X.ndim != 3 or y.ndim != 2 or X.shape[:2] != y.shape or 0 in X.shape:
            raise ValueError(
                "`Given` takes X of shape (instances, n, d) and y of shape (instances, n), got "
                f"{X.shape} and {y.shape}. For a single problem pass `X[None]` and `y[None]`."
            )

    def __len__(self) -> int:
        return len(self.X)

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`X` and `y` of the instances `index`, shape `(m,)`: `(m, n, d)` and `(m, n)`.

        !!! example

            ```python
            data = dln.generators.Given(np.ones((5, 2, 3)), np.arange(10.0).reshape(5, 2))
            data.take(np.array([1, 9]))[1]  # [[2, 3], [8, 9]]: the last one in place of number 9
            ```
        """
        # A sweep's last block may go beyond the data. It is filled with copies of the last
        # instance, since all blocks have one shape.
        index = np.minimum(index, len(self) - 1)
        return self.X[index], self.y[index]


NAMED: dict[str, Callable[..., Any]] = {
    "gaussian": Gaussian,
    "rademacher": Rademacher,
    "toeplitz": Toeplitz,
    "equicorrelated": Equicorrelated,
    "planted": Planted,
    "z_matrix": ZMatrix,
}
