"""Batches of lanes: chunks that share a compiled program or a cache, and loops with one predicate
for all lanes."""

import contextlib
import contextvars
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree, Real

from ._checks import as_count, is_concrete

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


def default_chunk(lanes: int, each: float | int) -> int:
    """How many lanes of `each` bytes share a chunk."""
    if jax.default_backend() != "cpu":
        return min(lanes, 4096)  # fills a device
    # A loop passes over its lanes' data at every step, which had better stay in the first or
    # second level of cache: `python -m benchmarks lanes`.
    largest = max(1, min(128, int(2**18 / max(each, 1))))
    return math.ceil(lanes / math.ceil(lanes / largest))


@eqx.filter_jit
def _run(fn: Callable, args: PyTree, lanes: Int[Array, " chunk"]) -> PyTree:
    arrays, rest = eqx.partition(args, eqx.is_array)
    arrays = jax.tree.map(lambda a: a[lanes], arrays)
    return eqx.filter_vmap(fn)(*eqx.combine(arrays, rest))


def batched(
    fn: Callable[..., Any],
    *args: Any,
    difficulty: Callable[..., Any] | Real[Array | np.ndarray, " lanes"] | None = None,
    chunk: int | None = None,
) -> Any:
    """`eqx.filter_vmap(fn)(*args)` for lanes of unequal difficulty, in chunks. Outside `jit`.

    Under `vmap` a loop ends with its slowest lane: the others wait. Here lanes of similar
    difficulty share a chunk, and each chunk ends when its own lanes do.

    **Arguments:**

    - `fn`: a function of one lane, compiled once per function object: define it once, and pass
        what changes in `args`, one entry per lane. Give it `throw=False` where it has that option.
    - `args`: pytrees whose arrays all have a leading axis of the same length, the lanes.
    - `difficulty`: shape `(lanes,)`, anything that grows with the number of steps; or a function
        of the same arguments as `fn` that returns it for one lane, a cheap probe. For a
        `gradient_flow`, its own number of steps at loose tolerances is one (the number of knots
        of the lasso path is not). Default: lanes stay in the order in which they come.
    - `chunk`: lanes per chunk. Default: 4096; on CPU up to 128, and as few as keep their `args`
        within 256 kB. The last chunk is filled up with copies, so that all share one compiled
        program.

    **Returns:** what `eqx.filter_vmap(fn)(*args)` returns, lanes in the order of `args`.

    **Raises:** `ValueError` under `jit`, or where the arrays have no common leading axis.

    !!! example

        ```python
        def solve(X, y, s=s, **tolerances):
            problem = dln.LeastSquares(X, y)
            return dln.gradient_flow(net, problem, s, eps=1e-5, throw=False, **tolerances)


        def probe(X, y):
            return solve(X, y, s[-1:], rtol=1e-2, atol=1e-2).stats["num_steps"]


        flows = dln.batched(solve, X, y, difficulty=probe)  # X (1000, 3, 4), y (1000, 3)
        ```
    """
    if not callable(fn):
        raise TypeError(f"`fn` must be a function of one lane, got {type(fn).__name__}.")
    args = jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, args)
    arrays = jax.tree.leaves(eqx.filter(args, eqx.is_array))
    if not is_concrete(*arrays):
        raise ValueError(
            "`batched` chooses chunks by values, so it runs outside `jit`, `vmap` and `grad`. "
            "Use `jax.vmap(fn)` inside."
        )
    lengths = {a.shape[0] if a.ndim else 0 for a in arrays}
    if len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise ValueError(
            "Every array in `args` needs the same leading axis, one entry per lane; got shapes "
            f"{shapes or 'of no arrays'}. Close over what all lanes share."
        )
    (lanes,) = lengths
    chunk = None if chunk is None else as_count(chunk, "chunk")
    each = sum(a.nbytes for a in arrays) / lanes
    size = default_chunk(lanes, each) if chunk is None else min(lanes, chunk)

    if callable(difficulty):
        difficulty = batched(difficulty, *args, chunk=chunk)
    order = np.arange(lanes)
    if difficulty is not None:
        difficulty = np.asarray(difficulty)
        if difficulty.shape != (lanes,):
            raise ValueError(
                f"`difficulty` must be one number per lane, shape ({lanes},), got "
                f"{difficulty.shape}."
            )
        order = np.argsort(difficulty, kind="stable")[::-1]  # the hardest first, NaN before

    # Copies of the easiest lane are over first.
    filled = np.concatenate([order, np.repeat(order[-1:], -lanes % size)]).reshape(-1, size)
    # One at a time: on a CPU, programs that run side by side can starve each other of threads.
    chunks = [jax.block_until_ready(_run(fn, args, jnp.asarray(members))) for members in filled]
    back = jnp.asarray(np.argsort(order, kind="stable"))
    join = lambda *parts: jnp.concatenate(parts)[back] if eqx.is_array(parts[0]) else parts[0]
    return jax.tree.map(join, *chunks)
