"""The lasso: its path (`path.py`), event by event (`homotopy.py`), points at given `μ` (`point.py`,
by the steps of `face_steps.py`), basis pursuit, and designs whose paths are monotone.
"""
