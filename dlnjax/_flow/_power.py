"""The dual form of `Deep` at depth `D > 2`, where the link `φ_ε(w) = ε w^{−a}`, `a = D/(D−2)`, has
a wall at `w = 0`.

An active coordinate sits at `w = (ε/q)^{1/a}`, far below the rounding of `w(0) − Xᵀν`. So `w`
itself is the state, as interior-point methods keep their slacks: a step adds to it what a linear
system in units of `w` says, which loses no digit however small `w` is. With `E` the diagonal of
`−∂x/∂w`, which reaches `q/w`, and `R² = γhE`,

    (I + γhME)U = γh·b:    V = (I + RMR)⁻¹ R γh·b,    U = R⁻¹V = γh·b − MRV,

the first where `R` is large, the second where it is small. The matrix is `R(R⁻² + M)R`, a
diagonal scaling of a well-conditioned one, to which the Cholesky factorisation is indifferent.

What is left is time: a coordinate that reaches the wall does so within `δs ≈ (ε/q)^{1/a}/ρ`, and
steps must be able to land there, although `s` is rounded. So `ε` acts no smaller than where
active coordinates have `w = RESOLUTION·u·w(0)`, with `u` the rounding unit. The two
flows differ by that much in `w` and `z`: for each, `x̄ = x̄⁰ + O((ε/q)^{1/a})`.
"""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import Cholesky, matmul
from .._network import Deep, power_link
from .._problem import AbstractProblem, LeastSquares
from ._dual import AbstractDualTerm, Response, column_scale

RESOLUTION = 1e4


class PowerTerm(AbstractDualTerm):
    """State `(w, σ²z)`, of shapes `(2, d)` and `(d,)`; the point is `w`."""

    M: Float[Array, "d d"]  # in units of σ²
    data: tuple[Float[Array, "n d"], Float[Array, " n"]] | None  # X/σ, σy
    r: Float[Array, " d"]
    scale: Float[Array, ""]
    start: Float[Array, "2 d"]  # w(0)
    exponent: Float[Array, ""]
    log_eps: Float[Array, ""]
    acting_log_eps: Float[Array, ""]
    drift: Float[Array, " d"]  # 0

    def _q(self, w: Array, log_eps: Array) -> Array:
        return power_link(w, log_eps, self.exponent)

    def initial(self):
        return self.start, jnp.zeros_like(self.r)

    def is_valid(self):
        return jnp.all(jnp.isfinite(self.start))

    def dual(self, s, state):
        return state[0]

    def x(self, s, g):
        plus, minus = self._q(g, self.acting_log_eps)
        return self.scale**2 * (plus - minus)

    def response(self, s, g):
        q = self.scale**2 * self._q(g, self.acting_log_eps)
        return Response(q[0] - q[1], self.exponent * q / g, self.drift)

    def change(self, slope, image):
        return slope[1] * image[1] - slope[0] * image[0]

    def image(self, feedback):
        return feedback

    def velocity(self, x):
        if self.data is None:
            force = self.r - matmul(self.M, x)
        else:
            # Through the residual: its rounding is a change of y, which keeps the invariants.
            X, y = self.data
            force = matmul(y - matmul(X, x), X)
        return jnp.stack([-force, force])

    def push(self, x):
        moved = matmul(self.M, x)
        return jnp.stack([moved, -moved])

    def factorise(self, slope, gamma_h):
        square = gamma_h * jnp.sum(slope, axis=0)
        # What underflows stays there; the derivative of √0 would be NaN.
        moves = square > 0
        root = jnp.where(moves, jnp.sqrt(jnp.where(moves, square, 1)), 0)
        matrix = root[:, None] * self.M * root[None, :]
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return Cholesky(identity + matrix), root, gamma_h

    def solve(self, factors, rhs):
        factor, root, gamma_h = factors
        b = gamma_h * rhs[1]
        v = factor.solve(root * b)
        large = root > 1
        u = jnp.where(large, v / jnp.where(large, root, 1), b - matmul(self.M, root * v))
        return jnp.stack([-u, u])

    def error(self, state, error):
        # An error of w by itself, and by what it makes of x, relative to max(x, |r|/σ²).
        w, in_w = state[0], error[0]
        q, other = (self.scale**2 * self._q(v, self.acting_log_eps) for v in (w, w - in_w))
        size = jnp.max(jnp.abs(self.r))
        in_x = jnp.abs(q - other) / (jnp.where(size > 0, size, 1) + q)
        return jnp.maximum(jnp.abs(in_w), in_x), jnp.abs(error[1])

    def read(self, s, state):
        w, z = state
        # Far from the wall, where x is tiny, it is that of ε itself.
        smallest = jnp.finfo(w.dtype).eps ** 0.5
        away = w > smallest * self.start
        q = self._q(w, jnp.where(away, self.log_eps, self.acting_log_eps))
        moved = self.start - w
        return q[0] - q[1], z / self.scale**2, (moved[0] - moved[1]) / 2


def power_term(network: Deep, problem: AbstractProblem, log_eps: Float[Array, ""]) -> PowerTerm:
    """The term of a network of depth `D > 2`."""
    exponent = network.exponent
    assert exponent is not None
    scale = column_scale(problem)
    start = network.initial_dual(log_eps)
    data = None
    if isinstance(problem, LeastSquares) and problem.X.shape[0] <= problem.X.shape[1]:
        data = problem.X / scale, problem.y * scale
    smallest = RESOLUTION * jnp.finfo(start.dtype).eps * jnp.max(start)
    largest_x = jnp.max(jnp.abs(problem.r)) / scale**2
    least = lax.stop_gradient(exponent * jnp.log(smallest) + jnp.log(largest_x))
    return PowerTerm(
        M=problem.gram() / scale**2,
        data=data,
        r=problem.r,
        scale=scale,
        start=start,
        exponent=exponent,
        log_eps=log_eps,
        acting_log_eps=jnp.maximum(log_eps, least),
        drift=jnp.zeros_like(problem.r),
    )
