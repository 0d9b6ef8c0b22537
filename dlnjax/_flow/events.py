"""The search for events of a flow: where functions of its state, its *heights*, reach 1.

The flow is integrated as in `gradient_flow`, without stops. After each block of steps, the heights
that are on another side of 1 at the end of a step than at its beginning are looked for, and the
times by a bracketing method in the solver's dense output. With

    roomᵢ = 1 − hᵢ  below,    roomᵢ = hᵢ − (1 − √eps)  above,

the next time in a step is the first root of `minᵢ roomᵢ` over the heights that cross in it:

| event | condition | what changes |
|---|---|---|
| rise | `hᵢ` rises to 1 | the time is stored, `i` counts as above |
| fall | `hᵢ` falls to `1 − √eps`, if asked | the time is stored, `i` counts as below |
| tie | several `roomᵢ ≤ √eps/2` at the root | all of them cross at this time |
| end | `s_max` is reached, or all first rises that are asked | the lane is done |
| full buffer | a crossing, but as many as it holds are stored | `max_crossings_reached` |
| failure | the solver fails, `x` reaches its cap, the link is negative | its result |
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._batching import any_lane
from .._derivatives import differentiated_as, held, vanishing
from .._loops import next_share, scan, while_loop
from .._results import RESULTS, first_failure
from .adjoint import at_time, trajectory
from .driver import Fixed, Moving, Record, State, block, start
from .terms.base import AbstractFlowTerm

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractHeights(eqx.Module):
    """Interface of the functions of `x` whose crossings of 1 are looked for.

    `only_first` says whether the first rise of each is asked, and nothing after it."""

    only_first: AbstractClassVar[bool]

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """How many they are, `m`."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " m"]:
        """Their values, `≥ 0`."""


class Found(eqx.Module):
    """The crossings found so far, in buffers of `K` rows."""

    row: Int[Array, ""]  # the next row
    is_full: Bool[Array, ""]
    is_above: Bool[Array, " m"]
    times: Float[Array, " K"]
    crossed: Bool[Array, "2 K m"]  # rises, falls
    result: RESULTS


def _height(term: AbstractFlowTerm, heights: AbstractHeights, s: Array, y: PyTree[Array]) -> Array:
    return heights(term.read(s, y)[0])


def search(
    moving: Moving, fixed: Fixed, heights: AbstractHeights, max_crossings: int
) -> tuple[Found, State]:
    """Integrate block by block, and find the crossings of each block. No derivatives."""
    moving, fixed, heights = held((moving, fixed, heights))
    term, dtype = moving.term, fixed.grid.dtype
    state = start(moving, fixed)
    found = Found(
        row=jnp.zeros((), jnp.int32),
        is_full=jnp.asarray(False),
        is_above=_height(term, heights, state.s, state.y) >= 1,
        times=jnp.zeros(max_crossings, dtype),
        crossed=jnp.zeros((2, max_crossings, heights.count), bool),
        result=RESULTS.successful,
    )

    def step(carry):
        state, found = carry
        after, records, count = block(moving, fixed, state)
        found = _crossings(term, fixed, heights, found, records, count, after)
        stops = found.is_full | (found.result != RESULTS.successful)
        if heights.only_first:
            # A failure after the last level has been reached, in the same block, is none.
            is_over = jnp.all(found.is_above)
            result = RESULTS.where(is_over, RESULTS.successful, after.result)
            stops, after = stops | is_over, after._replace(result=result)
        return after._replace(is_done=after.is_done | stops), found

    carry = while_loop(lambda c: any_lane(~c[0].is_done), step, (state, found))
    return carry[1], carry[0]


def _crossings(
    term: AbstractFlowTerm,
    fixed: Fixed,
    heights: AbstractHeights,
    found: Found,
    records: Record,
    count: Array,
    after: State,
) -> Found:
    """`found`, with the crossings in the steps of a block, after which the state is `after`."""
    # What has risen to 1 falls at 1 − width, so that what stays at 1 does not cross it with each
    # rounding. Heights have about the errors of the steps, 1e-7 by default: far below that, noise
    # would count as crossings; with 100 times more, deactivation times would move by 1e-6/log(1/ε)
    # and near ties would be merged.
    width = float(jnp.finfo(fixed.grid.dtype).eps) ** 0.5
    # The state after an attempt is the one before the next; rows from `count` on are empty.
    states = jax.tree.map(
        lambda before, last: jnp.roll(before, -1, axis=0).at[count - 1].set(last),
        records.y,
        after.y,
    )
    x = jax.vmap(lambda s, y: term.read(s, y)[0])(records.s, states)
    values, kept = jax.vmap(heights)(x), records.is_kept[:, None]
    counts = records.is_kept
    if heights.only_first:
        # What comes after the last level has been reached does not count.
        reached = found.is_above[None, :] | (lax.cummax(jnp.where(kept, values, 0)) >= 1)
        is_over = jnp.all(reached, axis=1)
        counts = counts & ~jnp.concatenate([jnp.zeros_like(is_over[:1]), is_over[:-1]])
    held_up = term.is_in_range(jnp.where(counts[:, None], x, 0))
    consistent = jnp.all(jax.vmap(term.is_consistent)(states) | ~counts)
    result = first_failure(
        found.result,
        (held_up, RESULTS.flow_not_finite),
        (consistent, RESULTS.invalid_network),
    )

    def side(is_above, row):
        height, is_kept = row
        stays = is_above if heights.only_first else is_above & (height >= 1 - width)
        then = stays | (~is_above & (height >= 1))
        then = jnp.where(is_kept, then, is_above)
        return then, (then != is_above, is_above)

    _, (pending, above) = scan(side, found.is_above, (values, kept))

    def next_crossing(carry):
        pending, found, s = carry
        attempt = jnp.argmax(jnp.any(pending, axis=1))
        here, is_above = pending[attempt], above[attempt]
        is_any = jnp.any(here) & ~found.is_full
        record = jax.tree.map(lambda v: v[attempt], records)
        inner = fixed.solver.interpolation_cls(t0=record.s, t1=record.s1, **record.dense)

        def room(s):
            """The distances of heights from their crossings, and 1 where none is pending."""
            h = _height(term, heights, s, inner.evaluate(s))
            return jnp.where(here, jnp.where(is_above, h - (1 - width), 1 - h), 1)

        root = _first_below(lambda s: jnp.min(room(s)), jnp.maximum(s, record.s), record.s1)
        left = room(root)
        crosses = here & is_any & (left <= jnp.maximum(jnp.min(left), 0) + width / 2)
        sides = jnp.stack([crosses & ~is_above, crosses & is_above])
        is_full = is_any & (found.row == found.times.shape[0])
        row = jnp.where(is_any & ~is_full, found.row, found.times.shape[0])
        found = Found(
            row=found.row + (is_any & ~is_full).astype(jnp.int32),
            is_full=found.is_full | is_full,
            is_above=found.is_above ^ (crosses & ~is_full),
            times=found.times.at[row].set(root, mode="drop"),
            crossed=found.crossed.at[:, row].set(sides, mode="drop"),
            result=RESULTS.where(is_full, RESULTS.max_crossings_reached, found.result),
        )
        return pending.at[attempt].set(here & ~crosses & ~is_full), found, root

    found = dataclasses.replace(found, result=result)
    goes_on = lambda c: any_lane(jnp.any(c[0]) & ~c[1].is_full)
    _, found, _ = while_loop(goes_on, next_crossing, (pending, found, records.s[0]))
    return found


