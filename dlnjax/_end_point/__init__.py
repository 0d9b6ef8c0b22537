"""Where training ends: `end_point` and `limit_point` by Newton's method (`newton.py`), their
derivatives, the potentials that they minimise, Bregman projections, and the rate in `ε`.
"""
