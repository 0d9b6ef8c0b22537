"""`Pretrained`: against linear programmes, Newton's method for the KL projection, SciPy on the
weights, closed forms in one dimension, and differences."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, linprog

import dlnjax as dln

UV = dln.UV(np.ones(3), np.zeros(3))
SQUARED = dln.USquared(np.ones(3))
DEEP = dln.Deep(np.ones(3), np.ones(3), depth=3.0)
X0 = np.array([1.3, -0.4, 0.0])
ONE = np.array([1.0])
WIDE = dln.LeastSquares(np.array([[1.0, 0.4, -0.3], [0.2, -1.0, 0.5]]), np.array([1.0, 2.0]))


# --- where the flow and its limit end -----------------------------------------------------------

LANES, N, D = 200, 4, 8


def _instances():
    """First fewer inherited entries than rows, then more, on whose signs some `x` interpolates."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(2 * LANES, N, D)) / 2, rng.normal(size=(2 * LANES, N))
    x0 = np.zeros((2 * LANES, D))
    for i in range(2 * LANES):
        k = rng.integers(0, N) if i < LANES else rng.integers(N + 1, D + 1)
        on = rng.choice(D, k, replace=False)
        x0[i, on] = np.exp(rng.normal(size=k) / 2) * rng.choice([-1, 1], k)
        if i >= LANES:
            y[i] = X[i] @ (np.sign(x0[i]) * np.exp(rng.normal(size=D) / 2))
    return X, y, x0


def _programme(X, y, x0):
    """The minimiser of `Σ w⁺x⁺ + w⁻x⁻`, and the least slack of a coordinate that is 0 there."""
    plus = 1 - np.sign(x0)
    w, F = np.r_[plus, 2 - plus], np.hstack([X, -X])
    found = linprog(w, A_eq=F, b_eq=y, method="highs")
    slack = w - F.T @ found.eqlin.marginals
    return found.x[:D] - found.x[D:], np.min(slack[found.x < 1e-12])


def _projection(X, y, x0):
    """The `x` with the signs of `x₀` and `Xx = y` that is closest to it in the entropy."""
    on, nu = x0 != 0, np.zeros(N)
    A, s = X[:, on] * np.sign(x0[on]), np.abs(x0[on])
    off, q = np.ones(N), s
    value = lambda nu: np.sum(s * np.exp(A.T @ nu)) - y @ nu
    for _ in range(200):
        q = s * np.exp(A.T @ nu)
        off = A @ q - y
        step, t = np.linalg.solve((A * q) @ A.T, -off), 1.0
        while t > 1e-9 and value(nu + t * step) > value(nu) + 1e-4 * t * (off @ step) + 1e-14:
            t /= 2
        nu = nu + t * step
    assert np.max(np.abs(off)) < 1e-12
    x = np.zeros(D)
    x[on] = np.sign(x0[on]) * q
    return x


@jax.jit
@jax.vmap
def _ends(X, y, x0):
    network = dln.Pretrained(dln.UV(jnp.ones(D), jnp.zeros(D)), x0)
    problem = dln.LeastSquares(X, y)
    end = dln.end_point(network, problem, log_eps=-2000.0, throw=False)
    limit = dln.limit_flow(network, problem, throw=False)
    point = dln.limit_point(network, problem, throw=False)
    results = [v.result == dln.RESULTS.successful for v in (end, limit, point)]
    return jnp.stack([end.x, limit.slope(jnp.inf), point.x]), jnp.stack(results)


def test_where_it_ends():
    X, y, x0 = _instances()
    x, is_good = jax.device_get(_ends(X, y, x0))
    assert np.all(is_good)
    programmes = [_programme(*at) for at in zip(X[:LANES], y[:LANES], x0[:LANES], strict=True)]
    want, slack = map(np.array, zip(*programmes, strict=True))
    error = lambda x, want: np.max(np.abs(x - want[:, None]), 2) / np.max(np.abs(want), 1)[:, None]
    errors = error(x[:LANES], want)
    assert np.max(errors[:, 1:]) < 1e-12
    # At log ε = −2000 an entry with this slack is of size e^{−2000 slack}.
    is_clear = slack > 0.02
    assert np.mean(is_clear) > 0.9 and np.max(errors[is_clear]) < 1e-9
    want = np.array([_projection(*at) for at in zip(X[LANES:], y[LANES:], x0[LANES:], strict=True)])
    # The sensitivity of `x` to the rounding of `w`, times L = 2000, and of ill-conditioned designs.
    assert np.max(error(x[LANES:], want)) < 1e-8


