"""The interfaces of networks, and the checks that solvers make of a network.

A network is a parametrisation `x = network()` of the linear model. Its object holds the *shape* of
the initialisation; training starts from `network.initial(log_eps)`, the shape scaled to size `ε`.

- `AbstractNetwork`: the weight form, `d(weights)/dt = −∇(ℓ(x) + penalty(λ))`, `t = time_scale · s`.
- `AbstractDualNetwork`: also the dual form, `q = φ_ε(w)`, `w(s) = w(0) ∓ Xᵀν(s) + λs`.
- `growth.py` has `Growth`, the link relative to its start, if it is an exponential or a power.
"""

import abc
import math
from typing import TYPE_CHECKING, Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float

from .._checks import (
    as_float,
    check_finite,
    check_nonempty,
    check_type,
    is_concrete,
)
from .._problem import AbstractProblem, Schedule, largest_decay
from .._results import RESULTS, first_failure
from .growth import Growth
from .prior import Prior, prior_of
from .signs import signed

# Not `typing.Self`, which beartype refuses in a class that it does not decorate.
_N = TypeVar("_N", bound="AbstractNetwork")

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractNetwork(eqx.Module):
    """Interface of a reparametrisation `x = network()` of a linear model. Its leaves are weights.

    A network object holds the *shape* of the initialisation; `initial(log_eps)` is the
    network that training starts from. With these four methods it can be trained in the weight
    form, `gradient_flow(..., formulation=WeightForm())`. `positive` says whether `x ≥ 0`
    always, i.e. whether the flow compares with the positive lasso.

    !!! example

        ```python
        class Square(dln.AbstractNetwork):  # x = u²
            u: jax.Array
            positive = True
            __call__ = lambda self: self.u**2
            initial = lambda self, log_eps: Square(self.u * jnp.exp(log_eps / 2))
            time_scale = lambda self, log_eps: -log_eps / 4
            penalty = lambda self, weight_decay: weight_decay * jnp.sum(self.u**2)


        Square(jnp.array([1.0, 2.0]))()  # x = (1, 4)
        ```
    """

    positive: AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self) -> Float[Array, " d"]:
        """The linear model `x`, shape `(d,)`.

        !!! example

            ```python
            dln.UV(jnp.array([1.0, 2.0]), jnp.array([0.0, -1.0]))()  # u∘v = (0, −2)
            ```
        """

    @abc.abstractmethod
    def initial(self: _N, log_eps: Float[Array, ""]) -> _N:
        """The network at the start of training: the shape, scaled so that `x` is of size `ε`.

        !!! example

            ```python
            dln.USquared(jnp.ones(2)).initial(jnp.log(1e-4)).u  # √ε = 0.01, twice
            ```
        """

    @abc.abstractmethod
    def time_scale(self, log_eps: Float[Array, ""]) -> Float[Array, ""]:
        """`t/s`, the time `t` of gradient flow in one unit of rescaled time `s`.

        !!! example

            ```python
            dln.UV(jnp.ones(2), jnp.zeros(2)).time_scale(jnp.log(1e-4))  # log(1/ε)/2 = 4.605
            ```
        """

    @abc.abstractmethod
    def penalty(self, weight_decay: Float[Array, ""]) -> Float[Array, ""]:
        """The term that weight decay `λ` adds to the loss `ℓ(x)`, a scalar.

        !!! example

            ```python
            dln.UV(jnp.ones(2), 2 * jnp.ones(2)).penalty(jnp.array(0.1))  # λ/2 (‖u‖² + ‖v‖²) = 0.5
            ```
        """

    def least_log_eps(self, dtype: DTypeLike) -> float:
        """The smallest `log ε` at which weights in `dtype` represent a trajectory accurately.

        For `x = u∘v` the flow conserves `u² − v²`, which is of size `ε` and decides when a
        coordinate can change its sign. For a coordinate of size 1 the rounding of the weights, of
        size `eps`, is an error `eps/ε` relative to it. At `ε = eps^{2/3}` (3.7e-11 in float64)
        this error, and that of `x`, is `eps^{1/3}` (6e-6). A network whose weights determine
        `x` without such a difference overrides this.

        !!! example

            ```python
            network = dln.UV(jnp.ones(2), jnp.zeros(2))
            jnp.exp(network.least_log_eps(jnp.float64))  # 3.7e-11
            ```
        """
        # The power 2/3 was chosen so that x keeps a third of the digits. How large the error
        # is there: `tests/test_networks_linear.py`. An ε smaller by 100 has errors larger by 100.
        return 2 / 3 * math.log(jnp.finfo(dtype).eps)

    def _has_start(self) -> Bool[Array, ""]:
        """Whether a traced point is valid that the network starts from, other than its shape."""
        return jnp.asarray(True)

    def _start_size(self, log_eps: Float[Array, ""]) -> Float[Array, ""]:
        """How large the weights at the start are beside the shape, for tolerances: `√ε`."""
        return jnp.exp(log_eps / 2)

    def _settled(self: _N, problem: AbstractProblem) -> _N:
        """The network with what is no weight, but a function of its weights and the problem."""
        return self


