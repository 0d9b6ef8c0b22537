"""[B25] Figure 1, and the fraction of monotone paths, for `dlnjax reproduce B25-fig1`."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from matplotlib.figure import Figure

from ..plot import instances_figure
from . import b25

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclasses.dataclass(frozen=True)
class Report:
    lines: list[str]
    content: dict[str, Any]
    figure: Figure
    holds: bool


def _chunks(total: int, size: int) -> list[np.ndarray]:
    """Chunks of one size, so that one trace serves all; the last one runs over the end."""
    return [np.arange(start, start + size) for start in range(0, total, size)]


def figure1(
    instances: int, path_instances: int, seed: int, track: Callable[..., Iterable]
) -> Report:
    """[B25] Fig. 1 and the monotone fraction (B25-fig1, B25-monotone)."""
    key = jr.key(seed)
    flags, valid = [], []
    for chunk in track(_chunks(path_instances, 1000), description="monotone fraction"):
        summary = b25.monotone(key, jnp.asarray(chunk))
        flags.append(np.asarray(summary.is_monotone))
        valid.append(np.asarray(summary.is_valid))
    flags = np.concatenate(flags)[:path_instances]
    failed = int(np.sum(~np.concatenate(valid)[:path_instances]))
    fraction = float(np.mean(flags))
    error = (fraction * (1 - fraction) / path_instances) ** 0.5
    claim = b25.monotone_claim(fraction, path_instances)

    s = np.linspace(0, 10, 201)[1:]
    parts = []
    for chunk in track(_chunks(instances, 100), description="flows against paths"):
        parts.append(b25.trajectories(key, jnp.asarray(chunk), jnp.asarray(s)))
    collect = lambda name: np.concatenate([np.asarray(getattr(p, name)) for p in parts])[:instances]
    gap, monotone, good = collect("relative_gap"), collect("is_monotone"), collect("is_valid")
    failed += int(np.sum(~good))
    largest = gap.max(axis=1)
    groups = {"monotone": good & monotone, "non-monotone": good & ~monotone}
    quantiles = {
        name: dict(zip(map(str, _QUANTILES), np.quantile(largest[g], _QUANTILES), strict=True))
        for name, g in groups.items()
    }
    medians = {name: quantiles[name]["0.5"] for name in groups}

    shown = [(name, i) for name, g in groups.items() for i in np.flatnonzero(g)[:2]]
    x_mean, lasso = collect("x_mean"), collect("lasso")
    figure = instances_figure(
        "Averaged flow of u∘v at ε = 1e-5 beside the lasso path, n = 3, d = 4",
        s,
        [
            {
                "title": f"instance {i}, {name}: gap ≤ {largest[i]:.1e}",
                "x": x_mean[i],
                "lasso": lasso[i],
                "relative_gap": gap[i],
            }
            for name, i in shown
        ],
    )
    lines = [
        f"B25-monotone: fraction of monotone paths {fraction:.4f} ± {error:.4f} over "
        f"{path_instances} instances; stated {claim.stated} over {b25.STATED_INSTANCES}; "
        f"tolerance {claim.tolerance:.3f} ({claim.why}): "
        f"{'holds' if claim.holds else 'FAILS'}",
        f"B25-fig1: largest relative gap over 0 < s ≤ 10, {instances} instances "
        "(5 %, 25 %, median, 75 %, 95 %, largest)",
        *(
            f"  {name:13s}"
            + "  ".join(f"{q:.2e}" for q in quantiles[name].values())
            + f"  ({int(np.sum(g))} instances)"
            for name, g in groups.items()
        ),
        f"  medians: non-monotone / monotone = {medians['non-monotone'] / medians['monotone']:.1f}",
    ]
    if failed:
        lines.append(f"{failed} instances failed to solve")
    content = {
        "monotone": dataclasses.asdict(claim) | {"standard_error": error, "holds": claim.holds},
        "instances": instances,
        "path_instances": path_instances,
        "seed": seed,
        "failed": failed,
        "largest_relative_gap": quantiles,
        "s": s,
        "shown": [{"instance": int(i), "kind": name, "relative_gap": gap[i]} for name, i in shown],
    }
    return Report(lines, content, figure, claim.holds and failed == 0)
