"""Hoff, *Lasso, fractional norm and structured sparse estimation using a Hadamard product
parametrization*, arXiv 1611.00040.

Claim: with weight decay `λ/2 (‖u‖² + ‖v‖²)` on `u∘v`, training reaches the lasso at `λ`, with
`|u| = |v|`. Measured on runs of `train`, against `lasso` and the optimality conditions.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import UV, LeastSquares, lasso, train
from .._linalg import svd
from .claim import Claim, Measurement

N, D = 20, 10
# Relative to ‖Xᵀy‖_∞, from which on the lasso is 0: some coordinates are active, some are not.
DECAYS = (0.1, 0.3)
# An inactive weight decays like e^{−mλt}, where m is its margin 1 − |Xᵀ(y − Xx)|/λ. With momentum
# 0.9 and steps of 0.3/‖X‖², 40 000 steps are a time t above 2200, and at m = 0.03 weights decay to
# e^{−38} = 3e-17 on these instances: rounding. At m = 3e-4 no digit would be gained.
STEPS = 40_000
MARGIN = 0.03


@eqx.filter_jit
def _ends(
    X: Float[Array, "m n d"], y: Float[Array, "m n"], decays: Float[Array, " k"]
) -> Float[Array, "m k 4"]:
    """Of each run: the violation of the lasso's optimality conditions in units of `‖Xᵀy‖_∞`; the
    largest `||u| − |v||`, relative to the largest weight; the distance to `lasso`, relative to the
    largest entry; and the least margin `1 − |Xᵀ(y − Xx)|/λ` of an inactive coordinate."""

    def one(X, y, decay):
        largest = jnp.max(jnp.abs(y @ X))
        problem = LeastSquares(X, y, weight_decay=decay * largest)
        optimizer = optax.sgd(0.3 / svd(X)[1][0] ** 2, momentum=0.9)
        network = UV(jnp.ones(D), jnp.zeros(D))
        run = train(network, problem, optimizer, eps=1e-2, steps=STEPS, throw=False)
        net, x = run.network, run.x[-1]
        assert isinstance(net, UV)
        u, v, size = jnp.abs(net.u[-1]), jnp.abs(net.v[-1]), jnp.max(jnp.abs(x))
        c, bound = -problem.gradient(x), problem.weight_decay
        # An inactive coordinate becomes small but never 0: instead of asking `|c| = λ` wherever
        # `x ≠ 0`, measure the complementarity `λ|x| − cx`, what it adds to the duality gap.
        excess = jnp.maximum(jnp.abs(c) - bound, 0) / largest
        slack = (bound * jnp.abs(x) - c * x) / (largest * size)
        point = lasso(problem, jnp.inf, gap_tol=1e-14, throw=False)
        margin = 1 - jnp.abs(problem.gradient(point.x)) / bound
        return jnp.stack(
            [
                jnp.max(jnp.maximum(excess, jnp.abs(slack))),
                jnp.max(jnp.abs(u - v)) / jnp.max(u),
                jnp.max(jnp.abs(x - point.x)) / size,
                jnp.min(jnp.where(point.x == 0, margin, 1)),
            ]
        )

    over_decays = jax.vmap(one, in_axes=(None, None, 0))
    return jax.vmap(over_decays, in_axes=(0, 0, None))(X, y, decays)


def decay(instances: int = 4) -> list[Measurement]:
    """Hoff17-decay, by heavy ball from `u₀ = 0.1, v₀ = 0`, on normal instances 20 × 10."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(instances, N, D)), rng.normal(size=(instances, N))
    found = np.asarray(_ends(jnp.asarray(X), jnp.asarray(y), jnp.asarray(DECAYS))).reshape(-1, 4)
    # Leave out near ties, which no number of steps resolves. NaN, which fails, if all are.
    clear = found[found[:, 3] > MARGIN]
    violation, imbalance, away, _ = np.max(clear, axis=0, initial=0 if len(clear) else np.nan)
    of = f"{len(clear)} of {len(found)} (instance, λ) without near ties, {STEPS} steps"
    return [
        Measurement("Hoff17-decay", f"{what}, {of}", 0.0, float(value), tolerance, why)
        for what, value, tolerance, why in (
            ("violation of the lasso's conditions relative to Xᵀy", violation, 1e-14, "rounding"),
            ("largest ||u| − |v|| relative to |u|", imbalance, 1e-14, "rounding"),
            ("distance to `lasso` relative to |x|", away, 1e-7, "the root of the gap there, 1e-14"),
        )
    ]


CLAIMS = [
    Claim("Hoff17-decay", "weight decay on u∘v reaches the lasso at λ, with |u| = |v|", decay),
]
