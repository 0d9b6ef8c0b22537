"""The linear systems of an implicit step where part of the state is a quadrature."""

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
    A: Float[Array, "m m"]
    inverse: Float[Array, "m m"]
    B: Float[Array, "d m"]
    c: Float[Array, " d"]
    like: tuple[PyTree[Array], Array]  # the structure of a state
    is_transposed: bool = eqx.field(static=True)


class QuadratureSolver(lx.AbstractLinearSolver[_Factors]):
    """Solves `[[A, 0], [B, diag c]] (w, z) = (v, u)`, the Newton system of a state `(w, z)` whose
    `z` is a quadrature: one factorisation of the size of `w` alone. It is inverted, so that solves
    are products, and each is refined once: the chord method would correct itself, but nothing
    corrects derivatives, for which the residual of an inverse would be `κ(A)` units of rounding."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> _Factors:
        zeros = lambda tree: jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), tree)
        w, z = zeros(operator.in_structure())
        flat, unravel = ravel_pytree(w)

        def column(e):
            a, b = operator.mv((unravel(e), z))
            return ravel_pytree(a)[0], b

        A, B = jax.vmap(column, out_axes=1)(jnp.eye(flat.size, dtype=flat.dtype))
        _, c = operator.mv((w, jnp.ones_like(z)))
        # lineax differentiates the operator, and holds all of this. But `inverse` is called before
        # that, and has no derivatives.
        A = lax.stop_gradient(A)
        return _Factors(A, inverse(A), B, c, (w, z), False)

    def compute(self, state: _Factors, vector: Any, options: dict[str, Any]):
        v, u = vector
        v, _ = ravel_pytree(v)
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
        return state, options  # real

    def assume_full_rank(self) -> bool:
        return True
