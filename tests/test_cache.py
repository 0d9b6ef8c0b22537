"""Programs that are kept on disk."""

import subprocess
import sys

import pytest

FLOW = """
import jax, jax.numpy as jnp, dlnjax as dln
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jnp.ones(3) + 1  # JAX has looked for the folder by now
folder = dln.enable_cache({folder!r})
assert jax.config.jax_compilation_cache_dir == str(folder)
problem = dln.LeastSquares(jnp.eye(2), jnp.array([1.0, 2.0]))
network = dln.UV(jnp.ones(2), jnp.zeros(2))
x = dln.gradient_flow(network, problem, jnp.ones(1), eps=1e-5).x_mean
print(x.tolist(), dln.lasso_path(problem).knots.tolist())
print(hits.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.mark.parametrize("where", ["given", "default"])
def test_the_second_process_loads_what_the_first_compiled(tmp_path, monkeypatch, where):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    code = FLOW.format(folder=str(tmp_path / "given") if where == "given" else None)
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    (first, none), (second, some) = (run.stdout.splitlines() for run in runs)
    assert first == second  # bit for bit
    assert int(none) == 0 and int(some) >= 2  # a flow and a path
    assert any((tmp_path / ("given" if where == "given" else "home/dlnjax")).iterdir())


def test_the_command_line_goes_on_where_nothing_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    command = [sys.executable, "-m", "dlnjax.cli", "info"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