# --- the flow -------------------------------------------------------------------------------------

NETWORKS = {
    "UV": dln.UV(np.array([1.2, 0.9, 1.0]), np.array([0.3, -0.5, 0.0])),
    "USquared": SQUARED,
    "Deep": dln.Deep(np.array([1.0, 0.8, 1.1]), np.array([1.0, 1.3, 0.9]), depth=3.0),
}
S = np.array([0.0, 0.3, 1.0, 4.0])


def _weights(name, eps, x0):
    """The weights at `x₀`, from what the flow conserves; where `x₀` is 0, those of the shape."""
    network, moves = NETWORKS[name], x0 != 0
    if name == "USquared":
        return np.sqrt(np.where(moves, x0, eps))
    u, v = np.asarray(network.u), np.asarray(network.v)
    if name == "UV":
        b, root = eps * (u**2 - v**2), np.sqrt(eps)
        first = np.sqrt((b + np.sqrt(b**2 + 4 * x0**2)) / 2)
        return np.r_[np.where(moves, first, root * u), np.where(moves, x0 / first, root * v)]
    total = eps ** (-1 / 3) * (1 / u + 1 / v)
    out = np.array([u, v]) * eps ** (1 / 3)
    other = lambda a, total: 1 / (total - 1 / a)
    excess = lambda a, total, size: a**3 - other(a, total) ** 3 - size
    for i in np.flatnonzero(moves):
        at = total[i], abs(x0[i])
        a = brentq(excess, 2 / at[0], 2 + 4 / at[0], at, xtol=1e-16)
        out[:, i] = (a, other(a, at[0]))[:: 1 if x0[i] > 0 else -1]
    return out.ravel()


def _x(name, weights):
    if name == "USquared":
        return weights**2
    u, v = weights[:3], weights[3:]
    return u * v if name == "UV" else u**3 - v**3


def _scipy(name, eps, x0):
    """`x` at the times `S`, and the time average at the last, by the gradient in the weights."""
    X, y = np.asarray(WIDE.X), np.asarray(WIDE.y)
    L = np.log(1 / eps)
    unit = {"UV": L / 2, "USquared": L / 4, "Deep": eps ** (-1 / 3) / 3}[name]

    def velocity(s, state):
        weights, x = state[3:], _x(name, state[3:])
        g = X.T @ (X @ x - y)
        u, v = weights[:3], weights[-3:]
        slopes = {
            "UV": lambda: np.r_[g * v, g * u],
            "USquared": lambda: 2 * u * g,
            "Deep": lambda: np.r_[3 * u**2 * g, -3 * v**2 * g],
        }[name]()
        return np.r_[x, -unit * slopes]

    start = np.r_[np.zeros(3), _weights(name, eps, x0)]
    out = solve_ivp(
        velocity, (0, S[-1]), start, method="Radau", rtol=1e-11, atol=1e-13 * eps**0.5, t_eval=S
    ).y
    return np.array([_x(name, w) for w in out[3:].T]), out[:3, -1] / S[-1]


@functools.partial(jax.jit, static_argnames=("name", "form"))
@functools.partial(jax.vmap, in_axes=(None, None, 0, None))
def _flow(name, form, log_eps, x0):
    network = dln.Pretrained(NETWORKS[name], x0)
    formulation = dln.DualForm() if form == "dual" else dln.WeightForm()
    flow = dln.gradient_flow(
        network, WIDE, S, log_eps=log_eps, formulation=formulation, rtol=1e-9, throw=False
    )
    return flow.x, flow.x_mean[-1]


@pytest.mark.parametrize(
    ("name", "form"), [*((name, "dual") for name in NETWORKS), ("UV", "weights")]
)
def test_flow(name, form):
    x0, eps = (np.abs(X0) if name == "USquared" else X0), np.array([1e-2, 1e-6])
    x, mean = jax.device_get(_flow(name, form, np.log(eps), x0))
    for k in range(2):
        want, average = _scipy(name, eps[k], x0)
        np.testing.assert_allclose(x[k, 0][:2], x0[:2], rtol=1e-11)
        size = np.max(np.abs(want))
        np.testing.assert_allclose(x[k], want, atol=1e-7 * size)
        np.testing.assert_allclose(mean[k], average, atol=1e-7 * size)


