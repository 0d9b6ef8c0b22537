"""The Bregman projection of the initialisation: the point of the flow, at any time.

Without weight decay `w(s) = w(0) − Fᵀν(s)` at all times: this is the optimality condition of the
projection of `q(0)` onto `{q ≥ 0 : Fq = Fq(s)}`. So the projection of a given image `Xx` is an end
point, that of the problem whose response is `Xx`.
"""

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
from .end_point import end_point
from .point import EndPoint


def bregman_projection(
    network: AbstractDualNetwork,
    problem: AbstractProblem,
    x: Real[ArrayLike, " d"],
    *,
    eps: ArrayLike | None = None,
    log_eps: ArrayLike | None = None,
    rtol: Real[ArrayLike, ""] | None = None,
    max_steps: int = 512,
    throw: bool = True,
) -> EndPoint:
    """The Bregman projection of the initialisation `q(0)` onto `{q ≥ 0 : Fq = Xx}`, as a linear
    model `q` or `q⁺ − q⁻`. `F = X` for `USquared` and `[X, −X]` for signed networks.

    The divergence is that of the network's potential: at depth 2, `Σ q log(q/q(0)) − q + q(0)`.
    Without weight decay the flow is at all times the projection onto its own image:
    `bregman_projection(network, problem, flow.x[k])` is `flow.x[k]`.

    It is the `end_point` of a problem that `x` solves, and as accurate: `rtol` bounds the residual
    of the image relative to the largest entry, so that much smaller entries may have few digits.

    **Arguments:**

    - `network`: its weights are the shape of the initialisation.
    - `problem`: a `LeastSquares` or `Quadratic` problem. Only its `X` or `M` matters, not `y`, `r`
        or weight decay.
    - `x`: shape `(d,)`. For `USquared` some `x' ≥ 0` should have the same image; otherwise the
        image is replaced by the closest one that some `x' ≥ 0` has, as in `end_point`.
    - `eps` or `log_eps`, `rtol`, `max_steps`, `throw`: as in `end_point`.

    **Returns:** an `EndPoint`; its `dual` is `Xᵀν` with `w = w(0) ∓ Xᵀν`.

    **Raises:** as `end_point`; `ValueError` for an `x` of another shape, or not finite.

    !!! example

        ```python
        network = dln.UV(jnp.ones(2), jnp.zeros(2))
        problem = dln.LeastSquares(jnp.array([[1.0, 2.0]]), jnp.array([0.0]))
        point = dln.bregman_projection(network, problem, jnp.array([1.0, 1.0]), eps=1e-3)
        point.x  # (0.0193, 1.4904): also has x₁ + 2x₂ = 3, and is closer to q(0)
        ```

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
    # `solved` has a response of its own, so that a bad `y`, `r` or weight decay of the given
    # problem is not seen by `end_point`.
    result = first_failure(validity(problem), end.result)
    good = result == RESULTS.successful
    x, dual = (jnp.where(good, v, jnp.nan) for v in (end.x, end.dual))
    return raise_on_failure(EndPoint(x, dual, result, end.stats), result, throw)


def _solved_by(problem: AbstractProblem, x: Float[Array, " d"]) -> AbstractProblem:
    """The problem with the same `M` of which `x` is a minimiser: `y = Xx`, or `r = Mx`."""
    if isinstance(problem, LeastSquares):
        return eqx.tree_at(lambda p: p.y, problem, matmul(problem.X, x))
    assert isinstance(problem, Quadratic)
    # With c = ½⟨x, Mx⟩ the least loss is 0, as it is for `y = Xx`.
    r = problem.matvec(x)
    return eqx.tree_at(lambda p: (p.linear, p.constant), problem, (r, (x * r).sum() / 2))
