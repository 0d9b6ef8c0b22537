"""Diagonal linear networks: shape, link, time scale."""

import abc
import math
from typing import TYPE_CHECKING, ClassVar, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from ._check import (
    as_float,
    check_finite,
    check_nonempty,
    check_scalar,
    check_type,
    is_concrete,
    to_common_dtype,
)
from ._problem import AbstractProblem
from ._signs import sides

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
        At `u^{2/3}` (3.7e-11 in float64) a third of its digits is left, and `x` has errors of some
        1e-6. A network whose weights each keep their digits overrides this.
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

    def folds(self, dual: Array) -> Array:
        """`δ`, the inverse of `dual`."""
        p = self.exponent
        return dual if self.is_exponential else -jnp.log1p(-p * dual) / p

    def per_fold(self, delta: Array) -> Array:
        """`h e^{−pδ}`: the dual that it takes to grow by a factor `e`."""
        return self.unit * jnp.exp(-self.exponent * delta)

    def longest(self, change: float) -> Array:
        """The `δ` over which `per_fold` changes by `e^change`."""
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
        keeps its digits at any `ε`, there are `interpolator` and `limit_point`, and `limit_flow`
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
    """Under tracing: a degenerate shape is an infinite dual variable, which never moves."""
    if not isinstance(network, AbstractDualNetwork):
        return jnp.asarray(True)
    return jnp.all(jnp.isfinite(network.initial_dual(log_eps)))


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


def _exponential_link(w: Array, log_eps: Array) -> Array:
    return jnp.exp(w * log_eps)


def _exponential_dual(shape: Array, log_eps: Array) -> Array:
    return 1 + 2 * jnp.log(jnp.abs(shape)) / log_eps


def _exponential_growth(shape: Array, log_eps: Array) -> Growth:
    start = 2 * jnp.log(jnp.abs(shape)) + log_eps
    return Growth(start, jnp.broadcast_to(-1 / log_eps, start.shape), 0.0)


