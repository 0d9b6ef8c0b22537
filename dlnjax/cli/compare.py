"""`dlnjax compare`: data in; averaged flow, lasso path and their distance out."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import rich.markup
import rich.table
import typer

from .console import (
    Float32,
    OutDir,
    non_negative,
    out,
    positive,
    print_table,
    progress_bar,
    start_jax,
    unit_interval,
    writable_folder,
    write,
    write_report,
)
from .data import load, standardize as _standardize


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
        Literal["uv", "usquared"],
        typer.Option(help="`uv` (x = u∘v, signed) or `usquared` (x = u∘u ≥ 0)."),
    ] = "uv",
    loss: Annotated[
        Literal["square", "logistic"],
        typer.Option(help="`logistic` for a target of two classes, 1 and −1 or 1 and 0."),
    ] = "square",
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
            help="End of the grid. Default: twice the last knot, at most 1000 times the first; for "
            "the logistic loss, 1000 times the first.",
            callback=lambda value: None if value is None else positive(value),
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="λ ≥ 0.", callback=non_negative)] = 0.0,
    standardize: Annotated[
        bool,
        typer.Option(
            help="Centre y, but for classes; centre the columns and scale them to unit norm."
        ),
    ] = True,
    out_dir: OutDir = Path("."),
    float32: Float32 = False,
) -> None:
    """The averaged trajectory of a diagonal linear network beside the exact lasso path.

    Prints a table; writes `compare.png` and `compare.json`.
    """
    assert eps is not None
    dataset = load(data, target)
    if loss == "square" and len(np.unique(dataset.y)) == 2:
        out.print(
            "The target has two values. If they are classes: `--loss logistic` (1 and −1, or 1 and "
            "0)."
        )
    if standardize:
        dataset = _standardize(dataset, center_target=loss == "square")
    folder = writable_folder(out_dir)

    start_jax(float32)
    from ..plot import comparison_figure
    from .comparison import parts_of

    with progress_bar() as progress:
        task = progress.add_task("lasso path", total=2 + len(eps))
        parts: dict[str, list[dict]] = {"lasso": [], "flow": []}
        steps = [f"flow at ε = {value:g}" for value in eps] + ["figure"]
        for (kind, part), step in zip(
            parts_of(dataset, network, loss, eps, s_max, weight_decay), steps, strict=True
        ):
            parts[kind].append(part)
            progress.update(task, advance=1, description=step)
        [lasso], flows = parts["lasso"], parts["flow"]
        n, d = dataset.X.shape
        decay = f", λ = {weight_decay:g}" if weight_decay else ""
        title = f"{dataset.name}: {n} × {d}, target {dataset.target}, {network}{decay}"
        title += ", logistic loss" if loss == "logistic" else ""
        figure = comparison_figure(title, lasso["s"], dataset.columns, lasso, flows)
        picture = write(folder / "compare.png", lambda p: figure.savefig(p, dpi=150))
        progress.update(task, advance=1)

    out.print(f"[bold]{rich.markup.escape(title)}[/]")
    kind = "positive lasso" if network == "usquared" else "lasso"
    if loss == "logistic":
        gap = max(lasso["duality_gap"])
        out.print(
            f"logistic {kind}: {len(lasso['s'])} solutions, μ = {lasso['s'][0]:.4g} … "
            f"{lasso['s'][-1]:.4g}, relative duality gap {gap:.1e}"
        )
    else:
        out.print(
            f"{kind} path: {lasso['num_knots']} knots, s = {lasso['first_knot']:.4g} … "
            f"{lasso['last_knot']:.4g}, {'monotone' if lasso['is_monotone'] else 'not monotone'}, "
            f"KKT residual {lasso['kkt_residual']:.1e}"
        )
    for flow in flows:
        print_table(_table(lasso, flow))
    report = write_report(
        folder / "compare.json",
        {
            "data": {"name": dataset.name, "n": n, "d": d, "target": dataset.target},
            "columns": dataset.columns,
            "network": network,
            "loss": loss,
            "weight_decay": weight_decay,
            "standardized": standardize,
            "dtype": "float32" if float32 else "float64",
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
