"""What `lasso_path` refuses, and what it says. Nothing is solved."""

import re

import numpy as np
import pytest
from lasso_paths import MEDIUM, instances_of

import dlnjax as dln

REFUSED = {
    "length of weights": (
        {"weights": np.ones(5)},
        "`weights` must have shape (6,) or (2, 6), got (5,)",
    ),
    "three rows of weights": (
        {"weights": np.ones((3, 6))},
        "`weights` must have shape (6,) or (2, 6), got (3, 6)",
    ),
    "one weight": ({"weights": 2.0}, "`weights` must have shape (6,) or (2, 6), got ()"),
    "negative weight": ({"weights": -np.ones(6)}, "must not be negative, got -1.0"),
    "NaN weight": ({"weights": np.full(6, np.nan)}, "must not be negative, got nan"),
    "max_knots": ({"max_knots": 0}, "`max_knots` must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    X, y = (a[0] for a in instances_of(MEDIUM))
    kwargs, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        dln.lasso_path(dln.LeastSquares(X, y), **kwargs)
