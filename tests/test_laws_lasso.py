"""The lasso of a large Gaussian design: against SciPy, closed forms, differences, and draws."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr
from scipy.stats import norm

import dlnjax as dln
from dlnjax._laws import roots, soft_threshold
from dlnjax._loops import next_share
from dlnjax._results import names_of

VALUES, PROBABILITIES = np.array([-1.0, 0, 1]), np.array([0.05, 0.9, 0.05])
PRIOR = (VALUES, PROBABILITIES)
FIELDS = ("risk", "active", "one_norm", "loss", "tau", "alpha")


def of(kappa, delta, values, probabilities, noise, **options):
    law = dln.GaussianDesign(delta, (values, probabilities), noise)
    return dln.lasso_asymptotics(law, kappa, **options)


LANES = 8
program = jax.jit(jax.vmap(lambda *a: of(*a, throw=False)))


def lanes(kappa, delta: Any = 0.5, noise: Any = 0.2, values=VALUES, probabilities=PROBABILITIES):
    """Fields, and names of results, of up to eight lanes: one program for all tests."""
    count = len(kappa)
    shapes = ((), (), (3,), (3,), ())
    given = (kappa, delta, values, probabilities, noise)
    full = [np.broadcast_to(v, (count, *n)) for v, n in zip(given, shapes, strict=True)]
    padded = [np.concatenate([v, np.repeat(v[-1:], LANES - count, axis=0)]) for v in full]
    found = program(*padded)
    fields = {name: np.asarray(getattr(found, name))[:count] for name in FIELDS}
    return fields, names_of(found.result)[:count].tolist()


def moment(fn, v, tau, theta):
    """`E fn(η(v + τZ; θ))` by adaptive quadrature between the kinks."""
    soft = lambda y: np.sign(y) * max(abs(y) - theta, 0)
    f = lambda z: fn(soft(v + tau * z)) * norm.pdf(z)
    kinks = [(-theta - v) / tau, (theta - v) / tau, -2, 2]
    ends = sorted({-40.0, 40.0, *(float(np.clip(k, -40, 40)) for k in kinks)})
    pairs = zip(ends[:-1], ends[1:], strict=True)
    return sum(quad(f, a, b, epsabs=1e-14, epsrel=1e-13, limit=200)[0] for a, b in pairs)


def over(fn, tau, theta, values=VALUES, probabilities=PROBABILITIES):
    return sum(
        p * moment(lambda x, v=v: fn(x, v), v, tau, theta)
        for v, p in zip(values, probabilities, strict=True)
    )


def test_moments():
    for v, alpha in [(0.0, 1.3), (0.7, 0.4), (-2.0, 1.0), (5.0, 2.0), (-0.1, 4.0), (3.0, 0.0)]:
        at = jnp.array([v]), jnp.asarray(alpha)
        found = [float(f(*at)[0]) for f in vars(soft_threshold).values() if f in MOMENTS]
        want = [moment(lambda x: x != 0, v, 1, alpha)]
        want += [moment(lambda x, v=v: (x - v) ** 2, v, 1, alpha), moment(abs, v, 1, alpha)]
        # The quadrature has 1e-13; the risk is a difference of terms of size α².
        np.testing.assert_allclose(found, want, rtol=1e-11, atol=1e-14)


MOMENTS = (soft_threshold.active, soft_threshold.risk, soft_threshold.one_norm)


def test_roots_in_few_steps(monkeypatch):
    # Also of a jump, of infinite values and of a root of high order, all by bisection.
    steps, loop = [], roots.while_loop

    def counted(*args):
        out = loop(*args)
        steps.append(int(out[-1]))
        return out

    monkeypatch.setattr(roots, "while_loop", counted)
    low, high = jnp.asarray(-354.0), jnp.asarray(354.0)
    for fn, want in [
        (lambda x: x - 0.3, 0.3),
        (lambda x: jnp.exp(x) - 1e-5, np.log(1e-5)),
        (lambda x: jnp.sign(x - 1.7), 1.7),
        (lambda x: jnp.where(x < 5.1, -jnp.inf, 1.0), 5.1),
        (lambda x: (x - 0.1) ** 9, 0.1),
        (lambda x: jnp.exp(x / 2) - jnp.exp(-100.0), -200.0),
    ]:
        root, _ = roots.bracketed_root(fn, low, high)
        np.testing.assert_allclose(root, want, rtol=1e-14)
    assert max(steps) <= 70
    # A line is met at once, and what is not known is halved.
    share = lambda *v: float(next_share(*map(jnp.asarray, v)))
    assert abs(share(1.0, 5.0, 0.0, -1.0, 3.0, -2.0) - 0.25) < 1e-15
    assert (
        share(1.0, 5.0, 0.0, jnp.nan, 3.0, -2.0) == share(1.0, 5.0, 0.0, -1.0, jnp.inf, -2) == 0.5
    )


def test_both_equations_hold():
    # With moments by quadrature, so that neither the closed forms nor the solver are used.
    deltas, noises = np.array([0.5, 0.5, 0.3, 2, 1]), np.array([0.2, 0, 0.5, 0.1, 1e-3])
    kappas = np.array([0.2, 1e-3, 1.5, 0.02, 0.3])
    found, names = lanes(kappas, deltas, noises)
    assert set(names) == {"successful"}
    numbers = [found[name] for name in FIELDS]
    rows = zip(deltas, noises, kappas, np.transpose(numbers), strict=True)
    for delta, noise, kappa, row in rows:
        risk, active, one_norm, loss, tau, alpha = map(float, row)
        theta = alpha * tau
        want_risk = over(lambda x, v: (x - v) ** 2, tau, theta)
        want_active = over(lambda x, v: x != 0, tau, theta)
        # All to the digits of the quadrature.
        assert abs(noise**2 + want_risk / delta - tau**2) < 1e-11 * tau**2
        assert abs(theta * (1 - want_active / delta) - kappa) < 1e-10 * kappa
        assert abs(risk / want_risk - 1) < 1e-10
        assert abs(active / want_active - 1) < 1e-11
        assert abs(one_norm / over(lambda x, v: abs(x), tau, theta) - 1) < 1e-11
        assert abs(loss / (kappa / alpha) ** 2 - 1) < 1e-12


def least_alpha(delta):
    """Where `τ` of a given `α` becomes infinite (Bayati and Montanari)."""
    excess = lambda a: (1 + a**2) * norm.sf(a) - a * norm.pdf(a) - delta / 2
    return float(brentq(excess, 0, 40, xtol=1e-15))  # pyright: ignore[reportArgumentType]


def test_alpha_is_above_its_least_value():
    assert abs(least_alpha(0.5) - 0.40523) < 5e-6
    zero, delta = jnp.zeros(1), 0.5
    at = soft_threshold.risk(zero, jnp.asarray(least_alpha(delta)))
    assert abs(float(at[0]) - delta) < 1e-14
    deltas = np.array([0.05, 0.3, 0.5, 0.9])
    found, _ = lanes(np.full(4, 1e-6), deltas, 5.0)
    for delta, alpha in zip(deltas, found["alpha"], strict=True):
        # At κ → 0 the active fraction is δ, which needs 2Q(α) < δ.
        assert alpha > norm.isf(delta / 2) > least_alpha(delta)


def test_limits():
    # κ = ∞, huge κ, κ = 0 for δ < 1 and δ > 1, δ = 1.
    deltas = np.array([0.5, 0.5, 0.5, 2, 1, 1, 1, 0.5])
    noises = np.array([0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0, 0])
    kappas = np.array([np.inf, 1e200, 0, 0, 0, 1e-9, 0, 0])
    found, names = lanes(kappas, deltas, noises)
    assert names == ["successful"] * 4 + ["law_not_finite"] + ["successful"] * 3
    assert np.all(np.isnan([found[name][4] for name in FIELDS]))
    risk, active, loss, tau = (found[name] for name in ("risk", "active", "loss", "tau"))
    energy = 0.2**2 + 0.1 / 0.5
    np.testing.assert_allclose(risk[:2], 0.1, rtol=1e-15)
    np.testing.assert_allclose(loss[:2], energy, rtol=1e-15)
    np.testing.assert_allclose(tau[:2], energy**0.5, rtol=1e-15)
    np.testing.assert_allclose(found["alpha"][:2], kappas[:2] / energy**0.5, rtol=1e-15)
    assert np.all(active[:2] == 0)
    # Basis pursuit has n active entries, and least squares the risk σ²δ/(δ − 1), all active.
    np.testing.assert_allclose(active[2:4], [0.5, 1], rtol=1e-14)
    assert loss[2] == 0
    np.testing.assert_allclose([risk[3], loss[3]], [0.08, 0.02], rtol=1e-14)
    # As κ → 0 at δ = 1: `α² √(2/π) τ = κ` and `√(2/π) α τ² · 2 = σ² + …`, so that τ ∝ κ^{−1/3}.
    again, _ = lanes([1e-12], 1.0)
    np.testing.assert_allclose(again["tau"][0] / tau[5], 10, rtol=1e-3)
    # Without noise, exact recovery.
    assert np.all(risk[6:] == 0) and np.all(np.isnan(found["alpha"][6:]))
    np.testing.assert_allclose(active[6:], 0.1, rtol=1e-15)


def test_tiny_kappa_without_noise():
    # Below the Donoho–Tanner line τ/κ has a limit, however small κ is; above it τ has.
    kappas = np.array([1e-6, 1e-100, 1e-140, 1e-200, 1e-290])
    found, names = lanes(kappas, noise=0)
    assert set(names) == {"successful"}
    flat(found, kappas, rtol=1e-10)
    np.testing.assert_allclose(found["tau"][0] / kappas[0], 0.712, atol=5e-4)
    dense, _ = lanes(kappas[2:], noise=0, probabilities=np.array([0.2, 0.6, 0.2]))
    np.testing.assert_allclose(dense["tau"], dense["tau"][0], rtol=1e-12)
    with jax.enable_x64(False):
        kappas = np.array([1e-6, 1e-8, 1e-10, 1e-12, 1e-20, 1e-30], np.float32)
        few = tuple(np.float32(v) for v in (0.5, VALUES, PROBABILITIES, 0))
        single = of(kappas, *few)
        # Exponents of −69 have an ulp of 8e-6.
        flat({name: np.asarray(getattr(single, name)) for name in FIELDS}, kappas, rtol=1e-4)
        np.testing.assert_allclose(single.tau[0] / kappas[0], 0.712, atol=5e-4)
        # With a noise as small, neither limit holds.
        law = dln.GaussianDesign(few[0], (few[1], few[2]), np.float32(1e-10))
        noisy = dln.lasso_asymptotics(law, kappas, throw=False)
        assert list(names_of(noisy.result)) == 2 * ["successful"] + 4 * ["law_not_resolved"]


def flat(found, kappas, rtol):
    for name, unit in (("tau", kappas), ("alpha", 1), ("active", 1)):
        share = found[name] / unit
        np.testing.assert_allclose(share, np.full_like(share, share[0]), rtol=rtol)
    # The square of κ/α, where it does not underflow.
    want = (kappas / found["alpha"]) ** 2
    is_held = want > np.finfo(want.dtype).tiny
    np.testing.assert_allclose(found["loss"][is_held], want[is_held], rtol=rtol)


def test_donoho_tanner_line():
    # δ and k/n of the line, by their closed form (Donoho, Maleki and Montanari 2009).
    z = np.array([0.3, 0.7, 1.2, 2.0, 3.0])
    delta = 2 * norm.pdf(z) / (z + 2 * (norm.pdf(z) - z * norm.sf(z)))
    sparsity = delta * (1 - z * norm.sf(z) / norm.pdf(z))

    def at(rho, noise):
        share = np.stack([rho / 2, 1 - rho, rho / 2], axis=1)
        return lanes(np.zeros(5), delta, noise, probabilities=share)[0]["risk"]

    # 1e-9 off the line is enough: τ is found in logarithms.
    below, above = (at(sparsity * (1 + h), 0.0) for h in (-1e-9, 1e-9))
    assert np.all(below == 0)
    assert np.all(above > 1e-6)
    # As σ → 0 the risk below the line is proportional to σ², above it is not.
    small, smaller = (at(0.9 * sparsity, noise) for noise in (1e-5, 1e-6))
    np.testing.assert_allclose(small / smaller, 100, rtol=1e-9)


def bayati_montanari(kappa, delta, noise, values, probabilities):
    """The risk as their paper computes it: `τ` by iteration for each `α`, and then `α`."""

    def mean_square(t, alpha):
        # By Stein's identity, from the law of Y: E min(Y², θ²) + τ² (2P − 1), in units of τ.
        a, b = -alpha - values / t, alpha - values / t
        still, v = ndtr(b) - ndtr(a), values / t
        low, high = np.exp(-(np.array([a, b]) ** 2) / 2) / np.sqrt(2 * np.pi)
        inside = (v**2 + 1) * still - (v + alpha) * high + (v - alpha) * low
        return t**2 * np.sum(probabilities * (inside + (alpha**2 + 1) * (1 - still) - still))

    def tau(alpha):
        square = noise**2 + np.sum(probabilities * values**2) / delta
        for _ in range(4000):
            new = noise**2 + mean_square(np.sqrt(square), alpha) / delta
            if abs(new - square) < 1e-15 * square:
                break
            square = new
        return np.sqrt(square)

    def excess(alpha):
        t = tau(alpha)
        active = np.sum(probabilities * (ndtr(values / t - alpha) + ndtr(-values / t - alpha)))
        return alpha * t * (1 - active / delta) - kappa

    t = tau(brentq(excess, norm.isf(delta / 2), 10, xtol=1e-14))
    return delta * (t**2 - noise**2)


def test_optimal_stopping():
    @jax.jit
    @jax.vmap
    def best_of(values, noise):
        best = lambda n: dln.optimal_stopping(dln.GaussianDesign(0.5, (values, PROBABILITIES), n))
        slope = jax.jvp(lambda n: best(n).kappa, (noise,), (jnp.ones(()),))[1]
        return best(noise), slope

    h = 1e-4
    # No noise; no signal; and a signal so weak that `x = 0` is as good.
    noises = jnp.array([0.2, 0.2 - h, 0.2 + h, 0, 0.2, 0.2])
    values = jnp.asarray(VALUES)[None, :] * jnp.array([1.0, 1, 1, 1, 0, 1e-6])[:, None]
    best, slope = best_of(values, noises)
    assert np.all(names_of(best.result) == "successful")
    risk = lambda log_kappa: bayati_montanari(np.exp(log_kappa), 0.5, 0.2, *PRIOR)
    found = minimize_scalar(risk, bounds=(np.log(0.05), np.log(0.5)), options={"xatol": 1e-7})
    # A minimum found from values has half of their digits.
    assert abs(best.kappa[0] / np.exp(found.x) - 1) < 1e-5
    np.testing.assert_allclose(best.risk[0], found.fun, rtol=1e-11)
    np.testing.assert_allclose(best.s[0], 1 / best.kappa[0], rtol=1e-15)
    at, _ = lanes(best.kappa[:1])
    for name in FIELDS:
        np.testing.assert_allclose(getattr(best, name)[0], at[name][0], rtol=1e-9)
    assert abs(slope[0] - (best.kappa[2] - best.kappa[1]) / (2 * h)) < 1e-6
    assert best.kappa[3] == 0 and best.risk[3] == 0
    assert np.all(best.kappa[4:] == np.inf) and np.all(best.s[4:] == 0)
    np.testing.assert_allclose(best.risk[4:], [0, 1e-13], rtol=1e-14)


def test_optimal_stopping_of_strong_signals():
    # Each entry is far from 0: no penalty is best, and this is least squares.
    law = dln.GaussianDesign(2.0, ([-1000.0, 1000.0], [0.5, 0.5]), 0.1)
    best = dln.optimal_stopping(law)
    assert best.kappa == 0 and best.alpha == 0 and best.s == np.inf
    np.testing.assert_allclose([best.risk, best.loss], [0.02, 0.005], rtol=1e-13)
    at = dln.lasso_asymptotics(law, best.kappa)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(best, name), getattr(at, name), rtol=1e-12)
    slope = jax.grad(
        lambda noise: dln.optimal_stopping(eqx.tree_at(lambda law: law.noise, law, noise)).risk
    )(law.noise)
    np.testing.assert_allclose(slope, 0.4, rtol=1e-12)


def total(kappa, delta, values, probabilities, noise):
    found = of(kappa, delta, values, probabilities, noise)
    return sum((k + 1) * getattr(found, name) for k, name in enumerate(FIELDS))


AT = tuple(jnp.asarray(v) for v in (0.2, 0.5, VALUES, PROBABILITIES, 0.2))
DIRECTION = tuple(jnp.asarray(v) for v in (0.3, -0.4, [0.5, 0.7, -0.3], [0.1, -0.3, 0.2], 0.6))


def test_derivatives():
    # Three derivatives along one direction in all numbers at once, against differences of the value
    # and of those below.
    along = lambda t: total(*(a + t * b for a, b in zip(AT, DIRECTION, strict=True)))
    one = jnp.ones(())
    first = lambda t: jnp.stack(jax.jvp(along, (t,), (one,)))
    second = lambda t: jnp.stack(jax.jvp(first, (t,), (one,)))
    third = lambda t: jnp.stack(jax.jvp(second, (t,), (one,)))
    h = 1e-4
    found = np.asarray(jax.jit(jax.vmap(third))(jnp.array([-h, 0, h])))
    lower, here, upper = found[:, [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    # Differences have an error of h² times the next derivatives, relative to these.
    np.testing.assert_allclose((upper - lower)[:3] / (2 * h), here[1:], rtol=1e-4)
    # Each input, in reverse mode: the same sum. Other lanes do not spoil it, and have derivatives.
    kappas = jnp.array([0.2, 0, 0, -1, jnp.nan, 0.2, 0.2, jnp.inf])
    deltas = jnp.array([0.5, 0.5, 1, 0.5, 0.5, jnp.nan, 0.5, 0.5])
    noises = jnp.array([0.2, 0, 0.2, 0.2, 0.2, 0.2, jnp.inf, 0.2])
    grads = jax.grad(total, argnums=tuple(range(5)))
    grads = jax.jit(jax.vmap(grads, (0, 0, None, None, 0)))(kappas, deltas, *AT[2:4], noises)
    summed = sum(jnp.sum(g[0] * b) for g, b in zip(grads, DIRECTION, strict=True))
    np.testing.assert_allclose(float(summed), here[1], rtol=1e-11)
    assert all(np.all(np.isfinite(g)) for g in grads)
    # Reverse over forward mode.
    curvature = jax.grad(lambda t: first(t)[1])(0.0)
    np.testing.assert_allclose(float(curvature), here[2], rtol=1e-11)


def test_density():
    # 9 of 10 entries 0, the others normal: Y is a mixture of two normals of known variance.
    slab = lambda v: 0.1 * jnp.exp(-(v**2) / 2) / (2 * jnp.pi) ** 0.5
    prior = [([0.0], [0.9]), (slab, [-9.0, -3, 0, 3, 9])]
    law = dln.GaussianDesign(0.5, prior, 0.2)
    found = dln.lasso_asymptotics(law, jnp.array([0.05, 0.2, 1.0]))
    for risk, active, tau, alpha in zip(
        *(np.asarray(getattr(found, f)) for f in ("risk", "active", "tau", "alpha")), strict=True
    ):
        theta, want = alpha * tau, []
        for sd in (tau, np.hypot(1, tau)):
            a = theta / sd
            inside = sd**2 * (1 - 2 * norm.sf(a) - 2 * a * norm.pdf(a)) + 2 * theta**2 * norm.sf(a)
            want.append((2 * norm.sf(a), inside + tau**2 * (4 * norm.sf(a) - 1)))
        want = np.array([0.9, 0.1]) @ np.array(want)
        np.testing.assert_allclose([active, risk], want, rtol=1e-11)
        np.testing.assert_allclose(0.2**2 + risk / 0.5, tau**2, rtol=1e-12)
    # Panels that are too wide for τ are seen, also where no node sees it.
    for edges, noise, kappa in [([-9.0, 9.0], 0.2, 0.2), ([-9.0, 9.0], 1e-3, 1e-3)]:
        wide = dln.GaussianDesign(0.5, [([0.0], [0.9]), (slab, edges)], noise)
        at = dln.lasso_asymptotics(wide, kappa, throw=False)
        assert names_of(at.result) == "prior_not_resolved" and np.isnan(at.risk)


def test_concrete_edges_under_jit():
    slab = lambda v: 0.1 * jnp.exp(-(v**2) / 2) / (2 * jnp.pi) ** 0.5
    edges, down = jnp.array([-9.0, -3, 0, 3, 9]), jnp.array([9.0, 0, -9])

    def risk(noise, edges=edges):
        law = dln.GaussianDesign(0.5, [([0.0], [0.9]), (slab, edges)], noise)
        return dln.lasso_asymptotics(law, 0.2).risk

    np.testing.assert_allclose(jax.jit(risk)(0.2), risk(0.2), rtol=1e-13)
    with pytest.raises(ValueError, match="must increase"):
        jax.jit(lambda noise: risk(noise, down))(0.2)


def test_draws_are_as_the_law_says():
    # Lasso paths, and averages of flows of depth 2, of the same draws, in one program.
    kappas, n, d, count = jnp.array([0.2, 0.4, 0.8]), 40, 80, 24
    law = dln.GaussianDesign(0.5, PRIOR, 0.2)
    network = dln.UV(jnp.ones(d), jnp.zeros(d))

    @jax.jit
    @jax.vmap
    def one(key):
        problem, x_star = law.sample(key, n, d)
        path = dln.lasso_path(problem, throw=False)
        s = 1 / kappas[::-1]
        flow = dln.gradient_flow(network, problem, s, log_eps=-300.0, throw=False)
        x = jnp.stack([path.x(s), flow.x_mean])[:, ::-1]
        off = jnp.mean((x - x_star[None, None, :]) ** 2, axis=2)
        left = problem.y[None, :] - path.x(s)[::-1] @ problem.X.T
        sizes = jnp.mean(jnp.abs(x[0]), axis=1), jnp.mean(left**2, axis=1)
        return off, jnp.stack([jnp.mean(x[0] != 0, axis=1, dtype=x.dtype), *sizes])

    keys = jax.random.split(jax.random.key(0), count)
    risks, others = (np.asarray(v) for v in one(keys))

    found = dln.lasso_asymptotics(law, kappas)
    error = risks.std(axis=0) / count**0.5
    # Three standard errors, and 2 % for the first order in 1/d.
    want = np.asarray(found.risk)
    assert np.all(np.abs(risks.mean(axis=0) - want) < 3 * error + 0.02 * want)
    want = np.stack([found.active, found.one_norm, found.loss])
    error = others.std(axis=0) / count**0.5
    assert np.all(np.abs(others.mean(axis=0) - want) < 3 * error + 0.02 * want)
    # The flow's average is the lasso but where the path is not monotone.
    assert np.all(np.abs(risks[:, 0] - risks[:, 1]).mean(axis=0) < 0.02 * risks[:, 0].mean(axis=0))


def test_scale():
    # In other units of x, also tiny and huge ones.
    c = np.array([1, 1e-150, 1e-3, 1e100])
    found, _ = lanes(0.2 * c, noise=0.2 * c, values=VALUES * c[:, None])
    for name, power in zip(FIELDS, (2, 0, 1, 2, 1, 0), strict=True):
        np.testing.assert_allclose(found[name] / c**power, np.full(4, found[name][0]), rtol=1e-12)


def test_overflow_is_a_failure():
    # The risk is a square: its values are held, and it is not.
    c = np.array([1, 1e200, 1e200, 1])
    kappas = np.array([0.2, 0.2e200, np.inf, 0.2e-200])
    found, names = lanes(kappas, noise=0.2 * c, values=VALUES * c[:, None])
    assert names == ["successful", "law_not_finite", "law_not_finite", "successful"]
    assert all(np.all(np.isnan(found[name][1:3])) for name in FIELDS)
    with jax.enable_x64(False):
        values, probabilities = np.float32(1e25 * VALUES), np.float32(PROBABILITIES)
        arguments = np.float32(0.2e25), np.float32(0.5), values, probabilities, np.float32(0.2e25)
        assert names_of(of(*arguments, throw=False).result) == "law_not_finite"


def test_float32():
    kappas = np.array([0.05, 0.2, 0.8, 1e30, np.inf])
    values, probabilities = (np.float32(v) for v in PRIOR)
    with jax.enable_x64(False):
        found = of(np.float32(kappas), np.float32(0.5), values, probabilities, np.float32(0.2))
        assert found.risk.dtype == jnp.float32
    want, _ = lanes(kappas)
    for name in FIELDS:
        # A few roundings, times the condition of the root.
        np.testing.assert_allclose(getattr(found, name), want[name], rtol=2e-5)


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, PRIOR, 0.2), "`delta` must be positive and finite, got 0.0"),
        ((0.5, PRIOR, -1.0), "`noise` must be finite and not negative, got -1.0"),
        ((0.5, PRIOR, np.ones(2)), "`noise` must be a scalar, got shape (2,)"),
        ((0.5, (VALUES, 2 * PROBABILITIES), 0.2), "sum to 2.0, not to 1"),
        ((0.5, (VALUES, [0.5, 1, -0.5]), 0.2), "must not be negative or NaN, got -0.5"),
        ((0.5, (VALUES, [0.5, 0.5]), 0.2), "must have one shape (K,), got (3,) and (2,)"),
        ((0.5, ([np.nan], [1.0]), 0.2), "`values[0]` is nan"),
        ((0.5, (jnp.exp, [1.0]), 0.2), "must have shape (panels + 1,), got (1,)"),
        ((0.5, (jnp.exp, [1.0, 0.0]), 0.2), "must increase"),
        ((0.5, (jnp.sum, [0.0, 1.0]), 0.2), "has shape () at values of shape (64,)"),
        ((0.5, (jnp.exp, [-1.0, 0.0]), 0.2), "sum to 0.63212"),
    ],
)
def test_bad_laws(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dln.GaussianDesign(*arguments)


@pytest.mark.usefixtures("as_users_run_it")
def test_bad_arguments():
    law = dln.GaussianDesign(0.5, PRIOR, 0.2)
    with pytest.raises(TypeError, match="`prior` must be a pair"):
        dln.GaussianDesign(0.5, VALUES, 0.2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`law` must be a GaussianDesign, got float"):
        dln.lasso_asymptotics(0.5, 0.2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`kappa` must be non-negative, got -1.0"):
        dln.lasso_asymptotics(law, np.array([0.1, -1.0]))
    with pytest.raises(ValueError, match="`kappa` must be non-negative, got nan"):
        dln.lasso_asymptotics(law, np.array([0.1, np.nan]))
    for n, d, error, message in [
        (-2, 4, ValueError, "`n` must be at least 1, got -2"),
        (2, 0, ValueError, "`d` must be at least 1, got 0"),
        (2.5, 4, TypeError, "`n` must be a whole number, got 2.5"),
    ]:
        with pytest.raises(error, match=message):
            law.sample(jax.random.key(0), n, d)
    with pytest.raises(eqx.EquinoxRuntimeError, match="law_not_finite: The risk is infinite"):
        of(0.0, 1.0, *PRIOR, 0.2)
    found, names = lanes([0.2, np.nan, -1, 0.2, 0.2], [0.5, 0.5, 0.5, 0, np.inf])
    assert names == ["successful"] + ["invalid_law"] * 4
    assert np.all(np.isnan(found["risk"][1:])) and np.isfinite(found["risk"][0])
