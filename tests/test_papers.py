"""The ledger of the papers: rows in small settings, and that a wrong value does not pass."""

import dataclasses
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

import dlnjax as dln
from dlnjax.papers import (
    azu21,
    b23,
    b25,
    bl22,
    ebbf21,
    gis20,
    ledger,
    lyu24,
    mb23,
    mor20,
    pba24,
    pf23,
    w23,
)
from dlnjax.papers.claim import Claim, Measurement
from dlnjax.papers.end_points import Lane, end_points, fitted_slope, off_range
from dlnjax.papers.figures import FIGURES


def _hold(rows, id):
    assert rows and all(row.id == id for row in rows)
    for row in rows:
        assert row.holds, f"{row.claim}: stated {row.stated}, measured {row.measured}"


def test_fixture():
    _hold(pf23.fixture(), "PF23-fixture")


def test_potentials():
    _hold(w23.potentials(), "W23-fig3")


def test_logistic_growth():
    _hold(gis20.scalar(), "Gis20-scalar")


def test_separable_data():
    _hold(mor20.path(), "Mor20-path")
    # Margins over the largest one, with the same program, against an integration by SciPy's Radau.
    alpha, T = np.repeat([0.01, 1, 10], 3), np.tile([230, 1e4, 1e6], 3)
    stated = [0.961, 0.972, 0.978, 0.964, 0.987, 0.996, 0.873, 0.959, 0.987]
    A = mor20.instance()
    lanes = (jnp.asarray(np.resize(v, 21)) for v in (alpha**2 / T, T))
    x = np.asarray(mor20._flows(jnp.asarray(A), *lanes))[:9]
    best = float(dln.max_margin(dln.Exponential(A, np.ones(len(A)))).margin)
    ratio = np.min(x @ A.T, axis=1) / np.sum(np.abs(x), axis=1) / best
    np.testing.assert_allclose(ratio, stated, atol=5.5e-4)


def test_least_degree():
    _hold(pba24.profiles(), "PBA24-profiles")


def test_two_time_scales():
    _hold(mb23.hitting(), "MB23-hitting")


def test_gossip_spreads():
    _hold(bl22.moments(), "BL22-moment")


def test_continuized_bounds():
    strong, convex = ebbf21.over_bounds(1000)
    assert np.max(strong) < 1 and np.max(convex) < 1


def test_grokking():
    _hold(lyu24.grokking(), "Lyu24-grokking")


def test_unbalanced_layers():
    _hold(azu21.shape(2), "Azu21-shape")


def test_off_range():
    X = np.array([[[1.0, 2, 0]], [[0, 1, 1]]])
    np.testing.assert_allclose(off_range(X, 3 * X[:, 0]), 0, atol=1e-15)
    np.testing.assert_allclose(off_range(X, np.array([[0.0, 0, -5], [2, 2, 2]])), 1)


@pytest.mark.parametrize("id", ["W23-fig3", "Gis20-scalar"])
def test_figures_are_labelled(id):
    for ax in FIGURES[id]().axes:
        assert ax.get_xlabel() and ax.get_ylabel() and ax.lines


def test_stieltjes_paths_are_monotone():
    _hold(b23.monotone(200), "B23-monotone")


def test_monotone_fraction():
    _hold(b25.measure_monotone(1000), "B25-monotone")


def test_chosen_minimiser():
    # The closed forms that the rows are compared with, against the stated digits.
    for D, t in w23.STATED_T.items():
        assert abs(w23.chosen_t(D) - t) < 5e-9
        X, y = w23.FIRST
        np.testing.assert_allclose(X @ w23.chosen(D)[:3], y, atol=1e-14)


def test_failed_lanes_are_nan():
    # Depth 3 at ε = 1e-60: two points share the norm, and the flow's has no digits left.
    X, y = w23.FIRST
    lanes = [Lane(3, X, y, float(np.log(eps))) for eps in (1e-12, 1e-60)]
    good, bad = end_points(lanes)
    np.testing.assert_allclose(good, w23.chosen(3), atol=1e-9)
    assert np.all(np.isnan(bad))


def test_fitted_slope():
    log_eps = np.log(np.geomspace(1e-8, 1e-4, 8))
    delta = np.exp(log_eps / 5)
    error = 3 * np.exp(1.5 * log_eps + 2 * delta - delta**2)
    assert abs(fitted_slope(log_eps, error, 1 / 5) - 1.5) < 1e-9
    assert abs(fitted_slope(log_eps, np.exp(0.5 * log_eps)) - 0.5) < 1e-12


@pytest.mark.parametrize(
    ("kind", "measured", "holds"),
    [
        ("equal", 1.05, True),
        ("equal", 0.95, True),
        ("equal", 1.2, False),
        ("equal", 0.8, False),
        ("equal", math.nan, False),
        ("at most", 1.05, True),
        ("at most", -10.0, True),
        ("at most", 1.2, False),
        ("at most", math.nan, False),
    ],
)
def test_what_holds(kind, measured, holds):
    row = Measurement("id", "claim", 1.0, measured, 0.1, "why", kind)
    assert row.holds is holds


def test_a_wrong_value_fails(monkeypatch):
    right = pf23.fixture()
    wrong = [dataclasses.replace(row, stated=row.stated + 1e-9) for row in right]
    monkeypatch.setitem(ledger.CLAIMS, "PF23-fixture", Claim("PF23-fixture", "w", lambda: wrong))
    report = ledger.measure(["PF23-fixture"], lambda ids, description: ids)
    text = "\n".join(report.lines)
    assert not report.holds and "FAILS: PF23-fixture" in text
    assert text.count("  FAILS  ") == len(wrong)
    assert not any(row["holds"] for row in report.content["rows"])


def test_every_claim_has_a_row_or_a_figure():
    for id, claim in ledger.CLAIMS.items():
        assert id == claim.id and re.fullmatch(r"[A-Z][A-Za-z]*\d\d-[\w.-]+", id)
        assert (claim.measure is None) == (id == ledger.FIGURE)
    stated = "B25-monotone B25-fig1 B25-thm2.1 B25-thm2.2 B25-thm3.1 B25-thm3.2 B25-lemma4.4"
    stated += " B25-prop4.1 B25-small-s B25-decay B23-monotone B23-activation W23-which W23-fig1"
    stated += " W23-fig2 W23-fig3 Woo20-Q Azu21-shape PF23-fixture PF23-end MS25-rate EPGF23-steps"
    stated += " Hoff17-decay Jac25-decay Gis20-scalar Pes21-sgf Pap24-momentum"
    stated += " Zhao26-growth Dec26-start Mor20-path Gun18-margin Lyu24-grokking"
    stated += " PBA24-switch PBA24-profiles EBBF21-rates EBBF21-gossip BL22-moment BL22-bessel"
    stated += " BMZ23-times MBBB24-risk MBBB24-manifold"
    stated += " GB21-risk GB21-amp MB23-hitting MB23-loss"
    assert set(ledger.CLAIMS) == set(stated.split())
