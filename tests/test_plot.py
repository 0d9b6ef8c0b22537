"""What figures show: the numbers that they were given."""

import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure

import dlnjax as dln
from dlnjax.plot.axes import cycle
from dlnjax.plot.curves import Curves, colors_of
from dlnjax.plot.openings import log_eps_axis

D = 3
PROBLEM = dln.LeastSquares(
    jnp.array([[1.0, 0.5, 0.7], [0.5, 1.0, 0.1], [0.1, 0.2, 1.0]]), jnp.array([1.0, 0.4, -0.5])
)
NETWORK = dln.UV(jnp.ones(D), jnp.zeros(D))
S = jnp.geomspace(0.3, 30, 40)


@pytest.fixture(scope="module")
def path():
    return dln.lasso_path(PROBLEM)


@pytest.fixture(scope="module")
def limit():
    return dln.limit_flow(NETWORK, PROBLEM)


@pytest.fixture(scope="module")
def flow():
    return dln.gradient_flow(NETWORK, PROBLEM, S, eps=1e-5)


@pytest.fixture
def ax():
    return Figure().subplots()


def curves(ax) -> list:
    """Its lines, without those across the axes."""
    return [line for line in ax.get_lines() if len(line.get_xdata()) > 2]


def solid_and_dashed(ax, d: int = D) -> tuple[np.ndarray, np.ndarray]:
    """Values of pairs of lines of one colour, `(S, d)` each."""
    pairs = np.reshape(np.array(curves(ax)), (d, 2))
    for solid, dashed in pairs:
        assert solid.get_linestyle() == "-" and dashed.get_linestyle() == "--"
        assert solid.get_color() == dashed.get_color()
    solid, dashed = ([line.get_ydata() for line in lines] for lines in pairs.T)
    return np.array(solid).T, np.array(dashed).T


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_path_is_drawn_through_its_knots(ax, path):
    dln.plot.path(path, ax=ax, names=["a", "b", "c"])
    mu = np.asarray(curves(ax)[0].get_xdata())
    x = np.array([line.get_ydata() for line in curves(ax)]).T
    np.testing.assert_array_equal(x, path.x(mu))
    assert set(np.asarray(path.knots)) <= set(mu) and ax.get_xscale() == "log"
    assert legend(ax) == ["a", "b", "c"] and r"\mu" in ax.get_xlabel()


@pytest.mark.parametrize("times", [jnp.linspace(0.0, 3, 20), jnp.linspace(0.01, 3, 20)])
def test_times_that_are_spaced_evenly_get_a_linear_axis(ax, path, times):
    dln.plot.path(path, times, ax=ax)
    assert ax.get_xscale() == "linear"
    np.testing.assert_array_equal(curves(ax)[1].get_ydata(), path.x(times)[:, 1])


def test_flow_is_solid_over_the_dashed_path(ax, path, flow, limit):
    dln.plot.flow(flow, path, ax=ax)
    x_mean, lasso = solid_and_dashed(ax)
    np.testing.assert_array_equal(x_mean, flow.x_mean)
    np.testing.assert_array_equal(lasso, path.x(S))
    assert legend(ax)[:D] == ["$x_{1}$", "$x_{2}$", "$x_{3}$"]
    assert [name.split()[0] for name in legend(ax)[D:]] == ["flow", "lasso"]
    assert r"\bar x^\varepsilon" in ax.get_ylabel() and r"\mu" in ax.get_xlabel()
    _, x_mean = solid_and_dashed(dln.plot.flow(flow, limit, ax=Figure().subplots()))
    np.testing.assert_array_equal(x_mean, limit.x_mean(S))


def test_limit_and_solutions_on_a_grid(path, flow, limit):
    point = dln.lasso(PROBLEM, S)
    x_mean, _ = solid_and_dashed(dln.plot.flow(limit, path, S, ax=Figure().subplots()))
    np.testing.assert_array_equal(x_mean, limit.x_mean(S))
    _, lasso = solid_and_dashed(dln.plot.flow(flow, point, ax=Figure().subplots()))
    np.testing.assert_allclose(lasso, path.x(S), atol=1e-6)


