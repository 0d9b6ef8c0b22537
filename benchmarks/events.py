"""What has events: `crossing_times` against SciPy's, and `limit_flow` against flows at a tiny `ε`.

*Crossings*: one lane of 60 × 200, ε = 1e-4, depths 2 and 3, the times in (0, 20] at which a `|xᵢ|`
crosses a tenth of the largest `|xᵢ|` at the end. The peer is `solve_ivp` with an event function for
each coordinate, which share one evaluation of `x`: on the dual form `ν`, and on the weights. Each
runs at the loosest tolerance, by decades, at which all times are within 1e-6 of those of the peer
at 1e-12, and the same coordinates cross.

*Limits*: 10 000 lanes of 3 × 4, against flows at ε = 1e-20 on 50 times in (0, 20], which show the
limit to 10 %, at the tolerance of `flow.py`: `gradient_flow`, and SciPy's LSODA on some lanes. The
error is the largest distance of `x_mean` from the limit's on 9 lanes of 10, relative to its size.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import dlnjax as dln

from . import _peers_scipy
from ._data import normal_batch
from ._report import print_row, write
from ._timing import Contender, compete
from .flow import dlnjax_lane, relative_errors

EPS, S_MAX, ACCURACY = 1e-4, 20.0, 1e-6
TOLERANCES = [10.0**-k for k in range(4, 13)]


class Crossings(NamedTuple):
    s: np.ndarray  # (K,), increasing
    coordinates: np.ndarray  # (K,)

    def distance(self, other: "Crossings") -> float:
        same = len(self.s) == len(other.s) and np.all(self.coordinates == other.coordinates)
        return float(np.max(np.abs(self.s - other.s))) if same else math.inf


def _sides(g: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """`q±/ε` of a network of weights 1."""
    if depth == 2:
        growth = np.exp(-math.log(EPS) * g)
        return growth, 1 / growth
    power = -depth / (depth - 2)
    link = lambda w: np.where(w > 0, w, np.nan) ** power
    return link(1 - g), link(1 + g)


def dual_form(X: np.ndarray, y: np.ndarray, depth: int):
    """The field, `x` of a state, and the start. The state is `ν`."""
    XT = np.ascontiguousarray(X.T)

    def x_of(nu):
        plus, minus = _sides(XT @ nu, depth)
        return EPS * (plus - minus)

    return lambda s, nu: y - X @ x_of(nu), x_of, np.zeros(len(y))


def weight_form(X: np.ndarray, y: np.ndarray, depth: int):
    """The same; the state is `(u, v)` in units of their start."""
    d = X.shape[1]
    # dt/ds: the scale of `u` is ε^{1/D}, so that du/dt = −D u^{D−1} ∇ℓ ε^{1−2/D} in its units.
    speed = -math.log(EPS) / 4 * 2 if depth == 2 else 1 / (depth - 2)

    def x_of(state):
        return EPS * (state[:d] ** depth - state[d:] ** depth)

    def field(s, state):
        descent = speed * ((y - X @ x_of(state)) @ X)
        powers = state ** (depth - 1)
        return np.concatenate([powers[:d] * descent, -powers[d:] * descent])

    return field, x_of, np.ones(2 * d)


def crossings_by_scipy(form, X, y, depth: int, level: float, rtol: float) -> Crossings:
    field, x_of, start = form(X, y, depth)
    last: list[Any] = [None, None]

    def height(i):
        def event(s, state):
            if last[0] is not state:
                last[:] = state, (np.abs(x_of(state)) - level).tolist()
            return last[1][i]

        return event

    with np.errstate(all="ignore"):  # trial steps overflow
        run = solve_ivp(
            field,
            (0.0, S_MAX),
            start,
            "DOP853",
            events=[height(i) for i in range(X.shape[1])],
            rtol=rtol,
            atol=0.1 * rtol,
        )
    s = np.concatenate(run.t_events)
    coordinates = np.repeat(np.arange(X.shape[1]), [len(t) for t in run.t_events])
    order = np.argsort(s)
    return Crossings(s[order], coordinates[order])


def _loosest(solve: Callable[[float], Crossings], reference: Crossings) -> tuple[float, float]:
    rtol = error = math.inf
    for rtol in TOLERANCES:
        error = solve(rtol).distance(reference)
        if error <= ACCURACY:
            break
    return rtol, error


def crossings(depth: int, quick: bool) -> dict:
    n, d = (10, 30) if quick else (60, 200)
    [X], [y] = normal_batch(1, n, d)
    network = dln.Deep(np.ones(d), np.ones(d), depth=depth)
    end = dln.gradient_flow(network, dln.LeastSquares(X, y), np.array([S_MAX]), eps=EPS).x
    level = 0.1 * float(jnp.max(jnp.abs(end)))

    @jax.jit
    def times(X, y, rtol):
        options: Any = dict(eps=EPS, rtol=rtol, atol=0.1 * rtol, throw=False)
        return dln.crossing_times(network, dln.LeastSquares(X, y), S_MAX, level, **options)

    data = jnp.asarray(X), jnp.asarray(y)

    def ours(rtol: float) -> Crossings:
        found = times(*data, rtol)
        crosses = np.asarray(found.activations | found.deactivations)[: int(found.num_crossings)]
        rows, coordinates = np.nonzero(crosses)
        return Crossings(np.asarray(found.s)[rows], coordinates)

    by = lambda form: functools.partial(crossings_by_scipy, form, X, y, depth, level)
    reference = by(dual_form)(1e-12)
    entries = []
    for name, solve in (
        ("dlnjax crossing_times", ours),
        ("SciPy DOP853 with events, dual form", by(dual_form)),
        ("SciPy DOP853 with events, weight form", by(weight_form)),
    ):
        rtol, error = _loosest(solve, reference)
        entries.append((Contender(name, functools.partial(solve, rtol)), error, rtol))
    us, them = compete(entries[0][0], [e[0] for e in entries[1:]], 1 if quick else 7)
    return {
        "work": f"{len(reference.s)} crossings, {n} × {d}, ε = {EPS:g}, depth {depth}, one lane",
        "solvers": [
            m.record(error, us, f"rtol {rtol:.0e}")
            for m, (_, error, rtol) in zip((us, *them), entries, strict=True)
        ],
    }


def limits(quick: bool) -> dict:
    n, d, lanes, some = 3, 4, 64 if quick else 10_000, 8 if quick else 100
    X, y = normal_batch(lanes, n, d)
    s, log_eps = np.linspace(0, S_MAX, 51)[1:], math.log(1e-20)
    network = dln.UV(np.ones(d), np.zeros(d))

    def limit(X, y):
        return dln.limit_flow(network, dln.LeastSquares(X, y), throw=False)

    solve = lambda X, y, rtol: dlnjax_lane(d, log_eps, s, X, y, rtol).x_mean
    tolerances = np.full(lanes, 1e-6)
    flow = lambda: dln.batched(solve, X, y, tolerances)
    by_scipy = functools.partial(_peers_scipy.loop, _peers_scipy.dual_form, _peers_scipy.lsoda)
    peers = [
        Contender("dlnjax gradient_flow, rtol 1e-06", flow),
        Contender(
            "SciPy LSODA (odeint), dual form, rtol 1e-06",
            lambda: by_scipy(X[:some], y[:some], log_eps, s, 1e-6),
            some / lanes,
            compiles=False,
        ),
    ]
    ours = Contender("dlnjax limit_flow", lambda: dln.batched(limit, X, y))
    us, them = compete(ours, peers, 1 if quick else 5)
    reference = np.asarray(jax.vmap(lambda path: path.x_mean(s))(us.output))
    # A limit without a jump before the end is 0.
    jumps = np.abs(reference).max(axis=(1, 2)) > 0

    def error(m) -> float:
        some = jumps[: len(m.output)]
        return relative_errors(m.output[some], reference[: len(some)][some])[0]

    return {
        "work": f"limit, {n} × {d}, {lanes} lanes",
        "solvers": [us.record(0.0, us), *(m.record(error(m), us) for m in them)],
    }


def main(out: Path, quick: bool) -> None:
    rows = []
    for measure in (functools.partial(crossings, 2), functools.partial(crossings, 3), limits):
        row = measure(quick)
        rows.append(row)
        print_row(row)
        write(out, "events", {"settings": {"quick": quick}, "rows": rows})
