"""`dlnjax reproduce`: what papers claim, measured."""

from pathlib import Path
from typing import Annotated

import rich.markup
import typer

from .console import (
    OutDir,
    out,
    progress_bar,
    start_jax,
    writable_folder,
    write,
    write_report,
)


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
    `W23-fig3`, `PF23-fixture`, `MS25-rate`, `Gis20-scalar`, `Jac25-decay`, `Pes21-sgf`,
    `Pap24-momentum`, `Zhao26-growth`, `Dec26-start`, `Mor20-path`, `Gun18-margin` and
    `GB21-risk`.
    Ends with an error if a claim does not hold.
    """
    chosen = list(dict.fromkeys(claims or []))
    if not (chosen or all_claims or show):
        raise typer.BadParameter("name a claim, such as `B25-fig1`, or pass `--all` or `--list`.")
    start_jax(float32)
    from ..papers.figures import FIGURES
    from ..papers.ledger import CLAIMS, FIGURE, measure

    if show:
        for claim in CLAIMS.values():
            line = f"{claim.id:16s} {claim.statement}"
            out.print(rich.markup.escape(line), soft_wrap=True)
        return
    chosen = list(CLAIMS) if all_claims else chosen
    unknown = [id for id in chosen if id not in CLAIMS]
    if unknown:
        raise typer.BadParameter(
            f"unknown claim {', '.join(map(repr, unknown))}: there is {', '.join(CLAIMS)}."
        )
    if float32 and chosen != [FIGURE]:
        raise typer.BadParameter(f"--float32 works with {FIGURE} only: tolerances are for float64.")
    folder = writable_folder(out_dir)
    written = []
    holds = True
    if FIGURE in chosen:
        from ..papers.b25_fig1 import figure1

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