def test_plateaus_jump_where_the_limit_does(ax, flow, limit):
    dln.plot.plateaus(flow, limit=limit, ax=ax)
    for i in range(D):
        solid, dashed = curves(ax)[2 * i : 2 * i + 2]
        np.testing.assert_array_equal(solid.get_ydata(), flow.x[:, i])
        at = np.asarray(dashed.get_xdata())
        np.testing.assert_array_equal(dashed.get_ydata(), limit.plateau(at)[:, i])
        assert dashed.get_drawstyle() == "steps-post" and dashed.get_linestyle() == "--"
    jumps = set(np.asarray(limit.jumps)) - {0.0}
    across = {line.get_xdata()[0] for line in ax.get_lines() if line.get_linestyle() == ":"}
    assert across == {jump for jump in jumps if S[0] < jump < S[-1]} != set() and jumps > set()


def test_eight_coordinates_are_coloured_the_largest_ones(ax):
    """Of ten; the rest is grey, and behind."""
    size = jnp.array([0.01, *range(1, 9), 0.02])
    flow = dln.gradient_flow(
        dln.UV(jnp.ones(10), jnp.zeros(10)), dln.LeastSquares(jnp.eye(10), size), S, eps=1e-9
    )
    dln.plot.flow(flow, ax=ax)
    colours = {round(float(line.get_ydata()[-1]), 1): line.get_color() for line in curves(ax)}
    small = [line for line in curves(ax) if abs(line.get_ydata()[-1]) < 0.1]
    assert len(small) == 2 and all(same_color(line.get_color(), "#B8B8B8") for line in small)
    assert len(set(colours.values())) == 9 and legend(ax)[-1] == "others"


def test_gap_and_certificate(ax, path, flow, limit):
    dln.plot.gap(PROBLEM, flow, path, ax=ax)
    dln.plot.gap(PROBLEM, limit, path, s=S, ax=ax, label="limit")
    gap, bound, of_limit = curves(ax)
    of = dln.suboptimality_gap(PROBLEM, flow.x_mean, S, path=path)
    np.testing.assert_array_equal(gap.get_ydata(), of.relative)
    least = PROBLEM.lasso_objective(path.x(S), S)
    np.testing.assert_allclose(bound.get_ydata(), dln.certificate(PROBLEM, flow) / least, rtol=1e-9)
    of = dln.suboptimality_gap(PROBLEM, limit.x_mean(S), S, path=path)
    np.testing.assert_array_equal(of_limit.get_ydata(), of.relative)
    assert gap.get_color() == bound.get_color() != of_limit.get_color()
    assert bound.get_linestyle() == ":" and of_limit.get_linestyle() == "--"
    assert legend(ax) == ["ε = 1e-05", "limit", "certified, without any lasso"]


def test_gap_that_is_rounding_is_cut_and_the_axes_say_so(ax, flow):
    """An orthogonal design: the limit is the lasso, and its gap is 0 but for rounding."""
    problem = dln.LeastSquares(jnp.eye(D), jnp.array([3.0, 2.0, 1.0]))
    path, limit = dln.lasso_path(problem), dln.limit_flow(NETWORK, problem)
    dln.plot.gap(problem, limit, path, ax=ax)
    assert ax.get_ylim() == (1e-10, 1)
    assert [text.get_text() for text in ax.texts] == ["all below 1e-10: rounding"]
    flow = dln.gradient_flow(NETWORK, problem, S, eps=1e-5)
    dln.plot.gap(problem, flow, path, ax=ax)
    gap = dln.suboptimality_gap(problem, flow.x_mean, S, path=path).relative
    shown = gap[gap >= 1e-10]
    assert ax.get_ylim()[1] > gap.max()
    assert ax.get_ylim()[0] == 10.0 ** np.floor(np.log10(shown.min())) >= 1e-10
    assert [text.get_text() for text in ax.texts] == ["the rest below 1e-10: rounding"]


