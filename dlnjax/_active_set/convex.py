"""The minimiser of `ℓ(x) + λ⟨1, q⟩` over signed `q ≥ 0`, for a convex loss `ℓ(x) = Σ f(Xx, y)`.

The method is that of Lawson and Hanson, with Newton's method on the free coordinates:

1. Newton's step on the free coordinates, to the minimum on the line. A free coordinate that reaches
   0 on the way is no longer free.
2. Where Newton's steps have come to rest, the allowed coordinate along which the objective falls
   most steeply becomes free; if there is none, this is the minimiser.

`advance` makes one such step: `minimize` repeats it, and the limit process
(`_limit/generalized.py`) makes its jumps between them. `on_face` has the derivatives of the
minimiser, and `square_at` is the least-squares problem with the same minimisers:

    XᵀF′(u) = Xᵀ(u − y′)   for   y′ = u − F′(u),   u = Xx at the minimiser.

So all that is known of least squares holds for it: which of several minimisers is the limit of a
flow, and the end point.
"""

import math

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._batching import any_lane
from .._derivatives import held
from .._linalg import inverse_factor, matmul
from .._loops import while_loop
from .._problem import AbstractLoss, AbstractProblem, LeastSquares, glm_of
from .._results import RESULTS, first_failure
from ..networks.signs import sides
from .projection import solve_symmetric
from .state import gather, scatter
from .tolerances import Tolerances


class Rows(eqx.Module):
    """The data, in units in which columns have norm 1, and which rows a direction may separate."""

    X: Float[Array, "n d"]
    y: Float[Array, " n"]
    loss: AbstractLoss
    decay: Float[Array, " d"]  # λ/‖Xⱼ‖
    scale: Float[Array, " d"]  # 1/‖Xⱼ‖, and 0 for a zero column
    # Whether the loss of a row falls for ever, to a finite limit, as its `u` grows, or falls.
    vanishes: Bool[Array, "2 n"]

    def __init__(self, problem: AbstractProblem):
        X, self.y, self.loss = glm_of(problem)
        norms = problem.column_norms()
        self.scale = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
        self.X = X * self.scale[None, :]
        self.decay = problem.weight_decay * self.scale
        # Where `exp` is almost out of range its derivative is not yet 0, and that of a loss which
        # is linear, or flat from some point on, does not change any more.
        most = float(jnp.finfo(X.dtype).max)
        side = jnp.broadcast_to(jnp.array([[1.0], [-1.0]], X.dtype), (2, *self.y.shape))
        y = jnp.broadcast_to(self.y, side.shape)
        falls = side * self.loss.derivative(side * (math.log(most) / 4), y) < 0
        self.vanishes = falls & (self.loss.derivative(side * most**0.5, y) == 0)

    def force(self, x: Array) -> tuple[Array, Array]:
        """`−∇ℓ(x)` and a bound of its rounding, shape `(d,)` each."""
        f, y, tol = self.loss, self.y, Tolerances(self.X.dtype)
        u, size = matmul(self.X, x), matmul(jnp.abs(self.X), jnp.abs(x))
        slope, curvature = f.derivative(u, y), f.curvature(u, y)
        # The terms from which `f′(u)` comes, of which `floor` is a hundred roundings.
        terms = jnp.abs(f.derivative(jnp.zeros_like(u), y)) + jnp.abs(slope) + curvature * size
        hidden = tol.floor * (matmul(terms, jnp.abs(self.X)) + self.decay)
        return -matmul(slope, self.X), hidden

    def separates(self, v: Array) -> Array:
        """Whether the loss falls for ever along `v`, so that it has no minimiser on a cone with
        `v`: the loss of a row falls, to its limit, or the row does not see `v`."""
        image, size = matmul(self.X, v), matmul(jnp.abs(self.X), jnp.abs(v))
        # A sum whose sign is rounding counts as 0.
        is_zero = jnp.abs(image) <= Tolerances(v.dtype).floor * size
        up, down = self.vanishes
        falls = is_zero | jnp.where(image > 0, up, down)
        return jnp.all(falls) & jnp.any(~is_zero) & jnp.all(self.decay == 0)


