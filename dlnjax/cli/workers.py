"""The workers of `dlnjax sweep`."""

import contextlib
import importlib
import importlib.util
import ipaddress
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import typer

from .console import CommandError, err


def check_options(workers: int | None, scheduler: str | None, insecure: bool) -> None:
    """**Raises:** `typer.BadParameter` for workers of two kinds, or a scheduler that anybody on the
    network could send code to."""
    if workers is not None and scheduler is not None:
        raise typer.BadParameter("pass --workers or --scheduler, not both.")
    if scheduler is not None and not insecure and not _is_private(scheduler):
        raise typer.BadParameter(
            f"{scheduler} is neither on this host nor tls://…: who reaches such a scheduler can "
            "run code as you. Give it certificates, or pass --insecure in a network that you trust."
        )


def _is_private(address: str) -> bool:
    scheme, _, place = address.rpartition("://")
    host = place.rpartition(":")[0].strip("[]")
    if scheme not in ("", "tcp"):
        return scheme == "tls"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def send_by_value(folder: Path) -> None:
    """Have all modules and packages in this folder travel with what uses them, but not what is
    installed in an environment there."""
    from .._sweep.identity import is_installed

    cloudpickle: Any = importlib.import_module("cloudpickle")
    for module in list(sys.modules.values()):
        file = Path(getattr(module, "__file__", None) or "/")
        if "site-packages" in file.parts or is_installed(module.__name__):
            continue
        if folder in file.parents:
            cloudpickle.register_pickle_by_value(module)


@contextlib.contextmanager
def executor(workers: int | None, scheduler: str | None, folder: Path) -> Iterator[Executor | None]:
    """What `run_sweep` takes: `None` for this process, else Dask's. `folder` is that of the study,
    whose modules and packages workers on other hosts do not have."""
    if workers is None and scheduler is None:
        yield None
        return
    try:
        distributed: Any = importlib.import_module("distributed")
        importlib.import_module("cloudpickle")
    except ModuleNotFoundError as e:
        raise CommandError(f"Workers need {e.name!r}: run `pip install 'dlnjax[dask]'`.") from e
    send_by_value(folder)
    with contextlib.ExitStack() as stack:
        where: Any = scheduler
        if scheduler is None:
            # No limit of memory: the results are on disk, and a limit that JAX itself exceeds would
            # restart workers without end. The dashboard is for this host.
            where = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=None,
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.ERROR,  # what Dask mends itself, it need not report
            )
            stack.enter_context(where)
        try:
            client = stack.enter_context(distributed.Client(where, timeout="30s"))
        except OSError as e:
            raise CommandError(f"No scheduler answers at {scheduler}: {e}") from e
        if importlib.util.find_spec("bokeh"):
            err.print(f"dashboard: {client.dashboard_link}", soft_wrap=True)
        try:
            yield client.get_executor(retries=3)
        except distributed.KilledWorker as e:
            raise CommandError(
                f"Several workers died at the same block ({e}). Has each enough memory? Go on with "
                "--resume, and a smaller --memory in a new folder if they have not."
            ) from e