class Constant(eqx.Module):
    """An array in a network that is not a weight: data of a user's network.

    It is a differentiable leaf, but neither training nor the flow changes it.

    !!! example

        ```python
        class Features(dln.AbstractNetwork):  # x = Bu
            u: jax.Array
            basis: dln.Constant  # B, shape (d, k)
            positive = False
            __call__ = lambda self: self.basis.value @ self.u
            initial = lambda self, log_eps: Features(self.u * jnp.exp(log_eps), self.basis)
            time_scale = lambda self, log_eps: jnp.ones_like(log_eps)
            penalty = lambda self, decay: decay / 2 * jnp.sum(self.u**2)

        Features(jnp.ones(1), dln.Constant(jnp.array([[1.0], [2.0]])))()  # (1, 2)
        ```
    """

    value: Float[Array, "..."]

    def __init__(self, value: ArrayLike):
        """**Arguments:** `value`, an array of numbers, of any shape.

        **Raises:** `TypeError` if it is not numeric.
        """
        self.value = as_float(value, "value")


def is_constant(node: Any) -> bool:
    """Whether a node of a network is a `Constant`."""
    return isinstance(node, Constant)


def weights_of(network: _N) -> _N:
    """The weights of the network: itself, with `None` for `Constant`s and other leaves."""
    return eqx.filter(network, eqx.is_inexact_array, is_leaf=is_constant)


