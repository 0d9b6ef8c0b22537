"""`linear_map`: both modes of differentiation through a loop of unknown length."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
import pytest

from dlnjax._derivatives import linear_map

Y = jnp.array([0.7, 1.2])


@eqx.filter_custom_jvp
def _powers(y, n):
    return lax.fori_loop(0, n, lambda _, v: v * y, jnp.ones_like(y))


@_powers.def_jvp
def _(primals, tangents):
    y, n = primals
    loop = lambda y: lax.fori_loop(0, n, lambda _, v: v * y, jnp.ones_like(y))

    def apply(known, change):
        y, n = known
        loop = lambda y: lax.fori_loop(0, n, lambda _, v: v * y, jnp.ones_like(y))
        return jax.jvp(loop, (y,), (change,))[1]

    def transpose(known, cotangent):
        y, n = known
        body = lambda _, v: v * y
        return n * lax.fori_loop(0, n - 1, body, jnp.ones_like(y)) * cotangent

    return loop(y), linear_map(apply, transpose, (y, n), tangents[0])


def cube(y):
    """`Σ y³`, with a number of turns that is not known where it is traced."""
    return jnp.sum(_powers(y, jnp.asarray(3)))


GRADIENT = {
    "grad": jax.grad(cube),
    "jit": jax.jit(jax.grad(jax.jit(cube))),
    "jacfwd": jax.jacfwd(cube),
    "jacfwd of jit": jax.jacfwd(jax.jit(cube)),
    "vmap of grad": lambda y: jax.jit(jax.vmap(jax.grad(cube)))(jnp.stack([0 * y, y]))[1],
    "grad of vmap": jax.grad(lambda y: jax.vmap(cube)(jnp.stack([y, y])).sum() / 2),
    "grad of vmap over columns": jax.grad(
        lambda y: jax.vmap(cube, in_axes=1)(jnp.stack([y, y], axis=1)).sum() / 2
    ),
    "vmap of linearize": lambda y: jax.vmap(jax.linearize(cube, y)[1])(jnp.eye(2)),
    "vmap of transpose": lambda y: jax.vmap(jax.vjp(cube, y)[1])(jnp.ones(2))[0][1],
    "checkpoint": jax.jit(jax.grad(jax.checkpoint(cube))),
    "scan": jax.grad(lambda y: lax.map(cube, jnp.stack([y, 0 * y])).sum()),
}


@pytest.mark.parametrize("way", GRADIENT)
def test_first_derivatives(way):
    np.testing.assert_allclose(GRADIENT[way](Y), 3 * Y**2, rtol=1e-14)


HESSIAN = {
    "forward over reverse": jax.jacfwd(jax.grad(cube)),
    "forward over forward": jax.jacfwd(jax.jacfwd(cube)),
    "of jit": jax.hessian(jax.jit(cube)),
    "in a batch": lambda y: jax.vmap(jax.hessian(cube))(jnp.stack([y, y]))[1],
}


@pytest.mark.parametrize("way", HESSIAN)
def test_second_derivatives(way):
    np.testing.assert_allclose(HESSIAN[way](Y), np.diag(6 * Y), rtol=1e-13)
