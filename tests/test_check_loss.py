"""`check_loss`: losses of the library pass, and each kind of mistake is named."""

import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln


class Square(dln.AbstractLoss):
    value = lambda self, u, y: (u - y) ** 2 / 2
    derivative = lambda self, u, y: u - y
    curvature = lambda self, u, y: jnp.ones_like(u)
    conjugate = lambda self, p, y: p * y + p**2 / 2


class PseudoHuber(dln.AbstractLoss):
    """Its conjugate has the rounding of 1 at the minimum, where all else is 0."""

    value = lambda self, u, y: (u - y) ** 2 / (jnp.sqrt(1 + (u - y) ** 2) + 1)
    derivative = lambda self, u, y: (u - y) / jnp.sqrt(1 + (u - y) ** 2)
    curvature = lambda self, u, y: (1 + (u - y) ** 2) ** -1.5

    def conjugate(self, p, y):
        some = jnp.sqrt(jnp.maximum(1 - p**2, 0))
        return jnp.where(jnp.abs(p) <= 1, p * y + 1 - some, jnp.inf)


LABELS, TARGETS = [1.0, -1.0], [0.0, -3.5, 1e3, 1e6]
RIGHT = {
    "logistic": (dln.LogisticLoss(), LABELS),
    "exponential": (dln.ExponentialLoss(), LABELS),
    "poisson": (dln.PoissonLoss(), [0.0, 3.0, 1000.0]),
    "huber": (dln.HuberLoss(1.0), TARGETS),
    "narrow huber": (dln.HuberLoss(0.01), TARGETS[:3]),
    "square": (Square(), TARGETS),
    "pseudo-Huber": (PseudoHuber(), [0.0, 0.5, 1.0, 0.3]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_pass(name, dtype):
    loss, y = RIGHT[name]
    if name.endswith("huber"):
        loss = dln.HuberLoss(dtype(loss.delta))
    dln.check_loss(loss, np.asarray(y, dtype))


def replaced(base, **functions):
    return type("Wrong", (base,), functions)()


def bare_entropy(a):
    return a * jnp.log(a) + (1 - a) * jnp.log1p(-a)


Logistic, Exponential = dln.LogisticLoss, dln.ExponentialLoss
WRONG = {
    "derivative twice": (
        replaced(Logistic, derivative=lambda s, u, y: 2 * Logistic.derivative(s, u, y)),
        "`value` does not change by the integral of `derivative`",
    ),
    "derivative off by 4 %": (
        replaced(Logistic, derivative=lambda s, u, y: 1.04 * Logistic.derivative(s, u, y)),
        "`value` does not change by the integral of `derivative`",
    ),
    "sign of the derivative": (
        replaced(Logistic, derivative=lambda s, u, y: -Logistic.derivative(s, u, y)),
        "`derivative` must increase",
    ),
    "not convex": (
        replaced(
            Logistic,
            value=lambda s, u, y: jnp.tanh(u),
            derivative=lambda s, u, y: 1 - jnp.tanh(u) ** 2,
        ),
        "`derivative` must increase",
    ),
    "curvature twice": (
        replaced(Logistic, curvature=lambda s, u, y: 2 * Logistic.curvature(s, u, y)),
        "`derivative` does not change by the integral of `curvature`",
    ),
    "sign of the curvature": (
        replaced(Logistic, curvature=lambda s, u, y: -Logistic.curvature(s, u, y)),
        "`curvature` must not be negative",
    ),
    "sign of the conjugate": (
        replaced(Logistic, conjugate=lambda s, p, y: -Logistic.conjugate(s, p, y)),
        "`conjugate` is not `pu − f",
    ),
    "domain of the conjugate": (
        replaced(
            Logistic,
            conjugate=lambda s, p, y: jnp.nan_to_num(Logistic.conjugate(s, p, y), posinf=0.0),
        ),
        "`conjugate` is less than `pu − f",
    ),
    "value that cancels": (
        replaced(Logistic, value=lambda s, u, y: jnp.log(1 + jnp.exp(-y * u))),
        "`value` cancels: `softplus`",
    ),
    "derivative without a cap": (
        replaced(Exponential, derivative=lambda s, u, y: -y * jnp.exp(-y * u)),
        "`derivative` is not finite everywhere up to u = ±10000",
    ),
    "conjugate that is NaN": (
        replaced(Logistic, conjugate=lambda s, p, y: bare_entropy(-p * y)),
        "`conjugate` is NaN",
    ),
    "value that is NaN": (
        replaced(Logistic, value=lambda s, u, y: jnp.nan * u),
        "`value` is NaN",
    ),
    "a mean over the rows": (
        replaced(Logistic, value=lambda s, u, y: jnp.mean(Logistic.value(s, u, y), axis=-1)),
        "`value` must be elementwise",
    ),
}


class LargeSquare(dln.AbstractLoss):
    """In units in which its terms cancel."""

    value = lambda self, u, y: 1e8 * (u - y) ** 2 / 2
    derivative = lambda self, u, y: 1e8 * (u - y)
    curvature = lambda self, u, y: 1e8 * jnp.ones_like(u)
    conjugate = lambda self, p, y: p * y + p**2 / 2e8


def test_large_units_and_many_targets():
    dln.check_loss(LargeSquare(), np.array([1.0, 2.0]))
    dln.check_loss(dln.HuberLoss(1.0), np.random.default_rng(0).normal(size=10_000))


def test_the_place_is_named():
    """Of a conjugate that is wrong for `u > 29` alone."""
    p_there = float(Exponential().derivative(jnp.array([29.0]), -jnp.ones(1))[0])
    conjugate = lambda s, p, y: Exponential.conjugate(s, p, y) * jnp.where(p > p_there, 1.1, 1.0)
    with pytest.raises(ValueError, match="`conjugate`.* at u = 29") as raised:
        dln.check_loss(replaced(Exponential, conjugate=conjugate), -np.ones(1))
    assert "y = -1" in str(raised.value)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_function_is_named(name):
    loss, message = WRONG[name]
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        dln.check_loss(loss, np.array(LABELS))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"`takes` refuses the target y = 0.5"):
        dln.check_loss(Logistic(), np.array([1.0, 0.5]))
    with pytest.raises(ValueError, match="`y`"):
        dln.check_loss(Square(), np.array([]))
    with pytest.raises(ValueError, match="`y`"):
        dln.check_loss(Square(), np.array([np.nan]))


def test_no_loss(as_users_run_it):
    with pytest.raises(TypeError, match="`loss` must be a loss, such as"):
        dln.check_loss(dln.UV(np.ones(2), np.zeros(2)), np.ones(2))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistic_conjugate_keeps_digits(dtype):
    """Near the ends of its domain: `a log a + (1 − a) log(1 − a) ≈ a (log a − 1)`."""
    a = np.geomspace(1e-30, 1e-3, 28)
    exact = a * np.log(a) + (1 - a) * np.log1p(-a)
    found = Logistic().conjugate(jnp.asarray(-a, dtype), jnp.ones(28, dtype))
    np.testing.assert_allclose(found, exact, rtol=8 * np.finfo(dtype).eps)
