"""The projection that selects a minimiser: `q` with `Fq = b` that is closest to the start, in the
entropy at depth 2, in a power at `D > 2`. `minimizer.py` has the equations, in a basis of the
columns, and says which coordinates take part."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from .._batching import any_lane
from .._linalg import Cholesky, matmul
from .._loops import while_loop
from .._problem import AbstractProblem
from ..networks import AbstractDualNetwork
from ..networks.signs import sides, signed
from .face import Face
from .state import indices

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

    `start` is `x₀`, shape `(d,)`. `None` if the network has no `limit_growth`, so that its link is
    not known.
    """
    dtype = initial_dual.dtype
    growth = network.limit_growth(-jnp.ones((), dtype))
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


class Frame(eqx.Module):
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

    def rounding(self) -> Float[Array, "k d"]:
        """Of the entries of `V`."""
        lost = jnp.sum(self.spread, axis=1)[:, None] * self.norms[None, :] / 16
        return jnp.where((self.V == 0) | (self.V == 1), 0, lost)

    def among(self, free: Array) -> "Frame":
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


def descend(
    frame: Frame, prior: Prior, free: Array, theta: Array, needed: Array, negligible: float
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
    # 100 times less: 51 of 720 more limits failed it, 100 times more made no change in float64
    # (measured with damped steps in place of these).
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
    blur = unit * terms + matmul(jnp.abs(theta), frame.rounding())[None, :]
    blur = blur / jnp.abs(dual_per_log_growth)
    is_small = q * frame.norms[None, :] <= unit**0.5 * size
    is_met = is_met & jnp.all(is_small | (blur <= unit**0.375))
    return theta, is_near & is_met & jnp.all(jnp.isfinite(theta))


def first_theta(
    frame: Frame, prior: Prior, free: Array, initial_dual: Array, basis: Array
) -> Array:
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
