"""`Layers`: the network `x = Π_l u_l` of L distinct layers, from a generic start.

`growth_time.py` has its equations. With `m` the smallest layer, `σ` the product of the signs of the
others, `b = σu_m` and `W` the growth time,

    w⁺ = W(b),    w⁻ = 2W(0) − W(b),    x = ε b Π_k √(b² + c_k),

so that `x` is one function of the dual, and no difference of links.
"""

import math
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float

from .._checks import as_float, check_finite, check_nonempty, is_concrete
from .base import AbstractDualNetwork
from .growth import Growth
from .growth_time import GrowthTime


class Layers(AbstractDualNetwork):
    """The network `x = u_1 ∘ … ∘ u_L` of `L ≥ 3` layers, start `ε^{1/L} (U_1, …, U_L)`,
    `t = s ε^{2/L−1}`.

    The layers differ, as those of a random initialisation do. Gradient flow conserves the
    differences of their squares, and takes no weight decay. A coordinate activates after its growth
    time in the direction of its correlation: so the network compares with the weighted lasso,
    `lasso_path(problem, weights=network.growth_times)`, and as `ε → 0` it ends where the weighted
    1-norm is least.

    As for `Deep`, `gradient_flow` integrates with an `ε` no smaller than one for which an active
    `w` is resolved: about 1e-31 with 3 layers and 1e-20 with 4 in float64.

    !!! example

        ```python
        network = dln.Layers(jnp.array([[0.5, 0.0], [1.0, 1.0], [2.0, -1.0]]))
        network()  # (1, 0)
        network.growth_times  # (0.885, 1.571) for x > 0, (1.446, 1.571) for x < 0
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, -1.0]))
        dln.limit_flow(network, problem).jumps[:2]  # (0.442, 1.571): 0.885/2 and 1.571/1
        ```

    !!! cite "Reference"

        Zhao et al. 2026, arXiv 2607.12332.
    """

    weights: Float[Array, "L d"]
    positive: ClassVar[bool] = False

    def __init__(self, weights: ArrayLike):
        """**Arguments:** `weights`, the shape of the initialisation, `(L, d)` with `L ≥ 3`. In each
        coordinate the layer with the smallest size may be 0.

        **Raises:** `ValueError` for another shape, NaN or inf, or where the two smallest layers of
        a coordinate have the same size, from where it could never leave 0 in one direction.
        """
        weights = as_float(weights, "weights")
        if weights.ndim != 2:
            raise ValueError(
                "`weights` must have one row a layer and one column a coordinate, shape (L, d), "
                f"got {weights.shape}."
            )
        check_nonempty(weights, "weights")
        if len(weights) < 3:
            remedy = "Use `UV(u, v)`" if len(weights) == 2 else "Use `Linear(u)`"
            raise ValueError(
                f"`Layers` needs at least 3 layers, got {len(weights)}. {remedy}, whose rescaled "
                "time is another."
            )
        check_finite(weights, "weights")
        if is_concrete(weights):
            size = np.abs(np.asarray(weights))
            first, second = np.sort(size, axis=0)[:2]
            if np.any(first == second):
                i = int(np.argmax(first == second))
                j, k = np.argsort(size[:, i], kind="stable")[:2]
                raise ValueError(
                    f"Degenerate shape: |weights[{j}, {i}]| = |weights[{k}, {i}]| = "
                    f"{float(first[i])} are the smallest layers. From there the product keeps its "
                    "sign forever. Use different sizes, such as 0 in one layer and 1 in the others."
                )
        self.weights = weights

    @property
    def growth_times(self) -> Float[Array, "2 d"]:
        """How far the dual moves, towards `x > 0` and towards `x < 0`, until a coordinate blows up:
        `w(0)`, shape `(2, d)`.

        !!! example

            ```python
            dln.Layers(jnp.array([[0.0], [1.0], [1.0]])).growth_times  # π/2, twice
            ```
        """
        return _growth_times(self)

    @property
    def conserved(self) -> Float[Array, "k d"]:
        """By how much the squares of the other layers exceed that of the smallest, ascending, shape
        `(L − 1, d)`: gradient flow conserves them, in units of `ε^{2/L}`.

        !!! example

            ```python
            dln.Layers(jnp.array([[0.0], [2.0], [1.0]])).conserved  # 1 and 4
            ```
        """
        return self._start()[1]

    def _start(self) -> tuple[Array, Array]:
        """`b(0)` and `c`; NaN for values that the constructor would refuse, so that traced lanes
        are found invalid."""
        u = self.weights
        places = jnp.arange(len(u), dtype=jnp.int32)[:, None]
        is_smallest = places == jnp.argmin(jnp.abs(u), axis=0).astype(jnp.int32)[None]
        smallest = jnp.sum(jnp.where(is_smallest, u, 0), axis=0)
        sign = jnp.prod(jnp.where(is_smallest, 1, jnp.sign(u)), axis=0)
        others = jnp.sort(jnp.where(is_smallest, jnp.inf, jnp.abs(u)), axis=0)[:-1]
        size = jnp.abs(smallest)[None]
        # Not a difference of squares, which would cancel where layers are almost equal.
        c = (others - size) * (others + size)
        is_allowed = jnp.all(jnp.isfinite(u), axis=0) & (c[0] > 0)
        return jnp.where(is_allowed, sign * smallest, jnp.nan), jnp.where(
            is_allowed[None], c, jnp.nan
        )

    def __call__(self) -> Array:
        return jnp.prod(self.weights, axis=0)

    def initial(self, log_eps: Array) -> "Layers":
        start, _ = self._start()
        scale = jnp.where(jnp.isnan(start), jnp.nan, jnp.exp(log_eps / len(self.weights)))
        return eqx.tree_at(lambda net: net.weights, self, self.weights * scale[None])

    def least_log_eps(self, dtype: DTypeLike) -> float:
        # As for `x = uv`: squares of weights of size x^{2/L}, rounded, conserve differences of size
        # ε^{2/L} to eps^{1/3}.
        return len(self.weights) / 3 * math.log(jnp.finfo(dtype).eps)

    def time_scale(self, log_eps: Array) -> Array:
        return jnp.exp((2 / len(self.weights) - 1) * log_eps)

    def penalty(self, weight_decay: Array) -> Array:
        """0.

        **Raises:** `ValueError` for weight decay (under tracing, it is NaN).

        !!! example

            ```python
            network = dln.Layers(jnp.array([[0.0], [2.0], [1.0]]))
            network.penalty(jnp.array(0.0))  # 0
            ```
        """
        if is_concrete(weight_decay) and float(weight_decay) != 0:
            raise ValueError(
                f"A network of {len(self.weights)} layers takes no weight decay, got "
                f"{float(weight_decay)}: its flow would not close in the dual variable. Use "
                "`weight_decay=0`, or `UV(u, v)`."
            )
        return jnp.where(weight_decay == 0, 0, jnp.nan).astype(self.weights.dtype)

    def model(self, w: Array, log_eps: Array) -> Array:
        return _model(self, w, log_eps)

    def tabulated(self) -> "_Tabulated":
        return _Tabulated(GrowthTime(self._start()[1]))

    def initial_dual(self, log_eps: Array) -> Array:
        return self.growth_times

    def limit_growth(self, log_eps: Array) -> Growth:
        """The power `ε ((L−2) w)^{−L/(L−2)}` that `x` is where it has grown far."""
        start, L = self.growth_times, len(self.weights)
        p = 1 - 2 / L
        log_initial = log_eps - jnp.log((L - 2) * start) / p
        return Growth(log_initial, p * start, jnp.asarray(p, start.dtype))


