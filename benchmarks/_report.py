"""What every benchmark writes: facts about the machine, JSON, tables and figures."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "dlnjax",
    "jax",
    "jaxlib",
    "diffrax",
    "numpy",
    "scipy",
    "scikit-learn",
    "spams-bin",
    "skglm",
    "celer",
    "adelie",
    "joblib",
)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit that is measured, with a `+` where files differ from it."""
    root = Path(__file__).parent
    try:
        command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # a tree without git
    return run.stdout.strip()


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [v for v in info.read_text().splitlines() if v.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES if _version(name)},
        "time": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load": [round(v, 2) for v in os.getloadavg()],
    }


def write(out: Path, name: str, content: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    # JSON has no inf and no NaN.
    path.write_text(json.dumps(_finite({"machine": machine(), **content}), indent=1) + "\n")
    print(f"wrote {path}")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def seconds(value: float) -> str:
    """With a unit and three digits."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def print_row(row: dict[str, Any]) -> None:
    """One piece of work: a line a solver, ours first."""
    print(f"\n{row['work']}")
    width = max(len(s["name"]) for s in row["solvers"])
    for solver in row["solvers"]:
        low, high = solver["seconds_range"]
        spread = f"{seconds(low)} … {seconds(high)}" if solver["repetitions"] > 1 else "once"
        print(
            f"  {solver['name']:{width}s} {seconds(solver['seconds']):>8s}  ({spread:>20s})"
            f"  error {solver['error']:7.1e}  {solver['ratio']:7.3g}×"
            f" (of least times {solver['ratio_of_least']:.3g}×)  {solver['note']}",
            flush=True,
        )


def draw_ratios(out: Path, name: str, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Time of each solver, its ratio to ours and its error, grouped by work."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = sum(len(row["solvers"]) + 1.5 for row in rows)
    fig, ax = plt.subplots(figsize=(8.5, 0.23 * lines + 1.2), layout="constrained")
    at, ticks, labels = 0.0, [], []
    for row in rows:
        ax.text(0.0, at, row["work"], transform=ax.get_yaxis_transform(), weight="bold", size=9)
        for solver in row["solvers"]:
            at += 1
            is_ours = solver["name"].startswith("dlnjax")
            ax.barh(at, solver["seconds"], color="C0" if is_ours else "0.7", height=0.8)
            # Read back from JSON, an error that is not finite is None.
            finite = solver["error"] is not None and math.isfinite(solver["error"])
            error = f"error {solver['error']:.0e}" if finite else "failed"
            ax.text(solver["seconds"], at, f" {solver['ratio']:.3g}×, {error}", va="center", size=8)
            ticks.append(at)
            labels.append(solver["name"])
        at += 1.5
    ax.set_yticks(ticks, labels, size=8)
    ax.set(xscale="log", xlabel="time of the whole work (s)", title=title)
    ax.set_ylim(at - 0.5, -1.2)
    ax.margins(x=0.3)
    ax.grid(axis="x", alpha=0.3)
    ax.set_axisbelow(True)
    fig.savefig(out / f"{name}.png", dpi=110)
    plt.close(fig)
