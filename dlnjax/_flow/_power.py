"""The dual form of `Deep` at depth `D > 2`, where the link `φ_ε(w) = ε w^{−a}`, `a = D/(D−2)`, has
a wall at `w = 0`.

An active coordinate sits at `w = (ε/q)^{1/a}`, far below the rounding of `w(0) − Xᵀν`. So `w`
itself is the state, as interior-point methods keep their slacks: a step adds to it what a linear
system in units of `w` says, which loses no digit however small `w` is. With `E` the diagonal of
`−∂x/∂w`, which reaches `q/w`, and `R² = γhE`,

    (I + γhME)U = γh·b:    V = (I + RMR)⁻¹ R γh·b,    U = R⁻¹V = γh·b − MRV,

the first where `R` is large, the second where it is small. The matrix is `R(R⁻² + M)R`, a
diagonal scaling of a well-conditioned one, to which the Cholesky factorisation is indifferent.

Two roundings remain, of size `u` (the unit): `s`, in which a coordinate reaches the wall within
`δs ≈ (ε/q)^{1/a}/ρ`; and the sum of steps that takes `w` from `w(0)` to the wall, relative to
where it ends. The second only matters where more coordinates are active than `X` has rank, since
else `Xx = y` determines them. So `ε` acts on a coordinate no smaller than where, active, it has
`w = u^{2/3} w(0)` (4e-11 in float64). Below that, `x̄` keeps an error of this size, the distance
to its limit `ε → 0`, and the choice among dependent columns one of `u^{1/3}`.
"""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._linalg import matmul
from .._network import Deep, is_in_range, power_link
from .._problem import AbstractProblem, LeastSquares
from .._solution import RESULTS, first_failure
from ._dual import AbstractDualTerm, Response, column_scale, scaled_cholesky


class PowerTerm(AbstractDualTerm):
    """State `(w, σ²z)`, of shapes `(2, d)` and `(d,)`; the point is `w`."""

    M: Float[Array, "d d"]  # in units of σ²
    data: tuple[Float[Array, "n d"], Float[Array, " n"]] | None  # X/σ, σy
    r: Float[Array, " d"]
    scale: Float[Array, ""]
    start: Float[Array, "2 d"]  # w(0)
    exponent: Float[Array, ""]
    log_eps: Float[Array, ""]
    acting_log_eps: Float[Array, "2 d"]
    drift: Float[Array, "2 d"]  # 0

    def _q(self, w: Array, log_eps: Array) -> Array:
        return power_link(w, log_eps, self.exponent)

    def initial(self):
        return self.start, jnp.zeros_like(self.r)

    def validity(self):
        in_range = is_in_range(self._q(self.start, self.log_eps))
        return first_failure((jnp.all(jnp.isfinite(self.start)) & in_range, RESULTS.invalid_shape))

    def dual(self, s, state):
        return state[0]

    def x(self, s, g):
        plus, minus = self._q(g, self.acting_log_eps)
        return self.scale**2 * (plus - minus)

    def response(self, s, g):
        q = self.scale**2 * self._q(g, self.acting_log_eps)
        return Response(q[0] - q[1], self.exponent * q / g, self.drift[0])

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
        return *scaled_cholesky(self.M, jnp.sum(slope, axis=0), gamma_h), gamma_h

    def solve(self, factors, rhs):
        factor, root, gamma_h = factors
        b = gamma_h * rhs[1]
        v = factor.solve(root * b)
        large = root > 1
        u = jnp.where(large, v / jnp.where(large, root, 1), b - matmul(self.M, root * v))
        return jnp.stack([-u, u])

    def error(self, state, error):
        # An error of w by itself, and by what it makes of x, relative to max(x, |r|/σ²).
        w, (in_w, in_z) = state[0], error
        assert in_z is not None
        q, other = (self.scale**2 * self._q(v, self.acting_log_eps) for v in (w, w - in_w))
        size = jnp.max(jnp.abs(self.r))
        in_x = jnp.abs(q - other) / (jnp.where(size > 0, size, 1) + q)
        return jnp.maximum(jnp.abs(in_w), in_x), jnp.abs(in_z)

    def read(self, s, state):
        w, z = state
        # Away from the wall it is the x of ε itself: exact at s = 0, and tiny.
        away = w > jnp.finfo(w.dtype).eps ** (1 / 3) * self.start
        q = self._q(w, jnp.where(away, self.log_eps, self.acting_log_eps))
        moved = self.start - w
        dual = jnp.where(self.start[0] <= self.start[1], moved[0], -moved[1])  # the exacter one
        return q[0] - q[1], z / self.scale**2, dual


def power_term(network: Deep, problem: AbstractProblem, log_eps: Float[Array, ""]) -> PowerTerm:
    """The term of a network of depth `D > 2`."""
    exponent = network.exponent
    assert exponent is not None
    scale = column_scale(problem)
    start = network.initial_dual(log_eps)
    data = None
    if isinstance(problem, LeastSquares) and problem.X.shape[0] <= problem.X.shape[1]:
        data = problem.X / scale, problem.y * scale
    smallest = jnp.finfo(start.dtype).eps ** (2 / 3) * start
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
        drift=jnp.zeros_like(start),
    )
