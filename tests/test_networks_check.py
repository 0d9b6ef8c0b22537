"""`check_network`, and networks of one's own that follow CONTRIBUTING."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from scipy.integrate import solve_ivp

import dlnjax as dln


class Cubed(dln.AbstractDualNetwork):
    """`x = u³`: `Deep` at `D = 3` with one sign. `dx/dt = 9 u⁴ g`, so `w = 1/u` in units of ε."""

    u: Float[Array, " d"]
    positive: ClassVar[bool] = True

    def __call__(self):
        return self.u**3

    def initial(self, log_eps):
        return eqx.tree_at(lambda net: net.u, self, self.u * jnp.exp(log_eps / 3))

    def time_scale(self, log_eps):
        return jnp.exp(-log_eps / 3) / 3

    def penalty(self, weight_decay):
        return jnp.where(weight_decay == 0, 0.0, jnp.nan)

    def link(self, w, log_eps):
        return jnp.exp(log_eps) * w**-3

    def initial_dual(self, log_eps):
        return 1 / self.u[None]


class Grown(Cubed):
    """The same, with what it takes to keep digits at any ε."""

    def growth(self, log_eps):
        start = 3 * jnp.log(self.u[None]) + log_eps
        return dln.Growth(start, self.initial_dual(log_eps) / 3, jnp.asarray(1 / 3))


SHAPE = np.array([1.0, 0.8, 1.3])
RIGHT = {
    "UV": dln.UV(SHAPE, 0.2 * SHAPE[::-1]),
    "USquared": dln.USquared(SHAPE),
    "Deep(2)": dln.Deep(SHAPE, SHAPE[::-1], depth=2),
    "Deep(3)": dln.Deep(SHAPE, SHAPE[::-1], depth=3.0),
    "Linear": dln.Linear(SHAPE),
    "Cubed": Cubed(jnp.asarray(SHAPE)),
    "Grown": Grown(jnp.asarray(SHAPE)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_networks_that_agree_with_themselves(name):
    dln.check_network(RIGHT[name])


def _wrong(base, **methods):
    return type("Wrong", (base,), {"__module__": __name__, **methods})


HALF = lambda value: lambda self, *args: value(self, *args) / 2
WRONG = {
    "time_scale`, `link": _wrong(dln.USquared, time_scale=HALF(dln.USquared.time_scale)),
    "`penalty`": _wrong(dln.USquared, penalty=lambda self, decay: 0 * decay),
    "must be the initialisation": _wrong(
        dln.USquared, initial_dual=HALF(dln.USquared.initial_dual)
    ),
    "must not be negative": _wrong(
        Cubed, link=lambda self, w, log_eps: jnp.exp(log_eps) * (2 * w**-3 - self.u[None] ** 3)
    ),
    "must decrease": _wrong(
        Cubed, link=lambda self, w, log_eps: jnp.exp(log_eps) * w**3 * self.u[None] ** 6
    ),
    "`growth` contradicts": _wrong(Cubed, growth=dln.USquared.growth),
    "finite and positive": _wrong(Cubed, initial_dual=lambda self, log_eps: -1 / self.u[None]),
    "shape \\(1, 3\\)": _wrong(Cubed, initial_dual=lambda self, log_eps: 1 / self.u),
    "`time_scale` must be positive": _wrong(Cubed, time_scale=lambda self, log_eps: log_eps),
    "must return a": _wrong(Cubed, initial=lambda self, log_eps: dln.USquared(self.u)),
}


@pytest.mark.parametrize("message", WRONG)
def test_says_which_function_is_wrong(message):
    network = WRONG[message](jnp.asarray(SHAPE))
    with pytest.raises(ValueError, match=message):
        dln.check_network(network)


@pytest.mark.parametrize("network", ["Cubed", "Grown"])
def test_a_link_without_a_cap_is_right_at_small_eps(network):
    # At ε = 1e-15 such a link gave a gap of 0.5 and negative x, as successful. Truth: Radau on
    # log w, for n < d and d ≤ n.
    rng = np.random.default_rng(1)
    s = np.array([0.3, 1.0, 3.0, 10.0])
    for n, log_eps in ((2, np.log(1e-10)), (2, np.log(1e-15)), (5, np.log(1e-15))):
        X = rng.normal(size=(n, 3))
        y = X @ np.array([1.0, 0, 2])
        M, r = X.T @ X, X.T @ y
        x = lambda v, log_eps=log_eps: np.exp(log_eps - 3 * v)
        field = lambda t, v, M=M, r=r, x=x: (M @ x(v) - r) * np.exp(-v)
        jacobian = lambda t, v, M=M, x=x, field=field: (
            -3 * M * x(v)[None] * np.exp(-v)[:, None] - np.diag(field(t, v))
        )
        start = -np.log(SHAPE)
        truth = solve_ivp(
            field, (0, s[-1]), start, "Radau", s, rtol=1e-10, atol=1e-11, jac=jacobian
        )
        flow = dln.gradient_flow(
            RIGHT[network], dln.LeastSquares(X, y), s, log_eps=log_eps, throw=False
        )
        assert flow.result == dln.RESULTS.successful
        want = x(truth.y.T)
        np.testing.assert_allclose(flow.x, want, atol=1e-5 * want.max())


class Fourth(Cubed):
    """`x = u⁴`: `Deep` at `D = 4` with one sign. Its link `ε w^{−2}` is one beyond the wall too."""

    def __call__(self):
        return self.u**4

    def initial(self, log_eps):
        return eqx.tree_at(lambda net: net.u, self, self.u * jnp.exp(log_eps / 4))

    def time_scale(self, log_eps):
        return jnp.exp(-log_eps / 2) / 8

    def link(self, w, log_eps):
        return jnp.exp(log_eps) * w**-2

    def initial_dual(self, log_eps):
        return self.u[None] ** -2


@pytest.mark.parametrize(("base", "power"), [(Cubed, 3), (Fourth, 2)])
def test_a_wall_is_followed_as_far_as_rounding_lets_it(base, power):
    # An active coordinate sits at w = (ε/x)^{1/a}: down to u^{2/3} w(0) it is right, and below that
    # refused. Truth: Radau on log w.
    rng, s = np.random.default_rng(2), np.array([0.3, 1.0, 3.0, 10.0])
    X = rng.normal(size=(5, 3))
    y = X @ np.array([1.0, 0, 2]) + 0.1 * rng.normal(size=5)
    M, r, network = X.T @ X, X.T @ y, base(jnp.asarray(SHAPE))
    w = np.asarray(network.initial_dual(jnp.array(-1.0)))[0]
    norms = np.sqrt(np.diag(M))
    size = np.max(np.abs(r) / norms) / norms
    last = np.max(np.log(size) + power * np.log(np.finfo(float).eps ** (2 / 3) * w))
    accepted = [last / 4, last / 2, last + 1e-3]
    grid = np.array([*accepted, last - 1e-3, 2 * last, 4 * last, -2000.0])

    @jax.jit
    @jax.vmap
    def run(log_eps):
        problem = dln.LeastSquares(X, y)
        return dln.gradient_flow(network, problem, s, log_eps=log_eps, throw=False)

    flow = run(grid)
    right, refused = dln.RESULTS.successful, dln.RESULTS.invalid_eps
    assert np.all(np.asarray(flow.result == right) == (np.arange(len(grid)) < len(accepted)))
    assert np.all(np.asarray(flow.result == refused)[len(accepted) :])
    for log_eps, x in zip(accepted, flow.x, strict=False):
        x_at = lambda v, log_eps=log_eps: np.exp(log_eps - power * v)
        field = lambda t, v, x_at=x_at: (M @ x_at(v) - r) * np.exp(-v)
        jacobian = lambda t, v, x_at=x_at, field=field: (
            -power * M * x_at(v)[None] * np.exp(-v)[:, None] - np.diag(field(t, v))
        )
        truth = solve_ivp(
            field, (0, s[-1]), np.log(w), "Radau", s, rtol=1e-10, atol=1e-11, jac=jacobian
        )
        want = x_at(truth.y.T)
        np.testing.assert_allclose(x, want, atol=1e-5 * want.max())


def test_a_negative_link_is_flagged():
    # It is positive at the start, and negative where a coordinate is inactive.
    network = WRONG["must not be negative"](jnp.asarray(SHAPE))
    problem = dln.LeastSquares(np.eye(3), np.array([1.0, 1, -1]))
    flow = dln.gradient_flow(network, problem, np.array([1.0, 5.0]), eps=1e-3, throw=False)
    assert flow.result == dln.RESULTS.invalid_network
    assert np.isnan(flow.x).all()


def test_derivatives_where_trial_steps_leave_the_domain_of_a_link():
    # A network without `growth`, and steps that overshoot to w < 0, where w^−1.5 is NaN: reverse
    # mode agrees with differences all the same.
    class Half(Cubed):
        """`x = u⁶`: `Deep` at `D = 6` with one sign, whose link is `ε w^{−1.5}`."""

        def __call__(self):
            return self.u**6

        def initial(self, log_eps):
            return eqx.tree_at(lambda net: net.u, self, self.u * jnp.exp(log_eps / 6))

        def time_scale(self, log_eps):
            return jnp.exp(-2 * log_eps / 3) / 24

        def link(self, w, log_eps):
            return jnp.exp(log_eps) * w**-1.5

        def initial_dual(self, log_eps):
            return self.u[None] ** -4

    dln.check_network(Half(jnp.asarray(SHAPE)))
    X, y = np.array([[1.0, 0.5, 0.2], [0.0, 1.0, 0.7]]), jnp.array([2.0, 1.0])

    @jax.jit
    @jax.value_and_grad
    def total(y):
        network, s = Half(jnp.asarray(SHAPE)), np.array([0.5, 2.0, 50.0])
        flow = dln.gradient_flow(network, dln.LeastSquares(X, y), s, log_eps=-12.0, throw=False)
        return jnp.sum(flow.x_mean)

    h = 1e-4
    differences = [(total(y + h * e)[0] - total(y - h * e)[0]) / (2 * h) for e in np.eye(2)]
    np.testing.assert_allclose(total(y)[1], differences, rtol=1e-4)
