"""`dlnjax compare`: data in; averaged flow, lasso path and their distance out."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import rich.markup
import rich.table
import typer

from .._flow.gradient_flow import gradient_flow
from .._gap import certificate, suboptimality_gap
from .._lasso.path import lasso_path
from .._path import PiecewiseLinearPath
from .._problem import LeastSquares
from .._sweep.arguments import NETWORKS
from ..plot import comparison_figure
from .console import (
    CommandError,
    Float32,
    OutDir,
    non_negative,
    out,
    positive,
    progress_bar,
    set_precision,
    unit_interval,
    writable_folder,
    write,
    write_report,
)
from .data import Dataset, load, standardize as _standardize

POINTS = 200
DECADES = 3
# x̄ is never exactly 0: a coordinate counts once it is this large beside the largest of all.
NONZERO = 1e-3


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
    assert eps is not None
    dataset = load(data, target)
    if standardize:
        dataset = _standardize(dataset)
    folder = writable_folder(out_dir)

    with progress_bar() as progress:
        task = progress.add_task("lasso path", total=2 + len(eps))
        parts: dict[str, list[dict]] = {"lasso": [], "flow": []}
        steps = [f"flow at ε = {value:g}" for value in eps] + ["figure"]
        for (kind, part), step in zip(
            _parts(dataset, network, eps, s_max, weight_decay), steps, strict=True
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
    report = write_report(
        folder / "compare.json",
        {
            "data": {"name": dataset.name, "n": n, "d": d, "target": dataset.target},
            "columns": dataset.columns,
            "network": network,
            "weight_decay": weight_decay,
            "standardized": standardize,
            "dtype": "float32" if float32 else "float64",
            "lasso": lasso,
            "flows": flows,
        },
    )
    out.print(f"wrote {picture} and {report}", soft_wrap=True)


def _parts(
    data: Dataset,
    network: str,
    eps: Sequence[float],
    s_max: float | None,
    weight_decay: float,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of the report, as they get ready: first the lasso, then one flow per `ε`."""
    problem = LeastSquares(data.X, data.y, weight_decay)
    net = NETWORKS[network](data.X.shape[1])
    path = lasso_path(problem, positive=net.positive)
    s = _time_grid(path, s_max)
    yield (
        "lasso",
        {
            "s": s,
            "num_knots": int(path.num_knots),
            "first_knot": float(path.knots[0]),
            "last_knot": float(path.knots[-1]),
            "is_monotone": bool(path.is_monotone()),
            "kkt_residual": float(jnp.max(path.kkt_residual(problem))),
            **_describe(problem, path.x(s), exact=True),
        },
    )
    for value in eps:
        flow = gradient_flow(net, problem, s, eps=value)
        gap = suboptimality_gap(problem, flow.x_mean, s, path=path)
        least = problem.lasso_objective(flow.x_mean, s) - gap.absolute
        yield (
            "flow",
            {
                "eps": value,
                "label": f"ε = {value:g}",
                "steps": int(flow.stats["num_steps"]),
                "relative_gap": np.asarray(gap.relative),
                "certified_gap": np.asarray(certificate(problem, flow) / least),
                **_describe(problem, flow.x_mean, exact=False),
            },
        )


def _time_grid(path: PiecewiseLinearPath, s_max: float | None) -> np.ndarray:
    """`POINTS` times, log-spaced from the first knot to twice the last one, at most `DECADES`
    decades, unless `s_max` says otherwise."""
    if int(path.num_knots) == 0:
        raise CommandError(
            "The lasso path is 0 for every μ: no column correlates with the response by more "
            "than the weight decay. Lower --weight-decay, or look at the data."
        )
    first, last = float(path.knots[0]), float(path.knots[-1])
    if s_max is None:
        s_max = min(2 * last, 10.0**DECADES * first)
    if s_max <= first:
        raise CommandError(
            f"--s-max = {s_max:g} ends before the first knot of the path, s = {first:.4g}: "
            "everything is 0 there. Pass a larger value."
        )
    grid = np.geomspace(first, s_max, POINTS)
    return np.concatenate([[first], grid[1:-1], [s_max]])  # exact ends


def _describe(problem: LeastSquares, x: jax.Array, exact: bool) -> dict[str, np.ndarray]:
    size = np.abs(np.asarray(x))
    threshold = 0 if exact else NONZERO * size.max()
    return {
        "x": np.asarray(x),
        "loss": np.asarray(problem.loss(x)),
        "norm": size.sum(axis=1),
        "nonzeros": (size > threshold).sum(axis=1),
    }


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
