"""Figures of the papers in the ledger, by the identifiers of their claims.

Each function measures through the public API, draws, and returns a `Figure`. They use matplotlib's
objects, not `pyplot`, so that no window or global state is involved.
"""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from .. import (
    UV,
    Layers,
    LeastSquares,
    MomentumForm,
    Schedule,
    gradient_flow,
    inverse_mirror_map,
    limit_flow,
    potential,
)
from ..plot.axes import COLORS, DASHES, GREY
from . import (
    b23,
    bl22,
    bmz23,
    dec26,
    ebbf21,
    ebbf21_gossip,
    gis20,
    jac25,
    mb23,
    mbbb24,
    ms25,
    pap24,
    pba24,
    pes21,
    pf23,
    separable_figures,
    w23,
    zhao26,
)
from .end_points import Lane, end_points
from .gb21_figure import large_designs
from .panels import over_plateaus, panel

DEPTHS = (2, 2.5, 3, 4)


def w23_rates() -> Figure:
    """[W23] Fig. 1: distance to the limit against `α^D`, on the two instances of W23-which and on
    a random one, whose minimum 1-norm point is unique."""
    rng = np.random.default_rng(0)
    instances: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "A = [1 1 1; 3 0 1], y = (3, 3)": w23.FIRST,
        "A = [2 −1 0 1; 0 3 2 0], y = (0, 6)": w23.SECOND,
        "A 3 × 5 and y random": (rng.normal(size=(3, 5)), rng.normal(size=3)),
    }
    # Three points a decade, without 1 itself: ε is below 1.
    eps = np.geomspace(1e-9, 1, 28)[:-1]
    keys = [(title, D) for title in instances for D in DEPTHS]
    small = [Lane(D, *instances[title], float(np.log(e))) for title, D in keys for e in eps]
    x = end_points(small).reshape(len(keys), len(eps), -1)
    limits = end_points([Lane(D, *instances[title], None) for title, D in keys])
    error = dict(zip(keys, np.max(np.abs(x - limits[:, None]), axis=2), strict=True))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, title in zip(axes, instances, strict=True):
        for colour, D in zip(COLORS, DEPTHS, strict=False):
            ax.loglog(eps, error[title, D], color=colour, label=f"D = {D:g}")
        panel(ax, title, r"$\alpha^D$", "distance to the limit" if ax is axes[0] else "")
        ax.set_ylim(1e-13, 10)
    axes[1].legend(fontsize=8, frameon=False)
    return figure


