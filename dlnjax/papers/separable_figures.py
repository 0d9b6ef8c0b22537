"""Figures of the claims about separable classes, which `figures.py` lists."""

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ..plot.axes import COLORS, DASHES
from . import gun18, lyu24, mor20
from .panels import panel


def accuracy_against_scale() -> Figure:
    """Mor20-path: the distance to the minimiser of `Σ q(xᵢ/μ)` against `T = log 1/ℓ`."""
    T, off, _ = mor20.distances()
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    ax = figure.subplots()
    for colour, mu, distance in zip(COLORS, mor20.MU, off, strict=False):
        ax.loglog(T, distance[0] * T[0] / T, color=colour, linewidth=0.9)
        ax.loglog(T, distance, "o", color=colour, markersize=4, label=f"μ = {mu:g}")
    panel(ax, "α² = μT; lines: 1/T", "T = log(1/loss)", "distance to the minimiser")
    ax.legend(fontsize=8, frameon=False)
    return figure


def margins_of_faces() -> Figure:
    """Gun18-margin: the margin of flows against `T = log 1/ℓ`, relative to the largest one, and
    that of the face at which the limit `ε → 0` ends."""
    T = np.geomspace(2, 1e6, 40)
    arrays = (jnp.asarray(v) for v in (gun18.instances(), gun18.LOG_EPS, T))
    flow, face, best = map(np.asarray, gun18.margins(*arrays))
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, len(flow), sharey=True)
    for k, ax in enumerate(axes):
        ax.axhline(face[k] / best[k], color="black", linestyle=DASHES, label="of the first face")
        # One is wider: all are seen where they agree.
        lanes = zip(COLORS, (1.5, 3.5, 1.5), gun18.LOG_EPS, flow[k], strict=False)
        for colour, width, size, margin in lanes:
            label = f"log ε = {size:g}"
            ax.semilogx(T, margin / best[k], color=colour, linewidth=width, label=label)
        title = f"instance {k + 1}"
        panel(ax, title, "T = log(1/loss)", "margin / largest margin" if k == 0 else "")
    axes[0].set_ylim(0, 1)
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def grokking() -> Figure:
    """Lyu24-grokking: the 2-norm separator and the 1-norm margin along training."""
    c = np.linspace(0.5, 2, 121)
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    labels = ("cosine with the 2-norm separator", "1-norm margin / largest margin")
    for ax, label, curves in zip(axes, labels, lyu24.transition(lyu24.LOG_ALPHA, c), strict=True):
        ax.axvline(1, color="0.6", linewidth=0.9, linestyle=":")
        for colour, size, curve in zip(COLORS, lyu24.LOG_ALPHA, curves, strict=False):
            ax.plot(c, curve, color=colour, linewidth=1.5, label=f"log α = {size:g}")
        panel(ax, "24 × 120, logistic loss with weight decay", "λt / log α", label)
    axes[1].legend(fontsize=8, frameon=False, loc="lower right")
    return figure
