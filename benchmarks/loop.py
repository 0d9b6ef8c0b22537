"""What the loop around steps costs: Rodas5P in `gradient_flow`, in `diffrax.diffeqsolve`, and in a
bare `lax.while_loop` with the same controller, which takes the same steps."""

import math
from types import SimpleNamespace
from typing import Any

import diffrax
import jax
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx

import dlnjax as dln
from dlnjax._flow.terms.dual import dual_term

from ._data import normal_batch
from ._timing import Contender, compete

RTOL, ATOL, END, SAVED = 1e-7, 1e-8, 20.0, 50


def _term(X, y, log_eps):
    d = X.shape[1]
    network = dln.UV(jnp.ones(d), jnp.zeros(d))
    return dual_term(network, dln.LeastSquares(X, y), jnp.asarray(log_eps))


def _first_step(X, y):
    return 0.01 / jnp.max(jnp.abs(X.T @ y))


def bare(log_eps: float):
    """No saving, no interpolation, no adjoint, no result: `(steps, state at the end)`."""
    solver = dln.Rodas5P()

    def solve(X, y):
        term = _term(X, y, log_eps)
        # What diffrax passes is the term wrapped in a direction.
        wrapped = SimpleNamespace(term=term)

        def step(carry):
            s, h, state, steps = carry
            stop = jnp.minimum(s + h, END)
            new, error, *_ = solver.step(wrapped, s, stop, state, None, None, False)
            scaled = jax.tree.map(
                lambda e, a, b: e / (ATOL + RTOL * jnp.maximum(jnp.abs(a), jnp.abs(b))),
                error,
                state,
                new,
            )
            size = optx.max_norm(scaled)
            keep = size < 1
            factor = jnp.clip(0.9 * size ** (-1 / solver.order(term)), jnp.where(keep, 1, 0.2), 10)
            state = jax.tree.map(lambda a, b: jnp.where(keep, b, a), state, new)
            # From the step tried, as diffrax: the last one is cut short by the end.
            return jnp.where(keep, stop, s), (stop - s) * factor, state, steps + 1

        start = jnp.zeros(()), _first_step(X, y), term.initial(), jnp.asarray(0)
        _, _, state, steps = lax.while_loop(lambda c: c[0] < END, step, start)
        return steps, state

    return jax.jit(jax.vmap(solve))


def in_dlnjax(log_eps: float, s: jax.Array):
    def solve(X, y):
        d = X.shape[1]
        network, problem = dln.UV(jnp.ones(d), jnp.zeros(d)), dln.LeastSquares(X, y)
        options: dict[str, Any] = dict(log_eps=log_eps, rtol=RTOL, atol=ATOL, throw=False)
        flow = dln.gradient_flow(network, problem, s, solver=dln.Rodas5P(), **options)
        return flow.stats["num_steps"], flow.x_mean

    return jax.jit(jax.vmap(solve))


def in_diffrax(log_eps: float, s: jax.Array):
    def solve(X, y):
        term = _term(X, y, log_eps)
        solution = diffrax.diffeqsolve(
            term,
            dln.Rodas5P(),
            0,
            END,
            _first_step(X, y),
            term.initial(),
            saveat=diffrax.SaveAt(ts=s),
            stepsize_controller=diffrax.PIDController(RTOL, ATOL, norm=optx.max_norm),
            max_steps=65536,
            throw=False,
        )
        return solution.stats["num_steps"], solution.ys

    return jax.jit(jax.vmap(solve))


def loop_overhead(quick: bool) -> list[dict]:
    cases = [(3, 4, 1e-5, 1), (3, 4, 1e-5, 1000), (20, 40, 1e-20, 50), (50, 100, 1e-20, 16)]
    rows = []
    print("\nthe loop around the steps against a bare while_loop: time of a step, ratio")
    grid = jnp.linspace(0, END, SAVED + 1)[1:]
    for n, d, eps, lanes in cases[:1] if quick else cases:
        X, y = (jnp.asarray(v) for v in normal_batch(lanes, n, d))
        log_eps = math.log(eps)
        functions = {
            "bare loop": bare(log_eps),
            "dlnjax, end only": in_dlnjax(log_eps, grid[-1:]),
            f"dlnjax, {SAVED} points": in_dlnjax(log_eps, grid),
            "diffrax, end only": in_diffrax(log_eps, grid[-1:]),
            f"diffrax, {SAVED} points": in_diffrax(log_eps, grid),
        }
        entries = [Contender(k, lambda f=f, X=X, y=y: f(X, y)) for k, f in functions.items()]
        us, them = compete(entries[0], entries[1:], 3 if quick else 7)
        print(f"  {n} × {d}, ε = {eps:g}, {len(X)} lane(s)")
        base = int(jnp.max(us.output[0]))
        for measured in (us, *them):
            # Under vmap the loop runs as often as its slowest lane asks.
            steps = int(jnp.max(measured.output[0]))
            record = measured.record(0.0, us)
            # Least times: the difference sought is smaller than the noise of a busy machine.
            ratio = record["ratio_of_least"] * base / steps
            each = record["seconds_range"][0] / steps / len(X)
            rows.append(
                {
                    "shape": [n, d],
                    "eps": eps,
                    "lanes": len(X),
                    "name": record["name"],
                    "steps": steps,
                    "seconds_a_step_and_lane": each,
                    "ratio": ratio,
                }
            )
            print(
                f"    {record['name']:34s} {steps:4d} steps  {1e6 * each:9.3g} µs a step and lane"
                f"  {ratio:5.2f}×",
                flush=True,
            )
    return rows
