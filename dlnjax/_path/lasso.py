"""`LassoPath`: the lasso path, and how a point of it is chosen."""

import math
from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import as_float, as_parameter, check_scalar, is_concrete
from .._problem import AbstractProblem
from .optimality import penalty
from .piecewise_linear import PiecewiseLinearPath


def information_criterion(fit: Any, log_variance: Any, nonzeros: Any, n: int, name: str) -> Any:
    """`fit + n log 2πσ² + c·nonzeros` with `c = 2` (AIC) or `log n` (BIC), where `fit` is the sum
    of squares over `σ²`: arrays of NumPy or of JAX."""
    price = 2.0 if name == "aic" else math.log(n)
    return fit + n * (math.log(2 * math.pi) + log_variance) + price * nonzeros


class LassoPath(PiecewiseLinearPath):
    """The lasso path, a `PiecewiseLinearPath` in inverse regularisation `p = μ`, with three ways to
    choose a point of it: by its number of non-zeros (`at_nonzeros`), by its norm (`at_norm`), and
    by an information criterion (`information_criterion`).

    **Attributes:** those of `PiecewiseLinearPath`.

    !!! example

        ```python
        path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
        path.x(path.at_nonzeros(1))  # (1, 0)
        path.x(path.at_norm(2.0))  # (1.5, 0.5)
        ```
    """

    def at_nonzeros(self, k: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The `μ` up to which `x` has at most `k` non-zeros: there one more coordinate enters.
        `(...) -> (...)`, `inf` if `x` never has more. (Later it may have `k` again, if coordinates
        leave.) Under tracing, `k < 0` gives NaN.

        **Raises:** `ValueError` for `k < 0`.

        !!! example

            ```python
            path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
            path.at_nonzeros(jnp.array([0, 1, 2]))  # (0.5, 1, inf)
            ```
        """
        return self._ask(LassoPath._at_nonzeros, as_parameter(k, "k", self.knots.dtype))

    def _at_nonzeros(self, k: Array) -> Array:
        start, end = self._segments()
        number = jnp.sum((self.values != 0) | (self.slopes != 0), axis=1)
        # A segment of no length, where several things happen at once, does not count.
        number = jnp.where(end > start, number, 0).astype(k.dtype)
        is_unknown = jnp.any(jnp.isnan(self.slopes), axis=1)  # from some segment on
        beyond = jnp.where(jnp.any(is_unknown), jnp.nan, jnp.inf)

        def first(k):
            enters = (number > k) & ~is_unknown
            return jnp.where(jnp.any(enters), jnp.min(jnp.where(enters, start, jnp.inf)), beyond)

        return jnp.vectorize(first)(k)

    def at_norm(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The first `μ` at which `Σᵢ ωᵢ|xᵢ| = t`. There `x(μ)` solves the lasso in its constrained
        form, `min ℓ(x) + λ‖x‖₁` subject to `Σᵢ ωᵢ|xᵢ| ≤ t`. `(...) -> (...)`, `inf` for a `t` that
        is not reached; under tracing, `t < 0` gives NaN.

        **Raises:** `ValueError` for `t < 0`.

        !!! example

            ```python
            path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
            path.at_norm(jnp.array([1.0, 2.0, 3.0]))  # (1, 2, inf)
            ```

        !!! cite "Reference"

            Tibshirani, *Regression Shrinkage and Selection via the Lasso* (1996).
        """
        return self._ask(LassoPath._at_norm, as_parameter(t, "t", self.knots.dtype))

    def _at_norm(self, t: Array) -> Array:
        norm = lambda x: jnp.sum(penalty(x, self.weights))
        # μ = ∞ is one more knot. On a segment x is affine in 1/μ, and so is its norm.
        last = self.slopes[jnp.maximum(self.num_knots - 1, 0)]
        knots = jnp.where(self.knots > 0, self.knots, 1)  # at μ = 0 the norm is 0
        norms = jnp.append(jax.vmap(norm)(self.values) / knots, norm(last))
        beyond = jnp.where(jnp.any(jnp.isnan(norms)), jnp.nan, jnp.inf)
        # The norm never falls, but by rounding. XLA's maximum may drop a NaN.
        norms = lax.cummax(jnp.where(jnp.isnan(norms), 0, norms))
        inverse = jnp.append(1 / knots, 0)
        index = jnp.clip(jnp.searchsorted(norms, t) - 1, 0, self.knots.shape[0] - 1)
        rise = norms[index + 1] - norms[index]
        share = jnp.where(rise > 0, (t - norms[index]) / jnp.where(rise > 0, rise, 1), 0)
        at = inverse[index] + share * (inverse[index + 1] - inverse[index])
        value = jnp.where(at > 0, 1 / jnp.where(at > 0, at, 1), jnp.inf)
        value = jnp.where(t > norms[-1], beyond, value)
        return jnp.where(t > norms[0], value, 0)

    def information_criterion(
        self,
        problem: AbstractProblem,
        mu: Real[ArrayLike, "..."],
        criterion: str = "bic",
        *,
        noise_variance: Real[ArrayLike, ""] | None = None,
    ) -> Float[Array, "..."]:
        """Akaike's or the Bayesian information criterion at `μ`, to be minimised:

            2ℓ(x(μ))/σ² + n log 2πσ² + c·#{i : xᵢ(μ) ≠ 0},    c = 2 (AIC) or log n (BIC).

        `(...) -> (...)`. Between knots the number of non-zeros is constant and the loss falls, so
        that the best `μ` is a knot or `inf`.

        **Arguments:**

        - `problem`: the `LeastSquares` problem of the path, with its `n` rows.
        - `mu`: where, `≥ 0`.
        - `criterion`: `"aic"` or `"bic"`.
        - `noise_variance`: `σ² > 0`, in units of `y²`. By default that of the residuals at the end
            of the path, `2ℓ(x(∞))/(n − #{i : xᵢ(∞) ≠ 0})`, which needs more rows than columns. If
            `X` and `y` were centred, that denominator is one too large: pass the estimate.

        **Raises:** `TypeError` for another problem; `ValueError` for another `criterion`, or if
        `noise_variance` is missing or not positive (under tracing, it gives NaN).

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            path = dln.lasso_path(problem)
            at = jnp.append(path.knots[:2], jnp.inf)
            path.information_criterion(problem, at, "aic", noise_variance=1.0)  # (8.68, 7.68, 7.68)
            ```

        !!! cite "Reference"

            Zou, Hastie & Tibshirani, *On the degrees of freedom of the lasso* (2007).
        """
        self.check_size(problem)
        rows = problem.rows()
        if rows is None:
            raise TypeError(
                "An information criterion counts rows: pass a `LeastSquares` problem, got "
                f"{type(problem).__name__}."
            )
        if criterion not in ("aic", "bic"):
            raise ValueError(f'`criterion` must be "aic" or "bic", got {criterion!r}.')
        n, d = rows[0].shape
        x = self.x(as_parameter(mu, "mu", self.knots.dtype))
        count = lambda x: jnp.sum(x != 0, axis=-1).astype(x.dtype)
        if noise_variance is None:
            end = self.x(jnp.inf)
            # What rounding leaves of an exact fit is some units of it: its squares count as 0.
            left, least = problem.loss(end), problem.loss(jnp.zeros_like(end))
            is_exact = left <= (64 * float(jnp.finfo(x.dtype).eps)) ** 2 * least
            variance = jnp.where(is_exact | (n <= d), 0, 2 * left / jnp.maximum(n - count(end), 1))
        else:
            variance = as_float(noise_variance, "noise_variance", x.dtype)
            check_scalar(variance, "noise_variance")
            if is_concrete(variance) and not variance > 0:
                raise ValueError(f"`noise_variance` must be positive, got {float(variance)}.")
        if is_concrete(variance) and variance == 0:
            raise ValueError(
                f"`noise_variance` cannot be estimated: {n} rows and {d} columns leave no "
                "residuals. Pass it."
            )
        variance = jnp.where(variance > 0, variance, jnp.nan)
        loss = problem.loss(x)
        fit, log_variance = 2 * loss / variance, jnp.log(variance)
        return information_criterion(fit, log_variance, count(x), n, criterion)
