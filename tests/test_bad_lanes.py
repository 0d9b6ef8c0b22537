"""Every bad value, traced, in every public function: its own result, and NaN. One program each, in
which each lane has one bad value."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dlnjax as dln
from dlnjax._results import names_of

GOOD = {
    "M": np.array([[2.0, 0.5], [0.5, 1.0]]),
    "r": np.array([1.0, 0.8]),
    "constant": np.array(1.0),
    "decay": np.array(0.0),
    "shape": np.array([1.0, 0.5]),
    "log_eps": np.array(-20.0),
    "tol": np.array(1e-6),
    "s": np.array([0.5, 4.0]),
    "s_max": np.array(4.0),
    "level": np.array(0.1),
    "mu": np.array(2.0),
    "weights": np.array([1.0, 2.0]),
    "start": np.zeros(2),
    "step": np.array(0.1),
}
BAD = [
    # argument, its bad value, the result
    ("M", [[2, np.nan], [0.5, 1]], "data"),
    ("M", [[np.inf, 0.5], [0.5, 1]], "data"),
    ("r", [1, np.inf], "data"),
    ("M", [[1, 2], [2, 1]], "problem"),
    ("M", [[1, 0.5], [0, 1]], "problem"),
    ("M", [[-1, 0], [0, 1]], "problem"),
    ("M", [[0, 0.5], [0.5, 1]], "problem"),
    ("M", [[1, 1], [1, 1]], "problem"),  # r is not in its range
    ("constant", 0.1, "problem"),
    ("constant", np.nan, "problem"),
    ("decay", -1, "decay"),
    ("decay", np.nan, "decay"),
    ("decay", np.inf, "decay"),
    ("log_eps", 0, "eps"),
    ("log_eps", np.nan, "eps"),
    ("log_eps", -np.inf, "eps"),
    ("shape", [1, 0], "shape"),
    ("shape", [1, np.nan], "shape"),
    ("shape", [np.inf, 1], "shape"),
    ("tol", 0, "tolerance"),
    ("tol", np.nan, "tolerance"),
    ("tol", np.inf, "tolerance"),
    ("s", [-1, 4], "grid"),
    ("s", [4, 1], "grid"),
    ("s", [1, np.inf], "grid"),
    ("s", [np.nan, 1], "grid"),
    ("s_max", 0, "grid"),
    ("s_max", np.nan, "grid"),
    ("level", -1, "grid"),
    ("level", np.inf, "grid"),
    ("mu", 0, "grid"),
    ("mu", np.nan, "grid"),
    ("weights", [1, -1], "weights"),
    ("weights", [1, np.nan], "weights"),
    ("start", [0, np.nan], "start"),
    ("start", [-1, 0], "start"),
    ("step", -0.1, "training"),
    ("step", np.nan, "training"),
]


def _problem(a):
    return dln.Quadratic(a["M"], a["r"], a["constant"], weight_decay=a["decay"])


def _flow(a, formulation):
    return dln.gradient_flow(
        dln.USquared(a["shape"]),
        _problem(a),
        a["s"],
        log_eps=a["log_eps"],
        rtol=a["tol"],
        formulation=formulation,
    )


# Each function, what it uses besides the problem, and which of its fields are numbers.
PATH = ("knots", "values", "slopes")
FUNCTIONS = {
    "lasso_path": (
        lambda a: dln.lasso_path(_problem(a), weights=a["weights"]),
        {"weights"},
        PATH,
    ),
    "lasso": (
        lambda a: dln.lasso(_problem(a), a["mu"], weights=a["weights"], gap_tol=a["tol"]),
        {"weights", "mu", "tol"},
        ("x", "gap"),
    ),
    "basis_pursuit": (
        lambda a: dln.basis_pursuit(_problem(a), weights=a["weights"]),
        {"weights"},
        ("x", "dual", "gap", "infeasibility"),
    ),
    "null_space_constant": (
        lambda a: dln.null_space_constant(_problem(a)),
        set(),
        ("value", "dual", "gap"),
    ),
    "limit_flow": (
        lambda a: dln.limit_flow(
            dln.USquared(a["shape"]), _problem(a), a["s_max"], start=a["start"]
        ),
        {"shape", "s_max", "start"},
        PATH,
    ),
    "gradient_flow": (
        lambda a: _flow(a, dln.DualForm()),
        {"shape", "s", "tol", "log_eps"},
        ("x", "x_mean", "z", "dual"),
    ),
    "weight form": (
        lambda a: _flow(a, dln.WeightForm()),
        {"shape", "s", "tol", "log_eps"},
        ("x", "x_mean", "z", "dual"),
    ),
    "crossing_times": (
        lambda a: dln.crossing_times(
            dln.USquared(a["shape"]),
            _problem(a),
            a["s_max"],
            a["level"],
            log_eps=a["log_eps"],
            rtol=a["tol"],
        ),
        {"shape", "s_max", "level", "tol", "log_eps"},
        ("s",),
    ),
    "end_point": (
        lambda a: dln.end_point(
            dln.USquared(a["shape"]), _problem(a), log_eps=a["log_eps"], rtol=a["tol"]
        ),
        {"shape", "tol", "log_eps"},
        ("x", "dual"),
    ),
    "limit_point": (
        lambda a: dln.limit_point(dln.USquared(a["shape"]), _problem(a), rtol=a["tol"]),
        {"shape", "tol"},
        ("x", "dual"),
    ),
    "bregman_projection": (
        lambda a: dln.bregman_projection(
            dln.USquared(a["shape"]),
            _problem(a),
            jnp.array([0.3, 0.4]),
            log_eps=a["log_eps"],
            rtol=a["tol"],
        ),
        {"shape", "tol", "log_eps"},
        ("x", "dual"),
    ),
    "train": (
        lambda a: dln.train(
            dln.USquared(a["shape"]),
            _problem(a),
            optax.sgd(a["step"]),
            log_eps=a["log_eps"],
            steps=[0, 3],
        ),
        {"shape", "step", "log_eps"},
        ("x", "x_mean", "loss", "dual", "network"),
    ),
}
# At depth 2 the limits of small ε do not see the shape, unless it is degenerate.
ALLOWED = {("limit_flow", "shape")}


def _lanes(names) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arguments of each lane, the first one good, and the result of each."""
    cases = [("M", GOOD["M"], "successful")]
    cases += [(name, value, f"invalid_{cause}") for name, value, cause in BAD if name in names]
    lanes = {name: np.stack([value] * len(cases)) for name, value in GOOD.items()}
    for lane, (name, value, _) in enumerate(cases):
        lanes[name][lane] = value
    return lanes, [cause for _, _, cause in cases]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_traced_bad_values_end_in_their_own_result_and_nan(name):
    call, used, fields = FUNCTIONS[name]
    lanes, want = _lanes({"M", "r", "constant", "decay"} | used)

    def one(arguments):
        solution = call(arguments)
        kept = eqx.filter([getattr(solution, f) for f in fields], eqx.is_inexact_array)
        return solution.result, jnp.concatenate([jnp.ravel(v) for v in jax.tree.leaves(kept)])

    result, numbers = jax.jit(jax.vmap(one))(lanes)
    assert names_of(result).tolist() == want
    is_bad = np.array(want) != "successful"
    np.testing.assert_array_equal(np.isnan(numbers).all(axis=1), is_bad)


