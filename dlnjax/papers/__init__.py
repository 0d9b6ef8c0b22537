"""Numerical claims of papers, measured through the public API. One module a paper.

A module has its ensemble as a function of a key, each claim as a function that returns a list of
`Measurement`, and `CLAIMS` at its end. `ledger.py` collects them for `dlnjax reproduce`, and
`figures.py` draws. Tolerances are argued in the field `why` of each measurement.
"""
