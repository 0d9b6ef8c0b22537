"""Rodas5P: its coefficients against the order conditions, its order on the flow."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import dlnjax as dln
from dlnjax._flow.rodas5p import GAMMA, A, C, H
from dlnjax._flow.terms.coordinates import CoordinateTerm
from dlnjax._flow.terms.decayed_rows import DecayedRowTerm
from dlnjax._flow.terms.dual import dual_term
from dlnjax._flow.terms.rows import RowTerm

# --- coefficients -----------------------------------------------------------------------------
# The stages of the package are U = Γk in terms of the textbook's k (Hairer & Wanner, Solving
# ODEs II, IV.7), so that A = αΓ⁻¹, C = I/γ − Γ⁻¹ and the weights are bΓ⁻¹.


def _square(rows) -> np.ndarray:
    out = np.zeros((8, 8))
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


GAMMAS = np.linalg.inv(np.eye(8) / GAMMA - _square(C))
ALPHAS = _square(A) @ GAMMAS
BETAS = ALPHAS + GAMMAS
WEIGHTS = np.array([*A[-1], 1.0]) @ GAMMAS
EMBEDDED = np.array([*A[-1], 0.0]) @ GAMMAS


def _dense(theta: float) -> np.ndarray:
    """Weights of the continuous extension at `θ`."""
    inner = H[0] + theta * (H[1] + theta * H[2])
    return theta * (np.array([*A[-1], 1.0]) + (1 - theta) * inner) @ GAMMAS


def _trees(order: int) -> list[tuple]:
    """Rooted trees, each the sorted tuple of its subtrees."""
    if order == 1:
        return [()]
    return sorted(set(_forests(order - 1)))


def _forests(size: int) -> list[tuple]:
    if size == 0:
        return [()]
    return [
        tuple(sorted((tree, *rest)))
        for first in range(1, size + 1)
        for tree in _trees(first)
        for rest in _forests(size - first)
    ]


def _size(tree: tuple) -> int:
    return 1 + sum(map(_size, tree))


def _density(tree: tuple) -> int:
    return _size(tree) * math.prod(map(_density, tree))


def _elementary(tree: tuple) -> np.ndarray:
    """Stage values: `β` below a node with one son (there the exact Jacobian acts), else `α`."""
    matrix = BETAS if len(tree) == 1 else ALPHAS
    return np.prod([np.ones(8), *(matrix @ _elementary(son) for son in tree)], axis=0)


def _defects(weights: np.ndarray, order: int, theta: float = 1.0) -> np.ndarray:
    return np.array(
        [weights @ _elementary(tree) - theta**order / _density(tree) for tree in _trees(order)]
    )


def test_there_are_seventeen_trees():
    assert [len(_trees(order)) for order in range(1, 6)] == [1, 1, 2, 4, 9]


def test_one_factorisation_serves_all_stages():
    np.testing.assert_allclose(np.diag(GAMMAS), GAMMA, rtol=1e-14)


# The coefficients are published to 16 digits and reach 150.
@pytest.mark.parametrize("order", range(1, 6))
def test_order_conditions(order):
    assert np.abs(_defects(WEIGHTS, order)).max() < 1e-12
    embedded = np.abs(_defects(EMBEDDED, order)).max()
    assert embedded < 1e-12 if order < 5 else embedded > 1e-4
    for theta in (0.0, 0.1, 0.5, 0.9, 1.0):
        if order < 5:
            assert np.abs(_defects(_dense(theta), order, theta)).max() < 1e-12


def test_stiffly_accurate_and_l_stable():
    # The last stage, and the embedded method, are stages of the step: y₁ and ŷ₁ are their ends.
    np.testing.assert_allclose(WEIGHTS, BETAS[-1], atol=1e-13)
    np.testing.assert_allclose(EMBEDDED, BETAS[-2], atol=1e-13)

    def stability(z):
        return 1 + z * WEIGHTS @ np.linalg.solve(np.eye(8) - z * BETAS, np.ones(8))

    # One pole, 1/γ > 0; bounded by 1 on the imaginary axis; 0 at infinity.
    assert GAMMA > 0
    on_axis = [abs(stability(1j * y)) for y in np.geomspace(1e-3, 1e6, 400)]
    assert max(on_axis) < 1 + 1e-12
    assert abs(1 - WEIGHTS @ np.linalg.solve(BETAS, np.ones(8))) < 1e-11


# --- order on the flow ------------------------------------------------------------------------

S_MAX = 3.0
OFF_GRID = np.array([0.377, 1.291, 2.113, 2.749])  # inside steps
STEPS = np.array([32, 48, 64, 96, 128])
EXACT = 4096
CASES = {  # the term, its sign, weight decay, the problem; for a large start, the log of the shape
    "rows": (RowTerm, False, 0.0, dln.LeastSquares, None),
    "coordinates": (CoordinateTerm, True, 0.0, dln.LeastSquares, None),
    "coordinates, decay": (CoordinateTerm, True, 0.4, dln.LeastSquares, None),
    # of which one is solved for
    "two signs": (CoordinateTerm, False, 0.4, dln.LeastSquares, None),
    "rows, Poisson": (RowTerm, False, 0.0, dln.Poisson, None),
    "two signs, Poisson": (CoordinateTerm, False, 0.4, dln.Poisson, None),
    "rows, decay, kept": (DecayedRowTerm, False, 0.4, dln.LeastSquares, 0),
    "rows, decay, Poisson, kept": (DecayedRowTerm, False, 0.4, dln.Poisson, 0),
    # From where `q⁺` and `q⁻` nearly are equal.
    "two signs, large": (CoordinateTerm, False, 0.4, dln.LeastSquares, 2),
    "rows, decay, large": (DecayedRowTerm, False, 0.4, dln.LeastSquares, 2),
}


def _term(case: str):
    """Mild: `ε = 0.05`, `d = 4`."""
    kind, positive, decay, of, size = CASES[case]
    rng = np.random.default_rng(0)
    rows = 6 if positive or case == "two signs, large" else 3
    if positive:
        network = dln.USquared(rng.uniform(0.5, 1.5, 4))
        X, y = rng.normal(size=(rows, 4)), rng.normal(size=rows) + 1
    else:
        network = dln.UV(np.exp(size or 0) * np.ones(4), np.zeros(4))
        X, y = rng.normal(size=(rows, 4)), rng.normal(size=rows)
    y = np.abs(y) if of is dln.Poisson else y
    problem = of(X, y, weight_decay=decay)
    term = dual_term(network, problem, jnp.log(0.05), large_start=size is not None)
    assert isinstance(term, kind)
    return term


@eqx.filter_jit
def _integrate(case, steps):
    """States at `S_MAX` and inside steps, and `x` at both."""
    times = jnp.asarray([*OFF_GRID, S_MAX])

    def one(steps):
        term = _term(case)
        solution = diffrax.diffeqsolve(
            term,
            dln.Rodas5P(),
            t0=0,
            t1=S_MAX,
            dt0=S_MAX / steps,
            y0=term.initial(),
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.ConstantStepSize(),
            max_steps=None,
        )
        x, z, g = jax.vmap(term.read)(times, solution.ys)
        return jnp.stack([x, z, g], axis=1)

    return jax.vmap(one)(steps)


@pytest.mark.parametrize("case", CASES)
def test_order_of_convergence(case):
    values = np.asarray(_integrate(case, jnp.asarray([*STEPS, EXACT], float)))
    errors = np.abs(values[:-1] - values[-1:]).max(axis=-1)  # steps, time, (x, z, g)
    end, inside = errors[:, -1].max(axis=-1), errors[:, :-1].max(axis=(1, 2))
    # Not rounding: the smallest error is far above it.
    assert end.min() > 1e-12
    order = lambda error: -np.polyfit(np.log(STEPS), np.log(error), 1)[0]
    assert order(end) > 4.7
    assert order(inside) > 3.7


def _moved(case: str, rng) -> tuple:
    """A random value of what a step changes, and its mean over both signs."""
    term = _term(case)
    if isinstance(term, RowTerm) or CASES[case][1]:
        return jnp.asarray(rng.normal(size=term.initial()[0].shape)) / 4, 0.0
    # Both signs and `g` move together.
    mean = jnp.asarray(rng.normal() / 4)
    sides = lambda g: jnp.stack([mean - g, mean + g])
    if isinstance(term, DecayedRowTerm):
        nu = jnp.asarray(rng.normal(size=3)) / 4
        return jnp.concatenate([jnp.ravel(sides(nu @ term.fit.X)), nu]), mean
    g = jnp.asarray(rng.normal(size=4)) / 4
    rows = jnp.concatenate([sides(g), g[None]])
    return rows[: len(term.initial()[0])], mean


@eqx.filter_jit
def _linear_algebra(case, gamma_h, state, rhs, drift):
    """What the term says of its derivatives, beside derivatives of its field."""
    term = _term(case)
    f, quadrature = state
    field = lambda f: term.vf(0.7, (f, quadrature), None)[0]
    x, slope = term.response(term.image(f))
    u = term.solve(term.factorize(x, slope, gamma_h), rhs, drift)
    _, product = jax.jvp(field, (f,), (u,))
    _, moved = jax.jvp(lambda f: term.x(term.image(f)), (f,), (u,))
    return u, product, term.change(slope, term.image(u)), moved


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gamma_h", [1e-3, 0.1, 1e3])
def test_the_jacobian_is_exact(case, gamma_h):
    # What the order conditions assume: J is that of the field, solves are solves.
    rng = np.random.default_rng(1)
    f, z = _term(case).initial()
    rhs, drift = _moved(case, rng)
    state = (f + _moved(case, rng)[0], z)
    out = _linear_algebra(case, jnp.asarray(gamma_h), state, rhs, drift)
    u, product, change, moved = map(np.asarray, out)
    residual = u / gamma_h - product - rhs
    assert np.abs(residual).max() < 1e-12 * (1 + np.abs(product).max())
    np.testing.assert_allclose(change, moved, rtol=1e-11, atol=1e-12)


def test_interpolation_meets_both_ends():
    rng = np.random.default_rng(2)
    y0, y1, *inner = coefficients = tuple(jnp.asarray(rng.normal(size=(5, 4))))
    t0, t1, middle = jnp.asarray([0.3, 0.8, 0.45])
    piece = dln.Rodas5P.interpolation_cls(t0=t0, t1=t1, coefficients=coefficients)
    np.testing.assert_allclose(piece.evaluate(t0), y0, rtol=1e-14)
    np.testing.assert_allclose(piece.evaluate(t1), y1, rtol=1e-14)
    np.testing.assert_allclose(piece.evaluate(t0, t1), y1 - y0, rtol=1e-14)
    np.testing.assert_allclose(
        piece.evaluate(t0, middle) + piece.evaluate(middle, t1), y1 - y0, rtol=1e-13
    )
    # A step of length 0 is where it starts.
    coefficients = (y0, y0, *inner)
    empty = dln.Rodas5P.interpolation_cls(t0=t0, t1=t0, coefficients=coefficients)
    np.testing.assert_array_equal(empty.evaluate(t0), y0)


def test_an_event_of_diffrax():
    # The time at which the first coordinate to move is halfway to its plateau.
    rng = np.random.default_rng(0)
    problem = dln.LeastSquares(rng.normal(size=(3, 4)), rng.normal(size=3))
    network, log_eps = dln.UV(jnp.ones(4), jnp.zeros(4)), jnp.log(1e-5)
    term = dual_term(network, problem, log_eps)
    first = int(jnp.argmax(jnp.abs(problem.r)))
    half = 0.5 * jnp.abs(dln.limit_flow(network, problem).slopes[0, first])
    solution = diffrax.diffeqsolve(
        term,
        dln.Rodas5P(),
        0.0,
        20.0,
        1e-3,
        term.initial(),
        stepsize_controller=diffrax.PIDController(1e-9, 1e-10, norm=optx.max_norm),
        event=diffrax.Event(
            lambda t, y, args, **_: jnp.abs(term.read(t, y)[0][first]) - half,
            optx.Newton(1e-10, 1e-10),
        ),
    )
    assert solution.result == diffrax.RESULTS.event_occurred
    assert solution.ts is not None and solution.ts[0] < 20
    flow = dln.gradient_flow(network, problem, solution.ts, log_eps=log_eps, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(jnp.abs(flow.x[0, first]), half, atol=1e-7)


def test_a_zero_of_the_embedded_estimate():
    # A step into the jump whose embedded estimate, near a zero as a function of the length, was
    # below the tolerance by accident: `x_mean` before the jump was off by 3e-3 of the largest.
    X = np.array(
        [
            [1072380131800.1462, 228316195036.48303, 1072380131800.1462],
            [765533727897.8821, -1174280819140.6895, 765533727897.8821],
            [94505135654.48018, 871141925077.2664, 94505135654.48018],
            [-1254390756103.6484, 821195659772.407, -1254390756103.6484],
        ]
    )
    y = np.array(
        [-1.443776858265155e-06, -4.3677401233976235e-05, -1.1094373301081923e-05]
        + [-2.188131359850794e-05]
    )
    problem = dln.LeastSquares(X, y, 3335020.64551216)
    network = dln.UV(np.full(3, 2 * 2.634178031930877e-09), np.zeros(3))
    s = np.array([4.250180895243835e-08, 4.8753218852376603e-08, 1.7968982604809902e-07])
    s = np.append(s, [0.0003675390809435847, 0.0010401251227399554, 0.0025449484406419613])
    flow = dln.gradient_flow(network, problem, s, log_eps=-110.7844612393726)
    # At the first time no coordinate moves yet: `x` is below 1e-6 of the largest, and so is its
    # average.
    largest = np.max(np.abs(flow.x_mean))
    assert np.max(np.abs(flow.x[0])) < 1e-6 * largest
    assert np.max(np.abs(flow.x_mean[0])) < 1e-7 * largest


def test_rounding_is_no_error():
    # `x₁` and `x₂` stay 0 as differences of equal numbers. In units of the third, which moves, the
    # rounding of these exceeds the tolerance: steps of constant length would be 65536.
    M = np.diag([2677310.5301366188, 36403412585.203064, 4.531859849615449e-11])
    M[0, 1] = M[1, 0] = 7.8651355184742e-09
    M[0, 2] = M[2, 0] = 1.0340101332586968e-19
    problem = dln.Quadratic(M, np.array([0.0, 0.0, 1.3463818e-05]))
    network = dln.Deep(np.ones(3), np.ones(3), depth=3)
    flow = dln.gradient_flow(network, problem, np.array([3.8e4, 5.8e7]), log_eps=-7.88)
    assert flow.stats["num_steps"] < 400
    np.testing.assert_allclose(flow.x[-1], [0, 0, 1.3463818e-05 / M[2, 2]], rtol=1e-6)
