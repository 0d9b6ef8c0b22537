"""The figure and the table of the headline study, from its finished store.

dlnjax sweep studies/headline.toml --out headline --workers 2
python studies/headline.py headline/sweep.zarr --figure docs/headline.png
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import dlnjax as dln
from dlnjax.plot import COLORS, eps_label, style

KINDS = {"monotone paths": 1, "others": 0}


def gaps(data) -> dict[str, np.ndarray]:
    """Largest relative gaps, `(instances,)`, by `ε`; that of the limit is at `"0"`."""
    flows = data["max_relative_gap"].transpose("log_eps", "instance").values
    named = dict(zip(map(eps_label, data["log_eps"].values), flows, strict=True))
    return named | {"0": data["max_relative_gap_of_limit"].values}


def table(monotone: np.ndarray, by_eps: dict[str, np.ndarray]) -> str:
    lines = [
        "| ε | monotone: median, 95 %, largest | others: the same | all: mean ± s.e. |",
        "|---|---|---|---|",
    ]
    for eps, gap in by_eps.items():
        known = np.isfinite(gap)
        cells = [eps]
        for value in KINDS.values():
            some = np.quantile(gap[known & (monotone == value)], (0.5, 0.95, 1))
            cells.append(", ".join(f"{v:.1e}" for v in some))
        error = np.std(gap[known], ddof=1) / np.sqrt(known.sum())
        cells.append(f"{gap[known].mean():.6f} ± {error:.6f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_tails(ax: Axes, by_eps: dict[str, np.ndarray]) -> None:
    """The fraction of all instances whose gap is larger."""
    colours = [*COLORS, "#222222"]
    for k, (eps, gap) in enumerate(by_eps.items()):
        gap = np.sort(gap[np.isfinite(gap)])
        rest = 1 - np.arange(len(gap)) / len(gap)
        # As many points as the figure can show, more of them in the tail.
        at = np.unique((len(gap) * (1 - np.geomspace(1, 1 / len(gap), 2000))).astype(int))
        dash = "--" if eps == "0" else "-"
        name = r"$\varepsilon \to 0$" if eps == "0" else f"{float(eps):.0e}"
        ax.plot(gap[at], rest[at], dash, color=colours[k % len(colours)], linewidth=1.2, label=name)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(left=1e-5)
    ax.set_xlabel("relative gap $g$", fontsize=9)
    ax.set_ylabel("fraction of instances with a gap above $g$", fontsize=9)
    ax.legend(fontsize=8, frameon=False, title=r"$\varepsilon$", title_fontsize=8)
    style(ax)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("headline.png"))
    options = parser.parse_args()
    data = dln.open_sweep(options.store).isel(size=0, network=0, weight_decay=0).load()
    monotone, by_eps = data["is_monotone"].values, gaps(data)
    known = np.isfinite(monotone)
    fraction = monotone[known].mean()
    error = np.sqrt(fraction * (1 - fraction) / known.sum())
    print(f"monotone: {fraction:.5f} ± {error:.5f} of {known.sum()} paths\n")
    print(table(monotone, by_eps))
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, value in KINDS.items():
        part = data.isel(instance=monotone == value)
        dln.plot.sweep(part, "max_relative_gap", kind="bands", ax=left, label=kind)
    left.set_ylabel("largest relative gap over $s$", fontsize=9)
    plot_tails(right, by_eps)
    n, d, count = data["n"].item(), data["d"].item(), len(monotone)
    title = f"Averaged flow against the lasso path: {count:,} instances, {n} × {d}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(options.figure, dpi=150)
    print(f"\nwrote {options.figure}")


if __name__ == "__main__":
    main()
