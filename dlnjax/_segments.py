"""Derivatives of the lasso, its path and the limit process.

Between events the active set is fixed and all is the solution of a linear system. So the events
are found without derivatives, and where derivatives are asked for, what they determine is evaluated
again from the active sets: in both modes and of every order, at `O(k³)` and a `k × k` block a
segment. At a knot, derivatives are those of the segment that follows. Where several coordinates
bind at one knot, that of its time is a mean over them for the lasso path. The limit process takes
it from one of them, and what follows has the derivatives of a process where only that one binds.
"""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._linalg import Cholesky, matmul
from ._path import PiecewiseLinearPath
from ._problem import AbstractProblem

_P = TypeVar("_P", bound=PiecewiseLinearPath)


class Segments(eqx.Module):
    """The active coordinates on each segment, `d` in empty slots, with their signs (0 there); and,
    for the limit process, the coordinate that opened it by its jump, with its sign."""

    index: Int[Array, "K k"]
    sign: Int[Array, "K k"]
    opening: Int[Array, " K"] | None = None
    opening_sign: Int[Array, " K"] | None = None


def differentiable(
    solve: Callable[..., tuple[_P, Segments]],
    evaluate: Callable[..., tuple[Array, Array, Array]],
) -> Callable[..., _P]:
    """`solve(problem, weights, …)`, whose derivatives are those of the knots, values and slopes
    that `evaluate(segments, problem, weights, …)` gives in the first `num_knots` rows."""
    solve_with_rule = eqx.filter_custom_jvp(solve)

    @solve_with_rule.def_jvp
    def _(primals, tangents):
        path, segments = solve_with_rule(*primals)
        rows = jnp.arange(path.knots.shape[0], dtype=jnp.int32)
        rows = jnp.clip(rows, 0, jnp.maximum(path.num_knots - 1, 0))

        def again(problem, weights, *rest):
            parts = evaluate(segments, problem, weights, *rest)
            parts = [jnp.where(path.num_knots > 0, v[rows], 0) for v in parts]
            fields = lambda path: (path.knots, path.values, path.slopes, path.weights)
            weights = jnp.broadcast_to(weights, path.weights.shape)
            return eqx.tree_at(fields, path, (*parts, weights))

        _, change = eqx.filter_jvp(again, primals, tangents)
        return (path, segments), (change, jax.tree.map(lambda _: None, segments))

    return lambda *args: solve_with_rule(*args)[0]


def _spread(index: Array, v: Array, d: int) -> Array:
    """From slots `(K, k)` to coordinates `(K, d)`."""
    rows = jnp.arange(index.shape[0], dtype=index.dtype)[:, None]
    return jnp.zeros((index.shape[0], d), v.dtype).at[rows, index].set(v, mode="drop")


def _on_faces(
    problem: AbstractProblem, index: Int[Array, "K k"], rhs: Float[Array, "K k m"]
) -> Float[Array, "K k m"]:
    """The solutions of `M_AA u = rhs`, 0 in empty slots."""
    d, k = problem.r.shape[0], index.shape[1]

    def one(index, rhs):
        is_empty = index == d
        block = problem.gram_block(jnp.minimum(index, d - 1))
        either = is_empty[:, None] | is_empty[None, :]
        block = jnp.where(either, jnp.eye(k, dtype=rhs.dtype), block)
        rhs = jnp.where(is_empty[:, None], 0, rhs)
        # Dependent columns, active together, must not make it NaN; what the ridge does to the
        # others is taken back by a refinement.
        ridge = jnp.diag(k * jnp.finfo(rhs.dtype).eps * jnp.diagonal(block))
        factor = Cholesky(block + ridge)
        solve = lambda v: jax.vmap(factor.solve, in_axes=1, out_axes=1)(v)
        u = solve(rhs)
        return u + solve(rhs - matmul(block, u))

    return jax.vmap(one)(index, rhs)


