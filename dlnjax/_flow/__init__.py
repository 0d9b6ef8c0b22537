"""Gradient flow at finite `ε`: `gradient_flow` and `crossing_times`, what both begin with
(`setup.py`), the solvers (`rodas5p.py`, `kvaerno5.py`), and the vector fields (`terms/`).
"""
