"""Rodas5P, a Rosenbrock method of order 5(4), for the dual form of the flow."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .terms.base import AbstractDualTerm, RealScalarLike

# Steinebach, *Construction of Rosenbrock–Wanner method Rodas5P and numerical benchmarks within
# the Julia Differential Equations package*, BIT 63:27 (2023): the coefficients published
# with that paper, in the form where stages need no product with the Jacobian.
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
    return np.array([[*row, *[0.0] * (8 - len(row))] for row in rows])


# What a step makes of its stages: the increment, the error estimate (the last stage) and the
# continuous extension. A quadrature has the same stages up to a linear map that can be applied
# once: U/(γh) = C U/h + R, where R is its field plus derivatives times stages.
_OUTPUTS = np.vstack([[*_LAST, 1.0, 1.0, 1.0], np.eye(8)[7], H])
_QUADRATURE = _OUTPUTS @ np.linalg.inv(np.eye(8) / GAMMA - _square(C))


# Sums are written term by term: stacked into a matrix product, they cost copies on CPU.
def _sum(coefficients, terms: Sequence[Array | float]) -> Array | float:
    return sum((float(c) * k for c, k in zip(coefficients, terms, strict=True) if c), 0.0)


class _Interpolation(diffrax.AbstractLocalInterpolation):
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


class Rodas5P(diffrax.AbstractAdaptiveSolver[Any]):
    """Rodas5P: 8 stages, order 5 with an embedded 4, L-stable, stiffly accurate, with a
    continuous extension of order 4. One factorisation a step.

    It integrates the dual form only, which is autonomous: the Jacobian and its factorisation come
    from the term.

    !!! cite "Reference"

        G. Steinebach, BIT Numerical Mathematics 63:27 (2023).
    """

    term_structure: ClassVar[Any] = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., _Interpolation]] = _Interpolation

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
        term = terms.term  # diffrax wraps every term in the direction of integration
        if not isinstance(term, AbstractDualTerm):
            raise ValueError("`Rodas5P` integrates the dual form only.")
        # Lanes that have ended go on with steps of length 0, which are thrown away: but what
        # divides by 0 there is NaN in the derivatives of the others.
        h = jnp.where(t1 > t0, t1 - t0, 1)
        g = term.image(y0[0])
        x, slope = term.response(g)
        factors = term.factorize(slope, GAMMA * h)

        stages: list[Array] = []
        images: list[Array] = []
        xs: list[Array] = []
        drifts: list[Any] = []  # of the stages, over h
        for a, c in zip(A, C, strict=True):
            x = term.x(g + _sum(a, images)) if images else x
            drift = term.drift + _sum(c, drifts)
            stage = term.solve(factors, term.velocity(x) + _sum(c, stages) / h, drift)
            drifts.append(GAMMA * drift)
            stages.append(stage)
            images.append(term.image(stage))
            xs.append(x)

        outputs = []  # increment, error, and what the interpolation needs
        for own, other in zip(_OUTPUTS, _QUADRATURE, strict=True):
            moved = jnp.asarray(_sum(other, images))
            quadrature = h * (term.change(slope, moved) + _sum(other, xs))
            outputs.append((_sum(own, stages), quadrature))
        increment, error, *inner = outputs

        # Overflow in a trial step is a rejection, not a failure.
        leaves = jax.tree.leaves((increment, error))
        good = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()
        y1 = jax.tree.map(lambda y, dy: jnp.where(good, y + dy, y), y0, increment)
        error = term.error(y1, error)
        error = jax.tree.map(lambda e: jnp.where(good, e, jnp.inf), error)
        dense_info = dict(coefficients=(y0, y1, *inner))
        return y1, error, dense_info, None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: RealScalarLike, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)
