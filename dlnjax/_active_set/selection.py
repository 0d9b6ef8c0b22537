"""Which minimiser: where columns that are active together depend on each other, the loss does not
tell `q`, and what is left of the initialisation does.

On a plateau let `Z` be the signed coordinates whose `w` is 0 and stays it, and `F` their columns.
At depth 2, `log q = log s − Lw`, `L = log 1/ε`, and `w = w(0) − Fᵀν` is 0 in the limit: so
`log q − log s` is in `range Fᵀ`, and `Fq` is that of any minimiser. These are the conditions for
`q` to minimise `Σ q log(q/s) − q` over the minimisers: the entropy projection of `s`, which is
`|x₀|` for a coordinate that started there, and the square of the shape otherwise. At depth `D > 2`,
`c q^{−p} − o` is in `range Fᵀ`, `p = 1 − 2/D`, with `o = c |x₀|^{−p}`, or 0: so `Σ q^{2/D}` is
maximal. The start is meant, not the plateau before: `w(0) − Fᵀν` does not forget.

On a basis `B` of the columns, `F = F_B V`; then `q` is a function of `θ = F_Bᵀν`, the solution of
`V q(Vᵀθ) = u` with `F_B u` the image: the least point of a convex function. Coordinates that are 0
in all minimisers, where `θ` diverges, are found beforehand: with `E` the rows where `u = 0`, those
that vanish in `{q ≥ 0 : V_E q = 0}`, by the same method from `s = 1`.

Late in the process `w`, the difference of numbers that grow like `s`, is lost in rounding. But
where the `w` of a basis are 0, those of the columns that depend on it follow from `w(0)` alone.
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

MAX_STEPS = 256


class Prior(eqx.Module):
    """What `q` keeps of its start: `log q = log s + g/h`, or `c q^{−p} = o − g`, for `g = Fᵀν`."""

    log_s: Float[Array, "signs d"]
    unit: Float[Array, "signs d"]  # h, or c
    offset: Float[Array, "signs d"]  # o
    exponent: Float[Array, ""] | None  # p; none at depth 2

    def log_q(self, g: Array, free: Array) -> Array:
        """0 where it is not asked."""
        if self.exponent is None:
            return jnp.where(free, self.log_s + g / self.unit, 0)
        return -jnp.log(jnp.where(free, (self.offset - g) / self.unit, 1)) / self.exponent

    def log_growth(self, g: Array, free: Array) -> Array:
        """`dg/d log q`; 1 where it is not asked."""
        per_log_q = self.unit if self.exponent is None else self.exponent * (self.offset - g)
        return jnp.where(free, per_log_q, 1)

    def dual(self, log_q: Array) -> Array:
        """`g`."""
        if self.exponent is None:
            return self.unit * (log_q - self.log_s)
        return self.offset - self.unit * jnp.exp(-self.exponent * log_q)


def prior_of(
    network: AbstractDualNetwork, dual: Float[Array, "signs d"], start: ArrayLike | None
) -> Prior | None:
    """Of a network whose `w(0)` tends to `dual`. None if it does not tell."""
    dtype = dual.dtype
    growth = network.growth(-jnp.ones((), dtype))
    if growth is None:
        return None
    p = None if growth.is_exponential else jnp.asarray(growth.exponent, dtype)
    # At ε = 1/e.
    log_s, unit = growth.log_initial + (dual if p is None else 1), growth.unit
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
        # `q⁺q⁻` is conserved.
        other = jnp.sum(log_s, axis=0)[None, :] - log_x[None, :]
        log_s = jnp.where(towards < 0, other, log_s)
        return Prior(jnp.where(towards > 0, log_x[None, :], log_s), unit, zero, p)
    # `w⁺ + w⁻` is conserved.
    own = jnp.where(x > 0, unit[0], unit[-1]) * jnp.exp(-p * log_x)
    offset = jnp.where(moves[None, :], jnp.sign(towards) * own[None, :], 0)
    return Prior(log_s, unit, offset, p)


class Selection(eqx.Module):
    """On each plateau, a leading axis: what is positive (nothing if the loss alone tells `x`), a
    basis of its columns, and `θ`."""

    free: Bool[Array, "... signs d"]
    basis: Int[Array, "... k"]
    theta: Float[Array, "... k"]


class _Frame(eqx.Module):
    """`V` and `u`."""

    V: Float[Array, "k d"]
    target: Float[Array, " k"]
    is_empty: Bool[Array, " k"]
    norms: Float[Array, " d"]  # of the columns: what `q` counts for
    of_basis: Float[Array, " k"]

    def __init__(self, problem: AbstractProblem, basis: Array, sign: Array):
        at = jnp.minimum(basis, problem.r.shape[0] - 1)
        face = Face(problem, basis)
        rows = jax.vmap(problem.gram_column)(at)
        V = jax.vmap(face.solve, in_axes=1, out_axes=1)(rows)
        exact = indices(V.shape[1])[None, :] == basis[:, None]
        is_basis = jnp.any(exact, axis=0)[None, :]
        V = jnp.where(is_basis, exact.astype(V.dtype), V)
        self.V = jnp.where(face.is_empty[:, None], 0, V)
        self.target = face.solve(problem.r[at] - problem.weight_decay * sign[at])
        self.is_empty = face.is_empty
        self.norms = lax.stop_gradient(problem.column_norms())
        self.of_basis = self.norms.at[basis].get(mode="fill", fill_value=0)

    def among(self, free: Array) -> "_Frame":
        """With the columns `free` alone."""
        V = jnp.where(jnp.any(free, axis=0)[None, :], self.V, 0)
        return eqx.tree_at(lambda f: f.V, self, V)

    def distance(self, basis: Array, sign: Array, scale: Array, start: Array, digits: Array):
        """How far from 0 each `w = start ∓ Fᵀν` is where those of the basis are 0, relative to what
        it is the difference of: entries of `V` have an error of `digits` of the largest one in
        their column."""
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
        """`q`, and the dual that a fold of it takes."""
        g = sides(matmul(theta, self.V), free)
        q = jnp.where(free, jnp.exp(prior.log_q(g, free)), 0)
        return q, prior.log_growth(g, free)

    def excess(self, prior: Prior, free: Array, theta: Array) -> Array:
        """`Vq − u`: a gradient, of a convex function of `θ`."""
        q, _ = self.q(prior, free, theta)
        return jnp.where(self.is_empty, theta, matmul(self.V, signed(q)) - self.target)


def solve_symmetric(H: Array, rhs: Array) -> Array:
    """Where `H ≥ 0` is regular once rows and columns are scaled; rows of 0 determine nothing."""
    diagonal = jnp.diagonal(H)
    H = H + jnp.diag((diagonal <= 0).astype(H.dtype))
    scale = lax.stop_gradient(lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1)))
    H = H * scale[:, None] * scale[None, :]
    ridge = H.shape[0] * jnp.finfo(H.dtype).eps
    factor = Cholesky(H + ridge * jnp.eye(H.shape[0], dtype=H.dtype))
    solution = factor.solve(scale * rhs)
    return scale * (solution + factor.solve(scale * rhs - matmul(H, solution)))


def _descend(
    frame: _Frame, prior: Prior, free: Array, theta: Array, needed: Array, negligible: float
) -> tuple[Array, Array]:
    """`θ` at the least point, by damped Newton steps, and whether it is reached, but for `q` that
    have become negligible.

    Where no `q` changes by more than `κ` folds to first order, a step of `(1 − (1 + κ)^{−p})/pκ`,
    or `log(1 + κ)/κ` at `p = 0`, descends from anywhere: on the way `q'` stays below what
    `(1 − pκ)^{−1/p − 1}` makes of it."""
    unit, p = jnp.finfo(theta.dtype).eps, prior.exponent

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        theta, steps, was_near = state
        q, dual_per_log_growth = frame.q(prior, free, theta)
        weight = jnp.sum(q / dual_per_log_growth, axis=0)
        H = matmul(frame.V * weight[None, :], frame.V.T)
        off = jnp.where(frame.is_empty, 0, -frame.excess(prior, free, theta))
        change = solve_symmetric(H, off)
        rise = jnp.where(free, sides(matmul(change, frame.V), free) / dual_per_log_growth, 0)
        counts = q > negligible
        # What is negligible and falls may do so as fast as it will.
        kappa = jnp.max(jnp.where(counts | (rise > 0), jnp.abs(rise), 0))
        shorter = jnp.log1p(kappa) if p is None else -jnp.expm1(-p * jnp.log1p(kappa)) / p
        length = jnp.where(kappa > 0, shorter / jnp.where(kappa > 0, kappa, 1), 1)
        is_near = jnp.all(~counts | (jnp.abs(rise) < 0.01))
        # Where all is negligible, all of it goes on falling.
        share = q * frame.norms[None, :]
        is_still = jnp.max(share * jnp.abs(rise)) <= unit**0.6 * jnp.max(share)
        is_near = is_near & (is_still | ~jnp.any(counts))
        is_near = is_near | ~jnp.isfinite(kappa)
        theta = jnp.where(was_near, theta, theta + length * change)
        return theta, steps + 1, was_near | is_near

    is_running = lambda s: any_lane(needed & ~s[2] & (s[1] < MAX_STEPS))
    start = theta, jnp.asarray(0, jnp.int32), jnp.asarray(False)
    theta, _, is_near = while_loop(is_running, step, start)
    # A `u` that only rounding made negative has no `q`, and drives `θ` out of all bounds.
    q, _ = frame.q(prior, free, theta)
    off = jnp.where(frame.is_empty, 0, frame.excess(prior, free, theta) * frame.of_basis)
    # All of a cone may vanish, from q = 1.
    size = jnp.maximum(jnp.max(q * frame.norms[None, :]), float(negligible > 0))
    is_met = jnp.max(jnp.abs(off)) <= unit**0.75 * size
    return theta, is_near & is_met & jnp.all(jnp.isfinite(theta))


def _first(frame: _Frame, prior: Prior, free: Array, dual: Array, basis: Array) -> Array:
    """`θ` for a multiple of `w(0)`, which is in the range and 0 where `q` started above 0, such
    that no `q` that started at 0 is larger than the solution may be."""
    size = jnp.max(jnp.abs(frame.target))
    starts = free & (dual > 0)
    ratio = prior.dual(jnp.log(jnp.where(size > 0, size, 1))) / jnp.where(starts, dual, 1)
    ratio = jnp.min(jnp.where(starts, ratio, jnp.inf))
    ratio = jnp.where(jnp.isfinite(ratio), ratio, 0)
    towards = jnp.where(free[0], dual[0], -dual[-1])
    return ratio * towards.at[basis].get(mode="fill", fill_value=0)


def _independent(
    problem: AbstractProblem, scaled: Scaled, free: Array, priority: Array, tol: Tolerances
) -> tuple[Int[Array, " k"], Float[Array, " d"], Float[Array, ""], Bool[Array, ""]]:
    """A basis of the columns `free`, those of high priority first; the squared norms of all
    columns, projected off it; the least pivot; and whether all pivots are above the rounding that
    the ones before leave: a Cholesky factorisation with pivots."""
    k, d = problem.rank_bound, free.shape[0]

    def step(i, state):
        basis, rows, rest, least, is_clear = state
        score = jnp.where(free & (rest > tol.pivot), rest + 2 * priority.astype(rest.dtype), 0)
        j = jnp.argmax(score).astype(jnp.int32)
        good = score[j] > 0
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
    frame: _Frame, scaled: Scaled, basis: Array, free: Array, needed: Array, tol: Tolerances
) -> tuple[Array, Array]:
    """Which of the coordinates are positive in some minimiser, and whether that is decided."""
    scale = scaled.scale.at[basis].get(mode="fill", fill_value=1)
    size = jnp.abs(frame.target) / scale
    is_zero = ~frame.is_empty & (size <= tol.merge * jnp.max(size))
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
    small, large = tol.unit**0.75, tol.unit**0.375
    theta, is_reached = _descend(cone, flat, free, jnp.zeros_like(size), asked, small)
    q, _ = cone.q(flat, free, theta)
    is_decided = is_reached & jnp.all(~free | (q < small) | (q > large))
    return free & (~asked | (q > small)), ~asked | is_decided


def select(
    problem: AbstractProblem,
    scaled: Scaled,
    prior: Prior | None,
    dual: Float[Array, "signs d"],
    index: Int[Array, "K k"],
    sign: Int[Array, "K k"],
    knots: Float[Array, " K"],
    slopes: Float[Array, "K d"],
    distance: Float[Array, "K signs d"],
    is_known: Bool[Array, " K"],
) -> tuple[Float[Array, "K d"], Selection, Bool[Array, ""]]:
    """The plateaus, of which `slopes`, in units where columns have norm 1, are some minimisers; and
    whether one is undetermined, so that it was left.

    `distance` is that of `w` from 0, relative to what it is a difference of. Nothing is computed
    where all that is at 0 has a slot of the active set."""
    K, d = slopes.shape
    tol = Tolerances(slopes.dtype)
    rows = indices(K)[:, None]
    side = lambda s: jnp.zeros((K, d), bool).at[rows, index].set(sign == s, mode="drop")
    active = jnp.stack([side(1), side(-1)][: dual.shape[0]], axis=1)
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
        speed = jnp.abs(scaled.excess[None] - jax.vmap(lambda v: sides(v, dual))(image))
        size = jnp.maximum(jnp.max(jnp.abs(scaled.r)), jnp.sum(jnp.abs(slopes), axis=1))
        far = jnp.maximum(distance, speed / jnp.where(size > 0, size, 1)[:, None, None])
        # What is active tells how exact a 0 is.
        near = 16 * jnp.max(jnp.where(active, far, 0), axis=(1, 2), keepdims=True)
        near = jnp.maximum(near, tol.unit**0.75)
        resting = (others & (far <= near)) | active
        # What dropped at this jump is at 0 as well, but leaves it.
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
            # Of what depends on the basis, `w` and its speed tell exactly, but for the rounding
            # of `V`. Near that, nothing is decided.
            digits = 16 * len(basis) * tol.unit / least
            bounds = dual + problem.weight_decay * knots[k]
            decays = jnp.full_like(dual, problem.weight_decay)
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
                theta = _first(frame, prior, free, dual, basis)
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
    """The selected minimiser, with its derivatives: `θ` solves `Vq = u`."""
    frame = _Frame(problem, basis, jnp.where(free[0], 1, -1)).among(free)

    def tangent_solve(linear, rhs):
        return solve_symmetric(jax.jacobian(linear)(rhs), rhs)

    theta = lax.custom_root(
        lambda theta: frame.excess(prior, free, theta), theta, lambda _, start: start, tangent_solve
    )
    return signed(frame.q(prior, free, theta)[0])
