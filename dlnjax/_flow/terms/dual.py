"""`dual_term`: which vector field of the dual form a network and a problem have."""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._problem import AbstractProblem, Schedule, least_decay, may_decay
from ...networks import AbstractDualNetwork
from ...networks.signs import sides
from ..link import ExponentialLink, link_of
from .base import AbstractDualTerm, column_scale, size_of_x, size_of_z
from .coordinates import CoordinateTerm
from .decayed_rows import DecayedRowTerm
from .difference import excess
from .fit import fit_of
from .rows import RowTerm
from .systems import in_rows


def dual_term(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    log_eps: Float[Array, ""],
    large_start: bool = False,
) -> AbstractDualTerm:
    """The vector field of the dual form, in rows (`ν`) where that is smaller and accurate."""
    scale = column_scale(problem)
    size = size_of_x(problem)
    link = link_of(network, log_eps, size, large_start)
    fit, is_square = fit_of(problem, scale), problem.glm() is None
    # A traced weight decay may be positive. See `terms/rows.py` for what rows require.
    decay, schedule, has_decay = problem.weight_decay, None, may_decay(problem.weight_decay)
    lowest = least_decay(decay)
    if isinstance(decay, Schedule):
        decay, schedule = decay.values[0], decay if has_decay else None
    q, square = link.q(link.start), scale**2
    # Where a decay is switched off later, coordinates may activate then.
    velocity = sides(-problem.r, link.start) + lowest
    slope = square * link.slope(link.start, q)
    z_size = size_of_z(square * q, slope, velocity, jnp.min(link.unit))
    zeta = lax.stop_gradient(z_size / jnp.max(link.unit))
    # Of the largest entry: errors of x count relative to that. Without data none count.
    largest = square * jnp.max(size)
    largest = jnp.where(largest > 0, largest, jnp.inf)
    beyond = lax.stop_gradient(excess(slope * link.unit, largest))
    n, d = (problem.r.size, problem.r.size) if fit is None else fit.X.shape
    if fit is not None and isinstance(link, ExponentialLink) and not has_decay and n < d:
        return RowTerm(fit=fit, link=link, scale=scale, zeta=zeta, largest=largest, excess=beyond)
    is_reduced = fit is not None and in_rows(fit, link)
    term = CoordinateTerm(
        M=problem.gram() / scale**2 if is_square and not is_reduced else None,
        # For n ≤ d the velocity goes through X, whose rounding does less harm (see
        # `CoordinateTerm.velocity`); for n > d through M, at a cost of d² instead of 2nd.
        fit=None if is_square and n > d else fit,
        r=problem.r,
        link=link,
        weight_decay=decay if has_decay else None,
        varies=schedule,
        scale=scale,
        zeta=zeta,
        largest=largest,
        excess=beyond,
    )
    is_wide = fit is not None and n < d and isinstance(link, ExponentialLink)
    return DecayedRowTerm(term) if is_wide and link.has_third_row() else term
