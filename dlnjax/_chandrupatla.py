"""The step of Chandrupatla's method for the root of a scalar function in a bracket."""

import jax.numpy as jnp
from jaxtyping import Array


def next_share(a: Array, b: Array, c: Array, fa: Array, fb: Array, fc: Array) -> Array:
    """Where to evaluate next, as a share of the way from `a` to `b`.

    `[a, b]` is the bracket, `a` the last point and `c` the one before, with the values of the
    function there. It is the root of the inverse quadratic through the three points where that is
    monotone, and 1/2 elsewhere. Values that are not known are NaN, and give 1/2, as infinite ones
    do: no comparison holds.

    !!! cite "Reference"

        Chandrupatla, *A new hybrid quadratic/bisection algorithm for finding the zero of a
        nonlinear function without using derivatives*, Advances in Engineering Software 28 (1997).
    """
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    is_monotone = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    root = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
    return jnp.where(is_monotone, root, 0.5)
