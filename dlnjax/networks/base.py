"""What a network is: shape, link, time scale."""

import abc
import math
from typing import TYPE_CHECKING, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import (
    as_float,
    check_finite,
    check_nonempty,
    check_type,
    is_concrete,
)
from .._problem import AbstractProblem
from .signs import sides

# Not `typing.Self`, which beartype refuses in a class that it does not decorate.
_N = TypeVar("_N", bound="AbstractNetwork")

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar


class AbstractNetwork(eqx.Module):
    """A reparametrisation `x = net()` of a linear model. The weights are the leaves.

    A network object holds the *shape* of the initialisation; `initial(log_eps)` is the
    network that training starts from. With these four methods it can be trained in the weight
    form, `gradient_flow(..., formulation=WeightForm())`. `positive` says whether `x ≥ 0`
    always, i.e. whether the flow is to be compared with the positive lasso.
    """

    positive: AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self) -> Float[Array, " d"]:
        """The linear model `x`, shape `(d,)`."""

    @abc.abstractmethod
    def initial(self: _N, log_eps: Float[Array, ""]) -> _N:
        """The network scaled to size `ε`."""

    @abc.abstractmethod
    def time_scale(self, log_eps: Float[Array, ""]) -> Float[Array, ""]:
        """`t / s`: the time `t` of gradient flow that one unit of `s` stands for."""

    @abc.abstractmethod
    def penalty(self, weight_decay: Float[Array, ""]) -> Float[Array, ""]:
        """What weight decay `λ` adds to the loss."""

    def least_log_eps(self, dtype: DTypeLike) -> float:
        """The smallest `log ε` at which weights in `dtype` hold a trajectory.

        Where the sign of `x` is a difference of weights, as in `u∘v`, a coordinate of size 1 keeps
        `ε`, relative to it, to the unit `u` of rounding only, and `ε` says when it can turn back.
        At `u^{2/3}` (3.7e-11 in float64) a third of its digits is left, and `x` has errors of up to
        some `u^{1/3}` (6e-6). A network whose weights each keep their digits overrides this.
        """
        return 2 / 3 * math.log(jnp.finfo(dtype).eps)


class Growth(eqx.Module):
    """How much dual it takes for `q` to grow to `q(0) e^δ`: `±Xᵀν = h (1 − e^{−pδ})/p`, which is
    `hδ` at `p = 0`. That is the link, in variables that neither overflow nor cancel.

    **Attributes:**

    - `log_initial`: `log q(0)`, shape `(1, d)`, or `(2, d)` for signed networks.
    - `unit`: `h`, in units of `w`, of the same shape.
    - `exponent`: `p = 1 − 2/D`, the number 0.0 at depth 2.
    """

    log_initial: Float[Array, "signs d"]  # log q(0)
    unit: Float[Array, "signs d"]  # h, in units of w
    exponent: float | Float[Array, ""]  # p = 1 − 2/D; the number 0.0 at depth 2

    @property
    def is_exponential(self) -> bool:
        """Whether `p = 0` statically: the link of depth 2, `φ_ε(w) = exp(−w log(1/ε))`."""
        return isinstance(self.exponent, float) and self.exponent == 0

    def dual(self, delta: Array) -> Array:
        """`(1 − e^{−pδ})/p`."""
        p = self.exponent
        return delta if self.is_exponential else -jnp.expm1(-p * delta) / p

    def log_growth(self, dual: Array) -> Array:
        """`δ`, the inverse of `dual`."""
        p = self.exponent
        return dual if self.is_exponential else -jnp.log1p(-p * dual) / p

    def dual_per_log_growth(self, delta: Array) -> Array:
        """`h e^{−pδ}`: the dual that it takes to grow by a factor `e`."""
        return self.unit * jnp.exp(-self.exponent * delta)

    def longest_step(self, change: float) -> Array:
        """The `δ` over which `dual_per_log_growth` changes by `e^change`."""
        length = jnp.inf if self.is_exponential else change / self.exponent
        return jnp.asarray(length, self.unit.dtype)


class Constant(eqx.Module):
    """A leaf of a network that is no weight: differentiable, but neither training nor the flow
    moves it. For data that a network of one's own needs.

    ```python
    class Features(dln.AbstractNetwork):
        u: Float[Array, " k"]
        basis: dln.Constant  # (d, k)
        positive: ClassVar[bool] = False

        def __call__(self):
            return self.basis.value @ self.u
    ```
    """

    value: Float[Array, "..."]

    def __init__(self, value: ArrayLike):
        """**Arguments:** `value`, an array of numbers, of any shape."""
        self.value = as_float(value, "value")


