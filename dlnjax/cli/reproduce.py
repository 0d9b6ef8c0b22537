"""`dlnjax reproduce`: what papers claim, measured."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import rich.markup
import typer
from matplotlib.figure import Figure

from ..papers import b25
from ..papers.figures import FIGURES
from ..papers.ledger import CLAIMS, FIGURE
from ..plot import instances_figure
from .console import (
    OutDir,
    out,
    progress_bar,
    set_precision,
    writable_folder,
    write,
    write_report,
)

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def reproduce(
    claims: Annotated[
        list[str] | None, typer.Argument(help="Claims, such as `W23-which`; see `--list`.")
    ] = None,
    all_claims: Annotated[bool, typer.Option("--all", help="Every claim.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the claims and stop.")] = False,
    out_dir: OutDir = Path("."),
    instances: Annotated[
        int, typer.Option(help="B25-fig1: instances for the gaps.", min=20, max=1_000_000)
    ] = 500,
    path_instances: Annotated[
        int,
        typer.Option(
            help="B25-fig1: instances for the monotone fraction.", min=100, max=100_000_000
        ),
    ] = 20_000,
    seed: Annotated[int, typer.Option(help="B25-fig1: seed of the instances.")] = 0,
    float32: Annotated[
        bool, typer.Option("--float32", help="B25-fig1: compute in single precision.")
    ] = False,
) -> None:
    """Measure what papers claim and print it beside the stated values.

    Writes `ledger.json`, and the figures of `B25-fig1`, `B23-activation`, `W23-fig1` to
    `W23-fig3`, `PF23-fixture`, `MS25-rate` and `Gis20-scalar`. Ends with an error if a claim
    does not hold.
    """
    if show:
        for claim in CLAIMS.values():
            line = f"{claim.id:16s} {claim.statement}"
            out.print(rich.markup.escape(line), soft_wrap=True)
        return
    chosen = list(CLAIMS) if all_claims else list(dict.fromkeys(claims or []))
    unknown = [id for id in chosen if id not in CLAIMS]
    if unknown:
        raise typer.BadParameter(
            f"unknown claim {', '.join(map(repr, unknown))}: there is {', '.join(CLAIMS)}."
        )
    if not chosen:
        raise typer.BadParameter("name a claim, such as `B25-fig1`, or pass `--all` or `--list`.")
    if float32 and chosen != [FIGURE]:
        raise typer.BadParameter(f"--float32 works with {FIGURE} only: tolerances are for float64.")
    set_precision(float32)
    folder = writable_folder(out_dir)
    written = []
    holds = True
    if FIGURE in chosen:
        with progress_bar() as progress:
            report = figure1(instances, path_instances, seed, progress.track)
        picture = write(folder / f"{FIGURE}.png", lambda p: report.figure.savefig(p, dpi=150))
        written += [picture, write_report(folder / f"{FIGURE}.json", report.content)]
        for line in report.lines:
            out.print(line, soft_wrap=True)
        holds = report.holds
    rest = [id for id in chosen if id != FIGURE]
    if rest:
        with progress_bar() as progress:
            ledger = measure(rest, progress.track)
        for line in ledger.lines:
            out.print(rich.markup.escape(line), soft_wrap=True)
        written.append(write_report(folder / "ledger.json", ledger.content))
        for id in rest:
            if id in FIGURES:
                figure = FIGURES[id]()
                written.append(
                    write(folder / f"{id}.png", lambda p, f=figure: f.savefig(p, dpi=150))
                )
        holds = holds and ledger.holds
    out.print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)
    if not holds:
        raise typer.Exit(1)


@dataclasses.dataclass(frozen=True)
class Report:
    lines: list[str]
    content: dict[str, Any]
    figure: Figure
    holds: bool


@dataclasses.dataclass(frozen=True)
class Ledger:
    lines: list[str]
    content: dict[str, Any]
    holds: bool


def measure(ids: Sequence[str], track: Callable[..., Iterable]) -> Ledger:
    """The rows of the claims `ids`."""
    rows, seconds = [], {}
    for id in track(ids, description="claims"):
        function = CLAIMS[id].measure
        assert function is not None, f"{id} is a figure, without rows"
        start = time.perf_counter()
        rows += function()
        seconds[id] = time.perf_counter() - start
    failed = [row for row in rows if not row.holds]
    lines, last = [], ""
    for row in rows:
        if row.id != last:
            lines.append(f"{row.id}: {CLAIMS[row.id].statement} ({seconds[row.id]:.1f} s)")
            last = row.id
        stated = (
            f"at most {row.stated:.9g}" if row.kind == "at most" else f"stated {row.stated:.9g}"
        )
        lines += [
            f"  {'holds' if row.holds else 'FAILS'}  {row.claim}",
            f"         {stated}, measured {row.measured:.9g}, tolerance {row.tolerance:.2g}: "
            f"{row.why}",
        ]
    summary = f"{len(rows) - len(failed)} of {len(rows)} measurements hold"
    if failed:
        ids_failed = ", ".join(dict.fromkeys(row.id for row in failed))
        summary += f"; FAILS: {ids_failed}"
    content = {
        "rows": [dataclasses.asdict(row) | {"holds": row.holds} for row in rows],
        "seconds": seconds,
    }
    return Ledger([*lines, summary], content, not failed)


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
