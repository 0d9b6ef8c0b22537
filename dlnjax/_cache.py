"""Compiled programs that are kept on disk, for the next process."""

import hashlib
import logging
import platform
from pathlib import Path

import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

# Programs that compile faster are not stored. A choice: loading one takes some hundredths of a
# second too.
STORED_SECONDS = 0.05


def enable_cache(folder: str | Path | None = None) -> Path:
    """Keep compiled programs on disk: the first call of a function compiles for seconds, the first
    call in the next process loads what was compiled.

    It sets options of JAX, and so holds for the programs of other libraries too. A program is
    stored under its shapes and options, and the versions of JAX and jaxlib that compiled it. Delete
    the folder whenever you like.

    **Arguments:**

    - `folder`: where they are kept. Default: a folder of this user, one for each kind of processor,
        since a program for a CPU may use instructions that another CPU does not have.

    **Returns:** the folder.

    **Raises:** `OSError` if it cannot be created.

    !!! example

        ```python
        folder = dln.enable_cache()
        ```
    """
    if folder is None:
        folder = platformdirs.user_cache_path("dlnjax", appauthor=False) / _processor()
    folder = Path(folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # JAX looks up the folder once
    # JAX stores what took a second to compile. A first call also compiles smaller programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", STORED_SECONDS)
    logging.getLogger(__name__).info("compiled programs are kept in %s", folder)
    return folder


def _processor() -> str:
    """A name for the instructions that this processor has."""
    features = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(errors="replace").splitlines()
        features = next(
            (line for line in lines if line.startswith(("flags", "Features"))), features
        )
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"
