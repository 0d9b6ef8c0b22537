"""How far the end point moves if what determines it changes in the last digit: what no residual of
Newton's method shows.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ..networks.signs import sides, signed
from .graded_solve import graded_step
from .newton import Newton, State


def sensitivity(newton: Newton, state: State) -> Array:
    """The relative change of `x` if the dual changes by one rounding, or by the rounding it has.

    It is large only where active columns are dependent and their `w` has fallen below the rounding
    of `w(0)`. At least the rounding of the terms that cancel in `x`, and the change of target if
    the first one was not reached."""
    q, x = newton.position(state)
    h = newton.growth.dual_per_log_growth(state.delta)
    each = newton.each_dual(state)
    off = (sides(newton.dual(state), each) - each) / h
    digit = jnp.finfo(h.dtype).eps * jnp.abs(each) / h
    # A negligible q may be far from its dual: what counts is how much it would grow if it followed
    # the dual, and 64 of its roundings, as many as a sum of products may have. (At D > 2 these may
    # take w to 0, where any q is possible. e^80 is in the range of float32, and beyond what
    # counts.)
    growth = newton.log_growth(off + state.mismatch / h + 64 * digit)
    grown = jnp.exp(jnp.minimum(state.log_q + growth, 80))
    missing = jnp.minimum(jnp.abs(off) + digit, jnp.abs(grown - q))
    folds = jnp.minimum(1, jnp.maximum(digit, jnp.abs(off)))
    # Perturb each entry by its own amount. Fixed signs, so that results repeat: multiples of
    # the golden angle, 2.4, whose cosines follow no pattern that a design could be blind to.
    signs = jnp.cos(2.4 * jnp.arange(h.size, dtype=h.dtype)).reshape(h.shape)
    stretch = jnp.where(newton.is_allowed, q + jnp.minimum(1, missing), 0) / h
    # Where `x` is unique nothing moves, provided that the solve does not mix small entries with
    # the rounding of large ones: a graded one.
    zero = jnp.zeros_like(state.nu)
    _, dual = graded_step(newton.solutions.V, stretch, zero, signs * h * folds)
    moved = jnp.max(jnp.abs(signed(stretch * dual))) / newton.scale(x)
    missed = jnp.max(jnp.abs(state.target - newton.solutions.target))
    return jnp.maximum(moved, jnp.maximum(newton.cancelled(state), missed))


def sensitivity_to_data(newton: Newton, state: State) -> Array:
    """The relative change of `x` if the data change by one rounding: large where allowed columns
    are nearly dependent."""
    q, x = newton.position(state)
    h = newton.growth.dual_per_log_growth(state.delta)
    stretch = jnp.where(newton.is_allowed, q, 0) / h
    off = newton.solutions.rounding() * jnp.sqrt(jnp.sum(x**2))
    # The signs of `sensitivity`.
    off = off * jnp.cos(2.4 * jnp.arange(len(off), dtype=off.dtype))
    _, dual = graded_step(newton.solutions.V, stretch, off, jnp.zeros_like(h))
    return jnp.max(jnp.abs(signed(stretch * dual))) / newton.scale(x)
