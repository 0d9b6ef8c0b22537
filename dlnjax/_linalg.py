"""Matrix products at full precision, whatever the device's default is (TF32 on GPUs)."""

import functools as ft

import jax.lax as lax
import jax.numpy as jnp

matmul = ft.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
