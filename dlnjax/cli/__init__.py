"""The command `dlnjax`."""

import sys
from pathlib import Path
from typing import Annotated, Any

try:
    import rich.markup
    import rich.table
    import typer
except ModuleNotFoundError as _error:
    raise SystemExit(
        f"The command line needs {_error.name!r}: run `pip install 'dlnjax[cli]'`."
    ) from None

import equinox as eqx
import jax

from .._sweep.toml import SpecError
from ..papers.figures import FIGURES
from ..papers.ledger import CLAIMS, FIGURE
from ..plot import comparison_figure
from .compare import NETWORKS, EmptyPathError, compare as run_comparison
from .console import (
    Float32,
    OutDir,
    OutputError,
    err,
    non_negative,
    out,
    positive,
    progress_bar,
    provenance,
    set_precision,
    unit_interval,
    writable_folder,
    write,
    write_json,
)
from .data import DataError, load, standardize as standardized
from .info import check as run_checks
from .reproduce import figure1, measure
from .sweep import SweepError, sweep

app: typer.Typer = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Diagonal linear networks and the lasso regularisation path.",
)


def main() -> None:
    """Run the command; turn the errors that users can act on into one line."""
    try:
        app()
    except _user_errors() as e:
        err.print(f"[bold red]Error:[/] {rich.markup.escape(str(e))}", soft_wrap=True)
        sys.exit(1)


def _user_errors() -> tuple[type[Exception], ...]:
    # Only errors of ours, or of the solvers, carry a message for users.
    return DataError, EmptyPathError, OutputError, SpecError, SweepError, eqx.EquinoxRuntimeError


@app.command()
def compare(
    data: Annotated[
        str,
        typer.Argument(
            help="`diabetes`, `diabetes-quadratic`, `khan`, or a `.csv` or `.npz` file."
        ),
    ],
    target: Annotated[
        str | None, typer.Option(help="Column (csv) or array (npz, default `y`) to predict.")
    ] = None,
    network: Annotated[
        str, typer.Option(help="`uv` (x = u∘v, signed) or `usquared` (x = u∘u ≥ 0).")
    ] = "uv",
    eps: Annotated[
        list[float] | None,
        typer.Option(
            help="Size of the initialisation; repeat for several. Default 1e-5.",
            callback=lambda values: unit_interval(values or [1e-5]),
        ),
    ] = None,
    s_max: Annotated[
        float | None,
        typer.Option(
            help="End of the grid. Default: twice the last knot, at most 1000 times the first.",
            callback=lambda value: None if value is None else positive(value),
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="λ ≥ 0.", callback=non_negative)] = 0.0,
    standardize: Annotated[
        bool, typer.Option(help="Centre y; centre the columns and scale them to unit norm.")
    ] = True,
    out_dir: OutDir = Path("."),
    float32: Float32 = False,
) -> None:
    """The averaged trajectory of a diagonal linear network beside the exact lasso path.

    Prints a table; writes `compare.png` and `compare.json`.
    """
    set_precision(float32)
    if network not in NETWORKS:
        raise typer.BadParameter(
            f"unknown network {network!r}: use {' or '.join(NETWORKS)}.", param_hint="--network"
        )
    assert eps is not None
    dataset = load(data, target)
    if standardize:
        dataset = standardized(dataset)
    folder = writable_folder(out_dir)

    with progress_bar() as progress:
        task = progress.add_task("lasso path", total=2 + len(eps))
        parts: dict[str, list[dict]] = {"lasso": [], "flow": []}
        steps = [f"flow at ε = {value:g}" for value in eps] + ["figure"]
        for (kind, part), step in zip(
            run_comparison(dataset, network, eps, s_max, weight_decay), steps, strict=True
        ):
            parts[kind].append(part)
            progress.update(task, advance=1, description=step)
        [lasso], flows = parts["lasso"], parts["flow"]
        n, d = dataset.X.shape
        decay = f", λ = {weight_decay:g}" if weight_decay else ""
        title = f"{dataset.name}: {n} × {d}, target {dataset.target}, {network}{decay}"
        figure = comparison_figure(title, lasso["s"], dataset.columns, lasso, flows)
        picture = write(folder / "compare.png", lambda p: figure.savefig(p, dpi=150))
        progress.update(task, advance=1)

    out.print(f"[bold]{rich.markup.escape(title)}[/]")
    kind = "positive lasso path" if network == "usquared" else "lasso path"
    out.print(
        f"{kind}: {lasso['num_knots']} knots, s = {lasso['first_knot']:.4g} … "
        f"{lasso['last_knot']:.4g}, {'monotone' if lasso['is_monotone'] else 'not monotone'}, "
        f"KKT residual {lasso['kkt_residual']:.1e}"
    )
    for flow in flows:
        out.print(_table(lasso, flow))
    report = write_json(
        folder / "compare.json",
        {
            "data": {"name": dataset.name, "n": n, "d": d, "target": dataset.target},
            "columns": dataset.columns,
            "network": network,
            "weight_decay": weight_decay,
            "standardized": standardize,
            "dtype": "float32" if float32 else "float64",
            "versions": provenance(),
            "lasso": lasso,
            "flows": flows,
        },
    )
    out.print(f"wrote {picture} and {report}", soft_wrap=True)


