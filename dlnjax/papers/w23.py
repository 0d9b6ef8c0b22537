"""Wind, Antun & Hansen, *Implicit regularization in AI meets generalized hardness of approximation
in optimization*, arXiv 2307.07410: networks `a^D − b^D`, both from `α`; here `ε = α^D`.

Claims about end points as `α → 0`: which minimum 1-norm solution they tend to (W23-which), how fast
(W23-fig1), and how small `α` must be first on a hard instance (W23-fig2); and the potentials
`q_D`, `g_D`, `h_D` (W23-fig3).
"""

import numpy as np

from .. import inverse_mirror_map, mirror_map, potential
from .claim import Claim, Measurement
from .end_points import Lane, end_points, fitted_slope

# The paper's instances: both have a segment of minimum 1-norm solutions, (1−t, 2(1−t), 3t, 0).
FIRST = np.array([[1.0, 1, 1], [3, 0, 1]]), np.array([3.0, 3])
SECOND = np.array([[2.0, -1, 0, 1], [0, 3, 2, 0]]), np.array([0.0, 6])
INSTANCES = {"first": FIRST, "second": SECOND}
STATED_T = {2: 0.34603494, 3: 0.34192282, 4: 0.33981138}
DELTAS = np.array([0.3, 0.1, 0.03, 0.01])


def chosen_t(D: float | int) -> float:
    """The `t` of the limit on its segment, in closed form."""
    if D == 2:
        return (4 - 6 * 2 ** (1 / 3) + 9 * 2 ** (2 / 3)) / 31
    return 1 / (1 + (3 ** (2 / D) / (2 ** (2 / D) + 1)) ** (-D / (D - 2)))


def chosen(D: float | int) -> np.ndarray:
    """The limit itself, of either instance, padded to 5 coordinates."""
    t = chosen_t(D)
    return np.array([1 - t, 2 * (1 - t), 3 * t, 0, 0])


def which() -> list[Measurement]:
    """W23-which: the minimum 1-norm solution that small initialisations choose."""
    # So small that the distance to the limit, at most ε^½ at depth 2 and about ε beyond, is below
    # the tolerance. At D > 2 not smaller: w = ε^{1−2/D}, 1e-5 or 1e-6, loses its digits against
    # w(0) = 1, and `x` with it.
    sizes = {2: -1500.0, 3: np.log(1e-15), 4: np.log(1e-12)}
    keys = [(D, name) for D in STATED_T for name in INSTANCES]
    limits = end_points([Lane(D, *INSTANCES[name], None) for D, name in keys])
    small = end_points([Lane(D, *INSTANCES[name], sizes[D]) for D, name in keys])
    rows = []
    for (D, name), limit, end in zip(keys, limits, small, strict=True):
        where = f"D = {D}, {name} instance"
        rows += [
            Measurement(
                "W23-which",
                f"t of the limit, {where}",
                STATED_T[D],
                float(limit[2] / 3),
                5e-9,
                "the stated value has eight digits",
            ),
            Measurement(
                "W23-which",
                f"distance of the limit to its closed form, {where}",
                0.0,
                float(np.max(np.abs(limit - chosen(D)))),
                1e-12,
                "Newton's method stops at 512 roundings, 1e-13, of numbers below 2",
            ),
            Measurement(
                "W23-which",
                f"distance of the end of the flow at log ε = {sizes[D]:.1f}, {where}",
                0.0,
                float(np.max(np.abs(end - chosen(D)))),
                1e-9 if D > 2 else 1e-12,
                "as for the limit; for D > 2 plus C ε, and rounding over w = ε^(1−2/D) ≥ 1e-6",
            ),
        ]
    return rows


