"""Which minimiser of the loss is the limit `ε → 0`, where several exist.

On a plateau let `Z` be the signed coordinates with `w = 0` and `dw/ds = 0`, and `F` their signed
columns. The plateau minimises the loss over `q ≥ 0` on `Z`, which fixes `Fq = b`. If columns of `F`
are linearly dependent, `q` is fixed by the initialisation:

    depth 2   log q − log s ∈ range Fᵀ,   so `q` minimises `Σ q log(q/s) − q` on {q ≥ 0 : Fq = b}
    D > 2     c q^{−p} − o ∈ range Fᵀ,    so `q` maximises `Σ c q^{2/D} D/2 − o q` there

with `p = 1 − 2/D`. For `log q = log s − Lw`, `L = log(1/ε)`, and `w = w(0) − Fᵀν + λs1 → 0` on `Z`.
Here the vector `s` is `|x₀|` for a coordinate that started at `x₀ ≠ 0`, else the square of its
shape; `o` is `c|x₀|^{−p}`, else 0. The first is the Bregman projection of `s` in the entropy. The
reference is the start of the process, not the plateau before: `w` depends on `w(0)` at all times.

Method. On a basis `B` of the columns, `F = F_B V` and `b = F_B u`. With `θ = F_Bᵀν` the conditions
become `V q(Vᵀθ) = u`: the gradient of a convex function of `θ` is 0, by Newton's method
(`_descend`).

1. `_independent`: the basis, by a pivoted Cholesky factorisation.
2. `_Frame.distance`: which dependent columns belong to `Z`. Late in the process `w` is a difference
   of numbers that grow like `s`, and lost in rounding; but where `w = 0` on the basis, `w` of a
   dependent column is a combination of `w(0)` and `λs` alone.
3. `_can_be_positive`: coordinates that are 0 in all minimisers, for which `θ` would diverge. With
   `E` the rows where `u = 0`, they are those that vanish on the cone `{q ≥ 0 : V_E q = 0}`.
4. `_descend`: `θ`, hence `q`.

A plateau on which one of these decisions is within rounding is reported as undetermined.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .._batching import any_lane
from .._linalg import Cholesky, matmul
from .._loops import cond, fori_loop, while_loop
from .._problem import AbstractProblem
from ..networks import AbstractDualNetwork
from ..networks.signs import sides, signed
from .face import Face
from .state import Scaled, indices
from .tolerances import Tolerances

# Newton steps until a plateau is undetermined. Measured on 3072 limits of the fuzz run: 51 are
# enough for all that 256 are enough for; 25 are too few for 17, 6 for 103.
MAX_STEPS = 256


class Prior(eqx.Module):
    """The link relative to the start, as a function of `g = Fᵀν`.

    Depth 2: `log q = log s + g/h`. Depth `D > 2`: `c q^{−p} = o − g`.
    """

    log_s: Float[Array, "signs d"]
    unit: Float[Array, "signs d"]  # h at depth 2, c otherwise
    offset: Float[Array, "signs d"]  # o
    exponent: Float[Array, ""] | None  # p; None at depth 2

    def log_q(self, g: Array, free: Array) -> Array:
        """`log q`; 0 where not `free`, so that derivatives there are finite."""
        if self.exponent is None:
            return jnp.where(free, self.log_s + g / self.unit, 0)
        return -jnp.log(jnp.where(free, (self.offset - g) / self.unit, 1)) / self.exponent

    def log_growth(self, log_q: Array) -> Array:
        """`dg/d log q` at this `log q`."""
        if self.exponent is None:
            return self.unit
        return self.exponent * self.unit * jnp.exp(-self.exponent * log_q)

    def g_at(self, log_q: Array) -> Array:
        """`g` at which `q` has this logarithm: the inverse of `log_q`."""
        if self.exponent is None:
            return self.unit * (log_q - self.log_s)
        return self.offset - self.unit * jnp.exp(-self.exponent * log_q)


def prior_of(
    network: AbstractDualNetwork, initial_dual: Float[Array, "signs d"], start: ArrayLike | None
) -> Prior | None:
    """The prior of a network whose `w(0)` tends to `initial_dual`, shape `(signs, d)`, as `ε → 0`.

    `start` is `x₀`, shape `(d,)`. `None` if the network has no `growth`, so that its link is not
    known.
    """
    dtype = initial_dual.dtype
    growth = network.growth(-jnp.ones((), dtype))
    if growth is None:
        return None
    p = None if growth.is_exponential else jnp.asarray(growth.exponent, dtype)
    # Another ε only scales and shifts θ: L = 1 at ε = 1/e.
    log_s, unit = growth.log_initial + (initial_dual if p is None else 1), growth.unit
    zero = jnp.zeros_like(log_s)
    if p is not None:
        unit = unit / p * jnp.exp(p * log_s)
    if start is None:
        return Prior(log_s, unit, zero, p)
    x = jnp.asarray(start, dtype)
    moves = x != 0
    log_x = jnp.log(jnp.where(moves, jnp.abs(x), 1))
    towards = sides(x, log_s)
    if p is None:
        # w⁺ + w⁻ is conserved, hence q⁺q⁻ = s⁺s⁻: if q⁺ = |x₀|, then q⁻ = s⁺s⁻/|x₀|.
        other = jnp.sum(log_s, axis=0)[None, :] - log_x[None, :]
        log_s = jnp.where(towards < 0, other, log_s)
        return Prior(jnp.where(towards > 0, log_x[None, :], log_s), unit, zero, p)
    # w⁺ + w⁻ is conserved: the sign opposite to x₀ has the offset −o.
    own = jnp.where(x > 0, unit[0], unit[-1]) * jnp.exp(-p * log_x)
    offset = jnp.where(moves[None, :], jnp.sign(towards) * own[None, :], 0)
    return Prior(log_s, unit, offset, p)


class Selection(eqx.Module):
    """The selected minimiser of each plateau, the leading axis."""

    free: Bool[Array, "... signs d"]  # where q > 0; nowhere if the loss has one minimiser
    basis: Int[Array, "... k"]  # of the columns that are free; d in empty slots
    theta: Float[Array, "... k"]  # θ


class _Frame(eqx.Module):
    """All columns in a basis of some: `F = F_B V`, and the image `b = F_B u`."""

    V: Float[Array, "k d"]
    target: Float[Array, " k"]  # u
    spread: Float[Array, "k k"]  # by how much rounding of b, over norms, moves a where M_BB a = b
    is_empty: Bool[Array, " k"]  # slots of the basis that are not filled
    norms: Float[Array, " d"]  # ‖Xⱼ‖: by ‖Xⱼ‖qⱼ coordinates compare, whatever the columns' units
    of_basis: Float[Array, " k"]  # the same for the basis
    sign: Float[Array, " k"]  # of the coordinates of the basis

    def __init__(self, problem: AbstractProblem, basis: Array, sign: Array):
        at = jnp.minimum(basis, problem.r.shape[0] - 1)
        face = Face(problem, basis)
        rows = jax.vmap(problem.gram_column)(at)
        both = jnp.concatenate([rows, jnp.eye(len(basis), dtype=rows.dtype)], axis=1)
        both = jax.vmap(face.solve, in_axes=1, out_axes=1)(both)
        V, inverse = both[:, : rows.shape[1]], both[:, rows.shape[1] :]
        self.sign = sign[at].astype(V.dtype)
        self.target = face.solve(problem.r[at] - problem.weight_decay * self.sign)
        self.is_empty = face.is_empty
        self.norms = lax.stop_gradient(problem.column_norms())
        self.of_basis = self.norms.at[basis].get(mode="fill", fill_value=0)
        # Row by row: where some columns are nearly dependent, only their own entries lose digits.
        # 16 roundings are a choice.
        unit = 16 * jnp.finfo(V.dtype).eps
        self.spread = lax.stop_gradient(unit * jnp.abs(inverse) * self.of_basis[None, :])
        # An entry of V in the row of a column of norm 1e-14 may be rounding and 1: it is 0. (What
        # rounding may be where columns are nearly dependent is kept: x would lose as many digits.)
        sizes = self.norms + matmul(self.of_basis, jnp.abs(V))
        V = jnp.where(jnp.abs(V) * self.of_basis[:, None] > unit * sizes[None, :], V, 0)
        # The columns of the basis are unit vectors exactly, not to the rounding of the solve.
        exact = indices(V.shape[1])[None, :] == basis[:, None]
        self.V = jnp.where(jnp.any(exact, axis=0)[None, :], exact.astype(V.dtype), V)

    def among(self, free: Array) -> "_Frame":
        """The frame with 0 for all columns that are not `free`."""
        V = jnp.where(jnp.any(free, axis=0)[None, :], self.V, 0)
        return eqx.tree_at(lambda f: f.V, self, V)

    def distance(self, basis: Array, sign: Array, scale: Array, start: Array, digits: Array):
        """`|w|` of each column if `w = start ∓ Fᵀν` is 0 on the basis, relative to the sum of
        absolute values that it comes from, shape `(signs, d)`. Entries of `V` have an error of
        `digits` times the largest one in their column: smaller ones count as 0."""
        own = scale * sign * jnp.where(sign > 0, start[0], start[-1])
        g = own.at[basis].get(mode="fill", fill_value=0)
        V = self.V * scale[None, :] / scale.at[basis].get(mode="fill", fill_value=1)[:, None]
        most = jnp.max(jnp.abs(V), axis=0)
        counts = jnp.abs(V) > digits * most[None, :]
        start = start * scale[None, :]
        size = start + (most * matmul(jnp.abs(g), counts.astype(V.dtype)))[None, :]
        off = jnp.abs(start - sides(matmul(g, jnp.where(counts, V, 0)), start))
        return jnp.where(size > 0, off / jnp.where(size > 0, size, 1), 0)

    def q(self, prior: Prior, free: Array, theta: Array) -> tuple[Array, Array]:
        """`q`, 0 where not `free`, and `dg/d log q`, both of shape `(signs, d)`."""
        g = sides(matmul(theta, self.V), free)
        log_q = prior.log_q(g, free)
        return jnp.where(free, jnp.exp(log_q), 0), prior.log_growth(log_q)

    def excess(self, prior: Prior, free: Array, theta: Array) -> Array:
        """`Vq − u`, the gradient of a convex function of `θ`; `θ` itself in empty slots."""
        q, _ = self.q(prior, free, theta)
        return jnp.where(self.is_empty, theta, matmul(self.V, signed(q)) - self.target)


def solve_symmetric(H: Array, rhs: Array) -> Array:
    """The solution of `Hx = rhs` for positive semidefinite `H`, which is scaled to unit diagonal:
    its own diagonal may span any number of decades. `x` is `rhs` where a row of `H` is 0."""
    diagonal = jnp.diagonal(H)
    H = H + jnp.diag((diagonal <= 0).astype(H.dtype))
    scale = lax.stop_gradient(lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)))
    H = H * scale[:, None] * scale[None, :]
    # Of the size of the backward error of a Cholesky factorisation, so that rounding makes no pivot
    # negative; the refinement below undoes it. 100 times more or less (measured) moves no limit by
    # more than 2e-14.
    ridge = H.shape[0] * jnp.finfo(H.dtype).eps
    factor = Cholesky(H + ridge * jnp.eye(H.shape[0], dtype=H.dtype))
    solution = factor.solve(scale * rhs)
    return scale * (solution + factor.solve(scale * rhs - matmul(H, solution)))


def _descend(
    frame: _Frame, prior: Prior, free: Array, theta: Array, needed: Array, negligible: float
) -> tuple[Array, Array]:
    """`θ` with `V q(Vᵀθ) = u`, by Newton steps, and whether it was reached.

    Entries `q ≤ negligible` that still fall are not waited for.

    Each step linearises `log q = log q(Vᵀθ)`, which an iterate need not satisfy. Entries rise by
    Newton in `q`, `q ← q(1 + Δ)`, and fall by Newton in `g`: `q` is convex in `g`, so that each is
    the smaller of the two changes, and neither overshoots.
    """
    unit, p = jnp.finfo(theta.dtype).eps, prior.exponent

    def step(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        theta, log_q, steps, was_near = state
        q = jnp.where(free, jnp.exp(log_q), 0)
        dual_per_log_growth = prior.log_growth(log_q)
        mismatch = sides(matmul(theta, frame.V), free) - prior.g_at(log_q)
        mismatch = jnp.where(free, mismatch, 0)
        stretch = q / dual_per_log_growth
        H = matmul(frame.V * jnp.sum(stretch, axis=0)[None, :], frame.V.T)
        off = frame.target - matmul(frame.V, signed(q))
        off = jnp.where(frame.is_empty, -theta, off)
        share = q * frame.norms[None, :]
        # A q that has underflowed, and is missed, would be lost: its row of H is 0.
        is_missed = off * frame.sign * frame.of_basis > unit**0.75 * jnp.max(share)
        H = H + jnp.diag(jnp.where(is_missed, jnp.finfo(H.dtype).tiny, 0).astype(H.dtype))
        change = solve_symmetric(H, off - matmul(frame.V, signed(stretch * mismatch)))
        moved = jnp.where(free, sides(matmul(change, frame.V), free) + mismatch, 0)
        rise = moved / dual_per_log_growth
        fall = jnp.minimum(rise, 0)
        fall = fall if p is None else -jnp.log1p(-p * fall) / p
        # What may still be needed must not become negligible at once: an entry falls by a factor of
        # e³ at most, and of as much more as it is small already.
        most = jnp.maximum(jnp.max(share), jnp.finfo(q.dtype).tiny)
        fall = jnp.maximum(fall, jnp.log(jnp.where(q > 0, share / most, 1)) - 3)
        counts = q > negligible
        # The last step is made from where no q changes by more than 0.01 of itself, and where the
        # square of that, which is what a Newton step leaves, is rounding of the largest one. If all
        # entries are negligible, they fall for ever and need not stand still. θ may have run ahead
        # of entries that rise: on its way back, large changes are rounded.
        far = jnp.maximum(jnp.abs(rise), jnp.abs(mismatch / dual_per_log_growth))
        is_near = jnp.all(~counts | (far < 0.01))
        is_still = jnp.max(share * rise**2) <= unit * jnp.max(share)
        is_near = is_near & (is_still | ~jnp.any(counts))
        is_near = is_near | ~jnp.all(jnp.isfinite(rise))
        theta = jnp.where(was_near, theta, theta + change)
        log_q = jnp.where(free & ~was_near, log_q + jnp.log1p(jnp.maximum(rise, 0)) + fall, log_q)
        return theta, log_q, steps + 1, was_near | is_near

    is_running = lambda s: any_lane(needed & ~s[3] & (s[2] < MAX_STEPS))
    first = prior.log_q(sides(matmul(theta, frame.V), free), free)
    start = theta, first, jnp.asarray(0, jnp.int32), jnp.asarray(False)
    theta, _, _, is_near = while_loop(is_running, step, start)
    # If rounding makes an entry of u negative that is 0, no q ≥ 0 fits, and θ diverges: hence a
    # check of the equations. eps^0.75, 2e-12, leaves room for a condition number of 1e4.
    # 100 times less (measured): 51 of 720 more limits fail it. 100 times more: no change in
    # float64.
    q, dual_per_log_growth = frame.q(prior, free, theta)
    off = jnp.where(frame.is_empty, 0, frame.excess(prior, free, theta) * frame.of_basis)
    # In a cone (`_can_be_positive`) all of q may vanish: then its start, 1, is the unit.
    size = jnp.maximum(jnp.max(q * frame.norms[None, :]), float(negligible > 0))
    # Where columns differ by decades, so do entries of θ, whose sum is rounded. 16 is a choice.
    terms = matmul(jnp.abs(theta), jnp.abs(frame.V))[None, :]
    rounded = jnp.sum(q * terms / jnp.abs(dual_per_log_growth), axis=0)
    rounded = 16 * unit * frame.of_basis * matmul(jnp.abs(frame.V), rounded)
    allowed = jnp.minimum(unit**0.75 * size + rounded, unit**0.5 * size)
    is_met = jnp.all(jnp.abs(off) <= allowed)
    # Where an entry of u that should be 0 is negative by rounding, θ diverges although the
    # equations hold, and rounding of V carries it into the logarithms of other entries. Of those
    # that are not small, 1e-6 is allowed: columns whose units differ by ten decades take 1e-8.
    blur = unit * terms / jnp.abs(dual_per_log_growth)
    is_small = q * frame.norms[None, :] <= unit**0.5 * size
    is_met = is_met & jnp.all(is_small | (blur <= unit**0.375))
    return theta, is_near & is_met & jnp.all(jnp.isfinite(theta))


def _first(frame: _Frame, prior: Prior, free: Array, initial_dual: Array, basis: Array) -> Array:
    """A first `θ`: `Fᵀν` is the multiple of `w(0)` at which the largest `q` of those that started
    at 0 has the size of `u`. Coordinates with `w(0) = 0` begin at `q = |x₀|`. (`θ = 0` will not do:
    at `D > 2` it means `q = ∞` for all that started at 0.)"""
    size = jnp.max(jnp.abs(frame.target))
    starts = free & (initial_dual > 0)
    ratio = prior.g_at(jnp.log(jnp.where(size > 0, size, 1))) / jnp.where(starts, initial_dual, 1)
    ratio = jnp.min(jnp.where(starts, ratio, jnp.inf))
    ratio = jnp.where(jnp.isfinite(ratio), ratio, 0)
    towards = jnp.where(free[0], initial_dual[0], -initial_dual[-1])
    return ratio * towards.at[basis].get(mode="fill", fill_value=0)


def _independent(
    problem: AbstractProblem, scaled: Scaled, free: Array, priority: Array, tol: Tolerances
) -> tuple[Int[Array, " k"], Float[Array, " d"], Float[Array, ""], Bool[Array, ""]]:
    """A basis of the columns `free`, by a pivoted Cholesky factorisation; those of high `priority`
    (0, 1, 2) come first. Also: the squared distances of all columns from its span; the least pivot;
    and whether every pivot is above the rounding that the pivots before it leave."""
    k, d = problem.rank_bound, free.shape[0]

    def step(i, state):
        basis, rows, rest, least, is_clear = state
        score = jnp.where(free & (rest > tol.pivot), rest + 2 * priority.astype(rest.dtype), 0)
        j = jnp.argmax(score).astype(jnp.int32)
        good = score[j] > 0
        # `rest` has a rounding of some eps over the least pivot so far. The factor is a choice: 100
        # times more or less (measured) changes none of 1200 limits, nor any in float32.
        is_clear = is_clear & ~(good & (rest[j] < 16 * tol.unit / least))
        least = jnp.where(good, jnp.minimum(least, rest[j]), least)
        column = scaled.column(problem, j) - matmul(rows[:, j], rows)
        row = jnp.where(good, column * lax.rsqrt(jnp.where(good, rest[j], 1)), 0)
        rest = jnp.where(good & (indices(d) == j), 0, rest - row**2)
        basis = basis.at[i].set(jnp.where(good, j, d))
        return basis, rows.at[i].set(row), rest, least, is_clear

    ones = (scaled.scale > 0).astype(scaled.scale.dtype)
    rows, least = jnp.zeros((k, d), ones.dtype), jnp.ones_like(ones[0])
    start = jnp.full(k, d, jnp.int32), rows, ones, least, jnp.asarray(True)
    basis, _, rest, least, is_clear = fori_loop(0, k, step, start)
    return basis, rest, least, is_clear


def _can_be_positive(
    frame: _Frame,
    scaled: Scaled,
    basis: Array,
    free: Array,
    needed: Array,
    tol: Tolerances,
) -> tuple[Array, Array]:
    """Which of the coordinates `free` are positive in some minimiser, and whether that is decided.

    They are those that are positive somewhere on `{q ≥ 0 : V_E q = 0}`. The minimiser of
    `Σ exp(V_Eᵀθ)` over `θ` has a positive limit for these, and 0 for the others.
    """
    scale = scaled.scale.at[basis].get(mode="fill", fill_value=1)
    size = jnp.abs(frame.target) / scale
    # Entries of u that may be rounding count as 0, and those below 3e-13: 6 times more, and real
    # ones are lost (measured by the fuzz run). Rounding of more than half of the digits decides
    # nothing.
    terms = scaled.terms.at[basis].get(mode="fill", fill_value=0)
    lost = matmul(frame.spread, terms + jnp.sum(size)) / scale
    most = jnp.max(size)
    is_zero = ~frame.is_empty & (size <= jnp.maximum(lost, tol.merge * most))
    is_told = jnp.all(~is_zero | (lost <= tol.violation * most) | (most <= lost))
    V = jnp.where(is_zero[:, None], frame.V * scaled.scale[None, :] / scale[:, None], 0)
    V = jnp.where(jnp.abs(V) > tol.violation, V, 0)
    cone = eqx.tree_at(
        lambda f: (f.V, f.target, f.is_empty, f.norms, f.of_basis),
        frame,
        (V, jnp.zeros_like(size), ~is_zero, jnp.ones_like(frame.norms), jnp.ones_like(size)),
    )
    zeros = jnp.zeros_like(free, V.dtype)
    flat = Prior(zeros, zeros + 1, zeros, None)
    asked = needed & jnp.any(is_zero)
    # q starts at 1. Coordinates that vanish fall below `small`, 2e-12; the others stay above
    # `large`, its root; between the two nothing is decided. 100 times more (measured): for `small`,
    # 26 of 720 limits more are undetermined. Else, 100 times more or less: no change.
    small, large = tol.unit**0.75, tol.unit**0.375
    theta, is_reached = _descend(cone, flat, free, jnp.zeros_like(size), asked, small)
    q, _ = cone.q(flat, free, theta)
    is_decided = is_reached & jnp.all(~free | (q < small) | (q > large))
    return free & (~asked | (q > small)), ~asked | (is_decided & is_told)


def select(
    problem: AbstractProblem,
    scaled: Scaled,
    prior: Prior | None,
    initial_dual: Float[Array, "signs d"],
    index: Int[Array, "K k"],
    sign: Int[Array, "K k"],
    knots: Float[Array, " K"],
    slopes: Float[Array, "K d"],
    distance: Float[Array, "K signs d"],
    is_known: Bool[Array, " K"],
) -> tuple[Float[Array, "K d"], Selection, Bool[Array, ""]]:
    """The plateaus that are the limit, their `Selection`, and whether one is undetermined.

    `slopes` are some minimisers, in units in which columns have norm 1; they stay where the loss
    has one minimiser, or none is determined. `distance` is `|w|` at the knots, relative to the
    terms whose difference it is. If all coordinates with `w = 0` are in the active set, whose
    columns are independent, nothing is computed.
    """
    K, d = slopes.shape
    tol = Tolerances(slopes.dtype)
    rows = indices(K)[:, None]
    side = lambda s: jnp.zeros((K, d), bool).at[rows, index].set(sign == s, mode="drop")
    active = jnp.stack([side(1), side(-1)][: initial_dual.shape[0]], axis=1)
    exists = (scaled.scale > 0)[None, :] & is_known[:, None]
    others = ~active & exists[:, None, :] & (distance <= tol.violation)
    start = Selection(
        jnp.zeros_like(active),
        jnp.full((K, problem.rank_bound), d, jnp.int32),
        jnp.zeros((K, problem.rank_bound), slopes.dtype),
    )
    nothing = slopes, start, jnp.asarray(False)

    def some():
        scale = scaled.scale[None, :]
        image = scale * problem.matvec(scale * slopes)
        speed = jnp.abs(scaled.excess[None] - jax.vmap(lambda v: sides(v, initial_dual))(image))
        size = jnp.maximum(jnp.max(jnp.abs(scaled.r)), jnp.sum(jnp.abs(slopes), axis=1))
        far = jnp.maximum(distance, speed / jnp.where(size > 0, size, 1)[:, None, None])
        # On the active set w and dw/ds are 0: their largest computed value says how exact a 0 is
        # here. The factor 16 is a choice: 100 times more or less (measured) changes nothing. The
        # least value is 64 units: with 8000 a column that fits 1e-12 of `y` counted as resting.
        near = 16 * jnp.max(jnp.where(active, far, 0), axis=(1, 2), keepdims=True)
        near = jnp.maximum(near, 64 * tol.unit)
        resting = (others & (far <= near)) | active
        # A coordinate that leaves at this jump has w = 0, too, but a positive speed.
        todo = jnp.any(others & (far <= tol.violation), axis=(1, 2))
        is_running = lambda state: any_lane(jnp.any(state[0]))

        def step(state):
            todo, (slopes, selection, is_lost) = state
            k, needed = jnp.argmax(todo).astype(jnp.int32), jnp.any(todo)
            priority = jnp.where(slopes[k] != 0, 2, jnp.where(jnp.any(active[k], axis=0), 1, 0))
            basis, rest, least, is_clear = _independent(
                problem, scaled, jnp.any(resting[k], axis=0), priority, tol
            )
            own = active[k][0] | (resting[k][0] & ~active[k][-1])
            signs = jnp.where(own, 1, -1).astype(slopes.dtype)
            frame = _Frame(problem, basis, signs)
            # `distance` decides whether a dependent column rests at w = 0: up to `digits`, the
            # rounding of V, it does; beyond 8 times that it does not; between the two nothing is
            # decided. Both factors were settled by `python -m benchmarks.fuzz` (64 before).
            # 100 times more or less for `digits` (measured): 3 and 1 of 720 limits change. 100
            # times more for the 8: 16 more are undetermined. Less: none is, decided by rounding.
            digits = 16 * len(basis) * tol.unit / least
            bounds = initial_dual + problem.weight_decay * knots[k]
            decays = jnp.full_like(initial_dual, problem.weight_decay)
            off = jnp.maximum(
                *(frame.distance(basis, signs, scaled.scale, v, digits) for v in (bounds, decays))
            )
            is_full = jnp.all(basis < d)  # then the others depend on it, whatever `rest` rounds to
            is_dependent = ((rest <= tol.pivot) | is_full)[None, :]
            rests = jnp.where(is_dependent, off <= jnp.minimum(digits, tol.violation), resting[k])
            is_on = (others[k] & rests) | active[k]
            is_decided = ~jnp.any(others[k] & is_dependent & ~rests & (off <= 8 * digits))
            can_move = needed & (jnp.sum(is_on) > jnp.sum(basis < d))
            frame = frame.among(is_on)
            free, is_sure = _can_be_positive(frame, scaled, basis, is_on, can_move, tol)
            basis, _, _, is_still_clear = _independent(
                problem, scaled, jnp.any(free, axis=0), priority, tol
            )
            is_selected = can_move & (jnp.sum(free) > jnp.sum(basis < d))
            is_decided = is_decided & is_sure & is_clear & (is_still_clear | ~can_move)
            x, theta = slopes[k], jnp.zeros_like(frame.target)
            if prior is None:
                is_decided = is_decided & ~is_selected
            else:
                frame = _Frame(problem, basis, jnp.where(free[0], 1, -1)).among(free)
                theta = _first(frame, prior, free, initial_dual, basis)
                theta, is_reached = _descend(frame, prior, free, theta, is_selected, 0.0)
                is_decided = is_decided & (is_reached | ~is_selected)
                x = signed(frame.q(prior, free, theta)[0])
                x = x / jnp.where(scaled.scale > 0, scaled.scale, 1)
            is_lost = is_lost | (needed & ~is_decided)
            row = jnp.where(is_selected & is_decided, k, K)
            put = lambda buffer, value: buffer.at[row].set(value, mode="drop")
            chosen = jax.tree.map(put, selection, Selection(free, basis, theta))
            return todo & (indices(K) != k), (put(slopes, x), chosen, is_lost)

        return while_loop(is_running, step, (todo, nothing))[1]

    return cond(any_lane(jnp.any(others)), some, lambda: nothing)


def plateau(
    problem: AbstractProblem, prior: Prior, free: Array, basis: Array, theta: Array
) -> Float[Array, " d"]:
    """The selected minimiser, shape `(d,)`, differentiable: `θ` is the root of `Vq − u`."""
    frame = _Frame(problem, basis, jnp.where(free[0], 1, -1)).among(free)

    def tangent_solve(linear, rhs):
        return solve_symmetric(jax.jacobian(linear)(rhs), rhs)

    theta = lax.custom_root(
        lambda theta: frame.excess(prior, free, theta), theta, lambda _, start: start, tangent_solve
    )
    return signed(frame.q(prior, free, theta)[0])
