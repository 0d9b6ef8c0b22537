"""Pointwise losses `f(u, y)` of a generalised linear model, `ℓ(x) = Σᵢ f((Xx)ᵢ, yᵢ)`.

| class | `f(u, y)` | `f*(p, y)`, infinite elsewhere |
|---|---|---|
| `LogisticLoss` | `log(1 + e^{−yu})` | `a log a + (1 − a) log(1 − a)`, `a = −py ∈ [0, 1]` |
| `ExponentialLoss` | `e^{−yu}` | `a log a − a`, `a = −py ≥ 0` |
| `PoissonLoss` | `e^u − yu` | `a log a − a`, `a = p + y ≥ 0` |
| `HuberLoss` | `½r²` for `|r| = |u − y| ≤ δ`, else `δ|r| − ½δ²` | `py + ½p²`, `|p| ≤ δ` |
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlog1py, xlogy
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from .._checks import as_float, check_scalar, is_concrete


class AbstractLoss(eqx.Module):
    """Interface of a convex loss of one prediction `u` and its target `y`, elementwise.

    With its derivatives and its convex conjugate, `GeneralizedLinear(X, y, loss)` is a problem that
    flows in the dual form, and has a lasso with a duality gap. All arrays have one shape
    `(..., n)`.

    !!! example

        ```python
        class Square(dln.AbstractLoss):
            value = lambda self, u, y: (u - y) ** 2 / 2
            derivative = lambda self, u, y: u - y
            curvature = lambda self, u, y: jnp.ones_like(u)
            conjugate = lambda self, p, y: p * y + p**2 / 2


        problem = dln.GeneralizedLinear(jnp.eye(2), jnp.array([2.0, 1.0]), Square())
        problem.loss(jnp.zeros(2))  # 2.5
        ```
    """

    @abc.abstractmethod
    def value(self, u: Float[Array, "... n"], y: Float[Array, "... n"]) -> Float[Array, "... n"]:
        """The loss `f(u, y)`, convex in `u`.

        !!! example

            ```python
            dln.HuberLoss(1.0).value(jnp.array([0.5, 3.0]), jnp.zeros(2))  # (0.125, 2.5)
            ```
        """

    @abc.abstractmethod
    def derivative(
        self, u: Float[Array, "... n"], y: Float[Array, "... n"]
    ) -> Float[Array, "... n"]:
        """`f′(u, y)`, the derivative in `u`. It must be finite at any `u`, since trial steps of a
        solver overshoot: an exponential must be capped.

        !!! example

            ```python
            dln.HuberLoss(1.0).derivative(jnp.array([0.5, 3.0]), jnp.zeros(2))  # (0.5, 1)
            ```
        """

    @abc.abstractmethod
    def curvature(
        self, u: Float[Array, "... n"], y: Float[Array, "... n"]
    ) -> Float[Array, "... n"]:
        """`f″(u, y) ≥ 0`, finite.

        !!! example

            ```python
            dln.HuberLoss(1.0).curvature(jnp.array([0.5, 3.0]), jnp.zeros(2))  # (1, 0)
            ```
        """

    @abc.abstractmethod
    def conjugate(
        self, p: Float[Array, "... n"], y: Float[Array, "... n"]
    ) -> Float[Array, "... n"]:
        """`f*(p, y) = sup_u pu − f(u, y)`, infinite outside its domain, for duality gaps.

        !!! example

            ```python
            dln.HuberLoss(1.0).conjugate(jnp.array([0.5, 3.0]), jnp.zeros(2))  # (0.125, inf)
            ```
        """

    def takes(self, y: Float[Array, "... n"]) -> Bool[Array, "... n"]:
        """Whether each target is one of this loss.

        !!! example

            ```python
            dln.PoissonLoss().takes(jnp.array([3.0, -1.0]))  # True, False
            ```
        """
        return jnp.isfinite(y)


class LogisticLoss(AbstractLoss):
    """`f(u, y) = log(1 + e^{−yu})`, for labels `y = ±1`.

    !!! example

        ```python
        loss = dln.LogisticLoss()
        loss.value(jnp.zeros(1), jnp.ones(1))  # log 2
        ```
    """

    def value(self, u: Array, y: Array) -> Array:
        return jax.nn.softplus(-y * u)

    def derivative(self, u: Array, y: Array) -> Array:
        return -y * jax.nn.sigmoid(-y * u)

    def curvature(self, u: Array, y: Array) -> Array:
        return jax.nn.sigmoid(u) * jax.nn.sigmoid(-u)

    def conjugate(self, p: Array, y: Array) -> Array:
        a = -p * y
        inside = (a >= 0) & (a <= 1)
        a = jnp.where(inside, a, 0.5)
        # (1 − a) log(1 − a), with the digits of a small `a`.
        rest = xlog1py(1 - a, jnp.where(a < 1, -a, 0))
        return jnp.where(inside, _entropy(a) + rest, jnp.inf)

    def takes(self, y: Array) -> Array:
        return jnp.abs(y) == 1


class ExponentialLoss(AbstractLoss):
    """`f(u, y) = e^{−yu}`, for labels `y = ±1`.

    !!! example

        ```python
        loss = dln.ExponentialLoss()
        loss.derivative(jnp.zeros(1), jnp.ones(1))  # −1
        ```
    """

    def value(self, u: Array, y: Array) -> Array:
        return jnp.exp(-y * u)

    def derivative(self, u: Array, y: Array) -> Array:
        return -y * _capped_exp(-y * u)

    def curvature(self, u: Array, y: Array) -> Array:
        return _capped_exp(-y * u)

    def conjugate(self, p: Array, y: Array) -> Array:
        return _conjugate_of_exp(-p * y)

    def takes(self, y: Array) -> Array:
        return jnp.abs(y) == 1


class PoissonLoss(AbstractLoss):
    """`f(u, y) = e^u − yu`, the negative log-likelihood of counts `y ≥ 0` of mean `e^u`, up to
    `log y!`.

    !!! example

        ```python
        loss = dln.PoissonLoss()
        loss.derivative(jnp.log(jnp.array([3.0])), jnp.array([3.0]))  # 0: the mean is the count
        ```
    """

    def value(self, u: Array, y: Array) -> Array:
        return jnp.exp(u) - y * u

    def derivative(self, u: Array, y: Array) -> Array:
        return _capped_exp(u) - y

    def curvature(self, u: Array, y: Array) -> Array:
        return _capped_exp(u)

    def conjugate(self, p: Array, y: Array) -> Array:
        return _conjugate_of_exp(p + y)

    def takes(self, y: Array) -> Array:
        return (y >= 0) & jnp.isfinite(y)


class HuberLoss(AbstractLoss):
    """`½(u − y)²` up to a residual of `δ`, and beyond that linear: outliers pull by `δ` at most.

    !!! example

        ```python
        dln.HuberLoss(1.0).value(jnp.array([0.5, 3.0]), jnp.zeros(2))  # (0.125, 2.5)
        ```
    """

    delta: Float[Array, ""]

    def __init__(self, delta: ArrayLike = 1.0):
        """**Arguments:** `delta`: `δ > 0`, scalar, in units of `y`.

        **Raises:** `ValueError` for `δ ≤ 0`.
        """
        self.delta = as_float(delta, "delta")
        check_scalar(self.delta, "delta")
        if is_concrete(self.delta) and not float(self.delta) > 0:
            raise ValueError(f"`delta` must be positive, got {float(self.delta)}.")

    def value(self, u: Array, y: Array) -> Array:
        size = jnp.abs(u - y)
        within = size <= self.delta
        return jnp.where(within, (u - y) ** 2 / 2, self.delta * (size - self.delta / 2))

    def derivative(self, u: Array, y: Array) -> Array:
        return jnp.clip(u - y, -self.delta, self.delta)

    def curvature(self, u: Array, y: Array) -> Array:
        return (jnp.abs(u - y) <= self.delta).astype(u.dtype)

    def conjugate(self, p: Array, y: Array) -> Array:
        inside = jnp.abs(p) <= self.delta
        p = jnp.where(inside, p, 0)
        return jnp.where(inside, p * y + p**2 / 2, jnp.inf)

    def takes(self, y: Array) -> Array:
        return jnp.isfinite(y) & (self.delta > 0)


def _capped_exp(v: Array) -> Array:
    return jnp.exp(jnp.minimum(v, log_cap(v.dtype)))


def _conjugate_of_exp(a: Array) -> Array:
    """The conjugate of `exp`, `a log a − a`."""
    inside = a >= 0
    a = jnp.where(inside, a, 0)
    return jnp.where(inside, _entropy(a) - a, jnp.inf)


def _entropy(a: Array) -> Array:
    """`a log a`, 0 at 0, where its derivative, which is infinite, is taken as 0."""
    some = a > 0
    return jnp.where(some, xlogy(a, jnp.where(some, a, 1)), 0)


def log_cap(dtype: DTypeLike) -> float:
    """The logarithm of the largest number that is followed, for data of size 1: the fourth root of
    the largest one, 1e77 in float64 and 4e9 in float32. So are `q`, and `e^u` of a prediction."""
    # Trial steps of a solver overshoot to q = ∞ without a cap. The power 1/4 was chosen: squares of
    # q, times data or log(1/ε) of the same size, stay finite. With the square root q² would
    # overflow; the eighth root would refuse x above 7e4 in float32. Where the data say that x is
    # large, they are small, and flows follow it farther (`_flow/link.py`).
    return float(np.log(jnp.finfo(dtype).max)) / 4
