"""Batches over devices: `jax.shard_map` as it ships, and `jit` of data that are sharded."""

import os
import subprocess
import sys
from pathlib import Path

# In a process of its own, which has four devices.
CODE = """
import jax, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import dlnjax as dln
jax.config.update("jax_enable_x64", True)

rng = np.random.default_rng(0)
X, y = rng.normal(size=(4, 3, 4)), rng.normal(size=(4, 3))
net = dln.UV(np.ones(4), np.zeros(4))

def of(solve):
    return lambda X, y: solve(dln.LeastSquares(X, y))

def as_quadratic(p):
    return dln.Quadratic(p.gram(), p.r)

free = dict(throw=False)
solvers = {
    "lasso_path": of(lambda p: dln.lasso_path(p, **free).x(2.0)),
    "limit_flow": of(lambda p: dln.limit_flow(net, as_quadratic(p), **free).x(2.0)),
    "lasso": of(lambda p: dln.lasso(p, 2.0, **free).x),
    "basis_pursuit": of(lambda p: dln.basis_pursuit(p, **free).x),
    "end_point": of(lambda p: dln.end_point(net, p, eps=1e-4, **free).x),
    "limit_point": of(lambda p: dln.limit_point(net, p, **free).x),
    "null_space_constant": of(lambda p: dln.null_space_constant(p, **free).value),
    "is_always_monotone": of(dln.is_always_monotone),
    "train": of(lambda p: dln.train(net, p, optax.sgd(1e-2), eps=0.1, steps=[1, 9], **free).x),
    "gradient_flow": of(
        lambda p: dln.gradient_flow(net, p, np.array([1.0, 5.0]), eps=1e-4, **free).x
    ),
    "crossing_times": of(lambda p: dln.crossing_times(net, p, 5.0, 0.3, eps=1e-4, **free).s),
}

def mesh(devices):
    return jax.make_mesh((devices,), ("i",), axis_types=(AxisType.Auto,))

def over(devices, fn):
    options = dict(mesh=mesh(devices), in_specs=P("i"), out_specs=P("i"))
    return jax.jit(jax.shard_map(jax.vmap(fn), **options))

# Whether it is taken is decided where it is traced, derivatives included.
for name, solve in solvers.items():
    if name != "is_always_monotone":
        over(4, jax.grad(lambda X, y, solve=solve: solve(X, y).sum())).lower(X, y)
# Executed on four devices, and some on two.
for name, solve in solvers.items():
    plain = jax.jit(jax.vmap(solve))
    want = plain(X, y)
    assert np.all(np.isfinite(want)), name
    found = [over(4, solve)(X, y)]
    if name in ("lasso_path", "end_point"):  # and data that are sharded, without shard_map
        found += [over(2, solve)(X, y)]
        found += [plain(*jax.device_put((X, y), NamedSharding(mesh(2), P("i"))))]
    for got in found:
        # Rounding, on data of order 1.
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9, err_msg=name)
"""


def test_over_devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags}
    root = Path(__file__).parents[1]
    code = [sys.executable, "-c", CODE]
    run = subprocess.run(
        code, capture_output=True, text=True, timeout=900, cwd=root, env=environment
    )
    assert run.returncode == 0, run.stderr
