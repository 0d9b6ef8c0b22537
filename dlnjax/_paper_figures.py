"""Figures of the papers behind the ledger: functions that measure and draw, and return a
`Figure`."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import (
    UV,
    LeastSquares,
    gradient_flow,
    inverse_mirror_map,
    limit_flow,
    mirror_map,
    potential,
)
from ._plotting import COLOURS
from .papers import pf23, w23
from .papers._end_points import Lane, end_points

DEPTHS = (2, 2.5, 3, 4)


def _panel(ax: Axes, title: str, x: str, y: str) -> Axes:
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", color="#EDEDED", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    return ax


def w23_rates() -> Figure:
    """[W23] Fig. 1: distance to the limit against `α^D`, on the two instances of W23-which."""
    eps = np.geomspace(1e-9, 1, 28)[:-1]
    keys = [(name, D) for name in w23.INSTANCES for D in DEPTHS]
    lanes = [Lane(D, *w23.INSTANCES[name], float(np.log(e))) for name, D in keys for e in eps]
    points = end_points(lanes).reshape(len(keys), len(eps), -1)
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = dict(zip(w23.INSTANCES, figure.subplots(1, 2, sharey=True), strict=True))
    titles = {
        "first": "A = [1 1 1; 3 0 1], y = (3, 3)",
        "second": "A = [2 −1 0 1; 0 3 2 0], y = (0, 6)",
    }
    for (name, D), x in zip(keys, points, strict=True):
        error = np.max(np.abs(x - w23.chosen(D)), axis=1)
        axes[name].loglog(eps, error, color=COLOURS[DEPTHS.index(D)], label=f"D = {D:g}")
    for name, ax in axes.items():
        _panel(ax, titles[name], r"$\alpha^D$", "distance to the limit" if name == "first" else "")
        ax.set_ylim(1e-13, 10)
    axes["second"].legend(fontsize=8, frameon=False)
    return figure


def w23_hard_instance() -> Figure:
    """[W23] Fig. 2: distance to the minimiser of `A = [1, 1 − δ]`, `y = 1`, against `α^D`: how
    small the initialisation must be before the minimiser is resolved."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    log_eps = np.linspace(-0.5, -90, 40)
    one = np.ones(1)
    for ax, D in zip(figure.subplots(1, 2, sharey=True), (2, 3), strict=True):
        for colour, delta in zip(COLOURS, w23.DELTAS, strict=False):
            design = np.array([[1, 1 - delta]])
            x = end_points([Lane(D, design, one, float(e)) for e in log_eps])
            error = np.max(np.abs(x - np.eye(5)[0]), axis=1)
            power = log_eps / np.log(10)
            ax.semilogy(power, error, color=colour, label=f"δ = {delta:g}")
            k = np.inf if D == 2 else D / (D - 2)
            limit = np.exp(delta * log_eps) if D == 2 else np.exp(log_eps) * delta**-k
            ax.semilogy(power, limit, color=colour, linestyle=(0, (4, 2)), linewidth=0.9)
        label = "distance to the minimiser" if D == 2 else ""
        _panel(ax, f"D = {D}", r"$\log_{10} \alpha^D$", label)
        ax.set_ylim(1e-16, 10)
        ax.legend(fontsize=8, frameon=False, title="dashed: small α", title_fontsize=8)
    return figure


def w23_potentials() -> Figure:
    """[W23] Fig. 3: `q_D`, its derivative `g_D = h_D⁻¹`, and `h_D`."""
    z = np.linspace(-5, 5, 401)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    q, g, h = figure.subplots(1, 3)
    for colour, D in zip(COLOURS, DEPTHS, strict=False):
        q.plot(z, np.asarray(potential(z, D)), color=colour, label=f"D = {D:g}")
        slope = np.asarray(mirror_map(z, D))
        g.plot(z, slope, color=colour)
        h.plot(slope, np.asarray(inverse_mirror_map(slope, D)), color=colour)
    _panel(q, r"potential $q_D$", "z", "").legend(fontsize=8, frameon=False)
    _panel(g, r"$q_D' = h_D^{-1}$", "z", "")
    _panel(h, r"$h_D$", r"$q_D'$", "")
    return figure


def saddle_to_saddle() -> Figure:
    """The flow of `u∘v` on PF23-fixture at three `ε` over its limit: `x` jumps from plateau to
    plateau."""
    problem, network = LeastSquares(*pf23.FIXTURE), UV(np.ones(4), np.zeros(4))
    s = np.linspace(0, 8, 801)
    log_eps = np.array([-12.0, -60, -600])
    run = lambda size: gradient_flow(network, problem, s, log_eps=size).x
    flows = np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(log_eps)))
    plateaus = np.asarray(limit_flow(network, problem).slope(s))
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for ax, size, x in zip(axes, log_eps, flows, strict=True):
        for i, colour in zip(range(4), COLOURS, strict=False):
            ax.plot(s, plateaus[:, i], color=colour, linewidth=4, alpha=0.25)
            ax.plot(s, x[:, i], color=colour, linewidth=1.2, label=f"$x_{i + 1}$")
        _panel(ax, f"ln ε = {size:g}", "s", "x(s); thick: the limit ε → 0" if ax is axes[0] else "")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


FIGURES = {
    "W23-fig1": w23_rates,
    "W23-fig2": w23_hard_instance,
    "W23-fig3": w23_potentials,
    "PF23-fixture": saddle_to_saddle,
}
