"""Monomials of Boolean points as a design: `walsh`, `degree_profile`."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, as_whole, check_finite, is_concrete

Subset = tuple[int, ...]


def walsh(
    points: ArrayLike, degree: int | None = None
) -> tuple[Float[Array, "n d"], tuple[Subset, ...]]:
    """The Walsh functions of points of `{−1, 1}ᵏ`, as the columns of a design.

    Column `S` is the monomial `χ_S(p) = ∏_{i∈S} pᵢ`. Over all points these are orthogonal, and
    every function of `k` signs is `Σ_S x_S χ_S` with one `x`: `LeastSquares(design, values)` asks
    for it from some of the points.

    **Arguments:**

    - `points`: entries −1 and 1, shape `(n, k)`.
    - `degree`: the largest size of `S`. Default: `k`, all `2ᵏ` of them.

    **Returns:** `(design, subsets)`: the design, shape `(n, d)` with `d = Σ_{j ≤ degree} C(k, j)`,
    and the tuples `S`, in order of size; the first is `()`, the constant.

    **Raises:** `ValueError` for known entries other than ±1, for another shape, or a `degree` not
    from 0 to `k`. A traced entry other than ±1 gives NaN in its row.

    !!! example

        ```python
        design, subsets = dln.walsh(jnp.array([[1, 1], [1, -1], [-1, 1]]))  # (−1, −1) is not seen
        subsets  # ((), (0,), (1,), (0, 1))
        problem = dln.LeastSquares(design, design[:, 3])  # the values of p₀p₁
        dln.basis_pursuit(problem, weights=jnp.array([1.0, 3, 3, 9])).x  # p₀ + p₁ − 1
        ```

    !!! cite "Reference"

        Abbe, Bengio, Lotfi, Rizk, *Generalization on the Unseen, Logic Reasoning and Degree
        Curriculum*, arXiv 2301.13105; [PBA24] arXiv 2406.06354.
    """
    points = as_float(points, "points")
    if points.ndim != 2:
        raise ValueError(f"`points` must have one point a row, shape (n, k), got {points.shape}.")
    k = points.shape[1]
    degree = k if degree is None else as_whole(degree, "degree")
    if not 0 <= degree <= k:
        raise ValueError(f"`degree` must be from 0 to the number of entries, {k}, got {degree}.")
    count = sum(math.comb(k, j) for j in range(degree + 1))
    if count > 2**20:
        raise ValueError(f"There are {count} monomials of {k} signs. Pass a smaller `degree`.")
    known = np.asarray(points) if is_concrete(points) else np.ones(1)
    bad = np.argwhere(np.abs(known) != 1)
    if len(bad):
        i, j = bad[0]
        raise ValueError(
            f"The entries of `points` must be −1 or 1, got points[{i}, {j}] = "
            f"{float(np.asarray(points)[i, j])}. Write 0 and 1 as `1 − 2 * bits`."
        )
    points = jnp.where(jnp.abs(points) == 1, points, jnp.nan)
    # Each monomial is one of a degree less times the entry of its last index.
    level: list[Subset] = [()]
    subsets, columns = list(level), [jnp.ones((len(points), 1), points.dtype)]
    for size in range(1, degree + 1):
        place = {S: i for i, S in enumerate(level)}
        level = list(itertools.combinations(range(k), size))
        before = np.array([place[S[:-1]] for S in level], int)
        last = np.array([S[-1] for S in level], int)
        columns.append(columns[-1][:, before] * points[:, last])
        subsets += level
    return jnp.concatenate(columns, axis=1), tuple(subsets)


def degree_profile(x: ArrayLike, subsets: Sequence[Subset]) -> Float[Array, " degrees"]:
    """The energy of a function at each degree, `Σ_{|S| = j} x_S²` for `j = 0, 1, …`.

    Of two functions with the same values where the data are, the one of less degree has less
    energy at the highest degree at which the two differ.

    **Arguments:** `x`, coefficients of Walsh functions, shape `(d,)`; `subsets`, the `d` tuples
    that `walsh` returns.

    **Returns:** shape `(largest degree + 1,)`.

    **Raises:** `ValueError` if `x` has another shape.

    !!! example

        ```python
        _, subsets = dln.walsh(jnp.ones((1, 2)))
        dln.degree_profile(jnp.array([-1.0, 1, 1, 0]), subsets)  # (1, 2, 0): of p₀ + p₁ − 1
        ```

    !!! cite "Reference"

        Abbe, Bengio, Lotfi, Rizk, arXiv 2301.13105.
    """
    x = as_float(x, "x")
    if x.shape != (len(subsets),):
        raise ValueError(
            f"`x` must have one entry for each of {len(subsets)} subsets, got {x.shape}."
        )
    check_finite(x, "x")
    sizes = np.array([len(S) for S in subsets], int)
    return jax.ops.segment_sum(x**2, sizes, num_segments=int(sizes.max(initial=0)) + 1)
