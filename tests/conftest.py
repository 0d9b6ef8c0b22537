import gc
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile some thousand small programs and run each a few times: LLVM's optimisations, XLA's
# newer emitters and compiling in parallel (two test processes do that already) would take longer
# than they save. Set XLA_FLAGS, to nothing if you like, to test the code as users run it.
flags = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # XLA aborts on flags that it does not know
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
# SSE4_2, AVX2 or AVX512, whose roundings differ; so do those of `OPENBLAS_CORETYPE`, which are
# Nehalem, Haswell and SkylakeX. The tests must pass with all of them.
if isa := os.environ.get("DLNJAX_ISA"):
    flags.append(f"--xla_cpu_max_isa={isa}")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# Examples call `enable_cache()`: not into the user's folder, and for their module only (below).
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="dlnjax-tests-")
# Tracing makes millions of small objects, few of them in cycles: searching them all for cycles as
# often as Python does takes a tenth of the time.
gc.set_threshold(200_000, 20, 100)

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

# Before any test module builds an array: 64 bits, and no silent promotion anywhere.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Programs are neither kept on disk after a module, nor in memory without end. All of them
    would take 8 GB in each of two processes, and each holds some memory maps, of which Linux grants
    65530 to a process, and aborts it at the next one (with jaxlib 0.8 half of the tests came to
    that many)."""
    yield
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
    own = Path("/proc/self")
    if not own.exists():
        return
    pages = int((own / "statm").read_text().split()[1])
    if (
        pages * os.sysconf("SC_PAGE_SIZE") > 2.5e9
        or (own / "maps").read_bytes().count(b"\n") > 30_000
    ):
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def as_users_run_it():
    """Without the checks of types that run in tests only, and would come first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def write(tmp_path):
    """Write bytes or text to a file, and return its path as a string."""

    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `dlnjax ARGS`; returns the exit code, stdout and stderr. Keeps no compiled programs."""
    from dlnjax import cli  # not before the plugin that checks types

    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("dlnjax._cache.enable_cache", lambda: None)

    def call(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dlnjax", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    yield call
    jax.config.update("jax_enable_x64", True)  # what the other tests run in
