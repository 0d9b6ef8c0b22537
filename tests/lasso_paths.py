"""Batches of lasso paths, and their optimality conditions, that several test files share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from families import FAMILIES
from numpy.typing import ArrayLike

import dlnjax as dln

LANES = 40
GENERIC = ["generic 3×4", "generic 10×6", "generic 20×40"]
MEDIUM = "generic 10×6"


@functools.cache
def instances_of(name):
    instances = [FAMILIES[name](np.random.default_rng(seed)) for seed in range(LANES)]
    X, y = (np.stack(a) for a in zip(*instances, strict=True))
    X.flags.writeable = y.flags.writeable = False
    return X, y


def pad(X, y, n, d):
    """The same problems with zero rows and columns: fewer shapes to compile."""
    _, n_0, d_0 = X.shape
    return np.pad(X, ((0, 0), (0, n - n_0), (0, d - d_0))), np.pad(y, ((0, 0), (0, n - n_0)))


def sample(path):
    """Knots, the middles between them, and the last ray to its end."""
    last = path.knots[-1]
    middle = (path.knots[1:] + path.knots[:-1]) / 2
    ray = last * jnp.array([1.5, 10, 1e3, jnp.inf], last.dtype)
    p = jnp.concatenate([path.knots, middle, ray])
    p = jnp.where(path.num_knots == 0, jnp.inf, p)
    return path, p, path.x(p)


@functools.partial(jax.jit, static_argnames="positive")
def _solve_lanes(X, y, decay, weights, positive):
    def solve(X, y, decay, weights):
        problem = dln.LeastSquares(X, y, weight_decay=decay)
        return sample(dln.lasso_path(problem, positive=positive, weights=weights, throw=False))

    return jax.vmap(solve)(X, y, decay, weights)


def solve_paths(X, y, decay: ArrayLike = 0.0, weights: ArrayLike = 1.0, positive=False):
    """One path per lane, with `p` and `x(p)` at its sample points."""
    lanes, d = len(X), X.shape[2]
    decay = np.broadcast_to(np.asarray(decay, X.dtype), lanes)
    weights = np.broadcast_to(np.asarray(weights, X.dtype), (lanes, 2, d))
    path, p, x = _solve_lanes(X, y, decay, weights, positive=positive)
    return path, np.asarray(p), np.asarray(x)


x_at = jax.jit(jax.vmap(lambda path, p: path.x(p)))


def is_flagged(path):
    return np.asarray(path.result != dln.RESULTS.successful)


def violations(X, y, p, x, decay: ArrayLike = 0.0, weights: ArrayLike = 1.0, positive=False):
    """The worst violation of each lane, relative to its largest correlation."""
    lanes, d = len(X), X.shape[2]
    decay = np.broadcast_to(decay, lanes)[:, None, None]
    upper, lower = np.moveaxis(np.broadcast_to(weights, (lanes, 2, d)), 1, 0)[:, :, None, :]
    upper, lower = decay + upper / p[:, :, None], decay + lower / p[:, :, None]
    c = np.einsum("ln,lnd->ld", y, X)[:, None, :] - x @ np.swapaxes(X, 1, 2) @ X
    excess = c - upper if positive else np.maximum(c - upper, -c - lower)
    minus = np.abs(c + lower)
    if positive:
        # Rounding has no sign at the end point, where a negative entry counts by its effect
        # on Xᵀ(y − Xx).
        effect = np.abs(x) * np.sum(X**2, axis=1)[:, None, :]
        minus = np.where(np.isinf(p)[:, :, None], effect, np.inf)
    active = np.where(x > 0, np.abs(c - upper), np.where(x < 0, minus, 0))
    worst = np.max(np.maximum(excess, active), axis=(1, 2))
    return worst / np.max(np.abs(np.einsum("ln,lnd->ld", y, X)), axis=1)


def close(a, b, rtol):
    """Whether arrays agree relative to the largest entry of each lane."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return np.max(np.abs(a - b), axis=1) <= rtol * np.max(np.abs(b), axis=1)