def is_constant(node) -> bool:
    return isinstance(node, Constant)


def weights_of(network: _N) -> _N:
    """The network with `None` in place of all that is no weight."""
    return eqx.filter(network, eqx.is_inexact_array, is_leaf=is_constant)


class AbstractDualNetwork(AbstractNetwork):
    """A network whose flow closes in the dual variable `w` ([B25] §4.2): `x = q` or
    `x = q⁺ − q⁻` with `q = φ_ε(w)` and `w(s) = w(0) ∓ Xᵀν(s) + λs`.

    Arrays `w` and `q` have shape `(1, d)` for positive networks and `(2, d)`, with rows `+`
    and `−`, for signed ones.
    """

    @abc.abstractmethod
    def link(
        self, w: Float[Array, "signs d"], log_eps: Float[Array, ""]
    ) -> Float[Array, "signs d"]:
        """`q = φ_ε(w)`, decreasing, elementwise."""

    @abc.abstractmethod
    def initial_dual(self, log_eps: Float[Array, ""]) -> Float[Array, "signs d"]:
        """`w(0)`: `φ_ε(w(0))` is the initialisation. Its limit at `log_eps = −inf`."""

    def growth(self, log_eps: Float[Array, ""]) -> Growth | None:
        """The link again, relative to its start, if it is an exponential or a power: then the flow
        keeps its digits at any `ε`, there are `end_point` and `limit_point`, and `limit_flow`
        chooses where columns that are active together depend on each other."""
        return None


def matched(network: _N, problem: AbstractProblem) -> _N:
    """`network` in the dtype of the problem, whose size it has, and whose weight decay it takes."""
    r, decay = problem.r, problem.weight_decay
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


def takes(network: AbstractNetwork, weight_decay: Array) -> Array:
    """Under tracing: a network that refuses weight decay has a penalty of NaN."""
    return (weight_decay == 0) | ~jnp.isnan(network.penalty(weight_decay))


def has_shape(network: AbstractNetwork, log_eps: Array) -> Array:
    """Under tracing: a degenerate shape is an infinite dual variable, which never moves; without
    one, weights that are not finite."""
    if not isinstance(network, AbstractDualNetwork):
        weights = jax.tree.leaves(weights_of(network))
        return jnp.stack([jnp.all(jnp.isfinite(w)) for w in weights]).all()
    return jnp.all(jnp.isfinite(network.initial_dual(log_eps)))


def harmless_network(network: _N, valid: Array) -> _N:
    """1, 2, … in place of the weights of an invalid network, or problem, whose derivatives are not
    asked: those of NaN, and of a degenerate shape, would be NaN."""
    leaves, structure = jax.tree.flatten(network)
    some = [
        jnp.where(valid, v, k + 1) if eqx.is_inexact_array(v) else v for k, v in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, some)


def dual_from(dual: Array, start: ArrayLike, positive: bool) -> Array:
    """`w(0)` of a network that went from `dual` to `x₀`: it conserves the sum over both signs."""
    x = as_float(start, "start", dual.dtype)
    if x.shape != dual.shape[1:]:
        raise ValueError(
            f"`start` must be a linear model of shape {dual.shape[1:]}, got {x.shape}. Use "
            "`jax.vmap` for several."
        )
    check_finite(x, "start")
    if positive and is_concrete(x) and np.any(np.asarray(x) < 0):
        i = int(np.argmax(np.asarray(x) < 0))
        raise ValueError(
            f"`start[{i}]` = {float(x[i])} is negative, but the network represents `x ≥ 0` "
            "only. Use `UV` for signed models."
        )
    towards = sides(x, dual)
    moved = jnp.where(towards > 0, 0, jnp.where(towards < 0, jnp.sum(dual, axis=0), dual))
    # Under tracing, a bad start is bad input.
    is_bad = jnp.any(~jnp.isfinite(x)) | (positive & jnp.any(x < 0))
    return jnp.where(is_bad, jnp.nan, moved)


def is_in_range(x: Array) -> Array:
    """Whether all of `x` is below the cap of the links, where nothing is known of it."""
    return jnp.all(jnp.log(jnp.abs(x)) < 0.999 * log_cap(x.dtype))


def log_cap(dtype) -> float:
    """No `x` reaches the fourth root of the largest number."""
    return float(np.log(jnp.finfo(dtype).max)) / 4


def as_network_weights(value: ArrayLike, name: str) -> Array:
    array = as_float(value, name)
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must have one weight per coordinate, shape (d,), got {array.shape}."
        )
    check_nonempty(array, name)
    check_finite(array, name)
    return array
