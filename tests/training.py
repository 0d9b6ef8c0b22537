"""A problem, a network, and loops of NumPy that train it, for the tests of `train`."""

import numpy as np

import dlnjax as dln
from dlnjax._train.batches import CHUNK

N, D = 5, 8
EPS = 1e-2
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, D)), RNG.normal(size=N)
SHAPE = RNG.uniform(0.5, 1.5, (2, D)) + np.array([[1.0], [0.0]])
DECAY = 0.3
PROBLEM = dln.LeastSquares(X, Y, weight_decay=DECAY)
PLAIN = dln.LeastSquares(X, Y)
NETWORK = dln.UV(*SHAPE)
SIZE = 0.01
STEPS = CHUNK + 10  # a whole chunk and a part of one


def loop(gradient, move, steps=STEPS, size=lambda k: SIZE):
    """`x` after every step, the times, and the sums of `x`, of the update rule `move`."""
    w = SHAPE * EPS**0.5
    memory = np.zeros_like(w)
    xs, t, z = [w[0] * w[1]], [0.0], [np.zeros(D)]
    for k in range(steps):
        g = lambda w, k=k: gradient(k, w[0] * w[1]) * w[::-1] + DECAY * w
        x = w[0] * w[1]
        w, memory = move(w, memory, g, size(k))
        xs.append(w[0] * w[1])
        t.append(t[-1] + size(k))
        z.append(z[-1] + size(k) * x)
    return np.array(xs), np.array(t), np.array(z)


def full(k, x):
    return X.T @ (X @ x - Y)


def sgd(w, memory, g, size):
    return w - size * g(w), memory
