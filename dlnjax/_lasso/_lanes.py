"""Loops under `vmap`: one predicate for all lanes, and as many lanes at a time as a cache holds."""

import math
import os
from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool

CACHE_PER_CORE = 2**20  # bytes; half of a typical second-level cache


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


def in_chunks(fn: Callable, size: int) -> Callable:
    """`fn`, whose loop works on `size` bytes; under `vmap` on a CPU, in chunks that fit its caches.

    An event of one lane is a few passes over a few small matrices. All lanes of a large batch in
    step would fetch them from memory at each pass, and go on until the slowest lane ends.
    """
    wrapped = jax.custom_batching.custom_vmap(fn)

    @wrapped.def_vmap
    def _(lanes, is_batched, *args):
        axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(is_batched))
        batched_fn = jax.vmap(fn, in_axes=axes)
        cache = CACHE_PER_CORE * (os.cpu_count() or 1)
        chunk = max(1, cache // size) if jax.default_backend() == "cpu" else lanes
        chunks = math.ceil(lanes / chunk)
        chunk = math.ceil(lanes / chunks)

        def all_lanes(*args):
            # The last chunk overlaps the one before it rather than being padded.
            def one_chunk(start):
                take = lambda a, batched: (
                    lax.dynamic_slice_in_dim(a, start, chunk) if batched else a
                )
                return batched_fn(*jax.tree.map(take, args, tuple(is_batched)))

            last = lanes - chunk
            out = lax.map(one_chunk, jnp.minimum(jnp.arange(chunks) * chunk, last))
            join = lambda a: a.reshape(chunks * chunk, *a.shape[2:])
            if chunks * chunk == lanes:
                return jax.tree.map(join, out)
            cut = (chunks - 1) * chunk
            return jax.tree.map(
                lambda a: jnp.concatenate([join(a)[:cut], a[-1, cut - last :]]), out
            )

        if chunks == 1:
            all_lanes = batched_fn
        # An outer `vmap` shares the cache.
        out = in_chunks(all_lanes, size * chunk)(*args)
        return out, jax.tree.map(lambda _: True, out)

    return wrapped
