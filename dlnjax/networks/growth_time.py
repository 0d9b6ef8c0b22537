"""The time in which a product of layers grows, and its inverse.

For `x = Π_l u_l` gradient flow conserves `u_l² − u_k²`. With `b` the smallest layer, times the
signs of the others, and `c_k > 0` by how much larger the squares of the others are,

    x = b Π_k √(b² + c_k),    db/dξ = Π_k √(b² + c_k),

so that `b` blows up after the growth time `W(b) = ∫_b^∞ da/Π_k √(a² + c_k)`, an elliptic integral
for three layers. In units of the smallest `c` (`r_k = c_k/c_1`) and with `a = √c_1 sinh p` it is
`∫ dp/Π_{k≥2} √(sinh²p + r_k)`, whose integrand is analytic within `|Im p| < π/2`. So, in these
units, `W` is a polynomial on each of a few panels of `p`; and beyond them, where `a² > 4c_k`, it is
`a^{2−L} Q(4r/a²)`, with `Q` a polynomial of `[0, 1]`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from .._loops import fori_loop

# Panels and degree. With `h` the width of a panel polynomials of degree n are off by about
# (π/h + √(1 + (π/h)²))^{−n}: layers that differ by 1e6 need `p` up to 15, so that h = 0.9.
# Measured, for these: growth times are off by 4e-15; with 12 for both by 2e-11, with 24 and 20 by
# 2e-15.
PANELS = 16
DEGREE = 16
# The inverse is tabulated, as a flow evaluates it many times: coefficients, and panels in log W for
# each factor of the integrand, since W falls as fast as these are many. `asinh b` of layers that
# differ by 1e6 is off by 1e-12.
ORDER = 12
ROWS = 16
# Newton steps to each entry of the table. Measured over 3 to 7 layers that differ by up to 1e6:
# with 2, 3, 4 it is off by 4e-7, 6e-14, 4e-15.
STEPS = 3


def _interpolation(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The Chebyshev nodes, scaled to (0, 1), and the matrix from values there to coefficients."""
    angles = (np.arange(n) + 0.5) * np.pi / n
    matrix = np.cos(np.outer(np.arange(n), angles)) * 2 / n
    matrix[0] /= 2
    return (np.cos(angles) + 1) / 2, matrix


_NODES, _COEFFICIENTS = _interpolation(DEGREE)
# The same of the integral from t to 1.
_INTEGRAL = -np.polynomial.chebyshev.chebint(_COEFFICIENTS, lbnd=1, axis=0)
# Gauss–Legendre on (0, 1): 12 points have an error of 1e-20 for singularities at ±2i.
_POINTS, _WEIGHTS = (v / 2 for v in np.polynomial.legendre.leggauss(12))
_POINTS = _POINTS + 0.5


def _chebyshev(coefficients: Array, t: Array) -> Array:
    """`Σ_k coefficients[k] T_k(t)`."""
    # T_{n+k} = 2 T_n T_k − T_{n−k}, for all k ≤ n at once: fewer operations to compile than a
    # recurrence of one term at a time.
    basis = jnp.stack([jnp.ones_like(t), t])
    while len(basis) < len(coefficients):
        basis = jnp.concatenate([basis, 2 * basis[-1:] * basis[1:] - basis[-2::-1]])
    return jnp.sum(coefficients * basis[: len(coefficients)], axis=0)