def test_gap_and_tradeoff_of_another_loss():
    """Beside solutions at the times of the flow."""
    X = np.random.default_rng(0).normal(size=(30, D))
    problem = dln.Logistic(X, np.sign(X[:, 0] + 0.5 * X[:, 1] + 0.5 * np.cos(np.arange(30.0))))
    flow = dln.gradient_flow(NETWORK, problem, S, eps=1e-5)
    point = dln.lasso(problem, S, gap_tol=1e-12)
    gap, bound = curves(dln.plot.gap(problem, flow, point, ax=Figure().subplots()))
    objective = lambda x: np.array(
        [
            np.sum(np.logaddexp(0, -problem.y * (X @ x))) + np.abs(x).sum() / s
            for x, s in zip(x, S, strict=True)
        ]
    )
    expected = objective(np.asarray(flow.x_mean)) / objective(np.asarray(point.x)) - 1
    np.testing.assert_allclose(gap.get_ydata(), np.maximum(expected, 0), atol=1e-11)
    assert np.all(np.asarray(bound.get_ydata()) >= np.asarray(gap.get_ydata()) - 1e-11)
    with pytest.raises(ValueError, match="better than these solutions"):
        dln.plot.gap(problem, flow, dln.lasso(problem, S / 3))
    lines = curves(dln.plot.path(point, S, ax=Figure().subplots()))
    np.testing.assert_array_equal([line.get_ydata() for line in lines], point.x.T)
    for s in (None, S[1:]):
        with pytest.raises(ValueError, match="`μ` of the 40 solutions"):
            dln.plot.path(point, s)
    ax = dln.plot.tradeoff(problem, [flow, point], ax=Figure().subplots())
    assert legend(ax) == ["lasso", "ε = 1e-05"]
    np.testing.assert_allclose(curves(ax)[0].get_xdata(), jnp.abs(point.x).sum(axis=1))
    np.testing.assert_allclose(curves(ax)[0].get_ydata(), problem.loss(point.x))


def test_gap_where_the_least_objective_is_negative():
    """As of counts: relative to its size. Also from `s = 0`, where there is no gap."""
    rng = np.random.default_rng(0)
    X = 0.3 * rng.normal(size=(40, D))
    problem = dln.Poisson(X, rng.poisson(np.exp(2 + X[:, 0])).astype(float))
    s = jnp.append(0.0, jnp.geomspace(1.2, 100, 9) / jnp.max(jnp.abs(problem.r)))
    flow = dln.gradient_flow(NETWORK, problem, s, eps=1e-3)
    point = dln.lasso(problem, s[1:], gap_tol=1e-12)
    gap, bound = curves(dln.plot.gap(problem, flow, point, ax=Figure().subplots()))

    def objective(x):
        u, y = np.asarray(x) @ X.T, np.asarray(problem.y)
        return np.sum(np.exp(u) - y * u, axis=1) + np.abs(x).sum(axis=1) / np.asarray(s[1:])

    least = objective(point.x)
    assert least[0] > 0 > least[-1]
    above = objective(flow.x_mean[1:]) - least
    np.testing.assert_allclose(gap.get_ydata(), above / np.abs(least), rtol=1e-6)
    assert np.all(np.asarray(bound.get_ydata()) >= np.asarray(gap.get_ydata()))


