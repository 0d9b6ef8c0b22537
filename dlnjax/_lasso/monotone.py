"""Designs whose lasso paths are monotone for every response.

`is_z_matrix` is a sufficient condition for the positive lasso, at any size. `is_always_monotone`
checks the condition itself, on all subsets of up to 12 coordinates.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._checks import as_flag
from .._linalg import eigh, matmul
from .._problem import AbstractProblem, check_quadratic, harmless, validity
from .._results import RESULTS

# Coordinates, 4095 subsets, each with an eigendecomposition, all in one batch: it doubles with each
# coordinate more.
_MOST = 12


@eqx.filter_jit
def is_z_matrix(problem: AbstractProblem) -> Bool[Array, ""]:
    """Whether no off-diagonal entry of `M` is positive (a Z-matrix). Then the positive lasso path
    is monotone for every `r`, and `USquared` follows it as `ε → 0`.

    **Arguments:** `problem`: a `LeastSquares` or `Quadratic` problem; only its `M` plays a role.

    **Returns:** a boolean scalar. Entries up to `64 eps √(Mᵢᵢ Mⱼⱼ)` count as 0. False where the
    data are not finite.

    !!! example

        ```python
        M = jnp.array([[2.0, -1.0], [-1.0, 2.0]])
        bool(dln.is_z_matrix(dln.Quadratic(M, jnp.ones(2))))  # True
        bool(dln.is_z_matrix(dln.Quadratic(jnp.abs(M), jnp.ones(2))))  # False
        ```

    !!! cite "Reference"

        [B25] arXiv 2509.18766, §3.1; [B23] JMLR 24(171).
    """
    check_quadratic(problem)
    # An entry of XᵀX that is 0 in exact arithmetic rounds to about √n eps of √(Mᵢᵢ Mⱼⱼ): the factor
    # 64 covers 4000 rows. 100 times less, orthogonal columns count as positively correlated. 100
    # times more, correlations up to 1e-12 count as 0.
    M, scale = problem.gram(), jnp.sqrt(problem.gram_diagonal())
    rounding = 64 * jnp.finfo(M.dtype).eps * scale[:, None] * scale[None, :]
    return (validity(problem) == RESULTS.successful) & jnp.all(
        (M <= rounding) | jnp.eye(len(M), dtype=bool)
    )


def is_always_monotone(problem: AbstractProblem, *, positive: bool = False) -> Bool[Array, ""]:
    """Whether the lasso path is monotone (`PiecewiseLinearPath.is_monotone`) for every `r` and
    every weight decay. True is always right; false is right if `M ≻ 0`.

    On the support `I` of a segment with signs `σ`, `z_I(μ) = M_II⁻¹(μ r_I − σ)` (`λ` adds to `r`),
    and `z_I'(μ) = M_II⁻¹ r_I`. So no `|zᵢ|` decreases if `σ∘(M_II⁻¹ σ) ≥ 0`. If `positive`, this
    has to hold for `σ = 1` and all `I`. Otherwise it has to hold for all signs: every `M_II⁻¹` has
    diagonally dominant rows, `(M_II⁻¹)ᵢᵢ ≥ Σ_{j≠i} |(M_II⁻¹)ᵢⱼ|`.

    If `M ≻ 0` the condition is also necessary: `r = M z/μ + σ/μ` on `I`, with `z` small at the row
    that fails, makes a path that decreases there. If `M` is singular, only subsets with a regular
    `M_II` count, since the active columns of the path are linearly independent; some of these
    subsets may support no lasso solution, and false does not mean that some path decreases.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem with `d ≤ 12`; only its `M` plays a role.
    - `positive`: for the lasso over `x ≥ 0`. `is_z_matrix` is sufficient for that, at any `d`.

    **Returns:** a boolean scalar. `M_II` counts as singular if it is to rounding; equalities count
    as met, as in `is_monotone`. False where `M_II` is so close to singular that rounding hides the
    signs, and where the data are not finite.

    **Raises:** `ValueError` for `d > 12`, since all `2^d − 1` subsets are checked.

    !!! example

        ```python
        M = jnp.array([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
        problem = dln.Quadratic(M, jnp.ones(3))
        bool(dln.is_always_monotone(problem))  # True: M⁻¹ is diagonally dominant
        bool(dln.is_z_matrix(problem))  # False: that condition is only sufficient
        ```

    !!! cite "Reference"

        [B25] arXiv 2509.18766, §2.1 and §3.1.
    """
    check_quadratic(problem)
    positive = as_flag(positive, "positive")
    d = problem.r.shape[0]
    if d > _MOST:
        raise ValueError(
            "`is_always_monotone` looks at all 2^d subsets of the coordinates, which is meant for "
            f"d ≤ {_MOST}, got d = {d}. Use `lasso_path(problem).is_monotone()` for the `r` at "
            "hand, or `is_z_matrix(problem)`, which is sufficient for the positive lasso at any d."
        )
    return _check(problem, positive)


@eqx.filter_jit
def _check(problem: AbstractProblem, positive: bool) -> Bool[Array, ""]:
    """`is_always_monotone` of arguments that were checked."""
    M = harmless(problem, validity(problem) == RESULTS.successful).gram()
    d, unit = len(M), jnp.finfo(M.dtype).eps
    scale = jnp.sqrt(problem.gram_diagonal())
    is_zero = scale == 0
    scale = jnp.where(is_zero, 1, scale)
    # Scaled to unit diagonal: what counts as singular does not depend on the columns' units.
    C = M / (scale[:, None] * scale[None, :])
    identity = jnp.eye(d, dtype=M.dtype)
    sizes = range(1, min(d, problem.rank_bound) + 1)
    subsets = [s for size in sizes for s in itertools.combinations(range(d), size)]
    masks = np.array([np.isin(np.arange(d), s) for s in subsets])

    def holds(mask):
        # C_II is padded by the identity: its least eigenvalue is at most 1, so the padding's
        # eigenvalues 1 are never the least.
        values, Q = eigh(jnp.where(mask[:, None] & mask[None, :], C, identity))
        # Rounding of C and of its eigenvalues is about d eps: 4 for both, with some room. A
        # singular M_II is not checked. 100 times more, one of condition 1e12 is not; 100 times
        # less, one that is singular is, and found false, since rounding hides all signs.
        is_singular = (values[0] <= 4 * d * unit) | jnp.any(mask & is_zero)
        B = matmul(Q / jnp.where(values > 0, values, 1)[None, :], Q.T)
        B = jnp.where(mask[:, None] & mask[None, :], B, 0) / (scale[:, None] * scale[None, :])
        size = jnp.sum(jnp.abs(B), axis=1)
        least = jnp.sum(B, axis=1) if positive else 2 * jnp.diagonal(B) - size
        # The inverse has relative errors of about `rounding`. An equality counts as met within
        # eps^(5/8), as in `is_monotone`; where the errors are larger than that, a row has to be
        # dominant by more than them.
        rounding = 4 * d * unit / jnp.where(is_singular, 1, values[0])
        small = unit**0.625
        threshold = jnp.where(rounding < small, -small, rounding)
        return is_singular | jnp.all(least >= threshold * size)

    return (validity(problem) == RESULTS.successful) & jnp.all(jax.vmap(holds)(jnp.asarray(masks)))
