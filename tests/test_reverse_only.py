"""Forward mode where only reverse mode is: an error that names the fix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln
from dlnjax._derivatives import reverse_only

Y = jnp.array([1.0, 2.0])


def _square(y):
    y, _ = reverse_only((y, "no array"), "the fix")
    return jnp.sum(y**2)


def _jvp(fn):
    return lambda y: jax.jvp(fn, (y,), (y,))[1]


FORWARD = {
    "jvp": _jvp,
    "jit of jvp": lambda fn: jax.jit(_jvp(fn)),
    "vmap of jvp": lambda fn: lambda y: jax.vmap(_jvp(fn))(jnp.stack([y, y])),
    "jacfwd": jax.jacfwd,
    "jacfwd of jit": lambda fn: jax.jacfwd(jax.jit(fn)),
    "hessian": jax.hessian,
    "jvp of a batch": lambda fn: _jvp(jax.vmap(lambda t: fn(t * Y))),
    "linearize": lambda fn: lambda y: jax.linearize(fn, y)[1](y),
}
REVERSE = {
    "grad": jax.grad,
    "jit": lambda fn: jax.jit(jax.grad(jax.jit(fn))),
    "vmap": lambda fn: lambda y: jax.jit(jax.vmap(jax.grad(fn)))(jnp.stack([y, y]))[0],
    "of a batch": lambda fn: jax.grad(lambda y: jax.vmap(fn)(jnp.stack([y, 0 * y])).sum()),
    "of a batch, jit": lambda fn: jax.jit(
        jax.grad(lambda y: jax.vmap(jax.jit(fn), in_axes=1)(jnp.stack([y, 0 * y], axis=1)).sum())
    ),
    "checkpoint": lambda fn: jax.jit(jax.grad(jax.checkpoint(fn))),
    "scan": lambda fn: jax.grad(lambda y: jax.lax.map(fn, jnp.stack([y, 0 * y])).sum()),
}


@pytest.mark.parametrize("way", FORWARD)
def test_forward_mode_says_what_to_do(way):
    with pytest.raises(TypeError, match="the fix"):
        FORWARD[way](_square)(Y)


@pytest.mark.parametrize("way", REVERSE)
def test_reverse_mode_does_not_see_it(way):
    np.testing.assert_array_equal(REVERSE[way](_square)(Y), 2 * Y)


@pytest.mark.parametrize("way", ["jacfwd of jit", "hessian"])
@pytest.mark.parametrize("form", [dln.DualForm(), dln.WeightForm()])
def test_flows_name_the_adjoint(way, form):
    def total(y):
        network, problem = dln.UV(jnp.ones(2), jnp.zeros(2)), dln.LeastSquares(np.eye(2), y)
        flow = dln.gradient_flow(network, problem, Y, eps=0.1, formulation=form, throw=False)
        return jnp.sum(flow.x)

    with pytest.raises(TypeError, match=r"adjoint=diffrax.ForwardMode\(\)"):
        FORWARD[way](total)(Y)
