"""What figures show: the numbers that they were given."""

import jax.numpy as jnp
import numpy as np
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from dlnjax import plot


def test_coordinates_are_coloured_by_size():
    """Eight of ten, the largest ones; flow solid, lasso dashed. JAX arrays are welcome."""
    s = jnp.linspace(1, 2, 5)
    lasso = jnp.outer(s, jnp.array([0.01, *range(1, 9), 0.02]))
    ax = plot.plot_coordinates(Figure().subplots(), s, lasso + 1, lasso)
    pairs = np.reshape(np.array(ax.get_lines()[:-1]), (10, 2))
    for flow, of_lasso in pairs:
        assert flow.get_color() == of_lasso.get_color()
        assert flow.get_linestyle() == "-" and of_lasso.get_linestyle() == "--"
        np.testing.assert_allclose(flow.get_ydata(), of_lasso.get_ydata() + 1, rtol=1e-12)
    ends = {round(of_lasso.get_ydata()[-1], 2): flow.get_color() for flow, of_lasso in pairs}
    assert same_color(ends[0.02], ends[0.04]) and len({*ends.values()}) == 9


def test_gap_that_is_0_stays_in_the_figure():
    ax = plot.plot_gap(Figure().subplots(), np.arange(1.0, 4), np.array([1, 1e-3, 0]), np.ones(3))
    gap, bound = (np.asarray(line.get_ydata()) for line in ax.get_lines())
    assert ax.get_yscale() == "log" and gap[-1] > 0 and (gap <= bound).all()
