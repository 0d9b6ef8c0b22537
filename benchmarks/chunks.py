"""`python -m benchmarks.chunks`: batches of lasso paths by the size of the chunks of `in_chunks`;
`batched` on one core against two, with whether both give the same bits."""

import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import dlnjax as dln
from dlnjax import _batching

from ._data import normal_batch
from ._timing import once

S = np.linspace(0, 20, 51)[1:]


def path(X, y):
    return dln.lasso_path(dln.LeastSquares(X, y), throw=False).values


def flow(X, y):
    d = X.shape[1]
    network, problem = dln.UV(jnp.ones(d), jnp.zeros(d)), dln.LeastSquares(X, y)
    return dln.gradient_flow(network, problem, S, eps=1e-20, throw=False).x_mean


def medians(runs: dict[int, Callable], repetitions: int = 7) -> dict[int, float]:
    """Seconds of each after a warm-up, in turn."""
    times: dict[int, list[float]] = {key: [] for key in runs}
    for _ in range(repetitions + 1):
        for key, run in runs.items():
            times[key].append(once(run)[0])
    return {key: statistics.median(values[1:]) for key, values in times.items()}


def by_chunk(n: int, d: int, lanes: int) -> None:
    X, y = normal_batch(lanes, n, d)
    runs = {}
    for size in (2**18, 2**19, 2**20, 2**21):
        _batching.CACHE = size
        jax.clear_caches()  # the size is part of a trace
        program = jax.jit(jax.vmap(path)).lower(X, y).compile()
        runs[size // 1024] = lambda program=program: program(X, y)
    found = medians(runs)
    text = ", ".join(f"{size} kB {1e3 * time:.0f} ms" for size, time in found.items())
    print(f"path {n} × {d}, {lanes} lanes: {text}", flush=True)


def by_cores(solve: Callable, n: int, d: int, lanes: int) -> None:
    X, y = normal_batch(lanes, n, d)

    def on(cores: int):
        _batching.cores = lambda: cores
        return dln.batched(solve, X, y)

    found = medians({cores: lambda cores=cores: on(cores) for cores in (1, 2)})
    same = np.array_equal(on(1), on(2), equal_nan=True)
    print(
        f"batched {solve.__name__} {n} × {d}, {lanes} lanes: one core {1e3 * found[1]:.0f} ms, two "
        f"{1e3 * found[2]:.0f} ms, {found[1] / found[2]:.2f} times; same bits: {same}",
        flush=True,
    )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    chosen = _batching.CACHE
    for shape in ((3, 4, 10_000), (20, 40, 500), (50, 100, 100), (100, 200, 16), (442, 10, 500)):
        by_chunk(*shape)
    _batching.CACHE = chosen
    jax.clear_caches()
    for shape in ((3, 4, 10_000), (20, 40, 500), (50, 100, 100)):
        by_cores(path, *shape)
    for shape in ((3, 4, 2000), (20, 40, 100), (50, 100, 32)):
        by_cores(flow, *shape)