def slopes() -> list[Measurement]:
    """W23-fig1: the power of `α^D` with which the distance to the limit vanishes."""
    # Ranges in which the next order is small and rounding does not show: at D = 4, below 1e-8, the
    # rounding of w, 1e-16/ε^(1−2/D), would show in the first instance.
    deep = _grid(-8, -4)
    cases = [
        (2, "first", 2.0, _grid(-6, -3)),
        (2, "second", 0.5, _grid(-14, -8)),
        *((D, name, 1.0, deep) for D in (2.5, 3, 4) for name in INSTANCES),
    ]
    lanes = [Lane(D, *INSTANCES[name], e) for D, name, _, grid in cases for e in grid]
    x = end_points(lanes).reshape(len(cases), -1, 5)
    rows = []
    for (D, name, stated, grid), points in zip(cases, x, strict=True):
        error = np.max(np.abs(points - chosen(D)), axis=1)
        correction = None if D == 2 else 1 - 2 / D
        rows.append(
            Measurement(
                "W23-fig1",
                f"slope of the distance to the limit in log α^D, D = {D:g}, {name} instance",
                stated,
                fitted_slope(grid, error, correction),
                0.02,
                "the next order is relatively below ε^½ = 1e-3 at D = 2"
                if D == 2
                else "relative corrections of order ε^(1−2/D) and its square are fitted too",
            )
        )
    return rows


def _grid(low: float | int, high: float | int) -> np.ndarray:
    """Eight values of `log ε` between two powers of 10."""
    return np.log(10) * np.linspace(low, high, 8)


def hard_instance() -> list[Measurement]:
    """W23-fig2: `A = [1, 1 − δ]`, `y = 1`, whose minimiser is resolved only below some `α`."""
    rows = []
    one = np.ones(1)
    design = lambda delta: np.array([[1, 1 - delta]])
    # At depth 2: after the transition, where x₂ ≈ α^{2δ} = e^{−20}, and before it, at α^{2δ} = ½.
    sizes = [-20.0, np.log(0.5)]
    lanes = [Lane(2, design(d), one, size / d) for size in sizes for d in DELTAS]
    resolved, early = end_points(lanes)[:, 1].reshape(2, -1)
    # Before the transition x₂/x₁ = ½ x₁^{−δ}, within the factor 2^δ.
    rows += [
        Measurement(
            "W23-fig2",
            "largest deviation of x₂ / α^{2δ} from 1 at α^{2δ} = e^{−20}, D = 2",
            0.0,
            float(np.max(np.abs(resolved / np.exp(-20.0) - 1))),
            1e-8,
            "corrections are a few times x₂ = 2e-9; rounding of log x is 2000 units",
        ),
        Measurement(
            "W23-fig2",
            "before the transition, at α^{2δ} = ½: least x₂ over δ, negated, D = 2",
            -0.25,
            -float(np.min(early)),
            0.0,
            "x₂ = ½ x₁^(1−δ) and x₁ + (1−δ) x₂ = 1 put x₂ between 0.25 and 0.5",
            "at most",
        ),
    ]
    for D in (2.5, 3, 4):
        # Far beyond the transition, α^{D−2} = 1e-5 δ: corrections are of this relative size.
        k = D / (D - 2)
        sizes = np.log(1e-5 * DELTAS) / (1 - 2 / D)
        x = end_points([Lane(D, design(d), one, e) for d, e in zip(DELTAS, sizes, strict=True)])
        ratio = x[:, 1] / (np.exp(sizes) * DELTAS**-k)
        exact = 1 - (DELTAS / (2 - DELTAS)) ** k
        rows.append(
            Measurement(
                "W23-fig2",
                f"deviation of x₂ / (α^D δ^(−D/(D−2))) from 1 at α^(D−2) = 1e-5 δ, D = {D:g}",
                0.0,
                float(np.max(np.abs(ratio / exact - 1))),
                2e-5 * k,
                "of first order k α^(D−2)/δ; b^D, a part (δ/(2−δ))^k of it, is taken off",
            )
        )
    return rows


