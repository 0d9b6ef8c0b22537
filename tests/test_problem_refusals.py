"""What problems and their methods refuse, and what they say."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import dlnjax as dln

X0, Y0 = np.arange(6.0).reshape(3, 2) + np.eye(3, 2), np.ones(3)
PROBLEM = dln.LeastSquares(X0, Y0)


def _with(array, where, value):
    array = array.copy()
    array[where] = value
    return array


REFUSED = {
    "NaN in X": (
        lambda: dln.LeastSquares(_with(X0, (1, 0), np.nan), Y0),
        ValueError,
        "`X[1, 0]` is nan, and 1 of 6 entries of `X` are not finite. Remove or impute",
    ),
    "inf in y": (
        lambda: dln.LeastSquares(X0, _with(Y0, 2, -np.inf)),
        ValueError,
        "`y[2]` is -inf, and 1 of 3 entries of `y` are not finite. Remove or impute",
    ),
    "rows of X and y": (
        lambda: dln.LeastSquares(X0, np.ones(4)),
        ValueError,
        "`X` has 3 rows but `y` has 4 entries",
    ),
    "1-D X": (
        lambda: dln.LeastSquares(np.ones(3), Y0),
        ValueError,
        "`X` must be a matrix (n, d), got shape (3,). Use `X[:, None]`",
    ),
    "3-D X": (
        lambda: dln.LeastSquares(np.ones((2, 3, 2)), Y0),
        ValueError,
        "got shape (2, 3, 2)",
    ),
    "2-D y": (
        lambda: dln.LeastSquares(X0, np.ones((3, 1))),
        ValueError,
        "`y` must be a vector (n,), got shape (3, 1). Use `y[:, 0]`",
    ),
    "no rows": (
        lambda: dln.LeastSquares(np.ones((0, 2)), np.ones(0)),
        ValueError,
        "`X` has an empty axis: its shape is (0, 2)",
    ),
    "no columns": (
        lambda: dln.LeastSquares(np.ones((3, 0)), Y0),
        ValueError,
        "`X` has an empty axis: its shape is (3, 0)",
    ),
    "complex X": (
        lambda: dln.LeastSquares(X0 + 0j, Y0),
        TypeError,
        "`X` must be real, got dtype complex128. Pass its real part",
    ),
    "text in X": (
        lambda: dln.LeastSquares(X0.astype(str), Y0),
        TypeError,
        "`X` must be an array of numbers, got a ndarray of dtype <U32 with '",
    ),
    "objects in y": (
        lambda: dln.LeastSquares(X0, np.array([1.0, None, "a"], dtype=object)),
        TypeError,
        "`y` must be an array of numbers, got a ndarray of dtype object with 'None' at [1]",
    ),
    "objects that are numbers": (
        lambda: dln.LeastSquares(X0.astype(object), Y0),
        TypeError,
        "`X` must be an array of numbers, got a ndarray of dtype object. Convert it: `.astype",
    ),
    "negative decay": (
        lambda: dln.LeastSquares(X0, Y0, weight_decay=-0.5),
        ValueError,
        "`weight_decay` must be finite and non-negative, got -0.5",
    ),
    "NaN decay": (
        lambda: dln.LeastSquares(X0, Y0, weight_decay=np.nan),
        ValueError,
        "`weight_decay` must be finite and non-negative, got nan",
    ),
    "infinite decay": (
        lambda: dln.Quadratic(np.eye(2), np.ones(2), weight_decay=np.inf),
        ValueError,
        "`weight_decay` must be finite and non-negative, got inf",
    ),
    "vector of decays": (
        lambda: dln.LeastSquares(X0, Y0, weight_decay=np.ones(2)),
        ValueError,
        "`weight_decay` must be a scalar, got shape (2,). Use `jax.vmap`",
    ),
    "M not square": (
        lambda: dln.Quadratic(np.ones((2, 3)), np.ones(2)),
        ValueError,
        "`M` must be a square matrix, got shape (2, 3)",
    ),
    "1-D M": (
        lambda: dln.Quadratic(np.ones(2), np.ones(2)),
        ValueError,
        "`M` must be a square matrix, got shape (2,)",
    ),
    "empty M": (
        lambda: dln.Quadratic(np.ones((0, 0)), np.ones(0)),
        ValueError,
        "`M` has an empty axis: its shape is (0, 0)",
    ),
    "shape of r": (
        lambda: dln.Quadratic(np.eye(2), np.ones(3)),
        ValueError,
        "`r` must have shape (2,) to match `M`, got (3,)",
    ),
    "NaN in M": (
        lambda: dln.Quadratic(_with(np.eye(2), (0, 1), np.nan), np.ones(2)),
        ValueError,
        "`M[0, 1]` is nan",
    ),
    "inf in r": (
        lambda: dln.Quadratic(np.eye(2), np.array([1, np.inf])),
        ValueError,
        "`r[1]` is inf",
    ),
    "asymmetric M": (
        lambda: dln.Quadratic(np.array([[1, 0.25], [0, 1]]), np.ones(2)),
        ValueError,
        "`M` must be symmetric, but differs from its transpose by 0.25. Pass `(M + M.T) / 2`",
    ),
    "indefinite M": (
        lambda: dln.Quadratic(np.diag([1, -0.5]), np.ones(2)),
        ValueError,
        "semidefinite, but scaled to a unit diagonal it has the eigenvalue -1:",
    ),
    "r outside the range": (
        lambda: dln.Quadratic(np.diag([1.0, 0]), np.array([1, 0.5])),
        ValueError,
        "`r` must lie in the range of `M`, but is off by 0.5: the loss would be unbounded "
        "below. Use `LeastSquares(X, y)`, or project `r`",
    ),
    "constant too small": (
        lambda: dln.Quadratic(np.eye(2), np.ones(2), constant=0.25),
        ValueError,
        "`constant` = 0.25 makes the loss negative: with this `M` and `r` it must be at least 1.0",
    ),
    "NaN constant": (
        lambda: dln.Quadratic(np.eye(2), np.ones(2), constant=np.nan),
        ValueError,
        "`constant` is nan",
    ),
    "μ = 0": (
        lambda: PROBLEM.lasso_objective(np.ones(2), 0.0),
        ValueError,
        "`mu` must be positive, got 0.0. Start the grid above 0",
    ),
    "negative μ in a grid": (
        lambda: PROBLEM.lasso_objective(np.ones(2), np.array([1.0, -2.0])),
        ValueError,
        "`mu` must be positive, got -2.0",
    ),
    "NaN μ": (
        lambda: PROBLEM.lasso_objective(np.ones(2), np.nan),
        ValueError,
        "`mu` must be positive, got nan",
    ),
    "negative κ": (
        lambda: PROBLEM.duality_gap(np.ones(2), -1.5),
        ValueError,
        "`kappa` must be non-negative, got -1.5",
    ),
    "length of x": (
        lambda: PROBLEM.lasso_objective(np.ones((2, 3)), 1.0),
        ValueError,
        "The last axis of `x` must have the 2 coordinates of the problem, got shape (2, 3)",
    ),
    "scalar x": (
        lambda: PROBLEM.loss(jnp.asarray(1.0)),
        ValueError,
        "The last axis of `x` must have the 2 coordinates of the problem, got shape ()",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_refuses_a_table_with_text(as_users_run_it):
    when = pd.to_datetime(["2020-01-01"] * 3)
    table: Any = pd.DataFrame(
        {"age": [1, 2, 3], "sex": list("aba"), "when": when, "old": [1, 0, 1]}
    )
    message = "a DataFrame in which columns hold others: 'sex' (str), 'when' (datetime64"
    with pytest.raises(TypeError, match=re.escape(message)):
        dln.LeastSquares(table, Y0)
    missing: Any = pd.DataFrame({"age": pd.array([1, None, 3], "Int64"), "old": True})
    with pytest.raises(ValueError, match=re.escape("`X[1, 0]` is nan, and 1 of 6 entries")):
        dln.LeastSquares(missing, Y0)
    with pytest.raises(TypeError, match=re.escape("a Series of dtype object with 'x' at [1]")):
        dln.LeastSquares(X0, pd.Series([1.0, "x", None], dtype=object))  # pyright: ignore


def test_takes_tables_of_numbers(as_users_run_it):
    table: Any = pd.DataFrame({"a": pd.array([1, 2, 3], "Int64"), "b": [True, False, True]})
    problem = dln.LeastSquares(table, pd.Series([1, 2, 3]))  # pyright: ignore
    np.testing.assert_array_equal(problem.X, [[1, 1], [2, 0], [3, 1]])
    assert problem.X.dtype == np.float64
