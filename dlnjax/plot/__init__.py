"""Figures of training (`flow_beside_lasso.py`) and of sweeps (`sweeps.py`): functions that draw on
an `Axes` and return it, and whole figures made of these.

They use `matplotlib.figure.Figure` without pyplot, so that they need no display and leave the
user's backend alone. `import dlnjax` imports neither matplotlib nor this module.
"""

from .axes import COLORS as COLORS, eps_label as eps_label, style as style
from .flow_beside_lasso import (
    comparison_figure as comparison_figure,
    instances_figure as instances_figure,
    plot_coordinates as plot_coordinates,
    plot_gap as plot_gap,
    plot_plateaus as plot_plateaus,
    plot_trade_off as plot_trade_off,
)
from .sweeps import (
    plot_networks as plot_networks,
    plot_quantiles as plot_quantiles,
    plot_scaling as plot_scaling,
    plot_sizes as plot_sizes,
    sweep_figures as sweep_figures,
)
