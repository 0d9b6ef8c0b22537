"""`TwoTimescale`: a network of which some weights are at their optimum at every time.

With `x = c + J b`, linear in the fast weights `b`, and the loss `½⟨x, Mx⟩ − ⟨r, x⟩`,

    H b = Jᵀ(r − Mc),    H = JᵀMJ.

`H` may be singular, as where two neurons agree: `b` is then the solution of least norm.
"""

import dataclasses
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._checks import check_type
from .._derivatives import differentiated_as, held, vanishing
from .._linalg import eigh, matmul
from .._problem import AbstractProblem, check_quadratic
from .base import AbstractNetwork, Constant, is_constant, zero_penalty

# Eigenvalues of `H` count as 0 below this many rounding units of the largest, times the size of
# `H`. The entries of `H` are sums of squares, with errors of a few units: with 100 times less, the
# eigenvalues of two equal neurons would count, and their weights be of any size; with 100 times
# more, neurons of `Steps` within 1e-6 of each other, in place of 1e-7, would count as one.
ROUNDING = 10


class TwoTimescale(AbstractNetwork):
    """A network whose weights `fast` are infinitely faster than all others: they minimise the loss
    at every time, and the others follow gradient flow of this minimum (*variable projection*).

    `x` must be linear in the fast weights, and the loss the square. Where several fast weights are
    optimal, they are those of least norm, to which their own gradient flow from 0 tends.

    The slow weights start at their shape, and `t = s`: `ε` plays no part, and may be any. For
    `Steps` it is the limit `ε → 0`. There is no weight decay.

    In `train`, a step is one of the slow weights, and the fast ones are optimal for all rows, also
    where the step samples a batch.

    **Attributes:** `network`, with its fast weights: those given, and in `Training.network` the
    optimal ones; `fast`, their name.

    !!! example

        ```python
        points = (jnp.arange(200) + 0.5) / 200
        target = jnp.where(points > 0.5, 1.0, 0.0)
        scale = jnp.sqrt(2 / 200)
        problem = dln.LeastSquares(scale * jnp.eye(200), scale * target)
        steps = dln.networks.Steps(jnp.zeros(3), jnp.array([0.4, 0.7]), points, width=0.02)
        network = dln.networks.TwoTimescale(steps, fast="a")
        s = jnp.array([0.0, 0.1])
        flow = dln.gradient_flow(
            network, problem, s, eps=0.5, formulation=dln.WeightForm(), rtol=1e-5
        )
        problem.loss(flow.x)  # (0.066, 0.036); at the start 0.0667 with steps of width 0
        ```

    !!! cite "Reference"

        [MB23] §3, arXiv 2304.09576; Golub & Pereyra, SIAM J. Numer. Anal. 10 (1973), for the
        projection.
    """

    slow: AbstractNetwork  # with `None` for the fast weights
    value: Constant
    fast: str = eqx.field(static=True)
    positive: ClassVar[bool] = False

    def __init__(self, network: AbstractNetwork, fast: str):
        """**Arguments:** `network`, any; `fast`, the name of its field that is fast, such as `"a"`.

        **Raises:** `TypeError` if `network` is no network, or `x` is not linear in `fast`;
        `ValueError` if `fast` is no field with weights, or no other weights are left.
        """
        what = "a network, such as `dlnjax.networks.Steps(a, u, points, width)`"
        check_type(network, "network", AbstractNetwork, what)
        names = [f.name for f in dataclasses.fields(network)]
        names = [n for n in names if eqx.is_inexact_array(getattr(network, n))]
        if fast not in names:
            raise ValueError(
                f"`fast` must name weights of {type(network).__name__}, one of "
                f"{', '.join(map(repr, names)) or 'none'}, got {fast!r}."
            )
        self.value, self.fast = Constant(getattr(network, fast)), fast
        at = lambda net: getattr(net, fast)
        self.slow = eqx.tree_at(at, network, None)
        if not jax.tree.leaves(eqx.filter(self.slow, eqx.is_inexact_array, is_leaf=is_constant)):
            raise ValueError(
                f"{type(network).__name__} has no weights but {fast!r}: none would be slow. Its "
                "optimum is the minimiser of the loss."
            )
        self._check_linear()

    def _with(self, value: Array) -> AbstractNetwork:
        """The network with these fast weights."""
        at = lambda net: getattr(net, self.fast)
        return eqx.tree_at(at, self.slow, value, is_leaf=lambda v: v is None)

    def _check_linear(self) -> None:
        """Raise a `TypeError` unless JAX can transpose `x` as a function of the fast weights."""
        outputs, value = (lambda v: self._with(v)()), self.value.value
        x = jax.eval_shape(outputs, value)  # outside of `try`: a network may be wrong in itself
        transposed = lambda x: jax.linear_transpose(outputs, value)(x)
        try:
            jax.eval_shape(transposed, x)
        except Exception as error:
            raise TypeError(
                f"`x` of {type(self.slow).__name__} must be linear in its weights {self.fast!r}, "
                "whose optimum is a least squares problem then. Choose others as `fast`."
            ) from error

    @property
    def network(self) -> AbstractNetwork:
        """The network with its fast weights.

        !!! example

            ```python
            steps = dln.networks.Steps(jnp.ones(2), jnp.zeros(1), jnp.linspace(-1, 1, 9), 0.5)
            dln.networks.TwoTimescale(steps, fast="a").network.a  # 1, 1
            ```
        """
        return self._with(self.value.value)

    def __call__(self) -> Array:
        return self.network()

    def initial(self, log_eps: Array) -> "TwoTimescale":
        # Every network is its shape at ε = 1.
        start = self.network.initial(jnp.zeros_like(log_eps))
        fast = getattr(start, self.fast)
        slow = eqx.tree_at(lambda net: getattr(net, self.fast), start, None)
        return eqx.tree_at(lambda net: (net.slow, net.value), self, (slow, Constant(fast)))

    def least_log_eps(self, dtype: DTypeLike) -> float:
        return -jnp.inf

    def time_scale(self, log_eps: Array) -> Array:
        return jnp.ones_like(log_eps)

    def penalty(self, weight_decay: Array) -> Array:
        """0: there is no weight decay.

        **Raises:** `ValueError` for weight decay (under tracing, it is NaN).

        !!! example

            ```python
            steps = dln.networks.Steps(jnp.ones(2), jnp.zeros(1), jnp.linspace(-1, 1, 9), 0.5)
            dln.networks.TwoTimescale(steps, fast="a").penalty(jnp.array(0.0))  # 0
            ```
        """
        return zero_penalty(self, weight_decay, "its fast weights minimise the loss alone")

    def _start_size(self, log_eps: Array) -> Array:
        return jnp.ones_like(log_eps)

    def _settled(self, problem: AbstractProblem) -> "TwoTimescale":
        check_quadratic(problem, any_decay=True)
        shape, size = self.value.value.shape, self.value.value.size
        outputs = lambda b: self._with(b.reshape(shape))()
        zero = jnp.zeros(size, self.value.value.dtype)
        J = jax.jacfwd(outputs)(zero)
        b = _optimum(outputs(zero), J, problem)
        return eqx.tree_at(lambda net: net.value, self, Constant(b.reshape(shape)))


