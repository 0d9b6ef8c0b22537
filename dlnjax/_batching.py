"""Batches of lanes: chunks that fit a cache, and loops with one predicate for all lanes.

- `any_lane`: a predicate that stays a scalar under `vmap`.
- `in_chunks`: runs a large batch inside a program in chunks that fit the caches of a CPU.
- `batched`: the public `vmap` in chunks of lanes of similar difficulty, on the host.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import equinox as eqx
import jax
import jax.experimental
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree, Real

from ._checks import as_count, is_concrete

# It moved out of `jax.experimental` in jax 0.8.
enable_x64: Any = (jax if hasattr(jax, "enable_x64") else jax.experimental).enable_x64  # pyright: ignore

# Bytes of a chunk of `in_chunks`, whatever the number of cores: one core works on a chunk, and the
# size of chunks changes rounding, which must not depend on the machine. By two noisy runs of
# `python -m benchmarks.chunks` (512 kB of second-level cache a core), 2 MB takes 1.6 times as long
# at 3 × 4, and 256 kB up to 1.3 times at 50 × 100; 512 kB and 1 MB differ by less than the runs do.
# (Much smaller, chunks are single lanes, whose small matrices do not fill vector registers; much
# larger, each event fetches them from memory.)
CACHE = 2**19


def cores() -> int:
    """The number of cores that this process may use. In containers these are often not all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@jax.custom_batching.custom_vmap
def any_lane(flag: Bool[Array, ""]) -> Bool[Array, ""]:
    """`flag`, a scalar; under `vmap`, whether it holds in any lane, still a scalar.

    Use it as the predicate of a loop or branch. With a predicate for each lane, `vmap` copies the
    whole carry of the loop at every step, and runs both branches.
    """
    return flag


@any_lane.def_vmap
def _(_, is_batched, flag):
    return any_lane(jnp.any(flag) if is_batched[0] else flag), False