@pytest.mark.parametrize("depth", [2.5, 3.0, 6.0])
def test_start_at_other_depths(depth):
    # `q = ε w^{−a}` at both ends of what is conserved.
    a, eps = depth / (depth - 2), 1e-8
    x0 = np.array([1e-12, -1e-8, 1e-3, 2.0, -50.0])
    shape = np.array([[1.0, 0.7, 1.2, 1.0, 0.9], [1.0, 1.1, 0.8, 1.0, 1.3]])
    network = dln.Pretrained(dln.Deep(*shape, depth=depth), x0)
    got = network.initial_dual(jnp.log(eps))
    total = np.sum(shape ** (2 - depth), axis=0)
    q = lambda w: eps * w**-a
    off = lambda log_w, total, x: q(np.exp(log_w)) - q(total - np.exp(log_w)) - abs(x)
    for i, x in enumerate(x0):
        least = np.log((eps / (2 * (abs(x) + eps))) ** (1 / a) * min(1, total[i]) / 4)
        own = np.exp(
            np.asarray(brentq(off, least, np.log(total[i] / 2), (total[i], x), xtol=1e-15))
        )
        want = np.array([own, total[i] - own])[:: 1 if x > 0 else -1]
        # For the tiniest, `own` is known to the rounding of `q⁺ − q⁻`, 1e-16 ε/1e-12.
        np.testing.assert_allclose(got[:, i], want, rtol=1e-11)
    start: Any = network.initial(jnp.log(eps))
    np.testing.assert_allclose(start()[2:], x0[2:], rtol=1e-11)
    # What one weight of `Deep` has above or below its own start does not show in `u^{2−D}` alone.
    kept = np.asarray(start.network.u) ** (2 - depth) + np.asarray(start.network.v) ** (2 - depth)
    np.testing.assert_allclose(kept, total * eps ** (2 / depth - 1), rtol=1e-11)


# One inherited entry, which does not suffice: another activates.
FEW = dln.Pretrained(UV, np.array([0.4, 0.0, 0.0]))


def test_tends_to_its_limit():
    # At depth 2 like `1/log(1/ε)`.
    s, L = np.linspace(0.05, 5, 100), np.array([50.0, 200.0, 800.0, 2000.0])
    flows = jax.vmap(lambda log_eps: dln.gradient_flow(FEW, WIDE, s, log_eps=log_eps).x_mean)
    limit = dln.limit_flow(FEW, WIDE)
    far = L * np.max(np.abs(np.asarray(flows(-L)) - np.asarray(limit.x(s))), axis=(1, 2))
    assert np.max(far) < 1.3 * np.min(far)
    # The first knot is that of the start, at 0.
    assert int(limit.num_knots) == 2 and limit.knots[0] == 0
    times = dln.crossing_times(FEW, WIDE, 2.0, 0.1, log_eps=-2000.0)
    assert int(times.num_crossings) == 1
    np.testing.assert_allclose(times.s[0], limit.knots[1], rtol=5 / 2000)