def test_long_names_leave_the_panels_of_compare_their_width():
    s = np.linspace(0.1, 3, 20)
    x = np.linspace(0, np.arange(1.0, 11), 20)
    lasso = {"x": x, "loss": 9 - s, "norm": x.sum(1), "nonzeros": (x > 0).sum(1)}
    limit = lasso | {"label": "ε → 0", "relative_gap": 1e-6 / s, "at_s": x}
    width = {}
    for kind, name in (
        ("short", "x{}"),
        ("long", "income of the household {}"),
        ("$", "US$ " * 20),
    ):
        names = [name.format(i) for i in range(10)]
        figure = dln.plot.comparison_figure("columns", s, names, lasso, limit, [])
        figure.canvas.draw()
        width[kind] = figure.get_axes()[0].get_position().width
    assert min(width.values()) > 0.95 * max(width.values())


def test_a_coordinate_keeps_its_colour_where_another_is_larger():
    """Of eight largest ones among twelve that differ in two figures."""
    x = np.ones((3, 12)) * np.arange(1.0, 13)
    first = colors_of(Curves(np.ones(3), x))
    assert [*first] == [*range(4, 12)] and len(set(first.values())) == 8
    x[:, 0], x[:, 4] = 99, 0
    second = colors_of(Curves(np.ones(3), x))
    assert [*second] == [0, *range(5, 12)] and len(set(second.values())) == 8
    # The largest one takes its own from 8, which shares it.
    assert [i for i in range(5, 12) if second[i] != first[i]] == [8]
    for count in (8, 9, 20):  # curves of different ε
        assert len({tuple(to_rgb(color)) for color in cycle(count)}) == count


def test_ticks_of_many_eps_do_not_overlap(ax):
    size = np.geomspace(5, 5000, 19)
    log_eps_axis(ax, size)
    ticks = ax.get_xticks()
    assert 4 < len(ticks) < 11 and set(ticks) <= set(size) and ticks[0] == 5
    log_eps_axis(ax, np.geomspace(5, 5000, 10))
    assert len(ax.get_xticks()) == 10
    log_eps_axis(ax, size[::6])
    assert len(ax.get_xticks()) == 4


def test_certificate_is_left_out_where_it_bounds_another_gap(path, flow):
    start = dln.gradient_flow(NETWORK, PROBLEM, jnp.linspace(0.0, 3, 9), eps=1e-5)
    (gap, _) = curves(dln.plot.gap(PROBLEM, start, path, ax=Figure().subplots()))
    assert len(gap.get_xdata()) == 8  # without s = 0
    weighted = dln.lasso_path(PROBLEM, weights=jnp.array([1.0, 2.0, 3.0]))
    for other, certificate in ((path, False), (weighted, True)):
        ax = Figure().subplots()
        dln.plot.gap(PROBLEM, flow, other, certificate=certificate, ax=ax)
        assert len(curves(ax)) == 1


def test_tradeoff(ax, path, flow, limit):
    dln.plot.tradeoff(PROBLEM, [flow, limit, path], ax=ax)
    expected = {"lasso": path.x(S), "ε = 1e-05": flow.x_mean, "ε → 0": limit.x_mean(S)}
    assert legend(ax) == [*expected]
    for line, x in zip(curves(ax), expected.values(), strict=True):
        np.testing.assert_allclose(line.get_xdata(), jnp.abs(x).sum(1), rtol=1e-12)
        np.testing.assert_allclose(line.get_ydata(), jax.vmap(PROBLEM.loss)(x), atol=1e-12)
    assert "Vert x" in ax.get_xlabel() and "ell" in ax.get_ylabel()
    dln.plot.tradeoff(
        PROBLEM, [path], s=S, complexity="nonzeros", ax=(other := Figure().subplots())
    )
    (line,) = curves(other)
    # Those that explain a thousandth count: all but what has just entered.
    exact = np.sum(np.asarray(path.x(S)) != 0, axis=1)
    assert (
        np.mean(np.asarray(line.get_xdata()) == exact) > 0.9 and line.get_xdata()[-1] == exact[-1]
    )


def crossing_times(log_eps):
    return dln.crossing_times(NETWORK, PROBLEM, 30.0, 0.05, log_eps=log_eps)


