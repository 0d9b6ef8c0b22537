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
    """`Σ_k coefficients[k] T_k(t)`, by Clenshaw's recurrence."""
    first, second = jnp.zeros_like(t), jnp.zeros_like(t)
    for c in coefficients[:0:-1]:
        first, second = 2 * t * first - second + c, first
    return t * first - second + coefficients[0]


class GrowthTime(eqx.Module):
    """The growth time `W(b)` of each coordinate, and the `b` at which it is given.

    All of it is in units of the smallest `c`. Differentiable in `c`, to every order; how the panels
    are placed has no derivatives."""

    c: Float[Array, "k d"]  # ascending
    width: Float[Array, " d"]  # of a panel, in p
    edges: Float[Array, "_ d"]  # W at the ends of the panels, p = 0 first
    panels: Float[Array, "_ _ d"]  # W − W(its end), in each panel
    outer: Float[Array, "_ d"]  # Q

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
        self.outer = jnp.tensordot(constant(_COEFFICIENTS), values, axes=1, precision="highest")

        places = constant(np.arange(PANELS)[:, None] + (_NODES + 1) / 2)
        density = jax.vmap(jax.vmap(self._density))(places[:, :, None] * width[None, None])
        panels = jnp.einsum("kn,pnd->pkd", constant(_INTEGRAL), density, precision="highest")
        self.panels = panels * width[None, None] / 2
        # Over a whole panel, t from −1 to 1.
        whole = jnp.einsum("k,pkd->pd", constant((-1.0) ** np.arange(DEGREE + 1)), self.panels,
                           precision="highest")  # fmt: skip
        last = self._outer(jnp.sinh(PANELS * width))
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

    def _outer(self, b: Array) -> Array:
        e = 4 * self._ratios()[-1] / b**2
        return b ** (1 - len(self.c)) * _chebyshev(self.outer, 2 * e - 1)

    def _panel(self, j: Array) -> tuple[Array, Array]:
        """`W` where panel `j` ends, and its polynomial."""
        j = lax.stop_gradient(j).astype(jnp.int32)
        end = jnp.take_along_axis(self.edges, j[None] + 1, axis=0)[0]
        return end, jnp.take_along_axis(self.panels, j[None, None], axis=0)[0]

    def until(self, b: Float[Array, " d"]) -> Float[Array, " d"]:
        """The growth time `W(b)` from `b ≥ 0` to infinity."""
        b = b / jnp.sqrt(self.c[0])
        place = jnp.arcsinh(b) / self.width
        is_outer = place > PANELS
        j = jnp.clip(jnp.floor(place), 0, PANELS - 1)
        end, polynomial = self._panel(j)
        place = jnp.where(is_outer, j, place)
        inner = end + _chebyshev(polynomial, 2 * (place - j) - 1)
        outer = self._outer(jnp.where(is_outer, b, jnp.sinh(PANELS * self.width)))
        return self._unit() * jnp.where(is_outer, outer, inner)

    def total(self) -> Float[Array, " d"]:
        """`W(0)`."""
        return self._unit() * self.edges[0]

    def inverse(self, w: Float[Array, " d"]) -> Float[Array, " d"]:
        """The `b` with `W(b) = w`, for `w > 0`; 0 where `w` is more than `W(0)` by more than
        rounding."""
        is_beyond = w > (1 + jnp.finfo(w.dtype).eps ** 0.5) * self.total()
        return jnp.where(is_beyond, 0, _inverse(self, jnp.where(is_beyond, self.total(), w)))


@jax.custom_jvp
def _inverse(time: GrowthTime, w: Array) -> Array:
    w = w / time._unit()
    last = PANELS * time.width

    # Newton's method on `log W`, which is concave in both variables. In a panel it begins on the
    # chord; steps from there end to the right of the root, and later ones come back to it.
    j = jnp.sum(time.edges[1:-1] >= w[None], axis=0, dtype=w.dtype)
    end, polynomial = time._panel(j)
    begin = end + _chebyshev(polynomial, -jnp.ones_like(w))
    p = time.width * (j + jnp.log(begin / w) / jnp.log(begin / end))

    # Beyond the panels, in log b. From `Q(0)`, which is not less than Q.
    k, edge = len(time.c) - 1, jnp.log(jnp.sinh(last))
    log_w = jnp.log(w)
    y = -(log_w + jnp.log(jnp.asarray(k, w.dtype))) / k
    share = 4 * time._ratios()[-1]

    def step(_, carry):
        p, y = carry
        value = end + _chebyshev(polynomial, 2 * (p / time.width - j) - 1)
        p = p + value * jnp.log(value / w) / time._density(p)
        y = jnp.maximum(y, edge)
        e = jnp.exp(-2 * y)
        value = _chebyshev(time.outer, 2 * share * e - 1)
        density = jnp.prod(lax.rsqrt(1 + time._ratios() * e[None]), axis=0)
        y = y + (jnp.log(value) - k * y - log_w) * value / density
        return p, y

    p, y = fori_loop(0, STEPS, step, (p, y))
    b = jnp.where(w < time.edges[-1], jnp.exp(y), jnp.sinh(p))
    return jnp.sqrt(time.c[0]) * b


@_inverse.defjvp
def _(primals, tangents):
    (time, w), (of_time, of_w) = primals, tangents
    b = _inverse(time, w)
    _, change = jax.jvp(lambda time: time.until(b), (time,), (of_time,))
    return b, (change - of_w) * jnp.exp(jnp.sum(jnp.log(b[None] ** 2 + time.c), axis=0) / 2)
