"""`Schedule`: a weight decay that is piecewise constant in rescaled time."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Real

from .._checks import (
    as_float,
    as_parameter,
    check_finite,
    eager_if_known,
    is_concrete,
    to_common_dtype,
)
from .._derivatives import held, vanishing


class Schedule(eqx.Module):
    """A weight decay that changes with time, `λ(s)`, constant between breakpoints: any problem
    takes it as its `weight_decay`.

    The dual variable then moves by the total decay, `w(s) = w(0) ∓ Xᵀν(s) + Λ(s)` with
    `Λ(s) = ∫₀ˢ λ`. So at depth 2 a decay that is switched off leaves the end point of a smaller
    initialisation, `ε^{1 + Λ}`: closer to the least 1-norm than `ε`.

    `gradient_flow`, `crossing_times`, `loss_times`, `limit_flow`, `end_point`, `limit_point` and
    `certificate` take it. The lasso has one `λ`: other functions raise a `TypeError`.

    !!! example

        ```python
        decay = dln.Schedule([2.0], [0.5, 0.0])  # λ = 0.5 up to s = 2, then off
        decay(jnp.array([1.0, 2.0])), decay.integral(4.0)  # (0.5, 0) and Λ = 1
        X, y, network = jnp.array([[1.0, 2.0]]), jnp.array([3.0]), dln.UV(jnp.ones(2), jnp.zeros(2))
        dln.end_point(network, dln.LeastSquares(X, y, decay), eps=1e-3).x  # (1.9e-3, 1.4991)
        dln.end_point(network, dln.LeastSquares(X, y), eps=1e-6).x  # the same
        ```

    !!! cite "Reference"

        Jacobs, Zhou, Burkholz, *Mirror, Mirror of the Flow*, arXiv 2504.12883, on decay that is
        switched off; [B25] §4.2, arXiv 2509.18766, for the dual variable.
    """

    breakpoints: Float[Array, " K"]
    values: Float[Array, " K+1"]

    def __init__(
        self,
        breakpoints: ArrayLike | Sequence[ArrayLike],
        values: ArrayLike | Sequence[ArrayLike],
    ):
        """**Arguments:**

        - `breakpoints`: increasing rescaled times `> 0` at which the decay changes, shape `(K,)`.
        - `values`: `λ ≥ 0` before the first, between, and after the last of them, in units of
            `Xᵀy`, shape `(K + 1,)`. From a breakpoint on, the next value holds.

        **Raises:** `TypeError` for what is not numeric; `ValueError` for other shapes, NaN or inf,
        a value `< 0`, breakpoints that are not increasing or not positive.
        """
        breakpoints, values = as_float(breakpoints, "breakpoints"), as_float(values, "values")
        if breakpoints.ndim != 1 or values.shape != (breakpoints.size + 1,):
            raise ValueError(
                "`values` must have one entry more than `breakpoints`, shapes (K + 1,) and (K,), "
                f"got {values.shape} and {breakpoints.shape}."
            )
        check_finite(breakpoints, "breakpoints")
        check_finite(values, "values")
        if is_concrete(values) and np.any(np.asarray(values) < 0):
            least = float(np.min(np.asarray(values)))
            raise ValueError(f"`values` must be non-negative, got {least}.")
        if is_concrete(breakpoints):
            steps = np.diff(np.asarray(breakpoints), prepend=0)
            if np.any(steps <= 0):
                k = int(np.argmax(steps <= 0))
                raise ValueError(
                    "`breakpoints` must be positive and increasing, got breakpoints"
                    f"[{k}] = {float(np.asarray(breakpoints)[k])}. Sort them; the value before the "
                    "first one holds from s = 0 on."
                )
        self.breakpoints, self.values = to_common_dtype(breakpoints, values)

    def __call__(self, s: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """`λ(s)` for `s ≥ 0`, at a breakpoint the value after it. `(...) -> (...)`.

        **Raises:** `ValueError` for `s < 0`."""
        s = as_parameter(s, "s", self.values.dtype)
        return jnp.where(jnp.isnan(s), s, self.values[self.phase(s)])

    def integral(self, s: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The total decay `Λ(s) = ∫₀ˢ λ` for `s ≥ 0`. `(...) -> (...)`.

        **Raises:** `ValueError` for `s < 0`.

        !!! example

            ```python
            dln.Schedule([2.0], [0.5, 0.0]).integral(jnp.array([1.0, 4.0]))  # (0.5, 1.0)
            ```
        """
        s = as_parameter(s, "s", self.values.dtype)[..., None]
        zero = jnp.zeros((1,), s.dtype)
        begin = jnp.concatenate([zero, self.breakpoints])
        end = jnp.append(self.breakpoints, jnp.inf)
        spread = lambda v: jnp.broadcast_to(v, (*s.shape[:-1], len(begin)))
        # 0 · ∞ would be NaN at s = ∞ after a decay of 0.
        lengths = jnp.clip(jnp.minimum(spread(s), spread(end)) - spread(begin), 0)
        values = spread(self.values)
        total = jnp.sum(jnp.where(values > 0, values * lengths, 0), axis=-1)
        return jnp.where(jnp.isnan(s[..., 0]), s[..., 0], total)

    def last(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The value after the last breakpoint, and the total decay up to it."""
        with eager_if_known(self.values, self.breakpoints):
            lengths = jnp.diff(self.breakpoints, prepend=0)
            return self.values[-1], jnp.sum(self.values[:-1] * lengths)

    def phase(self, s: Float[Array, "..."]) -> Array:
        """The index of `λ(s)` in `values`: how many breakpoints are at most `s`."""
        return jnp.sum(s[..., None] >= self._breakpoints_like(s), axis=-1, dtype=jnp.int32)

    def next_stop(self, s: Float[Array, ""], end: Float[Array, ""]) -> Float[Array, ""]:
        """The first breakpoint after `s`, or `end` if that comes first. No derivatives."""
        times = held(self.breakpoints)
        return jnp.minimum(end, jnp.min(jnp.where(times > s, times, jnp.inf), initial=jnp.inf))

    def moved(self, s: Float[Array, ""]) -> Float[Array, ""]:
        """`s`, with derivatives in the breakpoints: a time keeps its place between the breakpoints
        around it, and after the last one its distance to that."""
        zero = jnp.zeros((1,), s.dtype)
        times, k = jnp.concatenate([zero, self.breakpoints]), self.phase(s)
        shift = vanishing(times)
        after = jnp.minimum(k + 1, len(times) - 1)
        length = held(times[after] - times[k])
        part = jnp.where(length > 0, (s - held(times[k])) / jnp.where(length > 0, length, 1), 0)
        return s + (1 - part) * shift[k] + part * shift[after]

    def _breakpoints_like(self, s: Array) -> Array:
        return jnp.broadcast_to(held(self.breakpoints), (*s.shape, self.breakpoints.size))


# A weight decay is a scalar or a `Schedule`. What both have is asked of them here.


def is_decay(decay: Array | Schedule) -> Bool[Array, ""]:
    """Whether a traced weight decay is one that the constructors accept."""
    if not isinstance(decay, Schedule):
        return (decay >= 0) & jnp.isfinite(decay)
    times, values = decay.breakpoints, decay.values
    increases = jnp.all(jnp.diff(times, prepend=0) > 0) & jnp.all(jnp.isfinite(times))
    return increases & jnp.all((values >= 0) & jnp.isfinite(values))


def largest_decay(decay: Array | Schedule) -> Float[Array, ""]:
    """The largest value of a weight decay."""
    return _over_values(jnp.max, decay)


def least_decay(decay: Array | Schedule) -> Float[Array, ""]:
    """The least value of a weight decay."""
    return _over_values(jnp.min, decay)


def _over_values(fn: Callable[[Array], Array], decay: Array | Schedule) -> Array:
    if not isinstance(decay, Schedule):
        return decay
    with eager_if_known(decay.values):
        return fn(decay.values)


def total_decay(decay: Array | Schedule, s: Any) -> Float[Array, "..."]:
    """`Λ(s) = ∫₀ˢ λ`."""
    return decay.integral(s) if isinstance(decay, Schedule) else decay * s


def may_decay(decay: Array | Schedule) -> bool:
    """Whether a weight decay is, or if traced may be, positive."""
    values = decay.values if isinstance(decay, Schedule) else decay
    return not is_concrete(values) or bool(np.any(np.asarray(values) > 0))


def check_constant(decay: Any) -> None:
    """Raise a `TypeError` for a `Schedule` where one `λ` is assumed."""
    if isinstance(decay, Schedule):
        raise TypeError(
            "One weight decay is assumed here, got a `Schedule`. Pass a problem with the value of "
            "one time, such as `weight_decay=schedule(s)`; flows, limits and end points take a "
            "`Schedule`."
        )
