"""Derivatives of the lasso, its path and the limit process, from their active sets.

Between two events the active set `A` and its signs `σ` are fixed, and all is the solution of a
linear system:

    lasso at μ       M_AA x_A = (r − κσ)_A,   κ = λ + ω/μ   (with another loss: `_on_curved_face`)
    lasso path       z_A = μu − w,   M_AA u = (r − λσ)_A,   M_AA w = (ωσ)_A
    limit process    (Mz)_A = (sr − (w(0) + λs)σ)_A,   (Mx)_A = (r − λσ)_A

Of another loss than the square, the plateau `x` is the root of `∇ℓ(x)_A = −λσ`, and `z` the sum of
the plateaus times their durations.

The solvers find the events without derivatives and return the active sets (`Segments`). Where
derivatives are asked for, these systems are solved again, as differentiable functions of the data:
in both modes and of every order, in `O(k³)` time and one `k × k` block a segment.

At a knot the derivatives are those of the segment that follows. Where several coordinates bind at
one knot, the derivative of its position is a mean over them on the lasso path, and that of one of
them in the limit process. Derivatives of `z` and `x` do not depend on this choice wherever `z` and
`x` are differentiable.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._batching import any_lane
from .._derivatives import held
from .._linalg import matmul
from .._loops import cond, scan
from .._problem import AbstractProblem
from ..networks.prior import Prior
from .convex import on_face, square_at
from .face import Face
from .minimizer import Selection, plateau
from .projection import solve_symmetric
from .state import scatter


class Segments(eqx.Module):
    """The active set on each segment, one row a knot.

    The fields with a default belong to the limit process.
    """

    index: Int[Array, "K k"]  # d in empty slots
    sign: Int[Array, "K k"]  # 0 in empty slots
    opening: Int[Array, " K"] | None = None  # the coordinate whose jump opens the segment
    opening_sign: Int[Array, " K"] | None = None  # 0 if the segment was cut at `s_max`
    selection: Selection | None = None  # which minimiser, where several exist
    # Of a loss that is not the square, for which it is no solution of a linear system.
    plateau: Float[Array, "K d"] | None = None


def lasso_on_face(
    x: Float[Array, " d"], problem: AbstractProblem, mu: Float[Array, ""], weights: Array
) -> Float[Array, " d"]:
    """The lasso at `μ` with the support and the signs of `x`, shape `(d,)`."""
    d = problem.r.shape[0]
    index = jnp.nonzero(x, size=problem.rank_bound, fill_value=d)[0].astype(jnp.int32)
    # Weights of ∞ belong to entries that are 0: selected by sign first, they never enter a sum.
    omega = jnp.where(x > 0, weights[0], jnp.where(x < 0, weights[1], 0))
    kappa = problem.weight_decay + omega / mu
    if problem.glm() is not None:
        return _on_curved_face(held(x), index, problem, kappa)
    rhs = (problem.r - kappa * jnp.sign(x))[jnp.minimum(index, d - 1)]
    return scatter(index, Face(problem, index).solve(rhs), d)


@eqx.filter_custom_jvp
def _on_curved_face(
    x: Float[Array, " d"], index: Int[Array, " k"], problem: AbstractProblem, kappa: Array
) -> Float[Array, " d"]:
    """`x`, which solves `(∇ℓ(x) + κσ)_A = 0`, with its derivatives in `problem` and `κ`.

    The rule calls the function itself, and so has derivatives of every order."""
    return x


@_on_curved_face.def_jvp
def _(primals, tangents):
    _, index, problem, kappa = primals
    x = _on_curved_face(*primals)
    d = x.shape[0]

    def residual(problem, kappa):
        return (problem.gradient(x) + kappa * jnp.sign(x))[jnp.minimum(index, d - 1)]

    value, change = eqx.filter_jvp(residual, primals[2:], tangents[2:])
    change = jnp.zeros_like(value) if change is None else change
    # The Hessian on A is that of least squares with the rows √f″ aᵢ.
    X, y, loss = problem.glm()
    curvature = loss.curvature(matmul(X, x), y)
    some = curvature > 0
    root = jnp.where(some, jnp.sqrt(jnp.where(some, curvature, 1)), 0)
    local = eqx.tree_at(lambda problem: problem.X, problem, root[:, None] * X)
    # JAX transposes an `add`, which this linear map must allow, but not the `set` of `scatter`.
    return x, jnp.zeros_like(x).at[index].add(-Face(local, index).solve(change), mode="drop")


def path_on_segments(
    segments: Segments, problem: AbstractProblem, weights: Float[Array, "2 d"]
) -> tuple[Array, Array, Array]:
    """Knots, values and slopes of the lasso path, from `z = μu − w` on each segment.

    At a knot both of its segments have the same `z`: `μ(u − u') = w − w'`, with `'` for the segment
    before. `μ` follows from these equations, multiplied by `w − w'` and summed.
    """
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
    # ⟨du, dw⟩ is 0 only where w does not change: at the knot μ = 0 of unpenalised coordinates, and
    # in rows that are not filled.
    size = jnp.sum(du * dw, axis=1)
    moves = size != 0
    knots = jnp.where(moves, jnp.sum(dw**2, axis=1) / jnp.where(moves, size, 1), 0)
    return knots, knots[:, None] * u - w, u


def limit_on_segments(
    segments: Segments,
    problem: AbstractProblem,
    initial_dual: Float[Array, "signs d"],
    s_max: Float[Array, ""],
    prior: Prior | None,
) -> tuple[Array, Array, Array]:
    """Jumps, values and plateaus of the limit process.

    A segment opens when `w` of one coordinate reaches 0, or at `s_max` where the process was cut.
    On its active set `w = 0`, which determines `z` there, and `x` by the derivative in `s`; the
    other entries of `z` are constant. `initial_dual` is `w(0)`, shape `(1, d)` or `(2, d)`.
    """
    r, decay = problem.r, problem.weight_decay
    d = r.shape[0]
    index, sign = segments.index, segments.sign.astype(r.dtype)
    at = jnp.minimum(index, d - 1)
    faces = jax.vmap(lambda index: Face(problem, index))(index)
    start = jnp.where(sign > 0, initial_dual[0][at], initial_dual[-1][at])
    is_square = segments.plateau is None
    if is_square:
        plateaus = scatter(index, jax.vmap(Face.solve)(faces, r[at] - decay * sign), d)
    else:
        minimiser = lambda x, index, sign: on_face(x, index, sign, problem)
        plateaus = jax.vmap(minimiser)(segments.plateau, index, segments.sign)
    is_shared = jnp.zeros(index.shape[0], bool)
    if prior is not None and segments.selection is not None:
        is_shared = jnp.any(segments.selection.free, axis=(1, 2))
        plateaus = _selected(plateaus, is_shared, segments.selection, problem, prior)

    def share(is_shared, z, index, asked, x):
        """`z` changed so that `Mz` changes by `asked` on the moving coordinates.

        After a tie among dependent columns, `w = 0` determines `Mz` but not `z`. The change is
        divided in proportion to `|x|` of the plateau that opens. That is exact for columns that are
        equal up to sign and length, whose entries keep a constant ratio. The proportions count as
        constant.
        """
        moves = (index < d) & (x[jnp.minimum(index, d - 1)] != 0)
        rows = jax.vmap(problem.gram_column)(jnp.minimum(index, d - 1))
        rows = lax.stop_gradient(jnp.where(moves[:, None] & is_shared, rows, 0))
        share_of = lax.stop_gradient(jnp.abs(x))
        H = matmul(rows * share_of[None, :], rows.T)
        return z + share_of * matmul(solve_symmetric(H, jnp.where(moves, asked, 0)), rows)

    def jump(carry, row):
        s, z, x, dual = carry
        face, index, sign, start, next_x, j, side, is_shared = row
        side_of = side.astype(r.dtype)
        force = -problem.gradient(x)
        if is_square:
            dual = s * r - problem.matvec(z)
        w = jnp.where(side > 0, initial_dual[0, j], initial_dual[-1, j])
        w = w + decay * s - side_of * dual[j]
        falls = side_of * force[j] - decay
        is_jump = (side != 0) & (falls > 0)
        step = jnp.where(is_jump, w / jnp.where(is_jump, falls, 1), 0)
        step = jnp.where(side != 0, step, end - s)
        s, z, dual = s + step, z + step * x, dual + step * force
        if not is_square:
            return (s, z, next_x, dual), (s, z)
        # If several w reach 0 together, the time follows from one of them, but z must satisfy the
        # equations w = 0 of all of them: else its derivative would be wrong after a tie.
        at = jnp.minimum(index, d - 1)
        target = s * r[at] - (start + decay * s) * sign
        if prior is not None and segments.selection is not None:
            asked = target - problem.matvec(z)[at]
            keep = lambda _, z, *rest: z
            z = cond(any_lane(is_shared), share, keep, is_shared, z, index, asked, next_x)
        # Coordinates that have just left A keep their z; those on A are solved for.
        rests = z.at[index].set(0, mode="drop")
        rhs = target - problem.matvec(rests)[at]
        on_face = rests.at[index].set(face.solve(rhs), mode="drop")
        z = jnp.where(is_jump, on_face, z)
        return (s, z, next_x, dual), (s, z)

    # Rows that are not filled have no opening coordinate and step to `end`; the caller drops them.
    # Were `end` infinite they would be NaN, and in reverse mode all derivatives with them.
    end = jnp.where(jnp.isfinite(s_max), s_max, 0)
    assert segments.opening is not None
    j = jnp.minimum(segments.opening, d - 1)
    rows = faces, index, sign, start, plateaus, j, segments.opening_sign, is_shared
    zeros = jnp.zeros_like(r)
    _, (s, z) = scan(jump, (jnp.zeros_like(s_max), zeros, zeros, zeros), rows)
    return s, z, plateaus


def _selected(
    plateaus: Float[Array, "K d"],
    is_selected: Bool[Array, " K"],
    selection: Selection,
    problem: AbstractProblem,
    prior: Prior,
) -> Float[Array, "K d"]:
    """`plateaus`, replaced by the selected minimisers where several minimise the loss."""

    # Reverse mode would store `k × d` intermediates for each of the K plateaus.
    @jax.checkpoint
    def at(problem, prior, row, x):
        square = problem if problem.glm() is None else square_at(x, problem)
        return plateau(square, prior, row.free, row.basis, row.theta)

    def some(plateaus, problem, prior):
        chosen = lax.map(lambda row: at(problem, prior, *row), (selection, plateaus))
        return jnp.where(is_selected[:, None], chosen, plateaus)

    # Most problems have no such plateau, and then skip the solves, in a batch too.
    is_any = any_lane(jnp.any(is_selected))
    return cond(is_any, some, lambda plateaus, *_: plateaus, plateaus, problem, prior)