class Position(eqx.Module):
    """A minimisation under way, in the units of `Rows`."""

    x: Float[Array, " d"]
    sign: Int[Array, " d"]  # of the coordinates that are free, else 0
    change: Float[Array, ""]  # of the last step, relative to `x`
    is_settled: Bool[Array, ""]  # Newton's steps on the free coordinates have come to rest
    is_flat: Bool[Array, ""]  # the curvature on them is singular to rounding

    @staticmethod
    def zero(rows: Rows) -> "Position":
        d, dtype = rows.X.shape[1], rows.X.dtype
        no = jnp.asarray(False)
        return Position(
            jnp.zeros(d, dtype), jnp.zeros(d, jnp.int32), jnp.asarray(jnp.inf, dtype), ~no, no
        )


class Step(eqx.Module):
    position: Position  # after the step; the same where it is the minimiser
    falls: Float[Array, "signs d"]  # `−dw/ds = ∓∇ℓ − λ` before the step, of both signs
    hidden: Float[Array, " d"]  # the rounding in it
    is_minimum: Bool[Array, ""]
    separates: Bool[Array, ""]


def advance(rows: Rows, position: Position, allowed: Bool[Array, "signs d"], slots: int) -> Step:
    """One step of the method above, with at most `slots` free coordinates."""
    tol = Tolerances(rows.X.dtype)
    d, x = rows.X.shape[1], position.x
    force, hidden = rows.force(x)
    falls = sides(force, allowed) - rows.decay[None, :]
    is_free = position.sign != 0

    joins = allowed & ~is_free[None, :] & (falls > hidden[None, :])
    steepest = jnp.argmax(jnp.where(joins, falls, -jnp.inf)).astype(jnp.int32)
    is_minimum = position.is_settled & ~jnp.any(joins)
    joining = jnp.where(position.is_settled & ~is_minimum, steepest, d * falls.shape[0])
    entry = jnp.where(joining < d, 1, -1).astype(jnp.int32)
    sign = position.sign.at[jnp.where(joining >= d, joining - d, joining)].set(entry, mode="drop")
    nobody = joining == d * falls.shape[0]
    sign = jnp.where(nobody, position.sign, sign)

    # Newton's step p on the free coordinates, q ≥ 0.
    index = jnp.nonzero(sign, size=slots, fill_value=d)[0].astype(jnp.int32)
    side = gather(sign, index).astype(x.dtype)
    q = side * gather(x, index)
    columns = side[None, :] * gather(rows.X, index)
    push = side * gather(force, index) - jnp.where(side != 0, gather(rows.decay, index), 0)
    u = matmul(rows.X, x)
    curvature = rows.loss.curvature(u, rows.y)
    p, is_flat = _newton(columns, curvature, push)
    # Both are proofs: `x` lies in the cone, and so does a step on which no coordinate shrinks, as
    # steps towards infinity come to be.
    grows = jnp.all(p >= -tol.floor * jnp.max(p))
    is_along = grows & rows.separates(scatter(index, side * p, d))
    separates = rows.separates(x) | is_along
    ratio = jnp.where(p < 0, -q / jnp.where(p < 0, p, 1), jnp.inf)
    bound = jnp.min(ratio)
    du, cost = matmul(columns, p), jnp.sum(gather(rows.decay, index) * p)

    def slope(t: Float[Array, " m"]) -> Float[Array, " m"]:
        at = u[None, :] + t[:, None] * du[None, :]
        y = jnp.broadcast_to(rows.y, at.shape)
        return matmul(rows.loss.derivative(at, y), du) + cost

    t = _minimum_on_line(slope, jnp.minimum(bound, 1))
    leaves = (ratio <= bound * (1 + tol.merge)) & (t >= bound)
    new = jnp.where(leaves, 0, jnp.maximum(q + t * p, 0))
    kept = jnp.where(leaves, 0, side).astype(jnp.int32)
    size, moved = jnp.max(new), jnp.max(jnp.abs(p))
    change = jnp.where(moved > 0, moved / jnp.where(size > 0, size, 1), 0)
    change = jnp.where((moved > 0) & (size <= 0), jnp.inf, change)
    # Newton's method squares the change, down to the rounding of the solve. Then it comes to rest:
    # at a few roundings, or where steps below half of the digits shrink no more. (At kinks of f′
    # small steps do shrink, and must go on.)
    is_small = (change <= tol.unit**0.5) & (change >= position.change / 4)
    rests = (change <= 4 * tol.unit) | is_small
    after = Position(
        x=scatter(index, side * new, d),
        sign=scatter(index, kept, d),
        change=jnp.where(jnp.any(leaves) | ~nobody, jnp.inf, change),
        is_settled=nobody & ~jnp.any(leaves) & rests,
        is_flat=is_flat,
    )
    after = jax.tree.map(lambda old, new: jnp.where(is_minimum, old, new), position, after)
    return Step(after, falls, hidden, is_minimum, separates)


