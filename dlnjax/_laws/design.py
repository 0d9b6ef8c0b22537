"""`GaussianDesign`: the law of a random lasso."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from .._checks import (
    as_count,
    as_float,
    check_finite,
    check_key,
    check_scalar,
    is_concrete,
    to_common_dtype,
)
from .._linalg import matmul
from .._problem import LeastSquares

# Gauss–Legendre nodes on each panel of a density.
NODES = 64
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(NODES)
# The Legendre coefficients of an integrand of degrees NODES − 2 and NODES − 1, from its values
# times the weights. Where they fall geometrically, the quadrature, exact up to degree 2 NODES − 1,
# is off by about their square.
_LAST = np.polynomial.legendre.legvander(_POINTS, NODES - 1)[:, -2:].T * (2 * NODES - 1)


def rough(dtype: Any) -> float:
    """How large these coefficients may be, and how far from 1 the sum of the probabilities, both
    relative (5e-7 in float64, 2e-3 in float32)."""
    # The square of it is 3e-13. 100 times more would allow 3e-9, and 100 times less would refuse
    # densities that are integrated to rounding.
    return float(jnp.finfo(dtype).eps) ** 0.4


class GaussianDesign(eqx.Module):
    """The law of `y = X x* + σ w` for large sizes `n` and `d` with `n/d → δ`: `X` with independent
    normal entries of variance `1/n`, entries of `x*` drawn from a prior, and `w` standard normal.

    It goes into `lasso_asymptotics`, and into `jax.vmap` and derivatives over all of its numbers.

    **Attributes:**

    - `delta`: `δ`, rows for each coordinate, a scalar.
    - `values`, `probabilities`: the atoms of the prior, shape `(K,)`. For a density they are the
        nodes and weights of a quadrature.
    - `noise`: the standard deviation `σ`, a scalar.
    - `probes`, `spacing`: by which the quadrature is checked: two rows for each panel, shape
        `(R, K)`, and the distance of nodes, shape `(K,)`. Atoms have no rows, and 0.

    !!! example

        ```python
        law = dln.GaussianDesign(0.5, ([-1.0, 0.0, 1.0], [0.05, 0.9, 0.05]), noise=0.2)
        problem, x_star = law.sample(jax.random.key(0), n=100, d=200)
        problem.X.shape, x_star.shape  # (100, 200) and (200,)
        # 9 in 10 entries are 0, and the others standard normal:
        slab = lambda v: 0.1 * jnp.exp(-(v**2) / 2) / jnp.sqrt(2 * jnp.pi)
        law = dln.GaussianDesign(0.5, [([0.0], [0.9]), (slab, [-8.0, 0.0, 8.0])], noise=0.2)
        ```
    """

    delta: Float[Array, ""]
    values: Float[Array, " K"]
    probabilities: Float[Array, " K"]
    noise: Float[Array, ""]
    probes: Float[Array, "R K"]
    spacing: Float[Array, " K"]

    def __init__(
        self,
        delta: ArrayLike,
        prior: tuple[Any, Any] | Sequence[tuple[Any, Any]],
        noise: ArrayLike,
    ):
        """**Arguments:**

        - `delta`: `δ > 0`, a scalar.
        - `prior`: the law of an entry of `x*`. Atoms are a pair `(values, probabilities)` of arrays
            of shape `(K,)`; a density is a pair `(density, edges)` of a function of an array, with
            values of the same shape, and the increasing ends of the panels on which it is
            integrated, with 64 nodes each. Put an edge where the density has a kink, and panels
            of a few times `τ` where it is small. A mixture is a list of pairs. The
            probabilities, and what densities integrate to, sum to 1.
        - `noise`: `σ ≥ 0`, a scalar.

        **Raises:** `ValueError` for values out of range, shapes that do not match, or probabilities
        that do not sum to 1; `TypeError` for what is no pair. Traced values out of range end as
        `invalid_law` in the functions that take the law.
        """
        parts: list[Any] = list(prior) if isinstance(prior, list) else [prior]
        if not parts or not all(isinstance(part, tuple) and len(part) == 2 for part in parts):
            raise TypeError(
                "`prior` must be a pair `(values, probabilities)` or `(density, edges)`, or a list "
                f"of such pairs, got {prior!r}."
            )
        pieces = [(_panels if callable(part[0]) else _atoms)(*part) for part in parts]
        delta, noise = as_float(delta, "delta"), as_float(noise, "noise")
        check_scalar(delta, "delta")
        check_scalar(noise, "noise")
        if is_concrete(delta) and not 0 < float(delta) < np.inf:
            raise ValueError(f"`delta` must be positive and finite, got {float(delta)}: it is n/d.")
        if is_concrete(noise) and not 0 <= float(noise) < np.inf:
            raise ValueError(
                f"`noise` must be finite and not negative, got {float(noise)}: it is a standard "
                "deviation."
            )
        count = len(pieces)
        columns = [v for column in zip(*pieces, strict=True) for v in column]
        delta, noise, *columns = to_common_dtype(delta, noise, *columns)
        values, probabilities, spacing = (columns[i * count : (i + 1) * count] for i in range(3))
        if is_concrete(*probabilities):
            total = float(sum(np.sum(np.asarray(p)) for p in probabilities))
            if not abs(total - 1) <= rough(delta.dtype):
                raise ValueError(
                    f"The probabilities of `prior` sum to {total}, not to 1. Of a density: let "
                    "`edges` reach further out, or split them."
                )
        self.delta, self.noise = delta, noise
        self.values, self.probabilities = jnp.concatenate(values), jnp.concatenate(probabilities)
        self.spacing = jnp.concatenate(spacing)
        # Two rows for each panel, 0 outside of it.
        rows, start, last = [], 0, jnp.asarray(_LAST, delta.dtype)
        for part, p in zip(parts, probabilities, strict=True):
            for first in range(0, len(p), NODES) if callable(part[0]) else ():
                row = jnp.zeros((2, len(self.values)), delta.dtype)
                at = slice(start + first, start + first + NODES)
                rows.append(row.at[:, at].set(last * p[None, first : first + NODES]))
            start += len(p)
        self.probes = jnp.concatenate([jnp.zeros((0, len(self.values)), delta.dtype), *rows])

    def is_valid(self) -> Bool[Array, ""]:
        """Whether all numbers are in their range. Shape `()`."""
        p = self.probabilities
        return (
            (self.delta > 0)
            & jnp.isfinite(self.delta)
            & (self.noise >= 0)
            & jnp.isfinite(self.noise)
            & jnp.all(jnp.isfinite(self.values))
            & jnp.all(p >= 0)
            & (jnp.abs(jnp.sum(p) - 1) <= rough(p.dtype))
        )

    def sample(
        self, key: Key[Array, ""], n: int, d: int
    ) -> tuple[LeastSquares, Float[Array, " d"]]:
        """A problem of `n` rows and `d` coordinates, and its `x*`, shape `(d,)`.

        **Arguments:** `key`, one `jax.random.key`; `n` and `d`, whose ratio should be `delta`. Of a
        density, entries are drawn from the nodes of its quadrature.

        !!! example

            ```python
            law = dln.GaussianDesign(0.5, ([-1.0, 0.0, 1.0], [0.05, 0.9, 0.05]), noise=0.2)
            problem, x_star = law.sample(jax.random.key(0), 100, 200)
            point = dln.lasso(problem, 1 / 0.2)
            jnp.mean((point.x[0] - x_star) ** 2)  # 0.024; the law has 0.0366 as n → ∞
            ```
        """
        check_key(key, "sample")
        n, d = as_count(n, "n"), as_count(d, "d")
        of_design, of_values, of_noise = jax.random.split(key, 3)
        dtype = self.values.dtype
        X = jax.random.normal(of_design, (n, d), dtype) / jnp.sqrt(jnp.asarray(n, dtype))
        x_star = jax.random.choice(of_values, self.values, (d,), p=self.probabilities)
        y = matmul(X, x_star) + self.noise * jax.random.normal(of_noise, (n,), dtype)
        return LeastSquares(X, y), x_star


def _atoms(values: Any, probabilities: Any) -> tuple[Array, Array, Array]:
    v, p = as_float(values, "values"), as_float(probabilities, "probabilities")
    if v.ndim != 1 or v.shape != p.shape or v.size == 0:
        raise ValueError(
            "`values` and `probabilities` of `prior` must have one shape (K,), got "
            f"{v.shape} and {p.shape}."
        )
    check_finite(v, "values")
    _check_not_negative(p)
    return v, p, jnp.zeros_like(v)


def _panels(density: Callable[[Array], Array], edges: Any) -> tuple[Array, Array, Array]:
    e = as_float(edges, "edges")
    if e.ndim != 1 or e.size < 2:
        raise ValueError(
            f"`edges` of `prior` must have shape (panels + 1,), got {e.shape}: `(density, [-8, 8])`"
            " has one panel."
        )
    check_finite(e, "edges")
    # In NumPy: under `jit`, what JAX computes of concrete edges is traced.
    if is_concrete(e) and not np.all(np.diff(np.asarray(e)) > 0):
        raise ValueError(f"`edges` of `prior` must increase, got {np.asarray(e)}.")
    width = jnp.diff(e)[:, None] / 2
    v = e[:-1, None] + width * (1 + jnp.asarray(_POINTS, e.dtype))[None, :]
    p = as_float(density(v.ravel()), "density", e.dtype)
    if p.shape != (v.size,):
        raise ValueError(
            f"The density of `prior` has shape {p.shape} at values of shape {(v.size,)}. It must "
            "be a function of each entry."
        )
    p = p * (width * jnp.asarray(_WEIGHTS, e.dtype)[None, :]).ravel()
    _check_not_negative(p)
    # In the middle of a panel, where it is largest.
    spacing = jnp.broadcast_to(width * jnp.asarray(np.pi / NODES, e.dtype), v.shape)
    return v.ravel(), p, spacing.ravel()


def _check_not_negative(p: Array) -> None:
    if is_concrete(p) and not np.all(np.asarray(p) >= 0):
        raise ValueError(
            "The probabilities of `prior` must not be negative or NaN, got "
            f"{np.min(np.asarray(p))}."
        )
