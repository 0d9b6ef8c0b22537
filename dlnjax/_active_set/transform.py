"""The transformations around an event-driven solver, as one stack. From the outside in:

    differentiable    derivatives of the result, from the active sets that the solver found
      in chunks       under `vmap` on a CPU, as many lanes at a time as fit into the caches
        jit           one trace, however many chunks there are
          follow      the solver itself, a loop of pivots (`pivot_until_done` in `state.py`)

The order matters: the rule of derivatives is outermost, so that the loop below is never
differentiated; chunks are made outside of `jit`, so that all of them share one program.
"""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._batching import in_chunks
from .._path import PiecewiseLinearPath
from .._problem import AbstractProblem
from .._results import has_no_nan, one_unless
from .choice import numbers_of
from .derivatives import Segments

_P = TypeVar("_P", bound=PiecewiseLinearPath)


def event_driven(
    follow: Callable[..., tuple[_P, Segments]],
    evaluate: Callable[..., tuple[Array, Array, Array]],
    problem: AbstractProblem,
) -> Callable[..., _P]:
    """The function `(problem, weights, …) -> path`: `follow` inside the whole stack.

    `follow(problem, weights, …)` returns the path and the `Segments` that determine it.
    `evaluate(segments, problem, weights, …)` returns knots, values and slopes as differentiable
    functions of the data. `problem` is only read for its sizes.
    """
    # An estimate of the numbers that the loop of one lane reads and writes at each event: the
    # problem and the matrices of the active set; 24 vectors of length d stand for the rest.
    numbers = sum(leaf.size for leaf in jax.tree.leaves(problem)) + 24 * problem.r.shape[0]
    numbers += numbers_of(problem, problem.rank_bound)
    in_cache = in_chunks(jax.jit(follow), numbers * problem.r.dtype.itemsize)
    return _differentiable(in_cache, evaluate)


def _differentiable(
    solve: Callable[..., tuple[_P, Segments]],
    evaluate: Callable[..., tuple[Array, Array, Array]],
) -> Callable[..., _P]:
    """`solve(problem, weights, …)` with the derivatives of `evaluate(segments, …)`, of which the
    first `num_knots` rows count."""
    solve_with_rule = eqx.filter_custom_jvp(solve)

    @solve_with_rule.def_jvp
    def _(primals, tangents):
        path, segments = solve_with_rule(*primals)
        # Padding repeats the last knot, here as in the path.
        rows = jnp.arange(path.knots.shape[0], dtype=jnp.int32)
        rows = jnp.clip(rows, 0, jnp.maximum(path.num_knots - 1, 0))

        def again(problem, weights, *rest):
            # The derivative of NaN is NaN, even where the caller masks the lane out afterwards.
            # Invalid lanes are evaluated at harmless data instead, and the derivatives of entries
            # that are NaN in the path are 0.
            is_valid = has_no_nan(path.knots)
            parts = evaluate(segments, *one_unless(is_valid, (problem, weights, *rest)))
            parts = [jnp.where(path.num_knots > 0, v[rows], 0) for v in parts]
            known = path.knots, path.values, path.slopes
            parts = [jnp.where(jnp.isnan(v), 0, part) for v, part in zip(known, parts, strict=True)]
            fields = lambda path: (path.knots, path.values, path.slopes, path.weights)
            # The path stores `(2, d)` weights, also for one sign.
            weights = jnp.broadcast_to(weights, path.weights.shape)
            return eqx.tree_at(fields, path, (*parts, weights))

        _, change = eqx.filter_jvp(again, primals, tangents)
        return (path, segments), (change, jax.tree.map(lambda _: None, segments))

    return lambda *args: solve_with_rule(*args)[0]
