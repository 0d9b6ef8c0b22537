"""Units, signs and the order of coordinates change nothing but the units.

With `X' = a R X S B P` and `y' = g R y`, where `R` rotates rows, `S` holds signs, `B` the factors
of the columns and `P` permutes them, `x' = (g/a) Pᵀ B⁻¹ S x` has the residual `g R (y − X x)`. So
the lasso with weights `ω' = B ω` is the same at `μ' = μ/(a g)`, and `z = μ x` has the factor
`1/(a² B)`. Weight decay is not weighted: `λ' = a g λ` is the same problem for `B = 1` only.

Each group of functions is one program: instances and changes are lanes of one batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln
from dlnjax._results import names_of

D = 6
SCALES = [10.0**k for k in (-12, -9, -6, -3, -1, 1, 3, 6, 9, 12)] + [2.0**k for k in (-39, -1, 40)]

# Rounding, 512 units of it in end points, times the condition of the active columns: below 1e4.
TOL = 1e-9


class Change(NamedTuple):
    R: np.ndarray
    P: np.ndarray  # the order of the columns
    S: np.ndarray
    B: np.ndarray
    a: float
    g: float

    def columns(self, v):
        """What belongs to the columns, at the new ones."""
        return v[..., self.P]

    def X(self, X):
        return self.columns(self.a * (self.R @ X * (self.S * self.B)))

    def y(self, y):
        return self.g * (self.R @ y)

    def x(self, x):
        return self.columns(self.g / self.a * (self.S / self.B * x))

    def mu(self, mu):
        return mu / (self.a * self.g)

    @property
    def has_units(self) -> bool:
        return bool(np.any(self.B != 1))


@functools.cache
def _changes(n) -> list[Change]:
    """The first one changes nothing."""
    rng = np.random.default_rng(8)
    same = Change(np.eye(n), np.arange(D), np.ones(D), np.ones(D), 1.0, 1.0)
    changes = [same]
    for c in SCALES:
        three = np.where(np.arange(D) % 2 == 0, c, 1.0)
        changes += [same._replace(a=c), same._replace(g=c), same._replace(a=c, g=1 / c)]
        changes += [same._replace(B=three)]
    for _ in range(2):
        R, P = np.linalg.qr(rng.normal(size=(n, n)))[0], rng.permutation(D)
        S, B = rng.choice([-1.0, 1.0], D), 10 ** rng.uniform(-12, 12, D)
        a, g = 10 ** rng.uniform(-6, 6, 2)
        changes += [same._replace(R=R), same._replace(P=P), same._replace(S=S)]
        changes += [Change(R, P, S, np.ones(D), a, g), Change(R, P, S, B, a, g)]
    return changes


class Instance(NamedTuple):
    X: np.ndarray
    y: np.ndarray
    decay: float = 0.0  # in units of the largest correlation
    is_tied: bool = False  # several minimisers, of which the units of columns choose one

    @property
    def size(self):
        return np.max(np.abs(self.X.T @ self.y))


def _gaussian(n, lanes, seed=0, decay=0.0) -> list[Instance]:
    rng = np.random.default_rng(seed)
    return [Instance(rng.normal(size=(n, D)), rng.normal(size=n), decay) for _ in range(lanes)]


def _signs(lanes) -> list[Instance]:
    rng = np.random.default_rng(0)
    X = rng.choice([-1.0, 1.0], (lanes, 4, D))
    return [Instance(A, A @ rng.choice([0.0, 1.0, 2.0], D), is_tied=True) for A in X]


def _obtuse(lanes) -> list[Instance]:
    """The columns have angles of 90° and more: a simplex, and two that are opposite."""
    X = np.zeros((4, D))
    X[:3, :4] = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).T
    X[3, 4:] = 1, -1
    rng = np.random.default_rng(3)
    return [Instance(X * rng.uniform(0.5, 2, D), rng.normal(size=4)) for _ in range(lanes)]


class Solved:
    """What `fn` gives for all instances under all changes: arrays `(changes, instances, ...)`."""

    def __init__(self, fn, instances: list[Instance], **arguments):
        changes = _changes(len(instances[0].y))
        lanes = [
            {
                "X": change.X(instance.X),
                "y": change.y(instance.y),
                "decay": change.a * change.g * instance.decay * instance.size,
                **{name: make(change, instance) for name, make in arguments.items()},
            }
            for change in changes
            for instance in instances
        ]
        batch = jax.tree.map(lambda *v: np.stack(v), *lanes)
        out = jax.device_get(jax.jit(jax.vmap(lambda lane: fn(**lane)))(batch))
        shape = (len(changes), len(instances))
        self.out = jax.tree.map(lambda v: v.reshape(shape + v.shape[1:]), out)
        self.changes, self.instances = changes, instances
        self.norms = np.stack([np.linalg.norm(i.X, axis=0) for i in instances])
        self.has_units = np.array([c.has_units for c in changes])[:, None]
        has_decay = np.array([i.decay > 0 for i in instances])
        is_tied = np.array([i.is_tied for i in instances])
        self.applies = ~(self.has_units & (has_decay | is_tied))

    def __getitem__(self, name):
        return self.out[name]

    def factor(self, name, rank) -> np.ndarray:
        values = np.array([getattr(c, name) for c in self.changes])
        return values.reshape(values.shape + (1,) * (rank - 1))

    def in_old_units(self, x) -> np.ndarray:
        """Of `x`, of any shape `(changes, instances, ..., d)`, and times the norms of columns."""
        back = [
            c.a / c.g * (c.S * c.B * v[..., np.argsort(c.P)])
            for c, v in zip(self.changes, x, strict=True)
        ]
        norms = self.norms.reshape(len(self.instances), *(1,) * (x.ndim - 3), D)
        return np.stack(back) * norms

    def assert_same(self, values, tol, where: bool | np.ndarray = True):
        """To `tol` of the largest entry of each instance."""
        axes = tuple(range(1, values.ndim - 1))
        size = np.max(np.abs(values[0]), axis=axes, keepdims=True)
        off = np.abs(values - values[:1]) / np.where(size > 0, size, 1)
        off = np.max(off.reshape(*off.shape[:2], -1), axis=2)
        off = np.where(self.applies & where, off, 0)
        change, lane = np.unravel_index(np.argmax(off), off.shape)
        assert np.max(off) <= tol, (self.changes[change], lane)

    def assert_successful(self, result):
        applies = self.applies.reshape(self.applies.shape + (1,) * (names_of(result).ndim - 2))
        assert np.all((names_of(result) == "successful") | ~applies)

    def assert_equal(self, values, where: bool | np.ndarray = True):
        assert np.all((values == values[:1]) | ~(self.applies & where))


def _weights(change, instance):
    return change.columns(change.B)


MU = np.geomspace(1.2, 1e3, 8)  # in units of 1 over the largest correlation


def _mu(change, instance):
    return change.mu(MU / instance.size)


POINT = np.linspace(-1, 1, D)


# --- the lasso path, and what is asked of it ----------------------------------------------------


@functools.cache
def _paths() -> Solved:
    def ask(X, y, decay, weights, mu, point, other):
        problem = dln.LeastSquares(X, y, decay)
        path = dln.lasso_path(problem, weights=weights, throw=False)
        gap = dln.suboptimality_gap(problem, point, mu, path=path)
        return {
            "result": path.result,
            "num_knots": path.num_knots,
            "knots": path.knots,
            "slopes": path.slopes,
            "x": path.x(mu),
            "monotone": path.is_monotone(),
            "variation": path.downward_variation(mu),
            "residual": path.kkt_residual(problem),
            "other": path.kkt_residual(dln.LeastSquares(X, other, decay)),
            "absolute": gap.absolute,
            "relative": gap.relative,
        }

    # More rows than columns; then fewer, by rows of zeros.
    wide = _gaussian(4, 8, seed=1) + _gaussian(4, 4, seed=2, decay=0.1) + _obtuse(4)
    wide = [i._replace(X=np.pad(i.X, ((0, 6), (0, 0))), y=np.pad(i.y, (0, 6))) for i in wide]
    return Solved(
        ask,
        _gaussian(10, 40) + wide,
        weights=_weights,
        mu=_mu,
        point=lambda change, instance: change.x(POINT),
        other=lambda change, instance: change.y(np.cos(np.arange(10.0))),
    )


def test_paths():
    paths = _paths()
    paths.assert_successful(paths["result"])
    paths.assert_equal(paths["num_knots"])
    paths.assert_same(paths.in_old_units(paths["x"]), TOL)
    paths.assert_same(paths.in_old_units(paths["slopes"]), TOL)
    paths.assert_same(paths["knots"] * paths.factor("a", 3) * paths.factor("g", 3), TOL)


def test_what_is_asked_of_paths():
    paths = _paths()
    paths.assert_equal(paths["monotone"])
    assert 5 < np.sum(paths["monotone"][0, :40]) < 35
    assert np.max(np.where(paths.applies[..., None], paths["residual"], 0)) < 1e-13
    paths.assert_same(paths["other"], TOL)
    assert np.min(paths["other"][0].max(axis=1)) > 0.1  # there is something to compare
    paths.assert_same(paths["absolute"] / paths.factor("g", 3) ** 2, TOL)
    paths.assert_same(paths["relative"], TOL)
    # The `1 + u` under the integral has units: the same where `μ` has the same.
    has_same_mu = paths.factor("a", 2) * paths.factor("g", 2) == 1
    paths.assert_same(paths["variation"] * paths.factor("a", 3) ** 2, TOL, has_same_mu)
    assert np.sum(has_same_mu) > 30 and np.sum(paths["variation"][0, :, -1] > 0) > 5


# --- points -----------------------------------------------------------------------------------


@functools.cache
def _points() -> Solved:
    def ask(X, y, decay, weights, mu, mean):
        problem = dln.LeastSquares(X, y, decay)
        point = dln.lasso(problem, mu, weights=weights, gap_tol=1e-13, throw=False)
        least = dln.basis_pursuit(problem, weights=weights, throw=False)
        constant = dln.null_space_constant(problem, throw=False)
        log_eps = jnp.full((), -1.0)
        flow = dln.Flow(mu, mean, mean, mean, mean, log_eps, constant.result, {}, False)
        return {
            "lasso": point.result,
            "x": point.x,
            "gap": point.gap,
            "objective": problem.lasso_objective(point.x, mu),
            "pursuit": least.result,
            "sparsest": least.x,
            "dual": least.dual,
            "unique": least.is_unique,
            "null space": constant.result,
            "constant": constant.value,
            "certificate": dln.certificate(problem, flow),
            "z": dln.is_z_matrix(problem),
            "always": dln.is_always_monotone(problem),
        }

    instances = _gaussian(4, 12) + _gaussian(4, 4, seed=2, decay=0.1) + _obtuse(4)
    instances += [Instance(np.eye(4, D), np.array([3.0, -2, 1, 0.5]))]
    # With fewer active columns than rows the constant of the null space is one of many.
    sparse = np.array([1.0, -2])
    instances += [Instance(i.X, i.X[:, :2] @ sparse) for i in _gaussian(4, 4, seed=5)]
    return Solved(
        ask,
        instances,
        weights=_weights,
        mu=_mu,
        mean=lambda change, instance: change.x(np.stack([POINT] * len(MU))),
    )


def test_points():
    points = _points()
    points.assert_successful(points["lasso"])
    points.assert_same(points.in_old_units(points["x"]), TOL)
    g = points.factor("g", 3)
    objective = points["objective"] / g**2
    gap = np.where(points.applies[..., None], points["gap"] / g**2 / objective, 0)
    # The tolerance, or rounding of the correlations, some units of the largest one, over κ = 1/μ.
    assert np.all(gap < 1e-13 + 64 * np.finfo(float).eps * MU)

    points.assert_successful(points["pursuit"])
    points.assert_same(points.in_old_units(points["sparsest"]), TOL)
    # The dual has the units of the weights, `B`.
    dual = [
        (c.S / c.B * v[..., np.argsort(c.P)])
        for c, v in zip(points.changes, points["dual"], strict=True)
    ]
    points.assert_same(np.stack(dual), TOL)
    points.assert_equal(points["unique"])


def test_without_weights():
    points = _points()
    free = ~points.has_units
    points.assert_same(points["certificate"] / points.factor("g", 3) ** 2, TOL, free)
    assert np.all(np.where(free, names_of(points["null space"]) == "successful", True))
    points.assert_same(points["constant"][..., None], TOL, free)
    points.assert_equal(points["always"], free)
    assert 0 < np.sum(points["always"][0]) < len(points.instances)
    # A reflection makes another sign of the products; units do not.
    is_reflected = np.array([np.any(c.S != 1) for c in points.changes])[:, None]
    assert np.all((points["z"] == points["z"][:1]) | is_reflected)
    assert 4 < np.sum(points["z"][0]) < len(points.instances)


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 4])
def test_limits(depth):
    # At depth 4 the weights are w(0) = shape⁻²; at depth 2 they are 1. Where several minimisers
    # have the same norm the units of the columns choose, in both.
    def ask(X, y, decay, mu, shape):
        problem = dln.LeastSquares(X, y, decay if depth == 2 else 0.0)
        zero = jnp.zeros_like(shape)
        network = dln.UV(shape, zero) if depth == 2 else dln.Deep(shape, shape, depth=4.0)
        limit = dln.limit_flow(network, problem, throw=False)
        end = dln.limit_point(network, problem, throw=False)
        return {
            "limit": limit.result,
            "num_jumps": limit.num_jumps,
            "jumps": limit.jumps,
            "monotone": limit.is_monotone(),
            "x": limit.x(mu),
            "slopes": limit.slopes,
            "end": end.result,
            "point": end.x,
        }

    instances = _gaussian(4, 12) + _signs(12) + _obtuse(4)
    instances += _gaussian(4, 4, seed=2, decay=0.1) if depth == 2 else []
    limits = Solved(
        ask,
        instances,
        mu=_mu,
        shape=lambda change, instance: change.columns(change.B**-0.5),
    )
    if depth == 2:
        limits.applies = limits.applies & ~limits.has_units
    limits.assert_successful(limits["limit"])
    limits.assert_equal(limits["num_jumps"])
    limits.assert_equal(limits["monotone"])
    limits.assert_same(limits["jumps"] * limits.factor("a", 3) * limits.factor("g", 3), TOL)
    limits.assert_same(limits.in_old_units(limits["x"]), TOL)
    limits.assert_same(limits.in_old_units(limits["slopes"]), TOL)
    limits.assert_successful(limits["end"])
    limits.assert_same(limits.in_old_units(limits["point"]), TOL)
