"""`QuadratureSolver`: the linear systems of an implicit step whose state has a quadrature.

The Jacobian of a stage of `dw/ds = f(w)`, `dz/ds = x(w)` is block triangular:

    [A  0     ] [δw]   [v]
    [B  diag c] [δz] = [u],    so δw = A⁻¹v,  δz = (u − B δw)/c.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._linalg import inverse, matmul


class _Factors(eqx.Module):
    """The blocks of the matrix, and `A⁻¹`."""

    A: Float[Array, "m m"]
    inverse: Float[Array, "m m"]
    B: Float[Array, "d m"]
    c: Float[Array, " d"]
    like: tuple[PyTree[Array], Array]  # a state of zeros, for its structure
    is_transposed: bool = eqx.field(static=True)


class QuadratureSolver(lx.AbstractLinearSolver[_Factors]):
    """Solves `[[A, 0], [B, diag c]] (w, z) = (v, u)` by block substitution.

    Only `A`, of the size of `w`, is factorised. It is inverted, so that solves are products, which
    batches run faster. Each solve has one step of iterative refinement: the relative residual of an
    inverse is `κ(A)` rounding units, for the condition number `κ(A)`. The chord method would
    correct that in its next iteration, but nothing corrects derivatives."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _Factors:
        zeros = lambda tree: jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), tree)
        w, z = zeros(operator.in_structure())
        flat, unravel = ravel_pytree(w)

        # The columns of A and B, by products with the unit vectors; c by a product with ones.
        def column(e):
            a, b = operator.mv((unravel(e), z))
            return ravel_pytree(a)[0], b

        A, B = jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
        _, c = operator.mv((w, jnp.ones_like(z)))
        # lineax differentiates the solve by products with the operator: the factors need no
        # derivatives. `inverse` has none, and must not see tangents.
        A = lax.stop_gradient(A)
        return _Factors(A, inverse(A), B, c, (w, z), False)

    def compute(self, state: _Factors, vector: Any, options: dict[str, Any]):
        v, u = vector
        v, _ = ravel_pytree(v)
        # In both branches the second line for `w` is the step of refinement.
        _, unravel = ravel_pytree(state.like[0])
        if state.is_transposed:
            z = u / state.c
            v = v - matmul(z, state.B)
            w = matmul(v, state.inverse)
            w = w + matmul(v - matmul(w, state.A), state.inverse)
        else:
            w = matmul(state.inverse, v)
            w = w + matmul(state.inverse, v - matmul(state.A, w))
            z = (u - matmul(state.B, w)) / state.c
        return (unravel(w), z), lx.RESULTS.successful, {}

    def transpose(self, state: _Factors, options: dict[str, Any]):
        other = not state.is_transposed
        return dataclasses.replace(state, is_transposed=other), options

    def conj(self, state: _Factors, options: dict[str, Any]):
        return state, options  # the matrix is real

    def assume_full_rank(self) -> bool:
        return True
