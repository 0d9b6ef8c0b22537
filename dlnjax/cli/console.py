"""What the commands of the command line share."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import rich.console
import rich.progress
import typer

from .._version import provenance

out: rich.console.Console = rich.console.Console(highlight=False)
err: rich.console.Console = rich.console.Console(stderr=True, highlight=False)

OutDir = Annotated[Path, typer.Option("--out", help="Folder for the files that are written.")]
Float32 = Annotated[bool, typer.Option("--float32", help="Compute in single precision.")]


class CommandError(Exception):
    """A command cannot do what was asked. The message says why, and the fix."""


def set_precision(float32: bool) -> None:
    jax.config.update("jax_enable_x64", not float32)


def progress_bar() -> rich.progress.Progress:
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


def unit_interval(values: list[float]) -> list[float]:
    for value in values:
        if not 0 < value < 1:
            raise typer.BadParameter(f"ε must lie in (0, 1), got {value:g}.")
    return sorted(set(values), reverse=True)
