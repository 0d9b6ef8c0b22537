"""Rodas5P, a Rosenbrock method of order 5(4), for the dual form of the flow."""

from collections.abc import Callable
from typing import ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._dual import AbstractDualTerm
from ._term import RealScalarLike

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
NODES = [
    0,
    0.6358126895828704,
    0.4095798393397535,
    0.9769306725060716,
    0.4288403609558664,
    1,
    1,
    1,
]
TIME = [
    0.21193756319429014,
    -0.42387512638858027,
    -0.3384627126235924,
    1.8046452872882734,
    2.325825639765069,
    0,
    0,
    0,
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


def _combine(base: PyTree[Array], coefficients, stages: list[PyTree[Array]]) -> PyTree[Array]:
    return jax.tree.map(
        lambda b, *ks: b + sum(c * k for c, k in zip(coefficients, ks, strict=True)),
        base,
        *stages,
    )


class _Interpolation(diffrax.AbstractLocalInterpolation):
    t0: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: RealScalarLike  # pyright: ignore[reportIncompatibleVariableOverride]
    y0: PyTree[Array]
    y1: PyTree[Array]
    k: PyTree[Array]  # leaves (3, ...)

    def evaluate(self, t0, t1=None, left=True):
        if t1 is not None:
            later, earlier = self.evaluate(t1), self.evaluate(t0)
            return jax.tree.map(lambda a, b: a - b, later, earlier)
        h = self.t1 - self.t0
        theta = jnp.where(h == 0, 0, (t0 - self.t0) / jnp.where(h == 0, 1, h))

        def at(y0, y1, k):
            inner = k[0] + theta * (k[1] + theta * k[2])
            return (1 - theta) * y0 + theta * (y1 + (1 - theta) * inner)

        return jax.tree.map(at, self.y0, self.y1, self.k)


class Rodas5P(diffrax.AbstractAdaptiveSolver):
    """Rodas5P: 8 stages, order 5 with an embedded 4, L-stable, stiffly accurate, with a
    continuous extension of order 4. One factorisation a step.

    It integrates the dual form only: the Jacobian, its factorisation and the derivative in
    time come from the term.

    !!! cite "Reference"

        G. Steinebach, BIT Numerical Mathematics 63:27 (2023).
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., _Interpolation]] = _Interpolation

    def order(self, terms):
        return 5

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        term = terms.term  # diffrax wraps every term in the direction of integration
        if not isinstance(term, AbstractDualTerm):
            raise ValueError("`Rodas5P` integrates the dual form only.")
        h = t1 - t0
        time_derivative, jacobian = term.linearise(t0, y0)
        factors = term.factorise(jacobian, GAMMA * h)

        stages: list[PyTree[Array]] = []
        for a, c, node, time in zip(A, C, NODES, TIME, strict=True):
            y = _combine(y0, a, stages)
            field = term.vf(t0 + node * h, y, args)
            rhs = jax.tree.map(lambda f, dt, time=time: f + time * h * dt, field, time_derivative)
            rhs = _combine(rhs, [value / h for value in c], stages)
            stages.append(term.solve(factors, rhs))

        y1 = _combine(y0, [*A[-1], 1.0], stages)
        error = stages[-1]
        # Overflow in a trial step is a rejection, not a failure.
        leaves = jax.tree.leaves((y1, error))
        good = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()
        y1 = jax.tree.map(lambda new, old: jnp.where(good, new, old), y1, y0)
        error = jax.tree.map(lambda e: jnp.where(good, jnp.abs(e), jnp.inf), error)
        weights = jnp.asarray(H, jnp.result_type(h))
        k = jax.tree.map(lambda *ks: jnp.tensordot(weights, jnp.stack(ks), axes=1), *stages)
        dense_info = dict(y0=y0, y1=y1, k=k)
        return y1, error, dense_info, None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)
