"""`limit_flow`, the limit `ε → 0` of gradient flow: arguments, and the program around the process.

`process.py` follows the process of jumps, `minimizer.py` chooses among several minimisers, and
`derivatives.py` differentiates what they return.
"""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .._active_set.derivatives import limit_on_segments
from .._active_set.transform import event_driven
from .._checks import as_count, as_float, check_scalar, is_concrete
from .._path import LimitFlow
from .._problem import (
    AbstractProblem,
    Schedule,
    check_known_loss,
    default_events,
    is_decay,
    validity,
)
from .._results import RESULTS, first_failure, is_known_to_succeed, raise_on_failure
from ..networks import AbstractDualNetwork, AbstractNetwork
from ..networks.base import harmless_network, matched, shape_of, takes
from ..networks.pretrained import Pretrained, as_start
from .generalized import follow_rows
from .phases import follow_phases
from .process import follow


@eqx.filter_jit
def _limit(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    s_max: Array,
    max_knots: int,
    chooses: bool,
) -> LimitFlow:
    dtype, decay = problem.r.dtype, problem.weight_decay
    # Known under `jit` too: some networks have a start for `ε → 0` only.
    with jax.ensure_compile_time_eval():
        limit = jnp.asarray(-jnp.inf, dtype)
    is_taken, is_shaped = takes(network, decay) & is_decay(decay), shape_of(network, limit)
    refused = first_failure(is_shaped, (is_taken, RESULTS.invalid_decay))
    # Derivatives of a refused start would be NaN, also in lanes that the caller masks out: it is
    # replaced by a harmless one.
    network = harmless_network(network, is_shaped == RESULTS.successful)
    initial_dual, prior = network.initial_dual(limit), network._prior(dtype)
    # A refused lane ends at once in the process, which asks for a finite `initial_dual`.
    initial_dual = jnp.where(refused == RESULTS.successful, initial_dual, jnp.nan)

    def solve(problem: AbstractProblem, initial_dual: Array, s_max: Array) -> LimitFlow:
        process = follow if problem.glm() is None else follow_rows
        run = ft.partial(process, positive=network.positive, max_knots=max_knots, chooses=chooses)
        path = event_driven(run, limit_on_segments, problem)(problem, initial_dual, s_max, prior)
        # The process knows no cause for NaN in `initial_dual`: that of the refusal comes first.
        result = first_failure(validity(problem), refused, path.result)
        return eqx.tree_at(lambda path: path.result, path, result)

    if isinstance(decay, Schedule):
        return follow_phases(problem, decay, initial_dual, s_max, solve)
    return solve(problem, initial_dual, s_max)


