"""JAX's loops and branches, inside of `jax.shard_map` too. That asks that what a loop carries
varies over the same axes of the mesh before and after a step, where constants vary over none."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

_T = TypeVar("_T")


def _axes(tree: PyTree) -> frozenset[str]:
    """The mesh axes that any array of it varies over."""
    return frozenset().union(*map(_axes_of_one, jax.tree.leaves(tree)))


def _axes_of_one(leaf: Any) -> frozenset[str]:
    aval = jax.typeof(leaf) if isinstance(leaf, jax.Array) else leaf
    before_0_10 = getattr(aval, "vma", frozenset())
    return getattr(getattr(aval, "manual_axis_type", None), "varying", before_0_10)


def _is_inside() -> bool:
    """Whether `jax.shard_map` is being traced."""
    return bool(getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ()))


def _cast(tree: _T, axes: frozenset[str]) -> _T:
    def cast(leaf):
        missing = tuple(axes - _axes(leaf))
        if not missing:
            return leaf
        if hasattr(lax, "pcast"):
            return lax.pcast(leaf, missing, to="varying")
        return lax.pvary(leaf, missing)  # pyright: ignore[reportAttributeAccessIssue]

    return jax.tree.map(cast, tree) if axes else tree


def varying(tree: _T, like: PyTree) -> _T:
    """`tree`, as varying as `like` inside of `jax.shard_map`."""
    return _cast(tree, _axes(like)) if _is_inside() else tree


def check_shard_map(data: PyTree) -> None:
    """diffrax has loops and checks of its own."""
    if _axes(data):
        raise ValueError(
            "Flows inside `jax.shard_map` need `jax.shard_map(..., check_vma=False)`: its check of "
            "varying axes does not take diffrax's loops."
        )


def _of(step: Callable[..., Any], *args: Any) -> frozenset[str]:
    """What any of the carry, or of what a step makes of it, varies over."""
    return _axes(args) | _axes(jax.make_jaxpr(step)(*args).out_avals)


def while_loop(goes_on: Callable[[_T], Array], step: Callable[[_T], _T], carry: _T) -> _T:
    if _is_inside():
        axes = _of(step, carry)
        return lax.while_loop(goes_on, lambda c: _cast(step(c), axes), _cast(carry, axes))
    return lax.while_loop(goes_on, step, carry)


def fori_loop(start: Any, stop: Any, step: Callable[[Any, _T], _T], carry: _T) -> _T:
    if _is_inside():
        axes = _of(step, jnp.asarray(start), carry) | _axes(stop)
        start, stop = _cast((jnp.asarray(start), jnp.asarray(stop)), axes)
        return lax.fori_loop(start, stop, lambda i, c: _cast(step(i, c), axes), _cast(carry, axes))
    return lax.fori_loop(start, stop, step, carry)


def scan(step: Callable[[_T, Any], tuple[_T, Any]], carry: _T, xs: Any) -> tuple[_T, Any]:
    if _is_inside():
        axes = _of(step, carry, jax.tree.map(lambda x: x[0], xs))

        def cast_step(carry, x):
            carry, y = step(carry, x)
            return _cast(carry, axes), y

        return lax.scan(cast_step, _cast(carry, axes), xs)
    return lax.scan(step, carry, xs)


def cond(flag: Array, yes: Callable[..., _T], no: Callable[..., _T], *operands: Any) -> _T:
    if _is_inside():
        axes = _of(yes, *operands) | _of(no, *operands)
        both = [lambda *args, fn=fn: _cast(fn(*args), axes) for fn in (yes, no)]
        return lax.cond(flag, *both, *operands)
    return lax.cond(flag, yes, no, *operands)
