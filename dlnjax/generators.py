"""Ensembles of problems. A generator is a function `(key, n, d) -> (X, y)`, or `-> problem`: these,
or one of your own."""

import dataclasses

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Key

from ._linalg import cholesky, lower_solve, matmul

Data = tuple[Array, Array]


def _check_correlation(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"`correlation` must lie in [0, 1), got {value}.")


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """`X` and `y` with independent standard normal entries, as in [B25] Fig. 1."""

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        X_key, y_key = jr.split(key)
        return jr.normal(X_key, (n, d)), jr.normal(y_key, (n,))


@dataclasses.dataclass(frozen=True)
class Rademacher:
    """`X` and `y` with independent entries ±1."""

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        X_key, y_key = jr.split(key)
        dtype = jnp.result_type(float)
        return jr.rademacher(X_key, (n, d), dtype), jr.rademacher(y_key, (n,), dtype)


@dataclasses.dataclass(frozen=True)
class Toeplitz:
    """`y` standard normal; rows of `X` normal with covariance `correlation^|i−j|`, in `[0, 1)`."""

    correlation: float

    def __post_init__(self) -> None:
        _check_correlation(self.correlation)

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        X, y = Gaussian()(key, n, d)
        # The Cholesky factor of the covariance, in closed form.
        lag = np.arange(d)[:, None] - np.arange(d)[None, :]
        factor = np.where(lag >= 0, float(self.correlation) ** np.maximum(lag, 0), 0)
        factor[:, 1:] *= (1 - self.correlation**2) ** 0.5
        return matmul(X, jnp.asarray(factor.T, X.dtype)), y


@dataclasses.dataclass(frozen=True)
class Equicorrelated:
    """`y` standard normal; rows of `X` normal, any two entries of one with the same `correlation`,
    in `[0, 1)`."""

    correlation: float

    def __post_init__(self) -> None:
        _check_correlation(self.correlation)

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        key, common_key = jr.split(key)
        X, y = Gaussian()(key, n, d)
        common = jr.normal(common_key, (n, 1))
        return (1 - self.correlation) ** 0.5 * X + self.correlation**0.5 * common, y


@dataclasses.dataclass(frozen=True)
class Planted:
    """`X` standard normal and `y = Xx*` with normal noise of standard deviation `noise`, where `x*`
    has `nonzeros` entries ±1 at random places."""

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
    `n = d`. The positive lasso path is monotone for each ([B25] §3.1)."""

    def __call__(self, key: Key[Array, ""], n: int, d: int) -> Data:
        if n != d:
            raise ValueError(f"`ZMatrix` makes square designs, got n = {n} and d = {d}.")
        A_key, scale_key, r_key = jr.split(key, 3)
        A = jr.uniform(A_key, (d, d))
        A = (A + A.T) * (1 - jnp.eye(d)) / 2
        # Beyond the largest row sum, which bounds the eigenvalues.
        M = 1.25 * jnp.max(jnp.sum(A, axis=1)) * jnp.eye(d) - A if d > 1 else jnp.ones((1, 1))
        scale = jnp.exp(jr.normal(scale_key, (d,)) / 2)
        L = cholesky(scale[:, None] * M * scale[None, :])
        return L.T, lower_solve(L, jr.normal(r_key, (d, 1)))[:, 0]


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """Your own data: `X` of shape `(instances, n, d)` and `y` of shape `(instances, n)`, NumPy
    arrays or memory maps. Instance `i` is `(X[i], y[i])`."""

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
        """The instances `index` (the last one in place of those beyond it)."""
        index = np.minimum(index, len(self) - 1)
        return self.X[index], self.y[index]


NAMED = {
    "gaussian": Gaussian,
    "rademacher": Rademacher,
    "toeplitz": Toeplitz,
    "equicorrelated": Equicorrelated,
    "planted": Planted,
    "z_matrix": ZMatrix,
}