def _exact(c: Float[Array, " d"], J: Float[Array, "d k"], problem: AbstractProblem) -> Array:
    """`_optimum`, with derivatives to order two."""
    b, H, solve = _solved(c, J, problem)
    # The eigenvectors are held: their derivatives are infinite where eigenvalues are equal. `He` is
    # of the least norm for any `e`, and each chord step for `rest(He) = 0` raises the order to
    # which derivatives are right by one.
    e = held(solve(b, 1))
    for _ in range(2):
        e = e + solve(vanishing(_rest(matmul(H, e), c, J, problem)), 2)
    return held(b) + vanishing(matmul(H, e))


@differentiated_as(_exact)
def _optimum(c: Float[Array, " d"], J: Float[Array, "d k"], problem: AbstractProblem) -> Array:
    """The `b` of least norm that minimises the loss of `c + Jb`."""
    return _solved(c, J, problem)[0]


def _rest(b: Array, c: Array, J: Array, problem: AbstractProblem) -> Float[Array, " k"]:
    """The gradient of the loss in `b`, with the other sign."""
    return -matmul(J.T, problem.gradient(c + matmul(J, b)))


def _solved(c: Array, J: Array, problem: AbstractProblem):
    """The optimum, `H`, and the products with powers of its pseudo-inverse, which is held."""
    H = matmul(J.T, problem.matvec(J.T).T)
    values, V = eigh(held(H))
    counts = values > ROUNDING * len(values) * jnp.finfo(values.dtype).eps * values[-1]
    inverse = jnp.where(counts, 1 / jnp.where(counts, values, 1), 0)
    solve = lambda v, power: matmul(V, inverse**power * matmul(V.T, v))
    # `H` has lost half of the digits; a step of iterative refinement, from `x`, restores them.
    b = solve(_rest(jnp.zeros_like(values), c, J, problem), 1)
    return b + solve(_rest(b, c, J, problem), 1), H, solve
