"""The vector field in the loss clock `τ`, for `margin_flow`.

It is that of `rows.py` or `coordinates.py` with the residual `y∘p` of `LossClock` (`fit.py`), and
one number more, `ρ = ℓs`: with `T = log 1/ℓ`,

    dν/dτ = y∘p,    dρ/dτ = ℓ/c − ρ dT/dτ,    dT/dτ = (c/ℓ) (y∘p)ᵀK(y∘p) ≥ 0.

So `log s = T + log ρ`, where `s` itself overflows. (`log s` as a state would be stiff in its own
right: it follows `T`, which may grow by 1e5 in a step, to O(1). `ρ` tends to `1/(dT/dτ)`.)

In place of `z` the quadrature is `∫p`, which is `ν`, also where the state is `w`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import matmul
from .base import AbstractDualTerm
from .coordinates import CoordinateTerm
from .fit import LossClock
from .rows import RowTerm


class MarginTerm(AbstractDualTerm):
    """State `((f, ρ), (…, σν))` with the `f` of `inner`, both flat. What `rosenbrock` takes as `x`
    is `(σ²x, dρ/dτ, dT/dτ, σy∘p)`, of which the last is integrated."""

    inner: RowTerm | CoordinateTerm
    fit: LossClock
    scale: Float[Array, ""]
    zeta: Float[Array, " m"]

    def __init__(self, inner: RowTerm | CoordinateTerm):
        fit = inner.fit
        assert isinstance(fit, LossClock)
        n, d = fit.X.shape
        self.inner, self.fit, self.scale = inner, fit, inner.scale
        # Only the last n numbers are integrated.
        other, last = jnp.full(d + 2, jnp.inf, fit.X.dtype), jnp.ones(n, fit.X.dtype)
        self.zeta = jnp.concatenate([other, last])

    def _join(self, f: Array, rho: Array) -> Array:
        return jnp.append(jnp.ravel(f), rho)

    def _f(self, state: Array) -> Array:
        return state[:-1].reshape(self.inner.initial()[0].shape)

    def _g(self, image: Array) -> Array:
        start = self.inner.initial()[0]
        return image[:-1].reshape(self.inner.image(start).shape)

    def initial(self):
        f, _ = self.inner.initial()
        return self._join(f, jnp.zeros_like(self.scale)), jnp.zeros_like(self.zeta)

    def size(self):
        return self.inner.size()

    def threshold(self):
        return self.inner.threshold()

    def validity(self):
        return self.inner.validity()

    def x(self, g):
        return self._all(g, *self.inner.response(self._g(g)))

    def _all(self, g: Array, x: Array, slope: Array) -> Array:
        m, residual = self.fit.margins(x), self.fit.residual(x)
        change = self.inner.change(slope, self.inner.image(self.inner.velocity(x)))
        ratio = jnp.exp(self.fit.log_loss(m) - self.fit.log_clock(m))
        rise = jnp.sum(residual * matmul(self.fit.X, change)) / (ratio * self.scale**2)
        return jnp.concatenate([x, jnp.stack([ratio - g[-1] * rise, rise]), residual])

    def response(self, g):
        x, slope = self.inner.response(self._g(g))
        return self._all(g, x, slope), (slope, g, self.fit.curvature(x))

    def change(self, slope, image):
        # Of the last entries only, as no other is integrated.
        inner, _, curvature = slope
        along = matmul(self.fit.X, self.inner.change(inner, self._g(image)))
        other = jnp.zeros(self.fit.X.shape[1] + 2, along.dtype)
        return jnp.concatenate([other, -curvature.product(along)])

    def rounding(self, slope, g):
        # What is integrated is a derivative of the loss, in which nothing cancels.
        return jnp.zeros_like(self.zeta)

    def image(self, f):
        return self._join(self.inner.image(self._f(f)), f[-1])

    def is_in_range(self, x):
        return self.inner.is_in_range(x)

    def velocity(self, x):
        d = self.fit.X.shape[1]
        return self._join(self.inner.velocity(x[:d]), x[d])

    def factorize(self, x, slope, gamma_h):
        d = self.fit.X.shape[1]
        inner = self.inner.factorize(x[:d], slope[0], gamma_h)
        rate = jax.grad(lambda g: self.x(g)[d])(slope[1])
        return inner, self._g(rate), 1 / gamma_h + x[d + 1]

    def solve(self, factors, rhs, drift):
        # The Jacobian is block triangular: ν does not depend on ρ.
        inner, rate, pivot = factors
        u = self.inner.solve(inner, self._f(rhs), drift)
        change = jnp.sum(rate * self.inner.image(u))
        return self._join(u, (rhs[-1] + change) / pivot)

    @property
    def matrix_size(self):
        return self.inner.matrix_size

    def error(self, state, error):
        f, z = self.inner.error((self._f(state[0]), state[1]), (self._f(error[0]), error[1]))
        # log s = T + log ρ is asked for, and relative to its size. (To the same error at any size
        # steps would be ten times as many at T = 1e6, measured.) ρ is 0 at the start only.
        rho = jnp.maximum(jnp.abs(state[0][-1]), jnp.finfo(z.dtype).tiny)
        size = rho * (1 + jnp.abs(self.log_inverse_loss(state)))
        return self._join(f, jnp.abs(error[0][-1]) / size), z

    def read(self, s, state):
        zeros = jnp.zeros_like(self.fit.X[0])
        return self.inner.read(s, (self._f(state[0]), zeros))

    def is_consistent(self, state):
        return self.inner.is_consistent((self._f(state[0]), state[1]))

    def margins(self, state) -> Float[Array, " n"]:
        """`y∘Xx` at a state."""
        return self.fit.margins(self.scale**2 * self.read(0, state)[0])

    def log_inverse_loss(self, state) -> Float[Array, ""]:
        """`T` at a state."""
        return -self.fit.log_loss(self.margins(state))
