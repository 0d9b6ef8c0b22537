"""The Bregman projection of the initialisation, which the flow is at all times."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from .._checks import as_float, check_finite
from .._linalg import matmul
from .._problem import (
    AbstractProblem,
    LeastSquares,
    Quadratic,
    check_quadratic,
    validity,
    without_decay,
)
from .._results import RESULTS, first_failure, raise_on_failure
from ..networks import AbstractDualNetwork
from .end_point import EndPoint, end_point


def bregman_projection(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    x: Real[ArrayLike, " d"],
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 256,
    throw: bool = True,
) -> EndPoint:
    """Of all that the network can be with the image `Xx`, what is closest to the initialisation.

    Closest in the Bregman divergence of the network's potential from `q(0)`, among `q ≥ 0` with
    `Fq = Xx`: at depth 2, `Σ q log(q/q(0)) − q + q(0)`. Without weight decay the flow is its own
    projection, at all times: `bregman_projection(network, problem, flow.x[k])` is `flow.x[k]`.

    It is the `end_point` of a problem that `x` solves, with its accuracy: `rtol` bounds the
    residual of the image, beside which small entries may have few digits.

    **Arguments:**

    - `network`: its weights are the shape of the initialisation.
    - `problem`: a `LeastSquares` or `Quadratic` problem, of which only `X` or `M` plays a role.
    - `x`: shape `(d,)`. (For `USquared`, with an image that some `x ≥ 0` has too; otherwise the
        image is projected as well, as in `end_point`.)
    - `eps` or `log_eps`, `rtol`, `max_steps`, `throw`: as in `end_point`.

    **Returns:** an `EndPoint`; its `dual` is `Xᵀν` with `w = w(0) ∓ Xᵀν`.

    **Raises:** as `end_point`; `ValueError` for an `x` of another shape, or not finite.

    !!! cite "Reference"

        [B25] arXiv 2509.18766, Lemma 4.4.
    """
    check_quadratic(problem)
    x = as_float(x, "x", problem.r.dtype)
    if x.shape != problem.r.shape:
        raise ValueError(
            f"`x` must have shape {problem.r.shape}, one entry per coordinate of the problem, got "
            f"{x.shape}. Use `jax.vmap` for several."
        )
    check_finite(x, "x")
    solved = _solved_by(without_decay(problem), x)
    end = end_point(
        network,
        solved,
        eps=eps,
        log_eps=log_eps,
        rtol=rtol,
        max_steps=max_steps,
        throw=False,
    )
    # The problem that `x` solves does not have all that may be wrong with the one that was given.
    result = first_failure(validity(problem), end.result)
    good = result == RESULTS.successful
    x, dual = (jnp.where(good, v, jnp.nan) for v in (end.x, end.dual))
    return raise_on_failure(EndPoint(x, dual, result, end.stats), result, throw)


def _solved_by(problem: AbstractProblem, x: Float[Array, " d"]) -> AbstractProblem:
    """With the same `M`, and `x` a minimiser of the loss."""
    if isinstance(problem, LeastSquares):
        return eqx.tree_at(lambda p: p.y, problem, matmul(problem.X, x))
    assert isinstance(problem, Quadratic)
    r = problem.matvec(x)
    return eqx.tree_at(lambda p: (p.linear, p.constant), problem, (r, (x * r).sum() / 2))