def test_crossings_in_rows(ax, limit):
    times = crossing_times(-100.0)
    dln.plot.crossings(times, limit=limit, ax=ax, names=["a", "b", "c"])
    names = [label.get_text() for label in ax.get_yticklabels()]
    dots = {"full": [], "none": []}
    for line in ax.get_lines():
        if line.get_marker() == "o":
            rows = [names[row] for row in line.get_ydata()]
            dots[line.get_fillstyle()] += zip(line.get_xdata(), rows, strict=True)
    up, down = np.asarray(times.activations), np.asarray(times.deactivations)
    for kind, flags in (("full", up), ("none", down)):
        expected = {(float(times.s[k]), "abc"[i]) for k, i in np.argwhere(flags)}
        assert {(float(s), name) for s, name in dots[kind]} == expected
    assert up.any() and "jump as ε → 0" in legend(ax)


def test_delays_of_crossings_fall_like_one_over_the_logarithm(ax, limit):
    log_eps = -jnp.array([200.0, 400.0, 800.0])
    dln.plot.crossings(jax.vmap(crossing_times)(log_eps), log_eps, limit=limit, ax=ax)
    assert ax.get_xscale() == ax.get_yscale() == "log" and r"\log(1/\varepsilon)" in ax.get_xlabel()
    for line in curves(ax):
        np.testing.assert_array_equal(line.get_xdata(), -log_eps)
        slope = np.polyfit(np.log(line.get_xdata()), np.log(line.get_ydata()), 1)[0]
        assert abs(slope + 1) < 0.05
    opened = np.asarray(limit.activations).any(axis=0)
    assert legend(ax) == [f"$x_{{{i + 1}}}$" for i in np.flatnonzero(opened)]
    ax = dln.plot.crossings(jax.vmap(crossing_times)(log_eps), log_eps, ax=Figure().subplots())
    first = [crossing_times(size).s[0] for size in log_eps]
    earliest = np.min([line.get_ydata() for line in curves(ax)], axis=0)
    np.testing.assert_allclose(earliest, first, rtol=1e-9)


BATCH = jnp.array([1e-3, 1e-5])


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize(
    "draw, said",
    [
        (lambda path, flow, limit: dln.plot.path(limit), "`path` must be"),
        (lambda path, flow, limit: dln.plot.path(path, names=["a"]), "`names` must have 3"),
        (lambda path, flow, limit: dln.plot.flow(path), "`flow` must be"),
        (lambda path, flow, limit: dln.plot.flow(flow, path, S), "own times"),
        (lambda path, flow, limit: dln.plot.flow(flow, dln.lasso(PROBLEM, S[:3])), "flow.s"),
        (lambda path, flow, limit: dln.plot.flow(flow, flow), "`path` must be"),
        (lambda path, flow, limit: dln.plot.plateaus(flow, limit=path), "`limit` must be"),
        (
            lambda path, flow, limit: dln.plot.tradeoff(PROBLEM, [flow], complexity="2-norm"),  # pyright: ignore[reportArgumentType]
            "`complexity` must be",
        ),
        (lambda path, flow, limit: dln.plot.tradeoff(PROBLEM, [flow], labels=[]), "one a curve"),
        (lambda path, flow, limit: dln.plot.crossings(limit), "`times` must be"),
        (
            lambda path, flow, limit: dln.plot.crossings(jax.vmap(crossing_times)(-1 / BATCH)),
            "`log_eps`",
        ),
        (
            lambda path, flow, limit: dln.plot.plateaus(
                jax.vmap(lambda e: dln.gradient_flow(NETWORK, PROBLEM, S, eps=e))(BATCH)
            ),
            "batch of flows",
        ),
        (
            lambda path, flow, limit: dln.plot.flow(
                flow,
                dln.limit_flow(
                    dln.UV(jnp.ones(2), jnp.zeros(2)), dln.LeastSquares(jnp.eye(2), jnp.ones(2))
                ),
            ),
            "of other problems",
        ),
    ],
)
def test_what_is_wrong_is_said(path, flow, limit, draw, said):
    with pytest.raises((TypeError, ValueError), match=said):
        draw(path, flow, limit)


