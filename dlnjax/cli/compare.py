"""`dlnjax compare`: data in; averaged flow, lasso path and their distance out."""

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import rich.markup
import rich.table
import typer

from .console import (
    CommandError,
    Float32,
    OutDir,
    non_negative,
    out,
    positive,
    print_table,
    progress_bar,
    start_jax,
    writable_folder,
    write,
    write_report,
)
from .data import Dataset, TableOptions, load, standardize as _standardize

DEFAULT_EPS = (1e-10,)
# To move through: even in log(log(1/ε)), as gaps are of the order of 1/log(1/ε).
PAGE_EPS = (1e-2, 1e-3, 1e-5, 1e-7, 1e-10, 1e-15, 1e-20, 1e-30)


def _network(value: str) -> str:
    name, _, depth = value.partition(":")
    if value not in ("uv", "usquared"):
        try:
            is_known = name == "deep" and 2 <= float(depth) < float("inf")
        except ValueError:
            is_known = False
        if not is_known:
            raise typer.BadParameter(
                f"there is no network {value!r}: there are uv, usquared, and deep:D with D ≥ 2, as "
                "deep:3."
            )
    return value


def _eps(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number.") from None
    if not 0 <= value < 1:
        raise typer.BadParameter(f"ε must lie in [0, 1), got {text}.")
    if value == 0 and any(digit in "123456789" for digit in text.lower().split("e")[0]):
        raise typer.BadParameter(
            f"{text} is too small for float64, whose least number is 5e-324. Pass 0 for the limit, "
            "or use `log_eps` in Python."
        )
    return value


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
        str,
        typer.Option(
            help="`uv` (x = u∘v, signed), `usquared` (x = u∘u ≥ 0) or `deep:D` (x = u^D − v^D).",
            callback=_network,
        ),
    ] = "uv",
    loss: Annotated[
        Literal["square", "logistic"],
        typer.Option(
            help="`logistic` for a target of two classes, 1 and −1, 1 and 0, or two texts."
        ),
    ] = "square",
    eps: Annotated[
        list[float] | None,
        typer.Option(
            help="Size of the initialisation, relative to that of x; repeat for several. 0 is the "
            "limit alone, which is always shown. Default 1e-10; with --html 1e-2 … 1e-30.",
            parser=_eps,
            metavar="ε",
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
    sep: Annotated[
        str, typer.Option(help="csv: what separates cells; `tab` for a tabulator.")
    ] = ",",
    decimal: Annotated[str, typer.Option(help="csv: the decimal point, `.` or `,`.")] = ".",
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="Leave out rows with missing values.")
    ] = False,
    one_hot: Annotated[
        bool,
        typer.Option(
            "--one-hot", help="csv: a column of 0 and 1 for each value of a text, or one for two."
        ),
    ] = False,
    file_format: Annotated[
        Literal["png", "pdf", "svg"], typer.Option("--format", help="Of the figure.")
    ] = "png",
    html: Annotated[
        bool,
        typer.Option(
            "--html",
            help="Also write `compare.html`, a page to explore in a browser; needs `pip install "
            "'dlnjax[html]'`. Without --eps, eight ε, and a table of the last.",
        ),
    ] = False,
    out_dir: OutDir = Path("."),
    float32: Float32 = False,
) -> None:
    """The averaged trajectory of a diagonal linear network beside the exact lasso path.

    Units do not matter: ε is relative to `x`, and the rest of the figure scales with the data.
    Prints a table; writes `compare.png`, or another `--format`, and `compare.json`.
    """
    if html and importlib.util.find_spec("bokeh") is None:
        raise CommandError("--html needs 'bokeh': run `pip install 'dlnjax[html]'`.")
    classes = loss == "logistic"
    options = TableOptions("\t" if sep == "tab" else sep, decimal, drop_missing, one_hot, classes)
    dataset = load(data, target, options)
    for note in dataset.notes:
        out.print(rich.markup.escape(note), soft_wrap=True)
    name, *depth = network.split(":")
    if weight_decay and depth and float(depth[0]) > 2:
        raise CommandError(
            f"--network {network} takes no weight decay, got --weight-decay {weight_decay:g}: its "
            "flow would not close in the dual variable. Leave it out, or use uv, usquared or "
            "deep:2."
        )
    if loss == "square" and len(np.unique(dataset.y)) == 2 < len(dataset.y):
        out.print(
            "The target has two values. If they are classes: `--loss logistic` (1 and −1, 1 and 0, "
            "or two texts)."
        )
    raw = dataset
    if standardize:
        dataset = _standardize(dataset, center_target=loss == "square")
    if same := _same_columns(dataset):
        out.print(rich.markup.escape(same), soft_wrap=True)
    folder = writable_folder(out_dir)

    start_jax(float32)
    from ..plot import comparison_figure
    from ..plot.comparisons import NONZERO
    from .comparison import Asked, parts_of

    values = sorted(set(eps or (PAGE_EPS if html else DEFAULT_EPS)), reverse=True)
    flows_at = [value for value in values if value]
    asked = Asked((name, *map(float, depth)), loss, flows_at, s_max, weight_decay)
    with progress_bar() as progress:
        task = progress.add_task("lasso", total=3 + len(flows_at))
        parts: dict[str, list[dict]] = {"lasso": [], "limit": [], "flow": []}
        steps = ["limit, ε → 0", *(f"flow at ε = {value:g}" for value in flows_at), "figure"]
        for (kind, part), step in zip(parts_of(dataset, asked), steps, strict=True):
            parts[kind].append(part)
            progress.update(task, advance=1, description=step)
        [lasso], [limit], flows = parts.values()
        refused = limit.get("refused")
        if refused and not flows:
            raise CommandError(f"The limit ε → 0 is not known. {refused} Or pass --eps 1e-10.")
        n, d = dataset.X.shape
        decay = f", λ = {weight_decay:g}" if weight_decay else ""
        title = f"{dataset.name}: {n} × {d}, target {dataset.target}, {network}{decay}"
        title += ", logistic loss" if loss == "logistic" else ""
        shown = None if refused else limit
        figure = comparison_figure(title, lasso["s"], dataset.columns, lasso, shown, flows)
        path = folder / f"compare.{file_format}"
        picture = write(path, lambda p: figure.savefig(p, dpi=150))
        progress.update(task, advance=1)

    out.print(f"[bold]{rich.markup.escape(title)}[/]")
    _print_lasso(lasso, network, loss)
    if refused:
        out.print(f"ε → 0 is left out. {refused}", soft_wrap=True)
    elif limit["separates_at"] is not None:
        out.print(
            f"the active columns separate the classes: as ε → 0 x is infinite from s = "
            f"{limit['separates_at']:.4g} on, or shortly before",
            soft_wrap=True,
        )
    for part in (flows if eps else flows[-1:]) or [limit]:
        print_table(_table(lasso, part, None if refused else limit))
    out.print(
        f"non-zero: |xᵢ|‖Xᵢ‖ is more than {NONZERO:g} of the largest (|Xⱼᵀy| − λ)/‖Xⱼ‖",
        soft_wrap=True,
    )
    report = {
        "data": {"name": dataset.name, "n": n, "d": d, "target": dataset.target},
        "notes": dataset.notes,
        "columns": dataset.columns,
        "network": network,
        "loss": loss,
        "weight_decay": weight_decay,
        "standardized": standardize,
        "means": raw.X.mean(axis=0) if standardize else None,
        "norms": np.linalg.norm(raw.X - raw.X.mean(axis=0), axis=0) if standardize else None,
        "dtype": "float32" if float32 else "float64",
        "lasso": lasso,
        "limit": limit,
        "flows": flows,
    }
    written = [picture, write_report(folder / "compare.json", report)]
    if html:
        from .page import page

        text = page(title, report)
        written.append(
            write(folder / "compare.html", lambda p: p.write_text(text, encoding="utf-8"))
        )
    *others, last = map(str, written)
    out.print(f"wrote {', '.join(others)} and {last}", soft_wrap=True)


