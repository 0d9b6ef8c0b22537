"""The flow against diffrax and SciPy, at equal accuracy.

Each solver runs at the loosest tolerance, by decades, at which its `x_mean` is within `ACCURACY`
of the reference (maximum over the grid and coordinates, relative to the lane's max |x_mean|) on 9
lanes of 10; `atol` is a tenth of `rtol`. The worst lane is left out because a few hard lanes of a
thousand would ask for decades more of some peers. A looped peer is calibrated on a few lanes.
The reference is `gradient_flow` at rtol 1e-11, itself compared with SciPy's Radau at 1e-12.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from joblib import Parallel

import dlnjax as dln

from . import _peers_diffrax, _peers_scipy
from ._data import at_hand, khan, normal_batch
from ._report import draw_ratios, print_row, write
from ._timing import Contender, compete
from .loop import loop_overhead

ACCURACY = 1e-6
PART = 0.9  # of the lanes must reach it
TOLERANCES = [10.0**-k for k in range(3, 12)]
REFERENCE = 1e-11
CALIBRATION_LANES = 20
HOPELESS = 1e-6  # a peer that still fails at this tolerance does not try a tighter one
LOOP_SECONDS = 2.0  # a looped peer gets as many lanes as it does in this time, and at least 2
PATIENCE = 30.0  # a peer whose calibration run takes longer does not try a tighter tolerance

Solve = Callable[[np.ndarray, np.ndarray, float], np.ndarray]  # X, y, rtol -> x_mean


class Work(NamedTuple):
    n: int
    d: int
    eps: float
    lanes: int
    vmapped: tuple[str, ...]
    looped: tuple[str, ...]
    data: str = "normal"

    @property
    def label(self) -> str:
        name = "flow, Khan gene expressions" if self.data == "khan" else "flow"
        lanes = f"{self.lanes} lanes" if self.lanes > 1 else "one lane"
        return f"{name}, {self.n} × {self.d}, ε = {self.eps:g}, {lanes}"


BOTH = ("diffrax Kvaerno5, dual form", "diffrax Tsit5, dual form")
WEIGHTS = "diffrax Kvaerno5, weight form"
LSODA, RADAU = "SciPy LSODA (odeint), dual form", "SciPy Radau, dual form"
LSODA_IVP = "SciPy LSODA (solve_ivp), dual form"
LSODA_WEIGHTS = "SciPy LSODA, weight form"
FULL = [
    Work(3, 4, 1e-5, 1000, (*BOTH, WEIGHTS), (LSODA, LSODA_IVP, RADAU, LSODA_WEIGHTS)),
    Work(20, 40, 1e-20, 50, BOTH, (LSODA, LSODA_IVP, RADAU)),
    # Kvaerno5 takes minutes a run here, with (n + d) × (n + d) factorisations.
    Work(50, 100, 1e-20, 16, (), (LSODA, LSODA_IVP)),
    # As would Kvaerno5 and Radau, with 2371 × 2371 ones.
    Work(63, 2308, 1e-20, 1, (), (LSODA, LSODA_IVP), "khan"),
]
QUICK = [
    Work(3, 4, 1e-5, 8, BOTH[:1], (LSODA,)),
]
FORMS = {
    BOTH[0]: lambda: _peers_diffrax.dual_form(diffrax.Kvaerno5()),
    BOTH[1]: lambda: _peers_diffrax.dual_form(diffrax.Tsit5()),
    WEIGHTS: lambda: _peers_diffrax.weight_form(diffrax.Kvaerno5()),
}
LOOPS = {
    LSODA: (_peers_scipy.dual_form, _peers_scipy.lsoda),
    LSODA_IVP: (_peers_scipy.dual_form, _peers_scipy.lsoda_ivp),
    RADAU: (_peers_scipy.dual_form, _peers_scipy.radau),
    LSODA_WEIGHTS: (_peers_scipy.weight_form, _peers_scipy.lsoda),
}


def dlnjax_lane(d: int, log_eps, s, X, y, rtol) -> dln.Flow:
    return dln.gradient_flow(
        dln.UV(jnp.ones(d), jnp.zeros(d)),
        dln.LeastSquares(X, y),
        s,
        log_eps=log_eps,
        rtol=rtol,
        atol=0.1 * rtol,
        throw=False,
    )


def dlnjax_flow(d: int):
    """`(X, y, log_eps, s, rtol) -> Flow`, all lanes in step."""
    solve = lambda X, y, log_eps, s, rtol: dlnjax_lane(d, log_eps, s, X, y, rtol)
    return jax.jit(jax.vmap(solve, in_axes=(0, 0, None, None, None)))


def relative_errors(x_mean: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """What `PART` of the lanes are within, and the worst lane."""
    difference = np.abs(np.asarray(x_mean) - reference).max(axis=(1, 2))
    errors = difference / np.abs(reference).max(axis=(1, 2))
    errors = np.sort(np.where(np.isfinite(errors), errors, np.inf))
    return float(errors[math.ceil(PART * len(errors)) - 1]), float(errors[-1])


def calibrate(name: str, solve: Solve, X, y, reference) -> tuple[float, float]:
    """The loosest tolerance that is accurate enough (or the best one there was time for), and
    the seconds a lane takes with it."""
    best = (math.inf, TOLERANCES[0], math.inf)
    solve(X, y, TOLERANCES[0])  # to compile before patience is measured
    for rtol in TOLERANCES:
        start = time.perf_counter()
        error, _ = relative_errors(solve(X, y, rtol), reference)
        seconds = time.perf_counter() - start
        print(f"  [{name}, rtol {rtol:.0e}: error {error:.1e}, {seconds:.2g} s]", flush=True)
        best = min(best, (error, rtol, seconds / len(X)))
        # One that still fails here is not going to do better. (LSODA fails on Khan before.)
        hopeless = math.isinf(error) and rtol <= HOPELESS
        if error <= ACCURACY or seconds > PATIENCE or hopeless:
            break
    return best[1], best[2]


def measure(work: Work, repetitions: int, pool: Parallel) -> dict:
    X, y = khan() if work.data == "khan" else normal_batch(work.lanes, work.n, work.d)
    s, log_eps = np.linspace(0, 20, 51)[1:], math.log(work.eps)
    few = slice(0, min(CALIBRATION_LANES, work.lanes))
    ours = dlnjax_flow(work.d)
    reference = np.asarray(ours(X, y, log_eps, s, REFERENCE).x_mean)

    some = slice(0, min(2, work.lanes))
    # Radau factorises 2371 × 2371 matrices on Khan: LSODA there.
    check = _peers_scipy.lsoda if work.data == "khan" else _peers_scipy.radau
    outside = _peers_scipy.loop(
        _peers_scipy.dual_form, check, X[some], y[some], log_eps, s, 0.1 * REFERENCE
    )
    _, agreement = relative_errors(outside, reference[some])

    def contender(name: str, solve: Solve, lanes: slice, rtol: float, compiles: bool):
        part = len(X[lanes]) / work.lanes
        return Contender(name, lambda: solve(X[lanes], y[lanes], rtol), part, compiles), lanes, rtol

    everything = slice(0, work.lanes)
    one = functools.partial(dlnjax_lane, work.d, log_eps, s)
    our_solve = lambda X, y, rtol: dln.batched(one, X, y, np.full(len(X), rtol)).x_mean
    rtol, _ = calibrate("dlnjax", our_solve, X, y, reference)
    entries = [contender("dlnjax", our_solve, everything, rtol, True)]
    for name in work.vmapped:
        function = FORMS[name]()
        solve = lambda X, y, rtol, f=function: f(X, y, log_eps, s, rtol)
        rtol, _ = calibrate(name, solve, X, y, reference)
        entries.append(contender(name, solve, everything, rtol, True))
    for name in work.looped:
        form, method = LOOPS[name]
        solve = lambda X, y, rtol, f=form, m=method: _peers_scipy.loop(f, m, X, y, log_eps, s, rtol)
        rtol, seconds = calibrate(name, solve, X[few], y[few], reference[few])
        lanes = slice(0, min(work.lanes, max(2, int(LOOP_SECONDS / seconds))))
        entries.append(contender(name, solve, lanes, rtol, False))
        if name == LSODA and work.lanes > 1:
            both = lambda X, y, rtol, f=form, m=method: _peers_scipy.parallel(
                pool, f, m, X, y, log_eps, s, rtol
            )
            entries.append(contender(f"{name}, joblib × 2", both, lanes, rtol, True))

    us, them = compete(entries[0][0], [e[0] for e in entries[1:]], repetitions)
    solvers = []
    for measured, (_, lanes, rtol) in zip([us, *them], entries, strict=True):
        error, worst = relative_errors(measured.output, reference[lanes])
        note = f"rtol {rtol:.0e}, worst lane {worst:.0e}"
        if error > 2 * ACCURACY:
            note += ", accuracy not reached"
        if not math.isfinite(error) and "Tsit5" in measured.contender.name:
            note += f", stopped at {_peers_diffrax.MAX_STEPS} steps"
        solvers.append(measured.record(error, us, note) | {"rtol": rtol, "worst": worst})
    steps = np.asarray(ours(X, y, log_eps, s, entries[0][2]).stats["num_steps"])
    row = {
        "work": work.label,
        "lanes": work.lanes,
        "accuracy": ACCURACY,
        "reference_agreement": agreement,
        "steps": [int(steps.min()), float(np.mean(steps)), int(steps.max())],
        "solvers": solvers,
    }
    print_row(row)
    print(
        f"  (reference against SciPy at rtol 1e-12: {agreement:.1e}; "
        f"steps {steps.min()} … {steps.max()}, mean {steps.mean():.0f})"
    )
    return row


def main(out: Path, quick: bool) -> None:
    repetitions = 3
    with Parallel(n_jobs=2) as pool:
        settings = {"accuracy": ACCURACY, "s": "50 points on (0, 20]", "quick": quick}
        content = {"settings": settings, "rows": [], "loop": loop_overhead(quick)}
        for work in at_hand(QUICK if quick else FULL):
            content["rows"].append(measure(work, repetitions, pool))
            write(out, "flow", content)  # a row at a time: the last ones take long
    rows = content["rows"]
    draw_ratios(out, "flow", rows, f"Averaged flow to a relative accuracy of {ACCURACY:g}")
