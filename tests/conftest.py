import os
from importlib.metadata import version

# Tests compile some thousand small programs and run each a few times: LLVM's optimisations, XLA's
# newer emitters and compiling in parallel (two test processes do that already) would take longer
# than they save. Set XLA_FLAGS to test the code as users run it.
flags = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):  # XLA aborts on flags that it does not know
    flags += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
# See README: on two cores jaxlib can stop for good.
os.environ.setdefault("PJRT_NPROC", "8")

import jax  # noqa: E402

# Before any test module builds an array: 64 bits, and no silent promotion anywhere.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
