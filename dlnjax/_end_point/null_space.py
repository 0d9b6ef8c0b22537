"""The null-space constant `ϱ`: how fast end points tend to the minimum 1-norm point as `ε → 0`.

With `c = Xᵀν` the dual of the minimum 1-norm point `x*`, `S` its support and `⟨c, h⟩ = 0` on the
null space of `X`, `−⟨sign x*_S, h_S⟩ = ⟨c, h⟩_{Sᶜ}`. So `ϱ` is the value of a second basis pursuit,

    2 − ϱ = min { ⟨2 ∓ c, h^±⟩ : h^± ≥ 0 off S, ⟨1, h^±⟩ = 1, Wh = 0 },    h = h⁺ − h⁻,

where the rows of `W` span the part of `range Xᵀ` that vanishes on `S`: `Wh = 0` says that some
`h_S` completes `h` to an element of the null space. Its weights are positive, because `|c| ≤ 1`.
"""

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
    """The null-space constant `ϱ` of a minimum 1-norm point, with a dual that proves it.

    **Attributes:**

    - `value`: `ϱ`, a scalar without units.
    - `dual`: `c = Xᵀν` with `cᵢ = sign x*ᵢ` on the support and `|cᵢ| ≤ ϱ` elsewhere (for
        `positive` only `cᵢ ≤ ϱ`, and `−inf` where all minimisers of the loss over `x ≥ 0` are 0),
        shape `(d,)`.
    - `gap`: the largest `|cᵢ|` (`cᵢ`) off the support, less a lower bound of `ϱ` from a direction
        in the null space, a scalar: 0 to rounding.
    - `minimum`: the minimum 1-norm point `x*`, as a `BasisPursuit`.
    - `result`: how the solve ended. If it failed, `value`, `dual` and `gap` are NaN.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 2.0]]), jnp.array([3.0]))
        constant = dln.null_space_constant(problem)
        constant.minimum.x, constant.dual  # (0, 1.5), (0.5, 1)
        constant.value, constant.rate()  # 0.5, 0.5: x^ε − x* ∝ ε^0.5
        ```
    """

    value: Float[Array, ""]
    dual: Float[Array, " d"]
    gap: Float[Array, ""]
    minimum: BasisPursuit
    result: RESULTS

    def rate(self, depth: Real[ArrayLike, ""] = 2) -> Float[Array, ""]:
        """The exponent `a` of `|x^ε − x*| ∝ ε^a`, where `x^ε` is the `end_point` of size `ε` and
        `x*` the only minimum 1-norm point: `1 − ϱ` at depth 2 and 1 above ([MS25]).

        If `x*` is not unique, `ϱ` does not determine the rate, and the value at depth 2 is 0. If
        `x*` is the only minimiser of the loss, all end points are `x*`.

        **Arguments:** `depth`, `D ≥ 2`, a scalar.

        **Returns:** a scalar; NaN where the solve failed, and for a traced `depth < 2`.

        **Raises:** `ValueError` if a concrete `depth` is below 2 or not finite.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.array([[1.0, 0.9]]), jnp.array([1.0]))
            constant = dln.null_space_constant(problem)  # ϱ = 0.9
            constant.rate()  # 0.1
            constant.rate(3)  # 1
            ```
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
    """The null-space constant `ϱ` of the minimum 1-norm point `x*` with support `S`,

        ϱ = min { ‖c_{Sᶜ}‖_∞ : c ∈ range Xᵀ, c_S = sign x*_S }
          = max { −⟨sign x*_S, h_S⟩ : Xh = 0, ‖h_{Sᶜ}‖₁ = 1 },

    which determines how fast the end points of small initialisations tend to `x*`: see
    `NullSpaceConstant.rate`. It is at most 1, and equals 1 if and only if `x*` is not unique. It is
    0 if the null space of `X` is trivial.

    **Arguments:**

    - `problem`: a `LeastSquares` or `Quadratic` problem. Its weight decay plays no role.
    - `positive`: over `x ≥ 0`, for `USquared`: with `max c_{Sᶜ}` in place of the norm, and
        `h_{Sᶜ} ≥ 0`. Then `ϱ` may be negative, and is `−inf` if `x*` alone minimises the loss
        over `x ≥ 0`.
    - `max_knots`: as in `lasso_path`, for each of the two lasso paths that are computed.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** a `NullSpaceConstant`.

    **Raises:** `ValueError`/`TypeError` for bad input; an `EquinoxRuntimeError` if a path is cut
    short or inaccurate.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.array([[1.0, 0.9]]), jnp.array([1.0]))
        constant = dln.null_space_constant(problem)
        constant.value  # 0.9: the dual (1, 0.9) almost attains its bound off the support
        constant.gap  # 0
        ```

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
    # Where basis pursuit failed, go on with 0 in place of NaN: the result is blanked below.
    c, x = (jnp.where(good, v, 0) for v in (minimum.dual, minimum.x))
    is_free = jnp.isfinite(c)
    # The support: entries whose share of the fit is more than rounding of the largest one. The
    # homotopy makes inactive entries 0 exactly, so that this concerns entries which the rounding of
    # `y` alone has activated: they are some eps times the condition of the active columns. 1.6e-10
    # in float64 is the power by which `basis_pursuit` decides which bounds its dual attains. 100
    # times less counts such entries for columns of condition 1e4; 100 times more drops a planted
    # entry of 1e-8, and ϱ is then that of another support.
    fit = jnp.abs(x) * jnp.sqrt(problem.gram_diagonal())
    support = fit > jnp.finfo(c.dtype).eps ** 0.625 * jnp.max(fit)
    is_off = is_free & ~support

    # The inner basis pursuit (h⁺ alone if `positive`): rows W of response 0, one row of ones of
    # response 1, columns off S.
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
    # `inner.dual` is a combination of the rows: `least` times the ones, plus ± a combination of W,
    # and at most 2 ∓ c. Adding that combination to `c` gives the dual that attains ϱ off S.
    slack = inner.dual.reshape(len(signs), -1)
    change = slack[0] - least if positive else (slack[0] - slack[1]) / 2
    dual = c + jnp.where(is_off, change, 0)

    # If no h ≥ 0 exists, `c` is unbounded below off S and ϱ = −∞; with two signs h⁺ = h⁻ always
    # exists unless S is everything, where ϱ = 0. An h that does not exist leaves Σh or Wh off by
    # an amount of order 1, one that does by rounding: half of the digits separates them.
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
    """Rows that span the part of `range Xᵀ` that vanishes on the support (over free coordinates):
    independent and of norm 1, or 0."""
    solutions = SolutionSpace(problem, is_free)
    V = solutions.V
    U, s, _ = svd(jnp.where(support[None, :], V, 0))
    # Left singular vectors of V_S whose singular value is 0 combine rows of V into rows that vanish
    # on S. Rows of V are orthonormal, or 0 beyond the rank of X: combinations of the former have
    # norm 1, of the latter rounding, so that any bound of squared norms between eps² and 1 would
    # do. Singular values of V_S are at most 1: that of a dependent row has the rounding of the
    # decomposition, some eps, times a dimension.
    rows = matmul(U.T, V)
    is_zero = s <= jnp.finfo(s.dtype).eps * V.shape[1]
    counts = is_zero & (jnp.sum(rows**2, axis=1) > jnp.finfo(s.dtype).eps)
    rows = jnp.where(counts[:, None], rows * solutions.units[None, :], 0)
    # Scale to norm 1 in the user's units, by the largest entry first so that no square overflows:
    # a row of ones stands beside them, and the homotopy compares rows.
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    rows = rows / jnp.where(largest > 0, largest, 1)
    norms = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
    return rows / jnp.where(norms > 0, norms, 1)
