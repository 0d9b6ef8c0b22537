"""`check_loss`: whether the functions of a user's loss agree with each other."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Real

from .._checks import as_float, check_finite, check_nonempty, check_type
from .losses import AbstractLoss, log_cap

_WIDTH = 36.0  # e^{±36} is 16 decades: what is small at one end is rounding at the other
_PIECES, _EACH = 240, 64  # intervals, and points of the quadrature in each
_CANCELS = " (or `value` cancels: `softplus`, `expm1` and `log1p` keep digits)"
_TARGETS = 64  # that are looked at
_FAR = 1e4  # where trial steps of a solver may come


def check_loss(loss: AbstractLoss, y: Real[ArrayLike, " n"]) -> None:
    """Test that the functions of a loss agree with each other, at predictions `u` within 36 of 0
    and of the targets. It sees what changes over .02 of `u` or more: scale narrower losses.

    - `takes` accepts the targets, and all functions are elementwise;
    - `derivative` and `curvature` are finite, also at `u = ±10⁴`, where trial steps may come;
    - the loss is convex: `derivative` increases, `curvature ≥ 0`;
    - `value` changes by the integral of `derivative`, and that by the integral of `curvature`;
    - `conjugate` obeys `f(u) + f*(p) = pu` at `p = f′(u)`, and `f*(p) ≥ pu − f(u)` at other `p`:
        so it is infinite outside its domain.

    A factor or a sign that is wrong is found, and a `value` that cancels, as `log(1 + e⁻ᵘ)` does at
    `u = 36`; not an error below one per cent, or one that a few targets do not show.

    **Arguments:**

    - `loss`: what `GeneralizedLinear` takes.
    - `y`: some targets that it takes, shape `(n,)`; of more than 64 some are looked at.

    **Returns:** `None`.

    **Raises:** `ValueError`, which names the function that is wrong, with a `u` and a `y`;
    `TypeError` if `loss` is no loss.

    !!! example

        ```python
        class Wrong(dln.PoissonLoss):
            derivative = lambda self, u, y: y - super().derivative(u, y)

        dln.check_loss(dln.PoissonLoss(), jnp.array([0.0, 3.0]))  # raises nothing
        try:
            dln.check_loss(Wrong(), jnp.array([0.0, 3.0]))
        except ValueError as error:
            print(error)  # `derivative` must increase …
        ```

    !!! cite "Reference"

        Rockafellar, *Convex Analysis* (1970), §§12, 23: conjugates and Fenchel's inequality.
    """
    check_type(loss, "loss", AbstractLoss, "a loss, such as `dlnjax.PoissonLoss()`")
    y = jnp.ravel(as_float(y, "y"))
    check_nonempty(y, "y")
    check_finite(y, "y")
    if not bool(jnp.all(loss.takes(y))):
        bad = float(y[np.argmin(np.asarray(loss.takes(y)))])
        raise ValueError(f"`takes` refuses the target y = {bad:g}. Pass targets of this loss.")
    # Of many targets some, in order, with the extremes: each takes 1.6 MB.
    unique = np.unique(np.asarray(y))
    some = np.unique(np.linspace(0, len(unique) - 1, _TARGETS).round().astype(int))
    y = jnp.asarray(unique[some])
    # Around 0 for labels and counts, around the targets for regressions.
    for center in (jnp.zeros_like(y), y):
        grid = jnp.linspace(-1, 1, _PIECES * _EACH + 1, dtype=y.dtype)
        # Wider where rounding of `u` would be more than 1/64 of the distance of two points.
        fine = 32 * len(grid) * float(jnp.finfo(y.dtype).eps)
        width = jnp.maximum(fine * jnp.abs(center), _WIDTH)
        at = center[:, None] + width[:, None] * grid[None, :]
        _Functions(loss, at, jnp.broadcast_to(y[:, None], at.shape)).check()


class _Functions:
    """The functions of a loss at predictions `u` and targets `y`, of shape `(n, points)`."""

    def __init__(self, loss: AbstractLoss, u: Array, y: Array):
        self.loss, self.u, self.y = loss, np.asarray(u), np.asarray(y)
        self.eps = float(jnp.finfo(u.dtype).eps)
        self.value = self._of(loss.value, "value", u, y)
        self.derivative = self._of(loss.derivative, "derivative", u, y)
        self.curvature = self._of(loss.curvature, "curvature", u, y)
        # Beyond, exponentials are capped, and no longer agree.
        self.cap = int(log_cap(u.dtype))
        top = np.exp(self.cap)
        self.is_followed = np.isfinite(self.value) & (np.abs(self.value) < top)
        self.is_followed &= (np.abs(self.derivative) < top) & (np.abs(self.curvature) < top)

    def check(self) -> None:
        self._raise(np.isnan(self.value), "`value` is NaN")
        if not np.any(self.is_followed):
            raise ValueError(
                "`value` or its derivatives are infinite everywhere, or too large for this dtype. "
                "Scale the loss."
            )
        self._check_far()
        self._check_convexity()
        self._check_change("value", self.value, "derivative", self.derivative)
        self._check_change("derivative", self.derivative, "curvature", self.curvature)
        self._check_conjugate()

    def _of(self, function, name: str, u: Array, y: Array) -> np.ndarray:
        value = function(u, y)
        if jnp.shape(value) != u.shape:
            raise ValueError(
                f"`{name}` must be elementwise: for arrays of shape {u.shape} it has shape "
                f"{jnp.shape(value)}."
            )
        return np.asarray(value)

    def _raise(self, bad: np.ndarray, message: str) -> None:
        """Say where, if anything is bad."""
        if np.any(bad):
            place = np.unravel_index(np.argmax(bad), bad.shape)
            at = tuple(np.array(place) * [1, round((self.u.shape[1] - 1) / bad.shape[1])])
            raise ValueError(f"{message}, at u = {self.u[at]:.4g}, y = {self.y[at]:.4g}.")

    def _check_far(self) -> None:
        y = jnp.asarray(self.y[:, :2])
        far = jnp.broadcast_to(jnp.asarray([-_FAR, _FAR], y.dtype), y.shape)
        for name, values in (("derivative", self.derivative), ("curvature", self.curvature)):
            at_far = np.asarray(getattr(self.loss, name)(far, y))
            if not (np.all(np.isfinite(values)) and np.all(np.isfinite(at_far))):
                raise ValueError(
                    f"`{name}` is not finite everywhere up to u = ±{_FAR:g}, where trial steps of "
                    "a solver may come. Cap exponentials, as by "
                    f"`jnp.exp(jnp.minimum(u, {self.cap}))`."
                )

    def _check_convexity(self) -> None:
        falls = np.diff(self.derivative) < -8 * self.eps * np.abs(self.derivative[:, 1:])
        known = self.is_followed[:, 1:] & self.is_followed[:, :-1]
        self._raise(falls & known, "`derivative` must increase in `u`, since the loss is convex")
        self._raise(self.curvature < 0, "`curvature` must not be negative")

    def _check_change(self, name: str, of: np.ndarray, slope_name: str, slope: np.ndarray) -> None:
        """Raise unless `of` changes by the integral of `slope`, on each interval."""
        pieces = lambda v: v[:, :-1].reshape(len(v), _PIECES, _EACH)
        ends = of[:, ::_EACH]
        with np.errstate(invalid="ignore"):  # infinite values, which are not followed
            change = np.diff(ends)
        step = (self.u[:, -1:] - self.u[:, :1]) / (_PIECES * _EACH)
        # Between two points the slope is between its values there, but for terms of second order.
        low, high = np.minimum(slope[:, :-1], slope[:, 1:]), np.maximum(slope[:, :-1], slope[:, 1:])
        total = lambda v: v.reshape(len(v), _PIECES, _EACH).sum(axis=2) * step
        size = total(np.maximum(np.abs(low), np.abs(high)))
        # One per cent of the integral; and the rounding of the two values, whose own error may be
        # some eps each: √eps of a value, as cancellation leaves it, would be seen.
        room = 0.01 * size + 64 * self.eps * (np.abs(ends[:, 1:]) + np.abs(ends[:, :-1]))
        off = (change < total(low) - room) | (change > total(high) + room)
        known = np.all(pieces(self.is_followed), axis=2)
        self._raise(
            off & known,
            f"`{name}` does not change by the integral of `{slope_name}`: one of them is wrong"
            + (_CANCELS if name == "value" else ""),
        )

    def _check_conjugate(self) -> None:
        u, y = self.u[:, ::_EACH], self.y[:, ::_EACH]
        f, p = self.value[:, ::_EACH], self.derivative[:, ::_EACH]
        known = self.is_followed[:, ::_EACH]
        at = lambda p: np.asarray(self.loss.conjugate(jnp.asarray(p), jnp.asarray(y)))
        best = at(p)
        self._raise(np.isnan(best) & known, "`conjugate` is NaN at `p = derivative(u)`")
        # p may round to the end of the domain, or beyond: half of the digits of the largest term.
        # At a minimum all terms are rounding of those beside it.
        size = np.abs(f) + np.abs(p * u) + np.where(np.isfinite(best), np.abs(best), 0)
        beside = np.maximum(np.roll(size, 1, axis=1), np.roll(size, -1, axis=1))
        room = self.eps**0.5 * size + 64 * self.eps * np.where(known, beside, 0)
        error = np.abs(f + best - p * u) > room
        self._raise(
            error & known, f"`conjugate` is not `pu − f(u)` at `p = derivative(u)`{_CANCELS}"
        )
        # Beyond all slopes, and between them: no `pu − f(u)` may exceed the conjugate.
        for move in (-1.0, -0.1, 0.1, 1.0):
            other = p + move * np.maximum(np.abs(p), 1).astype(p.dtype)
            # An infinite supremum grows with u: its largest value here is a lower bound of it.
            least = np.max(
                np.where(
                    known[:, None, :], other[:, :, None] * u[:, None, :] - f[:, None, :], -np.inf
                ),
                axis=2,
            )
            found = at(other)
            self._raise(
                np.isnan(found) & known, f"`conjugate` is NaN, for p = f′ {move:+g}·max(|f′|, 1)"
            )
            # Half of the digits of the result, and the rounding of terms that cancel in it.
            terms = np.abs(other) * (1 + np.abs(y)) + np.abs(other * u) + np.abs(f)
            room = self.eps**0.5 * (np.abs(least) + 1) + 64 * self.eps * terms
            low = found < least - room
            self._raise(
                low & known,
                "`conjugate` is less than `pu − f(u)` at another `u` (outside its domain it is "
                f"infinite), for p = f′ {move:+g}·max(|f′|, 1) with f′ the derivative",
            )
