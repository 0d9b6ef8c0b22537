"""Even, Pesme, Gunasekar & Flammarion, *(S)GD over Diagonal Linear Networks*, arXiv 2302.08982.

Claim (Theorem 1): gradient descent and SGD on `u∘v` end, at any step size, where gradient flow from
`(α_∞, β̃₀)` ends. Measured on runs of `train` by `effective_initialization`, and by `end_point` from
there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import (
    UV,
    LeastSquares,
    effective_initialization,
    end_point,
    train,
)
from .._linalg import svd
from .claim import Claim, Measurement

# Noiseless sparse regression: single-sample SGD at a constant step size converges only where all
# samples can be fitted.
N, D, ACTIVE = 5, 20, 3
# A large initialisation: at small ε all end points are near the minimum 1-norm, and that the steps
# shift the problem could hardly be seen.
EPS = 0.2
# Step sizes relative to 1/‖X‖², large ones, since gradient flow is the limit at 0. SGD multiplies
# the gradient of a row by n = 5, and takes smaller ones.
GD, SGD = (0.4, 0.8, 1.5), (0.1, 0.2, 0.5)
# Until the gradient is rounding: `primal_residual` measures that.
STEPS = 10_000


@eqx.filter_jit
def _residuals(
    X: Float[Array, "m n d"], y: Float[Array, "m n"], sizes: Float[Array, " k"], batch: int | None
) -> Float[Array, "m k 4"]:
    """The residuals of the dual and of the primal, and the distances of the trained point to the
    ends of gradient flow from the effective initialisation and from the initialisation itself,
    relative to the point."""

    def one(X, y, index, size):
        problem = LeastSquares(X, y)
        network = UV(jnp.ones(D), jnp.zeros(D))
        optimizer = optax.sgd(size / svd(X)[1][0] ** 2)
        key = jr.fold_in(jr.key(0), index)
        run = train(
            network,
            problem,
            optimizer,
            eps=EPS,
            steps=STEPS,
            batch_size=batch,
            key=key,
            throw=False,
        )
        found = effective_initialization(problem, run)
        end = lambda net: end_point(net, problem, eps=EPS, throw=False).x
        x = run.x[-1]
        away = lambda net: jnp.max(jnp.abs(end(net) - x)) / jnp.max(jnp.abs(x))
        return jnp.stack(
            [found.dual_residual, found.primal_residual, away(found.network), away(network)]
        )

    over_sizes = jax.vmap(one, in_axes=(None, None, None, 0))
    return jax.vmap(over_sizes, in_axes=(0, 0, 0, None))(X, y, jnp.arange(X.shape[0]), sizes)


def steps(instances: int = 4) -> list[Measurement]:
    """EPGF23-steps, on noiseless sparse instances 5 × 20, from `u₀ = √ε, v₀ = 0`."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(instances, N, D))
    truth = rng.choice([-1.0, 1.0], (instances, ACTIVE)) * rng.uniform(0.5, 2, (instances, ACTIVE))
    y = np.einsum("mnk,mk->mn", X[:, :, :ACTIVE], truth)
    rows = []
    for name, batch, sizes in (("GD", None, GD), ("single-sample SGD", 1, SGD)):
        found = np.asarray(_residuals(jnp.asarray(X), jnp.asarray(y), jnp.asarray(sizes), batch))
        dual, primal, effective, _ = np.max(found, axis=(0, 1))
        moved = np.min(found[:, :, 3])
        of = f"{name}, {instances} instances × {len(sizes)} step sizes, {STEPS} steps"
        rows += [
            Measurement(
                "EPGF23-steps",
                f"largest part of the dual off the range of Xᵀ, {of}",
                0.0,
                float(dual),
                1e-10,
                "as stated: rounding of the steps",
            ),
            Measurement(
                "EPGF23-steps",
                f"largest gradient relative to Xᵀy, {of}",
                0.0,
                float(primal),
                1e-12,
                "rounding: the steps have converged",
            ),
            Measurement(
                "EPGF23-steps",
                f"distance to the end of gradient flow from α_∞, β̃₀, {of}",
                0.0,
                float(effective),
                1e-10,
                "as stated for the dual, of which the point is a function",
            ),
            Measurement(
                "EPGF23-steps",
                f"least distance to the end of gradient flow from α, 0 (as −distance), {of}",
                -1e-4,
                -float(moved),
                0.0,
                "the steps do change the problem: at no step size is the claim empty",
                "at most",
            ),
        ]
    return rows


CLAIMS = [
    Claim(
        "EPGF23-steps", "GD and SGD at any step size end at a shifted potential's minimiser", steps
    ),
]
