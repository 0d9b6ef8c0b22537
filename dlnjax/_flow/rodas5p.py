"""Rodas5P, a Rosenbrock method of order 5(4), for the dual form of the flow.

For `df/ds = F(f)` with the Jacobian `J` at the start of the step, the stages `Uᵢ`, `i = 1 … 8`,
solve

    (I/(γh) − J) Uᵢ = F(f₀ + Σⱼ aᵢⱼUⱼ) + Σⱼ cᵢⱼUⱼ/h,        f₁ = f₀ + Σⱼ a₈ⱼUⱼ + U₈,

with one factorisation of `I/(γh) − J`. `U₈` is the embedded error estimate; `DEFECT` is a second
one. The terms (`terms/`) provide `F`, the factorisation and the solves. The quadrature `dz/ds = x`
needs no solve: see `_QUADRATURE`.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .terms.base import AbstractDualTerm, RealScalarLike, dual_term_of

# Steinebach, *Construction of Rosenbrock–Wanner method Rodas5P and numerical benchmarks within
# the Julia Differential Equations package*, BIT 63:27 (2023): the coefficients published
# with that paper, in the form where stages need no product with the Jacobian.
# `tests/test_flow_rodas5p.py` measures the orders that they give.
GAMMA = 0.21193756319429014
_LAST = [
    -7.502846399306121,
    2.561846144803919,
    -11.627539656261098,
    -0.18268767659942256,
    0.030198172008377946,
]
A = [
    [],
    [3.0],
    [2.849394379747939, 0.45842242204463923],
    [-6.954028509809101, 2.489845061869568, -10.358996098473584],
    [2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641],
    _LAST,
    [*_LAST, 1.0],
    [*_LAST, 1.0, 1.0],
]
C = [
    [],
    [-14.155112264123755],
    [-17.97296035885952, -2.859693295451294],
    [147.12150275711716, -1.41221402718213, 71.68940251302358],
    [165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306],
    [
        24.854864614690072,
        -3.0009227002832186,
        47.4931110020768,
        5.5814197821558125,
        -0.6610691825249471,
    ],
    [
        30.91273214028599,
        -3.1208243349937974,
        77.79954646070892,
        34.28646028294783,
        -19.097331116725623,
        -28.087943162872662,
    ],
    [
        37.80277123390563,
        -3.2571969029072276,
        112.26918849496327,
        66.9347231244047,
        -40.06618937091002,
        -54.66780262877968,
        -9.48861652309627,
    ],
]
# Continuous extension of order 4: y(θ) = (1−θ)y₀ + θ(y₁ + (1−θ)(H₀k + θ(H₁k + θH₂k))).
H = np.array(
    [
        [
            25.948786856663858,
            -2.5579724845846235,
            10.433815404888879,
            -2.3679251022685204,
            0.524948541321073,
            1.1241088310450404,
            0.4272876194431874,
            -0.17202221070155493,
        ],
        [
            -9.91568850695171,
            -0.9689944594115154,
            3.0438037242978453,
            -24.495224566215796,
            20.176138334709044,
            15.98066361424651,
            -6.789040303419874,
            -6.710236069923372,
        ],
        [
            11.419903575922262,
            2.8879645146136994,
            72.92137995996029,
            80.12511834622643,
            -52.072871366152654,
            -59.78993625266729,
            -0.15582684282751913,
            4.883087185713722,
        ],
    ]
)


def _square(rows) -> np.ndarray:
    """The lower triangular rows as an 8 × 8 matrix."""
    return np.array([[*row, *[0.0] * (8 - len(row))] for row in rows])


# The rows are linear combinations of the stages: the increment, the error estimate (the last stage)
# and the three of the continuous extension. The stages Z of the quadrature dz/ds = x(g) satisfy the
# same equations, with xᵢ at the stage and the derivative x′ along the images Gᵢ of Uᵢ:
#     Z/(γh) − x′G = x + C Z/h,    so    Z = h (I/γ − C)⁻¹ (x + x′G).
# Only the combinations _OUTPUTS Z are needed: one constant matrix instead of eight stages.
_OUTPUTS = np.vstack([[*_LAST, 1.0, 1.0, 1.0], np.eye(8)[7], H])
_QUADRATURE = _OUTPUTS @ np.linalg.inv(np.eye(8) / GAMMA - _square(C))

# Which part of a second estimate counts as error: of the defect `|ż − x|` of the continuous
# extension at the end of a step, which is of order 4 too. A step into a jump, in which `x` grows
# from 1e-40, has stages that differ by orders of magnitude. As a function of its length the
# embedded estimate then changes its sign, and near a zero it accepts a step that is wrong by
# thousands of tolerances (`test_a_zero_of_the_embedded_estimate`). On the 44 703 accepted steps of
# 72 flows (3 × 4, 6 × 4, 20 × 40, three networks, log ε from −11 to −2000) the defect was below 0.4
# of the tolerance on 19 of 20, and at most 5.5, so that 0.1 of it costs no steps.
DEFECT = 0.1


def linear_sum(coefficients, terms: Sequence[Array | float]) -> Array | float:
    """`Σ cⱼ termⱼ`."""
    # Term by term, so that XLA fuses the sum: stacking the terms for a matrix product copies them.
    return sum((float(c) * k for c, k in zip(coefficients, terms, strict=True) if c), 0.0)


class Interpolation(diffrax.AbstractLocalInterpolation):
    """The continuous extension, with `k` the stages (see `H`)."""

    t0: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    coefficients: tuple[PyTree[Array], ...]  # y₀, y₁, H₀k, H₁k, H₂k

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            later, earlier = self.evaluate(t1), self.evaluate(t0)
            return jax.tree.map(lambda a, b: a - b, later, earlier)
        h = self.t1 - self.t0
        theta = jnp.where(h == 0, 0, (t0 - self.t0) / jnp.where(h == 0, 1, h))
        bump = theta * (1 - theta)
        basis = (1 - theta, theta, bump, bump * theta, bump * theta**2)
        combine = lambda *cs: sum(b * c for b, c in zip(basis, cs, strict=True))
        return jax.tree.map(combine, *self.coefficients)


def rosenbrock(term: AbstractDualTerm, h: Array, y0: Any) -> list[Any]:
    """The increment of a step, its error estimate, the three coefficients of the interpolation."""
    g = term.image(y0[0])
    x, slope = term.response(g)
    factors = term.factorize(x, slope, GAMMA * h)

    stages: list[Array] = []
    images: list[Array] = []
    xs: list[Array] = []
    # The mean of each stage over both signs, divided by h. It does not depend on x, so that its
    # recursion is that of the stages with J = 0: mean/(γh) = drift + Σ cⱼ meanⱼ/h.
    drifts: list[Any] = []
    for a, c in zip(A, C, strict=True):
        x = term.x(g + linear_sum(a, images)) if images else x
        drift = term.drift + linear_sum(c, drifts)
        stage = term.solve(factors, term.velocity(x) + linear_sum(c, stages) / h, drift)
        drifts.append(GAMMA * drift)
        stages.append(stage)
        images.append(term.image(stage))
        xs.append(x)

    outputs = []
    for own, other in zip(_OUTPUTS, _QUADRATURE, strict=True):
        moved = jnp.asarray(linear_sum(other, images))
        quadrature = h / term.fixed_zeta() * (term.change(slope, moved) + linear_sum(other, xs))
        outputs.append((linear_sum(own, stages), quadrature))
    increment, (error, error_z), *inner = outputs
    defect = increment[1] - sum(z for _, z in inner) - h / term.fixed_zeta() * xs[-1]
    # Where `x` is the difference of two large `q` its stages are rounding, and so are both of the
    # estimates: to ask for less would keep steps short for ever. The sums of their coefficients are
    # about 2 and 64.
    rounding = h / term.fixed_zeta() * term.rounding(slope, g)
    error_z = jnp.maximum(jnp.abs(error_z) - 2 * rounding, 0)
    second = DEFECT * jnp.maximum(jnp.abs(defect) - 64 * rounding, 0)
    return [increment, (error, jnp.maximum(error_z, second)), *inner]


def finished(
    term: AbstractDualTerm, y0: Any, increment: Any, error: Any, others: PyTree[Array] = ()
) -> tuple[Any, Any, Array]:
    """The state after a step, its error as the controller takes it, and whether all is finite.

    A trial step may overflow. An infinite error estimate makes the controller reject it, with a
    fifth of the step next; the state stays finite, since derivatives through inf or NaN are NaN
    even if the step is rejected."""
    leaves = jax.tree.leaves((increment, error, others))
    good = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()
    y1 = jax.tree.map(lambda y, dy: jnp.where(good, y + dy, y), y0, increment)
    error = term.error(y1, error)
    return y1, jax.tree.map(lambda e: jnp.where(good, e, jnp.inf), error), good


class Rodas5P(diffrax.AbstractAdaptiveSolver[Any]):
    """The Rosenbrock method Rodas5P, of order 5 with an embedded method of order 4.

    It has 8 stages and one factorisation a step, is L-stable and stiffly accurate, and has a
    continuous extension of order 4.

    It is the default solver of `DualForm()`, and integrates that form only: it takes the
    Jacobian and its factorisation from the vector field, which must be autonomous.

    **Raises:** `ValueError` in `gradient_flow` with another formulation.

    !!! example

        ```python
        problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        solver, s = dln.Rodas5P(), jnp.array([2.0])
        flow = dln.gradient_flow(network, problem, s, eps=1e-9, solver=solver)
        flow.x[0]  # (2, 1)
        ```

    !!! cite "Reference"

        G. Steinebach, BIT Numerical Mathematics 63:27 (2023).
    """

    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Interpolation]] = Interpolation

    def order(self, terms: Any) -> int:
        return 5

    def init(self, terms: Any, t0: RealScalarLike, t1: RealScalarLike, y0: Any, args: Any) -> None:
        return None

    def step(
        self,
        terms: Any,
        t0: RealScalarLike,
        t1: RealScalarLike,
        y0: Any,
        args: Any,
        solver_state: None,
        made_jump: Any,
    ) -> tuple[Any, Any, dict[str, Any], None, diffrax.RESULTS]:
        term = dual_term_of(terms, self)
        # In a batch, lanes that are done make steps of length 0 whose results are discarded. A
        # division by h = 0 there would be NaN in the derivatives of all lanes.
        h = jnp.where(t1 > t0, t1 - t0, 1)
        increment, error, *inner = rosenbrock(term, h, y0)

        y1, error, _ = finished(term, y0, increment, error)
        dense_info = dict(coefficients=(y0, y1, *inner))
        return y1, error, dense_info, None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: RealScalarLike, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)
