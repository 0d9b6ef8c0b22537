"""The dual form of the flow (DESIGN §2), as a diffrax term that knows its own Jacobian.

With `w = w(0) ∓ Xᵀν + λs` and `x = Σ ± φ_ε(w)`, the flow is `dν/ds = y − Xx`, `dz/ds = x`. Two
state spaces, each with one Cholesky factorisation a step:

- rows (`n < d`): the state is `(ν, z)`; only `ν` feeds back.
- coordinates (`d ≤ n`, and every `Quadratic`): the state is `z`, and `Xᵀν = s r − Mz`.
"""

import abc

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Float, PyTree

from .._linalg import matmul
from .._network import AbstractDualNetwork
from .._problem import AbstractProblem, LeastSquares
from ._term import AbstractFlowTerm, RealScalarLike


class Response(eqx.Module):
    """`x` as a function of the dual `g = Xᵀν` and of `s`, with its derivatives."""

    x: Float[Array, " d"]
    slope: Float[Array, " d"]  # ∂x/∂g ≥ 0, the diagonal E
    time_derivative: Float[Array, " d"]  # ∂x/∂s at fixed g, 0 without weight decay


class AbstractDualTerm(AbstractFlowTerm):
    """The vector field, and what a Rosenbrock method needs besides: its derivative in time and
    solves with `I/(γh) − J`. The problem is scaled by `σ`, the largest column norm, so that
    tolerances are in units of the dual variable `w`: the state is `(σν, σ²z)`."""

    network: AbstractVar[AbstractDualNetwork]
    log_eps: AbstractVar[Float[Array, ""]]
    weight_decay: AbstractVar[Float[Array, ""]]
    scale: AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def dual(self, s: RealScalarLike, state: PyTree[Array]) -> Float[Array, " d"]:
        """`g = Xᵀν`."""

    @abc.abstractmethod
    def linearise(self, s, state) -> tuple[PyTree[Array], PyTree[Array]]:
        """The derivative of the field in time, and what `solve` needs of the Jacobian."""

    @abc.abstractmethod
    def factorise(self, jacobian: PyTree[Array], gamma_h) -> PyTree[Array]:
        """Factorise `I/(γh) − J`."""

    @abc.abstractmethod
    def solve(self, factors: PyTree[Array], rhs: PyTree[Array]) -> PyTree[Array]:
        """`(I/(γh) − J)⁻¹ rhs`."""

    @abc.abstractmethod
    def z(self, state: PyTree[Array]) -> Float[Array, " d"]:
        """`z = ∫x`, in the user's units."""

    def _w(self, g: Array, s: RealScalarLike) -> Array:
        sides = (g,) if self.network.positive else (g, -g)
        w = self.network.initial_dual(self.log_eps) - jnp.stack(sides)
        return w + self.weight_decay * s

    def _combine(self, q: Array) -> Array:
        return q[0] if self.network.positive else q[0] - q[1]

    def x(self, s: RealScalarLike, g: Float[Array, " d"]) -> Float[Array, " d"]:
        """The network's `x` where its dual is `g`, in the user's units."""
        return self._combine(self.network.link(self._w(g, s), self.log_eps))

    def response(self, s: RealScalarLike, g: Float[Array, " d"]) -> Response:
        w = self._w(g, s)
        link = lambda w: self.network.link(w, self.log_eps)
        q, derivative = jax.jvp(link, (w,), (jnp.ones_like(w),))
        return Response(
            self._combine(q),
            -jnp.sum(derivative, axis=0),
            self.weight_decay * self._combine(derivative),
        )

    def is_valid(self):
        # A degenerate shape is an infinite dual variable, which never moves.
        return jnp.all(jnp.isfinite(self.network.initial_dual(self.log_eps)))

    def read(self, s, state):
        g = self.dual(s, state)
        return self.x(s, g), self.z(state), g