def lasso_on_face(
    x: Float[Array, " d"], problem: AbstractProblem, mu: Float[Array, ""], weights: Array
) -> Float[Array, " d"]:
    """The lasso at `μ` with the support and the signs of `x`: `M_AA x_A = (r − κs)_A`."""
    d = problem.r.shape[0]
    index = jnp.nonzero(x, size=problem.rank_bound, fill_value=d)[0][None].astype(jnp.int32)
    kappa = problem.weight_decay + jnp.where(x > 0, weights[0], weights[1]) / mu
    rhs = (problem.r - kappa * jnp.sign(x))[jnp.minimum(index, d - 1)]
    return _spread(index, _on_faces(problem, index, rhs[..., None])[..., 0], d)[0]


def path_on_segments(
    segments: Segments, problem: AbstractProblem, weights: Float[Array, "2 d"]
) -> tuple[Array, Array, Array]:
    """Knots, values and slopes of the lasso path: `z = μu − w` with `M_AA u = (r − λs)_A` and
    `M_AA w = (ωs)_A`. At a knot both segments have the same `z`."""
    r, index = problem.r, segments.index
    d = r.shape[0]
    sign = segments.sign.astype(r.dtype)
    at = jnp.minimum(index, d - 1)
    omega = jnp.where(sign > 0, weights[0][at], weights[1][at])
    rhs = jnp.stack([r[at] - problem.weight_decay * sign, omega * sign], axis=-1)
    solution = _on_faces(problem, index, rhs)
    u, w = _spread(index, solution[..., 0], d), _spread(index, solution[..., 1], d)
    before = lambda v: jnp.concatenate([jnp.zeros_like(v[:1]), v[:-1]])
    du, dw = u - before(u), w - before(w)
    # μ du = dw.
    size = jnp.sum(du * dw, axis=1)
    moves = size != 0
    knots = jnp.where(moves, jnp.sum(dw**2, axis=1) / jnp.where(moves, size, 1), 1)
    return knots, knots[:, None] * u - w, u


def limit_on_segments(
    segments: Segments,
    problem: AbstractProblem,
    dual: Float[Array, "signs d"],
    s_max: Float[Array, ""],
) -> tuple[Array, Array, Array]:
    """Jumps, values and plateaus of the limit process: `M_AA x = (r − λs)_A`, and `w` of the
    coordinate that opens a segment has come to 0. (Where none does, it was cut at `s_max`.)"""
    r, decay = problem.r, problem.weight_decay
    d = r.shape[0]
    sign = segments.sign.astype(r.dtype)
    at = jnp.minimum(segments.index, d - 1)
    plateaus = _on_faces(problem, segments.index, (r[at] - decay * sign)[..., None])[..., 0]
    plateaus = _spread(segments.index, plateaus, d)
    images = problem.matvec(plateaus)

    def jump(carry, row):
        s, z, image, x, speed = carry
        next_x, next_speed, j, side = row
        side_of = side.astype(r.dtype)
        start = jnp.where(side > 0, dual[0, j], dual[-1, j])
        w = start + decay * s - side_of * (s * r[j] - image[j])
        falls = side_of * (r[j] - speed[j]) - decay
        is_jump = (side != 0) & (falls > 0)
        step = jnp.where(is_jump, w / jnp.where(is_jump, falls, 1), 0)
        step = jnp.where(side != 0, step, end - s)
        s, z, image = s + step, z + step * x, image + step * speed
        return (s, z, image, next_x, next_speed), (s, z)

    # Rows that are not filled count as nothing, also to derivatives.
    end = jnp.where(jnp.isfinite(s_max), s_max, 0)
    zeros = jnp.zeros_like(r)
    assert segments.opening is not None
    rows = plateaus, images, jnp.minimum(segments.opening, d - 1), segments.opening_sign
    _, (s, z) = lax.scan(jump, (jnp.zeros_like(s_max), zeros, zeros, zeros, zeros), rows)
    return s, z, plateaus
