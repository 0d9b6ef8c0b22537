"""The flow by SciPy, with exact Jacobians. Without JAX, so that worker processes start fast."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed
from scipy.integrate import odeint, solve_ivp


class System(NamedTuple):
    """An ODE whose state ends with `z`. The network is `UV` with β = 1, γ = 0."""

    field: Callable[[float, np.ndarray], np.ndarray]
    jacobian: Callable[[float, np.ndarray], np.ndarray]
    start: np.ndarray
    unit: float  # of the absolute tolerance


def dual_form(X: np.ndarray, y: np.ndarray, log_eps: float) -> System:
    """State `(ν, z)`: the Jacobian has two blocks, the columns of `z` are 0."""
    (n, d), size = X.shape, -log_eps
    XT = np.ascontiguousarray(X.T)
    scale = 0.25 * np.exp(log_eps)  # q± = scale · exp(± log(1/ε) Xᵀν)

    def field(t, state):
        growth = np.exp(size * (XT @ state[:n]))
        x = scale * (growth - 1 / growth)
        return np.concatenate([y - X @ x, x])

    def jacobian(t, state):
        growth = np.exp(size * (XT @ state[:n]))
        slope = size * scale * (growth + 1 / growth)
        J = np.zeros((n + d, n + d))
        J[:n, :n] = -(X * slope) @ XT
        J[n:, :n] = slope[:, None] * XT
        return J

    return System(field, jacobian, np.zeros(n + d), 1.0)


def weight_form(X: np.ndarray, y: np.ndarray, log_eps: float) -> System:
    """State `(u, v, z)`, in rescaled time."""
    d, speed = X.shape[1], -log_eps / 2
    M, r = X.T @ X, X.T @ y

    def field(t, state):
        u, v = state[:d], state[d : 2 * d]
        x = u * v
        descent = speed * (r - M @ x)
        return np.concatenate([v * descent, u * descent, x])

    def jacobian(t, state):
        u, v = state[:d], state[d : 2 * d]
        descent = np.diag(speed * (r - M @ (u * v)))
        J = np.zeros((3 * d, 3 * d))
        curvature = -speed * M
        J[:d, :d] = v[:, None] * curvature * v
        J[:d, d : 2 * d] = v[:, None] * curvature * u + descent
        J[d : 2 * d, :d] = u[:, None] * curvature * v + descent
        J[d : 2 * d, d : 2 * d] = u[:, None] * curvature * u
        J[2 * d :, :d], J[2 * d :, d : 2 * d] = np.diag(v), np.diag(u)
        return J

    size = np.exp(log_eps / 2)
    start = np.concatenate([np.full(d, size), np.zeros(2 * d)])
    return System(field, jacobian, start, size)


def lsoda(system: System, s: np.ndarray, rtol: float) -> np.ndarray:
    """By `odeint`, whose loop over steps is compiled."""
    states = odeint(
        system.field,
        system.start,
        np.concatenate([[0.0], s]),
        Dfun=system.jacobian,
        tfirst=True,
        rtol=rtol,
        atol=0.1 * rtol * system.unit,
        mxstep=1_000_000,
    )
    return states[1:]


def lsoda_ivp(system: System, s: np.ndarray, rtol: float) -> np.ndarray:
    """By `solve_ivp`, whose loop over steps is Python."""
    return _ivp("LSODA", system, s, rtol)


def radau(system: System, s: np.ndarray, rtol: float) -> np.ndarray:
    return _ivp("Radau", system, s, rtol)


def _ivp(method: str, system: System, s: np.ndarray, rtol: float) -> np.ndarray:
    return solve_ivp(
        system.field,
        (0.0, s[-1]),
        system.start,
        method,
        s,
        rtol=rtol,
        atol=0.1 * rtol * system.unit,
        jac=system.jacobian,
    ).y.T


def loop(form, method, X, y, log_eps: float, s, rtol: float) -> np.ndarray:
    """`x_mean` of each lane in turn, `(lanes, S, d)`; NaN where SciPy gives up."""
    means = np.full((len(X), len(s), X.shape[2]), np.nan)
    with np.errstate(all="ignore"):  # trial steps overflow
        for i in range(len(X)):
            z = method(form(X[i], y[i], log_eps), s, rtol)[:, -X.shape[2] :]
            if len(z) == len(s):
                means[i] = z / s[:, None]
    return means


def parallel(pool: Parallel, form, method, X, y, log_eps, s, rtol) -> np.ndarray:
    """The same over the processes of `pool`, each with its share of the lanes."""
    parts = np.array_split(np.arange(len(X)), 2)
    work = (delayed(loop)(form, method, X[i], y[i], log_eps, s, rtol) for i in parts)
    means: Any = pool(work)
    return np.concatenate(means)
