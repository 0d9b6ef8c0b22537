"""Derivatives of the end point by the implicit function theorem, in both modes and of every order.

Newton's method (`newton.py`) finds, without derivatives, the growth `δ = log q/q(0)`, an `η` and
the dual variable `g = Xᵀν` that solve

    Mx = r,  x = Σ ±q(0) e^δ,        ±g = h (1 − e^{−pδ})/p,        g = Mη.

`_solution` returns them as constants with a rule for their tangents: it differentiates the three
residuals at fixed `(δ, η, g)` and solves the linearised equations for `(dδ, dη, dg)`. The residuals
are functions of `growth` and `problem`, and the linear solve is a `custom_linear_solve`: both can
be differentiated again.
"""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .._derivatives import held, vanishing
from .._linalg import matmul
from .._problem import AbstractProblem
from .._problem.solution_space import SolutionSpace
from ..networks import Growth
from ..networks.signs import sides, signed
from .graded_solve import graded_step
from .newton import Newton, State, position


class _Unknowns(eqx.Module):
    """What the equations are solved for, and its tangent."""

    delta: Float[Array, "signs d"]
    eta: Float[Array, " d"]
    dual: Float[Array, " d"]  # Mη


class _System(eqx.Module):
    """The equations in the units of `Newton`, and their solution, as constants. The data enter
    through the arguments `growth` and `problem` of the methods alone."""

    solutions: SolutionSpace
    is_allowed: Bool[Array, "signs d"]
    size: Float[Array, ""]
    start: Float[Array, "signs d"]  # log q(0)
    log_q: Float[Array, "signs d"]
    solution: _Unknowns

    def __init__(self, newton: Newton, state: State):
        self.solutions = newton.solutions
        self.is_allowed = newton.is_allowed
        self.size = jnp.exp(newton.log_size)
        self.start = newton.start(state)
        self.log_q = state.log_q
        dual = _dual(newton, state)
        self.solution = _Unknowns(state.delta, self.eta(state.nu), dual)

    def position(self, growth: Growth, delta: Array) -> tuple[Array, Array]:
        """`q` and `x`: the values that Newton's method found, with derivatives in `growth` and
        `delta`."""
        # `start` and `log_q` are constants, which have digits that `log q(0) + δ` has lost.
        moved = vanishing(growth.log_initial)
        return position(self.start + moved, delta, self.log_q + moved + vanishing(delta))

    def eta(self, nu: Array) -> Array:
        """The `η` of least norm with `Mη = Vᵀnu`."""
        return matmul(self.solutions.inverse * nu, self.solutions.V)

    def matvec(self, problem: AbstractProblem, x: Array) -> Array:
        """`Mx` in units in which columns have norms between 1 and 2."""
        units = self.solutions.units
        return problem.matvec(x / units) / units

    def image(self, problem: AbstractProblem, eta: Array) -> Array:
        """`Mη` on the coordinates that may move."""
        # The others are held at 0 and have no equation: 0 = 0 keeps the system square.
        return jnp.where(jnp.any(self.is_allowed, axis=0), self.matvec(problem, eta), 0)

    def dual_per_log_growth(self, growth: Growth, delta: Array) -> Array:
        return growth.dual_per_log_growth(delta) / self.solutions.units[None, :]


@eqx.filter_custom_jvp
def _solution(system: _System, growth: Growth, problem: AbstractProblem) -> _Unknowns:
    return system.solution


@_solution.def_jvp
def _(primals, tangents):
    system, growth, problem = primals
    unknowns = _solution(*primals)

    def residuals(growth, problem):
        _, x = system.position(growth, unknowns.delta)
        risen = growth.unit * growth.dual(unknowns.delta) / system.solutions.units[None, :]
        r = problem.r / system.solutions.units
        off = (r - system.matvec(problem, x * system.size)) / system.size
        return off, -risen, system.image(problem, unknowns.eta)

    values, dots = eqx.filter_jvp(residuals, primals[1:], tangents[1:])
    # The tangent of a residual is None where it depends on no input that moves: it is 0.
    dots = tuple(jnp.zeros_like(v) if t is None else t for v, t in zip(values, dots, strict=True))
    q, _ = system.position(growth, unknowns.delta)
    dual_per_log_growth = system.dual_per_log_growth(growth, unknowns.delta)
    eta, u, dual = _linear_solve(system, problem, q / dual_per_log_growth, dots)
    delta = jnp.where(system.is_allowed, u / dual_per_log_growth, 0)
    return unknowns, _Unknowns(delta, eta, dual)