def test_first_activations_are_what_is_missing():
    # Decleves, Boursier, Flammarion (2026): two of six entries are inherited.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(220, 32)) / np.sqrt(220)
    truth = np.zeros(32)
    truth[:6] = [1.0, -1.0, 1.0, 1.0, -1.0, 1.0]
    x0 = np.where(np.arange(32) < 2, truth, 0)
    network = dln.Pretrained(dln.UV(np.ones(32), np.zeros(32)), x0)
    limit = dln.limit_flow(network, dln.LeastSquares(X, X @ truth))
    on = [np.flatnonzero(row) for row in np.asarray(limit.slopes)]
    assert on[0].tolist() == [0, 1] and on[4].tolist() == [0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose(limit.slope(np.inf), truth, atol=1e-12)


def test_trains_from_there():
    eps, rate = 1e-4, 0.01
    network = dln.Pretrained(NETWORKS["UV"], X0)
    run = dln.train(network, WIDE, optax.sgd(rate), eps=eps, steps=np.array([0, 50]))
    weights, X, y = _weights("UV", eps, X0), np.asarray(WIDE.X), np.asarray(WIDE.y)
    np.testing.assert_allclose(run.x[0], _x("UV", weights), rtol=1e-12, atol=1e-15)
    for _ in range(50):
        u, v = weights[:3], weights[3:]
        g = X.T @ (X @ (u * v) - y)
        weights = weights - rate * np.r_[g * v, g * u]
    np.testing.assert_allclose(run.x[1], _x("UV", weights), rtol=1e-10, atol=1e-13)


# --- exponents, and the shorthand -----------------------------------------------------------------


def test_exponents():
    # One column: `w⁺` falls from `a⁺` at the speed `r`, and the flow with `log q = −a⁺ L + r s L`.
    problem = dln.LeastSquares(np.ones((1, 1)), np.array([2.0]))
    network = dln.Pretrained(dln.UV(np.ones(1), np.zeros(1)), exponents=(0.3, 1.7))
    limit = dln.limit_flow(network, problem)
    np.testing.assert_allclose(limit.jumps[0], 0.15, rtol=1e-14)
    x = dln.gradient_flow(network, problem, np.array([0.0, 0.1]), log_eps=-100.0).x[:, 0]
    want = np.exp([-30.0 + np.log(0.25), -10.0 + np.log(0.25)])
    np.testing.assert_allclose(x[0], want[0], rtol=1e-12)
    np.testing.assert_allclose(x[1], want[1], rtol=1e-4)  # x itself slows it, by e^{−10}
    alone = dln.Pretrained(NETWORKS["UV"], exponents=(1, 1))
    for log_eps in (-5.0, -np.inf):
        log_eps = jnp.asarray(log_eps)
        np.testing.assert_allclose(
            alone.initial_dual(log_eps), NETWORKS["UV"].initial_dual(log_eps), rtol=1e-14
        )
    assert alone.x0 is None
    np.testing.assert_array_equal(np.asarray(network.exponents), [[0.3], [1.7]])


@pytest.mark.parametrize("network", [NETWORKS["UV"], NETWORKS["Deep"]])
def test_start_is_a_shorthand(network):
    short = dln.limit_flow(network, WIDE, start=X0)
    long = dln.limit_flow(dln.Pretrained(network, X0), WIDE)
    jax.tree.map(np.testing.assert_array_equal, short, long)
    np.testing.assert_array_equal(dln.Pretrained(network, X0).x0, X0)


# --- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["flow", "end"])
def test_derivatives(which):
    def value(a):
        network = dln.Pretrained(NETWORKS["UV"], a["x0"])
        problem, log_eps = dln.LeastSquares(WIDE.X, a["y"]), a["log_eps"]
        if which == "flow":
            x = dln.gradient_flow(network, problem, ONE, log_eps=log_eps, rtol=1e-11).x_mean[0]
        else:
            x = dln.end_point(network, problem, log_eps=log_eps).x
        return jnp.vdot(x, jnp.array([1.0, 0.7, -0.4]))

    at = {"x0": X0, "y": np.asarray(WIDE.y), "log_eps": np.array(-8.0)}
    along = {"x0": np.array([0.5, 1.0, 0.0]), "y": np.array([1.0, -0.3]), "log_eps": np.array(0.7)}
    both = jax.jit(lambda a, v: (*jax.jvp(value, (a,), (v,)), jax.grad(value)(a)))
    h = 1e-4
    move = lambda t: {k: at[k] + t * along[k] for k in at}
    values = [float(both(move(n * h), along)[0]) for n in (1, -1, 2, -2)]
    _, forward, gradient = both(at, along)
    want = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * h)
    backward = sum(np.vdot(gradient[k], along[k]) for k in at)
    np.testing.assert_allclose(forward, want, rtol=1e-6)
    np.testing.assert_allclose(backward, forward, rtol=1e-9)


def test_derivatives_of_a_deep_start():
    def start(x0, shape, log_eps):
        network = dln.Deep(shape, 2 - shape, depth=3.0)
        growth: Any = dln.Pretrained(network, x0).growth(log_eps)
        return growth.log_initial[:, 0]

    at, along = (np.array([0.02]), np.array([0.8]), jnp.array(-5.0)), (np.ones(1), np.ones(1), 1.0)
    h, move = 1e-4, lambda t: [a + t * v for a, v in zip(at, along, strict=True)]
    slope = lambda at: jax.jvp(start, tuple(at), tuple(map(jnp.asarray, along)))[1]
    second = jax.jvp(lambda t: slope(move(t)), (0.0,), (1.0,))[1]
    # Of order h⁴.
    along_h = lambda fn: (8 * (fn(h) - fn(-h)) - (fn(2 * h) - fn(-2 * h))) / (12 * h)
    np.testing.assert_allclose(slope(at), along_h(lambda t: start(*move(t))), rtol=1e-6)
    np.testing.assert_allclose(second, along_h(lambda t: slope(move(t))), rtol=1e-6)


# --- bad input ------------------------------------------------------------------------------------


class Silent(dln.UV):
    def growth(self, log_eps) -> Any:
        return None


class Mute(dln.USquared):
    def _with_log_q(self, log_q) -> Any:
        return dln.AbstractDualNetwork._with_log_q(self, log_q)


