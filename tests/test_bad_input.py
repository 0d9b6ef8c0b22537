"""Arguments that the tests of each function do not refuse already: every public function says which
one was wrong, what it got, and what it wants. Nothing here compiles a solver."""

# pyright: reportArgumentType=false, reportCallIssue=false

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from arguments import EPS, NETWORK, PROBLEM, SMALL, X

import dlnjax as dln
from dlnjax import generators

pytestmark = pytest.mark.usefixtures("as_users_run_it")

RAY = {"num_knots": jnp.asarray(1, jnp.int32), "weights": jnp.ones((2, 3)), "norms": jnp.ones(3)}
RAY |= {"knots": jnp.ones(2), "values": jnp.zeros((2, 3)), "slopes": jnp.ones((2, 3))}
RAY |= {"result": dln.RESULTS.successful, "stats": {}, "positive": False}
PATH = dln.LassoPath(**RAY)
LIMIT = dln.LimitFlow(**RAY, num_jumps=jnp.asarray(1, jnp.int32), face=jnp.zeros(3, jnp.int32))
FLOW = dln.Flow(
    s=jnp.ones(1),
    **{name: jnp.ones((1, 3)) for name in ("x", "x_mean", "z", "dual")},
    log_eps=-jnp.ones(()),
    result=dln.RESULTS.successful,
    stats={},
    positive=False,
)
TEXT = np.array(["a"])


# Functions of a problem, and what else they need.
OF_A_PROBLEM = {
    "lasso_path": lambda p: dln.lasso_path(p),
    "lasso": lambda p: dln.lasso(p, 1.0),
    "basis_pursuit": lambda p: dln.basis_pursuit(p),
    "max_margin": lambda p: dln.max_margin(p),
    "margin_flow": lambda p: dln.margin_flow(NETWORK, p, np.ones(1), **EPS),
    "null_space_constant": lambda p: dln.null_space_constant(p),
    "is_z_matrix": lambda p: dln.is_z_matrix(p),
    "is_always_monotone": lambda p: dln.is_always_monotone(p),
    "gradient_flow": lambda p: dln.gradient_flow(NETWORK, p, [1.0], **EPS),
    "crossing_times": lambda p: dln.crossing_times(NETWORK, p, 1.0, 1.0, **EPS),
    "limit_flow": lambda p: dln.limit_flow(NETWORK, p),
    "end_point": lambda p: dln.end_point(NETWORK, p, **EPS),
    "limit_point": lambda p: dln.limit_point(NETWORK, p),
    "bregman_projection": lambda p: dln.bregman_projection(NETWORK, p, np.ones(3), **EPS),
    "train": lambda p: dln.train(NETWORK, p, optax.sgd(0.1), steps=1, **EPS),
    "effective_initialization": lambda p: dln.effective_initialization(p, None),
    "suboptimality_gap": lambda p: dln.suboptimality_gap(p, np.ones(3), 1.0, path=PATH),
    "certificate": lambda p: dln.certificate(p, FLOW),
    "sharpness": lambda p: dln.sharpness(NETWORK, p, FLOW),
    "kkt_residual": lambda p: PATH.kkt_residual(p),
}
# Functions of a network on `PROBLEM`.
OF_A_NETWORK = {
    "gradient_flow": lambda net: dln.gradient_flow(net, PROBLEM, [1.0], **EPS),
    "crossing_times": lambda net: dln.crossing_times(net, PROBLEM, 1.0, 1.0, **EPS),
    "limit_flow": lambda net: dln.limit_flow(net, PROBLEM),
    "end_point": lambda net: dln.end_point(net, PROBLEM, **EPS),
    "limit_point": lambda net: dln.limit_point(net, PROBLEM),
    "bregman_projection": lambda n: dln.bregman_projection(n, PROBLEM, np.ones(3), **EPS),
    "train": lambda net: dln.train(net, PROBLEM, optax.sgd(0.1), steps=1, **EPS),
}
# Counts, with the function that takes them; flags; tolerances.
COUNTS = {
    "lasso_path": lambda k: dln.lasso_path(PROBLEM, max_knots=k),
    "limit_flow": lambda k: dln.limit_flow(NETWORK, PROBLEM, max_knots=k),
    "basis_pursuit": lambda k: dln.basis_pursuit(PROBLEM, max_knots=k),
    "null_space_constant": lambda k: dln.null_space_constant(PROBLEM, max_knots=k),
    "lasso": lambda k: dln.lasso(PROBLEM, 1.0, max_steps=k),
    "gradient_flow": lambda k: dln.gradient_flow(NETWORK, PROBLEM, [1.0], max_steps=k, **EPS),
    "end_point": lambda k: dln.end_point(NETWORK, PROBLEM, max_steps=k, **EPS),
    "limit_point": lambda k: dln.limit_point(NETWORK, PROBLEM, max_steps=k),
    "crossing_times": lambda k: dln.crossing_times(NETWORK, PROBLEM, 1.0, 1.0, max_steps=k, **EPS),
    "batched": lambda k: dln.batched(jnp.sum, np.ones((2, 3)), chunk=k),
}
FLAGS = {
    "lasso_path": lambda f: dln.lasso_path(PROBLEM, positive=f),
    "lasso": lambda f: dln.lasso(PROBLEM, 1.0, positive=f),
    "basis_pursuit": lambda f: dln.basis_pursuit(PROBLEM, positive=f),
    "null_space_constant": lambda f: dln.null_space_constant(PROBLEM, positive=f),
    "is_always_monotone": lambda f: dln.is_always_monotone(PROBLEM, positive=f),
    "duality_gap": lambda f: PROBLEM.duality_gap(np.ones(3), 1.0, f),
}
TOLERANCES = {
    "gradient_flow, rtol": lambda t: dln.gradient_flow(NETWORK, PROBLEM, [1.0], rtol=t, **EPS),
    "gradient_flow, atol": lambda t: dln.gradient_flow(NETWORK, PROBLEM, [1.0], atol=t, **EPS),
    "crossing_times, rtol": lambda t: dln.crossing_times(NETWORK, PROBLEM, 1.0, 1.0, rtol=t, **EPS),
    "end_point, rtol": lambda t: dln.end_point(NETWORK, PROBLEM, rtol=t, **EPS),
    "limit_point, rtol": lambda t: dln.limit_point(NETWORK, PROBLEM, rtol=t),
    "bregman_projection, rtol": lambda t: dln.bregman_projection(
        NETWORK, PROBLEM, np.ones(3), rtol=t, **EPS
    ),
    "lasso, gap_tol": lambda t: dln.lasso(PROBLEM, 1.0, gap_tol=t),
}


