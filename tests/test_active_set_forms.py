"""The two forms of the active set, whichever a shape would get: against NumPy, exact rationals,
and optimality conditions."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, ILL_CONDITIONED, exact_path
from lasso_paths import instances_of, is_flagged, pad, solve_paths, violations

import dlnjax as dln
from dlnjax._active_set import choice
from dlnjax._active_set.state import Event, Scaled
from dlnjax._active_set.tableau import Tableau
from dlnjax._active_set.tolerances import Tolerances


@pytest.fixture(params=["tableau", "compact"])
def form(request, monkeypatch):
    monkeypatch.setattr(choice, "has_tableau", lambda problem: request.param == "tableau")
    jax.clear_caches()  # the form is part of a trace
    yield request.param
    jax.clear_caches()


def test_chosen_by_shape():
    shapes = [(3, 4), (20, 40), (50, 100), (442, 10), (10, 40), (100, 200)]
    zeros = lambda n, d: dln.LeastSquares(jnp.zeros((n, d)), jnp.zeros(n))
    chosen = [choice.has_tableau(zeros(n, d)) for n, d in shapes]
    assert chosen == [True, True, True, True, False, False]


def test_families(form):
    # All in one shape: one program a form.
    for name in FAMILIES:
        X, y = instances_of(name)
        X, y = pad(X, y, 20, 40)
        path, p, x = solve_paths(X, y)
        flagged, worst = is_flagged(path), violations(X, y, p, x)
        bad = flagged | ~(worst <= 1e-9)
        if name in ILL_CONDITIONED:
            bad = ~flagged & ~(worst <= 1e-6)
        assert not np.any(bad), (name, np.flatnonzero(bad), flagged[bad], worst[bad])


def test_ill_conditioned_columns_against_exact_rationals(form):
    # Powers of 5 to 10, of condition number 1e4 to 1e5 once scaled to norm 1. 12 digits are left
    # of the knots, and refinement and new factorisations are what keeps them.
    rng = np.random.default_rng(2)
    powers = np.vander(np.arange(5, 11), 4, increasing=True)
    y = rng.integers(-99, 99, (10, 6))
    path, _, x = solve_paths(np.stack([powers] * 10).astype(float), y.astype(float))
    assert not np.any(is_flagged(path))
    rational = [[Fraction(int(v)) for v in row] for row in powers]
    for i in range(10):
        kinks, points = exact_path(rational, [Fraction(int(v)) for v in y[i]])
        K = len(kinks)
        assert path.num_knots[i] == K
        knots = np.array([float(1 / kink) for kink in kinks])
        np.testing.assert_allclose(path.knots[i, :K], knots, rtol=1e-10)
        points = np.array([[float(v) for v in point] for point in points])
        norms = np.linalg.norm(powers, axis=0)
        error = np.abs((x[i, :K] - points[:K]) * norms).max()
        assert error <= 1e-10 * np.abs(points * norms).max()


def _numpy_tableau(M, active):
    """`T` by NumPy's solver and the formula of its definition."""
    A = np.flatnonzero(active)
    table = M.copy()
    if len(A):
        inverse = np.linalg.inv(M[np.ix_(A, A)])
        table = M - M[:, A] @ inverse @ M[A]
        table[A], table[:, A] = inverse @ M[A], M[:, A] @ inverse
        table[np.ix_(A, A)] = -inverse
    return table


def test_tableau_after_many_pivots():
    rng = np.random.default_rng(0)
    problem = dln.LeastSquares(rng.normal(size=(12, 7)), rng.normal(size=12))
    scaled, tol = Scaled(problem, jnp.ones((2, 7)), False), Tolerances(jnp.zeros(()).dtype)
    M = np.asarray(scaled.scale)[:, None] * np.asarray(problem.gram()) * np.asarray(scaled.scale)
    tableau = Tableau.empty(problem, scaled)

    @jax.jit
    def step(tableau, j, leaves):
        tableau = tableau.prepared(tol)
        sign = jnp.where(leaves, 0.0, 1.0)
        rhs = jnp.stack([scaled.excess[0, j], scaled.b[0, j]])
        event = Event(jnp.ones(()), j, sign, rhs, j, leaves)
        no = jnp.asarray(False)
        tableau, possible, _, _ = tableau.pivot(event, tableau.gram[j], tol, no, no)
        return tableau.prepared(tol), possible

    active = np.zeros(7, bool)
    for j in rng.integers(0, 7, 60):
        leaves = bool(active[j])
        tableau, possible = step(tableau, jnp.asarray(j, jnp.int32), jnp.asarray(leaves))
        assert possible
        active[j] = not leaves
        want = _numpy_tableau(M, active)
        np.testing.assert_allclose(tableau.table, want, atol=1e-12 * np.abs(want).max())
        np.testing.assert_allclose(tableau.pivots, np.diag(tableau.table), atol=1e-12)
        A = np.flatnonzero(active)
        for row, rhs in zip(
            np.asarray(tableau.solution), (scaled.excess[0], scaled.b[0]), strict=True
        ):
            u = np.zeros(7)
            u[A] = np.linalg.solve(M[np.ix_(A, A)], np.asarray(rhs)[A])
            np.testing.assert_allclose(row, u, atol=1e-12 * max(1, np.abs(u).max()))


def test_a_spoilt_tableau_is_made_anew():
    # An error of 1e-3 in `T`: the solutions are still those of `M`.
    rng = np.random.default_rng(0)
    problem = dln.LeastSquares(rng.normal(size=(12, 7)), rng.normal(size=12))
    scaled, tol = Scaled(problem, jnp.ones((2, 7)), False), Tolerances(jnp.zeros(()).dtype)
    M = np.asarray(scaled.scale)[:, None] * np.asarray(problem.gram()) * np.asarray(scaled.scale)
    exact = Tableau.empty(problem, scaled)
    no = jnp.asarray(False)

    def join(tableau, j):
        tableau = tableau.prepared(tol)
        rhs = jnp.stack([scaled.excess[0, j], scaled.b[0, j]])
        j = jnp.asarray(j, jnp.int32)
        event = Event(jnp.ones(()), j, jnp.ones(()), rhs, j, no)
        return tableau.pivot(event, tableau.gram[j], tol, no, no)

    for j in range(3):
        exact, *_ = join(exact, j)
    exact = exact.prepared(tol)
    spoilt = Tableau.empty(problem, scaled)
    for name in exact.__dataclass_fields__:
        object.__setattr__(spoilt, name, getattr(exact, name))
    object.__setattr__(spoilt, "table", exact.table + 1e-3)
    spoilt, *_, undecided = join(spoilt, 3)
    assert not undecided and spoilt.is_vague  # the residuals tell
    again, possible, is_stale, _ = join(spoilt, 4)
    assert is_stale and not possible  # one refinement is not enough
    good = again.factorize().prepared(tol)
    np.testing.assert_allclose(good.table, _numpy_tableau(M, np.arange(7) < 4), atol=1e-12)
    want = np.linalg.solve(M[:4, :4], np.asarray(scaled.excess)[0, :4])
    np.testing.assert_allclose(good.solution[0, :4], want, atol=1e-12)