def _newton(columns: Array, curvature: Array, push: Array) -> tuple[Array, Array]:
    """The solution of `columnsᵀ curvature columns p = push`, 0 in empty slots, and whether it is
    singular up to rounding. A direction without curvature gets a long step."""
    k, tol = columns.shape[1], Tolerances(columns.dtype)
    is_empty = ~jnp.any(columns != 0, axis=0)
    H = matmul(columns.T, curvature[:, None] * columns)
    largest = jnp.max(curvature)
    largest = jnp.where(largest > 0, largest, 1)
    diagonal = jnp.diagonal(H)
    is_flat = ~is_empty & (diagonal <= tol.pivot * largest)
    # One rounding of the largest curvature, so that nothing is divided by 0.
    diagonal = jnp.where(is_empty, 1, diagonal + tol.unit * largest)
    scale = lax.rsqrt(diagonal)
    H = H * scale[:, None] * scale[None, :]
    # A ridge of the backward error of the factorisation, as in `projection.solve_symmetric`.
    eye = jnp.eye(k, dtype=H.dtype)
    H = jnp.where(eye > 0, 1 + k * tol.unit, H)
    factor = inverse_factor(H)
    p = scale * matmul(matmul(factor, scale * push), factor)
    pivots = 1 / jnp.diagonal(factor) ** 2
    return jnp.where(is_empty, 0, p), jnp.any(is_flat) | jnp.any(pivots <= tol.pivot)


def _minimum_on_line(slope, top: Float[Array, ""]) -> Float[Array, ""]:
    """Where the increasing function `slope` is 0 on `[0, top]`; `top` if it is negative there."""
    # A grid of powers, then one inside of the interval between two of them, then the secant: exact
    # to second order, as Newton's method is. Without curvature a step may be 1/eps too long.
    powers = jnp.append(top * 16.0 ** -jnp.arange(21, dtype=top.dtype), 0)

    def between(t):  # from the largest to 0
        v = slope(t)
        at = jnp.argmax(v <= 0)
        at = jnp.where(jnp.any(v <= 0), at, len(t) - 1)
        before = jnp.maximum(at - 1, 0)
        return t[at], t[before], v[at], v[before]

    low, high, _, _ = between(powers)
    is_top = low == high
    grid = low + (high - low) * jnp.linspace(1, 0, 17, dtype=top.dtype)
    low, high, under, over = between(grid)
    rise = over - under
    part = jnp.where(rise > 0, -under / jnp.where(rise > 0, rise, 1), 0)
    return jnp.where(is_top, top, low + (high - low) * jnp.clip(part, 0, 1))


