"""The command `dlnjax`."""

import json
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

try:
    import rich.console
    import rich.markup
    import rich.progress
    import rich.table
    import typer
except ModuleNotFoundError as e:
    raise SystemExit(
        f"The command line needs {e.name!r}: run `pip install 'dlnjax[cli]'`."
    ) from None

# jaxlib 0.10.2 waits for ever where as many batched factorisations run at once as its pool has
# threads, of which there is one for each core (README).
if (os.cpu_count() or 1) < 8:
    os.environ.setdefault("PJRT_NPROC", "8")

import equinox as eqx
import jax
import numpy as np

from ._compare import NETWORKS, EmptyPathError, compare as run_comparison
from ._data import DataError, load, standardise
from ._paper_figures import FIGURES
from ._plotting import comparison_figure
from ._reproduce import figure1, measure
from ._sweep._plots import eps_label, sweep_figures
from ._sweep._run import run_sweep
from ._sweep._summary import failures, summary
from ._sweep._toml import SpecError, read_sweep
from .papers.ledger import CLAIMS, FIGURE

out = rich.console.Console(highlight=False)
err = rich.console.Console(stderr=True, highlight=False)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Diagonal linear networks and the lasso regularisation path.",
)

OutDir = Annotated[Path, typer.Option("--out", help="Folder for the files that are written.")]
Float32 = Annotated[bool, typer.Option("--float32", help="Compute in single precision.")]


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


class OutputError(Exception):
    """The results cannot be written."""


class SweepError(Exception):
    """The sweep cannot start or go on."""


def _set_precision(float32: bool) -> None:
    jax.config.update("jax_enable_x64", not float32)


