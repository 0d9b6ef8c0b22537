"""`python -m benchmarks.canonical_order`: where the canonical order of learning breaks.

Of random shallow networks (`dlnjax.papers.bmz23.random_draw`), how often degree `k` is learned
before `k + 1`, against `ε` and the number of neurons (`docs/single-index.md`).
"""

import time

import jax
import jax.numpy as jnp
import numpy as np

from dlnjax._results import names_of
from dlnjax.papers.bmz23 import draws, in_order

COUNT = 100
CASES = {10: (1e-2, 1e-4, 1e-6, 1e-8, 1e-12), 5: (1e-6,), 3: (1e-6,)}  # ε for each number


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    for neurons, sizes in CASES.items():
        begin = time.perf_counter()
        program = jax.jit(lambda log_eps, neurons=neurons: draws(COUNT, neurons, log_eps))
        program = program.lower(jnp.log(1e-2)).compile()
        print(f"m = {neurons}: compiled in {time.perf_counter() - begin:.0f} s")
        for eps in sizes:
            begin = time.perf_counter()
            times, result = jax.block_until_ready(program(jnp.log(eps)))
            end = time.perf_counter()
            times = np.asarray(times)
            share, error = in_order(times)
            cells = "  ".join(f"{s:.2f} ± {e:.2f}" for s, e in zip(share, error, strict=True))
            failed = {str(name) for name in names_of(result)} - {"successful"}
            print(
                f"ε = {eps:.0e}: k before k + 1, k = 0 … 3: {cells}; learned by s = 1: "
                f"{np.mean(np.isfinite(times), axis=0)}; {np.sum(np.isnan(times[:, 0]))} failed "
                f"{failed or ''} ({end - begin:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