def w23_hard_instance() -> Figure:
    """[W23] Fig. 2: distance to the minimiser of `A = [1, 1 − δ]`, `y = 1`, against `α^D` and `δ`:
    how small the initialisation must be before the minimiser is resolved."""
    # Lowest powers of 10 of ε: at depth 2 the transition is at ε^δ = ½, 1e-30 for δ = 0.01.
    deltas, lowest = np.geomspace(1e-3, 0.5, 33), {2: -60, 3: -15, 4: -15}
    every = np.concatenate([w23.DELTAS, deltas])
    eps = {D: np.geomspace(10.0**low, 0.9, 41) for D, low in lowest.items()}
    x = end_points(
        [
            Lane(D, np.array([[1, 1 - delta]]), np.ones(1), float(np.log(e)))
            for D in eps
            for delta in every
            for e in eps[D]
        ]
    ).reshape(len(eps), len(every), -1, 5)
    error = np.max(np.abs(x - np.eye(5)[0]), axis=3)
    scale = ScalarMappable(Normalize(-8, 0), "cividis")
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 3, sharex="col", sharey="row")
    for (curves, diagram), D, values in zip(axes.T, eps, error, strict=True):
        for colour, delta, row in zip(COLORS, w23.DELTAS, values, strict=False):
            curves.loglog(eps[D], row, color=colour, label=f"δ = {delta:g}")
            # The asymptotes of W23-fig2, and below the line of the transition.
            limit = eps[D] ** delta if D == 2 else eps[D] * delta ** (-D / (D - 2))
            curves.loglog(eps[D], limit, color=colour, linestyle=DASHES, linewidth=0.9)
            diagram.axhline(delta, color=colour, linewidth=0.9)
        diagram.pcolormesh(
            eps[D],
            deltas,
            np.log10(values[len(w23.DELTAS) :]),
            norm=scale.norm,
            cmap=scale.cmap,
            rasterized=True,
        )
        where = np.log(0.5) / np.log(eps[D]) if D == 2 else eps[D] ** (1 - 2 / D)
        diagram.plot(eps[D], where, color="black", linestyle=DASHES)
        diagram.set(ylim=(deltas[0], deltas[-1]), yscale="log")
        diagram.set_xticks(np.logspace(lowest[D], 0, 6))
        diagram.xaxis.set_minor_locator(NullLocator())
        is_first = D == 2
        name = r"$(\alpha^2)^\delta = 1/2$" if is_first else r"$\alpha^{D-2} = \delta$"
        panel(curves, f"D = {D}", "", "distance to the minimiser" if is_first else "")
        panel(diagram, f"dashed: {name}", r"$\alpha^D$", "δ" if is_first else "").grid(False)
    axes[0, 0].set_ylim(1e-12, 10)
    axes[0, 0].legend(fontsize=8, frameon=False, title="dashed: small α", title_fontsize=8)
    bar = figure.colorbar(scale, ax=axes[1], extend="min")
    bar.set_label("log₁₀ of the distance", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return figure


def w23_potentials() -> Figure:
    """[W23] Fig. 3: `q_D`, its limit `g_D` far from 0, and `h_D = (q_D')⁻¹`."""
    z, slope = np.linspace(-5, 5, 201), np.linspace(-0.99, 0.99, 201)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    q, g, h = figure.subplots(1, 3)
    for colour, D in zip(COLORS, DEPTHS, strict=False):
        q.plot(z, np.asarray(potential(z, D)), color=colour, label=f"D = {D:g}")
        g.plot(z, w23.limit_potential(z, D), color=colour)
        h.plot(slope, np.asarray(inverse_mirror_map(slope, D)), color=colour)
    h.set_ylim(-20, 20)
    panel(q, "potential of the end points", r"$z = x/\alpha^D$", r"$q_D(z)$")
    q.legend(fontsize=8, frameon=False, loc="upper center")
    panel(g, "its limit for small α", "z", r"$g_D(z)$")
    panel(h, r"inverse of $q_D'$", "t", r"$h_D(t)$")
    return figure


def saddle_to_saddle() -> Figure:
    """The flow of `u∘v` on PF23-fixture at three `ε`, over its limit, which jumps from plateau to
    plateau."""
    problem, network = LeastSquares(*pf23.FIXTURE), UV(np.ones(4), np.zeros(4))
    s = np.linspace(0, 8, 801)
    log_eps = np.array([-12.0, -60, -600])
    run = lambda size: gradient_flow(network, problem, s, log_eps=size).x
    x = np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(log_eps)))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = list(figure.subplots(1, 3, sharey=True))
    over_plateaus(axes, s, log_eps, x, np.asarray(limit_flow(network, problem).slope(s)))
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def activations() -> Figure:
    """B23-activation: the flow of `u∘u` at three `ε` over its limit, and the delay of its jumps."""
    problem, limit = b23.activation_instance()
    jumps = np.asarray(limit.jumps)[: int(limit.num_jumps)]
    s, log_eps = np.linspace(0, 1.25 * jumps[-1], 801), np.array([-12.0, -60, -600])
    x = b23.flows(problem, jnp.asarray(log_eps), jnp.asarray(np.tile(s, (3, 1))))
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    *axes, late = figure.subplots(1, 4)
    over_plateaus(axes, s, log_eps, np.asarray(x), np.asarray(limit.plateau(s)))
    for ax in axes:
        ax.sharey(axes[0])
        for jump in jumps:
            ax.axvline(jump, color="#777777", linestyle=DASHES, linewidth=0.8)
    axes[0].legend(fontsize=8, frameon=False)
    axes[0].set_xlabel("s; dashed: the jumps of the limit", fontsize=9)
    length, delay, _ = b23.delays(problem, limit)
    for k, (colour, values) in enumerate(zip(COLORS, delay.T, strict=False)):
        # The line through 0 and the smallest ε: delays are C/log(1/ε).
        steepness = values[-1] * length[-1]
        late.plot([0, 1 / length[0]], [0, steepness / length[0]], color=colour, linewidth=0.9)
        late.plot(1 / length, values, "o", color=colour, markersize=4, label=f"jump {k + 1}")
    late.set_xticks([0, *1 / length[:-1]], ["0", *(f"1/{value:g}" for value in length[:-1])])
    panel(late, "flow minus limit", "1/ln(1/ε)", "delay of the jump, in s")
    late.legend(fontsize=8, frameon=False)
    return figure


