"""Lanes of unequal difficulty: what waiting for the slowest lane costs, and what `batched` saves.

The idle fraction is the part of a chunk's steps in which a lane has already ended: 1 − (mean
steps)/(steps of the chunk's slowest lane). Chunks follow the order of the lanes, that of a probe
(the same flow at tolerance `PROBE`), or that of the steps themselves, which is the best there is.
"""

import math
from pathlib import Path

import numpy as np

import dlnjax as dln

from ._data import normal_batch
from ._report import seconds, write
from ._timing import Contender, compete
from .flow import dlnjax_lane

S = np.linspace(0, 20, 51)[1:]
RTOL, PROBE = 1e-6, 1e-2
CASES = [(3, 4, 1e-5, 1000), (20, 40, 1e-20, 48), (50, 100, 1e-20, 16)]
CHUNKS = {3: (16, 32, 64, 128, 256, 1000), 20: (1, 4, 8, 16, 24, 48), 50: (1, 2, 3, 4, 8, 16)}


def idle(steps: np.ndarray, order: np.ndarray, chunk: int) -> float:
    ordered = steps[order]
    slowest = [ordered[i : i + chunk].max() for i in range(0, len(order), chunk)]
    spent = sum(s * min(chunk, len(order) - i * chunk) for i, s in enumerate(slowest))
    return 1 - float(steps.sum()) / float(spent)


def measure(n: int, d: int, eps: float, lanes: int, repetitions: int) -> dict:
    X, y = normal_batch(lanes, n, d)
    log_eps = math.log(eps)
    solve = lambda X, y: dlnjax_lane(d, log_eps, S, X, y, RTOL)
    probe = lambda X, y: dlnjax_lane(d, log_eps, S[-1:], X, y, PROBE).stats["num_steps"]
    steps = np.asarray(dln.batched(solve, X, y).stats["num_steps"])
    guess = np.asarray(dln.batched(probe, X, y))
    orders = {
        "as they come": np.arange(lanes),
        "by a probe": np.argsort(-guess, kind="stable"),
        "ideal": np.argsort(-steps, kind="stable"),
    }
    correlation = float(np.corrcoef(guess, steps)[0, 1])
    print(
        f"\n{n} × {d}, ε = {eps:g}, {lanes} lanes: {steps.mean():.0f} steps (most {steps.max()}); "
        f"probe {guess.mean():.0f} steps, correlation {correlation:.2f}"
    )

    run = lambda chunk, order: lambda: dln.batched(solve, X, y, chunk=chunk, difficulty=order)
    contenders = [Contender("default", run(None, None))]
    contenders.append(Contender("default, probe included", run(None, probe)))
    for chunk in CHUNKS[n]:
        contenders.append(Contender(f"{chunk}, as they come", run(chunk, None)))
        contenders.append(Contender(f"{chunk}, by a probe", run(chunk, guess)))
    us, them = compete(contenders[0], contenders[1:], repetitions)
    times = {m.contender.name: m.record(0.0, us) for m in (us, *them)}
    rows = []
    for chunk in CHUNKS[n]:
        row: dict = {"chunk": chunk}
        row["idle"] = {name: idle(steps, order, chunk) for name, order in orders.items()}
        row["seconds"] = {name: times[f"{chunk}, {name}"]["seconds"] for name in list(orders)[:2]}
        rows.append(row)
        print(
            f"  chunks of {chunk:4d}: idle "
            + ", ".join(f"{name} {value:.2f}" for name, value in row["idle"].items())
            + "; time "
            + ", ".join(f"{name} {seconds(value)}" for name, value in row["seconds"].items()),
            flush=True,
        )
    default = {name: times[name]["seconds"] for name in ("default", "default, probe included")}
    print("  " + ", ".join(f"{name} {seconds(value)}" for name, value in default.items()))
    return {
        "n": n,
        "d": d,
        "eps": eps,
        "lanes": lanes,
        "steps": [int(steps.min()), float(steps.mean()), int(steps.max())],
        "probe_steps": float(guess.mean()),
        "correlation": correlation,
        "default_seconds": default,
        "chunks": rows,
    }


def draw(out: Path, rows: list[dict]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, len(rows), figsize=(3.4 * len(rows), 5.6), layout="constrained")
    for (above, below), row in zip(np.reshape(axes, (2, -1)).T, rows, strict=True):
        chunks = [part["chunk"] for part in row["chunks"]]
        for name, style in {"as they come": "o-", "by a probe": "s-", "ideal": ":"}.items():
            above.plot(chunks, [p["idle"][name] for p in row["chunks"]], style, label=name)
            if name != "ideal":
                times = [1e3 * p["seconds"][name] for p in row["chunks"]]
                below.plot(chunks, times, style, label=name)
        below.axhline(1e3 * row["default_seconds"]["default"], color="0.5", label="default chunks")
        above.set(title=f"{row['n']} × {row['d']}, {row['lanes']} lanes", ylim=(0, None))
        for ax in (above, below):
            ax.set(xscale="log", xlabel="lanes a chunk")
            ax.grid(alpha=0.3)
        below.set_ylim(0, None)
    axes[0, 0].set_ylabel("idle fraction")
    axes[1, 0].set_ylabel("time (ms)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[1, 0].legend(frameon=False, fontsize=8)
    fig.savefig(out / "lanes.png", dpi=110)
    plt.close(fig)


def main(out: Path, quick: bool) -> None:
    rows = []
    for n, d, eps, lanes in CASES:
        rows.append(measure(n, d, eps, min(lanes, 8) if quick else lanes, 1 if quick else 5))
        write(
            out,
            "lanes",
            {"settings": {"rtol": RTOL, "probe": PROBE, "quick": quick}, "cases": rows},
        )
    draw(out, rows)