def test_pyplot_is_used_only_where_it_is_in_use():
    """In a fresh process: not imported for us; not touched where axes are given; and where it is
    imported, a new figure is one of its own, so that notebooks show it."""
    code = """
import sys
from matplotlib.figure import Figure
import jax.numpy as jnp
import dlnjax as dln
path = dln.lasso_path(dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0])))
assert type(dln.plot.path(path).figure) is Figure
assert "matplotlib.pyplot" not in sys.modules
import matplotlib.pyplot as plt
before = dict(plt.rcParams)
ax = Figure().subplots()
assert dln.plot.path(path, ax=ax) is ax
assert plt.get_fignums() == [] and dict(plt.rcParams) == before
new = dln.plot.path(path)
assert plt.get_fignums() == [1] and plt.gcf() is new.figure
assert dln.plot.path(path).figure is not new.figure
plt.style.use(dln.plot.STYLE)
assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == [*dln.plot.COLORS]
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"MPLBACKEND": "agg"})


def test_sweep_draws_what_the_metric_has_axes_for():
    """Quantiles, of all instances and of a part of them; those that failed do not count."""
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(2, 1, 50, 1, 3)) - 5 * np.arange(3))
    values[0, 0, :5] = np.nan
    dims = ("size", "network", "instance", "weight_decay", "log_eps")
    coordinates = {"size": ["3×4", "4×4"], "network": ["uv"], "weight_decay": [0.0]}
    coordinates |= {"log_eps": [-5.0, -20.0, -80.0]}
    coordinates |= {"n": ("size", [3, 4]), "d": ("size", [4, 5])}
    data = xarray.Dataset(
        {"gap": (dims, values), "knots": (dims[:-1], values[..., 0])}, coordinates
    )
    lines = curves(dln.plot.sweep(data, "gap", ax=Figure().subplots()))
    assert len(lines) == 4  # the median and the 95 % quantile of two sizes
    np.testing.assert_array_equal(lines[0].get_xdata(), [5, 20, 80])
    median, high = np.quantile(values[0, 0, 5:, 0], [0.5, 0.95], axis=0)
    np.testing.assert_allclose(lines[0].get_ydata(), median, rtol=1e-12)
    np.testing.assert_allclose(lines[1].get_ydata(), high, rtol=1e-12)

    one, ax = data.isel(size=0), Figure().subplots()
    for part, label in ((one.isel(instance=slice(20)), "first"), (one, "all")):
        dln.plot.sweep(part, "gap", kind="bands", ax=ax, label=label)
    first, every = curves(ax)
    expected = np.median(values[0, 0, 5:20, 0], axis=0)
    np.testing.assert_allclose(first.get_ydata(), expected, rtol=1e-12)
    np.testing.assert_allclose(every.get_ydata(), median, rtol=1e-12)
    assert legend(ax) == ["first", "all"] and ax.get_yscale() == ax.get_xscale() == "log"
    edges = [np.asarray(band.get_paths()[0].vertices)[:, 1] for band in ax.collections[2:]]
    for edge, quantiles in zip(edges, ([0.05, 0.95], [0.25, 0.75]), strict=True):
        low, high = np.quantile(values[0, 0, 5:, 0], quantiles, axis=0)
        assert set(np.round(np.log([*low, *high]), 9)) == set(np.round(np.log(edge), 9))

    ax = dln.plot.sweep(data, "knots", ax=Figure().subplots())
    table = np.ma.filled(np.ma.asarray(ax.images[0].get_array()), np.nan)
    assert table.shape == (1, 2)  # side by side: they are not all pairs of n and d
    np.testing.assert_allclose(table[0], np.nanmean(values[:, 0, :, 0, 0], axis=1))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["3×4", "4×4"]
    one_size = dln.plot.sweep(data.isel(size=0), "knots", ax=Figure().subplots())
    np.testing.assert_allclose(np.asarray(one_size.images[0].get_array()), table[:, :1])
    wide = data.assign_coords(d=("size", [4, 4]))
    ax = dln.plot.sweep(wide, "knots", ax=Figure().subplots())
    table = np.ma.filled(np.ma.asarray(ax.images[0].get_array()), np.nan)
    np.testing.assert_allclose(table[:, 0], np.nanmean(values[:, 0, :, 0, 0], axis=1))
    ax = dln.plot.sweep(one, "gap", kind="heatmap", ax=Figure().subplots())
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), median[None])

    for metric, kind, said in (
        ("gaps", None, "no metric 'gaps'"),
        ("gap", "bands", "2 values of 'size'"),
        ("knots", "bands", "neither `s` nor `ε`"),
        ("knots", "scaling", "no `ε`"),
    ):
        with pytest.raises(ValueError, match=said):
            dln.plot.sweep(data, metric, kind=kind)  # pyright: ignore[reportArgumentType]


def test_a_flow_that_failed_is_drawn_as_such(tmp_path):
    problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]))
    network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.geomspace(0.1, 9, 20)
    bad = dln.gradient_flow(network, problem, s, eps=1e-10, max_steps=3, throw=False)
    path = dln.lasso_path(problem)
    assert jnp.all(jnp.isnan(bad.x))
    for ax in (
        dln.plot.gap(problem, bad, path),
        dln.plot.flow(bad),
        dln.plot.plateaus(bad),
        dln.plot.tradeoff(problem, [bad, path]),
    ):
        figure: Any = ax.figure
        figure.savefig(tmp_path / "bad.png")  # matplotlib would fail here
    assert dln.plot.gap(problem, bad, path).get_legend_handles_labels()[1][0] == "ε = 1e-10, failed"


def test_says_how_to_draw_one_of_a_batch(as_users_run_it):
    y = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    problem = lambda y: dln.LeastSquares(jnp.eye(2), y)
    paths = jax.vmap(lambda y: dln.lasso_path(problem(y)))(y)
    network = dln.UV(jnp.ones(2), jnp.zeros(2))
    limits = jax.vmap(lambda y: dln.limit_flow(network, problem(y)))(y)
    for draw in (
        lambda: dln.plot.path(paths),
        lambda: dln.plot.plateaus(limits),
        lambda: dln.plot.tradeoff(problem(y[0]), [limits]),
    ):
        with pytest.raises(ValueError, match=r"batch of paths, of shape \(2,\).*leaf\[0\], batch"):
            draw()
    one = jax.tree.map(lambda leaf: leaf[0], paths)
    for s in ([2.0, 1.0], [-1.0, 1.0], [], [1.0, jnp.inf]):
        with pytest.raises(ValueError, match="`s` must be times from 0 on, in increasing order"):
            dln.plot.path(one, jnp.array(s))
    several: Any = (one, [])
    for curves in several:
        with pytest.raises(ValueError, match="`curves` must be a list of one or more"):
            dln.plot.tradeoff(problem(y[0]), curves)


def test_non_zeros_beside_a_schedule():
    decay = dln.Schedule(jnp.array([1.0]), jnp.array([0.1, 0.0]))
    problem = dln.LeastSquares(jnp.eye(2), jnp.array([2.0, 1.0]), decay)
    network, s = dln.UV(jnp.ones(2), jnp.zeros(2)), jnp.geomspace(0.1, 9, 20)
    flow = dln.gradient_flow(network, problem, s, eps=1e-10)
    ax = dln.plot.tradeoff(problem, [flow], complexity="nonzeros")
    assert np.asarray(ax.lines[0].get_xdata())[-1] == 2