def most_steps(slots: int) -> int:
    """Steps without a minimum after which the method has failed. A choice: an exponential loss
    takes one for each unit of a margin, and tests end in at most a quarter of that."""
    return 32 * slots + 256


def minimize(problem: AbstractProblem, positive: bool) -> tuple[Array, Array, RESULTS]:
    """A minimiser of `ℓ(x) + λ‖x‖₁`, over `x ≥ 0` if `positive`, shape `(d,)`; its signs, 0 where
    it is not free; and how the search ended. It has no derivatives."""
    rows, k = Rows(problem), slots_of(problem)
    allowed = jnp.ones((1 if positive else 2, rows.X.shape[1]), bool)
    allowed = allowed & (rows.scale > 0)[None, :]
    # As many as for a jump, for each coordinate that may join.
    most = k * most_steps(k)

    def step(state):
        position, steps, is_done, separates = state
        move = advance(rows, position, allowed, k)
        separates = separates | (move.separates & ~is_done)
        is_done = is_done | move.is_minimum | separates | (steps >= most)
        choose = lambda old, new: jnp.where(is_done, old, new)
        position = jax.tree.map(choose, position, move.position)
        return position, steps + 1, is_done, separates

    no = jnp.asarray(False)
    goes_on = lambda state: any_lane(~state[2])
    start = Position.zero(rows), jnp.asarray(0, jnp.int32), no, no
    position, steps, _, separates = while_loop(goes_on, step, start)
    is_reached = position.is_settled & ~position.is_flat & (steps <= most)
    result = first_failure(
        (~separates, RESULTS.data_separate), (is_reached, RESULTS.minimizer_not_reached)
    )
    return position.x * rows.scale, position.sign, result


def slots_of(problem: AbstractProblem) -> int:
    """How many coordinates may be free: one more than the rank, until another one leaves."""
    return min(problem.rank_bound + 1, problem.r.shape[0])


def on_face(
    x: Float[Array, " d"], index: Int[Array, " k"], sign: Int[Array, " k"], problem: AbstractProblem
) -> Float[Array, " d"]:
    """The minimiser `x` on the coordinates `index` with their signs, as a differentiable function
    of the problem, by the implicit function theorem. Empty slots have index `d`."""
    is_empty = index == x.shape[0]
    side = sign.astype(x.dtype)
    spread = lambda v: scatter(index, v, x.shape[0])

    def residual(v):
        rest = gather(problem.gradient(spread(v)), index) + side * problem.weight_decay
        return jnp.where(is_empty, v, rest)

    def tangent_solve(linear, rhs):
        return solve_symmetric(jax.jacobian(linear)(rhs), rhs)

    start = lax.stop_gradient(gather(x, index))
    return spread(lax.custom_root(residual, start, lambda _, start: start, tangent_solve))


def square_of(problem: AbstractProblem, positive: bool) -> tuple[LeastSquares, RESULTS]:
    """`square_at` a minimiser of `ℓ(x) + λ‖x‖₁`, over `x ≥ 0` if `positive`: differentiable, on the
    coordinates that are free there."""
    d, fixed = problem.r.shape[0], held(problem)
    x, sign, result = minimize(fixed, positive)
    good = result == RESULTS.successful
    # Nothing is free where there is no minimiser: derivatives there would be NaN.
    index = jnp.nonzero(good & (sign != 0), size=slots_of(problem), fill_value=d)[0]
    index = index.astype(jnp.int32)
    x = on_face(jnp.where(good, x, 0), index, gather(sign, index), problem)
    return square_at(x, problem), result


def square_at(x: Float[Array, " d"], problem: AbstractProblem) -> LeastSquares:
    """The least-squares problem with the minimisers, and the gradient there, of `problem`, of which
    `x` is a minimiser."""
    X, y, loss = glm_of(problem)
    u = matmul(X, x)
    return LeastSquares(X, u - loss.derivative(u, y), problem.weight_decay)
