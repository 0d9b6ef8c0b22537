"""What `gradient_flow` refuses, and what it says. Nothing is compiled."""

import re

import numpy as np
import pytest

import dlnjax as dln

REFUSED = {
    "eps = 1": (dict(eps=1.0), "`eps` must lie in (0, 1), got 1.0. Put a larger"),
    "eps = 0": (dict(eps=0.0), "`eps` must lie in (0, 1), got 0.0"),
    "negative eps": (dict(eps=-0.1), "`eps` must lie in (0, 1), got -0.1"),
    "NaN eps": (dict(eps=np.nan), "`eps` must lie in (0, 1), got nan"),
    "integer eps": (dict(eps=2), "`eps` must lie in (0, 1), got 2"),
    "both": (dict(eps=0.1, log_eps=-3.0), "exactly one of `eps` and `log_eps`, got both"),
    "neither": (dict(), "exactly one of `eps` and `log_eps`, got neither. For example `eps=1e-5`"),
    "log_eps = 0": (dict(log_eps=0.0), "`log_eps` must be finite and negative (ε < 1), got 0.0"),
    "log_eps > 0": (dict(log_eps=3.0), "got 3.0. For ε = 1e-5 pass `log_eps=math.log(1e-5)`"),
    "infinite log_eps": (dict(log_eps=-np.inf), "`log_eps` must be finite and negative"),
    "several eps": (dict(eps=np.array([0.1])), "`eps` must be a scalar, got shape (1,). Use `jax."),
    "several log_eps": (dict(log_eps=-np.ones(2)), "`log_eps` must be a scalar, got shape (2,)"),
    "negative s": (dict(eps=0.1, s=np.array([-1.0, 2.0])), "non-negative, got s[0] = -1.0"),
    "unsorted s": (
        dict(eps=0.1, s=np.array([0.0, 2.0, 1.5])),
        "`s` must be increasing, but s[1] = 2.0 is followed by 1.5. Sort it",
    ),
    "NaN in s": (dict(eps=0.1, s=np.array([0.0, np.nan])), "`s[1]` is nan, and 1 of 2 entries"),
    "infinite s": (dict(eps=0.1, s=np.array([0.0, np.inf])), "`s[1]` is inf"),
    "scalar s": (dict(eps=0.1, s=2.0), "grid of shape (S,), got shape (). Pass `[s]` for one time"),
    "2-D s": (dict(eps=0.1, s=np.ones((2, 3))), "got shape (2, 3). Pass `[s]` for one time, `jax."),
    "empty s": (dict(eps=0.1, s=np.ones(0)), "`s` has an empty axis: its shape is (0,)"),
    "no steps": (dict(eps=0.1, max_steps=0), "`max_steps` must be at least 1, got 0"),
    "network size": (
        dict(eps=0.1, network=dln.USquared(np.ones(3))),
        "The network has 3 coordinates, the problem has 2. Build it with weights of shape (2,)",
    ),
    "solver of the dual form": (
        dict(eps=0.1, formulation=dln.WeightForm(), solver=dln.Rodas5P()),
        "`Rodas5P` integrates the dual form only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    options, message = REFUSED[name]
    inputs = dict(
        network=dln.UV(np.ones(2), np.zeros(2)),
        problem=dln.LeastSquares(np.eye(2), np.ones(2)),
        s=np.array([1.0]),
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        dln.gradient_flow(**(inputs | options))