class GrowthTime(eqx.Module):
    """The growth time `W(b)` of each coordinate, and the `b` at which it is given.

    All of it is in units of the smallest `c`. Differentiable in `c`, to every order; how the panels
    are placed has no derivatives."""

    c: Float[Array, "k d"]  # ascending
    width: Float[Array, " d"]  # of a panel, in p
    edges: Float[Array, "_ d"]  # W at the ends of the panels, p = 0 first
    panels: Float[Array, "_ _ d"]  # W − W(its end), in each panel
    outer: Float[Array, "_ d"]  # Q, with as many coefficients
    unit: Float[Array, "2 d"]  # of b, and of W
    ends: Float[Array, "2 d"]  # log W at the ends of all panels
    rows: Float[Array, "_ _ d"]  # asinh b as polynomials, in panels of log W and beyond

    def __init__(self, c: Float[Array, "k d"]):
        """**Arguments:** `c`, shape `(L − 1, d)`, ascending and positive."""
        self.c = c
        self.unit = jnp.stack([jnp.sqrt(c[0]), c[0] ** ((1 - len(c)) / 2)])
        constant = lambda v: jnp.asarray(v, c.dtype)
        r = self._ratios()
        self.width = width = lax.stop_gradient(jnp.arcsinh(2 * jnp.sqrt(r[-1])) / PANELS)
        # e = 4r/b² ∈ [0, 1], and b/a ∈ [0, 1] is the variable of integration.
        share = r / (4 * r[-1:])
        e = constant(_NODES)[:, None, None, None]
        square = (constant(_POINTS) ** 2)[:, None, None]
        inverse = jnp.prod(lax.rsqrt(1 + e * square[None] * share[None, None]), axis=2)
        weights = constant(_WEIGHTS * _POINTS ** (len(c) - 2))
        values = jnp.sum(weights[None, :, None] * inverse, axis=1)
        coefficients = constant(np.pad(_COEFFICIENTS, ((0, 1), (0, 0))))
        self.outer = jnp.tensordot(coefficients, values, axes=1, precision="highest")

        places = constant(np.arange(PANELS)[:, None] + _NODES)
        density = jax.vmap(jax.vmap(self._density))(places[:, :, None] * width[None, None])
        panels = jnp.einsum("kn,pnd->pkd", constant(_INTEGRAL), density, precision="highest")
        self.panels = panels * width[None, None] / 2
        # Over a whole panel, t from −1 to 1.
        whole = jnp.einsum("k,pkd->pd", constant((-1.0) ** np.arange(DEGREE + 1)), self.panels,
                           precision="highest")  # fmt: skip
        edge = jnp.sinh(PANELS * width)
        last = edge ** (1 - len(c)) * _chebyshev(self.outer, 8 * r[-1] / edge**2 - 1)
        whole = jnp.concatenate([last[None], whole[::-1]])
        self.edges = jnp.cumsum(whole, axis=0)[::-1]

        # The inverse at nodes in log W and, beyond the panels, in e = (W/W_last)^{2/(L−2)}, which
        # vanishes as 1/b² does. There asinh b is −log W/(L−2) up to a smooth function.
        k = len(c) - 1
        first, last = self.ends = jnp.log(self.edges[jnp.asarray([0, -1], jnp.int32)])
        nodes, matrix = _interpolation(ORDER)
        places = constant((np.arange(ROWS * len(c))[:, None] + nodes) / (ROWS * len(c)))[:, :, None]
        inner = first[None, None] + (last - first)[None, None] * places
        beyond = last[None] + k / 2 * jnp.log(constant(nodes))[:, None]
        angles = jnp.concatenate(
            [
                jax.vmap(jax.vmap(self._angle))(inner),
                (jax.vmap(self._angle_beyond)(beyond) + beyond / k)[None],
            ]
        )
        rows = jnp.einsum("kn,pnd->pkd", constant(matrix), angles, precision="highest")
        self.ends, self.rows = lax.stop_gradient((self.ends, rows))

    def _ratios(self) -> Float[Array, "k d"]:
        return self.c / self.c[:1]

    def _density(self, p: Array) -> Array:
        """`−dW/dp`."""
        # A product of roots, since the root of the product may overflow in float32.
        return jnp.prod(lax.rsqrt(jnp.sinh(p)[None] ** 2 + self._ratios()[1:]), axis=0)

    def _panel(self, j: Array) -> tuple[Array, Array]:
        """`W` where panel `j` ends, and its polynomial."""
        # A sum over all panels compiles faster than a gather and, in derivatives, a scatter.
        is_here = jnp.arange(PANELS, dtype=j.dtype)[:, None] == j[None]
        pick = lambda rows, flags: jnp.sum(jnp.where(flags, rows, 0), axis=0)
        return pick(self.edges[1:], is_here), pick(self.panels, is_here[:, None])

    def _until(self, b: Array) -> Array:
        """`W(b)`, both in units of `c_1`."""
        place = jnp.arcsinh(b) / self.width
        is_outer = place > PANELS
        j = jnp.clip(jnp.floor(place), 0, PANELS - 1)
        end, polynomial = self._panel(j)
        b = jnp.where(is_outer, b, jnp.sinh(PANELS * self.width))
        # Both polynomials at once.
        places = jnp.stack([jnp.where(is_outer, 0, place - j), 4 * self._ratios()[-1] / b**2])
        inner, outer = _chebyshev(jnp.stack([polynomial, self.outer], axis=1), 2 * places - 1)
        return jnp.where(is_outer, b ** (1 - len(self.c)) * outer, end + inner)

    def _angle(self, log_w: Array) -> Array:
        """`asinh b` where `log W(b)` is this, in the panels."""
        w = jnp.exp(log_w)
        row = jnp.sum(self.edges[1:-1] >= w[None], axis=0, dtype=jnp.int32)
        end = jnp.take_along_axis(self.edges, row[None] + 1, axis=0)[0]
        begin = jnp.take_along_axis(self.edges, row[None], axis=0)[0]
        polynomial = jnp.take_along_axis(self.panels, row[None, None], axis=0)[0]
        j = row.astype(w.dtype)

        # Newton's method on `log W`, which is concave. It begins on the chord; steps from there end
        # to the right of the root, and later ones come back to it.
        def step(_, p):
            value = end + _chebyshev(polynomial, 2 * (p / self.width - j) - 1)
            return p + value * jnp.log(value / w) / self._density(p)

        chord = self.width * (j + jnp.log(begin / w) / jnp.log(begin / end))
        return fori_loop(0, STEPS, step, chord)

    def _angle_beyond(self, log_w: Array) -> Array:
        """The same beyond the panels."""
        k, edge = len(self.c) - 1, jnp.log(jnp.sinh(PANELS * self.width))

        # In `y = log b`.
        def step(_, y):
            e = jnp.exp(-2 * jnp.maximum(y, edge))
            value = _chebyshev(self.outer, 8 * self._ratios()[-1] * e - 1)
            density = jnp.prod(lax.rsqrt(1 + self._ratios() * e[None]), axis=0)
            return y + (jnp.log(value) - k * y - log_w) * value / density

        # From `Q(0)`, which is not less than Q.
        y = fori_loop(0, STEPS, step, -(log_w + jnp.log(jnp.asarray(k, log_w.dtype))) / k)
        return y + jnp.log1p(jnp.sqrt(1 + jnp.exp(-2 * y)))

    def until(self, b: Float[Array, " d"]) -> Float[Array, " d"]:
        """The growth time `W(b)` from `b ≥ 0` to infinity."""
        return self.unit[1] * self._until(b / self.unit[0])

    def total(self) -> Float[Array, " d"]:
        """`W(0)`."""
        return self.unit[1] * self.edges[0]

    def inverse(self, w: Float[Array, " d"]) -> Float[Array, " d"]:
        """The `b` with `W(b) = w`, for `w > 0`; 0 where `w` is more than `W(0)` by more than
        rounding."""
        w, total = w / self.unit[1], self.edges[0]
        is_beyond = w > (1 + jnp.finfo(w.dtype).eps ** 0.5) * total
        b = _inverse(self, jnp.where(is_beyond, total, w))
        return jnp.where(is_beyond, 0, self.unit[0] * b)