@pytest.mark.parametrize("bad", [None, X, NETWORK, dln.LeastSquares], ids=str)
@pytest.mark.parametrize("name", OF_A_PROBLEM)
def test_what_is_no_problem(name, bad):
    with pytest.raises(TypeError, match=r"`problem` must be a problem, such as `dlnjax.LeastSq"):
        OF_A_PROBLEM[name](bad)


@pytest.mark.parametrize("name", OF_A_NETWORK)
def test_what_is_no_network(name):
    for bad in (None, PROBLEM, np.ones(3)):
        with pytest.raises(TypeError, match=f"[Nn]etwork.*{type(bad).__name__}"):
            OF_A_NETWORK[name](bad)
    with pytest.raises(ValueError, match="The network has 2 coordinates, the problem has 3. Build"):
        OF_A_NETWORK[name](dln.UV(np.ones(2), np.zeros(2)))


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    for bad in (2.5, True, "3", np.ones(2)):
        with pytest.raises(TypeError, match=r"must be a whole number, got|only.*integer"):
            COUNTS[name](bad)
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"must be at least 1, got {bad}"):
            COUNTS[name](bad)


@pytest.mark.parametrize("name", FLAGS)
def test_flags(name):
    for bad in ("yes", 1, None):
        with pytest.raises(TypeError, match=f"`positive` must be True or False, got {bad!r}"):
            FLAGS[name](bad)


@pytest.mark.parametrize("name", TOLERANCES)
def test_tolerances(name):
    argument = name.split(", ")[1]
    for bad in (0.0, -1e-3, np.nan, np.inf):
        message = f"`{argument}` must be positive and finite, got {bad}. Leave it out"
        with pytest.raises(ValueError, match=re.escape(message)):
            TOLERANCES[name](bad)
    with pytest.raises(ValueError, match=rf"`{argument}` must be a scalar, got shape \(2,\)"):
        TOLERANCES[name](np.full(2, 1e-3))
    with pytest.raises(TypeError, match=f"`{argument}` must be an array of numbers"):
        TOLERANCES[name](TEXT)


@pytest.mark.parametrize("log_eps", [0.0, 0.5, np.nan, -np.inf])
def test_log_eps(log_eps):
    for call in (dln.end_point, dln.limit_point, dln.crossing_times, dln.bregman_projection):
        rest = {dln.crossing_times: (1.0, 1.0), dln.bregman_projection: (np.ones(3),)}.get(call, ())
        if call is not dln.limit_point:
            with pytest.raises(ValueError, match="`log_eps` must be finite and negative"):
                call(NETWORK, PROBLEM, *rest, log_eps=log_eps)
            with pytest.raises(ValueError, match=r"`eps` must lie in \(0, 1\), got 1.0"):
                call(NETWORK, PROBLEM, *rest, eps=1.0)


