"""Tsit5 where the flow is not stiff, and Rodas5P where it is.

An explicit step costs a fraction of one of Rodas5P, which factorises a matrix. But on a plateau,
where the active coordinates relax at rates up to `ρ`, the largest eigenvalue of `−J`, it must stay
below `STABLE/ρ`, where Rodas5P takes steps as long as the plateau. So each lane chooses, by cost:

| in | a step would have cost with the other |
|---|---|
| Tsit5 | `ratio`, or nothing if stability limits it |
| Rodas5P | `hρ/STABLE` steps of Tsit5, or one |

where `ratio` is the cost of a Rodas5P step in steps of Tsit5, and `ρ` is measured by one power
iteration a step. (The last two stages of Tsit5, which lie at the same time, would give it for
nothing, but on a plateau their difference is rounding.) A lane goes to the other method when
that would have saved `PATIENCE · ratio` since it last would have saved nothing. LSODA switches by
similar estimates.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._batching import any_lane
from .._derivatives import held
from .._loops import cond
from .driver import AbstractSwitchingSolver
from .rodas5p import Interpolation, finished, linear_sum, rosenbrock
from .terms.base import AbstractDualTerm, RealScalarLike, dual_term_of

_TABLEAU = diffrax.Tsit5.tableau
# The continuous extension of order 4, `y(θ) = y₀ + h Σ bᵢ(θ) kᵢ`: the coefficients of θ, θ², θ³, θ⁴
# in `bᵢ(θ)`. Tsitouras, Computers & Mathematics with Applications 62 (2011), 770-775.
_DENSE = np.array(
    [
        np.polymul(
            -1.0530884977290216 * np.array([1, -1.3299890189751412, 0]),
            [1, -1.4364028541716351, 0.7139816917074209],
        ),
        0.1017 * np.array([1, -2.1966568338249754, 1.2949852507374631, 0, 0]),
        2.490627285651252793 * np.array([1, -2.38535645472061657, 1.57803468208092486, 0, 0]),
        -16.54810288924490272
        * np.polymul([1, -1.21712927295533244], [1, -0.61620406037800089, 0, 0]),
        47.37952196281928122
        * np.polymul([1, -1.203071208372362603], [1, -0.658047292653547382, 0, 0]),
        -34.87065786149660974 * np.polymul([1, -1.2], [1, -0.666666666666666667, 0, 0]),
        2.5 * np.polymul([1, -1], [1, -0.6, 0, 0]),
    ]
)[:, 3::-1]
# The same in the basis of `Interpolation`, of which the first three coefficients are these.
_INNER = -np.stack(
    [_DENSE[:, 1] + _DENSE[:, 2] + _DENSE[:, 3], _DENSE[:, 2] + _DENSE[:, 3], _DENSE[:, 3]]
)


def _second_estimate() -> np.ndarray:
    """A second error estimate `h Σ eᵢkᵢ` of the stages: of order 3, and of order 4 where the field
    depends on time only, orthogonal to the embedded one and as long."""
    A, error = np.zeros((7, 7)), np.asarray(_TABLEAU.b_error)
    for row, coefficients in zip(A[1:], _TABLEAU.a_lower, strict=True):
        row[: len(coefficients)] = coefficients
    c = A.sum(axis=1)
    conditions = np.stack([c**0, c, c**2, c**3, A @ c, error])
    return np.linalg.svd(conditions)[2][-1] * np.linalg.norm(error)


# Which part of it counts as error, for the reason of `rodas5p.DEFECT`. On the 28 126 accepted steps
# of Tsit5 of 36 flows it was below 1000 tolerances: as its order is lower, it is larger.
SECOND = 1e-3
_SECOND = _second_estimate()

# The real interval of stability of Tsit5 (`tests/test_flow_auto_tsit5.py` computes it).
STABLE = 3.5
# From which `hρ` on stability limits a step: `_longest_step` keeps it at 2.8.
LIMITED = 2.5
# What the other method must have saved for a switch, in steps of Rodas5P, and by which factor that
# grows with each switch. On a plateau Rodas5P takes 10 to 30 steps: with much fewer, lanes switch
# for a plateau from which the next jump makes them return, while others wait for them; with more, a
# lane that should switch pays for it. 10 and 20 differ by less than the noise of the benchmark.
PATIENCE = 20
BACKOFF = 4


class _State(NamedTuple):
    """What is carried from step to step."""

    velocity: Float[Array, "..."]  # at the state, with x there
    x: Float[Array, " d"]
    is_stiff: Bool[Array, ""]
    rate: Float[Array, ""]  # `ρ` at the state, a lower bound that is close to it
    direction: Float[Array, "..."]  # of length 1, near the eigenvector of `ρ`
    # What the other method would have saved, in steps of Tsit5; 0 while it would have cost more.
    tally: Float[Array, ""]
    # How much that must be for a switch, in steps of Rodas5P.
    patience: Float[Array, ""]


class AutoTsit5(AbstractSwitchingSolver):
    """Tsit5, of order 5, and Rodas5P where stability would limit its steps.

    The default solver of `DualForm()` for larger problems. Each lane of a batch switches by itself,
    by the cost of a step. It integrates the dual form only.

    **Raises:** `ValueError` in `gradient_flow` with another formulation.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        solver, s = dln.AutoTsit5(), jnp.array([2.0])
        flow = dln.gradient_flow(network, problem, s, eps=1e-9, solver=solver)
        flow.x[0]  # (2, 1)
        ```

    !!! cite "Reference"

        Ch. Tsitouras, Computers & Mathematics with Applications 62 (2011); G. Steinebach, BIT
        Numerical Mathematics 63:27 (2023); L. Petzold, SIAM J. Sci. Stat. Comput. 4 (1983), for the
        switch.
    """

    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Interpolation]] = Interpolation

    def order(self, terms: Any) -> int:
        return 5

    def init(
        self, terms: Any, t0: RealScalarLike, t1: RealScalarLike, y0: Any, args: Any
    ) -> _State:
        velocity, x = _field(dual_term_of(terms, self), y0)
        patience = jnp.full_like(x[0], PATIENCE)
        zero, (direction, _) = jnp.zeros_like(patience), _normalized(held(velocity))
        return _State(velocity, x, jnp.asarray(False), zero, direction, zero, patience)

    def func(self, terms: Any, t0: RealScalarLike, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def _needs_turn(self, solver_state: _State) -> Bool[Array, ""]:
        """Whether the next step is one of Rodas5P."""
        return solver_state.is_stiff

    def _longest_step(self, solver_state: _State) -> Float[Array, ""]:
        """The longest stable step of Tsit5."""
        # The controller alone lets steps grow beyond stability, until what they amplify exceeds the
        # tolerance. Values do not mind, but derivatives then have errors of 1e-5: the rounding of
        # cotangents of 1e11.
        rate = jnp.where(solver_state.is_stiff, 0, solver_state.rate)
        return jnp.where(rate > 0, 0.8 * STABLE / jnp.where(rate > 0, rate, 1), jnp.inf)

    def step(
        self,
        terms: Any,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Any,
        args: Any,
        solver_state: _State,
        made_jump: Any,
    ) -> tuple[Any, Any, dict[str, Any], _State, diffrax.RESULTS]:
        term = dual_term_of(terms, self)
        state, is_live = solver_state, t1 > t0
        if made_jump is not False:  # to be evaluated again where the field has changed
            velocity, _ = _field(term, y0)
            state = state._replace(velocity=jnp.where(made_jump, velocity, state.velocity))
        h = jnp.where(is_live, t1 - t0, 1)
        ratio = cost_ratio(term)
        pick = lambda a, b: jnp.where(state.is_stiff, b, a)
        increment, error, inner, end, grown = cond(
            any_lane(is_live & ~state.is_stiff),
            lambda: _explicit(term, h, y0, state),
            lambda: _implicit(term, h, y0, state),
        )
        # A power iteration for ρ. It also takes in where the step went, as coordinates that start
        # to move would be missing from it.
        ahead, rate = _normalized(grown)
        direction, _ = _normalized(ahead + 0.1 * _normalized(held(increment[0]))[0])

        y1, error, good = finished(term, y0, increment, error, (end, grown))
        only = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
        velocity, x = only(end, (state.velocity, state.x))
        rate, direction = only((rate, direction), (state.rate, state.direction))

        # What the other method would have saved: a step of Tsit5 that stability limits, or all but
        # one of the steps of Tsit5 that one of Rodas5P costs.
        of_explicit = jnp.where(h * rate > LIMITED, 1, 1 - ratio)
        of_implicit = ratio - jnp.maximum(h * rate / STABLE, 1)
        tally = jnp.maximum(state.tally + pick(of_explicit, of_implicit), 0)
        switches = tally >= state.patience * ratio
        after = _State(
            velocity=velocity,
            x=x,
            is_stiff=state.is_stiff ^ switches,
            rate=rate,
            direction=direction,
            tally=jnp.where(switches, 0, tally),
            patience=jnp.where(switches, BACKOFF * state.patience, state.patience),
        )
        dense_info = dict(coefficients=(y0, y1, *inner))
        return y1, error, dense_info, after, diffrax.RESULTS.successful


def cost_ratio(term: AbstractDualTerm) -> float:
    """The cost of a step of Rodas5P in steps of Tsit5."""
    # Fitted to 3.5, 5.6 and 8.4 at 30 × 60, 50 × 100 and 100 × 200, before steps had the power
    # iteration. `python -m benchmarks.switching` now gives 2, 3 and 6; it was not fitted again.
    return 1 + 0.08 * term.matrix_size


def _explicit(term: AbstractDualTerm, h: Array, y0: Any, state: _State):
    """The increment of a Tsit5 step, its error, the coefficients of the interpolation, the field at
    its end, and `J` there times the direction."""
    f0, velocities, xs = y0[0], [state.velocity], [state.x]
    for row in _TABLEAU.a_lower[:-1]:
        x = term.x(term.image(f0 + h * linear_sum(row, velocities)))
        xs.append(x)
        velocities.append(term.velocity(x))
    increment = h * linear_sum(_TABLEAU.a_lower[-1], velocities)
    velocity, x, grown = _at_end(term, f0 + increment, state.direction)
    velocities, xs = [*velocities, velocity], [*xs, x]
    combine = lambda weights: (
        h * linear_sum(weights, velocities),
        h / term.fixed_zeta() * linear_sum(weights, xs),
    )
    inner = tuple(combine(weights) for weights in _INNER)
    increment = (increment, combine(_TABLEAU.b_sol)[1])
    error, error_z = combine(_TABLEAU.b_error)
    second = h / term.fixed_zeta() * linear_sum(_SECOND, xs)
    error = (error, jnp.maximum(jnp.abs(error_z), SECOND * jnp.abs(second)))
    return increment, error, inner, (velocity, x), grown


def _implicit(term: AbstractDualTerm, h: Array, y0: Any, state: _State):
    """The same of a Rodas5P step."""
    increment, error, *inner = rosenbrock(term, h, y0)
    velocity, x, grown = _at_end(term, y0[0] + increment[0], state.direction)
    return increment, error, tuple(inner), (velocity, x), grown


def _field(term: AbstractDualTerm, y: Any) -> tuple[Array, Array]:
    """The velocity of `f` and `σ²x` at a state."""
    x = term.x(term.image(y[0]))
    return term.velocity(x), x


def _at_end(term: AbstractDualTerm, f: Array, direction: Array) -> tuple[Array, Array, Array]:
    """The velocity and `x` at the end of a step, and `J` times a direction."""
    x, slope = term.response(term.image(f))
    change = term.change(*held((slope, term.image(direction))))
    velocity, grown = jax.jvp(term.velocity, (x,), (change,))
    return velocity, x, held(grown)


def _normalized(v: Array) -> tuple[Array, Array]:
    """`v` at length 1, unless it is 0; and its length."""
    length = jnp.sqrt(jnp.sum(v**2))
    return v / jnp.where(length > 0, length, 1), length
