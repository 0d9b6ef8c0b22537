"""The lasso: its path (`path.py`), event by event (`homotopy.py`, `record.py`), points at given `μ`
(`point.py`, by the steps of `face_steps.py`; other losses in `generalized.py`), basis pursuit, and
designs whose paths are monotone.
"""