def _pretrained(network: Any):
    return dln.Pretrained(network, X0)


NAN = np.array([1.0, np.nan, 0.0])
REFUSED = {
    "shape": (lambda: dln.Pretrained(UV, np.ones(2)), ValueError, "`x0` must be a linear model of"),
    "NaN": (lambda: dln.Pretrained(UV, NAN), ValueError, "`x0[1]` is nan"),
    "sign": (lambda: dln.Pretrained(SQUARED, X0), ValueError, "`x0[1]` = -0.4 is negative"),
    "neither": (lambda: dln.Pretrained(UV), ValueError, "got neither"),
    "both": (lambda: dln.Pretrained(UV, X0, exponents=(1, 1)), ValueError, "got both"),
    "network": (lambda: _pretrained(np.ones(3)), TypeError, "network"),
    "linear": (lambda: _pretrained(dln.Linear(X0)), TypeError, "network"),
    "twice": (lambda: dln.Pretrained(dln.Pretrained(UV, X0), X0), TypeError, "already"),
    "rows": (lambda: dln.Pretrained(UV, exponents=(1,)), ValueError, "`(a_plus, a_minus)`"),
    "row": (lambda: dln.Pretrained(SQUARED, exponents=(1, 1)), ValueError, "`(a,)`"),
    "below 0": (lambda: dln.Pretrained(UV, exponents=(-1, 3)), ValueError, "exponents[0]` must be"),
    "infinite": (lambda: dln.Pretrained(UV, exponents=(1, np.inf)), ValueError, "exponents[1]"),
    "length": (lambda: dln.Pretrained(UV, exponents=(np.ones(2), 1)), ValueError, "shape (3,)"),
    "depth": (lambda: dln.Pretrained(DEEP, exponents=(1, 1)), ValueError, "at depth 2"),
    "deep end": (
        lambda: dln.end_point(dln.Pretrained(DEEP, X0), WIDE, eps=1e-3),
        TypeError,
        "`Pretrained` at depth 2",
    ),
    "deep and tiny": (
        lambda: dln.gradient_flow(dln.Pretrained(DEEP, X0), WIDE, ONE, log_eps=-200.0),
        RuntimeError,
        "`Pretrained` of depth D > 2",
    ),
    "no growth": (
        lambda: dln.gradient_flow(dln.Pretrained(Silent(UV.u, UV.v), X0), WIDE, ONE, eps=1e-3),
        TypeError,
        "Give the network the method `growth`",
    ),
    "no weights": (
        lambda: dln.train(
            dln.Pretrained(Mute(SQUARED.u), np.abs(X0)), WIDE, optax.sgd(0.1), eps=1e-3, steps=1
        ),
        TypeError,
        "which weights of Mute",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    run, error, message = REFUSED[case]
    with pytest.raises(error) as caught:
        run()
    assert message in str(caught.value)


def test_a_network_without_growth_has_a_limit():
    silent = dln.limit_flow(dln.Pretrained(Silent(UV.u, UV.v), X0), WIDE)
    np.testing.assert_array_equal(silent.slopes, dln.limit_flow(UV, WIDE, start=X0).slopes)


@pytest.mark.parametrize("run", ["flow", "limit", "end", "train"])
def test_bad_traced_starts(run):
    def solve(x0):
        out: Any
        network = dln.Pretrained(SQUARED, x0)
        if run == "flow":
            out = dln.gradient_flow(network, WIDE, ONE, eps=1e-3, rtol=1e-4, throw=False)
        elif run == "limit":
            out = dln.limit_flow(network, WIDE, throw=False)
        elif run == "end":
            out = dln.end_point(network, WIDE, eps=1e-3, throw=False)
        else:
            out = dln.train(network, WIDE, optax.sgd(0.01), eps=1e-3, steps=2, throw=False)
        x = out.slopes[0] if run == "limit" else jnp.atleast_2d(out.x)[-1]
        return jnp.sum(x), out.result

    starts = jnp.stack([jnp.ones(3), jnp.asarray(NAN), -jnp.ones(3)])
    (x, result), slope = jax.jit(jax.vmap(jax.value_and_grad(solve, has_aux=True)))(starts)
    want = [dln.RESULTS.successful, *[dln.RESULTS.invalid_start] * 2]
    assert [bool((result == w)[k]) for k, w in enumerate(want)] == [True] * 3
    assert np.isfinite(x[0]) and np.all(np.isnan(x[1:]))
    assert np.all(np.isfinite(slope))
