"""The lasso of a large Gaussian design: the fixed point of its state evolution.

With `m`, `P` and `‖·‖` of `soft_threshold.py` at `v = V/τ`, `V` from the prior, two equations hold:

    τ² = σ² + τ² E m(V/τ, α)/δ,        κ = α τ (1 − E P(V/τ, α)/δ).

They are the stationary point of a function that is concave in `β = κ/α` and convex in `τ`. So the
second has one solution `α(τ)` at each `τ`, as its right-hand side rises in `α`; and with it
`1 − σ²/τ² − E m/δ` changes its sign once. Both roots are bracketed. All of it is in units in which
`σ² + E V²/δ` is 1, and solved in logarithms, since without noise `τ` vanishes with `κ`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import as_flag, as_parameter, check_type, is_concrete
from .._derivatives import held
from .._linalg import matmul
from .._results import RESULTS, first_failure, raise_on_failure
from . import soft_threshold
from .design import GaussianDesign, rough
from .roots import bracketed_root


class LassoAsymptotics(eqx.Module):
    """What the lasso of a `GaussianDesign` tends to as `n, d → ∞`. Each is the limit of a number of
    one draw, with a probability that tends to 1.

    **Attributes**, all of the shape `(...)` of `kappa`:

    - `kappa`: the penalty `κ = λ + 1/μ`.
    - `risk`: of `‖x − x*‖²/d`.
    - `active`: of the fraction of entries that are not 0.
    - `one_norm`: of `‖x‖₁/d`.
    - `loss`: of `‖y − Xx‖²/n`, that is `(κ/α)²`, of `2/n` times `problem.loss(x)`.
    - `tau`: `x` has the law of `x*` plus a normal of standard deviation `τ`, soft thresholded.
    - `alpha`: the threshold in units of `τ`. NaN where `τ` is 0: then `x = x*`.
    - `result`: how each solve ended. If it failed, all numbers are NaN.

    !!! example

        ```python
        law = dln.GaussianDesign(0.5, ([-1.0, 0.0, 1.0], [0.05, 0.9, 0.05]), noise=0.2)
        large = dln.lasso_asymptotics(law, 0.2)
        large.risk, large.s  # 0.0366, and 5: the time at which a network of depth 2 is there
        ```
    """

    kappa: Float[Array, "..."]
    risk: Float[Array, "..."]
    active: Float[Array, "..."]
    one_norm: Float[Array, "..."]
    loss: Float[Array, "..."]
    tau: Float[Array, "..."]
    alpha: Float[Array, "..."]
    result: RESULTS

    @property
    def s(self) -> Float[Array, "..."]:
        """`1/κ`: the training time, without weight decay."""
        return 1 / self.kappa


def lasso_asymptotics(
    law: GaussianDesign, kappa: Real[ArrayLike, "..."], *, throw: bool = True
) -> LassoAsymptotics:
    """The lasso `½‖Xx − y‖² + κ‖x‖₁` of a large Gaussian design: risk, sparsity, 1-norm and loss.

    `κ` is that of `lasso_path` and `lasso` at `μ = 1/κ`, and, where the path is monotone, that of
    the average `x_mean` of a flow of depth 2 at `s = 1/κ` as `ε → 0`. Numbers of one draw
    differ from the limit by about `1/√d`. Atoms cost some hundred evaluations of closed forms;
    densities are integrated over them.

    All fields have derivatives of every order in `kappa` and in the numbers of the law, by the
    implicit function theorem, and `jax.vmap` takes all of them. Where `τ` is 0, that of the risk
    and the loss, which is 0, is right, and those of other fields in `kappa` and `noise` are not.

    **Arguments:**

    - `law`: a `GaussianDesign`.
    - `kappa`: `κ ≥ 0`, of any shape. 0 is basis pursuit, or least squares for `δ > 1`; `inf` gives
        `x = 0`.
    - `throw`: raise on failure. Under tracing, and with `throw=False`, nothing is raised: failed
        lanes are NaN, with their `result`.

    **Returns:** `LassoAsymptotics`.

    **Raises:** `TypeError` for another law; `ValueError` for a `kappa` that is negative or NaN; an
    `EquinoxRuntimeError` with `law_not_finite` where the risk is infinite (`δ = 1`, `κ = 0`) or
    overflows, `law_not_resolved` where `noise` and `kappa` both are tiny beside the prior and not
    0, or `prior_not_resolved` where the panels of a density are too wide for `τ`.

    !!! example

        ```python
        law = dln.GaussianDesign(0.5, ([-1.0, 0.0, 1.0], [0.05, 0.9, 0.05]), noise=0.2)
        large = dln.lasso_asymptotics(law, jnp.array([0.1, 0.2, 0.4]))
        large.risk  # (0.0369, 0.0366, 0.0484)
        large.active  # (0.359, 0.271, 0.173)
        jax.grad(lambda kappa: dln.lasso_asymptotics(law, kappa).risk)(0.2)  # 0.035
        ```

    !!! cite "Reference"

        Bayati & Montanari, *The LASSO Risk for Gaussian Matrices*, IEEE Trans. Inf. Theory 58
        (2012), Theorem 1.5 and Equations 1.9, 1.10; the function of `β` and `τ` in Thrampoulidis,
        Abbasi & Hassibi, *Precise Error Analysis of Regularized M-estimators in High Dimensions*
        (2018).
    """
    check_type(law, "law", GaussianDesign, "a GaussianDesign")
    as_flag(throw, "throw")
    kappas = as_parameter(kappa, "kappa", law.values.dtype)
    if is_concrete(kappas) and np.any(np.isnan(np.asarray(kappas))):
        raise ValueError("`kappa` must be non-negative, got nan.")
    found = _at(law, kappas)
    return raise_on_failure(found, found.result, throw)


def optimal_stopping(law: GaussianDesign, *, throw: bool = True) -> LassoAsymptotics:
    """The lasso of a large Gaussian design at the `κ` of least risk: when to stop training.

    A network of depth 2 is there at `s = 1/κ`. It is found as the root of the derivative
    of the risk, of which there is one (the risk is quasi-convex in `κ`), and
    differentiated by the implicit function theorem, as `lasso_asymptotics` is.

    **Arguments:** `law`, a `GaussianDesign`; `throw`, as for `lasso_asymptotics`.

    **Returns:** `LassoAsymptotics`, with `kappa` and `s`. `κ` is 0 without noise where basis
    pursuit recovers `x*`, and for signals so strong that the gain of a penalty underflows. It is
    `inf` for a prior of 0, or one so weak that the gain underflows.

    **Raises:** as `lasso_asymptotics`.

    !!! example

        ```python
        law = dln.GaussianDesign(0.5, ([-1.0, 0.0, 1.0], [0.05, 0.9, 0.05]), noise=0.2)
        best = dln.optimal_stopping(law)
        best.kappa, best.s, best.risk  # 0.147, 6.79, 0.0356
        ```

    !!! cite "Reference"

        Mousavi, Maleki & Baraniuk, *Consistent parameter estimation for LASSO and approximate
        message passing*, Annals of Statistics 46 (2018): the risk is quasi-convex.
    """
    check_type(law, "law", GaussianDesign, "a GaussianDesign")
    as_flag(throw, "throw")
    found = _best(law)
    return raise_on_failure(found, found.result, throw)


@eqx.filter_jit
def _at(law: GaussianDesign, kappas: Array) -> LassoAsymptotics:
    flat = jax.vmap(lambda kappa: _solve(law, kappa, _calibration))(jnp.ravel(kappas))
    return jax.tree.map(lambda v: v.reshape(kappas.shape), flat)


@eqx.filter_jit
def _best(law: GaussianDesign) -> LassoAsymptotics:
    return _solve(law, jnp.zeros_like(law.noise), _optimality)


class _Units(eqx.Module):
    """The law and `κ`, in units in which `σ² + E V²/δ` is 1 but where it says otherwise."""

    delta: Float[Array, ""]
    values: Float[Array, " K"]
    probabilities: Float[Array, " K"]
    noise: Float[Array, ""]
    kappa: Float[Array, ""]

    def mean(self, moments: Array) -> Array:
        return jnp.sum(self.probabilities * moments)

    def v(self, log_tau: Array) -> Array:
        return self.values * jnp.exp(-log_tau)

    def fixed_point(self, log_tau: Array, alpha: Array) -> Array:
        """`1 − σ²/τ² − E m/δ`."""
        risk = self.mean(soft_threshold.risk(self.v(log_tau), alpha))
        return 1 - (self.noise * jnp.exp(-log_tau)) ** 2 - risk / self.delta

    def share(self, log_tau: Array, alpha: Array) -> Array:
        """`1 − P/δ`, that of the residual which does not go along with `x`."""
        return 1 - self.mean(soft_threshold.active(self.v(log_tau), alpha)) / self.delta


# The second equation: of a given `κ`, or of the `κ` of least risk. Both rise in `α` through 0.


def _calibration(of: _Units, log_tau: Array, alpha: Array) -> Array:
    """`α (1 − P/δ) − κ/τ`."""
    return alpha * of.share(log_tau, alpha) - of.kappa * jnp.exp(-log_tau)


def _optimality(of: _Units, log_tau: Array, alpha: Array) -> Array:
    """The sign of the derivative of the risk in `α`."""
    return jnp.log(alpha) - soft_threshold.log_hazard(of.v(log_tau), of.probabilities, alpha)


def _most_alpha(dtype: Any) -> float:
    """The largest `α` at which the sign of the derivative is known: 4096 in float64, 27 in float32.

    Logarithms of size `α²/2` have to show what is left of `1/α²`. Above, the risk is that of
    `x = 0` but for `exp(−α²/2)`, which underflows."""
    return 0.5 * float(jnp.finfo(dtype).eps) ** -0.25


_Second = Callable[[_Units, Array, Array], Array]


def _alpha(of: _Units, log_tau: Array, second: _Second) -> Array:
    """The solution `α` of the second equation at this `τ`."""
    info = jnp.finfo(of.delta.dtype)
    if second is _optimality:
        low, high = jnp.log(info.tiny) / 2, jnp.log(_most_alpha(info.dtype))
        low, high = jnp.asarray(low, info.dtype), jnp.asarray(high, info.dtype)
        return jnp.exp(bracketed_root(lambda a: second(of, log_tau, jnp.exp(a)), low, high)[0])
    # `P` is least for V = 0, so that P < δ needs 2Q(α) < δ; and κ/τ ≤ α. From above: by
    # Chebyshev's inequality P ≤ (1 + E(V/τ)²)/α² is below δ/2 from `enough` on.
    c = of.kappa * jnp.exp(-log_tau)
    least = jnp.maximum(c, jnp.where(of.delta < 1, -ndtri(jnp.minimum(of.delta, 1) / 2), 0))
    is_positive = least > 0
    low = jnp.log(jnp.where(is_positive, 0.9 * least, 1))
    square = jnp.sum(of.probabilities * of.values**2)
    enough = (jnp.log(2 / of.delta) + jnp.logaddexp(0, jnp.log(square) - 2 * log_tau)) / 2
    high = jnp.maximum(low, jnp.maximum(jnp.log(2 * c), enough)) + 0.1
    root, _ = bracketed_root(lambda a: second(of, log_tau, jnp.exp(a)), low, high)
    # Without a threshold: least squares.
    return jnp.where(is_positive, jnp.exp(root), 0)


@eqx.filter_custom_jvp
def _unknowns(values: Array, of: _Units, second: _Second) -> Array:
    """The solution `(log τ, α)`, found as `values`, as a function of the law."""
    return values


@_unknowns.def_jvp
def _(primals, tangents):
    values, of, second = primals
    unknowns = _unknowns(*primals)
    both = lambda of, u: jnp.stack([of.fixed_point(u[0], u[1]), second(of, u[0], u[1])])
    _, off = eqx.filter_jvp(lambda of: both(of, unknowns), (of,), (tangents[1],))
    if off is None:
        return unknowns, jnp.zeros_like(values)
    (a, b), (c, d) = jax.jacfwd(lambda u: both(of, u))(unknowns)
    return unknowns, -jnp.stack([d * off[0] - b * off[1], a * off[1] - c * off[0]]) / (
        a * d - b * c
    )


def _in_units(law: _Units) -> tuple[_Units, Array]:
    """The same in these units, and the unit."""
    # Squares of sizes far from 1 may leave the range of the dtype.
    size = lax.stop_gradient(jnp.maximum(law.noise, jnp.max(jnp.abs(law.values))))
    size = jnp.where(size > 0, size, 1)
    square = (law.noise / size) ** 2 + law.mean((law.values / size) ** 2) / law.delta
    unit = size * jnp.sqrt(jnp.where(square > 0, square, 1))
    scaled = (law.values / unit, law.noise / unit, law.kappa / unit)
    return eqx.tree_at(lambda u: (u.values, u.noise, u.kappa), law, scaled), unit


def _where(good: Array, law: _Units) -> _Units:
    """`law`, or noise alone at `δ = 2`, whose derivatives are finite at `_HARMLESS`."""
    one, zeros = jnp.ones_like(law.delta), jnp.zeros_like(law.values)
    other = _Units(2 * one, zeros, jnp.full_like(zeros, 1 / len(zeros)), one, 0 * one)
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), law, other)


_HARMLESS = (0.0, 1.0)


def _log_least_tau(of: _Units) -> Array:
    largest = jnp.maximum(jnp.max(jnp.abs(of.values)), 1)
    return jnp.log(jnp.finfo(largest.dtype).tiny) + jnp.log(largest)


def _root(of: _Units, second: _Second) -> tuple[Array, Array, Array]:
    """`(log τ, α)`; whether `τ` is 0; and whether it is finite. Without derivatives."""
    info = jnp.finfo(of.delta.dtype)
    # `τ ≥ σ`. Without noise `τ ≥ κ/α`, where `α²` is about δ over the share of entries that are
    # not 0; and for κ = 0 what is below `floor` counts as 0.
    floor = float(info.eps) ** 1.5
    without = floor * jnp.where(of.kappa > 0, jnp.minimum(of.kappa, 1), 1)
    least = jnp.where(of.noise > 0, jnp.maximum(of.noise, float(info.tiny) ** 0.5), without)
    least = jnp.where(of.kappa > 0, jnp.maximum(least, without), least)
    low, high = jnp.log(least), -jnp.log(info.eps) * jnp.ones_like(least)
    excess = lambda log_tau: of.fixed_point(log_tau, _alpha(of, log_tau, second))
    log_tau, (at_low, at_high) = bracketed_root(excess, low, high)
    found = jnp.stack([log_tau, _alpha(of, log_tau, second)])
    return found, (at_low >= 0) & (of.noise < least), at_high > 0


def _solve(law: GaussianDesign, kappa: Array, second: _Second) -> LassoAsymptotics:
    info, is_calibrated = jnp.finfo(law.values.dtype), second is _calibration
    is_valid = law.is_valid() & (kappa >= 0)
    # κ = ∞ has no derivatives, and is not solved for.
    finite = jnp.where(jnp.isfinite(kappa), kappa, 0)
    given = _Units(law.delta, law.values, law.probabilities, law.noise, finite)
    given = _where(is_valid, given)
    of, unit = held(_in_units(given))
    # Beyond 1/eps no entry is active but those that the prior has with a probability below eps².
    # And so small a κ that bounds of `_root` underflow has the limit κ → 0, from above.
    least = float(info.tiny) ** 0.5 / float(info.eps) ** 1.5
    is_zero = ~jnp.isfinite(kappa) | (of.kappa > 1 / info.eps)
    raised = jnp.clip(of.kappa, jnp.where(of.kappa > 0, least, 0), 1 / info.eps)
    found, is_exact, is_finite = _root(eqx.tree_at(lambda u: u.kappa, of, raised), second)
    # Without noise and below the Donoho–Tanner line, `τ` falls with `κ`, in proportion. Above it,
    # or with noise, `τ` at the raised `κ` is that of the limit.
    falls = (of.noise == 0) & (of.kappa > 0) & (of.kappa < least)
    falls = falls & (found[0] < jnp.log(raised) / 2)
    # With a noise that is as small neither holds. (Effects of κ are of the order of κ/σ.)
    is_told = (of.kappa >= least) | (of.kappa == 0) | (of.noise == 0)
    is_told = is_told | (of.noise > least / info.eps**0.5)
    fallen = found[0] + jnp.log(jnp.where(falls, of.kappa / raised, 1))
    # So that `V/τ` is finite.
    fallen = jnp.maximum(fallen, _log_least_tau(of))
    found = found.at[0].set(jnp.where(falls, fallen, found[0]))
    is_unpenalised = jnp.zeros_like(is_zero)
    if not is_calibrated:
        is_zero = ~is_exact & (found[1] > 0.99 * _most_alpha(info.dtype))
        # The end of the bracket stands for κ = 0, as the other one does for infinity.
        is_unpenalised = found[1] < 1.01 * float(info.tiny) ** 0.5

    is_solved = is_valid & is_finite & ~is_exact & ~is_zero
    of, unit = _in_units(_where(is_solved, given))
    found = jnp.where(is_solved, found, jnp.asarray(_HARMLESS, found.dtype))
    log_tau, alpha = _unknowns(held(found), of, second)
    tau, v = jnp.exp(log_tau), of.v(log_tau)
    share = of.share(log_tau, alpha)
    alpha = jnp.where(is_unpenalised, 0, alpha)
    # Where P is close to δ, `1 − P/δ` has lost digits that κ/α has.
    by_kappa = is_calibrated & (share < 0.5) & (alpha > 0)
    residual = jnp.where(by_kappa, of.kappa / jnp.where(alpha > 0, alpha, 1), tau * share)
    is_resolved = _is_resolved(law, v, alpha, law.spacing / (unit * tau))
    square = given.mean(given.values**2)
    at_zero = jnp.sqrt(given.noise**2 + square / given.delta)
    nothing = jnp.zeros_like(kappa)
    is_not_0 = jnp.where(given.values != 0, jnp.ones_like(given.values), 0)
    best = jnp.where(is_exact | is_unpenalised, 0, unit * tau * alpha * share)
    best = jnp.where(is_zero, jnp.inf, best)
    best = kappa if is_calibrated else best
    # Infinity as a constant: its derivatives are not numbers.
    is_infinite = jnp.isinf(kappa) if is_calibrated else jnp.ones_like(is_zero)
    most_alpha = jnp.where(is_infinite, jnp.inf, given.kappa / at_zero)

    def of_case(solved: Array, exact: Array, zero: Array) -> Array:
        return jnp.where(is_zero, zero, jnp.where(is_exact, exact, solved))

    risk = (unit * tau) ** 2 * of.mean(soft_threshold.risk(v, alpha))
    risk, loss = (
        of_case(risk, nothing, square),
        of_case((unit * residual) ** 2, nothing, at_zero**2),
    )
    # Squares may overflow where the values do not.
    is_held = jnp.isfinite(risk) & jnp.isfinite(loss)
    result = first_failure(
        (is_valid, RESULTS.invalid_law),
        ((is_finite | is_exact | is_zero) & is_held, RESULTS.law_not_finite),
        (is_told, RESULTS.law_not_resolved),
        (is_resolved | is_exact | is_zero, RESULTS.prior_not_resolved),
    )

    def field(solved: Array, exact: Array, zero: Array) -> Array:
        value = of_case(solved, exact, zero)
        return jnp.where(result == RESULTS.successful, value, jnp.nan)

    return LassoAsymptotics(
        kappa=field(best, best, best),
        risk=field(risk, risk, risk),
        active=field(of.mean(soft_threshold.active(v, alpha)), given.mean(is_not_0), nothing),
        one_norm=field(
            unit * tau * of.mean(soft_threshold.one_norm(v, alpha)),
            given.mean(jnp.abs(given.values)),
            nothing,
        ),
        loss=field(loss, loss, loss),
        tau=field(unit * tau, nothing, at_zero),
        alpha=field(alpha, jnp.full_like(kappa, jnp.nan), most_alpha),
        result=result,
    )


def _is_resolved(law: GaussianDesign, v: Array, alpha: Array, spacing: Array) -> Array:
    """Whether the quadrature of a density sees soft thresholding, at nodes `v` so far apart."""
    # The moments vary at distances of 1, up to `α` and some more from 0. Nodes further apart than 2
    # may miss that altogether, so that the coefficients are small for no good reason.
    is_blind = (spacing > 2) & (jnp.abs(v) < alpha + spacing + 5)
    hidden = jnp.sum(jnp.where(is_blind, law.probabilities, 0))

    def is_small(moments: Array) -> Array:
        last = jnp.sum(jnp.abs(matmul(law.probes, moments)))
        return last <= rough(v.dtype) * jnp.sum(law.probabilities * moments)

    risks, actives = soft_threshold.risk(v, alpha), soft_threshold.active(v, alpha)
    return (hidden <= rough(v.dtype)) & is_small(risks) & is_small(actives)
