"""A small problem and a network, to call every function with."""

# pyright: reportArgumentType=false, reportCallIssue=false

import numpy as np

import dlnjax as dln

X = np.array([[1.0, 2, 3], [0, 1, 1]])
PROBLEM, SMALL = dln.LeastSquares(X, np.ones(2)), dln.LeastSquares(np.eye(2), np.ones(2))
NETWORK = dln.UV(np.ones(3), np.zeros(3))

EPS = {"eps": 0.1}