def limit_flow(
    network: AbstractNetwork,
    problem: AbstractProblem,
    s_max: ArrayLike = jnp.inf,
    *,
    start: ArrayLike | None = None,
    max_knots: int | None = None,
    throw: bool = True,
) -> LimitFlow:
    """The exact limit of `gradient_flow` as `ε → 0`: a saddle-to-saddle process, in which the
    network rests on plateaus and coordinates activate and deactivate in jumps between them.

    The scaled dual variable `w ≥ 0` moves at `dw/ds = λ ∓ (r − Mx)`. The plateau `x` minimises
    `ℓ(x) + λ‖x‖₁` over the `x` that are supported on the coordinates with `w = 0`, with their
    signs. The next jump is where the first `w` reaches 0. (For another loss than the square,
    `∇ℓ(x)` is in place of `Mx − r`.)

    Where data separate (`Logistic`, `Exponential`), the process ends at the first set of active
    coordinates that separates them, or some rows while the others do not see the direction: there
    the loss has no minimiser, and `x` jumps to infinity. This is the last jump, `limit.face` has
    the signs of these coordinates, and the limit is NaN beyond. With more coordinates than rows,
    this is almost always so. (So it is for rows of `Poisson` with the count 0.)

    Differentiable in both modes, jumps included, on the active sets found:

    - at a jump, derivatives are those of the plateau that follows;
    - where several coordinates jump at once, the derivative of the time is that of one of them, and
        linearly dependent columns divide the change of `z` in proportion to the plateau;
    - (for other losses than the square, after such a jump those of `z` hold for changes of the data
        that keep these coordinates together);
    - where linearly dependent columns are active together, derivatives hold for changes of the data
        that leave them dependent;
    - a coordinate that rests at `x = 0` with `w = 0` (±1 designs) is held there, with derivative 0.
        If `λ > 0` releases it, that is not the derivative in `λ` at `λ = 0`.

    **Arguments:**

    - `network`: `UV`, `USquared` or another `AbstractDualNetwork` of `d` coordinates. Only the
        limit of its `w(0)` counts, which at depth 2 is 1 whatever the shape; and the shape itself
        where several `x` minimise the loss.
    - `problem`: a `LeastSquares`, `Quadratic` or `GeneralizedLinear` problem, such as `Logistic`,
        with its weight decay `λ`. Where that is a `Schedule`, its breakpoints are jumps too, if `x`
        is not 0 there.
    - `s_max`: where to stop, in rescaled time, a scalar `> 0`. By default the process runs to its
        end.
    - `start`: short for the network `Pretrained(network, start)`: a linear model `x₀`, shape
        `(d,)`, from which the network is fine-tuned, the end of an earlier training from a small
        initialisation. At depth 2, `w(0) = 1 ∓ sign x₀`; in
        general, where `x₀ ≠ 0`, `w(0)` is 0 for its sign, and the sum over both signs is as without
        `start`. The first jump is at `s = 0`, to the minimiser over all `x` that are 0 where `x₀`
        is, and elsewhere 0 or of its sign. Only the signs of `x₀` count, unless there are several
        minimisers, as with more non-zeros in `x₀` than rows.
    - `max_knots`: static size of the buffers, default `4 min(n, d) + 16`. The end at `s_max`
        counts as a knot. With a `Schedule` each of its phases has so many. (30 000 Gaussian
        problems up to 20 × 40 had at most `2 min(n, d)` jumps.)
    - `throw`: raise if the process was cut short or is inaccurate. Under tracing nothing is raised:
        failed lanes are NaN, with their `result`. With `throw=False` they keep what was found.

    **Returns:** a `LimitFlow`, a `PiecewiseLinearPath` in `p = s`. It is NaN beyond `s_max`, and
    beyond its last knot if `max_knots` was too small. Where linearly dependent columns are active
    together (duplicates, ±1 designs) several `x` minimise the loss, and the plateau is the one that
    the flow tends to: at depth 2 the one with the least `Σ |xᵢ|(log(|xᵢ|/sᵢ) − 1)`, where `sᵢ` is
    `|x₀ᵢ|`, or the square of the shape if `x₀ᵢ = 0`; at `D > 2` the one with the largest
    `Σ |xᵢ|^{2/D}` (with the Bregman divergence from `|x₀ᵢ|` in place of its terms with `x₀ᵢ ≠ 0`).
    If the precision does not decide it, or the network has no `growth`, the result is
    `limit_undetermined`.

    **Raises:** `TypeError` if the network has no dual form; `ValueError` for mismatched shapes,
    `s_max ≤ 0` or NaN, a `start` that is not finite, or negative for a network with `x ≥ 0`, or a
    bad `max_knots`.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), problem)
        limit.jumps[:2]  # (0.5, 1)
        limit.plateau(0.7)  # (2, 0)
        limit.x_mean(1.0)  # (1, 0), the lasso at μ = 1

        X = jnp.array([[4.0, 1.0], [-1.0, 1.0]])
        limit = dln.limit_flow(dln.UV(jnp.ones(2), jnp.zeros(2)), dln.Logistic(X, jnp.ones(2)))
        limit.jumps[:2]  # (0.667, 1.107): the second jump is to infinity
        limit.face  # (1, 1): with the second coordinate the data separate
        ```

    !!! cite "Reference"

        [B25] §4.1, arXiv 2509.18766; [PF23] Algorithm 1, arXiv 2304.00488.
    """
    check_known_loss(problem, any_decay=True)
    if not isinstance(network, AbstractDualNetwork):
        raise TypeError(
            f"The limit process needs the dual variable of an `AbstractDualNetwork`, which "
            f"{type(network).__name__} does not have. Follow it at a small ε with "
            "`gradient_flow(..., formulation=WeightForm())`."
        )
    dtype = problem.r.dtype
    network = matched(network, problem)
    network._check_limit()
    s_max = as_float(s_max, "s_max", dtype)
    check_scalar(s_max, "s_max")
    if is_concrete(s_max) and not float(s_max) > 0:
        raise ValueError(
            f"`s_max` must be positive, got {float(s_max)}. Leave it out to follow the process "
            "to its end."
        )
    if start is not None:
        network = Pretrained(network, as_start(start, "start", network))
    if max_knots is None:
        max_knots = default_events(problem)
    max_knots = as_count(max_knots, "max_knots")
    args = network, problem, s_max, max_knots
    # Few problems have several minimisers, and the choice is more than half of the program. Where
    # values are known it is compiled for those alone that end as `limit_undetermined` without it.
    # (A failure of another kind may come before, and hide that.)
    path = _limit(*args, False) if is_concrete(*jax.tree.leaves(args)) else None
    if path is None or not is_known_to_succeed(path.result):
        path = _limit(*args, True)
    return raise_on_failure(path, path.result, throw, kept=("knots", "values", "slopes", "norms"))
