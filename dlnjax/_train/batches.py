"""`Batches`: which rows a step of `train` sees, and the noise on their labels.

| argument of `train` | rows of step `k` |
|---|---|
| neither of the two below | all |
| `batch_size=b` | `b` of them, drawn with replacement |
| `batches`, shape `(T, b)` | `batches[k mod T]` |
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from .._checks import as_float, as_whole, check_key, check_nonempty, check_scalar, is_concrete
from .._linalg import matmul
from .._problem import AbstractProblem, check_known_loss

# Steps of a chunk. Its randomness is drawn at once, since a call of the generator costs more than
# a step; and reverse mode stores the state at its start only (`jax.checkpoint`) and repeats its
# steps. Smaller chunks make more calls and more stored states; larger ones take more memory, for
# `CHUNK` states while a chunk is repeated and `CHUNK` random numbers for each row of a batch. The
# randomness of a run depends on it: the numbers of a step are those of its place in its chunk.
CHUNK = 128


class Batch(eqx.Module):
    """The rows of one step and the noise on their labels, or of many with a leading axis."""

    rows: Int[Array, "... b"] | None  # None: all
    noise: Float[Array, "... b"] | None

    def gradient(self, problem: AbstractProblem, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """`∇ℓ(x)`, or its estimate `(n/b) X_Bᵀ f′(X_B x, y_B)` from the rows `B`; for the square,
        `f′ = X_B x − y_B − noise`."""
        if self.rows is None and self.noise is None:
            return problem.gradient(x)
        glm = problem.glm()
        X, y = _rows_of(problem)
        n = X.shape[0]
        if self.rows is not None:
            X, y = X[self.rows], y[self.rows]
        u = matmul(X, x)
        slope = u - y if glm is None else glm[2].derivative(u, y)
        if self.noise is not None:
            slope = slope - self.noise
        return n / X.shape[0] * matmul(slope, X)


class Batches(eqx.Module):
    """The rows and the label noise of all steps."""

    size: int | None  # of batches drawn with replacement
    rows: Int[Array, "T b"] | None  # of each step
    noise: Float[Array, ""] | Callable[[PRNGKeyArray], Array] | None
    key: PRNGKeyArray | None

    @property
    def are_all(self) -> bool:
        """Whether each step sees all rows as they are: any loss then has a gradient."""
        return self.size is None and self.rows is None and self.noise is None

    def of_chunk(self, problem: AbstractProblem, chunk: Array, length: int) -> Batch:
        """The batches of the first `length` steps of a chunk."""
        rows = noise = None
        if self.rows is not None:
            numbers = chunk * CHUNK + jnp.arange(length, dtype=chunk.dtype)
            rows = self.rows[numbers % self.rows.shape[0]]
        if self.key is None:
            return Batch(rows, noise)
        # From the key and the number of the chunk alone: a longer run repeats the steps of a
        # shorter one.
        row_key, noise_key = jr.split(jr.fold_in(self.key, chunk))
        n = _rows_of(problem)[0].shape[0]
        if self.size is not None:
            rows = jr.randint(row_key, (CHUNK, self.size), 0, n)[:length]
        b = n if rows is None else rows.shape[1]
        if callable(self.noise):
            noise = jax.vmap(self.noise)(jr.split(noise_key, CHUNK)).astype(problem.r.dtype)
        elif self.noise is not None:
            noise = self.noise * jr.normal(noise_key, (CHUNK, b), problem.r.dtype)
        return Batch(rows, None if noise is None else noise[:length])

    def is_valid(self, problem: AbstractProblem) -> Bool[Array, ""]:
        """Whether traced rows exist, and the traced size of the noise is not negative."""
        valid = jnp.asarray(True)
        if self.rows is not None:
            n = _rows_of(problem)[0].shape[0]
            valid = jnp.all((self.rows >= 0) & (self.rows < n))
        if self.noise is not None and not callable(self.noise):
            valid = valid & jnp.isfinite(self.noise) & (self.noise >= 0)
        return valid


def _rows_of(problem: AbstractProblem) -> tuple[Array, Array]:
    glm = problem.glm()
    rows = problem.rows() if glm is None else glm[:2]
    assert rows is not None, "`as_batches` has refused batches and label noise"
    return rows


def as_batches(
    problem: AbstractProblem, batch_size: Any, batches: Any, label_noise: Any, key: Any
) -> Batches:
    """Check the arguments of `train`. **Raises:** `ValueError`/`TypeError` for bad ones."""
    noise = _as_noise(label_noise, problem)
    size = None if batch_size is None else as_whole(batch_size, "batch_size")
    if size is not None and batches is not None:
        raise ValueError(
            "Pass `batch_size`, for batches drawn with replacement, or the rows of all `batches`, "
            "not both."
        )
    names = {"batch_size": size, "batches": batches, "label_noise": noise}
    given = [name for name, value in names.items() if value is not None]
    if not given:
        return Batches(None, None, None, None)
    name, glm = type(problem).__name__, problem.glm()
    if glm is None and problem.rows() is None:
        raise ValueError(
            f"`{given[0]}` is known for the rows of a problem, got a {name}, which has none. Use "
            "`LeastSquares(X, y)` or another loss of rows, or leave it out."
        )
    # Noise would turn a label or a count into what its loss does not take.
    if glm is not None and noise is not None:
        raise ValueError(
            f"`label_noise` is known for the square of `LeastSquares` only, got a {name}. Leave it "
            "out."
        )
    # A class of the user's may inherit the rows of `LeastSquares` and have another loss.
    check_known_loss(problem)
    n = _rows_of(problem)[0].shape[0]
    if size is not None and not 1 <= size <= n:
        raise ValueError(
            f"`batch_size` must be from 1 to the {n} rows of `X`, got {size}. For all rows at each "
            "step leave it out."
        )
    rows = None if batches is None else _as_rows(batches, n)
    random = [name for name in given if name != "batches"]
    if not random:
        return Batches(None, rows, None, None)
    check_key(key, random[0])
    if noise is not None and not eqx.is_array(noise):
        b = size if size is not None else n if rows is None else rows.shape[1]
        made = jax.eval_shape(noise, key)
        if getattr(made, "shape", None) != (b,) or not jnp.issubdtype(made.dtype, jnp.floating):
            raise ValueError(
                f"`label_noise` must be a function of a key that returns real noise for the labels "
                f"of one step, shape ({b},), got {made}."
            )
    return Batches(size, rows, noise, key)


def _as_noise(label_noise: Any, problem: AbstractProblem) -> Any:
    """The standard deviation as an array, a function, or `None` for a known 0."""
    if callable(label_noise):
        return label_noise
    noise = as_float(label_noise, "label_noise", problem.r.dtype)
    check_scalar(noise, "label_noise")
    if is_concrete(label_noise):
        size = float(np.asarray(label_noise))
        if not 0 <= size < np.inf:
            raise ValueError(f"`label_noise` must be finite and non-negative, got {size}.")
        return None if size == 0 else noise
    return noise


def _as_rows(batches: ArrayLike, n: int) -> Array:
    rows = jnp.asarray(batches)
    if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise TypeError(
            "`batches` must be the rows of each step, whole numbers of shape (T, b), got shape "
            f"{rows.shape} of {rows.dtype}. One row a step, in turn, is `jnp.arange(n)[:, None]`."
        )
    check_nonempty(rows, "batches")
    if is_concrete(rows):
        bad = np.argwhere((np.asarray(rows) < 0) | (np.asarray(rows) >= n))
        if len(bad):
            k, i = (int(j) for j in bad[0])
            raise ValueError(
                f"`batches` must be rows from 0 to {n - 1}, got batches[{k}, {i}] = "
                f"{int(rows[k, i])}."
            )
    return rows
