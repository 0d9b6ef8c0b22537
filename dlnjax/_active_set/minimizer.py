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
(`projection.py`).

1. `_independent`: the basis, by a pivoted Cholesky factorisation.
2. `Frame.distance`: which dependent columns belong to `Z`. Late in the process `w` is a difference
   of numbers that grow like `s`, and lost in rounding; but where `w = 0` on the basis, `w` of a
   dependent column is a combination of `w(0)` and `λs` alone.
3. `_can_be_positive`: coordinates that are 0 in all minimisers, for which `θ` would diverge. With
   `E` the rows where `u = 0`, they are those that vanish on the cone `{q ≥ 0 : V_E q = 0}`.
4. `descend`: `θ`, hence `q`.

A plateau on which one of these decisions is within rounding is reported as undetermined.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._batching import any_lane
from .._linalg import matmul
from .._loops import cond, fori_loop, while_loop
from .._problem import AbstractProblem
from ..networks.prior import Prior
from ..networks.signs import sides, signed
from .projection import Frame, descend, first_theta, solve_symmetric
from .state import Scaled, indices
from .tolerances import Tolerances


class Selection(eqx.Module):
    """The selected minimiser of each plateau, the leading axis."""

    free: Bool[Array, "... signs d"]  # where q > 0; nowhere if the loss has one minimiser
    basis: Int[Array, "... k"]  # of the columns that are free; d in empty slots
    theta: Float[Array, "... k"]  # θ


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
    frame: Frame,
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
    # In units in which columns have norm 1, as `V` now is: its rounding too.
    spread, ones = frame.spread / scale[:, None], jnp.ones_like
    cone = eqx.tree_at(
        lambda f: (f.V, f.target, f.spread, f.is_empty, f.norms, f.of_basis),
        frame,
        (V, jnp.zeros_like(size), spread, ~is_zero, ones(frame.norms), ones(size)),
    )
    zeros = jnp.zeros_like(free, V.dtype)
    flat = Prior(zeros, zeros + 1, zeros, None)
    asked = needed & jnp.any(is_zero)
    # q starts at 1. Coordinates that vanish fall below `small`, 2e-12; the others stay above
    # `large`, its root; between the two nothing is decided. 100 times more (measured): for `small`,
    # 26 of 720 limits more are undetermined. Else, 100 times more or less: no change.
    small, large = tol.unit**0.75, tol.unit**0.375
    theta, is_reached = descend(cone, flat, free, jnp.zeros_like(size), asked, small)
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
    *,
    chooses: bool,
) -> tuple[Float[Array, "K d"], Selection, Bool[Array, ""]]:
    """The plateaus that are the limit, their `Selection`, and whether one is undetermined.

    `slopes` are some minimisers, in units in which columns have norm 1; they stay where the loss
    has one minimiser, or none is determined. `distance` is `|w|` at the knots, relative to the
    terms whose difference it is. If all coordinates with `w = 0` are in the active set, whose
    columns are independent, nothing is computed. Without `chooses`, which is static, all other
    plateaus on which coordinates may rest at `w = 0` are undetermined.
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
        if not chooses:
            return slopes, start, jnp.any(todo)
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
            frame = Frame(problem, basis, signs)
            # `distance` decides whether a dependent column rests at w = 0: up to `digits`, the
            # rounding of V, it does; beyond 8 times that it does not; between the two nothing is
            # decided. Both factors were settled by `python -m benchmarks.fuzz` (64 before).
            # 100 times more or less for `digits` (measured): 3 and 1 of 720 limits change. 100
            # times more for the 8: 16 more are undetermined. Less: none is, decided by rounding.
            # What exceeds `near` by as much does not rest either. With `near` itself, one of ten
            # limits more that are decided is wrong.
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
            is_near = (off <= 8 * digits) & (far[k] <= 8 * near[k])
            is_decided = ~jnp.any(others[k] & is_dependent & ~rests & is_near)
            can_move = needed & (jnp.sum(is_on) > jnp.sum(basis < d))
            frame = frame.among(is_on)
            # Where x is 0 so is Fq, whatever the rounding of r leaves of it.
            is_zero = ~jnp.any(jnp.any(is_on, axis=0) & (slopes[k] != 0))
            target = jnp.where(is_zero, 0, frame.target)
            frame = eqx.tree_at(lambda f: f.target, frame, target)
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
                frame = Frame(problem, basis, jnp.where(free[0], 1, -1)).among(free)
                theta = first_theta(frame, prior, free, initial_dual, basis)
                theta, is_reached = descend(frame, prior, free, theta, is_selected, 0.0)
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
    frame = Frame(problem, basis, jnp.where(free[0], 1, -1)).among(free)

    def tangent_solve(linear, rhs):
        return solve_symmetric(jax.jacobian(linear)(rhs), rhs)

    theta = lax.custom_root(
        lambda theta: frame.excess(prior, free, theta), theta, lambda _, start: start, tangent_solve
    )
    return signed(frame.q(prior, free, theta)[0])
