"""Loops under `vmap`: one predicate for all lanes, and as many lanes at a time as a cache holds."""

import contextlib
import contextvars
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool

CACHE_PER_CORE = 2**20  # bytes; half of a typical second-level cache


_fixed_cores: contextvars.ContextVar[int | None] = contextvars.ContextVar("cores", default=None)


def cores() -> int:
    """What the process may use, where the system says so: containers often have less than all."""
    affinity = getattr(os, "sched_getaffinity", None)
    here = len(affinity(0)) if affinity else os.cpu_count() or 1
    return _fixed_cores.get() or here


@contextlib.contextmanager
def as_on(cores: int) -> Iterator[None]:
    """Traces made inside have the chunks of a machine with so many cores, and its rounding."""
    token = _fixed_cores.set(cores)
    try:
        yield
    finally:
        _fixed_cores.reset(token)


@jax.custom_batching.custom_vmap
def any_lane(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """`flag`; under `vmap`, whether it holds in any lane.

    As the predicate of a loop or a branch it stays a single one for all lanes. (A predicate for
    each lane makes `vmap` copy the whole carry of the loop at every step, and run both branches.)
    """
    return flag


@any_lane.def_vmap
def _(_, is_batched, flag):
    return any_lane(jnp.any(flag) if is_batched[0] else flag), False


def even_piece(lanes: int, most: int) -> int:
    """The size of the fewest pieces of at most `most` lanes."""
    return math.ceil(lanes / max(1, math.ceil(lanes / most)))


def in_pieces(solve: Callable[[ArrayLike, int], Any], lanes: int, most: int) -> Any:
    """`solve(start, size)`, of `size ≤ most` lanes from `start` on, for all lanes, one piece after
    the other."""
    size = even_piece(lanes, most)
    if size == lanes:
        return solve(0, lanes)
    pieces = math.ceil(lanes / size)
    # The last piece overlaps the one before it rather than being padded.
    out = lax.map(lambda i: solve(jnp.minimum(i * size, lanes - size), size), jnp.arange(pieces))
    cut = (pieces - 1) * size
    keep = np.r_[:cut, pieces * size - (lanes - cut) : pieces * size]
    return jax.tree.map(lambda a: a.reshape(pieces * size, *a.shape[2:])[keep], out)


def in_chunks(fn: Callable, size: int) -> Callable:
    """`fn`, whose loop works on `size` bytes; under `vmap` on a CPU, in chunks that fit its caches.
    Not differentiable: the rule of derivatives belongs outside.

    An event of one lane is a few passes over a few small matrices. All lanes of a large batch in
    step would fetch them from memory at each pass, and go on until the slowest lane ends.
    """
    wrapped = jax.custom_batching.custom_vmap(fn)

    @wrapped.def_vmap
    def _(lanes, is_batched, *args):
        axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(is_batched))
        cache = CACHE_PER_CORE * cores()
        chunk = max(1, cache // size) if jax.default_backend() == "cpu" else max(1, lanes)
        batched_fn = jax.vmap(fn, in_axes=axes)

        def one_chunk(start, lanes, args):
            if lanes == 1:
                out = fn(*jax.tree.map(lambda a, axis: a if axis is None else a[start], args, axes))
                return jax.tree.map(lambda a: a[None], out)
            take = lambda a, axis: a if axis is None else lax.dynamic_slice_in_dim(a, start, lanes)
            return batched_fn(*jax.tree.map(take, args, axes))

        def all_lanes(*args):
            return in_pieces(lambda start, size: one_chunk(start, size, args), lanes, chunk)

        # An outer `vmap` shares the cache.
        out = in_chunks(all_lanes, size * even_piece(lanes, chunk))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return wrapped
