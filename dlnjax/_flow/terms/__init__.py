"""The vector fields, one state space a file: `ν` (`rows.py`), `w` (`coordinates.py`), depth 1
(`linear.py`) and the weights of any network (`weights.py`), on the interfaces of `base.py`.
"""
