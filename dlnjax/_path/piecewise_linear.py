"""The type that the lasso path and the limit process share.

`z(p)` is stored by its knots, its values there and its slopes after them; everything else follows:

    z(p) = zₖ + (p − pₖ) mₖ  for  pₖ ≤ p < pₖ₊₁,   x(p) = z(p)/p.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._checks import as_parameter, is_concrete
from .._problem import AbstractProblem, check_known_loss, check_quadratic, nan_unless_valid
from .._results import RESULTS, has_no_nan, one_unless
from .optimality import kkt_violation, largest_correlation, penalties


class PiecewiseLinearPath(eqx.Module):
    """A path `x(p) = z(p)/p`, where `z` is piecewise linear in `p ≥ 0` and `z(0) = 0`.

    For `lasso_path`, `p = μ` is the inverse regularisation and `x(μ)` the lasso solution at
    `κ = λ + ω/μ`. For `limit_flow`, `p = s` is rescaled time and `x(s)` the average of the
    plateaus. Before the first knot `z = 0`; after the last one `z` goes on along its last ray.

    **Attributes:**

    - `knots`: where the slope changes, non-decreasing, shape `(K,)`, in units of `p`. The first
        `num_knots` count; the rest is padding that repeats the last one.
    - `values`: `z` at the knots, shape `(K, d)`.
    - `slopes`: `dz/dp` after the knots, shape `(K, d)`.
    - `num_knots`: the number of knots, a scalar. (It can be 0: then `z = 0` everywhere.)
    - `positive`: whether the path is restricted to `x ≥ 0`.
    - `weights`: the weights `ω` that the path belongs to, shape `(2, d)`, for positive and for
        negative entries.
    - `norms`: `‖Xⱼ‖`, shape `(d,)`: coordinates are compared by `‖Xⱼ‖|zⱼ|`.
    - `result`: how the solve ended.
    - `stats`: `num_pivots`, and `max_violation` of the optimality conditions, relative to the
        largest `|rⱼ|/‖Xⱼ‖`.

    !!! example

        ```python
        path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
        int(path.num_knots)  # 2
        path.knots[:2], path.slopes[:2]  # (0.5, 1) and (2, 0), (2, 1)
        ```
    """

    knots: Float[Array, " K"]
    values: Float[Array, "K d"]
    slopes: Float[Array, "K d"]
    num_knots: Int[Array, ""]
    weights: Float[Array, "2 d"]
    norms: Float[Array, " d"]
    result: RESULTS
    stats: dict[str, Any]
    positive: bool = eqx.field(static=True)

    def _check_single(self) -> None:
        if self.knots.ndim != 1:
            raise ValueError(
                f"This is a batch of paths, of shape {self.knots.shape[:-1]}. Ask inside the "
                "`jax.vmap` that made it, or `jax.vmap(lambda path: ...)(paths)`."
            )

    @eqx.filter_jit
    def _ask(self, at: Callable[..., Array], p: Array) -> Array:
        """`at(self, p)`; NaN, with derivative 0, where `p` is NaN or negative, or the path is NaN.

        The derivative of a NaN would be NaN, and reverse mode would spread it to all entries. So
        `at` is evaluated with zeros in place of NaN, and once more, without derivatives, to see
        which results are NaN.
        """
        self._check_single()
        is_known = p >= 0
        p = jnp.where(is_known, p, 0)
        fields = lambda path: (path.knots, path.values, path.slopes)
        filled = [jnp.where(jnp.isnan(v), 0, v) for v in fields(self)]
        value = at(eqx.tree_at(fields, self, filled), p)
        held = eqx.tree_at(fields, self, [lax.stop_gradient(v) for v in fields(self)])
        is_known = is_known.reshape(p.shape + (1,) * (value.ndim - p.ndim))
        is_known = is_known & ~jnp.isnan(at(held, lax.stop_gradient(p)))
        return jnp.where(is_known, value, jnp.nan)

    def _locate(self, p: Array) -> tuple[Array, Array]:
        """The segment of each `p`, and whether `p` has reached the first knot."""
        index = jnp.searchsorted(self.knots, p, side="right") - 1
        # Not `p >= knots[0]`: a path with NaN knots has to count as started, to be NaN.
        return jnp.maximum(index, 0), ~(p < self.knots[0])

    def _with_sign(self, v: Array, index: Array) -> Array:
        """`v` inside segment `index`, with 0 where rounding has given it the wrong sign: between
        two knots at which a coordinate does not have opposite signs it keeps its sign."""
        start = jnp.sign(self.values[index])
        end = jnp.sign(self.values[jnp.minimum(index + 1, self.knots.shape[0] - 1)])
        is_inner = (index + 1 < self.num_knots.astype(index.dtype))[..., None]
        return jnp.where(is_inner & (start * end >= 0) & (v * (start + end) <= 0), 0, v)

    def z(self, p: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`z(p)`. Any shape `(...)` of `p ≥ 0` gives `(..., d)`; under tracing, `p < 0` gives NaN.

        **Raises:** `ValueError` for `p < 0`.

        !!! example

            ```python
            path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
            path.z(jnp.array([1.0, 2.0]))  # (1, 0) and (3, 1)
            ```
        """
        return self._ask(PiecewiseLinearPath._z, as_parameter(p, "p", self.knots.dtype))

    def _z(self, p: Array) -> Array:
        index, started = self._locate(p)
        step = (p - self.knots[index])[..., None]
        slope = self.slopes[index]
        # At p = ∞ the step is infinite, and 0 · ∞ would be NaN.
        z = self.values[index] + jnp.where(slope == 0, 0, step * slope)
        # Between two knots the value is on the line through both. The slope form is not enough: if
        # columns are almost dependent the slope is so large that the rounding of a knot carries z
        # past 0. Derivatives are those of the slope form, which is the same in exact arithmetic.
        change, share = self._to_next_knot(p, index)
        line = lax.stop_gradient(self.values[index] + share * change - z)
        z = z + jnp.where(share > 0, line, 0)
        return jnp.where(started[..., None], self._with_sign(z, index), 0)

    def _to_next_knot(self, p: Array, index: Array) -> tuple[Array, Array]:
        """The change of `z` on a segment, and the share of it at `p`; 0 on the last ray."""
        after = jnp.minimum(index + 1, self.knots.shape[0] - 1)
        width = self.knots[after] - self.knots[index]
        share = jnp.where(width > 0, (p - self.knots[index]) / jnp.where(width > 0, width, 1), 0)
        share = jnp.where(p < self.knots[after], share, 0)
        return self.values[after] - self.values[index], share[..., None]

    def x(self, p: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`x(p) = z(p)/p`, and its limits at `p = 0` and `p = inf`, the slope of the last ray.
        `(...) -> (..., d)`; under tracing, `p < 0` gives NaN.

        **Raises:** `ValueError` for `p < 0`.

        !!! example

            ```python
            path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
            path.x(jnp.array([1.0, 2.0]))  # (1, 0) and (1.5, 0.5)
            path.x(jnp.inf)  # (2, 1)
            ```
        """
        return self._ask(PiecewiseLinearPath._x, as_parameter(p, "p", self.knots.dtype))

    def _x(self, p: Array) -> Array:
        index, started = self._locate(p)
        # (v + (p − k)m)/p = m + (v − km)/p keeps its digits for large p, and has a limit at ∞.
        slope = self.slopes[index]
        offset = self.values[index] - self.knots[index][..., None] * slope
        safe = jnp.where(p > 0, p, 1)[..., None]
        x = jnp.where((p > 0)[..., None], slope + offset / safe, slope)
        # Between knots, and on the last ray near its knot, x is z/p, exactly 0 where z is; there
        # m + (v − km)/p cancels. From twice the last knot on it loses about one bit. There z is
        # evaluated at p = 0, as at p = ∞ it has NaN derivatives, which reverse mode would keep
        # although the value is not selected.
        is_inner = index + 1 < self.num_knots.astype(index.dtype)
        near = jnp.isfinite(p) & (p > 0) & ((p < 2 * self.knots[index]) | is_inner)
        z = self._z(jnp.where(near, p, 0))
        x = jnp.where(near[..., None], z / safe, x)
        return jnp.where(started[..., None], self._with_sign(x, index), 0)

    def slope(self, p: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`dz/dp`, at a knot that of the segment which follows. `(...) -> (..., d)`.

        **Raises:** `ValueError` for `p < 0`.

        !!! example

            ```python
            path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
            path.slope(jnp.array([0.9, 1.0]))  # (2, 0) and (2, 1)
            ```
        """
        return self._ask(PiecewiseLinearPath._slope, as_parameter(p, "p", self.knots.dtype))

    def _slope(self, p: Array) -> Array:
        index, started = self._locate(p)
        return jnp.where(started[..., None], self.slopes[index], 0)

    def check_size(self, problem: AbstractProblem) -> None:
        """Check that `problem` is a quadratic problem with as many coordinates as the path.

        **Raises:** `TypeError` or `ValueError` otherwise.

        !!! example

            ```python
            path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
            path.check_size(dln.LeastSquares(jnp.ones((1, 2)), jnp.ones(1)))  # nothing: it has 2
            ```
        """
        self._check_size(problem)

    def _check_size(
        self, problem: AbstractProblem, any_decay: bool = False, any_loss: bool = False
    ) -> None:
        (check_known_loss if any_loss else check_quadratic)(problem, any_decay)
        d = self.values.shape[-1]
        if problem.r.shape != (d,):
            raise ValueError(
                f"The path has {d} coordinates, the problem has {problem.r.shape[0]}. Pass the "
                "problem that the path belongs to."
            )

    @property
    def _rows(self) -> Array:
        self._check_single()
        return jnp.arange(self.knots.shape[0], dtype=self.num_knots.dtype)

    def _segments(self) -> tuple[Array, Array]:
        """Start and end of each segment; the last one ends at infinity, padding is empty."""
        is_last = self._rows == self.num_knots - 1
        end = jnp.append(self.knots[1:], self.knots[-1:])
        return self.knots, jnp.where(is_last, jnp.inf, end)

    @eqx.filter_jit
    def is_monotone(self, tol: float | None = None) -> Bool[Array, ""]:
        """Whether `p ↦ z(p)` is coordinate-wise monotone: no positive part and no negative
        part ever decreases, the last ray included ([B25] §2.1). A boolean scalar.

        Decreases of `‖Xⱼ‖|zⱼ|` up to `tol` times the largest one, or at up to `tol` times the
        largest speed of the segment, count as rounding. The default is `eps^(5/8)`, 1.6e-10 in
        float64. False where the path is not known to its end.

        **Raises:** `ValueError` for a `tol` outside of `[0, 1)`.

        !!! example

            ```python
            path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
            bool(path.is_monotone())  # True
            ```
        """
        if tol is not None and is_concrete(tol) and not 0 <= tol < 1:
            raise ValueError(f"`tol` must be a number in [0, 1), got {tol}.")
        # Slopes have the rounding of a solve: eps^(5/8) allows for a condition number of 7e5. The
        # power is a choice; on 30 000 Gaussian paths up to 20 × 40 every `tol` from 1e-14 to 1e-5
        # gives the same answers.
        small = jnp.finfo(self.knots.dtype).eps ** 0.625 if tol is None else tol
        start, end = self._segments()
        norms = self.norms[None, :]
        values, slopes = norms * jnp.abs(self.values), norms * jnp.abs(self.slopes)
        speed = jnp.where(self.values * self.slopes < 0, slopes, 0)
        amount = jnp.minimum(values, jnp.where(speed > 0, speed * (end - start)[:, None], 0))
        top = jnp.max(values, axis=1, keepdims=True)
        fastest = jnp.max(slopes, axis=1, keepdims=True)
        decreases = (speed > small * fastest) & (amount > small * top)
        return ~jnp.any(decreases | jnp.isnan(self.slopes))

    def downward_variation(self, p: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The deviation from monotonicity, exact from the knots. `(...) -> (...)`:

            z↓(p) = Σᵢ ωᵢ ∫₀ᵖ (1 + u)[(d(zᵢ)₊/du)₋ + (d(zᵢ)₋/du)₋] du,

        with `ωᵢ` the weight of the sign that decreases. At `ω = 1` it is [B25] Eq. 2.3; weights are
        the same as columns `Xᵢ/ωᵢ`. 0 for monotone paths, NaN where the path is not known.

        **Raises:** `ValueError` for `p < 0`.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.array([[2.0, 1.0], [0.0, 0.5]]), jnp.array([1.0, 1.5]))
            path = dln.lasso_path(problem)  # z₁ falls from 1/12 at μ = 2/3 to 0 at μ = 3/4
            path.downward_variation(jnp.array([0.5, 1.0]))  # 0 and 0.142
            ```
        """
        at = PiecewiseLinearPath._downward_variation
        return self._ask(at, as_parameter(p, "p", self.knots.dtype))

    def _downward_variation(self, p: Array) -> Array:
        start, end = self._segments()
        speed = jnp.where(self.values * self.slopes < 0, jnp.abs(self.slopes), 0)
        omega = jnp.where(self.values > 0, self.weights[:1], self.weights[1:])
        omega = jnp.where(speed > 0, omega, 0)
        # A coordinate that crosses 0 inside a segment decreases up to there and then grows again.
        zero = start[:, None] + jnp.where(
            speed > 0, jnp.abs(self.values) / jnp.where(speed > 0, speed, 1), 0
        )

        # On each segment z decreases at constant speed: ∫ (1 + u) du in closed form.
        def up_to(p):
            stop = jnp.minimum(jnp.minimum(end, p)[:, None], zero)
            stop = jnp.maximum(stop, start[:, None])
            length = stop - start[:, None]
            moment = length + 0.5 * (stop + start[:, None]) * length
            is_unknown = jnp.isnan(self.slopes) & (jnp.minimum(end, p) > start)[:, None]
            return jnp.sum(jnp.where(is_unknown, jnp.nan, omega * speed * moment))

        return jnp.vectorize(up_to)(p)

    @eqx.filter_jit
    def kkt_residual(self, problem: AbstractProblem) -> Float[Array, " K"]:
        """Violation of the lasso's optimality conditions (KKT), one number a knot: the larger one
        of those at the knot and in the middle of the segment that follows. Shape `(K,)`, relative
        to the largest `|rⱼ|/‖Xⱼ‖`, 0 for padding.

        The violation at `x` is the largest of `|rⱼ − (Mx)ⱼ| − κⱼ` and, where `xⱼ ≠ 0`, of
        `|rⱼ − (Mx)ⱼ − κⱼ sign xⱼ|`, each over `‖Xⱼ‖`, with `κ = λ + ω/p`. On a segment it is convex
        in `1/p`. On the last ray the middle is at twice the last knot; a path without knots is
        checked at the `p` at which `ω/p` reaches the largest correlation.

        **Raises:** `TypeError` or `ValueError` if `problem` is not a problem of this size.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            path = dln.lasso_path(problem)
            float(path.kkt_residual(problem).max())  # 0, or a rounding unit
            ```
        """
        self.check_size(problem)
        is_valid = has_no_nan((problem, self.weights, self.knots))
        given = problem
        problem, weights = one_unless(is_valid, (problem, self.weights))
        start, end = self._segments()
        scale, norms = largest_correlation(problem)
        typical = jnp.max(jnp.where(jnp.isfinite(weights), weights, 0) / norms[None, :])
        unit = jnp.where(typical > 0, typical, 1) / jnp.where(scale > 0, scale, 1)
        beyond = jnp.where(start > 0, 2 * start, unit)
        middle = jnp.where(jnp.isinf(end), beyond, 0.5 * (start + end))

        def at(p):
            # At p = 0 κ is infinite, and there are no conditions.
            x = self.x(p)
            is_known = has_no_nan(x)
            kappa = penalties(problem, weights, one_unless(is_known & (p != 0), p))
            x = one_unless(is_known, x)
            violation = kkt_violation(problem, x, kappa, self.positive, norms)
            violation = violation / jnp.where(scale > 0, scale, 1)
            return jnp.where(p == 0, 0, jnp.where(is_known, violation, jnp.nan))

        violation = jnp.maximum(jax.vmap(at)(start), jax.vmap(at)(middle))
        counted = (self._rows < self.num_knots) | jnp.isnan(self.knots)
        violation = jnp.where(is_valid, jnp.where(counted, violation, 0), jnp.nan)
        return nan_unless_valid(given, violation)