class RowTerm(AbstractDualTerm):
    """State `(σν, σ²z)`, of shapes `(n,)` and `(d,)`."""

    X: Float[Array, "n d"]  # X/σ
    y: Float[Array, " n"]  # σy
    network: AbstractDualNetwork
    log_eps: Float[Array, ""]
    weight_decay: Float[Array, ""]
    scale: Float[Array, ""]

    def initial(self):
        return jnp.zeros_like(self.y), jnp.zeros(self.X.shape[1], self.y.dtype)

    def dual(self, s, state):
        nu, _ = state
        return matmul(nu, self.X)

    def vf(self, t, y, args):
        x = self.scale**2 * self.x(t, self.dual(t, y))
        return self.y - matmul(self.X, x), x

    def linearise(self, s, state):
        response = self.response(s, self.dual(s, state))
        dx = self.scale**2 * response.time_derivative
        return (-matmul(self.X, dx), dx), self.scale**2 * response.slope

    def factorise(self, jacobian, gamma_h):
        slope = jacobian
        matrix = matmul(self.X * slope[None, :], self.X.T)
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return cholesky(identity / gamma_h + matrix), slope, gamma_h

    def solve(self, factors, rhs):
        factor, slope, gamma_h = factors
        nu = cholesky_solve(factor, rhs[0])
        return nu, gamma_h * (rhs[1] + slope * matmul(nu, self.X))

    def z(self, state):
        return state[1] / self.scale**2


class CoordinateTerm(AbstractDualTerm):
    """State `σ²z`, of shape `(d,)`; `M` in units of `σ²`."""

    M: Float[Array, "d d"]
    r: Float[Array, " d"]
    network: AbstractDualNetwork
    log_eps: Float[Array, ""]
    weight_decay: Float[Array, ""]
    scale: Float[Array, ""]

    def initial(self):
        return jnp.zeros_like(self.r)

    def dual(self, s, state):
        return s * self.r - matmul(self.M, state)

    def vf(self, t, y, args):
        return self.scale**2 * self.x(t, self.dual(t, y))

    def linearise(self, s, state):
        # Along the state space time enters through g = s r − Mz as well.
        response = self.response(s, self.dual(s, state))
        dx = response.time_derivative + response.slope * self.r
        return self.scale**2 * dx, self.scale**2 * response.slope

    def factorise(self, jacobian, gamma_h):
        # (I + γhEM)⁻¹ = I − γh E^½ (I + γh E^½ M E^½)⁻¹ E^½ M is stable under any scaling of E.
        # Slopes that underflow to 0 stay there; the derivative of √0 would be NaN.
        moves = jacobian > 0
        root = jnp.where(moves, jnp.sqrt(gamma_h * jnp.where(moves, jacobian, 1)), 0)
        matrix = root[:, None] * self.M * root[None, :]
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return cholesky(identity + matrix), root, gamma_h

    def solve(self, factors, rhs):
        factor, root, gamma_h = factors
        correction = root * cholesky_solve(factor, root * matmul(self.M, rhs))
        return gamma_h * (rhs - correction)

    def z(self, state):
        return state / self.scale**2


def cholesky(matrix: Float[Array, "m m"]) -> Float[Array, "m m"]:
    return lax.linalg.cholesky(matrix, symmetrize_input=False)


def cholesky_solve(factor: Float[Array, "m m"], rhs: Float[Array, " m"]) -> Float[Array, " m"]:
    half = lax.linalg.triangular_solve(factor, rhs[:, None], left_side=True, lower=True)
    full = lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)
    return full[:, 0]


def dual_term(
    network: AbstractDualNetwork, problem: AbstractProblem, log_eps: Float[Array, ""]
) -> AbstractDualTerm:
    """The term for the smaller of the two state spaces."""
    largest = jnp.sqrt(jnp.max(problem.gram_diagonal()))
    scale = lax.stop_gradient(jnp.where(largest > 0, largest, 1))
    if isinstance(problem, LeastSquares) and problem.X.shape[0] < problem.X.shape[1]:
        return RowTerm(
            X=problem.X / scale,
            y=problem.y * scale,
            network=network,
            log_eps=log_eps,
            weight_decay=problem.weight_decay,
            scale=scale,
        )
    return CoordinateTerm(
        M=problem.gram() / scale**2,
        r=problem.r,
        network=network,
        log_eps=log_eps,
        weight_decay=problem.weight_decay,
        scale=scale,
    )
