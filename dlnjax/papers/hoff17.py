"""Hoff, *Lasso, fractional norm and structured sparse estimation using a Hadamard product
parametrization*, arXiv 1611.00040."""

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
DECAYS = (0.1, 0.3)  # relative to ‖Xᵀy‖_∞, above which the lasso is 0
STEPS = 40_000
MARGIN = 0.03


@eqx.filter_jit
def _ends(
    X: Float[Array, "m n d"], y: Float[Array, "m n"], decays: Float[Array, " k"]
) -> Float[Array, "m k 4"]:
    """The violation of the lasso's conditions in units of `‖Xᵀy‖_∞`; the largest `||u| − |v||` and
    the distance to `lasso`, relative to the largest weight and entry; and the least
    `1 − |Xᵀ(y − Xx)|/λ` of an inactive coordinate."""

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
        # An inactive coordinate decays without becoming 0: in what it adds to the objective.
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
    # An inactive coordinate decays at a rate of its margin: of near ties no number of steps is
    # enough for digits.
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