def as_network_weights(value: ArrayLike, name: str) -> Array:
    array = as_float(value, name)
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` must have one weight per coordinate, shape (d,), got {array.shape}."
        )
    check_nonempty(array, name)
    check_finite(array, name)
    return array


class UV(AbstractDualNetwork):
    """`x = u∘v`, loss `ℓ(x) + λ/2 (‖u‖² + ‖v‖²)`, from `(ε^½ β, ε^½ γ)`; `t = s log(1/ε)/2`.

    !!! cite "Reference"

        [B25] §2: arXiv 2509.18766. Its figures use `β = 1`, `γ = 0`.
    """

    u: Float[Array, " d"]
    v: Float[Array, " d"]
    positive: ClassVar[bool] = False

    def __init__(self, u: ArrayLike, v: ArrayLike):
        """**Arguments:** `u = β` and `v = γ`, the shape of the initialisation, each `(d,)`.

        **Raises:** `ValueError` for mismatched shapes, NaN or inf, or `βᵢ = ±γᵢ`, from
        where a coordinate could never leave 0 in one direction.
        """
        u, v = as_network_weights(u, "u"), as_network_weights(v, "v")
        if u.shape != v.shape:
            raise ValueError(f"`u` and `v` must have the same shape, got {u.shape} and {v.shape}.")
        self.u, self.v = to_common_dtype(u, v)
        if is_concrete(u, v):
            bad = np.flatnonzero(np.abs(np.asarray(u)) == np.abs(np.asarray(v)))
            if len(bad):
                i = int(bad[0])
                raise ValueError(
                    f"Degenerate shape: |u[{i}]| = |v[{i}]| = {abs(float(u[i]))}. From there "
                    "`u∘v` keeps its sign forever. Use different sizes, such as u = 1, v = 0; "
                    "where all weights do start equal, `USquared(u)` is that network, at the same "
                    "ε and s."
                )

    def __call__(self) -> Array:
        return self.u * self.v

    def initial(self, log_eps: Array) -> "UV":
        scale = jnp.exp(log_eps / 2)
        weights = (self.u * scale, self.v * scale)
        return eqx.tree_at(lambda net: (net.u, net.v), self, weights)

    def time_scale(self, log_eps: Array) -> Array:
        return -log_eps / 2

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay / 2 * (jnp.sum(self.u**2) + jnp.sum(self.v**2))

    def link(self, w: Array, log_eps: Array) -> Array:
        return _exponential_link(w, log_eps)

    def initial_dual(self, log_eps: Array) -> Array:
        return _exponential_dual(self._shape(), log_eps)

    def growth(self, log_eps: Array) -> Growth:
        return _exponential_growth(self._shape(), log_eps)

    def _shape(self):
        return jnp.stack([self.u + self.v, self.u - self.v]) / 2


class USquared(AbstractDualNetwork):
    """`x = u∘u`, loss `ℓ(x) + λ‖u‖²`, from `ε^½ α`; `t = s log(1/ε)/4`. Compares with the
    positive lasso.

    !!! cite "Reference"

        [B25] §3: arXiv 2509.18766; [B23] JMLR 24(171).
    """

    u: Float[Array, " d"]
    positive: ClassVar[bool] = True

    def __init__(self, u: ArrayLike):
        """**Arguments:** `u = α`, the shape of the initialisation, `(d,)`.

        **Raises:** `ValueError` for NaN or inf, or `αᵢ = 0`, which never moves.
        """
        self.u = as_network_weights(u, "u")
        if is_concrete(self.u):
            bad = np.flatnonzero(np.asarray(self.u) == 0)
            if len(bad):
                raise ValueError(
                    f"Degenerate shape: u[{int(bad[0])}] = 0 never moves under gradient "
                    "flow. Use a non-zero shape, such as 1."
                )

    def __call__(self) -> Array:
        return self.u**2

    def initial(self, log_eps: Array) -> "USquared":
        return eqx.tree_at(lambda net: net.u, self, self.u * jnp.exp(log_eps / 2))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return -math.inf  # each weight keeps its sign, and its digits

    def time_scale(self, log_eps: Array) -> Array:
        return -log_eps / 4

    def penalty(self, weight_decay: Array) -> Array:
        return weight_decay * jnp.sum(self.u**2)

    def link(self, w: Array, log_eps: Array) -> Array:
        return _exponential_link(w, log_eps)

    def initial_dual(self, log_eps: Array) -> Array:
        return _exponential_dual(self.u[None, :], log_eps)

    def growth(self, log_eps: Array) -> Growth:
        return _exponential_growth(self.u[None, :], log_eps)


class Deep(AbstractDualNetwork):
    """`x = u^D − v^D` with `u, v > 0` and real `D ≥ 2`, from `(ε^{1/D} u, ε^{1/D} v)`. At `D = 2`,
    loss `ℓ(x) + λ(‖u‖² + ‖v‖²)` and `t = s log(1/ε)/4`; at `D > 2` no weight decay, and
    `t = s / (D(D−2) ε^{1−2/D})`.

    Without decay gradient flow conserves `u∘v` at `D = 2` and `u^{2−D} + v^{2−D}` at `D > 2`.

    At `D > 2` in `gradient_flow`, `ε` acts on an active coordinate no smaller than where `w` is
    `u^{2/3} w(0)`, `u` the unit of rounding: in float64 4e-11, about `ε = 5e-32` at `D = 3` and
    1e-21 at `D = 4`. Below that `x_mean` is within about 4e-11 of its limit.

    !!! cite "Reference"

        [W23] Wind, Antun, Hansen, arXiv 2307.07410; [Woo20] §5, arXiv 2002.09277.
    """

    u: Float[Array, " d"]
    v: Float[Array, " d"]
    _depth: Constant | None  # None: 2
    positive: ClassVar[bool] = False

    def __init__(self, u: ArrayLike, v: ArrayLike, *, depth: ArrayLike):
        """**Arguments:**

        - `u` and `v`: the shape of the initialisation, each `(d,)`, positive.
        - `depth`: `D`. The Python number 2 is depth 2; anything else is an array above 2, by
            which one can differentiate and over which one can `vmap`.

        **Raises:** `ValueError` for mismatched shapes, NaN or inf, a weight that is not positive,
        `D < 2`, an array equal to 2.
        """
        u, v = as_network_weights(u, "u"), as_network_weights(v, "v")
        if u.shape != v.shape:
            raise ValueError(f"`u` and `v` must have the same shape, got {u.shape} and {v.shape}.")
        u, v = to_common_dtype(u, v)
        for name, weights in (("u", u), ("v", v)):
            if is_concrete(weights):
                bad = np.flatnonzero(~(np.asarray(weights) > 0))
                if len(bad):
                    i = int(bad[0])
                    raise ValueError(
                        f"The weights of `Deep` must be positive, got {name}[{i}] = "
                        f"{float(weights[i])}. For `x(0) = 0` take u = v = 1."
                    )
        self.u, self.v = u, v
        self._depth = None if _is_two(depth) else Constant(_as_depth(depth, u.dtype))

    @property
    def depth(self) -> Float[Array, ""] | int:
        """`D`; the Python number 2 at depth 2."""
        return 2 if self._depth is None else self._depth.value

    @property
    def exponent(self) -> Float[Array, ""] | None:
        """`a = D/(D−2)`, of the link `ε w^{−a}`; `None` at depth 2."""
        return None if self._depth is None else self._depth.value / (self._depth.value - 2)

    def _shape(self) -> Array:
        # NaN in place of what the constructor refuses, so that traced lanes are found invalid.
        shape = jnp.stack([self.u, self.v])
        allowed = shape > 0
        if self._depth is not None:
            allowed = allowed & (self._depth.value > 2) & jnp.isfinite(self._depth.value)
        return jnp.where(allowed, shape, jnp.nan)

    def __call__(self) -> Array:
        # Trial steps may cross 0, where a real power is NaN.
        return jnp.abs(self.u) ** self.depth - jnp.abs(self.v) ** self.depth

    def initial(self, log_eps: Array) -> "Deep":
        u, v = self._shape() * jnp.exp(log_eps / self.depth)
        return eqx.tree_at(lambda net: (net.u, net.v), self, (u, v))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return -math.inf  # each weight keeps its sign, and its digits

    def time_scale(self, log_eps: Array) -> Array:
        if self._depth is None:
            return -log_eps / 4
        depth = self.depth
        return jnp.exp((2 / depth - 1) * log_eps) / (depth * (depth - 2))

    def penalty(self, weight_decay: Array) -> Array:
        """**Raises:** `ValueError` for weight decay at `D > 2` (NaN under tracing)."""
        if self._depth is None:
            return weight_decay * (jnp.sum(self.u**2) + jnp.sum(self.v**2))
        if is_concrete(weight_decay) and float(weight_decay) != 0:
            raise ValueError(
                f"A network of depth {self.depth} takes no weight decay, got "
                f"{float(weight_decay)}: its flow would not close in the dual variable. Use "
                "`weight_decay=0`, or `depth=2`."
            )
        return jnp.where(weight_decay == 0, 0, jnp.nan).astype(self.u.dtype)

    def link(self, w: Array, log_eps: Array) -> Array:
        if self.exponent is None:
            return _exponential_link(w, log_eps)
        return jnp.exp(log_eps - self.exponent * jnp.log(w))

    def initial_dual(self, log_eps: Array) -> Array:
        if self._depth is None:
            return _exponential_dual(self._shape(), log_eps)
        return jnp.exp((2 - self.depth) * jnp.log(self._shape()))  # NaN ** 0 would be 1

    def growth(self, log_eps: Array) -> Growth:
        if self._depth is None:
            return _exponential_growth(self._shape(), log_eps)
        start, p = self.depth * jnp.log(self._shape()) + log_eps, 1 - 2 / self.depth
        return Growth(start, p * self.initial_dual(log_eps), p)


def _is_two(depth: ArrayLike) -> bool:
    return isinstance(depth, int | float) and depth == 2


def _as_depth(value: ArrayLike, dtype) -> Array:
    depth = as_float(value, "depth", dtype)
    check_scalar(depth, "depth")
    if is_concrete(depth) and not 2 < float(depth) < np.inf:
        remedy = (
            "Pass the Python number 2: at depth 2 the network has another link."
            if float(depth) == 2
            else "`u^D − v^D` needs a depth of at least 2."
        )
        raise ValueError(f"`depth` must be finite and above 2, got {depth}. {remedy}")
    return depth