class AbstractDualNetwork(AbstractNetwork):
    """Interface of a network whose flow is a function of the dual variable `w` ([B25] §4.2).

    `x = q` or `x = q⁺ − q⁻` with the link function `q = φ_ε(w)` and `w(s) = w(0) ∓ Xᵀν(s) + λs`,
    where `ν(s) = ∫₀ˢ (y − Xx)`; or `x` is another function of `w`, a `model`. Arrays `w` and `q`
    have shape `(1, d)` for positive networks and `(2, d)`, with rows `+` and `−`, for signed ones.
    `check_network` tests an implementation.

    !!! example

        ```python
        class Square(dln.AbstractDualNetwork):  # x = u²
            u: jax.Array
            positive = True
            __call__ = lambda self: self.u**2
            initial = lambda self, log_eps: Square(self.u * jnp.exp(log_eps / 2))
            time_scale = lambda self, log_eps: -log_eps / 4
            penalty = lambda self, weight_decay: weight_decay * jnp.sum(self.u**2)
            link = lambda self, w, log_eps: jnp.exp(w * log_eps)
            initial_dual = lambda self, log_eps: 1 + 2 * jnp.log(self.u[None]) / log_eps
        dln.check_network(Square(jnp.ones(2)))  # raises nothing
        ```

    !!! cite "Reference"

        [B25] §4.2, arXiv 2509.18766.
    """

    def link(
        self, w: Float[Array, "signs d"], log_eps: Float[Array, ""]
    ) -> Float[Array, "signs d"]:
        """The link function `q = φ_ε(w)`: elementwise, non-negative, decreasing.

        A network defines this, or `model` if its `x` is no difference of links.

        !!! example

            ```python
            network = dln.USquared(jnp.ones(2))
            network.link(jnp.array([[1.0, 0.5]]), jnp.log(1e-4))  # ε^w = (1e-4, 1e-2)
            ```
        """
        raise TypeError(
            f"`{type(self).__name__}` has no `link`. Define it, or `model` if `x` is no difference "
            "of links."
        )

    def model(self, w: Float[Array, "signs d"], log_eps: Float[Array, ""]) -> Float[Array, " d"]:
        """The linear model `x` at the dual variable `w`: by default `q` or `q⁺ − q⁻`.

        A network may define it in place of `link`, if `xᵢ` is another function of `wᵢ` that
        falls in `wᵢ⁺` and rises in `wᵢ⁻`. Without weight decay `w⁺ + w⁻` is constant: it is then
        enough that `x` is right for this sum.

        !!! example

            ```python
            network = dln.UV(jnp.ones(1), jnp.zeros(1))
            network.model(jnp.array([[0.5], [1.0]]), jnp.log(1e-4))  # 1e-2 − 1e-4
            ```
        """
        return signed(self.link(w, log_eps))

    def tabulated(self) -> Any:
        """An object with the same `model`, of which all that does not depend on `w` is computed.
        A flow evaluates `model` several times a step.

        !!! example

            ```python
            network = dln.Layers(jnp.array([[0.0], [1.0], [1.0]]))
            w = jnp.array([[1.0], [jnp.pi - 1]])
            network.tabulated().model(w, jnp.log(1e-3))  # 1e-3 cos(1)/sin³(1) = 9.07e-4
            ```
        """
        return self

    @abc.abstractmethod
    def initial_dual(self, log_eps: Float[Array, ""]) -> Float[Array, "signs d"]:
        """The dual variable at the start, `w(0)`: `φ_ε(w(0))` is the initialisation.

        It must return the limit as `ε → 0` for `log_eps = −inf`.

        !!! example

            ```python
            network = dln.UV(jnp.ones(2), jnp.zeros(2))  # shape (β ± γ)/2 = 1/2
            network.initial_dual(jnp.log(1e-4))  # 1 − log(1/4)/log(1/ε) = 1.1505, shape (2, 2)
            network.initial_dual(jnp.array(-jnp.inf))  # 1
            ```
        """

    def growth(self, log_eps: Float[Array, ""]) -> Growth | None:
        """The link function as a `Growth`, if it is an exponential or a power; `None` otherwise.

        With it the flow is accurate at any `ε`, `end_point` and `limit_point` are available, and
        `limit_flow` determines `x` where active columns are linearly dependent.

        !!! example

            ```python
            dln.USquared(jnp.ones(2)).growth(jnp.log(1e-4)).unit  # 1/log(1/ε) = 0.1086
            ```
        """
        return None

    def limit_growth(self, log_eps: Float[Array, ""]) -> Growth | None:
        """The `Growth` to which the network tends as `ε → 0`: `growth`, if there is one.

        A network with a `model` may know it without a `growth`: what `x` is close to where it has
        grown far. `limit_flow` and `limit_point` ask for no more. If it is a power, the flow is
        accurate at any `ε`.

        !!! example

            ```python
            network = dln.Layers(jnp.array([[0.0], [1.0], [1.0]]))
            network.limit_growth(jnp.log(1e-4)).exponent  # p = 1 − 2/L = 1/3
            ```
        """
        return self.growth(log_eps)

    # What `Pretrained` has to say, or to know of the network that it wraps.

    def _with_log_q(self: _N, log_q: Float[Array, "signs d"]) -> _N:
        """The network with weights of these `log q`, and of the signs that its own have."""
        raise TypeError(
            f"`Pretrained` does not know which weights of {type(self).__name__} represent a given "
            "`x`. Use the dual form, `formulation=dln.DualForm()`."
        )

    def _check_limit(self) -> None:
        """Raise a `TypeError` if `w(0)` does not say when coordinates activate as `ε → 0`."""

    def _may_start_active(self) -> bool:
        """Whether `w(0)` may be 0 as `ε → 0`: statically, as that needs more code."""
        return False

    def _prior(self, dtype: DTypeLike) -> Prior | None:
        """Where the network starts, as `ε → 0`; `None` without `limit_growth`."""
        growth = self.limit_growth(-jnp.ones((), dtype))
        if growth is None:
            return None
        return prior_of(growth, self.initial_dual(jnp.full((), -jnp.inf, dtype)))

    def _growth_of_prior(self, dtype: DTypeLike) -> Growth | None:
        """The link at `ε = 1/e` of a network with the same `_prior`, if there is one."""
        return self.limit_growth(-jnp.ones((), dtype))


