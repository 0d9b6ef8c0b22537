"""Panels that several figures of the papers have."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from ..plot.axes import COLORS, style


def panel(ax: Axes, title: str, x: str, y: str) -> Axes:
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    return style(ax)


def over_plateaus(
    axes: Sequence[Axes], s: np.ndarray, log_eps: np.ndarray, x: np.ndarray, plateaus: np.ndarray
) -> None:
    """Flows `x`, shape `(E, S, d)`, one panel an `ε`, over their limit, shape `(S, d)`."""
    for ax, size, values in zip(axes, log_eps, x, strict=True):
        for i, colour in zip(range(plateaus.shape[1]), COLORS, strict=False):
            ax.plot(s, plateaus[:, i], color=colour, linewidth=4, alpha=0.25)
            ax.plot(s, values[:, i], color=colour, linewidth=1.2, label=f"$x_{i + 1}$")
        panel(ax, f"ln ε = {size:g}", "s", "x(s); thick: the limit ε → 0" if ax is axes[0] else "")
