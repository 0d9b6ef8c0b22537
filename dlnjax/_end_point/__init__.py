"""Where training ends: `end_point` and `limit_point`, their derivatives, the potentials that they
minimise, Bregman projections, and the rate in `ε`.

- `end_point.py`: the functions, which choose among `linear.py` (the network `Linear`), `decayed.py`
  (weight decay) and `selected.py` (all else). Each returns an `EndPoint` (`point.py`).
- `newton.py`: Newton's method of `selected.py`; `graded_solve.py`, its linear solver;
  `sensitivity.py`, how many digits the data determine; `derivatives.py`, its implicit function.
- `potential.py`, `bregman.py`, `null_space.py`: one public function or family each.
"""
