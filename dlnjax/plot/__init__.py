"""Figures of what the library returns. Each function draws on `ax`, or on the axes of a new figure,
and returns the axes; whole figures are made of these.

    path, flow, plateaus    coordinates of the lasso path, the averaged flow, the network (curves)
    gap, tradeoff           a flow beside the path in numbers (comparisons)
    crossings               when coordinates open (openings)
    sweep                   a metric over instances (sweeps)
    *_figure(s)             what the command line writes (figures)

A new figure is one of pyplot where that is imported already, or a notebook runs, so that it shows;
else it is a `matplotlib.figure.Figure`, which needs no display and leaves the user's backend alone.
With `ax`, pyplot is never touched. `import dlnjax` imports neither matplotlib nor this module.
"""

from .axes import COLORS as COLORS, STYLE as STYLE, eps_label as eps_label, style as style
from .comparisons import gap as gap, tradeoff as tradeoff
from .curves import flow as flow, path as path, plateaus as plateaus
from .figures import (
    comparison_figure as comparison_figure,
    instances_figure as instances_figure,
    sweep_figures as sweep_figures,
)
from .openings import crossings as crossings
from .sweeps import sweep as sweep
