"""`dlnjax sweep`."""

import contextlib
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Iterator
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
    print_table,
    start_jax,
    writable_folder,
    write,
)
from .workers import check_options, executor

BUSY = 75  # the exit code where another process drives: EX_TEMPFAIL, try again later
_POLL = 10.0  # seconds between the tries of `--wait`


def sweep(
    spec: Annotated[Path, typer.Argument(help="A TOML file: the arguments of `dlnjax.Sweep`.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in that folder, if any.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait while another process computes this sweep.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes on this host. Default: this one alone.", min=1)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, for its workers.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Take a scheduler on another host without TLS.")
    ] = False,
    memory: Annotated[
        float, typer.Option(help="GB that a task may take on a device.", callback=positive)
    ] = 1.0,
    float32: Float32 = False,
) -> None:
    """Metrics of many instances, on all devices and cores.

    Prints a table; writes `sweep.zarr`, which `dlnjax.open_sweep` reads, and figures.
    """
    check_options(workers, scheduler, insecure)
    read_toml(spec)  # what is wrong with the file itself is said at once
    start_jax(float32)

    from .._sweep.summary import failures, not_computed
    from ..plot import sweep_figures

    asked = read_sweep(spec)
    store = writable_folder(out_dir) / "sweep.zarr"
    with _for_users(resume), executor(workers, scheduler, spec.absolute().parent) as pool:
        data = _run(asked, store, wait, executor=pool, resume=resume, memory=int(memory * 1e9))
    out.print(" × ".join(f"{length} {label}" for label, length in _lanes(data).items()) + ": done")
    for name, count in failures(data).items():
        lanes = "lane" if count == 1 else "lanes"
        out.print(f"[red]failed[/] {name}, {count} {lanes}: NaN in the metrics that need it")
    if missing := not_computed(data):
        out.print(f"[red]not computed[/] {missing} instances")
    if (table := _summary_table(data)).row_count:
        print_table(table)
    written = [store]
    for name, figure in sweep_figures(data).items():
        picture = out_dir / f"{name}.png"
        written.append(write(picture, lambda p, f=figure: f.savefig(p, dpi=150)))
    out.print(f"wrote {', '.join(map(str, written))}", soft_wrap=True)


def _run(asked: Any, store: Path, wait: bool, **options: Any) -> Any:
    """`run_sweep`, when it is our turn."""
    from .._sweep.run import run_sweep

    said = False
    while True:
        try:
            return run_sweep(asked, store, **options)
        except BlockingIOError as e:
            if not wait:
                err.print(rich.markup.escape(f"{e} (--wait does that.)"), soft_wrap=True)
                raise typer.Exit(BUSY) from None
            if not said:
                err.print(rich.markup.escape(f"{e} Waiting …"), soft_wrap=True)
            said = True
            options["resume"] = True  # what the other leaves, if it dies
            time.sleep(_POLL)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers of clusters send it before they kill."""


@contextlib.contextmanager
def _for_users(resume: bool) -> Iterator[None]:
    """Warnings, errors, Ctrl-C and SIGTERM as messages."""

    def terminate(*_: Any) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = lambda message, *_, **__: err.print(
            f"[yellow]Warning:[/] {rich.markup.escape(_as_option(message))}", soft_wrap=True
        )
        try:
            yield
        except KeyboardInterrupt as e:
            again = [*sys.argv[1:], *["--resume"] * (not resume)]
            err.print("Interrupted. What is written is kept; go on with")
            err.print(rich.markup.escape(shlex.join(["dlnjax", *again])), soft_wrap=True)
            raise typer.Exit(143 if isinstance(e, _Terminated) else 130) from None
        except typer.Exit:
            raise
        except (ModuleNotFoundError, OSError, RuntimeError, ValueError) as e:
            raise CommandError(_as_option(e)) from e
        finally:
            signal.signal(signal.SIGTERM, before)


def _as_option(message: object) -> str:
    return str(message).replace("`resume=True`", "`--resume`")


def _lanes(data: Any) -> dict[str, int]:
    names = {"instance": "instances", "size": "sizes", "network": "networks"}
    names |= {"weight_decay": "weight decays", "log_eps": "values of ε"}
    lengths = {label: data.sizes.get(dim, 1) for dim, label in names.items()}
    return {label: n for label, n in lengths.items() if n > 1 or label == "instances"}


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
        if not row.known:
            why = "not computed" if row.missing else "all failed"
            table.add_row(row.metric, *place, why)
            continue
        numbers = [f"{value:.4g}" for value in (row.mean, row.median, row.high, row.largest)]
        numbers.insert(1, f"{row.standard_error:.1g}")
        table.add_row(row.metric, *place, *numbers)
    return table