def _linear_solve(
    system: _System, problem: AbstractProblem, stretch: Array, asked: tuple[Array, ...]
) -> tuple[Array, Array, Array]:
    """`η`, `u` and `g` with `M Σ ±(stretch u) = asked₀`, `u ∓ g = asked₁`, `g − Mη = asked₂`.

    `u = (h e^{−pδ}) dδ` is the change of the dual that each `q` goes along with, and `stretch` is
    `dq/du`. Eliminating `u` and `g = Vᵀν + asked₂` leaves `V S Vᵀ ν`, which `graded_step` solves.
    """
    V, project = system.solutions.V, system.solutions.project

    def equations(unknowns):
        eta, u, g = unknowns
        moved = system.matvec(problem, signed(stretch * u))
        return moved, u - sides(g, u), g - system.image(problem, eta)

    def solve(_, rhs):
        off, mismatch, image = rhs
        mismatch = mismatch + sides(image, mismatch)
        nu, u = graded_step(V, stretch, project(off), mismatch)
        return system.eta(nu), u, matmul(nu, V) + image

    def transpose_solve(_, rhs):
        # The transposed system `(a, b, c)` has the same symmetric matrix. With `Ma = Vᵀν` it reads
        # `b = of_u − S(±Vᵀν)`: as the mismatch `−of_u/S` the right-hand side keeps all digits,
        # however small S is.
        of_eta, of_u, of_g = rhs
        moves = stretch > 0
        mismatch = jnp.where(moves, -of_u / jnp.where(moves, stretch, 1), 0)
        nu, u = graded_step(V, stretch, project(of_eta) + matmul(V, of_g), mismatch)
        still = jnp.where(moves, -stretch * u, of_u)
        return system.eta(nu), still, of_g + signed(still)

    # Pass one vector: JAX cannot transpose a `custom_linear_solve` of which a part of the
    # right-hand side is constant.
    rhs, parts = ravel_pytree(asked)
    flat = lambda fn: lambda *args: ravel_pytree(fn(*args[:-1], parts(args[-1])))[0]
    found = lax.custom_linear_solve(flat(equations), rhs, flat(solve), flat(transpose_solve))
    return parts(found)


def _dual(newton: Newton, state: State) -> Array:
    """`Xᵀν` in the range of `Xᵀ`, but where its rounding would move `x` visibly, as each `q` has
    it."""
    # A column that nearly depends on those of the basis gets their rounding amplified: beside a
    # pair that differs by 1e-13 by 1e13, which made entries of 1.3 where `|Xᵀν| ≤ 1`. What each `q`
    # has is what the residual has checked, and as close to the range as that rounding allows. The
    # tolerance is the default one of the residual.
    q, x = newton.position(state)
    each, dual = newton.each_dual(state), newton.dual(state)
    mismatch = sides(dual, each) - (each - state.mismatch)
    off = jnp.max(jnp.abs(newton.change(state, q, mismatch)), axis=0)
    is_visible = off > 512 * jnp.finfo(x.dtype).eps * newton.scale(x)
    return jnp.where(is_visible, newton.own_dual(state)[0], dual)


def differentiable_end(
    newton: Newton, state: State, growth: Growth, problem: AbstractProblem
) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """`x` and `Xᵀν`, in the user's units, as functions of `growth` and `problem`."""
    system = held(_System(newton, state))
    unknowns = _solution(system, growth, problem)
    units = system.solutions.units
    x = system.position(growth, unknowns.delta)[1] * system.size / units
    return x, unknowns.dual * units
