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

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._loops import fori_loop

# Panels and degree. With `h` the width of a panel polynomials of degree n are off by about
# (π/h + √(1 + (π/h)²))^{−n}: layers that differ by 1e6 need `p` up to 15, so that h = 0.9.
# Measured, for these: growth times are off by 4e-15; with 12 for both by 2e-11, with 24 and 20 by
# 2e-15.
PANELS = 16
DEGREE = 16
# Newton steps of the inverse. Measured over 3 to 7 layers that differ by up to 1e6: with 2, 3, 4 it
# is off by 4e-7, 6e-14, 4e-15.
STEPS = 4

_ANGLES = (np.arange(DEGREE) + 0.5) * np.pi / DEGREE
_NODES = np.cos(_ANGLES)  # of Chebyshev, in (−1, 1)
# From values at the nodes to coefficients of Chebyshev polynomials.
_COEFFICIENTS = np.cos(np.outer(np.arange(DEGREE), _ANGLES)) * 2 / DEGREE
_COEFFICIENTS[0] /= 2
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

    def __init__(self, c: Float[Array, "k d"]):
        """**Arguments:** `c`, shape `(L − 1, d)`, ascending and positive."""
        self.c = c
        constant = lambda v: jnp.asarray(v, c.dtype)
        r = self._ratios()
        self.width = width = lax.stop_gradient(jnp.arcsinh(2 * jnp.sqrt(r[-1])) / PANELS)
        # e = 4r/b² ∈ [0, 1], and b/a ∈ [0, 1] is the variable of integration.
        share = r / (4 * r[-1:])
        e = constant((_NODES + 1) / 2)[:, None, None, None]
        square = (constant(_POINTS) ** 2)[:, None, None]
        inverse = jnp.prod(lax.rsqrt(1 + e * square[None] * share[None, None]), axis=2)
        weights = constant(_WEIGHTS * _POINTS ** (len(c) - 2))
        values = jnp.sum(weights[None, :, None] * inverse, axis=1)
        coefficients = constant(np.pad(_COEFFICIENTS, ((0, 1), (0, 0))))
        self.outer = jnp.tensordot(coefficients, values, axes=1, precision="highest")

        places = constant(np.arange(PANELS)[:, None] + (_NODES + 1) / 2)
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

    def _ratios(self) -> Float[Array, "k d"]:
        return self.c / self.c[:1]

    def _unit(self) -> Float[Array, " d"]:
        """The unit of `W`, for `b` in units of `√c_1`."""
        return self.c[0] ** ((1 - len(self.c)) / 2)

    def _density(self, p: Array) -> Array:
        """`−dW/dp`."""
        # A product of roots, since the root of the product may overflow in float32.
        return jnp.prod(lax.rsqrt(jnp.sinh(p)[None] ** 2 + self._ratios()[1:]), axis=0)

    def _values(
        self, polynomial: Array, place: Array, inverse_square: Array
    ) -> tuple[Array, Array]:
        """The polynomial of a panel at this place in it, in `[0, 1]`; and `Q` at this `1/b²`."""
        e = 4 * self._ratios()[-1] * inverse_square
        both = jnp.stack([polynomial, self.outer], axis=1)
        inner, outer = _chebyshev(both, 2 * jnp.stack([place, e]) - 1)
        return inner, outer

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
        inner, outer = self._values(polynomial, jnp.where(is_outer, 0, place - j), 1 / b**2)
        return jnp.where(is_outer, b ** (1 - len(self.c)) * outer, end + inner)

    def until(self, b: Float[Array, " d"]) -> Float[Array, " d"]:
        """The growth time `W(b)` from `b ≥ 0` to infinity."""
        return self._unit() * self._until(b / jnp.sqrt(self.c[0]))

    def total(self) -> Float[Array, " d"]:
        """`W(0)`."""
        return self._unit() * self.edges[0]

    def inverse(self, w: Float[Array, " d"]) -> Float[Array, " d"]:
        """The `b` with `W(b) = w`, for `w > 0`; 0 where `w` is more than `W(0)` by more than
        rounding."""
        w, total = w / self._unit(), self.edges[0]
        is_beyond = w > (1 + jnp.finfo(w.dtype).eps ** 0.5) * total
        b = _inverse(self, jnp.where(is_beyond, total, w))
        return jnp.where(is_beyond, 0, jnp.sqrt(self.c[0]) * b)


@jax.custom_jvp
def _inverse(time: GrowthTime, w: Array) -> Array:
    """The inverse of `_until`."""
    last = PANELS * time.width

    # Newton's method on `log W`, which is concave in both variables. In a panel it begins on the
    # chord; steps from there end to the right of the root, and later ones come back to it.
    j = jnp.sum(time.edges[1:-1] >= w[None], axis=0, dtype=w.dtype)
    end, polynomial = time._panel(j)
    begin = end + jnp.sum(polynomial[::2], axis=0) - jnp.sum(polynomial[1::2], axis=0)
    p = time.width * (j + jnp.log(begin / w) / jnp.log(begin / end))

    # Beyond the panels, in log b. From `Q(0)`, which is not less than Q.
    k, edge = len(time.c) - 1, jnp.log(jnp.sinh(last))
    log_w = jnp.log(w)
    y = -(log_w + jnp.log(jnp.asarray(k, w.dtype))) / k

    def step(_, carry):
        p, y = carry
        y = jnp.maximum(y, edge)
        inverse_square = jnp.exp(-2 * y)
        inner, outer = time._values(polynomial, p / time.width - j, inverse_square)
        inner = end + inner
        p = p + inner * jnp.log(inner / w) / time._density(p)
        density = jnp.prod(lax.rsqrt(1 + time._ratios() * inverse_square[None]), axis=0)
        return p, y + (jnp.log(outer) - k * y - log_w) * outer / density

    p, y = fori_loop(0, STEPS, step, (p, y))
    return jnp.where(w < time.edges[-1], jnp.exp(y), jnp.sinh(p))


@_inverse.defjvp
def _(primals, tangents):
    (time, w), (of_time, of_w) = primals, tangents
    b = _inverse(time, w)
    _, change = jax.jvp(lambda time: time._until(b), (time,), (of_time,))
    log_speed = jnp.sum(jnp.log(b[None] ** 2 + time._ratios()), axis=0) / 2
    return b, (change - of_w) * jnp.exp(log_speed)
