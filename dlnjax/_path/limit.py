"""`LimitFlow`: the limit process as a piecewise linear path whose slope jumps."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Real

from .._checks import as_parameter, is_concrete
from .._problem import AbstractProblem, nan_unless_valid, total_decay
from .._results import has_no_nan, one_unless
from .optimality import rounding_units
from .piecewise_linear import PiecewiseLinearPath


class LimitFlow(PiecewiseLinearPath):
    """The limit of gradient flow as `ε → 0`, a `PiecewiseLinearPath` in rescaled time `p = s`.

    Its slope is the plateau, which jumps at the knots: `limit.plateau(s)` (or `slope`) is the limit
    of `flow.x`. `limit.x_mean(s)` (or `x`) is the average of the plateaus over `[0, s]`, the limit
    of `flow.x_mean`, to be compared with the lasso path at `μ = s`.

    A process that was stopped at `s_max` is NaN beyond it; its last knot, just after `s_max`, is no
    jump. Where the data separate (`Logistic`, `Exponential`), the last jump is to infinity, and the
    process is NaN beyond it; its `result` is `successful`.

    **Attributes:** those of `PiecewiseLinearPath`, where `weights` is `w(0)`, and

    - `num_jumps`: the number of knots that are jumps, a scalar.
    - `face`: where the last jump is to infinity, the signs of the coordinates that are active after
        it, shape `(d,)`: the `x` with these signs are the first on which the data, or some rows of
        them, separate. 0 where `x` stays finite.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
        int(limit.num_jumps), limit.jumps[:2]  # 2 and (0.5, 1)
        ```
    """

    num_jumps: Int[Array, ""]
    face: Int[Array, " d"]

    def x_mean(self, s: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """`x̄(s)`, the average of the plateaus over `[0, s]`: the limit of `flow.x_mean`.
        `(...) -> (..., d)`.

        **Raises:** `ValueError` for `s < 0`.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
            limit.x_mean(1.0)  # (1, 0): 0 up to s = 0.5, then (2, 0)
            ```
        """
        return self.x(s)

    def plateau(self, s: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """Where the network rests at `s`, if it jumps at `s` after the jump: the limit of `flow.x`.
        `(...) -> (..., d)`.

        **Raises:** `ValueError` for `s < 0`.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
            limit.plateau(jnp.array([0.7, 1.0]))  # (2, 0) and (2, 1)
            ```
        """
        return self.slope(s)

    @property
    def jumps(self) -> Float[Array, " K"]:
        """The times `s` of the jumps, shape `(K,)`: `num_jumps` of them, then the last one repeated
        (0 if there is none).

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
            limit.jumps[:3]  # (0.5, 1, 1)
            ```
        """
        rows = jnp.clip(self._rows, 0, jnp.maximum(self.num_jumps - 1, 0))
        return jnp.where((self.num_jumps > 0) | jnp.isnan(self.knots), self.knots[rows], 0)

    @property
    def activations(self) -> Bool[Array, "K d"]:
        """Which coordinates leave 0, or change sign, at each jump. Booleans of shape `(K, d)`.

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
            limit.activations[:2]  # (True, False) and (False, True)
            ```
        """
        before, after = self._signs()
        return (after != 0) & (before != after)

    @property
    def deactivations(self) -> Bool[Array, "K d"]:
        """Which coordinates return to 0, or change sign, at each jump. Booleans of shape `(K, d)`.

        !!! example

            ```python
            X, y = jnp.array([[1, 0.5, 0.7, 0], [0.5, 1, 0.1, 0.7]]), jnp.array([1.0, 0.0])
            limit = dln.limit_flow(dln.UV(jnp.ones(4), jnp.zeros(4)), dln.LeastSquares(X, y))
            np.argwhere(limit.deactivations)  # (1, 0): the second jump, the first coordinate
            ```
        """
        before, after = self._signs()
        return (before != 0) & (before != after)

    def _signs(self) -> tuple[Array, Array]:
        """The signs of the plateaus before and after each jump, shape `(K, d)` each. Both are 0
        where there is no jump, or the plateau is not known."""
        self._check_single()
        after = jnp.sign(self.slopes)
        before = jnp.concatenate([jnp.zeros_like(after[:1]), after[:-1]])
        is_known = (self._rows < self.num_jumps)[:, None] & ~jnp.isnan(after)
        return jnp.where(is_known, before, 0), jnp.where(is_known, after, 0)

    def dual(self, problem: AbstractProblem, s: Real[ArrayLike, "..."]) -> Float[Array, "... d"]:
        """The dual variable `Xᵀν(s) = −∫₀ˢ ∇ℓ(x)`, for finite `s ≥ 0`: for the square it is
        `s r − M z(s)`. `(...) -> (..., d)`. The scaled dual variable of [B25] §4.2 is
        `w(s) = w(0) ∓ Xᵀν(s) + λs`, with the total decay in place of `λs` for a `Schedule`.

        **Raises:** `ValueError` for `s < 0`, or if `w(s) ≥ 0` does not hold, by more than half of
        the digits: then this is the limit process of another problem (NaN under tracing).

        !!! example

            ```python
            problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
            limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
            limit.dual(problem, 0.7)  # (1, 0.7): the first w is 0, the second 0.3
            ```
        """
        self._check_size(problem, any_decay=True, any_loss=True)
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

        def at(x, dual, s):
            w = weights + jnp.stack([-dual, dual]) + total_decay(problem.weight_decay, s)
            w = w[:1] if self.positive else w
            # √eps, since a limit is flagged where its w is below 0 by more than that
            # (`Tolerances.violation`): every limit that is not must pass.
            units = weights + s * rounding_units(problem, x)[None, :]
            is_ours = ~jnp.any(w < -(jnp.finfo(x.dtype).eps ** 0.5) * units[: len(w)])
            return jnp.where(is_ours, dual, jnp.nan), is_ours

        z = self.z(s)
        is_known = is_valid & ~jnp.any(jnp.isnan(z), axis=-1)
        x = jnp.where(is_known[..., None], z, 0) / jnp.where(s > 0, s, 1)[..., None]
        if problem.glm() is None:
            dual = -s[..., None] * problem.gradient(x)
        else:
            dual = self._integrated(problem, s)
        dual, is_ours = jnp.vectorize(at, signature="(d),(d),()->(d),()")(x, dual, s)
        dual = jnp.where(is_known[..., None], dual, jnp.nan)
        return nan_unless_valid(given, dual), is_ours | ~is_known

    def _integrated(self, problem: AbstractProblem, s: Array) -> Array:
        """`−∫₀ˢ ∇ℓ(x)`, plateau by plateau."""
        velocity = -problem.gradient(jnp.where(jnp.isfinite(self.slopes), self.slopes, 0))
        moved = velocity[:-1] * jnp.diff(self.knots)[:, None]
        before = problem.r[None, :] * self.knots[:1, None]
        at_knots = jnp.cumsum(jnp.concatenate([before, moved]), axis=0)
        index, started = self._locate(s)
        dual = at_knots[index] + velocity[index] * (s - self.knots[index])[..., None]
        return jnp.where(started[..., None], dual, jnp.multiply.outer(s, problem.r))
