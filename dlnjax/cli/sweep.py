"""`dlnjax sweep`."""

import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import rich.markup
import rich.table
import typer

from .._sweep.toml import read_sweep, read_toml
from .console import (
    CommandError,
    Float32,
    err,
    out,
    positive,
    start_jax,
    writable_folder,
    write,
)


def sweep(
    spec: Annotated[Path, typer.Argument(help="A TOML file: the arguments of `dlnjax.Sweep`.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in that folder, if any.")
    ] = False,
    memory: Annotated[
        float, typer.Option(help="GB that a block may take on a device.", callback=positive)
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
    several = _several(coordinator, processes, process, distributed)
    read_toml(spec)  # what is wrong with the file itself is said at once
    start_jax(float32)
    import jax

    from .._sweep.run import run_sweep
    from .._sweep.summary import failures
    from ..plot import sweep_figures

    if several:
        _join(coordinator, processes, process)
    asked = read_sweep(spec)
    store = writable_folder(out_dir) / "sweep.zarr"
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
            raise CommandError(_as_option(e)) from e
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
        written.append(write(picture, lambda p, f=figure: f.savefig(p, dpi=150)))
    out.print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)


def _as_option(message: object) -> str:
    return str(message).replace("`resume=True`", "`--resume`")


def _lanes(data: Any) -> dict[str, int]:
    names = {"instance": "instances", "size": "sizes", "network": "networks"}
    names |= {"weight_decay": "weight decays", "log_eps": "values of ε"}
    lengths = {label: data.sizes.get(dim, 1) for dim, label in names.items()}
    return {label: n for label, n in lengths.items() if n > 1 or label == "instances"}


def _several(
    coordinator: str | None, processes: int | None, process: int | None, distributed: bool
) -> bool:
    """Whether there are other processes. Checks the options that say so."""
    explicit = (coordinator, processes, process)
    if all(value is None for value in explicit):
        return distributed
    if None in explicit or distributed:
        raise typer.BadParameter(
            "pass --coordinator, --processes and --process together, or --distributed alone."
        )
    assert processes is not None and process is not None
    if process >= processes:
        raise typer.BadParameter(f"--process counts from 0 to {processes - 1}, got {process}.")
    return True


def _join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Find the other processes: with `None`, as the cluster says."""
    import jax

    if coordinator is not None:
        jax.distributed.initialize(coordinator, processes, process)
        return
    try:
        jax.distributed.initialize()
    except (RuntimeError, ValueError) as e:
        raise CommandError(
            f"Found no other processes ({e}) Start them with `srun`, or pass --coordinator, "
            "--processes and --process."
        ) from e


def _summary_table(data: Any) -> rich.table.Table:
    from .._sweep.summary import summary
    from ..plot import eps_label

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
