"""`Steps`: a shallow network of one variable, a sum of smooth steps, at quadrature points."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._checks import (
    as_float,
    check_finite,
    check_nonempty,
    check_scalar,
    is_concrete,
    to_common_dtype,
)
from .._linalg import matmul
from .base import AbstractNetwork, Constant, as_network_weights, zero_penalty


class Steps(AbstractNetwork):
    """The shallow network `f(p) = a₀ + Σⱼ aⱼ σ((p − uⱼ)/η)` of one variable, `x = f(points)`.

    `σ` rises from 0 at −1/2 to 1 at 1/2: it is C¹, of two cubic parabolas. With `N` equally spaced
    points, `LeastSquares(√(2/N) I, √(2/N) f*(points))` has the loss `∫(f* − f)²`.

    **Two time scales.** The flow starts at the shape, whatever `ε` is. It is `ε` that `u` is slower
    than `a`: in the time `s = t` of `u`,

        da/ds = −∇ₐℓ/ε,    du/ds = −∇ᵤℓ,

    which is gradient flow of the weights `√ε a` and `u`. In the limit `ε → 0`, where `a` is the
    optimum for `u` at every time, it is that of `TwoTimescale(network, fast="a")`. There is no
    weight decay.

    The field has kinks, where points leave a step. With 16 points to a step or more they are small;
    with fewer, errors of a flow are some 100 times its tolerance, and its derivatives may be off by
    1e-3.

    The paper learns from a stream of fresh points, in stochastic steps. That is outside of this
    package, where a problem has its data: `train` samples from the points.

    **Attributes:** `a`, the weights that are trained, shape `(m + 1,)`: after `initial`, `√ε` times
    `coefficients`; `u`, shape `(m,)`; `points`, `width`, `unit`: constants.

    !!! example

        ```python
        points = (jnp.arange(200) + 0.5) / 200
        target = jnp.where(points > 0.5, 1.0, 0.0)
        scale = jnp.sqrt(2 / 200)
        problem = dln.LeastSquares(scale * jnp.eye(200), scale * target)
        network = dln.networks.Steps(jnp.zeros(3), jnp.array([0.4, 0.7]), points, width=0.1)
        form, s = dln.WeightForm(), jnp.array([0.0, 0.2, 2.0])
        flow = dln.gradient_flow(network, problem, s, eps=1e-3, formulation=form, rtol=1e-5)
        problem.loss(flow.x)  # (0.5, 0.0035, 0.0034): one step is at 0.5 in the end
        ```

    !!! cite "Reference"

        [MB23] Marion & Berthier, *Leveraging the two-timescale regime to demonstrate convergence of
        neural networks*, arXiv 2304.09576.
    """

    a: Float[Array, " m_plus_1"]
    u: Float[Array, " m"]
    points: Constant
    width: Constant
    unit: Constant
    positive: ClassVar[bool] = False

    def __init__(self, a: ArrayLike, u: ArrayLike, points: ArrayLike, width: ArrayLike):
        """**Arguments:**

        - `a`: `a₀` and the heights of the steps, shape `(m + 1,)`.
        - `u`: where the steps are, shape `(m,)`.
        - `points`: where the function is evaluated, shape `(N,)`.
        - `width`: `η > 0`, the width of a step, a scalar.

        **Raises:** `ValueError` for other shapes, NaN or inf, or if `width` is not positive (under
        tracing the flow then ends as `invalid_shape`).
        """
        a, u = as_network_weights(a, "a"), as_network_weights(u, "u")
        points, width = as_float(points, "points"), as_float(width, "width")
        a, u, points, width = to_common_dtype(a, u, points, width)
        if len(a) != len(u) + 1:
            raise ValueError(
                f"`a` must have one entry more than `u`, the constant a₀ first: shape "
                f"({len(u) + 1},) for the {len(u)} steps of `u`, got {a.shape}."
            )
        if points.ndim != 1:
            raise ValueError(f"`points` must have shape (N,), got {points.shape}.")
        check_nonempty(points, "points")
        check_finite(points, "points")
        check_scalar(width, "width")
        if is_concrete(width) and not 0 < float(width) < jnp.inf:
            raise ValueError(
                f"`width` must be positive and finite, got {float(width)}: steps of width 0 have "
                "no gradient in `u`. Use some spacings of `points`."
            )
        self.a, self.u = a, u
        self.points, self.width = Constant(points), Constant(width)
        self.unit = Constant(jnp.ones_like(width))

    @property
    def coefficients(self) -> Float[Array, " m_plus_1"]:
        """`a` in the units of the function, shape `(m + 1,)`.

        !!! example

            ```python
            network = dln.networks.Steps(jnp.ones(2), jnp.zeros(1), jnp.linspace(-1, 1, 9), 0.5)
            start = network.initial(jnp.log(0.01))
            start.a, start.coefficients  # 0.1, 1
            ```
        """
        return self.unit.value * self.a

    def __call__(self) -> Array:
        a = self.coefficients
        steps = _ramp((self.points.value[:, None] - self.u[None]) / self.width.value)
        return a[0] + matmul(steps, a[1:])

    def initial(self, log_eps: Array) -> "Steps":
        is_valid = (self.width.value > 0) & jnp.all(jnp.isfinite(self.points.value))
        scale = jnp.where(is_valid, jnp.exp(log_eps / 2), jnp.nan)
        where = lambda net: (net.a, net.unit)
        return eqx.tree_at(where, self, (scale * self.a, Constant(self.unit.value / scale)))

    def time_scale(self, log_eps: Array) -> Array:
        return jnp.ones_like(log_eps)

    def penalty(self, weight_decay: Array) -> Array:
        """0: there is no weight decay.

        **Raises:** `ValueError` for weight decay (under tracing, it is NaN).

        !!! example

            ```python
            network = dln.networks.Steps(jnp.ones(2), jnp.zeros(1), jnp.linspace(-1, 1, 9), 0.5)
            network.penalty(jnp.array(0.0))  # 0
            ```
        """
        return zero_penalty(self, weight_decay, "it would move steps to 0")


def _ramp(t: Array) -> Array:
    """`σ`, elementwise."""
    t = jnp.clip(t, -0.5, 0.5)
    return jnp.where(t < 0, 4 * (0.5 + t) ** 3, 1 - 4 * (0.5 - t) ** 3)
