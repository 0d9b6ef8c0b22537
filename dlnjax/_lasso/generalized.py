"""The lasso of a generalised linear model, `min Σᵢ f((Xx)ᵢ, yᵢ) + Σⱼ κⱼ|xⱼ|`, by Newton steps.

At a point `x` each coordinate has a sign `σ`: its own; that in which the objective falls, where
`x = 0` and the correlation `−Xᵀf′` exceeds its bound; else 0. In the orthant of `σ` the objective
is smooth. A step takes `W`, the support and the worst of the other coordinates with `σ ≠ 0`, and
Newton's direction there,

    p = −(X_Wᵀ H X_W + damping)⁻¹ q,    H = diag f″,    q = −X_Wᵀ(−f′) + κσ,

and moves along the projected arc `t ↦ [x + tp]` on which entries that would leave the orthant are
0: so many coordinates enter and leave at once. The arc is a direction of descent (Bertsekas), and
`t` is halved until the objective itself falls, but never below the first `t` at which an entry
becomes 0 unless the objective is higher there, too.

The damping is relative to the squared norms of columns. It keeps the system regular where columns
depend on each other, or where a loss has no curvature (Huber). It grows where steps are refused.
Two products with `X` a step, and one system of at most `min(n + 1, d)` slots.

Bertsekas, *Projected Newton Methods for Optimization Problems with Simple Constraints* (1982).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._batching import any_lane
from .._linalg import Cholesky, matmul
from .._loops import cond, scan, while_loop
from .._path import penalties, penalty
from .._problem import AbstractProblem, glm_of
from .._results import RESULTS, first_failure
from .face_steps import ROUNDING

# Systems are solved in the smallest of `k`, `k/2`, `k/4`, … slots that holds `W`, down to about
# this many: with fewer a step costs what its products with `X` cost, and each size is compiled.
FEWEST_SLOTS = 50
# Steps in a row that neither lower the objective beyond its rounding nor halve the least gap: the
# end of what this precision gives.
MOST_STALLS = 10


class _State(eqx.Module):
    """A point, what is a function of it, and the state of the safeguards."""

    x: Float[Array, " d"]
    u: Float[Array, " n"]  # Xx
    correlation: Float[Array, " d"]  # −Xᵀf′(u)
    gap: Float[Array, ""]  # with its rounding
    rounding: Float[Array, ""]  # of the gap
    objective: Float[Array, ""]  # above Σ inf f
    slack: Float[Array, ""]  # the rounding of the objective
    least: Float[Array, ""]  # the least gap so far at this μ
    damping: Float[Array, ""]
    is_lost: Bool[Array, ""]  # the loss and its curvature underflow: free separable data
    stalls: Array
    steps: Array


class _Steps(eqx.Module):
    """The problem at one `μ`, and its Newton steps."""

    problem: AbstractProblem
    columns: Float[Array, "d n"]  # Xᵀ: rows are gathered faster than columns
    norms: Float[Array, " d"]
    largest: Float[Array, " d"]  # maxᵢ |Xᵢⱼ|
    least_loss: Float[Array, " n"]  # inf f, or 0 if it is −∞
    kappa: Float[Array, "2 d"]
    positive: bool = eqx.field(static=True)

    def at(self, x: Float[Array, " d"], state: _State) -> _State:
        """`state` with `x` and all that is a function of it."""
        (X, y, f), eps = glm_of(self.problem), float(jnp.finfo(x.dtype).eps)
        u = matmul(X, x)
        theta, curvature = -f.derivative(u, y), f.curvature(u, y)
        # Xⱼᵀθ is a sum of terms up to ‖Xⱼ‖‖θ‖, and u, of terms up to Σ maxᵢ|Xᵢⱼ||xⱼ|, moves θ by
        # f″ times its own rounding.
        terms = jnp.linalg.norm(theta)
        terms += jnp.linalg.norm(curvature) * jnp.sum(self.largest * jnp.abs(x))
        rounding = ROUNDING * eps * terms * self.norms
        cost = jnp.sum(penalty(x, self.kappa))
        loss = f.value(u, y)
        objective = jnp.sum(loss - self.least_loss) + cost
        size = jnp.sum(jnp.abs(loss) + jnp.abs(self.least_loss) + jnp.abs(theta * u)) + cost
        return eqx.tree_at(
            lambda s: (
                s.x,
                s.u,
                s.correlation,
                s.gap,
                s.rounding,
                s.objective,
                s.slack,
                s.is_lost,
            ),
            state,
            (
                x,
                u,
                matmul(theta, X),
                self.problem.gap_at(x, self.kappa, self.positive, rounding),
                jnp.sum(rounding * jnp.abs(x)),
                objective,
                ROUNDING * eps * size,
                (objective < _tiny(x.dtype)) & (jnp.max(curvature) < _tiny(x.dtype)),
            ),
        )

    def step(self, state: _State) -> _State:
        """One Newton step along the projected arc."""
        x, c, (upper, lower) = state.x, state.correlation, self.kappa
        d, n = self.columns.shape
        k = min(d, n + 1)
        excess = jnp.stack([c - upper, -c - lower])
        if self.positive:
            excess = excess.at[1].set(-jnp.inf)
        side = jnp.where(x == 0, jnp.argmax(excess, axis=0), jnp.where(x > 0, 0, 1))
        excess = jnp.where(x == 0, jnp.max(excess, axis=0), jnp.inf)
        excess = jnp.where(self.norms > 0, excess / jnp.where(self.norms > 0, self.norms, 1), 0)
        # The support first, then the worst others. As many as the support, and at least 8, enter at
        # once, so that a cold start reaches any support in a few steps but solves no system that is
        # much larger than it needs.
        order, index = jax.lax.top_k(excess, k)
        count = jnp.sum(order == jnp.inf)
        slot = jnp.arange(k, dtype=count.dtype)
        is_in = (order > 0) & (slot < count + jnp.maximum(count, 8))
        index = jnp.where(is_in, index, d).astype(jnp.int32)
        sign = jnp.where(side == 0, 1, -1).astype(x.dtype)

        sizes = [k]
        while sizes[-1] >= 2 * FEWEST_SLOTS:
            sizes.append((sizes[-1] + 1) // 2)

        def within(sizes: list[int], *args):
            size, *smaller = sizes
            here = lambda index, *rest: self._move(index[:size], *rest)
            if not smaller:
                return here(*args)
            is_large = any_lane(jnp.sum(is_in) > smaller[0])
            return cond(is_large, here, lambda *args: within(smaller, *args), *args)

        x, damping = within(sizes, index, sign, state)
        new = self.at(x, state)
        gains = (new.objective < state.objective - state.slack) | (new.gap < 0.5 * state.least)
        return eqx.tree_at(
            lambda s: (s.damping, s.least, s.stalls, s.steps),
            new,
            (
                damping,
                jnp.minimum(new.gap, state.least),
                jnp.where(gains, 0, state.stalls + 1),
                state.steps + 1,
            ),
        )

    def _move(self, index: Int[Array, " k"], sign: Float[Array, " d"], state: _State):
        """The end of the step on the coordinates `index`, and the next damping."""
        (_, y, f), x, u = glm_of(self.problem), state.x, state.u
        d, k, dtype = x.shape[0], index.shape[0], x.dtype
        least_damping = 10 * k * float(jnp.finfo(dtype).eps)
        is_in, at = index < d, jnp.minimum(index, d - 1)
        columns = jnp.where(is_in[:, None], self.columns[at], 0)
        start, sign = jnp.where(is_in, x[at], 0), sign[at]
        kappa = jnp.where(is_in, jnp.where(sign > 0, self.kappa[0][at], self.kappa[1][at]), 0)
        slope = jnp.where(is_in, kappa * sign - state.correlation[at], 0)
        scale = jnp.where(is_in, 1 / jnp.where(is_in, self.norms[at], 1), 1)

        # The unit of curvature: f″, or where it vanishes, the parabola with the slope and the
        # height of the loss.
        theta, curvature = f.derivative(u, y), f.curvature(u, y)
        height = jnp.sum(f.value(u, y) - self.least_loss)
        chord = jnp.sum(theta**2) / jnp.where(height > 0, 2 * height, 1)
        unit = jnp.maximum(jnp.max(curvature), chord)
        scaled = scale[:, None] * columns
        block = matmul(scaled * (curvature / unit)[None, :], scaled.T)
        damping = jnp.maximum(state.damping, least_damping)
        ridge = jnp.where(is_in, damping, 1)
        p = -scale * Cholesky(block + jnp.diag(ridge)).solve(scale * slope / unit)

        shrinks = (start != 0) & (sign * p < 0)
        first = jnp.min(jnp.where(shrinks, -start / jnp.where(shrinks, p, 1), jnp.inf))

        def arc(t):
            moved = start + t * p
            return jnp.where(sign * moved > 0, moved, 0)

        def is_lower(t):
            moved = arc(t)
            loss = jnp.sum(f.value(matmul(moved, columns), y) - self.least_loss)
            # 1e-4 of the slope is the usual share (Armijo): any share below a half lets Newton's
            # own steps through.
            fall = 1e-4 * jnp.sum(slope * (moved - start))
            cost = jnp.sum(kappa * jnp.abs(moved))
            return loss + cost <= state.objective + fall + state.slack

        def shorten(carry):
            t, _, tries = carry
            t = jnp.where((first < t) & (first > t / 2), first, t / 2)
            return t, is_lower(t), tries + 1

        t = jnp.ones((), dtype)
        t, good, _ = while_loop(
            lambda c: ~c[1] & (c[2] < 60), shorten, (t, is_lower(t), jnp.asarray(0))
        )
        x = jnp.where(good, x.at[index].set(arc(t), mode="drop"), x)
        is_short = ~good | (t < jnp.minimum(first, 0.1))
        longer = jnp.maximum(damping / 10, least_damping)
        damping = jnp.where(is_short, jnp.clip(100 * damping, 1e-6, 1e6), longer)
        return x, damping


def _tiny(dtype) -> float:
    """The least number whose rounding, some eps of it, is not 0."""
    return float(jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps)


def newton_on_grid(
    problem: AbstractProblem,
    mu: Float[Array, " m"],
    weights: Float[Array, "2 d"],
    verdict: RESULTS,
    *,
    positive: bool,
    gap_tol: Float[Array, ""],
    rough: float,
    max_steps: Array,
) -> tuple[Array, Array, RESULTS, Array]:
    """`x`, the gap, the result and the number of steps at each `μ`, each from the one before."""
    X, y, f = glm_of(problem)
    d, dtype = X.shape[1], X.dtype
    floor = -f.conjugate(jnp.zeros_like(y), y)
    floor = jnp.where(jnp.isfinite(floor), floor, 0)
    columns, norms = X.T, problem.column_norms()
    largest = jnp.max(jnp.abs(X), axis=0)
    # The rounding of the loss, some eps of it, must not underflow: a gap of 0 would certify
    # anything.
    height = jnp.sum(f.value(jnp.zeros_like(y), y) - floor)
    verdict = first_failure(
        verdict, ((height >= _tiny(dtype)) | jnp.all(problem.r == 0), RESULTS.invalid_data)
    )

    def is_reached(s: _State) -> Array:
        is_exhausted = (s.stalls > 0) & (s.gap <= 2 * s.rounding)
        return (s.gap <= gap_tol * s.objective) | is_exhausted

    def one(state: _State, mu: Array):
        result = first_failure(verdict, (mu > 0, RESULTS.invalid_grid))
        valid = result == RESULTS.successful
        kappa = penalties(problem, weights, mu)
        steps = _Steps(problem, columns, norms, largest, floor, kappa, positive)
        state = steps.at(state.x, state)
        zero = jnp.asarray(0)
        state = eqx.tree_at(
            lambda s: (s.damping, s.least, s.stalls, s.steps),
            state,
            (jnp.zeros((), dtype), state.gap, zero, zero),
        )

        def goes_on(s: _State) -> Array:
            able = (s.stalls < MOST_STALLS) & (s.steps < max_steps) & ~s.is_lost
            return valid & able & ~is_reached(s)

        state = while_loop(goes_on, lambda s: steps.step(s), state)
        is_fine = state.gap <= jnp.maximum(gap_tol, rough) * state.objective
        # As for least squares: where no penalised entry is active, the objective may be 0.
        is_fine = is_fine | (jnp.sum(penalty(state.x, kappa)) == 0)
        good = is_reached(state) & is_fine & ~state.is_lost
        result = first_failure(result, (good, RESULTS.gap_not_reached))
        return state, (state.x, state.gap, result, state.steps)

    zero = jnp.zeros((), dtype)
    state = _State(
        x=jnp.zeros(d, dtype),
        u=jnp.zeros_like(y),
        correlation=jnp.zeros(d, dtype),
        gap=zero,
        rounding=zero,
        objective=zero,
        slack=zero,
        least=zero,
        damping=zero,
        is_lost=jnp.asarray(False),
        stalls=jnp.asarray(0),
        steps=jnp.asarray(0),
    )
    return scan(one, state, mu)[1]