def _table(lasso: dict[str, Any], flow: dict[str, Any], rows: int = 12) -> rich.table.Table:
    table = rich.table.Table(
        title=f"averaged flow at {flow['label']} ({flow['steps']} steps) beside the lasso at μ = s",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for column in (
        "s",
        "non-zero\nflow las.",
        "loss\nflow",
        "\nlasso",
        "1-norm\nflow",
        "\nlasso",
        "relative\ngap",
        "certified\ngap",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    size = len(lasso["s"])
    for i in [round(j * (size - 1) / (rows - 1)) for j in range(rows)]:
        table.add_row(
            f"{lasso['s'][i]:.4g}",
            f"{flow['nonzeros'][i]:4d} {lasso['nonzeros'][i]:4d}",
            f"{flow['loss'][i]:.4g}",
            f"{lasso['loss'][i]:.4g}",
            f"{flow['norm'][i]:.4g}",
            f"{lasso['norm'][i]:.4g}",
            f"{flow['relative_gap'][i]:.1e}",
            f"{flow['certified_gap'][i]:.1e}",
        )
    return table


@app.command()
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
        content = report.content | {"versions": provenance()}
        written += [picture, write_json(folder / f"{FIGURE}.json", content)]
        for line in report.lines:
            out.print(line, soft_wrap=True)
        holds = report.holds
    rest = [id for id in chosen if id != FIGURE]
    if rest:
        with progress_bar() as progress:
            ledger = measure(rest, progress.track)
        for line in ledger.lines:
            out.print(rich.markup.escape(line), soft_wrap=True)
        content = ledger.content | {"versions": provenance()}
        written.append(write_json(folder / "ledger.json", content))
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


app.command()(sweep)


@app.command()
def info(
    check: Annotated[
        bool, typer.Option("--check", help="Run the main solvers once, against stored values.")
    ] = False,
    float32: Float32 = False,
) -> None:
    """Versions, devices, precision; with --check, whether the solvers work here."""
    state = "on" if jax.config.read("jax_enable_x64") else "off: JAX computes in float32"
    set_precision(float32)
    for name, number in provenance().items():
        out.print(f"{name:9s} {number}")
    for device in jax.devices():
        out.print(f"device    {device.platform} {device.id}: {device.device_kind}")
    out.print(
        "precision float32 in this command"
        if float32
        else "precision float64 in this command (--float32 opts out)"
    )
    out.print(f"          in Python, JAX's own setting: jax_enable_x64 is {state}")
    if not check:
        return
    holds = True
    for one in run_checks():
        mark = "[green]ok[/]   " if one.passes else "[red]wrong[/]"
        out.print(f"{mark} {one.solver:20s} off by {one.difference:.1e}, {one.seconds:4.1f} s")
        holds = holds and one.passes
    if not holds:
        err.print("These values are wrong: please report them with all of the above.")
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
