"""Batches of ten flows that the tests of `gradient_flow` share."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import dlnjax as dln

D = 4
ROWS = {"rows": 3, "coordinates": 6}  # the state space that `gradient_flow` chooses at d = 4
KINDS = {"UV": dln.UV, "USquared": dln.USquared}
LOG_EPS = [math.log(1e-2), math.log(1e-5), math.log(1e-20), math.log(1e-100), -2000.0]
DECAYS = [0.0, 0.3]
LANES = len(LOG_EPS) * len(DECAYS)
TIMES = np.linspace(0, 7.5, 16)

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
EVERY_SPACE = pytest.mark.parametrize("space", ROWS)


class Batch(NamedTuple):
    """Ten flows: the leading axis of every array."""

    weights: tuple[np.ndarray, ...]
    data: tuple[np.ndarray, np.ndarray]
    decay: np.ndarray
    s: np.ndarray
    log_eps: np.ndarray
    rtol: np.ndarray


@eqx.filter_jit
def _flows(kind, make, batch, formulation=None) -> dln.Flow:
    """One compilation for all batches of one network, one kind of problem and one shape."""

    def lane(batch):
        return dln.gradient_flow(
            kind(*batch.weights),
            make(*batch.data, weight_decay=batch.decay),
            batch.s,
            log_eps=batch.log_eps,
            rtol=batch.rtol,
            atol=batch.rtol / 10,
            formulation=formulation,
            throw=False,
        )

    return jax.vmap(lane)(batch)


def solve_batch(
    kind: str, batch: Batch, make: Callable = dln.LeastSquares, formulation=None
) -> dln.Flow:
    flow = _flows(KINDS[kind], make, jax.tree.map(jnp.asarray, batch), formulation)
    return jax.tree.map(np.asarray, flow)


def over_lanes(values) -> np.ndarray:
    """Repeat `values` cyclically over the lanes."""
    return np.resize(np.asarray(values, float), LANES)


def make_batch(kind: str, space: str, **changes) -> Batch:
    """Two instances with non-unit shapes, without and with weight decay, at every `ε`."""
    rng = np.random.default_rng(sum(map(ord, kind + space)))
    each = lambda array: np.repeat(array, len(LOG_EPS), axis=0)
    m, n = len(DECAYS), ROWS[space]
    X, truth = rng.normal(size=(m, n, D)), rng.normal(size=(m, D))
    if kind == "USquared":
        truth = abs(truth)
    y = np.einsum("bni,bi->bn", X, truth) + 0.3 * rng.normal(size=(m, n))
    u = each(rng.uniform(0.5, 2, (m, D)) * rng.choice([-1, 1], (m, D)))
    v = each(rng.uniform(-0.4, 0.4, (m, D)))
    batch = Batch(
        weights=(u, v) if kind == "UV" else (u,),
        data=(each(X), each(y)),
        decay=each(np.array(DECAYS)),
        s=np.tile(TIMES, (LANES, 1)),
        log_eps=over_lanes(LOG_EPS),
        rtol=np.full(LANES, 1e-7),
    )
    return batch._replace(**changes)


@functools.cache
def solved(kind: str, space: str) -> tuple[Batch, dln.Flow]:
    batch = make_batch(kind, space)
    return batch, solve_batch(kind, batch)


def succeeded(flow: dln.Flow) -> np.ndarray:
    return np.asarray(flow.result == dln.RESULTS.successful)


def _initial_dual(weights, log_eps) -> tuple[np.ndarray, np.ndarray]:
    """`w(0)` and the signs of its rows, from DESIGN §2 rather than from the package."""
    if len(weights) == 1:
        shape, sign = np.stack(weights), np.array([1.0])
    else:
        u, v = weights
        shape, sign = np.stack([u + v, u - v]) / 2, np.array([1.0, -1.0])
    return 1 + np.log(shape**2) / log_eps, sign


def link_of(weights, decay, log_eps, s, dual) -> np.ndarray:
    """`x` where the dual is `g = Xᵀν` at time `s`."""
    start, sign = _initial_dual(weights, log_eps)
    return sign @ np.exp(log_eps * (start - np.outer(sign, dual) + decay * s))


def radau(X, y, weights, decay, log_eps, s) -> np.ndarray:
    """`z` by SciPy, on the dual form with its exact Jacobian."""
    n, d = X.shape
    start, sign = _initial_dual(weights, log_eps)

    def q(t, state):
        return np.exp(log_eps * (start - np.outer(sign, state[:n] @ X) + decay * t))

    def field(t, state):
        x = sign @ q(t, state)
        return np.concatenate([y - X @ x, x])

    def jacobian(t, state):
        slope = -log_eps * np.sum(q(t, state), axis=0)
        out = np.zeros((n + d, n + d))
        out[:n, :n] = -(X * slope) @ X.T
        out[n:, :n] = slope[:, None] * X.T
        return out

    with np.errstate(all="ignore"):  # rejected trial steps overflow
        solution = solve_ivp(
            field,
            (0, s[-1]),
            np.zeros(n + d),
            method="Radau",
            t_eval=s,
            rtol=1e-11,
            atol=1e-13,
            jac=jacobian,
        )
    assert solution.success
    return solution.y[n:].T


def decoupled(kind: str, log_eps, decay, rtol=1e-11, positive=False):
    """Orthogonal columns: four scalar flows a lane, `ℓ = Σ ½ mᵢxᵢ² − rᵢxᵢ`."""
    batch = make_batch(kind, "coordinates")
    rng = np.random.default_rng(1)
    scale, y = rng.uniform(0.5, 2, (LANES, D)), rng.uniform(0.6, 2, (LANES, 6))
    if not positive:
        y *= rng.choice([-1, 1], y.shape)
    X = np.zeros((LANES, 6, D))
    X[:, range(D), range(D)] = scale
    r = scale * y[:, :D]
    batch = batch._replace(
        data=(X, y), log_eps=over_lanes(log_eps), decay=over_lanes(decay), rtol=np.full(LANES, rtol)
    )
    return batch, scale**2, r


def solve_alone(kind: str, batch: Batch, i: int, s, **options) -> dln.Flow:
    """One lane, as a user calls it, at one time."""
    options = dict(log_eps=batch.log_eps[i], max_steps=2000) | options
    network = KINDS[kind](*(w[i] for w in batch.weights))
    problem = dln.LeastSquares(*(a[i] for a in batch.data), weight_decay=batch.decay[i])
    return dln.gradient_flow(network, problem, np.array([s]), **options)