def _same_columns(data: Dataset) -> str | None:
    """A line on the first columns that are equal or opposite, up to their size and rounding."""
    norms = np.linalg.norm(data.X, axis=0)
    columns = data.X / np.where(norms > 0, norms, 1)
    first = np.argmax(np.abs(columns) > 0.5 / np.sqrt(len(columns)), axis=0)
    signs = np.sign(np.take_along_axis(columns, first[None], axis=0)[0])
    seen: dict[bytes, str] = {}
    for name, column, norm in zip(data.columns, (columns * signs).T, norms, strict=True):
        other = seen.setdefault((np.round(column, 12) + 0.0).tobytes(), name)
        if norm > 0 and other != name:
            return (
                f"columns {other!r} and {name!r} are equal or opposite but for their size: the "
                "lasso shown is one of several, and the flow shares among them"
            )
    return None


def _print_lasso(lasso: dict[str, Any], network: str, loss: str) -> None:
    kind = "positive lasso" if network == "usquared" else "lasso"
    s = lasso["s"]
    if loss == "logistic":
        gap = max(lasso["duality_gap"])
        out.print(
            f"logistic {kind}: {len(s)} solutions, μ = {s[0]:.4g} … {s[-1]:.4g}, relative duality "
            f"gap {gap:.1e}",
            soft_wrap=True,
        )
        return
    out.print(
        f"{kind} path: {lasso['num_knots']} knots, s = {lasso['first_knot']:.4g} … "
        f"{lasso['last_knot']:.4g}, {'monotone' if lasso['is_monotone'] else 'not monotone'}, "
        f"KKT residual {lasso['kkt_residual']:.1e}",
        soft_wrap=True,
    )
    if beyond := lasso["knots_beyond"]:
        out.print(
            f"shown up to s = {s[-1]:.4g}: {beyond} of {lasso['num_knots']} knots lie beyond, up "
            f"to s = {lasso['last_knot']:.4g} (--s-max)",
            soft_wrap=True,
        )


def _table(
    lasso: dict[str, Any], flow: dict[str, Any], limit: dict[str, Any] | None, rows: int = 12
) -> rich.table.Table:
    """Of a flow with the gap of the limit beside it, or of the limit itself."""
    is_flow = "certified_gap" in flow
    steps = f" ({flow['steps']} steps)" if is_flow else ""
    table = rich.table.Table(
        title=f"averaged flow at {flow['label']}{steps} beside the lasso at μ = s",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    gaps = {"relative\ngap": flow["relative_gap"]}
    if is_flow:
        gaps |= {"at\nε → 0": limit["relative_gap"]} if limit else {}
        gaps["certified\ngap"] = flow["certified_gap"]
    for column in (
        *("s", "non-zero\nflow las.", "loss\nflow", "\nlasso", "1-norm\nflow", "\nlasso"),
        *gaps,
    ):
        table.add_column(column, justify="right", no_wrap=True)
    size = len(lasso["s"])
    for i in [round(j * (size - 1) / (rows - 1)) for j in range(rows)]:
        table.add_row(
            f"{lasso['s'][i]:.4g}",
            f"{flow['nonzeros'][i]:4.0f} {lasso['nonzeros'][i]:4.0f}",
            f"{flow['loss'][i]:.4g}",
            f"{lasso['loss'][i]:.4g}",
            f"{flow['norm'][i]:.4g}",
            f"{lasso['norm'][i]:.4g}",
            *(f"{gap[i]:.1e}" for gap in gaps.values()),
        )
    return table
