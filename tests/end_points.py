"""Networks, small problems and closed forms that the tests of end points share."""

import functools
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import dlnjax as dln


class Power(dln.AbstractDualNetwork):
    """`x = u^D − v^D`, `D > 2`, by DESIGN §2."""

    u: Float[Array, " d"]
    v: Float[Array, " d"]
    depth: Float[Array, ""]
    positive: ClassVar[bool] = False

    def __call__(self):
        return self.u**self.depth - self.v**self.depth

    def initial(self, log_eps):
        scale = jnp.exp(log_eps / self.depth)
        return Power(self.u * scale, self.v * scale, self.depth)

    def time_scale(self, log_eps):
        return jnp.exp((2 / self.depth - 1) * log_eps) / (self.depth * (self.depth - 2))

    def penalty(self, weight_decay):
        return 0 * weight_decay

    def link(self, w, log_eps):
        return jnp.exp(log_eps - self.depth / (self.depth - 2) * jnp.log(jnp.maximum(w, 1e-9)))

    def initial_dual(self, log_eps):
        return jnp.stack([self.u, self.v]) ** (2 - self.depth)

    def growth(self, log_eps):
        p, shape = 1 - 2 / self.depth, jnp.stack([self.u, self.v])
        return dln.Growth(self.depth * jnp.log(shape) + log_eps, p * shape ** (2 - self.depth), p)


N, D_ = 3, 5
DEPTHS = [2, 2.5, 3.0, 4.0]
EVERY_DEPTH = pytest.mark.parametrize("D", DEPTHS)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D_)), RNG.normal(size=N)
U, V = RNG.uniform(0.5, 2, D_), RNG.uniform(-0.4, 0.4, D_)


def padded(design, response) -> tuple[np.ndarray, np.ndarray]:
    """With rows and columns of zeros, which change nothing, so that one compilation does."""
    X, y = np.zeros((N, D_)), np.zeros(N)
    X[: len(design), : len(design[0])], y[: len(response)] = design, response
    return X, y


# The two instances of [W23].
FIRST = padded([[1.0, 1, 1], [3, 0, 1]], [3, 3])

SECOND = padded([[2.0, -1, 0, 1], [0, 3, 2, 0]], [0, 6])

BOTH = (FIRST, SECOND)


def network_of(D, u, v=None):
    if isinstance(D, int):  # other depths may be traced
        return dln.UV(u, jnp.zeros_like(u) if v is None else v)
    return Power(u, u if v is None else v, jnp.asarray(D, float))


@functools.cache
def limits_of(D) -> np.ndarray:
    t = (4 - 6 * 2 ** (1 / 3) + 9 * 2 ** (2 / 3)) / 31
    if D > 2:
        t = 1 / (1 + (3 ** (2 / D) / (2 ** (2 / D) + 1)) ** (-D / (D - 2)))
    return np.array([1 - t, 2 * (1 - t), 3 * t, 0, 0])
