"""The flow with momentum, on the logarithms of the weights.

A weight `p` of a network of depth 2 obeys `m p̈ + ṗ = c a p`, with `m` the inertia, and `a` and `c`
of `depth2.py`. With `c f = d log |p|/dt`, so that `f = −dw/ds`, this is

    dw/ds = −f,    df/ds = (a − f − m c f²)/(2 m c/log(1/ε)),    dz/ds = x,

from `f = 0`: weights start at rest. As `ε → 0`, `f` rests at a root, `f = ψ(a)`,

    ψ(a) = (√(1 + 4 m c a) − 1)/(2 m c).

There is none where `4 m c a < −1`: there `p` is a damped oscillator. It passes through 0, where `w`
and `f` have a pole.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..._problem import AbstractProblem
from ..._results import RESULTS, first_failure
from ...networks import AbstractDualNetwork
from ...networks.signs import sides, signed
from ..depth2 import weight_rate
from ..link import link_of
from ..link_base import AbstractLink
from .base import AbstractFlowTerm, column_scale, dual_of, size_of_x
from .difference import DifferenceNorm, excess, is_held


class MomentumTerm(AbstractFlowTerm):
    """State `((w, f/φ), z/ζ)`, of shapes `(signs, d)` and `(d,)`."""

    problem: AbstractProblem
    link: AbstractLink
    is_inertia: Bool[Array, ""]  # whether m is positive and finite
    pull: Float[Array, ""]  # m c
    relaxation: Float[Array, ""]  # 2 m c/log(1/ε)
    unit: Float[Array, ""]  # φ, the largest correlation: w moves by 1 in about the time 1/φ
    zeta: Float[Array, ""]  # ζ
    excess: Float[Array, ""]  # of the start (`difference.py`)

    def __init__(
        self,
        network: AbstractDualNetwork,
        problem: AbstractProblem,
        log_eps: Float[Array, ""],
        inertia: Float[Array, ""],
    ):
        self.problem = problem
        self.is_inertia = (inertia > 0) & jnp.isfinite(inertia)
        # Derivatives through NaN would be NaN, also where the lane is not asked for.
        inertia = jnp.where(self.is_inertia, inertia, 1)
        size = size_of_x(problem)
        self.link = link = link_of(network, log_eps, size)
        slope = link.slope(link.start, link.q(link.start))
        self.excess = excess(slope, jnp.where(jnp.max(size) > 0, jnp.max(size), jnp.inf))
        self.pull = inertia * weight_rate(network, log_eps)
        self.relaxation = -2 * self.pull / log_eps
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(problem.r)))
        self.unit = jnp.where(largest > 0, largest, 1)
        self.zeta = 1 / column_scale(problem) ** 2

    def initial(self):
        w = self.link.start
        return (w, jnp.zeros_like(w)), jnp.zeros_like(w[0])

    def size(self):
        return jnp.ones_like(self.zeta)

    def norm(self):
        return DifferenceNorm(self.excess)

    def threshold(self):
        return jnp.ones_like(self.zeta)

    def validity(self):
        return first_failure(
            self.link.validity(),
            (is_held(10 * self.excess), RESULTS.start_too_large),
            (self.is_inertia, RESULTS.invalid_inertia),
        )

    def vf(self, t, y, args):
        (w, f), _ = y
        x, f = signed(self.link.q(w)), self.unit * f
        a = -sides(self.problem.gradient(x), w) - self.problem.weight_decay
        df = (a - f - self.pull * f**2) / self.relaxation
        return (-f, df / self.unit), x / self.zeta

    def read(self, s, state):
        (w, _), z = state
        z = self.zeta * z
        return signed(self.link.read(w)), z, dual_of(self.problem, s, z)

    def is_in_range(self, x):
        return self.link.is_in_range(x)

    def cause(self, state, result):
        # Beyond −1/(m c), from where no `a ≤ 0` leads back. Steps to the pole shrink until they are
        # below the rounding of `s`.
        (_, f), _ = state
        is_at_pole = jnp.any(self.pull * self.unit * f < -1)
        failed = result != RESULTS.successful
        return RESULTS.where(failed & is_at_pole, RESULTS.momentum_oscillates, result)
