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

from .._linalg import Cholesky, matmul
from .._network import AbstractDualNetwork, is_in_range
from .._problem import AbstractProblem, LeastSquares
from .._solution import RESULTS, first_failure
from ._term import AbstractFlowTerm, RealScalarLike

State = tuple[Float[Array, "..."], Float[Array, " d"] | None]


class Response(eqx.Module):
    """`x` as a function of the point `g` and of `s`, with its derivatives, in units of `σ²`."""

    x: Float[Array, " d"]
    slope: Float[Array, "..."]  # what `change` and `factorise` need of ∂x/∂g
    in_time: Float[Array, " d"]  # ∂x/∂s where the feedback is held


class AbstractDualTerm(AbstractFlowTerm):
    """The vector field, as a loop: the *feedback* `f`, that part of the state which acts on
    itself, determines a *point* `g`, linearly up to a constant and a drift in `s`; `g` has `x`;
    and `df/ds = velocity(x)`. The other part, the *quadrature* `∫x`, is `None` where the feedback
    already is that.

    The problem is scaled by `σ`, the largest column norm, so that tolerances are in units of
    the dual variable `w`, and so that `x` and its integral are `σ²x`, `σ²z`.
    """

    drift: AbstractVar[Float[Array, "..."]]

    @abc.abstractmethod
    def initial(self) -> State: ...

    @abc.abstractmethod
    def dual(self, s: RealScalarLike, state: State) -> Float[Array, "..."]:
        """The point `g` of a state."""

    @abc.abstractmethod
    def x(self, s: RealScalarLike, g: Float[Array, "..."]) -> Float[Array, " d"]:
        """`σ²x` of the network at the point `g`."""

    @abc.abstractmethod
    def response(self, s: RealScalarLike, g: Float[Array, "..."]) -> Response: ...

    @abc.abstractmethod
    def change(self, slope: Float[Array, "..."], image: Float[Array, "..."]) -> Float[Array, " d"]:
        """The first-order change of `σ²x` where the point moves by `image`."""

    @abc.abstractmethod
    def image(self, feedback: Float[Array, "..."]) -> Float[Array, "..."]:
        """What the feedback adds to the point; linear."""

    @abc.abstractmethod
    def velocity(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The velocity of the feedback where the network is at `σ²x`."""

    @abc.abstractmethod
    def push(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """What `σ²x` adds to that velocity; linear."""

    @abc.abstractmethod
    def factorise(self, slope: Float[Array, "..."], gamma_h) -> PyTree[Array]:
        """Factorise `I/(γh) − J`, with `J` the Jacobian of the feedback."""

    @abc.abstractmethod
    def solve(self, factors: PyTree[Array], rhs: Float[Array, "..."]) -> Float[Array, "..."]:
        """`(I/(γh) − J)⁻¹ rhs`."""

    @abc.abstractmethod
    def error(self, state: State, error: State) -> State:
        """The size of the error of a step that ends in `state`, in the units of the state."""

    def vf(self, t, y, args):
        x = self.x(t, self.dual(t, y))
        return self.velocity(x), None if y[1] is None else x


class AbstractNetworkTerm(AbstractDualTerm):
    """The point is the dual `g = Xᵀν = s·drift + image(f)`, and `df/ds = constant + push(x)`. The
    state is `(σν, σ²z)` or `(σ²z, None)`."""

    network: AbstractVar[AbstractDualNetwork]
    log_eps: AbstractVar[Float[Array, ""]]
    weight_decay: AbstractVar[Float[Array, ""]]
    scale: AbstractVar[Float[Array, ""]]
    constant: AbstractVar[Float[Array, " m"]]

    def _w(self, g: Array, s: RealScalarLike) -> Array:
        sides = (g,) if self.network.positive else (g, -g)
        w = self.network.initial_dual(self.log_eps) - jnp.stack(sides)
        return w + self.weight_decay * s

    def _combine(self, q: Array) -> Array:
        return q[0] if self.network.positive else q[0] - q[1]

    def dual(self, s, state):
        return s * self.drift + self.image(state[0])

    def x(self, s, g):
        return self.scale**2 * self._combine(self.network.link(self._w(g, s), self.log_eps))

    def response(self, s, g):
        w = self._w(g, s)
        link = lambda w: self.network.link(w, self.log_eps)
        q, derivative = jax.jvp(link, (w,), (jnp.ones_like(w),))
        slope = -jnp.sum(derivative, axis=0)
        in_time = self.weight_decay * self._combine(derivative) + slope * self.drift
        return Response(
            self.scale**2 * self._combine(q), self.scale**2 * slope, self.scale**2 * in_time
        )

    def change(self, slope, image):
        return slope * image

    def velocity(self, x):
        return self.constant + self.push(x)

    def error(self, state, error):
        return jax.tree.map(jnp.abs, error)

    def validity(self):
        # A degenerate shape is an infinite dual variable, which never moves.
        start = self.network.initial_dual(self.log_eps)
        in_range = is_in_range(self.network.link(start, self.log_eps))
        return first_failure((jnp.all(jnp.isfinite(start)) & in_range, RESULTS.invalid_shape))

    def read(self, s, state):
        g = self.dual(s, state)
        feedback, quadrature = state
        z = feedback if quadrature is None else quadrature
        return self.x(s, g) / self.scale**2, z / self.scale**2, g


class RowTerm(AbstractNetworkTerm):
    """State `(σν, σ²z)`, of shapes `(n,)` and `(d,)`."""

    X: Float[Array, "n d"]  # X/σ
    network: AbstractDualNetwork
    log_eps: Float[Array, ""]
    weight_decay: Float[Array, ""]
    scale: Float[Array, ""]
    drift: Float[Array, " d"]  # 0
    constant: Float[Array, " n"]  # σy

    def initial(self):
        return jnp.zeros_like(self.constant), jnp.zeros_like(self.drift)

    def image(self, feedback):
        return matmul(feedback, self.X)

    def push(self, x):
        return -matmul(self.X, x)

    def factorise(self, slope, gamma_h):
        matrix = matmul(self.X * slope[None, :], self.X.T)
        identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return Cholesky(identity / gamma_h + matrix)

    def solve(self, factors, rhs):
        return factors.solve(rhs)


class CoordinateTerm(AbstractNetworkTerm):
    """State `(σ²z, None)`, of shape `(d,)`; `M` in units of `σ²`."""

    M: Float[Array, "d d"]
    network: AbstractDualNetwork
    log_eps: Float[Array, ""]
    weight_decay: Float[Array, ""]
    scale: Float[Array, ""]
    drift: Float[Array, " d"]  # r
    constant: Float[Array, " d"]  # 0

    def initial(self):
        return jnp.zeros_like(self.drift), None

    def image(self, feedback):
        return -matmul(self.M, feedback)

    def push(self, x):
        return x

    def factorise(self, slope, gamma_h):
        # (I + γhEM)⁻¹ = I − γh E^½ (I + γh E^½ M E^½)⁻¹ E^½ M is stable under any scaling of E.
        return *scaled_cholesky(self.M, slope, gamma_h), gamma_h

    def solve(self, factors, rhs):
        factor, root, gamma_h = factors
        correction = root * factor.solve(root * matmul(self.M, rhs))
        return gamma_h * (rhs - correction)


def scaled_cholesky(
    M: Float[Array, "d d"], slope: Float[Array, " d"], gamma_h
) -> tuple[Cholesky, Float[Array, " d"]]:
    """Of `I + RMR`, with `R² = γhE` and `E` the slopes, which need not be of one size; and `R`."""
    # Slopes that underflow to 0 stay there; the derivative of √0 would be NaN.
    moves = slope > 0
    root = jnp.where(moves, jnp.sqrt(gamma_h * jnp.where(moves, slope, 1)), 0)
    matrix = root[:, None] * M * root[None, :]
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return Cholesky(identity + matrix), root


def column_scale(problem: AbstractProblem) -> Float[Array, ""]:
    """`σ`, the largest column norm."""
    largest = jnp.sqrt(jnp.max(problem.gram_diagonal()))
    return lax.stop_gradient(jnp.where(largest > 0, largest, 1))


def dual_term(
    network: AbstractDualNetwork, problem: AbstractProblem, log_eps: Float[Array, ""]
) -> AbstractNetworkTerm:
    """The term for the smaller of the two state spaces."""
    scale = column_scale(problem)
    if isinstance(problem, LeastSquares) and problem.X.shape[0] < problem.X.shape[1]:
        return RowTerm(
            X=problem.X / scale,
            network=network,
            log_eps=log_eps,
            weight_decay=problem.weight_decay,
            scale=scale,
            drift=jnp.zeros_like(problem.r),
            constant=problem.y * scale,
        )
    return CoordinateTerm(
        M=problem.gram() / scale**2,
        network=network,
        log_eps=log_eps,
        weight_decay=problem.weight_decay,
        scale=scale,
        drift=problem.r,
        constant=jnp.zeros_like(problem.r),
    )
