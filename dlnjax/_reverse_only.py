"""Errors for forward mode, where only reverse mode is: JAX's own does not say what to do."""

from typing import TypeVar

import equinox as eqx
import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_T = TypeVar("_T")

# The identity of tangents. Reverse mode transposes it, and never computes it.
_tangent_p = Primitive("reverse_only")


def _refuse(*_, message: str, **__):
    raise TypeError(message)


_tangent_p.def_impl(_refuse)
_tangent_p.def_abstract_eval(lambda tangent, *, message: tangent)
mlir.register_lowering(_tangent_p, _refuse)
ad.deflinear2(_tangent_p, lambda cotangent, _, *, message: [cotangent])
batching.primitive_batchers[_tangent_p] = _refuse


@eqx.filter_custom_jvp
def _identity(tree, message):
    return tree


@_identity.def_jvp
def _(primals, tangents):
    tree, message = primals
    change, _ = tangents
    change = jax.tree.map(lambda t: _tangent_p.bind(t, message=message), change)
    return _identity(tree, message), change


def reverse_only(tree: _T, message: str) -> _T:
    """`tree`, whose derivatives in forward mode raise a `TypeError` with `message`."""
    numbers, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_identity(numbers, message), rest)
