"""The figure of GB21-risk and GB21-amp."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from .. import lasso_asymptotics, optimal_stopping
from ..plot.axes import COLORS, DASHES
from . import gb21
from .panels import panel


def phase_diagram(delta: np.ndarray, kappa: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The risk and its derivative in `κ`, both of shape `(len(delta), len(kappa))`."""
    risk = lambda delta, kappa: lasso_asymptotics(gb21.law(delta), kappa, throw=False).risk
    at = jax.value_and_grad(risk, argnums=1)
    grid = jax.jit(jax.vmap(jax.vmap(at, (None, 0)), (0, None)))
    values, slopes = grid(jnp.asarray(delta), jnp.asarray(kappa))
    return np.asarray(values), np.asarray(slopes)


def large_designs() -> Figure:
    """GB21-risk and GB21-amp: the lasso and the flow of 24 draws beside the law; the risk over `δ`
    and `κ`, with the best `κ`; the transition without noise; and the iteration that the law
    describes."""
    figure = Figure(figsize=(9.5, 7), layout="constrained")
    (curves, diagram), (transition, steps) = figure.subplots(2, 2)

    grid = np.geomspace(0.03, 1.5, 120)
    curves.plot(grid, gb21.numbers(grid)[0], color="black", linewidth=1, label="law")
    few = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
    draws = gb21.draws(200, few, with_flow=True)
    for k, (row, name) in enumerate(((0, "lasso path"), (4, "averaged flow"))):
        mean, error = draws[:, row].mean(axis=0), draws[:, row].std(axis=0) / gb21.RUNS**0.5
        # Side by side, since they agree.
        at = few * (0.97 if k == 0 else 1.03)
        curves.errorbar(at, mean, error, fmt="o", color=COLORS[k], markersize=4, label=name)
    best = optimal_stopping(gb21.law())
    curves.axvline(float(best.kappa), color="0.5", linestyle=DASHES, linewidth=0.9, label="best κ")
    curves.set_xscale("log")
    curves.legend(fontsize=8, frameon=False)
    panel(curves, f"{gb21.RUNS} draws 100 × 200", "κ = 1/s", "risk")

    delta, kappa = np.geomspace(0.1, 4, 100), np.geomspace(0.01, 3, 100)
    values, _ = phase_diagram(delta, kappa)
    mesh = diagram.pcolormesh(delta, kappa, np.log10(values).T, cmap="cividis", rasterized=True)
    of_delta = jax.jit(jax.vmap(lambda delta: optimal_stopping(gb21.law(delta)).kappa))
    diagram.plot(delta, np.asarray(of_delta(jnp.asarray(delta))), color="white", label="best κ")
    diagram.set(xscale="log", yscale="log", ylim=(kappa[0], kappa[-1]))
    diagram.legend(fontsize=8, loc="lower right", facecolor="0.4", labelcolor="white")
    panel(diagram, f"risk of the lasso, σ = {gb21.SIGMA:g}", "δ = n/d", "κ").grid(False)
    bar = figure.colorbar(mesh, ax=diagram)
    bar.set_label("log₁₀ of the risk", fontsize=9)
    bar.ax.tick_params(labelsize=8)

    deltas, ratios = np.linspace(0.02, 0.98, 60), np.linspace(0.01, 0.99, 60)
    both = [v.ravel() for v in np.meshgrid(deltas, ratios, indexing="ij")]
    noise = 1e-4
    risk = gb21.risk_of_share(both[0], both[0] * both[1], np.full(3600, noise), np.zeros(3600))
    values = np.log10(np.asarray(risk)).reshape(60, 60)
    mesh = transition.pcolormesh(deltas, ratios, values.T, cmap="cividis", rasterized=True)
    line_delta, line_share = gb21.donoho_tanner(np.linspace(0.02, 4, 200))
    line = dict(color="white", linestyle=DASHES, label="Donoho–Tanner")
    transition.plot(line_delta, line_share / line_delta, **line)
    transition.set(xlim=(deltas[0], deltas[-1]), ylim=(ratios[0], ratios[-1]))
    transition.legend(fontsize=8, loc="upper left", facecolor="0.4", labelcolor="white")
    title = f"basis pursuit, σ = {noise:g}"
    panel(transition, title, "δ = n/d", "entries that are not 0, over n").grid(False)
    bar = figure.colorbar(mesh, ax=transition)
    bar.set_label("log₁₀ of the risk", fontsize=9)
    bar.ax.tick_params(labelsize=8)

    count, runs = np.arange(1, 21), [gb21.iterations(2000, 20, seed) for seed in range(8)]
    errors = np.stack([run[0] for run in runs])
    steps.plot(count, runs[0][1], color="black", linewidth=1, label="state evolution")
    bars = errors.std(axis=0) / len(runs) ** 0.5
    dots = dict(fmt="o", color=COLORS[0], markersize=4, label="8 draws 1000 × 2000")
    steps.errorbar(count, errors.mean(axis=0), bars, **dots)
    steps.set_xticks(range(0, 21, 5))
    steps.legend(fontsize=8, frameon=False)
    panel(steps, "message passing, κ = 0.2", "iteration", "mean square error")
    return figure
