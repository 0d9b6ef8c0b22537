"""Whether the loss of a problem is the quadratic that its `r` and `M` say."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

# Where a loss is looked at, along each direction, in units of the quadratic's minimum there. A loss
# that is a quadratic near 0 only (Huber's) shows it further out.
_SIZES = (1.0, -30.0, 1000.0)


@eqx.filter_jit
def agrees(problem: Any) -> Bool[Array, ""]:
    """Whether `loss`, its derivative and `gradient` are those of the quadratic, at some points."""
    r, diagonal = problem.r, problem.gram_diagonal()
    d, small = r.shape[0], jnp.finfo(r.dtype).eps ** 0.5
    size = jnp.sqrt(jnp.abs(diagonal))
    size = jnp.where(size > 0, size, 1)
    # Nobody's loss is a quadratic along these two, and not elsewhere.
    directions = np.random.default_rng(0).normal(size=(2, d))
    directions = jnp.asarray(directions, r.dtype) / size[None, :]

    def at(x):
        image = problem.matvec(x)
        loss, slope = jax.value_and_grad(problem.loss)(x)
        rise = loss - problem.loss(jnp.zeros_like(x))
        terms = 0.5 * jnp.sum(x * image), jnp.sum(r * x)
        # Half of the digits: a loss of one's own may round its sums as it likes.
        energy = jnp.abs(terms[0]) + jnp.sum(jnp.abs(r * x)) + jnp.abs(loss)
        force = size * (jnp.sum(size * jnp.abs(x)) + jnp.max(jnp.abs(r) / size))
        is_loss = jnp.abs(rise - (terms[0] - terms[1])) <= small * energy
        off = jnp.stack([slope, problem.gradient(x)]) - (image - r)[None]
        return is_loss & jnp.all(jnp.abs(off) <= small * force[None])

    def along(direction):
        curvature = jnp.sum(direction * problem.matvec(direction))
        slope = jnp.sum(jnp.abs(direction * r))
        # Where there is no minimum along it, x is of size 1 in units of the columns.
        has_minimum = (curvature > 0) & (slope > 0)
        length = jnp.where(has_minimum, slope / jnp.where(has_minimum, curvature, 1), 1)
        return jnp.stack([at(size * length * direction) for size in _SIZES]).all()

    return jnp.stack([along(direction) for direction in directions]).all()
