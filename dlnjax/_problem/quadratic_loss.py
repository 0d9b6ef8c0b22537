"""Whether the loss of a problem is the quadratic of its `r` and `M`.

A user's class may override `loss` and inherit `r` and `M`. Solvers of the quadratic would then
minimise another function, without an error. `agrees` compares `ℓ(x) − ℓ(0)` with
`½⟨x, Mx⟩ − ⟨r, x⟩`, and `∇ℓ(x)` with `Mx − r`, at six points: three on each of two random lines
through 0. All comparisons are in units of the columns.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._checks import is_concrete

# The points on each line, in units of (about) the quadratic's minimum on it. A Huber loss is a
# quadratic near 0: it differs only where residuals exceed its threshold. With 10 instead of 1000,
# one with a threshold of 10 times the data would pass. A threshold beyond 1000 times the data
# passes, but a flow from a start of the size of the data never gets there, since its loss
# decreases. Each factor of 10 takes a factor of 100 from the range of float32, as losses are
# squares. Both signs, since a loss may be a quadratic on one side only.
_SIZES = (1.0, -30.0, 1000.0)


def check_own_loss(problem: Any) -> None:
    """Raise a `TypeError` unless the loss is the quadratic, where values are known, or that of a
    `GeneralizedLinear`."""
    is_given = problem.glm() is not None or _is_quadratic_by_construction(problem)
    if is_given or not is_concrete(*jax.tree.leaves(problem)):
        return
    with jax.ensure_compile_time_eval():
        # NaN or overflow in the data would look like another loss. They have a result of their own.
        is_refused = bool(problem.is_in_range() & ~agrees(problem))
    if is_refused:
        raise TypeError(
            f"The loss of {type(problem).__name__} is not the quadratic `½⟨x, Mx⟩ − ⟨r, x⟩ + c` of "
            "its `matvec` and `r`, which is assumed here. If it is a convex loss of the rows, make "
            "it a `GeneralizedLinear`; or train it with `gradient_flow(..., "
            "formulation=dlnjax.WeightForm())`, or with `dlnjax.train` on all rows."
        )


def is_quadratic(problem: Any) -> Array:
    """Whether `loss` is the quadratic of `r` and `M`: `checks.py` for traced values."""
    if problem.glm() is not None:
        return jnp.asarray(False)
    return jnp.asarray(True) if _is_quadratic_by_construction(problem) else agrees(problem)


def _is_quadratic_by_construction(problem: Any) -> bool:
    # Read from the class itself, not from its bases: a subclass may override `loss`.
    return vars(type(problem)).get("quadratic_by_construction", False)


@eqx.filter_jit
def agrees(problem: Any) -> Bool[Array, ""]:
    """Whether `loss`, its derivative and `gradient` are those of the quadratic, at six points."""
    r, diagonal = problem.r, problem.gram_diagonal()
    # The tolerance is √eps, half of the digits, relative to the size of the terms: 1.5e-8 in
    # float64, 3.5e-4 in float32. With 100 times less, 29 units of rounding in float32, it would
    # refuse a user's sum over a thousand rows, whose rounding is about √n units; with 100 times
    # more it would accept a loss in float32 that differs by 3 %.
    d, small = r.shape[0], jnp.finfo(r.dtype).eps ** 0.5
    size = jnp.sqrt(jnp.abs(diagonal))
    size = jnp.where(size > 0, size, 1)
    # Two fixed random lines: another loss agrees with the quadratic on both by chance only.
    directions = np.random.default_rng(0).normal(size=(2, d))
    directions = jnp.asarray(directions, r.dtype) / size[None, :]

    def at(x):
        image = problem.matvec(x)
        loss, slope = jax.value_and_grad(problem.loss)(x)
        rise = loss - problem.loss(jnp.zeros_like(x))
        terms = 0.5 * jnp.sum(x * image), jnp.sum(r * x)
        energy = jnp.abs(terms[0]) + jnp.sum(jnp.abs(r * x)) + jnp.abs(loss)
        force = size * (jnp.sum(size * jnp.abs(x)) + jnp.max(jnp.abs(r) / size))
        is_loss = jnp.abs(rise - (terms[0] - terms[1])) <= small * energy
        off = jnp.stack([slope, problem.gradient(x)]) - (image - r)[None]
        return is_loss & jnp.all(jnp.abs(off) <= small * force[None])

    def along(direction):
        curvature = jnp.sum(direction * problem.matvec(direction))
        slope = jnp.sum(jnp.abs(direction * r))
        # The minimum on the line is ⟨r, v⟩/⟨v, Mv⟩; absolute values, so that it is not 0 by chance.
        # If M or r vanishes on the line, use the length 1 in units of the columns.
        has_minimum = (curvature > 0) & (slope > 0)
        length = jnp.where(has_minimum, slope / jnp.where(has_minimum, curvature, 1), 1)
        return jnp.stack([at(size * length * direction) for size in _SIZES]).all()

    return jnp.stack([along(direction) for direction in directions]).all()
