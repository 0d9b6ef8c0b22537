"""What `python -m benchmarks.fuzz` found to be wrong without a flag, or flagged although it is well
conditioned: the worst of each kind, by seed and lane. Checked as the fuzz run does. And paths by
their data, as they were: right now, or flagged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import kkt_violation

import dlnjax as dln
from benchmarks._fuzz_bounds import wrong
from benchmarks._fuzz_checks import violations
from benchmarks._fuzz_flow import flow_violations
from benchmarks._fuzz_problems import CONFIGS, batch
from benchmarks._fuzz_solve import solve

# By program, and function: seeds `SEED,CONFIG,ROUND,BATCH` and lanes.
FOUND = {
    # x far beyond the last jump was the difference of two numbers that grow like s.
    # And with a traced decay of 0, `w⁺ + w⁻`, which is known, drifted by the rounding of `sr`.
    # An orthogonal column in large units: steps looked for an error in what is all rounding.
    (1, "flow"): {
        (0, 1, 0, 0): [374, 278, 140],
        (21, 1, 12, 4): [179],
    },
    # Some minimiser, where columns depend on each other, not the one that the flow selects; and
    # `w` late in the process, which was rounding, taken for 0. Entries that come to rest at 0, with
    # the other sign by rounding; entropies whose columns differ by ten decades, or that vanish;
    # that stopped where the next step would have been exact, or where a needed entry underflowed.
    # Starts in units that differ by decades; twins, and a response that they explain but for 1e-8.
    (0, "limit"): {
        (1, 0, 0, 0): [9],
        (0, 0, 0, 0): [298, 314],
        (0, 0, 0, 1): [334],
        (3, 0, 6, 0): [324],
        (3, 0, 6, 2): [64],
        (3, 0, 3, 1): [144],
        (3, 0, 7, 3): [1],
        (3, 0, 8, 2): [17],
        (6, 0, 0, 2): [462],
        (9, 0, 1, 0): [108],
        (9, 0, 7, 5): [428],
        (9, 0, 9, 0): [266],
        (13, 0, 0, 5): [281],
        (13, 0, 5, 1): [252],
        (13, 0, 12, 1): [199],
        (15, 0, 8, 1): [135],
    },
    # Columns whose norms differ by ten decades: singular values of small ones, and the dual on
    # large ones, were rounding; the dual was a sum of steps, with the rounding of the largest. A
    # column of 0, whose start was the size of `x` then, or whose singular vectors were rounding.
    (0, "end"): {
        (0, 0, 0, 0): [298, 23, 384, 414],
        (0, 0, 0, 1): [334],
        (1, 0, 0, 0): [135],
        (3, 0, 0, 0): [480],
        (3, 0, 2, 2): [94],
        (3, 0, 8, 2): [146],
        (34, 0, 11, 3): [195],  # the check was wrong: norms differ by twelve decades
    },
    # A response that one column explains, but for rounding, with signs that others cannot have;
    # and a response that is orthogonal but for rounding.
    (0, "limit_point"): {(3, 0, 0, 2): [57], (3, 0, 6, 2): [156]},
    (1, "limit_point"): {
        (0, 1, 0, 0): [1, 61, 422],
        (0, 1, 0, 1): [96, 315],
        (0, 1, 0, 3): [502],
        (13, 1, 38, 1): [478],
    },
    (1, "basis_pursuit"): {(0, 1, 0, 0): [61, 209, 262], (0, 1, 0, 1): [20], (0, 1, 0, 4): [137]},
    # A response that is explained but for 1e-8: the dual of no single segment proved the point, or
    # it was feasible only with a residual between rounding and half of the digits.
    (2, "basis_pursuit"): {
        (9, 2, 5, 0): [27, 475],
        (9, 2, 2, 0): [114],
        (9, 2, 3, 1): [258],
        # A dual to which a residual of 1e-10 was added that was not orthogonal to active columns.
        (13, 2, 20, 2): [17, 465],
    },
    # The check was wrong: it moved the dual by what its entry of infinite weight, all rounding, is.
    (11, "basis_pursuit"): {(21, 11, 26, 0): [497]},
    # And here: an entry had moved from its start by 1e-5, in float32, with a logarithm to match.
    (6, "limit"): {(21, 6, 21, 0): [99]},
    # The check was wrong: nothing but the start costs anything beside a `y` of 1e-12; and numbers
    # of 1e-280, of columns of 1e-14, are subnormal to a flow.
    (10, "flow"): {(34, 10, 8, 1): [397], (34, 10, 37, 1): [484]},
    # `y` in the cone of `x ≥ 0` but for rounding.
    (2, "end"): {(1, 2, 0, 0): [86, 109, 124, 213]},
}
FLAGGED = {
    # `x` is 1e-10 and 1e-8 of the start: it was returned with six digits less than a flow has.
    (1, "flow"): {(3, 1, 7, 3): [299], (3, 1, 2, 1): [76]},
    # `x` is 1e-13 of a start with `q⁺ = 600 q⁻`, and was off by 3 %.
    (15, "flow"): {(33, 15, 1, 0): [464, 16]},
    # The rounding of `Mx`, in which terms of 2000 cancel, drifts for times of 1e10.
    (10, "flow"): {(21, 10, 3, 1): [300]},
    # Three columns in a plane, two of them near twins, in units that differ by five decades.
    (1, "basis_pursuit"): {(1, 1, 0, 4): [17]},
    # Four columns of rank 3, of which three have a pivot of 2e-5: that of the fourth is rounding.
    (11, "limit"): {(6, 11, 0, 1): [351]},
    # The last knot lies where what is left of `y` is rounding, in units nine decades apart.
    # And a dual to which the residual was added although x is held there, which moved others.
    (2, "basis_pursuit"): {(9, 2, 5, 0): [349], (10, 2, 3, 2): [87]},
    # Near twins in the support, of which `M` holds half of the digits.
    (11, "basis_pursuit"): {(34, 11, 46, 1): [132]},
    # Correlation 0.999 in float32: a tableau ended with an infeasibility of 5e-5.
    (12, "basis_pursuit"): {(12, 12, 0, 0): [44]},
    # Three columns of a face in a plane but for 1e-9, of which two are equal but for 7e-16; three
    # copies and a column that is their negative but for 4e-14.
    (0, "limit_point"): {(15, 0, 3, 1): [365], (3, 0, 2, 5): [46]},
    # Twins beside columns whose rounding, in float32, moved their logarithms apart by 0.2.
    (6, "limit"): {(14, 6, 64, 1): [108]},
    # The path that tells which `x ≥ 0` are allowed failed.
    (12, "end"): {(6, 12, 0, 0): [60]},
}


def _solved(index, function, cases, change=lambda out: None):
    lanes = []
    for seed, numbers in cases.items():
        a = batch(CONFIGS[index], list(seed), True)
        lanes += [{key: value[lane] for key, value in a.items()} for lane in numbers]
    lanes += lanes[:1] * (8 - len(lanes))
    a = {key: np.stack([lane[key] for lane in lanes]) for key in lanes[0]}
    # No lane is a copy of another one.
    config = CONFIGS[index]._replace(lanes=len(lanes))
    out = solve(config, a, [function])
    change(out[function])
    found = violations(config._replace(lanes=4), a, out)
    if function == "flow":
        found |= flow_violations(config, a, out)
    return config, out["results"][function], found


@pytest.mark.parametrize("index, function", FOUND)
def test_what_was_wrong(index, function):
    config, results, found = _solved(index, function, FOUND[index, function])
    assert np.all(results == 0)
    assert found
    for name, value in found.items():
        assert np.all(value <= wrong(config)[name]), name


def test_checks_notice_what_is_wrong():
    """Where it was wrong itself: a dual with an entry 1e-3 short."""

    def off(out):
        out["dual"] = out["dual"] * np.array([1, 1, 1, 0.999])

    config, _, found = _solved(11, "basis_pursuit", FOUND[11, "basis_pursuit"], off)
    assert np.all(found["basis_pursuit, norm"] > wrong(config)["basis_pursuit, norm"])


@pytest.mark.parametrize("index, function", FLAGGED)
def test_what_rounding_hides_is_flagged(index, function):
    # Or right: powers and matrix products of NumPy, with which the data are made, round differently
    # on other processors, and where rounding decides it may decide so.
    config, results, found = _solved(index, function, FLAGGED[index, function])
    assert found
    for name, value in found.items():
        if "copies" in name:
            continue
        assert np.all((results != 0) | (value <= wrong(config)[name])), name


PATHS = {
    # Columns dependent up to 3e-6: a coordinate left by a step of length 0, from far away.
    "17, 426": (
        [
            [0.6436834634860323, 1.6042713633174495, 0.6234563674195829],
            [0.16142525342363578, -1.3239297054792876, 0.7042369607361653],
            [1.052377945014343, 1.048754758036861, 1.51890854129608],
            [0.060744870089996246, 0.5958038582765561, -0.08220402059613502],
        ],
        [0.9444785761294829, 1.2417809674717688, -1.6407146530337575, 0.5432991351345976],
    ),
    "29, 234": (
        [
            [0.9166440251331437, 1.980530642855119, 1.1041252206514132],
            [-2.279885385894856, 0.9346274991525932, -1.650377461124322],
            [1.8915101272151726, -2.0253398521608594, 1.1355215623140071],
            [-1.8021906600894588, 1.046202095188293, -1.2470961583497076],
        ],
        [1.0, -2.0, -1.0, 2.0],
    ),
    "97, 273": (
        [
            [-124542.73026687403, 311932.62812531745, 205740.3957250008],
            [-98536.20070537795, 353166.17369896115, 104495.41991865559],
            [8978.919395309304, -2960.6357543282716, -25531.219970297694],
            [242269.63886484868, -245672.31654726205, -598087.7303416682],
        ],
        [-41492.52129184255, -74232.63883015333, 25318.088965606537, 91014.03029722012],
    ),
    "172, 63": (
        [
            [
                -6.834858559114043e-07,
                1.819768086728075e-06,
                6.705240356887307e-08,
                1.29357903591e-06,
            ],
            [
                3.46368453688231e-07,
                -1.62680369128963e-07,
                2.24698954598957e-07,
                -5.6250157532559e-07,
            ],
            [
                -1.04215807482543e-06,
                -1.43543978986045e-07,
                -8.9167676199504e-07,
                1.61489839113576e-06,
            ],
        ],
        [2.113990808064836, -2.6691004266371965, -1.1858135253515782],
    ),
    # Columns of sizes 5e-6 to 2e6: the last ray lost a slope that leads to another knot.
    "24, 279": (
        [
            [2.6710076077903064e-06, -0.016065237291603383, -1259037.4142299693, -88.1076261301623],
            [4.447672499320907e-06, 0.019861600826283906, 1556559.5511000296, -101.47242729464949],
            [9.68609782416664e-07, -0.012363852989535897, -968958.8280398572, -26.160597998655955],
        ],
        [0.13047545003354752, -1.0398481891734213, -0.15594247875519482],
    ),
}


@jax.jit
@jax.vmap
def _path(X, y):
    path = dln.lasso_path(dln.LeastSquares(X, y), throw=False)
    middle = jnp.sqrt(path.knots[:-1]) * jnp.sqrt(path.knots[1:])
    at = jnp.concatenate([path.knots, middle, 10 * path.knots[-1:]])
    return path, at, path.x(at)


@pytest.mark.parametrize("case", PATHS)
def test_paths_are_right_or_flagged(case):
    X, y = map(np.array, PATHS[case])
    path, at, x = jax.tree.map(lambda v: v[0], _path(np.stack([X] * 4), np.stack([y] * 4)))
    if path.result == dln.RESULTS.successful:
        meant = at > 0
        violation = kkt_violation(X, y, np.asarray(x)[meant], 1 / np.asarray(at)[meant])
        assert np.max(violation) <= 1e-6 * np.max(np.abs(X.T @ y))
    else:
        assert path.result == dln.RESULTS.path_inaccurate
        assert path.stats["max_violation"] > np.finfo(float).eps ** 0.5


def test_paths_end_where_the_rank_of_a_gram_matrix_does():
    """Columns 0 and 2 are near twins in units apart by seven decades: `M` cannot tell how column 1,
    which depends on the others, does so. The path once went on after its end, without a word."""
    X = np.array(
        [
            [-33120470735954.24, -12527476.711834649, 568083940502.451, -4400261715.068089],
            [-102742027231197.25, 6680462.027841553, 1762041592101.5994, 10686163528.868689],
            [-81511848907345.55, -17567517.81940912, 1397492234746.0703, -1976448462.4802854],
        ]
    )
    y = np.array([23711433562.67096, -160321818170.66653, 102963391419.52893])
    problem = dln.Quadratic(X.T @ X, X.T @ y)
    path = dln.lasso_path(problem)
    x = dln.basis_pursuit(problem).x
    support = [0, 2, 3]
    # `M` has the square of the condition number 1.6e4 of these columns, in rounding: 6e-8.
    right = np.linalg.solve(X[:, support], y)
    np.testing.assert_allclose(np.asarray(x)[support], right, rtol=1e-6)
    assert x[1] == 0
    assert float(jnp.max(path.kkt_residual(problem))) <= 1e-9


LASSOS = {
    # From the μ before, the face is balanced to rounding, and another column must enter: where two
    # are unpenalised it was taken for the end, and gradient steps began that did not come to one.
    "a face that is balanced already": (
        2.0**21 * np.array([[1.0, 1, 1, -1], [2, -2, -1, 2], [-2, 1, -1, -1]]),
        2.0**-37 * np.array([-1.0, 2, 1]),
        [0, 0, 12149.749447888662, 0.014716318037184324],
        [2411121.5472122794, 24111215472.122795],
    ),
    # A twin has a correlation of rounding, and enters towards a point that is far off.
    "a step that is lost": (
        [
            [0.999999999999995, -2, 1],
            [-2.000000000000005, 0, -2],
            [-2.000000000000005, -2, -2],
            [0.999999999999999, 1, 1],
        ],
        [2.0, 2, -1, 0],
        [1.1, 2.4e7, 1.3],
        [1.7e16],
    ),
}


@pytest.mark.parametrize("case", LASSOS)
def test_lassos_reach_what_the_path_has(case):
    X, y, weights, mu = map(np.array, LASSOS[case])
    problem = dln.LeastSquares(X, y)
    if case == "a step that is lost":  # in `M`, which is rounded, the twins are one column
        # As BLAS rounds them on one processor.
        M = np.array(
            [[10.000000000000028, 3.0000000000000187, 10.000000000000012], [0, 9, 3], [0, 0, 10]]
        )
        r = np.array([-1.4654943925052066e-14, -2, 0])
        problem = dln.Quadratic(M + np.triu(M, 1).T, r, 0.5000001 * y @ y)
    found = dln.lasso(problem, mu, weights=weights)
    assert np.max(found.stats["num_steps"]) < 20
    rest = y - np.asarray(found.x) @ X.T
    objective = (rest**2).sum(axis=1) / 2 + np.abs(found.x) @ weights / mu
    path = np.asarray(dln.lasso_path(problem, weights=weights).x(mu))
    best = ((y - path @ X.T) ** 2).sum(axis=1) / 2 + np.abs(path) @ weights / mu
    np.testing.assert_allclose(objective, best, rtol=1e-12)
