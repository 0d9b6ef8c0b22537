"""The state space of `w`: for `d ≤ n`, every `Quadratic`, weight decay, and every link.

An active `w` stays near 0, and at depth above 2 far below the rounding of `w(0)`, while `sr − Mz`
and `λs` grow with `s`. So `w` itself is the state, as interior-point methods keep their slacks: a
step adds an increment that a linear system in units of `w` determines, and loses no digits however
small `w` or large `s` is. With `ρ = −∇ℓ(x)`, which is `r − Mx` for the square,

    dw^±/ds = ∓ρ + λ,    dz/ds = x.

A stage of a step solves `(I/(γh) − J)U = b` for two rows `U^±`, and their mean `S` is known: it is
the stage of the field `λ` alone, without `ρ`. (Computed from `b⁺ + b⁻` it would have the rounding
of `ρ`, which adds up to that of `sr`.) So each coordinate is solved for one sign `τ` only, and the
other is `2S − U^τ`. `τ` is the sign of the larger slope `E^τ = −φ'(w^τ)`, the active one if there
is one: its `U^τ` is small, and would be lost in a difference.

With another loss `M` is its Hessian `XᵀHX` at the start of the step. Let `T` be the diagonal matrix
of the signs `τ`, `E` that of the sum of both slopes, and `E'` that of the smaller slope. Then the
change of `x` is `−T(EU^τ − 2E'S)`, and

    (I + γhME) TU^τ = a,    a = T γh b^τ + 2γhM T E'S.

With `R² = γhE` the solution is `V = (I + RMR)⁻¹ R a`, and then, in each coordinate,

    TU^τ = R⁻¹V  where R > 1,    TU^τ = a − MRV  where R ≤ 1.

Both formulas are exact; each divides by a number above 1, or by none. The matrix is `R(R⁻² + M)R`,
a diagonal scaling of a well-conditioned matrix, which does not affect the accuracy of a Cholesky
factorisation.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import Cholesky, matmul
from ..._problem import Schedule, total_decay
from ...networks.signs import sides, signed
from ..link import AbstractLink
from .base import AbstractDualTerm
from .fit import AbstractFit

# The weight of a relative error of x beside an error of w, in the error of a step. An error of w in
# an active coordinate is a relative error of x = exp(−w log(1/ε)) that is log(1/ε) times larger.
# With 0, errors of x at the first jump reach 2e-5 at log ε = −2000; with 0.3 they stay
# below 1e-6. It costs steps: at log ε = −23 (median of eight problems UV 10 × 4) 217, 222, 252, 302
# with 0, 0.1, 0.3, 1, so a sixth more with 0.3, and 39 % more with 1.
IN_X = 0.3


class CoordinateTerm(AbstractDualTerm):
    """State `(w, σ²z/ζ)`, of shapes `(signs, d)` and `(d,)`; its image is `w` itself."""

    M: Float[Array, "d d"] | None  # M/σ²; None if it depends on x
    fit: AbstractFit | None  # None where the velocity goes through M
    r: Float[Array, " d"]
    link: AbstractLink
    # λ, with a `Schedule` that at the time in question; None if it is known to be 0.
    weight_decay: Float[Array, ""] | None
    varies: Schedule | None
    scale: Float[Array, ""]
    zeta: Float[Array, ""]

    def schedule(self):
        return self.varies

    def at(self, s):
        if self.varies is None:
            return self
        return dataclasses.replace(self, weight_decay=self.varies(s))

    def initial(self):
        return self.link.start, jnp.zeros_like(self.r)

    def size(self):
        return jnp.max(self.link.unit)

    def threshold(self):
        return jnp.min(self.link.unit)

    def validity(self):
        return self.link.validity()

    def x(self, g):
        return self.scale**2 * signed(self.link.q(g))

    def response(self, g):
        q, square = self.link.q(g), self.scale**2
        return square * signed(q), square * self.link.slope(g, q)

    def change(self, slope, image):
        return -signed(slope * image)

    def rounding(self, slope, g):
        # Of both signs: where `q⁺` and `q⁻` cancel in `x`, their rounding does not.
        terms = slope * jnp.abs(g) + self.scale**2 * self.link.q(g)
        return jnp.finfo(g.dtype).eps * jnp.sum(terms, axis=0)

    def image(self, f):
        return f

    def is_in_range(self, x):
        return self.link.is_in_range(x)

    def velocity(self, x):
        if self.fit is None:
            rest = self.r - matmul(self._hessian(x), x)
        else:
            # Through the residual: its rounding is then that of some y, so that w moves within the
            # range of Xᵀ and its components in the null space of X stay conserved.
            rest = matmul(self.fit.residual(x), self.fit.X)
        velocity = sides(-rest, self.link.start)
        return velocity if self.weight_decay is None else velocity + self.weight_decay

    def _hessian(self, x: Array) -> Array:
        if self.M is not None:
            return self.M
        assert self.fit is not None
        curvature = self.fit.curvature(x)
        assert curvature is not None
        rows = curvature.root_transposed(self.fit.X)
        return matmul(rows.T, rows)

    def factorize(self, x, slope, gamma_h):
        # Slopes may underflow to 0, where the derivative of √ is infinite.
        total = jnp.sum(slope, axis=0)
        moves = total > 0
        root = jnp.where(moves, jnp.sqrt(gamma_h * jnp.where(moves, total, 1)), 0)
        M = self._hessian(x)
        matrix = root[:, None] * M * root[None, :]
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return Cholesky(identity + matrix), M, root, slope, gamma_h

    @property
    def drift(self):
        return 0.0 if self.weight_decay is None else self.weight_decay

    def solve(self, factors, rhs, drift):
        factor, M, root, slope, gamma_h = factors
        b = gamma_h * rhs
        if len(b) == 1:
            return _solve_for(factor, M, root, b[0])[None]
        if self.weight_decay is None:
            u = _solve_for(factor, M, root, b[0])
            return jnp.stack([u, -u])
        # `half` is S, `least` is TE', `asked` is a, and `u` is TU^τ (see the top of the file).
        is_plus, half = slope[0] >= slope[1], gamma_h * drift
        least = jnp.where(is_plus, slope[1], -slope[0])
        asked = jnp.where(is_plus, b[0], -b[1])
        asked = asked + 2 * gamma_h * matmul(M, least * half)
        u = _solve_for(factor, M, root, asked)
        return jnp.stack(
            [jnp.where(is_plus, u, 2 * half + u), jnp.where(is_plus, 2 * half - u, -u)]
        )

    @property
    def matrix_size(self):
        return len(self.r)

    def error(self, state, error):
        # The larger of the error of w, in its unit, and `IN_X` times the error that it causes in x,
        # relative to x + max |r|/σ².
        w, (in_w, in_z) = state[0], error
        q, other = (self.scale**2 * self.link.q(v) for v in (w, w - in_w))
        largest = jnp.max(jnp.abs(self.r))
        in_x = IN_X * jnp.abs(q - other) / (jnp.where(largest > 0, largest, 1) + q)
        in_w = jnp.maximum(jnp.abs(in_w) / self.link.unit, in_x)
        return self.size() * in_w, jnp.abs(in_z)

    def read(self, s, state):
        w, z = state
        start = self.link.start
        moved = start - w
        if self.weight_decay is not None:
            decay = self.weight_decay if self.varies is None else self.varies
            moved = moved + total_decay(decay, s)
        # w(0) − w is less accurate for the sign with the larger w(0).
        dual = moved[0]
        if len(start) == 2:
            dual = jnp.where(start[0] <= start[1], dual, -moved[1])
        return signed(self.link.read(w)), self.zeta * z / self.scale**2, dual

    def is_consistent(self, state):
        return self.link.is_consistent(state[0])


def _solve_for(factor: Cholesky, M: Array, root: Array, asked: Array) -> Array:
    """`(I + γhME)⁻¹ asked`."""
    # `root` is R. R⁻¹V amplifies the rounding of V where R < 1, and a − MRV cancels where R is
    # large, since MRV is then close to a.
    v = factor.solve(root * asked)
    large = root > 1
    return jnp.where(large, v / jnp.where(large, root, 1), asked - matmul(M, root * v))
