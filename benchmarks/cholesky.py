"""Where written-out factorisations end: `python -m benchmarks.cholesky`.

One factorisation and eight solves, as in a step of the flow, in a batch of lanes: written out in
scalars (`dlnjax._linalg`) against LAPACK, with the time to compile each. `UNROLLED` is the
largest size where both are worth it.
"""

import time
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from dlnjax import _linalg

from ._timing import median

SIZES = {2: 2000, 3: 1000, 4: 1000, 6: 500, 8: 500, 10: 200, 12: 200, 16: 100}  # lanes
SOLVES = 8
REPEATS = 20


def contender(unrolled: int, matrix, rhs) -> tuple[Callable, float]:
    """A compiled run, and the CPU seconds of compiling it."""

    def one(matrix, rhs):
        factorisation = _linalg.Cholesky(matrix)
        for _ in range(SOLVES):
            rhs = factorisation.solve(rhs)
        return rhs

    def run(matrix, rhs):
        def again(_, rhs):  # the matrix depends on what came before, so nothing is hoisted
            return jax.vmap(one)(matrix + 1e-9 * rhs[:, None, :1] ** 2, 1 + 1e-9 * rhs)

        return jax.lax.fori_loop(0, REPEATS, again, rhs)

    with mock.patch.object(_linalg, "UNROLLED", unrolled):
        start = time.process_time()
        compiled = jax.jit(run).lower(matrix, rhs).compile()
        return lambda: compiled(matrix, rhs), time.process_time() - start


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    print("size   lanes   written out      LAPACK   ratio   compile (CPU seconds)")
    for size, lanes in SIZES.items():
        X = np.random.default_rng(0).normal(size=(lanes, size, 2 * size))
        matrix = jnp.asarray(np.eye(size) + X @ X.transpose(0, 2, 1))
        runs = [contender(u, matrix, jnp.ones((lanes, size))) for u in (size, 0)]
        ours, lapack = (1e9 * median(run, 5) / REPEATS / lanes for run, _ in runs)
        print(
            f"{size:4d} {lanes:7d} {ours:10.0f} ns {lapack:8.0f} ns {lapack / ours:7.1f}"
            f"   {runs[0][1]:.1f} against {runs[1][1]:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
