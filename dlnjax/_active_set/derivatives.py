"""Derivatives of the lasso, its path and the limit process.

Between events the active set is fixed and all is the solution of a linear system. So the events
are found without derivatives, and where derivatives are asked for, what they determine is evaluated
again from the active sets: in both modes and of every order, at `O(k³)` and a `k × k` block a
segment. At a knot, derivatives are those of the segment that follows. Where several coordinates
bind at one knot, that of its time is a mean over them for the lasso path, and that of one of them
for the limit process; where what follows is smooth, its derivatives do not depend on that one.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._batching import any_lane
from .._linalg import matmul
from .._loops import cond, scan
from .._problem import AbstractProblem
from .face import Face
from .selection import Prior, Selection, plateau, solve_symmetric
from .state import scatter


class Segments(eqx.Module):
    """The active coordinates on each segment, `d` in empty slots, with their signs (0 there); and,
    for the limit process, the coordinate that opened it by its jump, with its sign, and which of
    several minimisers is meant."""

    index: Int[Array, "K k"]
    sign: Int[Array, "K k"]
    opening: Int[Array, " K"] | None = None
    opening_sign: Int[Array, " K"] | None = None
    selection: Selection | None = None


def lasso_on_face(
    x: Float[Array, " d"], problem: AbstractProblem, mu: Float[Array, ""], weights: Array
) -> Float[Array, " d"]:
    """The lasso at `μ` with the support and the signs of `x`: `M_AA x_A = (r − κs)_A`."""
    d = problem.r.shape[0]
    index = jnp.nonzero(x, size=problem.rank_bound, fill_value=d)[0].astype(jnp.int32)
    # A weight of ∞ has no part in what is not 0.
    omega = jnp.where(x > 0, weights[0], jnp.where(x < 0, weights[1], 0))
    kappa = problem.weight_decay + omega / mu
    rhs = (problem.r - kappa * jnp.sign(x))[jnp.minimum(index, d - 1)]
    return scatter(index, Face(problem, index).solve(rhs), d)


def path_on_segments(
    segments: Segments, problem: AbstractProblem, weights: Float[Array, "2 d"]
) -> tuple[Array, Array, Array]:
    """Knots, values and slopes of the lasso path: `z = μu − w` with `M_AA u = (r − λs)_A` and
    `M_AA w = (ωs)_A`. At a knot both segments have the same `z`."""
    r, index = problem.r, segments.index
    d = r.shape[0]
    sign = segments.sign.astype(r.dtype)
    at = jnp.minimum(index, d - 1)
    omega = jnp.where(sign > 0, weights[0][at], jnp.where(sign < 0, weights[1][at], 0))
    faces = jax.vmap(lambda index: Face(problem, index))(index)
    rhs = jnp.stack([r[at] - problem.weight_decay * sign, omega * sign])
    u, w = jax.vmap(lambda rhs: scatter(index, jax.vmap(Face.solve)(faces, rhs), d))(rhs)
    before = lambda v: jnp.concatenate([jnp.zeros_like(v[:1]), v[:-1]])
    du, dw = u - before(u), w - before(w)
    # μ du = dw. (Unpenalised coordinates have a knot at 0, where w = 0.)
    size = jnp.sum(du * dw, axis=1)
    moves = size != 0
    knots = jnp.where(moves, jnp.sum(dw**2, axis=1) / jnp.where(moves, size, 1), 0)
    return knots, knots[:, None] * u - w, u


def limit_on_segments(
    segments: Segments,
    problem: AbstractProblem,
    dual: Float[Array, "signs d"],
    s_max: Float[Array, ""],
    prior: Prior | None,
) -> tuple[Array, Array, Array]:
    """Jumps, values and plateaus of the limit process. A segment opens when `w` of one coordinate
    has come to 0 (where none does, it was cut at `s_max`); on it `w` is 0 on the active set, where
    `Mz = sr − (w(0) + λs)sign` and `Mx = r − λ sign`, and elsewhere `z` rests."""
    r, decay = problem.r, problem.weight_decay
    d = r.shape[0]
    index, sign = segments.index, segments.sign.astype(r.dtype)
    at = jnp.minimum(index, d - 1)
    faces = jax.vmap(lambda index: Face(problem, index))(index)
    start = jnp.where(sign > 0, dual[0][at], dual[-1][at])
    plateaus = scatter(index, jax.vmap(Face.solve)(faces, r[at] - decay * sign), d)
    is_shared = jnp.zeros(index.shape[0], bool)
    if prior is not None and segments.selection is not None:
        is_shared = jnp.any(segments.selection.free, axis=(1, 2))
        plateaus = _selected(plateaus, is_shared, segments.selection, problem, prior)

    def share(is_shared, z, index, asked, x):
        # How dependent columns share it: in proportion to the plateau that opens, since those that
        # are the same but for their signs and lengths have a constant ratio.
        moves = (index < d) & (x[jnp.minimum(index, d - 1)] != 0)
        rows = jax.vmap(problem.gram_column)(jnp.minimum(index, d - 1))
        rows = lax.stop_gradient(jnp.where(moves[:, None] & is_shared, rows, 0))
        share_of = lax.stop_gradient(jnp.abs(x))
        H = matmul(rows * share_of[None, :], rows.T)
        return z + share_of * matmul(solve_symmetric(H, jnp.where(moves, asked, 0)), rows)

    def jump(carry, row):
        s, z, x = carry
        face, index, sign, start, next_x, j, side, is_shared = row
        side_of = side.astype(r.dtype)
        image, speed = problem.matvec(z), problem.matvec(x)
        w = jnp.where(side > 0, dual[0, j], dual[-1, j])
        w = w + decay * s - side_of * (s * r[j] - image[j])
        falls = side_of * (r[j] - speed[j]) - decay
        is_jump = (side != 0) & (falls > 0)
        step = jnp.where(is_jump, w / jnp.where(is_jump, falls, 1), 0)
        step = jnp.where(side != 0, step, end - s)
        s, z = s + step, z + step * x
        # Several may have come to 0 together: then all of them tell what z is, not only the one
        # that tells the time.
        at = jnp.minimum(index, d - 1)
        target = s * r[at] - (start + decay * s) * sign
        if prior is not None and segments.selection is not None:
            asked = target - problem.matvec(z)[at]
            keep = lambda _, z, *rest: z
            z = cond(any_lane(is_shared), share, keep, is_shared, z, index, asked, next_x)
        rests = z.at[index].set(0, mode="drop")
        rhs = target - problem.matvec(rests)[at]
        on_face = rests.at[index].set(face.solve(rhs), mode="drop")
        z = jnp.where(is_jump, on_face, z)
        return (s, z, next_x), (s, z)

    # Rows that are not filled count as nothing, also to derivatives.
    end = jnp.where(jnp.isfinite(s_max), s_max, 0)
    assert segments.opening is not None
    j = jnp.minimum(segments.opening, d - 1)
    rows = faces, index, sign, start, plateaus, j, segments.opening_sign, is_shared
    zeros = jnp.zeros_like(r)
    _, (s, z) = scan(jump, (jnp.zeros_like(s_max), zeros, zeros), rows)
    return s, z, plateaus


def _selected(
    plateaus: Float[Array, "K d"],
    is_selected: Bool[Array, " K"],
    selection: Selection,
    problem: AbstractProblem,
    prior: Prior,
) -> Float[Array, "K d"]:
    """The plateaus, where the loss alone does not tell them."""

    # Its `k × d` intermediates are not stored for each plateau.
    @jax.checkpoint
    def at(problem, prior, row):
        return plateau(problem, prior, row.free, row.basis, row.theta)

    def some(plateaus, problem, prior):
        chosen = lax.map(lambda row: at(problem, prior, row), selection)
        return jnp.where(is_selected[:, None], chosen, plateaus)

    is_any = any_lane(jnp.any(is_selected))
    return cond(is_any, some, lambda plateaus, *_: plateaus, plateaus, problem, prior)