def _inverse(z: np.ndarray, D: float | int) -> np.ndarray:
    """`h_D⁻¹(z)` for `z ≥ 0` by bisection, from nothing but the definition of `h_D`."""
    # 60 halvings of [0, 1] are beyond rounding.
    k = D / (D - 2)
    low, high = np.zeros_like(z), np.ones_like(z)
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            is_above = (1 - middle) ** -k - (1 + middle) ** -k > z
        low, high = np.where(is_above, low, middle), np.where(is_above, middle, high)
    return (low + high) / 2


def limit_potential(z: np.ndarray, D: float | int) -> np.ndarray:
    """`g_D`, to which `q_D` tends far from 0, up to a constant. Among minimum 1-norm solutions
    small initialisations select the minimiser of its sum."""
    z = np.abs(z)
    if D == 2:
        return z * np.log(z, out=np.zeros_like(z), where=z > 0) - z
    return z - D / 2 * z ** (2 / D)


def potentials() -> list[Measurement]:
    """W23-fig3: `q_D`, `h_D⁻¹` and `h_D` on `[−5, 5]`, and that `q_D − g_D` levels off."""
    z = np.linspace(-5, 5, 201)
    # Gauss-Legendre quadrature with 80 nodes is exact to rounding: the integrands are analytic,
    # with singularities at a distance of about 2 from [0, 5].
    nodes, weights = np.polynomial.legendre.leggauss(80)
    points = np.abs(z)[:, None] * (nodes + 1) / 2
    rows = []
    for D in (2, 2.5, 3, 4):
        slope = np.arcsinh(points / 2) if D == 2 else _inverse(points, D)
        integral = np.abs(z) / 2 * (slope @ weights)
        if D == 2:
            closed = 2 - np.sqrt(4 + z**2) + z * np.arcsinh(z / 2)
            # The closed form cancels near 0.
            integral = np.where(np.abs(z) > 0.1, closed, integral)
        slope = np.arcsinh(z / 2) if D == 2 else np.sign(z) * _inverse(np.abs(z), D)
        ours = np.asarray(mirror_map(z, D))
        sums = "a few hundred roundings: of 80 terms, or of the bisection"
        inverse = "30 roundings of arctanh in JAX, times the slope of h_D, below 30"
        for name, error, tolerance, why in (
            ("q_D and its integral", np.asarray(potential(z, D)) - integral, 1e-13, sums),
            ("q_D' and the inverse of h_D", ours - slope, 1e-13, sums),
            ("h_D of q_D' and z", np.asarray(inverse_mirror_map(ours, D)) - z, 2e-13, inverse),
        ):
            rows.append(
                Measurement(
                    "W23-fig3",
                    f"largest difference on [−5, 5] of {name}, D = {D:g}",
                    0.0,
                    float(np.max(np.abs(error))),
                    tolerance,
                    why,
                )
            )
        # With c = (1 + q_D')^(−k) ≤ 1, q_D' is 1 − (z + c)^(−1/k), g_D' is 1 − z^(−1/k).
        far = np.geomspace(1, 100, len(z))
        increments = np.diff(np.asarray(potential(far, D)) - limit_potential(far, D))
        bound = -np.diff(1 / far if D == 2 else far ** (2 / D - 1))
        rows.append(
            Measurement(
                "W23-fig3",
                f"largest increment of q_D − g_D over its bound on [1, 100], D = {D:g}",
                1.0,
                float(np.max(np.abs(increments) / bound)),
                0.0,
                "q_D' − g_D' is at most z^(−1−1/k)/k, k = D/(D−2), and at most z^(−2) at D = 2",
                "at most",
            )
        )
    return rows


CLAIMS = [
    Claim(
        "W23-which",
        "which minimum 1-norm solution small initialisations choose depends on the depth",
        which,
    ),
    Claim("W23-fig1", "the distance to the limit is a power of α^D", slopes),
    Claim("W23-fig2", "how small α must be before the minimiser is resolved", hard_instance),
    Claim("W23-fig3", "the potentials that the end points minimise", potentials),
]
