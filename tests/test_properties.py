"""What holds for every problem, however degenerate or badly scaled: hypothesis draws the values, of
two shapes, so that each program is compiled once; smaller problems are padded with zeros.

Optimality conditions are evaluated in NumPy, in units where `X` and `y` are of order 1, and are met
relative to `max |Xᵀy|`, but for what `c = Xᵀ(y − Xx)` loses to rounding: 64 units of `‖Xⱼ‖ (‖y‖ +
Σ ‖Xₖ‖|xₖ|)`. The solvers flag what violates them by more than `eps^½ = 1.5e-8` with columns of unit
norm; 1e-6 leaves room for other columns, and is far below what a wrong active set violates.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st
from instances import (
    WELL_POSED,
    WIDE,
    Instance,
    correlation,
    found,
    instances,
    scaled,
    violation,
)

import dlnjax as dln

# The same examples everywhere.
settings.register_profile(
    "reproducible",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("reproducible")
FEW, MANY = settings(max_examples=40), settings(max_examples=150)


# --- programs ---------------------------------------------------------------------------------


def _networks(u):
    return dln.UV(u, 0 * u)


@jax.jit
def _path(data, mu):
    problem = dln.LeastSquares(*data)
    path = dln.lasso_path(problem, throw=False)
    middle = jnp.sqrt(path.knots[:-1]) * jnp.sqrt(path.knots[1:])
    at = jnp.concatenate([path.knots, middle, 10 * path.knots[-1:], mu])
    return path, at, path.x(at)


@jax.jit
def _limit(data, u):
    problem = dln.LeastSquares(*data)
    limit = dln.limit_flow(_networks(u), problem, throw=False)
    middle = jnp.sqrt(limit.knots[:-1]) * jnp.sqrt(limit.knots[1:])
    at = jnp.concatenate([limit.knots, middle, 10 * limit.knots[-1:]])
    return limit, at, limit.x(at), limit.plateau(at)


@jax.jit
def _flow(data, u, s, log_eps):
    problem, network = dln.LeastSquares(*data), _networks(u)
    flow = dln.gradient_flow(network, problem, s, log_eps=log_eps, max_steps=8192, throw=False)
    return flow, dln.certificate(problem, flow)


@jax.jit
def _end(data, u, log_eps):
    return dln.end_point(_networks(u), dln.LeastSquares(*data), log_eps=log_eps, throw=False)


@jax.jit
def _limit_point(data, u):
    return dln.limit_point(_networks(u), dln.LeastSquares(*data), throw=False)


@jax.jit
def _basis_pursuit(data):
    return dln.basis_pursuit(dln.LeastSquares(*data), throw=False)


@jax.jit
def _lasso(data, mu):
    return dln.lasso(dln.LeastSquares(*data), mu, throw=False)


def succeeded(solution, instance: Instance) -> bool:
    """Whether it is not flagged, as what is well posed must not be."""
    good = bool(solution.result == dln.RESULTS.successful)
    assert good or instance.defect not in WELL_POSED, dln.RESULTS[solution.result]
    return good


def close(a, b, rtol: float) -> bool:
    """Relative to the largest entry."""
    a, b = np.asarray(a), np.asarray(b)
    return bool(np.max(np.abs(a - b), initial=0) <= rtol * np.max(np.abs(b), initial=0))


# --- the lasso path and the limit process -----------------------------------------------------


def path_of(instance: Instance):
    mu = np.array([0.5, 1.5, 20.0, 1e4]) / (instance.unit * instance.size)
    path, at, x = _path(instance.data(), mu)
    at, x = np.asarray(at) * instance.unit, np.asarray(x) / instance.x_unit
    return path, at, x


@MANY
@found
@given(instances())
def test_paths_are_optimal_or_flagged(instance):
    path, at, x = path_of(instance)
    if succeeded(path, instance):
        meant = at > 0
        kappa = instance.decay + 1 / np.where(meant, at, 1)
        assert np.max(violation(instance, x, kappa)[meant]) <= 1e-6
        assert np.all(x[at * (instance.size - instance.decay) < 1 - 1e-9] == 0)


@MANY
@found
@given(instances())
def test_limits_are_complementary_or_flagged(instance):
    limit, at, x, plateaus = _limit(instance.data(), instance.shape())
    if succeeded(limit, instance):
        at, x = np.asarray(at) * instance.unit, np.asarray(x) / instance.x_unit
        meant = at > 0
        kappa = instance.decay + 1 / np.where(meant, at, 1)
        assert np.all(violation(instance, x, kappa, plateaus)[meant] <= 1e-6)


def _to_rounding(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.max(np.abs(b)))


@FEW
@given(instances(WIDE))
def test_scaling_changes_no_bit_of_what_is_exact(instance):
    # Powers of 2 leave every rounding as it is, unless some tolerance is absolute.
    other = scaled(instance)
    c = other.c_X / instance.c_X, other.c_y / instance.c_y
    unit, x_unit = c[0] * c[1], c[1] / c[0]
    limits = [_limit(i.data(), i.shape())[0] for i in (instance, other)]
    for a, b in (limits, [path_of(i)[0] for i in (instance, other)]):
        assert a.result == b.result
        np.testing.assert_array_equal(b.knots * unit, a.knots)
        # Where columns depend on each other a limit is selected by logarithms, which round.
        close = np.testing.assert_array_equal if a is not limits[0] else _to_rounding
        close(b.values * c[0] ** 2, a.values)
        close(b.slopes / x_unit, a.slopes)
    a, b = (_basis_pursuit(i.data()) for i in (instance, other))
    assert a.result == b.result
    np.testing.assert_array_equal(b.x / x_unit, a.x)
    np.testing.assert_array_equal(b.dual, a.dual)
    mu = np.array([0.5, 1.5, 20.0]) / instance.size
    a, b = (_lasso(i.data(), mu / i.unit) for i in (instance, other))
    np.testing.assert_array_equal(a.result == b.result, True)
    np.testing.assert_array_equal(b.x / x_unit, a.x)
    np.testing.assert_array_equal(b.gap / c[1] ** 2, a.gap)


@FEW
@given(instances(WIDE), st.integers(0, 2**32 - 1))
def test_order_and_signs_of_columns_play_no_role(instance, seed):
    rng = np.random.default_rng(seed)
    (n, d), sign = instance.X.shape, rng.choice([-1.0, 1.0], instance.X.shape[1])
    order, rows = rng.permutation(d), rng.permutation(n)
    other = instance._replace(X=(sign * instance.X[:, order])[rows], y=instance.y[rows])

    def back(x):
        x, turned = np.asarray(x), np.empty_like(x)
        turned[..., order] = sign * x
        return turned

    path, at, x = path_of(other)
    limit, limit_at, limit_x, plateaus = _limit(other.data(), other.shape())
    point = _basis_pursuit(other.data())
    first, last = path_of(instance), _basis_pursuit(instance.data())
    # Ties are broken by index, so that only optimality and values are the same.
    if succeeded(path, instance):
        kappa = instance.decay + 1 / np.where(at > 0, at, 1)
        assert np.max(violation(instance, back(x), kappa)[at > 0]) <= 1e-6
    if succeeded(limit, instance):
        limit_at = np.asarray(limit_at) * instance.unit
        kappa = instance.decay + 1 / np.where(limit_at > 0, limit_at, 1)
        turned = back(limit_x) / instance.x_unit
        off = violation(instance, turned, kappa, back(plateaus))
        assert np.all(off[limit_at > 0] <= 1e-6)
    if instance.defect in WELL_POSED:
        # At four μ, and at the end.
        fit = lambda x: x @ instance.X.T
        size = np.max(np.abs(first[2]), initial=0) * np.max(np.abs(instance.X)) + 1e-300
        assert np.max(np.abs(fit(back(x[-4:])) - fit(first[2][-4:]))) <= 1e-9 * size
        norm = lambda x: np.sum(np.abs(np.asarray(x)))
        assert abs(norm(point.x) - norm(last.x)) <= 1e-9 * norm(last.x)


# --- the flow ---------------------------------------------------------------------------------


def flow_of(instance: Instance):
    s = np.array([0.3, 1.5, 10, 300]) / (instance.unit * instance.size)
    return s * instance.unit, _flow(instance.data(), instance.shape(), s, instance.log_eps)


@FEW
@found
@given(instances())
def test_flows_are_certified_and_consistent(instance):
    s, (flow, bound) = flow_of(instance)
    if not succeeded(flow, instance):
        return
    # Steps are to 1e-7, and there are some hundred.
    c, rounding = correlation(instance, np.asarray(flow.x_mean) / instance.x_unit)
    off = np.abs(np.asarray(flow.dual) - s[:, None] * c) - s[:, None] * rounding
    assert np.max(off) <= 1e-5 * (1 + s[-1] * instance.size)
    path, _, _ = path_of(instance)
    if succeeded(path, instance):
        problem = dln.LeastSquares(*instance.data())
        gap = dln.suboptimality_gap(problem, flow.x_mean, flow.s, path=path).absolute
        # The path is optimal to 1e-6, its objective to the square of that.
        rounding = 1e-12 * instance.c_y**2 * (np.sum(instance.y**2) or 1.0)
        assert np.all(gap >= -rounding) and np.all(gap <= bound + rounding)


@FEW
@given(instances(), st.integers(0, 2**32 - 1))
def test_flows_in_other_units_and_orders(instance, seed):
    rng = np.random.default_rng(seed)
    sign, order = rng.choice([-1.0, 1.0], instance.X.shape[1]), rng.permutation(instance.X.shape[1])
    other = scaled(instance)._replace(X=sign * instance.X[:, order])
    (_, (a, _)), (_, (b, _)) = flow_of(instance), flow_of(other)
    if succeeded(a, instance) and succeeded(b, instance):
        x_mean = np.empty_like(a.x_mean)
        x_mean[..., order] = sign * np.asarray(b.x_mean) / other.x_unit
        # Where Xᵀy = 0 what is left of it, and so all of x, is rounding: of q⁺ − q⁻ of the start.
        rounding = 1e-12 * np.linalg.norm(instance.y) / (np.linalg.norm(instance.X) or 1)
        rounding += 1e-12 * np.exp(instance.log_eps)
        off = np.abs(x_mean - np.asarray(a.x_mean) / instance.x_unit)
        assert np.max(off) <= 1e-5 * np.max(np.abs(x_mean)) + rounding


# --- end points -------------------------------------------------------------------------------


def end_of(instance: Instance):
    end = _end(instance.data(), instance.shape(), instance.log_eps)
    return end, np.asarray(end.x) / instance.x_unit


@MANY
@found
@given(instances())
def test_end_points_minimise_or_are_flagged(instance):
    end, x = end_of(instance)
    if not succeeded(end, instance):
        return
    if instance.decay > 0:
        assert violation(instance, x[None], [instance.decay])[0] <= 1e-6
    else:
        # Singular values below rounding count as 0: the error is that of a perturbed X.
        c = instance.X.T @ (instance.y - instance.X @ x)
        norm = np.linalg.norm(instance.X, 2)
        size = norm * (np.linalg.norm(instance.y) + norm * np.max(np.abs(x)))
        assert np.max(np.abs(c)) <= 1e-10 * size


@FEW
@given(instances(WIDE, WELL_POSED, decays=False), st.integers(0, 2**32 - 1))
def test_end_points_in_other_units_and_orders(instance, seed):
    rng = np.random.default_rng(seed)
    sign, order = rng.choice([-1.0, 1.0], instance.X.shape[1]), rng.permutation(instance.X.shape[1])
    other = scaled(instance)._replace(X=sign * instance.X[:, order])
    # Rounding of the dual is multiplied by the sensitivity, which counts its last digit.
    (a, x), (b, turned) = end_of(instance), end_of(other)
    if succeeded(a, instance) and succeeded(b, instance):
        back = np.empty_like(x)
        back[order] = sign * turned
        assert close(back, x, 1e-9 + 64 * float(a.stats["sensitivity"]))
    a, b = (_limit_point(i.data(), i.shape()) for i in (instance, other))
    if succeeded(a, instance) and succeeded(b, instance):
        back = np.empty_like(x)
        back[order] = sign * np.asarray(b.x) / other.x_unit
        assert close(back, np.asarray(a.x) / instance.x_unit, 1e-9)


# --- empty active sets ------------------------------------------------------------------------


@FEW
@given(instances(WIDE, WELL_POSED))
def test_nothing_is_active_where_weight_decay_wins(instance):
    instance = instance._replace(decay=1.5 * instance.size)
    path, _, x = path_of(instance)
    limit, _, limit_x, _ = _limit(instance.data(), instance.shape())
    assert path.num_knots == 0 and limit.num_jumps == 0
    for point in (x, limit_x, end_of(instance)[1], _lasso(instance.data(), np.ones(3)).x):
        assert np.all(point == 0)


# --- jump times -------------------------------------------------------------------------------


def test_jump_times_in_other_units():
    X, y = np.random.default_rng(0).normal(size=(3, 4)), np.array([1.0, -2, 0.5])
    instance = Instance(X, y, 1.0, 1.0, 0.0, -30.0, "none")

    @jax.jit
    def solve(data, u, s_max, level):
        problem = dln.LeastSquares(*data)
        return dln.crossing_times(_networks(u), problem, s_max, level, log_eps=-30.0, throw=False)

    times = []
    for other in (instance, scaled(instance), instance._replace(c_X=2.0**36, c_y=2.0**-36)):
        s_max = 30 / (instance.size * other.unit)
        jumps = solve(other.data(), other.shape(), s_max, 0.1 * other.x_unit)
        assert jumps.result == dln.RESULTS.successful and jumps.num_crossings > 0
        times.append(np.asarray(jumps.s) * other.unit)
    for other in times[1:]:
        np.testing.assert_allclose(other, times[0], rtol=1e-6)


# --- float32 ----------------------------------------------------------------------------------


def condition(X: np.ndarray) -> float:
    """The worst condition number among the sets of different columns of norm 1."""
    norms = np.linalg.norm(X, axis=0)
    columns = np.unique(X[:, norms > 0] / norms[norms > 0], axis=1)
    kinds = range(1, columns.shape[1] + 1)
    sets = (chosen for k in kinds for chosen in itertools.combinations(columns.T, k))
    values = (np.linalg.svd(np.array(chosen), compute_uv=False) for chosen in sets)
    return max((s[0] / s[s > 1e-9 * s[0]][-1] for s in values), default=1)


@FEW
@given(instances(WIDE, ("none", "twin", "zero column"), scale=20))
def test_float32(instance):
    # The bound for flags is eps^½ = 3.5e-4 with columns of unit norm.
    data = instance.data(np.float32)
    mu = (np.array([0.5, 1.5, 20]) / (instance.unit * instance.size)).astype(np.float32)
    path, at, x = _path(data, mu)
    assert path.knots.dtype == x.dtype == jnp.float32
    if path.result != dln.RESULTS.successful:
        assert 2.0**-23 * condition(instance.X) ** 2 > 1e-4
    else:
        at = np.asarray(at, float) * instance.unit
        kappa = instance.decay + 1 / np.where(at > 0, at, 1)
        support = np.asarray(x)
        off = violation(instance, support / instance.x_unit, kappa, eps=2.0**-23)
        assert np.max(off[at > 0]) <= 1e-3
