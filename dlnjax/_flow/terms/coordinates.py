"""The state space of `w`: for `d ≤ n`, every `Quadratic`, weight decay, and every link.

An active `w` stays near 0, and at depth above 2 far below the rounding of `w(0)`, while `sr − Mz`
and `λs` grow with `s`. So `w` itself is the state, as interior-point methods keep their slacks: a
step adds an increment that a linear system in units of `w` determines, and loses no digits however
small `w` or large `s` is. With `ρ = −∇ℓ(x)`, which is `r − Mx` for the square,

    dw^±/ds = ∓ρ + λ,    dz/ds = x.

A stage of a step solves `(I/(γh) − J)U = b` for two rows `U^±`, and their mean `S` is known: it is
the stage of the field `λ` alone, without `ρ`. (Computed from `b⁺ + b⁻` it would have the rounding
of `ρ`, which adds up to that of `sr`.) So each coordinate is solved for one sign `τ` only, and the
other is `2S − U^τ`. `τ` is the sign of the larger slope `E^τ = −φ'(w^τ)`, the active one if there
is one: its `U^τ` is small, and would be lost in a difference.

Where `q⁺` and `q⁻` nearly are equal, both are as large as the start, which may be large itself:
then `U^τ` is `S` but for a rounding of it. With `DualForm(large_start=True)` the state has a third
row `g = Xᵀν` (`../link_base.py`), whose stage is `−P`, and there the unknown of the same system is
`P = (U⁺ − U⁻)/2` instead of `TU^τ = P + TS`.

With another loss `M` is its Hessian `XᵀHX` at the start of the step. Let `T` be the diagonal matrix
of the signs `τ`, `E` that of the sum of both slopes, and `E'` that of the smaller slope. Then the
change of `x` is `−T(EU^τ − 2E'S)`, and

    (I + γhME) TU^τ = T γh b^τ + 2γhM T E'S,

which `systems.py` solves.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..._linalg import matmul
from ..._problem import Schedule, total_decay
from ...networks.signs import sides, signed
from ..link_base import AbstractLink
from .base import AbstractDualTerm
from .difference import (
    IN_X,
    error_of_average,
    error_of_difference,
    excess,
    is_balanced,
    validity_of_start,
)
from .fit import AbstractFit
from .systems import DenseSystem, RowSystem, dense_size, in_rows


class CoordinateTerm(AbstractDualTerm):
    """State `(w, σ²z/ζ)`, of shapes `(signs, d)` and `(d,)`; its image is `w` itself. Two signs may
    have a third row (`link_base.py`)."""

    M: Float[Array, "d d"] | None  # M/σ²; None if it depends on x, or is not needed
    fit: AbstractFit | None  # None where the velocity goes through M
    r: Float[Array, " d"]
    link: AbstractLink
    # λ, with a `Schedule` that at the time in question; None if it is known to be 0.
    weight_decay: Float[Array, ""] | None
    varies: Schedule | None
    scale: Float[Array, ""]
    zeta: Float[Array, ""]
    largest: Float[Array, ""]  # entry of σ²x, at most
    excess: Float[Array, ""]  # of the start (`difference.py`)

    def schedule(self):
        return self.varies

    def at(self, s):
        if self.varies is None:
            return self
        return dataclasses.replace(self, weight_decay=self.varies(s))

    def initial(self):
        return self.link.rows, jnp.zeros_like(self.r)

    def size(self):
        return jnp.max(self.link.unit)

    def threshold(self):
        return jnp.min(self.link.unit) / self.excess

    def validity(self):
        return validity_of_start(self.link, self.excess)

    def x(self, g):
        return self.scale**2 * self.link.x(g)

    def response(self, g):
        x, slope = self.link.response(g)
        return self.scale**2 * x, self.scale**2 * slope

    def change(self, slope, image):
        if len(slope) < 3:
            return -signed(slope * image)
        mean = (image[0] + image[1]) / 2
        near = (slope[0] + slope[1]) * image[2] - slope[2] * mean
        return jnp.where(is_balanced(slope), near, -signed(slope[:2] * image[:2]))

    def rounding(self, slope, g):
        # Of both signs: where `q⁺` and `q⁻` cancel in `x`, their rounding does not.
        signs = len(self.link.start)
        terms = slope[:signs] * jnp.abs(g[:signs]) + self.scale**2 * self.link.q(g[:signs])
        moved = jnp.sum(terms, axis=0)
        if len(slope) > signs:  # there `x` keeps the digits of `Xᵀν` (`../link_base.py`)
            near = jnp.sum(slope[:2], axis=0) * jnp.abs(g[2])
            near = near + jnp.abs(slope[2]) * jnp.max(jnp.abs(g), axis=0)
            moved = jnp.where(is_balanced(slope), near, moved)
        return jnp.finfo(g.dtype).eps * moved

    def image(self, f):
        return f

    def is_in_range(self, x):
        return self.link.is_in_range(x)

    def velocity(self, x):
        if self.fit is None:
            rest = self.r - matmul(self._hessian(x), x)
        else:
            # Through the residual: its rounding is then that of some y, so that w moves within the
            # range of Xᵀ and its components in the null space of X stay conserved.
            rest = matmul(self.fit.residual(x), self.fit.X)
        velocity = sides(-rest, self.link.start)
        velocity = velocity if self.weight_decay is None else velocity + self.weight_decay
        has_g = self.link.has_third_row()
        return jnp.concatenate([velocity, rest[None]]) if has_g else velocity

    def _hessian(self, x: Array) -> Array:
        if self.M is not None:
            return self.M
        assert self.fit is not None
        curvature = self.fit.curvature(x)
        assert curvature is not None
        rows = curvature.root_transposed(self.fit.X)
        return matmul(rows.T, rows)

    def factorize(self, x, slope, gamma_h):
        both = jnp.sum(slope[:2], axis=0)
        if self.fit is not None and in_rows(self.fit, self.link):
            return RowSystem(self.fit, x, jnp.zeros_like(both), both, gamma_h), slope, gamma_h
        return DenseSystem(self._hessian(x), both, gamma_h), slope, gamma_h

    @property
    def drift(self):
        return 0.0 if self.weight_decay is None else self.weight_decay

    def solve(self, factors, rhs, drift):
        system, slope, gamma_h = factors
        b = gamma_h * rhs
        if len(b) == 1:
            return system.solve(b[0])[None]
        if self.weight_decay is None:
            u = system.solve(b[0] if len(b) == 2 else -b[2])
            return jnp.stack([u, -u, -u][: len(b)])
        half = gamma_h * drift
        twice, asked, shift = unknowns(slope, b, half)
        return stages(system.solve(asked, twice * half), half, shift)[: len(b)]

    @property
    def matrix_size(self):
        if self.fit is not None and in_rows(self.fit, self.link):
            return dense_size(self.fit)
        return len(self.r)

    def error(self, state, error):
        # The larger of the error of w, in its unit, and `IN_X` times the error that it causes in x,
        # relative to x + max |r|/σ².
        signs = len(self.link.start)
        w, in_w, (z, in_z) = state[0][:signs], error[0][:signs], (state[1], error[1])
        q, other = (self.scale**2 * self.link.q(v) for v in (w, w - in_w))
        largest = jnp.max(jnp.abs(self.r))
        in_x = IN_X * jnp.abs(q - other) / (jnp.where(largest > 0, largest, 1) + q)
        in_w = jnp.maximum(jnp.abs(in_w) / self.link.unit, in_x)
        if len(state[0]) == signs:
            return self.size() * self.excess * in_w, error_of_average(z, in_z, self.excess)
        x, slope = self.response(state[0])
        in_h = error_of_difference(slope, x, error[0][2], self.largest)
        in_w = jnp.concatenate([in_w, in_h[None]])
        return self.size() * in_w, error_of_average(
            z, in_z, excess(slope * self.size(), self.largest)
        )

    def read(self, s, state):
        (w, z), start = state, self.link.start
        moved = start - w[: len(start)]
        if self.weight_decay is not None:
            decay = self.weight_decay if self.varies is None else self.varies
            moved = moved + total_decay(decay, s)
        # w(0) − w is less accurate for the sign with the larger w(0).
        dual = moved[0]
        if len(start) == 2:
            dual = jnp.where(start[0] <= start[1], dual, -moved[1])
        if len(w) == 3:
            _, slope = self.response(w)
            dual = jnp.where(is_balanced(slope), w[2], dual)
        return self.link.x(w, is_output=True), self.zeta * z / self.scale**2, dual

    def is_consistent(self, state):
        return self.link.is_consistent(state[0][: len(self.link.start)])


def unknowns(
    slope: Float[Array, "rows d"], b: Float[Array, "rows d"], half: Array
) -> tuple[Array, Array, Array]:
    """`2TE'`, `γhTb^τ` and `TS`, given `S = half` and `b` times `γh`; where `q⁺` and `q⁻` nearly
    are equal `E⁻ − E⁺`, `γh(b⁺ − b⁻)/2` and 0."""
    is_plus = slope[0] >= slope[1]
    twice = 2 * jnp.where(is_plus, slope[1], -slope[0])
    asked = jnp.where(is_plus, b[0], -b[1])
    shift = jnp.where(is_plus, half, -half)
    if len(slope) < 3:
        return twice, asked, shift
    is_near = is_balanced(slope)
    return (
        jnp.where(is_near, -slope[2], twice),
        jnp.where(is_near, -b[2], asked),
        jnp.where(is_near, 0, shift),
    )


def stages(u: Float[Array, " d"], half: Array, shift: Float[Array, " d"]) -> Float[Array, "3 d"]:
    """`U⁺`, `U⁻` and `−P`, given `u = P + shift`."""
    # Each in one subtraction: an active U^τ is u, not P + S.
    return jnp.stack([half - shift + u, half + shift - u, shift - u])
