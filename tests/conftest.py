import os

# Tests compile some thousand small programs and run each a few times: LLVM's optimisations would
# take longer than they save. Set XLA_FLAGS to test the code as users run it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402

# Before any test module builds an array: 64 bits, and no silent promotion anywhere.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
