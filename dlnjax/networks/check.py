"""`check_network`: whether the functions of a network of one's own agree with each other."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_type
from .._flow.gradient_flow import gradient_flow
from .._flow.setup import DualForm, WeightForm
from .._problem import LeastSquares
from .._results import RESULTS
from .base import AbstractDualNetwork, AbstractNetwork, takes
from .signs import signed

EPS = 1e-2  # where both formulations are exact, and the link is not yet a jump


def check_network(network: AbstractNetwork) -> None:
    """Whether the functions of `network` agree with each other, at `ε = 0.01`: for tests of
    networks of one's own. Silent if they do.

    - `initial_dual` and `link` have one row (`positive`) or two; `w(0)` is finite and positive;
    - `φ_ε(w(0))` is `initial(log_eps)()`; around `w(0)` the link is positive and decreases;
    - `growth`, if there is one, is the link again;
    - on a random least squares problem `x` is the same in the dual form and in the weight form,
      with and without weight decay: this sees a wrong `time_scale` or `penalty`;
    - where `positive` is set, `x ≥ 0`.

    A network that refuses weight decay is run without. One that is no `AbstractDualNetwork` is run
    in the weight form only, and so is known to run, no more.

    **Arguments:** `network`, with a shape of order 1 and a few coordinates (the weight form
    factorises a matrix of the size of all weights).

    **Raises:** `ValueError`, which names the function that is wrong.

    ```python
    dln.check_network(dln.UV(jnp.array([1.0, 0.8]), jnp.array([0.0, 0.3])))
    ```

    !!! cite "Reference"

        [B25] §4.2, arXiv 2509.18766: what a dual network promises.
    """
    what = "a network, such as `dlnjax.UV(u, v)`"
    check_type(network, "network", AbstractNetwork, what)
    x = network()
    if x.ndim != 1:
        raise ValueError(f"`network()` must have shape (d,), got {x.shape}.")
    tolerance = float(jnp.finfo(x.dtype).eps) ** 0.25  # 1e-4, and 2e-2 in float32: of the steps
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
    q = network.link(start, log_eps)
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
    size = float(jnp.max(q))
    if not bool(jnp.all(jnp.abs(signed(q) - x) <= tolerance * size)):
        raise ValueError(
            "`link(initial_dual(log_eps), log_eps)` must be the initialisation, but at "
            f"ε = {EPS} it is {np.asarray(signed(q))}, and `initial(log_eps)()` is "
            f"{np.asarray(x)}."
        )
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
    delta = jnp.asarray(1.0, start.dtype)
    moved = network.link(start - growth.unit * growth.dual(delta), log_eps)
    expected = jnp.exp(growth.log_initial + delta)
    if not bool(jnp.all(jnp.abs(moved - expected) <= tolerance * expected)):
        raise ValueError(
            "`growth` contradicts `link`: where the dual has grown by `unit·(1 − e^{−p})/p`, `q` "
            f"should be e·q(0) = {np.asarray(expected)}, but the link gives {np.asarray(moved)}."
        )


def _check_runs(network: AbstractNetwork, log_eps: Array, tolerance: float) -> None:
    x = network()
    rng = np.random.default_rng(0)
    X = rng.normal(size=(len(x) + 2, len(x)))
    y = X @ rng.uniform(1, 2, len(x))
    unit = np.max(np.abs(X.T @ y))
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
    try:
        return bool(takes(network, weight_decay))
    except ValueError:  # says that it takes none
        return False
