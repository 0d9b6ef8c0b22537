"""The figures of `scaling`, from its results alone."""

from pathlib import Path

import numpy as np


def draw(out: Path, results: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name, function in {
        "scaling_eps": _eps,
        "scaling_size": _size,
        "scaling_batch": _batch,
        "float32": _float32,
    }.items():
        fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
        function(axes, results)
        for ax in axes:
            ax.grid(alpha=0.3, which="major")
            ax.legend(frameon=False, fontsize=8)
        fig.savefig(out / f"{name}.png", dpi=110)
        plt.close(fig)


def _eps(axes, results) -> None:
    rows = results["eps"]
    for marker, (n, d) in zip("os", dict.fromkeys((r["n"], r["d"]) for r in rows), strict=False):
        some = [r for r in rows if (r["n"], r["d"]) == (n, d)]
        size = [-r["log_eps"] for r in some]
        label = f"{n} × {d}, {some[0]['lanes']} lanes"
        axes[0].plot(size, [r["steps"] for r in some], marker=marker, label=label)
        axes[1].plot(
            size, [1e3 * r["seconds"] / r["lanes"] for r in some], marker=marker, label=label
        )
    top = 1.2 * max(r["steps"] for r in rows)
    axes[0].set(ylabel="steps of a lane (mean)", ylim=(0, top), title="Steps")
    axes[1].set(ylabel="time of a lane (ms)", yscale="log", title="Time")
    for ax in axes:
        ax.set(xscale="log", xlabel="log(1/ε)")


def _size(axes, results) -> None:
    for ax, key, title in zip(
        axes, ("n", "d"), ("d = 2n, one lane", "n = 20, one lane"), strict=True
    ):
        for marker, (name, rows) in zip("os", results[key].items(), strict=True):
            sizes = [r[key] for r in rows]
            label = "gradient_flow, ε = 1e-20" if name == "flow" else "lasso_path"
            ax.plot(sizes, [1e3 * r["seconds"] for r in rows], marker=marker, label=label)
        ax.set(xscale="log", yscale="log", xlabel=key, ylabel="time (ms)", title=title)


def _batch(axes, results) -> None:
    labels = {"flow": "gradient_flow, ε = 1e-5", "path": "lasso_path"}
    for marker, (name, rows) in zip("os", results["batch"].items(), strict=True):
        lanes = [r["lanes"] for r in rows]
        each = [1e6 * r["seconds"] / r["lanes"] for r in rows]
        axes[0].plot(lanes, each, marker=marker, label=labels[name])
    axes[0].set(xscale="log", yscale="log", xlabel="lanes", ylabel="time of a lane (µs)")
    axes[0].set_title("3 × 4")
    for i, row in enumerate(results["memory"]):
        label = f"{row['what']} {row['n']} × {row['d']}: {row['bytes_a_lane'] / 1e3:.3g} kB a lane"
        colour, marker = f"C{i}", "os"[row["what"] == "path"]
        lanes, sizes = np.asarray(row["lanes"]), 1e-6 * np.asarray(row["bytes"])
        axes[1].plot(lanes, sizes, marker=marker, color=colour, linestyle="none", label=label)
        fit = 1e-6 * (row["bytes_a_lane"] * lanes + row["constant"])
        axes[1].plot(lanes, fit, color=colour, linewidth=1)
    axes[1].set(xscale="log", yscale="log", xlabel="lanes", ylabel="temporary memory (MB)")
    axes[1].set_title("Memory, with linear fits")


def _float32(axes, results) -> None:
    for ax, eps in zip(axes, (1e-5, 1e-20), strict=True):
        rows = [r for r in results["float32"] if r["eps"] == eps]
        tolerances = [r["rtol"] for r in rows]
        for i, precision in enumerate(("float32", "float64")):
            for suffix, style in (("", "o-"), ("_worst", "o:")):
                label = f"{precision}, {'worst' if suffix else 'median'} lane"
                values = [r[precision + suffix] for r in rows]
                ax.plot(tolerances, values, style, color=f"C{i}", label=label)
        ax.set(xscale="log", yscale="log", xlabel="rtol", title=f"ε = {eps:g}")
        ax.set_ylabel("error of x_mean / max |x_mean|")
        ax.invert_xaxis()