@jax.custom_jvp
def _inverse(time: GrowthTime, w: Array) -> Array:
    """The inverse of `_until`."""
    k, (first, last) = len(time.c) - 1, time.ends
    log_w, rows = jnp.log(w), len(time.rows) - 1
    is_outer = log_w < last
    place = rows * (first - log_w) / (first - last)
    row = jnp.clip(jnp.floor(place), 0, rows - 1)
    e = jnp.exp(2 / k * jnp.minimum(log_w - last, 0))
    t = 2 * jnp.where(is_outer, e, place - row) - 1
    row = jnp.where(is_outer, rows, row).astype(jnp.int32)
    polynomial = jnp.take_along_axis(time.rows, row[None, None], axis=0)[0]
    return jnp.sinh(_chebyshev(polynomial, t) - jnp.where(is_outer, log_w / k, 0))


def _jvp(primals, tangents):
    (time, w), (of_time, of_w) = primals, tangents
    b = _inverse(time, w)
    change = -_number(of_w, w)
    if not all(isinstance(v, SymbolicZero) for v in jax.tree.leaves(of_time)):
        of_time = jax.tree.map(_number, of_time, time)
        change = change + jax.jvp(lambda time: time._until(b), (time,), (of_time,))[1]
    return b, change * jnp.prod(jnp.sqrt(b[None] ** 2 + time._ratios()), axis=0)


def _number(tangent: Any, like: Array) -> Array:
    return jnp.zeros_like(like) if isinstance(tangent, SymbolicZero) else tangent


# With symbolic zeros, so that a slope in `w` costs no derivative of the table.
_inverse.defjvp(_jvp, symbolic_zeros=True)
