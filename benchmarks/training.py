"""`train` against loops that do the same SGD: single samples, `n = 40`, `d = 100`, 64 seeds.

All contenders keep the same things: the weights `u`, `v` and the sum of `x` that the average needs.
The first NumPy loop runs one seed after another, as a script would; the second has all seeds in
its arrays, as does the torch loop. Only parts of their steps are run, and scaled. The error is the
distance of a seed's final `x` to the NumPy loop on the same rows, relative to its largest entry.
"""

from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import optax

import dlnjax as dln

from ._data import normal_batch
from ._report import print_row, write
from ._timing import Contender, compete

try:
    import torch  # pyright: ignore[reportMissingImports]
except ImportError:
    torch = None

N, D, SEEDS = 40, 100, 64
EPS, SIZE = 1e-3, 1e-4
STEPS = 20_000


def problem() -> tuple[np.ndarray, np.ndarray]:
    X, _ = normal_batch(1, N, D)
    return X[0], X[0, :, :5] @ np.array([1.0, -1.0, 0.5, 2.0, -0.5])


def dlnjax_run(X: np.ndarray, y: np.ndarray, steps: int):
    network = dln.UV(np.ones(D), np.zeros(D))

    @jax.jit
    def run(keys):
        def one(key):
            return dln.train(
                network,
                dln.LeastSquares(X, y),
                optax.sgd(SIZE),
                eps=EPS,
                steps=steps,
                batch_size=1,
                key=key,
                throw=False,
            )

        runs = jax.vmap(one)(keys)
        return runs.x[:, -1], runs.x_mean[:, -1]

    keys = jr.split(jr.key(0), SEEDS)
    return lambda: run(keys)


def numpy_seed(X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u, v, z = np.full(D, EPS**0.5), np.zeros(D), np.zeros(D)
    for i in rows:
        x = u * v
        step = (SIZE * len(y) * (X[i] @ x - y[i])) * X[i]
        u, v = u - step * v, v - step * u
        z += x
    return u * v, z


def numpy_batch(X: np.ndarray, y: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rows` of shape `(steps, seeds)`."""
    u = np.full((rows.shape[1], D), EPS**0.5)
    v, z = np.zeros_like(u), np.zeros_like(u)
    for i in rows:
        x, row = u * v, X[i]
        residual = np.einsum("sd,sd->s", row, x) - y[i]
        step = (SIZE * len(y) * residual)[:, None] * row
        u, v = u - step * v, v - step * u
        z += x
    return u * v, z


def torch_batch(X, y, rows):
    assert torch is not None
    with torch.no_grad():
        u = torch.full((rows.shape[1], D), EPS**0.5, dtype=torch.float64)
        v, z = torch.zeros_like(u), torch.zeros_like(u)
        for i in rows:
            x, row = u * v, X[i]
            step = (SIZE * len(y) * ((row * x).sum(1) - y[i]))[:, None] * row
            u, v = u - step * v, v - step * u
            z += x
        return u * v, z


def check(X: np.ndarray, y: np.ndarray) -> float:
    """The rows that `train` draws are its own: on one row, all must do the same."""
    X, y = np.repeat(X[:1], N, axis=0), np.repeat(y[:1], N)
    ours = np.asarray(dlnjax_run(X, y, 500)()[0])
    theirs = numpy_seed(X, y, np.zeros(500, int))[0]
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def main(out: Path, quick: bool) -> None:
    X, y = problem()
    steps = 2000 if quick else STEPS
    few = 500 if quick else 2000
    rows = np.random.default_rng(0).integers(0, N, (few, SEEDS))
    peers = [
        Contender(
            "NumPy, a seed at a time",
            lambda: numpy_seed(X, y, rows[:, 0]),
            few / steps / SEEDS,
            compiles=False,
        ),
        Contender("NumPy, all seeds", lambda: numpy_batch(X, y, rows), few / steps, compiles=False),
    ]
    if torch is not None:
        tensors = tuple(torch.from_numpy(a) for a in (X, y, rows))
        peers.append(
            Contender(
                "torch, all seeds", lambda: torch_batch(*tensors), few / steps, compiles=False
            )
        )
    ours = Contender("dlnjax train", dlnjax_run(X, y, steps))
    error = check(X, y)
    us, them = compete(ours, peers, 1 if quick else 7)
    row = {
        "work": f"single-sample SGD, {N} × {D}, {SEEDS} seeds, {steps} steps",
        "solvers": [m.record(error, us) for m in (us, *them)],
    }
    for solver in row["solvers"]:
        solver["steps_per_second"] = steps * SEEDS / solver["seconds"]
        solver["note"] += f"; {solver['steps_per_second']:.3g} steps/s"
    print_row(row)
    write(out, "training", {"settings": {"step_size": SIZE, "eps": EPS}, "rows": [row]})
