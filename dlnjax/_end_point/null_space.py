"""How fast the end points of small initialisations tend to a minimum 1-norm point."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from .._checks import as_count, as_flag, as_float, check_scalar, is_concrete
from .._lasso.basis_pursuit import BasisPursuit, basis_pursuit
from .._linalg import matmul, svd
from .._problem import (
    AbstractProblem,
    LeastSquares,
    check_quadratic,
    harmless,
    validity,
)
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, first_failure, raise_on_failure


class NullSpaceConstant(eqx.Module):
    """`ϱ`, and what proves it.

    **Attributes:**

    - `value`: `ϱ`, a scalar without units.
    - `dual`: `c = Xᵀν` with `cᵢ = sign x*ᵢ` on the support and `|cᵢ| ≤ ϱ` elsewhere (for
        `positive` only `cᵢ ≤ ϱ`, and `−inf` where all minimisers of the loss over `x ≥ 0` are 0),
        shape `(d,)`.
    - `gap`: the largest `|cᵢ|` (`cᵢ`) off the support, less a lower bound of `ϱ` from a direction
        in the null space, a scalar: 0 to rounding.
    - `minimum`: the minimum 1-norm point `x*`, as a `BasisPursuit`.
    - `result`: how the solve ended.
    """

    value: Float[Array, ""]
    dual: Float[Array, " d"]
    gap: Float[Array, ""]
    minimum: BasisPursuit
    result: RESULTS

    def rate(self, depth: Real[ArrayLike, ""] = 2) -> Float[Array, ""]:
        """The exponent `a` of `|x^ε − x*| ∝ ε^a`, where `x^ε` is the `end_point` of size `ε` and
        `x*` the only minimum 1-norm point: `1 − ϱ` at depth 2 and 1 above.

        At depth 2 this is 0 where `x*` is not unique: `ϱ` does not tell the rate then. Where `x*`
        is the only minimiser of the loss, all end points are `x*`.

        **Arguments:** `depth`, `D ≥ 2`, a scalar.

        **Raises:** `ValueError` for `depth < 2`.
        """
        D = as_float(depth, "depth", self.value.dtype)
        check_scalar(D, "depth")
        if is_concrete(D) and not 2 <= float(D) < np.inf:
            raise ValueError(f"`depth` must be a finite number D ≥ 2, got {float(D)}.")
        above = jnp.where((D > 2) & ~jnp.isnan(self.value), 1, jnp.nan)
        return jnp.where(D == 2, 1 - self.value, above)


def null_space_constant(
    problem: AbstractProblem,
    *,
    positive: bool = False,
    max_knots: int | None = None,
    throw: bool = True,
) -> NullSpaceConstant:
    """The null-space constant of the minimum 1-norm point `x*` with support `S`,

        ϱ = min { ‖c_{Sᶜ}‖_∞ : c ∈ range Xᵀ, c_S = sign x*_S }
          = max { −⟨sign x*_S, h_S⟩ : Xh = 0, ‖h_{Sᶜ}‖₁ = 1 },

    which says how fast the end points of small initialisations tend to `x*`: see
    `NullSpaceConstant.rate`. It is at most 1, and 1 if and only if `x*` is not unique; and 0 where
    the null space of `X` is trivial.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem. Its weight decay plays no role.
    - `positive`: over `x ≥ 0`, for `USquared`: with `max c_{Sᶜ}` in place of the norm, and
        `h_{Sᶜ} ≥ 0`. Then `ϱ` may be negative, and is `−inf` where only `x*` minimises the loss
        over `x ≥ 0`.
    - `max_knots`: as in `lasso_path`, for each of the two paths that are followed.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** a `NullSpaceConstant`.

    **Raises:** an `EquinoxRuntimeError` if a path is cut short or inaccurate.

    !!! cite "Reference"

        [MS25] arXiv 2506.01143.
    """
    check_quadratic(problem)
    positive = as_flag(positive, "positive")
    max_knots = None if max_knots is None else as_count(max_knots, "max_knots")
    constant = _solve(problem, positive, max_knots)
    return raise_on_failure(constant, constant.result, throw)


@eqx.filter_jit
def _solve(problem: AbstractProblem, positive: bool, max_knots: int | None) -> NullSpaceConstant:
    verdict = validity(problem)
    problem = harmless(problem, verdict == RESULTS.successful)
    minimum = basis_pursuit(problem, positive=positive, max_knots=max_knots, throw=False)
    good = minimum.result == RESULTS.successful
    # Any data do where there is no point.
    c, x = (jnp.where(good, v, 0) for v in (minimum.dual, minimum.x))
    is_free = jnp.isfinite(c)
    fit = jnp.abs(x) * jnp.sqrt(problem.gram_diagonal())
    support = fit > jnp.finfo(c.dtype).eps ** 0.625 * jnp.max(fit)
    is_off = is_free & ~support

    # Since ⟨c, h⟩ = 0 on the null space, −⟨sign x_S, h_S⟩ = ⟨c, h⟩_{Sᶜ}. With h = h⁺ − h⁻ (h⁺ alone
    # if `positive`) this is a basis pursuit whose weights are positive, because c ≤ 1:
    #     2 − ϱ = min { ⟨2 ∓ c, h^±⟩ : h^± ≥ 0 off S, ⟨1, h^±⟩ = 1, Wh = 0 }.
    W = jnp.where(is_off[None, :], _off_support(problem, is_free, support), 0)
    one = is_off.astype(c.dtype)[None, :]
    signs = [1, -1][: 1 if positive else 2]
    rows = jnp.concatenate(
        [jnp.concatenate([sign * W for sign in signs], axis=1), jnp.tile(one, len(signs))]
    )
    response = jnp.zeros(rows.shape[0], c.dtype).at[-1].set(1)
    weights = jnp.concatenate([2 - jnp.where(is_off, sign * c, 0) for sign in signs])
    inner = basis_pursuit(
        LeastSquares(rows, response),
        positive=True,
        weights=weights,
        max_knots=max_knots,
        throw=False,
    )
    least = jnp.sum(weights * inner.x)
    # At the optimum `inner.dual` is least ± (a combination of rows of W), at most 2 ∓ c.
    slack = inner.dual.reshape(len(signs), -1)
    change = slack[0] - least if positive else (slack[0] - slack[1]) / 2
    dual = c + jnp.where(is_off, change, 0)

    # No h ≥ 0: then c can be as negative as one likes. Two signs have h⁺ = h⁻, if there are any.
    exists = jnp.abs(jnp.sum(inner.x) - 1) < jnp.finfo(c.dtype).eps ** 0.5
    exists = exists & (inner.infeasibility < jnp.finfo(c.dtype).eps ** 0.5)
    value = jnp.where(exists, 2 - least, -jnp.inf if positive else 0)
    upper = jnp.max(jnp.where(is_off, dual if positive else jnp.abs(dual), -jnp.inf))
    gap = jnp.where(exists, upper - value, 0)
    dual = jnp.where(exists, dual, c)

    result = first_failure(verdict, minimum.result, inner.result)
    is_known = result == RESULTS.successful
    nan_unless = lambda v: jnp.where(is_known, v, jnp.nan)
    return NullSpaceConstant(
        value=nan_unless(value),
        dual=nan_unless(jnp.where(is_free, dual, -jnp.inf)),
        gap=nan_unless(gap),
        minimum=minimum,
        result=result,
    )


def _off_support(
    problem: AbstractProblem, is_free: Bool[Array, " d"], support: Bool[Array, " d"]
) -> Float[Array, "m d"]:
    """Rows that span what of `range Xᵀ` vanishes on the support (over free coordinates): 0, or of
    norm 1 and independent."""
    solutions = SolutionSpace(problem, is_free)
    V = solutions.V
    U, s, _ = svd(jnp.where(support[None, :], V, 0))
    # Combinations of orthonormal rows and of those beyond the rank, which alone are rounding.
    rows = matmul(U.T, V)
    is_zero = s <= jnp.finfo(s.dtype).eps * V.shape[1]
    counts = is_zero & (jnp.sum(rows**2, axis=1) > jnp.finfo(s.dtype).eps)
    rows = jnp.where(counts[:, None], rows * solutions.units[None, :], 0)
    # Of norm 1 whatever the units: they are to stand beside a row of ones.
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    rows = rows / jnp.where(largest > 0, largest, 1)
    norms = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
    return rows / jnp.where(norms > 0, norms, 1)
