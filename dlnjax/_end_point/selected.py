"""The end point without weight decay, at depth 2 and above: of all minimisers of the loss, the one
that the initialisation selects, or in the limit `ε → 0` the one that small ones do.

First find which `q` may be positive, then solve the equations on these (`newton.py`).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._derivatives import held
from .._lasso.basis_pursuit import faces, is_seen, minimum_norm
from .._lasso.path import lasso_path
from .._problem import AbstractProblem, without_decay
from .._problem.solution_space import SolutionSpace
from .._results import RESULTS, first_failure
from ..networks import AbstractDualNetwork
from .derivatives import differentiable_end
from .newton import Newton, position
from .point import EndPoint, rounding
from .sensitivity import sensitivity, sensitivity_to_data


def selected_end(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    log_eps: Array | None,
    rtol: Array,
    max_steps: Array,
    total: Array | None,
) -> EndPoint:
    """The minimiser of the network's potential over the minimisers of the loss; `log_eps` is None
    in the limit `ε → 0`. `total` is the decay `Λ` of a `Schedule` that ends in 0."""
    problem = without_decay(problem)
    fixed = held(problem)
    size, point = problem.r.shape, None
    initial_dual = network.initial_dual(jnp.full_like(rtol, -jnp.inf))
    # After a total decay `Λ` the flow without decay is that from `w(0) + Λ`, `q(0) ε^Λ`.
    if total is not None:
        initial_dual = initial_dual + total
    start_after = lambda growth, log_eps: (
        growth
        if total is None
        else eqx.tree_at(lambda g: g.log_initial, growth, growth.log_initial + total * log_eps)
    )
    if log_eps is None:
        # On the face of minimum norm the potentials of all `ε` differ by a multiple of that norm,
        # a constant: `log ε = −1` has the same minimiser.
        growth = start_after(network._growth_of_prior(rtol.dtype), -1)
        weights = jnp.broadcast_to(initial_dual, (2, *size))
        # Mostly `w(0) > 0`, but traced values do not say so, and zeros need more code.
        may_be_zero = network._may_start_active()
        minimum = minimum_norm(problem, weights, network.positive, None, may_be_zero)
        is_allowed = faces(held(minimum.dual), held(weights), network.positive)
        certificate, result, point = minimum.dual, minimum.result, held(minimum.x)
    else:
        growth = start_after(network.growth(log_eps), log_eps)
        certificate, result = None, RESULTS.successful
        is_allowed = jnp.ones((1 if network.positive else 2, *size), bool)
        if network.positive:
            # Complementarity: a minimiser over `x ≥ 0` is positive only where its residual is 0,
            # and all minimisers have the same residual. The positive lasso path ends at one.
            path = lasso_path(fixed, positive=True, throw=False)
            point, result = path.slopes[-1], path.result
            rest = fixed.r - fixed.matvec(point)
            is_allowed = ~(rest < -rounding(fixed))[None, :]

    is_free = jnp.any(is_allowed, axis=0)
    # In the limit `ε` is free: begin, and end, with `q(0)` of the size of the solution.
    from_size = log_eps is None
    if point is not None:
        # A path that failed is NaN: `result` says so, and Newton's method needs numbers.
        point = jnp.where(jnp.isfinite(point), point, 0)
    solutions = SolutionSpace(fixed, is_free, point if network.positive else None)
    newton = Newton(held(growth), solutions, is_allowed, held(initial_dual), point, from_size)
    state = newton.solve(rtol, max_steps)
    moved = sensitivity(newton, state)
    if from_size:
        # Where the face has several minimisers, whether a nearly dependent column belongs to it is
        # a decision up to rounding, and all of x hangs on that. (At one `ε` all columns are in.)
        has_choice = solutions.rank() < jnp.sum(is_free)
        digits = jnp.where(has_choice, sensitivity_to_data(newton, state), 0)
        moved = jnp.maximum(moved, digits)
    x, dual = differentiable_end(newton, state, growth, problem)
    if log_eps is not None:
        # A column of zeros keeps its start, for which Newton's method does not wait.
        start = growth.log_initial
        _, kept = position(start, jnp.zeros_like(start), start)
        x = jnp.where(problem.gram_diagonal() > 0, x, kept)
    dual = jnp.where(is_free, dual, -jnp.inf) if certificate is None else certificate

    # Newton's residual covers the allowed coordinates only. If moving another one still lowers the
    # loss, it should have been allowed, and the face was wrong.
    rest = fixed.r - fixed.matvec(held(x))
    rest = rest if network.positive else jnp.abs(rest)
    is_minimal = jnp.all(is_free | (rest <= rounding(fixed)))
    if from_size:
        # Where `y` is orthogonal to `X` the limit is 0, unless the start is of the size of `x`;
        # what was solved is of the initialisation, as it is where the face has no part of `y`.
        stays = is_allowed & (initial_dual == 0)
        is_zero, is_empty = ~is_seen(fixed), jnp.any(is_free) & ~(solutions.size() > 0)
        is_zero, is_empty = is_zero & ~jnp.any(stays), is_empty & ~jnp.any(stays)
        x, is_minimal = jnp.where(is_zero, 0, x), (is_minimal & ~is_empty) | is_zero
    is_reached = newton.is_reached(state, rtol) & is_minimal
    # Half of the digits of `x` at least. Below, `sensitivity` says how many there are; 100 times
    # more would return points of which six digits are arbitrary in float64, and one in float32.
    is_sharp = moved <= jnp.finfo(rtol.dtype).eps ** 0.5
    result = first_failure(
        result,
        (is_reached, RESULTS.end_point_not_reached),
        (is_sharp, RESULTS.end_point_undetermined),
    )
    stats = {"num_steps": state.steps, "residual": state.residual, "sensitivity": moved}
    return EndPoint(x, dual, result, stats)
