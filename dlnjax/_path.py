"""Piecewise linear paths: the type that the lasso path and the limit process share."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from ._checks import as_parameter, is_concrete
from ._problem import AbstractProblem, check_quadratic, nan_unless_valid
from ._results import RESULTS, has_no_nan, one_unless


class PiecewiseLinearPath(eqx.Module):
    """`z(p)`, piecewise linear in `p ≥ 0` with `z(0) = 0`; the path is `x(p) = z(p)/p`.

    For `lasso_path`, `p = μ` is the inverse regularisation and `x(μ)` the lasso solution at
    `κ = λ + 1/μ`. Before the first knot `z = 0`; after the last one `z` goes on along its last
    ray.

    **Attributes:**

    - `knots`: the kinks, non-decreasing, shape `(K,)`, in units of `p`. Only the first
        `num_knots` are meant; the rest repeats the last one.
    - `values`: `z` at the knots, shape `(K, d)`.
    - `slopes`: `dz/dp` after the knots, shape `(K, d)`.
    - `num_knots`: the number of kinks. (It can be 0: then `z = 0` everywhere.)
    - `positive`, `weights`: whether `x ≥ 0` was asked, and the weights `ω` of shape `(2, d)`
        (rows: for positive and for negative entries) that the path belongs to.
    - `norms`: `‖Xⱼ‖`, shape `(d,)`, the units in which coordinates compare.
    - `result`: how the solve ended; `stats`: what it cost.
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
        """`at(self, p)`; NaN, without derivatives, where `p` is NaN or negative, and where the path
        is not known."""
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
        index = jnp.searchsorted(self.knots, p, side="right") - 1
        # Written so that a NaN path has started, and is NaN.
        return jnp.maximum(index, 0), ~(p < self.knots[0])

    def _with_sign(self, v: Array, index: Array) -> Array:
        """`v` inside segment `index`, where rounding must not carry it across 0: between two
        knots at which a coordinate has no opposite signs it keeps its sign."""
        start = jnp.sign(self.values[index])
        end = jnp.sign(self.values[jnp.minimum(index + 1, self.knots.shape[0] - 1)])
        is_inner = (index + 1 < self.num_knots.astype(index.dtype))[..., None]
        return jnp.where(is_inner & (start * end >= 0) & (v * (start + end) <= 0), 0, v)

    def z(self, p: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`z(p)`. Any shape `(...)` of `p ≥ 0` gives `(..., d)`; under tracing, `p < 0` gives NaN.

        **Raises:** `ValueError` for `p < 0`.
        """
        return self._ask(PiecewiseLinearPath._z, as_parameter(p, "p", self.knots.dtype))

    def _z(self, p: Array) -> Array:
        index, started = self._locate(p)
        step = (p - self.knots[index])[..., None]
        slope = self.slopes[index]
        z = self.values[index] + jnp.where(slope == 0, 0, step * slope)  # p may be inf
        # Between two knots in a line: where columns are almost dependent slopes are so large that
        # rounding of a knot carries `z` past 0. Derivatives are those of the segment alone.
        change, share = self._to_next_knot(p, index)
        line = lax.stop_gradient(self.values[index] + share * change - z)
        z = z + jnp.where(share > 0, line, 0)
        return jnp.where(started[..., None], self._with_sign(z, index), 0)

    def _to_next_knot(self, p: Array, index: Array) -> tuple[Array, Array]:
        """The change of `z` on a segment, and the share that is made at `p`; 0 on the last ray."""
        after = jnp.minimum(index + 1, self.knots.shape[0] - 1)
        width = self.knots[after] - self.knots[index]
        share = jnp.where(width > 0, (p - self.knots[index]) / jnp.where(width > 0, width, 1), 0)
        share = jnp.where(p < self.knots[after], share, 0)
        return self.values[after] - self.values[index], share[..., None]

    def x(self, p: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`x(p) = z(p)/p`, with `x(0)` its limit. `(...) -> (..., d)`; `p = inf` gives the end
        point, the slope of the last ray.

        **Raises:** `ValueError` for `p < 0`.
        """
        return self._ask(PiecewiseLinearPath._x, as_parameter(p, "p", self.knots.dtype))

    def _x(self, p: Array) -> Array:
        index, started = self._locate(p)
        # (v + (p − k) m)/p = m + (v − k m)/p stays accurate for large p.
        slope = self.slopes[index]
        offset = self.values[index] - self.knots[index][..., None] * slope
        safe = jnp.where(p > 0, p, 1)[..., None]
        x = jnp.where((p > 0)[..., None], slope + offset / safe, slope)
        # Exact zeros survive: z itself is exact there, the rearrangement is not.
        # (Elsewhere z is not asked: at p = inf the derivative of what is not chosen is NaN.)
        is_inner = index + 1 < self.num_knots.astype(index.dtype)
        near = jnp.isfinite(p) & (p > 0) & ((p < 2 * self.knots[index]) | is_inner)
        z = self._z(jnp.where(near, p, 0))
        x = jnp.where(near[..., None], z / safe, x)
        return jnp.where(started[..., None], self._with_sign(x, index), 0)

    def slope(self, p: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`dz/dp`, right-continuous. `(...) -> (..., d)`.

        **Raises:** `ValueError` for `p < 0`.
        """
        return self._ask(PiecewiseLinearPath._slope, as_parameter(p, "p", self.knots.dtype))

    def _slope(self, p: Array) -> Array:
        index, started = self._locate(p)
        return jnp.where(started[..., None], self.slopes[index], 0)

    def check_size(self, problem: AbstractProblem) -> None:
        """Refuse a problem of another size, or what is not one."""
        check_quadratic(problem)
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
        part ever decreases, the last ray included ([B25] §2.1).

        `tol` (default `eps^(5/8)`, 1.6e-10 in float64) is relative to the largest `‖Xⱼ‖|zⱼ|` and
        `‖Xⱼ‖|dzⱼ/dp|` of the segment: smaller decreases count as rounding. (So the units of columns
        play no role.) False where the path is not known to its end.
        """
        if tol is not None and is_concrete(tol) and not 0 <= tol < 1:
            raise ValueError(f"`tol` must be a number in [0, 1), got {tol}.")
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
        """`z↓(p) = Σᵢ ωᵢ ∫₀ᵖ (1+u)[(d(zᵢ)₊/du)₋ + (d(zᵢ)₋/du)₋] du`, exact from the knots, with the
        weight of the sign that decreases. `(...) -> (...)`. At `ω = 1` it is [B25] Eq. 2.3, and
        weights are the same as columns `Xᵢ/ωᵢ`.

        **Raises:** `ValueError` for `p < 0`.
        """
        at = PiecewiseLinearPath._downward_variation
        return self._ask(at, as_parameter(p, "p", self.knots.dtype))

    def _downward_variation(self, p: Array) -> Array:
        start, end = self._segments()
        speed = jnp.where(self.values * self.slopes < 0, jnp.abs(self.slopes), 0)
        omega = jnp.where(self.values > 0, self.weights[:1], self.weights[1:])
        omega = jnp.where(speed > 0, omega, 0)
        # A coordinate that crosses 0 inside a segment grows again on the other side.
        zero = start[:, None] + jnp.where(
            speed > 0, jnp.abs(self.values) / jnp.where(speed > 0, speed, 1), 0
        )

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
        """Violation of the lasso's optimality conditions, at each knot and in the middle of the
        segment that follows (at twice the last knot on the last ray, or where a path without one
        would have its first), relative to the largest `|rⱼ|/‖Xⱼ‖`. Shape `(K,)`; 0 for padding and,
        since both are linear, a bound in between.

        The violation at `x` is the largest of `|rⱼ − (Mx)ⱼ| − κⱼ` and, where `xᵢ ≠ 0`, of
        `|rᵢ − (Mx)ᵢ − κᵢ sign xᵢ|`, each over `‖Xⱼ‖`, with `κ = λ + ω/p`.
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
            # At p = 0 there is no lasso.
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


class LimitFlow(PiecewiseLinearPath):
    """The limit of gradient flow as `ε → 0`: a `PiecewiseLinearPath` in `p = s` whose slope, the
    plateau, jumps at the knots. `limit.plateau(s)` is what `flow.x` tends to; `limit.x_mean(s)` is
    its average, what `flow.x_mean` tends to, and compares with the lasso path at `μ = s`. (As in
    every `PiecewiseLinearPath` they are also called `slope` and `x`.)

    `weights` is `w(0)`. Where the process was stopped at `s_max`, it is NaN beyond, and its last
    knot, just after `s_max`, is no jump.

    **Attributes:** those of `PiecewiseLinearPath`, and

    - `num_jumps`: how many of the knots are jumps.
    """

    num_jumps: Int[Array, ""]

    def x_mean(self, s: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`x̄(s)`, the average of the plateaus over `[0, s]`: the limit of `flow.x_mean`.
        `(...) -> (..., d)`.

        **Raises:** `ValueError` for `s < 0`.
        """
        return self.x(s)

    def plateau(self, s: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """Where the network rests at `s`, after a jump at `s` itself: the limit of `flow.x`.
        `(...) -> (..., d)`.

        **Raises:** `ValueError` for `s < 0`.
        """
        return self.slope(s)

    @property
    def jumps(self) -> Float[Array, " K"]:
        """The times of the jumps, shape `(K,)`: the first `num_jumps`, then the last one repeated
        (0 if there is none)."""
        rows = jnp.clip(self._rows, 0, jnp.maximum(self.num_jumps - 1, 0))
        return jnp.where((self.num_jumps > 0) | jnp.isnan(self.knots), self.knots[rows], 0)

    @property
    def activations(self) -> Bool[Array, "K d"]:
        """Which coordinates leave 0, or change sign, at each jump. Shape `(K, d)`."""
        before, after = self._signs()
        return (after != 0) & (before != after)

    @property
    def deactivations(self) -> Bool[Array, "K d"]:
        """Which coordinates come back to 0, or change sign, at each jump. Shape `(K, d)`."""
        before, after = self._signs()
        return (before != 0) & (before != after)

    def _signs(self) -> tuple[Array, Array]:
        """Of `x` before and after each jump; equal where there is no jump, or it is not known."""
        self._check_single()
        after = jnp.sign(self.slopes)
        before = jnp.concatenate([jnp.zeros_like(after[:1]), after[:-1]])
        is_known = (self._rows < self.num_jumps)[:, None] & ~jnp.isnan(after)
        return jnp.where(is_known, before, 0), jnp.where(is_known, after, 0)

    def dual(self, problem: AbstractProblem, s: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`Xᵀν(s) = s r − M z(s)`, for finite `s ≥ 0`. `(...) -> (..., d)`. The scaled dual
        variable of [B25] §4.2 is `w(s) = w(0) ∓ Xᵀν(s) + λs`.

        **Raises:** `ValueError` if `w(s) ≥ 0` does not hold, since this is the limit process of
        another problem (NaN under tracing)."""
        self.check_size(problem)
        s = as_parameter(s, "s", self.knots.dtype)
        dual, is_ours = self._dual(problem, s)
        if is_concrete(is_ours) and not bool(jnp.all(is_ours)):
            raise ValueError(
                "This is the limit process of another problem: its `w` falls below 0. Pass the "
                "problem that it was made from."
            )
        return dual

    @eqx.filter_jit
    def _dual(self, given: AbstractProblem, s: Array) -> tuple[Array, Array]:
        is_valid = has_no_nan((given, self.knots))
        problem, weights = one_unless(is_valid, (given, self.weights))

        def at(x, s):
            dual = -s * problem.gradient(x)
            w = weights + jnp.stack([-dual, dual]) + problem.weight_decay * s
            w = w[:1] if self.positive else w
            units = weights + s * rounding_units(problem, x)[None, :]
            is_ours = ~jnp.any(w < -(jnp.finfo(x.dtype).eps ** 0.5) * units[: len(w)])
            return jnp.where(is_ours, dual, jnp.nan), is_ours

        z = self.z(s)
        is_known = is_valid & ~jnp.any(jnp.isnan(z), axis=-1)
        x = jnp.where(is_known[..., None], z, 0) / jnp.where(s > 0, s, 1)[..., None]
        dual, is_ours = jnp.vectorize(at, signature="(d),()->(d),()")(x, s)
        dual = jnp.where(is_known[..., None], dual, jnp.nan)
        return nan_unless_valid(given, dual), is_ours | ~is_known


def penalties(
    problem: AbstractProblem, weights: Float[Array, "2 d"], mu: Float[Array, ""]
) -> Float[Array, "2 d"]:
    """`κ = λ + ω/μ`, and ∞ where `ω` is, also at `μ = ∞`."""
    is_excluded = jnp.isinf(weights)
    kappa = problem.weight_decay + jnp.where(is_excluded, 0, weights) / mu
    return jnp.where(is_excluded, jnp.inf, kappa)


def penalty(x: Float[Array, " d"], kappa: Float[Array, "2 d"]) -> Float[Array, " d"]:
    """`κᵢ|xᵢ|`, 0 at 0 whatever `κ`."""
    return jnp.where(x > 0, kappa[0], jnp.where(x < 0, kappa[1], 0)) * jnp.abs(x)


def largest_correlation(
    problem: AbstractProblem,
) -> tuple[Float[Array, ""], Float[Array, " d"]]:
    """The largest `|rⱼ|/‖Xⱼ‖`, and `‖Xⱼ‖` (1 where it is 0)."""
    norms = problem.column_norms()
    some = norms > 0
    norms = jnp.where(some, norms, 1)
    return jnp.max(jnp.where(some, jnp.abs(problem.r) / norms, 0)), norms


def kkt_violation(
    problem: AbstractProblem,
    x: Float[Array, " d"],
    kappa: Float[Array, "2 d"],
    positive: bool,
    norms: Float[Array, " d"],
) -> Float[Array, ""]:
    """Largest violation of the lasso's optimality conditions at `x`, in units of `r/norms`."""
    largest = jnp.max(kkt_violations(problem, x, kappa, positive) / norms)
    # A maximum may lose a NaN when it is vectorised.
    return jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, largest)


def kkt_violations(
    problem: AbstractProblem,
    x: Float[Array, " d"],
    kappa: Float[Array, "2 d"],
    positive: bool,
) -> Float[Array, " d"]:
    """That of each coordinate."""
    c = -problem.gradient(x)
    upper, lower = kappa
    bound = c - upper
    if not positive:
        bound = jnp.maximum(bound, -c - lower)
    active = jnp.where(x > 0, jnp.abs(c - upper), 0)
    if positive:
        active = jnp.where(x < 0, jnp.inf, active)
    else:
        active = jnp.where(x < 0, jnp.abs(c + lower), active)
    return jnp.maximum(jnp.maximum(bound, active), 0)


def rounding_units(problem: AbstractProblem, x: Float[Array, " d"]) -> Float[Array, " d"]:
    """Beside which `r − Mx` is rounding, in units of `r` and of each column."""
    size, _ = largest_correlation(problem)
    norms = problem.column_norms()
    return norms * (size + jnp.sum(norms * jnp.abs(x)))
