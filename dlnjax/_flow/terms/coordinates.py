"""The state space of `w`: for `d ≤ n`, every `Quadratic`, weight decay, and every link.

An active `w` stays near 0 for ever, and at depth above 2 far below the rounding of `w(0)`, while
`sr − Mz` and `λs` grow with `s`. So `w` itself is the state, as interior-point methods keep their
slacks: a step adds to it what a linear system in units of `w` says, which loses no digit however
small `w` is or large `s`. With `ρ = r − Mx`,

    dw^±/ds = ∓ρ + λ.

A step solves `(I/(γh) − J)U = b` with two rows, of which the sum is known, `U⁺ + U⁻ = 2S`: that of
a field of `λ` alone. (From `b⁺ + b⁻` it would have that of `ρ`, which adds up to that of `sr`.) So
for each coordinate one sign `τ` is solved for, that of the larger slope `E^τ = −φ'(w^τ)`: the
active one, if there is one, whose small `U^τ` would be lost in a difference.
With `T` the diagonal of these signs, `E` the sum of both slopes, `E'` the smaller one, the change
of `x` is `−T(EU^τ − 2E'S)`, and

    (I + γhME) TU^τ = a,    a = T γh b^τ + 2γhM T E'S.

With `R² = γhE` this is `V = (I + RMR)⁻¹ R a` and `TU^τ = R⁻¹V = a − MRV`, the first where `R` is
large, the second where it is small. The matrix is `R(R⁻² + M)R`, a diagonal scaling of a
well-conditioned one, to which the Cholesky factorisation is indifferent.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import Cholesky, matmul
from ...networks.base import (
    is_in_range,
)
from ...networks.link import AbstractLink
from ...networks.signs import sides, signed
from .base import AbstractDualTerm

# How much a relative error of x counts beside one of w. Of an active coordinate it is log(1/ε)
# times as large: with 0, errors of x at the first jump reach 2e-5 at log ε = −2000; with 0.3 they
# stay below 1e-6. Steps at log ε = −23 (median of eight UV 10 × 4): 217, 222, 252, 302 with 0, 0.1,
# 0.3, 1: a sixth more with 0.3, and 39 % with 1.
IN_X = 0.3


class CoordinateTerm(AbstractDualTerm):
    """State `(w, σ²z)`, of shapes `(signs, d)` and `(d,)`; the point is `w`."""

    M: Float[Array, "d d"]  # in units of σ²
    data: tuple[Float[Array, "n d"], Float[Array, " n"]] | None  # X/σ, σy
    r: Float[Array, " d"]
    link: AbstractLink
    weight_decay: Float[Array, ""] | None  # None: 0
    scale: Float[Array, ""]

    def initial(self):
        return self.link.start, jnp.zeros_like(self.r)

    def validity(self):
        return self.link.validity()

    def x(self, g):
        return self.scale**2 * signed(self.link.q(g))

    def response(self, g):
        q, square = self.link.q(g), self.scale**2
        return square * signed(q), square * self.link.slope(g, q)

    def change(self, slope, image):
        return -signed(slope * image)

    def image(self, f):
        return f

    def is_in_range(self, x):
        return is_in_range(x)

    def velocity(self, x):
        if self.data is None:
            rest = self.r - matmul(self.M, x)
        else:
            # Through the residual: its rounding is a change of y, which keeps the invariants.
            X, y = self.data
            rest = matmul(y - matmul(X, x), X)
        velocity = sides(-rest, self.link.start)
        return velocity if self.weight_decay is None else velocity + self.weight_decay

    def factorize(self, slope, gamma_h):
        # Slopes that underflow to 0 stay there; the derivative of √0 would be NaN.
        total = jnp.sum(slope, axis=0)
        moves = total > 0
        root = jnp.where(moves, jnp.sqrt(gamma_h * jnp.where(moves, total, 1)), 0)
        matrix = root[:, None] * self.M * root[None, :]
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return Cholesky(identity + matrix), root, slope, gamma_h

    @property
    def drift(self):
        return 0.0 if self.weight_decay is None else self.weight_decay

    def solve(self, factors, rhs, drift):
        factor, root, slope, gamma_h = factors
        b = gamma_h * rhs
        if len(b) == 1:
            return self._solve_for(factor, root, b[0])[None]
        if self.weight_decay is None:
            u = self._solve_for(factor, root, b[0])
            return jnp.stack([u, -u])
        # The other sign follows from the sum of both.
        is_plus, half = slope[0] >= slope[1], gamma_h * drift
        least = jnp.where(is_plus, slope[1], -slope[0])
        asked = jnp.where(is_plus, b[0], -b[1])
        asked = asked + 2 * gamma_h * matmul(self.M, least * half)
        u = self._solve_for(factor, root, asked)
        return jnp.stack(
            [jnp.where(is_plus, u, 2 * half + u), jnp.where(is_plus, 2 * half - u, -u)]
        )

    def _solve_for(self, factor: Cholesky, root: Array, asked: Array) -> Array:
        v = factor.solve(root * asked)
        large = root > 1
        return jnp.where(large, v / jnp.where(large, root, 1), asked - matmul(self.M, root * v))

    def error(self, state, error):
        # An error of w by itself, and by what it makes of x, relative to max(x, |r|/σ²).
        w, (in_w, in_z) = state[0], error
        q, other = (self.scale**2 * self.link.q(v) for v in (w, w - in_w))
        size = jnp.max(jnp.abs(self.r))
        in_x = IN_X * jnp.abs(q - other) / (jnp.where(size > 0, size, 1) + q)
        in_z = jnp.abs(in_z)
        if self.weight_decay is not None:
            # With λ above all of `r` nothing ever moves away from 0, and `z` tends to about x(0)/λ:
            # its error counts relative to that, where it would not be seen in units of `w`.
            start = jnp.max(self.scale**2 * self.link.q(self.link.start))
            decays = (self.weight_decay > size) & (start > 0)
            weight = jnp.where(decays, self.weight_decay / jnp.where(decays, start, 1), 1)
            in_z = in_z * jnp.maximum(1, weight)
        return jnp.maximum(jnp.abs(in_w), in_x), in_z

    def read(self, s, state):
        w, z = state
        start = self.link.start
        moved = start - w
        if self.weight_decay is not None:
            moved = moved + self.weight_decay * s
        # Of the two signs, the one with the smaller w(0) is the more exact.
        dual = moved[0]
        if len(start) == 2:
            dual = jnp.where(start[0] <= start[1], dual, -moved[1])
        return signed(self.link.read(w)), z / self.scale**2, dual

    def is_consistent(self, state):
        return self.link.is_consistent(state[0])
