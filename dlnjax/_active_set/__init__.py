"""What event-driven solvers share: the active coordinates and their pivots (`state.py`; in two
forms, `compact.py` and `tableau.py`, chosen in `choice.py`), the tolerances (`tolerances.py`),
which minimiser is meant where columns depend on each other (`minimizer.py`, `projection.py`),
derivatives, and the stack of transformations around a solver (`transform.py`). The events
themselves, with their order and ties, are in `_lasso/homotopy.py` and `_limit/process.py`.
"""
