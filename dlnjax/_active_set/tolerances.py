"""The tolerances of the lasso path and of the limit process, in one table.

All are relative: columns have norm 1, and correlations are divided by the largest one. `ε` here is
the unit of rounding, 2.2e-16 in float64.
"""

import equinox as eqx
import jax.numpy as jnp


class Tolerances(eqx.Module):
    unit: float
    pivot: float
    direction: float
    merge: float
    window: float
    floor: float
    sum: float
    violation: float
    wrong: float
    defect: float

    def __init__(self, dtype):
        eps = float(jnp.finfo(dtype).eps)
        self.unit = eps
        # Squared distance of a column from the span of the active ones, below which it counts as
        # dependent. Updates of `pivots` leave some hundred ε there, amplified by the condition of
        # the active columns. 100 times less: a copy joins with rounding as its pivot, and `u` is
        # noise. 100 times more: columns at an angle of 1e-5 count as one.
        self.pivot = (1e4 if eps < 1e-10 else 1e2) * eps
        # A speed towards a bound, relative to the largest. Below it the sign is that of rounding: a
        # coordinate that rests would leave and join again without end. 100 times more: a
        # coordinate that does leave slowly stays, and the path is wrong by that much.
        self.direction = 64 * eps
        # Relative distance in `τ` (or `s`) of two events that are one knot. Times are quotients of
        # sums, exact to some ε times the condition. 100 times less: each tie becomes several
        # knots. 100 times more: knots that random data have are merged.
        self.merge = eps**0.8
        # Events this close are tied, and the lowest index goes first (Murty's rule): wider than
        # `merge`, since the order of a tie must not depend on rounding. 100 times less: ties cycle
        # on ±1 designs. 100 times more: events are taken out of order by what `violation` sees.
        self.window = eps**0.6
        # What a correlation may lose, in units of the absolute values that `r` is a sum of: the
        # path ends there. 100 times less: it goes on through rounding of 0. 100 times more: the
        # last knots are lost where they span many decades.
        self.floor = 100 * eps
        # The same for `Mu`, whose entries are sums of `coherence × |u|`.
        self.sum = 8 * eps
        # Violation of the optimality conditions at which a path is flagged as inaccurate: half of
        # the digits. It is what the certificate compares with; well-conditioned data stay at 1e-15.
        self.violation = eps**0.5
        # Violation beyond which the path does not go on: it is wrong then rather than inaccurate.
        self.wrong = eps**0.375
        # Relative residual of a solve by the updated inverse, beyond which it is factorized again.
        # One refinement squares it: half of the digits give all of them. 100 times more: refined
        # solutions lose digits. 100 times less: one factorization an event on ill-conditioned data.
        self.defect = eps**0.5