def test_values_of_a_bad_problem_are_nan():
    """Functions that have no result."""
    lanes, want = _lanes({"M", "r", "constant", "decay"})
    network, x, mu = dln.USquared(np.ones(2)), np.array([0.3, 0.2]), np.array(2.0)
    good = dln.Quadratic(GOOD["M"], GOOD["r"], GOOD["constant"])
    path, limit = dln.lasso_path(good), dln.limit_flow(network, good)
    flow = dln.gradient_flow(network, good, np.array([1.0]), eps=0.1)
    run = dln.train(dln.UV(np.ones(2), np.zeros(2)), good, optax.sgd(0.1), eps=0.1, steps=3)

    def one(a):
        problem = _problem(a)
        gap = dln.suboptimality_gap(problem, x, mu, path=path)
        values = {
            "lasso_objective": problem.lasso_objective(x, mu),
            "duality_gap": problem.duality_gap(x, 1 / mu),
            "gap": gap.absolute,
            "relative gap": gap.relative,
            "certificate": dln.certificate(problem, flow)[0],
            "sharpness": dln.sharpness(network, problem, flow)[0],
            "kkt_residual": path.kkt_residual(problem)[0],
            "dual": limit.dual(problem, mu)[0],
            "effective_initialization": dln.effective_initialization(problem, run).alpha[0],
        }
        flags = dln.is_z_matrix(problem), dln.is_always_monotone(problem)
        return values, flags

    values, flags = jax.jit(jax.vmap(one))(lanes)
    is_bad = np.array(want) != "successful"
    for name, value in values.items():
        np.testing.assert_array_equal(np.isnan(value), is_bad, err_msg=name)
    assert not np.any(np.stack(flags)[:, is_bad])


def test_a_lane_of_many_coordinates_stays_nan():
    """XLA's maximum drops NaN where it is vectorised, over 49 numbers and more."""
    lanes, n, d, bad = 40, 20, 64, 7
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(lanes, n, d)), rng.normal(size=(lanes, n))
    y[bad] = np.nan
    network, s = dln.UV(jnp.ones(d), jnp.zeros(d)), jnp.geomspace(0.01, 1, 60)

    @jax.jit
    @jax.vmap
    def everything(X, y):
        problem = dln.LeastSquares(X, y)
        flow = dln.gradient_flow(network, problem, s, eps=1e-3, throw=False)
        path = dln.lasso_path(problem, throw=False)
        gap = dln.suboptimality_gap(problem, flow.x_mean, s, path=path)
        basis = dln.basis_pursuit(problem, throw=False)
        return {
            "certificate": dln.certificate(problem, flow),
            "gap": gap.relative,
            "duality gap": problem.duality_gap(flow.x_mean, s),
            "largest gap": dln.metrics.max_relative_gap(problem, flow, path),
            "kkt": path.kkt_residual(problem),
            "norm": path.at_norm(0.1),
            "lasso": dln.lasso(problem, s, throw=False).gap,
            "basis": jnp.stack([basis.gap, basis.infeasibility]),
        }

    for name, value in everything(X, y).items():
        is_nan = np.isnan(np.asarray(value).reshape(lanes, -1))
        assert np.all(is_nan[bad]) and not np.any(np.delete(is_nan, bad, axis=0)), name