def _progress() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def _folder(path: Path) -> Path:
    """Fail before the work, not after it, if `path` cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"Cannot create the folder {path}: {e.strerror}.") from e
    if not os.access(path, os.W_OK):
        raise OutputError(f"Cannot write into the folder {path}. Pass another one as --out.")
    return path


def _write(path: Path, save: Callable[[Path], Any]) -> Path:
    try:
        save(path)
    except OSError as e:
        raise OutputError(f"Cannot write {path}: {e.strerror}.") from e
    return path


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    def plain(value):
        if isinstance(value, np.ndarray):
            return plain(value.tolist())
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        if isinstance(value, float) and not np.isfinite(value):
            return None  # JSON has no NaN or infinity
        return value

    text = json.dumps(plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    return _write(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def _provenance() -> dict[str, str]:
    packages = ("dlnjax", "jax", "jaxlib", "diffrax", "equinox")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


def _positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"must be positive and finite, got {value:g}.")
    return value


def _non_negative(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"must be non-negative and finite, got {value:g}.")
    return value


def _unit_interval(values: list[float]) -> list[float]:
    for value in values:
        if not 0 < value < 1:
            raise typer.BadParameter(f"ε must lie in (0, 1), got {value:g}.")
    return sorted(set(values), reverse=True)


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
            callback=lambda values: _unit_interval(values or [1e-5]),
        ),
    ] = None,
    s_max: Annotated[
        float | None,
        typer.Option(
            help="End of the grid. Default: twice the last knot, at most 1000 times the first.",
            callback=lambda value: None if value is None else _positive(value),
        ),
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="λ ≥ 0.", callback=_non_negative)] = 0.0,
    standardize: Annotated[
        bool, typer.Option(help="Centre y; centre the columns and scale them to unit norm.")
    ] = True,
    out_dir: OutDir = Path("."),
    float32: Float32 = False,
) -> None:
    """The averaged trajectory of a diagonal linear network beside the exact lasso path.

    Prints a table; writes `compare.png` and `compare.json`.
    """
    _set_precision(float32)
    if network not in NETWORKS:
        raise typer.BadParameter(
            f"unknown network {network!r}: use {' or '.join(NETWORKS)}.", param_hint="--network"
        )
    assert eps is not None
    dataset = load(data, target)
    if standardize:
        dataset = standardise(dataset)
    folder = _folder(out_dir)

    with _progress() as progress:
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
        picture = _write(folder / "compare.png", lambda p: figure.savefig(p, dpi=150))
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
    report = _write_json(
        folder / "compare.json",
        {
            "data": {"name": dataset.name, "n": n, "d": d, "target": dataset.target},
            "columns": dataset.columns,
            "network": network,
            "weight_decay": weight_decay,
            "standardized": standardize,
            "dtype": "float32" if float32 else "float64",
            "versions": _provenance(),
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
    _set_precision(float32)
    folder = _folder(out_dir)
    written = []
    holds = True
    if FIGURE in chosen:
        with _progress() as progress:
            report = figure1(instances, path_instances, seed, progress.track)
        picture = _write(folder / f"{FIGURE}.png", lambda p: report.figure.savefig(p, dpi=150))
        content = report.content | {"versions": _provenance()}
        written += [picture, _write_json(folder / f"{FIGURE}.json", content)]
        for line in report.lines:
            out.print(line, soft_wrap=True)
        holds = report.holds
    rest = [id for id in chosen if id != FIGURE]
    if rest:
        with _progress() as progress:
            ledger = measure(rest, progress.track)
        for line in ledger.lines:
            out.print(rich.markup.escape(line), soft_wrap=True)
        content = ledger.content | {"versions": _provenance()}
        written.append(_write_json(folder / "ledger.json", content))
        for id in rest:
            if id in FIGURES:
                figure = FIGURES[id]()
                written.append(
                    _write(folder / f"{id}.png", lambda p, f=figure: f.savefig(p, dpi=150))
                )
        holds = holds and ledger.holds
    out.print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)
    if not holds:
        raise typer.Exit(1)


@app.command()
def sweep(
    spec: Annotated[Path, typer.Argument(help="A TOML file: the arguments of `dlnjax.Sweep`.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in that folder, if any.")
    ] = False,
    memory: Annotated[
        float, typer.Option(help="GB that a block may take on a device.", callback=_positive)
    ] = 1.0,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, for several processes.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="How many there are.", min=1)] = None,
    process: Annotated[int | None, typer.Option(help="Which one this is.", min=0)] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Find the other processes, as under SLURM.")
    ] = False,
    float32: Float32 = False,
) -> None:
    """Metrics of many instances, on all devices.

    Prints a table; writes `sweep.zarr`, which `dlnjax.open_sweep` reads, and figures.
    """
    _set_precision(float32)
    _join(coordinator, processes, process, distributed)
    asked = read_sweep(spec)
    store = _folder(out_dir) / "sweep.zarr"
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = lambda message, *_, **__: err.print(
            f"[yellow]Warning:[/] {rich.markup.escape(_as_option(message))}", soft_wrap=True
        )
        try:
            data = run_sweep(asked, store, resume=resume, memory=int(memory * 1e9))
        except KeyboardInterrupt:
            again = [*sys.argv[1:], *["--resume"] * (not resume)]
            err.print("Interrupted. What is written is kept; go on with")
            err.print(rich.markup.escape(shlex.join(["dlnjax", *again])), soft_wrap=True)
            raise typer.Exit(130) from None
        except (ModuleNotFoundError, OSError, ValueError) as e:
            raise SweepError(_as_option(e)) from e
    if jax.process_index() > 0:
        return
    out.print(" × ".join(f"{length} {label}" for label, length in _lanes(data).items()) + ": done")
    for name, count in failures(data).items():
        out.print(f"[red]failed[/] {name}, {count} lanes: NaN in the metrics that need it")
    if (table := _summary_table(data)).row_count:
        out.print(table, width=120)
    written = [store]
    for name, figure in sweep_figures(data).items():
        picture = out_dir / f"{name}.png"
        written.append(_write(picture, lambda p, f=figure: f.savefig(p, dpi=150)))
    out.print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)


def _as_option(message: object) -> str:
    return str(message).replace("`resume=True`", "`--resume`")


def _lanes(data: Any) -> dict[str, int]:
    names = {"instance": "instances", "size": "sizes", "network": "networks"}
    names |= {"weight_decay": "weight decays", "log_eps": "values of ε"}
    lengths = {label: data.sizes.get(dim, 1) for dim, label in names.items()}
    return {label: n for label, n in lengths.items() if n > 1 or label == "instances"}


def _join(
    coordinator: str | None, processes: int | None, process: int | None, distributed: bool
) -> None:
    """Find the other processes, if there are any."""
    explicit = (coordinator, processes, process)
    if any(value is not None for value in explicit):
        if None in explicit or distributed:
            raise typer.BadParameter(
                "pass --coordinator, --processes and --process together, or --distributed alone."
            )
        assert processes is not None and process is not None
        if process >= processes:
            raise typer.BadParameter(f"--process counts from 0 to {processes - 1}, got {process}.")
        jax.distributed.initialize(coordinator, processes, process)
    elif distributed:
        try:
            jax.distributed.initialize()
        except (RuntimeError, ValueError) as e:
            raise SweepError(
                f"Found no other processes ({e}) Start them with `srun`, or pass --coordinator, "
                "--processes and --process."
            ) from e


def _summary_table(data: Any) -> rich.table.Table:
    table = rich.table.Table(box=None, pad_edge=False)
    labels = {"size": "size", "network": "network", "weight_decay": "λ", "log_eps": "ε"}
    columns = {axis: label for axis, label in labels.items() if data.sizes.get(axis, 1) > 1}
    for label in ("metric", *columns.values()):
        table.add_column(label, no_wrap=True)
    for label in ("mean", "± s.e.", "median", "95 %", "largest"):
        table.add_column(label, justify="right", no_wrap=True)
    shown = {"log_eps": eps_label, "weight_decay": "{:g}".format}
    for row in summary(data):
        place = [
            shown.get(axis, str)(row.place[axis]) if axis in row.place else "" for axis in columns
        ]
        numbers = [f"{value:.4g}" for value in (row.mean, row.median, row.high, row.largest)]
        numbers.insert(1, f"{row.standard_error:.1g}")
        table.add_row(row.metric, *place, *numbers)
    return table


@app.command()
def info() -> None:
    """Versions, devices, precision."""
    for name, number in _provenance().items():
        out.print(f"{name:9s} {number}")
    for device in jax.devices():
        out.print(f"device    {device.platform} {device.id}: {device.device_kind}")
    out.print("precision float64 in this command (--float32 opts out)")
    state = "on" if jax.config.read("jax_enable_x64") else "off: JAX computes in float32"
    out.print(f"          in Python, JAX's own setting: jax_enable_x64 is {state}")


if __name__ == "__main__":
    main()
