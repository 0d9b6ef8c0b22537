"""`check_network`: whether the functions of a user's network agree with each other.

Three groups of tests: values of single functions; `link`, `initial_dual` and `growth` against
`initial` (`_check_link`); and the dual form of the flow against the weight form (`_check_runs`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_type
from .._flow.formulations import DualForm, WeightForm
from .._flow.gradient_flow import gradient_flow
from .._problem import LeastSquares
from .._results import RESULTS
from .base import AbstractDualNetwork, AbstractNetwork, has_link, takes
from .signs import sides, signed

# The ε of the tests, chosen so that both formulations are accurate. With 100 times less, the weight
# form in float32 is close to `least_log_eps` (ε = 2.4e-5), where it loses two thirds of its digits;
# 100 times more is ε = 1, where rescaled time is not defined.
EPS = 1e-2


def check_network(network: AbstractNetwork) -> None:
    """Test that the functions of a network agree with each other, at `ε = 0.01`.

    - `initial_dual` and `link` have one row (`positive`) or two; `w(0)` is finite and positive;
    - `φ_ε(w(0))` is `initial(log_eps)()`; around `w(0)` the link is non-negative and decreases;
    - `growth`, if there is one, agrees with the link;
    - of a network with a `model` in place of `link`: `x` at `w(0)`, and that it increases;
    - on a random least squares problem `x` is the same in the dual form and in the weight form,
      with and without weight decay: this detects a wrong `time_scale` or `penalty`;
    - where `positive` is set, `x ≥ 0`.

    A network that refuses weight decay is tested without it. One that is no `AbstractDualNetwork`
    is run in the weight form only: the test is then that the run succeeds.

    **Arguments:** `network`, with a shape of order 1 and a few coordinates (the weight form
    factorises a matrix of the size of all weights).

    **Returns:** `None`.

    **Raises:** `ValueError`, which names the function that is wrong; `TypeError` if `network` is
    not a network.

    !!! example

        ```python
        class Wrong(dln.USquared):
            time_scale = lambda self, log_eps: -log_eps / 2  # for log(1/ε)/4

        dln.check_network(dln.USquared(jnp.ones(2)))  # raises nothing
        try:
            dln.check_network(Wrong(jnp.ones(2)))
        except ValueError as error:
            print(error)  # … Look at `time_scale`, `link` or `initial_dual` …
        ```

    !!! cite "Reference"

        [B25] §4.2, arXiv 2509.18766: the dual variable of a network.
    """
    what = "a network, such as `dlnjax.UV(u, v)`"
    check_type(network, "network", AbstractNetwork, what)
    x = network()
    if x.ndim != 1:
        raise ValueError(f"`network()` must have shape (d,), got {x.shape}.")
    # eps^{1/4}: 1.2e-4 in float64, 2e-2 in float32. It bounds what the errors of the steps, at the
    # default tolerances of `gradient_flow`, may add up to: 3e-7 and 6e-5 were measured for networks
    # of the library. A `time_scale` that is wrong by 0.1 % has an error of 1.6e-3. With 100 times
    # less, right networks come close to the bound; with 100 times more, errors of 1 % pass.
    tolerance = float(jnp.finfo(x.dtype).eps) ** 0.25
    log_eps = jnp.log(jnp.asarray(EPS, x.dtype))
    start = network.initial(log_eps)
    if type(start) is not type(network):
        raise ValueError(
            f"`initial(log_eps)` must return a {type(network).__name__}, got a "
            f"{type(start).__name__}. Scale the weights with `equinox.tree_at`."
        )
    if not float(network.time_scale(log_eps)) > 0:
        raise ValueError(
            f"`time_scale` must be positive, got {float(network.time_scale(log_eps))} at ε = {EPS}."
        )
    if isinstance(network, AbstractDualNetwork):
        _check_link(network, start(), log_eps, tolerance)
    _check_runs(network, log_eps, tolerance)


def _check_link(network: AbstractDualNetwork, x: Array, log_eps: Array, tolerance: float) -> None:
    d, signs = len(x), 1 if network.positive else 2
    start = network.initial_dual(log_eps)
    # A network with a `model` has no link.
    q = network.link(start, log_eps) if has_link(network) else start
    for name, value in (("initial_dual", start), ("link", q)):
        if value.shape != (signs, d):
            raise ValueError(
                f"`{name}` must have shape ({signs}, {d}), one row "
                f"{'since `positive` is set' if signs == 1 else 'a sign'}, got {value.shape}."
            )
    limit = network.initial_dual(jnp.full_like(log_eps, -jnp.inf))
    for at, value in ((EPS, start), (0, limit)):
        if not bool(jnp.all(jnp.isfinite(value) & (value > 0))):
            raise ValueError(
                f"`initial_dual` must be finite and positive, got {np.asarray(value)} for ε = {at}."
            )
    if not has_link(network):
        _check_model(network, x, start, log_eps, tolerance)
        return
    size = float(jnp.max(q))
    if not bool(jnp.all(jnp.abs(signed(q) - x) <= tolerance * size)):
        raise ValueError(
            "`link(initial_dual(log_eps), log_eps)` must be the initialisation, but at "
            f"ε = {EPS} it is {np.asarray(signed(q))}, and `initial(log_eps)()` is "
            f"{np.asarray(x)}."
        )
    # From a quarter of w(0), where q has grown to ε^{1/4} = 0.3 at depth 2, to twice of it.
    grid = start[None] * jnp.linspace(0.25, 2, 29, dtype=start.dtype)[:, None, None]
    values = eqx.filter_vmap(lambda w: network.link(w, log_eps))(grid)
    if not bool(jnp.all(values >= 0)):
        raise ValueError("`link` must not be negative: `x = q⁺ − q⁻` with `q = φ_ε(w) ≥ 0`.")
    if not bool(jnp.all(values[1:] < values[:-1])):
        raise ValueError(
            "`link` must decrease in `w`, which is large where a coordinate is inactive."
        )
    growth = network.growth(log_eps)
    if growth is None:
        return
    # Growth by a factor e is enough: a wrong `unit` or `exponent` changes it in first order.
    delta = jnp.asarray(1.0, start.dtype)
    moved = network.link(start - growth.unit * growth.dual(delta), log_eps)
    expected = jnp.exp(growth.log_initial + delta)
    if not bool(jnp.all(jnp.abs(moved - expected) <= tolerance * expected)):
        raise ValueError(
            "`growth` contradicts `link`: where the dual has grown by `unit·(1 − e^{−p})/p`, `q` "
            f"should be e·q(0) = {np.asarray(expected)}, but the link gives {np.asarray(moved)}."
        )


def _check_model(
    network: AbstractDualNetwork, x: Array, start: Array, log_eps: Array, tolerance: float
) -> None:
    # From w(0) by up to 3/4 of the way to where a row is 0, in both directions.
    share = jnp.linspace(-0.75, 0.75, 31, dtype=start.dtype)[:, None]
    moves = share * jnp.where(share < 0, start[-1:], start[:1])
    at = lambda move: network.model(start - sides(move, start), log_eps)
    values = jax.vmap(at)(moves)
    if values.shape[1:] != x.shape:
        raise ValueError(f"`model` must have shape {x.shape}, got {values.shape[1:]}.")
    size = float(jnp.max(jnp.abs(values)))
    if not bool(jnp.all(jnp.abs(values[15] - x) <= tolerance * size)):
        raise ValueError(
            "`model(initial_dual(log_eps), log_eps)` must be the initialisation, but at "
            f"ε = {EPS} it is {np.asarray(values[15])}, and `initial(log_eps)()` is "
            f"{np.asarray(x)}."
        )
    if not bool(jnp.all(values[1:] > values[:-1])):
        raise ValueError(
            "`model` must increase with the dual: as `w⁺` falls and `w⁻` rises by as much."
        )


def _check_runs(network: AbstractNetwork, log_eps: Array, tolerance: float) -> None:
    x = network()
    # Overdetermined (n = d + 2), with a positive solution that all networks can represent.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(len(x) + 2, len(x)))
    y = X @ rng.uniform(1, 2, len(x))
    unit = np.max(np.abs(X.T @ y))
    # In the limit ε → 0 the first coordinate activates at s = 1/‖r‖_∞ (at depth 2): up to four
    # times that, the run has active and inactive coordinates. The weight decay, a tenth of ‖r‖_∞,
    # changes x without keeping it at 0.
    s = np.linspace(0, 4, 9) / unit
    X, y, s = (jnp.asarray(v, x.dtype) for v in (X, y, s))
    for decay in (0.0, 0.1 * unit):
        problem = LeastSquares(X, y, decay)
        if decay and not _takes(network, problem.weight_decay):
            return

        def run(formulation, problem=problem):
            return gradient_flow(
                network, problem, s, log_eps=log_eps, formulation=formulation, throw=False
            )

        weights = run(WeightForm())
        with_decay = "with weight decay" if decay else "without weight decay"
        if weights.result != RESULTS.successful:
            raise ValueError(f"The weight form fails {with_decay}: {weights.result}")
        if network.positive and bool(jnp.any(weights.x < 0)):
            raise ValueError("`positive` is set, but `x` becomes negative.")
        if not isinstance(network, AbstractDualNetwork):
            continue
        dual = run(DualForm())
        if dual.result != RESULTS.successful:
            raise ValueError(f"The dual form fails {with_decay}: {dual.result}")
        error = float(jnp.max(jnp.abs(dual.x - weights.x)) / jnp.max(jnp.abs(weights.x)))
        if not error <= tolerance:
            cause = "`penalty` (or what `link` and `initial_dual` say of it)"
            if not decay:
                cause = "`time_scale`, `link` or `initial_dual`"
            raise ValueError(
                f"{with_decay.capitalize()} the dual form is off the weights by {error:.2g} of "
                f"the largest `x`, at ε = {EPS}. Look at {cause}: the dual form takes "
                "`w = w(0) ∓ Xᵀν + λs`, the weight form the gradient of "
                "`loss + penalty(λ)`, for `time_scale` units of time a unit of `s`."
            )


def _takes(network: AbstractNetwork, weight_decay: Array) -> bool:
    """Whether the network accepts weight decay, of a known value."""
    try:
        return bool(takes(network, weight_decay))
    except ValueError:  # the network refuses it
        return False
