"""`sharpness`: the largest eigenvalue of the Hessian in the weights, along a flow.

For `UV`, `USquared` and `Deep`, `x = Σ ±q` with `q = (θ/√h)^D` for one weight `θ ≥ 0` of each sign
(for `UV`, `θ^± = (u ± v)/√2`, a rotation, and `h = 2`; otherwise `h = 1`). With

    a = dq/dθ = D/√h q^{1−1/D},    c = d²q/dθ² = D(D−1)/h q^{1−2/D}

the Hessian of `ℓ(x) + penalty(λ)` is `diag(±a) ∇²ℓ diag(±a) + diag(±c ∇ℓ) + diag(decay)`. It is a
function of `log q`, which the flow determines without the weights (`_log_of_both_signs`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import check_type
from .._flow.gradient_flow import Flow
from .._linalg import eigh
from .._loops import scan
from .._problem import (
    AbstractProblem,
    check_known_loss,
    check_problem,
    harmless,
    validity,
)
from .._results import RESULTS, has_no_nan, one_unless
from ..networks import UV, Deep, USquared
from ..networks.base import harmless_network, matched
from ..networks.signs import sides


def sharpness(
    network: UV | USquared | Deep, problem: AbstractProblem, flow: Flow
) -> Float[Array, " S"]:
    """The sharpness along a flow: the largest eigenvalue of the Hessian of the training loss in
    the weights.

    The loss is `ℓ(x) + penalty(λ)`, without a factor `1/n`, as in `train` and `gradient_flow`. The
    weights are those of the network at `ε`, not divided by `ε^½`, and the time is `t`, not `s`. So
    the sharpness `S` has the units of `1/t`: at a minimum, gradient descent with the step size `η`,
    `train(network, problem, optax.sgd(η), …)`, is stable if and only if `η < 2/S`.

    It takes the eigenvalues of a matrix of size `2d` (`USquared`: `d`) at each time, one after the
    other. Any `ε` will do: where `∇ℓ = 0` the result is the largest eigenvalue of `X diag(k) Xᵀ`
    plus the weight decay, with `k = 2(q⁺ + q⁻)` for `UV`, `4q` for `USquared`, and
    `D²(q₊^{2−2/D} + q₋^{2−2/D})` for `Deep`. Before the first jump, where all weights are of size
    `ε`, it is `max |∇ℓ|` for `UV`, twice that for the others at depth 2, and vanishes with `ε` at
    `D > 2`.

    **Arguments:**

    - `network`: a `UV`, `USquared` or `Deep`, of which the flow determines the weights.
    - `problem`: the problem that was integrated. At depth 2 of any loss; else the square, or that
        of a `GeneralizedLinear` in the dual form.
    - `flow`: what `gradient_flow` returned for both, at `S` times.

    **Returns:** the sharpness, shape `(S,)`, in units of `∇ℓ` for `UV` (of `1/t` for all); NaN
    where the flow is. It may be negative, for `USquared` with negative correlations. Where the
    largest eigenvalue is not simple, its derivatives are those of one eigenvector; second ones may
    be NaN where other eigenvalues are equal.

    **Raises:** `TypeError` for another network, if `flow` is no flow, or one with momentum;
    `ValueError` if the flow is not one of a network and a problem like these.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.array([0.0, 0.75, 20.0])
        flow = dln.gradient_flow(network, problem, s, log_eps=-2000.0)
        dln.sharpness(network, problem, flow)  # max |∇ℓ| = 2, then 2x₁ = 4, twice
        ```

    !!! cite "Reference"

        Cohen, Kaur, Li, Kolter, Talwalkar, *Gradient Descent on Neural Networks Typically Occurs at
        the Edge of Stability*, arXiv 2103.00065: the name, and the threshold `2/S`.
    """
    check_problem(problem)
    what = "a `UV`, `USquared` or `Deep`: the flow does not hold the weights of other networks"
    check_type(network, "network", (UV, USquared, Deep), what)
    check_type(flow, "flow", Flow, "what `gradient_flow` returns")
    if isinstance(network, Deep) and network.exponent is not None:
        check_known_loss(problem)  # the smaller `q` follows from the dual, which others do not have
    network = matched(network, problem)
    if flow.x.shape[-1:] != problem.r.shape or flow.positive != network.positive:
        kind = "x ≥ 0" if flow.positive else "signed x"
        raise ValueError(
            f"The flow has {flow.x.shape[-1]} coordinates of {kind}, not those of "
            f"{type(network).__name__} on a problem of {problem.r.shape[0]}. Pass the network and "
            "the problem that were integrated."
        )
    if flow.has_momentum:
        raise TypeError(
            "The weights of a flow with momentum do not follow from `x`: nothing is conserved. "
            "Pass a flow of `DualForm()` or `WeightForm()`."
        )
    if flow.x.ndim != 2:
        raise ValueError(
            f"`flow` must be one flow, got a batch of shape {flow.x.shape[:-2]}. Use `jax.vmap`."
        )
    return _along(network, problem, flow)


@eqx.filter_jit
def _along(network: UV | USquared | Deep, problem: AbstractProblem, flow: Flow) -> Array:
    is_valid = validity(problem, any_loss=True) == RESULTS.successful

    def at(_, time):
        known = has_no_nan(time[1]) & is_valid
        safe = harmless_network(network, known), harmless(problem, known)
        log_eps, time = one_unless(known, (flow.log_eps, time))
        H = _hessian(*safe, log_eps, *time)
        # LAPACK may not end on numbers that are not finite.
        good = known & jnp.all(jnp.isfinite(H))
        largest = eigh(jnp.where(good, H, 0))[0][-1]
        return None, jnp.where(good, largest, jnp.nan)

    # One after the other: S matrices of size 2d may not fit into memory.
    return scan(at, None, (flow.s, flow.x, flow.dual))[1]


def _hessian(
    network: UV | USquared | Deep,
    problem: AbstractProblem,
    log_eps: Array,
    s: Array,
    x: Array,
    dual: Array,
) -> Float[Array, "m m"]:
    D = network.depth if isinstance(network, Deep) else 2
    h, decays = (2, 1) if isinstance(network, UV) else (1, 2)
    if isinstance(network, USquared):
        # A finite number, since 0 times it must be 0 at D = 2.
        log_q = _log(x, -float(jnp.finfo(x.dtype).max))[None]
    else:
        log_q = _log_of_both_signs(network, problem, log_eps, s, x, dual)
    sign = sides(jnp.ones_like(x), log_q)
    a = (D / h**0.5 * sign * jnp.exp((1 - 1 / D) * log_q)).ravel()
    c = D * (D - 1) / h * sign * jnp.exp((1 - 2 / D) * log_q)
    gradient, curvature = problem.gradient(x), jax.jacfwd(problem.gradient)(x)
    diagonal = (c * gradient[None]).ravel() + decays * problem.weight_decay
    signs = log_q.shape[0]
    return a[:, None] * jnp.tile(curvature, (signs, signs)) * a[None, :] + jnp.diag(diagonal)


def _log_of_both_signs(
    network: UV | Deep,
    problem: AbstractProblem,
    log_eps: Array,
    s: Array,
    x: Array,
    dual: Array,
) -> Float[Array, "2 d"]:
    """`log q⁺` and `log q⁻` at `x = q⁺ − q⁻`.

    The larger `q` is `|x|` and the smaller one, which follows from a conserved quantity."""
    is_plus = x >= 0
    size = jnp.where(is_plus, x, -x)  # not `abs`, whose derivative at 0 is 0
    exponent = network.exponent if isinstance(network, Deep) else None
    if exponent is not None:
        plus, minus = network.initial_dual(log_eps) - sides(dual, jnp.stack([x, x]))
        log_link = lambda w: log_eps - exponent * jnp.log(w)
        small = log_link(jnp.where(is_plus, minus, plus))
        # Where `x` underflows, `w` is far from its pole, and both follow from it.
        w = jnp.where(size > 0, 1, jnp.where(is_plus, plus, minus))
        large = _log(size, 0.0) + jnp.log1p(jnp.exp(small - _log(size, 0.0)))
        large = jnp.where(size > 0, large, log_link(w))
    else:
        # The product P = q⁺q⁻ is conserved, but for the decay, and needs no dual, which far beyond
        # the jumps is a difference of large numbers.
        start = network.growth(log_eps).log_initial
        log_P = start[0] + start[1] + 2 * problem.weight_decay * s * log_eps
        square = size**2 + 4 * jnp.exp(log_P)
        root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        large = _log((size + root) / 2, log_P / 2)
        small = log_P - large
    return jnp.where(is_plus, jnp.stack([large, small]), jnp.stack([small, large]))


def _log(v: Array, of_zero: Array | float) -> Array:
    return jnp.where(v > 0, jnp.log(jnp.where(v > 0, v, 1)), of_zero)
