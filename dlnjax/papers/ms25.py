"""The rate at which end points tend to a unique minimum 1-norm solution, arXiv 2506.01143."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Int

from .. import BasisPursuit, LeastSquares, basis_pursuit
from ._claim import Claim, Measurement
from ._end_points import D as SIZE, Lane, N, end_points, fitted_slope


def _instance(index: Int[Array, ""]) -> tuple[Array, Array]:
    X_key, y_key = jr.split(jr.fold_in(jr.key(0), index))
    return jr.normal(X_key, (N, SIZE)), jr.normal(y_key, (N,))


@eqx.filter_jit
def _minimisers(indices: Int[Array, " m"]) -> tuple[Array, Array, BasisPursuit]:
    def one(index):
        X, y = _instance(index)
        return X, y, basis_pursuit(LeastSquares(X, y), throw=False)

    return jax.vmap(one)(indices)


class Errors(NamedTuple):
    """Distances of end points to their limits, on `m` instances and `E` sizes of `ε`."""

    slope: np.ndarray  # predicted: 1 − ϱ or 1, (m,)
    log_eps: np.ndarray  # (m, E)
    error: np.ndarray  # (m, E)


def errors(instances: int = 6) -> dict[int, Errors]:
    """By depth, on instances with `n` active coordinates, where the dual is unique."""
    X, y, minimum = jax.tree.map(np.asarray, _minimisers(jnp.arange(4 * instances)))
    off = np.where(minimum.x == 0, np.abs(minimum.dual), 0)
    largest = np.max(off, axis=1)
    # Between 0.9 and 1 the range of ε where the error is a power is out of reach at D > 2.
    is_fit = minimum.is_unique & (np.sum(minimum.x != 0, axis=1) == N) & (largest < 0.9)
    chosen = np.flatnonzero(is_fit)[:instances]
    measured = {}
    for D in (2, 3, 4):
        slope = 1 - largest[chosen] if D == 2 else np.ones(len(chosen))
        # At depth 2 from ε^{1−ϱ} = 1e-10 to 1e-5.
        powers = np.linspace(-10, -5, 8) if D == 2 else np.linspace(-11, -7, 8)
        log_eps = np.log(10) * powers / slope[:, None]
        lanes = [Lane(D, X[i], y[i], e) for i, g in zip(chosen, log_eps, strict=True) for e in g]
        x = end_points(lanes).reshape(*log_eps.shape, SIZE)
        error = np.max(np.abs(x - minimum.x[chosen, None]), axis=2)
        measured[D] = Errors(slope, log_eps, error)
    return measured


def rate(instances: int = 6) -> list[Measurement]:
    """MS25-rate: slopes of the error in `log ε`."""
    deviations = {
        D: [
            fitted_slope(log_eps, error, None if D == 2 else 1 - 2 / D) - slope
            for slope, log_eps, error in zip(*rows, strict=True)
        ]
        for D, rows in errors(instances).items()
    }
    return [
        Measurement(
            "MS25-rate",
            f"largest deviation of the fitted slope from {'1 − ϱ' if D == 2 else '1'}, D = {D}, "
            f"{len(values)} instances 3 × 5",
            0.0,
            max(map(abs, values), default=np.nan),
            0.03 if D == 2 else 0.05,
            "as stated: the coordinate next to ϱ still adds to the error"
            if D == 2
            else "as stated; corrections in ε^(1−2/D) are fitted too",
        )
        for D, values in deviations.items()
    ]


CLAIMS = [
    Claim(
        "MS25-rate",
        "unique minimiser: the error is ε^(1−ϱ) at D = 2 and ε at D ≥ 3, up to a constant",
        rate,
    )
]
