"""What all figures share: colours, the look of axes, and labels."""

import math

import numpy as np
from jax import Array
from matplotlib.axes import Axes

Values = np.ndarray | Array

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#6A51A3")
GREY = "#B8B8B8"
LASSO = "#222222"
DASHES = (0, (4, 2))


def coordinate_colors(lasso: np.ndarray) -> dict[int, str]:
    """A colour for each coordinate of `lasso`, `(S, d)`, if there are few, else for the largest
    ones."""
    d = lasso.shape[1]
    order = np.argsort(-np.max(np.abs(lasso), axis=0), kind="stable")
    chosen = range(d) if d <= len(COLORS) else order[: len(COLORS)].tolist()
    return dict(zip(chosen, COLORS, strict=False))


def short_name(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def style(ax: Axes) -> Axes:
    """What all axes here look like: `ax` with a grid, small labels and two sides only.

    !!! example

        ```python
        from matplotlib.figure import Figure

        ax = dln.plot.style(Figure().subplots())
        ```
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, which="major", color="#EDEDED", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    return ax


def eps_label(log_eps: float) -> str:
    """`ε` as text, from `log_eps`: as `e^log_eps` where it would underflow.

    !!! example

        ```python
        dln.plot.eps_label(np.log(1e-5))  # "1e-05"
        dln.plot.eps_label(-2000.0)  # "e^-2000"
        ```
    """
    return f"{math.exp(log_eps):.3g}" if log_eps > -690 else f"e^{log_eps:g}"