class _Tabulated(eqx.Module):
    """`Layers` of which the growth times are tabulated."""

    time: GrowthTime

    def model(self, w: Array, log_eps: Array) -> Array:
        # The smaller `w` determines `b` to all its digits. Their sum is constant.
        is_plus = w[0] <= w[1]
        b = self.time.inverse(jnp.where(is_plus, w[0], w[1]))
        # Each layer with its share of ε: their product alone might overflow.
        share = jnp.exp(log_eps / len(self.time.c))
        others = jnp.prod(share * jnp.sqrt(b[None] ** 2 + self.time.c), axis=0)
        return jnp.where(is_plus, b, -b) * others


# Each is one program, as it would be hundreds of small ones outside of `jit`.
@eqx.filter_jit
def _growth_times(network: Layers) -> Float[Array, "2 d"]:
    smallest, c = network._start()
    time = GrowthTime(c)
    towards = time.until(jnp.abs(smallest))
    away = 2 * time.total() - towards
    is_plus = smallest >= 0
    return jnp.stack([jnp.where(is_plus, towards, away), jnp.where(is_plus, away, towards)])


@eqx.filter_jit
def _model(network: Layers, w: Array, log_eps: Array) -> Float[Array, " d"]:
    return network.tabulated().model(w, log_eps)
