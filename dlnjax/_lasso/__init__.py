"""The lasso: its path event by event (`path.py`), points at given `μ` (`point.py`, by the steps of
`face_steps.py`), basis pursuit, and designs whose paths are monotone.
"""
