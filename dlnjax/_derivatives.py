"""Helpers for derivatives.

- `held(tree)` has the values of `tree` and no derivatives; `vanishing(v)` has the value 0 and the
  derivatives of `v`. So `held(a) + vanishing(b)` has the value of `a` and the derivatives of `b`.
- `differentiated_as(explicit)` gives a function the derivatives of another with the same values.
- `linear_map(apply, transpose, residuals, change)` is a linear function of `change` whose transpose
  is given: the one means to give a loop of unknown length both modes of differentiation.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from ._loops import varying

_T = TypeVar("_T")


def held(tree: _T) -> _T:
    """The same values as constants, without derivatives."""
    return jax.tree.map(lambda v: lax.stop_gradient(v) if eqx.is_array(v) else v, tree)


def vanishing(v: Array) -> Array:
    """The value 0, with the derivatives of `v`."""
    return v - lax.stop_gradient(v)


def differentiated_as(explicit: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """A decorator: the values of a function, with the derivatives of `explicit`, which has the same
    values and is evaluated only where something is differentiated.

    All derivatives of higher order are those of `explicit`: a rule that calls the function again
    would lose them, since JAX may drop the rule of a function inside of another rule."""

    def decorate(fn):
        with_rule = eqx.filter_custom_jvp(fn)

        @with_rule.def_jvp
        def _(primals, tangents):
            numbers, rest = eqx.partition(primals, eqx.is_inexact_array)
            known = lambda v, t: jnp.zeros_like(v) if t is None else t
            changes = jax.tree.map(known, numbers, tangents)
            at = lambda numbers: explicit(*eqx.combine(numbers, rest))
            return jax.jvp(at, (numbers,), (changes,))

        return with_rule

    return decorate


def linear_map(
    apply: Callable[[PyTree, PyTree], PyTree],
    transpose: Callable[[PyTree, PyTree], PyTree],
    residuals: PyTree[Array],
    change: PyTree[Array],
) -> PyTree[Array]:
    """`apply(residuals, change)`, linear in `change`, with `transpose(residuals, cotangent)`.

    Forward mode differentiates `apply`, reverse mode calls `transpose`, and forward mode over
    reverse mode differentiates `transpose`. Neither function may refer to traced values other than
    through `residuals`. (`jax.custom_vjp` has no forward mode, and `jax.custom_jvp` transposes only
    what JAX can transpose, which a loop of unknown length is not.)"""
    residuals, change = varying((residuals, change), (residuals, change))
    known, known_tree = jax.tree.flatten(residuals)
    moved, moved_tree = jax.tree.flatten(change)
    trees: list[Any] = []

    def forward(known, moved):
        out = apply(jax.tree.unflatten(known_tree, known), jax.tree.unflatten(moved_tree, moved))
        out, tree = jax.tree.flatten(varying(out, (known, moved)))
        trees.append(tree)
        return out

    def backward(known, out):
        out = jax.tree.unflatten(trees[-1], out)
        found = transpose(jax.tree.unflatten(known_tree, known), out)
        return jax.tree.leaves(varying(found, (known, out)))

    out = _linear_p.bind(*known, *moved, forward=forward, backward=backward, count=len(known))
    return jax.tree.unflatten(trees[-1], out)


# Operands are `count` residuals, then the numbers in which the map is linear. `forward` and
# `backward` take the two lists, and return a list.
_linear_p = Primitive("linear_map")
_linear_p.multiple_results = True


def _apply(*args, forward, backward, count):
    return forward(list(args[:count]), list(args[count:]))


@_linear_p.def_abstract_eval
def _(*avals, forward, backward, count):
    # (`jax.eval_shape` would lose over which axes of a mesh the outputs vary.)
    return jax.make_jaxpr(forward)(list(avals[:count]), list(avals[count:])).out_avals


def _jvp(primals, tangents, *, forward, backward, count):
    bind = lambda args: _linear_p.bind(*args, forward=forward, backward=backward, count=count)
    out = bind(primals)
    zeros = [jnp.zeros_like(v) for v in out]
    moves = [not isinstance(t, ad.Zero) for t in tangents]
    changes = zeros
    if any(moves[count:]):
        linear = [ad.instantiate_zeros(t) for t in tangents[count:]]
        changes = bind([*primals[:count], *linear])
    if any(moves[:count]):
        # How the map itself changes, by forward mode.
        at = lambda *known: forward(list(known), list(primals[count:]))
        known = [ad.instantiate_zeros(t) for t in tangents[:count]]
        _, more = jax.jvp(at, tuple(primals[:count]), tuple(known))
        changes = [a + b for a, b in zip(changes, more, strict=True)]
    return out, changes


def _transpose(cotangents, *args, forward, backward, count):
    cotangents = [ad.instantiate_zeros(c) for c in cotangents]
    out = _linear_p.bind(
        *args[:count], *cotangents, forward=backward, backward=forward, count=count
    )
    return [None] * count + list(out)


def _batch(args, axes, *, forward, backward, count):
    lanes = next(a.shape[i] for a, i in zip(args, axes, strict=True) if i is not None)
    known, known_axes = list(args[:count]), list(axes[:count])
    # Linear operands get a leading axis of lanes, also those that all lanes share: so the
    # transposed map has one too, and JAX sums over it.
    leading = lambda a, i: (
        jnp.broadcast_to(a, (lanes, *a.shape)) if i is None else jnp.moveaxis(a, i, 0)
    )
    linear = [leading(a, i) for a, i in zip(args[count:], axes[count:], strict=True)]
    over = lambda fn: jax.vmap(fn, in_axes=(known_axes, 0), axis_size=lanes)
    out = _linear_p.bind(
        *known, *linear, forward=over(forward), backward=over(backward), count=count
    )
    return out, [0] * len(out)


_linear_p.def_impl(_apply)
mlir.register_lowering(_linear_p, mlir.lower_fun(_apply, multiple_results=True))
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
