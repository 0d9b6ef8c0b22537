"""`train` against loops that do the same steps.

*SGD*: single samples, `n = 40`, `d = 100`, 64 seeds.

All contenders keep the same things: the weights `u`, `v` and the sum of `x` that the average needs.
The first NumPy loop runs one seed after another, as a script would; the second has all seeds in
its arrays, as does the torch loop. Only parts of their steps are run, and scaled. The error is the
distance of `x` and its sum after 500 steps to the first NumPy loop on the same rows, relative to
its largest entry, and the largest over three seeds.

*Gradient descent*: `n = 200`, `d = 2000`, 4 lanes, which differ in `ε` or in the data too, against
a NumPy loop, one lane after another. Both read `X` from the cache, twice a step; where lanes share
it, ours reads it for all of them at once. The error is that of `x` and of its average.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import dlnjax as dln
from dlnjax._train.batches import CHUNK, Batches

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
CHECKED = 500  # steps
WIDE = (200, 2000)
SIZES = np.geomspace(1e-3, 1e-2, 4)  # the ε of the lanes


def problem() -> tuple[np.ndarray, np.ndarray]:
    X, _ = normal_batch(1, N, D)
    return X[0], X[0, :, :5] @ np.array([1.0, -1.0, 0.5, 2.0, -0.5])


def keys():
    return jr.split(jr.key(0), SEEDS)


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

    return lambda: run(keys())


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


def drawn(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rows that `train` draws, shape `(CHECKED, SEEDS)`."""

    def rows_of(key, chunk):
        rows = Batches(1, None, None, key).of_chunk(dln.LeastSquares(X, y), chunk, CHUNK).rows
        assert rows is not None
        return rows[:, 0]

    chunks = jnp.arange(CHECKED // CHUNK + 1)
    rows = jax.vmap(lambda key: jax.vmap(lambda chunk: rows_of(key, chunk))(chunks))(keys())
    return np.asarray(rows).reshape(SEEDS, -1)[:, :CHECKED].T


def distance(X: np.ndarray, y: np.ndarray, rows: np.ndarray, found) -> float:
    """Of `x` and its sum, each of shape `(SEEDS, D)`, to the reference."""
    errors = []
    for seed in (0, 1, SEEDS - 1):
        for ours, theirs in zip(found, numpy_seed(X, y, rows[:, seed]), strict=True):
            errors.append(np.max(np.abs(np.asarray(ours)[seed] - theirs)) / np.max(np.abs(theirs)))
    return float(max(errors))


def descend(X: np.ndarray, y: np.ndarray, steps: int) -> np.ndarray:
    """`x` and its average after so many steps, `(lanes, 2, d)`, by NumPy."""
    ends = []
    for A, b, eps in zip(X, y, SIZES, strict=True):
        u, v, z = np.full(A.shape[1], eps**0.5), np.zeros(A.shape[1]), np.zeros(A.shape[1])
        for _ in range(steps):
            x = u * v
            z += x
            step = SIZE * ((A @ x - b) @ A)
            u, v = u - step * v, v - step * u
        ends.append([u * v, z / steps])
    return np.array(ends)


def descent(is_shared: bool, quick: bool) -> dict:
    (n, d), steps = (20, 200) if quick else WIDE, 256
    X, _ = normal_batch(1 if is_shared else len(SIZES), n, d)
    y = X[:, :, :5] @ np.array([1.0, -1.0, 0.5, 2.0, -0.5])
    Xs, ys = (np.broadcast_to(a, (len(SIZES), *a.shape[1:])) for a in (X, y))
    network = dln.UV(np.ones(d), np.zeros(d))

    def one(X, y, eps):
        problem, optimizer = dln.LeastSquares(X, y), optax.sgd(SIZE)
        run = dln.train(network, problem, optimizer, eps=eps, steps=steps, throw=False)
        return jnp.stack([run.x[-1], run.x_mean[-1]])

    axes: Any = (None, None, 0) if is_shared else 0
    train = jax.jit(jax.vmap(one, axes))
    given = (X[0], y[0]) if is_shared else (X, y)
    arguments = tuple(map(jnp.asarray, (*given, SIZES)))
    peer = Contender("NumPy, a lane at a time", lambda: descend(Xs, ys, steps), compiles=False)
    us, [them] = compete(
        Contender("dlnjax train", lambda: train(*arguments)), [peer], 1 if quick else 7
    )
    error = float(np.max(np.abs(us.output - them.output)) / np.max(np.abs(them.output)))
    data = "shared" if is_shared else "their own"
    return {
        "work": f"gradient descent, {n} × {d}, {len(SIZES)} lanes, {data} data, {steps} steps",
        "solvers": [us.record(error, us), them.record(0.0, us)],
    }


def main(out: Path, quick: bool) -> None:
    X, y = problem()
    steps = 2000 if quick else STEPS
    few = 500 if quick else 2000
    rows = np.random.default_rng(0).integers(0, N, (few, SEEDS))
    few_rows = drawn(X, y)
    x, x_mean = dlnjax_run(X, y, CHECKED)()
    errors = [
        distance(X, y, few_rows, (x, CHECKED * x_mean)),
        0.0,  # the reference
        distance(X, y, few_rows, numpy_batch(X, y, few_rows)),
    ]
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
        checked = torch_batch(tensors[0], tensors[1], torch.from_numpy(few_rows.copy()))
        errors.append(distance(X, y, few_rows, checked))
        peers.append(
            Contender(
                "torch, all seeds", lambda: torch_batch(*tensors), few / steps, compiles=False
            )
        )
    ours = Contender("dlnjax train", dlnjax_run(X, y, steps))
    us, them = compete(ours, peers, 1 if quick else 7)
    row = {
        "work": f"single-sample SGD, {N} × {D}, {SEEDS} seeds, {steps} steps",
        "solvers": [m.record(e, us) for m, e in zip((us, *them), errors, strict=True)],
    }
    for solver in row["solvers"]:
        solver["steps_per_second"] = steps * SEEDS / solver["seconds"]
        notes = [solver["note"], f"{solver['steps_per_second']:.3g} steps/s"]
        solver["note"] = "; ".join(n for n in notes if n)
    content = [row, *(descent(is_shared, quick) for is_shared in (True, False))]
    for row in content:
        print_row(row)
    write(out, "training", {"settings": {"step_size": SIZE, "eps": EPS}, "rows": content})