def ms25_rates() -> Figure:
    """MS25-rate: distance to the unique minimum 1-norm point against `ε = α^D`, and the predicted
    slopes."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    measured = {D: rows for (kind, D), rows in ms25.errors().items() if kind == "n"}
    for ax, (D, rows) in zip(axes, measured.items(), strict=True):
        for colour, slope, log_eps, error in zip(COLORS, *rows, strict=False):
            # Only the slope is predicted: lines go through the first point.
            line = error[0] * np.exp(slope * (log_eps - log_eps[0]))
            ax.loglog(np.exp(log_eps), line, color=colour, linewidth=0.9)
            label = rf"$1 - \varrho$ = {slope:.2f}"
            ax.loglog(np.exp(log_eps), error, "o", color=colour, markersize=4, label=label)
        title = f"D = {D}; lines: slope " + (r"$1 - \varrho$" if D == 2 else "1")
        panel(ax, title, r"$\varepsilon = \alpha^D$", "distance to the minimiser" if D == 2 else "")
    axes[0].xaxis.set_major_locator(LogLocator(1e10))
    # Room for the legend.
    axes[0].set_ylim(top=5e-3)
    axes[0].legend(fontsize=8, frameon=False, loc="upper left", ncols=2)
    return figure


def logistic_growth() -> Figure:
    """Gis20-scalar: one coordinate of `u∘u` with target `σ`, and the logistic function."""
    target, eps, t, x, closed = gis20.curves()
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    grow, collapse = figure.subplots(1, 2)
    colours = dict(zip(np.unique(target), COLORS, strict=False))
    for sigma, size, time, flow, exact in zip(target, eps, t, x, closed, strict=True):
        shifted = 4 * sigma * time - np.log(sigma / size - 1)
        for ax, where, scale in ((grow, time, 1.0), (collapse, shifted, sigma)):
            ax.plot(where, exact / scale, color=colours[sigma], linewidth=0.9)
            ax.plot(where, flow / scale, ".", color=colours[sigma], markersize=3)
    handles = [Line2D([], [], color=c, label=f"σ = {sigma:g}") for sigma, c in colours.items()]
    grow.legend(handles=handles, fontsize=8, frameon=False, loc="center right")
    panel(grow, "ε = 1e-2, 1e-5, 1e-10, left to right; lines: closed form", "t", "x(t)")
    panel(collapse, "all nine over one logistic function", "4σt − ln(σ/ε − 1)", "x/σ")
    collapse.set_xlim(-10, 10)
    return figure


def decay_switched_off() -> Figure:
    """Jac25-decay: the flow of `u∘v` with decay that is switched off, and without; and how close to
    the least 1-norm it ends, against the total decay."""
    problem, network = jac25.instance(0), UV(jnp.ones(jac25.D), jnp.zeros(jac25.D))
    s, size = np.linspace(0, 10, 401), float(jac25.LOG_EPS[1])
    total = float(jac25.TOTALS[-1])
    decay = Schedule([jac25.SWITCH], [total / jac25.SWITCH, 0.0])
    decayed = LeastSquares(problem.X, problem.y, decay)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    curves, ends = figure.subplots(1, 2)
    for which, line in ((problem, DASHES), (decayed, "-")):
        x = np.asarray(gradient_flow(network, which, s, log_eps=size).x)
        for i, colour in zip(range(jac25.D), COLORS, strict=False):
            label = f"$x_{i + 1}$" if which is decayed else None
            curves.plot(s, x[:, i], color=colour, linestyle=line, linewidth=1.2, label=label)
    curves.axvline(jac25.SWITCH, color="#777777", linewidth=0.8)
    curves.legend(fontsize=8, frameon=False, ncols=2)
    panel(curves, f"decay off at s = {jac25.SWITCH:g}; dashed: none", "s", "x(s), ε = 1e-2")
    excess, _ = jac25.norms()
    for colour, size, rows in zip(COLORS, jac25.LOG_EPS, excess, strict=False):
        ends.semilogy(jac25.TOTALS, rows[:, 1], color=colour, label=f"ε = {np.exp(size):g}")
        ends.semilogy(jac25.TOTALS, rows[:, 0], "o", color=colour, markersize=4)
    ends.legend(fontsize=8, frameon=False)
    title = r"flows; lines: the end point of $\varepsilon^{1 + \Lambda}$"
    panel(ends, title, "total decay Λ", "‖x(∞)‖₁ above the least, relative")
    return figure


def stochastic() -> Figure:
    """Pes21-sgf: the weights against the flow on the same Brownian paths, and what noise does to
    the 1-norm of the end."""
    off, off_alpha = pes21.errors()
    excess, _, _ = pes21.ends()
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.array(pes21.STEPS, float)
    for values, marker, label in ((off, "o", "x"), (off_alpha, "s", r"$\log\,\alpha_\infty$")):
        left.loglog(steps, values, marker, color=COLORS[0], markersize=4, label=label)
    half = off_alpha[-1] * np.sqrt(steps[-1] / steps)
    left.loglog(steps, half, color=COLORS[1], linewidth=0.9, label="slope −½")
    left.legend(fontsize=8, frameon=False)
    panel(left, "weights against the flow, same paths", "steps of the weights", "error")
    sizes = pes21.N * pes21.SIZES
    right.plot(sizes, excess, ".", color=COLORS[0], markersize=3)
    right.plot(sizes, excess.mean(axis=1), color=COLORS[1], linewidth=0.9, label="mean")
    right.legend(fontsize=8, frameon=False)
    title = f"end points of {pes21.PATHS} paths"
    panel(right, title, "step size γ of the paper", r"$\|x\|_1$ over its minimum, minus 1")
    return figure


def growth_times() -> Figure:
    """Zhao26-growth: two flows of three layers on PF23-fixture over their limit; and distances to
    the weighted linear programme."""
    problem, network = LeastSquares(*pf23.FIXTURE), Layers(zhao26.weights(3, 4, seed=6))
    limit = limit_flow(network, problem)
    s = np.linspace(0, 1.2 * float(limit.jumps[-1]), 601)
    log_eps = np.array([-7.0, -138])
    run = lambda size: gradient_flow(network, problem, s, log_eps=size).x
    x = np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(log_eps)))
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    *axes, ends = figure.subplots(1, 3)
    over_plateaus(axes, s, log_eps, x, np.asarray(limit.plateau(s)))
    axes[0].legend(fontsize=8, frameon=False)
    away, eps = zhao26.ends()[:, :-1], np.exp(zhao26.LOG_EPS[:-1])
    for colour, distance in zip(COLORS, away, strict=False):
        ends.loglog(eps, distance[-1] * eps / eps[-1], color=colour, linewidth=0.9)
        ends.loglog(eps, distance, "o", color=colour, markersize=4)
    title = f"{zhao26.LAYERS} layers, {zhao26.STARTS} starts; lines: slope 1"
    panel(ends, title, "ε", "distance to the programme, relative")
    return figure


def pretrained() -> Figure:
    """Dec26-start: a flow from a pretrained start over its limit, and how far time averages are
    from it."""
    x, plateaus, away = dec26.approach()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    curves, distance = figure.subplots(1, 2)
    for i in range(dec26.COLUMNS):
        # One colour for what is inherited, others for what is missing.
        k = 0 if i < dec26.INHERITED else i - dec26.INHERITED + 1
        colour = COLORS[k] if i < dec26.SUPPORT else GREY
        z = 1 if colour == GREY else 2
        curves.plot(dec26.S, plateaus[:, i], color=colour, linewidth=4, alpha=0.25, zorder=z)
        label = "inherited" if i == 0 else f"$x_{{{i + 1}}}$" if k and colour != GREY else None
        curves.plot(dec26.S, x[:, i], color=colour, linewidth=1.2, label=label, zorder=z)
    curves.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 0.1))
    title = f"log ε = {-dec26.SIZES[-1]:g}; thick: the limit"
    panel(curves, title, "s", "x(s) from the pretrained start")
    line = away[-1] * dec26.SIZES[-1] / dec26.SIZES
    distance.loglog(dec26.SIZES, line, color=COLORS[1], linewidth=0.9, label="slope −1")
    distance.loglog(dec26.SIZES, away, "o", color=COLORS[0], markersize=4)
    distance.legend(fontsize=8, frameon=False)
    panel(distance, "time averages", "log(1/ε)", "largest distance to the limit")
    return figure


def momentum() -> Figure:
    """Pap24-momentum: the first jump of three flows, and its time against the inertia."""
    of = pap24.problem()
    largest = float(np.max(np.abs(np.asarray(of.r))))
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    s = np.linspace(0.9, 1.1, 201)
    for k, (log_eps, x) in enumerate(zip(pap24.LOG_EPS, pap24.curves(s), strict=True)):
        label = f"ε = 1e{log_eps / np.log(10):.0f}"
        left.plot(s, x, color=COLORS[k], linewidth=1.2, label=label)
    form = MomentumForm(pap24.INERTIA)
    jump = float(form.first_jump(pap24.network(), of))
    left.axvline(jump, color="0.3", linewidth=0.9, linestyle="--", label="predicted")
    plain = dict(color="0.6", linewidth=0.9, linestyle=":", label="without momentum")
    left.axvline(1 / largest, **plain)
    left.legend(fontsize=8, frameon=False, loc="upper left")
    panel(left, f"inertia {pap24.INERTIA:g}", "s", "the first coordinate")
    inertia = np.linspace(0.01, 0.23, 12)
    measured = pap24.jumps(np.full(12, pap24.LOG_EPS[-1]), inertia)
    predicted = [float(MomentumForm(m).first_jump(pap24.network(), of)) for m in inertia]
    right.plot(inertia, predicted, color=COLORS[1], linewidth=0.9, label=r"$1/\psi(\|r\|_\infty)$")
    right.plot(inertia, measured, "o", color=COLORS[0], markersize=4, label="ε = 1e-300")
    right.axhline(1 / largest, **plain)
    right.legend(fontsize=8, frameon=False)
    panel(right, "time of the first jump", "inertia", "s")
    return figure


FIGURES = {
    "B23-activation": activations,
    "W23-fig1": w23_rates,
    "W23-fig2": w23_hard_instance,
    "W23-fig3": w23_potentials,
    "PF23-fixture": saddle_to_saddle,
    "MS25-rate": ms25_rates,
    "Jac25-decay": decay_switched_off,
    "Gis20-scalar": logistic_growth,
    "Pes21-sgf": stochastic,
    "Pap24-momentum": momentum,
    "Zhao26-growth": growth_times,
    "Dec26-start": pretrained,
    "Mor20-path": separable_figures.accuracy_against_scale,
    "Gun18-margin": separable_figures.margins_of_faces,
    "Lyu24-grokking": separable_figures.grokking,
    "PBA24-switch": pba24.figure,
    "EBBF21-rates": ebbf21.figure,
    "EBBF21-gossip": ebbf21_gossip.figure,
    "BL22-moment": bl22.figure,
    "BMZ23-times": bmz23.figure,
    "MBBB24-risk": mbbb24.figure,
    "GB21-risk": large_designs,
    "MB23-loss": mb23.figure,
}
