"""The tolerances that the lasso path and the limit process share.

All are relative and dimensionless: columns are scaled to norm 1, correlations are divided by the
largest one, and events are compared by the quotient of their times. `eps` is the rounding unit of
the dtype, 2.2e-16 in float64 and 1.2e-7 in float32.

Each comment says what is compared, why this size, and what 100 times more or less does. "Measured"
means: with the constant multiplied or divided by 100, on all families of `tests/families.py`, on
designs with ties (entries ±1 or small integers, also rotated), on pairs of columns 1e-2 to 1e-7
apart, and on a response that is one column but for 1e-12 of it; in float64 unless float32 is named.
"""

import equinox as eqx
import jax.numpy as jnp


class Tolerances(eqx.Module):
    """The constants for one dtype, as Python numbers."""

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
    residual: float
    small: float

    def __init__(self, dtype):
        eps = float(jnp.finfo(dtype).eps)
        # The rounding of one entry of `M`: what no certificate can see is `unit · Σ|x|`.
        self.unit = eps
        # Squared distance of a column from the span of the active ones; at or below it the column
        # counts as dependent on them. The rounding of the rank-one updates of `pivots` is some eps,
        # times the condition number of the active columns. In float64 1e4 leaves room for that and
        # still separates columns 1.5e-6 apart. In float32 1e4 would merge columns 0.03 apart
        # (measured: all paths at correlation 0.999 are flagged), so it is 1e2 there.
        # 100 times more (measured): columns 1e-5 apart are merged.
        # 100 times less (measured): paths of columns 1e-6 apart take up to 393 pivots instead of 5
        # and are flagged all the same; another 100 times less, copies of a column count as
        # independent, and limits with them are undetermined.
        self.pivot = (1e4 if eps < 1e-10 else 1e2) * eps
        # Lasso path only: the rate at which a coordinate approaches its bound, relative to the
        # largest one. Below it the sign of the rate is rounding, and there is no event. The factor
        # is a choice: it covers the rounding of a sum over 64 active coordinates.
        # 100 times less (measured): one design with ties in ten has knots that only rounding makes.
        # 100 times more (measured): the last knots are lost where only 1e-12 of y is left to fit.
        self.direction = 64 * eps
        # Relative distance of two events (in `τ`, or `s`) that are one knot: 3e-13. The time of one
        # is a quotient of sums, exact to eps times the condition number: eps^0.8 allows 1300.
        # 100 times less (measured): one tie becomes several knots, on ±1 designs and others.
        # 100 times more (measured): no change in float64; in float32, where it is 3e-4 then,
        # knots of Gaussian 20 × 40 designs are merged.
        self.merge = eps**0.8
        # Lasso path only: relative distance of two events that count as a tie, of which the lowest
        # index goes first (Murty's least-index rule). Wider than `merge`, 4e-10 in float64, since
        # the order within a tie must not depend on rounding.
        # 100 times less (measured): no change. At 0, one design with ties in twenty has knots that
        # only rounding makes; none of 900 cycled.
        # 100 times more (measured): no change in float64; in float32, where it is 7e-3 then, events
        # are taken out of order, and one path in 17 is flagged that was not.
        self.window = eps**0.6
        # The part of a correlation that rounding may hide, in units of the sum of absolute values
        # `Σᵢ|Xᵢⱼ yᵢ|` that it comes from. Where all that is left is below it, the path ends. A sum
        # of n terms rounds by about √n eps: the factor covers 1e4 rows.
        # 100 times less (measured): the path goes on through knots that only rounding makes.
        # 100 times more (measured): the last knots are lost where knots span 12 decades, and one
        # path in 12 is flagged in float32.
        self.floor = 100 * eps
        # The same for the entries of `Mu` and `Mw`, in units of `coherence · Σ|u|`, which bounds
        # the absolute values of their terms. These sums have at most as many terms as the rank.
        # 100 times less (measured): no change, `floor` decides.
        # 100 times more (measured): float32 paths at correlation 0.999 end too early, all flagged.
        self.sum = 8 * eps
        # Violation of the optimality conditions, relative to the largest correlation, above which a
        # path is flagged as inaccurate: half of the digits. Generic designs stay below 1e-13.
        # 100 times less (measured): float32 flags every Vandermonde design, whose paths are right
        # to 4e-5. 100 times more (measured): columns 1e-5 apart give violations of 1e-6 unflagged.
        self.violation = eps**0.5
        # Violation above which a path is not followed any further: 1.4e-6 in float64, 2.5e-3 in
        # float32. Beyond it the active set itself is in doubt, so that more knots are no use.
        # It must exceed `violation`: otherwise a path is cut, NaN beyond, without a flag (measured
        # at 100 times less in float32). 100 times more (measured): a few flagged paths go further.
        self.wrong = eps**0.375
        # Residual of a solve with the updated inverse, relative to its right-hand side, above which
        # the inverse is factorised again. It is about eps times the condition number. One step of
        # iterative refinement squares it, so half of the digits become all of them.
        # 100 times more (measured): refined solutions lose digits, and one float32 path in 20 is
        # flagged that was not. 100 times less (measured): violations and flags stay the same, at
        # a factorisation wherever the condition number exceeds 7e5 rather than 7e7.
        self.defect = eps**0.5
        # `Tableau` only: the residual of `u` and `w`, in units of `4 max |rhs| + Σ|u|`, above which
        # they are refined. The rounding of `Mu` alone leaves up to about `eps Σ|u|`, and generic
        # problems should seldom be refined.
        # 100 times more (measured): in float32 half as many Vandermonde paths again are flagged.
        # 100 times less (measured): nearly all is refined; flags change by up to 11 in 200 in
        # families that have some, in both directions, and nowhere else.
        self.residual = 4 * eps
        # `Tableau` only: a pivot below it, or above its inverse, has its row refined before. A
        # pivot divides the rounding of its row by itself, and half of the digits is what the
        # refinement of `u` and `w` makes up for.
        # 100 times more or less (measured): in float64 flags change by up to 6 in 200 among columns
        # 1e-7 to 1e-2 apart, whose unflagged violations grow from 2e-9 to 2e-8; no change in
        # families without flags. In float32 up to 17 in 200 Vandermonde paths fewer are flagged.
        self.small = eps**0.5
