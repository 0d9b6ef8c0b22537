"""Paths: the piecewise linear type, the limit process on it, the optimality conditions."""

from .lasso import LassoPath as LassoPath, information_criterion as information_criterion
from .limit import LimitFlow as LimitFlow
from .optimality import (
    kkt_violation as kkt_violation,
    kkt_violations as kkt_violations,
    largest_correlation as largest_correlation,
    penalties as penalties,
    penalty as penalty,
    rounding_units as rounding_units,
)
from .piecewise_linear import PiecewiseLinearPath as PiecewiseLinearPath
