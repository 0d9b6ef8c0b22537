"""Monomials of signs: `walsh`, `degree_profile`, `generators.Unseen`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln

POINTS = 1.0 - 2 * np.array(list(np.ndindex((2,) * 5)))


@pytest.mark.parametrize("degree", [None, 0, 2])
def test_every_column_is_the_product_of_its_signs(degree):
    design, subsets = dln.walsh(POINTS, degree=degree)
    largest = 5 if degree is None else degree
    sizes = range(largest + 1)
    assert subsets == tuple(S for k in sizes for S in itertools.combinations(range(5), k))
    np.testing.assert_array_equal(
        design, np.stack([np.prod(POINTS[:, list(S)], axis=1) for S in subsets], axis=1)
    )


def test_energy_of_each_degree():
    # By Parseval it is the mean of the squares of the part of that degree.
    _, subsets = dln.walsh(POINTS)
    x = np.random.default_rng(0).normal(size=32)
    parts = [
        sum(
            c * np.prod(POINTS[:, list(S)], axis=1)
            for S, c in zip(subsets, x, strict=True)
            if len(S) == k
        )
        for k in range(6)
    ]
    energies = [np.mean(part**2) for part in parts]
    np.testing.assert_allclose(dln.degree_profile(x, subsets), energies, rtol=1e-12)
    slopes = jax.jacfwd(lambda x: dln.degree_profile(x, subsets))(jnp.asarray(x))
    np.testing.assert_allclose(np.sum(slopes, axis=0), 2 * x, rtol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be −1 or 1, got points\[1, 0\] = 0.0"):
        dln.walsh(np.array([[1, 1], [0, 1]]))
    with pytest.raises(ValueError, match="one point a row"):
        dln.walsh(np.array([1, -1]))
    for degree in (-1, 3):
        with pytest.raises(ValueError, match="from 0 to the number of entries, 2"):
            dln.walsh(np.array([[1, -1]]), degree=degree)
    with pytest.raises(ValueError, match="one entry for each of 4 subsets"):
        dln.degree_profile(np.ones(3), dln.walsh(np.array([[1, -1]]))[1])
    design, _ = jax.jit(lambda p: (dln.walsh(p)[0], 0))(np.array([[1.0, -1], [1, 0]]))
    assert np.all(np.isfinite(design[0])) and np.isnan(design[1, 2])


def test_unseen_data():
    target = lambda p: jnp.asarray(p)[:, 0] * p[:, 1] - 2 * p[:, 2]
    seen = lambda p: p[:, 0] + p[:, 1] > -2
    make = dln.generators.Unseen(target, seen, dimension=4)
    X, y = jax.jit(lambda key: make(key, 12, 11))(jax.random.key(3))
    # All 12 points that are seen, each once; up to degree 2 the columns 1 to 4 are the signs.
    points = np.asarray(X)[:, 1:5]
    assert len({tuple(p) for p in points}) == 12 and np.all(seen(points))
    np.testing.assert_array_equal(y, target(points))
    np.testing.assert_array_equal(X, dln.walsh(points, degree=2)[0])
    with pytest.raises(ValueError, match="12 points that are seen, got n = 13"):
        make(jax.random.key(0), 13, 11)
    with pytest.raises(ValueError, match="1, 5, 11, 15, 16 Walsh functions"):
        make(jax.random.key(0), 12, 10)
    with pytest.raises(ValueError, match="at least 1"):
        dln.generators.Unseen(target, seen, dimension=0)
