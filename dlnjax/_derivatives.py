"""Helpers for derivatives.

- `held(tree)` has the values of `tree` and no derivatives; `vanishing(v)` has the value 0 and the
  derivatives of `v`. So `held(a) + vanishing(b)` has the value of `a` and the derivatives of `b`.
- `reverse_only(tree, message)` is the identity, whose forward mode raises a `TypeError`. Forward
  mode through diffrax's checkpointed adjoint fails anyway, with a message that names no remedy.
"""

from typing import TypeVar

import equinox as eqx
import jax
import jax.lax as lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

_T = TypeVar("_T")


def held(tree: _T) -> _T:
    """The same values as constants, without derivatives."""
    return jax.tree.map(lambda v: lax.stop_gradient(v) if eqx.is_array(v) else v, tree)


def vanishing(v: Array) -> Array:
    """The value 0, with the derivatives of `v`."""
    return v - lax.stop_gradient(v)


# Two primitives: the identity of values, and the identity of tangents. Reverse mode linearises the
# first to the second and transposes that, so that the second is never evaluated or batched. Forward
# mode evaluates or batches it, and that raises.
_identity_p = Primitive("identity")
_tangent_p = Primitive("reverse_only")


def _refuse(*_, message: str, **__):
    """Raise a `TypeError`: how the second primitive is evaluated, lowered and batched."""
    raise TypeError(message)


def _jvp(primals, tangents, *, message: str):
    (value,), (change,) = primals, tangents
    # Symbolic zeros: nothing is differentiated with respect to this leaf.
    if not isinstance(change, ad.Zero):
        change = _tangent_p.bind(change, message=message)
    return _identity_p.bind(value, message=message), change


_identity_p.def_impl(lambda value, *, message: value)
_identity_p.def_abstract_eval(lambda value, *, message: value)
mlir.register_lowering(_identity_p, lambda ctx, value, *, message: [value])
ad.primitive_jvps[_identity_p] = _jvp
batching.primitive_batchers[_identity_p] = lambda args, axes, *, message: (
    _identity_p.bind(*args, message=message),
    *axes,
)

_tangent_p.def_impl(_refuse)
_tangent_p.def_abstract_eval(lambda tangent, *, message: tangent)
mlir.register_lowering(_tangent_p, _refuse)
ad.deflinear2(_tangent_p, lambda cotangent, _, *, message: [cotangent])
batching.primitive_batchers[_tangent_p] = _refuse


def reverse_only(tree: _T, message: str) -> _T:
    """`tree`, whose derivatives in forward mode raise a `TypeError` with `message`."""
    numbers, rest = eqx.partition(tree, eqx.is_inexact_array)
    numbers = jax.tree.map(lambda v: _identity_p.bind(v, message=message), numbers)
    return eqx.combine(numbers, rest)
