"""`python -m benchmarks [NAME|all] [--out DIR] [--quick]`, with NAME one of `flow`, `lasso`,
`glm`, `endpoint`, `lanes`, `scaling`, `startup`, `limits`, `gaps`,
`training`, `events`, `gradients`, `derivatives`, `sweep`, `cost`, `gpu`.

dlnjax and its peers in one process run, interleaved. Needs `pip install -e '.[bench]'`, and
`--no-deps ISLP` for the Khan data; peers that are not installed are left out. adelie 1.1.52 asks
for numpy < 2, which JAX does not take, but runs with numpy 2: `pip install --no-deps adelie`.
Writes NAME.json and figures to DIR (default benchmarks/results). `--quick` is a smoke test of less
than a minute each, not a measurement. `python -m benchmarks.table` prints the tables of `docs/`.
"""

import argparse
import importlib
from pathlib import Path

NAMES = (
    "flow",
    "lasso",
    "glm",
    "endpoint",
    "lanes",
    "scaling",
    "startup",
    "limits",
    "gaps",
    "training",
    "events",
    "gradients",
    "derivatives",
    "sweep",
    "cost",
    "gpu",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=[*NAMES, "all"], nargs="?", default="all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    options = parser.parse_args()

    import jax

    jax.config.update("jax_enable_x64", True)
    for name in NAMES if options.name == "all" else [options.name]:
        print(f"\n== {name} ==", flush=True)
        importlib.import_module(f"benchmarks.{name}").main(options.out, options.quick)


if __name__ == "__main__":
    main()
