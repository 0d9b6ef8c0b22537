"""The state space of `(w, ν)`: for `n < d`, at depth 2, two signs and weight decay.

`rows.py` says why `ν` alone is none with weight decay, and `w` alone is none where the start is
larger than `x`: all `q` are then as large as the start, and `I + γhME` loses the null space of `M`
to rounding. So each coordinate has what suits it: `w^±`, or `g = Xᵀν` where `q⁺` and `q⁻` nearly
are equal (`../link_base.py`).

Let `E°` be the slopes of those coordinates, and `E` those of the others, whose unknown is
`V = TU^τ`, in the terms of `coordinates.py`. With `D = E⁺ − E⁻` in the first and `−2TE'` in the
others, the stage `N` of `ν` and `V` solve

    (I/(γh) + H X E° Xᵀ) N = b + H X (DS + EV),      V = a + γhXᵀb − XᵀN,

where `a = γhTb^τ`. `systems.py` solves them, with `c = −DS`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import matmul
from .base import AbstractDualTerm
from .coordinates import CoordinateTerm, stages, unknowns
from .difference import is_balanced
from .fit import AbstractFit
from .systems import RowSystem


class DecayedRowTerm(AbstractDualTerm):
    """State `((w, σν), σ²z/ζ)`, the first flat, of `2d + n` numbers; its image is `(w, Xᵀν)`."""

    inner: CoordinateTerm
    fit: AbstractFit
    scale: Float[Array, ""]
    zeta: Float[Array, ""]

    def __init__(self, inner: CoordinateTerm):
        assert inner.fit is not None and len(inner.link.rows) == 3
        self.inner, self.fit = inner, inner.fit
        self.scale, self.zeta = inner.scale, inner.zeta

    def _split(self, f: Array) -> tuple[Array, Array]:
        n, d = self.fit.X.shape
        return f[: 2 * d].reshape(2, d), f[2 * d :]

    def _join(self, w: Array, nu: Array) -> Array:
        return jnp.concatenate([jnp.ravel(w[:2]), nu])

    def schedule(self):
        return self.inner.schedule()

    def at(self, s):
        return DecayedRowTerm(self.inner.at(s))

    def initial(self):
        w, z = self.inner.initial()
        return self._join(w, jnp.zeros_like(self.fit.X[:, 0])), z

    def size(self):
        return self.inner.size()

    def threshold(self):
        return self.inner.threshold()

    def validity(self):
        return self.inner.validity()

    def x(self, g):
        return self.inner.x(g)

    def response(self, g):
        return self.inner.response(g)

    def change(self, slope, image):
        return self.inner.change(slope, image)

    def rounding(self, slope, g):
        return self.inner.rounding(slope, g)

    def image(self, f):
        w, nu = self._split(f)
        return jnp.concatenate([w, matmul(nu, self.fit.X)[None]])

    def is_in_range(self, x):
        return self.inner.is_in_range(x)

    def velocity(self, x):
        return self._join(self.inner.velocity(x), self.fit.residual(x))

    @property
    def drift(self):
        return self.inner.drift

    def factorize(self, x, slope, gamma_h):
        is_near, both = is_balanced(slope), slope[0] + slope[1]
        near, far = jnp.where(is_near, both, 0), jnp.where(is_near, 0, both)
        return RowSystem(self.fit, x, near, far, gamma_h), slope, gamma_h

    def solve(self, factors, rhs, drift):
        system, slope, gamma_h = factors
        half = gamma_h * drift
        b_w, b = self._split(rhs)
        b_w = gamma_h * jnp.concatenate([b_w, matmul(b, self.fit.X)[None]])
        twice, asked, shift = unknowns(slope, b_w, half)
        u, nu = system.solve_both(asked, twice * half, b)
        return self._join(stages(u, half, shift), nu)

    @property
    def matrix_size(self):
        return self.inner.matrix_size

    def error(self, state, error):
        in_w, in_z = self.inner.error(
            (self.image(state[0]), state[1]), (self.image(error[0]), error[1])
        )
        # `ν` counts by what it changes in `x`.
        in_nu = jnp.broadcast_to(jnp.max(in_w[2]), self.fit.X[:, 0].shape)
        return self._join(in_w, in_nu), in_z

    def read(self, s, state):
        return self.inner.read(s, (self.image(state[0]), state[1]))