def has_link(network: AbstractDualNetwork) -> bool:
    """Whether `x` is a difference of links: the network does not define a `model`."""
    return type(network).model is AbstractDualNetwork.model


def matched(network: _N, problem: AbstractProblem) -> _N:
    """`network` in the dtype of the problem.

    **Raises:** `TypeError` for another type; `ValueError` if its size is not that of the problem,
    or if it refuses the problem's weight decay.
    """
    r, decay = problem.r, largest_decay(problem.weight_decay)
    what = "a network, such as `dlnjax.UV(u, v)`"
    check_type(network, "network", AbstractNetwork, what)
    d = r.shape[0]
    size = jax.eval_shape(lambda net: net(), network).shape
    if size != (d,):
        raise ValueError(
            f"The network has {size[0] if size else 'no'} coordinates, the problem has {d}. "
            f"Build it with weights of shape ({d},)."
        )
    cast = lambda w: w.astype(r.dtype) if eqx.is_inexact_array(w) else w
    network = jax.tree.map(cast, network)
    if is_concrete(decay) and float(decay) > 0:
        network.penalty(decay)  # raises where the network refuses it
    return network


def takes(network: AbstractNetwork, weight_decay: Array | Schedule) -> Array:
    """Whether the network accepts a traced weight decay: if not, its penalty is NaN."""
    weight_decay = largest_decay(weight_decay)
    return (weight_decay == 0) | ~jnp.isnan(network.penalty(weight_decay))


def shape_of(network: AbstractNetwork, log_eps: Array) -> RESULTS:
    """The first reason why a traced start or shape is invalid, or `successful`.

    A degenerate shape, from which a coordinate never moves, has an infinite `w(0)`. For networks
    without a dual form, test that the weights are finite."""
    if isinstance(network, AbstractDualNetwork):
        has_shape = jnp.all(jnp.isfinite(network.initial_dual(log_eps)))
    else:
        weights = jax.tree.leaves(weights_of(network))
        has_shape = jnp.stack([jnp.all(jnp.isfinite(w)) for w in weights]).all()
    return first_failure(
        (network._has_start(), RESULTS.invalid_start), (has_shape, RESULTS.invalid_shape)
    )


def harmless_network(network: _N, valid: Array) -> _N:
    """`network`, with harmless weights unless `valid`, so that derivatives of an invalid lane are 0
    and not NaN."""

    # Leaf k becomes k + 1. Equal weights would be a degenerate shape of `UV`, and the third leaf of
    # `Deep` is its depth, which must exceed 2. For the same reason the rows of a matrix, which are
    # the layers of `Layers`, grow by 1 each.
    def harmless(k, v):
        row = jnp.arange(len(v), dtype=v.dtype)[:, None] if v.ndim == 2 else 0
        return jnp.where(valid, v, k + 1 + row)

    leaves, structure = jax.tree.flatten(network)
    some = [harmless(k, v) if eqx.is_inexact_array(v) else v for k, v in enumerate(leaves)]
    return jax.tree.unflatten(structure, some)


def zero_penalty(network: AbstractNetwork, weight_decay: Array, why: str) -> Array:
    """The penalty 0 of a network that takes no weight decay: NaN for another one that is traced.

    **Raises:** `ValueError` for one that is known."""
    if is_concrete(weight_decay) and float(weight_decay) != 0:
        raise ValueError(
            f"`{type(network).__name__}` takes no weight decay, got {float(weight_decay)}: {why}. "
            "Use `weight_decay=0`."
        )
    return jnp.where(weight_decay == 0, 0, jnp.nan).astype(weight_decay.dtype)


def as_network_weights(value: ArrayLike, name: str) -> Array:
    """`value` as weights of shape `(d,)`. **Raises:** `ValueError` for other shapes, NaN or inf."""
    array = as_float(value, name)
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must have one weight per coordinate, shape (d,), got {array.shape}."
        )
    check_nonempty(array, name)
    check_finite(array, name)
    return array