CASES = {
    # name: the call, the error, its message
    "formulation": (
        lambda: dln.gradient_flow(NETWORK, PROBLEM, [1.0], formulation="dual", **EPS),
        TypeError,
        "`formulation` must be `DualForm()`, `WeightForm()`, `MomentumForm(inertia)` or "
        "`AcceleratedForm(alpha)`, got str",
    ),
    "class of a formulation": (
        lambda: dln.gradient_flow(NETWORK, PROBLEM, [1.0], formulation=dln.WeightForm, **EPS),
        TypeError,
        "got the class WeightForm",
    ),
    "solver": (
        lambda: dln.gradient_flow(NETWORK, PROBLEM, [1.0], solver="Tsit5", **EPS),
        TypeError,
        "`solver` must be a solver, such as `diffrax.Kvaerno5()`, got str",
    ),
    "solver of jumps": (
        lambda: dln.crossing_times(NETWORK, PROBLEM, 1.0, 1.0, solver="Tsit5", **EPS),
        TypeError,
        "`solver` must be a solver",
    ),
    "grid of text": (
        lambda: dln.gradient_flow(NETWORK, PROBLEM, TEXT, **EPS),
        TypeError,
        "`s` must be an array of numbers",
    ),
    "no μ": (lambda: dln.lasso(PROBLEM, np.ones(0)), ValueError, "`mu` has an empty axis"),
    "complex μ": (lambda: dln.lasso(PROBLEM, np.array(1j)), TypeError, "`mu` must be real"),
    "ragged X": (
        lambda: dln.LeastSquares([[1, 2], [3]], [1.0, 2]),
        TypeError,
        "`X` must be an array of numbers",
    ),
    "μ for other points": (
        lambda: PROBLEM.lasso_objective(np.ones((4, 3)), np.ones(5)),
        ValueError,
        "`mu` of shape (5,) does not broadcast against the leading axes (4,) of `x`",
    ),
    "κ for other points": (
        lambda: PROBLEM.duality_gap(np.ones((4, 3)), np.ones(5)),
        ValueError,
        "`kappa` of shape (5,) does not broadcast against the leading axes (4,) of `x`",
    ),
    "points of a gap": (
        lambda: dln.suboptimality_gap(PROBLEM, np.ones(2), 1.0, path=PATH),
        ValueError,
        "The last axis of `x` must have the 3 coordinates of the problem, got shape (2,)",
    ),
    "scalar point of a gap": (
        lambda: dln.suboptimality_gap(PROBLEM, 1.0, 1.0, path=PATH),
        ValueError,
        "must have the 3 coordinates of the problem, got shape ()",
    ),
    "μ of a gap": (
        lambda: dln.suboptimality_gap(PROBLEM, np.ones((4, 3)), np.ones(5), path=PATH),
        ValueError,
        "`mu` of shape (5,) does not broadcast",
    ),
    "path of another problem": (
        lambda: dln.suboptimality_gap(SMALL, np.ones(2), 1.0, path=PATH),
        ValueError,
        "The path has 3 coordinates, the problem has 2. Pass the problem that the path belongs to",
    ),
    "limit in place of a path": (
        lambda: dln.suboptimality_gap(PROBLEM, np.ones(3), 1.0, path=LIMIT),
        TypeError,
        "`path` must be what `lasso_path` returns, got LimitFlow",
    ),
    "no path": (
        lambda: dln.suboptimality_gap(PROBLEM, np.ones(3), 1.0, path=None),
        TypeError,
        "`path` must be what `lasso_path` returns, got NoneType",
    ),
    "residual of another problem": (
        lambda: PATH.kkt_residual(SMALL),
        ValueError,
        "The path has 3 coordinates, the problem has 2",
    ),
    "dual of another problem": (
        lambda: LIMIT.dual(SMALL, 1.0),
        ValueError,
        "The path has 3 coordinates, the problem has 2",
    ),
    "negative s of a dual": (
        lambda: LIMIT.dual(PROBLEM, -1.0),
        ValueError,
        "`s` must be non-negative, got -1.0",
    ),
    "certificate of a path": (
        lambda: dln.certificate(PROBLEM, PATH),
        TypeError,
        "`flow` must be what `gradient_flow` returns, got LassoPath",
    ),
    "certificate of another problem": (
        lambda: dln.certificate(SMALL, FLOW),
        ValueError,
        "The flow has 3 coordinates, the problem has 2",
    ),
    "sharpness of a linear model": (
        lambda: dln.sharpness(dln.Linear(np.ones(3)), PROBLEM, FLOW),
        TypeError,
        "`network` must be a `UV`, `USquared` or `Deep`",
    ),
    "sharpness of a path": (
        lambda: dln.sharpness(NETWORK, PROBLEM, PATH),
        TypeError,
        "`flow` must be what `gradient_flow` returns, got LassoPath",
    ),
    "sharpness of another network": (
        lambda: dln.sharpness(dln.USquared(np.ones(3)), PROBLEM, FLOW),
        ValueError,
        "not those of USquared",
    ),
    "sharpness of several flows": (
        lambda: dln.sharpness(NETWORK, PROBLEM, jax.tree.map(lambda v: v[None], FLOW)),
        ValueError,
        "got a batch of shape (1,)",
    ),
    "effective initialisation of a flow": (
        lambda: dln.effective_initialization(PROBLEM, FLOW),
        TypeError,
        "`run` must be what `dlnjax.train` returns, got Flow",
    ),
    "η of several weight decays": (
        lambda: dln.eta(np.zeros(2), 1.0, 1.0),
        ValueError,
        "`weight_decay` must be a scalar, got shape (2,)",
    ),
    "η of a negative weight decay": (
        lambda: dln.eta(-1.0, 1.0, 1.0),
        ValueError,
        "`weight_decay` must be non-negative, got -1.0",
    ),
    "η of negative variation": (
        lambda: dln.eta(0.0, np.ones(2), np.array([1, -2.0])),
        ValueError,
        "`downward_variation` must be non-negative, got -2.0",
    ),
    "η of other times": (
        lambda: dln.eta(0.0, np.ones(3), np.ones(4)),
        ValueError,
        "the same shape, got (3,) and (4,)",
    ),
    "tolerance of monotonicity": (
        lambda: PATH.is_monotone(-1e-3),
        ValueError,
        "`tol` must be a number in [0, 1), got -0.001",
    ),
    "several depths": (
        lambda: dln.potential(1.0, np.array([2.0, 3])),
        ValueError,
        "`depth` must be a scalar, got shape (2,)",
    ),
    "potential of text": (lambda: dln.potential(TEXT), TypeError, "`z` must be an array"),
    "mirror map of None": (lambda: dln.mirror_map(None), TypeError, "`z` must be an array"),
    "complex dual": (
        lambda: dln.inverse_mirror_map(np.array(1j)),
        TypeError,
        "`g` must be real",
    ),
    "no function": (
        lambda: dln.batched(3, np.ones((2, 3))),
        TypeError,
        "`fn` must be a function of one lane, got int",
    ),
    "no sweep": (
        lambda: dln.run_sweep(None, "never.zarr"),
        TypeError,
        "`sweep` must be a `dlnjax.Sweep`, got NoneType",
    ),
    "missing store": (
        lambda: dln.open_sweep(Path("no", "such", "store")),
        ValueError,
        "There is no sweep at",
    ),
    "one point": (lambda: dln.KnotGrid(1), ValueError, "A grid has at least 2 `points`, got 1"),
    "metric": (lambda: dln.Metric(3), TypeError, "A metric is a function, got int"),
    "correlation": (
        lambda: generators.Equicorrelated(1.0),
        ValueError,
        "`correlation` must lie in [0, 1), got 1.0",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses(case):
    call, error, message = CASES[case]
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("method", ["x", "z", "slope", "downward_variation"])
def test_parameters_of_paths(method):
    at = getattr(PATH, method)
    with pytest.raises(ValueError, match="`p` must be non-negative, got -2.0"):
        at(np.array([1.0, -2.0, np.nan]))
    with pytest.raises(TypeError, match="`p` must be an array of numbers"):
        at(TEXT)
    # NaN, and what is negative under tracing, has no value.
    values = eqx.filter_jit(at)(jnp.array([np.nan, -1.0, 0.0, 2.0, np.inf]))
    lost = np.isnan(values).reshape(5, -1)
    np.testing.assert_array_equal(lost.all(axis=1), [True, True, False, False, False])
    assert np.all(np.isnan(at(np.nan)))


@pytest.mark.parametrize("ask", ["jumps", "activations", "x", "is_monotone"])
def test_batches_of_paths_are_asked_under_vmap(ask):
    batch = jax.tree.map(lambda a: jnp.stack([a, a]), LIMIT)
    with pytest.raises(ValueError, match=r"batch of paths, of shape \(2,\)"):
        value = getattr(batch, ask)
        value(1.0) if ask == "x" else value()


@pytest.mark.parametrize("tol", [1e-6, np.float64(1e-6), jnp.asarray(1e-6)])
def test_tolerances_of_any_kind_of_number(tol):
    assert PATH.is_monotone(tol)
