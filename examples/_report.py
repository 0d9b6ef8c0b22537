"""What the examples share: their two options, and how they show numbers over seeds."""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt


def options(doc: str | None) -> tuple[bool, Path]:
    """`--quick` (tiny sizes, in seconds) and `--out DIR` (where the figure goes)."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see it run")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the figure")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    return given.quick, given.out


def mean_and_error(values: npt.ArrayLike, digits: int = 4) -> str:
    """`mean ± standard error` over seeds."""
    v = np.asarray(values, np.float64)
    error = v.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else float("nan")
    return f"{v.mean():.{digits}f} ± {error:.{digits}f}"
