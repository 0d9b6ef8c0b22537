"""The gap, its certificate, η and the ensemble of [B25]."""

import functools
import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import dlnjax as dln
from dlnjax.papers import b25

N, D, LANES = 6, 4, 50
MU = np.geomspace(0.05, 20, 12)
KINDS = {"UV": dln.UV, "USquared": dln.USquared}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def _instances(kind: str):
    """`n = 6 > d` and, with three empty rows, `n = 3 < d`; without and with weight decay; from
    `ε = 0.1` to `log ε = −2000`. The last two lanes have `y = 0`."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    X, truth = rng.normal(size=(LANES, N, D)), rng.normal(size=(LANES, D))
    y = np.einsum("bni,bi->bn", X, truth) + rng.normal(size=(LANES, N))
    X[::2, 3:] = y[::2, 3:] = 0
    y[-2:] = 0
    decay = np.where(np.arange(LANES) // 2 % 2 == 0, 0.0, rng.uniform(0.05, 1, LANES))
    log_eps = np.resize(np.log([1e-1, 1e-2, 1e-5, 1e-20, 1e-100]), LANES)
    log_eps[::5] = -2000
    points = rng.normal(size=(LANES, len(MU), D)) * rng.choice([0, 1], (LANES, len(MU), D))
    points[:, 0] = 0
    return X, y, decay, log_eps, points if kind == "UV" else abs(points)


WHERE = ["flow", "points", "path", "below"]


@eqx.filter_jit
def _analyse(network, X, y, decay, log_eps, points, weights) -> dict:
    """Everything that is asked of a lane, in one compilation for each kind of network."""

    def lane(X, y, decay, log_eps, points, weights):
        problem = dln.LeastSquares(X, y, decay)
        positive = network.positive
        path = dln.lasso_path(problem, positive=positive, weights=weights, throw=False)
        s = jnp.asarray([0.0, *MU])
        flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, throw=False)
        best = path.x(s[1:])
        x = jnp.stack([flow.x_mean[1:], points, best, -1 - points])
        gap = dln.suboptimality_gap(problem, x, s[1:], path=path)
        objective = problem.lasso_objective(x, s[1:])
        largest = jnp.max(problem.r if positive else jnp.abs(problem.r))
        down = path.downward_variation(s[1:])
        return {
            "path": path,
            "flow": flow,
            "gap": dict(zip(WHERE, gap.absolute, strict=True)),
            "relative gap": dict(zip(WHERE, gap.relative, strict=True)),
            "objective": dict(zip(WHERE, objective, strict=True)),
            "best": best,
            "certificate": dln.certificate(problem, flow),
            "largest": largest,
            "around the start": path.x(jnp.stack([0.999 / largest, 1.001 / (largest - decay)])),
            "monotone": path.is_monotone(),
            "down": down,
            "eta": dln.eta(decay, s[1:], down),
        }

    return jax.vmap(lane)(X, y, decay, log_eps, points, weights)


@functools.cache
def _analysed(kind: str, weighted: bool = False) -> dict:
    arrays = _instances(kind)
    weights = np.ones((LANES, 2, D))
    if weighted:
        weights = np.random.default_rng(3).uniform(0.5, 2, weights.shape)
    network = dln.USquared(np.ones(D)) if kind == "USquared" else dln.UV(np.ones(D), np.zeros(D))
    out = _analyse(network, *map(jnp.asarray, (*arrays, weights)))
    assert bool(jnp.all(out["path"].result == dln.RESULTS.successful))
    assert bool(jnp.all(out["flow"].result == dln.RESULTS.successful))
    return jax.tree.map(np.asarray, out)


# --- the suboptimality gap ----------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("where", ["flow", "points"])
def test_gap_is_the_difference_of_objectives(kind, where):
    out = _analysed(kind)
    gap, objective = np.asarray(out["gap"][where]), np.asarray(out["objective"][where])
    least = np.asarray(out["objective"]["path"])
    # Rounding is that of the objectives; the gap itself is a sum of small terms.
    assert np.abs(gap - (objective - least)).max() < 1e-13 * objective.max()
    assert np.min(gap) > -1e-15 * objective.max()
    relative = np.asarray(out["relative gap"][where])[least > 0]
    np.testing.assert_allclose(relative, gap[least > 0] / least[least > 0], rtol=1e-12)


@EVERY_KIND
def test_gap_vanishes_on_the_path(kind):
    out = _analysed(kind)
    # The compiler rounds the two evaluations of the path differently.
    assert np.all(np.abs(out["gap"]["path"]) <= 1e-15 * out["objective"]["path"])
    assert np.all(np.abs(out["relative gap"]["path"]) <= 1e-15)


@EVERY_KIND
def test_relative_gap_where_the_least_objective_is_zero(kind):
    # y = 0: 0/0 is 0 where the point is optimal, inf where it is not.
    out = _analysed(kind)
    gap, relative = (np.asarray(out[key]["points"])[-2:] for key in ("gap", "relative gap"))
    np.testing.assert_array_equal(gap[:, 0], 0)
    np.testing.assert_array_equal(relative[:, 0], 0)
    assert (gap[:, 1:] > 0).any()
    np.testing.assert_array_equal(relative, np.where(gap > 0, np.inf, 0))


def test_gap_of_an_infeasible_point():
    out = _analysed("USquared")
    assert np.isposinf(out["gap"]["below"]).all()
    assert np.isposinf(out["relative gap"]["below"]).all()
    assert np.isfinite(_analysed("UV")["gap"]["below"]).all()


def test_gap_with_weights():
    X, y, decay, _, points = _instances("UV")
    out = _analysed("UV", weighted=True)
    weights = np.asarray(out["path"].weights)[:, None]
    assert weights.std() > 0.1

    def objective(x):
        residual = np.einsum("bni,bmi->bmn", X, x) - y[:, None]
        bound = decay[:, None, None, None] + weights / MU[None, :, None, None]
        cost = np.where(x > 0, bound[:, :, 0], bound[:, :, 1]) * abs(x)
        return 0.5 * np.sum(residual**2, axis=-1) + cost.sum(axis=-1)

    want = objective(points) - objective(np.asarray(out["best"]))
    assert np.abs(out["gap"]["points"] - want).max() < 1e-13 * want.max()


@EVERY_KIND
def test_gap_against_scikit_learn(kind):
    X, y, decay, _, _ = _instances(kind)
    out = _analysed(kind)
    for i in range(8):
        for j in range(3, len(MU), 3):
            kappa = decay[i] + 1 / MU[j]
            lasso = Lasso(
                alpha=kappa / N, fit_intercept=False, tol=1e-12, positive=kind == "USquared"
            )
            x = lasso.set_params(max_iter=100_000).fit(X[i], y[i]).coef_
            least = 0.5 * np.sum((X[i] @ x - y[i]) ** 2) + kappa * np.sum(abs(x))
            want = out["objective"]["flow"][i, j] - least
            assert abs(out["gap"]["flow"][i, j] - want) < 1e-10 * (1 + least)


def test_gap_refuses():
    path = jax.tree.map(lambda v: v[0], _analysed("UV")["path"])
    problem = dln.LeastSquares(np.eye(N, D), np.ones(N))
    for mu in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match=re.escape(f"`mu` must be positive, got {mu}. Start")):
            dln.suboptimality_gap(problem, np.zeros(D), mu, path=path)


# --- the certificate -----------------------------------------------------------------------------


@EVERY_KIND
def test_certificate_bounds_the_gap(kind):
    # 50 instances at 12 times for each network: 1200 pairs.
    out = _analysed(kind)
    bound, gap = np.asarray(out["certificate"]), np.asarray(out["gap"]["flow"])
    assert np.isposinf(bound[:, 0]).all()  # s = 0
    assert np.isfinite(bound[:, 1:]).all()
    assert np.all(bound[:, 1:] >= gap - 1e-14 * np.asarray(out["objective"]["flow"]))


@EVERY_KIND
def test_certificate_is_tight_at_small_eps(kind):
    # The residual of the average becomes dual feasible (DESIGN §2): on monotone paths bound and
    # gap both vanish like 1/log(1/ε).
    out = _analysed(kind)
    log_eps = _instances(kind)[3]
    chosen = (log_eps == -2000) & np.asarray(out["monotone"])
    assert chosen.sum() >= 4
    scale = np.max(out["objective"]["path"], axis=1)[chosen]
    worst = np.max(out["certificate"][:, 1:], axis=1)[chosen] / np.where(scale > 0, scale, 1)
    assert worst.max() < 20 / 2000


# --- monotonicity, η ------------------------------------------------------------------------------


@EVERY_KIND
def test_eta(kind):
    out, decay = _analysed(kind), _instances(kind)[2][:, None]
    down, s = np.asarray(out["down"]), MU[None, :]
    want = (1 + decay * s) * (np.sqrt(down) / s + down / s**2)
    np.testing.assert_allclose(out["eta"], want, rtol=1e-14)
    monotone = np.asarray(out["monotone"])
    assert 0 < monotone.sum() < LANES
    # Rounding of slopes that are 0 is all that a monotone path goes down by.
    assert np.max(out["eta"][monotone]) < 1e-6
    assert np.all(np.diff(down, axis=1) >= 0)
    assert np.all(down[~monotone, -1] > 1e-3)


def test_eta_in_numbers():
    # (1 + 0.5·2)(√4/2 + 4/4) = 4, and 0 on monotone paths.
    assert float(dln.eta(0.5, 2.0, 4.0)) == 4
    np.testing.assert_array_equal(dln.eta(0.5, np.array([1.0, 2.0]), np.zeros(2)), [0, 0])
    with pytest.raises(ValueError, match="`s` must be positive, got 0.0"):
        dln.eta(0.0, 0.0, 1.0)


# --- [B25] ---------------------------------------------------------------------------------------


@EVERY_KIND
def test_small_mu(kind):
    # B25-small-s: up to μ = 1/‖r‖_∞ (1/max r for the positive lasso) the path is exactly 0; with
    # λ = 0 it starts there.
    out = _analysed(kind)
    largest = np.asarray(out["largest"])
    before, after = np.moveaxis(np.asarray(out["around the start"]), 1, 0)
    starts = largest > _instances(kind)[2]
    assert starts.sum() > 30
    np.testing.assert_array_equal(before[largest > 0], 0)
    assert np.all(np.abs(after[starts]).max(axis=1) > 0)


KEY = jr.key(20)


def test_monotone_fraction():
    indices = jnp.arange(b25.STATED_INSTANCES)
    summary = b25.monotone(KEY, indices)
    assert bool(summary.is_valid.all())
    fraction = float(jnp.mean(summary.is_monotone))
    claim = b25.monotone_claim(fraction, len(indices))
    assert claim.stated == 0.76 and claim.measured == fraction
    assert claim.tolerance == pytest.approx(3 * math.sqrt(2 * 0.76 * 0.24 / 1000) + 0.005)
    assert claim.holds

    # Instance i is a function of (key, i) alone.
    shuffled = jr.permutation(jr.key(1), indices)
    again = b25.monotone(KEY, shuffled)
    np.testing.assert_array_equal(again.is_monotone, summary.is_monotone[shuffled])


@pytest.mark.parametrize("fraction, holds", [(0.76, True), (0.70, True), (0.69, False)])
def test_monotone_claim(fraction, holds):
    assert b25.monotone_claim(fraction, 1000).holds == holds


def test_instances_depend_on_key_and_index_only():
    one = b25.instance(KEY, jnp.asarray(7))
    assert one.X.shape == (3, 4) and one.y.shape == (3,) and float(one.weight_decay) == 0
    many = jax.vmap(lambda i: b25.instance(KEY, i))(jnp.asarray([3, 7, 5]))
    np.testing.assert_array_equal(many.X[1], one.X)
    np.testing.assert_array_equal(many.y[1], one.y)
    for key, index in ((KEY, 8), (jr.key(21), 7)):
        other = b25.instance(key, jnp.asarray(index))
        assert np.abs(other.X - one.X).min() > 0 and np.abs(other.y - one.y).min() > 0


def test_the_gap_to_another_problems_path_is_none():
    rng = np.random.default_rng(8)
    X, y = rng.normal(size=(40, 6, 5)), rng.normal(size=(40, 6))
    X[::3, :, 1] = X[::3, :, 0]
    X = X * 10.0 ** rng.uniform(-4, 4, size=(40, 1, 5))
    mu = np.geomspace(0.3, 1e3, 5)

    @jax.jit
    @jax.vmap
    def gaps(X, y, other):
        problem = dln.LeastSquares(X, y)
        unit = 1 / jnp.max(jnp.abs(problem.r))
        paths = [dln.lasso_path(p) for p in (problem, dln.LeastSquares(X, other))]
        paths.append(dln.lasso_path(dln.LeastSquares(X, y, 0.1 / unit)))
        # The weights of a path are part of the lasso that it is compared with.
        size = jnp.sqrt(problem.gram_diagonal())
        paths.append(dln.lasso_path(problem, weights=size / jnp.max(size)))
        x = 0.9 * paths[0].x(mu * unit)
        gap = lambda path: dln.suboptimality_gap(problem, x, mu * unit, path=path).absolute
        return jnp.stack([gap(path) for path in paths])

    own, other, decayed, weighted = np.moveaxis(gaps(X, y, rng.normal(size=(40, 6))), 1, 0)
    assert np.all(own >= 0) and np.all(weighted >= 0)
    # All beyond the first knots is another's; before them everything is 0.
    assert np.all(np.isnan(other[:, 1:])) and np.all(np.isnan(decayed[:, 1:]))
    assert not np.any(other < 0)

    problem, path = dln.LeastSquares(X[0], y[0]), dln.lasso_path(dln.LeastSquares(X[0], -y[0]))
    s = 10 / np.max(np.abs(X[0].T @ y[0]))
    with pytest.raises(
        ValueError, match="`path` is not optimal for this problem at μ = .*Pass the"
    ):
        dln.suboptimality_gap(problem, np.zeros(5), s, path=path)
    network = dln.UV(np.ones(5), np.zeros(5))
    limit = dln.limit_flow(network, problem)
    assert np.all(np.isfinite(limit.dual(problem, s)))
    with pytest.raises(ValueError, match="This is the limit process of another problem"):
        dln.limit_flow(network, dln.LeastSquares(X[0], -y[0])).dual(problem, s)


def test_the_largest_gap_of_a_failed_lane_is_nan():
    """Also in a large batch, where XLA's maximum drops NaN."""
    keys = jax.random.split(jax.random.key(0), 100)
    s = jnp.geomspace(0.5, 20, 60)

    @jax.jit
    @jax.vmap
    def measured(key, bad):
        of_X, of_y = jax.random.split(key)
        X, y = jax.random.normal(of_X, (3, 4)), jax.random.normal(of_y, (3,))
        problem = dln.LeastSquares(X, jnp.where(bad, jnp.nan, y))
        network = dln.UV(jnp.ones(4), jnp.zeros(4))
        flow = dln.gradient_flow(network, problem, s, eps=1e-3, throw=False)
        path = dln.lasso_path(problem, throw=False)
        of_flow = (problem, flow, path)
        return dln.metrics.max_relative_gap(*of_flow), dln.metrics.max_gap(*of_flow)

    bad = jnp.arange(100) == 7
    for value in measured(keys, bad):
        np.testing.assert_array_equal(jnp.isnan(value), bad)
