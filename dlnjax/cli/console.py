"""What the commands of the command line share."""

import contextlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich.console
import rich.progress
import rich.table
import rich.text
import typer

from .._version import provenance

out: rich.console.Console = rich.console.Console(highlight=False)
err: rich.console.Console = rich.console.Console(stderr=True, highlight=False)

OutDir = Annotated[Path, typer.Option("--out", help="Folder for the files that are written.")]
Float32 = Annotated[bool, typer.Option("--float32", help="Compute in single precision.")]


class CommandError(Exception):
    """A command cannot do what was asked. The message says why, and the fix."""


def start_jax(float32: bool) -> None:
    """Import JAX, which takes a second or two; choose the precision; keep compiled programs."""
    import jax

    from .._cache import enable_cache

    jax.config.update("jax_enable_x64", not float32)
    if float32:  # as asked
        warnings.filterwarnings("ignore", "Arrays of float64 become float32")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        with contextlib.suppress(OSError):  # no place to keep programs: they are compiled each time
            enable_cache()
    _Compiling.listen()


class _Compiling(rich.progress.ProgressColumn):
    """Says so while a program is compiled."""

    now = False
    listens = False

    @classmethod
    def listen(cls) -> None:
        if cls.listens:
            return
        cls.listens = True
        import jax.monitoring

        def begins(event: str, **_: Any) -> None:
            # A program that was stored is loaded instead, mostly within a tenth of a second.
            if event == "/jax/compilation_cache/compile_requests_use_cache":
                cls.now = True
            elif event == "/jax/compilation_cache/cache_hits":
                cls.now = False

        def ended(event: str, duration_secs: float, **_: Any) -> None:
            if event == "/jax/core/compile/backend_compile_duration":
                cls.now = False

        jax.monitoring.register_event_listener(begins)
        jax.monitoring.register_event_duration_secs_listener(ended)

    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return rich.text.Text("compiling …" if self.now and not task.finished else "")


def progress_bar() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        _Compiling(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )


def print_table(table: rich.table.Table) -> None:
    """Print all of it: off a terminal rich assumes 80 columns, and cuts."""
    unbounded = out.options.update(max_width=10_000)
    width = max(out.width, out.measure(table, options=unbounded).maximum)
    rich.console.Console(highlight=False, width=width).print(table)


def writable_folder(path: Path) -> Path:
    """Fail before the work, not after it, if `path` cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CommandError(f"Cannot create the folder {path}: {e.strerror}.") from e
    if not os.access(path, os.W_OK):
        raise CommandError(f"Cannot write into the folder {path}. Pass another one as --out.")
    return path


def write(path: Path, save: Callable[[Path], Any]) -> Path:
    try:
        save(path)
    except OSError as e:
        raise CommandError(f"Cannot write {path}: {e.strerror}.") from e
    return path


def write_report(path: Path, content: dict[str, Any]) -> Path:
    """Write JSON that also says what made it."""

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

    text = json.dumps(plain(content | provenance()), indent=1, allow_nan=False, ensure_ascii=False)
    return write(path, lambda p: p.write_text(text + "\n", encoding="utf-8"))


def positive(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"must be positive and finite, got {value:g}.")
    return value


def non_negative(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"must be non-negative and finite, got {value:g}.")
    return value
