"""`limit_flow`: the limit `ε → 0` of gradient flow, a process of jumps (`process.py`)."""

import functools as ft

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .._active_set.derivatives import limit_on_segments
from .._active_set.selection import Prior, prior_of
from .._active_set.transform import event_driven
from .._checks import as_count, as_float, check_scalar, is_concrete
from .._path import LimitFlow
from .._problem import AbstractProblem, check_quadratic, validity
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractDualNetwork, AbstractNetwork
from ..networks.base import (
    dual_from,
    harmless_network,
    matched,
    takes,
)
from .process import follow


@eqx.filter_jit
def _limit(
    problem: AbstractProblem,
    dual: Array,
    s_max: Array,
    prior: Prior | None,
    refused: RESULTS,
    positive: bool,
    max_knots: int,
) -> LimitFlow:
    run = ft.partial(follow, positive=positive, max_knots=max_knots)
    solve = event_driven(run, limit_on_segments, problem)
    limit = solve(problem, dual, s_max, prior)
    # What was refused is NaN in `dual`, which does not say why.
    result = first_failure(validity(problem), refused, limit.result)
    return eqx.tree_at(lambda limit: limit.result, limit, result)


def limit_flow(
    network: AbstractNetwork,
    problem: AbstractProblem,
    s_max: ArrayLike = jnp.inf,
    *,
    start: ArrayLike | None = None,
    max_knots: int | None = None,
    throw: bool = True,
) -> LimitFlow:
    """The limit of `gradient_flow` as `ε → 0`, exactly: the network rests on plateaus, between
    jumps at which coordinates activate and deactivate.

    Differentiable in both modes, jumps included. At a jump, derivatives are those of the plateau
    that follows; where several coordinates jump at once, that of its time is that of one of them,
    and columns that depend on each other, and jump together, share `z` as the plateau does.
    A coordinate that rests at 0 exactly although its `w` is 0 (±1 designs) is held there; `λ > 0`
    may release it, so that the derivative in `λ`, at `λ = 0`, is another. Where columns that are
    active together depend on each other, derivatives are for changes that leave them dependent.

    **Arguments:**

    - `network`: `UV`, `USquared` or another `AbstractDualNetwork`. The limit of its `w(0)` matters,
        which at depth 2 is 1, whatever the shape; and the shape itself only where `x` is one of
        several minimisers.
    - `problem`: a `LeastSquares` or `Quadratic` problem, weight decay included.
    - `s_max`: where to stop, in rescaled time, `> 0`. By default the process runs to its end.
    - `start`: fine-tuning from a linear model `x₀`, shape `(d,)`, that the network learned from
        a small initialisation. `w(0) = 1 ∓ sign x₀` at depth 2; in general, where `x₀` is not 0,
        `w(0) = 0` for its sign and the sum over both signs is as without `start`. The first jump
        is at `s = 0`, to the minimiser among `x` that are 0 where `x₀` is and have its signs
        elsewhere (or are 0). So only the signs matter, unless there are several, as with more
        non-zeros in `x₀` than rows: then sizes do.
    - `max_knots`: static size of the buffers, default `4 min(n, d) + 16`. The end at `s_max`
        counts as a knot.
    - `throw`: raise if the process is cut short or inaccurate. Under tracing nothing is raised:
        failed lanes are NaN, with their `result`. With `throw=False` they keep what they have.

    **Returns:** a `LimitFlow`, a `PiecewiseLinearPath` in `p = s`. It is NaN beyond `s_max`, and
    beyond its last knot if it ran out of them. Where columns that are active together depend on
    each other (duplicates, ±1 designs), `x` is that minimiser which the flow tends to: at depth 2
    that of `Σ |xᵢ|(log |xᵢ|/sᵢ − 1)`, with `sᵢ = |x₀ᵢ|`, or the square of the shape where the
    coordinate started at 0; at `D > 2` that with the largest `Σ |xᵢ|^{2/D}` (of the Bregman
    divergence from `|x₀ᵢ|` where it started there). Where the dtype, or a network without `growth`,
    does not tell it, the result is `limit_undetermined`.

    **Raises:** `TypeError` if the network has no dual form; `ValueError` for mismatched shapes,
    `s_max ≤ 0` or NaN, a `start` that is not finite, or negative for a network with `x ≥ 0`, or a
    bad `max_knots`.

    !!! cite "Reference"

        [B25] §4.1, arXiv 2509.18766; [PF23] Algorithm 1, arXiv 2304.00488.
    """
    check_quadratic(problem)
    if not isinstance(network, AbstractDualNetwork):
        raise TypeError(
            f"The limit process needs the dual variable of an `AbstractDualNetwork`, which "
            f"{type(network).__name__} does not have. Follow it at a small ε with "
            "`gradient_flow(..., formulation=WeightForm())`."
        )
    dtype = problem.r.dtype
    network = matched(network, problem)
    s_max = as_float(s_max, "s_max", dtype)
    check_scalar(s_max, "s_max")
    if is_concrete(s_max) and not float(s_max) > 0:
        raise ValueError(
            f"`s_max` must be positive, got {float(s_max)}. Leave it out to follow the process "
            "to its end."
        )
    dual = network.initial_dual(jnp.asarray(-jnp.inf, dtype))
    is_taken = takes(network, problem.weight_decay)
    has_dual = jnp.all(jnp.isfinite(dual))
    refused = first_failure((has_dual, RESULTS.invalid_shape), (is_taken, RESULTS.invalid_decay))
    # Of a shape that is refused the derivatives would be NaN.
    network = harmless_network(network, has_dual)
    dual = network.initial_dual(jnp.asarray(-jnp.inf, dtype))
    alone = dual
    if start is not None:
        dual = dual_from(dual, start, network.positive)
        has_start = jnp.all(jnp.isfinite(dual))
        refused = first_failure(refused, (has_start, RESULTS.invalid_start))
        # Nor has one that is refused any.
        start = jnp.where(has_start, start, 0)
    prior = prior_of(network, alone, start)
    dual = jnp.where(is_taken & has_dual, dual, jnp.nan)
    if max_knots is None:
        max_knots = 4 * problem.rank_bound + 16
    max_knots = as_count(max_knots, "max_knots")
    limit = _limit(problem, dual, s_max, prior, refused, network.positive, max_knots)
    return raise_on_failure(limit, limit.result, throw, kept=("knots", "values", "slopes", "norms"))