def even_piece(lanes: int, most: int) -> int:
    """The size of equal pieces of at most `most` lanes: as few as possible, or up to a quarter more
    where these are exactly `lanes` together, so that no lane is computed twice."""
    fewest = max(1, math.ceil(lanes / most))
    exact = [pieces for pieces in range(fewest, fewest + fewest // 4 + 1) if lanes % pieces == 0]
    return math.ceil(lanes / min(exact, default=fewest))


def in_pieces(solve: Callable[[ArrayLike, int], Any], lanes: int, most: int) -> Any:
    """The results of `solve(start, size)` for all lanes, in pieces of `size ≤ most` lanes.

    `solve` computes the `size` lanes from `start` on. The pieces run one after the other."""
    size = even_piece(lanes, most)
    if size == lanes:
        return solve(0, lanes)
    pieces = math.ceil(lanes / size)
    # The last piece overlaps the one before it: all pieces have one size, and none is padded.
    out = lax.map(lambda i: solve(jnp.minimum(i * size, lanes - size), size), jnp.arange(pieces))
    if pieces * size == lanes:
        return jax.tree.map(lambda a: a.reshape(lanes, *a.shape[2:]), out)
    cut = (pieces - 1) * size

    def join(a):
        a = a.reshape(pieces * size, *a.shape[2:])
        return jnp.concatenate([a[:cut], a[pieces * size - (lanes - cut) :]])

    return jax.tree.map(join, out)


def in_chunks(fn: Callable, size: int) -> Callable:
    """`fn` of one lane, which under `vmap` on a CPU runs in chunks that fit the caches.

    `size` is the number of bytes on which its loop works.

    An event of one lane is a few passes over a few small matrices. If all lanes of a large batch
    ran in step, each pass would fetch them from memory, and all would run until the slowest ends.
    It has no derivatives: wrap it in a function with a rule of its own.
    """
    wrapped = jax.custom_batching.custom_vmap(fn)

    @wrapped.def_vmap
    def _(lanes, is_batched, *args):
        axes = jax.tree.map(lambda batched: 0 if batched else None, tuple(is_batched))
        chunk = max(1, CACHE // size) if jax.default_backend() == "cpu" else max(1, lanes)
        batched_fn = jax.vmap(fn, in_axes=axes)

        def one_chunk(start, lanes, args):
            if lanes == 1:
                out = fn(*jax.tree.map(lambda a, axis: a if axis is None else a[start], args, axes))
                return jax.tree.map(lambda a: a[None], out)
            take = lambda a, axis: a if axis is None else lax.dynamic_slice_in_dim(a, start, lanes)
            return batched_fn(*jax.tree.map(take, args, axes))

        def all_lanes(*args):
            return in_pieces(lambda start, size: one_chunk(start, size, args), lanes, chunk)

        # An outer `vmap` chunks again, with the size of one chunk of this one.
        out = in_chunks(all_lanes, size * even_piece(lanes, chunk))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return wrapped


def default_chunk(lanes: int, each: float | int) -> int:
    """The number of lanes in a chunk of `batched`, for `each` bytes of arguments a lane."""
    # Accelerators need thousands of lanes to be busy. 4096 was chosen without a measurement: all
    # benchmarks ran on CPUs.
    if jax.default_backend() != "cpu":
        return min(lanes, 4096)
    # Chunks of at most 128 lanes and 256 kB of arguments. `python -m benchmarks lanes`, times with
    # a probe: 3 × 4 is fastest with 128 to 256 lanes, 16 lanes take 1.8 times as long and 1000
    # lanes 1.7 times; 20 × 40 (6.6 kB a lane) with 24, and 4 lanes take 1.4 times as long. Lanes of
    # larger chunks idle longer until the slowest ends, and need more cache.
    largest = max(1, min(128, int(2**18 / max(each, 1))))
    return math.ceil(lanes / math.ceil(lanes / largest))


def _on_lanes(fn: Callable, args: PyTree, lanes: Int[Array, " chunk"]) -> PyTree:
    """`fn` on the lanes with these indices: one compiled program for all chunks."""
    arrays, rest = eqx.partition(args, eqx.is_array)
    arrays = jax.tree.map(lambda a: a[lanes], arrays)
    return eqx.filter_vmap(fn)(*eqx.combine(arrays, rest))


_run: Any = eqx.filter_jit(_on_lanes)  # its type has no `lower`


def batched(
    fn: Callable[..., Any],
    *args: Any,
    difficulty: Callable[..., Any] | Real[Array | np.ndarray, " lanes"] | None = None,
    chunk: int | None = None,
) -> Any:
    """`eqx.filter_vmap(fn)(*args)` in chunks, for lanes that need different numbers of steps.

    Under `vmap` all lanes of a loop run until the slowest has ended. Here lanes of similar
    difficulty share a chunk, and each chunk ends when its own lanes do. On a CPU the chunks are
    computed by as many threads as there are cores, with the results of one thread bit for bit. Runs
    outside `jit` only.

    **Arguments:**

    - `fn`: a function of one lane. It is compiled once per function object: define it once, and
        pass what changes in `args`, one entry per lane. Use `throw=False` in it.
    - `args`: pytrees whose arrays all have a leading axis of the same length, the lanes.
    - `difficulty`: numbers of shape `(lanes,)` that grow with the number of steps, or a function of
        the same arguments as `fn` that returns one for its lane, a cheap probe. For
        `gradient_flow`, the number of steps at loose tolerances is a good probe (the number of
        knots of the lasso path is not). Default: lanes keep their order.
    - `chunk`: lanes per chunk. Default: 4096; on CPU up to 128, and as few as keep their `args`
        within 256 kB. The last chunk is filled up with copies, so that all share one compiled
        program.

    **Returns:** what `eqx.filter_vmap(fn)(*args)` returns, lanes in the order of `args`.

    **Raises:** `ValueError` under `jit`, or if the arrays have no common leading axis, or
    `difficulty` is not one number per lane; `TypeError` if `fn` is not callable.

    !!! example

        ```python
        X, y = jax.random.normal(jax.random.key(0), (300, 3, 4)), jnp.ones((300, 3))
        network, s = dln.UV(jnp.ones(4), jnp.zeros(4)), jnp.array([3.0])

        def solve(X, y, **tolerances):
            problem = dln.LeastSquares(X, y)
            return dln.gradient_flow(network, problem, s, eps=1e-5, throw=False, **tolerances)

        probe = lambda X, y: solve(X, y, rtol=1e-2, atol=1e-2).stats["num_steps"]
        flows = dln.batched(solve, X, y, difficulty=probe)
        flows.x.shape  # (300, 1, 4)
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
        # The hardest first; NaN counts as hardest.
        order = np.argsort(difficulty, kind="stable")[::-1]

    # Fill the last chunk with copies of the easiest lane, which end before the others.
    filled = np.concatenate([order, np.repeat(order[-1:], -lanes % size)]).reshape(-1, size)
    # Both here, not in the threads: each would compile the program, and has a precision of its own
    # (`jax.enable_x64` as a context). In later calls `compile` finds the program again.
    groups = [jnp.asarray(members) for members in filled]
    run = _run.lower(fn, args, groups[0]).compile()
    # A program keeps one core of a CPU busy, so a thread a core; one thread feeds an accelerator.
    threads = cores() if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(threads) as pool:
        chunks = list(pool.map(lambda group: jax.block_until_ready(run(fn, args, group)), groups))
    back = jnp.asarray(np.argsort(order, kind="stable"))
    join = lambda *parts: jnp.concatenate(parts)[back] if eqx.is_array(parts[0]) else parts[0]
    return jax.tree.map(join, *chunks)
