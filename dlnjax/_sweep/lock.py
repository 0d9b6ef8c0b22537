"""Who drives a sweep: one process at a time."""

import contextlib
import datetime
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .store import need


@contextlib.contextmanager
def driving(path: Path) -> Iterator[None]:
    """Hold the lock of the store at `path`, which is a file beside it.

    The operating system lets go of it when its process ends, however it ends: what a killed driver
    leaves is a file that nobody holds. (Where a file system has no locks, `filelock` looks whether
    the process lives.) If even that fails, as across hosts on such a file system, two drivers
    compute the same bytes twice.

    **Raises:** `BlockingIOError` that says who holds it; `OSError` if the folder cannot be written.
    """
    filelock = need("filelock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as e:  # which would say that there is a store
        raise NotADirectoryError(errno.ENOTDIR, f"{path.parent} is a file") from e
    driver = path.with_name(f".{path.name}.driver")
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        who = "another process"
        with contextlib.suppress(OSError):
            who = driver.read_text("utf-8") or who
        raise BlockingIOError(
            f"{path} is being computed by {who}. Nothing was changed: wait until that has ended, "
            "or end it first."
        ) from None
    try:
        driver.write_text(_who(), "utf-8")
        yield
    finally:
        driver.unlink(missing_ok=True)
        lock.release()


def _who() -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    job = os.environ.get("SLURM_JOB_ID")
    which = f" of job {job}" if job else ""
    return f"process {os.getpid()}{which} on {socket.gethostname()}, since {now}"
