"""Numbers without derivatives, derivatives without numbers, and errors for a mode of derivatives
that is not there: JAX's own does not say what to do."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.lax as lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

_T = TypeVar("_T")


def held(tree: _T) -> _T:
    """The same numbers, as constants."""
    return jax.tree.map(lambda v: lax.stop_gradient(v) if eqx.is_array(v) else v, tree)


def vanishing(v: Array) -> Array:
    """0, with the derivatives of `v`."""
    return v - lax.stop_gradient(v)


# The identity of values, which may be batched, and that of their tangents. Reverse mode transposes
# the latter, and never computes it, nor a batch of it.
_identity_p = Primitive("identity")
_tangent_p = Primitive("reverse_only")


def _refuse(*_, message: str, **__):
    raise TypeError(message)


def _jvp(primals, tangents, *, message: str):
    (value,), (change,) = primals, tangents
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