class _Bracket(NamedTuple):
    """The sign changes between `a`, the last point, and `b`; `c` is the one before."""

    a: Float[Array, ""]
    b: Float[Array, ""]
    c: Float[Array, ""]
    fa: Float[Array, ""]
    fb: Float[Array, ""]
    fc: Float[Array, ""]
    is_beyond: Bool[Array, ""]  # `fa < 0`
    steps: Int[Array, ""]


def _first_below(fn: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where `fn`, `≥ 0` at `low` and `< 0` at `high`, falls below 0, to two roundings of `s`.

    By Chandrupatla's method: inverse quadratic interpolation through the last three points where
    they allow it, halving elsewhere, and always in one step of four, so that it ends."""
    unit, digits = float(jnp.finfo(low.dtype).eps), jnp.finfo(low.dtype).nmant + 3

    def share(state: _Bracket) -> Array:
        """The least part of the bracket that a step must move by: one rounding."""
        size = jnp.abs(state.b - state.a)
        return unit * jnp.maximum(jnp.abs(state.a), jnp.abs(state.b)) / jnp.where(size > 0, size, 1)

    def is_open(state: _Bracket) -> Array:
        is_wide = jnp.abs(state.b - state.a) > 0
        return is_wide & (share(state) < 0.5) & (state.steps < 4 * digits)

    def step(state: _Bracket) -> _Bracket:
        a, b, c, fa, fb, fc = state.a, state.b, state.c, state.fa, state.fb, state.fc
        least = share(state)
        t = jnp.where(state.steps % 4 == 3, 0.5, next_share(a, b, c, fa, fb, fc))
        t = jnp.clip(t, least, 1 - least)
        x = a + t * (b - a)
        f = fn(x)
        is_beyond = f < 0
        stays = is_beyond == state.is_beyond
        return _Bracket(
            a=x,
            b=jnp.where(stays, b, a),
            c=jnp.where(stays, a, b),
            fa=f,
            fb=jnp.where(stays, fb, fa),
            fc=jnp.where(stays, fa, fb),
            is_beyond=is_beyond,
            steps=state.steps + 1,
        )

    def kept(state: _Bracket) -> _Bracket:
        goes_on, after = is_open(state), step(state)
        return jax.tree.map(lambda old, new: jnp.where(goes_on, new, old), state, after)

    nan = jnp.full_like(low, jnp.nan)
    start = _Bracket(low, high, high, nan, nan, nan, jnp.asarray(False), jnp.zeros((), jnp.int32))
    end = while_loop(lambda state: any_lane(is_open(state)), kept, start)
    return jnp.where(end.is_beyond, end.a, end.b)


def _roots(moving: Moving, fixed: Fixed, heights: AbstractHeights, found: Found) -> Array:
    """The times as functions of the data: the flow is integrated again to the times, and two Newton
    steps of length 0 make derivatives right to second order."""
    K = found.times.shape[0]
    rows = jnp.arange(K, dtype=jnp.int32)
    s = held(jnp.where(rows < found.row, found.times, jnp.max(found.times)))
    states, _ = trajectory(moving, dataclasses.replace(fixed, grid=s))
    crossed = found.crossed[0] | found.crossed[1]

    def root(s, state, crosses):
        index = jnp.argmax(crosses)
        away = lambda s: _height(moving.term, heights, s, at_time(s, state, moving.term))[index]
        for _ in range(2):
            height, slope = jax.jvp(away, (s,), (jnp.ones_like(s),))
            is_moving = jnp.any(crosses) & (slope != 0)
            step = vanishing(height) / jnp.where(is_moving, slope, 1)
            s = s - jnp.where(is_moving, step, 0)
        return s

    return jax.vmap(root)(s, states, crossed)


@differentiated_as(_roots)
def times_of(moving: Moving, fixed: Fixed, heights: AbstractHeights, found: Found) -> Array:
    """The times that were found, with derivatives."""
    return found.times
