"""Which designs have monotone lasso paths, whatever the response."""

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

_MOST = 12  # coordinates: 4096 subsets


@eqx.filter_jit
def is_z_matrix(problem: AbstractProblem) -> Bool[Array, ""]:
    """Whether no off-diagonal entry of `M` is positive. Then the positive lasso path is monotone
    for every `r`, and `USquared` follows it as `ε → 0`.

    **Arguments:** `problem`: a `LeastSquares` or `Quadratic` problem; only its `M` plays a role.

    **Returns:** a boolean scalar. Entries up to 64 units of rounding of `√(Mᵢᵢ Mⱼⱼ)` count as 0.
    False where the data are not finite.

    !!! cite "Reference"

        [B25] arXiv 2509.18766, §3.1; [B23] JMLR 24(171).
    """
    check_quadratic(problem)
    M, scale = problem.gram(), jnp.sqrt(problem.gram_diagonal())
    rounding = 64 * jnp.finfo(M.dtype).eps * scale[:, None] * scale[None, :]
    return (validity(problem) == RESULTS.successful) & jnp.all(
        (M <= rounding) | jnp.eye(len(M), dtype=bool)
    )


def is_always_monotone(problem: AbstractProblem, *, positive: bool = False) -> Bool[Array, ""]:
    """Whether the lasso path is monotone (`PiecewiseLinearPath.is_monotone`) for every `r` and
    every weight decay: if true, it is.

    On the support `I` of a segment, `z_I(μ) = M_II⁻¹(μ r_I − σ)` with `σ` the signs (`λ` adds to
    `r`), and `z_I'(μ) = M_II⁻¹ r_I`. So no `|zᵢ|` decreases if `σ∘(M_II⁻¹ σ) ≥ 0`. This has to hold
    for `σ = 1` and all `I` if `positive`, and for all signs otherwise: then every `M_II⁻¹` has
    diagonally dominant rows, `(M_II⁻¹)ᵢᵢ ≥ Σ_{j≠i} |(M_II⁻¹)ᵢⱼ|`.

    If `M ≻ 0` the condition is also necessary: `r = M z/μ + σ/μ` on `I`, with `z` small at the row
    that fails, makes a path that decreases there. If `M` is singular, only subsets with a regular
    `M_II` count, since the path has linearly independent columns; some of them may support no
    lasso solution, and false does not mean that some path decreases.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem with `d ≤ 12`; only its `M` plays a role.
    - `positive`: of the lasso over `x ≥ 0`. `is_z_matrix` is sufficient for that, at any `d`.

    **Returns:** a boolean scalar. `M_II` counts as singular if it is to rounding, and equalities
    count as met, as in `is_monotone`; where `M_II` is so close to singular that rounding hides the
    signs, and where the data are not finite, false.

    **Raises:** `ValueError` for `d > 12`: all `2^d` subsets are looked at.

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
    M = harmless(problem, validity(problem) == RESULTS.successful).gram()
    d, unit = len(M), jnp.finfo(M.dtype).eps
    scale = jnp.sqrt(problem.gram_diagonal())
    is_zero = scale == 0
    scale = jnp.where(is_zero, 1, scale)
    # With unit diagonal, for decisions that do not depend on the columns' units.
    C = M / (scale[:, None] * scale[None, :])
    identity = jnp.eye(d, dtype=M.dtype)
    sizes = range(1, min(d, problem.rank_bound) + 1)
    subsets = [s for size in sizes for s in itertools.combinations(range(d), size)]
    masks = np.array([np.isin(np.arange(d), s) for s in subsets])

    def holds(mask):
        # The eigenvalue 1 of the others is not below the least of C_II.
        values, Q = eigh(jnp.where(mask[:, None] & mask[None, :], C, identity))
        is_singular = (values[0] <= 4 * d * unit) | jnp.any(mask & is_zero)
        B = matmul(Q / jnp.where(values > 0, values, 1)[None, :], Q.T)
        B = jnp.where(mask[:, None] & mask[None, :], B, 0) / (scale[:, None] * scale[None, :])
        size = jnp.sum(jnp.abs(B), axis=1)
        least = jnp.sum(B, axis=1) if positive else 2 * jnp.diagonal(B) - size
        # Relative errors of the inverse are at most about this.
        rounding = 4 * d * unit / jnp.where(is_singular, 1, values[0])
        small = unit**0.625
        threshold = jnp.where(rounding < small, -small, rounding)
        return is_singular | jnp.all(least >= threshold * size)

    return (validity(problem) == RESULTS.successful) & jnp.all(jax.vmap(holds)(jnp.asarray(masks)))
