"""What is around an event-driven solver, from the outside in:

differentiable    derivatives of what it returns, from the active sets that it found
  in chunks       under `vmap` on a CPU: as many lanes at a time as its caches hold
    jit           traced once, however many chunks there are
      follow      the solver itself: `pivot_until_done` (`state.py`)
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
from .derivatives import Segments

_P = TypeVar("_P", bound=PiecewiseLinearPath)


def event_driven(
    follow: Callable[..., tuple[_P, Segments]],
    evaluate: Callable[..., tuple[Array, Array, Array]],
    problem: AbstractProblem,
) -> Callable[..., _P]:
    """The function `(problem, weights, …) -> path` with all of the above around `follow`.
    `evaluate(segments, problem, weights, …)` gives knots, values and slopes."""
    k, d = problem.rank_bound, problem.r.shape[0]
    numbers = sum(leaf.size for leaf in jax.tree.leaves(problem)) + k * d + k * k + 24 * d
    in_cache = in_chunks(jax.jit(follow), numbers * problem.r.dtype.itemsize)
    return _differentiable(in_cache, evaluate)


def _differentiable(
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
            # An invalid lane, where all is NaN, has no derivatives; nor has what is unknown.
            is_valid = has_no_nan(path.knots)
            parts = evaluate(segments, *one_unless(is_valid, (problem, weights, *rest)))
            parts = [jnp.where(path.num_knots > 0, v[rows], 0) for v in parts]
            known = path.knots, path.values, path.slopes
            parts = [jnp.where(jnp.isnan(v), 0, part) for v, part in zip(known, parts, strict=True)]
            fields = lambda path: (path.knots, path.values, path.slopes, path.weights)
            weights = jnp.broadcast_to(weights, path.weights.shape)
            return eqx.tree_at(fields, path, (*parts, weights))

        _, change = eqx.filter_jvp(again, primals, tangents)
        return (path, segments), (change, jax.tree.map(lambda _: None, segments))

    return lambda *args: solve_with_rule(*args)[0]
