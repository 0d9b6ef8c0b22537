"""JAX's loops and branches, which also work inside `jax.shard_map`.

`jax.shard_map` tracks over which axes of the mesh each array varies, and requires that the carry of
a loop has the same varying axes before and after a step, and that both branches of a condition
agree. Constants vary over no axis, so that an initial carry of zeros fails. The functions here cast
carry and outputs to the union of all axes involved. Outside `shard_map` they are JAX's own.

`next_share` is the step of a loop that looks for a root.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

_T = TypeVar("_T")


def _axes(tree: PyTree) -> frozenset[str]:
    """The union of the mesh axes over which the arrays of `tree` vary."""
    return frozenset().union(*map(_axes_of_one, jax.tree.leaves(tree)))


def _axes_of_one(leaf: Any) -> frozenset[str]:
    # The attribute is `vma` before JAX 0.10 and `manual_axis_type.varying` from then on.
    aval = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
    before_0_10 = getattr(aval, "vma", frozenset())
    return getattr(getattr(aval, "manual_axis_type", None), "varying", before_0_10)


def _is_inside() -> bool:
    """Whether a function inside `jax.shard_map` is being traced."""
    return bool(getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ()))


def _cast(tree: _T, axes: frozenset[str]) -> _T:
    """`tree`, with all its arrays varying over `axes` too."""

    def cast(leaf):
        missing = tuple(axes - _axes(leaf))
        if not missing:
            return leaf
        # `lax.pvary` in older versions of JAX.
        if hasattr(lax, "pcast"):
            return lax.pcast(leaf, missing, to="varying")
        return lax.pvary(leaf, missing)  # pyright: ignore[reportAttributeAccessIssue]

    return jax.tree.map(cast, tree) if axes else tree


def varying(tree: _T, like: PyTree) -> _T:
    """`tree`, varying over the axes of `like` too inside `jax.shard_map`."""
    return _cast(tree, _axes(like)) if _is_inside() else tree


def _of(step: Callable[..., Any], *args: Any) -> frozenset[str]:
    """The mesh axes over which the arguments or the outputs of `step` vary."""
    return _axes(args) | _axes(jax.make_jaxpr(step)(*args).out_avals)


def while_loop(goes_on: Callable[[_T], Array], step: Callable[[_T], _T], carry: _T) -> _T:
    """`lax.while_loop`, also inside `jax.shard_map`."""
    if _is_inside():
        axes = _of(step, carry)
        return lax.while_loop(goes_on, lambda c: _cast(step(c), axes), _cast(carry, axes))
    return lax.while_loop(goes_on, step, carry)


def fori_loop(start: Any, stop: Any, step: Callable[[Any, _T], _T], carry: _T) -> _T:
    """`lax.fori_loop`, also inside `jax.shard_map`."""
    if _is_inside():
        # The counter is part of the carry, and varies where the bounds do.
        axes = _of(step, jnp.asarray(start), carry) | _axes(stop)
        start, stop = _cast((jnp.asarray(start), jnp.asarray(stop)), axes)
        return lax.fori_loop(start, stop, lambda i, c: _cast(step(i, c), axes), _cast(carry, axes))
    return lax.fori_loop(start, stop, step, carry)


def scan(step: Callable[[_T, Any], tuple[_T, Any]], carry: _T, xs: Any) -> tuple[_T, Any]:
    """`lax.scan`, also inside `jax.shard_map`."""
    if _is_inside():
        axes = _of(step, carry, jax.tree.map(lambda x: x[0], xs))

        def cast_step(carry, x):
            carry, y = step(carry, x)
            return _cast(carry, axes), y

        return lax.scan(cast_step, _cast(carry, axes), xs)
    return lax.scan(step, carry, xs)


def cond(flag: Array, yes: Callable[..., _T], no: Callable[..., _T], *operands: Any) -> _T:
    """`lax.cond`, also inside `jax.shard_map`."""
    if _is_inside():
        axes = _of(yes, *operands) | _of(no, *operands)
        both = [lambda *args, fn=fn: _cast(fn(*args), axes) for fn in (yes, no)]
        return lax.cond(flag, *both, *operands)
    return lax.cond(flag, yes, no, *operands)


def next_share(a: Array, b: Array, c: Array, fa: Array, fb: Array, fc: Array) -> Array:
    """Where to evaluate next for the root of a function, as a share of the way from `a` to `b`, by
    Chandrupatla's method.

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
