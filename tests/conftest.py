import jax

# Before any test module builds an array: 64 bits, and no silent promotion anywhere.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
